"""Runs of lightly: its tutorials, examples and benchmarks, saved by Lightning.

Layout: `{"state_dict", "epoch", "optimizer_states", "pytorch-lightning_version", ...}`, or the state dict alone. The
backbone stands behind `backbone.`, of DINO and its kin behind `teacher_backbone.` (which its authors evaluate) beside
`student_backbone.`; usually a torchvision ResNet put together by number, nn.Sequential(*list(resnet.children())[:-1]),
else under its own names. Beside it `projection_head.`, `prediction_head.`, `backbone_momentum.`, `prototypes.`, ...
lightly's own small ResNet (`ResNetGenerator`), taken apart in this way, has no ReLU after its first norm and calls its
shortcuts otherwise: no backbone here computes that, and it is refused.
Input: what the run used, which the file does not say; the named backbone's own.
Source: lightly's documentation, examples and package. Runs differ: a part of another name is refused, not guessed.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn

from compress_ssl.architecture import resnet
from compress_ssl.formats import Found, named_parts, sort, states
from compress_ssl.refusal import Refusal
from compress_ssl.transforms import Preprocessing

TITLE = "lightly run"
SIGNS = ("backbone.", "projection_head.", "prediction_head.", "backbone_momentum.", "teacher_backbone.")
PREPROCESSING: Preprocessing | None = None
EMBEDDING = ""
HEADS = {
    "projection_head": "projection head",
    "prediction_head": "prediction head",
    "student_head": "projection head",
    "teacher_head": "projection head",
    "student_projection_head": "projection head",
    "teacher_projection_head": "projection head",
    "backbone_momentum": "key encoder",
    "student_backbone": "student encoder",
    "prototypes": "prototypes",
    "online_classifier": "classifier",
    "criterion": "queue",
    "memory_bank": "queue",
    "queue": "queue",
}


def find(content: Mapping[str, Any], *, named: bool) -> Found | None:
    for under, state in states(content, ("state_dict",), ()):
        first = {name.partition(".")[0] for name in state}
        marks = ("projection_head", "prediction_head", "online_classifier", "student_head", "backbone_momentum")
        backbone = next((one for one in ("teacher_backbone.", "backbone.") if one[:-1] in first), None)
        foreign = first & {"classifier", "projector", "momentum_backbone"} or "cls_token" in state
        if backbone is None or not (named or first & set(marks)) or foreign:
            continue
        if any(name.startswith(("backbone.0.body.", "backbone.bottom_up.")) for name in state):
            return None
        found = sort(content, under=under, backbone=backbone, drop=HEADS)
        tensors = named_parts(found.tensors)
        return Found(tensors, found.dropped, resnet(tensors))
    return None


def fit(found: Found, backbone: nn.Module) -> dict[str, Tensor]:
    if any(".shortcut." in name for name in found.tensors):
        raise Refusal(
            "expected a backbone of torchvision or timm in the lightly run, got lightly's own small ResNet, which as "
            "taken apart by children() has no ReLU after its first norm: no backbone here computes that."
        )
    return found.tensors
