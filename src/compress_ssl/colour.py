"""Random colour jitter, grey, blur and solarisation of a whole batch on its device, every image with its own numbers.

Source: SimCLR (Chen et al., ICML 2020, Appendix A); each operation is torchvision's (adjust_brightness,
adjust_contrast, adjust_saturation, adjust_hue, rgb_to_grayscale, gaussian_blur, solarize) on float pixels. Done here
and not in the workers because the same on Pillow images takes 2 ms of a core per 32-pixel view, 20 times the rest of
the loading.
Differs from torchvision: the order of the four colour operations is drawn once a batch, not once an image.
"""

from __future__ import annotations

import functools
import math
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

from compress_ssl.refusal import Refusal


@dataclass(frozen=True, kw_only=True)
class Config:
    """How far the colours may go; a strength s in SimCLR's terms is 0.8 s, 0.8 s, 0.8 s, 0.2 s."""

    probability: float = 0.8  # of changing brightness, contrast, saturation and hue of an image
    brightness: float = 0.4  # brightness is multiplied by 1 - this to 1 + this
    contrast: float = 0.4  # contrast is multiplied by 1 - this to 1 + this
    saturation: float = 0.4  # saturation is multiplied by 1 - this to 1 + this
    hue: float = 0.1  # turn of the colour circle, at most, either way; 0.5 is half of it
    grey: float = 0.2  # probability of losing all colour
    # probability of Gaussian blur of 0.1 to 2 pixels over a tenth of the side; None: as the method's authors have it
    # for inputs of 64 pixels and more, none for smaller ones
    blur: float | None = None
    solarise: float = 0.0  # probability of inverting what is brighter than half

    def __post_init__(self) -> None:
        for name in ("probability", "grey", "blur", "solarise"):
            if not 0 <= (getattr(self, name) or 0) <= 1:
                raise Refusal(f"expected a probability in [0, 1] for colour.{name}, got {getattr(self, name)}: 0.8 is "
                              "80 %")  # fmt: skip
        for name in ("brightness", "contrast", "saturation"):
            if not 0 <= getattr(self, name) < math.inf:
                raise Refusal(f"expected a strength of 0 or more for colour.{name}, got {getattr(self, name)}: 0.4 is "
                              "usual")  # fmt: skip
        if not 0 <= self.hue <= 0.5:
            raise Refusal(
                f"expected a turn of the colour circle in [0, 0.5] for colour.hue, got {self.hue}: 0.1 is usual"
            )

    @property
    def changes(self) -> bool:
        """Whether any image is ever changed."""
        return max(self.probability, self.grey, self.blur or 0, self.solarise) > 0


def refuse_idle(config: Config, option: str) -> None:
    """Refuse strengths that were chosen and change nothing, for the probability of a change is 0.

    Not in Config: a file may give the strengths and the command line the probability.

    Args:
        option: of the command line, under which the fields are.
    """
    chosen = [
        name for name in ("brightness", "contrast", "saturation", "hue") if getattr(config, name) != getattr(OFF, name)
    ]
    if chosen and config.probability == 0:
        raise Refusal(f"{option}.{chosen[0]} expected {option}.probability above 0 beside it, got "
                      f"{getattr(config, chosen[0])} and probability 0, which changes nothing: give "
                      f"{option}.probability 0.8, or leave {chosen[0]} out")  # fmt: skip


OFF = Config(probability=0, grey=0, blur=0)


@dataclass(frozen=True)
class Change:
    """One draw for B images; every tensor is (B,), on the CPU until it is used."""

    order: tuple[int, ...]
    brightness: Tensor
    contrast: Tensor
    saturation: Tensor
    hue: Tensor
    grey: Tensor
    sigma: Tensor  # of the blur in pixels, 0 for none
    solarise: Tensor

    def part(self, first: int, last: int) -> Change:
        """The numbers of images [first, last)."""
        return Change(
            self.order, *(getattr(self, name)[first:last] for name in self.__dataclass_fields__ if name != "order")
        )


def draw(count: int, config: Config, generator: torch.Generator) -> Change:
    """Numbers for `count` images; the same generator state gives the same numbers."""

    def uniform(low: float, high: float) -> Tensor:
        return torch.rand(count, generator=generator) * (high - low) + low

    changed = uniform(0, 1) < config.probability
    brightness, contrast, saturation = (
        torch.where(changed, uniform(max(0.0, 1 - reach), 1 + reach), 1.0)
        for reach in (config.brightness, config.contrast, config.saturation)
    )
    hue = torch.where(changed, uniform(-config.hue, config.hue), 0.0)
    grey = uniform(0, 1) < config.grey
    sigma = torch.where(uniform(0, 1) < (config.blur or 0), uniform(0.1, 2.0), 0.0)
    order = tuple(torch.randperm(4, generator=generator).tolist())
    solarise = uniform(0, 1) < config.solarise
    return Change(order, brightness, contrast, saturation, hue, grey, sigma, solarise)


