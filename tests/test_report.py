"""The page of a run: what it says, what it must never do, and how it looks in a real browser."""

from __future__ import annotations

import base64
import io
import json
import math
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from html.parser import HTMLParser
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from compress_ssl import evaluations, report
from compress_ssl.page import confused, curves, gallery, scores
from compress_ssl.page.folders import read_folder, read_folders
from compress_ssl.page.headline import sentence
from compress_ssl.page.models import compare
from compress_ssl.page.words import THIN, short
from compress_ssl.refusal import Refusal
from compress_ssl.report import Config
from compress_ssl.run_folder import RunFolder

HOSTILE = "<script>alert(1)</script>\"'><img src=x onerror=alert(2)>.png"


# ---- folders made up here --------------------------------------------------------------------------------------------


def uri(shade: int, *, side: int = 8, form: str = "png") -> str:
    written = io.BytesIO()
    Image.linear_gradient("L").resize((side, side)).point(lambda value: (value + shade) % 256).convert("RGB").save(
        written, form
    )
    return f"data:image/{form};base64,{base64.b64encode(written.getvalue()).decode()}"


def entry(
    *,
    one: float | None = None,
    overlap: float | None = None,
    parameters: int | None = None,
    flops: int | None = None,
    **more: Any,
) -> dict[str, Any]:
    """One model of results.json."""
    metrics = {"nearest_neighbour": one, "neighbour_overlap_10": overlap}
    return {
        "metrics": {name: value for name, value in metrics.items() if value is not None},
        "missing": {},
        **{name: size for name, size in (("parameters", parameters), ("flops", flops)) if size},
        **more,
    }


TEACHER = entry(one=0.9, parameters=1_120_000, flops=150_000_000, spec="timm/big", width=128, input_size=32)
STUDENT = entry(
    one=0.8856, overlap=0.71, parameters=100_000, flops=10_000_000, spec="runs/two", width=64, input_size=32
)


MACHINE = {
    "command": "compress-ssl evaluate",
    "versions": {"torch": "2.6.0"},
    "hardware": {"processor": "AMD EPYC", "cores": 2, "instructions": "AVX2", "threads": 1, "accelerators": ["H200"]},
}


def write_results(folder: Path, models: dict[str, Any], **more: Any) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    told = {"data": "digits", "images": {"train": 1437, "test": 360}, "models": models, **MACHINE, **more}
    (folder / "results.json").write_text(json.dumps(told))
    return folder


def write_run(folder: Path, *, steps: int = 7, loss: float = 2.0, teacher: float | None = 0.9) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    lines: list[dict[str, Any]] = []
    for step in range(1, steps + 1):
        lines.append({"kind": "train", "step": step, "epoch": step / 2, "loss": loss / step, "learning_rate": 0.01})
        if step % 3 == 0:
            scores = {
                "neighbour_overlap_10": 0.1 * step,
                "nearest_neighbour": 0.8,
                "teacher_nearest_neighbour": teacher,
            }
            lines.append({"kind": "validation", "step": step, "epoch": step / 2, **scores})
    (folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    (folder / "config.yaml").write_text("seed: 5\nobjective:\n  temperature: 0.04\n")
    command = {
        "command": ["compress-ssl", "distill", "my photos/"],
        "command_line": "compress-ssl distill 'my photos/'",
    }
    environment = {**MACHINE, **command, "system": "Linux 6.1", "started": "2026-11-22T12:31:08+0000"}
    (folder / "environment.json").write_text(json.dumps(environment))
    return folder


def write_pictures(folder: Path, models: tuple[str, ...], *, labels: bool = True, prefix: str = "digits/") -> Path:
    """Eleven images; each model keeps one neighbour fewer of the first model's than the one before."""
    ids = [f"{prefix}{number}" for number in range(11)]
    neighbours = {
        model: {query: [ids[(3 + place + shift) % 11] for place in range(5)] for query in ids[:3]}
        for shift, model in enumerate(models)
    }
    told = {
        "pictures": {id_: uri(20 * number) for number, id_ in enumerate(ids)},
        "labels": {id_: f"class {number % 2}" if labels else None for number, id_ in enumerate(ids)},
        "queries": ids[:3],
        "neighbours": neighbours,
        "clusters": {model: [ids[:7], ids[4:6]] for model in models},
    }
    (folder / "pictures.json").write_text(json.dumps(told))
    return folder


def whole_page(folder: Path) -> Path:
    """Results of four models with pictures, and two runs with curves, files left out among them."""
    size = {"parameters": 100_000, "flops": 10_000_000, "width": 64, "input_size": 32}
    models = {
        "teacher": {**TEACHER, "metrics": {**TEACHER["metrics"], "linear_probe": 0.95}},
        "student_1q": entry(one=0.87, overlap=0.66, spec=str(folder / "one"), **size),
        "student_2q": {**STUDENT, "spec": str(folder / "two")},
        "student_random": entry(one=0.5, overlap=0.07, **size),
    }
    models["student_1q"]["metrics"]["asymmetric_nearest_neighbour"] = 0.86
    results = write_results(folder / "results", models)
    write_pictures(results, tuple(models))
    write_run(folder / "one", loss=2.0)
    write_run(folder / "two", loss=1.0)
    skipped = [("a.jpg", "cmyk", "mode CMYK"), ("b.jpg", "broken", "not an image"), ("c.jpg", "cmyk", "mode CMYK")]
    lines = [json.dumps({"id": id_, "kind": kind, "detail": detail}) + "\n" for id_, kind, detail in skipped]
    (folder / "one" / "skipped.jsonl").write_text("".join(lines))
    return report.run(Config(runs=(str(results), str(folder / "one"), str(folder / "two"))))


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return whole_page(tmp_path_factory.mktemp("page"))


class Page(HTMLParser):
    """Elements, attributes and text of a page, as a browser would take it apart."""

    VOID = frozenset({"meta", "link", "br", "wbr", "img", "input"})

    def __init__(self, html: str):
        super().__init__()
        self.tags: list[tuple[str, dict[str, str]]] = []
        self.open: list[str] = []
        self.tables: list[list[list[str]]] = []
        self.text = ""
        self.feed(html)
        assert not self.open, f"never closed: {self.open}"

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, {name: value or "" for name, value in attrs}))
        if tag not in self.VOID:
            self.open.append(tag)
        if tag == "table":
            self.tables.append([])
        elif tag == "tr":
            self.tables[-1].append([])
        elif tag in ("td", "th"):
            self.tables[-1][-1].append("")

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, {name: value or "" for name, value in attrs}))

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag, f"</{tag}> closes something else"

    def handle_data(self, data: str) -> None:
        if "style" not in self.open:
            self.text += data
        if "td" in self.open or "th" in self.open:
            self.tables[-1][-1][-1] += data


def read(path: Path) -> Page:
    return Page(path.read_text(encoding="utf-8"))


