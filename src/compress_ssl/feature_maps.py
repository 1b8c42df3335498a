"""A backbone's maps on the way to its embedding, one for each stride: what detection looks at.

Which of its parts give them is found by looking, with one black picture: of all parts whose output is a map of a
stride, the outermost, where parts and their parts count alike, and of these the last. In a ResNet that is each stage,
in a MobileNet the last block before the next stride, in AlexNet the ReLU before each pooling. From the coarsest on, as
long as each next map is twice as fine: a Swin, whose maps on the way have their channels last, has one only, and other
transformers, whose positions stand in a row, have none.
"""

from __future__ import annotations

import contextlib
import math
from collections import Counter
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from compress_ssl.refusal import Refusal

PROBE = (256, 512)  # height and width: a map keeps their ratio, what is pooled to a fixed size does not
SMALLEST, MOST = 4, 4  # stride in pixels from which on maps are used, and how many of them, the coarsest


class Place(NamedTuple):
    """Where a backbone has a map."""

    name: str  # of the submodule
    stride: int  # pixels from one position to the next, a power of two
    channels: int


class FeatureMaps(nn.Module):
    """Normalised images (B, 3, H, W), of any size -> {submodule: map (B, channels, height, width)}, finest first.

    What the backbone computes after the last map is computed and left.
    """

    def __init__(self, backbone: nn.Module, places: list[Place]):
        super().__init__()
        self.backbone = backbone
        self.places = places

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        seen: dict[str, Tensor] = {}
        with _watching(self.backbone, seen.__setitem__, [place.name for place in self.places]):
            self.backbone(images)
        return {place.name: seen[place.name] for place in self.places}


@torch.no_grad()
def find_maps(backbone: nn.Module, *, spec: str) -> list[Place]:
    """The maps that a detector uses, finest first: strides of 4 pixels and more, four of them at most.

    Args:
        backbone: on the CPU; its modes are put back.
        spec: what to call it.
    Raises: Refusal if it has no such map, or takes pictures of one size only.
    """
    found: dict[int, tuple[int, Place]] = {}  # stride -> depth and place; later ones replace those as deep or deeper
    calls: Counter[str] = Counter()

    def look(name: str, output: Any) -> None:
        calls[name] += 1
        stride = _stride(output)
        depth = max(1, name.count("."))  # a stem lies as deep as a stage, in a list of stages a stage lies deeper
        if stride is not None and calls[name] == 1 and (stride not in found or depth <= found[stride][0]):
            found[stride] = depth, Place(name, stride, output.shape[1])

    modes = {part: part.training for part in backbone.modules()}
    try:
        with _watching(backbone.eval(), look, [name for name, _ in backbone.named_modules() if name]):
            backbone(torch.zeros(1, 3, *PROBE))
    except (AssertionError, RuntimeError, ValueError, TypeError) as error:
        told = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise Refusal(f"expected a backbone that takes pictures of any size, to detect with it, got {spec!r}, which "
                      f"does not ({told}): choose a convolutional one") from error  # fmt: skip
    finally:
        for part, training in modes.items():
            part.training = training
    usable = {stride: place for stride, (_, place) in found.items() if calls[place.name] == 1 and stride >= SMALLEST}
    places: list[Place] = []
    while len(places) < MOST and (stride := places[0].stride // 2 if places else max(usable, default=0)) in usable:
        places.insert(0, usable[stride])
    if not places:
        raise Refusal(f"expected a backbone with maps of positions {SMALLEST} pixels apart or more, to detect with it, "
                      f"got {spec!r} without: choose a convolutional one")  # fmt: skip
    return places


def _stride(output: Any) -> int | None:
    """Of a map of the probe, the nearest power of two; None of anything else."""
    if not isinstance(output, Tensor) or output.ndim != 4:
        return None
    high, wide = (round(math.log2(side / positions)) for side, positions in zip(PROBE, output.shape[2:], strict=True))
    return 2**high if high == wide and high >= 0 else None


@contextlib.contextmanager
def _watching(backbone: nn.Module, tell: Callable[[str, Any], Any], names: list[str]) -> Iterator[None]:
    """Tell name and output of these submodules as they are computed."""

    def teller(name: str) -> Callable:
        return lambda _module, _inputs, output: tell(name, output)

    handles = [backbone.get_submodule(name).register_forward_hook(teller(name)) for name in names]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()
