"""Distillation as a user meets it: killed and resumed, in several processes or parts, with good and bad teachers."""

from __future__ import annotations

import errno
import json
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file
from torch import Tensor, nn

from compress_ssl import checkpoint, cli, colour, datasets, distill, embed, mixing, time_budget, training
from compress_ssl.datasets import Splits
from compress_ssl.distill import Config
from compress_ssl.encoder import Encoder, open_encoder, save_encoder
from compress_ssl.evaluations import neighbour_overlap
from compress_ssl.hardware import HardwareConfig
from compress_ssl.loader import Batch, TrainLoader
from compress_ssl.mixing import MixingConfig
from compress_ssl.momentum import Momentum
from compress_ssl.objectives import compress, compress_1q, compress_2q
from compress_ssl.optim import OptimizerConfig, ScheduleConfig
from compress_ssl.refusal import Refusal
from compress_ssl.run_folder import RunFolder
from compress_ssl.scorer import Scorer, best_epoch
from compress_ssl.stored_teacher import StoredConfig
from compress_ssl.student import Student
from compress_ssl.table import Table
from compress_ssl.teacher import LiveTeacher
from compress_ssl.training import TrainingConfig
from compress_ssl.transforms import RandomView
from compress_ssl.vectors import Vectors

pytestmark = pytest.mark.usefixtures("one_thread")
STUDENT = "compress/resnet10_small_w8"
EPOCH = 80  # steps: 1437 digits without the 150 held out, 16 a step
NEVER = 1e9  # minutes
OBJECTIVES = {"compress_1q": compress_1q.Config(), "compress_2q": compress_2q.Config(momentum=0.9)}


class Killed(BaseException):
    """What SIGKILL is to a process: nothing of ours catches it."""


@pytest.fixture
def config(digits_teacher: str, tmp_path: Path) -> Config:
    """13 steps of 16 digits, scored at 0, 5, 10 and 13."""
    return Config(
        teacher=digits_teacher,
        student=STUDENT,
        data="digits",
        out=tmp_path / "run",
        objective=compress_2q.Config(),
        training=TrainingConfig(
            epochs=13 / EPOCH,
            batch_size=16,
            validate_every_epochs=5 / EPOCH,
            save_every_minutes=NEVER,
            log_every_steps=3,
            seed=3,
        ),
        optimizer=OptimizerConfig(learning_rate=0.05),
        schedule=ScheduleConfig(name="cosine"),
        hardware=HardwareConfig(accelerator="cpu", workers=0, precision="32"),
        held_out=150,
        gallery=70,
    )


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Leave out the last scores: half of the time of a run this short."""
    monkeypatch.setattr(Scorer, "finish", lambda _: None)


def with_training(config: Config, **changes: Any) -> Config:
    return replace(config, training=replace(config.training, **changes))


def lines(run: Path, kind: str) -> list[dict[str, Any]]:
    """Metrics of one kind, without those that are times."""
    found = map(json.loads, (run / "metrics.jsonl").read_text().splitlines())
    return [
        {name: value for name, value in line.items() if not re.match("images_per_second|step_seconds|share_", name)}
        for line in found
        if line["kind"] == kind
    ]


def final_state(run: Path) -> dict[str, Any]:
    """All that the last checkpoint holds but the times and the generators."""
    state = torch.load(run / "checkpoints" / "last.ckpt", weights_only=True)
    for name in ("spent", "scoring_seconds"):
        del state["standing"][name]
    del state["generators"]  # every step sets its own
    return state


def same(first: Any, second: Any) -> bool:
    if isinstance(first, dict):
        return first.keys() == second.keys() and all(same(first[name], second[name]) for name in first)
    if isinstance(first, (list, tuple)):
        return len(first) == len(second) and all(map(same, first, second))
    return torch.equal(first, second) if isinstance(first, Tensor) else first == second


def assert_same_run(first: Path, second: Path) -> None:
    for kind in ("train", "validation"):
        assert lines(first, kind) == lines(second, kind)
    assert same(final_state(first), final_state(second))
    assert same(student(first), student(second))


def student(run: Path) -> dict[str, dict[str, Tensor]]:
    """What the best student was saved as."""
    return {file.name: load_file(file) for file in (run / "student").glob("*.safetensors")}


def weights(run: Path) -> dict[str, Tensor]:
    """Of the last student, which need not be the best."""
    return final_state(run)["parts"]["student"]


# ---- killed and resumed ----


def before_first_checkpoint(patch: pytest.MonkeyPatch) -> None:
    def save(*_: Any) -> None:
        raise Killed

    patch.setattr(checkpoint, "save", save)


def before_a_step_is_saved(patch: pytest.MonkeyPatch) -> None:
    """Step 9 is logged; the checkpoint is of step 8."""
    save = checkpoint.save

    def killed(path: Path, parts: Any, standing: dict[str, Any]) -> None:
        if standing["step"] == 9:
            raise Killed
        save(path, parts, standing)

    patch.setattr(checkpoint, "save", killed)


def killed_before_a_step_is_saved(config: Config) -> None:
    """Start the run, and end it as SIGKILL does."""
    with pytest.MonkeyPatch.context() as patch:
        before_a_step_is_saved(patch)
        with pytest.raises(Killed):
            distill.run(config)


def between_backward_and_bank(patch: pytest.MonkeyPatch) -> None:
    """Step 7 of a run that was saved at its start only."""
    for module in (compress_1q, compress_2q):
        update = module.Objective.update

        def killed(self: Any, *rows: Tensor, update: Callable[..., None] = update) -> None:
            self.updates = getattr(self, "updates", 0) + 1
            if self.updates == 7:
                raise Killed
            update(self, *rows)

        patch.setattr(module.Objective, "update", killed)
    write = training.Training._write
    patch.setattr(training.Training, "_write", lambda self, states: write(self, states) if self.step == 0 else None)


def during_scoring(patch: pytest.MonkeyPatch) -> None:
    """At step 10, after a better student was written, before its score is."""
    score = Scorer.__call__

    def killed(self: Scorer, standing: training.Training) -> dict[str, float]:
        scores = score(self, standing)
        if standing.step == 10:
            raise Killed
        return scores

    patch.setattr(Scorer, "__call__", killed)


def during_the_last_scores(patch: pytest.MonkeyPatch) -> None:
    def finish(_: Scorer) -> None:
        raise Killed

    patch.setattr(Scorer, "finish", finish)


MOMENTS = [
    before_first_checkpoint,
    before_a_step_is_saved,
    between_backward_and_bank,
    during_scoring,
    during_the_last_scores,
]


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Callable[[Config], Path]:
    """The same run, never killed; made once for each objective."""
    made: dict[str, Path] = {}

    def run(config: Config) -> Path:
        name = config.objective.name
        if name not in made:
            made[name] = distill.run(replace(config, out=tmp_path_factory.mktemp("whole") / name))
        return made[name]

    return run


@pytest.mark.parametrize("objective", OBJECTIVES)
@pytest.mark.parametrize("moment", MOMENTS)
def test_a_run_killed_at_any_moment_and_resumed_is_the_run_that_was_never_killed(
    config: Config, whole: Callable[[Config], Path], objective: str, moment: Callable[[pytest.MonkeyPatch], None]
) -> None:
    """A pre-empted machine would change the result: bank, slow student, optimizer, order, views or best score lost."""
    config = with_training(replace(config, objective=OBJECTIVES[objective]), save_every_minutes=0)
    with pytest.MonkeyPatch.context() as patch:
        moment(patch)
        with pytest.raises(Killed):
            distill.run(config)
    distill.run(replace(config, resume=True))
    assert_same_run(whole(config), config.out)
    results, reference = (json.loads((run / "results.json").read_text()) for run in (config.out, whole(config)))
    for name in ("teacher", "student"):
        assert results["models"][name]["metrics"] == reference["models"][name]["metrics"]


@pytest.mark.usefixtures("quick")
def test_a_run_killed_right_after_its_schedule_was_fitted_keeps_the_schedule(
    config: Config, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Measured anew, the learning rates of the rest would differ from those of a run that was never killed."""

    class Clock:
        """A tenth of a second passes whenever someone looks."""

        now = 0.0

        def monotonic(self) -> float:
            self.now += 0.1
            return self.now

    config = with_training(config, time_budget="10s", validate_every_epochs=NEVER)
    monkeypatch.setattr(training, "time", Clock())
    reference = replace(config, out=config.out.parent / "whole")
    distill.run(reference)

    save, fitted = checkpoint.save, 3 + time_budget.CALIBRATION_STEPS

    def killed(path: Path, parts: Any, standing: dict[str, Any]) -> None:
        save(path, parts, standing)
        if standing["fitted"]:
            raise Killed

    monkeypatch.setattr(training, "time", Clock())
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(checkpoint, "save", killed)
        with pytest.raises(Killed):
            distill.run(config)
    assert final_state(config.out)["standing"]["step"] == fitted
    monkeypatch.setattr(training, "time", time)
    distill.run(replace(config, resume=True))
    assert final_state(config.out)["standing"]["step"] > fitted
    assert_same_run(reference.out, config.out)


