"""A file of options -> the cells of the matrix: one ordinary training each, with its whole configuration.

Everything is built, and so judged, before anything runs: an option that does not exist in the last of a hundred cells
is told in the first second.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

from compress_ssl import distill, embed, pretrain, settings
from compress_ssl.refusal import Refusal, as_keys, nearest
from compress_ssl.stored import is_stored
from compress_ssl.transforms import TrainView

LIVE, CACHED = "live", "cached"
Views = Literal["live", "cached"] | int
# what the benchmark itself decides, or every training of one table must share
OWN = ("data", "teacher", "student", "encoder", "out", "seed", "resume", "accelerator", "devices", "nodes")
BUDGET = ("training", "hardware", "held_out", "gallery", "unusual", "strict")  # what rows of the frame share too
METHODS = {"alone": "simclr"}  # row of the frame -> the file of pretraining/, where it is not called as the row


@dataclass(frozen=True, kw_only=True)
class Sweep:
    """One option that takes several values, each a setting of the rows."""

    option: str  # dotted, as `distill` takes it (objective.temperature); or views: live, cached or a number
    values: tuple[Any, ...]
    objectives: tuple[str, ...] = ()  # rows that it is done for; none named: all objectives

    def __post_init__(self) -> None:
        if not self.values:
            raise Refusal(f"sweep.values expected at least one value of {self.option}, got none: write a list")
        told = [written(value) for value in self.values]
        for value in told:
            if told.count(value) > 1:
                raise Refusal(f"sweep.values expected every value once, got {value} twice: remove one")


@dataclass(frozen=True)
class Untrained:
    """The student as it is before any training."""

    student: str
    size: int | None
    seed: int


@dataclass(frozen=True)
class Cell:
    """One training of the matrix and its place in the tables.

    config: of `distill` or `pretrain`, or Untrained.
    """

    student: str
    row: str
    seed: int
    folder: Path
    config: Any
    option: str = ""  # that is swept, "" if none is
    setting: str = ""  # its value

    @property
    def told(self) -> str:
        """As a line of the terminal names it."""
        swept = f" {self.option} {self.setting}" if self.option else ""
        return f"{self.student} · {self.row}{swept} · seed {self.seed}"


@dataclass(frozen=True, kw_only=True)
class Matrix:
    """What all cells share, and the rows, columns and repeats that they are made of.

    common, objectives, frame: as the file holds them, see benchmark.Config.
    size: pixels of the teacher's input, which the students share; None where nothing is known of it.
    accelerator: as HardwareConfig takes it.
    """

    data: str
    teacher: str
    out: Path
    students: tuple[str, ...]
    seeds: tuple[int, ...]
    views: Views
    common: Any
    objectives: Any
    frame: Any
    sweep: Sweep | None
    size: int | None
    accelerator: str

    def cells(self) -> list[Cell]:
        """All cells in the order of the tables.

        Raises: Refusal if an option is unknown or cannot be used, with the row that has it.
        """
        for name, values in (("students", self.students), ("seeds", self.seeds)):
            if not values or len(set(values)) < len(values):
                raise Refusal(f"{name} expected at least one, each once, got {' '.join(map(str, values)) or 'none'}: "
                              "correct the list")  # fmt: skip
        if min(self.seeds) < 0:
            raise Refusal(f"seeds expected 0 or more, got {min(self.seeds)}: choose another")
        common = _mapping(self.common, "common")
        rows, frame = _named(self.objectives, "objectives"), _named(self.frame, "frame")
        if both := [row for row in frame if row in rows]:
            raise Refusal(f"expected rows of different names, got {both[0]} in objectives and in frame: rename one")
        if not rows and not frame:
            raise Refusal("objectives expected at least one row, got none: name objectives to compare")
        for row in () if self.sweep is None else self.sweep.objectives:
            if row not in rows:
                raise Refusal(f"sweep.objectives expected rows of objectives, got {row}: {nearest(row, rows)}")
        made = [self._distilled(row, common, rows[row], value) for row in rows for value in self._values(row)]
        made += [self._framed(row, common, options) for row, options in frame.items()]
        return [_placed(cell, student, seed) for student in self.students for cell in made for seed in self.seeds]

    def tables(self, cells: list[Cell]) -> list[embed.Config]:
        """Tables of stored embeddings that the cells need, first the one that students are scored beside.

        Empty where the teacher is stored rows itself.
        """
        if is_stored(self.teacher):
            return []
        configs = [cell.config for cell in cells if isinstance(cell.config, distill.Config)]
        like = configs[0] if configs else self._build(distill.Config, [_mapping(self.common, "common")], "common")
        wanted = {config.teacher: self._table(config) for config in configs if config.teacher != self.teacher}
        count = self.views if isinstance(self.views, int) else 0
        scoring = self._table(replace(like, teacher=self._folder(count, like.view)))
        return list({str(scoring.out): scoring, **wanted}.values())

    def _values(self, row: str) -> tuple[Any, ...]:
        """What the swept option is in this row, one after the other; None where it is not swept."""
        if self.sweep is None or (self.sweep.objectives and row not in self.sweep.objectives):
            return (None,)
        return self.sweep.values

    def _distilled(self, row: str, common: dict[str, Any], options: dict[str, Any], value: Any) -> Cell:
        where, setting = f"objectives.{row}", ""
        views = _views(options.get("views", self.views), where)
        options = {name: value for name, value in options.items() if name != "views"}
        layers = [common, _with_name(options, "objective", row)]
        option = "" if value is None or self.sweep is None else self.sweep.option
        if option:
            setting, where = written(value), f"{where} with {option} {written(value)}"
            if option == "views":
                views = _views(value, where)
            else:
                layers.append(_nested({option.replace("-", "_"): value}, where))
        config = self._build(distill.Config, layers, where)
        if views not in (LIVE, 0):
            if is_stored(self.teacher):
                raise Refusal(f"{where}: views expected live where the teacher is stored rows, which are used as they "
                              f"are, got {views}: leave views out")  # fmt: skip
            count = views if isinstance(views, int) else 0
            config = replace(config, teacher=self._folder(count, config.view))
        if views == CACHED:
            config = replace(config, stored=replace(config.stored, student_view="random"))
        return Cell("", row, 0, self.out / "runs", config, option, setting)

    def _framed(self, row: str, common: dict[str, Any], options: dict[str, Any]) -> Cell:
        """Of a row that has no teacher: what `pretrain` makes of the student, or the student untrained.

        From the common options it takes the budget; a learning rate that suits distillation would not suit it.
        """
        where = f"frame.{row}"
        if row == "random":
            if options:
                raise Refusal(f"{where} expected no options, got {', '.join(options)}: it is never trained")
            return Cell("", row, 0, self.out / "runs", Untrained("", self.size, 0))
        own = {name: value for name, value in settings.grouped(pretrain.Config, common).items() if name in BUDGET}
        layers = [own, _with_name(options, "method", METHODS.get(row, row))]
        return Cell("", row, 0, self.out / "runs", self._build(pretrain.Config, layers, where))

    def _build(self, kind: type, layers: list[dict[str, Any]], where: str) -> Any:
        """The configuration that the layers make, the last one counting most, with what is the benchmark's own."""
        families = {"objective": "objectives"} if kind is distill.Config else {"method": "pretraining"}
        for number, layer in enumerate(layers):
            inner = [part for group in ("training", "hardware") if isinstance(part := layer.get(group), dict)]
            for name in OWN:
                if any(name in part for part in (layer, *inner)):
                    raise Refusal(f"{where if number else 'common'} expected options of a training, got {name}, which "
                                  "is the benchmark's own: leave it out; data, teacher, students, seeds and devices "
                                  "stand beside common")  # fmt: skip
        own: dict[str, Any] = {"data": self.data, "out": str(self.out / "runs"), "accelerator": self.accelerator}
        own |= {"teacher": self.teacher} if kind is distill.Config else {}

        def build(layers: list[dict[str, Any]]) -> Any:
            values = settings.layered(kind, [*layers, own], families)
            if kind is pretrain.Config and "size" not in values:
                values["size"] = self.size
            return settings.build(kind, values, families)

        try:
            return build(layers)
        except Refusal as refusal:
            told = str(refusal)
        verb = "distill" if kind is distill.Config else "pretrain"
        place = _guilty(build, layers, told, where)
        raise Refusal(f"{place}: {as_keys(told).replace('of this command', f'of {verb}')}")

    def _folder(self, count: int, view: TrainView) -> str:
        name = f"views_{count}" + (f"_{digest(repr(view))}" if count and view != TrainView() else "")
        return str(self.out / "teacher" / name)

    def _table(self, config: distill.Config) -> embed.Config:
        """How the table is made that the cell's configuration names as its teacher."""
        count = int(Path(str(config.teacher)).name.split("_")[1])
        return embed.Config(
            encoder=self.teacher,
            data=self.data,
            out=Path(str(config.teacher)),
            views=count,
            view=config.view if count else TrainView(),
            size=config.teacher_size,
            workers=config.hardware.workers,
            device=self.accelerator,
            unusual=config.unusual,
            strict=config.strict,
        )


