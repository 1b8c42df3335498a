"""k-NN accuracy against scikit-learn and faiss."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from compress_ssl.evaluations import Embedded
from compress_ssl.evaluations.nearest_neighbour import Config, evaluate, unfit, vote
from compress_ssl.refusal import Refusal


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_accuracies_are_those_of_scikit_learn(seed: int, make_embedded: Callable[..., Embedded]) -> None:
    """Our numbers could not stand next to anybody else's."""
    from sklearn.neighbors import KNeighborsClassifier

    embedded = make_embedded(train=307, test=101, classes=5, noise=1.5, seed=seed)
    metrics = evaluate(embedded, Config())
    assert list(metrics) == ["nearest_neighbour", "nearest_neighbour_20"]
    for metric, count in (("nearest_neighbour", 1), ("nearest_neighbour_20", 20)):
        judge = KNeighborsClassifier(count, algorithm="brute").fit(embedded.train.rows, embedded.train.labels)
        assert metrics[metric] == judge.score(embedded.test.rows, embedded.test.labels)
        assert 0.2 < metrics[metric] < 0.95


def test_the_nearest_neighbour_is_that_of_faiss(make_embedded: Callable[..., Embedded]) -> None:
    """The paper's numbers were computed with faiss."""
    faiss = pytest.importorskip("faiss", reason="faiss is one of the development extras")
    embedded = make_embedded(train=307, test=101, classes=5, noise=1.5)
    for index in (faiss.IndexFlatL2(11), faiss.IndexFlatIP(11)):
        index.add(embedded.train.rows)
        found = embedded.train.labels[index.search(embedded.test.rows, 1)[1][:, 0]]
        assert evaluate(embedded, Config())["nearest_neighbour"] == (found == embedded.test.labels).mean()


@given(st.integers(1, 5), st.integers(1, 9), st.integers(0, 999))
@settings(deadline=None)
def test_a_tied_vote_goes_to_the_smallest_class(queries: int, count: int, seed: int) -> None:
    """Accuracies would depend on the order of the images, and differ from scikit-learn's."""
    voters = np.random.default_rng(seed).choice([40, 7, 2, 11], size=(queries, count))
    expected = [max(sorted(set(row)), key=row.count) for row in voters.tolist()]
    assert vote(voters).tolist() == expected


def test_more_neighbours_than_images_are_all_images(make_embedded: Callable[..., Embedded]) -> None:
    """The default of 20 neighbours would refuse a small folder."""
    from sklearn.neighbors import KNeighborsClassifier

    embedded = make_embedded(train=7, noise=1.5)
    judge = KNeighborsClassifier(7).fit(embedded.train.rows, embedded.train.labels)
    assert evaluate(embedded, Config())["nearest_neighbour_20"] == judge.score(embedded.test.rows, embedded.test.labels)


def test_images_scored_against_themselves_are_left_out_one_by_one(make_embedded: Callable[..., Embedded]) -> None:
    """Data without a test split would score 100 % whatever the encoder."""
    from sklearn.model_selection import LeaveOneOut, cross_val_score
    from sklearn.neighbors import KNeighborsClassifier

    train = make_embedded(noise=2.0).train
    scores = cross_val_score(KNeighborsClassifier(1), train.rows, train.labels, cv=LeaveOneOut())
    assert evaluate(Embedded(train=train, test=train), Config())["nearest_neighbour"] == scores.mean() < 0.9


def test_another_image_of_the_same_id_is_not_left_out(make_embedded: Callable[..., Embedded]) -> None:
    """Two folders that number their pictures alike would lose each image's namesake, and some accuracy."""
    embedded = make_embedded(noise=1.5)
    namesakes = replace(
        embedded, test=replace(embedded.test, ids=embedded.train.ids[:23]), teacher=None, projected=None
    )
    assert evaluate(namesakes, Config()) == evaluate(embedded, Config())


@pytest.mark.parametrize("neighbours", [(), (0,), (1, -3)])
def test_numbers_of_neighbours_start_at_one(neighbours: tuple[int, ...]) -> None:
    """Zero neighbours would vote for a class nobody has."""
    with pytest.raises(Refusal, match="expected numbers of neighbours from 1 up, got "):
        Config(neighbours=neighbours)


def test_labels_are_needed_in_both_splits(embedded: Embedded) -> None:
    """An unlabelled split would score 0 %."""
    none = replace(embedded.train, labels=np.full_like(embedded.train.labels, -1))
    assert unfit(replace(embedded, train=none)) == "needs labels"
    assert unfit(embedded) is None


def test_neighbours_are_scored_by_class_too(make_embedded: Callable[..., Embedded]) -> None:
    """Flowers are reported by class; top-1 beside it would be another number."""
    from sklearn.metrics import balanced_accuracy_score
    from sklearn.neighbors import KNeighborsClassifier

    embedded = make_embedded(train=307, test=101, classes=5, noise=1.5)
    found = evaluate(embedded, Config(neighbours=(1, 3), per_class=True))
    assert len(found) == 4
    for count, name in ((1, "nearest_neighbour"), (3, "nearest_neighbour_3")):
        judge = KNeighborsClassifier(count, algorithm="brute").fit(embedded.train.rows, embedded.train.labels)
        expected = balanced_accuracy_score(embedded.test.labels, judge.predict(embedded.test.rows))
        assert found[f"{name}_per_class"] == pytest.approx(expected)
