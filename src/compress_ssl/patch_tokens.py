"""Patch tokens beside the embedding: a transformer's rows for the squares of a picture, on a grid two models share.

They are those after the last block and its norm, without class and register tokens, as timm's vision transformers give
them (`forward_features`); the embedding is computed from the same pass. Of two models with grids of different size the
finer one is averaged over the squares of the coarser (adaptive average pooling).
"""

from __future__ import annotations

from math import isqrt
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional

from compress_ssl.encoder import Encoder
from compress_ssl.refusal import Refusal


class Grid(NamedTuple):
    """side: squares on each side of a picture; width: of a token."""

    side: int
    width: int


def grid_of(encoder: Encoder, *, option: str) -> Grid:
    """The grid of the encoder's patch tokens at its own input size.

    Args:
        option: that names the encoder, for the refusal.
    Raises: Refusal if it has no patch tokens, or they are no square of at least two.
    """
    training, size = encoder.training, encoder.preprocessing.size
    backbone: Any = encoder.backbone
    shape: tuple[int, ...] = ()
    if all(hasattr(backbone, name) for name in ("forward_features", "forward_head", "num_prefix_tokens")):
        with torch.no_grad():
            black = torch.zeros(1, 3, size, size, dtype=torch.uint8, device=encoder.mean.device)
            found = backbone.eval().forward_features(encoder.pixels(black))
            encoder.train(training)
            shape = tuple(found.shape) if isinstance(found, Tensor) else ()
    side = isqrt(max(shape[1] - backbone.num_prefix_tokens, 0)) if len(shape) == 3 else 0
    if side < 2 or side**2 != shape[1] - backbone.num_prefix_tokens:
        raise Refusal(f"{option} expected a vision transformer of timm with at least 2 × 2 patch tokens for this "
                      f"objective, got {encoder.spec}: choose one, or another --objective")  # fmt: skip
    return Grid(side, shape[2])


def with_patches(encoder: Encoder, images: Tensor) -> tuple[Tensor, Tensor]:
    """Pixels (B, 3, H, W) uint8 -> embeddings (B, D), the encoder's own, and patches (B, D_token, side, side)."""
    backbone: Any = encoder.backbone
    tokens = backbone.forward_features(encoder.pixels(images))
    patches = tokens[:, backbone.num_prefix_tokens :]
    side = isqrt(patches.shape[1])
    return backbone.forward_head(tokens), patches.transpose(1, 2).unflatten(2, (side, side))


def token_rows(patches: Tensor, side: int) -> Tensor:
    """(B, D_token, g, g) -> (B, side² · D_token) float32: tokens of length one on the grid, one row after the other."""
    if patches.shape[2] != side:
        patches = functional.adaptive_avg_pool2d(patches.float(), side)
    return functional.normalize(patches.float().flatten(2).transpose(1, 2), dim=2).flatten(1)
