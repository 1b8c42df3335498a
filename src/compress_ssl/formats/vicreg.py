"""VICReg: a ResNet alone (`resnet50.pth`, `resnet50x2.pth`), or the whole model in training (`..._fullckpt.pth`).

Layout: a flat state dict of torchvision's ResNet names without `fc`, which says nothing of its authors; or
`{"epoch", "model", "optimizer"}` with `module.backbone.` and `module.projector.`, whose hidden linear layers have
biases (Barlow Twins' have none, and it has a `bn`). The stem pads the image by one and the convolution by two more,
all with zeros: the three of torchvision's. The wide networks are SimCLR's, `compress/resnet50_w2`.
Source: Bardes et al., VICReg, ICLR 2022; the authors' released model and training code. Read from the code, not from
the released files themselves.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from compress_ssl.architecture import resnet
from compress_ssl.formats import Found, bare_resnet, sort, state_of
from compress_ssl.transforms import Preprocessing

TITLE = "VICReg"
SIGNS = ("backbone.", "projector.", "projector.0.bias")
PREPROCESSING: Preprocessing | None = Preprocessing(size=224, crop_fraction=0.875)
EMBEDDING = ""


def find(content: Mapping[str, Any], *, named: bool) -> Found | None:
    state = state_of(content, "model")
    for prefix in ("module.", ""):
        if state is not None and {f"{prefix}backbone.conv1.weight", f"{prefix}projector.0.bias"} <= state.keys():
            return sort(
                content,
                under=("model",),
                backbone=f"{prefix}backbone.",
                drop={f"{prefix}projector.": "projection head"},
                architecture=resnet(state, f"{prefix}backbone."),
            )
    return bare_resnet(content) if named else None
