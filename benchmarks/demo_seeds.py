"""The demo over several seeds: mean ± standard deviation of every score, and the seconds it took.

    python benchmarks/demo_seeds.py [--seeds 5] [--out DIR]

Prints a Markdown table with n and the hardware. Runs that are already in --out are read, not repeated.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

from compress_ssl.evaluate import MAIN
from compress_ssl.metric_names import heading
from compress_ssl.run_folder import hardware


def spread(values: list[float]) -> str:
    return f"{100 * np.mean(values):.1f} ± {100 * np.std(values, ddof=1):.1f}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--out", type=Path, default=None)
    options = parser.parse_args()
    out = options.out or Path(tempfile.mkdtemp())
    seconds, scores = [], []
    for seed in range(options.seeds):
        folder = out / f"seed{seed}"
        if not (folder / "seconds.txt").exists():
            start = time.monotonic()
            command = [sys.executable, "-m", "compress_ssl.cli", "demo", "--out", str(folder), "--seed", str(seed)]
            subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
            (folder / "seconds.txt").write_text(f"{time.monotonic() - start}\n")
        seconds.append(float((folder / "seconds.txt").read_text()))
        scores.append(json.loads((folder / "results.json").read_text())["models"])
    found = dict.fromkeys(metric for models in scores for one in models.values() for metric in one["metrics"])
    metrics = [metric for metric in MAIN if metric in found]
    print(f"| model | {' | '.join(map(heading, metrics))} | parameters |")
    print(f"|---|{'---|' * (len(metrics) + 1)}")
    for name in scores[0]:
        cells = []
        for metric in metrics:
            values = [one[name]["metrics"][metric] for one in scores if metric in one[name]["metrics"]]
            cells.append(spread(values) if values else "–")
        print(f"| {name} | {' | '.join(cells)} | {scores[0][name]['parameters']:,} |")
    for name in ("student_1q", "student_2q"):
        kept = [m[name]["metrics"]["nearest_neighbour"] / m["teacher"]["metrics"]["nearest_neighbour"] for m in scores]
        mean, worst = 100 * np.mean(kept), 100 * min(kept)
        print(f"\n{name} keeps {mean:.1f} % of the teacher's 1-NN accuracy (worst seed {worst:.1f} %)")
    here = hardware()
    print(
        f"\nn = {len(scores)} seeds; {np.median(seconds):.0f} s each, start of Python included "
        f"({min(seconds):.0f} to {max(seconds):.0f}); "
        f"{here['processor']}, {here['cores']} cores, {here['instructions']}"
    )


if __name__ == "__main__":
    main()
