"""Neighbour overlap against sets in a loop."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest

from compress_ssl.evaluations import Embedded
from compress_ssl.evaluations.neighbour_overlap import Config, evaluate, unfit
from compress_ssl.refusal import Refusal


def neighbours(embedded: Embedded, query: int, count: int) -> set[int]:
    similarities = embedded.train.rows.astype(np.float64) @ embedded.test.rows[query].astype(np.float64)
    return set(np.argsort(-similarities)[:count].tolist())


@pytest.mark.parametrize("seed", [0, 1])
def test_overlap_is_the_mean_share_of_common_neighbours(seed: int, make_embedded: Callable[..., Embedded]) -> None:
    """The score that chooses the best checkpoint would not be what its name says."""
    embedded = make_embedded(noise=2.0, seed=seed)
    assert embedded.teacher is not None
    expected = {
        f"neighbour_overlap_{count}": np.mean(
            [len(neighbours(embedded, q, count) & neighbours(embedded.teacher, q, count)) / count for q in range(23)]
        )
        for count in (1, 5, 10, 50)
    }
    assert evaluate(embedded, Config()) == pytest.approx(expected)
    alone = {"neighbour_overlap_10": expected["neighbour_overlap_10"]}
    assert evaluate(embedded, Config(neighbours=(10,))) == pytest.approx(alone)
    assert 0.1 < expected["neighbour_overlap_10"] < 0.9


def test_the_teacher_keeps_all_its_own_neighbours(embedded: Embedded) -> None:
    """The first row of every table would not be the yardstick."""
    teacher = embedded.teacher
    assert teacher is not None
    assert evaluate(replace(teacher, teacher=teacher), Config(neighbours=(1, 5, 10))) == {
        "neighbour_overlap_1": 1.0,
        "neighbour_overlap_5": 1.0,
        "neighbour_overlap_10": 1.0,
    }


def test_a_rotation_of_the_teacher_keeps_all_neighbours(embedded: Embedded) -> None:
    """A student of the 2q kind lives in a space of its own and would be punished for it."""
    teacher = embedded.teacher
    assert teacher is not None
    turn = np.linalg.qr(np.random.default_rng(0).standard_normal((13, 13)))[0].astype(np.float32)
    train, test = (replace(table, rows=table.rows @ turn) for table in (teacher.train, teacher.test))
    assert evaluate(Embedded(train=train, test=test, teacher=teacher), Config(neighbours=(10,))) == {
        "neighbour_overlap_10": 1.0
    }


def test_chance_is_the_share_of_the_gallery(make_embedded: Callable[..., Embedded]) -> None:
    """Nobody could tell a bad student from none: 10 of 200 unrelated images overlap by 5 %."""
    one, other = (make_embedded(train=200, test=300, noise=1e3, seed=seed) for seed in (0, 1))
    unrelated = Embedded(train=one.train, test=one.test, teacher=Embedded(train=other.train, test=other.test))
    assert evaluate(unrelated, Config())["neighbour_overlap_10"] == pytest.approx(0.05, abs=0.01)


def test_a_small_gallery_is_compared_whole(make_embedded: Callable[..., Embedded]) -> None:
    """Validation on seven images would fail, or divide their overlap by ten."""
    found = evaluate(make_embedded(train=7), Config(neighbours=(10, 50)))
    assert found == {"neighbour_overlap_10": 1.0, "neighbour_overlap_50": 1.0}


def test_images_scored_against_themselves_are_left_out(make_embedded: Callable[..., Embedded]) -> None:
    """Each image would keep itself as a neighbour, and every student get one in ten for free."""
    full = make_embedded(noise=1e3)
    assert full.teacher is not None
    embedded = Embedded(
        train=full.train, test=full.train, teacher=Embedded(train=full.teacher.train, test=full.teacher.train)
    )
    found = evaluate(embedded, Config(neighbours=(1,)))["neighbour_overlap_1"]
    assert found < 0.2


def test_the_teacher_is_needed_and_labels_are_not(embedded: Embedded) -> None:
    """Unlabelled folders would have no score at all."""
    none = replace(embedded.test, labels=np.full_like(embedded.test.labels, -1))
    assert unfit(replace(embedded, test=none)) is None
    assert evaluate(replace(embedded, test=none), Config()) == evaluate(embedded, Config())
    assert unfit(replace(embedded, teacher=None)) == "needs the teacher's embeddings"


@pytest.mark.parametrize("neighbours", [(), (0,)])
def test_numbers_of_neighbours_start_at_one(neighbours: tuple[int, ...]) -> None:
    """A share of nothing is not a number."""
    with pytest.raises(Refusal, match="expected numbers of neighbours from 1 up, got "):
        Config(neighbours=neighbours)