def _guilty(build: Callable[[list[dict[str, Any]]], Any], layers: list[dict[str, Any]], told: str, where: str) -> str:
    """Where what is refused was written: in `common`, in the row, in the sweep, or it takes two of them."""

    def refused(layers: list[dict[str, Any]]) -> str | None:
        try:
            build(layers)
        except Refusal as refusal:
            return str(refusal)
        return None

    common, *own = layers
    if refused([common]) == told:
        return "common"
    if len(own) > 1 and refused([common, *own[:-1]]) is None:
        return f"sweep, {where}"
    return where if refused([{}, *own]) == told else f"{where} and common"


def _placed(cell: Cell, student: str, seed: int) -> Cell:
    """The cell of this student and seed, in a folder of its own."""
    folder = cell.folder / file_name(student) / cell.row / file_name(cell.setting) / f"seed{seed}"
    config = cell.config
    if isinstance(config, Untrained):
        config = replace(config, student=student, seed=seed)
    else:
        trained = {"student" if isinstance(config, distill.Config) else "encoder": student}
        config = replace(config, out=folder, training=replace(config.training, seed=seed), **trained)
    return replace(cell, student=student, seed=seed, folder=folder, config=config)


def file_name(words: str) -> str:
    """As a folder may be called."""
    return re.sub(r"[^\w.,=+-]+", "_", words).strip("_.")