def apply(images: Tensor, change: Change) -> Tensor:
    """(B, 3, H, W) uint8 -> the same shape, dtype and device, each image changed by its own numbers."""
    pixels = images.float() / 255
    names = ("brightness", "contrast", "saturation", "hue", "grey", "sigma", "solarise")
    numbers = torch.stack([getattr(change, name).float() for name in names])  # one copy to the device, not six
    if images.device.type == "cuda":
        numbers = numbers.pin_memory()  # else the host would wait for it
    factor = dict(zip(names, numbers.to(images.device, non_blocking=True)[..., None, None, None], strict=True))
    for operation in change.order:
        if operation == 0:
            pixels = (pixels * factor["brightness"]).clamp(0, 1)
        elif operation == 1:
            mean = _grey(pixels).mean(dim=(1, 2, 3), keepdim=True)
            pixels = torch.lerp(mean, pixels, factor["contrast"]).clamp(0, 1)
        elif operation == 2:
            pixels = torch.lerp(_grey(pixels), pixels, factor["saturation"]).clamp(0, 1)
        elif bool((change.hue != 0).any()):
            # as it is where it is not turned, whatever the images beside it: a part of a batch is a part of the whole
            pixels = torch.where(factor["hue"] == 0, pixels, _turn_hue(pixels, factor["hue"]))
    pixels = torch.where(factor["grey"] > 0, _grey(pixels), pixels)
    if bool((change.sigma > 0).any()):
        pixels = _blur(pixels, factor["sigma"].flatten())
    if bool(change.solarise.any()):
        pixels = torch.where((factor["solarise"] > 0) & (pixels >= 0.5), 1 - pixels, pixels)
    return (pixels * 255).round().to(torch.uint8)


@functools.cache  # a constant is copied to a device once: every copy from ordinary memory makes the host wait
def _channels(values: tuple[float, ...], device: torch.device) -> Tensor:
    return torch.tensor(values, device=device).view(1, 3, 1, 1)


def _grey(pixels: Tensor) -> Tensor:
    """ITU-R 601 luma, as torchvision's rgb_to_grayscale."""
    weights = _channels((0.2989, 0.587, 0.114), pixels.device)
    return (pixels * weights).sum(dim=1, keepdim=True)


def _turn_hue(pixels: Tensor, turn: Tensor) -> Tensor:
    """Turn the hue by `turn` of a circle: through HSV and back (channel n is V - V·S·clip(min(k, 4 - k), 0, 1))."""
    value, largest = pixels.max(dim=1, keepdim=True)
    chroma = value - pixels.min(dim=1, keepdim=True).values
    red, green, blue = pixels.split(1, dim=1)
    safe = chroma.clamp_min(1e-8)
    sextant = torch.where(
        largest == 0,
        (green - blue) / safe,
        torch.where(largest == 1, (blue - red) / safe + 2, (red - green) / safe + 4),
    )
    start = _channels((5.0, 3.0, 1.0), pixels.device)
    k = torch.remainder(start + sextant + 6 * turn, 6)
    return value - chroma * torch.minimum(k, 4 - k).clamp(0, 1)


def _blur(pixels: Tensor, sigma: Tensor) -> Tensor:
    """Separable Gaussian over an odd tenth of the side, reflected at the borders; sigma 0 leaves an image alone."""
    radius = max(1, pixels.shape[-1] // 20)
    places = torch.arange(-radius, radius + 1, device=pixels.device, dtype=pixels.dtype)
    kernel = torch.exp(-0.5 * (places / sigma.clamp_min(1e-3)[:, None]) ** 2)
    kernel = (kernel / kernel.sum(dim=1, keepdim=True)).repeat_interleave(3, dim=0)  # (3·B, 2·radius + 1)
    groups = len(kernel)
    flat = pixels.reshape(1, groups, *pixels.shape[-2:])
    flat = functional.conv2d(
        functional.pad(flat, (radius, radius, 0, 0), mode="reflect"), kernel[:, None, None, :], groups=groups
    )
    flat = functional.conv2d(
        functional.pad(flat, (0, 0, radius, radius), mode="reflect"), kernel[:, None, :, None], groups=groups
    )
    return flat.reshape(pixels.shape)
