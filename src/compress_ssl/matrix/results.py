"""Raw numbers: one row a (cell, metric), in a CSV file that tables and figures are made from."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

from compress_ssl.refusal import Refusal

SWEPT = ("option", "setting")  # columns that are there only where something is swept
# metrics that are no scores: minutes and images of the training, sizes, and how many images the scores are shares of
COSTS = ("minutes", "images", "parameters", "multiply_adds", "test_images")
TEACHER = "teacher"  # what `objective` says of the teacher's own scores, which have no seed


@dataclass(frozen=True, kw_only=True)
class Result:
    """One number: a metric of one trained student, or of the teacher."""

    dataset: str
    student: str
    objective: str  # the row's name
    option: str = ""
    setting: str = ""
    seed: int | None
    metric: str
    value: float  # a fraction for scores; of COSTS in minutes and in numbers
    epochs: float | None
    command: str  # that does it again
    hardware: str


def results_of(scores: dict[str, Any]) -> list[Result]:
    """The numbers of one scores.json."""
    cost = {name: scores["costs"][name] for name in COSTS if scores["costs"].get(name) is not None}
    return [
        Result(
            dataset=scores["dataset"].rstrip("/").rpartition("/")[2],
            student=scores["student"],
            objective=scores["row"],
            option=scores["option"],
            setting=scores["setting"],
            seed=scores["seed"],
            metric=metric,
            value=value,
            epochs=scores["epochs"],
            command=scores["command"],
            hardware=hardware_told(scores["hardware"]),
        )
        for metric, value in {**scores["metrics"], **cost}.items()
    ]


def hardware_told(hardware: dict[str, Any]) -> str:
    """In a few words: processor, threads, accelerators."""
    threads = hardware["threads"]
    parts = [hardware["processor"], f"{threads} thread{'s'[: threads > 1]}", *sorted(set(hardware["accelerators"]))]
    return ", ".join(parts)


def written(results: Sequence[Result]) -> str:
    """As CSV; numbers so that they are read back to the bit."""
    names = [field.name for field in fields(Result)]
    if not any(one.option for one in results):
        names = [name for name in names if name not in SWEPT]
    text = io.StringIO()
    table = csv.DictWriter(text, names, extrasaction="ignore", lineterminator="\n")
    table.writeheader()
    for one in results:
        values = asdict(one)
        table.writerow({name: "" if values[name] is None else values[name] for name in names})
    return text.getvalue()


def read(files: Iterable[Path]) -> list[Result]:
    """The rows of all files.

    Raises: Refusal naming the line that is not one.
    """
    found: list[Result] = []
    for file in files:
        try:
            with file.open(newline="", encoding="utf-8") as lines:
                rows = list(csv.DictReader(lines))
        except FileNotFoundError:
            raise Refusal(
                f"--results expected a results.csv, got {file}, which does not exist: check the path"
            ) from None
        except IsADirectoryError:
            raise Refusal(f"--results expected a results.csv, got the folder {file}: name the file in it") from None
        except UnicodeDecodeError:
            raise Refusal(f"--results expected a results.csv, got {file}, which is no text: check the path") from None
        for number, row in enumerate(rows, start=2):
            try:
                found.append(_result(row))
            except (KeyError, TypeError, ValueError) as trouble:
                raise Refusal(f"--results expected the columns of a benchmark's results.csv in {file}, got {trouble} "
                              f"wrong in line {number}: correct it") from None  # fmt: skip
    if not found:
        raise Refusal("--results expected rows with numbers, got none: check the file")
    return found


def _result(row: dict[str, str]) -> Result:
    return Result(
        dataset=row["dataset"],
        student=row["student"],
        objective=row["objective"],
        option=row.get("option", ""),
        setting=row.get("setting", ""),
        seed=int(row["seed"]) if row["seed"] else None,
        metric=row["metric"],
        value=float(row["value"]),
        epochs=float(row["epochs"]) if row["epochs"] else None,
        command=row["command"],
        hardware=row.get("hardware", ""),
    )
