"""A matrix of trainings as a user meets it: stopped and gone on with, on several devices, with runs that fail."""

from __future__ import annotations

import csv
import errno
import fcntl
import json
import os
import re
import shlex
import signal
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from compress_ssl import cli, distill, embed, evaluate, pretrain
from compress_ssl.benchmark import _headline, gathered
from compress_ssl.lock import alone
from compress_ssl.matrix.cell import Bench
from compress_ssl.matrix.results import COSTS

STUDENT = "compress/resnet10_small_w8"
EVALUATIONS = ["nearest_neighbour", "neighbour_overlap"]


pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(autouse=True, scope="module")
def one_thread_in_other_processes() -> Iterator[None]:
    """Those that are started here have as many as we, so that sums are made in the same order."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("OMP_NUM_THREADS", "1")
        yield


@pytest.fixture(scope="module")
def options(digits_teacher: str) -> dict[str, Any]:
    """Two objectives, one student, two seeds; 5 steps of 32 digits each."""
    return {
        "data": "digits",
        "teacher": digits_teacher,
        "students": [STUDENT],
        "seeds": [0, 1],
        "views": 1,
        "evaluations": EVALUATIONS,
        "devices": ["cpu"],
        "common": {
            "epochs": 5 / 40,
            "batch_size": 32,
            "optimizer.learning_rate": 0.05,
            "workers": 0,
            "log_every_steps": 2,
            "held_out": 150,
            "gallery": 70,
        },
        "objectives": {"compress_2q": {"objective.momentum": 0.9}, "tuned": {"objective": {"name": "compress_1q"}}},
    }


def written(folder: Path, options: dict[str, Any]) -> Path:
    """The options as a file."""
    folder.mkdir(exist_ok=True)
    (folder / "matrix.yaml").write_text(yaml.safe_dump(options))
    return folder / "matrix.yaml"


def run(folder: Path, options: dict[str, Any], *flags: str) -> int:
    return cli.main(["benchmark", str(written(folder, options)), "--out", str(folder / "out"), *flags])


def numbers(folder: Path) -> list[dict[str, str]]:
    """results.csv without what is measured with a clock or tells places."""
    with (folder / "out" / "results.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    kept = [row for row in rows if row["metric"] != "minutes"]
    return [{name: row[name] for name in row if name not in ("command", "hardware")} for row in kept]


@pytest.fixture(scope="module")
def done(options: dict[str, Any], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a matrix that ran without disturbance; nobody changes it."""
    folder = tmp_path_factory.mktemp("done")
    assert run(folder, options) == 0
    return folder


def test_a_matrix_has_a_row_for_every_cell_and_metric_and_a_table(done):
    """A cell that is left out without a word makes its mean that of fewer seeds."""
    rows = numbers(done)
    for objective in ("compress_2q", "tuned"):
        for metric in ("nearest_neighbour", "nearest_neighbour_20", "neighbour_overlap_10"):
            own = [row for row in rows if row["objective"] == objective and row["metric"] == metric]
            assert [row["seed"] for row in own] == ["0", "1"]
            assert all(0 < float(row["value"]) < 1 for row in own)
    assert next(row["objective"] for row in rows) == "teacher"
    table = (done / "out" / "table.md").read_text()
    assert "| teacher |" in table
    assert "±" in table
    assert "<table>" in (done / "out" / "table.html").read_text()


def test_finished_cells_are_left_alone_and_the_same_command_changes_nothing(done, options, monkeypatch):
    """A hundred trainings would be made again because one was missing."""
    before = numbers(done)
    for verb in (distill, pretrain):
        monkeypatch.setattr(verb, "run", lambda config, **_: pytest.fail(f"{config.out} was trained again"))
    monkeypatch.setattr(Bench, "_embedded", lambda *_: pytest.fail("a scored student was embedded again"))
    assert run(done, options) == 0
    assert numbers(done) == before


def test_a_cell_is_the_run_that_its_command_makes(done, tmp_path):
    """The numbers of the table could not be had by hand."""
    with (done / "out" / "results.csv").open(newline="") as file:
        rows = [row for row in csv.DictReader(file) if row["objective"] == "tuned" and row["seed"] == "1"]
    words = shlex.split(rows[0]["command"])
    assert words[:2] == ["compress-ssl", "distill"]
    words[words.index("--out") + 1] = str(tmp_path / "run")
    assert cli.main(words[1:]) == 0
    teacher = words[words.index("--teacher") + 1]
    evaluate.run(
        evaluate.Config(
            models=(f"teacher={teacher}", f"student={tmp_path / 'run'}"),
            data="digits",
            out=tmp_path / "scores",
            metrics=tuple(EVALUATIONS),
            device="cpu",
            workers=0,
        )
    )
    found = json.loads((tmp_path / "scores" / "results.json").read_text())["models"]["student"]["metrics"]
    assert {row["metric"]: float(row["value"]) for row in rows if row["metric"] in found} == found


