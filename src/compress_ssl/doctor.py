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
    teacher     what needs its rows is null where fewer than 2 images of the gallery or none of the queries can be used;
                cosine, effective_dimension and temperature are of the rows as --objective compares them
                spec, stored, width, input_size, parameters, multiply_adds
                gallery, queries: rows looked at; cosine: {mean, std, quantiles: {0.01, 0.05, 0.5, 0.95, 0.99}}
                centred: whether the objective takes their mean from them before it compares
                effective_dimension; nearest_neighbour: accuracy of the queries' nearest neighbour in the gallery
                temperature: {suggested, share, default, default_share, why_not}, shares of anchors that are neighbours
                bank: {suggested, neighbours, enough (leaves 100 neighbours), bytes: {float32, bfloat16, int8}}; null
                  for an objective without
    student     spec, width, input_size, parameters, multiply_adds, parameter_share, multiply_add_share, unsafe
    speed       device, precision, workers, cores, batch_size (measured), input_size
                loader, loader_stored, loader_embed: reading at the input of a live training; at the student's own,
                  where that is another; with all views of `embed`, in training images
                teacher, step_alone, step_stored, step_live; each of all these {images_per_second, error, seconds}
                parts_stored, parts_live: share of a step by what it waits for
    forecast    images, epochs, views; live: {hours}; stored: {embed_hours, train_hours, hours}; table_bytes, free_disk
                memory: {weights, activations, bank, whole}, free_memory
    advice      [{do, because, command (null where no command mends it)}], most important first
    left_out    [sentence]
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import torch
from rich.console import Console, RenderableType

from compress_ssl import datasets, objectives, optim, room
from compress_ssl.bank import BankConfig
from compress_ssl.calibration import calibrate, perplexity_share
from compress_ssl.checkup import advice, findings, forecast, spread
from compress_ssl.checkup.activations import activation_bytes
from compress_ssl.checkup.inspection import inspect, share_below
from compress_ssl.checkup.speeds import FEW, AtHand, Bench, repeated
from compress_ssl.checkup.stopwatch import Speed
from compress_ssl.datasets import ImageSet, Splits
from compress_ssl.device import refuse_unsafe
from compress_ssl.distill import Step
from compress_ssl.encoder import Encoder, costs, multiply_adds, open_encoder, parameter_count
from compress_ssl.evaluations import Embedded, nearest_neighbour
from compress_ssl.hardware import HardwareConfig, launch
from compress_ssl.loader import Batch, View, default_workers
from compress_ssl.momentum import Momentum
from compress_ssl.optim import OptimizerConfig
from compress_ssl.projector import ProjectorConfig, Shape, shape
from compress_ssl.refusal import Refusal
from compress_ssl.scorer import as_compared, settle_centres
from compress_ssl.stored import is_stored
from compress_ssl.stored_teacher import StoredConfig, StoredTeacher
from compress_ssl.student import Student
from compress_ssl.teacher import LiveTeacher, open_teacher
from compress_ssl.transforms import RandomView, RecordedViews, TrainView
from compress_ssl.weighted import Weighted, leaves

if TYPE_CHECKING:
    from lightning.fabric import Fabric

ENOUGH_NEIGHBOURS = 100  # of a query among the anchors; a bank that leaves fewer says little about who is near whom


