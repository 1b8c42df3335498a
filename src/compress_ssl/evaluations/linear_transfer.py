"""Linear transfer: a softmax regression on the frozen embeddings, its penalty picked on a held-out part of train.

Source: Kornblith et al., Do Better ImageNet Models Transfer Better?, CVPR 2019: multinomial logistic regression by
L-BFGS, its L2 penalty picked from a logarithmic grid on validation data, then fitted again on training and validation
data together; scored on test, in mean per-class accuracy for Aircraft, Pets, Flowers and Caltech-101.
Relations: `linear_probe` fits the same loss once, with a given penalty: right for the data that the models were made
for, unfair between data sets of 1000 and of 100 000 images, or between 512 and 4096 dimensions.

Protocol. The test split takes no part in any choice. Of each class a fifth of its training images is held out (those
whose ids have the smallest sha256; none where a class has a single image), the regression is fitted on the others with
every weight decay of the grid, then with those halfway (in the logarithm) beside the best, `halvings` times. The best
accuracy on the held-out images decides, of equal ones the largest weight decay. The last fit is on all training images.
Differs from the paper: rows are unit rows, standardised by what is fitted on, as in `linear_probe`; the grid is coarse
and then refined (9 fits, not 45); an official validation split, where there is one, is part of train and not the
held-out part.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
from torch.nn import functional

from compress_ssl.embeddings import Embeddings
from compress_ssl.evaluations import Embedded, labelled_rows, tensor
from compress_ssl.metrics import accuracy, per_class_accuracy
from compress_ssl.refusal import Refusal
from compress_ssl.softmax_regression import TO_THE_END, softmax_regression, standardiser

ON_REQUEST = True  # ten times the time of a linear probe; `evaluate --on` asks for it


@dataclass(frozen=True, kw_only=True)
class Config:
    weight_decays: tuple[float, ...] = (1e-6, 1e-5, 1e-4, 1e-3, 1e-2, 1e-1, 1.0)  # times half the squared weights
    halvings: int = 1  # of the distance between neighbours of that grid, beside the best: each adds two fits
    held_out: float = 0.2  # share of each class's training images that the choice is made on
    per_class: bool = False  # also the mean of each class's accuracy; `evaluate --on` turns it on

    def __post_init__(self) -> None:
        if not self.weight_decays or not min(self.weight_decays) > 0 or not max(self.weight_decays) < math.inf:
            raise Refusal(f"expected weight_decays above 0, got {self.weight_decays}: give for example 1e-4 1e-2 1.")
        if self.halvings < 0:
            raise Refusal(f"expected halvings from 0 up, got {self.halvings}: 0 keeps to the grid.")
        if not 0 < self.held_out < 1:
            raise Refusal(f"expected a share held_out between 0 and 1, got {self.held_out}: 0.2 is usual.")


def unfit(embedded: Embedded) -> str | None:
    """Why this cannot be computed here; None when it can."""
    return None if embedded.labelled else "needs labels"


def evaluate(embedded: Embedded, config: Config) -> dict[str, float]:
    """`linear_transfer`: accuracy on the test split; `linear_transfer_per_class`: the mean over its classes."""
    train, test = labelled_rows(embedded.train), labelled_rows(embedded.test)
    best = choose_weight_decay(train, config, device=embedded.device)
    predicted = fit(train, weight_decay=best, device=embedded.device)(test)
    found = {"linear_transfer": accuracy(predicted, test.labels)}
    if config.per_class:
        found["linear_transfer_per_class"] = per_class_accuracy(predicted, test.labels)
    return found


def choose_weight_decay(train: Embeddings, config: Config, *, device: str = "cpu") -> float:
    """The weight decay whose regression on the rest is the best on the held-out images; see the protocol above.

    Args:
        train: labelled rows; nothing else is looked at.
    Returns: the largest of the grid where no image can be held out.
    """
    held = held_out(train, config.held_out)
    grid = sorted(set(config.weight_decays))
    if not held.any():
        return grid[-1]
    rest, judge = part(train, ~held), part(train, held)
    scores: dict[float, float] = {}

    def best() -> float:
        return max(scores, key=lambda decay: (scores[decay], decay))

    wanted = grid
    for _ in range(config.halvings + 1):
        for decay in wanted:
            if decay not in scores:
                scores[decay] = accuracy(fit(rest, weight_decay=decay, device=device)(judge), judge.labels)
        tried = sorted(scores)
        place = tried.index(best())
        beside = tried[max(place - 1, 0) : place + 2]
        wanted = [math.sqrt(low * high) for low, high in pairwise(beside)]
    return best()


def fit(
    train: Embeddings, *, weight_decay: float, to_the_end: int = TO_THE_END, device: str = "cpu"
) -> Callable[[Embeddings], np.ndarray]:
    """Rows -> (N,) predicted labels, by the regression on standardised rows of `train`."""
    rows = tensor(train.rows, device=device)
    mean, scale = standardiser(rows)
    classes, targets = np.unique(train.labels, return_inverse=True)  # labels may have gaps
    weight, bias = softmax_regression(
        (rows - mean).mul_(scale),
        tensor(targets, device=device),
        classes=len(classes),
        weight_decay=weight_decay,
        to_the_end=to_the_end,
    )

    def predict(asked: Embeddings) -> np.ndarray:
        logits = functional.linear((tensor(asked.rows, device=device) - mean).mul_(scale), weight, bias)
        return classes[logits.argmax(dim=1).cpu().numpy()]

    return predict


def held_out(train: Embeddings, share: float) -> np.ndarray:
    """Which images are held out: of each class `share`, rounded down, but one at least where it has two or more.

    The choice depends on ids and classes alone, so every model is judged on the same images.

    Returns: (N,) bool.
    """
    digests = np.array([hashlib.sha256(id.encode()).digest() for id in train.ids], dtype="S32")
    held = np.zeros(len(train.ids), dtype=bool)
    for label in np.unique(train.labels):
        members = np.flatnonzero(train.labels == label)
        if len(members) > 1:
            count = max(1, int(share * len(members)))
            held[members[np.argsort(digests[members], kind="stable")[:count]]] = True
    return held


def part(rows: Embeddings, kept: np.ndarray) -> Embeddings:
    """The images where `kept` (N,) is true."""
    ids = tuple(id for id, keep in zip(rows.ids, kept, strict=True) if keep)
    return Embeddings(rows=rows.rows[kept], labels=rows.labels[kept], ids=ids)
