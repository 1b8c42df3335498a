"""Compress a teacher into a student: the loop that every other file explains one line of.

Source: Abbasi Koohpayegani et al., CompRess, NeurIPS 2020, Sec. 3 and 4.
Beyond the paper: held-out images, needing no labels, choose the best student; any step can be resumed exactly.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from lightning.fabric import Fabric
from rich.console import Console
from torch import Tensor, nn

from compress_ssl import colour, compilation, datasets, evaluations, objectives, optim
from compress_ssl.calibration import calibrate, perplexity_share
from compress_ssl.datasets import ImageSet, Splits
from compress_ssl.device import refuse_unsafe
from compress_ssl.embed import embed
from compress_ssl.encoder import Encoder, open_encoder
from compress_ssl.evaluate import Protocols, describe, result_table, score, side_by_side, write_results
from compress_ssl.evaluations import Embedded, nearest_neighbour, neighbour_overlap
from compress_ssl.hardware import HardwareConfig, launch
from compress_ssl.loader import Batch, Skipped, TrainLoader, refuse_skipped
from compress_ssl.momentum import Momentum
from compress_ssl.optim import OptimizerConfig, ScheduleConfig
from compress_ssl.processes import everywhere, on_first, on_this_machine
from compress_ssl.run_folder import RunFolder
from compress_ssl.settings import Flat
from compress_ssl.stored import refuse_too_large
from compress_ssl.stored_teacher import StoredConfig
from compress_ssl.student import Student, save_student
from compress_ssl.teacher import LiveTeacher, Teacher, open_teacher
from compress_ssl.training import Training, TrainingConfig, step_seed
from compress_ssl.transforms import EvaluationView, TrainView
from compress_ssl.waits import Waits


@dataclass(frozen=True, kw_only=True)
class Config:
    """Train a small encoder to keep a big one's neighbourhoods."""

    teacher: str  # a run folder, timm/NAME, torchvision/NAME, …@weights, a folder that `embed` wrote, file of vectors
    student: str = "timm/resnet18"  # timm/NAME, torchvision/NAME, a run folder; random weights unless it has @weights
    data: str  # images: a folder, parquet, digits, torchvision/CIFAR10, …; labels are never trained on
    out: Path  # the run folder
    # compress_1q, compress_2q or regression; --objective NAME --help lists what else each takes
    objective: Any = field(default_factory=lambda: objectives.find("compress_2q").Config())
    ids: Path | None = None  # text file with the image ids of a .npy of vectors given as --teacher, one a line
    stored: StoredConfig = StoredConfig()  # how a teacher known by its stored embeddings is used
    view: TrainView = TrainView()  # random crop and flip of the images; teacher and student see the same pixels
    student_colour: colour.Config = colour.OFF  # random change of colours that the student sees, never the teacher; off
    teacher_size: int | None = None  # pixels of the teacher's input; None: its own
    student_size: int | None = None  # pixels of the student's input; None: the teacher's, where it has one
    training: Flat[TrainingConfig] = TrainingConfig()
    optimizer: OptimizerConfig = OptimizerConfig()
    schedule: ScheduleConfig = ScheduleConfig()
    hardware: Flat[HardwareConfig] = HardwareConfig()
    held_out: int = 1000  # training images kept aside to choose the best student, at most a tenth
    gallery: int = 5000  # training images among which the neighbours of those kept aside are looked for
    unusual: datasets.Unusual = "skip"  # CMYK, 16-bit, palette, transparent and animated files: skip or convert
    strict: bool = False  # an unusable image is an error
    resume: bool = False  # continue the run in --out


