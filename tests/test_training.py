"""The frame around a loop: how long it goes on, when it saves, how it stops. A tiny model, a clock that we turn."""

from __future__ import annotations

import io
import json
import os
import re
import signal
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from rich.console import Console
from torch import nn

from compress_ssl import time_budget, training
from compress_ssl.hardware import HardwareConfig, launch
from compress_ssl.loader import Batch, Skipped
from compress_ssl.optim import ScheduleConfig
from compress_ssl.refusal import Refusal
from compress_ssl.run_folder import RunFolder
from compress_ssl.time_budget import parse_duration
from compress_ssl.training import Interrupted, Training, TrainingConfig

HARDWARE = HardwareConfig(accelerator="cpu", precision="32", workers=0)
NEVER = 1e9  # minutes
TIMES = {"images_per_second": 0, "step_seconds": 0, "share_data": 0}  # of a line, and no part of what it claims


class Clock:
    """Stands in for `time`: it moves only when told."""

    def __init__(self) -> None:
        self.now = 1000.0

    def monotonic(self) -> float:
        return self.now


class Loader:
    """Steps of 6 images, 5 an epoch."""

    batch_size, ranks, steps_per_epoch = 6, 1, 5

    def __init__(self, skipped: list[Skipped] | None = None) -> None:
        self.skipped = skipped or []

    def batches(self, start: int) -> Iterator[Batch]:
        step = start
        while True:
            images = torch.randint(0, 256, (6, 3, 2, 2), generator=torch.Generator().manual_seed(step))
            yield Batch(images.byte(), torch.arange(6), self.skipped)
            step += 1


class Frame:
    """A linear model under Training; `scores` are what validation finds, in order."""

    def __init__(self, out: Path, clock: Clock, config: TrainingConfig, *, seconds: float = 0.1, scoring: float = 1.0):
        self.clock, self.seconds, self.scoring = clock, seconds, scoring
        fabric = launch(HARDWARE, config.seed)
        self.model = nn.Linear(12, 1)
        self.optimizer = torch.optim.SGD(self.model.parameters(), lr=0.05)
        out.mkdir(exist_ok=True)
        self.run = RunFolder(out)
        self.scored: list[int] = []
        self.rates: list[float] = []
        self.training = Training(
            config,
            ScheduleConfig(name="cosine"),
            fabric=fabric,
            folder=self.run,
            loader=Loader(),  # type: ignore[arg-type]
            optimizer=self.optimizer,
            parts={"model": self.model, "optimizer": self.optimizer},
            validate=self.validate,
            strict=False,
            console=Console(quiet=True),
        )

    def validate(self, standing: Training) -> dict[str, float]:
        self.clock.now += self.scoring
        self.scored.append(standing.step)
        return {"neighbour_overlap_10": 0.5}

    def go(self, change: Any = None) -> None:
        for batch in self.training:
            self.clock.now += self.seconds
            self.rates.append(self.optimizer.param_groups[0]["lr"])
            loss = self.model(batch.images.flatten(1).float() / 255).square().mean()
            self.optimizer.zero_grad()
            loss.backward()
            self.optimizer.step()
            if change is not None:
                loss = change(self, loss)
            self.training.note(loss)

    def lines(self, kind: str) -> list[dict[str, Any]]:
        lines = map(json.loads, (self.run.path / "metrics.jsonl").read_text().splitlines())
        return [line for line in lines if line["kind"] == kind]


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(training, "time", clock)
    return clock


@pytest.fixture
def config() -> TrainingConfig:
    return TrainingConfig(epochs=4, batch_size=6, validate_every_epochs=2, save_every_minutes=NEVER, log_every_steps=3)


# ---- durations and time budgets ----


@pytest.mark.parametrize(
    ("text", "seconds"), [("90s", 90), ("30m", 1800), ("2h", 7200), ("1h30m", 5400), ("1.5h", 5400), (" 1m30s ", 90)]
)
def test_durations_are_read(text: str, seconds: float) -> None:
    """--time-budget 1h30m taken for an hour would end too early."""
    assert parse_duration(text) == seconds


