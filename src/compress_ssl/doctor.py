"""Look before anyone spends hours: data, teacher, student, measured speeds, and what to change first.

Nothing is written. The measured speeds are those of `distill`'s own step and loader with a full bank; the rest repeats
exactly for the same --seed. A finding is no error: the command ends with 0, unless the input cannot be opened at all.

`--json` prints one object. Fractions are in [0, 1], sizes in bytes, speeds in images a second; a part whose input was
not given, or that could not be measured, is null and explained in `left_out`:

    data        images, looked_at; splits: {train, test: {images, looked_at, usable, labelled}}
                unusable: [{kind, count, expected (in all), first (ids)}]
                exact_duplicates, over all images: {copies, groups, leaks (test images that training repeats),
                  other_label (groups of several labels), first (ids of some pairs)}
                near_duplicates, among those looked at: {compared, too_small, copies, mirrored (of these), groups,
                  leaks, expected_copies, expected_leaks (in all), first}
                short_side (pixels), megapixels: {smallest, percent_5, median, percent_95, largest}
                share_below_input, formats: {name: count}, labels: {labelled, classes, smallest, largest}
    teacher     spec, stored, width, input_size, parameters, multiply_adds
                gallery, queries: rows looked at; cosine: {mean, std, quantiles: {0.01, 0.05, 0.5, 0.95, 0.99}}
                effective_dimension; nearest_neighbour: accuracy of the queries' nearest neighbour in the gallery
                temperature: {suggested, share, default, default_share, why_not}, shares of anchors that are neighbours
                bank: {suggested, neighbours, enough (leaves 100 neighbours), bytes: {float32, bfloat16, int8}}
    student     spec, width, input_size, parameters, multiply_adds, parameter_share, multiply_add_share, unsafe
    speed       device, precision, workers, cores, batch_size (measured), input_size
                loader, teacher, step_alone, step_stored, step_live: each {images_per_second, error, seconds}
                parts_stored, parts_live: share of a step by what it waits for
    forecast    images, epochs, views; live: {hours}; stored: {embed_hours, train_hours, hours}; table_bytes, free_disk
                memory: {weights, activations, bank, whole}, free_memory
    advice      [{do, because}], most important first
    left_out    [sentence]
"""

from __future__ import annotations

import contextlib
import functools
import json
import math
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from lightning.fabric import Fabric
from rich.console import Console
from torch import Tensor

from compress_ssl import datasets, objectives, optim
from compress_ssl.bank import BankConfig
from compress_ssl.calibration import calibrate, perplexity_share
from compress_ssl.checkup import advice, findings, forecast, room, spread
from compress_ssl.checkup.inspection import inspect, share_below
from compress_ssl.checkup.stopwatch import Speed, timed
from compress_ssl.datasets import ImageSet, Splits
from compress_ssl.device import refuse_unsafe
from compress_ssl.distill import Step
from compress_ssl.embed import embed
from compress_ssl.encoder import Encoder, multiply_adds, open_encoder, parameter_count
from compress_ssl.evaluations import Embedded, nearest_neighbour
from compress_ssl.feed import Feed
from compress_ssl.hardware import HardwareConfig, launch
from compress_ssl.loader import Batch, TrainLoader, View, default_workers
from compress_ssl.momentum import Momentum
from compress_ssl.optim import OptimizerConfig
from compress_ssl.refusal import Refusal
from compress_ssl.stored import is_stored
from compress_ssl.stored_teacher import StoredConfig, StoredTeacher
from compress_ssl.student import Student
from compress_ssl.teacher import LiveTeacher, open_teacher
from compress_ssl.transforms import EvaluationView, RandomView, TrainView
from compress_ssl.waits import Waits, shares

FEW = 8  # images of the step by which the measured batch is chosen
ENOUGH_NEIGHBOURS = 100  # of a query among the anchors; a bank that leaves fewer says little about who is near whom
LAPS = 6  # steps that should fit into each measurement


