"""BYOL: the online network.

Layouts:
- converted from the authors' JAX files: flat, `encoder_q.` (the online network) and `encoder_k.` (the target) before
  torchvision's ResNet names, their projector as `fc.{0,1,3}`, and `predict_q.{0,1,3}`; or the online ResNet alone
  under torchvision's names, its classifier as `fc`, which says nothing of its authors;
- a PyTorch reproduction in wide use: `{"online_network_state_dict", "target_network_state_dict",
  "optimizer_state_dict"}` with the ResNet put together by number behind `encoder.` and a projector `projetion.` (so
  spelt).
The authors' own `.pkl` is a pickle of JAX objects, whose code is never run here: convert it.
Padding: the authors' network (Haiku) pads every convolution and the pooling as TensorFlow's SAME does, less before than
after; converted weights compute the same only in `compress/resnet50_w1_same`. torchvision/resnet50 takes them too.
Source: Grill et al., Bootstrap Your Own Latent, NeurIPS 2020; the authors' released code (byol/utils/networks.py: the
padding; dataset.py: bicubic, 224 of 256, ImageNet's mean and std; TensorFlow resizes without antialiasing, Pillow with
it); public converters of its files. Not verified against a released file.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import nn

from compress_ssl.architecture import resnet
from compress_ssl.formats import Found, bare_resnet, named_parts, sort, state_of, states
from compress_ssl.transforms import Preprocessing

TITLE = "BYOL"
SIGNS = ("encoder_q.fc.3.", "predict_q.", "online_network")
PREPROCESSING: Preprocessing | None = Preprocessing(size=224, crop_fraction=0.875, interpolation="bicubic")
EMBEDDING = ""
STEM, DEEP = 64, "layer3.23.conv1.weight"  # its authors publish a ResNet-50 and a wide ResNet-200


def find(content: Mapping[str, Any], *, named: bool) -> Found | None:
    for under, state in states(content, (), ("state_dict",)):
        if {"encoder_q.conv1.weight", "predict_q.0.weight"} <= state.keys():
            return sort(
                content,
                under=under,
                backbone="encoder_q.",
                drop={"encoder_q.fc.": "projection head", "encoder_k.": "key encoder", "predict_q.": "prediction head"},
                architecture=resnet(state, "encoder_q."),
            )
    online = state_of(content, "online_network_state_dict")
    if online is not None and "encoder.0.weight" in online:
        whole = sort(
            content,
            under=("online_network_state_dict",),
            backbone="encoder.",
            drop={
                "projetion.": "projection head",
                "projection.": "projection head",
                "target_network_state_dict/": "key encoder",
                "predictor_network_state_dict/": "prediction head",
            },
        )
        tensors = named_parts(whole.tensors)
        return Found(tensors, whole.dropped, resnet(tensors))
    found = bare_resnet(content, head="classifier") if named else None
    if found is None or "layer1.0.conv3.weight" not in found.tensors:
        return None
    published = found.tensors["conv1.weight"].shape[0] == STEM or DEEP in found.tensors
    return found if published else None


def note(found: Found, backbone: nn.Module) -> str:
    if found.architecture != "torchvision/resnet50" or getattr(backbone, "padding", "") == "same":
        return ""
    return "if these were converted from the authors' JAX files, compress/resnet50_w1_same pads as they do"
