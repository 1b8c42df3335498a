"""MoCo v3: momentum contrast for ViTs and ResNets; the base encoder is kept.

Layout: `{"epoch", "arch", "state_dict", "optimizer", ["scaler"]}`; in the state dict `module.base_encoder.`,
`module.momentum_encoder.` and `module.predictor.`; behind the first two a ViT in timm's names with its projection in
`head`, or a ResNet in torchvision's with its projection in `fc`.
Trap: the authors' ViT-S has 12 attention heads, timm's and DINO's have 6, and no tensor has another shape for it. Here
the backbone is built with 12. ViT-B has the 12 that timm's has. The patch embedding was frozen in training, which
changes nothing that is stored; positions are fixed sines and cosines, and read from the file.
Embedding: the class token after the last norm; a ResNet's pooled map. Evaluation: short side 256, centre 224, bilinear,
ImageNet's mean and std.
Source: Chen, Xie, He, An Empirical Study of Training Self-Supervised Vision Transformers, ICCV 2021; names and sizes of
the authors' code (facebookresearch/moco-v3: moco/builder.py, vits.py, main_lincls.py). Not read: `vit_conv_*`, of which
no weights are published, and linear classifiers' own files. Not verified: against the published files themselves.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from compress_ssl import vit
from compress_ssl.architecture import resnet
from compress_ssl.formats import Found, sort, states
from compress_ssl.transforms import Preprocessing

if TYPE_CHECKING:
    from torch import Tensor

TITLE = "MoCo v3"
SIGNS = ("base_encoder.", "momentum_encoder.", "predictor.")
PREPROCESSING: Preprocessing | None = Preprocessing(interpolation="bilinear", crop_fraction=0.875)
EMBEDDING = ""
PATTERN = "timm/vit_{size}_patch{patch}_224"
HEADS = {384: 12}  # of the authors' ViTs, by width, where timm's have another number


def find(content: Mapping[str, Any], *, named: bool) -> Found | None:
    for under, state in states(content, ("state_dict",), ()):
        for outer in ("module.", ""):
            prefix = f"{outer}base_encoder."
            trunk = vit.trunk(state, prefix)
            if trunk is None and f"{prefix}conv1.weight" not in state:
                continue
            head = "fc." if trunk is None else "head."
            found = sort(
                content,
                under=under,
                backbone=prefix,
                drop={
                    f"{prefix}{head}": "projection head",
                    f"{outer}predictor.": "prediction head",
                    f"{outer}momentum_encoder.": "key encoder",
                },
                architecture=resnet(state, prefix) if trunk is None else trunk.name(PATTERN),
            )
            if trunk is not None and trunk.width in HEADS:
                found.arguments["heads"] = HEADS[trunk.width]
            return found
    return None


def fit(found: Found, backbone: Any) -> dict[str, Tensor]:
    return vit.at_backbones_size(found.tensors, backbone)
