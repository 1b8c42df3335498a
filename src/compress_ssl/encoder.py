"""An encoder: raw pixels -> embeddings. A backbone with its weights and the input its authors publish.

`open_encoder` turns the one string that names a model into an encoder; `save_encoder` and `load_encoder` keep one in a
folder as `model.json` (what rebuilds it) and `model.safetensors` (its weights): nothing executable, no network.
"""

from __future__ import annotations

import contextlib
import dataclasses
import difflib
import json
import os
import sys
import warnings
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional

from compress_ssl import formats
from compress_ssl.backbones import EXTERNAL, FAMILIES, Spec, model_folder, open_external, own_names, read_spec
from compress_ssl.filled import Filled, build, fill, open_weights
from compress_ssl.refusal import Refusal
from compress_ssl.run_folder import write_atomically
from compress_ssl.transforms import Preprocessing
from compress_ssl.weights import fit_weights, pack_weights, read_checkpoint, read_weights

FORMAT = 1
Weights = Literal["pretrained", "random"]


class Encoder(nn.Module):
    """Pixels (B, 3, H, W) uint8, any memory format -> embeddings (B, width), not normalised to length one.

    Images of another size are resized whole (antialiased) to `preprocessing.size`; then (pixel / 255 - mean) / std in
    float32 on the device, then the backbone, in its own dtype. Cropping is the view's business, not the encoder's.

    Attributes:
        spec: the string that it was opened with.
        architecture: `FAMILY/NAME` that rebuilds the backbone, weights aside; None if it cannot be rebuilt by name.
        arguments: what else the rebuilding needs.
        embedding: what its numbers are: "pooled", "cls", "mean", "attention", "projected", "fc7" ...
        told: one line about the weights file that it was opened from: format, taken, dropped; "" if from none.
    """

    mean: Tensor
    scale: Tensor

    def __init__(
        self,
        backbone: nn.Module,
        *,
        spec: str,
        architecture: str | None = None,
        arguments: dict[str, Any] | None = None,
    ) -> None:
        super().__init__()
        self.backbone = backbone
        self.spec = spec
        self.architecture = architecture
        self.arguments = dict(arguments or {})
        self.width: int = backbone.width  # type: ignore[assignment]
        self.preprocessing: Preprocessing = backbone.preprocessing  # type: ignore[assignment]
        self.embedding: str = getattr(backbone, "embedding", "pooled")
        self.told = ""
        # not persistent: the state dict holds the backbone's weights and nothing else
        self.register_buffer("mean", torch.empty(1, 3, 1, 1), persistent=False)
        self.register_buffer("scale", torch.empty(1, 3, 1, 1), persistent=False)
        self._fill_normalisation()

    def _fill_normalisation(self) -> None:
        device = self.mean.device
        self.mean = (torch.tensor(self.preprocessing.mean, dtype=torch.float64) * 255).view(1, 3, 1, 1).float()
        self.scale = (torch.tensor(self.preprocessing.std, dtype=torch.float64) * 255).reciprocal().view(1, 3, 1, 1)
        self.mean, self.scale = self.mean.to(device), self.scale.float().to(device)

    def _apply(self, fn, recurse=True):
        # .half() and .bfloat16() cast every buffer; a mean rounded to 8 bits would shift each image
        super()._apply(fn, recurse)
        self._fill_normalisation()
        return self

    def forward(self, images: Tensor, *, resize: bool = True) -> Tensor:
        """With `resize=False` images of another size go through the backbone as they are.

        Raises: as `pixels`.
        """
        return self.backbone(self.pixels(images, resize=resize))

    def pixels(self, images: Tensor, *, resize: bool = True) -> Tensor:
        """What the backbone is given: resized, normalised, in its dtype.

        Raises: ValueError if `images` is not uint8 (B, 3, H, W); floats would be normalised twice, unnoticed."""
        if images.dtype != torch.uint8 or images.ndim != 4 or images.shape[1] != 3:
            raise ValueError(
                f"expected uint8 images (B, 3, H, W) with pixels 0–255, got {images.dtype} {tuple(images.shape)}: "
                "pass the pixels as they are, the encoder normalises them."
            )
        pixels = images
        size = self.preprocessing.size
        if resize and images.shape[2:] != (size, size):
            pixels = functional.interpolate(
                images.float(),
                size=(size, size),
                mode=self.preprocessing.interpolation,
                align_corners=False,
                antialias=True,
            ).clamp(0, 255)  # bicubic overshoots at edges
        normalised = normalise(pixels, self.mean, self.scale)
        parameter = next(self.backbone.parameters(), None)
        return normalised if parameter is None else normalised.to(parameter.dtype)


