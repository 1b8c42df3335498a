"""Embedded splits -> metrics. One file of this folder is one evaluation, and its name is the name in configs.

A file holds `Config`, a frozen dataclass; `unfit(embedded)`, why it cannot be computed here, or None; and
`evaluate(embedded, config)`, metric names to fractions in [0, 1]. A metric's spread over repeats is called like it with
`_std` or `_interval` behind. What takes much longer than the others says `ON_REQUEST = True`, and is done only where it
is named. What a number cannot tell goes into `tables(embedded, config)`, which a file may have, too: names, which begin
with the file's, to {"rows": names, "columns": names, "counts": one list a row}. A dotted name reaches a module outside
the package.
"""

from __future__ import annotations

import importlib
import pkgutil
import warnings
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, Protocol, cast

import numpy as np
import torch
from torch import Tensor

from compress_ssl.clustering import k_means
from compress_ssl.embeddings import Embeddings
from compress_ssl.neighbours import nearest_neighbours, own_positions
from compress_ssl.refusal import Refusal, nearest

AT_LEAST = 50  # neighbours searched for, as many as neighbour_overlap will ask for after nearest_neighbour's 20
SAME_ROW = 1e-4  # 1 - cosine of one image embedded twice; batches of another size change a row by 1e-6


@dataclass(frozen=True, kw_only=True, eq=False)
class Embedded:
    """Both splits of a data set as one encoder sees them: all that an evaluation gets to see.

    Args:
        train: the gallery, and what is fitted on; evaluation view.
        test: the queries, and what is scored; evaluation view.
        teacher: the same images in the same order in the teacher's space; for the teacher, another look at itself.
        projected: the test images as unit rows in the teacher's space, for a student that has a projector.
        augmented: epoch -> the train images under that epoch's random views.
        device: where the arithmetic is done; it changes no metric beyond rounding.
        classes: the name of each label, for tables; what has no name here is called by its number.
    Raises: Refusal if the parts do not hold the same images or do not fit each other.
    """

    train: Embeddings
    test: Embeddings
    teacher: Embedded | None = None
    projected: Embeddings | None = None
    augmented: Callable[[int], Embeddings] | None = None
    device: str = "cpu"
    classes: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if self.train.rows.shape[1] != self.test.rows.shape[1]:
            raise Refusal(
                f"expected train and test rows of one width, got {self.train.rows.shape[1]} and "
                f"{self.test.rows.shape[1]}: embed both with the same encoder."
            )
        if self.teacher is not None:
            require_same_images("the teacher's train rows", self.teacher.train, self.train)
            require_same_images("the teacher's test rows", self.teacher.test, self.test)
        if self.projected is not None:
            require_same_images("the projected test rows", self.projected, self.test)

    @property
    def labelled(self) -> bool:
        """Whether both splits hold labelled images; those without a label are then left out."""
        return bool((self.train.labels >= 0).any() and (self.test.labels >= 0).any())

    def labelled_part(self) -> Embedded:
        """The images of both splits that have a label, without the teacher; itself where all have one.

        One object whoever asks, so that what is found for one evaluation serves the others.
        """
        train, test = labelled_rows(self.train), labelled_rows(self.test)
        if train is self.train and test is self.test:
            return self
        if "labelled" not in self._searched:
            part = Embedded(train=train, test=test, device=self.device, classes=self.classes)
            self._searched["labelled"] = part
        return cast(Embedded, self._searched["labelled"])

    def beside(self, teacher: Embedded | None) -> Embedded:
        """The same rows compared with another teacher, or with none; what was searched for one serves the other."""
        other = replace(self, teacher=teacher)
        other.__dict__["_searched"] = self._searched
        return other

    def clusters(self, count: int, **options: Any) -> tuple[np.ndarray, np.ndarray]:
        """`clustering.k_means` on the train rows, done once for each number of clusters and each set of options.

        Returns: centroids (K, D) float32 and assignments (N,) int64; not to be written to.
        """
        asked = ("clusters", count, *sorted(options.items()))
        if asked not in self._searched:
            self._searched[asked] = k_means(self.train.rows, clusters=count, **options)
        return cast(tuple[np.ndarray, np.ndarray], self._searched[asked])

    def class_name(self, label: int) -> str:
        """What the class of a label is called."""
        return self.classes[label] if 0 <= label < len(self.classes) else str(label)

    def nearest(self, count: int, *, own: Tensor) -> np.ndarray:
        """Train rows nearest to each test row, nearest first; searched for once, whoever asks and for how many fewer.

        A teacher is asked for every student, and a student by several evaluations.

        Args:
            count: K, capped at the number of rows there are to return.
            own: (Q,) where in `train` the query's own image is, -1 where it is not; never returned.
        Returns: (Q, K) int64 positions in `train`; not to be written to.
        """
        known, own = self._searched, own.cpu()
        if "found" not in known or known["asked"] < count or not torch.equal(known["own"], own):
            queries, gallery = (tensor(split.rows, device=self.device) for split in (self.test, self.train))
            most = max(count, AT_LEAST)
            found = nearest_neighbours(queries, gallery, count=most, own=own.to(self.device))[1].cpu().numpy()
            known.update(asked=most, own=own, found=found)
        return known["found"][:, :count]

    @cached_property
    def _searched(self) -> dict[Any, Any]:
        return {}


