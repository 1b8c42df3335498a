"""Backbones that are Python: `python/MODULE.PATH:FUNCTION`, a callable of the user's, images -> rows.

    def encode(images):                  # (B, 3, H, W) uint8, on the device of the run
        return model(images / 255)       # (B, D) floating point, on any device
    encode.size = 384                    # optional, 224 without it; as are width, crop_fraction, interpolation and crop

It is found as `python -m` would find it: installed, on PYTHONPATH or in the current folder. Torch modules that it
refers to by name, or is itself, become the backbone's: moved to the device, put in eval mode, counted, and part of
what a resumed run compares. So is the text of the file it stands in. What it loads while it runs is not seen.
"""

from __future__ import annotations

import hashlib
import importlib
import inspect
import sys
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from compress_ssl.backbones import AS_THEY_ARE, publish
from compress_ssl.refusal import Refusal, nearest
from compress_ssl.transforms import Preprocessing

TRIED = 2  # images that a callable is tried with: one alone may hide that rows are not one an image
OPTIONS = ("interpolation", "crop_fraction", "crop")  # of Preprocessing, that a callable may set


def open_backbone(name: str, *, size: int | None) -> nn.Module:
    """Import the callable and try it once, on random pixels.

    Args:
        size: side of the square input in pixels; None: the callable's `size`, or 224.
    Raises: Refusal if it cannot be imported, fails, or does not give one finite floating row an image.
    """
    function = _import(name)
    try:
        size = size or int(getattr(function, "size", 224))
        options = {option: getattr(function, option) for option in OPTIONS if hasattr(function, option)}
        preprocessing = Preprocessing(size=size, **AS_THEY_ARE, **options)
    except (TypeError, ValueError) as error:
        raise Refusal(
            f"expected a whole number of pixels as the size of python/{name}, got {error}: mend it"
        ) from error
    backbone = PythonBackbone(function, name).eval()
    backbone.told = f"{name}: rows as it makes them, of {size} pixels as they are"
    width = _tried(function, name, size)
    return publish(backbone, width=width, preprocessing=preprocessing, embedding="its own")


class PythonBackbone(nn.Module):
    """Float pixels 0-255 (B, 3, H, W) -> what the callable makes of them as uint8, (B, D) float32."""

    told: str

    def __init__(self, function: Callable[[Tensor], Tensor], name: str):
        super().__init__()
        self.function = function  # registered as a part of this module if it is one itself
        if not isinstance(function, nn.Module):
            self.parts = nn.ModuleList(dict.fromkeys(_modules(function)))
        source = torch.frombuffer(bytearray(_source_hash(function, name)), dtype=torch.uint8)
        self.register_buffer("source_sha256", source)

    def forward(self, images: Tensor) -> Tensor:
        return self.function(images.round().to(torch.uint8)).to(images.device).float()


def _import(name: str) -> Any:
    path, _, attribute = name.partition(":")
    here = str(Path.cwd())
    if here not in sys.path:
        sys.path.append(here)  # last: a file here never stands in for an installed module
    try:
        module = importlib.import_module(path)
    except Exception as error:
        missing = isinstance(error, ModuleNotFoundError) and error.name and f"{path}.".startswith(f"{error.name}.")
        advice = "run from its folder, or put that on PYTHONPATH" if missing else f"mend it, or try `import {path}`"
        raise Refusal(f"expected a Python module that can be imported, got {path!r} and "
                      f"{type(error).__name__}: {_first_line(error)}: {advice}") from error  # fmt: skip
    found: Any = module
    for part in attribute.split("."):
        if not hasattr(found, part):
            there = [other for other in vars(module) if not other.startswith("_")]
            raise Refusal(f"expected a function of {path}, got {attribute!r}: {nearest(attribute, there)}")
        found = getattr(found, part)
    if isinstance(found, type) or not callable(found):
        kind = f"the class {attribute}" if isinstance(found, type) else f"{attribute} of type {type(found).__name__}"
        raise Refusal(f"expected a function or another callable object in {path}, got {kind}: write "
                      f"`encode = {attribute}(…)` there, or a function, and name that")  # fmt: skip
    return found


def _tried(function: Callable[[Tensor], Tensor], name: str, size: int) -> int:
    """The width of its rows."""
    expected = f"expected {name} to make of ({TRIED}, 3, {size}, {size}) uint8 images ({TRIED}, D) floating-point rows"
    advice = "mend it"
    pixels = torch.randint(0, 256, (TRIED, 3, size, size), generator=torch.Generator().manual_seed(0))
    try:
        with torch.no_grad():
            rows = function(pixels.to(torch.uint8))
    except Exception as error:
        raise Refusal(f"{expected}, got {type(error).__name__} in {_place(error)}: {_first_line(error)}: {advice}"
                      ) from error  # fmt: skip
    if not isinstance(rows, Tensor):
        raise Refusal(f"{expected}, got {type(rows).__name__}: return a torch tensor")
    if rows.ndim != 2 or len(rows) != TRIED or not rows.shape[1] or not rows.is_floating_point():
        raise Refusal(f"{expected}, got {tuple(rows.shape)} {rows.dtype}: {advice}")
    if not rows.isfinite().all():
        raise Refusal(f"{expected}, got NaN or infinity: {advice}")
    told = getattr(function, "width", rows.shape[1])
    if told != rows.shape[1]:
        raise Refusal(f"expected {name} to make rows as wide as its attribute `width`, {told}, got {rows.shape[1]}: "
                      "mend one of them")  # fmt: skip
    return rows.shape[1]


def _modules(function: Any) -> Iterator[nn.Module]:
    """Torch modules that a callable refers to: by a global name, in its closure, or as attributes of its object."""
    owner = getattr(function, "__self__", None)
    code = getattr(function, "__func__", function)
    if not inspect.isfunction(code):
        owner, code = function, type(function).__call__
    if isinstance(owner, nn.Module):
        yield owner
    values = list(getattr(owner, "__dict__", {}).values())
    if inspect.isfunction(code):
        seen = inspect.getclosurevars(code)
        values += [*seen.nonlocals.values(), *seen.globals.values()]
    yield from (value for value in values if isinstance(value, nn.Module))


def _source_hash(function: Any, name: str) -> bytes:
    """Of the dotted name and of the files that the callable is named and defined in."""
    digest = hashlib.sha256(name.encode())
    modules = dict.fromkeys(
        (name.partition(":")[0], getattr(function, "__module__", None) or type(function).__module__)
    )
    for module in modules:
        file = getattr(sys.modules.get(module), "__file__", None)
        if file and Path(file).suffix == ".py":
            digest.update(Path(file).read_bytes())
    return digest.digest()


def _place(error: Exception) -> str:
    """File and line of the user's own code that led to it; of libraries only if there is none."""
    frames = traceback.extract_tb(error.__traceback__)[1:]  # the first is ours
    own = [frame for frame in frames if "site-packages" not in Path(frame.filename).parts] or frames
    return f"{own[-1].filename}, line {own[-1].lineno}" if own else "its call"


def _first_line(error: Exception) -> str:
    return (str(error).splitlines() or [""])[0]
