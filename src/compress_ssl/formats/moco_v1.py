"""MoCo v1: the query encoder of momentum contrast, its head one linear layer in the place of the classifier.

Layout: as MoCo v2's, but `module.encoder_q.fc.weight` (128, 2048) and `.bias` alone.
Source: He et al., Momentum Contrast for Unsupervised Visual Representation Learning, CVPR 2020; the authors' released
training script. Read from their code and from loaders of others, not from the released file itself.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from compress_ssl.formats import Found, momentum_contrast
from compress_ssl.transforms import Preprocessing

TITLE = "MoCo v1"
SIGNS = ("encoder_q.", "encoder_k.", "queue", "encoder_q.fc.weight")
PREPROCESSING: Preprocessing | None = Preprocessing(size=224, crop_fraction=0.875)
EMBEDDING = ""


def find(content: Mapping[str, Any], *, named: bool) -> Found | None:
    return momentum_contrast(content, head="fc.weight")
