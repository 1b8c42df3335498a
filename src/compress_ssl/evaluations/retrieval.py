"""Retrieval: test images ask for train images of their class.

Sources: average precision: Manning, Raghavan, Schütze, Introduction to Information Retrieval, 2008, Sec. 8.4, the mean
over a query's relevant images of the precision where each stands in the ranking; precision@k: there, too. recall@k as
in retrieval of images: Jégou, Douze, Schmid, PAMI 2011; Oh Song et al., CVPR 2016: share of the queries with an image
of their class among the first k.
`retrieval_map` is over the whole ranking. With `cutoff` it is over the first k alone, divided by min(k, relevant
images), and called `retrieval_map_K`: cheaper for a large gallery, but no longer comparable with the former.
In the whole ranking similarities within 1e-6 are ties, and count as scikit-learn's: all that are tied with an image
stand before it. So a collapsed encoder scores the share of the class. The first k are exact, the earlier of equal ones.
A test image that is itself in the train set (same id, same row) is not searched. A class that the gallery lacks scores
0.
10 000 queries × 50 000 × 512: 30 s of one busy Zen core, `cutoff=100` 14 s.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from torch import Tensor

from compress_ssl.evaluations import Embedded, labelled_rows, own_rows, tensor
from compress_ssl.refusal import Refusal

AT_ONCE = 2**22  # similarities ranked at once: queries go in groups of so many over the size of the gallery
STEPS = 2**20  # similarities are ranked in steps of 1 / STEPS


@dataclass(frozen=True, kw_only=True)
class Config:
    first: tuple[int, ...] = (1, 5, 10)  # k of recall@k and precision@k; capped at the size of the gallery
    cutoff: int | None = None  # images of a ranking that the mean average precision looks at; None: all

    def __post_init__(self) -> None:
        if not self.first or min(self.first) < 1:
            raise Refusal(f"expected numbers of first images from 1 up, got {self.first}: give for example 1 10.")
        if self.cutoff is not None and self.cutoff < 1:
            raise Refusal(f"expected a cutoff from 1 up, got {self.cutoff}: leave it out for the whole ranking.")


def unfit(embedded: Embedded) -> str | None:
    """Why this cannot be computed here; None when it can."""
    return None if embedded.labelled else "needs labels"


def evaluate(embedded: Embedded, config: Config) -> dict[str, float]:
    """`retrieval_map`, and `retrieval_recall_K` and `retrieval_precision_K` for each K."""
    train, test = labelled_rows(embedded.train), labelled_rows(embedded.test)
    if train is not embedded.train or test is not embedded.test:
        embedded = Embedded(train=train, test=test, device=embedded.device)
    queries, gallery = (tensor(split.rows, device=embedded.device) for split in (test, train))
    own = own_rows(test, train)
    count = max(*config.first, config.cutoff or 1)
    relevant = train.labels[embedded.nearest(count, own=own)] == test.labels[:, None]
    if config.cutoff is None:
        precision = average_precision(queries, gallery, test.labels, train.labels, own.numpy())
        metrics = {"retrieval_map": float(precision.mean())}
    else:
        others = _class_sizes(train.labels, test.labels) - (own.numpy() >= 0)
        precision = first_average_precision(relevant[:, : config.cutoff], others)
        metrics = {f"retrieval_map_{config.cutoff}": float(precision.mean())}
    for first in config.first:
        metrics[f"retrieval_recall_{first}"] = float(relevant[:, :first].any(axis=1).mean())
    for first in config.first:
        metrics[f"retrieval_precision_{first}"] = float(relevant[:, :first].mean())
    return metrics


def average_precision(
    queries: Tensor, gallery: Tensor, asked: np.ndarray, labels: np.ndarray, own: np.ndarray
) -> np.ndarray:
    """Average precision (Q,) float64 of each query over its ranking of the whole gallery, a group of queries at a time.

    Args:
        queries: (Q, D) unit rows.
        gallery: (N, D) unit rows.
        asked: (Q,) class of each query.
        labels: (N,) class of each row of the gallery.
        own: (Q,) int, where the query itself stands in the gallery, -1 where it does not.
    """
    order = np.argsort(labels, kind="stable")
    starts, ends = (np.searchsorted(labels, asked, side=side, sorter=order) for side in ("left", "right"))
    found = np.empty(len(queries))
    size = max(1, AT_ONCE // len(gallery))
    for first in range(0, len(queries), size):
        similarities = (queries[first : first + size].float() @ gallery.float().T).cpu().numpy()
        steps = np.rint(np.multiply(similarities, STEPS, out=similarities), out=similarities)
        for query, row in enumerate(steps, first):
            if own[query] >= 0:
                row[own[query]] = -np.inf  # behind all others
            found[query] = _precision_of_ranking(row, order[starts[query] : ends[query]])
    return found


def first_average_precision(relevant: np.ndarray, others: np.ndarray) -> np.ndarray:
    """Average precision (Q,) over the first K images alone.

    Args:
        relevant: (Q, K) bool, in the order of the ranking.
        others: (Q,) how many images of the whole gallery are relevant.
    """
    precision = relevant.cumsum(axis=1) / np.arange(1, relevant.shape[1] + 1)
    return (precision * relevant).sum(axis=1) / np.maximum(1, np.minimum(others, relevant.shape[1]))


def _precision_of_ranking(similarities: np.ndarray, relevant: np.ndarray) -> float:
    """Average precision of one ranking (N,), -inf for what is not ranked, with `relevant` positions; 0 without any."""
    hits = np.sort(similarities[relevant])
    hits = hits[np.isfinite(hits)]
    if not len(hits):
        return 0.0
    places = len(similarities) - np.searchsorted(np.sort(similarities), hits, side="left")  # from 1, the tied before
    return float(np.mean((len(hits) - np.searchsorted(hits, hits, side="left")) / places))


def _class_sizes(labels: np.ndarray, asked: np.ndarray) -> np.ndarray:
    """(Q,) how many of `labels` are of each class that is asked for."""
    ordered = np.sort(labels)
    return np.searchsorted(ordered, asked, side="right") - np.searchsorted(ordered, asked, side="left")
