"""An encoder on PASCAL VOC: which classes are in a picture (classification), or where (detection).

Classification asks frozen embeddings, live or stored: `compress_ssl.multi_label`. Both tasks learn from trainval and
report on test, by VOC 2007's eleven-point rule and by the all-point rule: `compress_ssl.average_precision`.
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

from compress_ssl import datasets, multi_label
from compress_ssl.datasets import Splits
from compress_ssl.device import open_device
from compress_ssl.embed import embed
from compress_ssl.embeddings import Embeddings
from compress_ssl.encoder import open_encoder, tell
from compress_ssl.evaluate import describe, from_stored
from compress_ssl.loader import Skipped
from compress_ssl.multi_label import Labelled
from compress_ssl.refusal import Refusal
from compress_ssl.run_folder import RunFolder, environment
from compress_ssl.stored import Stored, open_stored
from compress_ssl.transforms import EvaluationView
from compress_ssl.voc_layout import Halves, Object, classes_of, halves, read_annotations, targets


@dataclass(frozen=True, kw_only=True)
class Config:
    """Score an encoder on PASCAL VOC, or on data laid out like it: average precision of every class."""

    # a run folder, timm/NAME, torchvision/NAME@FILE, …; to classify also a folder that `embed` wrote, or vectors
    model: Annotated[str, tyro.conf.Positional]
    data: str  # a folder with JPEGImages, Annotations and ImageSets/Main, such as VOCdevkit/VOC2007
    out: Path  # results.json is written here
    # classification: which classes are in a picture, by frozen embeddings
    task: Literal["classification"] = "classification"
    classification: multi_label.Config = field(default_factory=multi_label.Config)
    ids: Path | None = None  # text file with the image ids of a .npy of vectors, one a line
    size: int | None = None  # to classify: pixels of the input; None: the encoder's own
    batch_size: int = 256  # to classify: images embedded at once
    workers: int | None = None  # processes that read images; None: one a core but one, eight at most
    device: str = "auto"  # cpu, cuda, mps


def run(config: Config) -> Path:
    """Score, write results.json, print the table; returns the folder."""
    console = Console(stderr=True)
    root = Path(config.data).expanduser()
    both = halves(root)
    annotations = read_annotations(root, (*both.learn, *both.report))
    if not classes_of(annotations):
        raise Refusal(f"expected objects in the annotations of {root}, got none in {len(annotations)} files: annotate "
                      "some")  # fmt: skip
    stored = open_stored(config.model, ids=config.ids)
    if stored is not None and config.size is not None:
        raise Refusal(f"--size expected an encoder, got {config.size} for stored rows: leave it out")
    folder = RunFolder.open(config.out, config, resume=False)
    found, about = _classify(config, stored, both, annotations, console)
    write_results(folder, config, both, found, about)
    console.print(class_table(found))
    return config.out


def _classify(
    config: Config,
    stored: Stored | None,
    both: Halves,
    annotations: dict[str, tuple[Object, ...]],
    console: Console,
) -> tuple[dict[str, Any], dict[str, Any]]:
    """What `multi_label.score` says of the model, and what there is to say about the model."""
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
    return found, about


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