def run(config: Config) -> Path:
    """Train, score and return the run folder."""
    console = Console(stderr=True)
    if not config.resume:
        colour.refuse_idle(config.student_colour, "--student-colour")
    whole, images, watched = _split(config)
    fabric = launch(config.hardware, config.training.seed)
    run = on_first(fabric, lambda: RunFolder.open(config.out, config, resume=config.resume))
    if config.stored.in_memory:
        on_first(fabric, lambda: refuse_too_large(config.teacher, processes=on_this_machine(fabric)))

    teacher = open_teacher(
        config.teacher,
        images,
        size=config.teacher_size,
        device=fabric.device,
        workers=config.hardware.workers,
        # one process on a CPU can tell at once which image is wrong; an accelerator, or other processes, must not wait
        check="now" if fabric.device.type == "cpu" and fabric.world_size == 1 else "later",
        ids=config.ids,
        stored=config.stored,
        whole=whole,
        unusual=config.unusual,
    )
    identity = fabric.broadcast(on_first(fabric, teacher.identity))  # a file of vectors is read whole for it: once
    assert identity is not None
    size = config.student_size or (None if teacher.preprocessing is None else teacher.preprocessing.size)
    encoder = open_encoder(config.student, weights="random", size=size).train()
    view = teacher.view(config.view, encoder.preprocessing.size)
    objective = objectives.find(config.objective.name).Objective(
        config.objective,
        width=encoder.width,
        target_width=teacher.width,
        images=len(images),
        device=fabric.device,
        seed=config.training.seed,
        group=torch.distributed.group.WORLD if fabric.world_size > 1 else None,
    )
    if objective.stored_anchors:
        for index, target in teacher.stored():
            objective.fill(target.to(fabric.device), index.to(fabric.device))
    judge = on_first(fabric, lambda: judged_by(teacher, watched))
    automatic = objective.temperature == "auto"
    if automatic:
        found = on_first(fabric, lambda: calibrated(judge, config.objective.perplexity))
        objective.temperature = float(fabric.broadcast(found or 0.0))
    student = (
        Student(encoder, objective.projector_width).train().to(fabric.device).to(memory_format=torch.channels_last)
    )
    refuse_unsafe(student, fabric.device)
    momentum = Momentum(student, objective.momentum)
    optimizer = optim.optimizer(student.parameters(), config.optimizer)
    step = Step(fabric, teacher, student, momentum, objective, optimizer, accumulate=config.training.accumulate)
    loader = TrainLoader(
        images,
        view,
        batch_size=config.training.batch_size,
        seed=config.training.seed,
        workers=config.hardware.workers,
        rank=fabric.global_rank,
        ranks=fabric.world_size,
        pin_memory=fabric.device.type == "cuda",
        announce=teacher.announce,
    )

    def make_scorer() -> Scorer:
        assert run is not None
        assert judge is not None
        return Scorer(config, student, teacher, judge, objective, watched, run, console)

    scorer = on_first(fabric, make_scorer)
    training = Training(
        config.training,
        config.schedule,
        fabric=fabric,
        folder=run,
        loader=loader,
        optimizer=step.optimizer,
        parts={"student": student, "momentum": momentum, "objective": objective, "optimizer": step.optimizer},
        validate=lambda training: scorer(training) if scorer is not None else {},
        strict=config.strict,
        console=console,
        inputs={"data": images.fingerprint(), **identity},
        prepare=teacher.prepare,
        settle=teacher.settle,
    )
    if config.resume:
        training.resume(config.out)
    if judge is not None and automatic:  # a resumed run keeps the one it started with
        share = perplexity_share(
            *map(torch.from_numpy, (judge.test.rows, judge.train.rows)), temperature=objective.temperature
        )
        told = f"perplexity {share * objective.bank.size:.0f} among {objective.bank.size} anchors ({share:.1%})"
        console.print(f"temperature {objective.temperature:g}: {told}", highlight=False)
    count = config.training.batch_size // fabric.world_size // config.training.accumulate
    rehearsal = functools.partial(step.rehearsal, (count, 3, view.size, view.size))
    compilation.decide(config.hardware.compile, training, step.modules(), rehearsal, console=console)

    for batch in training:  # images (B, 3, H, W) uint8, index (B,)
        training.note(step(batch, training.waits, changed_colours(config, fabric, training.step)))
    if scorer is not None:
        scorer.finish()
    return config.out


