"""Finding evaluations by file, and what makes a set of embedded splits whole."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

import compress_ssl.evaluations
from compress_ssl.embeddings import Embeddings
from compress_ssl.evaluations import Embedded, find, names, own_rows
from compress_ssl.neighbours import nearest_neighbours
from compress_ssl.refusal import Refusal


def test_every_file_of_the_folder_is_found_by_its_name() -> None:
    """A new evaluation would exist on disk and not on the command line."""
    files = Path(compress_ssl.evaluations.__path__[0]).glob("*.py")
    assert names() == sorted(file.stem for file in files if file.stem != "__init__")
    assert {"nearest_neighbour", "linear_probe", "cluster_alignment", "neighbour_overlap"} < set(names())
    assert find("linear_probe").Config().epochs == 40


def test_a_dotted_name_reaches_a_module_elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever has a metric of their own would have to change this package."""
    package = tmp_path / "somebodys_package"
    package.mkdir()
    (package / "__init__.py").touch()
    (package / "mine.py").write_text(
        "class Config: ...\ndef unfit(embedded): ...\ndef evaluate(embedded, config): ...\n"
    )
    (package / "half.py").write_text("class Config: ...\n")
    (package / "broken.py").write_text("import a_library_that_is_not_there\n")
    monkeypatch.syspath_prepend(tmp_path)
    assert find("somebodys_package.mine").__name__ == "somebodys_package.mine"
    with pytest.raises(Refusal, match=r"got one without unfit, evaluate: "):
        find("somebodys_package.half")
    with pytest.raises(ModuleNotFoundError, match="a_library_that_is_not_there"):
        find("somebodys_package.broken")
    with pytest.raises(Refusal, match=r"got 'somebodys_package\.nothing': known: "):
        find("somebodys_package.nothing")


@pytest.mark.parametrize("name", ["linear_prob", "Linear_Probe", "linear.probe", ""])
def test_an_unknown_name_gets_the_nearest_one(name: str) -> None:
    """A typing error would end in a stack trace about modules."""
    with pytest.raises(Refusal, match=r"^expected an evaluation .*(did you mean 'linear_probe'|known: )"):
        find(name)


def test_parts_that_hold_other_images_are_refused(embedded: Embedded) -> None:
    """Student and teacher would be compared on different images, and the overlap be that of chance."""
    teacher, projected = embedded.teacher, embedded.projected
    assert teacher is not None
    assert projected is not None

    def swapped(table: Embeddings) -> Embeddings:
        ids = (*table.ids[:3], table.ids[4], table.ids[3], *table.ids[5:])
        return replace(table, ids=ids)

    with pytest.raises(Refusal, match=r"teacher's train rows .* 61 images .* differ from position 3 on"):
        replace(embedded, teacher=replace(teacher, train=swapped(teacher.train)))
    with pytest.raises(Refusal, match=r"teacher's test rows .* 23 images .* differ from position 3 on"):
        replace(embedded, teacher=replace(teacher, test=swapped(teacher.test)))
    shorter = Embeddings(rows=projected.rows[:-1], labels=projected.labels[:-1], ids=projected.ids[:-1])
    with pytest.raises(Refusal, match=r"projected test rows .* got 22 images that differ from position 22 on"):
        replace(embedded, projected=shorter)
    with pytest.raises(Refusal, match="train and test rows of one width, got 11 and 13"):
        replace(embedded, test=projected)


def test_splits_are_labelled_when_both_hold_a_label(embedded: Embedded) -> None:
    """Accuracies would be asked of data without classes."""
    none = np.full_like(embedded.test.labels, -1)
    some = none.copy()
    some[3] = 2
    assert embedded.labelled
    assert replace(embedded, test=replace(embedded.test, labels=some)).labelled
    assert not replace(embedded, test=replace(embedded.test, labels=none)).labelled


def test_an_image_is_the_same_by_id_and_row(embedded: Embedded) -> None:
    """cat/1.png of train and cat/1.png of test are two images; leaving one out for the other would cost accuracy."""
    train = embedded.train
    ids = (train.ids[5], train.ids[60], "elsewhere.png", train.ids[0])
    rows = train.rows[[5, 60, 1, 7]]  # the last one only shares its id with an image of train
    queries = Embeddings(rows=rows, labels=np.array([1, 2, 3, 4]), ids=ids)
    assert own_rows(queries, train).tolist() == [5, 60, -1, -1]


def test_neighbours_are_searched_for_once(embedded: Embedded, monkeypatch: pytest.MonkeyPatch) -> None:
    """A benchmark of a hundred students would search among the teacher's rows a hundred times."""
    searches: list[int] = []

    def counted(*rows: Tensor, count: int, own: Tensor) -> tuple[Tensor, Tensor]:
        searches.append(count)
        return nearest_neighbours(*rows, count=count, own=own)

    monkeypatch.setattr(compress_ssl.evaluations, "nearest_neighbours", counted)
    monkeypatch.setattr(compress_ssl.evaluations, "AT_LEAST", 4)
    nobody = torch.full((23,), -1)
    fresh = replace(embedded)
    six = embedded.nearest(6, own=nobody)
    np.testing.assert_array_equal(embedded.nearest(6, own=nobody.clone()), six)
    np.testing.assert_array_equal(embedded.nearest(2, own=nobody), six[:, :2])
    np.testing.assert_array_equal(embedded.nearest(2, own=nobody), fresh.nearest(2, own=nobody))
    assert searches == [6, 4]  # another table, even one of the same rows, is searched by itself


def test_neighbours_found_for_one_question_are_no_answer_to_another(embedded: Embedded) -> None:
    """More neighbours, or other images to leave out, would be answered from what somebody else had asked."""
    rows, asked = (torch.from_numpy(split.rows) for split in (embedded.train, embedded.test))
    nobody, somebody = torch.full((23,), -1), torch.arange(23)
    for count, own in ((1, nobody), (4, nobody), (4, somebody), (3, nobody), (99, nobody)):
        expected = nearest_neighbours(asked, rows, count=count, own=own)[1].numpy()
        np.testing.assert_array_equal(embedded.nearest(count, own=own), expected)