@dataclass(frozen=True, kw_only=True)
class Config:
    """Look at data, teacher and student, and say what to change before a training."""

    data: str  # images: a folder, parquet, digits, torchvision/CIFAR10, …
    teacher: str | None = None  # a run folder, timm/NAME, torchvision/NAME, …@weights, a table, vectors
    student: str | None = None  # likewise, with random weights unless it says otherwise
    ids: Path | None = None  # ids of the images whose vectors a .npy holds, one a line
    images: int = 20_000  # opened at most, drawn by a hash of their ids; 0: all
    gallery: int = 5000  # training images that the teacher embeds, to find neighbours among
    held_out: int = 1000  # training images whose neighbours are found, at most a tenth; distill holds out the same
    seconds: float = 60  # for all measured speeds together
    epochs: float = 130  # of the training that is forecast
    views: int = 4  # of the table that is forecast
    batch_size: int = 256  # of the training that is forecast
    objective: Any = field(default_factory=lambda: objectives.find("compress_2q").Config())  # a file of objectives/
    optimizer: OptimizerConfig = OptimizerConfig()
    teacher_size: int | None = None  # pixels of the teacher's input; None: its own
    student_size: int | None = None  # pixels of the student's input; None: the teacher's, where it has one
    accelerator: Literal["auto", "cpu", "cuda", "mps"] = "auto"
    precision: Literal["auto", "32", "bf16"] = "auto"  # auto: bf16 where the hardware multiplies it natively
    workers: int | None = None  # processes that read images; None: one a core but one, eight at most
    unusual: datasets.Unusual = "skip"  # CMYK, 16-bit, palette, transparent and animated files: skip or convert
    seed: int = 0  # of everything that is drawn
    json: bool = False  # print one JSON object instead of text

    def __post_init__(self) -> None:
        if self.images < 0:
            raise Refusal(f"--images expected 0 (all) or more, got {self.images}: 20000 is usual")
        for name in ("gallery", "held_out", "batch_size"):
            if getattr(self, name) < 1:
                raise Refusal(f"--{name.replace('_', '-')} expected at least 1, got {getattr(self, name)}: raise it")
        if self.views < 0:
            raise Refusal(f"--views expected 0 or more, got {self.views}: 4 is usual")
        for name in ("seconds", "epochs"):
            if not 0 < getattr(self, name) < math.inf:
                raise Refusal(f"--{name} expected more than 0, got {getattr(self, name)}: raise it")
        if self.ids is not None and self.teacher is None:
            raise Refusal(f"expected --ids only with a file of vectors as --teacher, got {self.ids} without: leave it "
                          "out")  # fmt: skip


def run(config: Config) -> str | None:
    """Print what is found, section by section; with `json` return all of it as one object instead."""
    console = Console(stderr=True)
    page = Console(quiet=config.json, highlight=False)
    splits = datasets.open_splits(config.data, unusual=config.unusual)
    training, watched = _split(config, splits)
    hardware = HardwareConfig(accelerator=config.accelerator, precision=config.precision, workers=config.workers)
    fabric = launch(hardware, config.seed)
    found: dict[str, Any] = dict.fromkeys(("data", "teacher", "student", "speed", "forecast", "advice"))
    out = found["left_out"] = []
    # opened before anything takes time: what is refused is refused at once
    with torch.random.fork_rng(devices=[]):
        teacher = None if config.teacher is None else open_teacher(
            config.teacher, training, size=config.teacher_size, device=fabric.device, workers=config.workers,
            ids=config.ids, stored=StoredConfig(part=is_stored(config.teacher)),
            whole=splits.train,
        )  # fmt: skip
    size = config.student_size or getattr(getattr(teacher, "preprocessing", None), "size", None)
    student = None if config.student is None else open_encoder(config.student, weights="random", size=size)

    data = found["data"] = {"name": config.data} | inspect(
        splits, count=config.images, seed=config.seed, workers=config.workers, console=console
    )
    inputs = [encoder.preprocessing.size for encoder in (student, getattr(teacher, "encoder", None)) if encoder]
    data["share_below_input"] = share_below(data, max(inputs)) if inputs else None
    data["input_size"] = max(inputs) if inputs else None
    del data["short_sides"]
    page.print(*findings.data(data), sep="\n")
    if not data["splits"]["train"]["usable"]:
        out.append("teacher, student and speed: of the training images looked at none can be used")
        teacher = student = None
    else:
        out += [f"{name}: no --{name} given" for name in ("teacher", "student") if getattr(config, name) is None]
    if teacher is not None:
        judge = _judge(teacher, watched, fabric, config, console)
        widths = (teacher.width, teacher.width if student is None else student.width)
        found["teacher"] = _of_teacher(config, teacher, judge, len(training), widths)
        page.print(*findings.teacher(found["teacher"]), sep="\n")
    if student is not None:
        found["student"] = _of_student(config, student, teacher, fabric)
        page.print(*findings.student(found["student"]), sep="\n")
    if data["splits"]["train"]["usable"]:
        console.print(f"measuring speeds, {config.seconds:g} s at most", highlight=False)
        found["speed"], memory = _speeds(config, fabric, training, teacher, student, found)
        page.print(*findings.speed(found["speed"]), sep="\n")
        found["forecast"] = _forecast(config, splits, training, found, memory, fabric)
        if found["forecast"] is not None and (lines := findings.forecast(found["forecast"])):
            page.print(*lines, sep="\n")
    found["advice"] = advice.give(found, plan=_plan(config))
    page.print(*findings.advice(found["advice"], found["left_out"]), sep="\n")
    return json.dumps(found, ensure_ascii=False, indent=1, default=float) if config.json else None


