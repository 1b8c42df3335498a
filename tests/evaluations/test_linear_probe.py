"""The linear probe against scikit-learn's regression and a loop of plain SGD."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest
import torch

from compress_ssl.embeddings import Embeddings
from compress_ssl.evaluations import Embedded
from compress_ssl.evaluations.linear_probe import Config, evaluate, sgd_regression
from compress_ssl.refusal import Refusal
from compress_ssl.softmax_regression import standardiser

pytestmark = pytest.mark.filterwarnings("error:::compress_ssl")


@pytest.mark.parametrize("classes", [5, 6, 9])
def test_the_five_likeliest_classes_are_those_of_scikit_learn(problem, classes: int) -> None:
    """Of five classes the right one is always among the five likeliest; labels with gaps would name other classes."""
    from sklearn.linear_model import LogisticRegression
    from sklearn.metrics import top_k_accuracy_score

    rows, targets = problem(count=311, classes=classes)
    rows /= np.linalg.norm(rows, axis=1, keepdims=True)
    random = np.random.default_rng(7)
    labels = 3 * np.where(random.random(311) < 0.4, random.integers(0, classes, 311), targets) + 2  # none is certain
    train, test = (
        Embeddings(
            rows=rows[part], labels=labels[part], ids=tuple(f"{name}{number}" for number in range(len(rows[part])))
        )
        for name, part in (("train", slice(0, 211)), ("test", slice(211, None)))
    )
    metrics = evaluate(Embedded(train=train, test=test), Config(weight_decay=1e-2))
    mean, deviation = train.rows.mean(axis=0), train.rows.std(axis=0)
    judge = LogisticRegression(C=1 / (211 * 1e-2), tol=1e-10, max_iter=10_000)
    judge.fit(((train.rows - mean) / deviation).astype(np.float64), train.labels)
    likely = judge.predict_proba((test.rows - mean) / deviation)
    # in float32, one of a hundred images may fall to the other side
    assert metrics["linear_probe"] == pytest.approx(
        (judge.classes_[likely.argmax(axis=1)] == test.labels).mean(), abs=0.011
    )
    if classes == 5:
        assert list(metrics) == ["linear_probe"]
    else:
        assert metrics["linear_probe_5"] == pytest.approx(top_k_accuracy_score(test.labels, likely, k=5), abs=0.011)
        assert metrics["linear_probe"] < metrics["linear_probe_5"] < 1


def naive_sgd(views: list[np.ndarray], targets: np.ndarray, classes: int, config: Config) -> tuple[np.ndarray, ...]:
    """Plain loops in float64; the order of the images is the only thing shared with the code under test."""
    parameters = np.zeros((classes, views[0].shape[1] + 1))
    speed = np.zeros_like(parameters)
    order = torch.Generator().manual_seed(config.seed)
    rate = config.learning_rate
    for epoch in range(config.epochs):
        if epoch in config.milestones:
            rate *= config.factor
        rows = np.concatenate([views[epoch], np.ones((len(targets), 1))], axis=1).astype(np.float64)
        shuffled = torch.randperm(len(rows), generator=order).numpy()
        for first in range(0, len(rows), config.batch_size):
            index = shuffled[first : first + config.batch_size]
            gradient = np.zeros_like(parameters)
            for image in index:
                odds = np.exp(parameters @ rows[image])
                gradient += np.outer(odds / odds.sum() - np.eye(classes)[targets[image]], rows[image]) / len(index)
            speed = config.sgd_momentum * speed + gradient + config.weight_decay * parameters
            parameters = parameters - rate * speed
    return parameters[:, :-1], parameters[:, -1]


def test_the_papers_protocol_is_plain_sgd_on_new_views_every_epoch(problem) -> None:
    """Published linear numbers could not be compared with ours."""
    config = Config(
        protocol="paper", epochs=5, batch_size=16, learning_rate=0.1, weight_decay=1e-2, milestones=(2, 4), seed=3
    )
    views = [problem(count=61, seed=epoch)[0] for epoch in range(5)]
    targets = problem(count=61)[1]
    weight, bias = sgd_regression(
        lambda epoch: torch.from_numpy(views[epoch]), torch.from_numpy(targets), classes=3, config=config
    )
    expected = naive_sgd(views, targets, 3, config)
    np.testing.assert_allclose(weight.numpy(), expected[0], atol=1e-5)
    np.testing.assert_allclose(bias.numpy(), expected[1], atol=1e-5)
    assert np.abs(expected[0]).max() > 0.1


def test_the_papers_hyper_parameters_are_the_defaults() -> None:
    """The protocol would carry the paper's name and not its numbers."""
    config = Config(protocol="paper")
    assert (config.epochs, config.batch_size, config.learning_rate, config.sgd_momentum) == (40, 256, 0.01, 0.9)
    assert (config.weight_decay, config.milestones, config.factor) == (1e-4, (15, 30), 0.1)


