"""Views of a picture: the random training crop as data (box, flip), the evaluation view, each encoder's preprocessing.

What is random in a view depends on the seed, the epoch and the image's id alone: never on where the image stands in its
set. So a view can be drawn again, by another program and on another day, or stored beside what an encoder made of it.

Pictures stay uint8 up to the device; normalisation is the encoder's first step. The box is drawn from height and width
alone, so a picture that is not decoded yet is decoded no further than its box. The evaluation view is Pillow's, pixel
for pixel torchvision's Resize and CenterCrop; so is a bicubic crop. A bilinear crop, as in training, is resized by
torch: the same filter in 0.21 ms instead of Pillow's 0.92 (photographs of 500 x 375 to 224, one Zen 3 core with AVX2),
where no pixel is more than 1 from RandomResizedCrop's. Pictures of many times the pixels that a view needs are
decoded at a half, a quarter or an eighth of their size.
Source of the training view: He et al. 2016 / CompRess, Sec. 4 (RandomResizedCrop(224) + horizontal flip).
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from typing import Any, Literal, NamedTuple

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.nn import functional

from compress_ssl.picture import Box, Picture
from compress_ssl.refusal import Refusal

Interpolation = Literal["bilinear", "bicubic"]
CropMode = Literal["center", "squash", "border"]
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
    # evaluation: "squash" stretches both sides to size / crop_fraction instead, "border" the long side and pads the
    # short one with the mean colour; what a wide picture shows at its ends is seen by these two alone
    crop: CropMode = "center"

    def identity(self) -> dict[str, Any]:
        """What tells two apart, in plain values; a centre crop is not named, as before there were other crops, so that
        runs and tables of that time go on."""
        told = {name: list(value) if isinstance(value, tuple) else value for name, value in asdict(self).items()}
        return {name: value for name, value in told.items() if (name, value) != ("crop", "center")}


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


class Sample(NamedTuple):
    """Which image is looked at, and in which epoch of which run."""

    seed: int
    epoch: int
    position: int  # in its image set
    id: str

    @property
    def random(self) -> np.random.Generator:
        """The numbers of this image in this epoch, from their beginning: by its id, wherever it stands in its set."""
        id = int.from_bytes(hashlib.sha256(self.id.encode()).digest()[:8], "little")
        return np.random.default_rng((self.seed, self.epoch, id))


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


def cut(picture: np.ndarray | Picture, crop: Crop, size: int, interpolation: Interpolation = "bilinear") -> Tensor:
    """The crop of a picture at `size` × `size` pixels.

    Args:
        picture: (H, W, 3) uint8, or one that is decoded here, as far as the crop goes.
    Returns: (3, size, size) uint8, channels last in memory.
    """
    pixels, box = _part(picture, Box(*crop[:4]), size)
    view = _bilinear(pixels, size) if interpolation == "bilinear" and box == (0, 0, *pixels.shape[:2]) else None
    if view is None:
        view = _tensor(_resize(pixels, box, size, size, interpolation))
    return view.flip(2) if crop.flip else view


def evaluation_view(picture: np.ndarray | Picture, preprocessing: Preprocessing) -> Tensor:
    """The deterministic view: resized by the crop mode to size / crop_fraction, then the centre.

    The modes are timm's (`center`, `squash` and `border` in its data configuration), pixel for pixel.

    Args:
        picture: (H, W, 3) uint8, or one that is decoded here.
    Returns: (3, size, size) uint8, channels last in memory.
    """
    size = preprocessing.size
    height, width = picture.shape[:2]
    height, width = _resized_shape(height, width, preprocessing)
    pixels, box = _part(picture, Box(0, 0, *picture.shape[:2]), min(height, width))
    resized = _resize(pixels, box, height, width, preprocessing.interpolation)
    if height < size or width < size:
        above, left = max(0, size - height) // 2, max(0, size - width) // 2
        fill = np.array([round(255 * mean) for mean in preprocessing.mean], np.uint8)
        padded = np.empty((max(size, height), max(size, width), 3), np.uint8)
        padded[:] = fill
        padded[above : above + height, left : left + width] = resized
        resized = padded
    top, left = (round((side - size) / 2) for side in resized.shape[:2])
    return _tensor(resized[top : top + size, left : left + size])


def _resized_shape(height: int, width: int, preprocessing: Preprocessing) -> tuple[int, int]:
    size = preprocessing.size
    side = max(size, math.floor(size / preprocessing.crop_fraction))
    if preprocessing.crop == "squash":
        return side, side
    if preprocessing.crop == "border":
        ratio = max(height, width) / side
        return max(1, round(height / ratio)), max(1, round(width / ratio))
    if height <= width:
        return side, max(side, int(side * width / height))
    return max(side, int(side * height / width)), side


class RandomView:
    """(H, W, 3) uint8 -> (3, size, size) uint8: one random crop and flip; picklable."""

    def __init__(self, view: TrainView, size: int):
        self.view, self.size = view, size

    def __call__(self, picture: np.ndarray | Picture, sample: Sample) -> Tensor:
        height, width = picture.shape[:2]
        return cut(picture, draw_crop(height, width, self.view, sample.random), self.size)


class EvaluationView:
    """(H, W, 3) uint8 -> (3, size, size) uint8, the same every time; picklable."""

    def __init__(self, preprocessing: Preprocessing):
        self.preprocessing = preprocessing

    def __call__(self, picture: np.ndarray | Picture, _: Sample) -> Tensor:
        return evaluation_view(picture, self.preprocessing)


class RecordedViews:
    """(H, W, 3) uint8 -> the evaluation view and `views` random ones, with their crops; picklable.

    View v is what `RandomView` makes of the same image in epoch v, pixel for pixel: what a training with the same seed
    would show its teacher.
    """

    def __init__(self, view: TrainView, preprocessing: Preprocessing, views: int):
        self.view, self.preprocessing, self.views = view, preprocessing, views

    def __call__(self, picture: np.ndarray | Picture, sample: Sample) -> tuple[Tensor, np.ndarray]:
        """Returns: (1 + V, 3, size, size) uint8, and their crops (1 + V, 5) int32: top, left, height, width, flip, the
        first row 0 for the evaluation view."""
        if isinstance(picture, Picture):
            picture.keep()
        height, width = picture.shape[:2]
        epochs = [sample._replace(epoch=view) for view in range(self.views)]
        crops = [draw_crop(height, width, self.view, epoch.random) for epoch in epochs]
        images = [evaluation_view(picture, self.preprocessing)]
        images += [cut(picture, crop, self.preprocessing.size) for crop in crops]
        recorded = np.zeros((1 + self.views, 5), np.int32)
        if crops:
            recorded[1:] = crops
        return torch.stack([image.permute(1, 2, 0) for image in images]).permute(0, 3, 1, 2), recorded


class ReplayView:
    """(H, W, 3) uint8 -> (3, size, size) uint8: the part of the picture that someone else has looked at.

    Args:
        crop_of: (position, epoch) -> the crop, or None for the evaluation view; picklable, as this is.
        preprocessing: of the one who looked; its evaluation view is cut at `size` instead of its own.
    """

    def __init__(self, crop_of: Callable[[int, int], Crop | None], size: int, preprocessing: Preprocessing):
        self.crop_of, self.size = crop_of, size
        self.preprocessing = replace(preprocessing, size=size)

    def __call__(self, picture: np.ndarray | Picture, sample: Sample) -> Tensor:
        """Raises: Refusal if the crop does not lie in the picture."""
        crop = self.crop_of(sample.position, sample.epoch)
        if crop is None:
            return evaluation_view(picture, self.preprocessing)
        height, width = picture.shape[:2]
        inside = min(crop[:2]) >= 0 and min(crop[2:4]) >= 1
        if not inside or crop.top + crop.height > height or crop.left + crop.width > width:
            raise Refusal(
                f"expected the stored crop of {sample.id}, {crop.height} x {crop.width} pixels at row {crop.top}, "
                f"column {crop.left}, to lie in the picture, got one of {height} x {width}: put the old one back, "
                "or run `compress-ssl embed` with another --out"
            )
        return cut(picture, crop, self.size)


def _part(picture: np.ndarray | Picture, box: Box, enough: int) -> tuple[np.ndarray, Box]:
    """Pixels that serve a view of the box with `enough` pixels on its shorter side, and the box in them."""
    if isinstance(picture, Picture):
        return picture.part(box, enough=enough)
    top, left, height, width = map(int, box)
    return picture[top : top + height, left : left + width], Box(0, 0, height, width)


def _bilinear(pixels: np.ndarray, size: int) -> Tensor:
    """(h, w, 3) uint8, rows any distance apart -> (3, size, size)."""
    if pixels.shape[:2] == (size, size) or not pixels.flags.writeable or pixels.strides[1:] != (3, 1):
        pixels = pixels.copy(order="C")  # never the data set's own memory
    if pixels.shape[:2] == (size, size):
        return torch.from_numpy(pixels).permute(2, 0, 1)
    # With these strides torch takes it for channels last and resizes without a copy: 0.21 ms, else 0.34 and more.
    images = torch.from_numpy(pixels).unsqueeze(0).permute(0, 3, 1, 2)
    return functional.interpolate(images, (size, size), mode="bilinear", antialias=True)[0]


def _resize(pixels: np.ndarray, box: Box, height: int, width: int, interpolation: Interpolation) -> np.ndarray:
    """The box of these pixels at height × width, as Pillow makes it."""
    if (0, 0, height, width) == box and pixels.shape[:2] == (height, width):
        return pixels
    image = Image.fromarray(np.ascontiguousarray(pixels))
    corners = box.left, box.top, min(box.left + box.width, image.width), min(box.top + box.height, image.height)
    return np.asarray(image.resize((width, height), FILTERS[interpolation], box=corners))


def _tensor(pixels: np.ndarray) -> Tensor:
    """(h, w, 3) -> (3, h, w), a copy always: never the data set's own memory."""
    return torch.from_numpy(pixels.copy(order="C")).permute(2, 0, 1)
