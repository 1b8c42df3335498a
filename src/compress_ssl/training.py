"""The frame around a training loop: where it stands, how long it goes on, what is logged, shown, scored and saved.

`for batch in training:` gives the batches of the steps that are left; the body computes one step and hands its loss to
`training.note(loss)`. Between two steps the frame sets the learning rate, writes metrics (JSONL and TensorBoard), moves
the progress bar, scores every few epochs, saves, and stops in good order on Ctrl-C or SIGTERM.
"""

from __future__ import annotations

import atexit
import math
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any, Literal, NoReturn, TypeVar

import numpy as np
import torch
from lightning.fabric import Fabric
from lightning.fabric.plugins.environments import SLURMEnvironment, TorchElasticEnvironment
from lightning.fabric.strategies import DDPStrategy
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn
from torch import Tensor, nn

from compress_ssl import checkpoint, optim
from compress_ssl.loader import Batch, Skipped, TrainLoader
from compress_ssl.refusal import Refusal
from compress_ssl.run_folder import RunFolder

CALIBRATION_STEPS = 12  # timed to fit a schedule into a time budget, after 3 that warm caches and kernels
PATIENCE = timedelta(days=1)  # of processes that wait while the first one embeds or scores; torch's is 10 to 30 minutes

_T = TypeVar("_T")


@dataclass(frozen=True, kw_only=True)
class HardwareConfig:
    """Where the training runs."""

    accelerator: Literal["auto", "cpu", "cuda", "mps"] = "auto"
    devices: int = 1  # processes on this machine; with torchrun or SLURM their own count is used
    nodes: int = 1  # machines
    precision: Literal["auto", "32", "bf16"] = "auto"  # auto: bf16 where the hardware multiplies it natively
    workers: int | None = None  # processes that read images; None: one a core but one, eight at most


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


def parse_duration(text: str) -> float:
    """Seconds of `90s`, `30m`, `2h` or `1h30m`.

    >>> parse_duration("1h30m")
    5400.0
    """
    found = re.fullmatch(r"(?:(\d+(?:\.\d+)?)h)?(?:(\d+(?:\.\d+)?)m)?(?:(\d+(?:\.\d+)?)s)?", text.strip())
    parts = found.groups() if found else ()
    seconds = sum(float(part or 0) * unit for part, unit in zip(parts, (3600, 60, 1), strict=False))
    if seconds <= 0:
        raise Refusal(f"--time-budget expected a duration such as 30m, 2h or 90s, got {text!r}: write one")
    return seconds


def step_seed(seed: int, step: int) -> int:
    """Seed of whatever is drawn anew in a step, so that a resumed step draws the same."""
    return int(np.random.SeedSequence((seed, step)).generate_state(1)[0])


def has_fast_bf16(device: torch.device) -> bool:
    """Whether bf16 is multiplied natively; emulated bf16 is ten times slower than float32."""
    if device.type == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    if device.type == "cpu":
        return any(
            getattr(torch.cpu, name, lambda: False)()
            for name in ("_is_amx_tile_supported", "_is_avx512_bf16_supported")
        )
    return False


def launch(config: HardwareConfig, seed: int) -> Fabric:
    """Fabric on the configured hardware, all processes started and seeded alike."""
    accelerator = config.accelerator
    if accelerator == "auto":
        accelerator = "cuda" if torch.cuda.is_available() else "cpu"
    if accelerator == "cuda" and not torch.cuda.is_available():
        raise Refusal("--accelerator cuda expected an NVIDIA device, got none that torch sees: use cpu")
    if accelerator == "mps" and not torch.backends.mps.is_available():
        raise Refusal("--accelerator mps expected an Apple device, got none that torch sees: use cpu")
    if config.devices < 1:
        raise Refusal(f"--devices expected at least 1, got {config.devices}: raise it")
    bf16 = config.precision == "bf16" or (config.precision == "auto" and has_fast_bf16(torch.device(accelerator)))
    devices, nodes = _processes(config)
    if seed < 0:
        raise Refusal(f"--seed expected 0 or more, got {seed}: choose another")
    if accelerator == "cuda":  # the same losses again, also after a resumption, cost some speed
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
        torch.backends.cudnn.deterministic, torch.backends.cudnn.benchmark = True, False
    fabric = Fabric(
        accelerator=accelerator,
        devices=devices,
        num_nodes=nodes,
        strategy=DDPStrategy(timeout=PATIENCE) if devices * nodes > 1 else "auto",
        precision="bf16-mixed" if bf16 else "32-true",
    )
    fabric.launch()
    for process in getattr(fabric.strategy.launcher, "procs", ()):
        atexit.register(_see_off, process)
    fabric.seed_everything(seed, workers=False, verbose=False)
    return fabric


