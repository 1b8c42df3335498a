"""Patch tokens: the embedding stays what it was, and each token belongs to its square of the picture."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from compress_ssl.encoder import open_encoder
from compress_ssl.patch_tokens import grid_of, token_rows, with_patches
from compress_ssl.refusal import Refusal
from compress_ssl.student import Student

pytestmark = pytest.mark.filterwarnings("error")


@pytest.fixture(autouse=True)
def one_seed() -> Iterator[None]:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        yield


def pictures(count: int, side: int) -> Tensor:
    generator = torch.Generator().manual_seed(1)
    return torch.randint(0, 256, (count, 3, side, side), dtype=torch.uint8, generator=generator)


@pytest.mark.parametrize("name", ["test_vit", "test_vit2", "test_vit3", "test_vit4"])
def test_the_embedding_beside_tokens_is_the_encoder_s_own(name: str) -> None:
    """What is trained would not be what is delivered and scored."""
    encoder = open_encoder(f"timm/{name}", weights="random", size=48).eval()
    images = pictures(3, 40)
    with torch.no_grad():
        embeddings, patches = with_patches(encoder, images)
        assert torch.equal(embeddings, encoder(images))
        tokens = encoder.backbone.forward_features(encoder.pixels(images))  # type: ignore[operator]
    grid = grid_of(encoder, option="--student")
    assert patches.shape == (3, grid.width, 3, 3) == (3, encoder.width, grid.side, grid.side)
    first: Any = encoder.backbone.num_prefix_tokens
    for place in range(9):
        assert torch.equal(patches[:, :, place // 3, place % 3], tokens[:, first + place]), "row by row"


def test_a_student_s_row_is_followed_by_unit_tokens_and_is_the_same_without_them() -> None:
    """A run with tokens would train another embedding."""
    encoder = open_encoder("timm/test_vit", weights="random", size=64).eval()
    projectors = nn.Linear(64, 7), nn.Linear(64, 5)
    images = pictures(2, 64)
    with torch.no_grad():
        plain = Student(encoder, *projectors).eval()(images)
        rows = Student(encoder, *projectors, token_sides=(4, 2)).eval()(images)
        first, fine, second, coarse = rows.split([7, 16 * 64, 5, 4 * 64], dim=1)
    assert torch.equal(torch.cat([first, second], dim=1), plain)
    for tokens in (fine, coarse):
        lengths = tokens.unflatten(1, (-1, 64)).norm(dim=2)
        torch.testing.assert_close(lengths, torch.ones_like(lengths))


def test_the_finer_grid_is_averaged_over_the_squares_of_the_coarser() -> None:
    """Tokens of different places would be compared."""
    patches = torch.randn(2, 3, 4, 4, dtype=torch.float64)
    rows = token_rows(patches, 2).reshape(2, 2, 2, 3)
    for picture in range(2):
        for down in range(2):
            for right in range(2):
                square = patches[picture, :, 2 * down : 2 * down + 2, 2 * right : 2 * right + 2]
                mean = square.reshape(3, 4).sum(dim=1) / 4
                expected = (mean / mean.square().sum().sqrt()).float()
                torch.testing.assert_close(rows[picture, down, right], expected)


@pytest.mark.parametrize("spec", ["compress/resnet10_small_w8", "timm/resnet18", "torchvision/resnet18"])
def test_a_backbone_without_patch_tokens_is_refused(spec: str) -> None:
    """It would end in a traceback about a missing attribute."""
    encoder = open_encoder(spec, weights="random", size=32).train()
    with pytest.raises(Refusal, match=f"--student expected a vision transformer of timm .*, got {spec}:"):
        grid_of(encoder, option="--student")
    assert encoder.training, "as it was"


def test_looking_for_the_grid_changes_nothing() -> None:
    """The student would start in eval mode, without its dropout."""
    encoder = open_encoder("timm/test_vit", weights="random", size=32).train()
    before = torch.get_rng_state()
    assert grid_of(encoder, option="--student") == (2, 64)
    assert all(module.training for module in encoder.modules())
    assert torch.equal(torch.get_rng_state(), before)
