"""DINOv3: ViTs with rotary positions and four registers, and the ConvNeXts distilled from them.

Layout: flat. ViT: timm's names with `storage_tokens` (the registers), `mask_token`, `rope_embed.periods`, layer scale
(`ls1.gamma`), `attn.qkv.bias` beside a `attn.qkv.bias_mask` that it is multiplied with, a SwiGLU of `mlp.w1`, `w2`,
`w3` in the S+, H+ and 7B models, `local_cls_norm` where local crops had a norm of their own. ConvNeXt: the names of
its authors (`downsample_layers`, `stages.0.0.dwconv`), the last norm a second time as `norms.3`.
Traps: norms have an epsilon of 1e-5. The periods are stored in bfloat16's steps (1.3359375 for 100^(2/32)), and the
authors compute with what is stored; timm computes exact ones, so the backbone is asked for rounded ones if the file
holds them. Of a bias only what its mask lets through counts; where that is zero, the models without `_qkvb` in timm's
names are the same function. timm averages patches by default, the authors publish the class token.
Embedding: the class token after the last norm (of a ConvNeXt the mean over positions, normed). Evaluation: as timm has
it for the name and the tag: satellite weights (`.sat493m`) have another mean and std than the others, and nothing in a
file tells them apart. timm's is the short side at 256 pixels (bicubic) and the centre 256 of it, the default of the
authors' evaluation the centre 224.
Source: Siméoni et al., DINOv3, 2025; names and sizes of the authors' code (facebookresearch/dinov3: hub/backbones.py,
models/vision_transformer.py, models/convnext.py, layers/); values of stored periods as reported by people who converted
the files. Not verified: against the published files themselves.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from compress_ssl import vit
from compress_ssl.formats import Found, sort
from compress_ssl.refusal import Refusal
from compress_ssl.transforms import Preprocessing

if TYPE_CHECKING:
    from torch import Tensor

TITLE = "DINOv3"
SIGNS = ("storage_tokens", "rope_embed.periods", "qkv.bias_mask", "ls1.gamma", "downsample_layers.")
PREPROCESSING: Preprocessing | None = None
EMBEDDING = ""
DROP = {"mask_token": "mask token", "local_cls_norm.": "norm of local crops"}
SIZES = {"192": "tiny", "384": "small", "768": "base", "1024": "large", "1280": "huge", "4096": "7b"}
CONVNEXTS = {(96, 9): "tiny", (96, 27): "small", (128, 27): "base", (192, 27): "large"}
BASE = 100.0  # of the periods


def find(content: Mapping[str, Any], *, named: bool) -> Found | None:
    if "storage_tokens" in content and "rope_embed.periods" in content and vit.trunk(content) is not None:
        drop = DROP | {name: "bias mask" for name in content if name.endswith("qkv.bias_mask")}
        periods = _periods(content["rope_embed.periods"])
        if periods is not None:  # others are kept, and refused with what no backbone has
            drop |= {"rope_embed.periods": "rotary periods"}
        found = sort(content, drop=drop, architecture=_transformer(content))
        return Found(_with_masked_biases(found, content), found.dropped, found.architecture, periods or {})
    if "norms.3.weight" in content and "downsample_layers.0.0.weight" in content and "head.weight" not in content:
        stem, blocks = content["downsample_layers.0.0.weight"], [name for name in content if name.endswith(".gamma")]
        size = CONVNEXTS.get((stem.shape[0], sum(name.startswith("stages.2.") for name in blocks)))
        architecture = f"timm/convnext_{size}.dinov3_lvd1689m" if size else None
        return sort(content, drop={"norms.": "second copy of the last norm"}, architecture=architecture)
    return None


def fit(found: Found, backbone: Any) -> dict[str, Tensor]:
    """Raises: Refusal if the file's query and value biases are not zero, and the backbone has none."""
    from timm.models import convnext, eva

    if "storage_tokens" not in found.tensors:
        return convnext.checkpoint_filter_fn(found.tensors, backbone)
    own = backbone.state_dict().keys()
    fitted = {}
    for name, tensor in found.tensors.items():
        if not name.endswith("attn.qkv.bias"):
            fitted[name] = tensor
            continue
        query, key, value = tensor.chunk(3)
        stem = name.removesuffix("qkv.bias")
        if key.any() or (f"{stem}q_bias" not in own and tensor.any()):
            raise Refusal(
                f"expected a backbone with the biases of this {TITLE} checkpoint (attn.qkv.bias is not zero), got one "
                f"without: name timm's model with `_qkvb`, {found.architecture}."
            )
        if f"{stem}q_bias" in own:
            fitted |= {f"{stem}q_bias": query, f"{stem}v_bias": value}
    unknown = {name: one for name, one in fitted.items() if name.startswith("rope_embed.")}  # timm drops any
    return eva.checkpoint_filter_fn(fitted, backbone) | unknown


def _with_masked_biases(found: Found, content: Mapping[str, Any]) -> dict[str, Tensor]:
    """The tensors with each bias as the authors apply it, masked."""
    tensors = dict(found.tensors)
    for name in [name for name in tensors if name.endswith("qkv.bias")]:
        mask = content.get(f"{name}_mask")
        if mask is not None:
            tensors[name] = tensors[name].where(mask != 0, 0) * mask.where(mask != 0, 0)
    return tensors


def _transformer(state: Mapping[str, Any]) -> str | None:
    trunk = vit.trunk(state)
    size = SIZES.get(str(trunk.width)) if trunk else None
    if trunk is None or size is None:
        return None
    gated = "blocks.0.mlp.w1.weight" in state
    plus = "_plus" if gated and size != "7b" else ""
    biases = [name for name in state if name.endswith("attn.qkv.bias")]
    biased = any((state[name] * (state.get(f"{name}_mask", state[name]) != 0)).any() for name in biases)
    return f"timm/vit_{size}{plus}_patch{trunk.patch}_dinov3{'_qkvb' if biased or size == 'tiny' else ''}"


def _periods(stored: Tensor) -> dict[str, Any] | None:
    """What to ask of the backbone so that it computes with these periods; None for those of another base."""
    import torch

    exact = BASE ** (torch.arange(len(stored)) / len(stored))
    if torch.allclose(stored.float(), exact, rtol=1e-5):
        return {}
    return {"periods": "bfloat16"} if torch.equal(stored.float(), exact.bfloat16().float()) else None
