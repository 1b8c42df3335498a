"""A table of embeddings -> another with the training rows' mean taken away: the same images, zero-centred cosines.

python benchmarks/centred_table.py TABLE OUT
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np

from compress_ssl.embeddings import Embeddings
from compress_ssl.table import Table
from compress_ssl.table_writer import write_embeddings


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("table", type=Path)
    parser.add_argument("out", type=Path)
    options = parser.parse_args()
    table = Table(options.table)
    mean = table.embeddings("train").rows.mean(axis=0)
    splits = {}
    for split in table.splits():
        found = table.embeddings(split)
        rows = found.rows - mean
        splits[split] = Embeddings(rows / np.linalg.norm(rows, axis=1, keepdims=True), found.labels, found.ids)
    encoder = table.origin["encoder"] | {"spec": f"{table.origin['encoder']['spec']}, centred"}
    origin = table.origin | {"encoder": encoder, "views": {"count": 0}, "dtype": "float32"}
    evidence = {split: table.evidence(split) for split in table.splits()}
    write_embeddings(options.out, splits, origin, evidence=evidence)


if __name__ == "__main__":
    main()
