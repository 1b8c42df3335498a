"""One linear SVM for each class: its optimum, its choice of the cost, and what counts for which class."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from scipy.optimize import minimize
from sklearn.metrics import average_precision_score

from compress_ssl.multi_label import Config, Labelled, decide, score
from compress_ssl.refusal import Refusal

CLASSES = ("bird", "cat", "dog")


def problem(count: int, seed: int, *, width: int = 7) -> Labelled:
    """Unit rows that lean towards the centres of the classes in them; some images do not count for some classes."""
    random = np.random.default_rng(seed)
    there = random.random((count, 3)) < 0.3
    rows = there @ np.random.default_rng(99).standard_normal((3, width)) + random.standard_normal((count, width))
    rows /= np.linalg.norm(rows, axis=1, keepdims=True)
    values = np.where(there, 1, -1) * (random.random((count, 3)) > 0.1)
    return Labelled(rows.astype(np.float32), values.astype(np.int8))


@pytest.mark.parametrize("cost", [0.01, 1.0, 100.0])
def test_the_decision_is_that_of_the_optimum(cost: float) -> None:
    """A solver that stops early would rank the teacher and the student by its own luck."""
    data = problem(61, 0)
    rows, there = data.rows.astype(np.float64), data.targets[:, 1] > 0
    signs = np.where(there, 1.0, -1.0)

    def loss(point: np.ndarray) -> float:
        margins = np.maximum(0, 1 - signs * (rows @ point[:-1] + point[-1]))
        return 0.5 * float(point @ point) + cost * float((margins**2).sum())

    best = minimize(loss, np.zeros(rows.shape[1] + 1), method="BFGS", options={"gtol": 1e-7}).x
    asked = problem(23, 1).rows
    np.testing.assert_allclose(
        decide(data.rows, there, asked, cost=cost), asked @ best[:-1] + best[-1], atol=2e-3, rtol=2e-3
    )


def naive(learn: Labelled, report: Labelled, chosen_on: np.ndarray, costs: tuple[float, ...]) -> dict[str, tuple]:
    """The protocol in loops over images, with the devkit's eleven points and scikit-learn's ranking of the costs."""
    found = {}
    for place, name in enumerate(CLASSES):

        def take(data: Labelled, wanted: np.ndarray, place: int = place) -> tuple[np.ndarray, np.ndarray]:
            kept = [n for n in range(len(data.rows)) if wanted[n] and data.targets[n, place] != 0]
            return data.rows[kept], data.targets[kept, place] == 1

        everything = np.ones(len(learn.rows), bool)
        look, seen = take(learn, chosen_on)
        value, cost = -1.0, 0.0
        for one in costs:
            reached = envelope(seen, decide(*take(learn, ~chosen_on), look, cost=one))
            if reached > value:
                value, cost = reached, one
        asked, there = take(report, np.ones(len(report.rows), bool))
        scores = decide(*take(learn, everything), asked, cost=cost)
        ranked = there[np.argsort(-scores)]
        curve = [(ranked[:rank].sum() / rank, ranked[:rank].sum() / ranked.sum()) for rank in range(1, len(ranked) + 1)]
        eleven = np.mean([max(p for p, r in curve if r >= tenth / 10) for tenth in range(11)])
        found[name] = (cost, eleven, envelope(there, scores))
    return found


def envelope(there: np.ndarray, scores: np.ndarray) -> float:
    """All-point average precision of a full ranking: scikit-learn's, each precision the highest from there on."""
    ranked = there[np.argsort(-scores)]
    precisions = [ranked[: rank + 1].mean() for rank in range(len(ranked))]
    return float(np.mean([max(precisions[rank:]) for rank in np.flatnonzero(ranked)]))


def test_the_protocol_is_what_the_docstring_says() -> None:
    """A cost chosen on the reported images, or difficult images that count, would flatter or punish in silence."""
    learn, report = problem(83, 2), problem(47, 3)
    chosen_on = np.arange(83) % 2 == 1
    config = Config(costs=(0.01, 1.0, 100.0))
    found = score(learn, report, classes=CLASSES, chosen_on=chosen_on, config=config)
    expected = naive(learn, report, chosen_on, config.costs)
    assert found["missing"] == {}
    for name, (cost, eleven, area) in expected.items():
        one = found["per_class"][name]
        assert one["cost"] == cost
        assert (one["ap_11"], one["ap_all"]) == pytest.approx((eleven, area), abs=1e-12)
    assert found["map_11"] == pytest.approx(np.mean([eleven for _, eleven, _ in expected.values()]))
    assert found["map_all"] == pytest.approx(np.mean([area for _, _, area in expected.values()]))
    assert found["map_all"] > 0.5, "there is something to find"


def test_it_is_never_below_scikit_learns_average_precision() -> None:
    """The rules differ by the highest precision beyond, which only adds."""
    learn, report = problem(83, 2), problem(47, 3)
    found = score(learn, report, classes=CLASSES, chosen_on=np.arange(83) % 2 == 1, config=Config(costs=(1.0,)))
    for place, name in enumerate(CLASSES):
        rows, there = report.of_class(place)
        theirs = average_precision_score(there, decide(*learn.of_class(place), rows, cost=1.0))
        assert theirs <= found["per_class"][name]["ap_all"] <= theirs + 0.1


def test_the_reported_images_do_not_choose() -> None:
    """The cost would fit the very images whose score it is."""
    learn, report = problem(83, 2), problem(47, 3)
    chosen_on = np.arange(83) % 2 == 1
    costs = [
        {name: one["cost"] for name, one in score(
            learn, reported, classes=CLASSES, chosen_on=chosen_on, config=Config())["per_class"].items()}
        for reported in (report, replace(report, targets=-report.targets))
    ]  # fmt: skip
    assert costs[0] == costs[1]


def test_a_class_without_pictures_has_no_number() -> None:
    """Its average precision would be 0 or NaN, and so would the mean's share of it."""
    learn, report = problem(83, 2), problem(47, 3)
    report.targets[:, 0] = np.minimum(report.targets[:, 0], 0)
    chosen_on = np.arange(83) % 2 == 1
    learn.targets[chosen_on, 2] = np.minimum(learn.targets[chosen_on, 2], 0)
    found = score(learn, report, classes=CLASSES, chosen_on=chosen_on, config=Config(costs=(1.0,)))
    assert list(found["per_class"]) == ["cat"]
    assert found["missing"] == {
        "bird": "needs images with and without it among the images to report on",
        "dog": "needs images with and without it among the images to choose on",
    }
    assert found["map_11"] == found["per_class"]["cat"]["ap_11"]
    with pytest.raises(Refusal, match="expected a class with images that show it"):
        score(learn, replace(report, targets=-np.ones_like(report.targets)), classes=CLASSES,
              chosen_on=chosen_on, config=Config())  # fmt: skip


@pytest.mark.parametrize("costs", [(), (0.0,), (1.0, -1.0), (float("nan"),), (float("inf"),)])
def test_costs_that_cannot_be_are_refused(costs: tuple[float, ...]) -> None:
    """The solver's own words would come after the embedding."""
    with pytest.raises(Refusal, match=r"--classification\.costs expected numbers above 0"):
        Config(costs=costs)
