"""Average precision against the devkit's arithmetic, written out, and against scikit-learn's."""

from __future__ import annotations

import numpy as np
import pytest
from sklearn.metrics import average_precision_score, precision_recall_curve

from compress_ssl.average_precision import all_point, both_rules, eleven_point, precision_and_recall


def devkit(scores: list[float], right: list[bool], positives: int) -> tuple[float, float]:
    """Both rules as the development kits of 2007 and 2012 compute them, one answer after the other."""
    ranked = sorted(range(len(scores)), key=lambda place: -scores[place])
    precision, recall, found = [], [], 0
    for rank, place in enumerate(ranked, 1):
        found += right[place]
        precision.append(found / rank)
        recall.append(found / positives)
    eleven = 0.0
    for tenth in range(11):
        beyond = [one for one, reached in zip(precision, recall, strict=True) if reached >= tenth / 10]
        eleven += (max(beyond) if beyond else 0) / 11
    recall, precision = [0, *recall, 1], [0, *precision, 0]
    for place in range(len(precision) - 2, -1, -1):
        precision[place] = max(precision[place], precision[place + 1])
    area = 0.0
    for place in range(1, len(recall)):
        if recall[place] != recall[place - 1]:
            area += (recall[place] - recall[place - 1]) * precision[place]
    return eleven, area


def problem(seed: int, *, count: int = 97) -> tuple[np.ndarray, np.ndarray]:
    random = np.random.default_rng(seed)
    right = random.random(count) < 0.3
    right[0] = True
    return random.standard_normal(count) + right, right


@pytest.mark.parametrize("seed", range(20))
@pytest.mark.parametrize("missed", [0, 11])
def test_both_rules_are_the_devkits(seed: int, missed: int) -> None:
    """Numbers could be set beside published ones that they have nothing to do with."""
    scores, right = problem(seed)
    positives = int(right.sum()) + missed
    found = both_rules(scores, right, positives=positives)
    assert (found["ap_11"], found["ap_all"]) == pytest.approx(devkit(list(scores), list(right), positives), abs=1e-12)


@pytest.mark.parametrize("seed", range(10))
def test_the_curve_is_scikit_learns(seed: int) -> None:
    """Ranking from the wrong end, or counting a rank off by one, would look plausible."""
    scores, right = problem(seed)
    precision, recall = precision_and_recall(scores, right, positives=int(right.sum()))
    theirs = precision_recall_curve(right, scores)
    np.testing.assert_allclose(precision[::-1], theirs[0][:-1])
    np.testing.assert_allclose(recall[::-1], theirs[1][:-1])
    area = np.sum(np.diff(recall, prepend=0) * precision)
    assert area == pytest.approx(average_precision_score(right, scores))
    highest = np.maximum.accumulate(theirs[0])
    assert all_point(precision, recall) == pytest.approx(-np.sum(np.diff(theirs[1]) * highest[:-1]))
    assert all_point(precision, recall) >= average_precision_score(right, scores) - 1e-12


def test_where_precision_only_falls_all_point_is_scikit_learns() -> None:
    """The one case in which both definitions are the same must give the same number."""
    right = np.array([1, 1, 1, 0, 0, 1, 0, 0, 0, 1, 0], dtype=bool)
    scores = np.arange(len(right), 0, -1)
    positives = int(right.sum())
    assert both_rules(scores, right, positives=positives)["ap_all"] == pytest.approx(
        average_precision_score(right, scores)
    )


def test_the_perfect_and_the_hopeless_list() -> None:
    """The scale would not begin at 0 and end at 1."""
    scores = np.array([4.0, 3, 2, 1])
    assert both_rules(scores, np.array([True, True, False, False]), positives=2) == {"ap_11": 1, "ap_all": 1}
    assert both_rules(scores, np.zeros(4, bool), positives=3) == {"ap_11": 0, "ap_all": 0}
    assert both_rules(np.empty(0), np.empty(0, bool), positives=3) == {"ap_11": 0, "ap_all": 0}


@pytest.mark.parametrize("tenths", range(1, 11))
def test_a_recall_of_exactly_some_tenths_counts_for_its_point(tenths: int) -> None:
    """In floating numbers three times 0.1 is more than 3 / 10: the point at 0.3 would be missed."""
    right = np.ones(tenths, dtype=bool)
    curve = precision_and_recall(-np.arange(tenths), right, positives=10)
    assert eleven_point(*curve) == pytest.approx((tenths + 1) / 11)


def test_equal_scores_stay_in_the_order_given() -> None:
    """Two machines with another sort would report another number."""
    right = np.array([True, False] * 50)
    expected = devkit([0.5] * 100, list(right), 50)
    found = both_rules(np.full(100, 0.5), right, positives=50)
    assert (found["ap_11"], found["ap_all"]) == pytest.approx(expected, abs=1e-12)


# fmt: off
MEANINGLESS = [
    ([1.0, 2.0], [True], 1), ([1.0], [True], 0), ([1.0, 2.0], [True, True], 1), ([np.nan], [True], 1),
    ([np.inf], [False], 1),
]
# fmt: on


@pytest.mark.parametrize(("scores", "right", "positives"), MEANINGLESS)
def test_what_has_no_meaning_is_an_error(scores: list[float], right: list[bool], positives: int) -> None:
    """NaN would be passed on as a class's score, or left out of the mean in silence."""
    with pytest.raises(ValueError, match="expected"):
        precision_and_recall(np.array(scores), np.array(right), positives=positives)
