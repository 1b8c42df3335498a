"""Random crops of one picture: global ones and, in multi-crop, small local ones; their colours change later.

Source: SwAV (Caron et al., NeurIPS 2020, Sec. 3.3): local crops show little of a picture in few pixels, so they cost
little. The workers cut, the device changes colours, a whole batch at once.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from compress_ssl import colour
from compress_ssl.picture import Picture
from compress_ssl.refusal import Refusal
from compress_ssl.transforms import Sample, TrainView, cut, draw_crop

SMALL = 64  # pixels; in less, the published blur takes all edges and the published local crops show nothing


@dataclass(frozen=True, kw_only=True)
class LocalConfig:
    """The small crops of multi-crop."""

    views: int = 6  # of each picture; 0 for none
    size: int | None = None  # pixels; None: three sevenths of the input's, as 96 is of 224, a multiple of 8
    # share of the picture's area; None: from 0.05 to where the global ones begin; for inputs under 64 pixels 0.2 to 0.6
    scale: tuple[float, float] | None = None

    def __post_init__(self) -> None:
        if self.views < 0:
            raise Refusal(f"--method.local.views expected 0 or more, got {self.views}: 6 is usual")
        if self.size is not None and self.size < 1:
            raise Refusal(f"--method.local.size expected at least 1 pixel, got {self.size}: 96 is usual beside 224")
        if self.scale is not None and not 0 < self.scale[0] <= self.scale[1]:
            raise Refusal(
                "--method.local.scale expected two shares above 0, the smaller first, got "
                f"{self.scale}: 0.05 0.14 is usual"
            )

    def size_at(self, size: int) -> int:
        """Pixels of a local view beside global ones of `size`."""
        return self.size or max(8 * round(size * 3 / 7 / 8), min(size, 8))

    def view_at(self, size: int, view: TrainView) -> TrainView:
        """Crop and flip of a local view beside global ones of `size` and of this view."""
        published = (0.05, max(view.scale[0], 0.05))
        return replace(view, scale=self.scale or (published if size >= SMALL else (0.2, 0.6)))


class Crops:
    """(H, W, 3) uint8 -> random crops (count, 3, size, size) uint8 and, if asked for, local ones (L, 3, s, s)."""

    def __init__(self, view: TrainView, size: int, local: LocalConfig | None = None, *, count: int = 2):
        self.view, self.size, self.count = view, size, count
        self.local = local if local is not None and local.views else None

    def __call__(self, picture: np.ndarray | Picture, sample: Sample) -> Tensor | tuple[Tensor, Tensor]:
        picture = np.asarray(picture)  # decoded once, and not around each crop
        random = sample.random
        whole = self._cut(picture, self.view, self.count, self.size, random)
        if self.local is None:
            return whole
        view, size = self.local.view_at(self.size, self.view), self.local.size_at(self.size)
        return whole, self._cut(picture, view, self.local.views, size, random)

    @staticmethod
    def _cut(picture: np.ndarray, view: TrainView, count: int, size: int, random: np.random.Generator) -> Tensor:
        height, width = picture.shape[:2]
        crops = [draw_crop(height, width, view, random) for _ in range(count)]
        return torch.stack([cut(picture, crop, size) for crop in crops])


def changed(
    images: Tensor, config: colour.Config, generator: torch.Generator, *, rank: int, ranks: int, blur: float
) -> Tensor:
    """(B, V, 3, s, s) uint8 -> (V·B, 3, s, s), all first views first, in other colours.

    Numbers are drawn for the images of all processes, and this one's are taken.

    Args:
        blur: probability of blurring, where the configuration leaves it open.
    """
    if config.blur is None:
        config = replace(config, blur=blur)
    count = images.shape[0] * images.shape[1]
    drawn = colour.draw(count * ranks, config, generator).part(rank * count, (rank + 1) * count)
    views = colour.apply(images.flatten(0, 1), drawn).view_as(images)
    return views.transpose(0, 1).flatten(0, 1).contiguous(memory_format=torch.channels_last)


def usual_blur(size: int, published: float = 0.5) -> float:
    """The published probability of blurring, for inputs of `size` pixels that are not small."""
    return published if size >= SMALL else 0.0
