"""Confusion by class and by cluster against scikit-learn and plain counting."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest
from sklearn.metrics import adjusted_rand_score, confusion_matrix, normalized_mutual_info_score, recall_score
from sklearn.neighbors import KNeighborsClassifier

import compress_ssl.evaluations
from compress_ssl.clustering import adjusted_rand, assign, k_means, mutual_information
from compress_ssl.embeddings import Embeddings
from compress_ssl.evaluations import Embedded, cluster_alignment, nearest_neighbour
from compress_ssl.evaluations.confusion import Config, evaluate, tables
from compress_ssl.neighbours import nearest_neighbours
from compress_ssl.refusal import Refusal

OPTIONS = {"iterations": 20, "seed": 0, "start": "k-means++", "attempts": 3}


@pytest.mark.parametrize("neighbours", [1, 5])
def test_scores_and_tables_are_those_of_scikit_learn(neighbours: int, make_embedded: Callable[..., Embedded]) -> None:
    """Our numbers could not stand next to anybody else's; rows taken for columns would blame the wrong class."""
    embedded = make_embedded(train=307, test=101, classes=5, noise=1.5)
    train, test, config = embedded.train, embedded.test, Config(neighbours=neighbours)
    metrics, found = evaluate(embedded, config), tables(embedded, config)

    judge = KNeighborsClassifier(neighbours, algorithm="brute").fit(train.rows, train.labels)
    predicted = judge.predict(test.rows)
    recalls = recall_score(test.labels, predicted, average=None)
    assert metrics["confusion_worst_class"] == pytest.approx(recalls.min())
    assert metrics["confusion_mean_class"] == pytest.approx(recalls.mean())
    assert found["confusion_classes"]["counts"] == confusion_matrix(test.labels, predicted).tolist()
    assert found["confusion_classes"]["rows"] == found["confusion_classes"]["columns"] == ["2", "3", "7", "11", "40"]

    clusters = assign(test.rows, k_means(train.rows, clusters=5, **OPTIONS)[0])
    rand, information = (score(test.labels, clusters) for score in (adjusted_rand_score, normalized_mutual_info_score))
    assert metrics["confusion_adjusted_rand"] == pytest.approx(rand)
    assert metrics["confusion_mutual_information"] == pytest.approx(information)
    assert 0.05 < rand < 0.9
    counts = np.array(found["confusion_clusters"]["counts"])
    labels = np.unique(test.labels)
    columns = [tuple((test.labels[clusters == cluster][:, None] == labels).sum(axis=0)) for cluster in range(5)]
    assert Counter(map(tuple, counts.tolist())) == Counter(columns)


@pytest.mark.parametrize("seed", range(7))
def test_agreement_of_partitions_is_that_of_scikit_learn(seed: int) -> None:
    """Empty clusters, single ones, parts of one image and chance are where formulas differ."""
    random = np.random.default_rng(seed)
    cases = [(1, 1, 1), (1, 5, 1), (7, 1, 9), (7, 3, 1), (11, 3, 5), (101, 7, 3), (5, 50, 50)]
    for images, clusters, classes in [*cases, (3000, 40, 30)]:
        one, other = random.integers(0, clusters, images), random.integers(0, classes, images)
        table = np.zeros((clusters, classes), dtype=np.int64)
        np.add.at(table, (one, other), 1)
        assert adjusted_rand(table) == pytest.approx(adjusted_rand_score(other, one), abs=1e-12)
        assert mutual_information(table) == pytest.approx(normalized_mutual_info_score(other, one), abs=1e-12)
        perfect = np.diag(np.bincount(one))
        assert (adjusted_rand(perfect), mutual_information(perfect)) == (1, pytest.approx(1, abs=1e-12))


