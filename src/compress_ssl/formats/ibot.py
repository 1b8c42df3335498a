"""iBOT: DINO with masked patches; the teacher is what its authors evaluate.

Layouts: the released backbones, `{"state_dict": ...}` or flat, a ViT in timm's names; where `masked_embed`, the token
that stands for a masked patch, was left in, it gives the format away, else the format is to be named. And the full
checkpoint, `{"student", "teacher", "optimizer", "epoch", "args", "ibot_loss", ["fp16_scaler"]}`, where the teacher's
names begin with `backbone.` and `head.` (`module.` may stand before), and the student has `backbone.masked_embed`.
Embedding: the class token after the last norm. Evaluation: short side 256 (bicubic), centre 224, ImageNet's mean and
std; positions at another size as in DINO.
Source: Zhou et al., iBOT: Image BERT Pre-Training with Online Tokenizer, ICLR 2022; names and evaluation of the
authors' code (bytedance/ibot: main_ibot.py, models/vision_transformer.py, evaluation/eval_knn.py). Not read: the Swin
models. Not verified: against the published files themselves.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from compress_ssl import vit
from compress_ssl.formats import Found, bare_vit, sort, state_of, states
from compress_ssl.transforms import Preprocessing

if TYPE_CHECKING:
    from torch import Tensor

TITLE = "iBOT"
SIGNS = ("teacher/", "student/", "masked_embed", "last_layer2", "ibot_loss")
PREPROCESSING: Preprocessing | None = Preprocessing(interpolation="bicubic", crop_fraction=0.875)
EMBEDDING = "cls"
PATTERN = "timm/vit_{size}_patch{patch}_224"
MASK = "masked_embed"


def find(content: Mapping[str, Any], *, named: bool) -> Found | None:
    teacher, student = state_of(content, "teacher"), state_of(content, "student")
    if teacher is not None and student is not None:
        ours = "ibot_loss" in content or any(name.endswith(f"backbone.{MASK}") for name in student)
        for outer in ("", "module."):
            trunk = vit.trunk(teacher, f"{outer}backbone.")
            if trunk is not None and ours:
                drop = {
                    f"{outer}head.": "projection head",
                    f"{outer}backbone.{MASK}": "mask token",
                    "student/": "student",
                    "ibot_loss/": "training state",
                }
                name = trunk.name(PATTERN)
                return sort(content, under=("teacher",), backbone=f"{outer}backbone.", drop=drop, architecture=name)
        return None
    for under, state in states(content, (), ("state_dict",)):
        bare = {name: tensor for name, tensor in state.items() if name != MASK}
        trunk = vit.trunk(bare)
        if trunk is not None and vit.is_bare(bare) and MASK in state:
            return sort(content, under=under, drop={MASK: "mask token"}, architecture=trunk.name(PATTERN))
    return bare_vit(content, pattern=PATTERN) if named else None


def fit(found: Found, backbone: Any) -> dict[str, Tensor]:
    return vit.at_backbones_size(found.tensors, backbone, offset=0.1)
