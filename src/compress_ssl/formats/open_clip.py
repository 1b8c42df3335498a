"""OpenCLIP: image towers trained with open_clip, its own ViT or a network of timm (ConvNeXt, ViT, EVA ...).

Layout: flat (`open_clip_pytorch_model.bin`, `open_clip_model.safetensors`; with CLIP's own names such a file may as
well be OpenAI's in float32, so its format is to be named), or `{"epoch", "name", "state_dict", "optimizer", "scaler"}`
of a training with `module.` before each name. `visual.` before the image tower: CLIP's own names (`visual.conv1`,
`visual.transformer.resblocks.0.ln_1`, `visual.proj`), or `visual.trunk.` and timm's names with the projection outside
in `visual.head.proj`, in `visual.head.mlp.fc1` and `fc2`, or inside as the trunk's `head`. The text tower is flat as in
CLIP, or behind `text.`; a temperature and sometimes a bias (`logit_scale`, `logit_bias`).
Trap: some of these ViTs were trained with QuickGELU, as OpenAI's, others (LAION's) with GELU, and no tensor tells: the
name does, with or without `_quickgelu_`. The projection is kept at the file's width, whatever the name's default
weights have. Towers with an attention pooling of timm's own and no projection are SigLIP's, a format of its own.
Embedding: "projected", what `encode_image` returns, not yet of length one. Evaluation: CLIP's mean and std, bicubic,
short side to the model's size, centre. Some newer weights squash instead or have another mean, which no file says:
open those that timm has by their tag.
Source: Ilharco et al., OpenCLIP, 2021; names of its code (mlfoundations/open_clip: src/open_clip/model.py,
transformer.py, timm_model.py). Not verified: against the published files themselves.
"""

from __future__ import annotations

from collections.abc import Mapping
from math import isqrt
from typing import TYPE_CHECKING, Any

from compress_ssl import vit
from compress_ssl.formats import Found, sort, states
from compress_ssl.formats.clip import MEAN, RESNETS, SCALARS, STD, TEXT
from compress_ssl.refusal import Refusal
from compress_ssl.transforms import Preprocessing

if TYPE_CHECKING:
    from torch import Tensor

TITLE = "OpenCLIP"
SIGNS = ("visual.", "visual.trunk.", "visual.head.proj", "text.", "logit_scale")
PREPROCESSING: Preprocessing | None = Preprocessing(mean=MEAN, std=STD, interpolation="bicubic", crop_fraction=1.0)
EMBEDDING = "projected"
DROP = {"logit_": "temperature", "text.": "text tower", **dict.fromkeys(TEXT, "text tower")}
HEADS = ("visual.head.proj.weight", "visual.head.mlp.fc2.weight", "visual.trunk.head.weight")
TRANSFORMERS = {256: "xsmall", 512: "medium", 768: "base", 1024: "large", 1280: "huge", 1408: "giant", 1664: "gigantic"}
CONVNEXTS = {(128, 27): "base", (192, 27): "large_mlp", (384, 30): "xxlarge"}


def find(content: Mapping[str, Any], *, named: bool) -> Found | None:
    for under, state in states(content, ("state_dict",), ()):
        for outer in ("module.", ""):
            names = {name.removeprefix(outer): one for name, one in state.items() if name.startswith(outer)}
            width = _projection(names)
            if width is None or not (named or under or outer or _is_no_clip(names)):
                continue
            if _is_openais(names, bool(under)):
                continue
            drop = {f"{outer}{start}": what for start, what in DROP.items()}
            found = sort(content, under=under, drop=drop, architecture=_tower(names))
            tensors = {name.removeprefix(outer): one for name, one in found.tensors.items()}
            return Found(tensors, found.dropped, found.architecture, {"projection": width})
    return None


def fit(found: Found, backbone: Any) -> dict[str, Tensor]:
    """Names of the tower -> timm's, by timm; a projection without bias gets one of zeros, as timm's has.

    Raises: Refusal if timm knows no way from these names to the backbone's.
    """
    from timm.models import byobnet, convnext, eva, vision_transformer

    tensors = {name: tensor.float() for name, tensor in found.tensors.items()}
    converters = {
        "VisionTransformer": vision_transformer.checkpoint_filter_fn,
        "ConvNeXt": convnext.checkpoint_filter_fn,
        "ByobNet": byobnet.checkpoint_filter_fn,
        "Eva": eva.checkpoint_filter_fn,
    }
    kind = type(backbone).__name__
    if kind not in converters:
        raise Refusal(
            f"expected a ViT, ConvNeXt, EVA or CLIP's ResNet of timm for this {TITLE} checkpoint, got a {kind}: "
            f"name {found.architecture or 'the tower that it was trained with'}."
        )
    return converters[kind](tensors, backbone)


def _projection(state: Mapping[str, Any]) -> int | None:
    """Width of the shared space; None if this is no image tower with a projection."""
    if "visual.class_embedding" in state and "visual.proj" in state:
        return state["visual.proj"].shape[1]
    if "visual.attnpool.c_proj.weight" in state:
        return state["visual.attnpool.c_proj.weight"].shape[0]
    return next((state[name].shape[0] for name in HEADS if name in state), None)


def _is_openais(state: Mapping[str, Any], nested: bool) -> bool:
    """A flat file in float16 or with OpenAI's scalars; OpenCLIP saves float32, or nested."""
    half = str(state["visual.conv1.weight"].dtype).endswith("float16") if "visual.conv1.weight" in state else False
    return not nested and (half or any(name in state for name in SCALARS))


def _is_no_clip(state: Mapping[str, Any]) -> bool:
    """Does it have what OpenAI's files never have: a trunk of timm's, a text tower of its own name, a bias?"""
    return "logit_bias" in state or any(name.startswith(("visual.trunk.", "text.")) for name in state)


def _tower(state: Mapping[str, Any]) -> str | None:
    if "visual.class_embedding" in state:
        kernel = state["visual.conv1.weight"]
        pixels = kernel.shape[2] * isqrt(state["visual.positional_embedding"].shape[0] - 1)
        size = TRANSFORMERS.get(kernel.shape[0])
        return f"timm/vit_{size}_patch{kernel.shape[2]}_clip_{pixels}" if size else None
    if "visual.attnpool.c_proj.weight" in state:
        blocks = tuple(sum(_begins(name, stage) for name in state) for stage in "1234")
        return f"timm/resnet{RESNETS[blocks]}_clip" if blocks in RESNETS else None
    stem = state.get("visual.trunk.stem.0.weight")
    if stem is not None:
        third = {name.split(".")[5] for name in state if name.startswith("visual.trunk.stages.2.blocks.")}
        size = CONVNEXTS.get((stem.shape[0], len(third)))
        return f"timm/convnext_{size}" if size else None
    trunk = vit.trunk(state, "visual.trunk.")
    return trunk.name("timm/vit_{size}_patch{patch}_clip_{pixels}") if trunk else None


def _begins(name: str, stage: str) -> bool:
    return name.startswith(f"visual.layer{stage}.") and name.endswith(".conv1.weight")
