"""Two pictures in one, for teacher and student alike: mixup lays one over the other, CutMix cuts a box out of it.

Sources: Zhang et al., mixup, ICLR 2018; Yun et al., CutMix, ICCV 2019. The student is asked what the teacher says of
pictures that lie between those of the data set, as Beyer et al. (A Good Teacher is Patient and Consistent, CVPR 2022)
found it to need; no label takes part.
One share is drawn a batch, from Beta(alpha, alpha), as in the papers. Neighbours of the batch, 1 and 2, 3 and 4, …, are
mixed with each other: their order is random anyway, and so any number of processes makes the same pairs without sending
a picture. In each the picture that stands there has the larger share, for the smaller one would give the same two
pictures in the other order; an objective that leaves anchors of the query's own image out goes by that picture, the
other one's anchors are compared. cc goes by that picture, too, for no cluster lies between two.
A live teacher looks at what the student sees. Of a stored one there are rows of whole pictures alone: the target is
their mean in the same shares, at length one, which is what a linear teacher would say; of a deep one it is an
approximation.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from compress_ssl.loader import Batch
from compress_ssl.refusal import Refusal


@dataclass(frozen=True, kw_only=True)
class MixingConfig:
    """Mixing of the training images two by two; off by default."""

    kind: Literal["none", "mixup", "cutmix"] = "none"
    alpha: float = 1.0  # of Beta(alpha, alpha), from which shares are drawn; 1: all alike, below 1: mostly one picture
    probability: float = 1.0  # of mixing a batch at all

    def __post_init__(self) -> None:
        if not 0 < self.alpha < math.inf:
            raise Refusal(f"--mixing.alpha expected more than 0, got {self.alpha}: 1 draws all shares alike")
        if not 0 < self.probability <= 1:
            raise Refusal(f"--mixing.probability expected a share of the batches in (0, 1], got {self.probability}: "
                          "leave --mixing out to mix none")  # fmt: skip
        for name in ("alpha", "probability"):
            if self.kind == "none" and getattr(self, name) != getattr(MixingConfig, name):
                raise Refusal(f"--mixing.{name} expected --mixing.kind mixup or cutmix beside it, got none: add one or "
                              f"leave {name} out")  # fmt: skip


@dataclass(frozen=True)
class Mix:
    """One draw for a batch.

    share: of the picture that stands there, in [0.5, 1].
    centre: of CutMix's box, in shares of height and width; None for mixup.
    """

    share: float
    centre: tuple[float, float] | None = None

    def box(self, height: int, width: int) -> tuple[slice, slice]:
        """Rows and columns that are the other picture's: its share of height · width, less what the border cuts off."""
        assert self.centre is not None
        reach = math.sqrt(1 - self.share)
        rows, columns = (
            slice(max(0, round((middle - reach / 2) * side)), min(side, round((middle + reach / 2) * side)))
            for middle, side in zip(self.centre, (height, width), strict=True)
        )
        return rows, columns


def refuse_odd(config: MixingConfig, *, batch_size: int, processes: int) -> None:
    """Refuse a batch that does not go into pairs on every process."""
    share = batch_size // processes
    if config.kind != "none" and share % 2:
        raise Refusal(f"--batch-size expected an even number of images on each process with --mixing.kind "
                      f"{config.kind}, got {share}: images are mixed two by two; change it")  # fmt: skip


def draw(config: MixingConfig, seed: int) -> Mix | None:
    """The mixing of a batch; None for a batch that stays as it is. The same seed draws the same on every process."""
    if config.kind == "none":
        return None
    generator = np.random.default_rng(seed)
    mixed, share, centre = generator.random(), generator.beta(config.alpha, config.alpha), generator.random(2)
    if mixed >= config.probability:
        return None
    share = max(float(share), 1 - float(share))
    return Mix(share, None if config.kind == "mixup" else (float(centre[0]), float(centre[1])))


def mix(batch: Batch, drawn: Mix, widths: Sequence[int]) -> Batch:
    """The batch with its pictures mixed two by two, and its stored targets, if it has any.

    Args:
        batch: of an even number of images (B, 3, H, W) uint8.
        widths: of the stored rows that stand side by side in its target.
    """
    images, share = mixed_images(batch.images, drawn)
    target = None if batch.target is None else mixed_rows(batch.target, share, widths)
    return replace(batch, images=images, target=target)


def mixed_images(images: Tensor, drawn: Mix) -> tuple[Tensor, float]:
    """(B, 3, H, W) uint8 -> the same shape, dtype and order of memory, rounded; the first picture's share of pixels."""
    other = _partners(images)
    layout = torch.channels_last if images.is_contiguous(memory_format=torch.channels_last) else torch.contiguous_format
    if drawn.centre is None:
        laid_over = images.float() * drawn.share + other.float() * (1 - drawn.share)
        return laid_over.round().to(images.dtype).contiguous(memory_format=layout), drawn.share
    height, width = images.shape[-2:]
    rows, columns = drawn.box(height, width)
    cut = images.clone(memory_format=layout)
    cut[..., rows, columns] = other[..., rows, columns]
    return cut, 1 - (rows.stop - rows.start) * (columns.stop - columns.start) / (height * width)


def mixed_rows(target: Tensor, share: float, widths: Sequence[int]) -> Tensor:
    """(B, sum of D_t) unit rows side by side -> means of the pairs' rows, each of length one again."""
    means = target * share + _partners(target) * (1 - share)
    return torch.cat([functional.normalize(part, dim=1) for part in means.split(list(widths), dim=1)], dim=1)


def _partners(rows: Tensor) -> Tensor:
    """(B, …) -> the same with neighbours changed places: 2, 1, 4, 3, …"""
    return rows.unflatten(0, (-1, 2)).flip(1).flatten(0, 1)
