"""Unit rows with the ids and labels of their images, in memory."""

from __future__ import annotations

import numpy as np
import pytest

from compress_ssl.embeddings import Embeddings


def embeddings(count: int) -> Embeddings:
    rows = np.random.default_rng(0).standard_normal((count, 7)).astype(np.float32)
    rows /= np.linalg.norm(rows, axis=1, keepdims=True)
    return Embeddings(rows, np.arange(count) % 3 - 1, tuple(f"{number}.jpg" for number in range(count)))


@pytest.mark.parametrize("wrong", ["length", "nan", "labels", "ids", "dimensions"])
def test_embeddings_are_unit_rows_with_as_many_labels_and_ids(wrong):
    """A similarity above 1, or labels shifted by one, would only show as strangely good or bad numbers."""
    good = embeddings(5)
    rows, labels, ids = good.rows.copy(), good.labels, good.ids
    if wrong == "length":
        rows[3] *= 1.01
    elif wrong == "nan":
        rows[3, 2] = np.nan
    elif wrong == "labels":
        labels = labels[:-1]
    elif wrong == "ids":
        ids = ids[1:]
    else:
        rows = rows[:, None]
    with pytest.raises(ValueError, match="expected"):
        Embeddings(rows, labels, ids)
