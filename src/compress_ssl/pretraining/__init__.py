"""Self-supervised methods that make a teacher: pictures without labels -> a trained backbone. One file a method.

Each file has `Config`, `make_view(config, size) -> View` and `Method(config, width=…)`, a module whose `change` alters
views on the device, whose `forward` maps embeddings of V views (V·B, D) to what its `loss` compares.
"""

from __future__ import annotations

import importlib
import pkgutil
from types import ModuleType

from compress_ssl.refusal import Refusal, nearest


def names() -> list[str]:
    """The methods that come with the package, by file name."""
    return sorted(module.name for module in pkgutil.iter_modules(__path__))


def find(name: str) -> ModuleType:
    """The module of a method; a dotted name reaches one outside the package."""
    if "." in name:
        try:
            return importlib.import_module(name)
        except ModuleNotFoundError as trouble:
            raise Refusal(f"--method expected a module that can be imported, got {name!r}: {trouble}") from trouble
    if name not in names():
        raise Refusal(f"--method expected a pretraining method, got {name!r}: {nearest(name, names())}")
    return importlib.import_module(f"{__name__}.{name}")
