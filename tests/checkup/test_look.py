"""A look at images: what cannot be used, sizes, digests; which ones are drawn."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image

from compress_ssl.checkup.look import contents, look, some, thumbnail
from compress_ssl.datasets import open_splits


def pictures(root: Path, count: int) -> Path:
    random = np.random.default_rng(0)
    root.mkdir(exist_ok=True)
    for number in range(count):
        pixels = random.integers(0, 256, (40 + number, 61, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(root / f"{number:03d}.{'png' if number % 3 == 0 else 'jpg'}")
    return root


def test_a_look_sees_what_is_there(tmp_path):
    """Numbers of a damaged image would count as those of a whole one."""
    root = pictures(tmp_path / "photos", 7)
    whole = (root / "004.jpg").read_bytes()
    (root / "004.jpg").write_bytes(whole[: len(whole) // 2])
    (root / "005.jpg").write_bytes(b"")
    (root / "copy.jpg").write_bytes((root / "001.jpg").read_bytes())
    images = open_splits(str(root)).train
    seen = look(images, np.arange(len(images)), workers=0)
    usable = {id: tuple(size) for id, size in zip(images.ids, seen.sizes.tolist(), strict=True)}
    assert usable["000.png"] == (40, 61)
    assert usable["004.jpg"] == usable["005.jpg"] == (0, 0)
    assert {(skip.id, skip.kind) for skip in seen.unusable} == {("004.jpg", "truncated"), ("005.jpg", "empty")}
    assert seen.jpeg.tolist() == [id.endswith("jpg") and usable[id] != (0, 0) for id in images.ids]
    places = {id: place for place, id in enumerate(images.ids)}
    digests = contents(images, np.arange(len(images)), workers=0)
    assert digests[places["001.jpg"]] == digests[places["copy.jpg"]] == seen.contents[places["001.jpg"]]
    assert len(set(digests.tolist())) == len(images) - 1
    assert np.array_equal(seen.thumbnails[places["000.png"]], thumbnail(images.read(places["000.png"])))


def test_processes_see_what_one_sees(tmp_path, monkeypatch):
    """Results that depend on the number of workers could not be compared."""
    monkeypatch.setattr("compress_ssl.checkup.look.AT_ONCE", 3)
    monkeypatch.setattr("compress_ssl.checkup.look.WORTH_WORKERS", 1)
    images = open_splits(str(pictures(tmp_path / "photos", 11))).train
    one, two = (look(images, np.array([0, 2, 5, 7, 10]), workers=workers) for workers in (0, 2))
    for field in ("positions", "sizes", "thumbnails", "contents", "jpeg"):
        assert np.array_equal(getattr(one, field), getattr(two, field)), field


def test_what_is_drawn_depends_on_seed_and_id_alone():
    """Another order of the files would be another sample, and estimates would jump between two looks."""
    ids = [f"photo{number}" for number in range(101)]
    drawn = {ids[place] for place in some(ids, 17, seed=3)}
    turned = ids[::-1]
    assert drawn == {turned[place] for place in some(turned, 17, seed=3)}
    assert len(drawn) == 17
    assert drawn != {ids[place] for place in some(ids, 17, seed=4)}
    assert some(ids, 101, seed=0).tolist() == list(range(101))
