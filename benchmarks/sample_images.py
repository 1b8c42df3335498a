"""A smaller data set: evenly spaced training images of a parquet data set, its test split whole.

    python benchmarks/sample_images.py DATA OUT COUNT
    python benchmarks/sample_images.py DATA OUT COUNT --aside 5000

With `--aside`, as many of the other training images stand in for the test split, which then no choice has seen.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq


def evenly_spaced(places: np.ndarray, count: int) -> np.ndarray:
    """(count,) int64 of `places`, the first and the last among them."""
    return places[np.linspace(0, len(places) - 1, count).astype(np.int64)]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path, help="a folder with train.parquet and test.parquet or val.parquet")
    parser.add_argument("out", type=Path)
    parser.add_argument("count", type=int)
    parser.add_argument("--aside", type=int, default=0, help="training images that stand in for the test split")
    options = parser.parse_args()
    options.out.mkdir(parents=True, exist_ok=True)
    whole: pa.Table = pq.read_table(options.data / "train.parquet")
    taken = evenly_spaced(np.arange(len(whole)), options.count)
    others = np.setdiff1d(np.arange(len(whole)), taken)
    for file in sorted(options.data.glob("*.parquet")):
        if file.stem == "train":
            table = whole.take(taken)
        elif options.aside:
            table = whole.take(evenly_spaced(others, options.aside))
        else:
            table = pq.read_table(file)
        pq.write_table(table, options.out / file.name)
        print(f"{options.out / file.name}: {len(table)} images")


if __name__ == "__main__":
    main()
