"""How an encoder's rows lie on the sphere: their cosines, and how many directions they fill.

The participation ratio (Σλ)² / Σλ² of the covariance's eigenvalues λ is the number of equally strong directions that
would have the same ratio; it is computed from traces, without eigenvalues: tr(C)² / tr(C²).
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

QUANTILES = (0.01, 0.05, 0.5, 0.95, 0.99)
PAIRS = 200_000  # of random rows: the mean of their cosines is then known to 0.0005 and better


class Cosines(NamedTuple):
    """Of random pairs of different images; quantiles at QUANTILES."""

    mean: float
    std: float
    quantiles: tuple[float, ...]


def cosines(rows: np.ndarray, *, seed: int, pairs: int = PAIRS) -> Cosines:
    """Cosines of random pairs of rows; of all pairs where there are no more than `pairs`.

    Args:
        rows: (N, D) unit rows, N >= 2.
    """
    count = len(rows)
    if count * (count - 1) // 2 <= pairs:
        one, other = np.triu_indices(count, 1)
    else:
        random = np.random.default_rng(seed)
        one = random.integers(0, count, pairs)
        other = (one + random.integers(1, count, pairs)) % count
    found = np.concatenate(
        [
            np.einsum("nd,nd->n", rows[one[start : start + 8192]], rows[other[start : start + 8192]])
            for start in range(0, len(one), 8192)
        ]
    ).astype(np.float64)
    quantiles = tuple(float(value) for value in np.quantile(found, QUANTILES))
    return Cosines(float(found.mean()), float(found.std()), quantiles)


def effective_dimension(rows: np.ndarray) -> float:
    """Participation ratio of the covariance of (N, D) rows: from 1 to min(N - 1, D); 0 if all rows are equal."""
    centred = rows.astype(np.float64) - rows.mean(axis=0, dtype=np.float64)
    gram = centred.T @ centred if rows.shape[1] <= len(rows) else centred @ centred.T  # the same eigenvalues
    total = float(np.trace(gram))
    return total**2 / float((gram**2).sum()) if total > 1e-9 else 0.0
