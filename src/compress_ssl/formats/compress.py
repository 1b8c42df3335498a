"""The students that CompRess's authors published: AlexNet, MobileNetV2, ResNet-18 and ResNet-50.

Layout: `{"opt", "model", "optimizer", "epoch"}` with `module.` before every name under `model`. The ResNets have
torchvision's names, MobileNetV2 as well; AlexNet's f6 and f7 are `feats.0` and `feats.2`, without dropout. `fc` is the
linear layer after the embedding (into the teacher's space of a 1q student, to 8192 numbers of a ResNet-50), or absent;
MobileNetV2's is called `fc`, too.
Embedding: what goes into `fc`; AlexNet's after the ReLU of f7.
Source: Abbasi Koohpayegani et al., CompRess, NeurIPS 2020, and its released models and loaders. Read from the code, not
from the published files themselves: whether those keep `opt` and `optimizer` is not verified, both ways are read.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn

from compress_ssl.architecture import resnet
from compress_ssl.formats import Found, bare_resnet, sort, state_of
from compress_ssl.transforms import Preprocessing

TITLE = "CompRess student"
SIGNS = ("module.feats.", "module.features.", "module.layer1.0.conv1.weight")
PREPROCESSING: Preprocessing | None = Preprocessing(size=224, crop_fraction=0.875)
EMBEDDING = ""
ALEXNET = {"feats.0.": "classifier.1.", "feats.2.": "classifier.4."}  # f6, f7 in torchvision's names


def find(content: Mapping[str, Any], *, named: bool) -> Found | None:
    state = state_of(content, "model")
    if state is None:
        return None
    prefix = "module." if all(name.startswith("module.") for name in state) else ""
    kinds = {
        "alexnet": {f"{prefix}features.0.weight", f"{prefix}feats.0.weight", f"{prefix}feats.2.weight"},
        "mobilenet_v2": {f"{prefix}features.0.0.weight", f"{prefix}features.18.0.weight"},
        "resnet": {f"{prefix}conv1.weight", f"{prefix}layer4.1.conv2.weight"},
    }
    kind = next((kind for kind, names in kinds.items() if names <= state.keys()), None)
    told = f"{prefix}feats.0.weight" in state or "opt" in content
    if kind is None or not (told or named) or f"{prefix}classifier.1.weight" in state:
        return None
    if kind == "resnet" and bare_resnet({"model": state}, head="projector") is None:
        return None
    guesses = {"alexnet": "compress/alexnet", "mobilenet_v2": "torchvision/mobilenet_v2"}
    return sort(
        content,
        under=("model",),
        backbone=prefix,
        drop={f"{prefix}fc.": "projector"},
        architecture=guesses.get(kind) or resnet(state, prefix),
    )


def fit(found: Found, backbone: nn.Module) -> dict[str, Tensor]:
    renamed = {}
    for name, tensor in found.tensors.items():
        start = next((start for start in ALEXNET if name.startswith(start)), "")
        renamed[ALEXNET.get(start, "") + name.removeprefix(start)] = tensor
    return renamed
