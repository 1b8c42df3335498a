"""SwAV: swapped assignments between views; also DeepCluster-v2 and SeLa-v2, which its authors publish in its layout.

Layout: a flat state dict, `module.` before torchvision's ResNet names; `module.projection_head.{0,1,3}`;
`module.prototypes.weight`, or `module.prototypes.prototypes0.weight` and so on where there are several. A training
checkpoint holds it under `state_dict`, beside `optimizer`, `epoch`, `amp`. Wider networks (w2, w4, w5) multiply every
width of the ResNet: the same computation as SimCLR's wide ones, `compress/resnet50_w2`. The stem pads the image by one
and the convolution by two more, all with zeros: the three of torchvision's.
Input: its authors train and evaluate with a std of 0.228 in red, where everybody else has 0.229.
Source: Caron et al., Unsupervised Learning of Visual Features by Contrasting Cluster Assignments, NeurIPS 2020; the
authors' released model and training code. Read from the code, not from the released files themselves.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from compress_ssl.architecture import resnet
from compress_ssl.formats import Found, bare, bare_resnet, sort
from compress_ssl.transforms import Preprocessing

TITLE = "SwAV"
SIGNS = ("projection_head.", "prototypes.", "layer1.0.conv1.weight")
PREPROCESSING: Preprocessing | None = Preprocessing(size=224, std=(0.228, 0.224, 0.225), crop_fraction=0.875)
EMBEDDING = ""


def find(content: Mapping[str, Any], *, named: bool) -> Found | None:
    place = bare(content)
    if place is None:
        return None
    under, prefix, state = place
    heads = {f"{prefix}projection_head.": "projection head", f"{prefix}prototypes.": "prototypes"}
    if f"{prefix}conv1.weight" in state and all(any(name.startswith(head) for name in state) for head in heads):
        return sort(content, under=under, backbone=prefix, drop=heads, architecture=resnet(state, prefix))
    return bare_resnet(content) if named else None
