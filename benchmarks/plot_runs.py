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


def points(lines: list[dict], kind: str, field: str) -> list[tuple[float, float]]:
    return [(line["epoch"], line[field]) for line in lines if line["kind"] == kind and field in line]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("runs", nargs="+", type=Path)
    parser.add_argument("--out", type=Path, required=True)
    options = parser.parse_args()
    matplotlib.rcParams["svg.hashsalt"] = "compress-ssl"  # the same numbers give the same file
    runs = {run.name: (run / "metrics.jsonl").read_text().splitlines() for run in options.runs}
    lines = {name: [json.loads(line) for line in text] for name, text in runs.items()}
    panels = [
        (heading, {name: points(found, kind, field) for name, found in lines.items()})
        for kind, field, heading in PANELS
    ]
    panels = [(heading, curves) for heading, curves in panels if any(curves.values())]
    figure, axes = pyplot.subplots(
        1, len(panels), figsize=(4 * len(panels), 3.4), constrained_layout=True, squeeze=False
    )
    for axis, (heading, curves) in zip(axes[0], panels, strict=True):
        for name, curve in curves.items():
            if curve:
                axis.plot(*zip(*curve, strict=True), label=name, linewidth=1.4)
        axis.set_title(heading, fontsize=9)
        axis.set_xlabel("epoch")
        axis.grid(alpha=0.25)
        axis.legend(frameon=False, fontsize=8)
    options.out.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(options.out, metadata={"Date": None})
    print(options.out)


if __name__ == "__main__":
    main()
