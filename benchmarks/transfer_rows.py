"""Scores of `compress-ssl evaluate … --on OTHER`, one file a seed, as rows of docs/results/transfer.csv.

    compress-ssl evaluate TEACHER compress=RUNS/compress/seed0 … --data A --on B --out scores/seed0
    python benchmarks/transfer_rows.py STUDENT EPOCHS scores/seed0 scores/seed1 … > transfer.csv

Models go by the names that the command gave them; the first is the teacher, which has no seed. A row's data set is
`A → B`: taught on A, scored on B. The seed is the number that the folder's name ends in.
"""

from __future__ import annotations

import argparse
import csv
import json
import re
import sys
from pathlib import Path

COLUMNS = ("dataset", "student", "objective", "seed", "metric", "value", "epochs", "command", "hardware")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("student")
    parser.add_argument("epochs", type=float)
    parser.add_argument("folders", type=Path, nargs="+")
    options = parser.parse_args()
    table = csv.writer(sys.stdout, lineterminator="\n")
    table.writerow(COLUMNS)
    for place, folder in enumerate(options.folders):
        told = json.loads((folder / "results.json").read_text(encoding="utf-8"))
        ending = re.search(r"\d+$", folder.name)
        if ending is None:
            parser.error(f"expected a folder whose name ends in its seed, got {folder}: rename it")
        hardware = f"{told['hardware']['processor']}, {told['hardware']['threads']} thread"
        for other, scores in told["transfer"].items():
            teacher, *students = scores["models"]
            for name in [teacher, *students] if place == 0 else students:
                row = (options.student, name, ending[0]) if name != teacher else (name, "teacher", "")
                for metric, value in scores["models"][name]["metrics"].items():
                    table.writerow(
                        (f"{told['data']} → {other}", *row, metric, value, options.epochs, told["command"], hardware)
                    )


if __name__ == "__main__":
    main()
