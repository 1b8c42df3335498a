"""Jobs on devices: one long-lived process a device, or this process alone; each takes one job after the other.

Starting Python and torch costs 10 s: a process keeps its data and teacher open from job to job. On CUDA a process sees
its own device only. Of what a job prints nothing reaches the terminal; it goes to the job's log.
"""

from __future__ import annotations

import contextlib
import gc
import multiprocessing
import os
import signal
import sys
import traceback
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from multiprocessing.connection import Connection, wait
from pathlib import Path
from typing import Any, NamedTuple

import torch

from compress_ssl.refusal import Refusal
from compress_ssl.training import Interrupted

PATIENCE = 600  # seconds that interrupted processes have to save what they are at


class Job(NamedTuple):
    """A method of the bench with its argument.

    log: what it prints goes there.
    wait: for whoever is at it in another command; the method must take it.
    """

    method: str
    arguments: tuple[Any, ...]
    log: Path
    wait: bool = False


class Elsewhere(Exception):
    """Raised by a job that another command is at."""


@dataclass(frozen=True)
class Outcome:
    """What a job returned, or why it did not: `trouble` in a sentence; `elsewhere`, another command is at it."""

    value: Any = None
    trouble: str | None = None
    stopped: bool = False
    elsewhere: bool = False


class Crew:
    """`with Crew(bench, devices) as crew: for number, outcome in crew.do(jobs): …`; the order is that of finishing.

    Args:
        bench: gets its methods called; picklable, with a field `device`.
        devices: cpu, mps, cuda or cuda:N, one for each process; of a single one no process is started.
    """

    def __init__(self, bench: Any, devices: Sequence[str]):
        self.bench, self.devices = bench, list(devices)
        self.workers: list[_Worker | None] = [None] * len(devices)
        self.alone = replace(bench, device=_inside(devices[0])) if len(devices) == 1 else None

    def __enter__(self) -> Crew:
        self._before = signal.signal(signal.SIGTERM, _stop)
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        signal.signal(signal.SIGTERM, self._before)
        started = [worker for worker in self.workers if worker is not None]
        for worker in started:
            worker.dismiss(at_once=kind is not None)
        for worker in started:
            worker.process.join(PATIENCE)
            if worker.process.is_alive():
                worker.process.kill()

    def do(self, jobs: Sequence[Job]) -> Iterator[tuple[int, Outcome]]:
        """Numbers of the jobs with what came of them; a job that fails does not keep others from being done.

        Raises: KeyboardInterrupt once a job was stopped by someone who asked for it.
        """
        if self.alone is not None:
            for number, job in enumerate(jobs):
                outcome = perform(self.alone, job)
                yield number, outcome
                if outcome.stopped:
                    raise KeyboardInterrupt
            return
        waiting = list(enumerate(jobs))[::-1]
        busy: dict[int, int] = {}  # slot -> job
        while waiting or busy:
            for slot in range(len(self.devices)):
                if waiting and slot not in busy:
                    number, job = waiting.pop()
                    self._worker(slot).ask(job)
                    busy[slot] = number
            places = {self._worker(slot).place: slot for slot in busy}
            for place in wait(list(places)):
                slot = places[place]  # type: ignore[index]
                answer = self._worker(slot).answer()
                if answer is None:  # it is gone: killed by the system, or torch ended it
                    code = self._worker(slot).ended()
                    self.workers[slot] = None
                    answer = Outcome(trouble=f"its process ended with {_ending(code)}")
                yield busy.pop(slot), answer
                if answer.stopped:
                    raise KeyboardInterrupt

    def _worker(self, slot: int) -> _Worker:
        worker = self.workers[slot]
        if worker is None:
            threads = _threads(self.devices, slot)
            worker = self.workers[slot] = _Worker(self.bench, self.devices[slot], threads)
        return worker