def test_stopped_and_run_again_it_gives_the_same_numbers(done, options, tmp_path, monkeypatch):
    """Numbers would depend on when somebody pressed Ctrl-C."""
    train, trained = distill.run, []

    def stopping(config: distill.Config, **options: Any) -> Path:
        trained.append(config.out.parts[-2:])
        if len(trained) == 2:  # in the middle of the second training
            step = distill.Step.__call__

            def signalled(self: Any, *arguments: Any) -> Any:
                os.kill(os.getpid(), signal.SIGINT)
                return step(self, *arguments)

            with monkeypatch.context() as patch:
                patch.setattr(distill.Step, "__call__", signalled)
                return train(config, **options)
        return train(config, **options)

    monkeypatch.setattr(distill, "run", stopping)
    assert run(tmp_path, options) == 130
    assert len(numbers(tmp_path)) < len(numbers(done)), "a partial table is there while it runs"
    assert run(tmp_path, options) == 0
    assert numbers(tmp_path) == numbers(done)
    assert trained == [
        ("compress_2q", "seed0"),
        *[("compress_2q", "seed1")] * 2,
        ("tuned", "seed0"),
        ("tuned", "seed1"),
    ]


def test_two_devices_give_the_numbers_of_one(done, options, tmp_path):
    """A table could not be made faster without making another one."""
    assert run(tmp_path, options, "--devices", "cpu", "cpu", "--only", "tuned") == 0
    expected = [row for row in numbers(done) if row["objective"] in ("teacher", "tuned")]
    assert numbers(tmp_path) == expected


def test_a_failed_cell_is_told_and_the_others_are_done(options, tmp_path, capsys):
    """One that diverges at night would cost the night, or be missing without a word."""
    rows = {"wild": {"objective.name": "compress_2q", "optimizer.learning_rate": 1e30}, "compress_2q": {}}
    assert run(tmp_path, {**options, "objectives": rows, "seeds": [0]}) == 2
    told = capsys.readouterr().err
    assert "wild" in told
    assert "expected a finite loss" in told
    assert {row["objective"] for row in numbers(tmp_path)} == {"teacher", "compress_2q"}
    assert "wild · seed 0: expected a finite loss" in (tmp_path / "out" / "table.md").read_text()


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"objectives": {"compress_2q": {"objective.temprature": 1}}}, "objectives.compress_2q: .*'temperature'"),
        ({"objectives": {"compress_2p": {}}}, "objectives.compress_2p: .*compress_2q"),
        ({"common": {"epoch": 3}}, "expected an option .*epochs"),
        ({"objectives": {"compress_2q": {"seed": 3}}}, "seed, which is the benchmark's own"),
        ({"frame": {"alone": {"epoch": 3}}}, "frame.alone: .*epochs"),
        ({"frame": {"random": {"epochs": 3}}}, "never trained"),
        ({"evaluations": ["linear_prob"]}, "linear_probe"),
        ({"students": ["compress/resnet11"]}, "resnet"),
        ({"students": []}, "at least one"),
        ({"seeds": [1, 1]}, "each once"),
        ({"objective": {}}, "objectives"),
        ({"only": ["tune"]}, "tuned"),
        ({"sweep": {"option": "objective.temprature", "values": [0.1]}}, "temperature"),
        ({"sweep": {"option": "objective.temperature", "values": [0.1, 0.1]}}, "0.1 twice"),
        ({"sweep": {"option": "views", "values": ["alive"]}}, "live, cached or a number"),
        ({"devices": ["cpu", "cuda"]}, "one kind"),
    ],
)
def test_what_cannot_be_done_is_refused_before_anything_runs(options, tmp_path, capsys, changes, told):
    """A misspelt option of the last row would be found after a night."""
    assert run(tmp_path, options | changes) == 2
    refused = capsys.readouterr().err
    assert re.search(told, refused), refused
    assert not (tmp_path / "out").exists()


def test_another_matrix_is_not_mixed_into_a_folder(done, options, capsys):
    """Half of a mean would be of one learning rate, half of another."""
    changed = {**options, "common": {**options["common"], "optimizer.learning_rate": 0.06}}
    assert run(done, changed) == 2
    assert "optimizer.learning_rate: 0.05 → 0.06" in capsys.readouterr().err


def test_tables_are_made_of_the_raw_numbers_alone(done, tmp_path):
    """Published tables could not be made again without the trainings."""
    raw = done / "out" / "results.csv"
    assert cli.main(["benchmark", "--results", str(raw), "--out", str(tmp_path / "docs")]) == 0
    assert (tmp_path / "docs" / "table.md").read_text() == (done / "out" / "table.md").read_text()
    assert (tmp_path / "docs" / "table.html").read_text() == (done / "out" / "table.html").read_text()
    assert not (tmp_path / "docs" / "results.csv").exists()


