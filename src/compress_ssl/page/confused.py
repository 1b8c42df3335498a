"""Tables of counts in results.json -> the classes that a model takes for each other, and heat maps of small tables."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from compress_ssl.page.curves import LETTER, WIDTH
from compress_ssl.page.models import Comparison

PAIRS = 10  # told of each model
SIDE = 20  # rows and columns of a table up to which it is drawn
NAME = 16  # letters of a class's name that there is room for beside a map
MAPS = (  # name in results.json, title, what a row is, what its name is called
    ("confusion_classes", "Classes", "one row a class, its columns the class of the nearest training image", "{}"),
    (
        "confusion_clusters",
        "Clusters",
        "one row a cluster, called after a class; its columns are classes",
        "cluster {}",
    ),
)


def confused(comparisons: Sequence[Comparison]) -> list[dict[str, Any]]:
    """One section for each data set: {"data", "models": [{"name", "pairs", "maps"}]}, of models that have tables."""
    found = []
    for one in comparisons:
        models = []
        for model in one.models:
            tables = model.entry.get("tables", {})
            pairs = most_confused(tables["confusion_classes"]) if "confusion_classes" in tables else []
            maps = [
                {"title": title, "about": about, **heat_map(tables[key], called)}
                for key, title, about, called in MAPS
                if key in tables and max(len(tables[key]["rows"]), len(tables[key]["columns"])) <= SIDE
            ]
            if pairs or maps:
                models.append({"name": model.name, "pairs": pairs, "maps": maps})
        if models:
            found.append({"data": one.data, "models": models})
    return found


def most_confused(table: dict[str, Any]) -> list[dict[str, Any]]:
    """The PAIRS pairs (true class, class it is taken for) with the largest shares of the true class's images."""
    pairs = [
        {"true": name, "taken_for": other, "count": count, "of": sum(counts), "share": count / sum(counts)}
        for row, (name, counts) in enumerate(zip(table["rows"], table["counts"], strict=True))
        for column, (other, count) in enumerate(zip(table["columns"], counts, strict=True))
        if count and row != column
    ]
    return sorted(pairs, key=lambda pair: -pair["share"])[:PAIRS]


def heat_map(table: dict[str, Any], called: str) -> dict[str, Any]:
    """Where everything stands, in units of which the map is WIDTH wide: a cell is as dark as its share of its row."""
    names, columns = ([short(name) for name in table[side]] for side in ("rows", "columns"))
    left = 8 + LETTER * max(map(len, names))
    top = 8 + LETTER * max(map(len, columns))
    side = min((WIDTH - left) / len(columns), 34.0)
    cells = []
    for row, counts in enumerate(table["counts"]):
        for column, count in enumerate(counts):
            if count:
                told = f"{called.format(table['rows'][row])}: {count} of {sum(counts)} {table['columns'][column]}"
                cells.append((left + column * side, top + row * side, count / sum(counts), told))
    return {
        "left": left,
        "top": top,
        "side": side,
        "width": WIDTH,
        "height": top + side * len(names) + 2,
        "right": left + side * len(columns),
        "bottom": top + side * len(names),
        "names": [(top + (row + 0.5) * side, name) for row, name in enumerate(names)],
        "columns": [(left + (column + 0.5) * side, name) for column, name in enumerate(columns)],
        "cells": cells,
    }


def short(name: str) -> str:
    """A name of NAME letters at most, its middle left out."""
    return name if len(name) <= NAME else f"{name[: NAME // 2]}…{name[1 - NAME // 2 :]}"