def _processes(config: HardwareConfig) -> tuple[int, int]:
    """Processes on a machine and machines: as torchrun or SLURM started them, else as configured."""
    if TorchElasticEnvironment.detect():
        devices = int(os.environ["LOCAL_WORLD_SIZE"])
        return devices, int(os.environ["WORLD_SIZE"]) // devices
    if SLURMEnvironment.detect():
        nodes = int(os.environ.get("SLURM_NNODES", "1"))
        return int(os.environ["SLURM_NTASKS"]) // nodes, nodes
    return config.devices, config.nodes


def _see_off(process: subprocess.Popen) -> None:
    """At the end of the first process: one that still waits for it in a collective would wait for a day."""
    try:
        process.wait(timeout=10)
    except subprocess.TimeoutExpired:
        process.kill()


def refuse_unsafe(model: nn.Module, device: torch.device) -> None:
    """Refusal of layers whose training is not safe on a CPU.

    oneDNN on AVX2 (torch 2.15) computes wrong weight gradients in strided 1×1 convolutions of fewer than 8 input
    channels, and writes outside its memory; with stride 1 they are right.
    """
    for name, layer in model.named_modules():
        if (
            device.type == "cpu"
            and isinstance(layer, nn.Conv2d)
            and layer.kernel_size == (1, 1)
            and layer.stride != (1, 1)
            and layer.groups == 1
            and layer.in_channels < 8
        ):
            raise Refusal(
                "expected at least 8 channels into every strided 1×1 convolution trained on a CPU, got "
                f"{layer.in_channels} in {name}: take a wider backbone (compress/resnet10_small_w8), or a GPU"
            )


def on_first(fabric: Fabric, work: Callable[[], _T]) -> _T | None:
    """Do `work` in the first process while the others wait; if it fails, all end, and only the first says why.

    Returns: what `work` returns, None in the other processes. Every process must call it.
    """
    if fabric.world_size == 1:
        return work()
    result, trouble = None, None
    if fabric.is_global_zero:
        try:
            result = work()
        except Exception as error:  # raised again below, once the others know
            trouble = error
    failed = _most(fabric, float(trouble is not None)) > 0
    if trouble is not None:
        raise trouble
    if failed:
        raise SystemExit(0)  # not an error of this process: another code would make the launcher kill the first one
    return result


def _most(fabric: Fabric, value: float) -> float:
    """The largest value over all processes."""
    reduced = fabric.all_reduce(torch.tensor(value, device=fabric.device), reduce_op="max")
    assert isinstance(reduced, Tensor)
    return float(reduced)


