"""Objectives: query, target, index -> loss. One file an objective; they see embeddings, never images.

Each file has `Config` (whose `name` is the file's) and `Objective`:

    Objective(config, width=…, target_width=…, images=…, device=…, seed=…, group=…), width and target_width of the rows;
                          each names what it needs and leaves the rest in **_
    temperature           "auto" is replaced by a number before the first step (calibration.py), from config.perplexity;
                          None: there is none
    bank.size             anchors at most, where there is a bank
    stored_anchors        True: all stored targets are given to fill(target, index) before the first step
    space                 "teacher": queries are compared with its rows, and are as wide; "own": of any width
    momentum              of the slow copy that makes the keys; None: the query without gradient is the key
    objective(query, target, index) -> scalar, changes nothing
    objective.update(key, target, index), after backward
    state_dict, load_state_dict

What only some need, and others leave out:

    projector             of the Config or Objective: the ProjectorConfig that --projector stands for if it is not given
    terms                 name -> objective, of one that is a sum of them (weighted.leaves)
    space                 may be the Config's instead, where options decide it
    trained               nn.Module that learns together with the student: heads of the objective's own; its state is
                          kept for it, the gradient averaged over processes
    reads_key             True: it is called as objective(query, target, index, key); gradients do not reach the key
    key_view              "teacher": the slow copy sees the picture as the teacher does, not in the student's colours
    fits_targets          True: fit(target, index) is called once before the first step with the (N, D_t) rows of all
                          usable training images in the evaluation view; what it finds is in the state dict.
                          fit_randomly(generator) makes that up, for whoever measures a step
    tokens                True: behind each row come the patch tokens of its picture, (B, D + T · D_token) on both sides
                          (patch_tokens.py); token_side is set before the first step, T is its square; live teachers
    within_batch          True: the images of a batch are compared with one another, those of all processes
                          (whole_batch.py), so that it is not the mean of its parts' losses: --accumulate is refused
    config.share_of       share_of(count) -> share of so many anchors that `auto` makes neighbours; or config.perplexity
    centre_on, seen       centre_on(mean) is called before the first step with the mean (D_t,) of the teacher's rows of
                          the gallery; seen(rows) gives rows as they are compared, for `auto` temperatures
"""

from __future__ import annotations

import importlib
import pkgutil
from types import ModuleType
from typing import Any

from compress_ssl.bank import BankConfig
from compress_ssl.projector import ProjectorConfig, Space
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


def space_of(config: Any) -> Space:
    """In which space the objective of this configuration compares the student's rows."""
    return getattr(config, "space", None) or find(config.name).Objective.space


def neighbour_share(config: Any, anchors: int) -> float:
    """Share of so many anchors that `auto` temperatures make neighbours."""
    asked = getattr(config, "share_of", None)
    return asked(anchors) if asked else getattr(config, "perplexity", BankConfig.perplexity)


def projector_of(config: Any, asked: ProjectorConfig) -> ProjectorConfig:
    """The projector that is asked for; where nothing is asked, the one that the objective is published with."""
    if asked != ProjectorConfig():
        return asked
    return getattr(config, "projector", None) or getattr(find(config.name).Objective, "projector", None) or asked
