"""What a step waits for, by name."""

from __future__ import annotations

import time

import pytest
import torch

from compress_ssl import waits
from compress_ssl.waits import Waits, sentence, shares

CPU = torch.device("cpu")


class Clock:
    now = 0.0

    def perf_counter(self) -> float:
        return self.now


def test_time_goes_to_the_part_that_took_it(monkeypatch: pytest.MonkeyPatch) -> None:
    """Someone would buy a faster disk for a step that waits for its teacher."""
    clock = Clock()
    monkeypatch.setattr(waits, "time", clock)
    found = Waits(CPU)
    for _ in range(3):
        clock.now += 100  # logging, saving, scoring
        found.start()
        for part, seconds in (("data", 1), ("teacher", 2), ("student", 3), ("objective", 5), ("student", 7)):
            clock.now += seconds
            found.lap(part)
    seconds = found.read()
    assert seconds == {"data": 3, "teacher": 6, "student": 30, "objective": 15}
    assert list(seconds) == ["data", "teacher", "student", "objective"], "in the order of the step"
    assert found.read() == {}, "each line of the log tells of its own steps"
    assert shares(seconds)["student"] == pytest.approx(30 / 54)
    assert sum(shares(seconds).values()) == pytest.approx(1)
    assert sentence(seconds) == "waits: student 56 %, objective 28 %, teacher 11 %, data 6 %"


def test_a_run_without_a_step_waits_for_nothing() -> None:
    """A division by zero in the last line of a finished run."""
    assert shares({}) == {}
    assert shares({"data": 0.0}) == {}
    found = Waits(CPU)
    found.lap("data")
    assert found.read() == {}, "no mark before it"


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_on_a_gpu_the_device_s_own_time_counts() -> None:
    """Launching kernels takes microseconds on the host: every part would seem to cost nothing."""
    device = torch.device("cuda")
    found, large = Waits(device), torch.randn(4096, 4096, device=device)
    for _ in range(2):
        found.start()
        for _ in range(20):
            large @ large
        found.lap("student")
        time.sleep(0.0)
        found.lap("optimizer")
    torch.cuda.synchronize()
    seconds = found.read()
    assert seconds["student"] > 100 * seconds["optimizer"]