def _plan(config: Config) -> dict[str, Any]:
    """What of the configuration the advice is about."""
    return {
        "data": config.data,
        "teacher": config.teacher,
        "batch_size": config.batch_size,
        "views": config.views,
        "unusual": config.unusual,
        "temperature": getattr(config.objective, "temperature", None),
        "bank_size": getattr(config.objective, "bank_size", None),
    }


def _split(config: Config, splits: Splits) -> tuple[ImageSet, Splits]:
    """What is trained on, and gallery and queries: the very images that `distill` takes."""
    if config.teacher is None and config.student is None and len(splits.train) < 4:
        return splits.train, Splits(splits.train)
    if len(splits.train) < 4:
        raise Refusal(f"expected at least 4 images to train on and to compare, got {len(splits.train)} in "
                      f"{splits.train.name}: add images")  # fmt: skip
    training, held_out = datasets.set_aside(splits.train, at_most=config.held_out)
    gallery = datasets.hold_out(training, count=min(config.gallery, len(training) - 1))[1]
    return training, Splits(gallery, held_out)


def _judge(
    teacher: LiveTeacher | StoredTeacher, watched: Splits, fabric: Fabric, config: Config, console: Console
) -> Embedded:
    """The teacher's rows of gallery (train) and queries (test)."""
    assert watched.test is not None
    rows = []
    for images, told in ((watched.train, "gallery"), (watched.test, "queries")):
        if isinstance(teacher, LiveTeacher):
            view, told = EvaluationView(teacher.preprocessing), f"embedding {told}"
            rows.append(
                embed(teacher.encoder, images, view=view, device=fabric.device, workers=config.workers,
                      console=console, told=told)
            )  # fmt: skip
        else:
            rows.append(teacher.embeddings(images))
    return Embedded(train=rows[0], test=rows[1])


def _of_teacher(
    config: Config, teacher: LiveTeacher | StoredTeacher, judge: Embedded, images: int, widths: tuple[int, int]
) -> dict[str, Any]:
    preprocessing = teacher.preprocessing
    found: dict[str, Any] = {
        "spec": config.teacher,
        "stored": isinstance(teacher, StoredTeacher),
        "width": teacher.width,
        "input_size": None if preprocessing is None else preprocessing.size,
        "parameters": None,
        "multiply_adds": None,
        "gallery": len(judge.train.ids),
        "queries": len(judge.test.ids),
    }
    if isinstance(teacher, LiveTeacher):
        found["parameters"], found["multiply_adds"] = parameter_count(teacher.encoder), multiply_adds(teacher.encoder)
    cosine = spread.cosines(judge.train.rows, seed=config.seed)
    quantiles = {f"{at:g}": value for at, value in zip(spread.QUANTILES, cosine.quantiles, strict=True)}
    found["cosine"] = {"mean": cosine.mean, "std": cosine.std, "quantiles": quantiles}
    found["effective_dimension"] = spread.effective_dimension(judge.train.rows)
    found["nearest_neighbour"] = None
    if judge.labelled and np.isin(judge.test.labels, judge.train.labels).any():  # not if every class is one image
        scores = nearest_neighbour.evaluate(judge, nearest_neighbour.Config(neighbours=(1,)))
        found["nearest_neighbour"] = scores["nearest_neighbour"]
    found["temperature"] = _temperature(config, judge)
    found["bank"] = _bank(found["temperature"], widths, images)
    return found


