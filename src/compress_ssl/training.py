"""The frame around a training loop: where it stands, how long it goes on, what is logged, shown, scored and saved.

`for batch in training:` gives the batches of the steps that are left; the body computes one step and hands its loss to
`training.note(loss)`. Between two steps the frame sets the learning rate, writes metrics (JSONL and TensorBoard), moves
the progress bar, scores every few epochs, saves, and stops in good order on Ctrl-C or SIGTERM.
"""

from __future__ import annotations

import math
import re
import signal
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from rich.console import Console
from torch import Tensor

from compress_ssl import checkpoint, optim
from compress_ssl.feed import Feed
from compress_ssl.host_copy import HostCopy
from compress_ssl.loader import Batch, Skipped, TrainLoader, refuse_skipped
from compress_ssl.processes import largest, on_first, told_by_all
from compress_ssl.progress import Bar
from compress_ssl.refusal import Refusal
from compress_ssl.run_folder import RunFolder
from compress_ssl.time_budget import Speed, parse_duration, steps_that_fit
from compress_ssl.waits import Waits, sentence, shares

if TYPE_CHECKING:
    from lightning.fabric import Fabric

STEPS_BETWEEN_AGREEMENTS = 5  # of several processes; SLURM gives half a minute between SIGTERM and SIGKILL


@dataclass(frozen=True, kw_only=True)
class TrainingConfig:
    """How long, how much at once, how often."""

    epochs: float = 130  # passes over the training images
    time_budget: str | None = None  # e.g. 30m, 2h, 90s: epochs are chosen so that everything ends by then
    batch_size: int = 256  # images per step, over all processes together
    accumulate: int = 1  # parts a batch is computed in, for less memory; the step is the same but for batch norm
    seed: int = 0  # of weights, order and views
    validate_every_epochs: float = 5  # scores on held-out images; also at the end
    save_every_minutes: float = 5  # what a kill can cost
    log_every_steps: int = 20  # steps averaged into one line of metrics


class Interrupted(Exception):
    """The training stopped because someone asked it to; everything is saved."""


def step_seed(seed: int, step: int, *what: int) -> int:
    """Seed of whatever is drawn anew in a step, so that a resumed step draws the same; `what` tells several apart."""
    return int(np.random.SeedSequence((seed, step, *what)).generate_state(1)[0])


