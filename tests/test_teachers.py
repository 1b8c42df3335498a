"""Several teachers at once: live and stored, of different widths and input sizes, one student."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors import safe_open
from torch import Tensor

from compress_ssl import cli, datasets, distill, embed, evaluate, report
from compress_ssl.encoder import open_encoder, save_encoder
from compress_ssl.hardware import HardwareConfig
from compress_ssl.objectives import compress_1q, compress_2q
from compress_ssl.optim import OptimizerConfig
from compress_ssl.projector import ProjectorConfig
from compress_ssl.refusal import Refusal
from compress_ssl.stored_teacher import StoredConfig
from compress_ssl.teachers import open_teachers, teacher_specs
from compress_ssl.training import TrainingConfig, scores_told
from compress_ssl.transforms import RandomView, ReplayView, TrainView

EPOCH, NEVER = 9, 1e9  # steps; minutes
CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """live/ sees 8 pixels in 64 numbers, other/ 16 pixels in 128; tables of live, of other, and of other crops."""
    folder = tmp_path_factory.mktemp("teachers")
    digits = datasets.open_splits("digits").train
    for place in range(160):
        (folder / "photos" / str(digits.labels[place])).mkdir(parents=True, exist_ok=True)
        Image.fromarray(digits.read(place)).save(folder / "photos" / str(digits.labels[place]) / f"{place}.png")
    for name, spec, size in (("live", "compress/resnet10_small_w8", 8), ("other", "compress/resnet10_small_w16", 16)):
        torch.manual_seed(size)
        save_encoder(open_encoder(spec, weights="random", size=size), folder / name)
    for name, encoder, options in (
        ("table", "live", {"views": 2}),
        ("same_crops", "other", {"views": 2}),
        ("other_crops", "other", {"views": 2, "seed": 1}),
        ("more_crops", "other", {"views": 3}),
    ):
        embed.run(embed.Config(encoder=str(folder / encoder), data=str(folder / "photos"), out=folder / name, workers=0,
                               device="cpu", **options))  # type: ignore[arg-type]  # fmt: skip
    return folder


def config(home: Path, out: Path, *teachers: str, **options: Any) -> distill.Config:
    """6 steps of 16 of 144 digits."""
    specs = tuple(str(home / name) for name in teachers)
    return distill.Config(
        teacher=specs if len(specs) > 1 else specs[0],
        student="compress/resnet10_small_w8",
        data=str(home / "photos"),
        out=out,
        training=TrainingConfig(
            epochs=6 / EPOCH, batch_size=16, validate_every_epochs=3 / EPOCH, save_every_minutes=NEVER,
            log_every_steps=1,
        ),
        optimizer=OptimizerConfig(learning_rate=0.05),
        hardware=HardwareConfig(accelerator="cpu", workers=0, precision="32"),
        held_out=60,
        gallery=200,
        **{"objective": compress_2q.Config(momentum=0.9), **options},
    )  # fmt: skip


def losses(run: Path) -> list[float]:
    lines = map(json.loads, (run / "metrics.jsonl").read_text().splitlines())
    return [line["loss"] for line in lines if line["kind"] == "train"]


def opened(home: Path, *names: str, **options: Any) -> Any:
    images, _ = datasets.trained_and_watched(datasets.open_splits(str(home / "photos")).train, held_out=60, gallery=200)
    stored = options.get("stored", StoredConfig(part="table" in names))  # the tables hold the images held out too
    return open_teachers([str(home / name) for name in names], images, size=None, device=CPU, workers=0, stored=stored)


def test_two_live_teachers_are_named_in_every_score_and_on_the_page(home: Path, tmp_path: Path) -> None:
    """One teacher's share of the student would be told as that of both, or a teacher be ranked among the students."""
    run = distill.run(
        config(
            home,
            tmp_path / "run",
            "live",
            "other",
            teacher_weights=(3, 1),
            objective=compress_1q.Config(temperature="auto"),
        )
    )
    last = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()][-1]
    assert last["kind"] == "validation"
    each = [last[f"neighbour_overlap_10_teacher_{number}"] for number in (1, 2)]
    assert last["neighbour_overlap_10"] == pytest.approx(0.75 * each[0] + 0.25 * each[1])
    assert {"teacher_1_nearest_neighbour", "teacher_2_nearest_neighbour", "nearest_neighbour"} <= last.keys()
    models = json.loads((run / "results.json").read_text())["models"]
    assert list(models) == ["teacher_1", "teacher_2", "student"]
    assert [models[f"teacher_{n}"]["width"] for n in (1, 2)] == [64, 128]
    assert models["teacher_1"]["temperature"] != models["teacher_2"]["temperature"], "each its own"
    page = Path(report.run(report.Config(runs=(str(run),)))).read_text()
    assert page.count('<tr class="teacher">') == 2
    assert page.count('<tr class="student">') == 1
    assert "Neighbours kept of teacher_2, of 10</a>" in page
    assert "neighbour_overlap_10" not in models["teacher_1"]["metrics"], "nobody's student"
    told = scores_told({name: value for name, value in last.items() if "neighbour" in name})
    assert f"neighbours kept {last['neighbour_overlap_10']:.3f} (weighted mean; teacher_1 {each[0]:.3f}, " in told
    assert "teacher 1" not in told
    # and its rows are found again in the space of either teacher
    for space, width in (("2", 128), (str(home / "live"), 64)):
        table = tmp_path / f"space_{width}"
        embed.run(
            embed.Config(encoder=str(run), data=str(home / "photos"), out=table, space=space, workers=0, device="cpu")
        )
        assert json.loads((table / "manifest.json").read_text())["origin"]["encoder"]["width"] == width
    with pytest.raises(Refusal, match=r"--space expected one of the teachers"):
        embed.run(
            embed.Config(encoder=str(run), data=str(home / "photos"), out=tmp_path / "no", workers=0, space="teacher")
        )
    named = (f"b={home / 'other'}", f"s={run}")
    found = evaluate.run(evaluate.Config(models=named, data=str(home / "photos"), workers=0,
                         out=tmp_path / "scored", device="cpu", metrics=("asymmetric_nearest_neighbour",)))  # fmt: skip
    assert "asymmetric_nearest_neighbour" in json.loads((found / "results.json").read_text())["models"]["s"]["metrics"]


