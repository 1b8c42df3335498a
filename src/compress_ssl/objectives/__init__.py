"""Objectives: query, target, index -> loss. One file an objective; they see embeddings, never images.

Each file has `Config` (whose `name` is the file's) and `Objective`:

    Objective(config, width=…, target_width=…, images=…, device=…, seed=…, group=…), width and target_width of the rows
    temperature           "auto" is replaced by a number before the first step (calibration.py), from config.perplexity;
                          None: there is none
    bank.size             anchors at most, where there is a bank
    stored_anchors        True: all stored targets are given to fill(target, index) before the first step
    space                 "teacher": queries are compared with its rows, and are as wide; "own": of any width
    momentum              of the slow copy that makes the keys; None: the query without gradient is the key
    objective(query, target, index) -> scalar, changes nothing
    objective.update(key, target, index), after backward
    state_dict, load_state_dict
"""

from __future__ import annotations

import importlib
import pkgutil
from types import ModuleType

from compress_ssl.refusal import Refusal, nearest


def names() -> list[str]:
    """The objectives that come with the package, by file name."""
    return sorted(module.name for module in pkgutil.iter_modules(__path__))


def find(name: str) -> ModuleType:
    """The module of an objective; a dotted name reaches one outside the package."""
    if "." in name:
        try:
            return importlib.import_module(name)
        except ModuleNotFoundError as trouble:
            raise Refusal(f"--objective expected a module that can be imported, got {name!r}: {trouble}") from trouble
    if name not in names():
        raise Refusal(f"--objective expected an objective, got {name!r}: {nearest(name, names())}")
    return importlib.import_module(f"{__name__}.{name}")
