"""SigLIP and SigLIP 2: the image tower, a ViT without class token whose patches are pooled by attention.

Layouts: Hugging Face's (`model.safetensors` of google/siglip-*), `vision_model.` before the image tower's own names
(`embeddings.patch_embedding`, `encoder.layers.0.self_attn.q_proj`, `post_layernorm`, `head.probe`), `text_model.`,
`logit_scale`, `logit_bias`; and open_clip's, `visual.trunk.` before timm's names with `attn_pool`, and `text.`.
Not read: big_vision's own `.npz`, and the NaFlex models, whose inputs have no fixed size.
Embedding: "attention": one learned query attends to the patches, then a residual MLP; there is no projection after it,
so this is the space shared with text, not yet of length one. Evaluation: the whole picture squashed to the model's size
(bicubic), mean and std 0.5. Norms have an epsilon of 1e-6, the activation is GELU's tanh approximation.
Source: Zhai et al., Sigmoid Loss for Language Image Pre-Training, ICCV 2023; Tschannen et al., SigLIP 2, 2025; names of
transformers (models/siglip/modeling_siglip.py) and of open_clip (src/open_clip/timm_model.py). The published
preprocessors resize to the square, which is taken over here; timm's configuration says a centre crop of 0.9 for
untagged names. Those of SigLIP 2 in transformers ask for bilinear, timm's and open_clip's of the same weights for
bicubic, as here. Not verified: against the published files themselves.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from math import isqrt
from typing import TYPE_CHECKING, Any

from compress_ssl import vit
from compress_ssl.formats import Found, sort
from compress_ssl.transforms import Preprocessing

if TYPE_CHECKING:
    from torch import Tensor

TITLE = "SigLIP"
SIGNS = ("vision_model.head.probe", "vision_model.", "text_model.", "attn_pool.", "logit_bias")
HALF = (0.5, 0.5, 0.5)
PREPROCESSING: Preprocessing | None = Preprocessing(
    mean=HALF, std=HALF, interpolation="bicubic", crop_fraction=1.0, crop="squash"
)
EMBEDDING = "attention"
TRUNK = "visual.trunk."
VISION = "vision_model."
SIZES = {768: "base", 1024: "large", 1152: "so400m", 1536: "giantopt"}
NAMES = (
    (r"^embeddings\.patch_embedding\.", "patch_embed.proj."),
    (r"^encoder\.layers\.", "blocks."),
    (r"\.layer_norm([12])\.", r".norm\1."),
    (r"\.self_attn\.out_proj\.", ".attn.proj."),
    (r"^post_layernorm\.", "norm."),
    (r"^head\.layernorm\.", "attn_pool.norm."),
    (r"^head\.mlp\.", "attn_pool.mlp."),
    (r"^head\.attention\.out_proj\.", "attn_pool.proj."),
)


def find(content: Mapping[str, Any], *, named: bool) -> Found | None:
    probe = content.get(f"{VISION}head.probe")
    if probe is not None and f"{VISION}embeddings.position_embedding.weight" in content:
        kernel = content[f"{VISION}embeddings.patch_embedding.weight"]
        positions = content[f"{VISION}embeddings.position_embedding.weight"]
        drop = {"text_model.": "text tower", "logit_": "temperature", f"{VISION}embeddings.position_ids": "settings"}
        architecture = _name(kernel.shape[0], kernel.shape[2], isqrt(positions.shape[0]))
        return sort(content, backbone=VISION, drop=drop, architecture=architecture)
    trunk = vit.trunk(content, TRUNK)
    if trunk is not None and f"{TRUNK}attn_pool.latent" in content and "visual.head.proj.weight" not in content:
        drop = {"text.": "text tower", "logit_": "temperature"}
        architecture = _name(trunk.width, trunk.patch, trunk.grid)
        return sort(content, backbone=TRUNK, drop=drop, architecture=architecture)
    return None


def fit(found: Found, backbone: Any) -> dict[str, Tensor]:
    import torch

    if "head.probe" not in found.tensors:
        return vit.at_backbones_size(found.tensors, backbone, prefix_tokens=0, antialias=True)
    rest, parts = dict(found.tensors), {}
    parts["attn_pool.latent"] = rest.pop("head.probe")
    parts["pos_embed"] = rest.pop("embeddings.position_embedding.weight")[None]
    for kind in ("weight", "bias"):
        stacked = rest.pop(f"head.attention.in_proj_{kind}")
        width = len(stacked) // 3
        parts[f"attn_pool.q.{kind}"], parts[f"attn_pool.kv.{kind}"] = stacked[:width], stacked[width:]
    for name in [name for name in rest if name.endswith(("q_proj.weight", "q_proj.bias"))]:
        stem, kind = name.rsplit("q_proj.", 1)
        block = stem.replace("encoder.layers.", "blocks.").replace("self_attn.", "attn.")
        projections = [rest.pop(f"{stem}{letter}_proj.{kind}") for letter in "qkv"]
        parts[f"{block}qkv.{kind}"] = torch.cat(projections)
    for name, tensor in rest.items():
        for pattern, replacement in NAMES:
            name = re.sub(pattern, replacement, name)
        parts[name] = tensor
    return vit.at_backbones_size(parts, backbone, prefix_tokens=0, antialias=True)


def _name(width: int, patch: int, grid: int) -> str | None:
    size = SIZES.get(width)
    return f"timm/vit_{size}_patch{patch}_siglip_{patch * grid}" if size else None
