"""An encoder on PASCAL VOC: which classes are in a picture (classification), or where (detection).

Classification asks frozen embeddings, live or stored: `compress_ssl.multi_label`. Detection fine-tunes the encoder as
the backbone of a Faster R-CNN, or of a Fast R-CNN on boxes that are given (`compress_ssl.detector`,
`compress_ssl.detector_training`, `compress_ssl.proposals`), and is continued after an interruption. Both learn from
trainval and report on test, by VOC 2007's eleven-point rule and by the all-point rule:
`compress_ssl.average_precision`, `compress_ssl.detections`.
An image that cannot be read is refused: without it the score would be that of another test.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
import torch
import tyro
from rich.console import Console
from rich.table import Table as RichTable

from compress_ssl import datasets, detections, detector, detector_training, multi_label
from compress_ssl.datasets import Splits
from compress_ssl.detector import Detector
from compress_ssl.detector_training import Pictures, find, train
from compress_ssl.device import open_device, refuse_unsafe
from compress_ssl.embed import embed
from compress_ssl.embeddings import Embeddings
from compress_ssl.encoder import open_encoder, parameter_count, tell
from compress_ssl.evaluate import describe, from_stored
from compress_ssl.idle_options import refuse_idle
from compress_ssl.loader import Skipped
from compress_ssl.multi_label import Labelled
from compress_ssl.proposals import read_proposals
from compress_ssl.refusal import Refusal
from compress_ssl.run_folder import RunFolder, environment
from compress_ssl.stored import Stored, is_stored, open_stored
from compress_ssl.training import Interrupted
from compress_ssl.transforms import EvaluationView
from compress_ssl.voc_layout import Halves, Object, classes_of, halves, read_annotations, targets


@dataclass(frozen=True, kw_only=True)
class Config:
    """Score an encoder on PASCAL VOC, or on data laid out like it: average precision of every class, and their mean."""

    # a run folder, timm/NAME, torchvision/NAME@FILE, …; to classify also a folder that `embed` wrote, or vectors
    model: Annotated[str, tyro.conf.Positional]
    data: str  # a folder with JPEGImages, Annotations and ImageSets/Main, such as VOCdevkit/VOC2007
    out: Path  # results.json is written here
    # classification: which classes are in a picture, by frozen embeddings; detection: where they are, by fine-tuning
    task: Literal["classification", "detection"] = "classification"
    classification: multi_label.Config = field(default_factory=multi_label.Config)
    detection: detector_training.Config = field(default_factory=detector_training.Config)
    detector: detector.Config = field(default_factory=detector.Config)
    ids: Path | None = None  # text file with the image ids of a .npy of vectors, one a line
    size: int | None = None  # to classify: pixels of the input; None: the encoder's own
    batch_size: int = 256  # to classify: images embedded at once
    workers: int | None = None  # processes that read images; None: one a core but one, eight at most
    device: str = "auto"  # cpu, cuda, mps
    # to detect: files of boxes to look at in every picture (Fast R-CNN), which are else looked for (Faster R-CNN);
    # .jsonl or the .mat of selective search, see docs/evaluations.md
    proposals: tuple[Path, ...] = ()
    seed: int = 0  # to detect: of the layers that start at random, the order and the views
    resume: bool = False  # to detect: continue in --out after the last whole epoch


IDLE = {  # options that a task does not read, all of them the other task's
    "classification": ("detection", "detector", "proposals", "seed", "resume"),
    "detection": ("classification", "ids", "size", "batch_size"),
}
INSTEAD = {
    "size": "write --detector.sizes, the short sides of the pictures",
    "batch_size": "write --detection.batch-size",
}


def run(config: Config) -> Path:
    """Score, write results.json, print the table; returns the folder."""
    console = Console(stderr=True)
    other = "detection" if config.task == "classification" else "classification"
    refuse_idle(config, IDLE[config.task], expected=f"--task {other}", without=f"with --task {config.task}",
                instead=INSTEAD)  # fmt: skip
    root = Path(config.data).expanduser()
    both = halves(root)
    annotations = read_annotations(root, (*both.learn, *both.report))
    if not classes_of(annotations):
        raise Refusal(f"expected objects in the annotations of {root}, got none in {len(annotations)} files: annotate "
                      "some")  # fmt: skip
    task = _classify if config.task == "classification" else _detect
    found, about, folder = task(config, both, annotations, console)
    write_results(folder, config, both, found, about)
    console.print(class_table(found))
    return config.out


def _classify(
    config: Config, both: Halves, annotations: dict[str, tuple[Object, ...]], console: Console
) -> tuple[dict[str, Any], dict[str, Any], RunFolder]:
    """What `multi_label.score` says of the model, what there is to say about the model, and where to write it."""
    stored = open_stored(config.model, ids=config.ids)
    if stored is not None and config.size is not None:
        raise Refusal(f"--size expected an encoder, got {config.size} for stored rows: leave it out")
    folder = RunFolder.open(config.out, config, resume=False)
    splits = datasets.open_splits(config.data)
    assert splits.test is not None
    chosen_on = _chosen_on(both, splits)
    learn, report, about = _embed(config, stored, splits, console)
    classes = classes_of(annotations)

    def labelled(rows: Embeddings, ids: tuple[str, ...]) -> Labelled:
        return Labelled(rows.rows, targets([annotations[id] for id in ids], classes))

    found = multi_label.score(
        labelled(learn, both.learn),
        labelled(report, both.report),
        classes=classes,
        chosen_on=chosen_on,
        config=config.classification,
    )
    return found, about, folder


def _detect(
    config: Config, both: Halves, annotations: dict[str, tuple[Object, ...]], console: Console
) -> tuple[dict[str, Any], dict[str, Any], RunFolder]:
    """What `detections.score` says of the fine-tuned model, what there is to say about the model, and its folder."""
    if is_stored(config.model):
        raise Refusal(f"--task detection expected an encoder, which is fine-tuned, got the stored rows {config.model}: "
                      "name the encoder that made them")  # fmt: skip
    if config.seed < 0:
        raise Refusal(f"--seed expected 0 or more, got {config.seed}: choose another")
    classes, how = classes_of(annotations), config.detection
    given = read_proposals(config.proposals, annotations) if config.proposals else None
    device = open_device(config.device)
    torch.manual_seed(config.seed)
    encoder = open_encoder(config.model, weights="pretrained")
    tell(encoder)
    model = Detector(encoder, config.detector, classes=len(classes), proposes=not given).to(device)
    refuse_unsafe(model, device)
    splits = datasets.open_splits(config.data)
    assert splits.test is not None
    learn, report = (
        Pictures(images, [annotations[id] for id in ids], classes, [given[id] for id in ids] if given else None)
        for images, ids in ((splits.train, both.learn), (splits.test, both.report))
    )
    folder = RunFolder.open(config.out, config, resume=config.resume)
    try:
        train(model, learn, how, folder=folder, seed=config.seed, workers=config.workers, console=console)
    except KeyboardInterrupt:
        raise Interrupted(f"stopped; what whole epochs have learnt is saved in {folder.path}") from None
    found = find(model, report, batch_size=how.batch_size, workers=config.workers, console=console)
    about = {
        "spec": config.model,
        "width": encoder.width,
        "maps": [place._asdict() for place in model.places],
        "detector_parameters": parameter_count(model),
        **({} if given is None else {"proposals_per_image": float(np.mean([len(one) for one in given.values()]))}),
    }
    return detections.score(found, report.objects, classes=classes), about, folder


def _chosen_on(both: Halves, splits: Splits) -> np.ndarray:
    """(N,) bool over what is learnt from: val, or where the layout has none the half that `hold_out` chooses."""
    if both.choose_on:
        on = set(both.choose_on)
        return np.array([id in on for id in both.learn])
    held = set(datasets.hold_out(splits.train, count=max(1, len(both.learn) // 2))[1].ids)
    return np.array([id in held for id in splits.train.ids])


def _embed(
    config: Config, stored: Stored | None, splits: Splits, console: Console
) -> tuple[Embeddings, Embeddings, dict[str, Any]]:
    """Rows of what is learnt from and of what is reported on, every image in its place."""
    assert splits.test is not None
    if stored is not None:
        learn, report = from_stored(stored, splits)
        about: dict[str, Any] = {"spec": config.model, "width": stored.width}
    else:
        device = open_device(config.device)
        encoder = open_encoder(config.model, weights="pretrained", size=config.size)
        tell(encoder)
        encoder = encoder.to(device).to(memory_format=torch.channels_last)
        learn, report = (
            embed(
                encoder,
                images,
                view=EvaluationView(encoder.preprocessing),
                device=device,
                batch_size=config.batch_size,
                workers=config.workers,
                on_skip=refuse_unusable,
                console=console,
                told=images.name,
            )
            for images in (splits.train, splits.test)
        )
        about = {"spec": config.model, **describe(encoder, device)}
    for found, images in ((learn, splits.train), (report, splits.test)):
        if found.ids != tuple(images.ids):
            lost = sorted(set(images.ids) - set(found.ids))
            raise Refusal(f"expected a stored row of every image of {images.name}, got none of {len(lost)} ({lost[0]}, "
                          f"…), which could not be used when {config.model} was made: mend them, or take them out of "
                          "ImageSets/Main")  # fmt: skip
    return learn, report, about


def refuse_unusable(skipped: Skipped) -> None:
    """What an image that cannot be used is answered here."""
    raise Refusal(f"expected every image of the splits to be usable, got {skipped.id}: {skipped.kind} "
                  f"({skipped.detail}): mend it, or take it out of ImageSets/Main")  # fmt: skip


def write_results(
    folder: RunFolder, config: Config, both: Halves, found: dict[str, Any], about: dict[str, Any]
) -> None:
    """results.json: mean average precision by both rules among the metrics, every class beside them."""
    here = environment()
    model = {
        "metrics": {f"{config.task}_{rule}": found[rule] for rule in ("map_11", "map_all")},
        "missing": found["missing"],
        "per_class": found["per_class"],
        **about,
    }
    folder.write_json(
        "results.json",
        {
            "data": config.data,
            "task": config.task,
            "splits": dict(zip(("learnt_from", "reported_on"), both.names, strict=True)),
            "images": {"train": len(both.learn), "test": len(both.report)},
            "models": {Path(config.model).name or config.model: model},
            "hardware": here["hardware"],
            "versions": here["versions"],
            "command": here["command_line"],
        },
    )


def class_table(found: dict[str, Any]) -> RichTable:
    """Average precision of every class, the mean last."""
    table = RichTable("class", header_style="bold")
    for heading in ("AP, 11 points", "AP, all points"):
        table.add_column(heading, justify="right")
    for name, one in found["per_class"].items():
        table.add_row(name, *(f"{100 * one[rule]:.1f}" for rule in ("ap_11", "ap_all")))
    for name, why in found["missing"].items():
        table.add_row(f"{name}: {why}", "–", "–")
    table.add_section()
    table.add_row("mean", *(f"{100 * found[rule]:.1f}" for rule in ("map_11", "map_all")))
    return table