@dataclass(frozen=True, kw_only=True)
class Config:
    """Look at data, teacher and student, and say what to change before a training."""

    data: str  # images: a folder, parquet, digits, torchvision/CIFAR10, …
    teacher: str | None = None  # a run folder, timm/NAME, torchvision/NAME, …@weights, a folder of `embed`, vectors
    student: str | None = None  # timm/NAME, torchvision/NAME, a run folder; random weights unless it has @weights
    ids: Path | None = None  # with a .npy of vectors as --teacher: the file with the ids of their images, one a line
    images: int = 20_000  # images to decode and check at most, drawn by a hash of their ids; 0: all
    gallery: int = 5000  # training images that the teacher embeds, to find neighbours among
    held_out: int = 1000  # training images, at most a tenth, that distill would hold out: their neighbours are found
    seconds: float = 60  # time to measure all speeds in
    epochs: float = 130  # forecast a training of so many epochs
    views: int = 4  # forecast a table with so many random views of each training image, see embed --views
    batch_size: int = 256  # forecast a training with batches of so many images
    # a file of objectives/: compress, compress_1q, compress_2q, seed, crd, …; --objective NAME --help lists its options
    objective: Any = field(default_factory=lambda: objectives.find("compress").Config())
    optimizer: OptimizerConfig = OptimizerConfig()
    teacher_size: int | None = None  # pixels of the teacher's input; None: its own
    student_size: int | None = None  # pixels of the student's input; None: the teacher's, where it has one
    accelerator: Literal["auto", "cpu", "cuda", "mps"] = "auto"  # where teacher and student compute; auto: a GPU if any
    precision: Literal["auto", "32", "bf16"] = "auto"  # auto: bf16 where the hardware multiplies it natively
    workers: int | None = None  # processes that read images; None: one a core but one, eight at most
    unusual: datasets.Unusual = "skip"  # CMYK, 16-bit, palette, transparent and animated files: skip or convert
    seed: int = 0  # draws images to check, pairs to compare, crops; the same seed finds the same
    json: bool = False  # print one JSON object instead of text

    def __post_init__(self) -> None:
        if self.images < 0:
            raise Refusal(f"--images expected 0 (all) or more, got {self.images}: 20000 is usual")
        for name, least in (("gallery", 2), ("held_out", 1), ("batch_size", 2)):
            if getattr(self, name) < least:
                told = f"--{name.replace('_', '-')} expected at least {least}, got {getattr(self, name)}: raise it"
                raise Refusal(told)
        if getattr(objectives.find(self.objective.name).Objective, "tokens", False):
            raise Refusal(f"--objective expected one that compares rows alone, got {self.objective.name}: ask about "
                          "compress_1q, its larger part")  # fmt: skip
        if self.views < 0:
            raise Refusal(f"--views expected 0 or more, got {self.views}: 4 is usual")
        for name in ("seconds", "epochs"):
            if not 0 < getattr(self, name) < math.inf:
                raise Refusal(f"--{name} expected more than 0, got {getattr(self, name)}: raise it")
        if self.ids is not None and self.teacher is None:
            raise Refusal(f"expected --ids only with a file of vectors as --teacher, got {self.ids} without: leave it "
                          "out")  # fmt: skip


@dataclass(kw_only=True)
class Case:
    """What is examined, and what has been found so far, as the top of this file lays it out."""

    config: Config
    splits: Splits
    training: ImageSet  # what `distill` would train on
    watched: Splits | None  # gallery and queries; None where there are too few images, and no model to ask
    fabric: Fabric
    teacher: LiveTeacher | StoredTeacher | None
    student: Encoder | None
    objective: Any  # made for two images: what it compares and keeps, without the room that it takes; None: no teacher
    projector: Shape | None  # that leads to it
    console: Console  # for what is of the moment
    found: dict[str, Any]
    memory: dict[str, Any] | None = None  # of a training

    def leave_out(self, what: str, why: Refusal | str) -> None:
        told = str(why).partition(": ")[0] if isinstance(why, Refusal) else why  # what to do about it is no finding
        self.found["left_out"].append(f"{what}: {told}")


def run(config: Config) -> str | None:
    """Print what is found, section by section; with `json` return all of it as one object instead."""
    page = Console(quiet=config.json, highlight=False)
    case = _open(config)
    for examine in (_data, _teacher, _student, _speed, _forecast, _advice):
        for line in examine(case):
            page.print(line)
    return json.dumps(case.found, ensure_ascii=False, indent=1, default=float) if config.json else None