def normalise(pixels: Tensor, mean: Tensor, scale: Tensor) -> Tensor:
    """(pixels - mean) * scale in float32.

    On a CPU one image after the other, so that it stays in the processor's cache, and with mean and scale written out
    for every pixel, since a row of three is too short to be quick: 0.15 ms an image of 224 instead of 0.7 to 1.2, the
    same bits (one Zen 3 core). Compilers do this by themselves, and an exported graph must not hold the loop.

    Args:
        pixels: (B, 3, H, W) uint8 or float.
        mean, scale: (1, 3, 1, 1) float32.
    """
    if pixels.device.type != "cpu" or pixels.requires_grad or torch.compiler.is_compiling() or torch.jit.is_tracing():
        return (pixels.float() - mean) * scale
    normalised = torch.empty_like(pixels, dtype=torch.float32)
    mean, scale = (torch.empty_like(normalised[:1]).copy_(values) for values in (mean, scale))
    for image, result in zip(pixels.split(1), normalised.split(1), strict=True):
        torch.mul(image.float().sub_(mean) if image.dtype == torch.uint8 else image - mean, scale, out=result)
    return normalised


def open_encoder(spec: str, *, weights: Weights, size: int | None = None) -> Encoder:
    """Open the encoder that a string names, on the CPU, in eval mode, float32.

    Args:
        spec: `timm/NAME`, `torchvision/NAME` or `compress/NAME`, each with an optional `@FILE`, `@FORMAT:FILE` (an
            address in place of the file is fetched once), `@pretrained` or `@random`; or a run folder.
        weights: what a family's name without an `@` means here: `pretrained` for a teacher, `random` for a student.
        size: side of the square input in pixels, instead of the published one.
    Random weights come from torch's global generator; opening anything else leaves the generator as it was, so a
    student starts alike whether its teacher was opened before it or not.
    Raises: Refusal if the name is unknown (with the nearest one), the weights cannot be had or do not fit, the folder
        is no run, or the backbone does not take this size.
    """
    parsed = read_spec(spec)
    if size is not None and size < 1:
        raise Refusal(f"expected an input size of at least 1 pixel, got {size}.")
    with _refuse_size(spec, size):
        if parsed.kind == "run":
            encoder = load_encoder(Path(spec))
            if size not in (None, encoder.preprocessing.size):
                encoder = _at_size(encoder, size)
        elif parsed.kind in FAMILIES:
            architecture = f"{parsed.kind}/{parsed.name}"
            source = parsed.weights or weights
            if source == "random":
                filled = Filled(build(architecture, weights="random", size=size))
            else:
                with torch.random.fork_rng(devices=[]):
                    filled = open_weights(architecture, source, format=parsed.format, size=size)
            encoder = _encoder(filled.backbone, spec, architecture, size or filled.size, filled.arguments)
            encoder.told = filled.told
        elif parsed.kind in EXTERNAL:
            with torch.random.fork_rng(devices=[]):
                backbone = open_external(parsed, student=weights == "random", size=size)
            encoder = Encoder(backbone, spec=spec).eval()
            encoder.told = backbone.told  # type: ignore[assignment]
        else:
            raise _unknown(parsed)
        _check_width(encoder)
    return encoder


def own_size(spec: str) -> int | None:
    """Pixels of the input that a model has when nobody asks for another; None where that takes more than its name."""
    parsed = read_spec(spec)
    try:
        if parsed.kind == "run":
            home = model_folder(Path(spec))
            return None if home is None else json.loads((home / "model.json").read_text())["preprocessing"]["size"]
        if parsed.kind in FAMILIES:
            with torch.random.fork_rng(devices=[]), torch.device("meta"), warnings.catch_warnings():
                warnings.simplefilter("ignore")  # timm's, of random numbers that are not drawn
                backbone: Any = build(f"{parsed.kind}/{parsed.name}", weights="random", size=None)
            return backbone.preprocessing.size
    except Exception:  # a model that cannot be built without memory; whoever opens it hears of other troubles
        return None
    return None


def tell(encoder: Encoder) -> None:
    """Say on stderr, in one line, what was taken from the encoder's weights file and what was left; if from one."""
    if encoder.told and os.environ.get("RANK", os.environ.get("LOCAL_RANK", "0")) == "0":  # not once a process
        print(encoder.told, file=sys.stderr)


