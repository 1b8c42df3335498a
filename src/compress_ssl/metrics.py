"""Predictions -> fractions in [0, 1].

Every function takes numpy arrays of one row per image and returns a plain float, the mean over images or classes.
"""

from __future__ import annotations

import numpy as np


def accuracy(predicted: np.ndarray, labels: np.ndarray) -> float:
    """Share of images whose predicted class is the true one.

    Args:
        predicted: (N,) integer class of each image.
        labels: (N,) the true class, of the same numbering.
    Raises: ValueError on unequal shapes or no image at all.
    """
    return top_k_accuracy(np.asarray(predicted)[..., None], labels)


def per_class_accuracy(predicted: np.ndarray, labels: np.ndarray) -> float:
    """The share of images whose predicted class is the true one, class by class, and the mean of these shares.

    Args:
        predicted: (N,) integer class of each image.
        labels: (N,) the true class, of the same numbering; each class among them counts the same.
    Raises: ValueError on unequal shapes or no image at all.
    """
    predicted, labels = np.asarray(predicted), np.asarray(labels)
    accuracy(predicted, labels)  # or a ValueError
    _, classes, sizes = np.unique(labels, return_inverse=True, return_counts=True)
    right = np.bincount(classes, weights=predicted == labels, minlength=len(sizes))
    return float((right / sizes).mean())


def top_k_accuracy(ranked: np.ndarray, labels: np.ndarray) -> float:
    """Share of images whose true class is among the K predicted ones.

    Args:
        ranked: (N, K) integer classes; their order within a row does not matter.
        labels: (N,) the true class.
    Raises: ValueError on unequal lengths or no image at all.
    """
    ranked, labels = np.asarray(ranked), np.asarray(labels)
    if ranked.ndim != 2 or labels.shape != ranked.shape[:1] or labels.size == 0:
        raise ValueError(
            f"expected predictions for N > 0 images and as many labels, got predictions {ranked.shape} and "
            f"labels {labels.shape}: give one row of predictions per label."
        )
    return float((ranked == labels[:, None]).any(axis=1).mean())


def overlap(first: np.ndarray, second: np.ndarray) -> float:
    """Mean share of K that two sets of K have in common, row by row.

    Args:
        first: (N, K) integers, distinct within a row; K > 0.
        second: (N, K) integers, distinct within a row.
    Raises: ValueError on unequal shapes or nothing to compare.
    """
    first, second = np.asarray(first), np.asarray(second)
    if first.ndim != 2 or first.shape != second.shape or first.size == 0:
        raise ValueError(
            f"expected two arrays (N, K) of one shape with N, K > 0, got {first.shape} and {second.shape}: "
            "ask both sides for as many neighbours of the same queries."
        )
    both = np.sort(np.concatenate([first, second], axis=1), axis=1)  # what is in both sets stands twice in a row
    return float((both[:, 1:] == both[:, :-1]).sum(axis=1).mean() / first.shape[1])
