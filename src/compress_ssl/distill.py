"""Compress a teacher into a student: the loop that every other file explains one line of.

Source: Abbasi Koohpayegani et al., CompRess, NeurIPS 2020, Sec. 3 and 4.
Beyond the paper: held-out images, needing no labels, choose the best student; any step can be resumed exactly.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from rich.console import Console
from torch import Tensor, nn

from compress_ssl import colour, compilation, datasets, mixing, objectives, optim
from compress_ssl.datasets import ImageSet, Splits
from compress_ssl.device import refuse_unsafe
from compress_ssl.encoder import Encoder, open_encoder, own_size
from compress_ssl.hardware import HardwareConfig, launch
from compress_ssl.loader import Batch, TrainLoader, refuse_skipped
from compress_ssl.mixing import MixingConfig
from compress_ssl.momentum import Momentum
from compress_ssl.optim import OptimizerConfig, ScheduleConfig
from compress_ssl.patch_tokens import grid_of
from compress_ssl.processes import everywhere, on_first, on_this_machine
from compress_ssl.projector import About, ProjectorConfig, shape
from compress_ssl.refusal import Refusal
from compress_ssl.run_folder import RunFolder
from compress_ssl.scorer import Scorer, judged_by, settle_centres, settle_temperatures, temperatures_told
from compress_ssl.settings import Flat
from compress_ssl.stored import refuse_too_large
from compress_ssl.stored_teacher import StoredConfig
from compress_ssl.student import Student
from compress_ssl.teacher import LiveTeacher, Teacher
from compress_ssl.teachers import Teachers, open_teachers, teacher_specs
from compress_ssl.training import Training, TrainingConfig, step_seed
from compress_ssl.transforms import TrainView
from compress_ssl.waits import Waits
from compress_ssl.weighted import Weighted, leaves, weight_shares
from compress_ssl.whole_batch import refuse_parts

if TYPE_CHECKING:
    from lightning.fabric import Fabric


@dataclass(frozen=True, kw_only=True)
class Config:
    """Train a small encoder to keep a big one's neighbourhoods."""

    # one or several: a run folder, timm/NAME, torchvision/NAME, …@weights, a folder that `embed` wrote, file of vectors
    teacher: str | tuple[str, ...]
    student: str = "timm/resnet18"  # timm/NAME, torchvision/NAME, a run folder; random weights unless it has @weights
    data: str  # images: a folder, parquet, digits, torchvision/CIFAR10, …; labels are never trained on
    out: Path  # the run folder
    # a file of objectives/: compress, compress_1q, compress_2q, seed, crd, …; --objective NAME --help lists its options
    objective: Any = field(default_factory=lambda: objectives.find("compress").Config())
    teacher_weights: tuple[float, ...] = ()  # what each teacher's loss counts, divided by their sum; none: all alike
    projector: ProjectorConfig = ProjectorConfig()  # between the student's features and what is compared
    ids: Path | None = None  # text file with the image ids of a .npy of vectors given as --teacher, one a line
    stored: StoredConfig = StoredConfig()  # how a teacher known by its stored embeddings is used
    view: TrainView = TrainView()  # random crop and flip of the images; teacher and student see the same pixels
    student_colour: colour.Config = colour.OFF  # random change of colours that the student sees, never the teacher; off
    mixing: MixingConfig = MixingConfig()  # two images in one, for teacher and student alike: mixup or cutmix; off
    teacher_size: int | None = None  # pixels of every teacher's input; None: its own
    student_size: int | None = None  # pixels of the student's input; None: the (first) teacher's, where it has one
    training: Flat[TrainingConfig] = TrainingConfig()
    optimizer: OptimizerConfig = OptimizerConfig()
    schedule: ScheduleConfig = ScheduleConfig()
    hardware: Flat[HardwareConfig] = HardwareConfig()
    held_out: int = 1000  # training images kept aside to choose the best student, at most a tenth
    gallery: int = 5000  # training images among which the neighbours of those kept aside are looked for
    unusual: datasets.Unusual = "skip"  # CMYK, 16-bit, palette, transparent and animated files: skip or convert
    strict: bool = False  # an unusable image is an error
    resume: bool = False  # continue the run in --out


