"""MoCo v2: the query encoder of momentum contrast, with a head of two layers.

Layout: `{"epoch", "arch", "state_dict", "optimizer"}`; in the state dict `module.encoder_q.` before torchvision's
ResNet names, its `fc` replaced by `fc.0`, ReLU, `fc.2`; `module.encoder_k.` alike; `module.queue` (128, 65536) and
`module.queue_ptr`. Released files may hold the query encoder alone.
Source: Chen et al., Improved Baselines with Momentum Contrastive Learning, 2020; the authors' released training script.
Read from their code and from loaders of others, not from the released file itself.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from compress_ssl.formats import Found, momentum_contrast
from compress_ssl.transforms import Preprocessing

TITLE = "MoCo v2"
SIGNS = ("encoder_q.", "encoder_k.", "queue", "fc.2.")
PREPROCESSING: Preprocessing | None = Preprocessing(size=224, crop_fraction=0.875)
EMBEDDING = ""


def find(content: Mapping[str, Any], *, named: bool) -> Found | None:
    return momentum_contrast(content, head="fc.2.weight")
