"""What every file in evaluations/ promises. A file enters by existing."""

from __future__ import annotations

import dataclasses
import inspect
import json
import warnings
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch

from compress_ssl import evaluations
from compress_ssl.embeddings import Embeddings
from compress_ssl.evaluations import Embedded, Evaluation, confusion
from compress_ssl.metric_names import SPREADS

pytestmark = pytest.mark.filterwarnings("error")


@pytest.fixture(params=evaluations.names())
def evaluation(request: pytest.FixtureRequest) -> Evaluation:
    return evaluations.find(request.param)


def tables(embedded: Embedded) -> Iterator[Embeddings]:
    yield from (embedded.train, embedded.test)
    if embedded.teacher is not None:
        yield from tables(embedded.teacher)
    if embedded.projected is not None:
        yield embedded.projected


def every(embedded: Embedded, change: Callable[[Embeddings], Embeddings]) -> Embedded:
    """The same splits with every table changed, the teacher's and the projected ones too."""
    augmented = embedded.augmented
    return replace(
        embedded,
        train=change(embedded.train),
        test=change(embedded.test),
        teacher=None if embedded.teacher is None else every(embedded.teacher, change),
        projected=None if embedded.projected is None else change(embedded.projected),
        augmented=None if augmented is None else lambda epoch: change(augmented(epoch)),
    )


def scores(metrics: dict[str, float]) -> list[float]:
    """The metrics without their spreads, which must be 0: for claims that leave no room for chance."""
    spreads = {name: value for name, value in metrics.items() if name.endswith(SPREADS)}
    assert spreads == pytest.approx(dict.fromkeys(spreads, 0), abs=1e-12)
    return [value for name, value in metrics.items() if name not in spreads]


def unlabelled(table: Embeddings) -> Embeddings:
    return replace(table, labels=np.full_like(table.labels, -1))


def test_a_file_is_an_evaluation(evaluation: Evaluation) -> None:
    """`--protocols.NAME.seed 3` needs a Config of plain fields with a default each."""
    config = evaluation.Config()
    assert dataclasses.is_dataclass(config)
    assert type(config).__dataclass_params__.frozen
    assert all(field.kw_only for field in dataclasses.fields(config))
    assert list(inspect.signature(evaluation.unfit).parameters) == ["embedded"]
    assert list(inspect.signature(evaluation.evaluate).parameters) == ["embedded", "config"]
    assert inspect.getdoc(evaluation)


def test_metrics_are_fractions_under_the_name_of_the_file(evaluation: Evaluation, embedded: Embedded) -> None:
    """The table of results would mix percentages and fractions, or two evaluations would overwrite each other."""
    assert evaluation.unfit(embedded) is None
    metrics = evaluation.evaluate(embedded, evaluation.Config())
    assert metrics
    assert all(metric.removesuffix(end) in metrics for metric in metrics for end in SPREADS)
    name = evaluation.__name__.rpartition(".")[2]
    for metric, value in metrics.items():
        assert metric.startswith(name)
        assert type(value) is float
        assert 0 <= value <= 1


def test_tables_are_plain_lists_under_the_name_of_the_file(evaluation: Evaluation, embedded: Embedded) -> None:
    """results.json could not be written, or a row would be read under another's name."""
    if not hasattr(evaluation, "tables"):
        pytest.skip("has no tables")
    assert list(inspect.signature(evaluation.tables).parameters) == ["embedded", "config"]
    found = evaluation.tables(embedded, evaluation.Config())
    assert json.loads(json.dumps(found)) == found
    for title, table in found.items():
        assert title.startswith(evaluation.__name__.rpartition(".")[2])
        assert table.keys() == {"rows", "columns", "counts"}
        assert [len(row) for row in table["counts"]] == [len(table["columns"])] * len(table["rows"])
        assert all(type(count) is int for row in table["counts"] for count in row)


def test_classes_that_lie_apart_score_one(evaluation: Evaluation, make_embedded: Callable[..., Embedded]) -> None:
    """The best student there is would not look like it."""
    apart = make_embedded(noise=1e-2)
    itself = replace(apart, teacher=Embedded(train=apart.train, test=apart.test), projected=apart.test)
    found = scores(evaluation.evaluate(itself, evaluation.Config()))
    assert found == pytest.approx([1.0] * len(found), abs=1e-12)


def test_classes_that_training_has_not_seen_count_as_wrong(
    evaluation: Evaluation, make_embedded: Callable[..., Embedded]
) -> None:
    """Accuracy would be that of an easier data set, or a stack trace."""
    embedded = make_embedded(classes=3, noise=1e-2)
    if evaluation.unfit(every(embedded, unlabelled)) is None:
        pytest.skip("needs no labels")
    if evaluation is confusion:
        pytest.skip("not shares of images: by class, which test_confusion claims, and of clusters, which see no labels")
    known = embedded.test.labels != 7

    def rename(table: Embeddings) -> Embeddings:
        return replace(table, labels=np.where(table.labels == 7, 99, table.labels))

    renamed = replace(embedded, test=rename(embedded.test))
    assert 0 < known.mean() < 1
    found = scores(evaluation.evaluate(renamed, evaluation.Config()))
    assert found == pytest.approx([known.mean()] * len(found), abs=1e-12)