def test_other_options_beside_raw_numbers_are_refused(done, tmp_path, capsys):
    """They would be ignored without a word."""
    raw = str(done / "out" / "results.csv")
    assert cli.main(["benchmark", "--results", raw, "--out", str(tmp_path), "--seeds", "1"]) == 2
    assert "seeds" in capsys.readouterr().err


def test_a_swept_option_has_a_cell_each_value_and_a_figure(options, tmp_path):
    """Of a sweep only the last value would be seen; and rows that it does not touch would be trained each time."""
    sweep = {"option": "views", "values": ["cached", "live"], "objectives": ["tuned"]}
    assert run(tmp_path, {**options, "sweep": sweep, "seeds": [0]}) == 0
    rows = [row for row in numbers(tmp_path) if row["metric"] == "nearest_neighbour"]
    assert [(row["objective"], row["setting"]) for row in rows] == [
        ("teacher", ""), ("compress_2q", ""), ("tuned", "cached"), ("tuned", "live"),
    ]  # fmt: skip
    runs = tmp_path / "out" / "runs" / "compress_resnet10_small_w8"
    configs = {
        place: yaml.safe_load((runs / place / "seed0" / "config.yaml").read_text())
        for place in ("compress_2q", "tuned/cached", "tuned/live")
    }
    assert configs["compress_2q"]["teacher"].endswith("out/teacher/views_1")
    assert configs["tuned/cached"]["stored"]["student_view"] == "random"
    assert configs["tuned/cached"]["teacher"].endswith("out/teacher/views_0")
    assert configs["tuned/live"]["teacher"] == options["teacher"]
    assert ">cached<" in (tmp_path / "out" / "sweep_views.svg").read_text()
    assert "sweep_views.svg" in (tmp_path / "out" / "table.md").read_text()


def test_rows_of_the_frame_share_the_budget_and_keep_their_own_learning_rate(options, tmp_path):
    """SimCLR with the learning rate of distillation would look worse than it is."""
    frame = {"alone": {"method.temperature": 0.5}, "random": {}}
    assert run(tmp_path, {**options, "objectives": {}, "frame": frame, "seeds": [0]}) == 0
    folder = tmp_path / "out" / "runs" / "compress_resnet10_small_w8" / "alone" / "seed0"
    config = yaml.safe_load((folder / "config.yaml").read_text())
    assert config["training"]["epochs"] == options["common"]["epochs"]
    assert config["optimizer"] == pretrain.Config(data="d", out=Path("o")).optimizer.__dict__
    assert config["method"]["temperature"] == 0.5
    assert {row["objective"] for row in numbers(tmp_path)} == {"teacher", "alone", "random"}


def test_other_protocols_score_anew_and_keep_what_the_training_took(options, tmp_path, monkeypatch):
    """Minutes and images would be gone from the table, for what was measured once is not trained again."""

    def costs() -> dict[str, str]:
        with (tmp_path / "out" / "results.csv").open(newline="") as file:
            return {row["metric"]: row["value"] for row in csv.DictReader(file)
                    if row["objective"] == "tuned" and row["metric"] in COSTS}  # fmt: skip

    small = {**options, "objectives": {"tuned": {"objective": "compress_1q"}}, "seeds": [0]}
    assert run(tmp_path, small) == 0
    before = costs()
    assert set(before) == set(COSTS)
    hardware = tmp_path / "out" / "runs" / "compress_resnet10_small_w8" / "tuned" / "seed0" / "scores.json"
    told = json.loads(hardware.read_text())
    hardware.write_text(json.dumps(told | {"hardware": told["hardware"] | {"processor": "another one"}}))
    monkeypatch.setattr(distill, "run", lambda config, **_: pytest.fail(f"{config.out} was trained again"))
    assert run(tmp_path, small, "--protocols.nearest-neighbour.neighbours", "1", "7") == 0
    rows = {row["metric"] for row in numbers(tmp_path)}
    assert "nearest_neighbour_7" in rows
    assert "nearest_neighbour_20" not in rows, "scores of both protocols would stand side by side"
    assert costs() == before
    assert "Minutes are of training, on another one" in (tmp_path / "out" / "table.md").read_text()


def held_until_waited_for(folder: Path, name: str, monkeypatch: pytest.MonkeyPatch) -> threading.Event:
    """Another command at this work, until this process waits for a lock; the event, that it has gone."""
    held, waited, done = threading.Event(), threading.Event(), threading.Event()
    flock = fcntl.flock

    def noted(file: Any, operation: int) -> None:
        if operation == fcntl.LOCK_EX:  # the others do not wait
            waited.set()
        flock(file, operation)

    def other() -> None:
        with alone(folder, name):
            held.set()
            waited.wait(600)
            time.sleep(0.1)  # in which a command that does not wait would begin
            done.set()

    threading.Thread(target=other, daemon=True).start()
    assert held.wait(60)
    monkeypatch.setattr("compress_ssl.lock.fcntl.flock", noted)
    return done


