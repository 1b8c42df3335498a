"""DINO: self-distillation without labels; the teacher is what its authors evaluate.

Layouts: `dino_*_pretrain.pth`, the teacher's backbone alone, flat, in timm's names (ViT-S and ViT-B) or torchvision's
(ResNet-50, without `fc`): nothing in it tells it from other people's, so its format is to be named. And the full
checkpoint, `{"student", "teacher", "optimizer", "epoch", "args", "dino_loss", ["fp16_scaler"]}`, where the teacher's
names begin with `backbone.` and `head.`, the student's with `module.` before that; so do those of a ResNet's teacher.
Embedding: the class token after the last norm; a ResNet's pooled map. Evaluation: short side 256 (bicubic), centre 224,
ImageNet's mean and std. At another size positions are interpolated as in `vision_transformer.py` there: bicubic, with
0.1 added to the number of patches.
Source: Caron et al., Emerging Properties in Self-Supervised Vision Transformers, ICCV 2021; names and evaluation of the
authors' code (facebookresearch/dino: main_dino.py, eval_knn.py, utils.py). The linear evaluation there concatenates the
class tokens of four blocks, which no single embedding is. Not read: the XCiT models. Not verified: against the
published files themselves.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from compress_ssl import vit
from compress_ssl.architecture import resnet
from compress_ssl.formats import Found, bare_resnet, bare_vit, sort, state_of
from compress_ssl.transforms import Preprocessing

if TYPE_CHECKING:
    from torch import Tensor

TITLE = "DINO"
SIGNS = ("teacher/", "student/", "backbone.", "last_layer", "dino_loss")
PREPROCESSING: Preprocessing | None = Preprocessing(interpolation="bicubic", crop_fraction=0.875)
EMBEDDING = ""
PATTERN = "timm/vit_{size}_patch{patch}_224"


def find(content: Mapping[str, Any], *, named: bool) -> Found | None:
    for prefix in ("backbone.", "module.backbone."):
        state = state_of(content, "teacher")
        if state is None or not isinstance(content.get("student"), Mapping):
            break
        head = prefix.removesuffix("backbone.") + "head."
        ours = vit.trunk(state, prefix) is not None or f"{prefix}conv1.weight" in state
        foreign = "ibot_loss" in content or any("masked_embed" in name for name in content["student"])
        if not ours or foreign or not any(name.startswith(f"{head}last_layer.") for name in state):
            continue
        drop = {head: "projection head", "student/": "student", "dino_loss/": "training state"}
        name = _architecture(state, prefix)
        return sort(content, under=("teacher",), backbone=prefix, drop=drop, architecture=name)
    return (bare_vit(content, pattern=PATTERN) or bare_resnet(content)) if named else None


def fit(found: Found, backbone: Any) -> dict[str, Tensor]:
    return vit.at_backbones_size(found.tensors, backbone, offset=0.1)


def _architecture(state: Mapping[str, Any], prefix: str) -> str | None:
    trunk = vit.trunk(state, prefix)
    return resnet(state, prefix) if trunk is None else trunk.name(PATTERN)
