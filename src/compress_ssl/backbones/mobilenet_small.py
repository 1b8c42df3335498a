"""MobileNetV2 for small images: the paper's student with fewer of its strides, 1280 numbers.

Source: Sandler et al., MobileNetV2: Inverted Residuals and Linear Bottlenecks, CVPR 2018, as laid out by torchvision;
for pictures of 32 pixels the common change is to keep the stem and the first stride at one.
Names: `mobilenet_v2_small` for 32 pixels (a stride of 8 in all instead of 32), `mobilenet_v2_small_s2` for 64 (16);
`mobilenet_v2_small_s4` keeps the 32 of the source: for 128 pixels, or for a student of 32 that costs next to nothing.
`mobilenet_v2_small_w25` has a quarter (25 %) of the channels in every block, any whole number of per cent will do; the
embedding shrinks with them (320 numbers at 25), which the source does not do: it would be most of the cost.
The weights have torchvision's names and shapes; for 224 pixels take torchvision/mobilenet_v2.
"""

from __future__ import annotations

import re
from typing import Any

from torch import nn
from torchvision.models import MobileNetV2
from torchvision.ops import Conv2dNormActivation

from compress_ssl.backbones import publish
from compress_ssl.transforms import Preprocessing

LAST = 1280  # channels of the embedding at the whole width
PATTERN = re.compile(r"mobilenet_v2_small(?:_w([1-9]\d+))?(_s2|_s4)?")
SIZES = {None: 32, "_s2": 64, "_s4": 128}  # pixels of the input, by the end of the name


def names() -> list[str]:
    return [f"mobilenet_v2_small{width}{stride}" for width in ("", "_w25", "_w50") for stride in ("", "_s2", "_s4")]


def build(name: str) -> nn.Module | None:
    found = PATTERN.fullmatch(name)
    if found is None:
        return None
    share = int(found[1] or 100) / 100
    model: Any = MobileNetV2(num_classes=1, width_mult=share)
    if not found[2]:
        model.features[0][0].stride = (1, 1)
    if found[2] != "_s4":
        model.features[2].conv[1][0].stride = (1, 1)  # the first block of two that halves the map
    if share < 1:
        model.last_channel = round(LAST * share)
        before = model.features[-1][0].in_channels
        model.features[-1] = Conv2dNormActivation(
            before, model.last_channel, kernel_size=1, norm_layer=nn.BatchNorm2d, activation_layer=nn.ReLU6
        )
        nn.init.kaiming_normal_(model.features[-1][0].weight, mode="fan_out")  # as torchvision starts its own
    model.classifier = nn.Sequential()
    preprocessing = Preprocessing(size=SIZES[found[2]], crop_fraction=1.0)  # ImageNet's mean and std
    return publish(model, width=model.last_channel, preprocessing=preprocessing, head=("classifier.1",))
