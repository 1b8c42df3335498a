"""The objective's forward and backward against the whole bank: ours, the paper's way, and the floor under both.

    python benchmarks/objective.py                                   K = 128 000, B = 256, 2048 / 512
    python benchmarks/objective.py --target-width 8192 --width 2048
    python benchmarks/objective.py --growth                          time and memory up to K = 1 000 000
    python benchmarks/objective.py --device cuda

"paper" clones both queues and keeps K x B similarities, as the authors' code does. The floor is what the products alone
must cost, 2 B K (D_t + 2 D_s) operations at the best rate that a product of the same shape reached in the same run.
Every round runs each way once, so that a busy machine is busy for all of them. Extra memory is measured in a process of
its own for each way (CPU: highest resident size less that before, glibc told to give freed memory back; CUDA: peak
allocation less that before).
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
from typing import Any

import torch
from torch.nn import functional

from compress_ssl.bank import DTYPES, Bank
from compress_ssl.similarity import anchor_kl

MMAP_THRESHOLD = -3  # M_MMAP_THRESHOLD of malloc.h
TEMPERATURE = 0.04


def resident(field: str) -> float:
    """MiB of this process: VmRSS now, VmHWM at most since the last `forget_peak`."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(float(line.split()[1]) / 1024 for line in lines if line.startswith(field))


def forget_peak() -> None:
    Path("/proc/self/clear_refs").write_text("5")


def unit(count: int, width: int, device: str) -> torch.Tensor:
    return functional.normalize(torch.randn(count, width, device=device))


def filled(size: int, options: argparse.Namespace, dtype: str) -> Bank:
    widths = {"key": options.width, "target": options.target_width}
    bank = Bank(size, widths, device=options.device, dtype=DTYPES[dtype])
    for start in range(0, size, 8192):
        count = min(8192, size - start)
        rows = {name: unit(count, width, options.device) for name, width in widths.items()}
        bank.write(torch.arange(start, start + count, device=options.device), **rows)
    return bank


def way(name: str, size: int, options: argparse.Namespace, banks: dict[str, Bank]) -> Callable[[], Any]:
    """One step's work as a function: forward and backward; `banks` are kept for the other ways."""
    dtype, _, path = name.partition(" ")
    kept = "float32" if dtype == "paper" else dtype
    bank = banks.setdefault(kept, banks.get(kept) or filled(size, options, kept))
    query = unit(options.batch_size, options.width, options.device).requires_grad_()
    target = unit(options.batch_size, options.target_width, options.device)
    index = torch.arange(options.batch_size, device=options.device)

    def paper() -> torch.Tensor:
        keys, targets = (bank.anchors(side).clone().detach() for side in ("key", "target"))
        log_q = functional.log_softmax(query @ keys.T / TEMPERATURE, dim=1)
        p = functional.softmax(target @ targets.T / TEMPERATURE, dim=1)
        loss = functional.kl_div(log_q, p, reduction="batchmean")
        loss.backward()
        return loss

    def ours() -> torch.Tensor:
        loss = anchor_kl(
            query,
            bank.anchors("key"),
            target,
            bank.anchors("target"),
            temperature=TEMPERATURE,
            index=index,
            anchor_index=bank.index,
            path=path or "auto",
        )
        loss.backward()
        return loss

    return paper if dtype == "paper" else ours


def seconds(work: Callable[[], Any], device: str) -> float:
    if device == "cuda":
        torch.cuda.synchronize()
    start = time.perf_counter()
    work()
    if device == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter() - start


def extra_memory(name: str, size: int, options: argparse.Namespace) -> float:
    """MiB that a step takes beyond what lies there before it; to be called in a process of its own."""
    if options.device != "cuda":
        ctypes.CDLL(None).mallopt(MMAP_THRESHOLD, 2**17)
    torch.set_num_threads(options.threads)
    work = way(name, size, options, {})
    work()
    if options.device == "cuda":
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        work()
        torch.cuda.synchronize()
        return (torch.cuda.max_memory_allocated() - before) / 2**20
    forget_peak()
    before = resident("VmRSS")
    work()
    return resident("VmHWM") - before


def product_rates(options: argparse.Namespace) -> dict[str, float]:
    """operations/s of products shaped like the teacher's similarities, by dtype, the best of some."""
    batch, width, count = options.batch_size, options.target_width, 4096
    rates = {}
    for name, dtype in (("float32", torch.float32), ("bfloat16", torch.bfloat16)):
        anchors = torch.randn(count, width, device=options.device).to(dtype)
        rows = torch.randn(batch, width, device=options.device).to(dtype)
        times = [seconds(lambda a=anchors, r=rows: a @ r.T, options.device) for _ in range(12)]  # type: ignore[misc]
        rates[name] = 2 * batch * width * count / min(times[2:])
    return rates


def spread(values: list[float]) -> str:
    return f"{statistics.median(values):8.0f}  ({min(values):.0f} – {max(values):.0f})"