def test_pairs_of_a_million_images_are_counted_in_whole_numbers() -> None:
    """Products of pairs do not fit 64 bits: the index would be any number."""
    table = np.array([[900_000, 100_000], [300_000, 700_000]])
    a, (rows, columns) = table.astype(object), (table.sum(axis=1).tolist(), table.sum(axis=0).tolist())
    together, one, other = (sum(n * (n - 1) // 2 for n in counts) for counts in (a.ravel(), rows, columns))
    chance = one * other / (2_000_000 * 1_999_999 / 2)
    assert adjusted_rand(table) == pytest.approx((together - chance) / ((one + other) / 2 - chance), rel=1e-9)


def test_less_agreement_than_chance_is_zero(make_embedded: Callable[..., Embedded]) -> None:
    """A metric below 0 would break every table of fractions."""
    embedded = make_embedded(train=61, test=4, classes=2, noise=1e-2)
    rows, kinds = embedded.train.rows, embedded.train.labels
    first, second = (np.flatnonzero(kinds == kind)[:2] for kind in np.unique(kinds))
    crossed = Embeddings(rows=rows[[*first, *second]], labels=np.array([2, 7, 2, 7]), ids=("a", "b", "c", "d"))
    clusters = [0, 0, 1, 1]
    assert adjusted_rand_score(crossed.labels, clusters) < 0
    metrics = evaluate(Embedded(train=embedded.train, test=crossed), Config())
    assert metrics["confusion_adjusted_rand"] == 0


def test_a_class_that_training_has_not_seen_is_the_worst(make_embedded: Callable[..., Embedded]) -> None:
    """It would be left out of the mean, and the worst class be one that is recognised."""
    embedded = make_embedded(classes=3, noise=1e-2)
    renamed = replace(embedded.test, labels=np.where(embedded.test.labels == 7, 99, embedded.test.labels))
    unseen = Embedded(train=embedded.train, test=renamed)
    metrics, table = evaluate(unseen, Config()), tables(unseen, Config())["confusion_classes"]
    assert (metrics["confusion_worst_class"], metrics["confusion_mean_class"]) == (0, pytest.approx(2 / 3))
    assert table["rows"] == ["2", "7", "40", "99"]
    assert table["counts"][3][1] == (renamed.labels == 99).sum(), "99 is still taken for 7"
    assert sum(table["counts"][1]) == 0


def test_clusters_stand_in_the_order_of_the_classes_they_are_matched_with(
    make_embedded: Callable[..., Embedded],
) -> None:
    """A clustering that found all classes would look like none: no diagonal."""
    embedded = make_embedded(classes=5, noise=1e-2)
    named = replace(embedded, classes=("zero", "one", "two", "three", *"abc", "seven"))
    table = tables(named, Config())["confusion_clusters"]
    assert table["rows"] == table["columns"] == ["two", "three", "seven", "11", "40"]
    sizes = np.unique(embedded.test.labels, return_counts=True)[1]
    assert table["counts"] == np.diag(sizes).tolist()


def test_neighbours_and_clusters_are_those_of_the_other_evaluations(
    make_embedded: Callable[..., Embedded], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The search and the clustering, minutes each on a million rows, would be done twice."""
    done: list[str] = []

    def counted(name: str, function: Callable) -> Callable:
        return lambda *rows, **options: (done.append(name), function(*rows, **options))[1]

    monkeypatch.setattr(compress_ssl.evaluations, "k_means", counted("clusters", k_means))
    monkeypatch.setattr(compress_ssl.evaluations, "nearest_neighbours", counted("neighbours", nearest_neighbours))
    whole = make_embedded()
    labels = whole.train.labels.copy()
    labels[::4] = -1
    for embedded in (whole, replace(whole, train=replace(whole.train, labels=labels))):
        done.clear()
        for evaluation in (nearest_neighbour, cluster_alignment):
            evaluation.evaluate(embedded, evaluation.Config())
        evaluate(embedded, Config())
        tables(embedded, Config())
        assert sorted(done) == ["clusters", "neighbours"]


def test_numbers_that_make_no_sense_are_refused() -> None:
    """A typing error would end in a stack trace."""
    with pytest.raises(Refusal, match="from 1 up, got 0, 20, 3 and "):
        Config(neighbours=0)
