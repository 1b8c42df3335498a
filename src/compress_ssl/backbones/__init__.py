"""Backbones: images -> one embedding each; and the one string that names a model everywhere.

A backbone is a module: float images (B, 3, H, W), any memory format -> (B, width), with two attributes of its own,
`width` and `preprocessing` (the input its authors publish). A file here whose name starts with `from_` adapts
somebody else's models; every other file is one of our own families and is found by being here:
`names() -> list[str]` says a few names for error messages, `build(name) -> backbone | None` builds any name that
belongs to it with random weights, and answers None to a name that does not.

A model is named `timm/NAME`, `torchvision/NAME` or `compress/NAME`, each with an optional `@FILE`, `@pretrained` or
`@random`; or by the path of a run folder. Reading such a string imports nothing heavy.
"""

from __future__ import annotations

import importlib
import pkgutil
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from compress_ssl.refusal import Refusal, nearest

if TYPE_CHECKING:
    from torch import nn

    from compress_ssl.transforms import Preprocessing

FAMILIES = ("timm", "torchvision", "compress")
Kind = Literal["timm", "torchvision", "compress", "run", "folder", "file", "missing"]


@dataclass(frozen=True, kw_only=True)
class Spec:
    """What a model's string says, before anything is opened.

    kind: the family; or what lies at the path: `run` (an encoder can be loaded from it), another `folder`, a `file`,
        or nothing (`missing`).
    name: the name within the family, or the path as written.
    weights: what stands after the `@`; None if there is none. A run never has one: it carries its weights.
    """

    text: str
    kind: Kind
    name: str
    weights: Literal["pretrained", "random"] | Path | None = None


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
        weights = source if source in ("pretrained", "random") else Path(source) if source else None
        return Spec(text=text, kind=family, name=name, weights=weights)  # type: ignore[arg-type]
    path = Path(text)
    kind: Kind = "missing"
    if path.is_dir():
        kind = "run" if model_folder(path) else "folder"
    elif path.exists():
        kind = "file"
    return Spec(text=text, kind=kind, name=text)


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


def publish(module: nn.Module, *, width: int, preprocessing: Preprocessing, head: tuple[str, ...] = ()) -> nn.Module:
    """Give a module the attributes that make it a backbone; its state dict keeps the names its authors use.

    Args:
        width: numbers in one embedding.
        head: names of the submodules that were cut off, so that their weights in a file are not called unexpected.
    """
    module.width = width  # type: ignore[assignment]
    module.preprocessing = preprocessing  # type: ignore[assignment]
    module.head_names = head  # type: ignore[assignment]
    return module