def written(value: Any) -> str:
    """A swept value as tables write it."""
    return f"{value:g}" if isinstance(value, float) else str(value)


def digest(words: str) -> str:
    return hashlib.sha256(words.encode()).hexdigest()[:8]


def _mapping(value: Any, where: str) -> dict[str, Any]:
    if value is None:
        return {}
    if not isinstance(value, dict):
        raise Refusal(f"expected options under {where}, got {value!r}: write them as `name: value` lines")
    return _nested(value, where)


def _named(value: Any, where: str) -> dict[str, dict[str, Any]]:
    """Rows with their options, from a mapping or a list of names.

    Raises: Refusal if a row's name cannot be a folder's.
    """
    rows = dict.fromkeys(value) if isinstance(value, (list, tuple)) else value
    if rows is not None and not isinstance(rows, dict):
        raise Refusal(f"expected rows under {where}, got {value!r}: write them as `name: options` lines")
    for row in rows or {}:
        if not isinstance(row, str) or file_name(row) != row or row == "teacher":
            raise Refusal(f"{where} expected names of letters, digits and _ that are not `teacher`, got {row!r}: "
                          "choose another")  # fmt: skip
    return {row: _mapping(options, f"{where}.{row}") for row, options in (rows or {}).items()}


def _nested(values: dict[str, Any], where: str) -> dict[str, Any]:
    """Dotted names as groups: {"a.b": 1} -> {"a": {"b": 1}}."""
    found: dict[str, Any] = {}
    for name, value in values.items():
        group, _, rest = str(name).partition(".")
        inner = _nested({rest: value} if rest else value, where) if rest or isinstance(value, dict) else value
        both = isinstance(inner, dict) and isinstance(found.get(group), dict)
        if group in found and not both:
            raise Refusal(f"{where} expected every option once, got {group} twice: remove one")
        found[group] = settings.merged(found[group], inner) if both else inner
    return found


def _with_name(options: dict[str, Any], family: str, name: str) -> dict[str, Any]:
    """The options with the name of the family's file, which is the row's where none is given."""
    given = options.get(family, {})
    group = given if isinstance(given, dict) else {"name": given}
    return {**options, family: {"name": name, **group}}


def _views(value: Any, where: str) -> Views:
    if value in (LIVE, CACHED) or (isinstance(value, int) and not isinstance(value, bool) and value >= 0):
        return value
    raise Refusal(f"{where}: views expected live, cached or a number from 0 up, got {value!r}: correct it")
