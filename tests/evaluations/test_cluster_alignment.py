"""Cluster alignment against scikit-learn's k-means and every permutation of the classes."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest

from compress_ssl.evaluations import Embedded
from compress_ssl.evaluations.cluster_alignment import Config, evaluate
from compress_ssl.refusal import Refusal


def independent(embedded: Embedded, *, seed: int, config: Config) -> float:
    """The paper's words, with Python sets and all permutations."""
    from sklearn.cluster import KMeans

    train, test = embedded.train, embedded.test
    classes = sorted(set(train.labels.tolist()))
    solver = KMeans(
        len(classes), init=config.start, n_init=config.attempts, max_iter=config.iterations, tol=0, random_state=seed
    ).fit(train.rows)
    members = [set(np.flatnonzero(solver.labels_ == cluster)) for cluster in range(len(classes))]
    images = {label: set(np.flatnonzero(train.labels == label)) for label in classes}
    best = max(
        itertools.permutations(classes),
        key=lambda order: sum(len(m & images[label]) / len(m) for m, label in zip(members, order, strict=True)),
    )
    predicted = [best[cluster] for cluster in solver.predict(test.rows)]
    return float(np.mean(np.array(predicted) == test.labels))


@pytest.mark.parametrize("classes", [2, 3, 5])
@pytest.mark.parametrize("seed", [0, 3])
def test_alignment_is_that_of_the_papers_words(classes: int, seed: int, make_embedded: Callable[..., Embedded]) -> None:
    """Cluster alignment could not be compared with the published one."""
    embedded = make_embedded(train=211, test=101, classes=classes, noise=1.5, seed=seed)
    config = Config(seed=seed)
    found = evaluate(embedded, config)
    assert found == {"cluster_alignment": pytest.approx(independent(embedded, seed=seed, config=config))}
    assert 1 / classes < found["cluster_alignment"] < 1


def test_the_matching_is_made_on_the_train_split_only(make_embedded: Callable[..., Embedded]) -> None:
    """Test labels would choose the mapping that is then scored with them."""
    embedded = make_embedded(noise=1e-2)
    cycle = {7: 2, 2: 40, 40: 7}
    swapped = replace(embedded.test, labels=np.array([cycle[label] for label in embedded.test.labels.tolist()]))
    assert evaluate(embedded, Config()) == {"cluster_alignment": 1.0}
    assert evaluate(replace(embedded, test=swapped), Config()) == {"cluster_alignment": 0.0}


def test_repeats_give_the_mean_and_spread_over_seeds(make_embedded: Callable[..., Embedded]) -> None:
    """One lucky start would decide between two students."""
    embedded = make_embedded(train=211, classes=5, noise=2.5)
    single = [evaluate(embedded, Config(seed=seed, attempts=1))["cluster_alignment"] for seed in (4, 5, 6)]
    assert len(set(single)) > 1
    assert evaluate(embedded, Config(seed=4, repeats=3, attempts=1)) == {
        "cluster_alignment": pytest.approx(np.mean(single)),
        "cluster_alignment_std": pytest.approx(np.std(single, ddof=1)),
    }


def test_a_thousand_classes_of_one_image_each_will_do() -> None:
    """The paper's own number of classes, at the least number of images."""
    from compress_ssl.embeddings import Embeddings

    rows = np.random.default_rng(0).standard_normal((1000, 7)).astype(np.float32)
    rows /= np.linalg.norm(rows, axis=1, keepdims=True)
    names = tuple(str(number) for number in range(1000))
    table = Embeddings(rows=rows, labels=np.arange(1000)[::-1] * 3, ids=names)
    found = evaluate(Embedded(train=table, test=table), Config(attempts=1, iterations=2, start="random"))
    assert found == {"cluster_alignment": 1.0}


@pytest.mark.parametrize("wrong", [{"iterations": 0}, {"attempts": 0}, {"repeats": 0}, {"start_pairs": 0}])
def test_counts_start_at_one(wrong: dict[str, int]) -> None:
    """The mean over no repeats is not a number."""
    with pytest.raises(Refusal, match="expected iterations, attempts, repeats and start_pairs from 1 up, got "):
        Config(**wrong)
