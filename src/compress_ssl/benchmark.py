"""Objectives x students x seeds from one file -> one table: every training an ordinary run, every number in one CSV.

    compress-ssl benchmark configs/benchmark_cifar10.yaml --data cifar10/ --teacher runs/teacher --out bench/cifar10

OUT holds

    teacher/             the teacher's stored embeddings, which all runs share, and its own scores
    runs/STUDENT/ROW[/SETTING]/seedN    a run folder each, with scores.json; seedN.log beside it
    results.csv          the raw numbers: written anew after each run, so it can be read meanwhile
    table.md, table.html, sweep_OPTION.svg

The same command goes on where it was stopped. Several commands on one OUT, of one machine or many, share the runs out
among them. `--results results.csv` makes tables and figures from raw numbers alone.
"""

from __future__ import annotations

import shlex
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Annotated, Any

import torch
import tyro
from rich.console import Console

from compress_ssl import distill, evaluations, settings
from compress_ssl.device import open_device
from compress_ssl.encoder import costs, open_encoder
from compress_ssl.evaluate import Protocols, open_data
from compress_ssl.idle_options import refuse_idle
from compress_ssl.lock import has_locks
from compress_ssl.matrix import pages, results
from compress_ssl.matrix.cell import SCORES, Bench, now, read_scores
from compress_ssl.matrix.crew import Crew, Job, Outcome
from compress_ssl.matrix.plan import Cell, Matrix, Sweep, Views
from compress_ssl.matrix.summary import summaries
from compress_ssl.matrix.sweep import drawings
from compress_ssl.metric_names import HEADLINE, heading, without_spreads
from compress_ssl.refusal import Refusal, about, as_keys, nearest
from compress_ssl.run_folder import write_atomically
from compress_ssl.stored import is_stored, open_stored
from compress_ssl.training import Interrupted

Rows = Annotated[Any, tyro.conf.Suppress]  # of a file alone: mappings of any depth


@dataclass(frozen=True, kw_only=True)
class Config:
    """Train and score objectives x students x seeds, and make one table of them.

    A file has these options and four more, all explained in docs/benchmark.md:

      students: [compress/resnet10_small_w8_s2]
      common: {epochs: 10, optimizer: {learning_rate: 0.05}} # of distill, all rows
      objectives:       # rows, each trained on each student with each seed
        compress: {}    # options of distill beside common's, and views
        sharp:          # the objective is called like the row if it has no name
          objective: {name: compress_2q, temperature: 0.02}
      frame: {alone: {}, supervised: {}, random: {}} # without teacher; of pretrain
      sweep: {option: objective.temperature, values: [0.02, 0.04]}
    """

    data: str | None = None  # required: images: a folder, parquet, digits, torchvision/CIFAR10, …
    teacher: str | None = None  # required: a run folder, timm/NAME, torchvision/NAME, …@weights
    out: Path  # the folder of all runs and tables; one that was begun is gone on with
    students: tuple[str, ...] = ()  # timm/NAME, torchvision/NAME, compress/NAME, …
    seeds: tuple[int, ...] = (0, 1, 2)
    only: tuple[str, ...] = ()  # rows to train, of those in the file; none named: all
    # random views of each image stored for all runs to share, and replayed; live: every run asks the teacher itself (0
    # is the same); cached: the centre view alone is stored, the student sees others (the paper's way)
    views: Views = "live"
    # by which every student is scored: files of evaluations/
    evaluations: tuple[str, ...] = ("nearest_neighbour", "linear_probe", "cluster_alignment", "neighbour_overlap")
    protocols: Protocols = field(default_factory=Protocols)
    devices: tuple[str, ...] = ("auto",)  # one run at a time on each: cpu cpu, cuda:0 cuda:1
    keep_checkpoints: bool = False  # of scored runs too; they are what takes room, and nothing goes on from them
    results: tuple[Path, ...] = ()  # instead of all else: tables and figures of these results.csv
    # in a file: options of `distill` for all rows, dotted or in groups; a row of the frame takes those `pretrain` has
    common: Rows = field(default_factory=dict)
    # in a file: name of the row -> options of `distill`, and views, if others than those above; the objective is called
    # like the row if it has no other name
    objectives: Rows = field(default_factory=dict)
    # in a file: rows without a teacher -> options of `pretrain`: alone (SimCLR) or a method's name; random: untrained
    frame: Rows = field(default_factory=dict)
    sweep: Rows = None  # in a file: option, values, objectives (rows): figures of the scores against the option