class _Worker:
    """A process at its device, seen from the one that asks it."""

    def __init__(self, bench: Any, device: str, threads: int | None):
        context = multiprocessing.get_context("spawn")
        self.place, its = context.Pipe()
        inside = replace(bench, device=_inside(device))
        self.process = context.Process(target=serve, args=(inside, its, threads), name=f"benchmark on {device}")
        with _environment(_visible(device)):  # torch reads it when it is imported
            self.process.start()
        its.close()

    def ask(self, job: Job) -> None:
        self.place.send(job)

    def answer(self) -> Outcome | None:
        """None if the process is gone."""
        try:
            return self.place.recv()
        except (EOFError, ConnectionResetError):
            return None

    def ended(self) -> int | None:
        self.process.join(10)
        return self.process.exitcode

    def dismiss(self, *, at_once: bool) -> None:
        """No more jobs; `at_once`: save what is being done, and stop."""
        with contextlib.suppress(OSError):
            self.place.send(None)
        if at_once and self.process.is_alive():
            self.process.terminate()


def serve(bench: Any, place: Connection, threads: int | None) -> None:
    """The life of such a process."""
    if threads is not None:
        torch.set_num_threads(threads)
    signal.signal(signal.SIGINT, _stop)
    signal.signal(signal.SIGTERM, _stop)
    with contextlib.suppress(KeyboardInterrupt, EOFError):
        while (job := place.recv()) is not None:
            outcome = perform(bench, job)
            place.send(outcome)
            if outcome.stopped:
                return


def perform(bench: Any, job: Job) -> Outcome:
    """Do it here, with all that it prints in its log."""
    job.log.parent.mkdir(parents=True, exist_ok=True)
    try:
        with (
            job.log.open("a", encoding="utf-8", buffering=1) as log,
            contextlib.redirect_stdout(log),
            contextlib.redirect_stderr(log),
        ):
            try:
                waiting = {"wait": True} if job.wait else {}
                return Outcome(getattr(bench, job.method)(*job.arguments, **waiting))
            except Elsewhere:
                return Outcome(elsewhere=True)
            except BaseException:
                traceback.print_exc()
                raise
    except (KeyboardInterrupt, Interrupted):
        return Outcome(stopped=True)
    except Refusal as refusal:
        return Outcome(trouble=str(refusal))
    except Exception as trouble:  # told in the table; the whole of it is in the log
        return Outcome(trouble=f"{type(trouble).__name__}: {(str(trouble).splitlines() or [''])[0]}")
    finally:
        _tidy()


def _tidy() -> None:
    """So that the next job finds the process as the first one did: what was compiled, and memory."""
    gc.collect()
    if "torch._dynamo" in sys.modules:
        torch._dynamo.reset()  # it compiles a function for eight models, and then no more
    if torch.cuda.is_initialized():
        torch.cuda.empty_cache()


def _stop(number: int, *_: object) -> None:
    """Once: of Ctrl-C and of the first process's request one may come while the other is obeyed."""
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    if number == signal.SIGTERM or multiprocessing.parent_process() is not None:
        signal.signal(signal.SIGINT, signal.SIG_IGN)
    raise KeyboardInterrupt


def _inside(device: str) -> str:
    """What a process calls its device, of which it sees no other."""
    return device.partition(":")[0]


def _visible(device: str) -> dict[str, str]:
    """Of the GPUs that this process may see, the one of this number."""
    kind, _, number = device.partition(":")
    if kind != "cuda" or not number:
        return {}
    seen = os.environ.get("CUDA_VISIBLE_DEVICES")
    return {"CUDA_VISIBLE_DEVICES": seen.split(",")[int(number)] if seen else number}


def _threads(devices: Sequence[str], slot: int) -> int | None:
    """Of a CPU that several share, each has its part; None: torch's own choice, or the one of OMP_NUM_THREADS."""
    sharing = devices.count("cpu")
    if devices[slot] != "cpu" or sharing < 2 or "OMP_NUM_THREADS" in os.environ:
        return None
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(1, cores // sharing)


@contextlib.contextmanager
def _environment(values: dict[str, str]) -> Iterator[None]:
    before = {name: os.environ.get(name) for name in values}
    os.environ.update(values)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value


def _ending(code: int | None) -> str:
    if code is not None and code < 0:
        name = signal.Signals(-code).name
        return f"{name}, perhaps for want of memory" if name == "SIGKILL" else name
    return f"exit code {code}"