def _open(config: Config) -> Case:
    """Everything is opened before anything takes time: what is refused is refused at once."""
    splits = datasets.open_splits(config.data, unusual=config.unusual)
    training, watched = splits.train, None
    if config.teacher or config.student or len(training) >= 4:
        training, watched = datasets.trained_and_watched(
            splits.train, held_out=config.held_out, gallery=config.gallery
        )  # fmt: skip
    hardware = HardwareConfig(accelerator=config.accelerator, precision=config.precision, workers=config.workers)
    fabric = launch(hardware, config.seed)
    with torch.random.fork_rng(devices=[]):
        teacher = None if config.teacher is None else open_teacher(
            config.teacher, training, size=config.teacher_size, device=fabric.device, workers=config.workers,
            check="now" if fabric.device.type == "cpu" else "later",  # as `distill` has it
            ids=config.ids, stored=StoredConfig(part=is_stored(config.teacher)),
            whole=splits.train, unusual=config.unusual,
        )  # fmt: skip
    size = config.student_size or getattr(getattr(teacher, "preprocessing", None), "size", None)
    student = None if config.student is None else open_encoder(config.student, weights="random", size=size)
    objective, projector = (
        (None, None) if teacher is None else _objective(config, teacher, student, fabric.device, images=2)
    )
    found: dict[str, Any] = dict.fromkeys(("data", "teacher", "student", "speed", "forecast", "advice"))
    return Case(
        config=config, splits=splits, training=training, watched=watched, fabric=fabric, teacher=teacher,
        student=student, objective=objective, projector=projector, console=Console(stderr=True),
        found=found | {"left_out": []},
    )  # fmt: skip


def _objective(
    config: Config, teacher: Any, student: Encoder | None, device: torch.device, *, images: int
) -> tuple[Any, Shape]:
    """The objective for so many images, and the projector that leads to it; without a student, of one as wide as its
    teacher."""
    width = teacher.width if student is None else student.width
    space = objectives.space_of(config.objective)
    asked = objectives.projector_of(config.objective, ProjectorConfig())
    ends = shape(asked, width=width, target_width=teacher.width, space=space)
    objective = objectives.find(config.objective.name).Objective(
        config.objective, width=ends.widths[-1], target_width=teacher.width, images=images, device=device,
        seed=config.seed,
    )  # fmt: skip
    return objective, ends


# ---- images ----------------------------------------------------------------------------------------------------------


def _data(case: Case) -> list[RenderableType]:
    config = case.config
    data = case.found["data"] = {"name": config.data} | inspect(
        case.splits, count=config.images, seed=config.seed, workers=config.workers, console=case.console
    )
    inputs = [model.preprocessing.size for model in (case.student, getattr(case.teacher, "encoder", None)) if model]
    data["share_below_input"] = share_below(data, max(inputs)) if inputs else None
    data["input_size"] = max(inputs) if inputs else None
    del data["short_sides"]
    if data["splits"]["train"]["usable"]:
        for name in ("teacher", "student"):
            if getattr(config, name) is None:
                case.leave_out(name, f"no --{name} given")
    else:
        case.leave_out("teacher, student and speed", "of the training images looked at none can be used")
        case.teacher = case.student = None
    return findings.data(data)


# ---- teacher ---------------------------------------------------------------------------------------------------------


def _teacher(case: Case) -> list[RenderableType]:
    teacher = case.teacher
    if teacher is None:
        return []
    live = teacher.encoder if isinstance(teacher, LiveTeacher) else None
    found: dict[str, Any] = {
        "spec": case.config.teacher,
        "stored": live is None,
        "width": teacher.width,
        "input_size": None if teacher.preprocessing is None else teacher.preprocessing.size,
        **(dict.fromkeys(("parameters", "multiply_adds")) if live is None else costs(live)),
        **dict.fromkeys(("gallery", "queries", "cosine", "centred", "effective_dimension", "nearest_neighbour")),
        **dict.fromkeys(("temperature", "bank")),
    }
    judge = _judge(case)
    if judge is not None:
        queries, gallery = _as_compared(case, judge)
        found |= {"gallery": len(judge.train.ids), "queries": len(judge.test.ids)}
        found |= _space(judge, gallery, case.config.seed)
        found["temperature"] = _temperature(case.config, queries, gallery)
        found["bank"] = _bank(found["temperature"], case.objective, len(case.training))
    case.found["teacher"] = found
    return findings.teacher(found)