def test_a_resumed_run_repeats_the_losses_and_refuses_other_teachers(home: Path, tmp_path: Path) -> None:
    """A pre-empted run would go on with one teacher's bank as the other's, or with another teacher altogether."""
    mlp = ProjectorConfig(kind="mlp", hidden_width=11)
    whole = config(home, tmp_path / "whole", "table", "other", projector=mlp)
    distill.run(whole)
    killed = replace(whole, out=tmp_path / "killed", training=replace(whole.training, save_every_minutes=0))
    step = distill.Step.__call__
    with pytest.MonkeyPatch.context() as patch:
        calls: list[int] = []

        def fourth(self: Any, *given: Any) -> Tensor:
            calls.append(1)
            if len(calls) == 4:
                raise KeyboardInterrupt
            return step(self, *given)

        patch.setattr(distill.Step, "__call__", fourth)
        with pytest.raises(KeyboardInterrupt):
            distill.run(killed)
    assert isinstance(killed.teacher, tuple)
    for other in (killed.teacher[:1], killed.teacher[::-1], killed.teacher[0]):
        with pytest.raises(Refusal, match=r"--resume expected the configuration"):
            distill.run(replace(killed, teacher=other, resume=True))
    distill.run(replace(killed, resume=True))
    assert losses(tmp_path / "killed") == losses(tmp_path / "whole")
    with safe_open(tmp_path / "whole" / "student" / "projector_2.safetensors", framework="pt") as file:
        assert json.loads(file.metadata()["projector"])["shape"] == {"widths": [64, 11, 64], "batch_norm": True}


def test_live_and_stored_look_at_the_same_stored_crops_at_the_largest_input(home: Path) -> None:
    """The live teacher and the student would see one part of the picture and the stored rows be of another."""
    both = opened(home, "table", "other")
    view = both.view(TrainView(), 8)
    assert isinstance(view, ReplayView)
    assert view.size == 16
    live = opened(home, "live", "other").view(TrainView(), 8)
    assert isinstance(live, RandomView)
    assert live.size == 16
    assert (both.names, both.input_size) == (["teacher_1", "teacher_2"], 8)


def test_rows_of_live_and_stored_stand_side_by_side(home: Path) -> None:
    """Targets of one teacher would be compared with the anchors of the other."""
    both, images = opened(home, "other", "table"), torch.randint(0, 256, (5, 3, 16, 16), dtype=torch.uint8)
    batch = distill.Batch(images, torch.tensor([7, 3, 11, 0, 2]), [])
    rows = both(both.prepare(batch))
    assert rows.shape == (5, 128 + 64)
    assert torch.equal(rows, both(batch)), "looked up ahead or now"
    assert torch.equal(rows[:, :128], both.members[0](batch))
    assert torch.equal(rows[:, 128:], both.members[1](batch))


def test_two_tables_go_together_where_their_crops_do(home: Path) -> None:
    """The student would be shown the crops of one table and told what the other's teacher saw elsewhere."""
    assert isinstance(opened(home, "table", "same_crops").view(TrainView(), 8), ReplayView)
    for name, told in (("other_crops", "other boxes of"), ("more_crops", "2 and 3 random views")):
        with pytest.raises(Refusal, match=f"expected tables with the same crops.*{told}"):
            opened(home, "table", name).view(TrainView(), 8)
    free = opened(home, "table", "other_crops", stored=StoredConfig(part=True, student_view="random"))
    assert isinstance(free.view(TrainView(), 8), RandomView)


