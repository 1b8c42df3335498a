"""The paper's three scores from stored embeddings, at the size of ImageNet or a part of it: seconds and memory.

    python benchmarks/evaluation_scale.py                      64 000 + 2 500 rows of 512, 1000 classes: a twentieth
    python benchmarks/evaluation_scale.py --scale 5            256 000 + 10 000
    python benchmarks/evaluation_scale.py --scale 1            1 280 000 + 50 000; needs two cores, 12 GiB, half an hour
    python benchmarks/evaluation_scale.py --alternatives       also the same by other means, in the same run

The rows are synthetic: a centre for each class, the classes in 50 groups, noise with the decaying spectrum of
embeddings, and a quarter of the labels drawn from the group, so that no score is near 0 or 1. The table counts
operations by arithmetic: 2 Q N D for the neighbours, 2 N k D for each of 20 iterations of k-means over all rows (the
start is not counted), 4 N D C for each pass of the regression. Peak memory is the process's, its rows (4 (N + Q) D
bytes) included. Seconds are the clock's; "processor" is what the process was given, and on a busy machine the fair
number.
"""

from __future__ import annotations

import argparse
import os
import platform
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from threadpoolctl import threadpool_limits

from compress_ssl import softmax_regression
from compress_ssl.clustering import align, assign, overlap_table
from compress_ssl.embeddings import Embeddings
from compress_ssl.evaluations import Embedded, Evaluation, cluster_alignment, linear_probe, nearest_neighbour
from compress_ssl.metrics import accuracy

TRAIN, TEST = 1_280_000, 50_000
AT_ONCE = 8192