def sentence_of(models: dict[str, Any], tmp_path: Path) -> str:
    """The sentence of one folder of results."""
    comparisons, _ = compare(read_folders([str(write_results(tmp_path / "results", models))]))
    return sentence(comparisons[0]).replace(THIN, " ")


def page_of(*folders: Path) -> Page:
    return read(report.run(Config(runs=tuple(map(str, folders)))))


# ---- what it says ----------------------------------------------------------------------------------------------------


def test_the_sentence_says_what_was_kept_at_what_size(tmp_path: Path) -> None:
    """The one thing that every reader takes home would be another number than the table's."""
    assert sentence_of({"teacher": TEACHER, "student_2q": STUDENT}, tmp_path) == (
        "student_2q keeps 98.4 % of the teacher’s 1-NN accuracy with 11.2× fewer parameters and "
        "15× fewer multiply-adds, and shares 7.1 of its 10 nearest neighbours."
    )


@pytest.mark.parametrize(
    ("student", "expected"),
    [
        (
            entry(one=0.45, overlap=0.32),
            "keeps only 50.0 % of the teacher’s 1-NN accuracy, and shares only 3.2 of its 10",
        ),
        (entry(one=0.89, overlap=0.32), "keeps 98.9 % of the teacher’s 1-NN accuracy, but shares only 3.2 of its 10"),
        (entry(one=0.93, overlap=0.8), "scores above its teacher in 1-NN (93.0 % against 90.0 %), and shares 8.0 of"),
        (entry(one=0.9), "keeps 100.0 % of the teacher’s 1-NN accuracy."),
        (
            entry(overlap=0.71, parameters=560_000),
            "shares 7.1 of the teacher’s 10 nearest neighbours with 2× fewer param",
        ),
        (entry(overlap=0.4), "shares only 4.0 of the teacher’s 10 nearest neighbours."),
        (entry(one=0.81, parameters=2_240_000), "keeps 90.0 % of the teacher’s 1-NN accuracy with 2× more parameters."),
        (entry(one=0.81, parameters=1_120_001, flops=3), "with as many parameters and 50 000 000× fewer multiply-adds"),
        (entry(parameters=560_000), "beside its teacher with 2× fewer parameters; how much it kept was not measured."),
        (entry(one=math.nan, overlap=0.6), "shares 6.0 of the teacher’s 10 nearest neighbours."),
    ],
)
def test_the_sentence_stays_honest(student: dict[str, Any], expected: str, tmp_path: Path) -> None:
    """A student that is worse, bigger or not measured would be praised."""
    assert expected in sentence_of({"teacher": TEACHER, "small": student}, tmp_path)


def test_a_student_that_is_ahead_elsewhere_is_named(tmp_path: Path) -> None:
    """The sentence would hide that another student classifies better than the one it praises."""
    models = {"teacher": TEACHER, "near": entry(one=0.80, overlap=0.7), "sharp": entry(one=0.85, overlap=0.3)}
    said = sentence_of(models, tmp_path)
    assert said.startswith("near keeps only 88.9 %")
    assert said.endswith("By 1-NN, sharp is ahead (85.0 % against 80.0 %) but it shares 3.0.")


def test_a_model_without_others_is_not_called_a_teacher(tmp_path: Path) -> None:
    """Results of one model alone would read as if something had been compressed."""
    folder = write_results(tmp_path / "results", {"lonely": entry(one=0.77)})
    page = page_of(folder)
    said = page.text.replace("\u2011", "-")  # a hyphen that keeps "1-NN" in one line
    assert f"lonely reaches 77.0{THIN}% in 1-NN on digits; no other model was scored beside it." in said
    assert "teacher" not in [attributes.get("class") for _, attributes in page.tags]


def test_the_table_has_every_model_and_every_number(page: Path) -> None:
    """A column or a row would be missing or under the wrong heading."""
    folder = page.parents[1]
    groups, headings, *rows = read(page).tables[0]
    assert headings == [
        *("Model", "1-NN", "Linear probe", "Neighbours kept, of 10", "Asymmetric 1-NN"),
        *("Parameters", "Multiply-adds", "Width", "Input size"),
    ]
    assert groups == ["", "What was kept", "What it costs"]
    names = ["teachertimm/big", f"student_1q{folder / 'one'}", f"student_2q{folder / 'two'}", "student_random"]
    assert [row[0] for row in rows] == names
    student = [text.replace(THIN, " ") for text in rows[2]]
    assert student[1] == "88.6 %98.4 % kept"
    assert student[3] == "7.1"
    assert student[5:] == ["100 k11.2× fewer", "10 M15× fewer", "64", "32 px"]
    assert [text.replace(THIN, " ") for text in rows[0]][5:] == ["1.12 M", "150 M", "128", "32 px"]


def test_only_the_best_student_is_bold_and_ties_share_it(tmp_path: Path) -> None:
    """Bold would mark the teacher, or one of two students that are equal as far as the table shows."""
    models = {
        "teacher": entry(one=0.95),
        "a": entry(one=0.90001, overlap=0.2),
        "b": entry(one=0.90004, overlap=0.3),
        "c": entry(one=0.7),
    }
    html = report.run(Config(runs=(str(write_results(tmp_path / "results", models)),))).read_text()
    assert re.findall(r"<strong>(.*?)</strong>", html) == [f"90.0{THIN}%", f"90.0{THIN}%", "3.0"]


def test_a_missing_number_is_a_dash_that_says_why(tmp_path: Path) -> None:
    """A reader could not tell "not measured" from "cannot be measured", or would read a dash as zero."""
    only_1q = "needs the test images projected into the teacher's space, which only a 1q student can give"
    missing = {"asymmetric_nearest_neighbour": only_1q}
    models = {
        "teacher": {**entry(one=0.9), "missing": {**missing, "neighbour_overlap": "needs the teacher's embeddings"}},
        "student_1q": entry(one=0.8, overlap=0.5),
        "student_2q": {**entry(overlap=math.nan), "missing": {**missing, "nearest_neighbour": "needs labels"}},
    }
    models["student_1q"]["metrics"] |= {"asymmetric_nearest_neighbour": 0.7, "linear_probe": 0.75}
    page = page_of(write_results(tmp_path / "results", models))
    reasons = [attributes["title"] for _, attributes in page.tags if attributes.get("class") == "missing"]
    assert reasons == [
        *("not measured", "the teacher is what students are compared with", only_1q),
        *("needs labels", "not measured", "not a finite number: nan", only_1q),
    ]
    assert "missing: needs labels" in page.text, "a tooltip alone does not reach a phone or a screen reader"
    assert "Not measured for any model: 20-NN (needs labels); Cluster alignment." in page.text


def test_a_metric_of_somebodys_own_evaluation_has_a_column(tmp_path: Path) -> None:
    """One file adds an evaluation; its number would silently not be reported."""
    models = {"teacher": entry(), "student": entry()}
    models["teacher"]["metrics"]["my_own_score"], models["student"]["metrics"]["my_own_score"] = 0.5, 0.25
    page = page_of(write_results(tmp_path / "results", models))
    assert page.tables[0][1] == ["Model", "my own score"]
    assert page.tables[0][3][1].replace(THIN, " ") == "25.0 %50.0 % kept"


