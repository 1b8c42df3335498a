"""Images a second of the whole training step, ResNet-50 -> ResNet-18 at 224 pixels, K = 128 000.

    python benchmarks/step.py                   B = 64 on a CPU, 256 on a GPU
    python benchmarks/step.py --compile on      ours through torch.compile

Random pictures, uint8, in memory (reading them is benchmarks/loader.py's), random weights, full random banks. Ours runs
the very `Feed`, teachers and `Step` of a training, copies to the device and look-ups in the stored table included. The
paper's loop is written out here as its code does it: float32, contiguous NCHW, both queues cloned in every step, K x B
logits, the slow copy in train mode; "cached" has the teacher's rows at hand instead. All loops take turns, so that
whatever else the machine does hits all of them.
"""

from __future__ import annotations

import argparse
import contextlib
import copy
import itertools
import os
import platform
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from compress_ssl import compilation, objectives, optim
from compress_ssl.distill import Step
from compress_ssl.embeddings import Embeddings
from compress_ssl.encoder import open_encoder
from compress_ssl.feed import Feed
from compress_ssl.hardware import HardwareConfig, launch
from compress_ssl.loader import Batch
from compress_ssl.momentum import Momentum
from compress_ssl.optim import OptimizerConfig
from compress_ssl.run_folder import plain
from compress_ssl.stored_teacher import StoredTeacher
from compress_ssl.student import Student
from compress_ssl.table_writer import write_embeddings
from compress_ssl.teacher import LiveTeacher
from compress_ssl.transforms import Preprocessing
from compress_ssl.waits import Waits, sentence

MEAN, STD = torch.tensor((0.485, 0.456, 0.406)).view(1, 3, 1, 1), torch.tensor((0.229, 0.224, 0.225)).view(1, 3, 1, 1)
TEMPERATURE, MOMENTUM = 0.04, 0.999


class Pictures:
    """Images known by their ids only."""

    name, classes = "noise:train", ()

    def __init__(self, count: int):
        self.ids, self.labels = tuple(map(str, range(count))), np.full(count, -1)

    def __len__(self) -> int:
        return len(self.ids)


def stored_teacher(folder: Path, options: argparse.Namespace, width: int, device: torch.device) -> StoredTeacher:
    """Over a table of random rows for a batch's images."""
    images = Pictures(options.batch_size)
    origin = {"encoder": {"spec": options.teacher, "width": width, "preprocessing": plain(Preprocessing())}}
    rows = unit(len(images), width, torch.device("cpu")).numpy()
    table = write_embeddings(folder, {"train": Embeddings(rows=rows, labels=images.labels, ids=images.ids)}, origin)
    return StoredTeacher(table, images, device=device)  # type: ignore[arg-type]


def unit(count: int, width: int, device: torch.device) -> Tensor:
    return functional.normalize(torch.randn(count, width, generator=torch.Generator().manual_seed(width))).to(device)


def of_the_paper(
    options: argparse.Namespace, device: torch.device, batch: Batch, *, cached: bool
) -> Callable[[], None]:
    """One step of the paper's code."""
    teacher = open_encoder(f"torchvision/{options.teacher}@random", weights="random", size=options.size).backbone
    teacher = teacher.eval().requires_grad_(False).to(device)
    student = open_encoder(f"torchvision/{options.student}@random", weights="random", size=options.size).backbone
    student = student.train().to(device)
    slow = copy.deepcopy(student).requires_grad_(False)
    queues = [unit(options.bank_size, width, device) for width in (int(student.width), int(teacher.width))]  # type: ignore[arg-type]
    stored = unit(options.batch_size, int(teacher.width), device)  # type: ignore[arg-type]
    sgd = torch.optim.SGD(student.parameters(), lr=0.01, momentum=0.9, weight_decay=1e-4)
    mean, std = MEAN.to(device), STD.to(device)
    place = 0

    def step() -> None:
        nonlocal place
        images = (batch.images.to(device).float() / 255 - mean) / std
        query = functional.normalize(student(images))
        with torch.no_grad():
            for mine, its in zip(slow.parameters(), student.parameters(), strict=True):
                mine.mul_(MOMENTUM).add_(its, alpha=1 - MOMENTUM)
            key = functional.normalize(slow(images))
            target = stored if cached else functional.normalize(teacher(images))
        logits = query @ queues[0].clone().detach().T / TEMPERATURE
        wanted = target @ queues[1].clone().detach().T / TEMPERATURE
        loss = functional.kl_div(logits.log_softmax(dim=1), wanted.softmax(dim=1), reduction="batchmean")
        sgd.zero_grad()
        loss.backward()
        sgd.step()
        places = torch.arange(place, place + len(query), device=device) % options.bank_size
        queues[0].index_copy_(0, places, key)
        queues[1].index_copy_(0, places, target)
        place = (place + len(query)) % options.bank_size

    return step


