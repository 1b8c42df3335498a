"""MobileNetV2 for small images: the paper's student with fewer of its strides, 1280 numbers.

Source: Sandler et al., MobileNetV2: Inverted Residuals and Linear Bottlenecks, CVPR 2018, as laid out by torchvision;
for pictures of 32 pixels the common change is to keep the stem and the first stride at one.
Names: `mobilenet_v2_small` for 32 pixels (a stride of 8 in all instead of 32), `mobilenet_v2_small_s2` for 64 (16).
The weights have torchvision's names and shapes; for 224 pixels take torchvision/mobilenet_v2.
"""

from __future__ import annotations

from typing import Any

from torch import nn
from torchvision.models import MobileNetV2

from compress_ssl.backbones import publish
from compress_ssl.transforms import Preprocessing

SIZES = {"mobilenet_v2_small": 32, "mobilenet_v2_small_s2": 64}


def names() -> list[str]:
    return list(SIZES)


def build(name: str) -> nn.Module | None:
    if name not in SIZES:
        return None
    model: Any = MobileNetV2(num_classes=1)
    if not name.endswith("_s2"):
        model.features[0][0].stride = (1, 1)
    model.features[2].conv[1][0].stride = (1, 1)  # the first block of two that halves the map
    model.classifier = nn.Sequential()
    preprocessing = Preprocessing(size=SIZES[name], crop_fraction=1.0)  # ImageNet's mean and std
    return publish(model, width=model.last_channel, preprocessing=preprocessing, head=("classifier.1",))