def _judge(case: Case) -> Embedded | None:
    """The teacher's rows of gallery (train) and queries (test); None where there are too few."""
    assert case.watched is not None
    assert case.watched.test is not None
    rows = []
    try:
        for images, told in ((case.watched.train, "gallery"), (case.watched.test, "queries")):
            if isinstance(case.teacher, LiveTeacher):
                rows.append(case.teacher.embeddings(images, console=case.console, told=f"embedding the {told}"))
            elif case.teacher is not None:
                rows.append(case.teacher.embeddings(images))
    except Refusal as refusal:
        case.leave_out("the teacher's space", refusal)
        return None
    if len(rows[0].ids) < 2:
        case.leave_out("the teacher's space", "of the gallery only 1 image can be used, too few to compare")
        return None
    return Embedded(train=rows[0], test=rows[1])


def _as_compared(case: Case, judge: Embedded) -> list[torch.Tensor]:
    """Queries and gallery as the objective compares them; of a sum, as the first of its terms whose temperature is to
    be found, if there is one."""
    settle_centres(Weighted([case.objective], [1.0], [(0, 0)]), [judge], case.fabric)
    terms = list(leaves(case.objective).values())
    return as_compared(next((term for term in terms if term.temperature == "auto"), terms[0]), judge)


def _space(judge: Embedded, gallery: torch.Tensor, seed: int) -> dict[str, Any]:
    """How the teacher's rows lie as they are compared, and whether they are near those of their class."""
    cosine = spread.cosines(gallery.numpy(), seed=seed)
    right = None
    if judge.labelled and np.isin(judge.test.labels, judge.train.labels).any():  # not if every class is one image
        right = nearest_neighbour.evaluate(judge, nearest_neighbour.Config(neighbours=(1,)))["nearest_neighbour"]
    quantiles = {f"{at:g}": value for at, value in zip(spread.QUANTILES, cosine.quantiles, strict=True)}
    return {
        "cosine": {"mean": cosine.mean, "std": cosine.std, "quantiles": quantiles},
        "centred": not np.array_equal(gallery.numpy(), judge.train.rows),
        "effective_dimension": spread.effective_dimension(gallery.numpy()),
        "nearest_neighbour": right,
    }


def _temperature(config: Config, queries: torch.Tensor, gallery: torch.Tensor) -> dict[str, Any]:
    """What `--objective.temperature auto` would choose, and how many neighbours the paper's value gives."""
    usual = BankConfig.temperature
    assert isinstance(usual, float)
    share = objectives.neighbour_share(config.objective, len(gallery))
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


def _bank(temperature: dict[str, Any], objective: Any, images: int) -> dict[str, Any] | None:
    """As many anchors as the objective is published with, but no more than images; a query's neighbours among them are
    a share of them. None for an objective without a bank."""
    banks = _banks(objective)
    if not banks:
        return None
    size = min(max(type(leaf.config)().bank_size for leaf in banks), images)
    share = temperature["share"] or temperature["default_share"]
    return {
        "suggested": size,
        "enough": min(size, _rounded_up(ENOUGH_NEIGHBOURS / share)),
        "neighbours": share * size,
        "bytes": {
            dtype: sum(forecast.bank_bytes(size, leaf.bank.widths.values(), dtype=dtype) for leaf in banks)
            for dtype in forecast.BANK_BYTES
        },
    }


def _banks(objective: Any) -> list[Any]:
    """The objectives with a bank; of a sum, its terms."""
    return [leaf for leaf in leaves(objective).values() if hasattr(leaf, "bank")]


def _rounded_up(value: float) -> int:
    """To two digits: nobody sets a bank of 5002 anchors."""
    unit = 10 ** max(0, math.floor(math.log10(value)) - 1)
    return math.ceil(value / unit) * unit


# ---- student ---------------------------------------------------------------------------------------------------------


