"""What lies in examples/ is used by other work: it must open."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from compress_ssl.encoder import open_encoder

TEACHERS = sorted(file.parent for file in (Path(__file__).parents[1] / "examples" / "teachers").glob("*/model.json"))


def test_there_are_teachers():
    """An empty folder would pass below by having nothing to open."""
    assert TEACHERS


@pytest.mark.parametrize("folder", TEACHERS, ids=lambda folder: folder.name)
def test_a_kept_teacher_opens_in_float32_and_tells_pictures_apart(folder):
    """Half-precision files that load as half, or weights of nothing, would spoil every table made with them."""
    encoder = open_encoder(str(folder), weights="pretrained")
    size = encoder.preprocessing.size
    images = torch.randint(0, 256, (3, 3, size, size), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        rows = encoder(images)
    assert rows.dtype == torch.float32
    assert torch.isfinite(rows).all()
    assert torch.pdist(rows).min() > 0
    assert sum(file.stat().st_size for file in folder.iterdir()) < 25e6
