"""What a step costs beyond the banks it keeps: ours (views, written after backward) and the paper's way (clones).

    python benchmarks/bank_memory.py            K = 128 000, B = 256, widths 512 and 256: minutes on one core

Extra memory is the highest resident size of the process during a step, less that before it (Linux: /proc/self/status,
its peak reset through /proc/self/clear_refs). Each way runs in a process of its own, so neither profits from pages that
the other has touched. "clones" copies both queues in every step, as the authors' code does.
"""

from __future__ import annotations

import argparse
import ctypes
import multiprocessing
import os
import platform
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import torch
from torch.nn import functional

from compress_ssl.objectives import compress_2q

WAYS = ("views", "clones")
MMAP_THRESHOLD = -3  # M_MMAP_THRESHOLD of malloc.h


def resident(field: str) -> float:
    """MiB of this process: VmRSS now, VmHWM at most since the last `forget_peak`."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(float(line.split()[1]) / 1024 for line in lines if line.startswith(field))


def forget_peak() -> None:
    Path("/proc/self/clear_refs").write_text("5")


def measured(work: Callable[[], object], times: int) -> tuple[list[float], list[float]]:
    """Milliseconds and extra MiB of each of `times` calls, after one that warms up."""
    work()
    milliseconds, extra = [], []
    for _ in range(times):
        forget_peak()
        before, start = resident("VmRSS"), time.perf_counter()
        work()
        milliseconds.append((time.perf_counter() - start) * 1000)
        extra.append(resident("VmHWM") - before)
    return milliseconds, extra


def run(way: str, options: argparse.Namespace) -> dict[str, tuple[list[float], list[float]]]:
    """Both measurements of one way: a step, and of it the writing."""
    # glibc: what is freed goes back to the system at once, however small K is, so that a peak is a peak
    ctypes.CDLL(None).mallopt(MMAP_THRESHOLD, 2**17)
    torch.set_num_threads(options.threads)
    torch.manual_seed(0)
    size, batch = options.bank_size, options.batch_size
    config = compress_2q.Config(bank_size=size, start="random", same_image="keep")
    objective = compress_2q.Objective(
        config, width=options.width, target_width=options.target_width, images=max(size, batch)
    )
    query = functional.normalize(torch.randn(batch, options.width)).requires_grad_()
    target, index = functional.normalize(torch.randn(batch, options.target_width)), torch.arange(batch)
    if way == "views":

        def write() -> None:
            objective.update(query, target, index)

        def step() -> None:
            query.grad = None
            objective(query, target, index).backward()
            write()

    else:
        queues = [objective.bank.anchors("key"), objective.bank.anchors("target")]
        position = 0

        def write() -> list[torch.Tensor]:
            nonlocal position
            copies = [queue.clone() for queue in queues]
            places = torch.arange(position, position + batch) % size
            for queue, rows in zip(queues, (query.detach(), target), strict=True):
                queue[places] = rows
            position = (position + batch) % size
            return copies

        def step() -> None:
            query.grad = None
            keys, targets = write()
            log_q = functional.log_softmax(query @ keys.T / config.temperature, dim=1)
            p = functional.softmax(target @ targets.T / config.temperature, dim=1)
            functional.kl_div(log_q, p, reduction="batchmean").backward()

    return {"step": measured(step, options.times), "write": measured(write, max(options.times, 15))}


def spread(values: list[float]) -> str:
    return f"{statistics.median(values):9.1f}  ({min(values):.1f} – {max(values):.1f})"


def processor() -> str:
    cpu = Path("/proc/cpuinfo")
    lines = cpu.read_text().splitlines() if cpu.exists() else []
    return next(
        (line.partition(":")[2].strip() for line in lines if line.startswith("model name")), platform.processor()
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--bank-size", type=int, default=128_000)
    parser.add_argument("--batch-size", type=int, default=256)
    parser.add_argument("--width", type=int, default=512, help="of the student's rows")
    parser.add_argument("--target-width", type=int, default=256, help="of the teacher's rows")
    parser.add_argument("--times", type=int, default=7, help="steps measured; writes at least 15")
    parser.add_argument("--threads", type=int, default=1)
    options = parser.parse_args()
    bank = options.bank_size * (options.width + options.target_width) * 4 / 2**20
    similarities = options.bank_size * options.batch_size * 4 / 2**20
    print(f"K = {options.bank_size}, B = {options.batch_size}, widths {options.width} and {options.target_width}: "
          f"banks of {bank:.0f} MiB, one matrix of similarities {similarities:.0f} MiB")  # fmt: skip
    print(f"{processor()}, {options.threads} thread(s) of {os.cpu_count()} cores, torch {torch.__version__}")
    print(f"{'':8}{'':8}{'n':>4}  {'ms: median (min – max)':38}{'extra MiB: median (min – max)'}")
    with multiprocessing.get_context("spawn").Pool(1, maxtasksperchild=1) as pool:
        for way in WAYS:
            for what, (milliseconds, extra) in pool.apply(run, (way, options)).items():
                print(f"{way:8}{what:8}{len(extra):4}  {spread(milliseconds):38}{spread(extra)}")


if __name__ == "__main__":
    main()
