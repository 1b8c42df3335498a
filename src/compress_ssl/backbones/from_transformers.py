"""Backbones of Hugging Face transformers: `transformers/FOLDER` (saved by it) or `transformers/HUB_NAME`.

A folder is read from the disk alone; a name that is no folder, from the local cache of the hub, and only if it is not
there from the hub. Weights come from safetensors, code from the library alone, never from the repository.

The embedding is the one its authors publish, by the kind of model, see `EMBEDDINGS`: of a vision tower with a text
tower what `get_image_features` returns. The text tower is dropped, and so are heads; `told` names them. The input is
what the image processor beside the weights says.
"""

from __future__ import annotations

import collections
import contextlib
import dataclasses
import importlib
import inspect
import logging as standard_logging
import math
import os
import ssl
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from compress_ssl.backbones import publish
from compress_ssl.refusal import Refusal
from compress_ssl.transforms import Preprocessing

# model type of its config: the embedding, as in compress_ssl.backbones.publish
EMBEDDINGS = {
    **dict.fromkeys(("vit", "deit", "dinov2", "dinov2_with_registers", "dinov3_vit", "vit_msn", "vit_mae"), "cls"),
    **dict.fromkeys(("beit", "data2vec-vision", "ijepa"), "mean"),
    **dict.fromkeys(("clip", "chinese_clip", "altclip", "metaclip_2", "clip_vision_model"), "projected"),
    **dict.fromkeys(("siglip", "siglip_vision_model"), "attention"),
    **dict.fromkeys(
        ("resnet", "regnet", "convnext", "convnextv2", "dinov3_convnext", "bit", "efficientnet", "mobilenet_v1",
         "mobilenet_v2", "mobilevit", "swin", "swinv2", "focalnet"),
        "pooled",
    ),
}  # fmt: skip
OF_TEXT = ("text_model", "text_projection", "text_embed_dim", "logit_scale", "logit_bias")
PATIENCE = 10  # seconds that the hub has to answer
RESAMPLING = {2: "bilinear", 3: "bicubic"}  # as Pillow numbers them


def open_backbone(name: str, *, size: int | None) -> nn.Module:
    """Open a model of transformers as an encoder, on the CPU, float32.

    Args:
        name: a folder, or a repository of the hub.
        size: side of the square input in pixels; None: the image processor's.
    Raises: Refusal if transformers is missing, the model cannot be had, is of a kind that we know no embedding of, or
        its weights do not fill it.
    """
    transformers = _library()
    with _quiet(transformers):
        config = _from(transformers.AutoConfig, name)
        kind = config.model_type
        if kind not in EMBEDDINGS:
            raise Refusal(f"expected a vision model of transformers whose embedding we know ({', '.join(EMBEDDINGS)}), "
                          f"got {kind} in {name!r}: write a function that embeds and name it as "
                          "python/MODULE:FUNCTION.")  # fmt: skip
        model, dropped = _model(transformers, config, name)
        preprocessing, flipped = processor_of(name)
    embedding = EMBEDDINGS[kind]
    if kind == "clip_vision_model" and not hasattr(model, "visual_projection"):
        embedding = "cls"
    if size is not None:
        side = getattr(getattr(config, "vision_config", config), "patch_size", 1)
        if embedding != "pooled" and size % side:  # the library leaves out, in silence, what fills no patch
            raise Refusal(f"expected a size for {name!r} that is a multiple of its {side}-pixel patch, got {size}.")
        preprocessing = dataclasses.replace(preprocessing, size=size)
    backbone = TransformersBackbone(model, kind, embedding, size=preprocessing.size, flipped=flipped)
    side = preprocessing.size
    with torch.no_grad():
        width = backbone(torch.zeros(1, 3, side, side)).shape[1]
    backbone.told = _told(kind, embedding, dropped)
    return publish(backbone, width=width, preprocessing=preprocessing, embedding=embedding)