def test_scores_that_would_widen_the_table_stand_in_one_of_their_own(tmp_path: Path) -> None:
    """Thirty columns can be compared by nobody; a spread beside another column is taken for a score."""
    more = {f"neighbour_overlap_{count}": 0.5 for count in (1, 50, 5)}
    more |= {"n_shot_class_mean_1": 0.25, "n_shot_class_mean_1_interval": 0.0123, "cka": 0.8, "my_std": 0.1}
    models = {"teacher": entry(one=0.9, overlap=1.0), "student": entry(one=0.8, overlap=0.4)}
    models["teacher"]["metrics"] |= {**more, "cka": 1.0, "n_shot_class_mean_1": 0.5}
    models["student"]["metrics"] |= more
    page = page_of(write_results(tmp_path / "results", models))
    assert page.tables[0][1] == ["Model", "1-NN", "Neighbours kept, of 10"]
    headings, *rows = [[text.replace(THIN, " ") for text in row] for row in page.tables[1]]
    assert headings == ["Score", "teacher", "student"]
    found = {name: (teacher, student) for name, teacher, student in rows}
    assert list(found) == [
        *("CKA with the teacher", "my std", "1-shot, nearest class mean"),
        *("Neighbours kept, of 1", "Neighbours kept, of 5", "Neighbours kept, of 50"),
    ]
    assert found["1-shot, nearest class mean"] == ("50.0 % ± 1.2", "25.0 % ± 1.250.0 % kept")
    assert found["CKA with the teacher"] == ("100.0 %", "80.0 %"), "no share of the teacher's likeness to itself"
    assert "95 % confidence interval" in page.text
    assert "Neighbours kept, of 5: of the 5 images nearest to an image under the teacher" in page.text
    assert "my std: a share" in page.text
    assert "Few labels:" not in page.text, "only what is there is explained"


def test_scores_that_have_room_are_explained_too(tmp_path: Path) -> None:
    """Beside the main scores, overlap at 1, 5 and 50 and a top-5 accuracy would stand by their names alone."""
    models = {"teacher": entry(one=0.9, overlap=1.0), "student": entry(one=0.8, overlap=0.4)}
    for one in models.values():
        one["metrics"] |= {"linear_probe": 0.5, "linear_probe_5": 0.75, "neighbour_overlap_5": 0.25}
    page = page_of(write_results(tmp_path / "results", models))
    assert {"Linear probe, top 5", "Neighbours kept, of 5"} < set(page.tables[0][1])
    assert "Linear probe, top 5: share of test images whose class is among the 5" in page.text
    assert "Neighbours kept, of 5: of the 5 images nearest to an image under the teacher, the share" in page.text


@pytest.mark.parametrize("name", evaluations.names())
def test_every_score_of_ours_has_words(name: str) -> None:
    """A new evaluation's numbers would stand on the page as its file calls them, unexplained."""
    table = (Path(__file__).parents[1] / "docs" / "evaluations.md").read_text()
    (row,) = re.findall(rf"^\| `{name}` \| (.*?) \|", table, re.MULTILINE)
    for metric in re.findall(r"`([a-z]\w+)`", row):
        metric = metric.replace("K", "7")
        assert metric.replace("_", " ") != scores.heading(metric)
        assert scores.meaning(metric) != scores.UNKNOWN
        assert "{" not in scores.heading(metric) + scores.meaning(metric)


def confusion(*counts: list[int], names: tuple[str, ...] = ("cat", "dog", "ship")) -> dict[str, Any]:
    return {"rows": list(names), "columns": list(names), "counts": list(counts)}


def test_the_most_confused_classes_are_told_with_their_share(tmp_path: Path) -> None:
    """ "cat → dog" would be read for "dog → cat", and a small class's confusion be hidden behind a large one's."""
    table = confusion([7, 2, 0], [30, 170, 0], [0, 5, 5])
    student = {**STUDENT, "tables": {"confusion_classes": table, "confusion_clusters": table}}
    page = page_of(write_results(tmp_path / "results", {"teacher": TEACHER, "student": student}))
    text = page.text.replace(THIN, " ")
    told = re.findall(r"(\w+ → \w+)\s+([\d.]+ %)", text)
    assert told == [("ship → dog", "50.0 %"), ("cat → dog", "22.2 %"), ("dog → cat", "15.0 %")]
    titles = [attributes.get("title") for tag, attributes in page.tags if tag == "li"]
    assert titles[-3:] == ["5 of 10", "2 of 9", "30 of 200"]
    assert "cluster ship: 5 of 10 dog" in text
    assert sum(tag == "rect" for tag, _ in page.tags) == 2 * 6, "what is nothing is not drawn"
    assert ("a", {"href": "#confused"}) in page.tags


def test_many_classes_are_listed_and_not_drawn(tmp_path: Path) -> None:
    """A thousand names beside cells of a third of a pixel; a list that nobody reads to its end."""
    names = tuple(f"class {number}" for number in range(21))
    counts = [[number + 3 if one == other else number for one in range(21)] for other, number in enumerate(range(21))]
    table = confusion(*counts, names=names)
    models = {"only": {**TEACHER, "tables": {"confusion_classes": table}}}
    page = page_of(write_results(tmp_path / "results", models))
    assert not [tag for tag, _ in page.tags if tag == "rect"]
    assert page.text.count("→") == 10


def test_cells_of_a_map_are_as_dark_as_their_share_of_the_row() -> None:
    """A class of many images would look confused, and one of few at peace."""
    drawn = confused.heat_map(confusion([1, 3, 0], [0, 500, 0], [0, 0, 2]), "{}")
    assert [share for _, _, share, _ in drawn["cells"]] == [0.25, 0.75, 1, 1]
    (x, y, *_), (right, level, *_), (_, below, *_), _ = drawn["cells"]
    assert (right - x, level, below - y) == pytest.approx((drawn["side"], y, drawn["side"]))
    assert drawn["right"] <= drawn["width"]
    assert confused.short("a name that is much too long") == "a name t…oo long"
    assert len(confused.short("a name that is much too long")) == confused.NAME


@pytest.mark.parametrize(
    ("number", "expected"),
    [
        (0.4, "0.4"),
        (999, "999"),
        (999.7, "1 k"),
        (1_243_520, "1.24 M"),
        (11_689_512, "11.7 M"),
        (4.1e9, "4.1 G"),
        (9e15, "9000 T"),
    ],
)
def test_large_numbers_keep_three_digits(number: float, expected: str) -> None:
    """1000 k and 1.24e+06 are not numbers that people read."""
    assert short(number).replace(THIN, " ") == expected


# ---- folders as they come --------------------------------------------------------------------------------------------