class Step:
    """One step of the loop: a batch -> its loss, everything moved on by it. Nothing in it waits for the device.

    Args:
        student: on its device; wrapped here for several processes and the configured precision.
        optimizer: over the student's parameters.
        accumulate: parts that a batch is computed in.
    """

    def __init__(
        self,
        fabric: Fabric,
        teacher: Teacher,
        student: Student,
        momentum: Momentum,
        objective: Any,
        optimizer: torch.optim.Optimizer,
        *,
        accumulate: int = 1,
    ):
        self.fabric, self.teacher, self.student, self.momentum = fabric, teacher, student, momentum
        self.objective, self.accumulate = objective, accumulate
        self.wrapped, self.optimizer = fabric.setup(student, optimizer)

    def __call__(self, batch: Batch, waits: Waits, change: colour.Change | None = None) -> Tensor:
        """Mean loss of the batch (scalar, on the device).

        Args:
            change: of the colours that the student sees, not the teacher; a number for each image of the batch.
        """
        keys, targets, losses, done = [], [], [], 0
        self.optimizer.zero_grad()
        for part, last in batch.parts(self.accumulate):
            with self.fabric.autocast():
                target = self.teacher(part)  # (b, D_t)  frozen; a live encoder or stored embeddings, same call
            waits.lap("teacher")
            images, first, done = part.images, done, done + len(part.index)
            if change is not None:
                images = colour.apply(images, change.part(first, done)).contiguous(memory_format=torch.channels_last)
            with self.fabric.no_backward_sync(self.wrapped, enabled=not last):
                query = self.wrapped(images)  # (b, D_s)  the only tensor with a gradient
                waits.lap("student")
                loss = self.objective(query, target, part.index) * (len(part.index) / len(batch.index))
                waits.lap("objective")
                self.fabric.backward(loss)  # reads the bank, changes nothing
            waits.lap("student")
            with self.fabric.autocast():
                key = self.momentum(images, query)  # (b, D_s)  slow copy's, or the query without gradient
            waits.lap("momentum")
            keys.append(key)
            targets.append(target)
            losses.append(loss.detach())
        self.optimizer.step()
        waits.lap("optimizer")
        key, target, index = everywhere(self.fabric, torch.cat(keys), torch.cat(targets), batch.index)
        self.objective.update(key, target, index)  # after backward, so no step copies the bank
        waits.lap("objective")
        self.momentum.follow(self.student)  # slow <- m * slow + (1 - m) * student
        waits.lap("momentum")
        return torch.stack(losses).sum()

    def modules(self) -> list[nn.Module]:
        """What computes embeddings in a step: what torch.compile may make quicker."""
        slow = [] if self.momentum.slow is None else [self.momentum.slow]
        return [self.student, *slow, *self.teacher.modules()]

    def rehearsal(self, shape: tuple[int, ...]) -> Callable[[], None]:
        """The embeddings and the gradient of a step, of random pixels; only gradients and running statistics change."""
        images = compilation.noise(*shape, device=self.fabric.device).contiguous(memory_format=torch.channels_last)

        def rehearse() -> None:
            with self.fabric.autocast():
                query = self.student(images)
            query.square().mean().backward()
            with self.fabric.autocast(), torch.no_grad():
                for module in self.modules()[1:]:
                    module(images)

        return rehearse


def changed_colours(config: Config, fabric: Fabric, step: int) -> colour.Change | None:
    """What the student sees otherwise in this step; drawn for all processes and this one's taken."""
    if not config.student_colour.changes:
        return None
    generator = torch.Generator().manual_seed(step_seed(config.training.seed, step, 1))  # not the numbers of dropout
    share = config.training.batch_size // fabric.world_size
    drawn = colour.draw(config.training.batch_size, config.student_colour, generator)
    return drawn.part(fabric.global_rank * share, (fabric.global_rank + 1) * share)


def judged_by(teacher: Teacher, watched: Splits) -> Embedded:
    """The teacher's rows of gallery and held-out images: what students are scored against, and its neighbourhoods."""
    assert watched.test is not None
    return Embedded(train=teacher.embeddings(watched.train), test=teacher.embeddings(watched.test))


def calibrated(judge: Embedded | None, share: float) -> float:
    """The temperature that gives the teacher's held-out rows that share of the gallery as neighbours."""
    assert judge is not None
    return calibrate(torch.from_numpy(judge.test.rows), torch.from_numpy(judge.train.rows), share=share).temperature


