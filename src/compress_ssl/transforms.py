"""Views of a picture: the random training crop as data (box, flip), the evaluation view, each encoder's preprocessing.

Pictures stay uint8 up to the device: a view is cut and resized here with Pillow, exactly as torchvision's
RandomResizedCrop, Resize and CenterCrop do on Pillow images; normalisation is the encoder's first step.
Source of the training view: He et al. 2016 / CompRess, Sec. 4 (RandomResizedCrop(224) + horizontal flip).
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal, NamedTuple

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from compress_ssl.refusal import Refusal

Interpolation = Literal["bilinear", "bicubic"]
FILTERS = {"bilinear": Image.Resampling.BILINEAR, "bicubic": Image.Resampling.BICUBIC}
IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)


@dataclass(frozen=True, kw_only=True)
class Preprocessing:
    """What an encoder expects of its images."""

    size: int = 224  # pixels, side of the square input
    mean: tuple[float, float, float] = IMAGENET_MEAN  # of images in [0, 1], subtracted
    std: tuple[float, float, float] = IMAGENET_STD  # of images in [0, 1], divided by
    interpolation: Interpolation = "bilinear"
    crop_fraction: float = 0.875  # evaluation: short side resized to size / crop_fraction, then the centre cut out


@dataclass(frozen=True, kw_only=True)
class TrainView:
    """Random crop and flip of the training views."""

    scale: tuple[float, float] = (0.08, 1.0)  # share of the picture's area; smaller crops compare details, not scenes
    ratio: tuple[float, float] = (3 / 4, 4 / 3)  # width over height of the crop
    flip: float = 0.5  # probability of a mirror image; 0 where left and right mean something (digits, text)

    def __post_init__(self) -> None:
        if not 0 < self.scale[0] <= self.scale[1]:
            raise Refusal(
                f"--view.scale expected two shares above 0, the smaller first, got {self.scale}: 0.08 1 is usual"
            )
        if not 0 < self.ratio[0] <= self.ratio[1]:
            raise Refusal(f"--view.ratio expected two ratios above 0, the smaller first, got {self.ratio}: 0.75 1.33")
        if not 0 <= self.flip <= 1:
            raise Refusal(f"--view.flip expected a probability in [0, 1], got {self.flip}: 0.5 is usual")


class Crop(NamedTuple):
    """A box in the picture's own pixels, and whether it is mirrored after resizing."""

    top: int
    left: int
    height: int
    width: int
    flip: bool


def draw_crop(height: int, width: int, view: TrainView, random: np.random.Generator) -> Crop:
    """A random crop by the rule of torchvision's RandomResizedCrop: ten tries, then the largest centred box."""
    area = height * width
    flip = bool(random.random() < view.flip)
    low, high = math.log(view.ratio[0]), math.log(view.ratio[1])
    for _ in range(10):
        target = area * random.uniform(*view.scale)
        aspect = math.exp(random.uniform(low, high))
        box_width, box_height = round(math.sqrt(target * aspect)), round(math.sqrt(target / aspect))
        if 0 < box_width <= width and 0 < box_height <= height:
            top = int(random.integers(0, height - box_height + 1))
            left = int(random.integers(0, width - box_width + 1))
            return Crop(top, left, box_height, box_width, flip)
    aspect = min(max(width / height, view.ratio[0]), view.ratio[1])
    box_width = min(width, max(1, round(height * aspect)))
    box_height = min(height, max(1, round(width / aspect)))
    return Crop((height - box_height) // 2, (width - box_width) // 2, box_height, box_width, flip)


def cut(picture: np.ndarray, crop: Crop, size: int, interpolation: Interpolation = "bilinear") -> Tensor:
    """The crop of a picture at `size` × `size` pixels.

    Args:
        picture: (H, W, 3) uint8.
    Returns: (3, size, size) uint8.
    """
    box = picture[crop.top : crop.top + crop.height, crop.left : crop.left + crop.width]
    return _tensor(_resize(box, size, size, interpolation), crop.flip)


def evaluation_view(picture: np.ndarray, preprocessing: Preprocessing) -> Tensor:
    """The deterministic view: short side to size / crop_fraction, then the centre.

    Args:
        picture: (H, W, 3) uint8.
    Returns: (3, size, size) uint8.
    """
    size = preprocessing.size
    height, width = picture.shape[:2]
    short = max(size, math.floor(size / preprocessing.crop_fraction))
    if height <= width:
        height, width = short, max(short, int(short * width / height))
    else:
        height, width = max(short, int(short * height / width)), short
    resized = _resize(picture, height, width, preprocessing.interpolation)
    top, left = round((height - size) / 2), round((width - size) / 2)
    return _tensor(resized[top : top + size, left : left + size], False)


def _resize(picture: np.ndarray, height: int, width: int, interpolation: Interpolation) -> np.ndarray:
    if picture.shape[:2] == (height, width):
        return picture
    image = Image.fromarray(np.ascontiguousarray(picture))
    return np.asarray(image.resize((width, height), FILTERS[interpolation]))


def _tensor(picture: np.ndarray, flip: bool) -> Tensor:
    if flip:
        picture = picture[:, ::-1]
    return torch.from_numpy(picture.transpose(2, 0, 1).copy())  # a copy always: never the data set's own pixels
