"""Methods that make a teacher, self-supervised but for one: pictures -> a trained backbone. One file a method.

Each file has `Config`, `make_view(config, size) -> View`, `make_learner(config, encoder, ranks=…) -> Learner`, which is
what is trained, and `Method(config, learner, images=…, fabric=…)`, which keeps whatever else the method remembers:

    views(batch, generator) -> Views        colours changed: what the learner sees, and what its slow copy sees
    keys(views, generator) -> key           the slow copy's rows, or None; without gradient
    loss(query, key, index, progress)       of what the learner made of its views; changes nothing
    restrain(progress)                      before the optimizer's step: gradients that are not to be followed
    update(query, key, index, progress)     after it: bank, centre, slow copy
    state_dict(), load_state_dict(state)    all of that, for a resumed run

`progress` is the share of the training that is done, in [0, 1]. Methods compare the images of all processes.
A file that says `LABELLED = True` learns from labels: its make_learner is also given classes=…, their number, and its
Method labels=…, (N,) int64 of the training images. No other method is given any.
"""

from __future__ import annotations

import importlib
import math
import pkgutil
from dataclasses import fields
from types import ModuleType
from typing import Any, NamedTuple

import numpy as np
from torch import Tensor

from compress_ssl.datasets import ImageSet
from compress_ssl.refusal import Refusal, nearest


class Views(NamedTuple):
    """Lists of (n, 3, s, s) uint8, one tensor a size, in each all first views first."""

    query: list[Tensor]  # for the learner
    key: list[Tensor]  # for its slow copy


# what a number of a method's Config may be -> whether it is
RANGES = {
    "a number above 0": lambda value: 0 < value < math.inf,
    "a number in [0, 1]": lambda value: 0 <= value <= 1,
    "a number in [0, 1)": lambda value: 0 <= value < 1,
    "0 or more": lambda value: 0 <= value < math.inf,
    "at least 1": lambda value: 1 <= value < math.inf,
    "at least 2": lambda value: 2 <= value < math.inf,
}


def check(config: Any, **expected: str) -> None:
    """Refuse a number that no training could use, by the name of its option; None is left to mean what it means.

    Args:
        expected: field -> one of RANGES.
    """
    for name, told in expected.items():
        value = getattr(config, name)
        if value is not None and not RANGES[told](value):
            usual = next(field.default for field in fields(config) if field.name == name)
            raise Refusal(f"--method.{name.replace('_', '-')} expected {told}, got {value}: leave it out for {usual}")


def classes_of(method: ModuleType, images: ImageSet) -> int | None:
    """Number of classes of the images, for a method that learns from labels; None for the others.

    Raises: Refusal if an image has no label, or all have the same.
    """
    if not getattr(method, "LABELLED", False):
        return None
    name, missing = method.Config().name, np.flatnonzero(images.labels < 0)
    if len(missing):
        raise Refusal(f"--method {name} expected a label for every training image, got none for {len(missing)} of "
                      f"{len(images)}, {images.ids[missing[0]]} the first: label or remove them, or use a method that "
                      "needs none, such as simclr")  # fmt: skip
    if len(np.unique(images.labels)) < 2:
        raise Refusal(
            f"--method {name} expected images of at least two classes in {images.name}, got one: check --data"
        )
    return max(len(images.classes), int(images.labels.max()) + 1)


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
