"""Reading stored rows, warm and cold, and what they cost a training step.

    python benchmarks/cache.py [--rows 400000] [--folder /tmp]

A table of random unit rows, 2048 float16 each, is written to the folder. Warm: batches of 256 random rows that the
page cache holds. Cold: the cache of its files is dropped first, and every row is read once; batches are announced some
steps ahead, as the loader does in training. Beside it plain indexing of a NumPy memory map over the same bytes.
The step: a student at 32 pixels learns from the table through StoredTeacher, against the same step whose targets
are random rows that lie in memory; the two take turns.
"""

from __future__ import annotations

import argparse
import collections
import os
import shutil
import statistics
import tempfile
import time
from pathlib import Path

import numpy as np
import torch
from lightning.fabric import Fabric

from compress_ssl import objectives, optim
from compress_ssl.distill import Step
from compress_ssl.embeddings import Embeddings
from compress_ssl.encoder import open_encoder
from compress_ssl.loader import Batch
from compress_ssl.momentum import Momentum
from compress_ssl.run_folder import hardware
from compress_ssl.stored_teacher import StoredTeacher
from compress_ssl.student import Student
from compress_ssl.table import Table
from compress_ssl.table_writer import write_embeddings
from compress_ssl.waits import Waits

WIDTH, BATCH = 2048, 256


def make_table(folder: Path, count: int) -> Table:
    """A table of `count` random unit rows; a quarter of a million at a time is in memory."""
    random = np.random.default_rng(0)
    rows = random.standard_normal((min(count, 50_000), WIDTH), dtype=np.float32)
    rows /= np.linalg.norm(rows, axis=1, keepdims=True)
    rows = np.resize(rows, (count, WIDTH)) if count > len(rows) else rows
    embeddings = Embeddings(rows, np.full(count, -1), tuple(f"{number:08d}.jpg" for number in range(count)))
    encoder = {"spec": "random", "weights": "none", "space": "own", "width": WIDTH, "preprocessing": {"size": 32}}
    return write_embeddings(folder, {"train": embeddings}, {"encoder": encoder})


