"""Raw numbers -> one table: a line each row of the matrix, mean ± sample standard deviation over seeds, best in bold.

Best is the highest mean among the students of one architecture that learned from the teacher, as far as the table shows
digits: what is equal there is bold together. Supervised and teacherless rows frame the table and do not compete.
"""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import dataclass, field

from compress_ssl.matrix.results import COSTS, TEACHER, Result
from compress_ssl.metric_names import explanations, heading, without_spreads


@dataclass(frozen=True)
class Value:
    """Of one metric over the seeds.

    deviation: of the sample (n - 1); None of a single one.
    """

    mean: float
    deviation: float | None
    count: int

    @classmethod
    def of(cls, values: Sequence[float]) -> Value:
        several = len(values) > 1
        return cls(statistics.fmean(values), statistics.stdev(values) if several else None, len(values))


@dataclass
class Line:
    """One row of the matrix on one student."""

    student: str
    objective: str
    option: str
    setting: str
    seeds: int = 0
    values: dict[str, Value] = field(default_factory=dict)
    best: set[str] = field(default_factory=set)  # metrics in which none is better
    competes: bool = False

    @property
    def name(self) -> str:
        return f"{self.objective}, {self.option} {self.setting}" if self.option else self.objective

    def text(self, metric: str) -> str:
        """As the table writes it: percent of scores, minutes as they are; "" where missing."""
        value = self.values.get(metric)
        if value is None:
            return ""
        scale = 1 if metric in COSTS else 100
        mean = f"{scale * value.mean:.1f}"
        return mean if value.deviation is None else f"{mean} ± {scale * value.deviation:.1f}"


@dataclass(frozen=True)
class Summary:
    """The table of one data set.

    notes: sentences that belong below it.
    """

    dataset: str
    metrics: tuple[str, ...]
    lines: tuple[Line, ...]
    notes: tuple[str, ...]

    @property
    def headings(self) -> list[str]:
        return ["student", "objective", "n", *map(heading, self.metrics)]

    def cells(self, line: Line) -> list[str]:
        count = "" if line.objective == TEACHER else str(line.seeds)
        return [short_name(line.student), line.name, count, *map(line.text, self.metrics)]


def summaries(results: Sequence[Result]) -> list[Summary]:
    """One table each data set, lines in the order in which the results come, the teacher first."""
    return [_summary(name, [one for one in results if one.dataset == name])
            for name in dict.fromkeys(one.dataset for one in results)]  # fmt: skip


def short_name(spec: str) -> str:
    """A student as a table names it: without the family, and of a folder the last part."""
    return spec.rstrip("/").rpartition("/")[2]


def _summary(dataset: str, results: list[Result]) -> Summary:
    grouped: dict[tuple[str, str, str, str], list[Result]] = {}
    for one in results:
        grouped.setdefault((one.student, one.objective, one.option, one.setting), []).append(one)
    lines = []
    for key, members in grouped.items():
        line = Line(*key, seeds=len({one.seed for one in members}))
        line.competes = any(one.command.startswith("compress-ssl distill") for one in members)
        for metric in dict.fromkeys(one.metric for one in members):
            line.values[metric] = Value.of([one.value for one in members if one.metric == metric])
        lines.append(line)
    lines.sort(key=lambda line: line.objective != TEACHER)
    used = dict.fromkeys(metric for line in lines for metric in line.values)
    metrics = [metric for metric in without_spreads(used) if metric not in COSTS]
    _mark_best(lines, metrics)
    shown = (*metrics, *(["minutes"] if "minutes" in used else []))
    explained = explanations(metrics)
    notes = [*_notes(lines, results), *([f"{'; '.join(explained)}."] if explained else [])]
    return Summary(dataset, shown, tuple(lines), tuple(notes))


def _mark_best(lines: list[Line], metrics: list[str]) -> None:
    for student in {line.student for line in lines if line.objective != TEACHER}:
        own = [line for line in lines if line.student == student and line.objective != TEACHER]
        own = [line for line in own if line.competes] or own
        for metric in metrics:
            means = {number: line.text(metric).partition(" ")[0] for number, line in enumerate(own)
                     if metric in line.values}  # fmt: skip
            top = max(map(float, means.values()), default=None)
            for number, mean in means.items():
                if float(mean) == top:
                    own[number].best.add(metric)


def _notes(lines: list[Line], results: list[Result]) -> list[str]:
    students = [line for line in lines if line.objective != TEACHER]
    counts = sorted({line.seeds for line in students})
    over = f"{counts[0]} seeds" if len(counts) == 1 and counts[0] > 1 else "n seeds"
    varies = any(value.deviation is not None for line in students for value in line.values.values())
    spread = f", mean ± sample standard deviation over {over}" if varies else ""
    told = [f"Percent of the test split{_images(results)}{spread}; the best mean of each student is bold."]
    epochs = sorted({one.epochs for one in results if one.epochs})
    if epochs:
        told.append(f"Epochs: {', '.join(f'{one:g}' for one in epochs)}.")
    teacher = next((line for line in lines if line.objective == TEACHER), None)
    teachers = teacher.values.get("multiply_adds") if teacher else None
    for student in dict.fromkeys(line.student for line in students):
        line = next((one for one in students if one.student == student and "multiply_adds" in one.values), None)
        if line is not None:
            told.append(f"{short_name(student)}: {_size(line)}{_fewer(line, teachers)}.")
    if teacher is not None and teachers is not None:
        told.append(f"The teacher, {short_name(teacher.student)}: {_size(teacher)}.")
    told += [f"Minutes are of training, on {one}." for one in sorted({one.hardware for one in results if one.hardware})]
    return told


def _images(results: list[Result]) -> str:
    """How many images the test split has, where the results say so."""
    counts = sorted({int(one.value) for one in results if one.metric == "test_images"})
    told = " to ".join(f"{count:,}".replace(",", " ") for count in dict.fromkeys((*counts[:1], *counts[-1:])))
    return f", {told} images" if told else ""


def _size(line: Line) -> str:
    parameters = line.values.get("parameters")
    sizes = [] if parameters is None else [f"{counted(parameters.mean)} parameters"]
    return ", ".join([*sizes, f"{counted(line.values['multiply_adds'].mean)} multiply-adds an image"])


def _fewer(line: Line, teacher: Value | None) -> str:
    if teacher is None:
        return ""
    ratio = teacher.mean / line.values["multiply_adds"].mean
    if 0.98 < ratio < 1.02:
        return ", as many as the teacher"
    return f", {ratio:.1f} times fewer than the teacher" if ratio > 1 else f", {1 / ratio:.1f} times the teacher's"


def counted(number: float) -> str:
    """Three digits and a unit: 11.2M."""
    for unit, size in (("G", 1e9), ("M", 1e6), ("k", 1e3)):
        if number >= size:
            return f"{number / size:.3g}{unit}"
    return f"{number:g}"
