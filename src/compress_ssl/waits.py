"""What a step waits for: its time by part, measured between marks.

`waits.lap("student")` gives the time since the mark before it to the student. On a CPU that is the wall clock. On a
GPU each mark is an event in the device's queue, read once it has passed: measuring never makes the host wait, and what
the host does meanwhile does not count. So `data` is the time in which the device had nothing to compute on.
"""

from __future__ import annotations

import time

import torch

PARTS = ("data", "teacher", "student", "momentum", "objective", "optimizer")


class Waits:
    """Laps of the steps since the last reading."""

    def __init__(self, device: torch.device):
        self._on_gpu = device.type == "cuda"
        self._seconds: dict[str, float] = {}
        self._pending: list[tuple[str, torch.cuda.Event, torch.cuda.Event]] = []
        self._mark: torch.cuda.Event | float | None = None

    def start(self) -> None:
        """What came before belongs to no part: logging, saving, scoring."""
        self._mark = self._now()

    def lap(self, part: str) -> None:
        """The time since the last mark was this part's."""
        now, before = self._now(), self._mark
        self._mark = now
        if isinstance(before, float) and isinstance(now, float):
            self._seconds[part] = self._seconds.get(part, 0.0) + now - before
        elif isinstance(before, torch.cuda.Event) and isinstance(now, torch.cuda.Event):
            self._pending.append((part, before, now))

    def read(self) -> dict[str, float]:
        """Seconds of each part since the last reading, in the order of PARTS; laps still under way come in the next."""
        while self._pending and self._pending[0][2].query():
            part, before, after = self._pending.pop(0)
            self._seconds[part] = self._seconds.get(part, 0.0) + before.elapsed_time(after) / 1000
        found, self._seconds = self._seconds, {}
        rest = [part for part in found if part not in PARTS]
        return {part: found[part] for part in (*PARTS, *rest) if part in found}

    def _now(self) -> torch.cuda.Event | float:
        if not self._on_gpu:
            return time.perf_counter()
        event = torch.cuda.Event(enable_timing=True)
        event.record()
        return event


def shares(seconds: dict[str, float]) -> dict[str, float]:
    """Each part's share of all of them, in [0, 1]; empty without any time."""
    whole = sum(seconds.values())
    return {part: value / whole for part, value in seconds.items()} if whole > 0 else {}


def sentence(seconds: dict[str, float]) -> str:
    """The parts that take 1 % or more, longest first.

    >>> sentence({"data": 0.001, "teacher": 1.0, "student": 3.0})
    'waits: student 75 %, teacher 25 %'
    """
    found = sorted(shares(seconds).items(), key=lambda item: -item[1])
    return "waits: " + ", ".join(f"{part} {share:.0%}".replace("%", " %") for part, share in found if share >= 0.01)
