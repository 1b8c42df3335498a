"""Runs of solo-learn, saved by Lightning.

Layout: `{"state_dict", "epoch", "global_step", "callbacks", "optimizer_states", "lr_schedulers", "hyper_parameters",
...}`; in the state dict `backbone.` (`encoder.` in old versions) before the names of torchvision's ResNets or timm's
transformers, `classifier.` (the online one), `projector.`, `predictor.`, `prototypes.`, `queue`, and
`momentum_backbone.`, `momentum_projector.`, `momentum_classifier.`.
For CIFAR its ResNets have a 3×3 stem that pads by two and no max-pool: `compress/resnet18_small_p2`, not
`compress/resnet18_small`, although the weights fit both.
Input: what the run used, which the file does not say; the named backbone's own. Where the stem is CIFAR's, the mean and
std that solo-learn pretrains with on CIFAR-100, if the online classifier has 100 classes, else on CIFAR-10; its linear
evaluation takes CIFAR-10's for both, with a std rounded to 0.247, 0.243, 0.261.
Source: solo-learn's released code (solo/data/pretrain_dataloader.py, classification_dataloader.py). Read from the code,
not from its published checkpoints.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn

from compress_ssl.architecture import resnet
from compress_ssl.formats import Found, sort, states
from compress_ssl.refusal import Refusal
from compress_ssl.transforms import Preprocessing

TITLE = "solo-learn run"
SIGNS = ("backbone.", "classifier.", "projector.", "momentum_backbone.")
PREPROCESSING: Preprocessing | None = None
EMBEDDING = ""
CIFAR_10 = Preprocessing(size=32, mean=(0.4914, 0.4822, 0.4465), std=(0.2470, 0.2435, 0.2616), crop_fraction=1.0)
CIFAR_100 = Preprocessing(size=32, mean=(0.5071, 0.4865, 0.4409), std=(0.2673, 0.2564, 0.2762), crop_fraction=1.0)
HEADS = {
    "classifier.": "classifier",
    "projector.": "projection head",
    "predictor.": "prediction head",
    "prototypes.": "prototypes",
    "head.": "projection head",
    "queue": "queue",
    "momentum_backbone.": "key encoder",
    "momentum_encoder.": "key encoder",
    "momentum_projector.": "key encoder",
    "momentum_head.": "key encoder",
    "momentum_classifier.": "classifier",
    "dino_loss_func.": "training state",
    "decoder.": "decoder",
}


def find(content: Mapping[str, Any], *, named: bool) -> Found | None:
    for under, state in states(content, ("state_dict",), ()):
        first = {name.partition(".")[0] for name in state}
        backbone = next((f"{one}." for one in ("backbone", "encoder") if one in first), None)
        own = first & {"projector", "momentum_backbone", "momentum_encoder", "predictor", "head", "prototypes"}
        if backbone is None or not (own or named) or "classifier" not in first or "cls_token" in state:
            continue
        architecture = resnet(state, backbone)
        small = architecture is not None and architecture.startswith("compress/") and "_small" in architecture
        found = sort(content, under=under, backbone=backbone, drop=HEADS)
        if not small:
            return Found(found.tensors, found.dropped, architecture)
        rows = next((len(one) for name, one in state.items() if name.startswith("classifier.") and one.ndim == 2), 0)
        seen = CIFAR_100 if rows == 100 else CIFAR_10
        return Found(found.tensors, found.dropped, f"{architecture}_p2", preprocessing=seen)
    return None


def fit(found: Found, backbone: nn.Module) -> dict[str, Tensor]:
    """Raises: Refusal if a CIFAR stem meets a backbone that pads otherwise: its weights would fit, its rows not."""
    stem: Any = getattr(backbone, "conv1", None)
    if found.preprocessing is not None and getattr(stem, "padding", None) != (2, 2):
        raise Refusal(
            f"expected a stem that pads by two pixels, as solo-learn's for CIFAR does, got one that pads by "
            f"{getattr(stem, 'padding', None)}: name {found.architecture}."
        )
    return found.tensors
