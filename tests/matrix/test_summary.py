"""Raw numbers to tables: arithmetic against numpy, what is bold, and the way through the CSV file and back."""

from __future__ import annotations

import io
import re
from pathlib import Path

import numpy as np
import pytest
from rich.console import Console

from compress_ssl.matrix import pages, results
from compress_ssl.matrix.results import Result
from compress_ssl.matrix.summary import Value, summaries
from compress_ssl.refusal import Refusal


def result(objective: str, seed: int | None, value: float, **changes: object) -> Result:
    verb = {"alone": "pretrain", "teacher": "benchmark"}.get(objective, "distill")
    whole = {
        "dataset": "cifar10",
        "student": "compress/small",
        "objective": objective,
        "seed": seed,
        "metric": "linear_probe",
        "value": value,
        "epochs": 10.0,
        "command": f"compress-ssl {verb} --seed {seed}",
        "hardware": "a processor, 1 thread",
    }
    return Result(**(whole | changes))


NUMBERS = [
    result("teacher", None, 0.9, student="runs/teacher", epochs=None),
    result("teacher", None, 8e8, student="runs/teacher", epochs=None, metric="multiply_adds"),
    *[result("compress_2q", seed, value) for seed, value in enumerate((0.7012, 0.7131, 0.6947))],
    *[result("seed", seed, value) for seed, value in enumerate((0.7034, 0.7029, 0.7031))],
    *[result("alone", seed, value) for seed, value in enumerate((0.8, 0.81, 0.82))],
    *[result("seed", seed, 2.5 + seed, metric="minutes") for seed in range(3)],
    *[result("seed", seed, 5e7, metric="multiply_adds") for seed in range(3)],
    *[result("seed", seed, 1e6, metric="parameters") for seed in range(3)],
]


def line(objective: str, numbers: list[Result] = NUMBERS):
    (summary,) = summaries(numbers)
    return next(one for one in summary.lines if one.objective == objective)


def test_mean_and_sample_deviation_are_numpys():
    """That of the population is smaller by a fifth at three seeds: differences would look surer than they are."""
    values = [0.7012, 0.7131, 0.6947]
    found = line("compress_2q").values["linear_probe"]
    assert found.mean == pytest.approx(np.mean(values), abs=1e-15)
    assert found.deviation == pytest.approx(np.std(values, ddof=1), abs=1e-15)
    assert (
        line("compress_2q").text("linear_probe") == f"{100 * np.mean(values):.1f} ± {100 * np.std(values, ddof=1):.1f}"
    )


def test_a_single_seed_has_no_deviation():
    """± 0.0 would claim that nothing varies."""
    assert Value.of([0.5]) == Value(0.5, None, 1)
    assert line("compress_2q", NUMBERS[:3]).text("linear_probe") == "70.1"


def test_means_that_the_table_shows_as_equal_are_bold_together():
    """70.30 and 70.31 would rank two methods by a digit that nobody sees."""
    assert f"{line('compress_2q').values['linear_probe'].mean:.4f}" != f"{line('seed').values['linear_probe'].mean:.4f}"
    assert line("compress_2q").best == line("seed").best == {"linear_probe"}
    worse = [*NUMBERS, *[result("rkd", seed, 0.7) for seed in range(3)]]
    assert line("rkd", worse).best == set()


def test_rows_that_no_teacher_taught_are_not_the_best():
    """A supervised row would take the bold from the methods that the table compares."""
    assert line("alone").best == set()
    alone = [one for one in NUMBERS if one.objective in ("teacher", "alone")]
    assert line("alone", alone).best == {"linear_probe"}, "among themselves one of them is"


def test_the_best_is_of_each_student():
    """Of a large and a small student only the large one's row would ever be bold."""
    other = [result("seed", seed, 0.6, student="compress/tiny") for seed in range(3)]
    (summary,) = summaries([*NUMBERS, *other])
    tiny = next(one for one in summary.lines if one.student == "compress/tiny")
    assert tiny.best == {"linear_probe"}
    assert line("seed", [*NUMBERS, *other]).best == {"linear_probe"}


def test_the_teacher_comes_first_and_has_no_seeds():
    """What students are measured by is looked for at the top."""
    (summary,) = summaries(NUMBERS[::-1])
    assert summary.lines[0].objective == "teacher"
    assert summary.cells(summary.lines[0])[:3] == ["teacher", "teacher", ""]


def test_the_cost_is_told():
    """A point of accuracy says nothing without what it took."""
    (summary,) = summaries(NUMBERS)
    told = "\n".join(summary.notes)
    assert "small: 1M parameters, 50M multiply-adds an image, 16.0 times fewer than the teacher." in told
    assert "a processor, 1 thread" in told
    assert "Epochs: 10." in told
    assert line("seed").text("minutes") == "3.5 ± 1.0"


def test_fewer_seeds_of_one_row_are_seen():
    """A row whose runs failed would pass for one of as many seeds as the others."""
    fewer = [one for one in NUMBERS if (one.objective, one.seed) != ("compress_2q", 2)]
    (summary,) = summaries(fewer)
    counts = {one.objective: summary.cells(one)[2] for one in summary.lines}
    assert counts == {"teacher": "", "compress_2q": "2", "seed": "3", "alone": "3"}
    assert "over n seeds" in summary.notes[0]


def test_numbers_come_back_from_the_csv_to_the_bit(tmp_path):
    """Tables made from the committed file would differ from those of the run."""
    whole = [*NUMBERS, result("seed", 3, 1 / 3, option="views", setting="8", command='a "b", c\nd')]
    (tmp_path / "results.csv").write_text(results.written(whole))
    assert results.read([tmp_path / "results.csv"]) == whole