def run(config: Config) -> Path:
    """Do what is missing, and write the tables; returns the folder.

    Raises: Refusal if something cannot be done, before anything is, or if a run has failed, after all others are done;
        Interrupted if someone stopped it.
    """
    console = Console(stderr=True)
    if config.results:
        return from_results(config, console)
    for name in ("data", "teacher"):
        if getattr(config, name) is None:
            raise Refusal(f"expected {name}, got nothing for it: write --{name}, or {name}: in the file")
    for name in ("student", "checkpoints", "config.yaml", "manifest.json"):
        if (config.out / name).exists():
            raise Refusal(f"--out expected a new folder or one that a benchmark began, got {config.out}, which holds "
                          f"{name} of another run: name another")  # fmt: skip
    with about("evaluations"):
        for evaluation in config.evaluations:
            evaluations.find(evaluation)
    _refuse_idle(config)
    devices = _devices(config.devices)
    with about("teacher"):
        known = _about(str(config.teacher))
    matrix = matrix_of(config, size=known.pop("size"), accelerator=devices[0].partition(":")[0])
    cells = matrix.cells()
    rows = list(dict.fromkeys(cell.row for cell in cells))
    for row in config.only:
        if row not in rows:
            raise Refusal(f"only expected rows of the file, got {row}: {nearest(row, rows)}")
    chosen = [cell for cell in cells if not config.only or cell.row in config.only]
    tables = matrix.tables(chosen)
    like = next((cell.config for cell in cells if isinstance(cell.config, distill.Config)), None)
    bench = Bench(
        data=str(config.data),
        teacher=str(tables[0].out) if tables else str(config.teacher),
        about=known,
        out=config.out,
        evaluations=config.evaluations,
        protocols=config.protocols,
        device=devices[0],
        unusual=like.unusual if like else "skip",
        held_out=like.held_out if like else 1000,
        workers=like.hardware.workers if like else None,
        batch_size=256,
        keep_checkpoints=config.keep_checkpoints,
        command=shlex.join(["compress-ssl", *sys.argv[1:]]),
    )
    with about("students"):
        _refuse_students(config.students, matrix.size)
    with about("data"):  # refused before anything is trained, if at all
        open_data(bench.data, bench.held_out, unusual=bench.unusual)
    for cell in chosen:
        bench.refuse_other(cell)

    order = [(cell.student, cell.row, cell.setting, cell.seed) for cell in cells]
    before = [Job("embed", (table,), Path(f"{table.out}.log")) for table in tables]
    jobs = [Job("do", (cell,), Path(f"{cell.folder}.log")) for cell in chosen]
    failed: list[str] = []
    try:
        if not has_locks(config.out):
            console.print(f"the file system of {config.out} has no locks: start no other command with this --out "
                          "meanwhile, for both would write the same runs", highlight=False, markup=False)  # fmt: skip
        with Crew(bench, devices) as crew:
            for number, outcome in _each(crew, before, console, "another command embeds the teacher"):
                if outcome.trouble is not None:
                    raise Refusal(f"expected the teacher's embeddings, got: {outcome.trouble}: see "
                                  f"{before[number].log}")  # fmt: skip
            scoring = [Job("score_teacher", (), config.out / "teacher" / "scores.log")]
            for _, outcome in _each(crew, scoring, console, "another command scores the teacher"):
                if outcome.trouble is not None:
                    raise Refusal(f"expected scores of the teacher, got: {outcome.trouble}: see "
                                  f"{scoring[0].log}")  # fmt: skip
            progress = _Progress(console, len(jobs))
            for number, outcome in _each(crew, jobs, console, "another command is at {} of the runs, or was"):
                if outcome.stopped:
                    continue
                if outcome.trouble is not None:
                    failed.append(f"{chosen[number].told}: {as_keys(outcome.trouble)}")
                progress.tell(chosen[number], outcome.value, outcome.trouble and as_keys(outcome.trouble))
                write(config.out, gathered(config.out, order), failed)
    except KeyboardInterrupt:
        raise Interrupted("stopped, everything is saved: the same command goes on") from None
    found = gathered(config.out, order)
    write(config.out, found, failed)
    for summary in summaries(found):
        console.print(pages.rich_table(summary))
        for note in summary.notes:
            console.print(note, highlight=False, markup=False)
    if failed:
        told = "\n".join(failed)
        raise Refusal(f"expected all of {len(chosen)} runs to finish, got {len(failed)} that did not; the tables are "
                      f"of the others, and the same command tries again\n{told}")  # fmt: skip
    return config.out


