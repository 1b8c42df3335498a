"""Jobs on devices: who does what, and what becomes of the others when one fails or its process dies."""

from __future__ import annotations

import importlib
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from compress_ssl.matrix.crew import Crew, Job, Outcome

BENCH = """
import os, signal, sys
from dataclasses import dataclass

from compress_ssl.matrix.crew import Elsewhere


@dataclass(frozen=True)
class Bench:
    device: str

    def nothing(self):
        pass

    def shared(self, word, *, wait=False):
        if not wait:
            raise Elsewhere
        return word

    def where(self):
        return self.device, os.environ.get("CUDA_VISIBLE_DEVICES")

    def say(self, word):
        print(word)
        print(word, file=sys.stderr)
        return word

    def fail(self):
        raise ValueError("no good\\nmore of it")

    def die(self):
        os.kill(os.getpid(), signal.SIGKILL)

    def stop(self):
        os.kill(os.getpid(), signal.SIGINT)
        signal.pause()
"""


@pytest.fixture
def bench(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """In a module that started processes find, too."""
    (tmp_path / "bench_of_a_test.py").write_text(BENCH)
    monkeypatch.syspath_prepend(tmp_path)
    return importlib.import_module("bench_of_a_test").Bench("none")


def jobs(folder: Path, *asked: tuple[Any, ...]) -> list[Job]:
    return [Job(method, arguments, folder / f"{number}.log") for number, (method, *arguments) in enumerate(asked)]


def test_alone_a_failure_is_told_and_the_next_job_is_done(bench, tmp_path, capfd):
    """A bar in the middle of the table's lines, or a traceback instead of the other rows."""
    with Crew(bench, ["cpu"]) as crew:
        found = dict(crew.do(jobs(tmp_path, ("say", "hello"), ("fail",), ("where",))))
    assert found[0].value == "hello"
    assert found[1].trouble == "ValueError: no good"
    assert found[2].value == ("cpu", None)
    assert (tmp_path / "0.log").read_text() == "hello\nhello\n"
    assert "Traceback" in (tmp_path / "1.log").read_text()
    assert capfd.readouterr() == ("", "")


def test_what_another_command_is_at_is_told_from_what_returns_nothing(bench, tmp_path):
    """A job that has nothing to return would be waited for and done a second time."""
    asked = jobs(tmp_path, ("nothing",), ("shared", "a"))
    with Crew(bench, ["cpu"]) as crew:
        assert dict(crew.do(asked)) == {0: Outcome(), 1: Outcome(elsewhere=True)}
        assert dict(crew.do([asked[1]._replace(wait=True)])) == {0: Outcome("a")}
    assert asked[1].log.read_text() == "", "it is no failure"


def test_processes_see_their_own_device_and_one_that_dies_is_replaced(bench, tmp_path, monkeypatch):
    """Two trainings would share the first GPU; and of a process that the system kills everybody would wait for ever."""
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "4,6")
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    asked = jobs(tmp_path, ("where",), ("die",), ("where",), ("say", "hello"))
    with Crew(bench, ["cuda:1", "cuda:0"]) as crew:
        found = dict(crew.do(asked))
    assert {found[0].value, found[2].value} <= {("cuda", "4"), ("cuda", "6")}
    assert found[0].value == ("cuda", "6")
    assert "SIGKILL" in found[1].trouble
    assert found[3].value == "hello"


@pytest.fixture
def interruptible() -> Iterator[None]:
    """Tests that a shell started in the background find Ctrl-C ignored, and would wait for it for ever."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.mark.usefixtures("interruptible")
def test_who_is_stopped_stops_the_rest(bench, tmp_path):
    """Ctrl-C would end one training and begin the next."""
    with Crew(bench, ["cpu"]) as crew:
        doing = crew.do(jobs(tmp_path, ("say", "a"), ("stop",), ("say", "b")))
        assert [next(doing)[1].stopped, next(doing)[1].stopped] == [False, True]
        with pytest.raises(KeyboardInterrupt):
            next(doing)
    assert not (tmp_path / "2.log").exists()
