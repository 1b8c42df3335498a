"""What results.json holds beside the scores on its own data -> tables: on other data sets, and layer by layer."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from compress_ssl.page.folders import Folder
from compress_ssl.page.models import compare
from compress_ssl.page.table import table


def transfers(folders: Sequence[Folder], *, colours: dict[Path, int]) -> list[dict[str, Any]]:
    """One table for each other data set, over all folders that were scored on it; without costs, which are not new."""
    parts = []
    for folder in folders:
        results = folder.results or {}
        for data, told in results.get("transfer", {}).items():
            models = {name: {**one, **_known(results["models"][name])} for name, one in told["models"].items()}
            parts.append(replace(folder, results={**results, "data": data, "images": told["images"], "models": models}))
    comparisons, _ = compare(parts)
    return [{**table(one, colours=colours), "absent": {}} for one in comparisons]


def by_layer(folders: Sequence[Folder], *, colours: dict[Path, int]) -> list[dict[str, Any]]:
    """One table for each data set, its columns the layers of the models that were probed by layer."""
    parts = []
    for folder in folders:
        results = folder.results or {}
        models = {
            name: {
                "metrics": {layer: told["linear_probe"] for layer, told in one["layers"].items()},
                "missing": {},
                **_known(one),
            }
            for name, one in results.get("models", {}).items()
            if "layers" in one
        }
        if models:
            parts.append(replace(folder, results={**results, "models": models}))
    comparisons, _ = compare(parts)
    return [{**table(one, colours=colours), "absent": {}} for one in comparisons]


def _known(entry: dict[str, Any]) -> dict[str, Any]:
    """What says which model it is."""
    return {name: entry[name] for name in ("spec", "role", "weight") if name in entry}
