"""Class-balanced draws of labelled images: as many of each class, without looking at anything but the labels.

Source: "sampled in a class-balanced way", Chen et al., SimCLR, ICML 2020, Sec. 6, for few labels.
"""

from __future__ import annotations

import numpy as np


def balanced_draw(numbered: np.ndarray, *, per_class: int, generator: np.random.Generator) -> np.ndarray:
    """Positions of `per_class` images of every class, drawn without replacement.

    The order within a class is random, so the first n columns are a draw of n images a class.

    Args:
        numbered: (N,) int, classes 0 … C - 1, each with at least one image.
        per_class: at least 1.
    Returns: (C, per_class) int64; -1 behind the last image of a class that has fewer.
    """
    assert per_class >= 1
    order = np.lexsort((generator.random(len(numbered)), numbered))  # by class, shuffled within
    sizes = np.bincount(numbered)
    assert sizes.min() > 0
    starts = np.cumsum(sizes) - sizes
    rank = np.arange(len(order)) - np.repeat(starts, sizes)
    kept = rank < per_class
    drawn = np.full((len(sizes), per_class), -1, dtype=np.int64)
    drawn[numbered[order[kept]], rank[kept]] = order[kept]
    return drawn
