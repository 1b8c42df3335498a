"""SimCLR v1, converted from the authors' TensorFlow files: ResNet-50 of widths ×1, ×2 and ×4 (8192 numbers).

Layouts:
- `{"state_dict"}` of torchvision's names, every width multiplied, with the supervised linear head as `fc` (1000). At
  ×1 that is any ResNet-50's file and has to be named; at ×2 and ×4 the width and the head tell;
- the one that CompRess's authors converted for ×4: `{"state_dict"}` with TensorFlow's own numbering, `conv2d`,
  `conv2d_1`, ... and `batch_normalization`, ..., the shortcut of a stage before its first block.
Input: pixels in [0, 1], no mean and no std. Bilinear, as CompRess's authors embed with it; SimCLR's own evaluation
resizes bicubic (without antialiasing), and the public converter states its accuracies for the centre 256 pixels of 256.
Padding: TensorFlow pads the max-pool after the last pixel, the conversions (and the paper's teacher) pad it by one on
either side. `compress/resnet50_w4` is theirs, `compress/resnet50_w4_tf` TensorFlow's; the weights are the same. All
other paddings agree.
Source: Chen et al., A Simple Framework for Contrastive Learning of Visual Representations, ICML 2020, and its released
TensorFlow model; public converters and CompRess's released loaders. Read from the code, not from converted files.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn

from compress_ssl.architecture import resnet
from compress_ssl.formats import Found, bare_resnet, sort, states
from compress_ssl.transforms import Preprocessing

TITLE = "SimCLR (TensorFlow)"
SIGNS = ("conv2d_1.weight", "batch_normalization_1.weight", "fc.weight")
PREPROCESSING: Preprocessing | None = Preprocessing(size=224, crop_fraction=0.875, mean=(0, 0, 0), std=(1, 1, 1))
EMBEDDING = ""
STEM = 64
NUMBERED = re.compile(r"(conv2d|batch_normalization)(?:_(\d+))?\.(\w+)")
BLOCKS = (3, 4, 6, 3)


def find(content: Mapping[str, Any], *, named: bool) -> Found | None:
    for under, state in states(content, ("state_dict",), ()):
        if {"conv2d.weight", "batch_normalization_52.weight"} <= state.keys():
            whole = sort(content, under=under, drop={"fc.": "classifier"})
            tensors = _renamed(whole.tensors)
            return Found(tensors, whole.dropped, resnet(tensors))
        stem, head = state.get("conv1.weight"), state.get("fc.weight")
        wide = stem is not None and stem.ndim == 4 and stem.shape[0] > STEM and "layer1.0.conv3.weight" in state
        if wide and head is not None and head.shape[0] == 1000:
            return bare_resnet(content, head="classifier")
    found = bare_resnet(content, head="classifier") if named else None
    return found if found is not None and "layer1.0.conv3.weight" in found.tensors else None


def note(found: Found, backbone: nn.Module) -> str:
    if getattr(backbone, "padding", "") == "tf" or found.architecture is None:
        return ""
    family = found.architecture if found.architecture.startswith("compress/") else "compress/resnet50_w1"
    return f"max-pool padded as in the published conversions; {family}_tf pads it as TensorFlow does"


def _renamed(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """TensorFlow's numbers in the order of computation -> torchvision's names."""
    places = [("conv1", "bn1")]
    for stage, blocks in enumerate(BLOCKS, 1):
        for block in range(blocks):
            start = f"layer{stage}.{block}"
            places += [(f"{start}.downsample.0", f"{start}.downsample.1")] if block == 0 else []
            places += [(f"{start}.conv{part}", f"{start}.bn{part}") for part in (1, 2, 3)]
    renamed = {}
    for name, tensor in tensors.items():
        match = NUMBERED.fullmatch(name)
        number = int(match[2] or 0) if match else len(places)
        if match and number < len(places):
            renamed[f"{places[number][match[1] != 'conv2d']}.{match[3]}"] = tensor
        else:
            renamed[name] = tensor
    return renamed