class Evaluation(Protocol):
    """What a file of this folder offers."""

    Config: type[Any]

    def unfit(self, embedded: Embedded) -> str | None:
        """Why this cannot be computed here, such as "needs labels"; None when it can."""

    def evaluate(self, embedded: Embedded, config: Any) -> dict[str, float]:
        """Metric names to fractions in [0, 1]."""


def names() -> list[str]:
    """The evaluations of this package, in alphabetical order."""
    return sorted(module.name for module in pkgutil.iter_modules(__path__))


def usual() -> list[str]:
    """Those that are done where none is named: all but the ones on request, in alphabetical order."""
    return [name for name in names() if not getattr(find(name), "ON_REQUEST", False)]


def find(name: str) -> Evaluation:
    """The evaluation called `name`: a file of this folder, or the dotted name of a module elsewhere.

    Raises: Refusal if there is none, with the nearest name, or if the module lacks a part of an evaluation.
    """
    if name in names():
        return cast(Evaluation, importlib.import_module(f"{__name__}.{name}"))
    module = _outside(name) if "." in name else None
    if module is None:
        raise Refusal(f"expected an evaluation or the dotted name of a module, got {name!r}: {nearest(name, names())}")
    missing = [part for part in ("Config", "unfit", "evaluate") if not hasattr(module, part)]
    if missing:
        raise Refusal(
            f"expected Config, unfit and evaluate in the module {name!r}, got one without {', '.join(missing)}: "
            "write it like the files of compress_ssl.evaluations."
        )
    return cast(Evaluation, module)


def labelled_rows(embeddings: Embeddings) -> Embeddings:
    """The images that have a label; the same table when all have one."""
    kept = embeddings.labels >= 0
    if kept.all():
        return embeddings
    ids = tuple(name for name, keep in zip(embeddings.ids, kept, strict=True) if keep)
    return Embeddings(embeddings.rows[kept], embeddings.labels[kept], ids)


def unknown_rows(embedded: Embedded) -> Embeddings:
    """The labelled test images that are not train images, too (same id, same row)."""
    test = labelled_rows(embedded.test)
    unknown = own_rows(test, embedded.train).numpy() < 0
    if unknown.all():
        return test
    ids = tuple(name for name, keep in zip(test.ids, unknown, strict=True) if keep)
    return Embeddings(test.rows[unknown], test.labels[unknown], ids)


def own_rows(queries: Embeddings, gallery: Embeddings, *, device: str = "cpu") -> Tensor:
    """Where each query stands in the gallery, for leave-one-out: the same id and the same row.

    Two splits may well give two different images one id (cat/1.png of train and of test), hence the look at the row.

    Returns: (Q,) int64 on `device`, -1 for a query that is not in the gallery.
    """
    own = own_positions(queries.ids, gallery.ids)
    found = np.flatnonzero(own >= 0)
    cosines = np.einsum("qd,qd->q", queries.rows[found], gallery.rows[own[found]])
    own[found[cosines < 1 - SAME_ROW]] = -1
    return torch.from_numpy(own).to(device)


def tensor(rows: np.ndarray, *, device: str) -> Tensor:
    """An array on `device`; on the CPU it shares the caller's memory, so only read it."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*not writable")  # a memory map opened for reading is fine
        return torch.from_numpy(rows).to(device)


def require_same_images(what: str, found: Embeddings, expected: Embeddings) -> None:
    """Refusal unless both hold the same images in the same order."""
    if found.ids != expected.ids:
        agree = [one == other for one, other in zip(found.ids, expected.ids, strict=False)]
        place = agree.index(False) if False in agree else len(agree)
        raise Refusal(
            f"expected {what} to hold the same {len(expected.ids)} images in the same order, got {len(found.ids)} "
            f"images that differ from position {place} on: embed the same data again."
        )


def _outside(name: str) -> Any:
    """The module of a dotted name, None if there is none; an error inside it keeps its own traceback."""
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as error:
        if error.name is not None and f"{name}.".startswith(f"{error.name}."):
            return None
        raise
