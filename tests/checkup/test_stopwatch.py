"""A speed is what a clock says, and measuring it ends."""

from __future__ import annotations

import itertools
import math

import pytest
import torch

from compress_ssl.checkup import stopwatch
from compress_ssl.checkup.stopwatch import timed

CPU = torch.device("cpu")


@pytest.fixture
def clock(monkeypatch):
    """A clock that stands unless it is told how long something takes."""
    now = [0.0]
    monkeypatch.setattr(stopwatch.time, "perf_counter", lambda: now[0])
    return now


def test_a_steady_speed_is_known_before_the_time_is_up(clock):
    """A minute for what a second tells is a minute nobody gets back; the slow first lap does not count."""
    durations = itertools.chain([5.0], itertools.repeat(0.5))

    def lap() -> int:
        clock[0] += next(durations)
        return 8

    found = timed(lap, seconds=60, device=CPU)
    assert found.images_per_second == 16
    assert found.error == 0
    assert clock[0] < 30


def test_an_unsteady_speed_takes_all_its_time(clock):
    """Ended too early, the speed would be luck; and its error is told."""
    durations = itertools.cycle([0.5, 3.0])

    def lap() -> int:
        clock[0] += next(durations)
        return 7

    found = timed(lap, seconds=20, device=CPU)
    assert 20 <= clock[0] < 24
    assert found.images_per_second == pytest.approx(7 / 1.75, rel=0.1)
    assert found.error > 0.02


def test_what_takes_too_long_is_done_once(clock):
    """The step of a huge model must not be done five times; it may take longer than all the time there is."""

    def lap() -> int:
        clock[0] += 100
        return 3

    found = timed(lap, seconds=10, device=CPU)
    assert (found.images_per_second, found.laps) == (0.03, 1)
    assert math.isnan(found.error)
