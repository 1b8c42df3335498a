"""A time budget: how many steps of the measured speed, and how many scorings, end within it."""

from __future__ import annotations

import re

from compress_ssl.refusal import Refusal

CALIBRATION_STEPS = 12  # timed to fit a schedule into a time budget, after 3 that warm caches and kernels
WARM_UP_STEPS = 3


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


def steps_that_fit(left: float, *, seconds_per_step: float, scoring_seconds: float, score_every: int) -> int:
    """Steps that end within `left` seconds, with a score every so many steps and two more at the end; one at least."""
    per_step = seconds_per_step + scoring_seconds / score_every
    return max(1, int(max(0.0, left - 2 * scoring_seconds) / per_step))


class Speed:
    """Seconds of each of the first steps, until there are enough to fit a schedule."""

    def __init__(self) -> None:
        self._seconds: list[float] = []

    def add(self, seconds: float) -> None:
        self._seconds.append(seconds)

    @property
    def known(self) -> bool:
        return len(self._seconds) == WARM_UP_STEPS + CALIBRATION_STEPS

    @property
    def seconds_per_step(self) -> float:
        return sum(self._seconds[WARM_UP_STEPS:]) / CALIBRATION_STEPS
