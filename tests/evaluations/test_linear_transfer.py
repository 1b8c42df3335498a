"""Linear transfer against scikit-learn's logistic regression, with the penalty picked by hand."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest

from compress_ssl.embeddings import Embeddings
from compress_ssl.evaluations import Embedded
from compress_ssl.evaluations.linear_transfer import Config, choose_weight_decay, evaluate, held_out, part
from compress_ssl.refusal import Refusal

pytestmark = pytest.mark.filterwarnings("error:::compress_ssl")


def judged(train: Embeddings, test: Embeddings, weight_decay: float) -> np.ndarray:
    """Labels that scikit-learn's regression in float64 gives to `test`; its C counts images, our decay does not."""
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    regression = LogisticRegression(C=1 / (len(train.ids) * weight_decay), tol=1e-8, max_iter=10_000)
    model = make_pipeline(StandardScaler(), regression).fit(train.rows.astype(np.float64), train.labels)
    return model.predict(test.rows.astype(np.float64))


def by_hand(train: Embeddings, share: float) -> np.ndarray:
    """A fifth of each class, those with the smallest sha256 of their ids; one at least of two."""
    held = set()
    for label in set(train.labels.tolist()):
        ids = sorted(
            (id for id, one in zip(train.ids, train.labels, strict=True) if one == label),
            key=lambda id: hashlib.sha256(id.encode()).hexdigest(),
        )
        held |= set(ids[: max(int(share * len(ids)), 1)]) if len(ids) > 1 else set()
    return np.array([id in held for id in train.ids])


@pytest.mark.parametrize(("seed", "noise"), [(0, 1.0), (1, 2.0), (2, 4.0)])
def test_the_protocol_is_that_of_scikit_learn_on_a_grid(
    seed: int, noise: float, make_embedded: Callable[..., Embedded]
) -> None:
    """Our transfer numbers could not stand next to anybody else's."""
    embedded = make_embedded(train=211, test=97, classes=5, noise=noise, seed=seed, width=17)
    train, test = embedded.train, embedded.test
    held = by_hand(train, 0.2)
    grid = [10.0**power for power in range(-6, 1)]
    scores = {}

    def score(decay: float) -> float:
        if decay not in scores:
            found = judged(part(train, ~held), part(train, held), decay)
            scores[decay] = float((found == train.labels[held]).mean())
        return scores[decay]

    best = max(grid, key=lambda decay: (score(decay), decay))
    halfway = [best * 10**half for half in (-0.5, 0.5) if 1e-6 <= best * 10**half <= 1]
    best = max([*grid, *halfway], key=lambda decay: (score(decay), decay))
    assert choose_weight_decay(train, Config()) == pytest.approx(best)
    predicted = judged(train, test, best)
    found = evaluate(embedded, Config(per_class=True))
    assert found["linear_transfer"] == pytest.approx((predicted == test.labels).mean(), abs=1e-12)
    shares = [(predicted[test.labels == label] == label).mean() for label in set(test.labels.tolist())]
    assert found["linear_transfer_per_class"] == pytest.approx(np.mean(shares), abs=1e-12)
    assert list(evaluate(embedded, Config())) == ["linear_transfer"]


def noisy(train: int = 157) -> Embedded:
    """Two dimensions that tell two classes apart, badly, and 60 that are noise: hardly penalised, noise is learnt."""
    generator = np.random.default_rng(3)

    def rows(count: int, split: str) -> Embeddings:
        labels = np.arange(count) % 2
        found = generator.standard_normal((count, 62))
        found[:, :2] += 0.8 * (2 * labels[:, None] - 1)
        unit = (found / np.linalg.norm(found, axis=1, keepdims=True)).astype(np.float32)
        return Embeddings(rows=unit, labels=labels, ids=tuple(f"{split}/{place}" for place in range(count)))

    return Embedded(train=rows(train, "train"), test=rows(2003, "test"))


def test_choosing_the_penalty_pays_where_the_default_of_the_probe_learns_noise() -> None:
    """A small data set would show what was overfitted, not what the embeddings hold."""
    from compress_ssl.evaluations import linear_probe

    embedded = noisy()
    assert choose_weight_decay(embedded.train, Config()) > 1e-2
    fixed = linear_probe.evaluate(embedded, linear_probe.Config())["linear_probe"]
    assert evaluate(embedded, Config())["linear_transfer"] > fixed + 0.02


def test_every_model_is_judged_on_the_same_held_out_images(make_embedded: Callable[..., Embedded]) -> None:
    """Two models would have their penalties picked on different images; a class of one image would lose it."""
    train = make_embedded(train=61, classes=4).train
    alone = replace(train, labels=np.where(np.arange(61) == 7, 99, train.labels))
    held = held_out(alone, 0.2)
    np.testing.assert_array_equal(held, by_hand(alone, 0.2))
    assert not held[7]
    order = np.random.default_rng(1).permutation(61)
    shuffled = Embeddings(alone.rows[order], alone.labels[order], tuple(alone.ids[place] for place in order))
    np.testing.assert_array_equal(held_out(shuffled, 0.2), held[order])


def test_one_image_of_each_class_leaves_nothing_to_choose_by(make_embedded: Callable[..., Embedded]) -> None:
    """An empty held-out part would end in a division by zero."""
    embedded = make_embedded(train=3, classes=3, noise=1e-2)
    assert choose_weight_decay(embedded.train, Config(weight_decays=(1e-3, 1e-1))) == 1e-1
    assert evaluate(embedded, Config())["linear_transfer"] == 1.0


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ({"weight_decays": ()}, "weight_decays above 0"),
        ({"weight_decays": (0.0, 1.0)}, "weight_decays above 0"),
        ({"weight_decays": (float("nan"),)}, "weight_decays above 0"),
        ({"held_out": 1.0}, "between 0 and 1"),
        ({"halvings": -1}, "from 0 up"),
    ],
)
def test_settings_that_mean_nothing_are_refused(options: dict, told: str) -> None:
    """The error would come after hours of embedding."""
    with pytest.raises(Refusal, match=told):
        Config(**options)
