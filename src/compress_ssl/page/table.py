"""A comparison -> cells: what was kept, what it costs, and why a number is missing; headings are in page.html."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from compress_ssl.metric_names import SPREADS, without_spreads
from compress_ssl.page.models import Comparison, Model
from compress_ssl.page.words import THIN, against, of_ten, percent, short, whole

METRICS = (
    "nearest_neighbour",
    "nearest_neighbour_20",
    "linear_probe",
    "cluster_alignment",
    "neighbour_overlap_10",
    "asymmetric_nearest_neighbour",
)
KEPT = "neighbour_overlap_10"
BESIDE_TEACHER = ("neighbour_overlap", "cka")  # likeness to the teacher: its own is 1, and nothing to be held to
ROOM = 3  # scores beyond METRICS that the table has room for; more of them get one of their own
COSTS: dict[str, tuple[str, str] | None] = {  # what a student with a larger value is called, with a smaller value
    "parameters": ("more", "fewer"),
    "flops": ("more", "fewer"),
    "weights_bytes": ("larger", "smaller"),
    "images_per_second": ("faster", "slower"),
    "width": None,
    "input_size": None,
}


@dataclass(frozen=True)
class Cell:
    text: str = ""  # "" where missing
    title: str = ""  # the number in full, or why it is missing
    small: str = ""  # beside the teacher
    best: bool = False
    bar: float | None = None  # 0..1, length of the bar
    tick: float | None = None  # 0..1, the teacher's place on it


def table(one: Comparison, *, colours: dict[Path, int]) -> dict[str, Any]:
    """All that the page shows of one comparison; `colours` are those of the curves, by run folder."""
    used = set(without_spreads(key for model in one.models for key in model.entry["metrics"]))
    of_each = sorted(key for key in used if key.startswith(f"{KEPT}_"))  # of several teachers: …_teacher_2
    listed = [key for known in METRICS for key in (known, f"{known}_per_class", *(of_each if known == KEPT else ()))]
    metrics, more = [key for key in listed if key in used], sorted(used.difference(listed), key=in_order)
    if len(more) <= ROOM:
        metrics, more = metrics + more, []
    costs = [key for key in COSTS if any(model.entry.get(key) for model in one.models)]
    rows = []
    for model in one.models:
        cells = [metric_cell(one, model, key) for key in metrics] + [cost_cell(one, model, key) for key in costs]
        rows.append((model, colours.get(model.place), cells))
    beyond = [(key, [metric_cell(one, model, key) for model in one.models]) for key in more]
    shown = [*(cells for _, _, cells in rows), *(cells for _, cells in beyond)]
    dashes = [cell.title for cells in shown for cell in cells if not cell.text]
    absent: dict[str, list[str]] = {}  # why -> metrics that no model has
    for key in METRICS:
        if key not in used:
            absent.setdefault(why_missing(one, one.models[-1], key), []).append(key)
    return {
        "of": one,
        "machines": list(dict.fromkeys(machine(model) for model in one.models)),
        "metrics": metrics,
        "costs": costs,
        "rows": rows,
        "more": beyond,
        "dashes": list(dict.fromkeys(dashes)),
        "absent": absent,
    }


def in_order(key: str) -> list[str | int]:
    """Sorts names as people count: overlap 5 before overlap 10."""
    return [int(part) if place % 2 else part for place, part in enumerate(re.split(r"(\d+)", key))]


def metric_cell(one: Comparison, model: Model, key: str) -> Cell:
    """One quality of one model, beside the teacher's."""
    value = model.value(key)
    if value is None:
        return Cell(title=why_missing(one, model, key))
    beside = key.startswith(BESIDE_TEACHER)
    if beside and one.several and model in one.teachers:
        return Cell(title=why_missing(one, model, key))  # all of its own: no number that a student could be held to
    write = of_ten if key.startswith(KEPT) else percent
    spread = next((found for end in SPREADS if (found := model.value(key + end)) is not None), None)
    is_student = model in one.students
    scores = [score for student in one.students if (score := student.value(key)) is not None]
    reference = "" if beside else "nearest_neighbour" if key == "asymmetric_nearest_neighbour" else key
    teacher = one.models[0].value(reference) if is_student and not one.several else None
    return Cell(
        text=write(value) + (f" ± {100 * spread:.1f}" if spread is not None else ""),
        title=f"{value:.6g}",
        small=f"{percent(value / teacher)} kept" if teacher else "",
        best=is_student and len(scores) > 1 and write(value) == write(max(scores)),
        bar=min(value, 1.0),
        tick=teacher,
    )


def cost_cell(one: Comparison, model: Model, key: str) -> Cell:
    """One size of one model, and how it stands to the teacher's."""
    value, teacher, compared = model.entry.get(key), one.models[0].entry.get(key), COSTS[key]
    if value is None:
        return Cell(title="not recorded")
    if key in ("parameters", "flops", "weights_bytes"):
        text = short(value, unit="B" if key == "weights_bytes" else "")
    else:
        text = (whole(value) if value >= 100 else f"{value:.3g}") + (f"{THIN}px" if key == "input_size" else "")
    small = against(value, teacher, *compared) if compared and model in one.students and not one.several else ""
    return Cell(text=text, title=whole(value), small=small)


def why_missing(one: Comparison, model: Model, key: str) -> str:
    """Why there is a dash, in the words of the evaluation that could not be done."""
    if model in one.teachers and key.startswith(BESIDE_TEACHER):
        return f"{'a' if one.several else 'the'} teacher is what students are compared with"
    if key in model.entry["metrics"]:
        return f"not a finite number: {model.entry['metrics'][key]}"
    for evaluation, why in model.entry["missing"].items():
        if f"{key}_".startswith(f"{evaluation}_"):  # neighbour_overlap writes neighbour_overlap_10
            return str(why)
    return "not measured"


def machine(model: Model) -> str:
    """Where it was scored."""
    told = (model.folder.results or {})["hardware"]
    return ", ".join([*told["accelerators"], told["processor"], f"{told['cores']} cores"])
