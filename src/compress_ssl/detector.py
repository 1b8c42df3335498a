"""Faster R-CNN on an encoder, or Fast R-CNN on given boxes: pictures of any size -> boxes with a class and a score.

Source: Ren et al., Faster R-CNN, NeurIPS 2015; Lin et al., Feature Pyramid Networks, CVPR 2017; both as built by
torchvision. The pyramid stands on the encoder's own maps (`compress_ssl.feature_maps`), with anchors of 8 strides and
a level more for large objects: for a ResNet of 224 pixels that is torchvision's own detector. The pyramid, the
proposals and the box head (two layers of 1024) start at random, everything below is the encoder.
Batch norm is frozen as in torchvision's and Detectron's fine-tuning, for statistics of a few pictures at a time are
noise. MoCo (He et al., CVPR 2020, Sec. 4.2) instead trains it, synchronised over 8 GPUs, since self-supervised features
have other scales than supervised ones; `batch_norm="trained"` does so within one batch.
Fast R-CNN (Girshick, ICCV 2015) is the same without the network that proposes: the head looks at the boxes that are
given for each picture, and the encoder learns from the head alone. So the CompRess paper scores its AlexNet. Differs
from it: the head stands on the pyramid and starts at random, where there fc6 and fc7 go on learning on conv5; and all
boxes that overlap objects by less than a half are background, not those above a tenth alone. In training the true
boxes are among those that it looks at, as torchvision and Fast R-CNN's own code have it.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torchvision.models.detection import FasterRCNN
from torchvision.models.detection.anchor_utils import AnchorGenerator
from torchvision.models.detection.faster_rcnn import FastRCNNPredictor, TwoMLPHead
from torchvision.models.detection.image_list import ImageList
from torchvision.models.detection.transform import resize_boxes
from torchvision.ops import FeaturePyramidNetwork, MultiScaleRoIAlign
from torchvision.ops.feature_pyramid_network import LastLevelMaxPool

from compress_ssl.encoder import Encoder
from compress_ssl.feature_maps import FeatureMaps, find_maps
from compress_ssl.refusal import Refusal

ANCHOR = 8  # strides
RATIOS = (0.5, 1.0, 2.0)
POOLED = 7  # positions a side to which each proposal is pooled


@dataclass(frozen=True, kw_only=True)
class Config:
    """What stands on the encoder; torchvision's own numbers."""

    channels: int = 256  # of every level of the pyramid
    head: int = 1024  # width of the two layers that look at a proposal
    proposals: int = 512  # of each picture that are learnt from
    # short sides in pixels: one is drawn for each picture to learn from; the last one is that of the scoring
    sizes: tuple[int, ...] = (480, 512, 544, 576, 608, 640, 672, 704, 736, 768, 800)
    longest: int = 1333  # pixels of the long side at most; the short one is then shorter
    # of the encoder: trained takes the statistics of each batch, which wants many pictures in one
    batch_norm: Literal["frozen", "trained"] = "frozen"

    def __post_init__(self) -> None:
        if min(self.channels, self.head, self.proposals) < 1:
            raise Refusal(f"--detector.channels, head and proposals expected at least 1, got {self.channels}, "
                          f"{self.head} and {self.proposals}: 256, 1024 and 512 are usual")  # fmt: skip
        if not self.sizes or min(self.sizes) < 1 or self.longest < max(self.sizes):
            raise Refusal(f"--detector.sizes expected pixels, none above --detector.longest, got {self.sizes} and "
                          f"{self.longest}: 480 640 800 and 1333 are usual")  # fmt: skip


class Pyramid(nn.Module):
    """Normalised images (B, 3, H, W) -> levels {name: (B, channels, height, width)}, finest first, `pool` the last."""

    def __init__(self, encoder: Encoder, channels: int):
        super().__init__()
        self.maps = FeatureMaps(encoder.backbone, find_maps(encoder.backbone, spec=encoder.spec))
        widths = [place.channels for place in self.maps.places]
        self.pyramid = FeaturePyramidNetwork(widths, channels, extra_blocks=LastLevelMaxPool())
        self.out_channels = channels  # which FasterRCNN asks for
        self.strides = [place.stride for place in self.maps.places]

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        # names of submodules have dots, which the pooling of regions is not to read
        return self.pyramid({str(level): one for level, one in enumerate(self.maps(images).values())})