def test_a_run_in_progress_has_a_page(tmp_path: Path) -> None:
    """Looking at a training that is still going on would fail on the line that is being written."""
    folder = write_run(tmp_path / "going")
    with (folder / "metrics.jsonl").open("a") as file:
        file.write('{"kind": "train", "step": 8, "epo')
    page = page_of(folder)
    assert "going has no results yet; last seen at step 7 (epoch 3.5), with a loss of 0.286 and 6.0 of the" in page.text
    assert sum(tag == "figure" for tag, _ in page.tags) == 3


def test_a_run_that_has_just_begun_has_a_page(tmp_path: Path) -> None:
    """The first minutes of a run would show a stack trace."""
    folder = tmp_path / "new"
    folder.mkdir()
    (folder / "metrics.jsonl").write_text("")
    assert "new has no results and no measurement yet." in page_of(folder).text


def test_what_a_run_writes_is_what_the_page_reads(tmp_path: Path) -> None:
    """Writer and reader would drift apart, each of them tested against files that nobody writes."""
    run = RunFolder.open(tmp_path / "run", {"seed": 5}, resume=False)
    for step in (0, 0, 7):  # resumed from its first checkpoint, a run scores step 0 again
        run.log("validation", step=step, epoch=step / 2, neighbour_overlap_10=0.25 + step / 100)
    run.log("train", step=7, epoch=3.5, loss=0.5, learning_rate=0.01, images_per_second=80.0)
    run.skip("cat/1.jpg", "cmyk", "mode CMYK")
    folder = read_folder(run.path, label="run")
    assert [row["step"] for row in folder.validation] == [0, 7], "a curve would go back and forth"
    page = page_of(run.path)
    told = json.loads((run.path / "environment.json").read_text())
    for said in (
        told["command_line"],
        told["versions"]["torch"],
        told["started"],
        "1 file left out: 1 cmyk",
        "seed: 5",
    ):
        assert said in page.text
    assert "last seen at step 7 (epoch 3.5), with a loss of 0.5 and 3.2 of the teacher’s 10" in page.text
    assert "accelerators" not in page.text or told["hardware"]["accelerators"], "an empty fact says nothing"


def test_long_curves_are_averaged_and_keep_their_end() -> None:
    """A run of a million steps would make a page that no browser opens, or a curve that stops before its end."""
    rows = [{"epoch": step / 10, "loss": float(step % 2)} for step in range(1, 10_001)]
    points = curves.series(rows, "loss", scale=100)
    assert len(points) <= curves.POINTS
    assert points[-1][0] == 1000.0
    assert [y for _, y in points] == pytest.approx([50.0] * len(points), abs=2.0)


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ((0.0, 1.0), ["0", "0.25", "0.5", "0.75", "1"]),
        ((85.3, 95.1), ["87.5", "90", "92.5", "95"]),
        ((0.0, 2.0), ["0", "0.5", "1", "1.5", "2"]),
        ((0.0, 130.0), ["0", "30", "60", "90", "120"]),
        ((93.7, 93.7), ["90", "92", "94", "96", "98"]),
        ((0.0, 0.0), ["-0.8", "-0.4", "0", "0.4", "0.8"]),
    ],
)
def test_values_at_an_axis_are_round(values: tuple[float, float], expected: list[str]) -> None:
    """Nobody reads off 0.30000000000000004; a run with one measurement, or a loss of zero, would cost the page."""
    axis = curves.Axis(values, start=200.0, end=10.0, margin=0.02)
    assert [words for _, words in axis.ticks()] == expected
    assert all(10.0 <= place <= 200.0 for place, _ in axis.ticks())


def test_models_of_one_name_are_told_apart_by_their_folders(tmp_path: Path) -> None:
    """Two runs whose student is called "student" would be one row, or two rows that cannot be told apart."""
    for name, score in (("a", 0.7), ("b", 0.8)):
        models = {"teacher": {**TEACHER, "images_per_second": 10 * score}, "student": entry(one=score, spec=name)}
        write_pictures(write_results(tmp_path / name / "run", models), ("teacher", "student"))
        write_run(tmp_path / name / "run")
    page = page_of(tmp_path / "a" / "run", tmp_path / "b" / "run")
    assert len(page.tables) == 1
    assert [row[0] for row in page.tables[0][2:]] == ["teachertimm/big", "student · a/runa", "student · b/runb"]
    cards = [attributes for tag, attributes in page.tags if tag == "article" and attributes["class"] == "card"]
    assert len(cards) == 3, "one card a query, with both students on it"
    assert page.text.count("a/run 0.286 · b/run 0.286") == 1


def test_other_data_is_another_table(tmp_path: Path) -> None:
    """Scores on different images would stand in one column as if they could be compared."""
    first = write_results(tmp_path / "a", {"teacher": TEACHER, "student": STUDENT})
    second = write_results(tmp_path / "b", {"teacher": TEACHER, "student": STUDENT}, data="cifar10")
    page = page_of(first, second)
    assert [len(table) for table in page.tables] == [4, 4]
    assert "Compressed encoders on digits and cifar10" in page.text
    assert "nearest neighbours. cifar10, 360 test images" in page.text, "the sentences would contradict each other"


def test_a_folder_named_twice_is_shown_once(tmp_path: Path) -> None:
    """`report runs/* runs/a` would list runs/a twice and put its folder behind every name."""
    folder = write_run(tmp_path / "a")
    assert len(read_folders([str(folder), f"{folder}/../a"])) == 1


def test_how_to_repeat_it_is_on_the_page(page: Path) -> None:
    """A command that cannot be pasted, or a version that nobody noted, cannot be repeated."""
    parsed = read(page)
    assert parsed.text.count("compress-ssl distill 'my photos/'") == 2
    assert parsed.text.count("2.6.0") == 3, "results have no environment.json and hold all of it themselves"
    for said in ("compress-ssl evaluate", "H200, AMD EPYC, 2 cores", "temperature: 0.04", "1 broken, 2 cmyk"):
        assert said in parsed.text
    assert parsed.tables[-1][1:] == [
        ["a.jpg", "cmyk", "mode CMYK"],
        ["b.jpg", "broken", "not an image"],
        ["c.jpg", "cmyk", "mode CMYK"],
    ]


def test_many_skipped_files_are_counted_and_not_all_listed(tmp_path: Path) -> None:
    """A hundred thousand broken files would make a page of ten megabytes."""
    folder = write_run(tmp_path / "a")
    lines = [json.dumps({"id": f"{number}.jpg", "kind": "empty", "detail": ""}) + "\n" for number in range(507)]
    (folder / "skipped.jsonl").write_text("".join(lines))
    page = page_of(folder)
    assert "507 files left out: 507 empty" in page.text
    assert "7 more are listed in skipped.jsonl" in page.text
    assert len(page.tables[0]) == 1 + 500


