"""Weights under torchvision's own names: its published files, anyone's classifiers, and what compress-ssl saves.

Layout: the state dict of a classifier, alone or under `state_dict` or `model`, perhaps with `module.` before each name.
The classifier is left behind: `fc`, `heads`, `head`, the last number of `classifier`.
Embedding and input: the named backbone's own. A bare ResNet could be anybody's: authors with another input than
ImageNet's (SimCLR) have to be named.
Source: torchvision's models.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from compress_ssl.architecture import resnet
from compress_ssl.formats import Found, bare, sort
from compress_ssl.transforms import Preprocessing

TITLE = "torchvision"
SIGNS = ("conv1.weight", "layer1.0.conv1.weight", "fc.weight")
PREPROCESSING: Preprocessing | None = None
EMBEDDING = ""
MARKS = (
    {"conv1.weight", "layer1.0.conv1.weight"},
    {"features.0.weight"},
    {"features.0.0.weight"},
    {"features.conv0.weight"},
    {"class_token", "encoder.layers.encoder_layer_0.ln_1.weight"},
    {"stem.0.weight", "trunk_output.block1.block1-0.proj.0.weight"},
    {"conv1.0.weight", "stage2.0.branch2.0.weight"},
    {"conv1.conv.weight", "inception3a.branch1.conv.weight"},
    {"Conv2d_1a_3x3.conv.weight"},
)
HEADS = {"fc.": "classifier", "heads.": "classifier", "head.": "classifier"}
AUXILIARY = {"aux1.": "auxiliary classifier", "aux2.": "auxiliary classifier", "AuxLogits.": "auxiliary classifier"}


def find(content: Mapping[str, Any], *, named: bool) -> Found | None:
    place = bare(content)
    if place is None:
        return None
    under, prefix, state = place
    names = {name.removeprefix(prefix): tensor for name, tensor in state.items()}
    foreign = (
        "feats.",
        "projection_head.",
        "prototypes.",
        "conv_stem.",
        "pre_logits.",
        "opt",
        "predict_q.",
        "head.fc.",
    )
    if not any(marks <= names.keys() for marks in MARKS) or any(name.startswith(foreign) for name in names):
        return None
    if "opt" in content or {"arch", "version", "args"} <= content.keys() or _is_simclr(names):
        return None
    drop = HEADS | AUXILIARY | _last_classifier(names)
    return sort(
        content,
        under=under,
        backbone=prefix,
        drop={f"{prefix}{name}": what for name, what in drop.items()},
        architecture=resnet(names) or _other(names),
    )


def _last_classifier(names: Mapping[str, Any]) -> dict[str, str]:
    """The layer of `classifier` that tells the classes, among layers that belong to the embedding."""
    numbers = {int(found[1]) for found in map(re.compile(r"classifier\.(\d+)\.weight").fullmatch, names) if found}
    if "classifier.weight" in names:
        return {"classifier.": "classifier"}
    if "features.0.weight" in names:  # AlexNet and VGG count to 6; SqueezeNet classifies by a convolution
        last = (
            6
            if 6 in numbers
            else 1
            if len(names.get("classifier.1.weight", names["features.0.weight"]).shape) == 4
            else 0
        )
        return {f"classifier.{last}.": "classifier"} if last in numbers and last else {}
    return {f"classifier.{max(numbers)}.": "classifier"} if numbers and max(numbers) > 0 else {}


def _is_simclr(names: Mapping[str, Any]) -> bool:
    stem, head = names.get("conv1.weight"), names.get("fc.weight")
    wide = stem is not None and stem.shape[0] > 64 and "layer1.0.conv3.weight" in names
    return wide and head is not None and head.shape[0] == 1000


def _other(names: Mapping[str, Any]) -> str | None:
    """AlexNet and MobileNetV2, the paper's other students; a guess for no one else."""
    if "features.10.weight" in names and "features.12.weight" not in names and "classifier.4.weight" in names:
        return "compress/alexnet"
    if "features.18.0.weight" in names and "features.1.conv.0.0.weight" in names:
        return "torchvision/mobilenet_v2"
    return None
