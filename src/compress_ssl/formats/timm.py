"""timm's own checkpoints: a model's state dict under the names that timm gives it.

Layouts: flat (`model.safetensors`, `pytorch_model.bin`), and what timm's training script saves, `{"epoch", "arch",
"state_dict", "optimizer", "version", "args", "metric", ["state_dict_ema"]}`, where averaged weights are taken if there
are any, as timm itself does. A ViT without classifier may be DINO's, iBOT's or MAE's, which have the same names: its
format is to be named, unless the backbone normalises as they all do.
The classifier is left behind; the projection of a CLIP tower is no classifier and stays. Preprocessing is that of the
name and the tag: a flat file does not say whose it is, so name the tag as well, `timm/NAME.TAG@timm:FILE`.
Source: Wightman, PyTorch Image Models (timm/models/_helpers.py, timm/utils/checkpoint_saver.py).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from compress_ssl import vit
from compress_ssl.formats import Found, bare_resnet, sort, states
from compress_ssl.transforms import Preprocessing

if TYPE_CHECKING:
    from torch import Tensor

TITLE = "timm"
SIGNS = ("state_dict_ema/", "blocks.0.norm1.", "patch_embed.proj.", "stages.0.blocks.", "head.")
PREPROCESSING: Preprocessing | None = None
EMBEDDING = ""
STEMS = ("patch_embed.proj.", "blocks.0.", "conv_stem.", "stem.", "stages.0.", "stages_0.", "layers.0.", "layers_0.")
STRANGE = ("mask", "storage_tokens", "register_tokens", "decoder_", "downsample_layers.", "stages.0.0.", "net.")


def find(content: Mapping[str, Any], *, named: bool) -> Found | None:
    script = {"arch", "version", "state_dict", "args"} <= content.keys()
    for under, state in states(content, ("state_dict_ema",), ("state_dict",), ("model",), ()):
        prefix = "module." if all(name.startswith("module.") for name in state) else ""
        names = {name.removeprefix(prefix): tensor for name, tensor in state.items()}
        if not (script or _is_timms(content, names, named)):
            continue
        drop = {"state_dict/": "weights that were not averaged"} if under == ("state_dict_ema",) else {}
        architecture = f"timm/{content['arch']}" if script else None
        return sort(content, under=under, backbone=prefix, drop=drop, architecture=architecture)
    return bare_resnet(content, head="classifier") if named and _is_ordinary(content) else None


def fit(found: Found, backbone: Any) -> dict[str, Tensor]:
    """All but the classifier, which only the backbone can tell from its own last layer."""
    own, heads = backbone.state_dict().keys(), tuple(f"{head}." for head in getattr(backbone, "head_names", ()))
    kept = {name: one for name, one in found.tensors.items() if name in own or not (heads and name.startswith(heads))}
    if len(kept) < len(found.tensors):
        found.dropped["classifier"] = len(found.tensors) - len(kept)
    return kept


def _is_ordinary(content: Mapping[str, Any]) -> bool:
    """Could this be a ResNet of timm's, which has torchvision's names; no student of CompRess's, and not as wide as
    SimCLR's?"""
    found = bare_resnet(content, head="classifier")
    return found is not None and "opt" not in content and found.tensors["conv1.weight"].shape[0] <= 64


def _is_timms(content: Mapping[str, Any], state: Mapping[str, Any], named: bool) -> bool:
    """One network and nothing beside it, under names that timm alone uses; torchvision's are read as torchvision's."""
    if {"teacher", "student"} & content.keys() or any(str(name).startswith(STRANGE) for name in state):
        return False
    return any(str(name).startswith(STEMS) for name in state) and (named or not vit.is_bare(state))
