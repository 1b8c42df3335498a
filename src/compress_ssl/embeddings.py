"""Embeddings: unit rows with the ids and labels of their images, in memory. On disk they are a `table`."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

ROWS_AT_ONCE = 8192  # read from a disk where all of them are wanted


@dataclass(frozen=True)
class Embeddings:
    """N unit rows in memory.

    rows: (N, D) float32, each of length one.
    labels: (N,) int64, -1 where unlabelled.
    ids: N sample ids.
    """

    rows: np.ndarray
    labels: np.ndarray
    ids: tuple[str, ...]

    def __post_init__(self) -> None:
        if self.rows.ndim != 2 or not len(self.rows) == len(self.labels) == len(self.ids):
            raise ValueError(
                f"expected as many rows as labels and ids, got rows {self.rows.shape}, {len(self.labels)} labels, "
                f"{len(self.ids)} ids"
            )
        lengths = np.linalg.norm(self.rows, axis=1)
        if not np.all(np.abs(lengths - 1) < 1e-3):  # also False for NaN
            raise ValueError(f"expected unit rows, got lengths from {lengths.min()} to {lengths.max()}")
