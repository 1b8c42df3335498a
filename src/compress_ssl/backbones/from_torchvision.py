"""Backbones of torchvision: its image classifiers, cut before the last linear layer.

The embedding is what that layer would see, without the dropouts just before it: 512 numbers for resnet18, 1280 for
mobilenet_v2, 4096 for alexnet and vgg, the class token for a vit. SqueezeNet classifies by a convolution: cut before
it, averaged over positions. Auxiliary classifiers (GoogLeNet, Inception) are off.
With pretrained weights the input is the one they publish; otherwise ImageNet's usual 224 pixels. GoogLeNet and
Inception turn ImageNet's normalisation into (x - 0.5) / 0.5 inside the model, but only when torchvision itself loads
the weights; here that is always their input, so a file or a saved copy of the weights gives the same embedding.
"""

from __future__ import annotations

import dataclasses
from typing import Any, Literal

from torch import nn
from torchvision import models
from torchvision.models.vision_transformer import interpolate_embeddings

from compress_ssl.backbones import publish
from compress_ssl.refusal import Refusal, nearest
from compress_ssl.transforms import Preprocessing

IMAGENET = Preprocessing(size=224, crop_fraction=0.875)


def names() -> list[str]:
    """The classifiers; detection, segmentation, video and quantized models have no embedding of an image."""
    return models.list_models(module=models)


def build(name: str, *, weights: Literal["pretrained", "random"], size: int | None = None) -> nn.Module:
    """Build one of torchvision's classifiers without its classifier.

    Args:
        weights: `pretrained` takes torchvision's default weights, from its local cache or the network.
        size: side of the square input in pixels; None for the published one. Position embeddings are interpolated.
    Raises: Refusal for a name that is no classifier, weights that cannot be had, or a size this model cannot take.
    """
    if name not in names():
        other = f"{name!r}, which does not classify images" if name in models.list_models() else repr(name)
        raise Refusal(f"expected an image classifier of torchvision, got {other}: {nearest(name, names())}")
    inception = name in ("googlenet", "inception_v3")
    if weights == "pretrained":
        published = models.get_model_weights(name).DEFAULT
        model, preprocessing = _download(name, published), _preprocessing(published)
    else:
        options: dict[str, Any] = {}
        if inception:  # unless told how to start, torchvision warns
            options = {"aux_logits": False, "init_weights": True}
        options |= _sized(name, size) if size is not None else {}
        model, preprocessing = models.get_model(name, weights=None, **options), IMAGENET
        if size is not None:
            preprocessing = dataclasses.replace(preprocessing, size=size)
    if inception:
        model.transform_input, model.aux_logits, model.AuxLogits = False, False, None
        preprocessing = dataclasses.replace(preprocessing, mean=(0.5, 0.5, 0.5), std=(0.5, 0.5, 0.5))
    head, width = _cut_classifier(model)
    embedding = _embedding(model)
    heads = (head, "aux1", "aux2", "AuxLogits")
    publish(model, width=width, preprocessing=preprocessing, head=heads, embedding=embedding)
    if size is not None and preprocessing.size != size:
        resize(model, size)
    return model


def resize(backbone: Any, size: int) -> None:
    """Make a backbone that has its weights take another size; a vit's position embeddings are interpolated.

    Raises: Refusal for a size the patches do not divide, or a maxvit, whose windows follow its size.
    """
    if isinstance(backbone, models.MaxVit):
        raise Refusal(f"expected the 224 pixels that maxvit was trained for, got {size}: leave the size out.")
    if isinstance(backbone, models.VisionTransformer):
        if size % backbone.patch_size:
            raise Refusal(f"expected a size that is a multiple of the {backbone.patch_size}-pixel patch, got {size}.")
        state: Any = {"encoder.pos_embedding": backbone.encoder.pos_embedding.detach()}
        interpolate_embeddings(size, backbone.patch_size, state)
        backbone.encoder.pos_embedding = nn.Parameter(state["encoder.pos_embedding"].clone())
        backbone.image_size, backbone.seq_length = size, state["encoder.pos_embedding"].shape[1]
    backbone.preprocessing = dataclasses.replace(backbone.preprocessing, size=size)


def _sized(name: str, size: int) -> dict[str, Any]:
    if name.startswith("vit_"):
        return {"image_size": size}
    return {"input_size": (size, size)} if name.startswith("maxvit") else {}


def _cut_classifier(model: nn.Module) -> tuple[str, int]:
    """Remove the last linear layer in place; returns the name of what was removed and the width of what is left."""
    if isinstance(model, models.SqueezeNet):
        width = model.classifier[1].in_channels
        model.classifier = nn.Sequential(nn.AdaptiveAvgPool2d(1))
        return "classifier.1", width
    name, last = [(name, part) for name, part in model.named_modules() if isinstance(part, nn.Linear)][-1]
    parent_name, _, child_name = name.rpartition(".")
    parent = model.get_submodule(parent_name)
    if isinstance(parent, nn.Sequential):
        kept = list(parent.named_children())
        while kept and (kept[-1][1] is last or isinstance(kept[-1][1], nn.Dropout)):
            kept.pop()
        for child, _ in list(parent.named_children())[len(kept) :]:
            delattr(parent, child)
    else:
        setattr(parent, child_name, nn.Identity())
        if isinstance(getattr(parent, "dropout", None), nn.Dropout) and isinstance(
            model, (models.GoogLeNet, models.Inception3)
        ):
            parent.dropout = nn.Identity()
    return name, last.in_features


def _embedding(model: nn.Module) -> str:
    if isinstance(model, models.VisionTransformer):
        return "cls"
    return "fc7" if isinstance(model, (models.AlexNet, models.VGG)) else "pooled"


def _preprocessing(published: Any) -> Preprocessing:
    view = published.transforms()
    (size,), (resize_to,) = view.crop_size, view.resize_size
    return Preprocessing(
        size=size,
        mean=tuple(view.mean),
        std=tuple(view.std),
        interpolation=view.interpolation.value,
        crop_fraction=size / resize_to,
    )


def _download(name: str, published: Any) -> Any:
    try:
        return models.get_model(name, weights=published)
    except (OSError, RuntimeError) as error:  # no connection, or a download that is not what its hash says
        raise Refusal(
            f"expected the weights of torchvision/{name} in torch's local cache or from {published.url}, got "
            f"{type(error).__name__} ({error}): connect to the network once, or give a local file as "
            f"torchvision/{name}@FILE."
        ) from error