@pytest.mark.usefixtures("quick")
def test_dropout_of_a_resumed_run_is_that_of_a_run_never_killed(
    config: Config, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A student with dropout or stochastic depth would draw other numbers after every kill."""

    def with_dropout(*arguments: Any, **options: Any) -> Encoder:
        encoder = open_encoder(*arguments, **options)
        backbone: Any = encoder.backbone
        backbone.avgpool = nn.Sequential(backbone.avgpool, nn.Dropout(0.3))
        return encoder

    monkeypatch.setattr(distill, "open_encoder", with_dropout)
    reference = replace(config, out=config.out.parent / "whole")
    distill.run(reference)
    config = with_training(config, save_every_minutes=0)
    killed_before_a_step_is_saved(config)
    distill.run(replace(config, resume=True))
    assert_same_run(reference.out, config.out)


def arguments(config: Config, *more: str) -> list[str]:
    """The command line that says the same as `config`."""
    given = {
        "teacher": config.teacher,
        "student": config.student,
        "data": config.data,
        "out": config.out,
        "objective": config.objective.name,
        "epochs": config.training.epochs,
        "batch-size": config.training.batch_size,
        "accumulate": config.training.accumulate,
        "validate-every-epochs": config.training.validate_every_epochs,
        "save-every-minutes": config.training.save_every_minutes,
        "log-every-steps": config.training.log_every_steps,
        "seed": config.training.seed,
        "optimizer.learning-rate": config.optimizer.learning_rate,
        "schedule.name": config.schedule.name,
        "accelerator": "cpu",
        "workers": 0,
        "precision": "32",
        "held-out": config.held_out,
        "gallery": config.gallery,
    }
    return ["distill", *(word for name, value in given.items() for word in (f"--{name}", str(value))), *more]


def start(command: list[str], **environment: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        command,
        env={**os.environ, "OMP_NUM_THREADS": "1", "COLUMNS": "300", **environment},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        cwd=Path(__file__).parent,
    )


def wait_for_step(run: Path, step: int, process: subprocess.Popen[str]) -> None:
    deadline = time.monotonic() + 90
    while time.monotonic() < deadline and process.poll() is None:
        file = run / "metrics.jsonl"
        if file.exists() and any(int(found) >= step for found in re.findall(r'"step": (\d+),', file.read_text())):
            return
        time.sleep(0.02)
    process.kill()
    pytest.fail(f"no step {step}: {process.communicate()[1]}")


@pytest.mark.usefixtures("quick")
def test_a_process_ended_by_sigkill_then_sigterm_gives_the_run_that_was_never_ended(
    config: Config, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What holds for an exception must hold for a process: half-written files, lost buffers, the printed command."""
    program = [sys.executable, "-m", "compress_ssl.cli"]
    monkeypatch.setattr("compress_ssl.report.run", lambda config: config.runs[0])
    config = with_training(config, epochs=150 / EPOCH, validate_every_epochs=40 / EPOCH, save_every_minutes=0.002)
    reference = with_training(replace(config, out=config.out.parent / "whole"), save_every_minutes=NEVER)

    process = start([*program, *arguments(config)])
    wait_for_step(config.out, 12, process)
    process.kill()
    process.communicate(timeout=60)
    assert process.returncode == -signal.SIGKILL

    process = start([*program, *arguments(config, "--resume")])
    wait_for_step(config.out, 45, process)
    process.send_signal(signal.SIGTERM)
    told = process.communicate(timeout=60)[1]
    assert process.returncode == 130, told
    stopped = final_state(config.out)["standing"]["step"]
    assert f"stopped at step {stopped} of 150, everything is saved" in told
    assert stopped < 150
    found = re.search(r"^continue with: compress-ssl (.+)$", told, re.MULTILINE)
    assert found, told

    assert cli.main(shlex.split(found[1])) == 0
    distill.run(reference)
    assert_same_run(reference.out, config.out)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
@pytest.mark.usefixtures("quick")
def test_ctrl_c_saves_and_the_printed_command_continues(
    config: Config,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    number: int,
) -> None:
    """A folder with a space in its name, and the command that is printed does not work."""
    config = replace(config, out=config.out.parent / "my run", objective=compress_2q.Config())
    reference = replace(config, out=config.out.parent / "whole")
    distill.run(reference)
    monkeypatch.setattr("compress_ssl.report.run", lambda config: config.runs[0])
    update, seen = compress_2q.Objective.update, []

    def interrupt(self: Any, *rows: Tensor) -> None:
        seen.append(1)
        if len(seen) == 8:
            os.kill(os.getpid(), number)
        update(self, *rows)

    monkeypatch.setattr(compress_2q.Objective, "update", interrupt)
    assert cli.main(arguments(config)) == 130
    told = capsys.readouterr().err
    assert "stopped at step 8 of 13" in told
    command = told.split("continue with: compress-ssl ")[1].splitlines()[0]
    assert cli.main(shlex.split(command)) == 0
    assert_same_run(reference.out, config.out)


# ---- several parts, several processes ----


@pytest.fixture
def without_batch_norm(config: Config) -> Config:
    """A tiny vision transformer; 4 of its 12 steps have anchors from the same images as their queries."""
    return replace(
        config,
        student="timm/test_vit",
        student_size=32,
        training=replace(config.training, epochs=12 / EPOCH, validate_every_epochs=NEVER),
    )


@pytest.mark.usefixtures("quick")
@pytest.mark.parametrize("objective", OBJECTIVES)
@pytest.mark.parametrize("parts", [3, 8])
def test_a_batch_computed_in_parts_gives_the_student_of_the_whole_batch(
    without_batch_norm: Config, objective: str, parts: int
) -> None:
    """Less memory would cost accuracy: uneven parts weighted alike, or anchors of the first part seen by the second."""
    config = with_training(replace(without_batch_norm, objective=OBJECTIVES[objective]), epochs=6 / EPOCH)
    distill.run(config)
    parted = with_training(replace(config, out=config.out.parent / "parts"), accumulate=parts)
    distill.run(parted)
    assert_close(config.out, parted.out, tolerance=1e-5)


def assert_close(first: Path, second: Path, *, tolerance: float) -> None:
    losses, others = (np.array([line["loss"] for line in lines(run, "train")]) for run in (first, second))
    assert np.abs(losses - others).max() < tolerance
    ours, theirs = weights(first), weights(second)
    assert ours.keys() == theirs.keys()
    assert max(float((ours[name] - theirs[name]).abs().max()) for name in ours) < tolerance
    banks = [final_state(run)["parts"]["objective"] for run in (first, second)]
    assert torch.equal(banks[0]["index"], banks[1]["index"])
    for name, rows in banks[0]["rows"].items():
        assert float((rows - banks[1]["rows"][name]).abs().max()) < tolerance, name


WATCHED = '''
"""compress_2q that shows what each process's bank holds."""
import os
from dataclasses import dataclass
import torch
from compress_ssl.objectives import compress_2q

@dataclass(frozen=True, kw_only=True)
class Config(compress_2q.Config):
    name: str = "watched.objective"

class Objective(compress_2q.Objective):
    def update(self, key, target, index):
        super().update(key, target, index)
        torch.save(self.state_dict(), os.path.join(os.environ["BANKS"], os.environ.get("LOCAL_RANK", "0") + ".pt"))
'''


def test_two_processes_train_the_student_of_one(
    without_batch_norm: Config, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A second device would change the method: a bank of half the anchors, in another order, other weights."""
    (tmp_path / "watched").mkdir()
    (tmp_path / "watched" / "__init__.py").touch()
    (tmp_path / "watched" / "objective.py").write_text(WATCHED)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setenv("BANKS", str(tmp_path))
    watched = __import__("watched.objective").objective
    config = with_training(replace(without_batch_norm, objective=watched.Config()), accumulate=2)

    command = [str(Path(sys.executable).with_name("compress-ssl")), *arguments(config, "--student-size", "32")]
    together = start([*command, "--devices", "2"], PYTHONPATH=str(tmp_path))
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("BANKS", str(config.out.parent / "alone"))
        (config.out.parent / "alone").mkdir()
        patch.setattr(Scorer, "finish", lambda _: None)
        alone = with_training(replace(config, out=config.out.parent / "one"), accumulate=1)
        distill.run(alone)
    out, told = together.communicate(timeout=100)
    assert together.returncode == 0, told

    assert_close(alone.out, config.out, tolerance=1e-5)
    banks = [torch.load(tmp_path / f"{rank}.pt", weights_only=True) for rank in (0, 1)]
    assert same(banks[0], banks[1]), "the bank of every process holds the same rows"
    assert len(banks[0]["index"]) == 12 * 16
    assert [line["step"] for line in lines(config.out, "train")] == [3, 6, 9, 12], "one process writes"
    assert out.strip() == str(config.out / "report.html")
    assert told.count("epoch 0:") == 1
    assert "Traceback" not in told
    assert "deprecated" not in told


SPOILT = '''
"""compress_2q in whose second process the teacher gives NaN for one image, in step 4."""
import os
from dataclasses import dataclass
from compress_ssl import teacher
from compress_ssl.objectives import compress_2q

@dataclass(frozen=True, kw_only=True)
class Config(compress_2q.Config):
    name: str = "spoilt.objective"

Objective = compress_2q.Objective
check = teacher.UncheckedRows.__call__
calls = []

def spoil(self, rows, index):
    calls.append(1)
    if os.environ.get("LOCAL_RANK") == "1" and len(calls) == 4:
        rows = rows.clone()
        rows[2] = float("nan")
    return check(self, rows, index)

teacher.UncheckedRows.__call__ = spoil
'''


@pytest.mark.parametrize("trouble", ["skipped", "strict", "teacher"])
def test_what_another_process_meets_is_told_by_the_first(config: Config, tmp_path: Path, trouble: str) -> None:
    """A broken image would be in no list, `--strict` would not hold, and a run would end without a sentence."""
    photos = tmp_path / "photos"
    photos.mkdir()
    for number in range(80):
        pixels = np.random.default_rng(number).integers(0, 256, (9, 9, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(photos / f"{number:02d}.png")
    config = with_training(replace(config, data=str(photos), held_out=8, gallery=8), batch_size=8, epochs=1)
    _, images, watched = distill._split(config)
    assert watched.test is not None
    loader = TrainLoader(images, RandomView(config.view, 8), batch_size=8, seed=3, workers=0, rank=1, ranks=2)
    scored = {*watched.train.ids, *watched.test.ids}
    met = [images.ids[place] for step in (2, 3, 4) for _, place in loader.keys(step)]
    victim = next(id for id in met if id not in scored)
    more = ["--devices", "2", "--log-every-steps", "100", "--validate-every-epochs", "9"]
    if trouble == "teacher":
        (tmp_path / "spoilt").mkdir()
        (tmp_path / "spoilt" / "__init__.py").touch()
        (tmp_path / "spoilt" / "objective.py").write_text(SPOILT)
        more += ["--objective", "spoilt.objective"]
        victim = images.ids[loader.keys(3)[2][1]]
    else:
        (photos / victim).write_bytes(b"no picture")
        more += ["--strict"] if trouble == "strict" else []
    given = arguments(config, *more)
    command = [str(Path(sys.executable).with_name("compress-ssl")), *given]
    process = start(command, PYTHONPATH=str(tmp_path))
    told = process.communicate(timeout=100)[1]
    assert "Traceback" not in told
    if trouble == "skipped":
        assert process.returncode == 0, told
        listed = [json.loads(line)["id"] for line in (config.out / "skipped.jsonl").read_text().splitlines()]
        assert listed == [victim]
    else:
        assert process.returncode == 2, told
        sentence = "expected every image to be usable, got" if trouble == "strict" else "NaN or infinity for image"
        assert len(re.findall(rf"compress-ssl: .*{sentence} {re.escape(victim)}", told)) == 1
        assert final_state(config.out)["standing"]["step"] == 0, "what was saved before stays"


# ---- what it learns from, and what is chosen ----


@pytest.mark.usefixtures("quick")
def test_the_same_seed_gives_the_same_losses_and_another_seed_others(config: Config) -> None:
    """Nobody could tell an improvement from luck."""
    runs = [replace(config, out=config.out.parent / name) for name in ("a", "b", "c")]
    runs[2] = with_training(runs[2], seed=4)
    for run in runs:
        distill.run(run)
    assert_same_run(runs[0].out, runs[1].out)
    first, other = (lines(run.out, "train") for run in runs[1:])
    assert all(one["loss"] != two["loss"] for one, two in zip(first, other, strict=True))


@pytest.mark.usefixtures("quick")
def test_labels_are_never_trained_on_nor_chosen_by(config: Config, monkeypatch: pytest.MonkeyPatch) -> None:
    """A method for unlabelled images that looks at labels would do worse where there are none."""
    open_splits = datasets.open_splits
    distill.run(config)

    def garbage(*arguments: Any, **options: Any) -> Splits:
        splits = open_splits(*arguments, **options)
        splits.train.labels = np.random.default_rng(0).integers(0, 3, len(splits.train))  # type: ignore[misc]
        return splits

    def unlabelled(*arguments: Any, **options: Any) -> Splits:
        splits = open_splits(*arguments, **options)
        splits.train.labels = np.full(len(splits.train), -1)  # type: ignore[misc]
        return splits

    for name, changed in (("garbage", garbage), ("none", unlabelled)):
        monkeypatch.setattr(datasets, "open_splits", changed)
        other = replace(config, out=config.out.parent / name)
        distill.run(other)
        assert lines(config.out, "train") == lines(other.out, "train")
        states = [final_state(run) for run in (config.out, other.out)]
        for state in states:
            del state["standing"]["inputs"]  # fingerprints of the data, labels included
        assert same(*states)
        assert same(student(config.out), student(other.out))
    assert "nearest_neighbour" not in lines(other.out, "validation")[0]


@pytest.mark.usefixtures("quick")
def test_held_out_images_are_never_trained_on(config: Config, monkeypatch: pytest.MonkeyPatch) -> None:
    """The score that chooses the student would be of images it has seen."""
    seen: set[str] = set()
    call = LiveTeacher.__call__

    def watch(self: LiveTeacher, batch: Batch) -> Tensor:
        seen.update(self._ids[place] for place in batch.index.tolist())
        return call(self, batch)

    watched: list[set[str]] = []
    prepare = Scorer.__init__

    def keep(self: Scorer, *given: Any, **named: Any) -> None:
        prepare(self, *given, **named)
        watched.extend(set(images.ids) for images in self.watched)

    monkeypatch.setattr(LiveTeacher, "__call__", watch)
    monkeypatch.setattr(Scorer, "__init__", keep)
    config = with_training(config, epochs=1, validate_every_epochs=NEVER)
    distill.run(config)
    gallery, queries = watched
    everything = set(datasets.open_splits("digits").train.ids)
    assert len(queries) == 143, "a tenth at most"
    assert len(gallery) == 70
    assert not seen & queries
    assert gallery < everything - queries, "neighbours are looked for among training images"
    assert len(seen) == (1437 - 143) // 16 * 16


def test_the_best_student_is_kept_not_the_last(config: Config) -> None:
    """A training that turns bad at its end would hand over the bad student."""
    kept: dict[int, dict[str, Tensor]] = {}
    score = Scorer.__call__
    overlaps = iter([0.2, 0.7, 0.7, 0.4])

    def remember(self: Scorer, standing: training.Training) -> dict[str, float]:
        kept[standing.step] = {
            name: value.clone() for name, value in self.student.encoder.backbone.state_dict().items()
        }
        return score(self, standing)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Scorer, "__call__", remember)
        patch.setattr(neighbour_overlap, "evaluate", lambda *_: {"neighbour_overlap_10": next(overlaps, None) or 0.1})
        distill.run(config)
    assert [line["neighbour_overlap_10"] for line in lines(config.out, "validation")] == [0.2, 0.7, 0.7, 0.4]
    saved = student(config.out)["model.safetensors"]
    assert all(torch.equal(saved[name], kept[5][name].float()) for name in saved if saved[name].is_floating_point())
    assert not all(torch.equal(saved[name], kept[13][name].float()) for name in saved)
    assert final_state(config.out)["standing"]["best"] == 0.7


def test_the_score_is_the_share_of_the_teachers_neighbours(config: Config) -> None:
    """A teacher compressed into itself keeps all of them; anything else in the score would choose another student."""
    config = with_training(replace(config, student=config.teacher), epochs=1 / EPOCH)
    distill.run(config)
    assert lines(config.out, "validation")[0]["neighbour_overlap_10"] == 1.0
    best = json.loads((config.out / "results.json").read_text())["models"]["student"]["metrics"]
    assert best["neighbour_overlap_10"] == 1.0


# ---- the teacher ----


@pytest.mark.usefixtures("quick")
def test_the_teacher_never_trains(config: Config, monkeypatch: pytest.MonkeyPatch) -> None:
    """Batch norm in train mode makes targets depend on the batch; a teacher that moves is no target."""
    teachers: list[LiveTeacher] = []
    call = LiveTeacher.__call__

    def watch(self: LiveTeacher, batch: Batch) -> Tensor:
        target = call(self, batch)
        assert not any(module.training for module in self.encoder.modules())
        assert not target.requires_grad
        assert not target.is_inference()
        teachers.append(self)
        return target

    monkeypatch.setattr(LiveTeacher, "__call__", watch)
    distill.run(config)
    teacher = teachers[-1].encoder
    assert not any(parameter.requires_grad or parameter.grad is not None for parameter in teacher.parameters())
    before = open_encoder(config.teacher, weights="pretrained").state_dict()
    after = teacher.state_dict()
    assert any("running_var" in name for name in before)
    assert all(torch.equal(before[name], after[name]) for name in before)


def spoil(value: Any) -> Callable[[Encoder, Tensor], Tensor]:
    """An encoder in eval mode whose rows of a batch are changed by `value`."""

    def forward(self: Encoder, images: Tensor) -> Tensor:
        rows = sound(self, images)
        if self.training or len(images) == 1:
            return rows
        return value(rows)

    return forward


sound = Encoder.forward


def first_row(number: float) -> Callable[[Tensor], Tensor]:
    return lambda rows: torch.cat([torch.full_like(rows[:1], number), rows[1:]])


@pytest.mark.parametrize(
    ("rows", "told"),
    [
        (first_row(float("nan")), r"NaN or infinity for image digits/\d{4}"),
        (first_row(float("inf")), r"NaN or infinity for image digits/\d{4}"),
        (first_row(0.0), r"zero vector for image digits/\d{4}"),
        (lambda rows: rows[:, :, None], r"one embedding per image.* \(\d+, D\), got shape"),
        (lambda rows: rows[1:], r"one embedding per image"),
    ],
)
def test_a_teacher_that_gives_no_embedding_is_refused_with_the_image(
    config: Config, monkeypatch: pytest.MonkeyPatch, rows: Callable[[Tensor], Tensor], told: str
) -> None:
    """NaN targets make NaN students, hours later and far from the cause."""
    monkeypatch.setattr(Encoder, "forward", spoil(rows))
    with pytest.raises(Refusal, match=told):
        distill.run(config)


@pytest.mark.usefixtures("quick")
def test_a_teacher_that_fails_in_training_is_refused_and_the_checkpoint_stays(
    config: Config, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The evaluation views may be sound while a random crop is not: the run must be left resumable."""
    call, calls = LiveTeacher.__call__, []

    def spoilt(self: LiveTeacher, batch: Batch) -> Tensor:
        calls.append(1)
        if len(calls) == 7:
            monkeypatch.setattr(Encoder, "forward", spoil(first_row(float("nan"))))
        return call(self, batch)

    monkeypatch.setattr(LiveTeacher, "__call__", spoilt)
    config = with_training(config, save_every_minutes=0)
    with pytest.raises(Refusal, match="NaN or infinity for image digits/"):
        distill.run(config)
    assert final_state(config.out)["standing"]["step"] == 6


@pytest.mark.usefixtures("quick")
def test_a_table_of_stored_embeddings_teaches(config: Config, tmp_path: Path) -> None:
    """The paper's cached setting: a teacher known only by its vectors must be good for a whole run and its scores."""
    table = tmp_path / "table"
    embed.run(embed.Config(encoder=config.teacher, data="digits", out=table, workers=0, device="cpu"))
    distill.run(replace(config, teacher=str(table), objective=OBJECTIVES["compress_1q"]))
    assert len(lines(config.out, "train")) == 5
    live = replace(config, out=tmp_path / "live")
    distill.run(live)
    ours, theirs = (lines(run, "validation")[0]["teacher_nearest_neighbour"] for run in (config.out, live.out))
    assert ours == pytest.approx(theirs, abs=0.02)


# ---- stored views, replayed ----


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> str:
    """100 pictures of noise in two sizes."""
    folder = tmp_path_factory.mktemp("photos")
    for number in range(100):
        pixels = np.random.default_rng(number).integers(0, 256, (13, 11 + number % 2, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / f"{number:02d}.png")
    return str(folder)


@pytest.fixture(scope="module")
def stored(digits_teacher: str, photos: str, tmp_path_factory: pytest.TempPathFactory) -> Callable[..., str]:
    """A table of the teacher's rows, with random views of the run's seed; each made once."""
    made: dict[str, str] = {}

    def table(dtype: str = "float32", views: int = 3, size: int = 8) -> str:
        name = f"{dtype}-{views}-{size}"
        if name not in made:
            out = tmp_path_factory.mktemp("tables") / name
            given = embed.Config(encoder=digits_teacher, data=photos, out=out, views=views, seed=3, workers=0)
            made[name] = str(embed.run(replace(given, dtype=dtype, size=size, device="cpu")))  # type: ignore[arg-type]
        return made[name]

    return table


@pytest.fixture
def three_epochs(config: Config, photos: str) -> Config:
    """12 steps of 23 of the 92 photos that are not held out, the loss of each."""
    config = replace(config, data=photos, held_out=8, gallery=12)
    return with_training(config, epochs=3, batch_size=23, validate_every_epochs=NEVER, log_every_steps=1)


def losses(run: Path) -> np.ndarray:
    return np.array([line["loss"] for line in lines(run, "train")])


@pytest.mark.usefixtures("quick")
@pytest.mark.parametrize("objective", [*OBJECTIVES, "compress"])
def test_a_run_over_a_stored_view_for_each_epoch_is_the_run_with_the_live_teacher(
    three_epochs: Config, stored: Callable[..., str], objective: str
) -> None:
    """What a table saves in hours it would cost in accuracy, as the paper's does.

    A transformer, for it is smooth: at a ReLU's corner a difference of one bit becomes one of a thousandth.
    """
    config = replace(three_epochs, student="timm/test_vit", student_size=32)
    config = replace(config, objective=OBJECTIVES.get(objective, compress.Config()))
    live = losses(distill.run(replace(config, out=config.out.parent / "live", teacher_size=32)))
    assert len(live) == 12
    for dtype, tolerance in (("float32", 1e-5), ("float16", 5e-3)):
        kept = replace(config, out=config.out.parent / dtype, teacher=stored(dtype, size=32))
        np.testing.assert_allclose(losses(distill.run(kept)), live, rtol=tolerance, err_msg=dtype)
    same = replace(kept, out=config.out.parent / "in memory", stored=StoredConfig(in_memory=True))
    distill.run(same)
    assert lines(same.out, "train") == lines(kept.out, "train")


@pytest.mark.usefixtures("quick")
def test_with_one_stored_view_every_epoch_sees_it(
    three_epochs: Config, stored: Callable[..., str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Epoch 1 would look up a view that nobody has stored, or the student would see a new crop beside an old row."""
    batches: list[Batch] = []
    step = distill.Step.__call__
    monkeypatch.setattr(
        distill.Step, "__call__", lambda self, batch, *more: batches.append(batch) or step(self, batch, *more)
    )
    distill.run(replace(three_epochs, teacher=stored(views=1)))
    seen: dict[int, tuple[Tensor, Tensor]] = {}
    for batch in batches:
        assert batch.target is not None
        for place, image, row in zip(batch.index.tolist(), batch.images, batch.target, strict=True):
            before = seen.setdefault(place, (image, row))
            assert torch.equal(before[0], image)
            assert torch.equal(before[1], row)
    assert [batch.epoch for batch in batches] == [0] * 4 + [1] * 4 + [2] * 4


@pytest.mark.usefixtures("quick")
def test_vectors_with_ids_teach_as_the_table_they_come_from_does_in_the_papers_way(
    three_epochs: Config, stored: Callable[..., str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A model behind a service, or one that nobody can run any more, could not be compressed."""
    config = with_training(replace(three_epochs, student_size=8), epochs=1)
    working, hashed = [False], []
    identity, on_first = Vectors.identity, distill.on_first

    def noting(fabric: Any, work: Callable[[], Any]) -> Any:
        working[0] = True
        try:
            return on_first(fabric, work)
        finally:
            working[0] = False

    monkeypatch.setattr(distill, "on_first", noting)
    monkeypatch.setattr(Vectors, "identity", lambda self: hashed.append(working[0]) or identity(self))
    table = Table(Path(stored()))
    rows, order = table.embeddings("train"), np.random.default_rng(0).permutation(100)
    np.save(tmp_path / "rows.npy", rows.rows[order])
    (tmp_path / "ids.txt").write_text("".join(f"{rows.ids[place]}\n" for place in order))
    papers = replace(config, teacher=stored(), stored=StoredConfig(student_view="random"))
    vectors = replace(config, teacher=str(tmp_path / "rows.npy"), ids=tmp_path / "ids.txt", out=tmp_path / "vectors")
    distill.run(papers), distill.run(vectors)
    assert hashed == [True], "the file is read whole for it, by one process"
    assert final_state(vectors.out)["standing"]["inputs"].keys() == {"data", "teacher vectors", "teacher ids"}
    np.testing.assert_allclose(losses(vectors.out), losses(papers.out), rtol=1e-6)
    replayed = replace(config, teacher=stored(), out=tmp_path / "replayed")
    apart = losses(distill.run(replayed))[1:] / losses(papers.out)[1:] - 1
    assert np.abs(apart).min() > 1e-3, "other rows and other pixels"


@pytest.mark.usefixtures("quick")
def test_a_run_is_not_resumed_over_a_table_made_anew_by_other_weights(
    three_epochs: Config, stored: Callable[..., str], tmp_path: Path
) -> None:
    """Half of the student would be taught by one teacher and half by another, under one name."""
    table, other = tmp_path / "table", tmp_path / "other"
    shutil.copytree(stored(), table)
    config = with_training(replace(three_epochs, teacher=str(table)), save_every_minutes=0)
    killed_before_a_step_is_saved(config)
    weights_before = Table(table).origin["encoder"]["weights"]
    shutil.rmtree(table)
    torch.manual_seed(6)
    save_encoder(open_encoder(STUDENT, weights="random", size=8), other)
    given = embed.Config(encoder=str(other), data=three_epochs.data, out=table, views=3, seed=3, dtype="float32")
    embed.run(replace(given, workers=0, device="cpu"))
    weights_now = Table(table).origin["encoder"]["weights"]
    told = rf"teacher weights: expected {weights_before[:16]}, got {weights_now[:16]}\)"
    with pytest.raises(Refusal, match=rf"--resume expected .* got other content \({told}: put the old back"):
        distill.run(replace(config, resume=True))


@pytest.mark.usefixtures("quick")
def test_options_that_do_not_go_with_a_table_are_refused_before_it_is_read(
    three_epochs: Config, stored: Callable[..., str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Images would be left out without a word; the system would kill a run whose rows do not fit into memory."""
    config = replace(three_epochs, teacher=stored())
    with pytest.raises(Refusal, match=r"--unusual expected skip, .*, got convert"):
        distill.run(replace(config, unusual="convert"))
    monkeypatch.setattr("compress_ssl.room.free_memory", lambda: 1000)
    monkeypatch.setattr(distill, "open_teachers", lambda *_, **__: pytest.fail("read"))
    with pytest.raises(Refusal, match=r"--stored\.in-memory expected .* of free memory, .*, got 1e-06 GB"):
        distill.run(replace(config, out=config.out.parent / "other", stored=StoredConfig(in_memory=True)))


# ---- colours for the student alone ----

COLOURS = colour.Config(probability=0.8, brightness=0.7, contrast=0.7, grey=0.1, blur=0.3)


@pytest.mark.usefixtures("quick")
@pytest.mark.parametrize("objective", OBJECTIVES)
def test_a_change_of_colours_reaches_query_and_key_and_never_the_teacher(
    config: Config, monkeypatch: pytest.MonkeyPatch, objective: str
) -> None:
    """The teacher would be asked about pictures that it was not made for, or query and key be of different ones."""
    seen: dict[str, list[Tensor]] = {"teacher": [], "query": [], "key": []}
    call, forward, key = LiveTeacher.__call__, Student.forward, Momentum.__call__

    def as_teacher(self: LiveTeacher, batch: Batch) -> Tensor:
        seen["teacher"].append(batch.images.clone())
        return call(self, batch)

    def as_query(self: Student, images: Tensor) -> Tensor:
        if self.training and torch.is_grad_enabled():
            seen["query"].append(images.clone())
        return forward(self, images)

    def as_key(self: Momentum, images: Tensor, query: Tensor) -> Tensor:
        seen["key"].append(images.clone())
        return key(self, images, query)

    config = with_training(replace(config, objective=OBJECTIVES[objective]), validate_every_epochs=NEVER)
    distill.run(config)
    plain = seen["teacher"][:]
    assert all(map(torch.equal, plain, seen["query"])), "off by default"
    monkeypatch.setattr(LiveTeacher, "__call__", as_teacher)
    monkeypatch.setattr(Student, "forward", as_query)
    monkeypatch.setattr(Momentum, "__call__", as_key)
    coloured = replace(config, out=config.out.parent / "coloured", student_colour=COLOURS)
    distill.run(coloured)
    assert len(seen["teacher"]) == len(seen["query"]) == len(seen["key"]) == 13
    for step, (looked, query, keyed) in enumerate(zip(seen["teacher"], seen["query"], seen["key"], strict=True)):
        change = distill.changed_colours(coloured, Alone(0, 1), step)  # type: ignore[arg-type]
        assert change is not None
        assert torch.equal(query, keyed)
        assert torch.equal(query, colour.apply(looked, change))
        assert not torch.equal(query, looked)


@pytest.mark.usefixtures("quick")
def test_a_strength_of_colours_without_a_probability_is_refused_unless_the_run_has_begun(config: Config) -> None:
    """An option would be ignored without a word; a run that began when it was must go on."""
    idle = replace(config, student_colour=replace(colour.OFF, hue=0.3))
    with pytest.raises(Refusal, match=r"--student-colour\.hue expected --student-colour\.probability above 0"):
        distill.run(idle)
    assert not config.out.exists()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(colour, "refuse_idle", lambda *_: None)
        distill.run(idle)
    distill.run(replace(idle, resume=True))


def test_colours_out_of_range_are_refused_by_their_name(config: Config, capsys: pytest.CaptureFixture[str]) -> None:
    """ "Expected a probability, got 2" does not tell which of a dozen options it is about."""
    for name, value in (("probability", "2"), ("hue", "7"), ("brightness", "-3")):
        assert cli.main(arguments(config, f"--student-colour.{name}", value)) == 2
        told = capsys.readouterr().err
        assert re.search(rf"^compress-ssl: expected a .* for colour\.{name}, got {value}", told), told


class Alone:
    """What the drawing of colours asks of Fabric."""

    def __init__(self, rank: int, ranks: int):
        self.global_rank, self.world_size = rank, ranks


def test_processes_draw_the_colours_of_one_and_every_step_its_own(config: Config) -> None:
    """Two processes would train another student than one, or every step would change its colours alike."""
    config = replace(config, student_colour=COLOURS)
    whole, *parts = (distill.changed_colours(config, Alone(*rank), 7) for rank in ((0, 1), (0, 2), (1, 2)))  # type: ignore[arg-type]
    assert whole is not None
    for name in ("brightness", "contrast", "saturation", "hue", "grey", "sigma"):
        assert torch.equal(torch.cat([getattr(part, name) for part in parts]), getattr(whole, name))
    assert {part.order for part in parts if part is not None} == {whole.order}
    other = distill.changed_colours(config, Alone(0, 1), 8)  # type: ignore[arg-type]
    assert other is not None
    assert not torch.equal(other.brightness, whole.brightness)


@pytest.mark.usefixtures("quick")
def test_colours_are_the_same_however_many_parts_a_batch_is_computed_in(without_batch_norm: Config) -> None:
    """Less memory would mean another training."""
    config = with_training(replace(without_batch_norm, student_colour=COLOURS), epochs=4 / EPOCH)
    distill.run(config)
    parted = with_training(replace(config, out=config.out.parent / "parts"), accumulate=3)
    distill.run(parted)
    assert_close(config.out, parted.out, tolerance=1e-5)


@pytest.mark.usefixtures("quick")
def test_replay_with_colours_killed_and_resumed_is_the_run_never_killed(
    three_epochs: Config, stored: Callable[..., str]
) -> None:
    """A pre-empted machine would go on with another view or with other colours."""
    config = with_training(replace(three_epochs, teacher=stored(), student_colour=COLOURS), save_every_minutes=0)
    reference = replace(config, out=config.out.parent / "whole")
    distill.run(reference)
    killed_before_a_step_is_saved(config)
    distill.run(replace(config, resume=True))
    assert_same_run(reference.out, config.out)


# ---- mixing ----


@pytest.mark.usefixtures("quick")
def test_teacher_and_student_see_the_same_mixed_pictures(config: Config, monkeypatch: pytest.MonkeyPatch) -> None:
    """The student would be asked for the teacher's row of another picture than it sees."""
    seen: dict[str, list[Tensor]] = {"loader": [], "teacher": [], "query": []}
    call, forward, mix = LiveTeacher.__call__, Student.forward, mixing.mix

    def as_teacher(self: LiveTeacher, batch: Batch) -> Tensor:
        seen["teacher"].append(batch.images.clone())
        return call(self, batch)

    def as_query(self: Student, images: Tensor) -> Tensor:
        if self.training and torch.is_grad_enabled():
            seen["query"].append(images.clone())
        return forward(self, images)

    def as_mixed(batch: Batch, drawn: mixing.Mix, widths: list[int]) -> Batch:
        seen["loader"].append(batch.images.clone())
        return mix(batch, drawn, widths)

    monkeypatch.setattr(LiveTeacher, "__call__", as_teacher)
    monkeypatch.setattr(Student, "forward", as_query)
    monkeypatch.setattr(mixing, "mix", as_mixed)
    mixed = MixingConfig(kind="cutmix")
    distill.run(with_training(replace(config, mixing=mixed), validate_every_epochs=NEVER))
    assert len(seen["teacher"]) == 13
    for step, (cut, looked, query) in enumerate(zip(*seen.values(), strict=True)):
        drawn = mixing.draw(mixed, training.step_seed(3, step, 2))
        assert drawn is not None
        assert torch.equal(looked, query)
        assert torch.equal(looked, mixing.mixed_images(cut, drawn)[0])
    assert any(not torch.equal(cut, looked) for cut, looked in zip(seen["loader"], seen["teacher"], strict=True))


@pytest.mark.usefixtures("quick")
@pytest.mark.parametrize("kind", ["mixup", "cutmix"])
def test_mixed_pictures_are_the_same_after_a_kill_and_in_parts(
    three_epochs: Config, without_batch_norm: Config, stored: Callable[..., str], kind: Any
) -> None:
    """A pre-empted machine, or one with less memory, would train another student; stored rows are mixed, too."""
    mixed = MixingConfig(kind=kind, probability=0.7)
    config = with_training(replace(three_epochs, teacher=stored(), mixing=mixed), save_every_minutes=0, batch_size=22)
    reference = replace(config, out=config.out.parent / "whole")
    distill.run(reference)
    killed_before_a_step_is_saved(config)
    distill.run(replace(config, resume=True))
    assert_same_run(reference.out, config.out)
    out = config.out.parent
    config = with_training(replace(without_batch_norm, mixing=mixed, out=out / "at once"), epochs=4 / EPOCH)
    distill.run(config)
    parted = with_training(replace(config, out=out / "parts"), accumulate=3)
    distill.run(parted)
    assert_close(config.out, parted.out, tolerance=1e-5)


def test_batches_that_cannot_be_mixed_two_by_two_are_refused(config: Config) -> None:
    """The first step would end in a traceback."""
    odd = with_training(replace(config, mixing=MixingConfig(kind="mixup")), batch_size=15)
    with pytest.raises(Refusal, match=r"--batch-size expected an even number of images on each process .* got 15"):
        distill.run(odd)
    assert not config.out.exists()


# ---- refusals of the whole ----


@pytest.mark.usefixtures("quick")
def test_a_full_disk_ends_with_one_sentence_and_a_whole_checkpoint(
    config: Config, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Hours of training would be lost to the last megabyte."""
    config = with_training(config, save_every_minutes=0)
    save = torch.save
    saved: list[int] = []

    def full(state: dict[str, Any], file: Any) -> None:
        if state["standing"]["step"] == 6:
            file.write(b"half")
            raise OSError(errno.ENOSPC, "No space left on device", str(config.out))
        saved.append(state["standing"]["step"])
        save(state, file)

    monkeypatch.setattr("compress_ssl.report.run", lambda config: config.runs[0])
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch, "save", full)
        assert cli.main(arguments(config)) == 2
    told = capsys.readouterr().err
    assert "compress-ssl: expected room on the disk" in told
    assert "--resume" in told
    assert saved[-1] == 5
    assert final_state(config.out)["standing"]["step"] == 5
    assert cli.main(arguments(config, "--resume")) == 0
    assert final_state(config.out)["standing"]["step"] == 13


@pytest.mark.usefixtures("quick")
def test_the_kept_student_is_told_and_an_untrained_one_is_no_secret(tmp_path: Path) -> None:
    """After a short first try someone would fill an index with the rows of random weights, and blame the method."""
    folder = RunFolder(tmp_path)
    for step, overlap in ((0, 0.2), (5, 0.3), (10, 0.3), (15, 0.1)):
        folder.log("validation", step=step, epoch=step / 5, neighbour_overlap_10=overlap)
    assert best_epoch(folder) == "kept: the student of epoch 1 of 3"
    (tmp_path / "metrics.jsonl").unlink()
    for step, overlap in ((0, 0.2), (5, 0.2)):
        folder.log("validation", step=step, epoch=step / 5, neighbour_overlap_10=overlap)
    assert best_epoch(folder).startswith("kept: the student of epoch 0 of 1, which is untrained")


def test_resuming_refuses_another_configuration_and_takes_the_folder_by_any_name(
    config: Config, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """`--resume` with another learning rate would make a run that no command describes."""
    monkeypatch.setattr("compress_ssl.report.run", lambda config: config.runs[0])
    assert cli.main(arguments(config)) == 0
    before = (config.out / "metrics.jsonl").read_bytes()
    changed = replace(config, optimizer=OptimizerConfig(learning_rate=0.01))
    capsys.readouterr()
    assert cli.main(arguments(changed, "--resume")) == 2
    assert "optimizer.learning_rate: 0.05 → 0.01:" in capsys.readouterr().err
    assert cli.main(arguments(config)) == 2
    assert "holds another run" in capsys.readouterr().err
    monkeypatch.chdir(config.out.parent)
    assert cli.main(arguments(replace(config, out=Path(config.out.name)), "--resume")) == 0
    assert (config.out / "metrics.jsonl").read_bytes() == before, "a finished run has nothing left to do"


def test_projector_and_student_are_saved_together(config: Config) -> None:
    """A 1q student without the projector of the same step cannot query the teacher's index."""
    config = with_training(replace(config, objective=OBJECTIVES["compress_1q"]), epochs=5 / EPOCH)
    distill.run(config)
    saved, last = student(config.out), weights(config.out)
    assert final_state(config.out)["standing"]["best"] == lines(config.out, "validation")[-1]["neighbour_overlap_10"]
    assert torch.equal(saved["projector.safetensors"]["weight"], last["projector.weight"])
    assert torch.equal(saved["model.safetensors"]["conv1.weight"], last["encoder.backbone.conv1.weight"])


# ---- the bank and its temperature ----


@pytest.mark.parametrize(("objective", "tolerance"), [(compress_2q, 1e-5), (compress, 1e-4)])  # its loss is around 14
def test_a_bank_spread_over_two_processes_trains_the_student_of_one(
    without_batch_norm: Config, tmp_path: Path, objective: ModuleType, tolerance: float
) -> None:
    """Holding a part of the bank each would be comparing with a part of it; its checkpoint would hold a part. Heads of
    the objective's own would go apart."""
    config = replace(without_batch_norm, objective=objective.Config(bank_processes="sharded", bank_size=101))
    config = replace(config, optimizer=OptimizerConfig(learning_rate=0.005))  # at 0.05 last digits grow a thousandfold
    command = [str(Path(sys.executable).with_name("compress-ssl")), *arguments(config, "--student-size", "32")]
    options = ["--objective.bank-processes", "sharded", "--objective.bank-size", "101", "--devices", "2"]
    together = start([*command, *options])
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Scorer, "finish", lambda _: None)
        alone = replace(config, out=tmp_path / "one")
        distill.run(alone)
    _, told = together.communicate(timeout=100)
    assert together.returncode == 0, told
    assert_close(alone.out, config.out, tolerance=tolerance)
    heads = [final_state(run)["parts"]["objective"].get("trained", {}) for run in (alone.out, config.out)]
    for name, weight in heads[0].items():
        assert float((weight - heads[1][name]).abs().max()) < tolerance, name
    assert bool(heads[0]) == (objective is compress)


@pytest.mark.usefixtures("quick")
def test_a_calibrated_temperature_is_told_used_and_saved(config: Config, capsys: pytest.CaptureFixture[str]) -> None:
    """`auto` would be a number that nobody can repeat a run with."""
    chosen = replace(config, objective=compress_2q.Config(temperature="auto", perplexity=0.1))
    distill.run(chosen)
    shown = " ".join(capsys.readouterr().err.split())
    told = re.search(r"temperature (\S+): perplexity (\d+) among 1294 anchors", shown)
    assert told is not None, shown
    assert 0.09 < int(told[2]) / 1294 < 0.11
    assert final_state(config.out)["parts"]["objective"]["temperature"] == float(told[1])
    repeated = replace(config, out=config.out.parent / "by hand")
    distill.run(replace(repeated, objective=compress_2q.Config(temperature=float(told[1]))))
    assert lines(config.out, "train") == lines(repeated.out, "train")


@pytest.mark.usefixtures("quick")
def test_a_whole_table_can_be_the_anchors_and_a_live_teacher_cannot(
    config: Config, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The first epoch would compare with next to nothing while all anchors lie on the disk."""
    table = tmp_path / "table"
    embed.run(embed.Config(encoder=config.teacher, data="digits", out=table, workers=0, device="cpu"))
    stored = replace(config, teacher=str(table), objective=compress_1q.Config(anchors="stored"))
    distill.run(stored)
    ring = replace(config, out=tmp_path / "ring", teacher=str(table), objective=compress_1q.Config())
    distill.run(ring)
    first, others = (lines(run, "train")[0]["loss"] for run in (config.out, ring.out))
    assert first > 1.5 * others, "the first step of the ring compares with nothing, the second with 16 anchors"
    resumed = replace(stored, resume=True)
    distill.run(resumed)  # finished already: the anchors are read anew and nothing else happens
    monkeypatch.setattr(distill, "judged_by", lambda *_: pytest.fail("refused before hours of embedding"))
    with pytest.raises(Refusal, match=r"--objective.anchors stored expected a table .* got a live encoder"):
        distill.run(replace(stored, out=tmp_path / "live", teacher=config.teacher))


def test_a_temperature_that_cannot_be_calibrated_ends_every_process_with_one_sentence(config: Config) -> None:
    """The others would wait for the first one's number until torchrun kills them."""
    more = ["--devices", "2", "--objective.temperature", "auto", "--objective.perplexity", "0.001"]
    process = start([str(Path(sys.executable).with_name("compress-ssl")), *arguments(config, *more)])
    told = process.communicate(timeout=100)[1]
    assert process.returncode == 2, told
    assert len(re.findall("expected at least 2000 images to look for neighbours among, got 70", told)) == 1
    assert "Traceback" not in told


# ---- workers ----


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_run_that_reads_in_workers_ends_when_it_is_stopped(config: Config, number: signal.Signals) -> None:
    """Workers heed no signal: a loader that is not ended waits for them for ever, after "everything is saved"."""
    given = arguments(with_training(config, epochs=99))
    given[given.index("--workers") + 1] = "1"
    process = start([str(Path(sys.executable).with_name("compress-ssl")), *given])
    try:
        wait_for_step(config.out, 3, process)
        process.send_signal(number)
        told = process.communicate(timeout=60)[1]
    finally:
        process.kill()
    assert process.returncode == 130, told
    assert "everything is saved" in told


def test_a_student_at_a_size_far_from_its_own_is_told(tmp_path: Path) -> None:
    """Ten times the hours of a student at its own size, for a line that nobody has read."""
    config = Config(teacher="t", data="digits", out=tmp_path, student="compress/resnet18_small")
    own = open_encoder(config.student, weights="random").preprocessing.size
    told = f"the student is trained at 224 pixels, its teacher's; its own are {own}: --student-size {own}"
    state = torch.random.get_rng_state()
    assert distill.size_told(config, 224) == told
    assert torch.equal(torch.random.get_rng_state(), state)
    assert not distill.size_told(config, own + 8)
    assert not distill.size_told(replace(config, student_size=224), 224)
    encoder = open_encoder("compress/resnet10_small_w8", weights="random", size=16)
    save_encoder(encoder, tmp_path / "student")
    assert "its own are 16:" in distill.size_told(replace(config, student=str(tmp_path)), 224)
    assert not distill.size_told(replace(config, student="timm/nothing"), 224), "whoever opens it refuses it"
