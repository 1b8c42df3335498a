"""What judges a student while it learns: means in little memory, one search among the rows of each teacher."""

from __future__ import annotations

import gc
import math
import tracemalloc
import weakref
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from rich.console import Console

from compress_ssl import datasets, evaluations
from compress_ssl.datasets import Splits
from compress_ssl.embeddings import Embeddings
from compress_ssl.encoder import open_encoder
from compress_ssl.evaluations import Embedded
from compress_ssl.neighbours import nearest_neighbours
from compress_ssl.refusal import Refusal
from compress_ssl.run_folder import RunFolder
from compress_ssl.scorer import Scorer, settle_centres
from compress_ssl.student import Student


def test_the_mean_of_the_gallery_is_exact_and_copies_no_row() -> None:
    """A gallery of a million rows would be copied in float64, twice its size, before the first step."""
    rows = np.random.default_rng(0).standard_normal((20_011, 97)).astype(np.float32) + 0.3
    rows /= np.linalg.norm(rows, axis=1, keepdims=True)
    train, test = (
        Embeddings(one, np.zeros(len(one), dtype=np.int64), tuple(map(str, range(len(one)))))
        for one in (rows, rows[:7])
    )
    judge = Embedded(train=train, test=test)
    told: list[torch.Tensor] = []
    asking = SimpleNamespace(centre_on=told.append)
    alone: Any = SimpleNamespace(world_size=1, broadcast=lambda value: value)
    allocated = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch.Tensor, "double", lambda rows: allocated.append(rows.numel()))
        tracemalloc.start()
        settle_centres([asking], [judge], alone)  # type: ignore[arg-type]
        most = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
    np.testing.assert_array_equal(told[0], np.array([math.fsum(row) / len(rows) for row in rows.T], dtype=np.float32))
    assert most < rows.nbytes / 10
    assert not allocated, "torch's copies are not traced"


@pytest.fixture
def searches(monkeypatch: pytest.MonkeyPatch) -> list[torch.Tensor]:
    """The galleries that are searched from now on."""
    asked: list[torch.Tensor] = []

    def watched(queries: torch.Tensor, gallery: torch.Tensor, **options: Any) -> Any:
        asked.append(gallery)
        return nearest_neighbours(queries, gallery, **options)

    monkeypatch.setattr(evaluations, "nearest_neighbours", watched)
    return asked


def rows_of(images: Any, width: int, seed: int, *, without: int = 0) -> Embeddings:
    """Rows of a teacher that nobody has, for all images but the last few."""
    rows = np.random.default_rng(seed).standard_normal((len(images), width)).astype(np.float32)
    rows /= np.linalg.norm(rows, axis=1, keepdims=True)
    kept = slice(0, len(images) - without)
    return Embeddings(rows[kept], np.asarray(images.labels)[kept], tuple(images.ids)[kept])


@pytest.fixture
def make_scorer(tmp_path: Path) -> Callable[..., Scorer]:
    def make(*, teachers: int = 1, without: int = 0) -> Scorer:
        splits = datasets.open_splits("digits")
        assert splits.test is not None
        gallery, _ = datasets.hold_out(splits.test, count=len(splits.test) - 71)
        _, asked = datasets.hold_out(splits.train, count=23)
        watched = Splits(gallery, asked)
        judges = [
            Embedded(
                train=rows_of(gallery, 11, seed, without=without), test=rows_of(asked, 11, seed + 9, without=without)
            )
            for seed in range(teachers)
        ]
        torch.manual_seed(4)
        names = ["teacher", "teacher_2"][:teachers]
        return Scorer(
            Student(open_encoder("compress/resnet10_small_w8@random", weights="random", size=8)),
            SimpleNamespace(names=names, specs=names, members=[None] * teachers),  # type: ignore[arg-type]
            judges,
            SimpleNamespace(shares=[0.75, 0.25][-teachers:] if teachers > 1 else [1.0]),  # type: ignore[arg-type]
            [],
            data="digits",
            splits=watched,
            folder=RunFolder(tmp_path),
            on_skip=lambda skipped: pytest.fail(str(skipped)),
            workers=0,
            console=Console(quiet=True),
        )

    return make