def test_neighbours_are_marked_against_the_teacher_and_the_class(page: Path) -> None:
    """The frames are the proof by eye; they would prove something else."""
    parsed = read(page)
    frames = [
        attributes["class"] for tag, attributes in parsed.tags if tag == "li" and "frame" in attributes.get("class", "")
    ]
    # Query 0 is of class 0; its neighbours under model m are 3 + m, ..., 7 + m, and odd numbers are of the other class.
    shown = [
        *("frame own wrong", "frame own", "frame own wrong", "frame own", "frame own wrong"),
        *("frame shared", "frame shared wrong", "frame shared", "frame shared wrong", "frame missed"),
        *("frame shared wrong", "frame shared", "frame shared wrong", "frame missed", "frame missed wrong"),
        *("frame shared", "frame shared wrong", "frame missed", "frame missed wrong", "frame missed"),
    ]
    assert frames[:20] == shown
    assert "4 of 5 kept" in parsed.text
    titles = [
        attributes["title"]
        for _, attributes in parsed.tags
        if attributes.get("role") == "img" and "title" in attributes
    ]
    assert "digits/4 · class class 0 · the teacher has it too" in titles
    assert "digits/8 · class class 0 · the teacher does not have it" in titles


def test_without_labels_nothing_is_called_wrong(tmp_path: Path) -> None:
    """Unlabelled pictures would all be marked as errors."""
    folder = write_pictures(
        write_results(tmp_path / "a", {"teacher": TEACHER, "student": STUDENT}), ("teacher", "student"), labels=False
    )
    page = page_of(folder)
    assert not [
        attributes
        for tag, attributes in page.tags
        if tag == "li" and "wrong" in attributes.get("class", "").split() and "title" in attributes
    ]
    assert "another class" not in " ".join(attributes.get("title", "") for _, attributes in page.tags)


def test_labels_of_curves_never_overlap_and_keep_their_order() -> None:
    """Names of runs that end at the same height would be written over each other."""
    places = [50.0, 51.0, 20.0, 49.0, 50.5, 120.0, 3.0]
    placed = curves.spread(places, gap=14.0, low=17.0, high=500.0)
    order = sorted(range(len(places)), key=places.__getitem__)
    heights = [placed[position] for position in order]
    assert all(upper - lower >= 14.0 - 1e-9 for lower, upper in pairwise(heights))
    assert placed[5] == 120.0, "a label with room stays where its curve ends"
    assert placed[6] == 17.0, "a label stays on the figure"
    assert curves.spread([2.0] * 11, gap=14.0, low=7.0, high=161.0) == [7.0 + 14.0 * rank for rank in range(11)]
    assert curves.spread([99.0] * 3, gap=14.0, low=7.0, high=93.0) == [65.0, 79.0, 93.0]


# ---- what it must never do -------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def hostile(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A page on which every name that somebody else may have chosen is markup."""
    folder = tmp_path_factory.mktemp("hostile")
    run = write_run(folder / "<b>$x_1$&amp;", loss=1.0)
    (run / "config.yaml").write_text(f"data: {HOSTILE}\n</code></pre><script>alert(3)</script>")
    (run / "skipped.jsonl").write_text(json.dumps({"id": HOSTILE, "kind": HOSTILE, "detail": HOSTILE}) + "\n")
    hardware = {"processor": HOSTILE, "cores": 2, HOSTILE: [HOSTILE], "accelerators": [HOSTILE]}
    environment: dict[str, Any] = dict.fromkeys(("command_line", "system", "started"), HOSTILE)
    environment |= {"versions": {HOSTILE: HOSTILE}, "hardware": hardware}
    (run / "environment.json").write_text(json.dumps(environment))
    missing = {"linear_probe": HOSTILE, "cluster_alignment": HOSTILE}
    table = {"rows": [HOSTILE, "b"], "columns": [HOSTILE, "b"], "counts": [[1, 2], [3, 4]]}
    tables = {"confusion_classes": table, "confusion_clusters": table}
    metrics = {"metrics": {**STUDENT["metrics"], HOSTILE: 0.5}, "missing": missing, "tables": tables}
    models = {"teacher": TEACHER, HOSTILE: {**STUDENT, **metrics, "spec": HOSTILE}}
    write_results(run, models, data=HOSTILE, hardware=hardware)
    write_pictures(run, ("teacher", HOSTILE), prefix=HOSTILE)
    told = json.loads((run / "pictures.json").read_text())
    told["labels"] = dict.fromkeys(told["labels"], HOSTILE)
    (run / "pictures.json").write_text(json.dumps(told))
    return report.run(Config(runs=(str(run),), out=folder / "hostile.html"))


def test_names_are_never_markup(hostile: Path) -> None:
    """A picture called <script>…</script>.png in a downloaded data set would run in the reader's browser."""
    page = read(hostile)
    assert not {tag for tag, _ in page.tags} & {"script", "img", "iframe", "object"}
    assert not [name for _, attributes in page.tags for name in attributes if name.startswith("on")]
    titles = [attributes.get("title", "") for _, attributes in page.tags]
    assert any(title.startswith(f"{HOSTILE}4 · class {HOSTILE}") for title in titles)
    assert "<b>$x_1$&amp;" in page.text


def test_nothing_is_loaded_from_elsewhere(page: Path) -> None:
    """Opening a page would tell a server about it, or show holes without a network."""
    parsed, html = read(page), page.read_text()
    addresses = [
        attributes[name]
        for _, attributes in parsed.tags
        for name in ("src", "href", "xlink:href")
        if name in attributes
    ]
    assert addresses
    assert all(address.startswith(("#", "data:")) for address in addresses)
    assert all(address.startswith(("data:image/", "#")) for address in re.findall(r"url\(([^)]*)\)", html))
    assert "@import" not in html
    assert "default-src 'none'" in html


@pytest.mark.parametrize(
    "address",
    [
        "https://example.org/a.png",
        "data:image/svg+xml;base64,PHN2Zy8+",
        "data:image/png;base64,iVBOR)}body{display:none",
        uri(3) + "\n",
        "",
    ],
)
def test_pictures_that_are_no_pictures_are_refused(address: str, tmp_path: Path) -> None:
    """An address in pictures.json would be fetched, a bracket in it would rewrite the style of the page."""
    folder = write_pictures(write_results(tmp_path / "a", {"teacher": TEACHER}), ("teacher",))
    told = json.loads((folder / "pictures.json").read_text())
    told["pictures"]["digits/0"] = address
    (folder / "pictures.json").write_text(json.dumps(told))
    with pytest.raises(Refusal, match=r"expected a picture .* 'digits/0'"):
        report.run(Config(runs=(str(folder),)))


