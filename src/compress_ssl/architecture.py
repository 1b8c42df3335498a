"""Tensors -> the backbone that they are of: counted blocks, measured widths. What a refusal tells to write.

Source: He et al., Deep Residual Learning for Image Recognition, CVPR 2016 (blocks per stage), in torchvision's names.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor

BASIC: dict[tuple[int, ...], int] = {(1, 1, 1, 1): 10, (2, 2, 2, 2): 18, (3, 4, 6, 3): 34}
BOTTLENECK: dict[tuple[int, ...], int] = {(3, 4, 6, 3): 50, (3, 4, 23, 3): 101, (3, 8, 36, 3): 152, (3, 24, 36, 3): 200}
BLOCK = re.compile(r"layer([1-4])\.(\d+)\.conv(\d)\.weight")
STEM = 64  # channels of an ordinary ResNet's first convolution


def resnet(state: Mapping[str, Tensor], prefix: str = "") -> str | None:
    """`torchvision/resnet50`, `compress/resnet50_w4`, `compress/resnet18_small` ...; None for any other network.

    Args:
        state: torchvision's names of a ResNet behind `prefix`; other tensors may stand beside them.
    """
    shapes = {name.removeprefix(prefix): tuple(one.shape) for name, one in state.items() if name.startswith(prefix)}
    found = [one for one in map(BLOCK.fullmatch, shapes) if one]
    stem, first = shapes.get("conv1.weight", ()), shapes.get("layer1.0.conv1.weight", ())
    if not found or len(stem) != 4 or len(first) != 4:
        return None
    numbers = [[int(one[2]) for one in found if one[1] == stage] for stage in "1234"]
    blocks = tuple(1 + max(stage, default=-1) for stage in numbers)
    bottleneck = any(one[3] == "3" for one in found)
    depth = (BOTTLENECK if bottleneck else BASIC).get(blocks)
    if depth is None:
        return None
    width, small = stem[0], stem[2] == 3
    if small:
        return f"compress/resnet{depth}_small" + (f"_w{width}" if width != STEM else "")
    if bottleneck and width % STEM == 0 and width > STEM and first[0] == width:
        return f"compress/resnet{depth}_w{width // STEM}"
    if width != STEM or depth in (10, 200):
        return None
    if bottleneck and first[0] == 2 * STEM and depth in (50, 101):
        grouped = shapes["layer1.0.conv2.weight"][1] != first[0]
        return f"torchvision/resnext{depth}_32x4d" if grouped else f"torchvision/wide_resnet{depth}_2"
    return f"torchvision/resnet{depth}" if first[0] == STEM else None
