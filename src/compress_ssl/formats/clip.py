"""CLIP as OpenAI publishes it: the image tower with its projection; ViT or the ResNets with attention pooling.

Layout: flat, `visual.` before the image tower, beside the text tower's (`transformer.`, `token_embedding`,
`positional_embedding`, `ln_final`, `text_projection`), `logit_scale`, and in the released files three scalars,
`input_resolution`, `context_length`, `vocab_size`; weights in float16. These files are TorchScript, which is not
read: save their state dict once, as the refusal says. Without the scalars and in float32 nothing tells a file from
OpenCLIP's.
Traps: the transformers compute with QuickGELU, x · sigmoid(1.702 x), in timm the models with `_quickgelu_` in their
name; with GELU the same weights give other embeddings, so those are refused. Norms have an epsilon of 1e-5, there is
one before the first block, and the patch embedding has no bias.
Embedding: "projected", what `encode_image` returns, not yet of length one. Evaluation: short side to the model's size
(bicubic), centre, CLIP's own mean and std.
Source: Radford et al., Learning Transferable Visual Models From Natural Language Supervision, ICML 2021; names of the
authors' code (openai/CLIP: clip/model.py, clip/clip.py). Not verified: against the published files themselves.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from math import isqrt
from typing import TYPE_CHECKING, Any

from compress_ssl.formats import Found, sort, state_of
from compress_ssl.refusal import Refusal
from compress_ssl.transforms import Preprocessing

if TYPE_CHECKING:
    from torch import Tensor

TITLE = "CLIP"
SIGNS = ("visual.", "visual.class_embedding", "visual.attnpool.", "input_resolution", "text_projection")
MEAN, STD = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)
PREPROCESSING: Preprocessing | None = Preprocessing(mean=MEAN, std=STD, interpolation="bicubic", crop_fraction=1.0)
EMBEDDING = "projected"
SCALARS = ("input_resolution", "context_length", "vocab_size")
TEXT = ("transformer.", "token_embedding.", "positional_embedding", "ln_final.", "text_projection", "attn_mask")
DROP = {
    "logit_": "temperature",
    **dict.fromkeys(TEXT, "text tower"),
    **dict.fromkeys(SCALARS, "settings"),
}
RESNETS = {(3, 4, 6, 3): "50", (3, 4, 23, 3): "101", (4, 6, 10, 6): "50x4", (6, 8, 18, 8): "50x16"}
RESNETS |= {(3, 15, 36, 10): "50x64"}
TRANSFORMERS = {768: "base", 1024: "large"}


def find(content: Mapping[str, Any], *, named: bool) -> Found | None:
    state = state_of(content)
    if state is None or not {"visual.class_embedding", "visual.attnpool.positional_embedding"} & state.keys():
        return None
    half = str(state["visual.conv1.weight"].dtype).endswith("float16") if "visual.conv1.weight" in state else False
    if not (named or half or "input_resolution" in state):
        return None
    architecture, width = _tower(state)
    found = sort(content, drop=DROP, architecture=architecture)
    return Found(found.tensors, found.dropped, architecture, {"projection": width})


def fit(found: Found, backbone: Any) -> dict[str, Tensor]:
    """Raises: Refusal if the backbone would compute with another activation than OpenAI's."""
    from timm.models import byobnet, vision_transformer

    tensors = {name: tensor.float() for name, tensor in found.tensors.items()}
    if "visual.class_embedding" not in tensors:
        return byobnet.checkpoint_filter_fn(tensors, backbone)
    name = getattr(backbone, "pretrained_cfg", {}).get("architecture", type(backbone).__name__)
    if "quickgelu" not in name:
        raise Refusal(
            f"expected a backbone with QuickGELU, as OpenAI's CLIP computes, got {name} with another activation: "
            "name timm's model with `_quickgelu_`."
        )
    return vision_transformer.checkpoint_filter_fn(tensors, backbone)


def _tower(state: Mapping[str, Any]) -> tuple[str | None, int]:
    """timm's name of the image tower, and the width of its projection."""
    if "visual.class_embedding" in state:
        kernel, projection = state["visual.conv1.weight"], state["visual.proj"].shape[1]
        pixels = kernel.shape[2] * isqrt(state["visual.positional_embedding"].shape[0] - 1)
        size = TRANSFORMERS.get(kernel.shape[0])
        named = f"timm/vit_{size}_patch{kernel.shape[2]}_clip_quickgelu_{pixels}" if size else None
        return named, projection
    found = [re.match(r"visual\.layer([1-4])\.(\d+)\.conv1\.weight", name) for name in state]
    blocks = tuple(sum(one is not None and one[1] == stage for one in found) for stage in "1234")
    depth = RESNETS.get(blocks)
    return f"timm/resnet{depth}_clip" if depth else None, state["visual.attnpool.c_proj.weight"].shape[0]