def run(config: Config, *, timed: bool = True) -> Path:
    """Train, score and return the run folder.

    Args:
        timed: whether results.json is to say how fast the encoders are, for which each sees 384 images more.
    """
    console = Console(stderr=True)
    specs = teacher_specs(config.teacher)
    shares = weight_shares(config.teacher_weights, teachers=len(specs))
    if not config.resume:
        colour.refuse_idle(config.student_colour, "--student-colour")
    whole, images, watched = _split(config)
    fabric = launch(config.hardware, config.training.seed)
    mixing.refuse_odd(config.mixing, batch_size=config.training.batch_size, processes=fabric.world_size)
    run = on_first(fabric, lambda: RunFolder.open(config.out, config, resume=config.resume))
    if config.stored.in_memory:
        on_first(fabric, lambda: refuse_too_large(*specs, processes=on_this_machine(fabric)))

    teachers = open_teachers(
        specs,
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
    identity = fabric.broadcast(on_first(fabric, teachers.identity))  # a file of vectors is read whole for it: once
    assert identity is not None
    encoder = open_encoder(config.student, weights="random", size=config.student_size or teachers.input_size).train()
    view = teachers.view(config.view, encoder.preprocessing.size)
    objective, projected = _objective(config, encoder, teachers, shares, len(images), fabric)
    refuse_parts(objective, accumulate=config.training.accumulate)
    judges = on_first(fabric, lambda: judged_by(teachers, watched))
    settle_centres(objective, judges, fabric)
    automatic = settle_temperatures(objective, judges, fabric)
    fill_stored(objective, teachers, fabric)
    projectors = [about.shape.build() for about in projected]
    sides = [member.token_side for member in objective if getattr(member, "tokens", False)]
    student = (
        Student(encoder, *projectors, token_sides=sides).train().to(fabric.device).to(memory_format=torch.channels_last)
    )
    refuse_unsafe(student, fabric.device)
    momentum = Momentum(student, objective.momentum)
    optimizer = optim.optimizer([*student.parameters(), *objective.trained.parameters()], config.optimizer)
    step = Step(fabric, teachers, student, momentum, objective, optimizer, accumulate=config.training.accumulate)
    loader = TrainLoader(
        images,
        view,
        batch_size=config.training.batch_size,
        seed=config.training.seed,
        workers=config.hardware.workers,
        rank=fabric.global_rank,
        ranks=fabric.world_size,
        pin_memory=fabric.device.type == "cuda",
        announce=teachers.announce,
    )

    def make_scorer() -> Scorer:
        assert run is not None
        assert judges is not None
        return Scorer(
            student,
            teachers,
            judges,
            objective,
            projected,
            data=config.data,
            splits=watched,
            folder=run,
            on_skip=refuse_skipped if config.strict else lambda skipped: run.skip(*skipped),
            workers=config.hardware.workers,
            console=console,
            timed=timed,
        )

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
        prepare=teachers.prepare,
        settle=teachers.settle,
    )
    if config.resume:
        training.resume(config.out)
    if training.step == 0:  # later, what was found is in the checkpoint
        fit_targets(objective, teachers, images, fabric)
    if not config.resume and fabric.is_global_zero and (told := size_told(config, encoder.preprocessing.size)):
        console.print(told, highlight=False)
    if judges is not None and automatic:  # a resumed run keeps those it started with
        for told in temperatures_told(objective, judges, teachers.names):
            console.print(told, highlight=False)
    count = config.training.batch_size // fabric.world_size // config.training.accumulate
    rehearsal = functools.partial(step.rehearsal, (count, 3, view.size, view.size))
    compilation.decide(config.hardware.compile, training, step.modules(), rehearsal, console=console)

    for batch in training:  # images (B, 3, H, W) uint8, index (B,)
        if mix := mixing.draw(config.mixing, step_seed(config.training.seed, training.step, 2)):
            batch = mixing.mix(batch, mix, teachers.stored_widths())
        training.note(step(batch, training.waits, changed_colours(config, fabric, training.step)))
    if scorer is not None:
        scorer.finish()
    return config.out


def size_told(config: Config, size: int) -> str:
    """That the student's input is the teacher's, if its own is very different; it decides what a step costs."""
    own = own_size(config.student) if config.student_size is None else None
    if own is None or max(size, own) < 2 * min(size, own):
        return ""
    return f"the student is trained at {size} pixels, its teacher's; its own are {own}: --student-size {own}"


class Step:
    """One step of the loop: a batch -> its loss, everything moved on by it. Nothing in it waits for the device.

    Args:
        teachers: of several, targets stand side by side, and the student's queries and keys as well.
        student: on its device; wrapped here for several processes and the configured precision.
        optimizer: over the student's parameters, and the objective's where it has any.
        accumulate: parts that a batch is computed in.
    """

    def __init__(
        self,
        fabric: Fabric,
        teachers: Teachers | Teacher,
        student: Student,
        momentum: Momentum,
        objective: Weighted,
        optimizer: torch.optim.Optimizer,
        *,
        accumulate: int = 1,
    ):
        self.fabric, self.teachers, self.student, self.momentum = fabric, teachers, student, momentum
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
                target = self.teachers(part)  # (b, D_t)  frozen; live or stored, one or several: the same call
            waits.lap("teacher")
            seen, first, done = part.images, done, done + len(part.index)
            images = seen
            if change is not None:
                images = colour.apply(images, change.part(first, done)).contiguous(memory_format=torch.channels_last)
            with self.fabric.no_backward_sync(self.wrapped, enabled=not last):
                query = self.wrapped(images)  # (b, D_s)  the only tensor with a gradient
                waits.lap("student")
                with self.fabric.autocast():  # (b, D_s)  slow copy's, or the query without gradient
                    key = self.momentum(seen if self.objective.key_view == "teacher" else images, query)
                waits.lap("momentum")
                loss = self.objective(query, target, part.index, key) * (len(part.index) / len(batch.index))
                waits.lap("objective")
                self.fabric.backward(loss)  # reads the bank, changes nothing
            waits.lap("student")
            keys.append(key)
            targets.append(target)
            losses.append(loss.detach())
        mean_gradients(self.fabric, self.objective.trained)
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
        return [self.student, *slow, *self.teachers.modules()]

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