def _temperature(config: Config, judge: Embedded) -> dict[str, Any]:
    """What `--objective.temperature auto` would choose, and how many neighbours the paper's value gives."""
    usual, share = BankConfig.temperature, getattr(config.objective, "perplexity", BankConfig.perplexity)
    assert isinstance(usual, float)
    queries, gallery = torch.from_numpy(judge.test.rows), torch.from_numpy(judge.train.rows)
    found: dict[str, Any] = {
        "suggested": None,
        "share": None,
        "default": usual,
        "default_share": perplexity_share(queries, gallery, temperature=usual),
        "why_not": None,
    }
    try:
        found["suggested"], found["share"] = calibrate(queries, gallery, share=share)
    except Refusal as refusal:
        found["why_not"] = str(refusal).partition(": ")[0].removeprefix("--objective.temperature auto ")
    return found


def _bank(temperature: dict[str, Any], widths: tuple[int, int], images: int) -> dict[str, Any]:
    """As many anchors as the paper has, but no more than images; a query's neighbours among them are a share of them.

    Args:
        widths: of both models' anchors, as 2q keeps them; without a student it is taken to be as wide as its teacher.
    """
    size = min(BankConfig.bank_size, images)
    share = temperature["share"] or temperature["default_share"]
    return {
        "suggested": size,
        "enough": min(size, _rounded_up(ENOUGH_NEIGHBOURS / share)),
        "neighbours": share * size,
        "bytes": {dtype: forecast.bank_bytes(size, widths, dtype=dtype) for dtype in forecast.BANK_BYTES},
    }


def _rounded_up(value: float) -> int:
    """To two digits: nobody sets a bank of 5002 anchors."""
    unit = 10 ** max(0, math.floor(math.log10(value)) - 1)
    return math.ceil(value / unit) * unit


def _of_student(
    config: Config, student: Encoder, teacher: LiveTeacher | StoredTeacher | None, fabric: Fabric
) -> dict[str, Any]:
    unsafe = None
    try:
        refuse_unsafe(student, fabric.device)
    except Refusal as refusal:
        unsafe = str(refusal)
    parameters, products = parameter_count(student), multiply_adds(student)
    live = teacher.encoder if isinstance(teacher, LiveTeacher) else None
    return {
        "spec": config.student,
        "width": student.width,
        "input_size": student.preprocessing.size,
        "parameters": parameters,
        "multiply_adds": products,
        "parameter_share": None if live is None else parameters / max(1, parameter_count(live)),
        "multiply_add_share": None if live is None else products / max(1, multiply_adds(live)),
        "unsafe": unsafe,
    }


# ---- speeds ----------------------------------------------------------------------------------------------------------


class _RowsAtHand:
    """Targets that cost nothing: random unit rows in memory, as many as fit one look-up table."""

    def __init__(self, width: int, device: torch.device, seed: int):
        rows = torch.randn(4096, width, generator=torch.Generator().manual_seed(seed))
        self.rows, self.device = torch.nn.functional.normalize(rows, dim=1), device

    def __call__(self, batch: Batch) -> Tensor:
        return self.rows[batch.host_index % len(self.rows)].to(self.device, non_blocking=True)


