"""Loss and held-out scores of several runs as one figure.

python benchmarks/plot_runs.py RUN … --out FIGURE.svg
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import matplotlib
from matplotlib import pyplot

PANELS = (  # kind of line, its field, heading
    ("train", "loss", "training loss"),
    ("validation", "neighbour_overlap_10", "teacher's 10 nearest neighbours kept (held out)"),
    ("validation", "nearest_neighbour", "1-NN accuracy (held out)"),
)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("runs", nargs="+", type=Path)
    parser.add_argument("--out", type=Path, required=True)
    options = parser.parse_args()
    matplotlib.rcParams["svg.hashsalt"] = "compress-ssl"  # the same numbers give the same file
    figure, axes = pyplot.subplots(1, len(PANELS), figsize=(12, 3.4), constrained_layout=True)
    for run in options.runs:
        lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
        for axis, (kind, name, heading) in zip(axes, PANELS, strict=True):
            points = [(line["epoch"], line[name]) for line in lines if line["kind"] == kind and name in line]
            if points:
                axis.plot(*zip(*points, strict=True), label=run.name, linewidth=1.4)
            axis.set_title(heading, fontsize=10)
            axis.set_xlabel("epoch")
    for axis in axes:
        axis.grid(alpha=0.25)
        axis.legend(frameon=False, fontsize=8)
    options.out.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(options.out, metadata={"Date": None})
    print(options.out)


if __name__ == "__main__":
    main()