def validate(scorer: Scorer) -> dict[str, float]:
    return scorer(SimpleNamespace(best=2.0))  # type: ignore[arg-type]  # never better, so nothing is written


@pytest.mark.parametrize("without", [0, 5])
@pytest.mark.parametrize("teachers", [1, 2])
def test_each_teacher_is_searched_once_and_a_student_once_a_validation(
    teachers: int, without: int, make_scorer: Callable[..., Scorer], searches: list[torch.Tensor]
) -> None:
    """Every validation would search a gallery of a million rows again for what has not changed."""
    scorer = make_scorer(teachers=teachers, without=without)
    first = validate(scorer)
    assert len(searches) == teachers + 1
    with torch.no_grad():
        for parameter in scorer.student.parameters():
            parameter.add_(torch.randn(parameter.shape, generator=torch.Generator().manual_seed(1)), alpha=0.3)
    second = validate(scorer)
    assert len(searches) == teachers + 2, "the student has changed, the teacher has not"
    assert first != second
    found = searches[-1]
    for name, told in (("", second), *((f"{name}_", second) for name in scorer.judges)):
        assert 0 <= told[f"{name}nearest_neighbour"] <= 1
    assert found.shape == (71 - without, 64)


@pytest.mark.parametrize("without", [0, 5])
def test_what_is_kept_is_what_a_naive_search_finds(without: int, make_scorer: Callable[..., Scorer]) -> None:
    """The second student would be compared with the neighbours of the first, or of other images."""
    scorer = make_scorer(teachers=2, without=without)
    for step in range(2):
        with torch.no_grad():
            for parameter in scorer.student.parameters():
                parameter.mul_(1 + step * torch.rand(parameter.shape, generator=torch.Generator().manual_seed(step)))
        told = validate(scorer)
        student = scorer._embed(scorer.student.encoder)
        theirs = {}
        for name, judge in scorer.judges.items():
            kept = []
            for query in range(23 - without):
                ours, teachers = (
                    set(np.argsort(-(one.train.rows.astype(np.float64) @ one.test.rows[query]), kind="stable")[:10])
                    for one in (student, judge)
                )
                kept.append(len(ours & teachers) / 10)
            theirs[name] = float(np.mean(kept))
            assert told[f"neighbour_overlap_10_{name}"] == pytest.approx(theirs[name])
        assert told["neighbour_overlap_10"] == pytest.approx(0.75 * theirs["teacher"] + 0.25 * theirs["teacher_2"])
        assert len(set(theirs.values())) == 2


def test_a_validation_leaves_no_student_and_only_neighbours_behind(
    make_scorer: Callable[..., Scorer], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A night of validations would fill the memory with the rows of students that are gone."""
    scorer = make_scorer()
    embed, left = Scorer._embed, []

    def watched(self: Scorer, encoder: Any) -> Embedded:
        found = embed(self, encoder)
        left.append(weakref.ref(found.train))
        return found

    monkeypatch.setattr(Scorer, "_embed", watched)
    for _ in range(3):
        validate(scorer)
    gc.collect()
    assert [one() for one in left] == [None] * 3
    (judge,) = scorer.judges.values()
    arrays = {name: value for name, value in judge._searched.items() if isinstance(value, np.ndarray)}
    assert {name: value.shape for name, value in arrays.items()} == {"found": (23, 50)}


def test_rows_compared_with_another_teacher_are_searched_once(
    make_scorer: Callable[..., Scorer], searches: list[torch.Tensor]
) -> None:
    """A student of three teachers would be searched three times; a teacher of other images be taken for its own."""
    one, other = (Embedded(train=judge.train, test=judge.test) for judge in make_scorer(teachers=2).judges.values())
    nowhere = torch.full((23,), -1)
    expected = one.nearest(7, own=nowhere)
    np.testing.assert_array_equal(one.beside(other).nearest(7, own=nowhere), expected)
    assert one.beside(other).teacher is other
    assert one.beside(None).teacher is None
    assert len(searches) == 1
    with pytest.raises(Refusal, match="the teacher's train rows to hold the same"):
        one.beside(make_scorer(without=5).judges["teacher"])
