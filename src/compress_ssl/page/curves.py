"""Metrics of runs -> figures: loss, neighbours kept, 1-NN beside the teacher's; page.html writes them as SVG.

Runs are labelled where they end: the eye needs no legend and no colour sense.
"""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from itertools import accumulate
from typing import Any

from compress_ssl.page.folders import Folder
from compress_ssl.page.words import finite

RUN_COLOURS = 8  # colours of the style sheet; beyond them the same colours come back with another line pattern
POINTS = 240  # of a drawn curve; more are averaged in equal stretches
WIDTH, LEFT, TOP, BOTTOM = 400, 40, 12, 34  # about its size on a phone, so that its text is never scaled to nothing
GAP, LETTER = 14, 6.3  # height of a label, width of a letter
HELD_OUT = "held-out images, higher is better"
QUANTITIES = (  # title, what it is, kind of row, key, the teachers' keys, form, scale
    ("Loss in training", "lower is better", "train", "loss", "", "{:#.3g}", 1),
    ("Neighbours kept, of 10", HELD_OUT, "validation", "neighbour_overlap_10", "", "{:.1f}", 10),
    ("1-NN, %", HELD_OUT, "validation", "nearest_neighbour", r"teacher(_\d+)?_nearest_neighbour", "{:.1f}", 100),
)


def figures(folders: Sequence[Folder], names: dict[str, str]) -> list[dict[str, Any]]:
    """One figure a quantity with all runs in it; `names` by folder label."""
    drawn = []
    for title, about, kind, key, teachers_key, form, scale in QUANTITIES:
        lines: list[dict[str, Any]] = []
        teachers: dict[float, tuple[str, str]] = {}  # level -> teacher and run; equal teachers are drawn once
        for position, folder in enumerate(folders):
            curve = series(getattr(folder, kind), key, scale=scale)
            if curve:
                lines.append({"name": names[folder.label], "curve": curve, "run": position})
            for found in keys(getattr(folder, kind), teachers_key):
                for _, level in series(getattr(folder, kind), found, scale=scale)[-1:]:
                    teacher = found.removesuffix("_nearest_neighbour")
                    teachers.setdefault(round(level, 2), (teacher, names[folder.label]))
        if not lines:
            continue
        end = max(line["curve"][-1][0] for line in lines)
        for level, (teacher, name) in teachers.items():
            name = teacher if len({run for _, run in teachers.values()}) == 1 else f"{teacher} of {name}"
            lines.append({"name": name, "curve": [(0.0, level), (end, level)], "run": None})
        said = [f"{line['name']} {form.format(line['curve'][-1][1]).removesuffix('.')}" for line in lines]
        summary = "At the end: " + " · ".join(said) + "."
        if kind == "train" and len(lines) > 1:
            summary += " Losses of different objectives are not on one scale."
        if any(keys(getattr(folder, kind), rf"{key}_teacher_\d+") for folder in folders):
            summary += " Of several teachers it is the mean, weighted as they teach."
        if all(len(line["curve"]) == 1 for line in lines if line["run"] is not None):
            summary = summary.replace("At the end", "One value logged", 1)
        drawn.append({"title": title, "about": about, "summary": summary, **layout(lines)})
    return drawn


def keys(rows: Sequence[dict[str, Any]], pattern: str) -> list[str]:
    """Names of the quantities in these rows that a pattern is of, in their order; none for an empty one."""
    found = dict.fromkeys(name for row in rows for name in row if pattern and re.fullmatch(pattern, name))
    return list(found)


def series(rows: Sequence[dict[str, Any]], key: str, *, scale: float) -> list[tuple[float, float]]:
    """(epoch, value) where the value is finite, averaged down to POINTS; the last epoch stays."""
    points = [(row["epoch"], scale * value) for row in rows if (value := finite(row.get(key))) is not None]
    stretch = math.ceil(len(points) / POINTS) or 1
    parts = [points[start : start + stretch] for start in range(0, len(points), stretch)]
    return [(part[-1][0], math.fsum(y for _, y in part) / len(part)) for part in parts]


def layout(lines: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Where everything in a figure stands, in units of which it is WIDTH wide; y grows downwards."""
    labels = [name if len(name := line["name"]) <= 20 else f"{name[:9]}…{name[-10:]}" for line in lines]
    right = WIDTH - GAP - LETTER * max(map(len, labels))
    height = max(250, GAP * len(lines) + 60)
    points = [point for line in lines for point in line["curve"]]
    zero = [(0.0, 0.0)] * (len(points) == len(lines))  # dots alone: how high they stand is read from nought
    across = Axis([x for x, _ in points + zero], start=LEFT, end=right, margin=0.02)
    up = Axis([y for _, y in points + zero], start=height - BOTTOM, end=TOP, margin=0.06)
    curves = [[(across.place(x), up.place(y)) for x, y in line["curve"]] for line in lines]
    heights = spread([curve[-1][1] for curve in curves], gap=GAP, low=GAP / 2, high=height - GAP / 2)
    for line, curve, label, place in zip(lines, curves, labels, heights, strict=True):
        line |= {"places": curve, "label": label, "height": place}
    box = {"width": WIDTH, "left": LEFT, "right": right, "height": height, "bottom": height - BOTTOM}
    return {**box, "lines": lines, "epochs": across.ticks(), "values": up.ticks()}


class Axis:
    """Values -> places from `start` to `end`, with a margin beyond the smallest and the largest value."""

    def __init__(self, values: Sequence[float], *, start: float, end: float, margin: float):
        self.low, self.high = min(values), max(values)
        extra = margin * (self.high - self.low) or 0.05 * abs(self.high) or 1.0
        self.low, self.high, self.start, self.end = self.low - extra, self.high + extra, start, end

    def place(self, value: float) -> float:
        return self.start + (value - self.low) / (self.high - self.low) * (self.end - self.start)

    def ticks(self) -> list[tuple[float, str]]:
        """(place, words) of at most six round values."""
        fifth = (self.high - self.low) / 5
        power = 10.0 ** math.floor(math.log10(fifth))
        step = next(n * power for n in (1, 1.5, 2, 2.5, 3, 4, 5, 10) if n * power >= fifth)
        values = [step * n for n in range(math.ceil(self.low / step), math.floor(self.high / step) + 1)]
        return [(self.place(value), f"{value:.10g}") for value in values]


def spread(places: Sequence[float], *, gap: float, low: float, high: float) -> list[float]:
    """Places of labels near to `places` in the same order, no two nearer than `gap`, all within low..high.

    The mean of two ways to make room: everybody moves up, and everybody moves down.
    """
    order = sorted(range(len(places)), key=places.__getitem__)
    most = [high - gap * rank for rank in reversed(range(len(order)))]
    wanted = [min(max(places[n], low + gap * rank), most[rank]) for rank, n in enumerate(order)]
    up = list(accumulate(wanted, lambda below, place: max(place, below + gap)))
    down = list(accumulate(reversed(wanted), lambda above, place: min(place, above - gap)))[::-1]
    placed = {n: (one + other) / 2 for n, one, other in zip(order, up, down, strict=True)}
    return [placed[n] for n in range(len(places))]
