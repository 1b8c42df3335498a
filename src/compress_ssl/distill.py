"""Compress a teacher into a student: the loop that every other file explains one line of.

Source: Abbasi Koohpayegani et al., CompRess, NeurIPS 2020, Sec. 3 and 4.
Beyond the paper: held-out images, needing no labels, choose the best student; any step can be resumed exactly.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from lightning.fabric import Fabric
from rich.console import Console
from torch import Tensor

from compress_ssl import datasets, evaluations, objectives, optim
from compress_ssl.datasets import ImageSet, Splits
from compress_ssl.embed import EvaluationView, embed
from compress_ssl.encoder import Encoder, open_encoder
from compress_ssl.evaluate import Protocols, describe, result_table, score, write_results
from compress_ssl.evaluations import Embedded, nearest_neighbour, neighbour_overlap
from compress_ssl.loader import Skipped, TrainLoader
from compress_ssl.momentum import Momentum
from compress_ssl.optim import OptimizerConfig, ScheduleConfig
from compress_ssl.refusal import Refusal
from compress_ssl.run_folder import RunFolder
from compress_ssl.settings import Flat
from compress_ssl.student import Student, save_student
from compress_ssl.teacher import LiveTeacher, Teacher, open_teacher
from compress_ssl.training import (
    HardwareConfig,
    Training,
    TrainingConfig,
    launch,
    on_first,
    refuse_skipped,
    refuse_unsafe,
)
from compress_ssl.transforms import TrainView, cut, draw_crop


@dataclass(frozen=True, kw_only=True)
class Config:
    """Train a small encoder to keep a big one's neighbourhoods."""

    teacher: str  # a run folder, timm/NAME, torchvision/NAME, …@weights, or a table of stored embeddings
    student: str = "timm/resnet18"  # likewise, with random weights unless it says otherwise
    data: str  # images: a folder, parquet, digits, torchvision/CIFAR10, …; labels are never trained on
    out: Path  # the run folder
    objective: Any = field(default_factory=lambda: objectives.find("compress_2q").Config())  # a file of objectives/
    view: TrainView = TrainView()  # crop and flip, the same pixels for teacher and student
    teacher_size: int | None = None  # pixels of the teacher's input; None: its own
    student_size: int | None = None  # pixels of the student's input; None: the teacher's
    training: Flat[TrainingConfig] = TrainingConfig()
    optimizer: OptimizerConfig = OptimizerConfig()
    schedule: ScheduleConfig = ScheduleConfig()
    hardware: Flat[HardwareConfig] = HardwareConfig()
    held_out: int = 1000  # training images kept aside to choose the best student, at most a tenth
    gallery: int = 5000  # training images among which their neighbours are looked for
    unusual: datasets.Unusual = "skip"  # CMYK, 16-bit, palette, transparent and animated files: skip or convert
    strict: bool = False  # an unusable image is an error
    resume: bool = False  # continue the run in --out


class OneCrop:
    """(H, W, 3) uint8 -> (3, size, size) uint8: one random view, seen by teacher and student alike; picklable."""

    def __init__(self, view: TrainView, size: int):
        self.view, self.size = view, size

    def __call__(self, picture: np.ndarray, random: np.random.Generator) -> Tensor:
        height, width = picture.shape[:2]
        return cut(picture, draw_crop(height, width, self.view, random), self.size)