def fill_stored(objective: Weighted, teachers: Teachers, fabric: Fabric) -> None:
    """Give the objectives whose anchors are their teacher's stored rows all of them."""
    for member, teacher in zip(objective, teachers, strict=True):
        if member.stored_anchors:
            for index, target in teacher.stored():
                member.fill(target.to(fabric.device), index.to(fabric.device))


def fit_targets(objective: Weighted, teachers: Teachers, images: ImageSet, fabric: Fabric) -> None:
    """Let objectives look at all of their teacher's rows once, in the first process; the others take what it found."""
    for whole, teacher in zip(objective, teachers, strict=True):
        for member in leaves(whole).values():
            if getattr(member, "fits_targets", False):
                _fit(member, teacher, images, fabric)


def _fit(member: Any, teacher: Any, images: ImageSet, fabric: Fabric) -> None:
    def fitted() -> Any:
        rows = teacher.embeddings(images)
        where = {id: position for position, id in enumerate(images.ids)}
        index = torch.tensor([where[id] for id in rows.ids])
        member.fit(torch.from_numpy(rows.rows).to(fabric.device), index.to(fabric.device))
        return member.state_dict()

    found = on_first(fabric, fitted)
    if fabric.world_size > 1:
        member.load_state_dict(fabric.broadcast(found))


def mean_gradients(fabric: Fabric, module: nn.Module) -> None:
    """Give every process the mean of all processes' gradients; the student's are averaged by its wrapper."""
    if fabric.world_size == 1:
        return
    for parameter in module.parameters():
        if parameter.requires_grad:
            mine = torch.zeros_like(parameter) if parameter.grad is None else parameter.grad
            parameter.grad = fabric.all_reduce(mine, reduce_op="mean")  # type: ignore[assignment]


def changed_colours(config: Config, fabric: Fabric, step: int) -> colour.Change | None:
    """What the student sees otherwise in this step; drawn for all processes and this one's taken."""
    if not config.student_colour.changes:
        return None
    generator = torch.Generator().manual_seed(step_seed(config.training.seed, step, 1))  # not the numbers of dropout
    share = config.training.batch_size // fabric.world_size
    drawn = colour.draw(config.training.batch_size, config.student_colour, generator)
    return drawn.part(fabric.global_rank * share, (fabric.global_rank + 1) * share)


def _objective(
    config: Config, encoder: Encoder, teachers: Teachers, shares: list[float], images: int, fabric: Fabric
) -> tuple[Weighted, list[About]]:
    """One objective for each teacher, and the projector that leads to it."""
    module = objectives.find(config.objective.name)
    space, members, projected, widths = objectives.space_of(config.objective), [], [], []
    asked = objectives.projector_of(config.objective, config.projector)
    for teacher, spec in zip(teachers, teachers.specs, strict=True):
        ends = shape(asked, width=encoder.width, target_width=teacher.width, space=space)
        projected.append(About(ends, space, spec))
        objective = module.Objective(
            config.objective,
            width=ends.widths[-1],
            target_width=teacher.width,
            images=images,
            device=fabric.device,
            seed=config.training.seed,
            group=torch.distributed.group.WORLD if fabric.world_size > 1 else None,
        )
        if objective.stored_anchors:
            teacher.stored()  # refused now if nothing is stored; filled when the centre is known
        trained = getattr(objective, "trained", None)
        if trained is not None:
            trained.to(fabric.device)
        members.append(objective)
        mine, its = _tokens(objective, encoder, teacher, spec)
        widths.append((ends.widths[-1] + mine, teacher.width + its))
    return Weighted(members, shares, widths), projected


def _tokens(objective: Any, encoder: Encoder, teacher: Any, spec: str) -> tuple[int, int]:
    """How much wider the student's and the teacher's rows are for patch tokens; settle on a grid, if it wants them."""
    if not getattr(objective, "tokens", False):
        return 0, 0
    if not isinstance(teacher, LiveTeacher):
        raise Refusal(f"--objective {objective.config.name} expected a live encoder as --teacher, got {spec}, stored "
                      "rows without patch tokens: name the encoder they were made with")  # fmt: skip
    mine, its = grid_of(encoder, option="--student"), grid_of(teacher.encoder, option="--teacher")
    side = objective.token_side = teacher.token_side = min(mine.side, its.side)
    return side**2 * mine.width, side**2 * its.width


def _split(config: Config) -> tuple[ImageSet, ImageSet, Splits]:
    """The training split; the part to train on; gallery and queries of the score: some of that, and the rest."""
    images = datasets.open_splits(config.data, unusual=config.unusual).train
    return images, *datasets.trained_and_watched(images, held_out=config.held_out, gallery=config.gallery)
