"""Few labels against scikit-learn's logistic regression and its cross-validation."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest
import torch

from compress_ssl.draws import balanced_draw
from compress_ssl.evaluations import Embedded, few_labels
from compress_ssl.evaluations.few_labels import Config, choose_weight_decay, evaluate, unfit
from compress_ssl.refusal import Refusal
from compress_ssl.softmax_regression import softmax_regression

pytestmark = pytest.mark.filterwarnings("error:::compress_ssl")


def independent(embedded: Embedded, share: float, config: Config) -> dict[str, float]:
    """The docstring's words by scikit-learn, in float64."""
    from sklearn.linear_model import LogisticRegression
    from sklearn.metrics import top_k_accuracy_score
    from sklearn.preprocessing import StandardScaler

    scaler = StandardScaler().fit(embedded.train.rows.astype(np.float64))
    train, test = (scaler.transform(split.rows.astype(np.float64)) for split in (embedded.train, embedded.test))
    labels, numbered = np.unique(embedded.train.labels, return_inverse=True)
    per_class = max(1, round(share * len(train) / len(labels)))

    def judge(chosen: np.ndarray, decay: float) -> LogisticRegression:
        solver = LogisticRegression(C=1 / (len(chosen) * decay), tol=1e-8, max_iter=10_000)
        return solver.fit(train[chosen], embedded.train.labels[chosen])

    top_1, top_5 = [], []
    for repeat in range(config.repeats):
        drawn = balanced_draw(numbered, per_class=per_class, generator=np.random.default_rng(config.seed + repeat))
        chosen = drawn.ravel()
        assert chosen.min() >= 0
        fold = np.add.outer(np.arange(len(labels)), np.arange(per_class)).ravel() % config.folds
        right = {}
        for decay in config.weight_decays:
            right[decay] = 0
            for number in range(config.folds):
                held = chosen[fold == number]
                predicted = judge(chosen[fold != number], decay).predict(train[held])
                right[decay] += int((predicted == embedded.train.labels[held]).sum())
        best = max(config.weight_decays, key=lambda decay: (right[decay], decay))
        solver = judge(chosen, best)
        top_1.append(solver.score(test, embedded.test.labels))
        top_5.append(top_k_accuracy_score(embedded.test.labels, solver.decision_function(test), k=5))
    name = f"few_labels_{100 * share:g}"
    return {
        name: float(np.mean(top_1)),
        f"{name}_std": float(np.std(top_1, ddof=1)),
        f"{name}_top_5": float(np.mean(top_5)),
        f"{name}_top_5_std": float(np.std(top_5, ddof=1)),
    }


def seven_classes(make_embedded: Callable[..., Embedded], **options: float) -> Embedded:
    """Labels 0 … 6, which the fixtures' five names do not reach."""
    embedded = make_embedded(**options)
    generator = np.random.default_rng(1)
    centres = generator.standard_normal((7, embedded.train.rows.shape[1]))

    def around(table):
        kinds = np.concatenate([np.arange(7), generator.integers(0, 7, len(table.ids) - 7)])
        rows = centres[kinds] + 1.6 * generator.standard_normal(table.rows.shape)
        rows /= np.linalg.norm(rows, axis=1, keepdims=True)
        return replace(table, rows=rows.astype(np.float32), labels=3 * kinds)

    return replace(embedded, train=around(embedded.train), test=around(embedded.test), teacher=None, projected=None)


@pytest.mark.parametrize("seed", [0, 5])
def test_scores_are_those_of_scikit_learns_regression_and_folds(
    seed: int, make_embedded: Callable[..., Embedded]
) -> None:
    """The numbers could not stand beside the paper's 1 % and 10 %."""
    embedded = seven_classes(make_embedded, train=701, test=211)
    config = Config(shares=(0.05,), repeats=2, weight_decays=(1e-2, 1e-1, 10.0), seed=seed)
    found = evaluate(embedded, config)
    assert found == pytest.approx(independent(embedded, 0.05, config))
    assert 0.3 < found["few_labels_5"] < found["few_labels_5_top_5"] < 1


def test_the_test_labels_choose_nothing(
    make_embedded: Callable[..., Embedded], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A decay picked on the reported split flatters every model, and the more so the fewer the labels."""
    embedded = seven_classes(make_embedded, train=701, test=211)
    chosen: dict[str, list[float]] = {}

    def watch(name: str) -> None:
        decays = chosen.setdefault(name, [])

        def spy(*args: object, weight_decay: float, **options: object) -> object:
            decays.append(weight_decay)
            return softmax_regression(*args, weight_decay=weight_decay, **options)

        monkeypatch.setattr(few_labels, "softmax_regression", spy)

    shuffled = replace(embedded.test, labels=embedded.test.labels[::-1].copy())
    config = Config(shares=(0.05,), repeats=2)
    watch("true")
    evaluate(embedded, config)
    watch("shuffled")
    evaluate(replace(embedded, test=shuffled), config)
    assert chosen["true"] == chosen["shuffled"]
    assert len(chosen["true"]) == 2 * (5 * 3 + 1)


def test_more_labels_help_and_all_of_them_are_the_linear_probe(make_embedded: Callable[..., Embedded]) -> None:
    """The row of 1 %, 10 % and 100 % would not be one experiment."""
    from compress_ssl.evaluations import linear_probe

    embedded = make_embedded(train=305, test=211, classes=5, noise=1.5)
    found = evaluate(embedded, Config(shares=(0.02, 1.0), repeats=2, weight_decays=(1e-4,)))
    assert found["few_labels_2"] < found["few_labels_100"]
    probe = linear_probe.evaluate(embedded, linear_probe.Config())["linear_probe"]
    assert found["few_labels_100"] == pytest.approx(probe, abs=1.5 / 211)
    assert found["few_labels_100_std"] == pytest.approx(0, abs=1e-2)
    assert "few_labels_2_top_5" not in found, "always right with five classes"


def test_one_image_a_class_leaves_nothing_to_hold_out() -> None:
    """One per cent of a small folder would end in an error about folds."""
    rows, targets = torch.eye(3), torch.arange(3)
    decays = (1.0, 1e-3, 1e-1)
    assert choose_weight_decay(rows, targets, folds=np.zeros(3), classes=3, weight_decays=decays) == 1e-1


def test_images_that_are_in_both_splits_are_left_out(make_embedded: Callable[..., Embedded]) -> None:
    """A labelled image would be asked for its own class."""
    embedded = make_embedded()
    assert unfit(embedded) is None
    assert unfit(Embedded(train=embedded.train, test=embedded.train)) == "needs test images that are not train images"


@pytest.mark.parametrize(
    "wrong",
    [
        {"shares": ()},
        {"shares": (10.0,)},
        {"repeats": 1},
        {"folds": 1},
        {"weight_decays": (0.0,)},
        {"weight_decays": ()},
    ],
)
def test_what_cannot_be_fitted_is_refused(wrong: dict[str, object]) -> None:
    """10 for 10 % would ask for ten times the images there are."""
    with pytest.raises(Refusal, match=r"^expected (shares of the labels|repeats and folds|weight decays) "):
        Config(**wrong)
