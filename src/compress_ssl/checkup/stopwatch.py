"""How many images a second something does: it is run again and again until that is known, or the time is up."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import torch

ENOUGH = 0.02  # relative standard error at which a speed is known
LEAST_LAPS = 5  # laps before that is asked


class Speed(NamedTuple):
    """images_per_second over `laps` laps in `seconds`; error: relative standard error, NaN of a single lap."""

    images_per_second: float
    laps: int
    seconds: float
    error: float


def timed(lap: Callable[[], int], *, seconds: float, device: torch.device, warm_up: int = 1) -> Speed:
    """Run `lap` until its speed is known to 2 %, for `seconds` at most; but once, however long it takes.

    Args:
        lap: does its work and returns how many images that were.
        warm_up: laps that do not count, unless these alone use up the time.
    """

    def timed_lap() -> tuple[int, float]:
        start = time.perf_counter()
        images = lap()
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        return images, time.perf_counter() - start

    start = time.perf_counter()
    laps = [timed_lap()]
    while time.perf_counter() - start < seconds:
        laps.append(timed_lap())
        counted = laps[warm_up:]
        spent = sum(each for _, each in counted)
        if len(counted) >= LEAST_LAPS and spent > seconds / 4 and _error(counted) < ENOUGH:
            break
    counted = laps[warm_up:] or laps[-1:]
    spent = sum(each for _, each in counted)
    return Speed(sum(images for images, _ in counted) / spent, len(counted), spent, _error(counted))


def _error(laps: list[tuple[int, float]]) -> float:
    if len(laps) < 2:
        return math.nan
    times = np.array([spent / images for images, spent in laps])
    return float(times.std(ddof=1) / times.mean() / math.sqrt(len(times)))
