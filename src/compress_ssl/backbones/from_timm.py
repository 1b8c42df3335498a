"""Backbones of timm (PyTorch Image Models): any of its names, with or without the tag of its weights.

The embedding is the one its authors publish: what timm gives without a classifier (class token, attention pooling or
mean, as the model is made), with two exceptions. The image towers of CLIP and its kin keep their last layer, for it is
no classifier but the projection into the space they share with text, which is what `encode_image` returns and what
indexes hold; a tag that was fine-tuned to classes loses it like any other. DINOv3 and its kin give the class token,
where timm means over the patches.
The input too: size, mean, std, interpolation and crop mode are those of the tag, or of the model's default tag.
Models with position embeddings are built for the asked size, with timm's own interpolation of pretrained ones.

What a checkpoint knows and no name says is asked for by keyword (`build`): formats/ does so, and a saved encoder keeps
it among its `arguments`.
"""

from __future__ import annotations

import dataclasses
from typing import Any, Literal

import timm
from timm.data import resolve_model_data_config
from timm.layers.pos_embed_sincos import RotaryEmbeddingDinoV3
from timm.models import get_pretrained_cfg
from torch import Tensor, nn

from compress_ssl.backbones import publish
from compress_ssl.refusal import Refusal, nearest
from compress_ssl.transforms import Preprocessing

# Widths of the spaces that images and texts share. timm counts the last layer of these towers as a classifier of so
# many classes; no set of classes has one of these sizes.
PROJECTIONS = (384, 512, 640, 768, 1024, 1152, 1280)
POOLINGS = {"token": "cls", "map": "attention"}


def names() -> list[str]:
    """Every architecture; each may be followed by `.TAG`."""
    return timm.list_models()


def build(
    name: str,
    *,
    weights: Literal["pretrained", "random"],
    size: int | None = None,
    projection: int | None = None,
    pooling: Literal["token", "avg"] | None = None,
    heads: int | None = None,
    patch: int | None = None,
    periods: Literal["bfloat16"] | None = None,
) -> nn.Module:
    """Build one of timm's models without its classifier.

    Args:
        weights: `pretrained` looks in the local cache of the hub, then asks the hub.
        size: side of the square input in pixels; None for the published one.
        projection: numbers in the space that a CLIP tower shares with text; None for the tag's, if it has one.
        pooling: of a transformer's tokens; None for what its authors do.
        heads: attention heads, where a checkpoint was made with another number; its tensors do not tell.
        patch: side of a transformer's patches in pixels, where no name has it.
        periods: DINOv3's rotary periods rounded as its checkpoints hold them; None for exact ones, as in timm.
    Raises: Refusal for an unknown name or tag, weights that cannot be had, or an input that is not square RGB.
    """
    architecture, _, tag = name.partition(".")
    if not timm.is_model(architecture):
        raise Refusal(f"expected a model of timm, got {name!r}: {nearest(architecture, names())}")
    tags = timm.list_models(f"{architecture}.*", pretrained=True)
    if tag and name not in tags:
        raise Refusal(f"expected weights that timm knows for {architecture!r}, got {name!r}: {nearest(name, tags)}")
    published = get_pretrained_cfg(name)
    if projection is None and published is not None and published.num_classes in PROJECTIONS:
        projection = published.num_classes
    if pooling is None and "_dinov3" in architecture:
        pooling = "token"
    arguments: dict[str, Any] = {"num_classes": projection or 0}
    if published is not None and published.fixed_input_size and size is not None:
        arguments["img_size"] = size
    if pooling is not None:
        arguments["global_pool"] = pooling
    if heads is not None:
        arguments["num_heads"] = heads
    if patch is not None:
        arguments["patch_size"] = patch
    model: Any
    if weights == "pretrained":
        model = _download(name, tags, arguments)
    else:
        model = timm.create_model(name, pretrained=False, **arguments)
    if periods is not None:
        _round_periods(model)
    if size is not None:
        _check_patches(model, name, size)
    data = resolve_model_data_config(model)
    channels, height, width = data["input_size"]
    if channels != 3 or (size is None and height != width):
        raise Refusal(
            f"expected a model for square RGB images, got timm/{name} for {channels} channels of {height}×{width}: "
            "give a size, or choose another model."
        )
    preprocessing = Preprocessing(
        size=size or height,
        mean=tuple(data["mean"]),
        std=tuple(data["std"]),
        interpolation=data["interpolation"],
        crop_fraction=data["crop_pct"],
        crop=data["crop_mode"],
    )
    classifier = model.pretrained_cfg.get("classifier") or ()
    head = (classifier,) if isinstance(classifier, str) else tuple(classifier)
    return publish(
        model,
        width=projection or model.head_hidden_size,
        preprocessing=preprocessing,
        head=head,
        embedding="projected" if projection else _embedding(model),
    )


