"""Fractions against counting by hand."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from compress_ssl.metrics import accuracy, overlap, per_class_accuracy, top_k_accuracy


def test_accuracy_counts_equal_classes() -> None:
    """Every accuracy of the package would be off."""
    assert accuracy(np.array([3, 1, 4, 1, 5]), np.array([3, 1, 4, 2, 6])) == 3 / 5


def test_top_k_accuracy_forgives_order() -> None:
    """A right class in second place would count as wrong."""
    ranked = np.array([[1, 2], [2, 1], [3, 4], [5, 6], [2, 9], [7, 9], [9, 9]])
    assert top_k_accuracy(ranked, np.array([1, 1, 5, 6, 2, 2, 1])) == 4 / 7


@given(st.integers(1, 7), st.integers(1, 5), st.integers(0, 1000))
@settings(deadline=None)
def test_overlap_is_the_mean_size_of_the_intersections(count: int, neighbours: int, seed: int) -> None:
    """The one score that needs no labels would be a number without meaning."""
    generator = np.random.default_rng(seed)
    first, second = (
        np.stack([generator.permutation(11)[:neighbours] for _ in range(count)]) for _ in ("teacher", "student")
    )
    shares = [len(set(one) & set(other)) / neighbours for one, other in zip(first, second, strict=True)]
    assert overlap(first, second) == pytest.approx(sum(shares) / count)


@pytest.mark.parametrize(
    ("metric", "predicted", "labels"),
    [
        (accuracy, np.zeros(3, int), np.zeros(5, int)),
        (accuracy, np.zeros(0, int), np.zeros(0, int)),
        (accuracy, np.zeros((3, 1), int), np.zeros(3, int)),
        (top_k_accuracy, np.zeros(3, int), np.zeros(3, int)),
        (overlap, np.zeros((3, 5), int), np.zeros((3, 7), int)),
        (overlap, np.zeros((0, 5), int), np.zeros((0, 5), int)),
    ],
)
def test_shapes_that_do_not_fit_are_named(metric: object, predicted: np.ndarray, labels: np.ndarray) -> None:
    """Broadcasting would turn a mistake into a plausible fraction, and no image into NaN."""
    assert callable(metric)
    with pytest.raises(ValueError, match=r"^expected .*, got .*: "):
        metric(predicted, labels)


def test_classes_count_the_same_however_large() -> None:
    """A set of aircraft with 90 of one kind would be scored by that kind alone."""
    from sklearn.metrics import balanced_accuracy_score

    labels = np.array([4, 4, 4, 4, 4, 9, 9, 2])
    predicted = np.array([4, 4, 4, 4, 9, 9, 4, 4])
    assert per_class_accuracy(predicted, labels) == pytest.approx((4 / 5 + 1 / 2 + 0) / 3)
    generator = np.random.default_rng(0)
    labels, predicted = generator.integers(0, 5, (2, 301))
    assert per_class_accuracy(predicted, labels) == pytest.approx(balanced_accuracy_score(labels, predicted))
    with pytest.raises(ValueError, match="N > 0"):
        per_class_accuracy(labels[:0], labels[:0])
