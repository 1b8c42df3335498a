"""What was tried for the default objective: changes of 1q, each trained for a minute on views that are cut once.

    compress-ssl embed --encoder TEACHER --data DATA --views 4 --view.scale 0.2 1 --size 32 --out TABLE
    python benchmarks/variants.py DATA TABLE [--only NAME …] [--seeds 0 1] [--images 40000]

The first 10 000 training images and 5000 test images; batches of 64, AdamW 6e-3, a cosine to 0, the student of
docs/results/compress.md. Prints a line a training: 1-NN accuracy, neighbours kept of 10, seconds of one core.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from compress_ssl import colour, datasets, objectives, optim
from compress_ssl.calibration import calibrate
from compress_ssl.datasets import ImageSet, open_image
from compress_ssl.encoder import open_encoder
from compress_ssl.momentum import Momentum
from compress_ssl.neighbours import nearest_neighbours
from compress_ssl.projector import ProjectorConfig, shape
from compress_ssl.similarity import anchor_kl
from compress_ssl.stored import find, of, open_stored
from compress_ssl.stored_teacher import StoredTeacher
from compress_ssl.student import Student
from compress_ssl.transforms import EvaluationView, Sample, TrainView

SIDE, BATCH, TRAIN, TEST = 32, 64, 10_000, 5_000


@dataclass(frozen=True)
class Variant:
    """One way to train.

    shown: the crop that the student sees: `whole`, the evaluation view and its mirror image, or `crop`, a stored view.
    told: the teacher's row: of what is `shown`, of the `whole`, or the `mean` over all its views.
    temperatures: multiples of the objective's; the loss is the sum over them.
    """

    objective: str = "compress_1q"
    options: dict[str, Any] = field(default_factory=dict)
    projector: ProjectorConfig = ProjectorConfig()
    shown: str = "whole"
    told: str = "shown"
    temperatures: tuple[float, ...] = ()
    colours: colour.Config | None = None
    mixup: float = 0.0


AUTO = {"temperature": "auto", "regression": 0.0}
VARIANTS = {
    "1q": Variant(),
    "2q, momentum 0.9": Variant("compress_2q", {"momentum": 0.9}),
    "SEED": Variant("seed"),
    "Reg-BN": Variant("regression_bn"),
    "auto, and 4 x Reg-BN": Variant("compress"),
    "auto temperature": Variant("compress", AUTO),
    "auto, 5 %": Variant("compress", {**AUTO, "perplexity": 0.05}),
    "auto, centred": Variant("compress", {**AUTO, "centre": "mean"}),
    "auto, centred, own anchor": Variant("compress", {**AUTO, "centre": "mean", "own_anchor": "compared"}),
    "auto, all rows as anchors": Variant("compress", {**AUTO, "anchors": "stored"}),
    "three temperatures": Variant(temperatures=(0.5, 1.0, 2.0)),
    "projector of two layers": Variant(projector=ProjectorConfig(kind="mlp", hidden_width=512)),
    "crops": Variant(shown="crop"),
    "crops, told the whole": Variant(shown="crop", told="whole"),
    "crops, told the mean": Variant(shown="crop", told="mean"),
    "whole, told the mean": Variant(told="mean"),
    "other colours for the student": Variant(colours=colour.Config()),
    "mixup": Variant(mixup=0.5),
}


@dataclass(frozen=True)
class Seen:
    """Pictures (V, N, 32, 32, 3) uint8 and unit rows (V, N, D) of stored views; the same of the evaluation view."""

    views: np.ndarray
    view_rows: Tensor
    whole: dict[str, Tensor]
    rows: dict[str, Tensor]
    labels: dict[str, np.ndarray]


def cut(images: ImageSet, view: Callable, epoch: int) -> np.ndarray:
    """(N, 32, 32, 3) uint8."""
    made = (view(open_image(images, place), Sample(0, epoch, place, images.ids[place])) for place in range(len(images)))
    return np.stack([(one[0] if isinstance(one, tuple) else one).permute(1, 2, 0).numpy() for one in made])


def look(data: str, table: str) -> Seen:
    splits, stored = datasets.open_splits(data), open_stored(table, ids=None)
    assert stored is not None
    assert splits.test is not None
    parts = {"train": splits.train, "test": splits.test}
    some = {name: datasets.subset(images, np.arange(min(len(images), most)))
            for (name, images), most in zip(parts.items(), (TRAIN, TEST), strict=True)}  # fmt: skip
    teacher = StoredTeacher(stored, splits.train, device=torch.device("cpu"))
    places = find(stored, some["train"], part=True)
    assert teacher.preprocessing is not None
    view, evaluation = teacher.view(TrainView(), SIDE), EvaluationView(teacher.preprocessing)
    rows = [stored.rows(places, view=number) for number in range(stored.views)]
    return Seen(
        views=np.stack([cut(some["train"], view, number) for number in range(stored.views)]),
        view_rows=functional.normalize(torch.stack(rows).float(), dim=2),
        whole={name: torch.from_numpy(cut(images, evaluation, 0)) for name, images in some.items()},
        rows={name: torch.from_numpy(of(stored, images).rows).float() for name, images in some.items()},
        labels={name: images.labels for name, images in some.items()},
    )


def train(variant: Variant, seen: Seen, *, student: str, seed: int, images: int) -> Any:
    """The encoder after `images` pictures: the loop of distill.py."""
    torch.manual_seed(seed)
    encoder = open_encoder(student, weights="random", size=SIDE).train()
    module = objectives.find(variant.objective)
    config = module.Config(**variant.options)
    count, width = seen.rows["train"].shape
    ends = shape(
        objectives.projector_of(config, variant.projector),
        width=encoder.width,
        target_width=width,
        space=objectives.space_of(config),
    )
    objective = module.Objective(config, width=ends.widths[-1], target_width=width, images=count, seed=seed)
    if hasattr(objective, "centre_on"):
        objective.centre_on(seen.rows["train"].mean(dim=0))
    if objective.temperature == "auto":
        known = getattr(objective, "seen", lambda rows: rows)(seen.rows["train"][:6000])
        objective.temperature = calibrate(known[:1000], known[1000:], share=config.perplexity).temperature
    if objective.stored_anchors:
        objective.fill(seen.rows["train"], torch.arange(count))
    model = Student(encoder, ends.build()).train().to(memory_format=torch.channels_last)
    momentum = Momentum(model, objective.momentum)
    trained = getattr(objective, "trained", None)
    weights = [*model.parameters(), *([] if trained is None else trained.parameters())]
    optimizer = optim.optimizer(weights, optim.OptimizerConfig(name="adamw", learning_rate=6e-3))
    schedule, steps, a_pass = optim.ScheduleConfig(name="cosine"), images // BATCH, count // BATCH
    mean = functional.normalize(seen.view_rows.sum(dim=0) + seen.rows["train"])
    order = np.arange(count)
    for step in range(steps):
        epoch, place = divmod(step, a_pass)
        if place == 0:
            order = np.random.default_rng((seed, epoch)).permutation(count)
        index = torch.from_numpy(np.sort(order[place * BATCH : (place + 1) * BATCH]))
        number = epoch % len(seen.views)
        drawn = torch.Generator().manual_seed(seed * 100_003 + step)
        if variant.shown == "crop":
            pictures = torch.from_numpy(seen.views[number][index.numpy()])
        else:
            mirrored = torch.rand(BATCH, generator=drawn) < 0.5
            pictures = seen.whole["train"][index]
            pictures = torch.where(mirrored[:, None, None, None], pictures.flip(2), pictures)
        crop_told = variant.told == "shown" and variant.shown == "crop"
        target = (seen.view_rows[number] if crop_told else mean if variant.told == "mean" else seen.rows["train"])[
            index
        ]
        pictures = pictures.permute(0, 3, 1, 2)
        if variant.mixup:
            share = float(np.random.default_rng((seed, step)).beta(variant.mixup, variant.mixup))
            pictures = torch.lerp(pictures.flip(0).float(), pictures.float(), share).round().to(torch.uint8)
            target = functional.normalize(torch.lerp(target.flip(0), target, share))
        if variant.colours is not None:
            pictures = colour.apply(pictures, colour.draw(BATCH, variant.colours, drawn))
        optim.set_rate(optimizer, 6e-3 * optim.rate(step / steps, schedule))
        pictures = pictures.contiguous(memory_format=torch.channels_last)
        query = model(pictures)
        key = momentum(pictures, query)
        if variant.temperatures:
            anchors, places = objective.bank.anchors("target"), objective.bank.index
            losses = [
                anchor_kl(query, anchors, target, anchors, temperature=times * float(objective.temperature),
                          index=index, anchor_index=places)
                for times in variant.temperatures
            ]  # fmt: skip
            loss = torch.stack(losses).sum()
        else:
            loss = objective(query, target, index)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        objective.update(key, target, index)
        momentum.follow(model)
    return encoder.eval()


@torch.no_grad()
def scores(encoder: Any, seen: Seen, nearest: Tensor) -> tuple[float, float]:
    """1-NN accuracy, and the share of the teacher's ten neighbours kept."""
    rows = {
        name: functional.normalize(torch.cat([encoder(part.permute(0, 3, 1, 2)).float() for part in whole.split(250)]))
        for name, whole in seen.whole.items()
    }
    _, found = nearest_neighbours(rows["test"], rows["train"], count=10)
    kept = (found[:, :, None] == nearest[:, None, :]).any(dim=2).float().mean()
    return float((seen.labels["train"][found[:, 0].numpy()] == seen.labels["test"]).mean()), float(kept)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data")
    parser.add_argument("table", help="of the teacher, with random views")
    parser.add_argument("--only", nargs="+", choices=list(VARIANTS), default=list(VARIANTS), metavar="NAME")
    parser.add_argument("--seeds", nargs="+", type=int, default=[0])
    parser.add_argument("--images", type=int, default=40_000)
    parser.add_argument("--student", default="compress/resnet10_small_w8_s2")
    options = parser.parse_args()
    torch.set_num_threads(1)
    seen = look(options.data, options.table)
    _, nearest = nearest_neighbours(seen.rows["test"], seen.rows["train"], count=10)
    teacher = float((seen.labels["train"][nearest[:, 0].numpy()] == seen.labels["test"]).mean())
    print(f"teacher: 1-NN {100 * teacher:.1f}\n| variant | seed | 1-NN | kept@10 | seconds |\n|---|---|---|---|---|")
    for name in options.only:
        for seed in options.seeds:
            start = time.process_time()
            encoder = train(VARIANTS[name], seen, student=options.student, seed=seed, images=options.images)
            accuracy, kept = scores(encoder, seen, nearest)
            seconds = time.process_time() - start
            print(f"| {name} | {seed} | {100 * accuracy:.1f} | {100 * kept:.1f} | {seconds:.0f} |", flush=True)


if __name__ == "__main__":
    main()