@pytest.mark.parametrize("text", ["", "30", "soon", "-5m", "0s", "0h0m", "30 m", "5m2h", "1d", "nan", "h"])
def test_what_is_no_duration_is_refused(text: str) -> None:
    """`--time-budget 30` could be seconds, minutes or hours: guessing costs a day."""
    with pytest.raises(Refusal, match=r"--time-budget expected a duration such as 30m"):
        parse_duration(text)


def test_an_empty_time_budget_is_refused_too(tmp_path: Path, clock: Clock, config: TrainingConfig) -> None:
    """`--time-budget "$BUDGET"` with an unset variable would train for 130 epochs."""
    with pytest.raises(Refusal, match="--time-budget"):
        Frame(tmp_path, clock, replace(config, time_budget=""))


@pytest.mark.parametrize(
    ("budget", "seconds", "scoring"), [("60s", 0.1, 1.0), ("10m", 1.0, 5.0), ("30s", 0.1, 0.0), ("1h", 2.0, 60.0)]
)
def test_a_time_budget_holds_training_and_scoring(
    tmp_path: Path, clock: Clock, config: TrainingConfig, budget: str, seconds: float, scoring: float
) -> None:
    """`--time-budget 30m` on a machine that is paid by the hour must not end at 40, nor at 15."""
    frame = Frame(tmp_path, clock, replace(config, time_budget=budget), seconds=seconds, scoring=scoring)
    start = clock.now
    frame.go()
    spent, given = clock.now - start, parse_duration(budget)
    assert 0.85 * given <= spent <= given
    assert frame.rates[-1] < 0.01 * max(frame.rates), "the schedule must be fitted too: the rate ends low"
    assert len(frame.rates) == frame.training.total_steps == frame.training.step


def test_a_budget_is_fitted_also_where_the_epochs_would_end_before_the_speed_is_known(
    tmp_path: Path, clock: Clock, config: TrainingConfig
) -> None:
    """On a small set the run would be over after its configured epochs, with most of the time unused."""
    frame = Frame(tmp_path, clock, replace(config, epochs=1, time_budget="60s"))
    frame.go()
    assert frame.training.step > 250


def test_a_budget_that_is_spent_already_ends_at_once(tmp_path: Path, clock: Clock, config: TrainingConfig) -> None:
    """A negative number of steps would run for ever or crash after the measuring."""
    frame = Frame(tmp_path, clock, replace(config, time_budget="2s"), seconds=0.5)
    frame.go()
    assert frame.training.step == 3 + time_budget.CALIBRATION_STEPS + 1


def test_a_resumed_run_keeps_the_fitted_schedule(tmp_path: Path, clock: Clock, config: TrainingConfig) -> None:
    """Measured again after a kill, the schedule would be another and the losses too."""
    config = replace(config, time_budget="60s")
    whole = Frame(tmp_path / "whole", clock, config)
    whole.go()

    def kill(frame: Frame, loss: torch.Tensor) -> torch.Tensor:
        if frame.training.step == 20:
            raise KeyboardInterrupt
        return loss

    killed = Frame(tmp_path / "killed", clock, config)
    with pytest.raises(KeyboardInterrupt):
        killed.go(kill)
    resumed = Frame(tmp_path / "killed", clock, config, seconds=3.0)
    resumed.training.resume(tmp_path / "killed")
    assert resumed.training.step == 3 + time_budget.CALIBRATION_STEPS
    resumed.go()
    assert resumed.training.total_steps == whole.training.total_steps
    losses = [[(line["step"], line["loss"]) for line in frame.lines("train")] for frame in (whole, resumed)]
    assert losses[0] == losses[1]
    assert torch.equal(whole.model.weight, resumed.model.weight)


# ---- what is logged, scored and saved when ----


