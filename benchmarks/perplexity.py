"""How many anchors a teacher's image has as neighbours, by temperature, and the temperatures that calibration finds.

python benchmarks/perplexity.py TABLE [TABLE …]          tables with a train and a test split
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
from torch import Tensor

from compress_ssl.calibration import calibrate, perplexity_share
from compress_ssl.table import Table

TEMPERATURES = (0.01, 0.02, 0.04, 0.07, 0.1)
SHARES = (0.01, 0.02, 0.05, 0.1)


def rows(table: Table, split: str, count: int) -> Tensor:
    """At most `count` rows of a split, drawn with a fixed seed."""
    order = np.random.default_rng(0).permutation(len(table.ids(split)))[:count]
    return table.rows(table.first(split) + order)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("tables", type=Path, nargs="+")
    options = parser.parse_args()
    for path in options.tables:
        table = Table(path)
        queries, anchors = rows(table, "test", 1000), rows(table, "train", 50_000)
        cosines = queries @ anchors[:5000].T
        print(f"{path}: width {table.width}, cosines {float(cosines.mean()):.2f} ± {float(cosines.std()):.2f}")
        for count in (5000, len(anchors)):
            told = [f"{t}: {perplexity_share(queries, anchors[:count], temperature=t):.1%}" for t in TEMPERATURES]
            print(f"  share of {count} anchors, by temperature   {'   '.join(told)}")
        found = [f"{share:.0%}: {calibrate(queries, anchors[:5000], share=share).temperature:g}" for share in SHARES]
        print(f"  temperature by share of 5000 anchors   {'   '.join(found)}")


if __name__ == "__main__":
    main()