def test_large_pictures_become_small_ones(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A page with photographs of many models would be too large to send."""
    folder = write_pictures(write_results(tmp_path / "a", {"teacher": TEACHER}), ("teacher",))
    told = json.loads((folder / "pictures.json").read_text())
    told["pictures"] = {id_: uri(number, side=96) for number, id_ in enumerate(told["pictures"])}
    (folder / "pictures.json").write_text(json.dumps(told))
    large = report.run(Config(runs=(str(folder),))).read_text()
    monkeypatch.setattr(gallery, "PICTURE_BUDGET", 1000)
    small = report.run(Config(runs=(str(folder),))).read_text()
    assert (large.count("url(data:image/png"), small.count("url(data:image/webp")) == (11, 11)
    assert len(small) < len(large)


def test_a_picture_shown_often_is_stored_once(page: Path) -> None:
    """The same picture is a neighbour under five models; the page would be five times as large."""
    assert page.read_text().count("data:image/png") == 11


def test_every_link_has_one_target(page: Path) -> None:
    """A heading would lead to the wrong explanation or to none."""
    parsed = read(page)
    ids = [attributes["id"] for _, attributes in parsed.tags if "id" in attributes]
    assert len(ids) == len(set(ids))
    targets = {attributes["href"] for tag, attributes in parsed.tags if tag == "a"}
    assert {target.removeprefix("#") for target in targets} <= set(ids)


def test_names_that_are_not_unicode_do_not_cost_the_page(tmp_path: Path) -> None:
    """A folder name from an old disk is not UTF-8; Python holds it as a lone surrogate that cannot be written."""
    assert "caf? has no results yet" in page_of(write_run(tmp_path / "caf\udce9")).text


def test_every_text_can_be_read_on_its_ground() -> None:
    """Grey on white looks calm on the designer's screen and cannot be read on anybody else's (WCAG AA: 4.5)."""
    style = (Path(report.__file__).parent / "page" / "page.html").read_text()
    light, dark = (
        dict(re.findall(r"--([\w-]+): (#\w{6});", part))
        for part in style.split("@media (prefers-color-scheme: dark)")[:2]
    )
    for colours in (light, dark):
        for name in ("ink", "muted", "accent", "wrong", *(f"run-{position}" for position in range(curves.RUN_COLOURS))):
            for ground in ("paper", "raised"):
                assert contrast(colours[name], colours[ground]) >= 4.5, (name, ground)


def contrast(one: str, other: str) -> float:
    """WCAG's ratio of two colours."""

    def luminance(colour: str) -> float:
        parts = [int(colour[place : place + 2], 16) / 255 for place in (1, 3, 5)]
        linear = [part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in parts]
        return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]

    darker, lighter = sorted((luminance(one), luminance(other)))
    return (lighter + 0.05) / (darker + 0.05)


def test_the_page_needs_no_training_code(page: Path, tmp_path: Path) -> None:
    """A page could not be made where torch is not installed, and would wait for it everywhere else."""
    heavy = ("torch", "timm", "lightning", "lightly", "matplotlib", "sklearn")
    program = f"""
import sys
sys.modules.update(dict.fromkeys({heavy}))  # importing one of them is now an error
from compress_ssl import report
report.run(report.Config(runs=({str(page.parent)!r},), out=report.Path({str(tmp_path / "page.html")!r})))
"""
    subprocess.run([sys.executable, "-c", program], check=True, timeout=60)
    assert "Compressed encoders on digits" in (tmp_path / "page.html").read_text()


# ---- bad input -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("files", "expected"),
    [
        ({"config.yaml": "seed: 1"}, "expected results.json or metrics.jsonl in"),
        ({"results.json": '{"models": '}, "expected JSON in .*results.json, got .*line 1 column 12"),
        ({"results.json": ""}, "expected JSON in .*results.json"),
        ({"results.json": '{"accuracy": 3}'}, r"expected an object with .*models.* at .*results.json, got .*accuracy"),
        ({"results.json": "[]"}, r"expected an object with .* at .*results.json, got \[\]"),
        ({"metrics.jsonl": '{"kind": "train"}\n'}, "expected an object with epoch, kind, step at .*, line 1"),
        ({"metrics.jsonl": '\n{"ki\n{"kind": "train", "step": 2}\n'}, "JSON in line 2 of"),
        ({"metrics.jsonl": "", "environment.json": "{}"}, "expected an object with command_line, .*environment.json"),
        ({"metrics.jsonl": "", "pictures.json": "{}"}, "expected an object with clusters, .*pictures.json"),
        ({"metrics.jsonl": "", "skipped.jsonl": '{"id": "a"}\n'}, "expected an object with detail, .*skipped.jsonl"),
    ],
)
def test_a_folder_that_cannot_be_read_is_refused_in_a_sentence(
    files: dict[str, str], expected: str, tmp_path: Path
) -> None:
    """A stack trace, or worse a page without the part that could not be read, would be all that a user gets."""
    for name, text in files.items():
        (tmp_path / name).write_text(text)
    with pytest.raises(Refusal, match=expected) as refused:
        report.run(Config(runs=(str(tmp_path),)))
    assert "\n" not in str(refused.value)
    assert not (tmp_path / "report.html").exists()


def test_a_missing_folder_is_refused(tmp_path: Path) -> None:
    """A typing error in a folder name would give a page that lacks a run."""
    (tmp_path / "file").write_text("")
    for name, got in (("nowhere", "nothing"), ("file", "a file")):
        with pytest.raises(Refusal, match=f"expected a run folder at .*{name}, got {got}: name"):
            report.run(Config(runs=(str(write_run(tmp_path / "a")), str(tmp_path / name))))
    with pytest.raises(Refusal, match="expected at least one run folder"):
        report.run(Config(runs=()))


def test_a_page_that_cannot_be_written_is_refused_and_the_old_one_stays(tmp_path: Path) -> None:
    """A mistake in --out, or a run broken since, would show a stack trace or destroy the page of yesterday."""
    folder = write_run(tmp_path / "a")
    (tmp_path / "file").write_text("")
    with pytest.raises(Refusal, match=r"expected to write .*file/page\.html, got .*: choose another --out"):
        report.run(Config(runs=(str(folder),), out=tmp_path / "file" / "page.html"))
    page = report.run(Config(runs=(str(folder),)))
    before = page.read_bytes()
    (folder / "results.json").write_text("{")
    with pytest.raises(Refusal):
        report.run(Config(runs=(str(folder),)))
    assert page.read_bytes() == before


def test_the_page_goes_where_it_was_asked_to_go(tmp_path: Path) -> None:
    """`--out pages/` of a folder that exists would replace the folder or fail."""
    folder = write_run(tmp_path / "a")
    (tmp_path / "pages").mkdir()
    for out, expected in ((None, "a/report.html"), ("pages", "pages/report.html"), ("new/b.html", "new/b.html")):
        path = report.run(Config(runs=(str(folder),), out=tmp_path / out if out else None, title="My <own> page"))
        assert path == tmp_path / expected
        assert "<title>My &lt;own&gt; page</title>" in path.read_text()


# ---- several teachers ------------------------------------------------------------------------------------------------