def _student(case: Case) -> list[RenderableType]:
    student = case.student
    if student is None:
        return []
    unsafe = None
    try:
        refuse_unsafe(student, case.fabric.device)
    except Refusal as refusal:
        unsafe = str(refusal)
    of_teacher = case.found["teacher"] or {"parameters": None, "multiply_adds": None}
    own = {"parameters": parameter_count(student), "multiply_adds": multiply_adds(student)}
    shares = {
        f"{name.removesuffix('s')}_share": None if of_teacher[name] is None else count / max(1, of_teacher[name])
        for name, count in own.items()
    }
    about = {"spec": case.config.student, "width": student.width, "input_size": student.preprocessing.size}
    case.found["student"] = found = about | own | shares | {"unsafe": unsafe}
    return findings.student(found)


# ---- speed -----------------------------------------------------------------------------------------------------------

MEASURED = ("loader", "loader_stored", "loader_embed", "teacher", "step_alone", "step_stored", "step_live")


def _speed(case: Case) -> list[RenderableType]:
    """Reading, the teacher, the student's step; then whole steps with stored rows and with the live teacher."""
    if not case.found["data"]["splits"]["train"]["usable"]:
        return []
    config, device, teacher, student = case.config, case.fabric.device, case.teacher, case.student
    case.console.print(f"measuring speeds, {config.seconds:g} s at most", highlight=False)
    views = _views(case)
    wanted = max(2, min(config.batch_size, len(case.training)))
    speed: dict[str, Any] = {
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else device.type,
        "precision": case.fabric._precision.precision,
        "workers": default_workers() if config.workers is None else config.workers,
        "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1,
        "batch_size": wanted,
        "input_size": _side(case),
        **dict.fromkeys((*MEASURED, "parts_stored", "parts_live")),
    }
    case.found["speed"] = speed
    if len(case.training) < 2:
        case.leave_out("speed", "it needs at least 2 training images")
        return findings.speed(speed)
    trainable = _trainable(case)
    live = isinstance(teacher, LiveTeacher)
    count = len(views) + live + (2 + live if trainable else 0)
    bench = Bench(
        images=case.training, device=device, seconds=config.seconds / count, batch_size=wanted, seed=config.seed,
        workers=config.workers, announce=getattr(teacher, "announce", lambda _: None),
    )  # fmt: skip
    try:
        read = {}
        for name, view in views.items():
            measured, read[name] = bench.reading(view)
            speed[name] = _as_dict(measured)
        if isinstance(teacher, LiveTeacher):
            with case.fabric.autocast():
                speed["teacher"] = _as_dict(bench.embedding(teacher.swift, read["loader"]))
        if trainable:
            assert student is not None
            _train(case, bench, views, read, student)
    except Refusal as refusal:  # what has been measured until then is still true
        case.leave_out("the rest of the speeds", refusal)
    try:
        if isinstance(teacher, LiveTeacher):
            teacher.settle(wait=True)
    except Refusal as refusal:  # an image whose row is infinite: a training would end there
        case.leave_out("the teacher", refusal)
    return findings.speed(speed)


def _side(case: Case) -> int:
    """Pixels at which a training with the live teacher cuts: what the larger of the two models looks at."""
    looking = (case.found["student"], case.found["teacher"])
    return max((part["input_size"] for part in looking if part and part["input_size"]), default=224)


def _views(case: Case) -> dict[str, View]:
    """How images are cut where reading is measured: live, for stored rows where that differs, and for `embed`."""
    teacher, student, side = case.teacher, case.student, _side(case)
    if isinstance(teacher, StoredTeacher) and student is not None:
        return {"loader": teacher.view(TrainView(), student.preprocessing.size)}
    views: dict[str, View] = {"loader": RandomView(TrainView(), side)}
    if student is not None and teacher is not None and student.preprocessing.size != side:
        # a replay cuts the crops that were drawn when the rows were stored: the same boxes, at the student's own size
        views["loader_stored"] = RandomView(TrainView(), student.preprocessing.size)
    if isinstance(teacher, LiveTeacher):
        views["loader_embed"] = RecordedViews(TrainView(), teacher.preprocessing, case.config.views)
    return views