def hardware(options: argparse.Namespace) -> str:
    if options.device == "cuda":
        return f"{torch.cuda.get_device_name()}, torch {torch.__version__}"
    cpu = Path("/proc/cpuinfo")
    lines = cpu.read_text().splitlines() if cpu.exists() else []
    named = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    kind = next(named, platform.processor())
    return f"{kind}, {options.threads} thread(s) of {os.cpu_count()} cores, torch {torch.__version__}"


def compare(options: argparse.Namespace) -> None:
    size = options.bank_size
    names = ["paper", *DTYPES]
    if options.device == "cuda":
        names += [f"{name} fused" for name in DTYPES]
    print(f"forward + backward, B = {options.batch_size}, K = {size}, widths {options.target_width} / {options.width}")
    print(hardware(options))
    banks: dict[str, Bank] = {}
    works = {name: way(name, size, options, banks) for name in names}
    times: dict[str, list[float]] = {name: [] for name in names}
    rates: dict[str, list[float]] = {}
    for _ in range(options.times + 1):
        for name, rate in product_rates(options).items():
            rates.setdefault(name, []).append(rate)
        for name, work in works.items():
            times[name].append(seconds(work, options.device) * 1000)
    operations = 2 * options.batch_size * size * (options.target_width + 2 * options.width)
    best = {name: max(found) for name, found in rates.items()}
    works.clear()
    banks.clear()
    context = multiprocessing.get_context("spawn")
    print(f"{'':16}{'n':>3}  {'ms: median (min – max)':32}{'speed-up':>8}  {'of the floor':>12}  {'extra MiB':>10}")
    paper = statistics.median(times["paper"][1:])
    floor = operations / max(best.values()) * 1000
    for name in names:
        with context.Pool(1) as pool:
            extra = pool.apply(extra_memory, (name, size, options))
        median = statistics.median(times[name][1:])  # the first warms up
        print(f"{name:16}{options.times:3}  {spread(times[name][1:]):32}{paper / median:7.2f}x  {median / floor:11.2f}x"
              f"  {extra:10.1f}")  # fmt: skip
    for name, rate in best.items():
        print(f"products alone, {name}: {rate / 1e9:.0f} GFLOP/s, so at least {operations / rate * 1000:.0f} ms")
    print("writing a batch into the bank, ms:")
    for dtype in DTYPES:
        for some in (size // 16, size):
            bank = filled(some, options, dtype)
            rows = {"key": unit(options.batch_size, options.width, options.device),
                    "target": unit(options.batch_size, options.target_width, options.device)}  # fmt: skip
            index = torch.arange(options.batch_size, device=options.device)
            found = [seconds(lambda b=bank, i=index, r=rows: b.write(i, **r), options.device) * 1000 for _ in range(51)]  # type: ignore[misc]
            print(f"  {dtype:9} K = {some:7}  n 50  {statistics.median(found[1:]):.2f} "
                  f"({min(found[1:]):.2f} – {max(found[1:]):.2f})")  # fmt: skip


def grow(options: argparse.Namespace) -> None:
    print(f"growth with K, B = {options.batch_size}, widths {options.target_width} / {options.width}")
    print(hardware(options))
    context = multiprocessing.get_context("spawn")
    for dtype in ("bfloat16", "int8"):
        for size in options.sizes:
            with context.Pool(1) as pool:
                found, peak = pool.apply(timed_alone, (dtype, size, options))
            print(f"{dtype:9} K = {size:8}  n {len(found)}  ms {spread(found)}  per 1000 anchors "
                  f"{statistics.median(found) / size * 1000:.3f} (min {min(found) / size * 1000:.3f})  "
                  f"whole process {peak:.2f} GiB")  # fmt: skip


def timed_alone(dtype: str, size: int, options: argparse.Namespace) -> tuple[list[float], float]:
    torch.set_num_threads(options.threads)
    work = way(dtype, size, options, {})
    found = [seconds(work, options.device) * 1000 for _ in range(options.times + 1)][1:]
    peak = torch.cuda.max_memory_allocated() / 2**30 if options.device == "cuda" else resident("VmHWM") / 1024
    return found, peak


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--bank-size", type=int, default=128_000)
    parser.add_argument("--batch-size", type=int, default=256)
    parser.add_argument("--width", type=int, default=512, help="of the student's rows")
    parser.add_argument("--target-width", type=int, default=2048, help="of the teacher's rows")
    parser.add_argument("--times", type=int, default=7, help="rounds, after one that warms up")
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    parser.add_argument("--device", default="cpu", choices=("cpu", "cuda"))
    parser.add_argument("--growth", action="store_true", help="measure how time and memory grow with K instead")
    parser.add_argument("--sizes", type=int, nargs="+", default=[125_000, 250_000, 500_000, 1_000_000])
    options = parser.parse_args()
    torch.manual_seed(0)
    torch.set_num_threads(options.threads)
    (grow if options.growth else compare)(options)


if __name__ == "__main__":
    main()
