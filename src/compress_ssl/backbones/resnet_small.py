"""ResNets for small images: 3×3 stem and no max-pool, any first width.

Source: He et al., Deep Residual Learning for Image Recognition, CVPR 2016 (blocks, ImageNet stages); the stem is the
one in common use for CIFAR (SimCLR, Chen et al., ICML 2020, Sec. B.9).
Names: `resnetDD_small` with DD in 10, 18, 34, 50, 101, and `resnetDD_small_wWW` for another width of the first stage.
The width doubles with each of the four stages, so the embedding has 8·WW numbers (512 at the default 64), from 50 on
32·WW.
`_s2` at the end gives the stem a stride of 2: a quarter of the multiply-adds, for training on a CPU, or for 64 pixels.
`_p2` pads the stem by two pixels instead of one, as solo-learn's ResNets for CIFAR do.
"""

from __future__ import annotations

import re

from torch import Tensor, nn
from torchvision.models.resnet import BasicBlock, Bottleneck

from compress_ssl.backbones import publish
from compress_ssl.transforms import Preprocessing

BLOCKS = {10: (1, 1, 1, 1), 18: (2, 2, 2, 2), 34: (3, 4, 6, 3), 50: (3, 4, 6, 3), 101: (3, 4, 23, 3)}
PREPROCESSING = Preprocessing(size=32, crop_fraction=1.0)  # ImageNet's mean and std
PATTERN = re.compile(r"resnet(10|18|34|50|101)_small(?:_w([1-9]\d*))?(_s2)?(_p2)?")


def names() -> list[str]:
    small = [f"resnet{depth}_small{width}" for depth in (10, 18, 34) for width in ("", "_w8", "_w16", "_w32")]
    return [*small, "resnet50_small"]


def build(name: str) -> nn.Module | None:
    found = PATTERN.fullmatch(name)
    if found is None:
        return None
    depth, width = int(found[1]), int(found[2] or 64)
    block = Bottleneck if depth >= 50 else BasicBlock
    model = SmallResNet(
        BLOCKS[depth], width, stem_stride=2 if found[3] else 1, stem_padding=2 if found[4] else 1, block=block
    )
    return publish(model, width=8 * width * block.expansion, preprocessing=PREPROCESSING)


class SmallResNet(nn.Module):
    """Images (B, 3, H, W) -> (B, 8 · first_width · block.expansion): mean over positions after the last stage.

    Submodules are named as in torchvision's ResNet. Weights start as torchvision's: Kaiming normal over the fan-out.
    """

    def __init__(
        self,
        blocks: tuple[int, int, int, int],
        first_width: int,
        *,
        stem_stride: int = 1,
        stem_padding: int = 1,
        block: type[BasicBlock] | type[Bottleneck] = BasicBlock,
    ) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, first_width, kernel_size=3, stride=stem_stride, padding=stem_padding, bias=False)
        self.bn1 = nn.BatchNorm2d(first_width)
        self.relu = nn.ReLU(inplace=True)
        wide = first_width * block.expansion
        self.layer1 = _stage(block, first_width, first_width, blocks[0], stride=1)
        self.layer2 = _stage(block, wide, 2 * first_width, blocks[1], stride=2)
        self.layer3 = _stage(block, 2 * wide, 4 * first_width, blocks[2], stride=2)
        self.layer4 = _stage(block, 4 * wide, 8 * first_width, blocks[3], stride=2)
        self.avgpool = nn.AdaptiveAvgPool2d(1)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")

    def forward(self, images: Tensor) -> Tensor:
        maps = self.relu(self.bn1(self.conv1(images)))
        maps = self.layer4(self.layer3(self.layer2(self.layer1(maps))))
        return self.avgpool(maps).flatten(1)


def _stage(
    block: type[BasicBlock] | type[Bottleneck], before: int, width: int, blocks: int, *, stride: int
) -> nn.Sequential:
    shortcut = None
    after = width * block.expansion
    if stride != 1 or before != after:
        shortcut = nn.Sequential(
            nn.Conv2d(before, after, kernel_size=1, stride=stride, bias=False), nn.BatchNorm2d(after)
        )
    first = block(before, width, stride=stride, downsample=shortcut)
    return nn.Sequential(first, *(block(after, width) for _ in range(blocks - 1)))
