"""n-shot accuracy against scikit-learn's classifiers on the same draws."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest

from compress_ssl.draws import balanced_draw
from compress_ssl.embeddings import Embeddings
from compress_ssl.evaluations import Embedded, n_shot
from compress_ssl.evaluations.n_shot import Config, evaluate, mean_interval, unfit
from compress_ssl.refusal import Refusal


def independent(embedded: Embedded, config: Config) -> dict[str, float]:
    """One classifier of scikit-learn for each draw and number of shots."""
    from scipy import stats
    from sklearn.neighbors import KNeighborsClassifier, NearestCentroid

    train, test = embedded.train, embedded.test
    _, numbered = np.unique(train.labels, return_inverse=True)
    generator = np.random.default_rng(config.seed)
    found: dict[str, list[float]] = {}
    for _ in range(config.draws):
        drawn = balanced_draw(numbered, per_class=max(config.shots), generator=generator)
        for shots in config.shots:
            shown = drawn[:, :shots][drawn[:, :shots] >= 0]
            for kind, judge in (("class_mean", NearestCentroid()), ("nearest_neighbour", KNeighborsClassifier(1))):
                judge.fit(train.rows[shown].astype(np.float64), train.labels[shown])
                score = judge.score(test.rows.astype(np.float64), test.labels)
                found.setdefault(f"n_shot_{kind}_{shots}", []).append(score)
    metrics = {}
    for name, scores in found.items():
        low, high = stats.t.interval(0.95, len(scores) - 1, loc=np.mean(scores), scale=stats.sem(scores))
        metrics |= {name: np.mean(scores), f"{name}_interval": (high - low) / 2}
    return metrics


@pytest.mark.parametrize("classes", [2, 5])
@pytest.mark.parametrize("at_once", [7, 2**24])
def test_scores_are_those_of_scikit_learn(
    classes: int, at_once: int, make_embedded: Callable[..., Embedded], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Products of means, and means of products, would be confused without anybody seeing it."""
    monkeypatch.setattr(n_shot, "AT_ONCE", at_once)
    embedded = make_embedded(train=67, test=101, classes=classes, noise=1.5)
    config = Config(shots=(1, 3, 5), draws=4, seed=2)
    found = evaluate(embedded, config)
    assert found == pytest.approx(independent(embedded, config))
    assert 1 / classes < found["n_shot_class_mean_1"] < found["n_shot_class_mean_5"] < 1
    assert found["n_shot_class_mean_1"] == found["n_shot_nearest_neighbour_1"]
    assert found["n_shot_class_mean_5"] != found["n_shot_nearest_neighbour_5"]


def test_a_class_with_fewer_images_gives_all_it_has(make_embedded: Callable[..., Embedded]) -> None:
    """A missing image would stand at the origin, near to everybody."""
    embedded = make_embedded(train=61, test=101, noise=1.5)
    rare = np.flatnonzero(embedded.train.labels == 40)[3:]
    labels = embedded.train.labels.copy()
    labels[rare] = 7
    embedded = replace(embedded, train=replace(embedded.train, labels=labels), teacher=None, projected=None)
    config = Config(shots=(2, 8), draws=3)
    assert evaluate(embedded, config) == pytest.approx(independent(embedded, config))


def test_the_interval_holds_the_mean_of_all_draws_in_nineteen_of_twenty() -> None:
    """A difference between two students would be believed, or doubted, too easily."""
    generator = np.random.default_rng(0)
    held = 0
    for _ in range(2000):
        mean, half = mean_interval(generator.normal(0.5, 0.1, 5).tolist())
        held += abs(mean - 0.5) <= half
    assert held / 2000 == pytest.approx(0.95, abs=0.015)


def test_an_image_is_never_its_own_example(make_embedded: Callable[..., Embedded]) -> None:
    """Test images that are train images, too, would be recognised whatever the encoder."""
    embedded = make_embedded(noise=1e3)
    train, test = embedded.train, embedded.test
    both = Embeddings(
        np.concatenate([test.rows, train.rows[:7]]),
        np.concatenate([test.labels, train.labels[:7]]),
        (*test.ids, *train.ids[:7]),
    )
    mixed = replace(embedded, test=both, teacher=None, projected=None)
    assert evaluate(mixed, Config()) == evaluate(embedded, Config())
    itself = replace(mixed, test=train)
    assert unfit(itself) == "needs test images that are not train images"
    assert unfit(mixed) is None


@pytest.mark.parametrize("wrong", [{"shots": ()}, {"shots": (2, 0)}, {"draws": 1}])
def test_what_cannot_be_drawn_is_refused(wrong: dict[str, object]) -> None:
    """One draw would have an interval that is not a number."""
    with pytest.raises(Refusal, match=r"^expected (numbers of labelled images from 1 up|at least 2 draws)"):
        Config(**wrong)