def _at_size(encoder: Encoder, size: int) -> Encoder:
    assert encoder.architecture is not None
    with torch.random.fork_rng(devices=[]):
        made_for, arguments = _split(encoder.arguments)
        backbone: Any = fill(
            encoder.architecture,
            lambda _: encoder.backbone.state_dict(),
            size=size,
            made_for=made_for,
            source=encoder.spec,
            arguments=arguments,
        )
    backbone.preprocessing = dataclasses.replace(encoder.preprocessing, size=size)
    return _encoder(backbone, encoder.spec, encoder.architecture, size, arguments)


def _encoder(
    backbone: nn.Module, spec: str, architecture: str, size: int | None, arguments: Mapping[str, Any]
) -> Encoder:
    """`arguments` with the size among them, if one was asked for: what `_split` takes apart again."""
    whole = {**arguments, **({} if size is None else {"size": size})}
    return Encoder(backbone, spec=spec, architecture=architecture, arguments=whole).eval()


def _split(arguments: Mapping[str, Any]) -> tuple[int | None, dict[str, Any]]:
    return arguments.get("size"), {name: value for name, value in arguments.items() if name != "size"}


def _unknown(parsed: Spec) -> Refusal:
    kinds = "timm/NAME, torchvision/NAME, compress/NAME or a run folder"
    if parsed.kind == "folder" and _is_of_transformers(Path(parsed.text)):
        return Refusal(f"expected {kinds}, got the folder {parsed.text!r} with a model of transformers in it: write "
                       f"transformers/{parsed.text}.")  # fmt: skip
    if parsed.kind == "folder":
        return Refusal(
            f"expected {kinds}, got the folder {parsed.text!r} with neither student/model.json nor model.json in it: "
            "name a finished run."
        )
    if parsed.kind == "file":
        return Refusal(f"expected {kinds}, got the file {parsed.text!r}: {_backbone_for(Path(parsed.text))}")
    from compress_ssl.backbones import from_timm, from_torchvision

    families = {"timm": from_timm.names(), "torchvision": from_torchvision.names(), "compress": own_names()}
    bare = parsed.name.partition("@")[0].rpartition("/")[2]
    full = {name: f"{family}/{name}" for family, names in families.items() for name in names}
    close = difflib.get_close_matches(bare, full, n=1, cutoff=0.7)
    hint = f"did you mean {full[close[0]]!r}?" if close else "check the path."
    return Refusal(f"expected {kinds}, got {parsed.text!r}, where nothing lies: {hint}")


def _is_of_transformers(folder: Path) -> bool:
    try:
        return "model_type" in json.loads((folder / "config.json").read_text())
    except (OSError, ValueError, TypeError):
        return False


def _backbone_for(file: Path) -> str:
    """The end of a refusal of a file without a backbone: what it is, and what to write."""
    asked = "weights need the backbone they are for, as in "
    try:
        name, found = formats.recognise(read_checkpoint(file), source=str(file))
    except Refusal:
        return f"{asked}torchvision/resnet50@{file}."
    title = formats.open_format(name).TITLE
    if found.architecture is None:
        return f"it is {title}'s, but {asked}torchvision/resnet50@{name}:{file}."
    return f"it is {title}'s {found.architecture}; {asked}{found.architecture}@{name}:{file}."


def _check_width(encoder: Encoder) -> None:
    """One black image through the backbone: does it give one embedding of the width it says, at this size?"""
    size = encoder.preprocessing.size
    with torch.no_grad():
        rows = encoder(torch.zeros(1, 3, size, size, dtype=torch.uint8))
    if not isinstance(rows, Tensor) or rows.shape != (1, encoder.width):
        got = tuple(rows.shape) if isinstance(rows, Tensor) else type(rows).__name__
        raise Refusal(
            f"expected one embedding of {encoder.width} numbers per image from {encoder.spec!r}, got {got}: "
            "choose a model that pools its features."
        )


@contextlib.contextmanager
def _refuse_size(spec: str, size: int | None) -> Iterator[None]:
    """With a size of the user's choice, a model that fails inside most likely cannot take it."""
    try:
        yield
    except Refusal:
        raise
    except (AssertionError, RuntimeError, TypeError, ValueError) as error:
        if size is None:
            raise
        raise Refusal(
            f"expected an input size that {spec!r} can take, got {size} pixels "
            f"({str(error).splitlines()[0] if str(error) else type(error).__name__}): choose another, or leave it out."
        ) from error


