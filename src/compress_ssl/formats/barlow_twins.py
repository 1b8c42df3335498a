"""Barlow Twins: a ResNet-50 alone (`resnet50.pth`), or the whole model in training (`checkpoint.pth`).

Layout: a flat state dict of torchvision's ResNet-50 names without `fc`, which says nothing of its authors; or
`{"epoch", "model", "optimizer"}` with `module.backbone.`, `module.projector.` (linear layers without bias) and
`module.bn.`, the statistics of the projections.
Source: Zbontar et al., Barlow Twins: Self-Supervised Learning via Redundancy Reduction, ICML 2021; the authors'
released training script. Read from the code, not from the released files themselves.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from compress_ssl.architecture import resnet
from compress_ssl.formats import Found, bare_resnet, sort, state_of
from compress_ssl.transforms import Preprocessing

TITLE = "Barlow Twins"
SIGNS = ("backbone.", "projector.", "bn.running_mean")
PREPROCESSING: Preprocessing | None = Preprocessing(size=224, crop_fraction=0.875)
EMBEDDING = ""


def find(content: Mapping[str, Any], *, named: bool) -> Found | None:
    state = state_of(content, "model")
    for prefix in ("module.", ""):
        if state is not None and {f"{prefix}backbone.conv1.weight", f"{prefix}bn.running_mean"} <= state.keys():
            return sort(
                content,
                under=("model",),
                backbone=f"{prefix}backbone.",
                drop={f"{prefix}projector.": "projection head", f"{prefix}bn.": "projection head"},
                architecture=resnet(state, f"{prefix}backbone."),
            )
    return bare_resnet(content) if named else None