class GivenBoxes(nn.Module):
    """In the place of the network that proposes: the boxes that were put here, as large as the pictures became."""

    def __init__(self) -> None:
        super().__init__()
        self._put: list[tuple[Tensor, tuple[int, int]]] = []

    def put(self, boxes: list[Tensor], pictures: list[Tensor]) -> None:
        """Boxes (P, 4) of each picture (3, H, W), for the next call."""
        self._put = [(some, tuple(one.shape[-2:])) for some, one in zip(boxes, pictures, strict=True)]  # type: ignore[misc]

    def forward(self, images: ImageList, features: Any, targets: Any = None) -> tuple[list[Tensor], dict[str, Tensor]]:  # noqa: ARG002
        put, self._put = self._put, []
        return [resize_boxes(boxes, list(before), list(now)) for (boxes, before), now
                in zip(put, images.image_sizes, strict=True)], {}  # fmt: skip


class Detector(nn.Module):
    """Pictures, and in training their objects -> losses, in evaluation detections; as torchvision's FasterRCNN.

    Pictures are (3, H, W) float in [0, 1], each of its own size; boxes are edges in pixels, class 0 is background.

    Args:
        classes: C, without the background.
        proposes: whether it looks for boxes itself; otherwise every call needs proposals (P, 4) of each picture.
    """

    def __init__(self, encoder: Encoder, config: Config, *, classes: int, proposes: bool = True):
        super().__init__()
        if encoder.architecture is None:
            raise Refusal(f"expected an encoder that can be trained, to detect with it, got {encoder.spec!r}: name a "
                          "run folder, timm/NAME, torchvision/NAME or compress/NAME")  # fmt: skip
        self.frozen = config.batch_norm == "frozen"
        pyramid = Pyramid(encoder, config.channels)
        self.places = pyramid.maps.places
        levels = [*pyramid.strides, 2 * pyramid.strides[-1]]
        regions = [str(level) for level in range(len(pyramid.strides))]
        self.model = FasterRCNN(
            pyramid,
            min_size=config.sizes,
            max_size=config.longest,
            image_mean=list(encoder.preprocessing.mean),
            image_std=list(encoder.preprocessing.std),
            rpn_anchor_generator=AnchorGenerator(
                tuple((ANCHOR * stride,) for stride in levels), (RATIOS,) * len(levels)
            ),
            box_roi_pool=MultiScaleRoIAlign(regions, output_size=POOLED, sampling_ratio=2),
            box_head=TwoMLPHead(config.channels * POOLED**2, config.head),
            box_predictor=FastRCNNPredictor(config.head, classes + 1),
            box_batch_size_per_image=config.proposals,
        )
        self.given = None if proposes else GivenBoxes()
        if self.given is not None:
            self.model.rpn = self.given
        encoder.backbone.requires_grad_(True)
        if self.frozen:
            for norm in self._norms():
                norm.requires_grad_(False)
        self.train()

    def train(self, mode: bool = True) -> Detector:
        super().train(mode)
        if self.frozen:
            for norm in self._norms():
                norm.eval()
        return self

    def forward(
        self,
        pictures: list[Tensor],
        objects: list[dict[str, Tensor]] | None = None,
        proposals: list[Tensor] | None = None,
    ):
        if (self.given is None) != (proposals is None):
            raise ValueError(f"expected proposals {'of each picture' if self.given else 'to be looked for here'}, got "
                             f"{'none' if proposals is None else len(proposals)}: see `proposes`")  # fmt: skip
        if self.given is not None and proposals is not None:
            self.given.put(proposals, pictures)
        return self.model(pictures, objects)

    def _norms(self) -> list[nn.Module]:
        return [part for part in self.modules() if isinstance(part, nn.modules.batchnorm._BatchNorm)]


@torch.no_grad()
def detect(
    detector: Detector, pictures: list[Tensor], proposals: list[Tensor] | None = None
) -> list[dict[str, Tensor]]:
    """`boxes` (N, 4), `labels` (N,) from 1 on and `scores` (N,) of every picture, on the CPU; in evaluation mode."""
    detector.eval()
    return [{name: value.cpu() for name, value in found.items()} for found in detector(pictures, proposals=proposals)]
