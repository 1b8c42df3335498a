"""Wide ResNets: every width of a ResNet-50, -101, -152 or -200 multiplied, as SimCLR, SwAV and VICReg published them.

Source: Chen et al., A Simple Framework for Contrastive Learning of Visual Representations, ICML 2020 (×1, ×2, ×4);
Caron et al., SwAV, NeurIPS 2020 (w2, w4, w5; the same computation); Bardes et al., VICReg, ICLR 2022 (×2; the same).
Unlike torchvision's wide_resnet50_2, whose blocks are wider inside alone, all channels are multiplied, and so is the
embedding: 2048·N numbers, 8192 for ×4.
Names: `resnetDD_wN`. The weights have torchvision's names. Two variants pad as the frameworks did in which the weights
were trained (TensorFlow's SAME: one pixel less before than after when the stride is 2):
`resnetDD_wN_tf` the max-pool alone (SimCLR); `resnetDD_wN_same` the strided convolutions as well (BYOL).
"""

from __future__ import annotations

import re
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from torchvision.models.resnet import Bottleneck

from compress_ssl.backbones import publish
from compress_ssl.transforms import Preprocessing

BLOCKS = {50: (3, 4, 6, 3), 101: (3, 4, 23, 3), 152: (3, 8, 36, 3), 200: (3, 24, 36, 3)}
PREPROCESSING = Preprocessing(size=224, crop_fraction=0.875)  # ImageNet's mean and std
PATTERN = re.compile(r"resnet(50|101|152|200)_w([1-9]\d?)(?:_(tf|same))?")


def names() -> list[str]:
    return [
        f"resnet{depth}_w{times}" for depth, widths in ((50, (2, 4, 5)), (101, (2,)), (152, (2,))) for times in widths
    ]


def build(name: str) -> nn.Module | None:
    found = PATTERN.fullmatch(name)
    if found is None:
        return None
    model = WideResNet(BLOCKS[int(found[1])], 64 * int(found[2]), padding=found[3] or "")
    return publish(model, width=2048 * int(found[2]), preprocessing=PREPROCESSING)


class WideResNet(nn.Module):
    """Images (B, 3, H, W) -> (B, 32 · first_width): mean over positions after the last stage."""

    def __init__(self, blocks: tuple[int, int, int, int], first_width: int, *, padding: str) -> None:
        super().__init__()
        self.padding = padding
        same = padding == "same"
        self.conv1: nn.Conv2d = _convolution(3, first_width, kernel_size=7, stride=2, same=same)
        self.bn1 = nn.BatchNorm2d(first_width)
        self.relu = nn.ReLU(inplace=True)
        self.maxpool = PoolAfter() if padding else nn.MaxPool2d(kernel_size=3, stride=2, padding=1)
        self.layer1 = _stage(first_width, first_width, blocks[0], stride=1, same=same)
        self.layer2 = _stage(4 * first_width, 2 * first_width, blocks[1], stride=2, same=same)
        self.layer3 = _stage(8 * first_width, 4 * first_width, blocks[2], stride=2, same=same)
        self.layer4 = _stage(16 * first_width, 8 * first_width, blocks[3], stride=2, same=same)
        self.avgpool = nn.AdaptiveAvgPool2d(1)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")

    def forward(self, images: Tensor) -> Tensor:
        maps = self.maxpool(self.relu(self.bn1(self.conv1(images))))
        maps = self.layer4(self.layer3(self.layer2(self.layer1(maps))))
        return self.avgpool(maps).flatten(1)


def pad_same(images: Tensor, kernel: int, stride: int, value: float) -> Tensor:
    """Pad so that ceil(side / stride) positions result, the odd pixel at the end: TensorFlow's SAME."""
    amounts: list[int] = []
    for side in (images.shape[3], images.shape[2]):
        whole = max(0, (-(-side // stride) - 1) * stride + kernel - side)
        amounts += [whole // 2, whole - whole // 2]
    return functional.pad(images, amounts, value=value)


class PoolAfter(nn.Module):
    """Max-pool of 3 by 2 with TensorFlow's padding, of the lowest value, after the last pixel."""

    def forward(self, images: Tensor) -> Tensor:
        return functional.max_pool2d(pad_same(images, 3, 2, torch.finfo(images.dtype).min), kernel_size=3, stride=2)


class ConvolutionSame(nn.Conv2d):
    """A convolution without bias with TensorFlow's padding."""

    def forward(self, input: Tensor) -> Tensor:
        padded = pad_same(input, self.kernel_size[0], self.stride[0], 0)
        return functional.conv2d(padded, self.weight, stride=self.stride)


def _convolution(before: int, width: int, *, kernel_size: int, stride: int, same: bool) -> Any:
    if same:
        return ConvolutionSame(before, width, kernel_size=kernel_size, stride=stride, bias=False)
    return nn.Conv2d(before, width, kernel_size=kernel_size, stride=stride, padding=kernel_size // 2, bias=False)


def _stage(before: int, width: int, blocks: int, *, stride: int, same: bool) -> nn.Sequential:
    shortcut = nn.Sequential(
        nn.Conv2d(before, 4 * width, kernel_size=1, stride=stride, bias=False), nn.BatchNorm2d(4 * width)
    )
    first = Bottleneck(before, width, stride=stride, downsample=shortcut)
    if same and stride == 2:
        first.conv2 = _convolution(width, width, kernel_size=3, stride=stride, same=True)
    return nn.Sequential(first, *(Bottleneck(4 * width, width) for _ in range(blocks - 1)))
