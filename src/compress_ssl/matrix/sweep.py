"""A swept option as a figure: each score against the option's value, mean with a band of ± one standard deviation.

Numbers stand where they belong, on a logarithmic axis if the largest is at least ten times the smallest; values that
are no numbers (cached, live) stand side by side with bars. Lines are labelled where they end. It is plain SVG.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape

from compress_ssl.matrix.results import COSTS, Result
from compress_ssl.matrix.summary import Value, short_name
from compress_ssl.metric_names import heading, without_spreads
from compress_ssl.page.curves import Axis, spread

COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#b07d00", "#3a3a3a")  # told apart without red or green
WIDTH, HEIGHT, LEFT, TOP, BOTTOM = 440, 280, 46, 34, 44  # of one panel
LETTER, GAP, TICK = 6.2, 14, 30  # width of a letter, height of a label, least distance of two values on the axis
PANELS = 2  # side by side


@dataclass(frozen=True)
class Curve:
    """Scores of one row on one student: setting -> percent, mean and deviation over seeds."""

    name: str
    points: dict[str, Value]


def drawings(results: Sequence[Result]) -> dict[str, str]:
    """File name -> SVG, one for each data set and swept option."""
    keys = dict.fromkeys((one.dataset, one.option) for one in results if one.option)
    several = len({dataset for dataset, _ in keys}) > 1
    found = {}
    for dataset, option in keys:
        own = [one for one in results if (one.dataset, one.option) == (dataset, option)]
        name = f"sweep_{option.rpartition('.')[2]}" + (f"_{dataset}" if several else "")
        found[f"{name}.svg"] = drawing(own, title=f"{dataset}: {option}")
    return found


def drawing(results: Sequence[Result], *, title: str) -> str:
    """All scores of one swept option, a panel each."""
    settings = list(dict.fromkeys(one.setting for one in results))
    if _numbers(settings) is not None:
        settings.sort(key=float)
    metrics = [metric for metric in without_spreads(one.metric for one in results) if metric not in COSTS]
    panels = [_panel(heading(metric), settings, _curves(results, metric)) for metric in metrics]
    columns = min(PANELS, len(panels))
    rows = math.ceil(len(panels) / columns)
    width, height = columns * WIDTH, rows * HEIGHT + 30
    placed = [
        f'<g transform="translate({number % columns * WIDTH} {30 + number // columns * HEIGHT})">{panel}</g>'
        for number, panel in enumerate(panels)
    ]
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" width="{width}" height="{height}" '
        f'font-family="system-ui, sans-serif" font-size="11" role="img" aria-label="{escape(title)}">'
        f'<rect width="{width}" height="{height}" fill="#fff"/>'
        f'<text x="12" y="20" font-size="14" font-weight="600">{escape(title)}</text>{"".join(placed)}</svg>\n'
    )


def _curves(results: Sequence[Result], metric: str) -> list[Curve]:
    """Of every row and student that has the metric."""
    own = [one for one in results if one.metric == metric]
    rows = list(dict.fromkeys((one.student, one.objective) for one in own))
    students, objectives = ({row[side] for row in rows} for side in (0, 1))
    curves = []
    for student, objective in rows:
        parts = [objective] * (len(objectives) > 1 or len(students) == 1) + [short_name(student)] * (len(students) > 1)
        members = [one for one in own if (one.student, one.objective) == (student, objective)]
        points = {
            setting: Value.of([100 * one.value for one in members if one.setting == setting])
            for setting in dict.fromkeys(one.setting for one in members)
        }
        curves.append(Curve(" · ".join(parts), points))
    return curves


def _panel(title: str, settings: list[str], curves: list[Curve]) -> str:
    labels = [name if len(name := curve.name) <= 22 else f"{name[:10]}…{name[-11:]}" for curve in curves]
    right, bottom = WIDTH - GAP - LETTER * max(map(len, labels)), HEIGHT - BOTTOM
    numbers = _numbers(settings)
    across = Axis(numbers or list(range(len(settings))), start=LEFT, end=right, margin=0.06)
    at = {
        setting: across.place(value) for setting, value in zip(settings, numbers or range(len(settings)), strict=True)
    }
    ends = [value.mean + sign * (value.deviation or 0) for curve in curves for value in curve.points.values()
            for sign in (-1, 1)]  # fmt: skip
    up = Axis(ends, start=bottom, end=TOP, margin=0.08)
    parts = [f'<text x="{LEFT}" y="18" font-weight="600">{escape(title)}, %</text>']
    for y, words in up.ticks():
        parts.append(f'<line x1="{LEFT}" x2="{right:.1f}" y1="{y:.1f}" y2="{y:.1f}" stroke="#e3e6ec"/>')
        parts.append(f'<text x="{LEFT - 6}" y="{y + 4:.1f}" text-anchor="end" fill="#596375">{words}</text>')
    before = -math.inf
    for setting in settings:
        if at[setting] - before >= min(TICK, LETTER * (len(setting) + 1)):
            before = at[setting]
            parts.append(f'<text x="{before:.1f}" y="{bottom + 18}" text-anchor="middle" fill="#596375">'
                         f"{escape(setting)}</text>")  # fmt: skip
    last = [list(curve.points.values())[-1] for curve in curves]
    heights = spread([up.place(value.mean) for value in last], gap=GAP, low=TOP, high=bottom)
    for number, (curve, label, height) in enumerate(zip(curves, labels, heights, strict=True)):
        colour = COLOURS[number % len(COLOURS)]
        dashes = f' stroke-dasharray="{4 + 2 * (number // len(COLOURS))} 3"' if number >= len(COLOURS) else ""
        there = [(at[setting], curve.points[setting]) for setting in settings if setting in curve.points]
        parts.append(_bars(there, up, colour) if numbers is None else _band(there, up, colour, dashes))
        parts += [f'<circle cx="{x:.1f}" cy="{up.place(value.mean):.1f}" r="3" fill="{colour}"><title>{label}: '
                  f"{value.mean:.1f}</title></circle>".replace(label, escape(label)) for x, value in there]  # fmt: skip
        parts.append(f'<text x="{right + 6:.1f}" y="{height + 4:.1f}" fill="{colour}">{escape(label)}</text>')
    return "".join(parts)


def _band(there: list[tuple[float, Value]], up: Axis, colour: str, dashes: str) -> str:
    """A line through the means, and the deviations around it."""
    line = " ".join(f"{x:.1f},{up.place(value.mean):.1f}" for x, value in there)
    over = [f"{x:.1f},{up.place(value.mean + (value.deviation or 0)):.1f}" for x, value in there]
    under = [f"{x:.1f},{up.place(value.mean - (value.deviation or 0)):.1f}" for x, value in there]
    return (
        f'<polygon points="{" ".join([*over, *under[::-1]])}" fill="{colour}" fill-opacity="0.15"/>'
        f'<polyline points="{line}" fill="none" stroke="{colour}" stroke-width="1.8"{dashes}/>'
    )


def _bars(there: list[tuple[float, Value]], up: Axis, colour: str) -> str:
    """A bar of deviation at each mean; between values that are no numbers there is nothing."""
    return "".join(
        f'<line x1="{x:.1f}" x2="{x:.1f}" y1="{up.place(value.mean - (value.deviation or 0)):.1f}" '
        f'y2="{up.place(value.mean + (value.deviation or 0)):.1f}" stroke="{colour}" stroke-width="1.8"/>'
        for x, value in there
    )


def _numbers(settings: Sequence[str]) -> list[float] | None:
    """Where the settings stand, in logarithms where they span a decade; None if they are no numbers."""
    try:
        values = [float(setting) for setting in settings]
    except ValueError:
        return None
    if not all(map(math.isfinite, values)):
        return None
    if min(values) > 0 and max(values) >= 10 * min(values):
        return [math.log10(value) for value in values]
    return values
