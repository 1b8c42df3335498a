"""JSON that tells when a bit of it has changed."""

from __future__ import annotations

import json

import pytest

from compress_ssl.sealed import Damaged, read_sealed, seal_of, write_sealed

VALUE = {"ids": ["Katze/ü.jpg", "a b\u2028.png", "日本.png"], "numbers": [1, -7, 0.1, 1e-300], "nested": {"none": None}}


def test_what_was_written_is_read_with_its_seal(tmp_path):
    """A shard whose ids came back in other letters would not be found in the data."""
    write_sealed(tmp_path / "a.json", VALUE)
    assert read_sealed(tmp_path / "a.json") == (VALUE, seal_of(VALUE))
    assert json.loads((tmp_path / "a.json").read_text())["ids"] == VALUE["ids"], "anyone can read it"


def test_two_objects_have_two_seals():
    """A shard of another table would pass for the one that the manifest lists."""
    assert seal_of(VALUE) != seal_of({**VALUE, "numbers": [1, -7, 0.1, 2e-300]})
    assert seal_of({"a": 1, "b": 2}) == seal_of({"a": 1, "b": 2})


def test_every_flipped_bit_is_noticed(tmp_path):
    """One bit turns an id into another image's, or a label into another class."""
    file = tmp_path / "a.json"
    write_sealed(file, VALUE)
    whole = file.read_bytes()
    for bit in range(8 * len(whole)):
        changed = bytearray(whole)
        changed[bit // 8] ^= 1 << bit % 8
        file.write_bytes(changed)
        with pytest.raises(Damaged):
            read_sealed(file)


def test_every_truncation_is_noticed(tmp_path):
    """A copy that was cut off by a full disk would be a shorter list of images."""
    file = tmp_path / "a.json"
    write_sealed(file, VALUE)
    whole = file.read_bytes()
    for length in range(len(whole)):
        file.write_bytes(whole[:length])
        with pytest.raises(Damaged):
            read_sealed(file)


@pytest.mark.parametrize(
    "text",
    ["", "[]", "3", "{}", '{"a": 1}', '{"a": "\\ud800", "sha256": "0"}', "[" * 100_000, "1" * 5000, '{"sha256": null}'],
)
def test_other_json_is_damage_and_no_traceback(tmp_path, text):
    """Any folder may hold a manifest.json of another program."""
    (tmp_path / "a.json").write_text(text)
    with pytest.raises(Damaged):
        read_sealed(tmp_path / "a.json")


def test_a_missing_file_is_missing_and_not_damaged(tmp_path):
    """`embed` would refuse a new folder as a damaged table."""
    with pytest.raises(FileNotFoundError):
        read_sealed(tmp_path / "a.json")