def test_vectors_without_crops_teach_beside_a_live_teacher(home: Path, tmp_path: Path) -> None:
    """Whoever has a service's vectors and a model of their own would have to choose."""
    train = datasets.open_splits(str(home / "photos")).train
    rows = np.random.default_rng(0).standard_normal((len(train), 5)).astype(np.float32)
    np.save(tmp_path / "rows.npy", rows)
    (tmp_path / "ids.txt").write_text("".join(f"{id}\n" for id in train.ids))
    given = config(home, tmp_path / "run", "live", "live", ids=tmp_path / "ids.txt")
    run = distill.run(replace(given, teacher=(str(home / "live"), str(tmp_path / "rows.npy"))))
    assert list(json.loads((run / "results.json").read_text())["models"]) == ["teacher_1", "teacher_2", "student"]


def test_stored_anchors_of_two_tables_are_each_its_own_and_a_live_teacher_has_none(home: Path, tmp_path: Path) -> None:
    """All anchors would be the first table's, or a run would start with an empty bank that it never fills."""
    stored = {"objective": compress_1q.Config(anchors="stored"), "stored": StoredConfig(part=True)}
    run = distill.run(config(home, tmp_path / "run", "table", "same_crops", **stored))
    assert min(losses(run)) > 0
    with pytest.raises(Refusal, match=r"--objective.anchors stored expected a table"):
        distill.run(config(home, tmp_path / "no", "table", "other", **stored))


def test_a_batch_norm_projector_learns_in_parts(home: Path, tmp_path: Path) -> None:
    """--accumulate would end in an error about batch norm, or leave the projector untrained."""
    given = config(
        home, tmp_path / "run", "live", "other", objective=compress_1q.Config(), projector=ProjectorConfig(kind="mlp")
    )
    run = distill.run(replace(given, training=replace(given.training, accumulate=4)))
    assert np.isfinite(losses(run)).all()
    assert len(list((run / "student").glob("projector_*.safetensors"))) == 2


def test_the_same_teacher_twice_is_refused(home: Path) -> None:
    """It would cost twice the time, and count twice without anybody having said so."""
    with pytest.raises(Refusal, match=r"--teacher expected every teacher once, got .* twice"):
        teacher_specs([str(home / "live"), f"{home}/./live"])
    with pytest.raises(Refusal, match=r"--teacher expected at least one"):
        teacher_specs([])


def test_the_command_line_and_a_file_take_one_teacher_or_several(tmp_path: Path) -> None:
    """`--teacher A B` would be told that B is no option, or a file with one teacher be read letter by letter."""
    rest = ["--data", "digits", "--out", "x"]

    def parsed(*words: str) -> distill.Config:
        return cli.parse(distill.Config, [*words, *rest], "compress-ssl distill")

    assert parsed("--teacher", "a").teacher == "a"
    both = parsed("--teacher", "a", "b", "--teacher-weights", "1", "0.5")
    assert (both.teacher, both.teacher_weights) == (("a", "b"), (1, 0.5))
    for written, expected in (("teacher: a\n", "a"), ("teacher: [a, b]\nteacher_weights: [2, 1]\n", ("a", "b"))):
        (tmp_path / "run.yaml").write_text(written)
        assert parsed(str(tmp_path / "run.yaml")).teacher == expected


def test_two_processes_train_an_mlp_with_batch_norm_for_two_teachers(home: Path, tmp_path: Path) -> None:
    """A second device would end in a hang, or in weights that differ from process to process."""
    run = tmp_path / "run"
    both = [str(home / "live"), str(home / "table")]
    command = [sys.executable, "-m", "compress_ssl.cli", "distill", "--teacher", *both,
               "--data", str(home / "photos"), "--student", "compress/resnet10_small_w8", "--out", str(run),
               "--projector.kind", "mlp", "--epochs", "0.7", "--batch-size", "16", "--devices", "2", "--accelerator",
               "cpu", "--precision", "32", "--workers", "0", "--held-out", "60", "--log-every-steps", "1",
               "--objective", "compress_2q"]  # fmt: skip
    alone = {**os.environ, "OMP_NUM_THREADS": "1"}
    told = subprocess.run(command, capture_output=True, text=True, env=alone, timeout=200)
    assert told.returncode == 0, told.stderr
    assert "Traceback" not in told.stderr
    assert np.isfinite(losses(run)).all()
    state = torch.load(run / "checkpoints" / "last.ckpt", weights_only=True)["parts"]
    assert {"1", "2"} == state["objective"].keys()
    assert [name for name in state["student"] if name.startswith("projector.1.") and "running_mean" in name]
    assert [name for name in state["momentum"] if name.startswith("projector.1.") and "running_mean" in name]