def save_encoder(encoder: Encoder, folder: Path) -> None:
    """Write `model.safetensors` and then `model.json` into `folder`, each atomically; floating weights as float32.

    Raises: ValueError if the encoder has no `architecture`: nothing could rebuild it from a file.
    """
    if encoder.architecture is None:
        raise ValueError(f"expected an encoder with an architecture name, got {encoder.spec!r} without: pass one.")
    description = {
        "format": FORMAT,
        "backbone": encoder.architecture,
        "arguments": encoder.arguments,
        "width": encoder.width,
        "preprocessing": dataclasses.asdict(encoder.preprocessing),
        "embedding": encoder.embedding,
    }
    folder.mkdir(parents=True, exist_ok=True)
    write_atomically(folder / "model.safetensors", pack_weights(encoder.backbone.state_dict()))
    write_atomically(folder / "model.json", json.dumps(description, indent=2) + "\n")


def load_encoder(folder: Path) -> Encoder:
    """Rebuild a saved encoder, on the CPU, in eval mode; strict, no network, torch's generator left as it was.

    Args:
        folder: holds `model.json`, or is a run folder whose `student/` does.
    Raises: Refusal if the folder holds no model, a damaged one, one of a newer format, or weights that do not fit it.
    """
    home = model_folder(folder)
    if home is None:
        raise Refusal(f"expected a saved model, got {str(folder)!r} without student/model.json or model.json in it.")
    file = home / "model.json"
    try:
        description = json.loads(file.read_text())
        family = description["backbone"].partition("/")[0]
        size, arguments = _split(description["arguments"])
        width = description["width"]
        values = description["preprocessing"]
        preprocessing = Preprocessing(**{**values, "mean": tuple(values["mean"]), "std": tuple(values["std"])})
        version = description["format"]
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise Refusal(
            f"expected a model's description in {str(file)!r}, got one that cannot be read "
            f"({type(error).__name__}: {error}): write the model again, or restore the file."
        ) from error
    if version != FORMAT or family not in FAMILIES:
        raise Refusal(
            f"expected format {FORMAT} and a backbone of {', '.join(FAMILIES)} in {str(file)!r}, got format "
            f"{version!r} and {description['backbone']!r}: use the compress-ssl that wrote it."
        )
    with torch.random.fork_rng(devices=[]):
        backbone: Any = build(description["backbone"], weights="random", size=size, arguments=arguments)
    if backbone.width != width:
        raise Refusal(
            f"expected {description['backbone']} to be {backbone.width} wide as built here, got {width} in "
            f"{str(file)!r}: restore the file, or use the version that wrote it."
        )
    fit_weights(backbone, read_weights(home / "model.safetensors"), source=str(home / "model.safetensors"))
    backbone.preprocessing = preprocessing
    backbone.embedding = description.get("embedding", backbone.embedding)  # older folders do not say
    return _encoder(backbone, str(folder), description["backbone"], size, arguments)


def parameter_count(encoder: nn.Module) -> int:
    """Number of parameters, trained or frozen; buffers such as batch norm's running statistics do not count."""
    return sum(parameter.numel() for parameter in encoder.parameters())


def multiply_adds(encoder: Encoder) -> int:
    """Multiply-adds for one image at the encoder's input size: half of what torch's flop counter says of one forward.

    Counts convolutions, matrix products and attention, as torch.utils.flop_counter does; normalisations, activations,
    pooling and the resize are left out, as is usual. Leaves no hook behind and changes no state: eval mode while it
    counts, then every module back in the mode it was in.
    """
    from torch.utils.flop_counter import FlopCounterMode

    size = encoder.preprocessing.size
    image = torch.zeros(1, 3, size, size, dtype=torch.uint8, device=encoder.mean.device)
    with _eval_mode(encoder), torch.no_grad(), FlopCounterMode(display=False) as counter:
        encoder(image)
    return counter.get_total_flops() // 2


def costs(encoder: Encoder) -> dict[str, int | None]:
    """`parameters` and `multiply_adds` of an encoder; None where nobody can say: of code that shows no weights."""
    told: dict[str, int | None] | None = getattr(encoder.backbone, "costs", None)  # of one that torch does not compute
    if told is not None:
        return told
    return {"parameters": parameter_count(encoder) or None, "multiply_adds": multiply_adds(encoder) or None}


@contextlib.contextmanager
def _eval_mode(module: nn.Module) -> Iterator[None]:
    modes = {part: part.training for part in module.modules()}
    learning = [parameter for parameter in module.parameters() if parameter.requires_grad]
    module.eval().requires_grad_(False)  # torch's counter fails where a parameter is passed to a module as its input
    try:
        yield
    finally:
        for part, training in modes.items():
            part.training = training
        for parameter in learning:
            parameter.requires_grad_(True)
