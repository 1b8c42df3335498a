"""Small embedded splits with everything an evaluation can ask for."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest

from compress_ssl.embeddings import Embeddings
from compress_ssl.evaluations import Embedded

LABELS = np.array([7, 2, 40, 11, 3])  # classes are neither contiguous nor sorted


def unit(rows: np.ndarray) -> np.ndarray:
    return (rows / np.linalg.norm(rows, axis=1, keepdims=True)).astype(np.float32)


def make_embedded(
    *, train: int = 61, test: int = 23, classes: int = 3, noise: float = 0.5, seed: int = 0, width: int = 11
) -> Embedded:
    """A student and its teacher, whose rows lie around one centre per class; `noise` decides how far.

    Student rows are (N, width), teacher and projected rows (N, width + 2), random views differ from epoch to epoch.
    """
    generator = np.random.default_rng(seed)
    centres = {side: generator.standard_normal((classes, width + 2)) for side in ("student", "teacher")}

    def around(side: str, kinds: np.ndarray, size: int, split: str) -> Embeddings:
        rows = centres[side][kinds] + noise * generator.standard_normal((len(kinds), width + 2))
        ids = tuple(f"{split}/{number}.png" for number in range(len(kinds)))
        return Embeddings(rows=unit(rows[:, :size]), labels=LABELS[kinds], ids=ids)

    shown, asked = np.arange(train) % classes, generator.integers(0, classes, test)
    views = [around("student", shown, width, "train") for _ in range(5)]
    teacher = Embedded(
        train=around("teacher", shown, width + 2, "train"), test=around("teacher", asked, width + 2, "test")
    )
    return Embedded(
        train=around("student", shown, width, "train"),
        test=around("student", asked, width, "test"),
        teacher=teacher,
        projected=around("teacher", asked, width + 2, "test"),
        augmented=lambda epoch: views[epoch % len(views)],
    )


@pytest.fixture(name="make_embedded", scope="session")
def _make_embedded() -> Callable[..., Embedded]:
    return make_embedded


@pytest.fixture
def embedded() -> Embedded:
    return make_embedded()