def run(config: Config) -> Path:
    """Train, score and return the run folder."""
    console = Console(stderr=True)
    images, watched = _split(config)
    fabric = launch(config.hardware, config.training.seed)
    run = on_first(fabric, lambda: RunFolder.open(config.out, config, resume=config.resume))

    teacher = open_teacher(
        config.teacher, images, size=config.teacher_size, device=fabric.device, workers=config.hardware.workers
    )
    size = config.student_size or teacher.preprocessing.size
    encoder = open_encoder(config.student, weights="random", size=size).train()
    objective = objectives.find(config.objective.name).Objective(
        config.objective,
        width=encoder.width,
        target_width=teacher.width,
        images=len(images),
        device=fabric.device,
        seed=config.training.seed,
    )
    student = (
        Student(encoder, objective.projector_width).train().to(fabric.device).to(memory_format=torch.channels_last)
    )
    refuse_unsafe(student, fabric.device)
    momentum = Momentum(student, objective.momentum)
    optimizer = optim.optimizer(student.parameters(), config.optimizer)
    wrapped, optimizer = fabric.setup(student, optimizer)
    loader = TrainLoader(
        images,
        OneCrop(config.view, max(size, teacher.preprocessing.size)),
        batch_size=config.training.batch_size,
        seed=config.training.seed,
        workers=config.hardware.workers,
        rank=fabric.global_rank,
        ranks=fabric.world_size,
        pin_memory=fabric.device.type == "cuda",
    )

    def make_scorer() -> Scorer:
        assert run is not None
        return Scorer(config, student, teacher, watched, run, console)

    scorer = on_first(fabric, make_scorer)
    training = Training(
        config.training,
        config.schedule,
        fabric=fabric,
        folder=run,
        loader=loader,
        optimizer=optimizer,
        parts={"student": student, "momentum": momentum, "objective": objective, "optimizer": optimizer},
        validate=lambda training: scorer(training) if scorer is not None else {},
        strict=config.strict,
        console=console,
        inputs={"data": images.fingerprint(), "teacher": teacher.fingerprint()},
    )
    if config.resume:
        training.resume(config.out)

    for batch in training:  # images (B, 3, H, W) uint8, index (B,)
        keys, targets, losses = [], [], []
        optimizer.zero_grad()
        for part, last in batch.parts(config.training.accumulate):
            with fabric.autocast():
                target = teacher(part)  # (b, D_t)  frozen; a live encoder or stored embeddings, same call
            with fabric.no_backward_sync(wrapped, enabled=not last):
                query = wrapped(part.images)  # (b, D_s)  the only tensor with a gradient
                loss = objective(query, target, part.index) * (len(part.index) / len(batch.index))
                fabric.backward(loss)  # reads the bank, changes nothing
            with fabric.autocast():
                key = momentum(part.images, query)  # (b, D_s)  slow copy of the student, or the query without gradient
            keys.append(key)
            targets.append(target)
            losses.append(loss.detach())
        optimizer.step()
        key, target, index = everywhere(fabric, torch.cat(keys), torch.cat(targets), batch.index)
        objective.update(key, target, index)  # after backward, so no step copies the bank
        momentum.follow(student)  # slow <- m * slow + (1 - m) * student
        training.note(torch.stack(losses).sum())
    if scorer is not None:
        scorer.finish()
    return config.out


def everywhere(fabric: Fabric, *rows: Tensor) -> tuple[Tensor, ...]:
    """Rows of all processes, in the order in which one process would have had them: every rank's bank is the same."""
    if fabric.world_size == 1:
        return rows
    whole = []
    for part in rows:
        parts = [torch.empty_like(part) for _ in range(fabric.world_size)]
        torch.distributed.all_gather(parts, part.contiguous())
        whole.append(torch.cat(parts))
    return tuple(whole)


class Scorer:
    """Scores the student on held-out images, without labels, and keeps the best one in the run folder."""

    def __init__(
        self, config: Config, student: Student, teacher: Teacher, splits: Splits, folder: RunFolder, console: Console
    ):
        self.config, self.student, self.folder, self.console, self.splits = config, student, folder, console, splits
        self.device = next(student.parameters()).device
        assert splits.test is not None
        self.watched = (splits.train, splits.test)
        gallery, queries = (teacher.embeddings(images) for images in self.watched)
        itself = Embedded(train=gallery, test=queries)
        self.teacher = replace(itself, teacher=itself)
        self.teacher_model = teacher

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
        models = {"teacher": self.teacher, "student": self._embed(best)}
        about = {
            "teacher": {"spec": self.config.teacher, "width": self.teacher.train.rows.shape[1]},
            "student": {"spec": str(self.folder.path), **describe(best, self.device)},
        }
        if isinstance(self.teacher_model, LiveTeacher):
            about["teacher"] |= describe(self.teacher_model.encoder, self.device)
        chosen = {
            name: evaluations.find(name) for name in ("nearest_neighbour", "neighbour_overlap", "cluster_alignment")
        }
        scores = {name: score(embedded, chosen, Protocols()) for name, embedded in models.items()}
        write_results(self.folder, data=self.config.data, models=models, scores=scores, about=about, splits=self.splits)
        self.console.print(result_table(scores, about))
        if self.folder.skipped():
            counts = ", ".join(f"{count} {kind}" for kind, count in sorted(self.folder.skipped().items()))
            self.console.print(
                f"images that could not be used, listed in {self.folder.path / 'skipped.jsonl'}: {counts}"
            )

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
        return Embedded(train=rows[0], test=rows[1], teacher=self.teacher)


def _split(config: Config) -> tuple[ImageSet, Splits]:
    """The images to train on; gallery and queries of the score: some of them, and the ones held out."""
    images = datasets.open_splits(config.data, unusual=config.unusual).train
    if len(images) < 4:
        raise Refusal(f"expected at least 4 images to train on and to score with, got {len(images)} in {images.name}: "
                      "add images")  # fmt: skip
    training, held_out = datasets.set_aside(images, at_most=config.held_out)
    gallery = datasets.hold_out(training, count=min(config.gallery, len(training) - 1))[1]
    return training, Splits(gallery, held_out)
