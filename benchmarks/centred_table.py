"""A table of embeddings -> another with the training rows' mean taken away: the same images, zero-centred cosines.

python benchmarks/centred_table.py TABLE OUT
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np

from compress_ssl.embeddings import Embeddings, Table, TableWriter


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("table", type=Path)
    parser.add_argument("out", type=Path)
    options = parser.parse_args()
    table = Table(options.table)
    mean = table.rows("train", np.arange(len(table.ids("train")))).astype(np.float32).mean(axis=0)
    encoder = table.origin["encoder"]
    origin = table.origin | {"encoder": encoder | {"spec": f"{encoder['spec']}, centred"}, "dtype": "float32"}
    writer, shards = TableWriter(options.out, origin), {}
    for split in table.splits():
        ids, labels = table.ids(split), table.labels(split)
        starts = range(0, len(ids), origin["shard_rows"])
        shards[split] = len(starts)
        for shard, start in enumerate(starts):
            places = np.arange(start, min(len(ids), start + origin["shard_rows"]))
            rows = table.rows(split, places).astype(np.float32) - mean
            rows /= np.linalg.norm(rows, axis=1, keepdims=True)
            names = tuple(ids[place] for place in places)
            writer.write(split, shard, Embeddings(rows=rows, labels=labels[places], ids=names), [], "float32")
    writer.complete(shards)


if __name__ == "__main__":
    main()