@pytest.mark.parametrize("classes", [1, 2, 5])
def test_any_number_of_classes_will_do(
    evaluation: Evaluation, classes: int, make_embedded: Callable[..., Embedded]
) -> None:
    """One's own folder of pictures has one class, or two, where the paper has a thousand."""
    metrics = evaluation.evaluate(make_embedded(classes=classes), evaluation.Config())
    if classes == 1 and evaluation.unfit(every(make_embedded(), unlabelled)) is not None:
        assert scores(metrics) == pytest.approx([1.0] * len(scores(metrics)), abs=1e-12)
    assert all(0 <= value <= 1 for value in metrics.values())


def test_a_collapsed_student_gets_a_score(evaluation: Evaluation, make_embedded: Callable[..., Embedded]) -> None:
    """A run that went wrong could not be shown next to one that went right."""
    embedded = make_embedded()

    def collapse(table: Embeddings) -> Embeddings:
        return replace(table, rows=np.repeat(table.rows[:1], len(table.rows), axis=0))

    metrics = evaluation.evaluate(
        replace(embedded, train=collapse(embedded.train), test=collapse(embedded.test)), evaluation.Config()
    )
    assert all(0 <= value <= 1 for value in metrics.values())


def test_three_train_images_will_do(evaluation: Evaluation, make_embedded: Callable[..., Embedded]) -> None:
    """Defaults made for a million images would refuse the first thing that a newcomer tries."""
    metrics = evaluation.evaluate(make_embedded(train=3, test=1), evaluation.Config())
    assert all(0 <= value <= 1 for value in metrics.values())


def test_inputs_and_the_generators_of_the_process_stay_as_they_were(evaluation: Evaluation, embedded: Embedded) -> None:
    """What is scored second would be another model; validation would change the training it watches."""
    for table in tables(embedded):
        table.rows.flags.writeable = False  # as a memory map opened for reading is
        table.labels.flags.writeable = False
    before = torch.get_rng_state(), np.random.get_state()[1].copy()  # noqa: NPY002
    evaluation.evaluate(embedded, evaluation.Config())
    assert torch.equal(before[0], torch.get_rng_state())
    np.testing.assert_array_equal(before[1], np.random.get_state()[1])  # noqa: NPY002


def test_the_same_call_gives_the_same_metrics(evaluation: Evaluation, make_embedded: Callable[..., Embedded]) -> None:
    """A seed in a table of results would mean nothing."""
    config = evaluation.Config(**({"seed": 3} if hasattr(evaluation.Config(), "seed") else {}))
    first = evaluation.evaluate(make_embedded(noise=2.0), config)
    assert evaluation.evaluate(make_embedded(noise=2.0), config) == first


def test_the_order_of_the_test_images_does_not_matter(
    evaluation: Evaluation, make_embedded: Callable[..., Embedded]
) -> None:
    """A row of one image would be scored with the label of another."""
    embedded = make_embedded(noise=2.0)
    assert embedded.teacher is not None
    assert embedded.projected is not None
    order = np.random.default_rng(5).permutation(len(embedded.test.ids))

    def reorder(table: Embeddings) -> Embeddings:
        return Embeddings(rows=table.rows[order], labels=table.labels[order], ids=tuple(table.ids[i] for i in order))

    reordered = replace(
        embedded,
        test=reorder(embedded.test),
        teacher=replace(embedded.teacher, test=reorder(embedded.teacher.test)),
        projected=reorder(embedded.projected),
    )
    config = evaluation.Config()
    assert evaluation.evaluate(reordered, config) == pytest.approx(evaluation.evaluate(embedded, config))


def test_images_without_a_label_are_left_out_where_labels_count(
    evaluation: Evaluation, make_embedded: Callable[..., Embedded]
) -> None:
    """Stray pictures in a folder of classes would form a class of their own, called -1."""
    embedded = make_embedded(noise=2.0)
    if evaluation.unfit(every(embedded, unlabelled)) is None:
        pytest.skip("needs no labels")

    def without_some(table: Embeddings) -> Embeddings:
        labels = table.labels.copy()
        labels[::4] = -1
        return replace(table, labels=labels)

    def shorter(table: Embeddings) -> Embeddings:
        kept = np.arange(len(table.ids)) % 4 != 0
        ids = tuple(name for name, keep in zip(table.ids, kept, strict=True) if keep)
        return Embeddings(rows=table.rows[kept], labels=table.labels[kept], ids=ids)

    config = evaluation.Config()
    expected = evaluation.evaluate(every(embedded, shorter), config)
    assert evaluation.evaluate(every(embedded, without_some), config) == expected


def test_what_is_missing_is_said_in_words(evaluation: Evaluation, embedded: Embedded) -> None:
    """The table of results would have a hole that nobody can explain."""
    bare = Embedded(train=unlabelled(embedded.train), test=unlabelled(embedded.test))
    reason = evaluation.unfit(bare)
    assert reason is not None
    assert reason.startswith("needs ")


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no accelerator on this machine")
def test_an_accelerator_gives_the_same_metrics(evaluation: Evaluation, make_embedded: Callable[..., Any]) -> None:
    """A score would depend on where it was computed."""
    embedded, config = make_embedded(noise=2.0), evaluation.Config()
    expected = pytest.approx(evaluation.evaluate(embedded, config), abs=0.05)  # one test image of 23
    with warnings.catch_warnings():
        warnings.simplefilter("default")
        assert evaluation.evaluate(replace(embedded, device="cuda"), config) == expected
