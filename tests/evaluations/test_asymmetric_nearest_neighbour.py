"""Student queries in the teacher's gallery, against scikit-learn."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest

from compress_ssl.evaluations import Embedded
from compress_ssl.evaluations.asymmetric_nearest_neighbour import Config, evaluate, unfit


@pytest.mark.parametrize("seed", [0, 1])
def test_accuracy_is_that_of_projected_queries_in_the_teachers_gallery(
    seed: int, make_embedded: Callable[..., Embedded]
) -> None:
    """The promise of 1q, to search an index that exists, would be measured in the wrong space."""
    from sklearn.neighbors import KNeighborsClassifier

    embedded = make_embedded(train=307, test=101, classes=5, noise=1.5, seed=seed)
    assert embedded.teacher is not None
    assert embedded.projected is not None
    judge = KNeighborsClassifier(1, algorithm="brute").fit(embedded.teacher.train.rows, embedded.train.labels)
    expected = judge.score(embedded.projected.rows, embedded.test.labels)
    assert evaluate(embedded, Config()) == {"asymmetric_nearest_neighbour": expected}
    assert expected != judge.score(embedded.teacher.test.rows, embedded.test.labels)


def test_a_teacher_stored_without_labels_is_searched_all_the_same(embedded: Embedded) -> None:
    """An index of plain vectors, the very case this is for, would count as unlabelled."""
    teacher = embedded.teacher
    assert teacher is not None

    def bare(split: str) -> object:
        table = getattr(teacher, split)
        return replace(table, labels=np.full_like(table.labels, -1))

    stored = replace(teacher, train=bare("train"), test=bare("test"))
    assert unfit(replace(embedded, teacher=stored)) is None
    assert evaluate(replace(embedded, teacher=stored), Config()) == evaluate(embedded, Config())


def test_images_scored_against_themselves_are_left_out(make_embedded: Callable[..., Embedded]) -> None:
    """Data without a test split would score 100 % for a projector that hits the teacher's own rows."""
    teacher = make_embedded(noise=1e3).teacher
    assert teacher is not None
    itself = Embedded(train=teacher.train, test=teacher.train)
    embedded = replace(itself, teacher=itself, projected=teacher.train)
    assert evaluate(embedded, Config())["asymmetric_nearest_neighbour"] < 0.6


def test_what_is_missing_is_named(embedded: Embedded) -> None:
    """A 2q student would get a number from rows that do not lie in the teacher's space."""
    none = replace(embedded.test, labels=np.full_like(embedded.test.labels, -1))
    assert unfit(embedded) is None
    assert "only a 1q student" in str(unfit(replace(embedded, projected=None)))
    assert unfit(replace(embedded, teacher=None)) == "needs the teacher's embeddings"
    assert unfit(replace(embedded, test=none)) == "needs labels"
    narrow = replace(embedded, projected=embedded.test)
    assert unfit(narrow) == "needs projected rows as wide as the teacher's: 11 and 13"
