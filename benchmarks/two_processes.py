"""Images a second of two processes with one core each, over one process on one core: what several processes lose.

    python benchmarks/two_processes.py          ResNet-50 -> ResNet-18 at 224 pixels, B = 16 each
    python benchmarks/two_processes.py --student compress/resnet10_small_w16 --teacher compress/resnet18_small_w32 \\
        --size 32 --batch-size 128                                      small models: the exchange weighs most

Every process has a core and one thread of its own, B images in every step and the very `Step` of a training: gradients
reduced, keys and targets gathered into everybody's bank. Random pictures in memory, full random banks. One and two
processes take turns. Also shown: one process while the other core is kept busy by the same work of a stranger, which
shows how much of the loss is the machine's own (memory, clock), and none of ours.
"""

from __future__ import annotations

import argparse
import os
import statistics
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import torch

from compress_ssl import objectives, optim
from compress_ssl.distill import Step
from compress_ssl.encoder import open_encoder
from compress_ssl.hardware import HardwareConfig, launch
from compress_ssl.loader import Batch
from compress_ssl.momentum import Momentum
from compress_ssl.optim import OptimizerConfig
from compress_ssl.student import Student
from compress_ssl.teacher import LiveTeacher
from compress_ssl.waits import Waits, sentence

RANKS = {"one": 1, "one beside a stranger": 1, "two": 2}


class Pictures:
    """Images known by their ids only."""

    name, classes = "noise:train", ()

    def __init__(self, count: int):
        self.ids, self.labels = tuple(map(str, range(count))), np.full(count, -1)

    def __len__(self) -> int:
        return len(self.ids)


def work(options: argparse.Namespace) -> None:
    """One process of those that are measured: prints images a second of its own, each step once."""
    torch.set_num_threads(1)
    fabric = launch(HardwareConfig(accelerator="cpu", precision="32"), seed=0)
    teacher_encoder = open_encoder(f"{options.teacher}@random", weights="random", size=options.size)
    encoder = open_encoder(f"{options.student}@random", weights="random", size=options.size).train()
    images = Pictures(options.batch_size)
    teacher = LiveTeacher(teacher_encoder, images, device=fabric.device, workers=0, check="later")  # type: ignore[arg-type]
    module = objectives.find("compress_2q")
    objective = module.Objective(
        module.Config(bank_size=options.bank_size, start="random"),
        width=encoder.width,
        target_width=teacher.width,
        images=options.bank_size,
    )
    student = Student(encoder).train().to(memory_format=torch.channels_last)
    optimizer = optim.optimizer(student.parameters(), OptimizerConfig())
    step = Step(fabric, teacher, student, Momentum(student, objective.momentum), objective, optimizer)
    shape = (options.batch_size, 3, options.size, options.size)
    generator = torch.Generator().manual_seed(fabric.global_rank)
    batch = Batch(torch.randint(0, 256, shape, dtype=torch.uint8, generator=generator),
                  torch.arange(options.batch_size), []).to(fabric.device)  # fmt: skip
    waits, seconds = Waits(fabric.device), []
    for turn in range(options.times + 2):
        waits.start()
        start = time.perf_counter()
        step(batch, waits)
        teacher.settle(wait=True)
        seconds.append(time.perf_counter() - start)
        if turn < 2:
            waits.read()
    found = [options.batch_size / second for second in seconds[2:]]
    print("rates", *(f"{one:.4f}" for one in found), flush=True)
    print(sentence(waits.read()), flush=True)


def started(*, rank: int, ranks: int, port: int) -> subprocess.Popen[str]:
    """A process on the core of its rank, as torchrun would start it."""
    variables = {"OMP_NUM_THREADS": "1"}
    if ranks > 1:
        variables |= {"TORCHELASTIC_RUN_ID": "bench", "LOCAL_WORLD_SIZE": str(ranks), "WORLD_SIZE": str(ranks)}
        variables |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "GROUP_RANK": "0"}
        variables |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    core = sorted(os.sched_getaffinity(0))[rank]
    return subprocess.Popen(
        [sys.executable, __file__, "--work", *sys.argv[1:]],
        env={**os.environ, **variables},
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
        preexec_fn=lambda: os.sched_setaffinity(0, {core}),
    )


def measured(name: str, port: int) -> tuple[list[float], str]:
    """Images a second of all measured processes together, each step, and what the first one waited for."""
    ranks = RANKS[name]
    processes = [started(rank=rank, ranks=ranks, port=port) for rank in range(ranks)]
    if name == "one beside a stranger":
        processes.append(started(rank=1, ranks=1, port=port))
    told = [process.communicate()[0] for process in processes]
    rates = [[float(word) for word in one.splitlines()[-2].split()[1:]] for one in told[:ranks]]
    return [sum(step) for step in zip(*rates, strict=True)], told[0].splitlines()[-1]


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--teacher", default="torchvision/resnet50")
    parser.add_argument("--student", default="torchvision/resnet18")
    parser.add_argument("--size", type=int, default=224)
    parser.add_argument("--batch-size", type=int, default=16, help="images a process")
    parser.add_argument("--bank-size", type=int, default=16_384)
    parser.add_argument("--times", type=int, default=5, help="steps measured in each turn, after two that warm up")
    parser.add_argument("--turns", type=int, default=2)
    parser.add_argument("--work", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.work:
        work(options)
        return
    if len(os.sched_getaffinity(0)) < 2:
        raise SystemExit("expected two cores, got one: the comparison needs both")
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    cpu = next(line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    print(f"{options.teacher} -> {options.student} at {options.size}, B = {options.batch_size} a process, "
          f"K = {options.bank_size}; {cpu}, torch {torch.__version__}")  # fmt: skip
    rates: dict[str, list[float]] = {name: [] for name in RANKS}
    waits = {}
    for turn in range(options.turns):
        for number, name in enumerate(RANKS):
            found, waits[name] = measured(name, 29500 + (os.getpid() + 3 * turn + number) % 2000)
            rates[name] += found
    alone = statistics.median(rates["one"])
    print(f"{'processes':24}{'n':>4}  {'images/s: median (min – max)':34}{'over one':>9}")
    for name, found in rates.items():
        median = statistics.median(found)
        told = f"{median:8.2f}  ({min(found):.2f} – {max(found):.2f})"
        print(f"{name:24}{len(found):4}  {told:34}{median / alone:8.2f}x  {waits[name]}")


if __name__ == "__main__":
    main()