def _trainable(case: Case) -> bool:
    """Whether there is a training to be measured."""
    if case.student is not None and case.teacher is None:
        case.leave_out("training speed and forecast", "they need --teacher and --student")
    unsafe = case.found["student"] is not None and case.found["student"]["unsafe"]
    if unsafe:
        case.leave_out("training speed and forecast", "the student cannot be trained on this device")
    return case.teacher is not None and case.student is not None and not unsafe


def _train(case: Case, bench: Bench, views: dict[str, View], read: dict[str, Batch], student: Encoder) -> None:
    """The student's step by itself, with stored rows and, where there is one, with the live teacher."""
    speed, teacher = case.found["speed"], case.teacher
    assert teacher is not None
    own = "loader_stored" if "loader_stored" in views else "loader"
    case.memory = _memory(case, student, teacher)
    home = room.free_on_device(case.fabric.device) or room.free_memory()
    if home is not None and 2 * case.memory["bank"] > home:
        case.leave_out("training speed", "the bank does not fit into memory")
        return
    at_hand = AtHand(teacher, seed=case.config.seed, device=case.fabric.device)
    step = _step(case, student, at_hand)
    few = repeated(read[own], min(FEW, len(read[own].index))).to(case.fabric.device)
    with case.fabric.autocast():
        activations = activation_bytes(step.student, few.images) / len(few.index)
    case.memory["activations"] = round(activations * min(case.config.batch_size, len(case.training)))
    case.memory["whole"] += case.memory["activations"]

    measured, size = bench.alone(step, at_hand.prepare(read[own]))
    speed["step_alone"], speed["batch_size"] = _as_dict(measured), size
    prepare: Callable[[Batch], Batch] = teacher.prepare if isinstance(teacher, StoredTeacher) else at_hand.prepare
    measured, speed["parts_stored"] = bench.training(step, views[own], batch_size=size, prepare=prepare)
    speed["step_stored"] = _as_dict(measured)
    if isinstance(teacher, LiveTeacher):
        rate = 1 / sum(1 / speed[part]["images_per_second"] for part in ("teacher", "step_alone"))
        size = speed["batch_size"] = bench.fitting(rate, size)
        measured, speed["parts_live"] = bench.training(step, views["loader"], batch_size=size, prepare=teacher.prepare)
        speed["step_live"] = _as_dict(measured)


def _step(case: Case, student: Encoder, teacher: AtHand) -> Step:
    """A step of the training with a full bank."""
    config, device = case.config, case.fabric.device
    objective, ends = _objective(config, teacher, student, device, images=len(case.training))
    for leaf in leaves(objective).values():
        if leaf.temperature == "auto":
            calibrated = case.found["teacher"]["temperature"] or {"suggested": None}
            leaf.temperature = calibrated["suggested"] or BankConfig.temperature
        if getattr(leaf, "fits_targets", False):  # noise, here and in the bank, is as much work in a step as rows
            leaf.fit_randomly(torch.Generator().manual_seed(config.seed))
    for leaf in _banks(objective):
        leaf.bank.fill_randomly(torch.Generator().manual_seed(config.seed))
    model = Student(student.train(), ends.build()).train().to(device)
    model = model.to(memory_format=torch.channels_last)
    whole = Weighted([objective], [1.0], [(ends.widths[-1], teacher.width)])
    whole.trained.to(device)
    optimizer = optim.optimizer([*model.parameters(), *whole.trained.parameters()], config.optimizer)
    made: Any = teacher  # of a teacher a step needs the call alone
    return Step(case.fabric, made, model, Momentum(model, objective.momentum), whole, optimizer)