class Training:
    """Iterate over it to train; see the module's docstring.

    Args:
        folder: the run folder, None on ranks other than 0.
        parts: everything with a state that a resumed run must find again.
        inputs: name -> fingerprint of what the run reads; a resumed run must find the same.
        validate: called every few epochs; returns scores to log. It may save the encoder and set `best`.
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
    ):
        if config.epochs <= 0:
            raise Refusal(f"--epochs expected more than 0, got {config.epochs}: raise it")
        if config.log_every_steps < 1:
            raise Refusal(f"--log-every-steps expected at least 1, got {config.log_every_steps}: raise it")
        _check_parts(loader.batch_size // loader.ranks, config.accumulate)
        self.config, self.schedule, self.fabric, self.run, self.loader = config, schedule, fabric, folder, loader
        self.optimizer, self.parts, self.validate = optimizer, parts, validate
        self.strict, self.console, self.inputs = strict, console, inputs or {}
        self.peak = optimizer.param_groups[0]["lr"]
        self.step = 0  # steps done
        self.total_steps = max(1, round(config.epochs * loader.steps_per_epoch))
        self.budget = None if config.time_budget is None else parse_duration(config.time_budget)
        self.fitted = self.budget is None
        self.spent = 0.0  # seconds of training and scoring before this process took over
        self.best = float("-inf")
        self._scoring_seconds = 0.0
        self._losses: list[Tensor] = []
        self._interrupt: int | None = None
        self._resumed = False

    # ---- what the loops read -----------------------------------------------------------------------------------------

    @property
    def epoch(self) -> float:
        """Passes over the training images done so far."""
        return self.step / self.loader.steps_per_epoch

    def note(self, loss: Tensor) -> None:
        """Take the loss of the step (scalar, any device); it is read only when a line is written."""
        self._losses.append(loss.detach())

    # ---- state -------------------------------------------------------------------------------------------------------

    def save(self) -> None:
        """Write the checkpoint; every rank must call it.

        Raises: Refusal if the training has diverged: what was saved before stays.
        """
        self._check_finite()
        on_first(self.fabric, self._write)

    def _write(self) -> None:
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
            "losses": [float(loss) for loss in self._losses],
        }
        checkpoint.save(self.run.path / "checkpoints" / "last.ckpt", self.parts, standing)

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
        changed = [name for name in self.inputs if standing["inputs"].get(name) != self.inputs[name]]
        if changed:
            raise Refusal(
                f"--resume expected the {' and the '.join(changed)} that {run} was started with, got changed content: "
                "put the old back, or start a new run in another --out"
            )
        self._resumed = True
        self.step, self.total_steps = standing["step"], standing["total_steps"]
        self.fitted, self.spent, self.best = standing["fitted"], standing["spent"], standing["best"]
        self._scoring_seconds = standing["scoring_seconds"]
        self._losses = [torch.tensor(loss, device=self.fabric.device) for loss in standing["losses"]]
        if self.run is not None:
            self.run.forget_after(self.step)

    # ---- the loop ----------------------------------------------------------------------------------------------------

    def __iter__(self) -> Iterator[Batch]:
        self._started = time.monotonic()
        handlers = {number: signal.signal(number, self._ask_to_stop) for number in (signal.SIGINT, signal.SIGTERM)}
        try:
            with self._progress() as progress:
                yield from self._steps(progress)
        finally:
            for number, handler in handlers.items():
                signal.signal(number, handler)

    def _steps(self, progress: _Bar) -> Iterator[Batch]:
        validate_every = max(1, round(self.config.validate_every_epochs * self.loader.steps_per_epoch))
        if not self._resumed:
            scoring = time.monotonic()
            self._score(progress)
            self._scoring_seconds = time.monotonic() - scoring
            self.save()  # so that a run can be resumed from its first second
        last_save = window_start = time.monotonic()
        window_steps = 0
        timed: list[float] = []  # seconds of each step until the schedule is fitted; logging and scoring not counted
        batches = self.loader.batches(self.step)
        while self.step < self.total_steps or not self.fitted:
            begin = 0.0 if self.fitted else self._now()
            batch = next(batches)
            self._report(batch)
            learning_rate = self.peak * optim.rate(self.step / self.total_steps, self.schedule)
            optim.set_rate(self.optimizer, learning_rate)
            # dropout and its like: by step, so that neither scoring nor a resumption moves them
            torch.manual_seed(step_seed(self.config.seed, self.step) + self.fabric.global_rank)
            yield batch.to(self.fabric.device)
            self.step += 1
            window_steps += 1

            just_fitted = False
            if not self.fitted:
                timed.append(self._now() - begin)
                if len(timed) == 3 + CALIBRATION_STEPS:
                    self._fit(sum(timed[3:]) / CALIBRATION_STEPS, validate_every)
                    just_fitted = True  # saved below: the schedule is now part of what a resumed run must repeat
            if self.step % self.config.log_every_steps == 0 or self.step == self.total_steps:
                loss = self._mean_loss()
                now = time.monotonic()
                speed = window_steps * self.loader.batch_size / max(1e-9, now - window_start)
                self._log(loss, learning_rate, speed)
                progress.update(self, loss, speed)
                window_start, window_steps = now, 0
            if self.step % validate_every == 0 or self.step == self.total_steps:
                self._score(progress)
                window_start, window_steps = time.monotonic(), 0
            stop = self._stop_asked()
            due = (time.monotonic() - last_save) / 60 >= self.config.save_every_minutes
            if stop or just_fitted or self.step == self.total_steps or self._agree(due):
                self.save()
                last_save = time.monotonic()
                window_start, window_steps = time.monotonic(), 0
            if stop and self.step < self.total_steps:
                told = Interrupted(f"stopped at step {self.step} of {self.total_steps}, everything is saved")
                raise told if self.fabric.is_global_zero else SystemExit(0)

    def _fit(self, seconds_per_step: float, validate_every: int) -> None:
        """Choose the number of steps so that training and scoring end within the budget; rank 0 decides for all."""
        assert self.budget is not None
        spent = self.spent + time.monotonic() - self._started
        per_step = seconds_per_step + self._scoring_seconds / validate_every
        left = max(0.0, self.budget * 0.97 - spent - 2 * self._scoring_seconds)
        steps = torch.tensor(self.step + max(1, int(left / per_step)), device=self.fabric.device)
        self.total_steps = int(self.fabric.broadcast(steps))
        self.fitted = True
        if not self.fabric.is_global_zero:
            return
        epochs = self.total_steps / self.loader.steps_per_epoch
        self.console.print(f"time budget {self.config.time_budget}: {seconds_per_step * 1000:.0f} ms a step, "
                           f"{self.total_steps} steps = {epochs:.2f} epochs", highlight=False)  # fmt: skip

    def _now(self) -> float:
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

    def _log(self, loss: float, learning_rate: float, speed: float) -> None:
        if self.run is None:
            return
        values = {"loss": loss, "learning_rate": learning_rate, "images_per_second": round(speed, 1)}
        self.run.log("train", step=self.step, epoch=round(self.epoch, 4), **values)
        self._tensorboard(values)

    def _score(self, progress: _Bar) -> None:
        with progress.paused():
            scores = on_first(self.fabric, lambda: self.validate(self))
        if self.run is not None and scores:
            self.run.log("validation", step=self.step, epoch=round(self.epoch, 4), **scores)
            self._tensorboard(scores)
            told = ", ".join(f"{name.replace('_', ' ')} {value:.3f}" for name, value in scores.items())
            self.console.print(f"epoch {self.epoch:.3g}: {told}", highlight=False)

    def _tensorboard(self, values: dict[str, float]) -> None:
        if not hasattr(self, "_writer"):
            from torch.utils.tensorboard import SummaryWriter

            assert self.run is not None
            self._writer = SummaryWriter(str(self.run.path / "tensorboard"), purge_step=self.step)
        for name, value in values.items():
            self._writer.add_scalar(name, value, self.step)
        self._writer.flush()

    def _report(self, batch: Batch) -> None:
        for skipped in batch.skipped:
            self.skip(skipped)

    def skip(self, skipped: Skipped) -> None:
        """List an image that cannot be used.

        Raises: Refusal under --strict.
        """
        if self.strict:
            refuse_skipped(skipped)
        if self.run is not None:
            self.run.skip(*skipped)

    # ---- stopping ----------------------------------------------------------------------------------------------------

    def _ask_to_stop(self, number: int, _: Any) -> None:
        if self._interrupt is not None and number == signal.SIGINT:
            raise KeyboardInterrupt
        self._interrupt = number
        if self.fabric.is_global_zero:
            print(f"\n{signal.Signals(number).name}: finishing this step and saving …", file=sys.stderr)

    def _stop_asked(self) -> bool:
        return self._agree(self._interrupt is not None)

    def _agree(self, mine: bool) -> bool:
        """True on every rank as soon as it is true on one; asked only every few steps where there are several."""
        if self.fabric.world_size == 1:
            return mine
        if self.step % min(5, self.config.log_every_steps):  # SLURM gives half a minute between SIGTERM and SIGKILL
            return False
        return _most(self.fabric, float(mine)) > 0

    def _progress(self) -> _Bar:
        return _Bar(self.console, self)


class _Bar:
    """A live bar on a terminal, a line every half minute elsewhere."""

    def __init__(self, console: Console, training: Training):
        self.console = console
        self.live = console.is_terminal and training.fabric.is_global_zero
        self.last_line = time.monotonic()
        if self.live:
            columns = (TextColumn("epoch {task.fields[epoch]}"), BarColumn(), TextColumn("{task.fields[told]}"))
            self.progress = Progress(*columns, console=console)
            self.task = self.progress.add_task(
                "", total=training.total_steps, completed=training.step, epoch="0", told=""
            )

    def __enter__(self) -> _Bar:
        if self.live:
            self.progress.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self.live:
            self.progress.stop()

    def paused(self) -> _Paused:
        return _Paused(self)

    def update(self, training: Training, loss: float, speed: float) -> None:
        steps_left = training.total_steps - training.step
        left = steps_left * training.loader.batch_size / max(speed, 1e-9)
        epochs = training.total_steps / training.loader.steps_per_epoch
        told = f"loss {loss:.4f} · {speed:.0f} images/s · {_clock(left)} left"
        if self.live:
            self.progress.update(
                self.task,
                total=training.total_steps,
                completed=training.step,
                epoch=f"{training.epoch:.1f}/{epochs:.4g}",
                told=told,
            )
        elif training.fabric.is_global_zero and (time.monotonic() - self.last_line > 30 or steps_left == 0):
            self.last_line = time.monotonic()
            self.console.print(f"epoch {training.epoch:.2f}/{epochs:.4g} · {told}", highlight=False)


class _Paused:
    """Scoring shows a bar of its own; two live bars at once garble a terminal."""

    def __init__(self, bar: _Bar):
        self.bar = bar

    def __enter__(self) -> None:
        if self.bar.live:
            self.bar.progress.stop()

    def __exit__(self, *_: object) -> None:
        if self.bar.live:
            self.bar.progress.start()


def refuse_skipped(skipped: Skipped) -> NoReturn:
    raise Refusal(
        f"--strict expected every image to be usable, got {skipped.id}: {skipped.kind} ({skipped.detail}): "
        "mend or remove it, or leave out --strict"
    )


def _check_parts(images: int, parts: int) -> None:
    if parts < 1:
        raise Refusal(f"--accumulate expected at least 1, got {parts}: raise it")
    if images // parts < 2:
        raise Refusal(f"--accumulate expected parts of at least 2 images (batch norm needs more than one), got "
                      f"{images} images a process in {parts} parts: change it or --batch-size")  # fmt: skip


def _clock(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes}:{rest:02d}"
