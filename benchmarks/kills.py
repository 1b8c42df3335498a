"""SIGKILL at random moments of `embed`, and of `distill --resume` over its table: is the end the same every time?
And single bits flipped, files cut off: does `embed --verify` notice, and does reading a touched row?

    python benchmarks/kills.py [--kills 50] [--flips 100] [--folder /tmp]

The data are scikit-learn's digits, the teacher is a small network with random weights, both made here. Every attempt
is killed once or twice, then left to end; all files of the table, the weights of the student, the losses and the scores
are compared with those of a run that nobody killed.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import multiprocessing
import os
import random
import shutil
import signal
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import torch

from compress_ssl import distill, embed, objectives, optim, verification
from compress_ssl.encoder import open_encoder, save_encoder
from compress_ssl.hardware import HardwareConfig
from compress_ssl.refusal import Refusal
from compress_ssl.run_folder import hardware
from compress_ssl.table import Table
from compress_ssl.training import TrainingConfig


def make_table(folder: Path, teacher: Path) -> None:
    embed.run(embed.Config(encoder=str(teacher), data="digits", out=folder, views=2, shard_rows=200, batch_size=64,
                           workers=0, device="cpu"))  # fmt: skip


def train(folder: Path, table: Path) -> None:
    resume = (folder / "config.yaml").exists()
    distill.run(
        distill.Config(
            teacher=str(table),
            student="compress/resnet10_small_w8",
            data="digits",
            out=folder,
            objective=objectives.find("compress_2q").Config(bank_size=512, momentum=0.9),
            training=TrainingConfig(
                epochs=3, batch_size=64, validate_every_epochs=1, save_every_minutes=0.005, log_every_steps=1
            ),
            optimizer=optim.OptimizerConfig(learning_rate=0.05),
            hardware=HardwareConfig(accelerator="cpu", workers=0),
            held_out=100,
            gallery=300,
            resume=resume,
        )
    )


def table_state(folder: Path) -> dict[str, str]:
    """Checksum of every file; left-over temporary files count too."""
    return {
        str(file.relative_to(folder)): hashlib.sha256(file.read_bytes()).hexdigest()
        for file in sorted(folder.rglob("*"))
        if file.is_file()
    }


def run_state(folder: Path) -> dict[str, str]:
    """Weights of the best student, every loss and score, in their order."""
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    kept = [{name: value for name, value in line.items() if name in ("kind", "step", "loss") or "neighbour" in name}
            for line in lines]  # fmt: skip
    weights = {file.name: hashlib.sha256(file.read_bytes()).hexdigest() for file in (folder / "student").iterdir()}
    scores = json.loads((folder / "results.json").read_text())["models"]
    return {**weights, "metrics": json.dumps(kept), "scores": json.dumps([one["metrics"] for one in scores.values()])}


def child(work: Callable[[], None]) -> None:
    with Path(os.devnull).open("w") as nothing:
        os.dup2(nothing.fileno(), sys.stderr.fileno())
        os.dup2(nothing.fileno(), sys.stdout.fileno())
        work()


def killed(work: Callable[[], None], after: float) -> bool:
    """Run in a process of its own, SIGKILL it after so many seconds; whether it was still running."""
    process = multiprocessing.get_context("fork").Process(target=child, args=(work,))
    process.start()
    process.join(after)
    running = process.is_alive()
    if running:
        os.kill(process.pid, signal.SIGKILL)  # type: ignore[arg-type]
    process.join()
    return running


def finished(work: Callable[[], None]) -> float:
    """Run in a process of its own to its end; seconds."""
    start = time.monotonic()
    process = multiprocessing.get_context("fork").Process(target=child, args=(work,))
    process.start()
    process.join()
    if process.exitcode:
        raise RuntimeError(f"ended with {process.exitcode}")
    return time.monotonic() - start


def attempts(name: str, count: int, folder: Path, work: Callable[[Path], None], state: Callable) -> None:
    """Kill `work` at random moments `count` times, a fresh folder each time, and compare the ends."""
    whole = folder / f"{name}-whole"
    seconds = finished(lambda: work(whole))
    expected, same, kills, broken = state(whole), 0, 0, []
    for attempt in range(count):
        place = folder / f"{name}-{attempt}"
        for _ in range(random.choice((1, 1, 2))):
            kills += killed(lambda place=place: work(place), random.uniform(0, seconds))  # type: ignore[misc]
        finished(lambda place=place: work(place))  # type: ignore[misc]
        found = state(place)
        same += found == expected
        if found != expected:
            broken.append((attempt, [key for key in expected if found.get(key) != expected[key]]))
        shutil.rmtree(place)
    print(f"| {name} | {count} | {kills} | {same} | {seconds:.1f} |")
    for attempt, keys in broken:
        print(f"  attempt {attempt} differs in {keys}")


def flips(count: int, table: Path, folder: Path) -> None:
    """Damage one file at a time: single bits and truncations."""
    files = [file for file in sorted(table.rglob("*")) if file.is_file()]
    noticed = read = touched = 0
    for number in range(count):
        damaged = folder / "damaged"
        shutil.copytree(table, damaged)
        file = damaged / random.choices(files, [f.stat().st_size for f in files])[0].relative_to(table)
        if number % 4 == 3:
            file = damaged / random.choice(files).relative_to(table)  # small files too
        data = bytearray(file.read_bytes())
        if number % 5 == 4:
            data = data[: random.randrange(len(data))]
        else:
            bit = random.randrange(8 * len(data))
            data[bit // 8] ^= 1 << bit % 8
        file.write_bytes(data)
        try:
            noticed += bool(verification.verify(damaged))
        except Refusal:
            noticed += 1
        if file.suffix == ".npy" and (number % 5 == 4 or bit // 8 >= 4096):  # not in the header's padding
            touched += 1
            try:
                opened = Table(damaged)
                for split in opened.splits():
                    opened.embeddings(split)
                    if opened.manifest["splits"][split]["views"]:
                        for view in range(opened.views):
                            opened.rows(opened.first(split) + torch.arange(len(opened.ids(split))).numpy(), view=view)
            except Refusal:
                read += 1
        shutil.rmtree(damaged)
    print(f"\n| damaged files | noticed by --verify | of them rows | refused at reading |\n|---|---|---|---|\n"
          f"| {count} | {noticed} | {touched} | {read} |")  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=50)
    parser.add_argument("--flips", type=int, default=100)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--folder", type=Path, default=Path(tempfile.gettempdir()))
    options = parser.parse_args()
    random.seed(options.seed)
    torch.set_num_threads(1)
    here = hardware()
    print(f"{here['processor']}, {here['cores']} cores; torch {torch.__version__}\n")
    folder = Path(tempfile.mkdtemp(dir=options.folder))
    try:
        torch.manual_seed(0)
        save_encoder(open_encoder("compress/resnet10_small_w16", weights="random", size=16), folder / "teacher")
        print("| what | attempts | killed while running | same end | seconds without a kill |\n|---|---|---|---|---|")
        attempts("embed", options.kills, folder, lambda place: make_table(place, folder / "teacher"), table_state)
        table = folder / "embed-whole"
        attempts("distill", options.kills, folder, lambda place: train(place, table), run_state)
        flips(options.flips, table, folder)
    finally:
        shutil.rmtree(folder)


if __name__ == "__main__":
    main()