def _embedding(model: Any) -> str:
    """The word for what a model without a last layer gives."""
    if type(getattr(model, "head", None)).__name__ in ("AttentionPool2d", "RotAttentionPool2d"):
        return "attention"
    pooling = str(getattr(model, "global_pool", None))
    if getattr(model, "attn_pool", None) is not None:
        return "attention"
    tokens = getattr(model, "num_prefix_tokens", None) is not None
    return POOLINGS.get(pooling, "mean" if tokens and pooling == "avg" else "pooled")


class _RoundedPeriods(RotaryEmbeddingDinoV3):
    """Rotary positions with periods in bfloat16's steps: DINOv3 was trained, and is published, with these."""

    def _compute_periods(self, *args: Any, **kwargs: Any) -> Tensor:
        periods = super()._compute_periods(*args, **kwargs)
        return periods.bfloat16().to(periods.dtype)


def _round_periods(model: Any) -> None:
    if not isinstance(getattr(model, "rope", None), RotaryEmbeddingDinoV3):
        raise Refusal(
            f"expected a backbone with DINOv3's rotary positions, got {type(model).__name__} of another kind: "
            "name one of timm's *_dinov3 models."
        )
    model.rope.__class__ = _RoundedPeriods
    model.rope.reset_parameters()


def resize(backbone: Any, size: int) -> None:
    """Interpolate the position embeddings of a backbone that has its weights, if it has any of a fixed size.

    Raises: Refusal if timm cannot change the size of this model.
    """
    if backbone.pretrained_cfg.get("fixed_input_size"):
        if not hasattr(backbone, "set_input_size"):
            raise Refusal(
                f"expected the input size that {backbone.pretrained_cfg['architecture']} was made for, "
                f"got {size} pixels: leave the size out, timm cannot change it for this model."
            )
        _check_patches(backbone, backbone.pretrained_cfg["architecture"], size)
        backbone.set_input_size(img_size=size)
    backbone.preprocessing = dataclasses.replace(backbone.preprocessing, size=size)


def _check_patches(model: Any, name: str, size: int) -> None:
    """timm leaves out, in silence, the pixels at the border that fill no patch."""
    patches = getattr(model, "patch_embed", None)
    sides = getattr(patches, "patch_size", None) or 1
    side = sides if isinstance(sides, int) else sides[0]
    if size % side and not getattr(patches, "dynamic_img_pad", False):
        raise Refusal(f"expected a size for timm/{name} that is a multiple of its {side}-pixel patch, got {size}.")


def _download(name: str, tags: list[str], arguments: dict[str, Any]) -> nn.Module:
    published = get_pretrained_cfg(name)
    if not tags or published is None or not published.has_weights:
        raise Refusal(
            f"expected a model with published weights, got timm/{name} that has none: "
            f"give a file as timm/{name}@FILE, or timm/{name}@random."
        )
    try:
        return timm.create_model(name, pretrained=True, **arguments)
    except OSError as error:  # the hub's and urllib's errors of connection and of absence are all of this kind
        hub = published.hf_hub_id
        asked = (f"{hub}{published.architecture}.{published.tag}" if hub == "timm/" else hub) or published.url
        raise Refusal(
            f"expected the weights of timm/{name} in the local cache or from the hub ({asked}), got "
            f"{type(error).__name__}: connect to the network once, or give a local file as timm/{name}@FILE."
        ) from error