def best_epoch(folder: RunFolder) -> str:
    """Which student was kept, for whoever believes that it is the last one."""
    scored = [line for line in folder.metrics() if line["kind"] == "validation"]
    best = max(scored, key=lambda line: line["neighbour_overlap_10"])  # of equal ones the first, as it is kept
    told = f"kept: the student of epoch {best['epoch']:.3g} of {scored[-1]['epoch']:.3g}"
    if not best["step"]:
        told += ", which is untrained: none after it kept more neighbours; train longer, or change the learning rate"
    return told


class Scorer:
    """Scores the student on held-out images, without labels, and keeps the best one in the run folder."""

    def __init__(
        self,
        config: Config,
        student: Student,
        teacher: Teacher,
        judge: Embedded,
        objective: Any,
        splits: Splits,
        folder: RunFolder,
        console: Console,
    ):
        self.config, self.student, self.folder, self.console, self.splits = config, student, folder, console, splits
        self.device = next(student.parameters()).device
        assert splits.test is not None
        self.watched = (splits.train, splits.test)
        self.teacher = replace(judge, teacher=judge)
        self.teacher_model, self.objective = teacher, objective

    def __call__(self, training: Training) -> dict[str, float]:
        """Scores of the student as it is; writes it to student/ if it keeps more neighbours than any before."""
        embedded = self._embed(self.student.encoder)
        scores = neighbour_overlap.evaluate(embedded, neighbour_overlap.Config())
        if embedded.labelled:
            for prefix, model in (("", embedded), ("teacher_", self.teacher)):
                found = nearest_neighbour.evaluate(model, nearest_neighbour.Config())
                scores[f"{prefix}nearest_neighbour"] = found["nearest_neighbour"]
        if scores["neighbour_overlap_10"] > training.best:
            training.best = scores["neighbour_overlap_10"]
            save_student(self.student, self.folder.path / "student")
        return scores

    def finish(self) -> None:
        """Score the best student and its teacher on the held-out images once more, for results.json."""
        best = open_encoder(str(self.folder.path), weights="random")
        best = best.to(self.device).to(memory_format=torch.channels_last)
        embedded = self._embed(best)
        models = {"teacher": self.teacher, "student": embedded}
        about = {
            "teacher": {"spec": self.config.teacher, "width": self.teacher.train.rows.shape[1]},
            "student": {
                "spec": str(self.folder.path),
                "temperature": self.objective.temperature,  # the number, also where config.yaml says auto
                **describe(best, self.device),
            },
        }
        if isinstance(self.teacher_model, LiveTeacher):
            about["teacher"] |= describe(self.teacher_model.encoder, self.device)
        chosen = {
            name: evaluations.find(name) for name in ("nearest_neighbour", "neighbour_overlap", "cluster_alignment")
        }
        scores = {name: score(embedded, chosen, Protocols()) for name, embedded in models.items()}
        write_results(self.folder, data=self.config.data, models=models, scores=scores, about=about, splits=self.splits)
        self.console.print(result_table(scores, about))
        self.console.print(best_epoch(self.folder), highlight=False)
        if self.folder.skipped():
            self.console.print(self.folder.skipped_told(), markup=False)

    def _skip(self, skipped: Skipped) -> None:
        if self.config.strict:
            refuse_skipped(skipped)
        self.folder.skip(*skipped)

    def _embed(self, encoder: Encoder) -> Embedded:
        """Both splits as `encoder` sees them, in eval mode; its mode is put back."""
        training = encoder.training
        encoder.eval()
        rows = [
            embed(
                encoder,
                images,
                view=EvaluationView(encoder.preprocessing),
                device=self.device,
                workers=self.config.hardware.workers,
                on_skip=self._skip,
                console=self.console,
                told="scoring",
            )
            for images in self.watched
        ]
        encoder.train(training)
        train, test = (
            {"teacher": self.teacher.train, "student": rows[0]},
            {"teacher": self.teacher.test, "student": rows[1]},
        )
        models = side_by_side(train, test)  # a teacher's vectors may be of pictures that are not read here
        self.teacher = models["teacher"]
        return models["student"]


def _split(config: Config) -> tuple[ImageSet, ImageSet, Splits]:
    """The training split; the part to train on; gallery and queries of the score: some of that, and the rest."""
    images = datasets.open_splits(config.data, unusual=config.unusual).train
    return images, *datasets.trained_and_watched(images, held_out=config.held_out, gallery=config.gallery)