def _memory(case: Case, student: Encoder, teacher: LiveTeacher | StoredTeacher) -> dict[str, Any]:
    """Memory of a training; its activations have to be measured."""
    assert case.projector is not None
    whole, _ = _objective(case.config, teacher, student, torch.device("meta"), images=len(case.training))
    bank = 0
    for leaf in _banks(case.objective):
        size = len(case.training) if leaf.stored_anchors else min(leaf.config.bank_size, len(case.training))
        dtype = getattr(leaf.config, "bank_dtype", "float32")
        bank += forecast.bank_bytes(size, leaf.bank.widths.values(), dtype=dtype)
    states = 2 if case.config.optimizer.name == "adamw" else 1
    slow = case.objective.momentum is not None
    held = (costs(teacher.encoder)["parameters"] or 0) if isinstance(teacher, LiveTeacher) else 0
    learning = parameter_count(student) + parameter_count(case.projector.build())
    weights = forecast.training_bytes(learning, slow_copy=slow, optimizer_states=states)
    heads = parameter_count(Weighted([whole], [1.0], [(0, 0)]).trained)
    weights += forecast.training_bytes(heads, slow_copy=False, optimizer_states=states)
    weights += forecast.WEIGHT_BYTES * held
    return {"weights": weights, "activations": None, "bank": bank, "whole": weights + bank}


def _as_dict(speed: Speed) -> dict[str, Any]:
    error = None if math.isnan(speed.error) else round(speed.error, 4)
    return {
        "images_per_second": round(speed.images_per_second, 2),
        "error": error,
        "seconds": round(speed.seconds, 2),
    }


# ---- forecast --------------------------------------------------------------------------------------------------------


def _forecast(case: Case) -> list[RenderableType]:
    """Hours, disk and memory; nothing without a teacher."""
    config, splits, speed, teacher = case.config, case.splits, case.found["speed"], case.found["teacher"]
    if teacher is None or speed is None or speed["loader"] is None:
        return []
    rates = {name: speed[name] and speed[name]["images_per_second"] for name in MEASURED}
    tested = 0 if splits.test is None else len(splits.test)
    images = len(case.training)
    result: dict[str, Any] = {
        "images": images,
        "epochs": config.epochs,
        "views": config.views,
        "live": None,
        "stored": {"embed_hours": None, "train_hours": None, "hours": None},
        "table_bytes": None,
        "free_disk": room.free_disk(Path.cwd()),
        "memory": case.memory,
        "free_memory": room.free_on_device(case.fabric.device) or room.free_memory(),
    }
    embed = 0.0 if teacher["stored"] else None
    if not teacher["stored"]:
        result["table_bytes"] = forecast.table_bytes(
            len(splits.train), tested, views=config.views, width=teacher["width"]
        )
        if rates["teacher"] and rates["loader_embed"]:
            embed = forecast.embedding(
                len(splits.train), tested, views=config.views, teacher=rates["teacher"],
                reading=rates["loader_embed"], loader=rates["loader"],
            )  # fmt: skip
    if rates["step_live"]:
        hours = forecast.live(images, epochs=config.epochs, step=rates["step_live"], loader=rates["loader"])
        result["live"] = {"hours": hours.total}
    result["stored"]["embed_hours"] = embed
    if rates["step_stored"] and embed is not None:
        loader = rates["loader_stored"] or rates["loader"]
        told = forecast.stored(images, epochs=config.epochs, step=rates["step_stored"], loader=loader, embed=embed)
        result["stored"] |= {"train_hours": told.train, "hours": told.total}
    if any(getattr(leaf, "fits_targets", False) for leaf in leaves(case.objective).values()):
        case.leave_out("hours before the first step", f"{config.objective.name} looks at the teacher's rows of all "
                       f"{findings.number(images)} training images once")  # fmt: skip
    case.found["forecast"] = result
    return findings.forecast(result)


# ---- advice ----------------------------------------------------------------------------------------------------------


def _advice(case: Case) -> list[RenderableType]:
    config = case.config
    names = ("data", "teacher", "teacher_size", "batch_size", "views", "unusual", "workers", "accelerator")
    plan = {name: getattr(config, name) for name in names}
    plan |= {name: getattr(config.objective, name, None) for name in ("temperature", "bank_size")}
    plan["within_batch"] = getattr(case.objective, "within_batch", False)
    case.found["advice"] = advice.give(case.found, plan=plan)
    return findings.advice(case.found["advice"], case.found["left_out"])