def drop_cache(folder: Path) -> None:
    """Have the system forget what it holds of the files."""
    os.sync()
    for file in folder.rglob("*.npy"):
        with file.open("rb") as stream:
            os.posix_fadvise(stream.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def cached_share(folder: Path) -> float:
    """Share of the files' pages that are in the page cache."""
    import ctypes
    import mmap

    libc = ctypes.CDLL(None, use_errno=True)
    libc.mincore.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_char_p]
    resident = pages = 0
    for file in folder.rglob("*.npy"):
        with (
            file.open("rb") as stream,
            mmap.mmap(stream.fileno(), 0, prot=mmap.PROT_READ | mmap.PROT_WRITE, flags=mmap.MAP_PRIVATE) as opened,
        ):
            count = -(-len(opened) // mmap.PAGESIZE)
            told = ctypes.create_string_buffer(count)
            start = ctypes.addressof(ctypes.c_char.from_buffer(opened))
            assert libc.mincore(start, len(opened), told) == 0
            resident, pages = resident + sum(byte & 1 for byte in told.raw), pages + count
    return resident / pages


def batches(count: int, total: int, seed: int) -> list[np.ndarray]:
    """Batches of random places, none twice."""
    order = np.random.default_rng(seed).permutation(total)
    return [order[start : start + BATCH] for start in range(0, min(count * BATCH, total - BATCH), BATCH)]


def timed(table: Table, wanted: list[np.ndarray], ahead: int) -> list[float]:
    """Seconds of each batch, the next `ahead` of them announced."""
    waiting: collections.deque[np.ndarray] = collections.deque()
    seconds, coming = [], iter(wanted)
    for _ in range(len(wanted)):
        start = time.perf_counter()
        while ahead and len(waiting) <= ahead and (following := next(coming, None)) is not None:
            table.announce(following)
            waiting.append(following)
        table.rows(waiting.popleft() if ahead else next(coming))
        seconds.append(time.perf_counter() - start)
    return seconds


def plain(folder: Path, wanted: list[np.ndarray]) -> list[float]:
    """Seconds of each batch by indexing NumPy's memory maps."""
    files = [np.load(file, mmap_mode="r") for file in sorted((folder / "train").glob("*.npy"))]
    starts = np.cumsum([0, *map(len, files)])
    seconds = []
    for places in wanted:
        start = time.perf_counter()
        which = np.searchsorted(starts, places, side="right") - 1
        found = np.empty((len(places), WIDTH), np.float16)
        for shard in np.unique(which):
            here = which == shard
            found[here] = files[shard]["row"][places[here] - starts[shard], 0]
        torch.from_numpy(found).float()
        seconds.append(time.perf_counter() - start)
    return seconds


def line(name: str, seconds: list[float], rows: int = BATCH) -> str:
    rate = rows * len(seconds) / sum(seconds)
    low, high = np.percentile(seconds, [5, 95])
    return (f"| {name} | {len(seconds)} | {1e3 * statistics.median(seconds):.2f} | {1e3 * low:.2f} – {1e3 * high:.2f} "
            f"| {rate:,.0f} |")  # fmt: skip


class _Images:
    """What a StoredTeacher asks of a data set."""

    def __init__(self, table: Table):
        self.ids, self.name = table.ids("train"), "random"
        self.labels = np.full(len(self.ids), -1)
        self.evidence = np.zeros(len(self.ids), np.int64)

    def __len__(self) -> int:
        return len(self.ids)


def steps(table: Table, count: int, student: str) -> dict[str, list[float]]:
    """Seconds a step with stored and with free targets, in turns."""
    fabric = Fabric(accelerator="cpu", devices=1)
    teacher = StoredTeacher(table, _Images(table), device=torch.device("cpu"))  # type: ignore[arg-type]
    made = {}
    for name in ("stored", "free"):
        torch.manual_seed(0)
        encoder = open_encoder(student, weights="random", size=32).train()
        find = objectives.find("compress_2q")
        objective = find.Objective(find.Config(bank_size=4096), width=encoder.width, target_width=WIDTH,
                                   images=len(teacher._ids), device=torch.device("cpu"), seed=0)  # fmt: skip
        whole = Student(encoder).train().to(memory_format=torch.channels_last)
        optimizer = optim.optimizer(whole.parameters(), optim.OptimizerConfig(learning_rate=0.01))
        made[name] = Step(fabric, teacher, whole, Momentum(whole, objective.momentum), objective, optimizer)
    images = torch.randint(0, 256, (BATCH, 3, 32, 32), dtype=torch.uint8).contiguous(memory_format=torch.channels_last)
    free = torch.nn.functional.normalize(torch.randn(BATCH, WIDTH), dim=1)
    random, seconds = np.random.default_rng(0), {"stored": [], "free": []}
    waits = Waits(torch.device("cpu"))
    for turn in range(count + 2):
        for name in ("stored", "free") if turn % 2 else ("free", "stored"):
            index = torch.from_numpy(random.choice(len(teacher._ids), BATCH, replace=False))
            batch = Batch(images, index, [], target=None if name == "stored" else free)
            start = time.perf_counter()
            made[name](teacher.prepare(batch), waits)
            if turn >= 2:
                seconds[name].append(time.perf_counter() - start)
    return seconds


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=400_000)
    parser.add_argument("--folder", type=Path, default=Path(tempfile.gettempdir()))
    parser.add_argument("--batches", type=int, default=300)
    parser.add_argument("--ahead", type=int, default=16, help="batches announced: 4 workers, 4 batches each")
    parser.add_argument("--steps", type=int, default=40)
    parser.add_argument("--student", default="compress/resnet10_small_w16")
    options = parser.parse_args()
    torch.set_num_threads(1)
    here = hardware()
    print(f"{here['processor']}, one thread; torch {torch.__version__}; {options.rows} rows of {WIDTH} float16")
    folder = Path(tempfile.mkdtemp(dir=options.folder))
    try:
        table = make_table(folder / "table", options.rows)
        print("\n| 256 random rows | n | median ms | 5 – 95 % | rows/s |\n|---|---|---|---|---|")
        warm = batches(options.batches, min(options.rows, 100_000), 1)
        timed(table, warm, 0)
        plain(folder, warm) if (folder / "train").exists() else plain(folder / "table", warm)
        print(line("warm, checked, float32, unit length", timed(table, warm, 0)))
        print(line("warm, NumPy's memory map, float32", plain(folder / "table", warm)))
        for name, ahead in (("cold, announced", options.ahead), ("cold, not announced", 0)):
            del table
            drop_cache(folder)
            table, share = Table(folder / "table"), cached_share(folder)
            wanted = batches(options.batches if ahead else options.batches // 10, options.rows, 2)
            table.rows(np.arange(0, options.rows, 8192))  # opens every shard
            print(line(f"{name} ({share:.1%} of the pages in memory before)", timed(table, wanted, ahead)))
        del table
        drop_cache(folder)
        print(
            line("cold, NumPy's memory map", plain(folder / "table", batches(options.batches // 10, options.rows, 3)))
        )
        table = Table(folder / "table")
        found = steps(table, options.steps, options.student)
        pairs = [one / two for one, two in zip(found["stored"], found["free"], strict=True)]
        print(f"\n| step of {options.student}, 256 images of 32 pixels | n | median ms | 5 – 95 % |\n|---|---|---|---|")
        for name, seconds in found.items():
            low, high = np.percentile(seconds, [5, 95])
            spread = f"{1e3 * low:.1f} – {1e3 * high:.1f}"
            print(f"| {name} targets | {len(seconds)} | {1e3 * statistics.median(seconds):.1f} | {spread} |")
        print(f"\nstored / free, pairwise: median {statistics.median(pairs):.3f}")
    finally:
        shutil.rmtree(folder)


if __name__ == "__main__":
    main()
