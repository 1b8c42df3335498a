"""Backbones: images -> one embedding each; and the one string that names a model everywhere.

A backbone is a module: float images (B, 3, H, W), any memory format -> (B, width), with attributes of its own: `width`,
`preprocessing` (the input its authors publish) and `embedding` (what the numbers are, in a word). A file here whose
name starts with `from_` adapts somebody else's models; every other file is one of our own families and is found by
being here: `names() -> list[str]` says a few names for error messages, `build(name) -> backbone | None` builds any name
that belongs to it with random weights, and answers None to a name that does not.

Three kinds are opened as they are and can be teachers alone, for nothing here could build or train them:
`transformers/FOLDER_OR_HUB_NAME`, `FILE.onnx` (`FILE.onnx:OUTPUT` where it has several) and
`python/MODULE.PATH:FUNCTION`. Their file `from_KIND` has one function, `open_backbone(name, size=…) -> backbone`. One
that takes pixels as they are says so by its preprocessing, `AS_THEY_ARE`: mean 0, std 1/255. What is not in
its parameters but makes its rows (a file, a source text) is in its state dict as a hash.

A model is named `timm/NAME`, `torchvision/NAME` or `compress/NAME`, each with an optional `@FILE`, `@pretrained` or
`@random`; or by the path of a run folder. The file may stand behind the name of its format, `@moco_v2:FILE`, and be an
address, `@https://...`. Reading such a string imports nothing heavy.
"""

from __future__ import annotations

import importlib
import pkgutil
import re
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from compress_ssl import formats
from compress_ssl.refusal import Refusal, nearest

if TYPE_CHECKING:
    from torch import nn

    from compress_ssl.transforms import Preprocessing

FAMILIES = ("timm", "torchvision", "compress")
EXTERNAL = {  # kind: what a person calls one, and why it is no student
    "transformers": ("a model of transformers", "whose layers are not ours to build and save"),
    "onnx": ("an ONNX graph", "which is computed as it is"),
    "python": ("a Python callable", "whose code is not ours to save"),
}
Kind = Literal["timm", "torchvision", "compress", "transformers", "onnx", "python", "run", "folder", "file", "missing"]
AS_THEY_ARE: Any = {"mean": (0.0, 0.0, 0.0), "std": (1 / 255, 1 / 255, 1 / 255)}  # pixels 0-255, of a Preprocessing
ONNX_FILE = re.compile(r"(.+\.onnx)(?::([^/]+))?", re.IGNORECASE)


@dataclass(frozen=True, kw_only=True)
class Spec:
    """What a model's string says, before anything is opened.

    kind: the family, or another kind of encoder; or what lies at the path: `run` (an encoder can be loaded from it),
        another `folder`, a `file`, or nothing (`missing`).
    name: the name within the family, or the path as written.
    weights: what stands after the `@`; None if there is none. A run never has one: it carries its weights. An
        address (https://...) stays text.
    format: the name of the checkpoint's format, if one was written before the file; see formats/.
    """

    text: str
    kind: Kind
    name: str
    weights: Literal["pretrained", "random"] | Path | str | None = None
    format: str | None = None


def read_spec(text: str) -> Spec:
    """Read the string that names a model; looks at the disk for paths, imports no model library.

    Raises: Refusal if nothing stands between the family and the `@`, or nothing after the `@`.
    """
    family, slash, rest = text.partition("/")
    if slash and family in FAMILIES:
        name, at, source = rest.partition("@")
        if not name or (at and not source):
            raise Refusal(
                f"expected {family}/NAME, {family}/NAME@FILE, {family}/NAME@pretrained or {family}/NAME@random, "
                f"got {text!r}: write the missing part."
            )
        format, weights = _read_source(source, text)
        return Spec(text=text, kind=family, name=name, weights=weights, format=format)  # type: ignore[arg-type]
    if slash and family in ("transformers", "python"):
        form = "transformers/FOLDER or transformers/HUB_NAME"
        if family == "python":
            form = "python/MODULE.PATH:FUNCTION"
        if not rest or (family == "python" and not all(rest.partition(":"))):
            raise Refusal(f"expected {form}, got {text!r}: write the missing part.")
        return Spec(text=text, kind=family, name=rest)  # type: ignore[arg-type]
    if ONNX_FILE.fullmatch(text):
        return Spec(text=text, kind="onnx", name=text)
    path = Path(text)
    kind: Kind = "missing"
    if path.is_dir():
        kind = "run" if model_folder(path) else "folder"
    elif path.exists():
        kind = "file"
    return Spec(text=text, kind=kind, name=text)


