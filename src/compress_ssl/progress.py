"""How far a training is, for whoever watches: a live bar on a terminal, a line every half minute elsewhere."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn

SECONDS_BETWEEN_LINES = 30


class Bar:
    """Shows nothing at all where `shown` is false: in all processes but the first."""

    def __init__(self, console: Console, *, shown: bool, step: int, total_steps: int):
        self.console, self.shown = console, shown
        self.live = console.is_terminal and shown
        self.last_line = time.monotonic()
        if self.live:
            columns = (TextColumn("epoch {task.fields[epoch]}"), BarColumn(), TextColumn("{task.fields[told]}"))
            self.progress = Progress(*columns, console=console)
            self.task = self.progress.add_task("", total=total_steps, completed=step, epoch="0", told="")

    def __enter__(self) -> Bar:
        if self.live:
            self.progress.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self.live:
            self.progress.stop()

    @contextmanager
    def paused(self) -> Iterator[None]:
        """Scoring shows a bar of its own; two live bars at once garble a terminal."""
        if self.live:
            self.progress.stop()
        try:
            yield
        finally:
            if self.live:
                self.progress.start()

    def update(self, *, step: int, total_steps: int, steps_per_epoch: int, seconds_left: float, told: str) -> None:
        epoch, epochs = step / steps_per_epoch, total_steps / steps_per_epoch
        told = f"{told} · {_clock(seconds_left)} left"
        if self.live:
            self.progress.update(
                self.task, total=total_steps, completed=step, epoch=f"{epoch:.1f}/{epochs:.4g}", told=told
            )
        elif self.shown and (time.monotonic() - self.last_line > SECONDS_BETWEEN_LINES or step == total_steps):
            self.last_line = time.monotonic()
            self.console.print(f"epoch {epoch:.2f}/{epochs:.4g} · {told}", highlight=False)


def _clock(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes}:{rest:02d}"