def matrix_of(config: Config, *, size: int | None, accelerator: str) -> Matrix:
    """What the file and the flags ask for; see Matrix."""
    return Matrix(
        data=str(config.data),
        teacher=str(config.teacher),
        out=config.out,
        students=config.students,
        seeds=config.seeds,
        views=config.views,
        common=config.common,
        objectives=config.objectives,
        frame=config.frame,
        sweep=None if config.sweep is None else _sweep(config.sweep),
        size=size,
        accelerator=accelerator,
    )


def from_results(config: Config, console: Console) -> Path:
    """Tables and figures in --out, of raw numbers alone."""
    others = [item.name for item in fields(config)
              if item.name not in ("out", "results") and getattr(config, item.name) != _default(item)]  # fmt: skip
    if others:
        raise Refusal(f"--results expected --out alone beside it, got {', '.join(others)}: leave them out")
    found = results.read(config.results)
    write(config.out, found, [], raw=False)
    for summary in summaries(found):
        console.print(pages.rich_table(summary))
    return config.out


def gathered(out: Path, order: Sequence[tuple[str, str, str, int]]) -> list[results.Result]:
    """The numbers of all scored runs in the folder: the teacher's, then in this order, then others by name."""
    places = {key: number for number, key in enumerate(order)}
    runs = out / "runs"  # not by rglob: it fails where a folder goes while it looks, as checkpoints of others do
    scores = [read_scores(file) for depth in ("*/*", "*/*/*") for file in sorted(runs.glob(f"{depth}/seed*/{SCORES}"))]
    teacher = out / "teacher" / SCORES
    first = [read_scores(teacher)] if teacher.exists() else []

    def place(one: dict[str, Any]) -> tuple[Any, ...]:
        key = (one["student"], one["row"], one["setting"], one["seed"])
        return (places.get(key, len(places)), *key)

    return [result for one in [*first, *sorted(scores, key=place)] for result in results.results_of(one)]


def write(out: Path, found: Sequence[results.Result], missing: Sequence[str], *, raw: bool = True) -> None:
    """results.csv (if `raw`), the tables, and a figure for each swept option."""
    if not found:
        return
    if raw:
        write_atomically(out / "results.csv", results.written(found))
    tables, figures = summaries(found), drawings(found)
    for name, drawing in figures.items():
        write_atomically(out / name, drawing)
    write_atomically(out / "table.md", pages.markdown(tables, missing, list(figures)))
    write_atomically(out / "table.html", pages.page(tables, missing, list(figures.values())))


def _each(crew: Crew, jobs: Sequence[Job], console: Console, told: str) -> Iterator[tuple[int, Outcome]]:
    """Of all jobs what came of them, each once; those that another command is at come last, when it is done.

    Args:
        told: said before waiting for them; {} is their number.
    """
    elsewhere = []
    for number, outcome in crew.do(jobs):
        if outcome.elsewhere:
            elsewhere.append(number)
        else:
            yield number, outcome
    if elsewhere:
        console.print(f"{told.format(len(elsewhere))}: waiting for it")
    later = [jobs[number]._replace(wait=True) for number in elsewhere]
    for place, outcome in crew.do(later):
        yield elsewhere[place], outcome


