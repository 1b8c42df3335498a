"""How rows lie on the sphere."""

from __future__ import annotations

import numpy as np
import pytest

from compress_ssl.checkup.spread import cosines, effective_dimension


def unit(rows: np.ndarray) -> np.ndarray:
    return (rows / np.linalg.norm(rows, axis=1, keepdims=True)).astype(np.float32)


@pytest.mark.parametrize(("count", "width"), [(13, 5), (5, 13)])
def test_numbers_are_those_of_a_naive_computation(count, width):
    """A wrong spread would send someone after another temperature or another teacher."""
    rows = unit(np.random.default_rng(0).normal(size=(count, width)) + 0.3)
    naive = [float(rows[i] @ rows[j]) for i in range(count) for j in range(i)]
    found = cosines(rows, seed=0)
    assert found.mean == pytest.approx(np.mean(naive), abs=1e-6)
    assert found.std == pytest.approx(np.std(naive), abs=1e-6)
    assert found.quantiles[2] == pytest.approx(np.median(naive), abs=1e-6)
    eigenvalues = np.linalg.eigvalsh(np.cov(rows.astype(np.float64).T))
    assert effective_dimension(rows) == pytest.approx(eigenvalues.sum() ** 2 / (eigenvalues**2).sum(), rel=1e-5)


def test_a_sample_of_pairs_tells_the_same():
    """Of 5000 rows there are 12 million pairs; some must do, never a row with itself, and the same ones again."""
    rows = unit(np.random.default_rng(0).normal(size=(97, 7)) + 0.5)
    every, part = cosines(rows, seed=0), cosines(rows, seed=0, pairs=4000)
    assert part.mean == pytest.approx(every.mean, abs=0.03)
    assert part.quantiles[-1] < 0.9999
    assert part == cosines(rows, seed=0, pairs=4000)


def test_equal_rows_fill_no_direction():
    """A collapsed teacher would be a division by zero."""
    assert effective_dimension(unit(np.ones((7, 3)))) == 0
