"""Run folders as they lie on disk, also those of a run that is still going on."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from compress_ssl.refusal import Refusal


@dataclass(frozen=True)
class Folder:
    path: Path
    label: str  # folder name, with the parents that it does not share with the other folders
    config: str  # config.yaml as it stands, "" without one
    environment: dict[str, Any]  # command line, versions, hardware; of the run, else of its results
    train: list[dict[str, Any]]  # in order of step, each step once
    validation: list[dict[str, Any]]
    results: dict[str, Any] | None  # None: not scored in this folder
    pictures: dict[str, Any] | None
    skipped: list[dict[str, Any]]


def read_folders(names: Sequence[str]) -> list[Folder]:
    """Every folder once, in order; raises Refusal for the first that cannot be used."""
    if not names:
        raise Refusal("expected at least one run folder, got none: name the folders to report on")
    paths: dict[Path, Path] = {}
    for name in names:
        path = Path(name)
        if not path.is_dir():
            what = "a file" if path.exists() else "nothing"
            raise Refusal(f"expected a run folder at {path}, got {what}: name folders that distill or evaluate wrote")
        paths.setdefault(path.resolve(), path)
    shared = os.path.commonpath([path.parent for path in paths])
    return [read_folder(path, label=absolute.relative_to(shared).as_posix()) for absolute, path in paths.items()]


def read_folder(path: Path, *, label: str) -> Folder:
    """All that the page needs of one folder.

    Raises: Refusal if there is neither results.json nor metrics.jsonl, or a file is not what its writer wrote.
    """
    if not (path / "results.json").exists() and not (path / "metrics.jsonl").exists():
        raise Refusal(
            f"expected results.json or metrics.jsonl in {path}, got neither: "
            f"name a folder that distill, pretrain or evaluate wrote"
        )
    results = read_json(path / "results.json", {"data", "images", "models", "command", "versions", "hardware"})
    environment = read_json(path / "environment.json", {"command_line", "versions", "hardware", "system", "started"})
    if environment is None and results is not None:
        environment = {"command_line": results["command"], **results}
    rows = read_lines(path / "metrics.jsonl", {"kind", "step", "epoch"})
    rows = list({(row["kind"], row["step"]): row for row in rows}.values())  # resumed at step 0, a run scores it again
    return Folder(
        path=path,
        label=label,
        config=read_text(path / "config.yaml"),
        environment=environment or {},
        train=[row for row in rows if row["kind"] == "train"],
        validation=[row for row in rows if row["kind"] == "validation"],
        results=results,
        pictures=read_json(path / "pictures.json", {"pictures", "labels", "queries", "neighbours", "clusters"}),
        skipped=read_lines(path / "skipped.jsonl", {"id", "kind", "detail"}),
    )


def read_text(path: Path) -> str:
    """The text of a file, "" where there is none."""
    return path.read_text(encoding="utf-8", errors="replace") if path.exists() else ""


def read_json(path: Path, names: set[str]) -> Any:
    """The object in a file, None where there is none; raises Refusal with the place where it stops being JSON."""
    if not path.exists():
        return None
    try:
        return require(json.loads(read_text(path)), names, where=str(path))
    except json.JSONDecodeError as error:
        raise Refusal(f"expected JSON in {path}, got {error}: write it again or delete the file") from error


def read_lines(path: Path, names: set[str]) -> list[dict[str, Any]]:
    """One object a line; a last line that a running or killed process left unfinished does not count."""
    rows = []
    lines = read_text(path).split("\n")
    for number, line in enumerate(lines, start=1):
        if not line:
            continue
        try:
            rows.append(require(json.loads(line), names, where=f"{path}, line {number}"))
        except json.JSONDecodeError as error:
            if number < len(lines):
                raise Refusal(f"expected JSON in line {number} of {path}, got {error}: delete that line") from error
    return rows


def require(value: Any, names: set[str], *, where: str) -> Any:
    """The value itself, if it is an object with these names: somebody else's results.json is none."""
    if not isinstance(value, dict) or not names <= value.keys():
        expected, got = ", ".join(sorted(names)), json.dumps(value)[:60]
        raise Refusal(f"expected an object with {expected} at {where}, got {got}: name a folder that we wrote")
    return value