class _Progress:
    """A line each finished run, with the time that is left."""

    def __init__(self, console: Console, count: int):
        self.console, self.count, self.done, self.worked = console, count, 0, 0
        self.start, self.clock = time.monotonic(), now()

    def tell(self, cell: Cell, scores: dict[str, Any] | None, trouble: str | None) -> None:
        self.done += 1
        self.worked += scores is None or scores["scored"] >= self.clock  # not those that were finished before
        what = f"failed: {trouble}"
        if scores is not None:
            what = _headline(scores["metrics"])
        seconds = (time.monotonic() - self.start) / max(1, self.worked) * (self.count - self.done)
        left = f" · {seconds / 60:.0f} min left" if self.done < self.count and self.worked else ""
        self.console.print(f"[{self.done}/{self.count}] {cell.told}: {what}{left}", highlight=False, markup=False)


def _headline(metrics: dict[str, float]) -> str:
    """The four main scores in one line; of others so many as there is room for."""
    shown = [name for name in HEADLINE if name in metrics]
    shown += [name for name in without_spreads(metrics) if name not in shown]
    return " · ".join(f"{heading(name)} {100 * metrics[name]:.1f}" for name in shown[: len(HEADLINE)])


def _devices(asked: tuple[str, ...]) -> list[str]:
    """Devices by name, each checked; `auto` is CUDA where there is one.

    Raises: Refusal if there is no such device, or they are of several kinds.
    """
    if not asked:
        raise Refusal("devices expected at least one, got none: cpu, cuda, mps, cuda:1 …")
    devices = ["cuda" if name == "auto" and torch.cuda.is_available() else name for name in asked]
    devices = ["cpu" if name == "auto" else name for name in devices]
    kinds = sorted({name.partition(":")[0] for name in devices})
    if len(kinds) > 1:
        raise Refusal(f"devices expected one kind, for numbers of one table should be made alike, got "
                      f"{' and '.join(kinds)}: choose one")  # fmt: skip
    for name in devices:
        with about("devices"):
            open_device(name)
    return devices


def _refuse_idle(config: Config) -> None:
    """Refuse options of evaluations that are not done, and the one protocol that stored rows cannot have, with its
    options."""
    for name in [name for name in evaluations.names() if name not in config.evaluations]:
        with about("protocols"):
            refuse_idle(config.protocols, [name], expected=f"{name} among evaluations", without="without it",
                        instead={name: f"name {name} there, or leave the option out"})  # fmt: skip
    probe = config.protocols.linear_probe
    if probe.protocol == "paper":
        raise Refusal("protocols.linear_probe.protocol expected stored, for a benchmark scores stored rows of the "
                      "teacher, got paper, which needs its random views: use `compress-ssl evaluate` on the "
                      "runs")  # fmt: skip
    with about("protocols"):
        advice = dict.fromkeys(probe.ONLY["paper"], "leave it out, or use `compress-ssl evaluate` on the runs")
        refuse_idle(probe, probe.ONLY["paper"], prefix="linear_probe.", without="with stored", instead=advice,
                    expected="the protocol paper, which a benchmark cannot have")  # fmt: skip


def _about(teacher: str) -> dict[str, Any]:
    """What is known of the teacher: size of its input, parameters, multiply-adds."""
    stored = open_stored(teacher) if is_stored(teacher) else None
    if stored is not None:
        return {"spec": teacher, "size": None if stored.preprocessing is None else stored.preprocessing.size}
    encoder = open_encoder(teacher, weights="pretrained")
    return {"spec": teacher, "size": encoder.preprocessing.size, **costs(encoder)}


def _refuse_students(students: tuple[str, ...], size: int | None) -> None:
    """Open each once: a name that does not exist is told now."""
    for student in students:
        open_encoder(student, weights="random", size=size)


def _sweep(value: Any) -> Sweep:
    if not isinstance(value, dict):
        raise Refusal(f"sweep expected option, values and objectives, got {value!r}: write them as `name: value` lines")
    names = [item.name for item in fields(Sweep)]
    for name in value:
        if name not in names:
            raise Refusal(f"sweep expected option, values and objectives, got {name}: {nearest(name, names)}")
    if missing := [name for name in ("option", "values") if name not in value]:
        raise Refusal(f"sweep expected {' and '.join(missing)} too, got nothing for it: write it there")
    return settings.build(Sweep, value, {}, prefix="sweep.")


def _default(item: Any) -> Any:
    return item.default_factory() if callable(item.default_factory) else item.default
