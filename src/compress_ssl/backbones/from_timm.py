"""Backbones of timm (PyTorch Image Models): any of its names, with or without the tag of its weights.

The embedding is the one timm publishes for a model without classifier (`num_classes=0`): pooled as its authors do,
class token or attention pooling included. The input too: size, mean, std, interpolation and crop are those of the
tag, or of the model's default tag. timm's `squash` and `border` crop modes are read as a centre crop of the same share.
Models with position embeddings are built for the asked size, with timm's own interpolation of pretrained ones.
"""

from __future__ import annotations

import dataclasses
from typing import Any, Literal

import timm
from timm.data import resolve_model_data_config
from timm.models import get_pretrained_cfg
from torch import nn

from compress_ssl.backbones import publish
from compress_ssl.refusal import Refusal, nearest
from compress_ssl.transforms import Preprocessing


def names() -> list[str]:
    """Every architecture; each may be followed by `.TAG`."""
    return timm.list_models()


def build(name: str, *, weights: Literal["pretrained", "random"], size: int | None = None) -> nn.Module:
    """Build one of timm's models without its classifier.

    Args:
        weights: `pretrained` looks in the local cache of the hub, then asks the hub.
        size: side of the square input in pixels; None for the published one.
    Raises: Refusal for an unknown name or tag, weights that cannot be had, or an input that is not square RGB.
    """
    architecture, _, tag = name.partition(".")
    if not timm.is_model(architecture):
        raise Refusal(f"expected a model of timm, got {name!r}: {nearest(architecture, names())}")
    tags = timm.list_models(f"{architecture}.*", pretrained=True)
    if tag and name not in tags:
        raise Refusal(f"expected weights that timm knows for {architecture!r}, got {name!r}: {nearest(name, tags)}")
    published = get_pretrained_cfg(name)
    fixed = published is not None and published.fixed_input_size
    arguments: dict[str, Any] = {"img_size": size} if fixed and size is not None else {}
    model: Any
    if weights == "pretrained":
        model = _download(name, tags, arguments)
    else:
        model = timm.create_model(name, pretrained=False, num_classes=0, **arguments)
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
    )
    classifier = model.pretrained_cfg.get("classifier") or ()
    head = (classifier,) if isinstance(classifier, str) else tuple(classifier)
    return publish(model, width=model.head_hidden_size, preprocessing=preprocessing, head=head)


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
    side, *_ = getattr(patches, "patch_size", None) or (1,)
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
        return timm.create_model(name, pretrained=True, num_classes=0, **arguments)
    except OSError as error:  # the hub's and urllib's errors of connection and of absence are all of this kind
        hub = published.hf_hub_id
        asked = (f"{hub}{published.architecture}.{published.tag}" if hub == "timm/" else hub) or published.url
        raise Refusal(
            f"expected the weights of timm/{name} in the local cache or from the hub ({asked}), got "
            f"{type(error).__name__}: connect to the network once, or give a local file as timm/{name}@FILE."
        ) from error