class TransformersBackbone(nn.Module):
    """Normalised images (B, 3, H, W) -> (B, D), by a model of transformers.

    Attributes:
        told: the kind, the embedding, and what was dropped of the weights.
    """

    told: str
    noise: Tensor | None

    def __init__(self, model: Any, kind: str, embedding: str, *, size: int, flipped: bool):
        super().__init__()
        self.model, self.kind, self.embedding, self.flipped = model.eval(), kind, embedding, flipped
        self.arguments: dict[str, Any] = {}
        vision = getattr(model.config, "vision_config", None) or model.config
        if getattr(vision, "image_size", size) not in (size, [size, size], (size, size)):
            taken = inspect.signature(getattr(model, "vision_model", model).forward).parameters
            if "interpolate_pos_encoding" in taken:  # DINOv2 and v3 do it unasked
                self.arguments["interpolate_pos_encoding"] = True
        patches = (size // vision.patch_size) ** 2 if kind == "vit_mae" else None
        # its random order of patches, in order; on the device, for a copy would make every step wait
        noise = None if patches is None else torch.arange(patches) / patches
        self.register_buffer("noise", noise, persistent=False)

    def forward(self, images: Tensor) -> Tensor:
        images = images.flip(1) if self.flipped else images
        arguments = dict(self.arguments)
        if self.noise is not None:
            arguments["noise"] = self.noise.expand(len(images), -1)
        if hasattr(self.model, "get_image_features"):
            found = self.model.get_image_features(pixel_values=images, **arguments)
            return found if isinstance(found, Tensor) else found.pooler_output
        found = self.model(pixel_values=images, **arguments)
        if self.embedding == "projected":
            return found.image_embeds
        if self.embedding == "cls":
            return found.pooler_output if self.kind == "clip_vision_model" else found.last_hidden_state[:, 0]
        if self.kind == "ijepa":
            return found.last_hidden_state.mean(dim=1)
        return found.pooler_output.flatten(1)


def processor_of(name: str | Path) -> tuple[Preprocessing, bool]:
    """What the image processor of a folder or a repository does, and whether it turns RGB into BGR.

    Raises: Refusal if there is none, or it does what the evaluation view cannot.
    """
    transformers = _library()
    with _quiet(transformers):
        processor = _from(transformers.AutoImageProcessor, str(name))

    def said(key: str, default: Any = None) -> Any:
        value = getattr(processor, key, None)
        return default if value is None else value

    def refuse(what: str) -> Refusal:
        kind = type(processor).__name__
        return Refusal(f"expected an image processor that resizes, crops and normalises, got {kind} of "
                       f"{str(name)!r}, {what}: embed by a function of yours, python/MODULE:FUNCTION.")  # fmt: skip

    sides = {key: value for key, value in dict(said("size", {})).items() if value is not None}
    crop = {key: value for key, value in dict(said("crop_size", {})).items() if value is not None}
    if not said("do_resize", True) or said("do_pad", False):
        raise refuse("which leaves images at their size" if not said("do_pad", False) else "which pads them")
    mode, fraction = "center", 1.0
    if "shortest_edge" in sides and len(sides) == 1:
        edge = size = sides["shortest_edge"]
        share = said("crop_pct")
        if share is not None:  # ConvNeXt's: from 384 pixels on nothing is cut off
            mode, fraction = ("squash", 1.0) if edge >= 384 else ("center", share)
            crop = {}
    elif sides.get("height") == sides.get("width") is not None and not sides.keys() - {"height", "width"}:
        edge = size = sides["height"]
        mode = "squash"
    else:
        raise refuse(f"whose size is {sides}")
    if said("do_center_crop", False) and crop:
        size = crop.get("height")
        if size is None or size != crop.get("width") or size > edge:
            raise refuse(f"which crops {crop} of {sides}")
        fraction = _fraction(size, edge)
    interpolation = RESAMPLING.get(int(said("resample", 2)))
    if interpolation is None:
        raise refuse(f"which resamples by Pillow's filter {int(said('resample'))}")
    if said("rescale_offset", False) or said("include_top", False):
        raise refuse("which normalises twice")
    unit = 255 * said("rescale_factor", 1 / 255) if said("do_rescale", True) else 255.0
    mean, std = (0.0, 0.0, 0.0), (1.0, 1.0, 1.0)
    if said("do_normalize", False):
        mean, std = _three(said("image_mean")), _three(said("image_std"))
    preprocessing = Preprocessing(
        size=size,
        mean=tuple(value / unit for value in mean),  # type: ignore[arg-type]
        std=tuple(value / unit for value in std),  # type: ignore[arg-type]
        interpolation=interpolation,  # type: ignore[arg-type]
        crop_fraction=fraction,
        crop=mode,  # type: ignore[arg-type]
    )
    return preprocessing, bool(said("do_flip_channel_order", False))


def _fraction(size: int, edge: int) -> float:
    """size / edge, so that edge comes out again when a view divides by it and rounds down."""
    fraction = size / edge
    while math.floor(size / fraction) < edge:
        fraction = math.nextafter(fraction, 0)
    return fraction


def _three(values: Any) -> tuple[float, float, float]:
    return tuple(values) if isinstance(values, list | tuple) else (values,) * 3


def _model(transformers: Any, config: Any, name: str) -> tuple[nn.Module, dict[str, int]]:
    """The model without heads and text tower, and how many tensors of what were dropped.

    Raises: Refusal if weights are missing, for those would be random.
    """
    made = transformers.AutoModel
    options: dict[str, Any] = {}
    if "CLIPVisionModelWithProjection" in (config.architectures or ()):
        made = transformers.CLIPVisionModelWithProjection
    elif EMBEDDINGS[config.model_type] == "cls":
        known = getattr(transformers, type(config).__name__.removesuffix("Config") + "Model", None)
        if known is not None and "add_pooling_layer" in inspect.signature(known.__init__).parameters:
            options["add_pooling_layer"] = False
    if config.model_type == "vit_mae":
        config.mask_ratio = 0.0
    model, loading = _from(made, name, config=config, use_safetensors=True, dtype=torch.float32,
                           output_loading_info=True, **options)  # fmt: skip
    wrong = [*loading["missing_keys"], *(str(one[0]) for one in loading["mismatched_keys"])]
    if wrong:
        raise Refusal(f"expected all weights of {type(model).__name__} in {name!r}, got none, or of another shape, for "
                      f"{len(wrong)} ({', '.join(sorted(wrong)[:3])}{', …' if len(wrong) > 3 else ''}): name the "
                      "folder of a trained model.")  # fmt: skip
    dropped = collections.Counter(key.split(".")[0] for key in loading["unexpected_keys"])
    for part in OF_TEXT:
        if isinstance(found := getattr(model, part, None), nn.Module | nn.Parameter):
            dropped["text tower"] += len(found.state_dict()) if isinstance(found, nn.Module) else 1
            delattr(model, part)
    return model, dict(dropped)


def _told(kind: str, embedding: str, dropped: dict[str, int]) -> str:
    told = ", ".join(f"{name} {count} tensor{'s'[: count > 1]}" for name, count in dropped.items())
    return f"{kind} of transformers, embedding {embedding}" + (f" ({told} dropped)" if told else "")


def _from(made: Any, name: str, **options: Any) -> Any:
    """`made.from_pretrained`: a folder, else the local cache, else the hub.

    Raises: Refusal that says where was looked.
    """
    options["trust_remote_code"] = False
    local = Path(name).is_dir()
    try:
        return made.from_pretrained(name, local_files_only=True, **options)
    except Exception as error:  # OSError mostly, ValueError for an unknown type or remote code, KeyError for a config
        if local and made is _library().AutoImageProcessor and not (Path(name) / "preprocessor_config.json").exists():
            raise Refusal(f"expected an image processor beside the model in {name!r}, got no preprocessor_config.json: "
                          "copy it from where the model is from, or write it with the processor's save_pretrained."
                          ) from error  # fmt: skip
        if local:
            raise _unusable(f"in the folder {name!r}", error) from error
    if Path(name).is_absolute() or name.count("/") > 1 or name.startswith("."):
        raise Refusal(f"expected a folder that transformers saved, got {name!r}, where none lies: check the path.")
    _refuse_without_network(name)
    try:
        return made.from_pretrained(name, **options)
    except Exception as error:
        raise _unusable(f"in the local cache or on the hub ({name})", error) from error


def _refuse_without_network(name: str) -> None:
    """One attempt to reach the hub, of seconds; the library's own are repeated for half a minute."""
    hub = importlib.import_module("huggingface_hub").constants
    trouble: object = "offline mode (HF_HUB_OFFLINE)" if hub.HF_HUB_OFFLINE else None
    try:
        if trouble is None:
            urllib.request.urlopen(urllib.request.Request(hub.ENDPOINT, method="HEAD"), timeout=PATIENCE).close()
    except urllib.error.HTTPError:
        return  # an answer all the same
    except OSError as error:
        reason = getattr(error, "reason", error)
        trouble = None if isinstance(reason, ssl.SSLError) else reason  # the library may know other certificates
    if trouble is not None:
        raise Refusal(f"expected {name!r} in the local cache of transformers or on {hub.ENDPOINT}, got neither "
                      f"({trouble}): connect to the network, or give a folder that save_pretrained wrote.")  # fmt: skip


def _unusable(where: str, error: Exception) -> Refusal:
    told = (str(error).strip().splitlines() or [""])[0].rstrip(".")
    return Refusal(f"expected a model of transformers with safetensors weights and an image processor {where}, got "
                   f"{type(error).__name__}: {told}: give the folder that save_pretrained wrote of both.")  # fmt: skip


def _library() -> Any:
    # asked for once the user has named a model of it; neither reports to the hub, nor asks it to convert weights
    os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")
    os.environ.setdefault("DISABLE_SAFETENSORS_CONVERSION", "1")
    try:
        return importlib.import_module("transformers")
    except ImportError as error:
        raise Refusal(f"expected the package transformers for its models, got {error}: pip install "
                      "'compress-ssl[transformers]'.") from error  # fmt: skip


@contextlib.contextmanager
def _quiet(transformers: Any) -> Iterator[None]:
    """Without its bars and its table of dropped weights, which `told` names."""
    logging = transformers.utils.logging
    verbosity, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    hub = standard_logging.getLogger("huggingface_hub")
    level = hub.level
    hub.setLevel(standard_logging.ERROR)
    try:
        yield
    finally:
        hub.setLevel(level)
        logging.set_verbosity(verbosity)
        if bars:
            logging.enable_progress_bar()
