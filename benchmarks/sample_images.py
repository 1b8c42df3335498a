"""A smaller data set: evenly spaced training images of a parquet data set, its test split whole.

python benchmarks/sample_images.py DATA OUT COUNT
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path, help="a folder with train.parquet and test.parquet or val.parquet")
    parser.add_argument("out", type=Path)
    parser.add_argument("count", type=int)
    options = parser.parse_args()
    options.out.mkdir(parents=True, exist_ok=True)
    for file in sorted(options.data.glob("*.parquet")):
        table: pa.Table = pq.read_table(file)
        if file.stem == "train":
            table = table.take(np.linspace(0, len(table) - 1, options.count).astype(np.int64))
        pq.write_table(table, options.out / file.name)
        print(f"{options.out / file.name}: {len(table)} images")


if __name__ == "__main__":
    main()
