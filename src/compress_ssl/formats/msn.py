"""MSN: masked siamese networks; the target encoder is what its authors evaluate.

Layout: `{"encoder", "opt", "prototypes", "target_encoder", "epoch", "loss", ...}`; both encoders are a ViT in timm's
names behind `module.`, with a projection in `fc.` (and a prediction head in `pred.`, if the training had one).
Embedding: the class token after the last norm. That is what the training matches and the linear evaluation reads; the
authors' logistic regression on few labels takes the class token before that norm. Evaluation: short side 256, centre
224, bilinear, ImageNet's mean and std. Positions at another size: bicubic, no antialiasing.
Source: Assran et al., Masked Siamese Networks for Label-Efficient Learning, ECCV 2022; names of the authors' code
(facebookresearch/msn: src/msn_train.py, src/deit.py, logistic_eval.py). timm has no name for the published ViTs with
patches of 4 and 7 pixels: the one with patches of 16 is built with those. Not verified: against the published files
themselves.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from compress_ssl import vit
from compress_ssl.formats import Found, sort, state_of
from compress_ssl.transforms import Preprocessing

if TYPE_CHECKING:
    from torch import Tensor

TITLE = "MSN"
SIGNS = ("target_encoder/", "encoder/", "prototypes", "fc.fc1.")
PREPROCESSING: Preprocessing | None = Preprocessing(interpolation="bilinear", crop_fraction=0.875)
EMBEDDING = "cls"
PATTERN = "timm/vit_{size}_patch{patch}_224"
UNNAMED = (4, 7)  # patches that no ViT of timm's has


def find(content: Mapping[str, Any], *, named: bool) -> Found | None:
    state = state_of(content, "target_encoder")
    if state is None:
        return None
    for prefix in ("module.", ""):
        trunk = vit.trunk(state, prefix)
        if trunk is not None:
            drop = {
                f"{prefix}fc.": "projection head",
                f"{prefix}pred.": "prediction head",
                "encoder/": "online encoder",
                "prototypes": "prototypes",
            }
            unnamed = trunk.patch in UNNAMED
            name = (trunk._replace(patch=16) if unnamed else trunk).name(PATTERN)
            found = sort(content, under=("target_encoder",), backbone=prefix, drop=drop, architecture=name)
            found.arguments.update({"patch": trunk.patch} if unnamed else {})
            return found
    return None


def fit(found: Found, backbone: Any) -> dict[str, Tensor]:
    return vit.at_backbones_size(found.tensors, backbone)