def _read_source(source: str, text: str) -> tuple[str | None, str | Path | None]:
    """What stands after the `@`: the format if one is named, and the weights."""
    if source in ("pretrained", "random", ""):
        return None, source or None
    word, colon, rest = source.partition(":")
    format = None
    if colon and word in formats.names():
        if not rest:
            raise Refusal(f"expected {text}FILE, got {text!r}: write the file of {word}'s format after the colon.")
        format, source = word, rest
    elif colon and not rest.startswith("//") and not Path(source).exists() and re.fullmatch(r"[A-Za-z][\w.-]+", word):
        raise Refusal(
            f"expected a checkpoint format before the ':' in {text!r}, got {word!r}: {nearest(word, formats.names())}"
        )
    if re.match(r"[a-z0-9]+://", source):
        if not source.startswith("https://"):
            raise Refusal(f"expected an address that begins with https://, got {source!r}: use that, or a local file.")
        return format, source
    return format, Path(source)


def model_folder(path: Path) -> Path | None:
    """Where `model.json` lies: in the folder itself, or in the `student/` of a run folder; None if in neither."""
    return next((folder for folder in (path / "student", path) if (folder / "model.json").is_file()), None)


def own_names() -> list[str]:
    """Names under `compress/` worth telling a person; families with a number in the name accept more of them."""
    return sorted(name for family in _own_families() for name in family.names())


def build_own(name: str) -> nn.Module:
    """Build one of our own backbones with random weights drawn from torch's global generator.

    Raises: Refusal with the nearest name if no family here knows it.
    """
    for family in _own_families():
        backbone = family.build(name)
        if backbone is not None:
            return backbone
    raise Refusal(f"expected a backbone of compress/, got {name!r}: {nearest(name, own_names())}")


def _own_families():
    files = sorted(entry.name for entry in pkgutil.iter_modules(__path__) if not entry.name.startswith("from_"))
    return [importlib.import_module(f"{__name__}.{file}") for file in files]


def open_external(spec: Spec, *, student: bool, size: int | None) -> nn.Module:
    """Open a backbone of a kind in `EXTERNAL`, on the CPU; it has an attribute `told`, a line about what was taken.

    Raises: Refusal if it is to be a student, what it needs is not installed, it cannot be read, or is no encoder.
    """
    if student:
        what, why = EXTERNAL[spec.kind]
        raise Refusal("expected a student that can be trained and saved (timm/NAME, torchvision/NAME, compress/NAME "
                      f"or a run folder), got {spec.text!r}, {what}, {why}: name it as the teacher.")  # fmt: skip
    return importlib.import_module(f"{__name__}.from_{spec.kind}").open_backbone(spec.name, size=size)


def publish(
    module: nn.Module,
    *,
    width: int,
    preprocessing: Preprocessing,
    head: tuple[str, ...] = (),
    embedding: str = "pooled",
) -> nn.Module:
    """Give a module the attributes that make it a backbone; its state dict keeps the names its authors use.

    Args:
        width: numbers in one embedding.
        embedding: what the numbers are: "pooled" (mean over the positions of a convolutional map), "cls" (class
            token), "mean" (over patch tokens), "attention" (attention-pooled), "projected" (CLIP's shared space), ...
        head: names of the submodules that were cut off, so that their weights in a file are not called unexpected.
    """
    module.width = width  # type: ignore[assignment]
    module.preprocessing = preprocessing  # type: ignore[assignment]
    module.head_names = head  # type: ignore[assignment]
    module.embedding = embedding  # type: ignore[assignment]
    return module