def of_two_teachers(folder: Path, *, one: float = 0.85) -> Path:
    """A run with two teachers, one weak and one strong, as `distill` leaves it."""
    first = entry(one=0.8, overlap=1.0, parameters=200_000, flops=8_000_000, role="teacher", weight=0.25)
    second = entry(one=0.9, overlap=1.0, parameters=400_000, flops=8_000_000, role="teacher", weight=0.75)
    student = entry(one=one, overlap=0.4, parameters=100_000, flops=8_000_000, spec=str(folder))
    student["metrics"] |= {"neighbour_overlap_10_teacher_1": 0.7, "neighbour_overlap_10_teacher_2": 0.3}
    models = {"teacher_1": first, "teacher_2": second, "student": student}
    write_pictures(write_results(folder, models), tuple(models))
    scores = {f"neighbour_overlap_10{of}": 0.4 for of in ("", "_teacher_1", "_teacher_2")}
    scores |= {"nearest_neighbour": one, "teacher_1_nearest_neighbour": 0.8, "teacher_2_nearest_neighbour": 0.9}
    lines = [{"kind": "train", "step": 9, "epoch": 1.0, "loss": 2.0}]
    lines += [{"kind": "validation", "step": step, "epoch": step / 9, **scores} for step in (0, 9)]
    (folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return folder


@pytest.mark.parametrize(
    ("one", "expected"),
    [
        (0.85, "below teacher_2 (90.0 %) and above teacher_1 (80.0 %)."),
        (0.7, "below teacher_2 (90.0 %) and teacher_1 (80.0 %)."),
        (0.9, "level with teacher_2 (90.0 %) and above teacher_1 (80.0 %)."),
        (0.95, "above teacher_2 (90.0 %) and teacher_1 (80.0 %)."),
    ],
)
def test_the_sentence_compares_with_every_teacher_by_name(one: float, expected: str, tmp_path: Path) -> None:
    """A student below its better teacher would be told as one above its teacher."""
    comparisons, _ = compare(read_folders([str(of_two_teachers(tmp_path / "run", one=one))]))
    said = sentence(comparisons[0]).replace(THIN, " ")
    assert said.startswith(
        f"student reaches {100 * one:.1f} % in 1-NN, {expected} It shares only 4.0 of its teachers’ "
    )
    assert "as a weighted mean: 7.0 of teacher_1’s and 3.0 of teacher_2’s." in said
    assert said.endswith(
        "Beside teacher_1 it has 2× fewer parameters and as many multiply-adds, "
        "beside teacher_2 it has 4× fewer parameters and as many multiply-adds."
    )


def test_beside_several_teachers_no_number_is_of_one_unnamed(tmp_path: Path) -> None:
    """Numbers that are of the first teacher, or of all, would be read as of the other."""
    parsed = page_of(of_two_teachers(tmp_path / "run"))
    _, headings, *rows = parsed.tables[0]
    kept = [place for place, heading in enumerate(headings) if heading.startswith("Neighbours kept")]
    assert [headings[place] for place in kept] == [
        "Neighbours kept, of 10, weighted mean",
        *(f"Neighbours kept of teacher_{number}, of 10" for number in (1, 2)),
    ]
    assert [[row[place][:3] for place in kept] for row in rows] == [["–mi"] * 3, ["–mi"] * 3, ["4.0", "7.0", "3.0"]]
    assert rows[2][1] == f"85.0{THIN}%", "no share of one teacher's score"
    assert all(f"weight {weight}{THIN}%" in row[0] for row, weight in zip(rows[:2], ("25.0", "75.0"), strict=True))
    text = parsed.text.replace(THIN, " ")
    assert "weighted as they teach (teacher_1 25.0 %, teacher_2 75.0 %)" in text
    assert "upright stroke on a bar" not in text
    assert not [tag for tag, attributes in parsed.tags if tag == "b" and "left:" in attributes.get("style", "")]
    assert "4 of teacher_1’s 5 kept" not in text, "the student is two places behind the first"
    assert "3 of teacher_1’s 5 kept4 of teacher_2’s 5 kept" in text
    frames = [attributes["class"] for _, attributes in parsed.tags if attributes.get("class", "").startswith("frame ")]
    assert all("own" in frame for frame in frames[3:13]), "neither teacher's row is held to the other"
    assert "One value logged: student 2." in text


def test_a_dot_alone_stands_on_an_axis_from_nought() -> None:
    """A loss of 2.0 logged once would have an axis from 1.9 to 2.1, as if it had been measured so finely."""
    figure = curves.layout([{"name": "student", "curve": [(1.0, 2.0)], "run": 0}])
    assert [words for _, words in figure["values"]] == ["0", "0.5", "1", "1.5", "2"]
    assert figure["epochs"][0][1] == "0"


# ---- in a browser ----------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    """Headless Chromium that logs its console and every request."""
    webdriver = pytest.importorskip("selenium.webdriver", reason="selenium is not installed: pip install selenium")
    program = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    driver = shutil.which("chromedriver")
    if program is None or driver is None:
        pytest.skip("no browser to look at the page with: install the packages chromium and chromium-driver")
    options = webdriver.ChromeOptions()
    options.binary_location = program
    for flag in (
        *("headless=new", "no-sandbox", "disable-gpu", "no-first-run", "disable-background-networking"),
        *("disable-component-update", "disable-sync", f"user-data-dir={tmp_path_factory.mktemp('profile')}"),
    ):
        options.add_argument(f"--{flag}")
    options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
    running = webdriver.Chrome(options=options, service=webdriver.ChromeService(executable_path=driver))
    yield running
    running.quit()


def show(browser: Any, path: Path, *, width: int = 1280, scheme: str = "light") -> None:
    """Open the page at a width (CSS pixels) under a colour scheme, with empty logs."""
    metrics = {"width": width, "height": 900, "deviceScaleFactor": 1, "mobile": width < 500}
    browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", metrics)
    features = [{"name": "prefers-color-scheme", "value": scheme}]
    browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": features})
    browser.get("about:blank")
    browser.get_log("browser"), browser.get_log("performance")
    browser.get(path.as_uri())


def requests(browser: Any) -> list[str]:
    """Addresses asked for since `show`, pictures inside the page aside."""
    messages = [json.loads(line["message"])["message"] for line in browser.get_log("performance")]
    sent = [told["params"]["request"]["url"] for told in messages if told["method"] == "Network.requestWillBeSent"]
    return [address for address in sent if not address.startswith("data:")]


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_a_browser_shows_the_page_and_asks_for_nothing_else(browser: Any, page: Path, scheme: str) -> None:
    """Everything else here reads the file; only a browser tells whether it is a page."""
    show(browser, page, scheme=scheme)
    assert requests(browser) == [page.as_uri()]
    assert browser.get_log("browser") == []
    assert (
        browser.execute_script(
            "return performance.getEntriesByType('resource').map(entry => entry.name)"
            ".filter(name => !name.startsWith('data:'))"
        )
        == []
    )
    headings = browser.find_elements("css selector", "h2")
    assert [heading.text for heading in headings] == [
        *("Scores and sizes", "Curves", "Nearest neighbours", "Clusters", "How to repeat it")
    ]
    hidden = browser.execute_script(
        """const parts = [...document.querySelectorAll('h1, h2, .lede, section, table.scores, figure svg, .card')];
        return parts.filter((part) => !part.checkVisibility() || Math.min(part.clientWidth, part.clientHeight) < 10)
            .map((part) => part.outerHTML.slice(0, 200))"""
    )
    assert hidden == []
    ground, ink = browser.execute_script(
        "const style = getComputedStyle(document.body); return [style.backgroundColor, style.color]"
    )
    brightness = [sum(map(int, re.findall(r"\d+", colour)[:3])) for colour in (ground, ink)]
    assert (brightness[0] > brightness[1]) == (scheme == "light")


def test_the_browser_table_has_the_cells(browser: Any, page: Path) -> None:
    """Style could hide a number, or the best student would not be seen as such."""
    show(browser, page)
    rows = browser.find_elements("css selector", "table.scores tbody tr")
    cells = [
        [cell.text.replace(THIN, " ").split("\n") for cell in row.find_elements("css selector", "th, td")]
        for row in rows
    ]
    assert [row[0][0] for row in cells] == ["teacher", "student_1q", "student_2q", "student_random"]
    assert [row[1] for row in cells] == [
        ["90.0 %"],
        ["87.0 %", "96.7 % kept"],
        ["88.6 %", "98.4 % kept"],
        ["50.0 %", "55.6 % kept"],
    ]
    assert [row[3][0] for row in cells][1:] == ["6.6", "7.1", "0.7"]
    assert cells[2][5] == ["100 k", "11.2× fewer"]
    bold = browser.find_elements("css selector", "table.scores tbody strong")
    assert [cell.text.replace(THIN, " ") for cell in bold] == ["88.6 %", "7.1"]
    scopes = browser.find_elements("css selector", "table.scores th:not([scope])")
    assert scopes == []


@pytest.mark.parametrize("width", [320, 768, 1280])
def test_no_width_needs_sideways_scrolling_of_the_page(browser: Any, page: Path, width: int) -> None:
    """On a phone the text would run out of the screen; a wide table scrolls inside itself."""
    show(browser, page, width=width)
    across = browser.execute_script("const page = document.documentElement; return page.scrollWidth - page.clientWidth")
    assert across == 0
    outside = browser.execute_script(
        """const inside = (box) => box.left >= -1 && box.right <= document.documentElement.clientWidth + 1;
        return [...document.querySelectorAll('main *, header *')].filter((element) =>
            !element.closest('.scroll, pre, .list, .unseen, .query small') && !inside(element.getBoundingClientRect()))
            .map((element) => element.outerHTML.slice(0, 200))"""
    )
    assert outside == []
    assert browser.execute_script("return document.querySelector('.scroll').scrollWidth > innerWidth") == (width < 1000)


def test_a_table_of_two_teachers_fits_a_screen_of_1200(browser: Any, tmp_path: Path) -> None:
    """Its last column would be cut, and nobody scrolls for what does not show."""
    show(browser, report.run(Config(runs=(str(of_two_teachers(tmp_path / "run")),))), width=1200)
    spare = "const frame = document.querySelector('.scroll'); return frame.clientWidth - frame.scrollWidth"
    assert browser.execute_script(spare) >= 0


def test_curves_are_labelled_legibly_on_a_phone(browser: Any, page: Path) -> None:
    """Labels would be cut off, written over each other, or shrunk with the figure."""
    show(browser, page, width=390)
    figures = browser.execute_script(
        """return [...document.querySelectorAll('figure svg')].map((svg) => {
            const size = (box) => [box.left, box.top, box.right, box.bottom];
            return {box: size(svg.getBoundingClientRect()), name: svg.getAttribute('aria-label'),
                    texts: [...svg.querySelectorAll('text')].map((text) =>
                        [text.textContent, ...size(text.getBoundingClientRect())])}})"""
    )
    assert [figure["name"].split(",")[0] for figure in figures] == ["Loss in training", "Neighbours kept", "1-NN"]
    for figure in figures:
        names = [text for text in figure["texts"] if text[0] in ("student_1q", "student_2q", "teacher")]
        assert len(names) == 2 + figure["name"].startswith("1-NN")
        for text, left, top, right, bottom in figure["texts"]:
            assert left >= 0, text
            assert right <= 390, text
            assert bottom - top >= 10, text
        for (one, *upper), (other, *lower) in pairwise(sorted(names, key=lambda text: text[2])):
            assert lower[1] >= upper[3] - 4, (one, other)


def test_pictures_are_painted_and_tiny_ones_stay_sharp(browser: Any, page: Path) -> None:
    """Digits of 8 × 8 pixels would be grey clouds, or the pictures would be empty boxes."""
    show(browser, page)
    pictures = browser.execute_script(
        """return [...document.querySelectorAll('.card .picture, details[open] .picture')].map((picture) => {
            const style = getComputedStyle(picture), box = picture.getBoundingClientRect();
            return [style.backgroundImage.slice(0, 16), style.imageRendering, box.width, box.height]})"""
    )
    assert len(pictures) == 3 * (1 + 4 * 5) + 2 * (7 + 2)
    assert {(start, rendering) for start, rendering, _, _ in pictures} == {('url("data:image/', "pixelated")}
    assert {(width, height) for _, _, width, height in pictures} == {(80, 80), (40, 40), (48, 48)}, (
        "whole multiples of 8"
    )
    decoded = browser.execute_async_script(
        """const done = arguments[0], image = new Image();
        image.src = getComputedStyle(document.querySelector('.card .picture')).backgroundImage.slice(5, -2);
        image.decode().then(() => done([image.naturalWidth, image.naturalHeight]), (error) => done(String(error)))"""
    )
    assert decoded == [8, 8]


def test_folded_parts_unfold_without_a_script(browser: Any, page: Path) -> None:
    """Configuration, versions and the list of skipped files would be on the page and out of reach."""
    show(browser, page)
    visible = """return [...document.querySelectorAll('details:not([data-open]) > .inside')]
        .map((part) => part.checkVisibility() && part.clientHeight > 20)"""
    browser.execute_script("document.querySelectorAll('details[open]').forEach((part) => part.dataset.open = '')")
    assert browser.execute_script(visible) == [False] * (2 + 1 + 5), (
        "two models of clusters, files left out, and what each of three folders ran on"
    )
    for summary in browser.find_elements("css selector", "details:not([data-open]) > summary"):
        summary.click()
    assert browser.execute_script(visible) == [True] * (2 + 1 + 5)
    assert browser.get_log("browser") == []


def test_hostile_names_stay_text_in_a_browser(browser: Any, hostile: Path) -> None:
    """Escaping that satisfies one parser could still run in a real one."""
    show(browser, hostile, width=390)
    assert browser.get_log("browser") == [], "a blocked script or picture would be logged here"
    assert requests(browser) == [hostile.as_uri()]
    assert browser.find_elements("css selector", "script, img, figure b") == []
    assert browser.find_element("css selector", ".query small").get_attribute("title") == f"{HOSTILE}0"
    figures = "return [...document.querySelectorAll('figure svg')].map((figure) => figure.textContent)"
    assert any("<b>$x_1$&amp;" in text for text in browser.execute_script(figures))
    assert browser.execute_script("return [innerWidth, document.documentElement.scrollWidth]") == [390, 390]
