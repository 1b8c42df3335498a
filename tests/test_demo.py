"""The demo end to end, its trainings cut short: the numbers of the full one are in README.md."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

from compress_ssl import cli, demo
from compress_ssl.encoder import open_encoder, parameter_count
from compress_ssl.training import TrainingConfig

MODELS = ["teacher", "student_1q", "student_2q", "student_alone", "student_random"]


@pytest.fixture
def short(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two epochs of everything."""

    def shortened(**options) -> TrainingConfig:
        return replace(TrainingConfig(**options), epochs=2, validate_every_epochs=1)

    monkeypatch.setattr(demo, "TrainingConfig", shortened)


@pytest.mark.usefixtures("short")
def test_the_demo_scores_all_five_models_and_names_its_page(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The one command that a newcomer types: a missing model or page is the first thing they would see."""
    out = tmp_path / "demo"
    assert cli.main(["demo", "--out", str(out)]) == 0
    assert capsys.readouterr().out.strip() == str(out / "report.html")
    models = json.loads((out / "results.json").read_text())["models"]
    assert list(models) == MODELS
    for name in MODELS:
        wanted = {
            "nearest_neighbour",
            "nearest_neighbour_20",
            "linear_probe",
            "cluster_alignment",
            "neighbour_overlap_10",
        }
        assert wanted <= set(models[name]["metrics"])
    assert "asymmetric_nearest_neighbour" in models["student_1q"]["metrics"]
    page = (out / "report.html").read_text()
    assert all(name in page for name in MODELS)


def test_the_demo_leaves_a_folder_that_holds_something_alone(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Typing it in the wrong place would mix three minutes of demo into somebody's files."""
    (tmp_path / "precious.txt").write_text("mine")
    assert cli.main(["demo", "--out", str(tmp_path)]) == 2
    assert "name another with --out" in capsys.readouterr().err
    assert [file.name for file in tmp_path.iterdir()] == ["precious.txt"]


def test_the_student_has_at_most_an_eighth_of_the_teachers_parameters() -> None:
    """What README says of the demo."""
    teacher, student = (open_encoder(f"{name}@random", weights="random") for name in (demo.TEACHER, demo.STUDENT))
    assert parameter_count(teacher) >= 8 * parameter_count(student)