class Ours:
    """The step of a training, and what it waits for."""

    def __init__(
        self, options: argparse.Namespace, fabric: Any, batch: Batch, *, stored: bool, momentum: float | None = MOMENTUM
    ):
        device = fabric.device
        encoder = open_encoder(f"torchvision/{options.student}@random", weights="random", size=options.size).train()
        teacher_encoder = open_encoder(f"torchvision/{options.teacher}@random", weights="random", size=options.size)
        teacher: LiveTeacher | StoredTeacher
        if stored:
            self._folder = tempfile.TemporaryDirectory()
            teacher = stored_teacher(Path(self._folder.name) / "table", options, teacher_encoder.width, device)
        else:
            check: Literal["now", "later"] = "now" if device.type == "cpu" else "later"
            images: Any = Pictures(options.batch_size)
            teacher = LiveTeacher(teacher_encoder, images, device=device, workers=0, check=check)
        module = objectives.find("compress_2q")
        objective = module.Objective(
            module.Config(bank_size=options.bank_size, start="random", momentum=momentum),
            width=encoder.width,
            target_width=teacher.width,
            images=options.bank_size,
            device=device,
        )
        student = Student(encoder).train().to(device).to(memory_format=torch.channels_last)
        optimizer = optim.optimizer(student.parameters(), OptimizerConfig())
        self.teacher, self.waits = teacher, Waits(device)
        self.step = Step(fabric, teacher, student, Momentum(student, momentum), objective, optimizer)
        if options.compile == "on":
            compilation.switch(self.step.modules(), compiled=True)
        self.feed = Feed(itertools.repeat(batch), device=device, prepare=teacher.prepare)

    def __call__(self) -> None:
        self.waits.start()
        batch = next(self.feed)
        self.waits.lap("data")
        self.step(batch, self.waits)
        self.teacher.settle(wait=False)


def student_alone(options: argparse.Namespace, fabric: Any, batch: Batch) -> Callable[[], None]:
    """Forward and backward of the student in our layout and precision: below it no step can go."""
    encoder = open_encoder(f"torchvision/{options.student}@random", weights="random", size=options.size).train()
    student = Student(encoder).to(fabric.device).to(memory_format=torch.channels_last)

    batch = batch.to(fabric.device)

    def step() -> None:
        student.zero_grad()
        with fabric.autocast():
            query = student(batch.images)
        query[:, 0].sum().backward()

    return step


def take_turns(
    loops: dict[str, Callable[[], None]],
    rates: dict[str, list[float]],
    options: argparse.Namespace,
    device: torch.device,
) -> None:
    """Images a second of every loop in every turn but the first, which warms up."""
    for turn in range(options.times + 1):
        for name, step in loops.items():
            if device.type == "cuda":
                torch.cuda.synchronize()
            start = time.perf_counter()
            step()
            if device.type == "cuda":
                torch.cuda.synchronize()
            print(f"turn {turn} of {options.times}: {name}", file=sys.stderr)
            if turn:
                rates[name].append(options.batch_size / (time.perf_counter() - start))
            elif isinstance(step, Ours):
                step.waits.read()


def processor(device: torch.device) -> str:
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    cpu = Path("/proc/cpuinfo")
    lines = cpu.read_text().splitlines() if cpu.exists() else []
    found = next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), "")
    return f"{found or platform.processor()}, {torch.get_num_threads()} thread(s) of {os.cpu_count()} cores"


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--batch-size", type=int, default=256 if torch.cuda.is_available() else 64)
    parser.add_argument("--bank-size", type=int, default=128_000)
    parser.add_argument("--size", type=int, default=224)
    parser.add_argument("--teacher", default="resnet50")
    parser.add_argument("--student", default="resnet18")
    parser.add_argument("--times", type=int, default=7, help="steps measured of each, after one that warms up")
    parser.add_argument("--threads", type=int, default=None, help="of each process on a CPU; all cores by default")
    parser.add_argument("--compile", choices=("on", "off"), default="off")
    parser.add_argument("--only", nargs="*", default=None, help="beginnings of the names of loops to run")
    options = parser.parse_args()
    if options.threads:
        torch.set_num_threads(options.threads)
    fabric = launch(HardwareConfig(), seed=0)
    device = fabric.device
    shape = (options.batch_size, 3, options.size, options.size)
    images = torch.randint(0, 256, shape, dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    batch = Batch(images, torch.arange(options.batch_size), [])
    if device.type == "cuda":
        batch.pin_memory()
    makers: dict[str, Callable[[], Callable[[], None]]] = {
        "paper's loop": lambda: of_the_paper(options, device, batch, cached=False),
        "paper's loop, cached teacher": lambda: of_the_paper(options, device, batch, cached=True),
        "ours, live teacher": lambda: Ours(options, fabric, batch, stored=False),
        "ours, stored embeddings": lambda: Ours(options, fabric, batch, stored=True),
        "ours, stored, no slow copy": lambda: Ours(options, fabric, batch, stored=True, momentum=None),
        "student forward + backward": lambda: student_alone(options, fabric, batch),
    }
    if options.only:
        makers = {name: make for name, make in makers.items() if name.startswith(tuple(options.only))}
    print(f"{options.teacher} -> {options.student} at {options.size}, B = {options.batch_size}, "
          f"K = {options.bank_size}, {fabric._precision.precision}, compile {options.compile}")  # fmt: skip
    print(f"{processor(device)}, torch {torch.__version__}")
    loops = {name: make() for name, make in makers.items()}
    rates: dict[str, list[float]] = {name: [] for name in loops}
    with contextlib.suppress(KeyboardInterrupt):  # Ctrl-C: the table of what is there
        take_turns(loops, rates, options, device)
    first = statistics.median(next(iter(rates.values())))
    print(f"{'':30} {'n':>3}  {'images/s: median (min – max)':34} {'over the first':>15}")
    for name, found in rates.items():
        if not found:
            continue
        median = statistics.median(found)
        told = f"{median:8.2f}  ({min(found):.2f} – {max(found):.2f})"
        step = loops[name]
        waits = f"  {sentence(step.waits.read())}" if isinstance(step, Ours) else ""
        print(f"{name:30} {len(found):3}  {told:34} {median / first:14.2f}x{waits}")


if __name__ == "__main__":
    main()
