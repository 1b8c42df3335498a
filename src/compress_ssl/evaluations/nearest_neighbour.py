"""k-nearest-neighbour accuracy: each test image takes the class of its nearest train images.

Source: Abbasi Koohpayegani et al., CompRess, NeurIPS 2020, "NN": the exact nearest row in the whole training set.
Relations: 20 neighbours with equal votes is the other usual number; it forgives single wrong labels.
A test image that is itself in the train set (same id, same row) is never its own neighbour.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from compress_ssl.evaluations import Embedded, own_rows
from compress_ssl.metrics import accuracy, per_class_accuracy
from compress_ssl.refusal import Refusal


@dataclass(frozen=True, kw_only=True)
class Config:
    neighbours: tuple[int, ...] = (1, 20)  # each gives a metric; capped at the size of the gallery
    per_class: bool = False  # also the mean of each class's accuracy; `evaluate --on` turns it on

    def __post_init__(self) -> None:
        if not self.neighbours or min(self.neighbours) < 1:
            raise Refusal(f"expected numbers of neighbours from 1 up, got {self.neighbours}: give for example 1 20.")


def unfit(embedded: Embedded) -> str | None:
    """Why this cannot be computed here; None when it can."""
    return None if embedded.labelled else "needs labels"


def evaluate(embedded: Embedded, config: Config) -> dict[str, float]:
    """Accuracy on the test split: `nearest_neighbour` for one neighbour, `nearest_neighbour_K` for K; with `per_class`
    also their means over the classes of the test split, with `_per_class` behind the name."""
    embedded = embedded.labelled_part()
    train, test = embedded.train, embedded.test
    voters = train.labels[embedded.nearest(max(config.neighbours), own=own_rows(test, train))]
    found = {}
    for count in config.neighbours:
        name, chosen = "nearest_neighbour" if count == 1 else f"nearest_neighbour_{count}", vote(voters[:, :count])
        found[name] = accuracy(chosen, test.labels)
        if config.per_class:
            found[f"{name}_per_class"] = per_class_accuracy(chosen, test.labels)
    return found


def vote(voters: np.ndarray) -> np.ndarray:
    """The most frequent class in each row of (Q, K), the smallest of equally frequent ones: (Q,)."""
    votes = np.zeros(voters.shape, dtype=np.int64)  # for each voter, how many in its row agree with it
    for column in range(voters.shape[1]):
        votes += voters == voters[:, column : column + 1]
    most = votes == votes.max(axis=1, keepdims=True)
    return np.where(most, voters, np.iinfo(voters.dtype).max).min(axis=1)