def test_the_columns_are_those_that_are_promised():
    """A spreadsheet that reads them by name would find nothing."""
    names = results.written(NUMBERS).split("\n")[0].split(",")
    assert names[:8] == ["dataset", "student", "objective", "seed", "metric", "value", "epochs", "command"]
    swept = results.written([result("seed", 0, 0.5, option="views", setting="8")]).split("\n")[0].split(",")
    assert {"option", "setting"} <= set(swept)


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("dataset,student\na,b\n", "'objective' wrong in line 2"),
        ("dataset,student,objective,seed,metric,value,epochs,command\na,b,c,0,m,many,1,x\n", "'many' wrong in line 2"),
        ("dataset,student,objective,seed,metric,value,epochs,command\n", "got none"),
    ],
)
def test_a_csv_that_is_none_of_ours_is_refused(tmp_path: Path, text: str, told: str):
    """A table of half of the numbers would be made."""
    (tmp_path / "results.csv").write_text(text)
    with pytest.raises(Refusal, match=told):
        results.read([tmp_path / "results.csv"])


def test_markdown_and_html_show_the_same_cells():
    """Two tables of one run that differ are one too many."""
    (summary,) = summaries(NUMBERS)
    text, page = pages.markdown([summary], ["x: failed | why"]), pages.page([summary], ["x: failed <b>"])
    assert "| small | compress_2q | 3 | **70.3 ± 0.9** |  |" in text
    assert "<b>70.3 ± 0.9</b>" in page
    assert text.count("**") // 2 == page.count("<b>") == 2
    assert "- x: failed | why" in text
    assert "x: failed &lt;b&gt;" in page


def test_each_data_set_has_its_own_table():
    """Means over two data sets mean nothing."""
    found = summaries([*NUMBERS, result("seed", 0, 0.3, dataset="tiny")])
    assert [one.dataset for one in found] == ["cifar10", "tiny"]
    assert found[1].lines[0].values["linear_probe"] == Value(0.3, None, 1)


def test_the_number_of_test_images_is_told():
    """Ten images more or less are nothing in ten thousand and much in a hundred."""
    counted = [result("seed", seed, 10_000, metric="test_images") for seed in range(3)]
    (summary,) = summaries([*NUMBERS, *counted])
    assert summary.notes[0].startswith("Percent of the test split, 10 000 images, mean ± sample standard deviation")
    assert "test images" not in " ".join(summary.headings)
    (summary,) = summaries([*NUMBERS, *counted, result("alone", 0, 9_998, metric="test_images")])
    assert "9 998 to 10 000 images" in summary.notes[0], "a file that one model could not read"
    (summary,) = summaries(NUMBERS)
    assert summary.notes[0].startswith("Percent of the test split, mean"), "of numbers from before it was kept"


def test_a_terminal_gets_the_main_scores_whole():
    """Eleven columns squeezed into eighty characters show two digits of each."""
    names = ["nearest_neighbour", "nearest_neighbour_20", "linear_probe", "cluster_alignment", "minutes"]
    names += [f"neighbour_overlap_{count}" for count in (1, 5, 10, 50)]
    many = [result("seed", seed, 0.25, metric=name) for name in names for seed in range(3)]
    console = Console(width=80, record=True, file=io.StringIO())
    console.print(pages.rich_table(summaries(many)[0]))
    told = console.export_text()
    assert all(heading in told for heading in ("1-NN", "linear", "CA", "kept@10", "25.0 ± 0.0", "table.md"))
    assert "kept@50" not in told
    assert "…" not in told


def test_in_a_terminal_long_names_are_broken_and_no_number_is():
    """Of a sweep every score was cut to its first digits, and how many seeds there are was not shown at all."""
    swept = [result("compress_2q", seed, 0.5 + seed / 10, metric=metric, option="objective.bank_size", setting=setting)
             for metric in ("nearest_neighbour", "linear_probe", "cluster_alignment", "neighbour_overlap_10")
             for setting in ("256", "4096") for seed in range(3)]  # fmt: skip
    console = Console(width=80, record=True, file=io.StringIO())
    console.print(pages.rich_table(summaries(swept)[0]))
    told = console.export_text()
    assert told.count("60.0 ± 10.0") == 8
    assert "…" not in told
    assert "│ 3 │" in told
    names = "".join(re.findall(r"^│ (.{16}) │", told, re.MULTILINE)).replace(" ", "")
    assert "compress_2q,bank_size4096" in names


@pytest.mark.parametrize(
    ("student", "told"),
    [(8.05e8, "as many as the teacher"), (4e8, "2.0 times fewer than the teacher"), (1.6e9, "2.0 times the teacher's")],
)
def test_a_student_is_not_called_smaller_than_it_is(student, told):
    """`0.5 times fewer` is said of a student that costs twice as much."""
    (summary,) = summaries([*NUMBERS[:3], result("seed", 0, student, metric="multiply_adds")])
    assert told in "\n".join(summary.notes)


def test_headings_that_say_little_are_explained_below():
    """CA and kept@10 are words of this project; whoever gets the table by mail has no other page."""
    (summary,) = summaries([*NUMBERS, result("seed", 0, 0.3, metric="neighbour_overlap_5")])
    assert summary.notes[-1] == "kept@K: of the teacher's K nearest neighbours, the share that the student keeps."
    (summary,) = summaries([*NUMBERS, result("seed", 0, 0.3, metric="linear_probe_3")])
    assert summary.notes[-1].startswith("linear top-3: images whose class is among the 3 that")
    (summary,) = summaries(NUMBERS)
    assert "kept@K" not in " ".join(summary.notes), "only what is there"