def test_scores_are_taken_at_the_start_every_few_epochs_and_at_the_end(
    tmp_path: Path, clock: Clock, config: TrainingConfig
) -> None:
    """Without a last score the best student could never be the last one."""
    frame = Frame(tmp_path, clock, replace(config, epochs=4.6))
    frame.go()
    assert frame.scored == [0, 10, 20, 23]
    assert [line["step"] for line in frame.lines("validation")] == [0, 10, 20, 23]
    assert [line["step"] for line in frame.lines("train")] == [3, 6, 9, 12, 15, 18, 21, 23]
    assert [line["epoch"] for line in frame.lines("train")][-1] == pytest.approx(4.6)


def test_a_logged_loss_is_the_mean_since_the_line_before(tmp_path: Path, clock: Clock, config: TrainingConfig) -> None:
    """Losses of single batches are too noisy to compare two runs by."""
    losses: list[float] = []

    def keep(_: Frame, loss: torch.Tensor) -> torch.Tensor:
        losses.append(loss.item())
        return loss

    frame = Frame(tmp_path, clock, replace(config, epochs=1))
    frame.go(keep)
    assert [line["loss"] for line in frame.lines("train")] == pytest.approx([sum(losses[:3]) / 3, sum(losses[3:]) / 2])


def test_a_kill_costs_no_more_than_the_minutes_between_saves(
    tmp_path: Path, clock: Clock, config: TrainingConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A run of a day that is saved only at its end loses the day."""
    saved: list[int] = []
    write = Training._write

    def watch(self: Training, states: Any) -> None:
        saved.append(self.step)
        write(self, states)

    monkeypatch.setattr(Training, "_write", watch)
    Frame(tmp_path, clock, replace(config, save_every_minutes=7 / 60), seconds=1.0, scoring=0.0).go()
    assert saved == [0, 7, 14, 20]


@pytest.mark.parametrize("saved_at", [0, 2, 3, 9, 10, 11, 20])
def test_a_run_resumed_at_any_step_logs_the_same_lines(
    tmp_path: Path, clock: Clock, config: TrainingConfig, monkeypatch: pytest.MonkeyPatch, saved_at: int
) -> None:
    """A checkpoint between two lines of metrics must carry the losses that are not written yet, and no others."""
    config = replace(config, save_every_minutes=0)
    whole = Frame(tmp_path / "whole", clock, config)
    whole.go()
    write = Training._write

    def once(self: Training, states: Any) -> None:
        if self.step <= saved_at:
            write(self, states)

    def kill(frame: Frame, loss: torch.Tensor) -> torch.Tensor:
        if frame.training.step == min(saved_at + 4, 19):
            raise KeyboardInterrupt
        return loss

    monkeypatch.setattr(Training, "_write", once)
    with pytest.raises(KeyboardInterrupt):
        Frame(tmp_path / "killed", clock, config).go(kill)
    monkeypatch.setattr(Training, "_write", write)
    resumed = Frame(tmp_path / "killed", clock, config)
    resumed.training.resume(tmp_path / "killed")
    assert resumed.training.step == min(saved_at, 19)
    resumed.go()
    for kind in ("train", "validation"):
        ours, theirs = ([{**line, **TIMES} for line in run.lines(kind)] for run in (whole, resumed))
        assert ours == theirs
    assert torch.equal(whole.model.weight, resumed.model.weight)


def test_a_run_resumed_over_other_content_is_refused_with_what_was_expected_and_found(
    tmp_path: Path, clock: Clock, config: TrainingConfig
) -> None:
    """Half of a student would be taught by one teacher and half by another; "changed content" would not say which."""
    first = Frame(tmp_path / "run", clock, config)
    first.training.inputs = {"data": "12" * 32, "teacher weights": "ab" * 32, "teacher views": '{"count": 4}'}
    first.go()
    for changes, told in (
        ({"teacher weights": "cd" * 32}, r"teacher weights: expected abababababababab, got cdcdcdcdcdcdcdcd"),
        ({"teacher views": '{"count": 2}'}, r'teacher views: expected \{"count": 4\}, got \{"count": 2\}'),
        ({"data": "3", "teacher dtype": "int8"}, r"data: .*; teacher dtype: expected nothing of the kind, got int8"),
    ):
        again = Frame(tmp_path / "run", clock, config)
        again.training.inputs = first.training.inputs | changes
        with pytest.raises(Refusal, match=rf"--resume expected what .*run was started with.*\({told}\): put the old"):
            again.training.resume(tmp_path / "run")
    again.training.inputs = dict(first.training.inputs)
    again.training.resume(tmp_path / "run")


def test_a_line_says_what_the_steps_waited_for(tmp_path: Path, config: TrainingConfig) -> None:
    """Someone would buy a faster disk for a step that waits for its teacher."""
    frame = Frame(tmp_path, Clock(), config)

    def wait(frame: Frame, loss: torch.Tensor) -> torch.Tensor:
        frame.training.waits.lap("student")
        time.sleep(0.004)
        frame.training.waits.lap("teacher")
        return loss

    told = io.StringIO()
    frame.training.console = Console(file=told, width=200)
    frame.go(wait)
    for line in frame.lines("train"):
        shares = {name: value for name, value in line.items() if name.startswith("share_")}
        assert shares.keys() == {"share_data", "share_teacher", "share_student"}
        assert sum(shares.values()) == pytest.approx(1, abs=1e-3)
        assert line["step_seconds"] * line["share_teacher"] > 0.003
    assert re.search(r"epoch 4.00/4 · loss \S+ · \d+ images/s · waits: .*teacher \d+ %.* · 0:00 left", told.getvalue())


def test_what_a_step_draws_depends_on_its_number_alone(tmp_path: Path, clock: Clock, config: TrainingConfig) -> None:
    """Dropout after a resume would differ: opening a loader, and scoring, draw from the same generator."""
    drawn: dict[str, list[float]] = {"whole": [], "resumed": [], "seed 1": []}

    def draw(name: str) -> Any:
        return lambda _, loss: (drawn[name].append(float(torch.rand(()))), loss)[1]

    Frame(tmp_path / "a", clock, config).go(draw("whole"))
    frame = Frame(tmp_path / "b", clock, config)
    frame.training.step = 7
    frame.go(draw("resumed"))
    Frame(tmp_path / "c", clock, replace(config, seed=1)).go(draw("seed 1"))
    assert drawn["whole"][7:] == drawn["resumed"]
    assert len(set(drawn["whole"] + drawn["seed 1"])) == 40


# ---- stopping ----


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_ends_after_the_step_with_everything_saved(
    tmp_path: Path, clock: Clock, config: TrainingConfig, capfd: pytest.CaptureFixture[str], number: int
) -> None:
    """Ctrl-C, or the cluster that wants its machine back, would cost the minutes since the last save."""
    before = signal.getsignal(number)

    def send(frame: Frame, loss: torch.Tensor) -> torch.Tensor:
        if frame.training.step == 7:
            os.kill(os.getpid(), number)
        return loss

    with pytest.raises(Interrupted, match="stopped at step 8 of 20, everything is saved"):
        Frame(tmp_path, clock, config).go(send)
    assert f"{signal.Signals(number).name}: finishing this step" in capfd.readouterr().err
    assert signal.getsignal(number) is before, "Ctrl-C of a notebook must work as before afterwards"
    resumed = Frame(tmp_path, clock, config)
    resumed.training.resume(tmp_path)
    assert resumed.training.step == 8


def test_a_second_ctrl_c_ends_at_once(tmp_path: Path, clock: Clock, config: TrainingConfig) -> None:
    """A step that hangs could only be ended by SIGKILL."""

    def send(_: Frame, loss: torch.Tensor) -> torch.Tensor:
        for _ in range(2):
            os.kill(os.getpid(), signal.SIGINT)
            time.sleep(0.01)
        return loss

    with pytest.raises(KeyboardInterrupt):
        Frame(tmp_path, clock, config).go(send)


def test_a_signal_during_the_first_scoring_is_heeded(
    tmp_path: Path, clock: Clock, config: TrainingConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Scoring a large gallery takes minutes: a SIGTERM in them would be lost or kill without saving."""
    validate = Frame.validate

    def interrupted(self: Frame, standing: Training) -> dict[str, float]:
        os.kill(os.getpid(), signal.SIGTERM)
        return validate(self, standing)

    monkeypatch.setattr(Frame, "validate", interrupted)
    with pytest.raises(Interrupted, match="step 1 of 20"):
        Frame(tmp_path, clock, config).go()


@pytest.mark.parametrize("loss", [float("nan"), float("inf")])
@pytest.mark.parametrize("saving", [0, NEVER])
def test_a_loss_that_is_no_number_is_refused_and_never_saved(
    tmp_path: Path, clock: Clock, config: TrainingConfig, loss: float, saving: float
) -> None:
    """The checkpoint would hold ruined weights, and --resume would have nothing sound to go back to."""

    def spoil(frame: Frame, sound: torch.Tensor) -> torch.Tensor:
        if frame.training.step < 7:
            return sound
        with torch.no_grad():
            frame.model.weight.mul_(loss)
        return sound * loss

    frame = Frame(tmp_path, clock, replace(config, save_every_minutes=saving))
    with pytest.raises(Refusal, match=r"finite loss .*--optimizer\.learning-rate"):
        frame.go(spoil)
    resumed = Frame(tmp_path, clock, config)
    resumed.training.resume(tmp_path)
    assert resumed.training.step == (7 if saving == 0 else 0)
    assert torch.isfinite(resumed.model.weight).all()


def test_weights_that_are_no_numbers_are_never_saved(tmp_path: Path, clock: Clock, config: TrainingConfig) -> None:
    """The loss of the step that ruins the weights is still finite: it is computed before them."""

    def spoil(frame: Frame, sound: torch.Tensor) -> torch.Tensor:
        if frame.training.step == 7:
            with torch.no_grad():
                frame.model.bias.fill_(float("nan"))
        return sound

    with pytest.raises(Refusal, match="finite weights"):
        Frame(tmp_path, clock, replace(config, save_every_minutes=0)).go(spoil)
    resumed = Frame(tmp_path, clock, config)
    resumed.training.resume(tmp_path)
    assert resumed.training.step == 7


@pytest.mark.parametrize(
    ("change", "option"),
    [
        ({"epochs": 0}, "--epochs"),
        ({"accumulate": 0}, "--accumulate"),
        ({"accumulate": 6}, "--accumulate"),
        ({"log_every_steps": 0}, "--log-every-steps"),
    ],
)
def test_numbers_that_cannot_be_are_refused(
    tmp_path: Path, clock: Clock, config: TrainingConfig, change: dict[str, Any], option: str
) -> None:
    """A division by zero in the middle of the loop names nothing that the user wrote."""
    with pytest.raises(Refusal, match=option):
        Frame(tmp_path, clock, replace(config, **change))


def test_an_unusable_image_is_listed_or_under_strict_an_error(
    tmp_path: Path, clock: Clock, config: TrainingConfig
) -> None:
    """A set with a thousand broken files would train on the rest without a word."""
    frame = Frame(tmp_path, clock, config)
    frame.training.loader = Loader([Skipped("a.png", "broken", "no header")])  # type: ignore[assignment]
    frame.go()
    assert frame.run.skipped() == {"broken": 1}
    strict = Frame(tmp_path / "strict", clock, config)
    strict.training.loader, strict.training.strict = frame.training.loader, True
    with pytest.raises(Refusal, match=r"--strict .*a\.png: broken"):
        strict.go()