@pytest.mark.parametrize(("name", "told"), [("views_1", "embeds"), ("scores.json", "scores")])
def test_who_waits_for_anothers_work_on_the_teacher_says_so(name, told, options, tmp_path, monkeypatch, capsys):
    """A command that says nothing for an hour passes for one that hangs, and is killed."""
    done = held_until_waited_for(tmp_path / "out" / "teacher", name, monkeypatch)
    embedding, scoring = embed.run, Bench._completed
    began = []

    def embedded(config: embed.Config) -> Any:
        began.append(("embeds", done.is_set()))
        return embedding(config)

    def scored(self: Bench, *arguments: Any) -> dict[str, Any]:
        began.append(("scores", done.is_set()))
        return scoring(self, *arguments)

    monkeypatch.setattr(embed, "run", embedded)
    monkeypatch.setattr(Bench, "_completed", scored)
    small = {**options, "objectives": {}, "frame": {"random": {}}, "seeds": [0], "views": "live"}
    if told == "embeds":
        small = {**options, "seeds": [0], "objectives": {"tuned": {"objective": "compress_1q", "epochs": 1 / 40}}}
    assert run(tmp_path, small) == 0
    assert f"another command {told} the teacher: waiting for it" in capsys.readouterr().err
    assert next(after for what, after in began if what == told)


def test_a_file_system_without_locks_is_told_once(options, tmp_path, monkeypatch, capsys):
    """Two commands on it would write one run in turns, and neither would know."""

    def none(*_: object) -> None:
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr("compress_ssl.lock.fcntl.flock", none)
    assert run(tmp_path, {**options, "objectives": {}, "frame": {"random": {}}, "seeds": [0]}) == 0
    assert " ".join(capsys.readouterr().err.split()).count("has no locks: start no other command") == 1


def test_scores_are_gathered_without_a_look_into_the_runs(done, monkeypatch):
    """Checkpoints that another command drops at that moment would end this one with a traceback."""
    before = numbers(done)
    checkpoints = [scores.parent / "checkpoints" for scores in (done / "out" / "runs").rglob("scores.json")]
    for folder in checkpoints:
        folder.mkdir()
    scan = os.scandir

    def vanishing(path: Any) -> Any:
        if Path(path) in checkpoints:
            raise FileNotFoundError(path)
        return scan(path)

    try:
        with monkeypatch.context() as patch:
            patch.setattr(os, "scandir", vanishing)
            found = gathered(done / "out", ())
    finally:
        for folder in checkpoints:
            folder.rmdir()
    assert len(found) >= len(before)
    assert {one.objective for one in found} == {row["objective"] for row in before}


def test_what_another_command_trains_comes_last_and_is_not_trained_beside_it(options, tmp_path, monkeypatch, capsys):
    """Two commands on one folder would write one run, or each wait for the other's and do nothing meanwhile."""
    place = tmp_path / "out" / "runs" / "compress_resnet10_small_w8" / "tuned"
    done = held_until_waited_for(place, "seed0", monkeypatch)
    train, trained = distill.run, []

    def training(config: distill.Config, **options: Any) -> Path:
        trained.append((config.out.name, done.is_set()))
        return train(config, **options)

    monkeypatch.setattr(distill, "run", training)
    assert run(tmp_path, {**options, "objectives": {"tuned": {"objective": "compress_1q"}}}) == 0
    assert trained == [("seed1", False), ("seed0", True)]
    told = json.loads((place / "seed0" / "results.json").read_text())["models"]["student"]
    assert "parameters" in told
    assert "images_per_second" not in told, "measured for nobody, at each of a hundred runs"
    assert "another command is at 1 of the runs" in capsys.readouterr().err
    assert not [file for file in place.iterdir() if file.name.endswith(".lock")]


def test_a_finished_run_is_told_by_the_four_main_scores():
    """The alignment of clusters would be left out of the line for a top-5 accuracy that stands before it."""
    names = ["nearest_neighbour", "nearest_neighbour_20", "linear_probe", "linear_probe_5", "cluster_alignment"]
    scores = {name: (number + 1) / 10 for number, name in enumerate(names)}
    assert _headline(scores) == "1-NN 10.0 · 20-NN 20.0 · linear 30.0 · CA 50.0"
    few = {"cluster_alignment_std": 0.01, "linear_probe_5": 0.9, "cluster_alignment": 0.5}
    assert _headline(few) == "CA 50.0 · linear top-5 90.0"
