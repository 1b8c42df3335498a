"""Retrieval against scikit-learn's average precision and sorted lists."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest

from compress_ssl.evaluations import Embedded, retrieval
from compress_ssl.evaluations.retrieval import Config, evaluate
from compress_ssl.refusal import Refusal


def ranked(embedded: Embedded) -> np.ndarray:
    """(Q, N) whether each image of a query's ranking is of its class."""
    similarities = embedded.test.rows.astype(np.float64) @ embedded.train.rows.T.astype(np.float64)
    order = np.argsort(-similarities, axis=1, kind="stable")
    return embedded.train.labels[order] == embedded.test.labels[:, None]


@pytest.mark.parametrize("seed", [0, 1])
@pytest.mark.parametrize("at_once", [1, 1000, 2**22])
def test_mean_average_precision_is_that_of_scikit_learn(
    seed: int, at_once: int, make_embedded: Callable[..., Embedded], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Rankings of one's own making could not be compared with anybody's."""
    from sklearn.metrics import average_precision_score

    monkeypatch.setattr(retrieval, "AT_ONCE", at_once)
    embedded = make_embedded(train=307, test=101, classes=5, noise=1.5, seed=seed)
    similarities = embedded.test.rows.astype(np.float64) @ embedded.train.rows.T.astype(np.float64)
    expected = [
        average_precision_score(embedded.train.labels == label, row)
        for label, row in zip(embedded.test.labels, similarities, strict=True)
    ]
    found = evaluate(embedded, Config())
    assert found["retrieval_map"] == pytest.approx(np.mean(expected), abs=1e-5)
    assert 0.25 < found["retrieval_map"] < 0.9


def test_the_first_images_are_counted_as_in_a_sorted_list(make_embedded: Callable[..., Embedded]) -> None:
    """recall@k is a word for two things; the one that is documented must be the one that is computed."""
    embedded = make_embedded(train=307, test=101, classes=5, noise=1.5)
    found, lists = evaluate(embedded, Config(first=(1, 3, 10))), ranked(embedded).tolist()
    for first in (1, 3, 10):
        assert found[f"retrieval_recall_{first}"] == np.mean([any(row[:first]) for row in lists])
        assert found[f"retrieval_precision_{first}"] == pytest.approx(np.mean([sum(r[:first]) / first for r in lists]))
    assert found["retrieval_recall_1"] == found["retrieval_precision_1"] < found["retrieval_recall_3"]


@pytest.mark.parametrize("cutoff", [1, 7, 100])
def test_a_cutoff_looks_at_the_first_images_alone(cutoff: int, make_embedded: Callable[..., Embedded]) -> None:
    """A cheaper number would be taken for the dearer one."""
    embedded = make_embedded(train=307, test=101, classes=5, noise=1.5)
    expected = []
    for row in ranked(embedded).tolist():
        precisions = [sum(row[: place + 1]) / (place + 1) for place in range(cutoff) if row[place]]
        expected.append(sum(precisions) / min(cutoff, sum(row)))
    found = evaluate(embedded, Config(cutoff=cutoff))
    assert found[f"retrieval_map_{cutoff}"] == pytest.approx(np.mean(expected))
    assert "retrieval_map" not in found


def test_a_cutoff_of_the_whole_gallery_is_the_whole_ranking(make_embedded: Callable[..., Embedded]) -> None:
    """Both ways of computing one number would differ."""
    embedded = make_embedded(train=61, noise=1.5)
    whole = evaluate(embedded, Config())["retrieval_map"]
    assert evaluate(embedded, Config(cutoff=61))["retrieval_map_61"] == pytest.approx(whole, abs=1e-5)


def test_a_collapsed_encoder_scores_the_share_of_the_class(make_embedded: Callable[..., Embedded]) -> None:
    """The order of the files would decide, and sorted folders find everything at once."""
    embedded = make_embedded(train=60, classes=3)
    point = embedded.train.rows[:1]
    collapsed = Embedded(
        train=replace(embedded.train, rows=np.repeat(point, 60, axis=0)),
        test=replace(embedded.test, rows=np.repeat(point, len(embedded.test.ids), axis=0)),
    )
    assert evaluate(collapsed, Config())["retrieval_map"] == pytest.approx(1 / 3)


@pytest.mark.parametrize("cutoff", [None, 60])
def test_a_query_does_not_find_itself(cutoff: int | None, make_embedded: Callable[..., Embedded]) -> None:
    """The first image found would always be right, and count as one to be found."""
    from sklearn.metrics import average_precision_score

    train = make_embedded(noise=2.0).train
    similarities = train.rows.astype(np.float64) @ train.rows.T.astype(np.float64)
    expected = [
        average_precision_score(np.delete(train.labels == train.labels[one], one), np.delete(similarities[one], one))
        for one in range(len(train.ids))
    ]
    found = evaluate(Embedded(train=train, test=train), Config(cutoff=cutoff))
    name = "retrieval_map" + f"_{cutoff}" * (cutoff is not None)
    assert found[name] == pytest.approx(np.mean(expected), abs=1e-5)
    assert found["retrieval_recall_1"] < 1


@pytest.mark.parametrize("wrong", [{"first": ()}, {"first": (0, 5)}, {"cutoff": 0}])
def test_counts_start_at_one(wrong: dict[str, object]) -> None:
    """Precision among no images is not a number."""
    with pytest.raises(Refusal, match=r"^expected (numbers of first images|a cutoff) from 1 up, got "):
        Config(**wrong)
