"""What every format promises; a file in formats/ is held against every layout by existing."""

from __future__ import annotations

from typing import Any

import pytest

from compress_ssl import formats
from compress_ssl.formats import open_format, read_as, recognise, tensors_of
from compress_ssl.refusal import Refusal

SAME = {("torchvision", "timm")}  # a bare ResNet has the same names in both, and is the same network


def test_every_format_has_what_the_family_promises() -> None:
    """Otherwise a new file would fail where a user names it, not here."""
    assert len(formats.names()) > 15
    for name in formats.names():
        format = open_format(name)
        assert format.TITLE
        assert format.SIGNS, f"{name}: a refusal could not tell when it is close"
        assert isinstance(format.EMBEDDING, str)
        assert format.find({}, named=True) is None


def test_every_format_has_a_layout(layout_names: list[str]) -> None:
    """Otherwise a format could claim everybody's files, or none."""
    assert {name.partition(":")[0] for name in layout_names} == set(formats.names())


def test_a_checkpoint_is_recognised_without_its_name(published_layout: tuple[str, Any]) -> None:
    """Otherwise people would have to know what the file is that they downloaded a year ago."""
    format, make = published_layout
    name, found = recognise(make(), source="file.pth")
    assert name == format
    assert found.tensors


def test_no_tensor_of_a_file_is_lost(published_layout: tuple[str, Any]) -> None:
    """Otherwise half of an encoder could stay behind under a name that nobody looked at."""
    format, make = published_layout
    content = make()
    found = read_as(format, content, source="file.pth")
    assert len(found.tensors) + sum(found.dropped.values()) == len(list(tensors_of(content)))


def test_a_file_of_another_format_is_refused_with_the_right_name(published_layout: tuple[str, Any]) -> None:
    """Otherwise a wrong file would be half loaded, or the user be left to guess what it is."""
    format, make = published_layout
    content = make()
    for other in formats.names():
        if other == format or (format, other) in SAME:
            continue
        with pytest.raises(Refusal) as refusal:
            read_as(other, content, source="file.pth")
        told = str(refusal.value)
        assert f"got one of {open_format(format).TITLE} (" in told, f"read as {other}: {told}"
        assert f"write @{format}:file.pth" in told
        assert "\n" not in told


def test_a_plain_file_is_read_as_what_its_user_says(plain_layout: tuple[str, Any]) -> None:
    """Otherwise files that say nothing of their authors could not be given their authors' preprocessing."""
    format, make = plain_layout
    content = make()
    found = read_as(format, content, source="file.pth")
    assert len(found.tensors) + sum(found.dropped.values()) == len(list(tensors_of(content)))
    if formats.candidates(content, named=False):
        assert recognise(content, source="file.pth")[0] != format
    else:
        with pytest.raises(Refusal) as refusal:
            recognise(content, source="file.pth")
        assert f"(@{format}:)" in str(refusal.value)


def test_a_plain_file_is_no_other_formats(plain_layout: tuple[str, Any]) -> None:
    """Otherwise a bare ResNet would be read as a transformer's checkpoint, or as a run of another library."""
    _, make = plain_layout
    content = make()
    possible = set(formats.candidates(content, named=True))
    for other in set(formats.names()) - possible:
        with pytest.raises(Refusal) as refusal:
            read_as(other, content, source="file.pth")
        assert any(f"@{name}:file.pth" in str(refusal.value) for name in possible), str(refusal.value)