def test_every_epoch_asks_for_its_own_views_and_gets_the_same_map(make_embedded: Callable[..., Embedded]) -> None:
    """Training on one view 40 times, or views standardised by themselves, would be another protocol."""
    embedded = make_embedded(noise=1e-2)
    asked = []

    def augmented(epoch: int) -> Embeddings:
        asked.append(epoch)
        return embedded.train

    config = Config(protocol="paper", epochs=7, learning_rate=0.1)
    found = evaluate(replace(embedded, augmented=augmented), config)
    assert asked == list(range(7))
    mean, scale = standardiser(torch.from_numpy(embedded.train.rows))
    rows = (torch.from_numpy(embedded.train.rows) - mean) * scale
    classes, targets = np.unique(embedded.train.labels, return_inverse=True)
    weight, bias = sgd_regression(lambda _: rows, torch.from_numpy(targets), classes=3, config=config)
    logits = (torch.from_numpy(embedded.test.rows) - mean) * scale @ weight.T + bias
    expected = (classes[logits.argmax(dim=1)] == embedded.test.labels).mean()
    assert found == {"linear_probe": expected}


def test_both_protocols_agree_where_there_is_only_one_view(make_embedded: Callable[..., Embedded]) -> None:
    """The fast protocol would be no stand-in for the paper's."""
    embedded = make_embedded(train=307, test=101, classes=5, noise=1.5)
    still = replace(embedded, augmented=lambda _: embedded.train)
    stored, paper = (
        evaluate(still, Config(protocol=protocol, weight_decay=1e-2, learning_rate=0.1))["linear_probe"]
        for protocol in ("stored", "paper")
    )
    assert stored == pytest.approx(paper, abs=0.02)
    assert 0.5 < stored < 0.99


def test_the_papers_protocol_works_where_gradients_are_off(make_embedded: Callable[..., Embedded]) -> None:
    """`evaluate` embeds without gradients; the probe inside it could not learn."""
    config = Config(protocol="paper", epochs=3)
    expected = evaluate(make_embedded(), config)
    with torch.no_grad():
        assert evaluate(make_embedded(), config) == expected


def test_views_that_are_missing_or_of_other_images_are_refused(embedded: Embedded) -> None:
    """Rows of one image would be trained with the label of another."""
    config = Config(protocol="paper", epochs=1)
    with pytest.raises(Refusal, match=r"under random views for the protocol 'paper', got stored rows only"):
        evaluate(replace(embedded, augmented=None), config)
    mixed = replace(embedded.train, ids=embedded.train.ids[::-1])
    with pytest.raises(Refusal, match=r"random views of epoch 0 .* differ from position 0 on"):
        evaluate(replace(embedded, augmented=lambda _: mixed), config)


@pytest.mark.parametrize(
    "wrong", [{"epochs": 0}, {"batch_size": 0}, {"weight_decay": 0.0}, {"weight_decay": float("nan")}]
)
def test_a_probe_that_cannot_be_solved_is_refused(wrong: dict[str, float]) -> None:
    """Separable classes without weight decay have no optimum, and no number of iterations finds it."""
    with pytest.raises(Refusal, match=r"^expected (epochs and batch_size|a weight_decay)"):
        Config(**wrong)