class Training:
    """Iterate over it to train; see the module's docstring.

    Args:
        folder: the run folder, None on ranks other than 0.
        parts: everything with a state that a resumed run must find again.
        inputs: name -> what tells the things that the run reads apart; a resumed run must find the same.
        validate: called every few epochs; returns scores to log. It may save the encoder and set `best`.
        prepare: what else a batch needs on the host; done while the step before computes.
        settle: raises what earlier steps have found wrong, as far as it is known; with `wait=True`, all of it. It is
            asked for in every step, and waited for before anything is written.

    Attributes:
        compiled: whether this run computes with torch.compile; None until that is decided. A resumed run keeps it.
        waits: the loop's body marks there which part it has just done.
    """

    def __init__(
        self,
        config: TrainingConfig,
        schedule: optim.ScheduleConfig,
        *,
        fabric: Fabric,
        folder: RunFolder | None,
        loader: TrainLoader,
        optimizer: torch.optim.Optimizer,
        parts: dict[str, checkpoint.Stateful],
        validate: Callable[[Training], dict[str, float]],
        strict: bool,
        console: Console,
        inputs: dict[str, str] | None = None,
        prepare: Callable[[Batch], Batch] = lambda batch: batch,
        settle: Callable[..., None] = lambda **_: None,
    ):
        if config.epochs <= 0:
            raise Refusal(f"--epochs expected more than 0, got {config.epochs}: raise it")
        if config.log_every_steps < 1:
            raise Refusal(f"--log-every-steps expected at least 1, got {config.log_every_steps}: raise it")
        _check_parts(loader.batch_size // loader.ranks, config.accumulate)
        self.config, self.schedule, self.fabric, self.run, self.loader = config, schedule, fabric, folder, loader
        self.optimizer, self.parts, self.validate = optimizer, parts, validate
        self.strict, self.console, self.inputs = strict, console, inputs or {}
        self.prepare, self.settle = prepare, settle
        self.waits = Waits(fabric.device)
        self.compiled: bool | None = None
        self.peak = optimizer.param_groups[0]["lr"]
        self.decays = [group["weight_decay"] for group in optimizer.param_groups]
        self.step = 0  # steps done
        self.total_steps = max(1, round(config.epochs * loader.steps_per_epoch))
        self.budget = None if config.time_budget is None else parse_duration(config.time_budget)
        self.fitted = self.budget is None
        self.spent = 0.0  # seconds of training and scoring before this process took over
        self.best = float("-inf")
        self._scoring_seconds = 0.0
        self._losses: list[Tensor] = []
        self._interrupt: int | None = None
        self._agreement: HostCopy | None = None  # asked of all processes, not read yet
        self._trouble: str | None = None  # what ends the run, once all processes have heard of it
        self._unlisted: list[Skipped] = []  # of a process that has no run folder
        self._resumed = False

    # ---- what the loops read -----------------------------------------------------------------------------------------

    @property
    def epoch(self) -> float:
        """Passes over the training images done so far."""
        return self.step / self.loader.steps_per_epoch

    @property
    def progress(self) -> float:
        """Share of the training that is done, in [0, 1]."""
        return self.step / self.total_steps

    def note(self, loss: Tensor) -> None:
        """Take the loss of the step (scalar, any device); it is read only when a line is written."""
        self._losses.append(loss.detach())

    # ---- state -------------------------------------------------------------------------------------------------------

    def save(self) -> None:
        """Write the checkpoint; every rank must call it.

        Raises: Refusal if the training has diverged: what was saved before stays.
        """
        self._check_finite()
        self._agreement = None  # it may hold the wish that this save fulfils
        states = {name: part.state_dict() for name, part in self.parts.items()}  # of a spread bank all must give theirs
        on_first(self.fabric, lambda: self._write(states))

    def _write(self, states: dict[str, dict[str, Any]]) -> None:
        if self.run is None:
            return
        standing = {
            "step": self.step,
            "total_steps": self.total_steps,
            "fitted": self.fitted,
            "spent": self.spent + time.monotonic() - self._started,
            "best": self.best,
            "scoring_seconds": self._scoring_seconds,
            "inputs": self.inputs,
            "compiled": self.compiled,
            "losses": [float(loss) for loss in self._losses],
        }
        checkpoint.save(self.run.path / "checkpoints" / "last.ckpt", states, standing)

    def resume(self, run: Path) -> None:
        """Continue where the checkpoint of the run folder stands; every rank must call it.

        A run that was killed before its first checkpoint starts over.
        """
        file = run / "checkpoints" / "last.ckpt"
        if not file.exists():
            if self.run is not None:
                self.run.forget_after(-1)
            return
        standing = checkpoint.load(file, self.parts)
        _refuse_changed(standing["inputs"], self.inputs, run)
        self._resumed = True
        self.step, self.total_steps = standing["step"], standing["total_steps"]
        self.fitted, self.spent, self.best = standing["fitted"], standing["spent"], standing["best"]
        self._scoring_seconds, self.compiled = standing["scoring_seconds"], standing.get("compiled")
        self._losses = [torch.tensor(loss, device=self.fabric.device) for loss in standing["losses"]]
        if self.run is not None:
            self.run.forget_after(self.step)

    # ---- the loop ----------------------------------------------------------------------------------------------------

    def __iter__(self) -> Iterator[Batch]:
        self._started = time.monotonic()
        handlers = {number: signal.signal(number, self._ask_to_stop) for number in (signal.SIGINT, signal.SIGTERM)}
        try:
            shown = self.fabric.is_global_zero
            with Bar(self.console, shown=shown, step=self.step, total_steps=self.total_steps) as progress:
                yield from self._steps(progress)
        finally:
            for number, handler in handlers.items():
                signal.signal(number, handler)

    def _steps(self, progress: Bar) -> Iterator[Batch]:
        validate_every = max(1, round(self.config.validate_every_epochs * self.loader.steps_per_epoch))
        if not self._resumed:
            scoring = time.monotonic()
            self._score(progress)
            self._scoring_seconds = time.monotonic() - scoring
            self.save()  # so that a run can be resumed from its first second
        last_save = window_start = time.monotonic()
        window_steps, logged = 0, self.step
        speed = Speed()  # of the steps alone, until the schedule is fitted
        batch: Batch | None = None
        feed = Feed(self.loader.batches(self.step), device=self.fabric.device, prepare=self.prepare)
        try:
            while self.step < self.total_steps or not self.fitted:
                begin = 0.0 if self.fitted else self._now()
                self.waits.start()
                batch = self._take(feed, batch)
                self.waits.lap("data")
                learning_rate = self.peak * optim.rate(self.progress, self.schedule)
                optim.set_rate(self.optimizer, learning_rate)
                optim.set_decay(self.optimizer, self.decays, self.progress, self.schedule)
                # dropout and its like: by step, so that neither scoring nor a resumption moves them
                torch.manual_seed(step_seed(self.config.seed, self.step) + self.fabric.global_rank)
                yield batch
                self.step += 1
                window_steps += 1
                with self._held_back():
                    self.settle(wait=False)

                just_fitted = False
                if not self.fitted:
                    speed.add(self._now() - begin)
                    if speed.known:
                        self._fit(speed.seconds_per_step, validate_every)
                        just_fitted = True  # saved below: the schedule is now part of what a resumed run must repeat
                if self.step % self.config.log_every_steps == 0 or self.step == self.total_steps:
                    rate = window_steps * self.loader.batch_size / max(1e-9, time.monotonic() - window_start)
                    self._log(progress, learning_rate=learning_rate, images_per_second=rate, steps=self.step - logged)
                    window_start, window_steps, logged = time.monotonic(), 0, self.step
                if self.step % validate_every == 0 or self.step == self.total_steps:
                    self._score(progress)
                    window_start, window_steps = time.monotonic(), 0
                due = (time.monotonic() - last_save) / 60 >= self.config.save_every_minutes
                news = self._trouble is not None or bool(self._unlisted)
                stop, due, news = self._agree(self._interrupt is not None, due, news)
                if news:
                    self._hear()
                if stop or due or just_fitted or self.step == self.total_steps:
                    self.save()
                    last_save = window_start = time.monotonic()
                    window_steps = 0
                if stop and self.step < self.total_steps:
                    told = Interrupted(f"stopped at step {self.step} of {self.total_steps}, everything is saved")
                    raise told if self.fabric.is_global_zero else SystemExit(0)
        finally:
            feed.close()

    def _fit(self, seconds_per_step: float, validate_every: int) -> None:
        """Choose the number of steps so that training and scoring end within the budget; rank 0 decides for all."""
        assert self.budget is not None
        spent = self.spent + time.monotonic() - self._started
        fitting = steps_that_fit(
            self.budget * 0.97 - spent,  # speed varies
            seconds_per_step=seconds_per_step,
            scoring_seconds=self._scoring_seconds,
            score_every=validate_every,
        )
        self.total_steps = int(self.fabric.broadcast(self.step + fitting))
        self.fitted = True
        if not self.fabric.is_global_zero:
            return
        epochs = self.total_steps / self.loader.steps_per_epoch
        self.console.print(f"time budget {self.config.time_budget}: {seconds_per_step * 1000:.0f} ms a step, "
                           f"{self.total_steps} steps = {epochs:.2f} epochs", highlight=False)  # fmt: skip

    def _now(self) -> float:
        """The time when all that was asked for is computed: it waits for the device, in the steps that are timed."""
        if self.fabric.device.type == "cuda":
            torch.cuda.synchronize()
        return time.monotonic()

    def _mean_loss(self) -> float:
        """Mean loss since the last line, over all processes."""
        value = self._check_finite()
        self._losses.clear()
        return value

    def _check_finite(self) -> float:
        """Mean loss since the last line; every rank must call it.

        Raises: Refusal if it, or a weight, is not a finite number.
        """
        self._hear_all()
        mean = torch.stack([loss.float() for loss in self._losses]).mean() if self._losses else torch.zeros(())
        reduced = self.fabric.all_reduce(mean.to(self.fabric.device), reduce_op="mean")
        assert isinstance(reduced, Tensor)
        value = float(reduced)
        weights = [torch.isfinite(weight).all() for group in self.optimizer.param_groups for weight in group["params"]]
        if math.isfinite(value) and bool(torch.stack(weights).all()):
            return value
        told = Refusal(
            f"expected a finite loss and finite weights, got a loss of {value} up to step {self.step}: lower "
            "--optimizer.learning-rate or use --precision 32; the last checkpoint is from before"
        )
        raise told if self.fabric.is_global_zero else SystemExit(0)

    def _log(self, progress: Bar, *, learning_rate: float, images_per_second: float, steps: int) -> None:
        """One line of metrics; the only place between two saves where the host waits for the device."""
        loss = self._mean_loss()
        seconds = self.waits.read()
        speed = f"{images_per_second:.0f}" if images_per_second >= 10 else f"{images_per_second:.2g}"
        progress.update(
            step=self.step,
            total_steps=self.total_steps,
            steps_per_epoch=self.loader.steps_per_epoch,
            seconds_left=(self.total_steps - self.step) * self.loader.batch_size / max(images_per_second, 1e-9),
            told=f"loss {loss:.4f} · {speed} images/s · {sentence(seconds)}",
        )
        if self.run is None:
            return
        values = {"loss": loss, "learning_rate": learning_rate, "images_per_second": round(images_per_second, 1)}
        values["step_seconds"] = round(sum(seconds.values()) / steps, 5)
        values |= {f"share_{part}": round(share, 4) for part, share in shares(seconds).items()}
        self.run.log("train", step=self.step, epoch=round(self.epoch, 4), **values)
        self._tensorboard(values)

    def _score(self, progress: Bar) -> None:
        self._hear_all()
        with progress.paused():
            scores = on_first(self.fabric, lambda: self.validate(self))
        if self.run is not None and scores:
            self.run.log("validation", step=self.step, epoch=round(self.epoch, 4), **scores)
            self._tensorboard(scores)
            self.console.print(f"epoch {self.epoch:.3g}: {scores_told(scores)}", highlight=False)

    def _tensorboard(self, values: dict[str, float]) -> None:
        if not hasattr(self, "_writer"):
            from torch.utils.tensorboard import SummaryWriter

            assert self.run is not None
            self._writer = SummaryWriter(str(self.run.path / "tensorboard"), purge_step=self.step)
        for name, value in values.items():
            self._writer.add_scalar(name, value, self.step)
        self._writer.flush()

    # ---- unusable images and other troubles --------------------------------------------------------------------------

    def skip(self, skipped: Skipped) -> None:
        """List an image that cannot be used.

        Raises: Refusal under --strict.
        """
        if self.strict:
            refuse_skipped(skipped)
        if self.run is not None:
            self.run.skip(*skipped)
        else:
            self._unlisted.append(skipped)

    def _take(self, feed: Feed, last: Batch | None) -> Batch:
        """The next batch. A process of several that has none repeats its last one until all have heard why: if it left
        alone, the others would wait for it in the step's collectives."""
        batch = last
        with self._held_back():
            batch = next(feed)
            for skipped in batch.skipped:
                self.skip(skipped)
        if last is None:
            self._hear()
        assert batch is not None
        return batch

    @contextmanager
    def _held_back(self) -> Iterator[None]:
        """One process raises its refusals at once; one of several keeps the first until all hear of it."""
        try:
            yield
        except Refusal as trouble:
            if self.fabric.world_size == 1:
                raise
            self._trouble = self._trouble or str(trouble)

    def _hear_all(self) -> None:
        """Wait for what the steps so far have found wrong, in every process; before anything is written."""
        with self._held_back():
            self.settle(wait=True)
        self._hear()

    def _hear(self) -> None:
        """List the unusable images of all processes in the first; every rank must call it.

        Raises: Refusal in the first process if any of them has a trouble; the others end quietly.
        """
        if self.fabric.world_size == 1 or not largest(self.fabric, float(bool(self._trouble or self._unlisted))):
            return
        heard = told_by_all(self.fabric, (self._trouble, self._unlisted))
        self._unlisted = []
        if self.run is not None:
            for skipped in [skipped for _, unlisted in heard for skipped in unlisted]:
                self.run.skip(*skipped)
        troubles = [trouble for trouble, _ in heard if trouble]
        if troubles:
            raise Refusal(troubles[0]) if self.fabric.is_global_zero else SystemExit(0)

    # ---- stopping ----------------------------------------------------------------------------------------------------

    def _ask_to_stop(self, number: int, _: Any) -> None:
        if self._interrupt is not None and number == signal.SIGINT:
            raise KeyboardInterrupt
        self._interrupt = number
        if self.fabric.is_global_zero:
            print(f"\n{signal.Signals(number).name}: finishing this step and saving …", file=sys.stderr)

    def _agree(self, *mine: bool) -> list[bool]:
        """Each true on every rank as soon as it is true on one; asked only every few steps where there are several.

        On a GPU the answer is read when the next question is put, and the host waits for neither.
        """
        if self.fabric.world_size == 1:
            return list(mine)
        nothing = [False] * len(mine)
        if self.step % min(STEPS_BETWEEN_AGREEMENTS, self.config.log_every_steps):
            return nothing
        device = self.fabric.device
        question = torch.stack([torch.full((), float(one), device=device) for one in mine])
        torch.distributed.all_reduce(question, torch.distributed.ReduceOp.MAX)  # Fabric's waits at a barrier first
        asked = HostCopy(question)
        answer, self._agreement = (self._agreement, asked) if device.type == "cuda" else (asked, None)
        return nothing if answer is None else [one > 0 for one in answer.read().tolist()]


def scores_told(scores: dict[str, float]) -> str:
    """Scores as a line of the terminal; what is there for each of several teachers stands in brackets.

    >>> scores_told({"nearest_neighbour": 0.5, "teacher_1_nearest_neighbour": 0.625})
    'nearest neighbour 0.500 (teacher_1 0.625)'
    """
    each: dict[str, list[str]] = {}  # metric -> of every teacher
    for name, value in scores.items():
        found = re.fullmatch(r"(?P<of>teacher_\d+)_(\w+)|(\w+)_(?P<kept>teacher_\d+)", name)
        if found:
            each.setdefault(found[2] or found[3], []).append(f"{found['of'] or found['kept']} {value:.3f}")
    several = any(name.startswith("neighbour_overlap") for name in each)
    told = []
    for name, value in scores.items():
        if re.search(r"(^|_)teacher_\d+(_|$)", name):
            continue
        words = "neighbours kept" if several and name == "neighbour_overlap_10" else name.replace("_", " ")
        mean = "weighted mean; " if words == "neighbours kept" else ""
        told.append(f"{words} {value:.3f}" + (f" ({mean}{', '.join(each[name])})" if name in each else ""))
    return ", ".join(told)


def _refuse_changed(before: dict[str, str], now: dict[str, str], run: Path) -> None:
    """Of what the run reads, name what is not what it was started with."""

    def told(inputs: dict[str, str], name: str) -> str:
        value = inputs.get(name, "nothing of the kind")
        return value[:16] if re.fullmatch("[0-9a-f]{40,}", value) else value  # of a checksum the beginning will do

    changed = [name for name in {**before, **now} if before.get(name) != now.get(name)]
    if changed:
        found = "; ".join(f"{name}: expected {told(before, name)}, got {told(now, name)}" for name in changed)
        raise Refusal(
            f"--resume expected what {run} was started with, got other content ({found}): put the old back, or start "
            "a new run in another --out"
        )


def _check_parts(images: int, parts: int) -> None:
    if parts < 1:
        raise Refusal(f"--accumulate expected at least 1, got {parts}: raise it")
    if images // parts < 2:
        raise Refusal(f"--accumulate expected parts of at least 2 images (batch norm needs more than one), got "
                      f"{images} images a process in {parts} parts: change it or --batch-size")  # fmt: skip