def _speeds(
    config: Config,
    fabric: Fabric,
    images: ImageSet,
    teacher: LiveTeacher | StoredTeacher | None,
    student: Encoder | None,
    found: dict[str, Any],
) -> tuple[dict[str, Any], dict[str, Any] | None]:
    """Speeds of every part that can be measured, and the memory of a training, if there is a student and a teacher."""
    device, out = fabric.device, found["left_out"]
    unsafe = found["student"] is not None and found["student"]["unsafe"]
    whole = teacher is not None and student is not None and not unsafe
    if student is not None and teacher is None:
        out.append("training speed and forecast: they need --teacher and --student")
    if unsafe:
        out.append("training speed and forecast: the student cannot be trained on this device")
    inputs = [part["input_size"] for part in (found["student"], found["teacher"]) if part and part["input_size"]]
    side = max(inputs, default=224)
    view: View = RandomView(TrainView(), side)
    if isinstance(teacher, StoredTeacher) and student is not None:
        view = teacher.view(TrainView(), student.preprocessing.size)
    wanted = min(config.batch_size, len(images))
    parts = 5 if whole else 2
    seconds = config.seconds / parts

    def loaded(count: int) -> TrainLoader:
        return TrainLoader(
            images, view, batch_size=max(2, count), seed=config.seed, workers=config.workers,
            pin_memory=device.type == "cuda", announce=getattr(teacher, "announce", lambda _: None),
        )  # fmt: skip

    speed: dict[str, Any] = {
        "device": _device_name(device),
        "precision": fabric._precision.precision,
        "workers": default_workers() if config.workers is None else config.workers,
        "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1,
        "batch_size": wanted,
        "input_size": side,
        **dict.fromkeys(("loader", "teacher", "step_alone", "step_stored", "step_live", "parts_stored", "parts_live")),
    }
    if len(images) < 2:
        out.append("speed: it needs at least 2 training images")
        return speed, None
    with _reading(loaded(min(64, wanted))) as batches:
        few = next(batches)
        speed["loader"] = _as_dict(timed(lambda: len(next(batches).index), seconds=seconds, device=device))
    one = _batch(few, wanted, device)
    if isinstance(teacher, LiveTeacher):
        live = teacher

        def embed_lap(count: int = wanted) -> int:
            with fabric.autocast(), torch.no_grad():
                live.swift(one.images[:count])
            return min(count, len(one.index))

        count = _fitting(embed_lap, wanted, seconds, device)
        speed["teacher"] = _as_dict(timed(lambda: embed_lap(count), seconds=seconds, device=device))
    if not whole:
        return speed, None
    assert teacher is not None
    assert student is not None
    step, memory = _step(config, fabric, student, teacher, len(images), one, found)
    if step is None:
        out.append("training speed: the bank does not fit into memory")
        return speed, memory
    waits = Waits(device)
    at_hand: Any = _RowsAtHand(teacher.width, device, config.seed)
    step.teacher = at_hand

    def train_lap(count: int) -> int:
        batch = _batch(one, count, device)
        step(batch, waits)
        return count

    count = speed["batch_size"] = _fitting(train_lap, wanted, seconds, device)
    speed["step_alone"] = _as_dict(timed(lambda: train_lap(count), seconds=seconds, device=device))
    measured = [("stored", teacher if isinstance(teacher, StoredTeacher) else at_hand)]
    if isinstance(teacher, LiveTeacher):
        measured.append(("live", teacher))
    for name, targets in measured:
        step.teacher = targets
        waits.read()
        prepare = getattr(targets, "prepare", lambda batch: batch)
        count = speed["batch_size"] if name == "stored" else _fitting_live(speed, seconds, wanted)
        feed = Feed(loaded(count).batches(), device=device, prepare=prepare)

        def lap(feed: Feed = feed) -> int:
            waits.start()
            batch = next(feed)
            waits.lap("data")
            step(batch, waits)
            return len(batch.index)

        try:
            speed[f"step_{name}"] = _as_dict(timed(lap, seconds=seconds, device=device))
        finally:
            feed.close()
        speed[f"parts_{name}"] = {part: round(share, 4) for part, share in shares(waits.read()).items()}
    if isinstance(teacher, LiveTeacher):
        teacher.settle(wait=True)
    return speed, memory


@contextlib.contextmanager
def _reading(loader: TrainLoader) -> Iterator[Iterator[Batch]]:
    """Batches of the loader, whose processes end with the block."""
    batches: Any = loader.batches()
    try:
        yield batches
    finally:
        batches.close()


def _step(
    config: Config,
    fabric: Fabric,
    student: Encoder,
    teacher: LiveTeacher | StoredTeacher,
    images: int,
    batch: Batch,
    found: dict[str, Any],
) -> tuple[Step | None, dict[str, Any]]:
    """A step of the training with a full bank, and the memory that the training needs."""
    device = fabric.device
    home = room.free_on_device(device) or room.free_memory()
    bank_size = min(getattr(config.objective, "bank_size", 0), images)
    dtype = getattr(config.objective, "bank_dtype", "float32")
    bank = forecast.bank_bytes(bank_size, (teacher.width, student.width), dtype=dtype)
    slow = getattr(config.objective, "momentum", None) is not None
    states = 2 if config.optimizer.name == "adamw" else 1
    held = parameter_count(teacher.encoder) if isinstance(teacher, LiveTeacher) else 0
    weights = forecast.training_bytes(parameter_count(student), slow_copy=slow, optimizer_states=states) + 4 * held
    memory: dict[str, Any] = {"weights": weights, "activations": None, "bank": bank, "whole": weights + bank}
    if home is not None and 2 * bank > home:
        return None, memory
    objective = objectives.find(config.objective.name).Objective(
        config.objective, width=student.width, target_width=teacher.width, images=images, device=device,
        seed=config.seed,
    )  # fmt: skip
    if objective.temperature == "auto":
        objective.temperature = found["teacher"]["temperature"]["suggested"] or BankConfig.temperature
    if hasattr(objective, "bank"):  # noise is as much work as anchors
        objective.bank.fill_randomly(torch.Generator().manual_seed(config.seed))
    model = Student(student.train(), objective.projector_width).train().to(device)
    model = model.to(memory_format=torch.channels_last)
    optimizer = optim.optimizer(model.parameters(), config.optimizer)
    step = Step(fabric, teacher, model, Momentum(model, objective.momentum), objective, optimizer)
    few = _batch(batch, min(FEW, len(batch.index)), device)
    with fabric.autocast():
        activations = _activation_bytes(model, few.images) / len(few.index)
    memory["activations"] = round(activations * min(config.batch_size, images))
    memory["whole"] = weights + bank + memory["activations"]
    return step, memory


