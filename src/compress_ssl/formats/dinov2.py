"""DINOv2: DINO and iBOT at scale, ViTs with patches of 14 pixels, with or without registers.

Layout: flat; a ViT in timm's names with `mask_token`, layer scale (`blocks.0.ls1.gamma`), `register_tokens` if it has
registers, and in ViT-g a SwiGLU of `mlp.w12` and `mlp.w3`. Its positions are a grid of 37 × 37 for 518 pixels, and the
class token has one, also beside registers. A training's own `{"teacher": ...}` has `backbone.` before these names, and
`dino_head.`, `ibot_head.`; blocks kept in chunks (`blocks.0.3.norm1`) are counted through.
Embedding: the class token after the last norm. Evaluation: short side 256 (bicubic), centre 224, ImageNet's mean and
std; timm's models take the 518 pixels of the position grid instead, five times the cost, and not what the published
accuracies were measured with: here it is 224 unless a size is given. Positions are interpolated as the authors do:
bicubic, with 0.1 added to the number of patches; with registers antialiased, and nothing added.
Source: Oquab et al., DINOv2, 2023; Darcet et al., Vision Transformers Need Registers, ICLR 2024; names, sizes and
interpolation of the authors' code (facebookresearch/dinov2: models/vision_transformer.py, hub/backbones.py,
data/transforms.py). Not verified: against the published files themselves.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from compress_ssl import vit
from compress_ssl.formats import Found, sort, state_of
from compress_ssl.transforms import Preprocessing

if TYPE_CHECKING:
    from torch import Tensor

TITLE = "DINOv2"
SIGNS = ("mask_token", "register_tokens", "ls1.gamma", "mlp.w12.", "dino_head.")
PREPROCESSING: Preprocessing | None = Preprocessing(interpolation="bicubic", crop_fraction=0.875)
SIZE = 224  # pixels; its position embeddings are made for 518, its authors evaluate at this
EMBEDDING = "cls"
CHUNKED = re.compile(r"^blocks\.\d+\.(\d+)\.")
HEADS = {"dino_head.": "projection head", "ibot_head.": "projection head"}


def find(content: Mapping[str, Any], *, named: bool) -> Found | None:
    for under, prefix in (((), ""), (("teacher",), "backbone."), (("teacher",), "module.backbone.")):
        state = state_of(content, *under)
        if state is None or f"{prefix}mask_token" not in state or f"{prefix}pos_embed" not in state:
            continue
        names = {CHUNKED.sub(r"blocks.\1.", name.removeprefix(prefix)): one for name, one in state.items()}
        trunk = vit.trunk(names)
        if trunk is None or "blocks.0.ls1.gamma" not in names:
            continue
        registers = names.get("register_tokens")
        kind = "" if registers is None else f"_reg{registers.shape[1]}"
        drop = {f"{prefix}mask_token": "mask token", "student/": "student"}
        drop |= {f"{prefix.removesuffix('backbone.')}{head}": what for head, what in HEADS.items()} if under else {}
        architecture = trunk.name("timm/vit_{size}_patch{patch}" + kind + "_dinov2")
        found = sort(content, under=under, backbone=prefix, drop=drop, architecture=architecture)
        tensors = {CHUNKED.sub(r"blocks.\1.", name): one for name, one in found.tensors.items()}
        return Found(tensors, found.dropped, architecture)
    return None


def fit(found: Found, backbone: Any) -> dict[str, Tensor]:
    """timm's names for registers and SwiGLU; beside registers the class token's position is added to the token."""
    registers = "register_tokens" in found.tensors
    tensors = vit.at_backbones_size(found.tensors, backbone, offset=0 if registers else 0.1, antialias=registers)
    if registers:
        tensors["reg_token"] = tensors.pop("register_tokens")
        tensors["cls_token"] = tensors["cls_token"] + tensors["pos_embed"][:, :1]
        tensors["pos_embed"] = tensors["pos_embed"][:, 1:]
    swiglu = {".mlp.w12.": ".mlp.fc1.", ".mlp.w3.": ".mlp.fc2."}
    return {re.sub(r"\.mlp\.w(12|3)\.", lambda layer: swiglu[layer[0]], name): one for name, one in tensors.items()}
