"""Which of C classes are in a picture: a linear SVM for each class on frozen rows, scored by average precision.

Protocol: on unit rows, each class against the rest, squared hinge loss; an image that holds the class only as
difficult objects is left out for that class, from learning and from scoring. The cost of each class is the one of
`costs` with the best average precision (all-point) on a held-out part of what is learnt from; then the class is learnt
again on all of it. What is reported is never looked at to choose. Of equal costs the smaller one is taken.
Source: Goyal et al., Scaling and Benchmarking Self-Supervised Visual Representation Learning, ICCV 2019, for
linear SVMs on frozen rows of VOC 2007; differs from it in the choice of the cost, which there is by cross-validation,
here on VOC's own train and val. The CompRess paper's 79.7 (AlexNet) come from another protocol on other layers, so they
are no yardstick for these numbers.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from compress_ssl.average_precision import both_rules
from compress_ssl.refusal import Refusal


@dataclass(frozen=True, kw_only=True)
class Config:
    """The linear SVMs."""

    costs: tuple[float, ...] = (0.01, 0.1, 1.0, 10.0, 100.0, 1000.0)  # C of the SVM to choose from, class by class

    def __post_init__(self) -> None:
        if not self.costs or not all(0 < cost < float("inf") for cost in self.costs):
            raise Refusal(f"--classification.costs expected numbers above 0, got {self.costs}: 0.1 1 10 are usual")


@dataclass(frozen=True)
class Labelled:
    """N images and what is in them.

    rows: (N, D) unit rows.
    targets: (N, C) int8: 1 in it, -1 not in it, 0 neither counts (see `compress_ssl.voc_layout.targets`).
    """

    rows: np.ndarray
    targets: np.ndarray

    def __post_init__(self) -> None:
        if self.rows.ndim != 2 or self.targets.ndim != 2 or len(self.rows) != len(self.targets):
            raise ValueError(f"expected (N, D) rows and (N, C) targets, got {self.rows.shape} and "
                             f"{self.targets.shape}: give one of each for every image")  # fmt: skip

    def of_class(self, place: int) -> tuple[np.ndarray, np.ndarray]:
        """Rows (n, D) and whether the class is there (n,), of the images that count for it."""
        counted = self.targets[:, place] != 0
        return self.rows[counted], self.targets[counted, place] > 0

    def part(self, kept: np.ndarray) -> Labelled:
        """The images where `kept` (N,) is true."""
        return Labelled(self.rows[kept], self.targets[kept])


def score(
    learn: Labelled, report: Labelled, *, classes: Sequence[str], chosen_on: np.ndarray, config: Config
) -> dict[str, Any]:
    """Average precision of every class on `report`.

    Args:
        learn: what is learnt from.
        classes: C names.
        chosen_on: (N,) bool over `learn`: the images on which the costs are chosen, learning from the others.
    Returns: `per_class`, name -> `ap_11`, `ap_all` and the chosen `cost`; `missing`, name -> why there is no number;
        `map_11`, `map_all`, the means over the classes that have one.
    Raises: Refusal if no class has.
    """
    first, look = learn.part(~chosen_on), learn.part(chosen_on)
    parts = {"choose from": first, "choose on": look, "report on": report}
    per_class: dict[str, dict[str, float]] = {}
    missing: dict[str, str] = {}
    for place, name in enumerate(classes):
        lacking = [told for told, part in parts.items() if not _both_kinds(part.of_class(place)[1])]
        if lacking:
            missing[name] = f"needs images with and without it among the images to {lacking[0]}"
            continue
        cost = _choose_cost(first.of_class(place), look.of_class(place), config.costs)
        rows, there = report.of_class(place)
        scores = decide(*learn.of_class(place), rows, cost=cost)
        per_class[name] = both_rules(scores, there, positives=int(there.sum())) | {"cost": cost}
    if not per_class:
        raise Refusal(f"expected a class with images that show it and images that do not, in every split, got none of "
                      f"{len(classes)}: add images, or divide them otherwise")  # fmt: skip
    means = {f"m{rule}": float(np.mean([one[rule] for one in per_class.values()])) for rule in ("ap_11", "ap_all")}
    return {**means, "per_class": per_class, "missing": missing}


def decide(rows: np.ndarray, there: np.ndarray, asked: np.ndarray, *, cost: float) -> np.ndarray:
    """How surely each of the asked rows is of the class: the decision of a linear SVM.

    It minimises ½ (‖w‖² + b²) + cost · Σ max(0, 1 − y (w·x + b))², by Newton steps that draw nothing at random.

    Args:
        rows: (N, D) to learn from.
        there: (N,) bool.
        asked: (M, D).
    Returns: (M,) float64.
    """
    from sklearn.svm import LinearSVC  # half a second to import

    machine = LinearSVC(C=cost, dual=False, tol=1e-5, max_iter=10_000)
    machine.fit(rows.astype(np.float64), there)
    return machine.decision_function(asked.astype(np.float64))


def _choose_cost(
    learn: tuple[np.ndarray, np.ndarray], look: tuple[np.ndarray, np.ndarray], costs: Sequence[float]
) -> float:
    rows, there = look
    found = {}
    for cost in sorted(costs):
        scores = decide(*learn, rows, cost=cost)
        found[cost] = both_rules(scores, there, positives=int(there.sum()))["ap_all"]
    return max(found, key=found.__getitem__)  # of equal ones the first, the smallest


def _both_kinds(there: np.ndarray) -> bool:
    return bool(there.any() and not there.all())