def _activation_bytes(model: torch.nn.Module, images: Tensor) -> int:
    """What a forward pass keeps for the backward pass, weights aside."""
    weights = {weight.untyped_storage().data_ptr() for weight in (*model.parameters(), *model.buffers())}
    kept: dict[int, int] = {}

    def note(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in weights:
            kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
        rows = model(images)
    del rows
    return sum(kept.values())


def _batch(batch: Batch, count: int, device: torch.device) -> Batch:
    """A batch of `count` images, those of `batch` again and again."""
    index = torch.arange(count) % len(batch.index)
    there = index.to(batch.images.device)
    return Batch(batch.images[there], batch.index[there], [], host_index=batch.host_index[index]).to(device)


def _fitting(lap: Callable[[int], int], wanted: int, seconds: float, device: torch.device) -> int:
    """A batch of which some fit into the time; the wanted one where it does."""
    count = min(FEW, wanted)
    lap(count)
    while count < wanted:
        lap_of = functools.partial(lap, count)
        if timed(lap_of, seconds=0, device=device, warm_up=0).seconds * LAPS * 2 > seconds:
            break
        count = min(wanted, 2 * count)
    return count


def _fitting_live(speed: dict[str, Any], seconds: float, wanted: int) -> int:
    """Likewise, of a step whose parts have been measured."""
    rate = 1 / sum(1 / speed[part]["images_per_second"] for part in ("teacher", "step_alone"))
    return max(min(FEW, wanted), min(speed["batch_size"], int(rate * seconds / LAPS)))


def _device_name(device: torch.device) -> str:
    return torch.cuda.get_device_name(device) if device.type == "cuda" else device.type


def _as_dict(speed: Speed) -> dict[str, Any]:
    error = None if math.isnan(speed.error) else round(speed.error, 4)
    return {
        "images_per_second": round(speed.images_per_second, 2),
        "error": error,
        "seconds": round(speed.seconds, 2),
    }


def _forecast(
    config: Config,
    splits: Splits,
    training: ImageSet,
    found: dict[str, Any],
    memory: dict[str, Any] | None,
    fabric: Fabric,
) -> dict[str, Any] | None:
    """Hours, disk and memory; None without a teacher."""
    speed, teacher = found["speed"], found["teacher"]
    if teacher is None or speed["loader"] is None:
        return None
    loader = speed["loader"]["images_per_second"]
    rates = {name: speed[name] and speed[name]["images_per_second"] for name in ("teacher", "step_stored", "step_live")}
    tested = 0 if splits.test is None else len(splits.test)
    table = forecast.table_bytes(len(splits.train), tested, views=config.views, width=teacher["width"])
    result: dict[str, Any] = {
        "images": len(training),
        "epochs": config.epochs,
        "views": config.views,
        "live": None,
        "stored": None,
        "table_bytes": None if teacher["stored"] else table,
        "free_disk": room.free_disk(Path.cwd()),
        "memory": memory,
        "free_memory": room.free_on_device(fabric.device) or room.free_memory(),
    }
    if rates["step_live"]:
        hours = forecast.live(len(training), epochs=config.epochs, step=rates["step_live"], loader=loader)
        result["live"] = {"hours": hours.total}
    embedded = forecast.stored(
        len(training), epochs=config.epochs, step=rates["step_stored"] or np.inf, loader=loader, views=config.views,
        teacher=rates["teacher"],
    )  # fmt: skip
    train = embedded.train if rates["step_stored"] else None
    result["stored"] = {
        "embed_hours": embedded.embed,
        "train_hours": train,
        "hours": None if train is None else embedded.embed + train,
    }
    return result