def rows(count: int, options: argparse.Namespace, *, split: int) -> Embeddings:
    """`count` unit rows around the centres of their classes; another split has other rows of the same classes."""
    shape = np.random.default_rng(0)
    spectrum = np.arange(1, options.width + 1, dtype=np.float32) ** -0.5
    turn = np.linalg.qr(shape.standard_normal((options.width, options.width)))[0].astype(np.float32)
    groups = min(50, options.classes)
    of_group = shape.standard_normal((groups, options.width))[np.arange(options.classes) % groups]
    centres = of_group + shape.standard_normal((options.classes, options.width))
    centres = (options.spread * 0.5**0.5 * centres).astype(np.float32)
    mean = 0.5 * shape.standard_normal(options.width, dtype=np.float32)
    drawn = np.random.default_rng((0, split))
    shown = drawn.integers(0, options.classes, count)
    doubtful = drawn.random(count) < 0.25
    other = (shown + groups * drawn.integers(0, max(1, options.classes // groups), count)) % options.classes
    found = np.empty((count, options.width), dtype=np.float32)
    for first in range(0, count, AT_ONCE):
        part = slice(first, first + AT_ONCE)
        noise = drawn.standard_normal((len(shown[part]), options.width), dtype=np.float32)
        some = ((centres[shown[part]] + noise + mean) * spectrum) @ turn
        found[part] = some / np.linalg.norm(some, axis=1, keepdims=True)
    labels = np.where(doubtful, other, shown)
    return Embeddings(found, labels, tuple(f"{split}/{number}" for number in range(count)))


def resident_peak(*, forget: bool) -> float:
    """GiB of this process at most since it was last forgotten."""
    if forget:
        Path("/proc/self/clear_refs").write_text("5")
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(float(line.split()[1]) for line in lines if line.startswith("VmHWM")) / 2**20


def count_passes() -> list[int]:
    """A list to which every pass of the regression from now on adds its number of rows."""
    passes: list[int] = []
    plain = softmax_regression._cross_entropy

    def counted(some: torch.Tensor, *rest: torch.Tensor) -> tuple[float, np.ndarray, np.ndarray]:
        passes.append(len(some))
        return plain(some, *rest)

    descend = softmax_regression._descend

    def descended(some: torch.Tensor, *rest: Any) -> tuple[torch.Tensor, torch.Tensor]:
        passes.append(len(some) * rest[-1])
        return descend(some, *rest)

    softmax_regression._cross_entropy, softmax_regression._descend = counted, descended
    return passes


def alternatives(embedded: Embedded, options: argparse.Namespace) -> dict[str, Callable[[], float]]:
    """The same scores by other means: faiss, and our own without the short cuts for large tables."""
    import faiss

    faiss.omp_set_num_threads(options.threads)
    train, test = embedded.train, embedded.test

    def neighbours() -> float:
        index = faiss.IndexFlatIP(options.width)
        index.add(train.rows)
        return accuracy(train.labels[index.search(test.rows, 20)[1][:, 0]], test.labels)

    def aligned(centroids: np.ndarray, assignments: np.ndarray) -> float:
        size = options.classes
        table = overlap_table(assignments, train.labels, clusters=size, class_count=size)
        return accuracy(align(table)[assign(test.rows, centroids)], test.labels)

    def clusters() -> float:
        every = 10**9  # faiss draws 256 rows a centroid unless told otherwise
        found = faiss.Kmeans(options.width, options.classes, niter=20, max_points_per_centroid=every, seed=0)
        found.train(train.rows)
        return aligned(found.centroids, found.index.search(train.rows, 1)[1][:, 0])

    def one_start() -> float:
        return score(cluster_alignment, embedded, attempts=1, start_pairs=2**62)

    def regression() -> float:
        return score(linear_probe, embedded, to_the_end=2**62)

    return {
        "neighbours, faiss": neighbours,
        "clusters, faiss, one random start": clusters,
        "clusters, one k-means++ start on all rows": one_start,
        "linear, to the last digit": regression,
    }


def score(evaluation: Evaluation, embedded: Embedded, **options: int) -> float:
    """The evaluation's first metric, by default as `evaluate` computes it."""
    return next(iter(evaluation.evaluate(replace(embedded), evaluation.Config(**options)).values()))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--scale", type=int, default=20, help="which part of ImageNet: 20, 5, 1")
    parser.add_argument("--classes", type=int, default=1000)
    parser.add_argument("--width", type=int, default=512)
    parser.add_argument("--spread", type=float, default=0.8, help="distance of classes over that of images of one")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--only", nargs="*", default=["neighbours", "clusters", "linear"], help="starts of names")
    parser.add_argument("--alternatives", action="store_true")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    count, asked = TRAIN // options.scale, TEST // options.scale
    embedded = Embedded(train=rows(count, options, split=0), test=rows(asked, options, split=1))
    ways: dict[str, Callable[[], float]] = {
        "neighbours": lambda: score(nearest_neighbour, embedded),
        "clusters": lambda: score(cluster_alignment, embedded),
        "linear": lambda: score(linear_probe, embedded),
    }
    ways |= alternatives(embedded, options) if options.alternatives else {}
    model = next((line for line in Path("/proc/cpuinfo").read_text().splitlines() if "model name" in line), ":")
    print(f"{model.split(':')[1].strip()}, {options.threads} of {os.cpu_count()} cores, load {os.getloadavg()[0]:.1f}; "
          f"Python {platform.python_version()}, torch {torch.__version__}; "
          f"{count} + {asked} rows of {options.width}, {options.classes} classes, n = 1")  # fmt: skip
    print("| score | value | seconds | processor seconds | TFLOP | GFLOP per processor second | peak GiB |")
    print("|---|---:|---:|---:|---:|---:|---:|", flush=True)
    passes = count_passes()
    with threadpool_limits(options.threads):
        for name, way in ways.items():
            if not name.startswith(tuple(options.only)):
                continue
            passes.clear()
            resident_peak(forget=True)
            clock, given = time.perf_counter(), time.process_time()
            value = way()
            clock, given = time.perf_counter() - clock, time.process_time() - given
            operations = 4 * sum(passes) * options.width * options.classes
            if name.startswith("neighbours"):
                operations = 2 * count * asked * options.width
            if name.startswith("clusters"):
                operations = 20 * 2 * count * options.classes * options.width
            told = f" ({sum(passes) / count:.1f} passes)" if passes else ""
            print(f"| {name}{told} | {value:.4f} | {clock:.1f} | {given:.1f} | {operations / 1e12:.2f} | "
                  f"{operations / 1e9 / given:.0f} | {resident_peak(forget=False):.2f} |", flush=True)  # fmt: skip


if __name__ == "__main__":
    main()
