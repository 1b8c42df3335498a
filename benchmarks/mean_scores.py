"""Mean and spread over seeds of what `evaluate` found: python benchmarks/mean_scores.py RESULTS

Models are named SETTING_SEED; a line for each setting, and how far each is from the setting called live, seed by seed.
"""

from __future__ import annotations

import argparse
import json
import statistics
from collections import defaultdict
from pathlib import Path

METRICS = {"nearest_neighbour": "1-NN", "nearest_neighbour_20": "20-NN", "neighbour_overlap_10": "kept of 10"}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("results", type=Path)
    models = json.loads((parser.parse_args().results / "results.json").read_text())["models"]
    settings: dict[str, dict[str, dict[str, float]]] = defaultdict(dict)
    for name, model in models.items():
        setting, _, seed = name.rpartition("_")
        settings[setting or name][seed] = model["metrics"]
    print(
        "| | " + " | ".join(METRICS.values()) + " | " + " | ".join(f"{name} − live" for name in METRICS.values()) + " |"
    )
    print("|---" * (1 + 2 * len(METRICS)) + "|")
    for setting, seeds in settings.items():
        cells = [spread([100 * one[metric] for one in seeds.values()]) for metric in METRICS]
        for metric in METRICS:
            pairs = [100 * (one[metric] - settings["live"][seed][metric]) for seed, one in seeds.items()
                     if seed in settings.get("live", {})]  # fmt: skip
            cells.append(spread(pairs, sign=True) if pairs and setting != "live" else "–")
        print(f"| {setting} | " + " | ".join(cells) + " |")


def spread(values: list[float], *, sign: bool = False) -> str:
    mean = f"{statistics.mean(values):+.1f}" if sign else f"{statistics.mean(values):.1f}"
    return f"{mean} ± {statistics.stdev(values):.1f}" if len(values) > 1 else mean


if __name__ == "__main__":
    main()
