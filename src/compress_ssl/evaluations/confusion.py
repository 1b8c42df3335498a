"""Confusion: which classes are taken for which, and how clusters found without labels agree with the classes.

Of nearest neighbours: the class of each test image's nearest train image (of several, the vote of nearest_neighbour),
beside its own. The accuracy of nearest_neighbour is a mean over images, in which a small class hardly counts; these are
by class, and the worst class is what a user of that class will meet.
Of clusters: k-means as in cluster_alignment, with as many clusters as classes on the train split; each test image goes
to its nearest centroid. No cluster is matched with a class, so clusters that halve one class and join two others are
judged by what they still tell: normalised mutual information (Strehl & Ghosh, JMLR 2002; arithmetic mean) and the
adjusted Rand index (Hubert & Arabie, 1985), which chance alone leaves at 0. Agreement below that of chance, which the
index tells as a negative number, is 0 here: metrics are fractions.
Both searches are those of nearest_neighbour and cluster_alignment, done once for all of them while the options agree.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from compress_ssl.clustering import START_PAIRS, adjusted_rand, align, assign, mutual_information, overlap_table
from compress_ssl.evaluations import Embedded, own_rows
from compress_ssl.evaluations.nearest_neighbour import vote
from compress_ssl.refusal import Refusal


@dataclass(frozen=True, kw_only=True)
class Config:
    neighbours: int = 1  # that vote for a test image's class
    # what follows concerns the clusters; unless it is as in cluster_alignment, rows are clustered a second time
    iterations: int = 20
    start: Literal["k-means++", "random"] = "k-means++"
    attempts: int = 3
    start_pairs: int = START_PAIRS
    seed: int = 0

    def __post_init__(self) -> None:
        if min(self.neighbours, self.iterations, self.attempts, self.start_pairs) < 1:
            raise Refusal(
                f"expected neighbours, iterations, attempts and start_pairs from 1 up, got {self.neighbours}, "
                f"{self.iterations}, {self.attempts} and {self.start_pairs}: give positive numbers."
            )


def unfit(embedded: Embedded) -> str | None:
    """Why this cannot be computed here; None when it can."""
    return None if embedded.labelled else "needs labels"


def evaluate(embedded: Embedded, config: Config) -> dict[str, float]:
    """`confusion_worst_class` and `confusion_mean_class`, accuracies by class of the test split; of the clusters on the
    test split `confusion_mutual_information` and `confusion_adjusted_rand`."""
    counts = _by_class(embedded.labelled_part(), config)
    asked = counts.sum(axis=1)
    accuracies = counts.diagonal()[asked > 0] / asked[asked > 0]
    table = _by_cluster(embedded.labelled_part(), config)[1]
    return {
        "confusion_worst_class": float(accuracies.min()),
        "confusion_mean_class": float(accuracies.mean()),
        "confusion_mutual_information": mutual_information(table),
        "confusion_adjusted_rand": max(adjusted_rand(table), 0.0),
    }


def tables(embedded: Embedded, config: Config) -> dict[str, dict[str, Any]]:
    """How many test images of each class (row) are taken for each class (column), and fall into each cluster.

    Returns: `confusion_classes`, square, true classes as rows, each summing to the images of that class; and
        `confusion_clusters`, one row a cluster, called after the class that it is matched with on the train split as
        in cluster_alignment, and in the order of these.
    """
    embedded = embedded.labelled_part()
    names = [embedded.class_name(int(label)) for label in _classes(embedded)]
    order, by_cluster = _by_cluster(embedded, config)
    return {
        "confusion_classes": {"rows": names, "columns": names, "counts": _by_class(embedded, config).tolist()},
        "confusion_clusters": {
            "rows": [names[kind] for kind in np.sort(order)],
            "columns": names,
            "counts": by_cluster[np.argsort(order, kind="stable")].tolist(),
        },
    }


def _classes(embedded: Embedded) -> np.ndarray:
    """The labels of either split, in order; they may have gaps."""
    return np.union1d(embedded.train.labels, embedded.test.labels)


def _by_class(embedded: Embedded, config: Config) -> np.ndarray:
    """(C, C) test images by true class and by the class of their neighbours."""
    classes, test = _classes(embedded), embedded.test
    found = embedded.nearest(config.neighbours, own=own_rows(test, embedded.train))
    predicted = vote(embedded.train.labels[found])
    true, taken_for = (np.searchsorted(classes, labels) for labels in (test.labels, predicted))
    return overlap_table(true, taken_for, clusters=len(classes), class_count=len(classes))


def _by_cluster(embedded: Embedded, config: Config) -> tuple[np.ndarray, np.ndarray]:
    """The class (K,) in [0, C) that each cluster is matched with, and (K, C) test images by cluster and class."""
    classes, train = _classes(embedded), embedded.train
    options = {name: getattr(config, name) for name in ("iterations", "seed", "start", "attempts", "start_pairs")}
    centroids, assignments = embedded.clusters(len(np.unique(train.labels)), **options)
    size = {"clusters": len(centroids), "class_count": len(classes)}
    order = align(overlap_table(assignments, np.searchsorted(classes, train.labels), **size))
    found = assign(embedded.test.rows, centroids)
    return order, overlap_table(found, np.searchsorted(classes, embedded.test.labels), **size)
