"""Encoder + images -> embeddings, in memory or as a table on disk that a killed run continues."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from rich.console import Console
from rich.progress import Progress
from torch import Tensor, nn

from compress_ssl import __version__, datasets
from compress_ssl.backbones import model_folder
from compress_ssl.datasets import ImageSet
from compress_ssl.device import open_device
from compress_ssl.embeddings import Embeddings, Table, TableWriter, read_manifest
from compress_ssl.encoder import open_encoder
from compress_ssl.loader import Skipped, View, evaluation_batches, refuse_skipped
from compress_ssl.refusal import Refusal
from compress_ssl.run_folder import plain
from compress_ssl.student import load_projector
from compress_ssl.transforms import EvaluationView
from compress_ssl.unit_rows import unit_rows
from compress_ssl.weights import weights_digest

Skip = Callable[[Skipped], Any]


@dataclass(frozen=True, kw_only=True)
class Config:
    """Store embeddings of a data set; started again, it does only what is missing."""

    encoder: str  # a run folder, timm/NAME, torchvision/NAME, …@weights
    data: str  # images: a folder, parquet, digits, torchvision/CIFAR10, …
    out: Path  # the table's folder
    space: Literal["own", "teacher"] = "own"  # teacher: through a 1q student's projector, to query a teacher's index
    size: int | None = None  # pixels of the input; None: the encoder's own
    dtype: Literal["float16", "float32"] = "float16"  # of the stored rows; float16 moves a cosine by less than 1e-3
    shard_rows: int = 8192  # images a shard; a kill costs at most one shard
    batch_size: int = 256  # images embedded at once
    workers: int | None = None  # processes that read images; None: one a core but one, eight at most
    device: str = "auto"  # cpu, cuda, mps
    unusual: datasets.Unusual = "skip"  # CMYK, 16-bit, palette, transparent and animated files: skip or convert
    strict: bool = False  # an unusable image is an error


def run(config: Config) -> Path:
    """Write the table and return its folder."""
    console = Console(stderr=True)
    if config.shard_rows < 1 or config.batch_size < 1:
        raise Refusal(f"--shard-rows and --batch-size expected at least 1, got {config.shard_rows} and "
                      f"{config.batch_size}: raise them")  # fmt: skip
    opened = datasets.open_splits(config.data, unusual=config.unusual)
    splits = {name: images for name, images in (("train", opened.train), ("test", opened.test)) if images is not None}
    encoder = open_encoder(config.encoder, weights="pretrained", size=config.size)
    device = open_device(config.device)
    encode: nn.Module = encoder.to(device).to(memory_format=torch.channels_last)
    width = encoder.width
    if config.space == "teacher":
        home = model_folder(Path(config.encoder))
        projector = load_projector(home) if home else None
        if projector is None:
            raise Refusal(f"--space teacher expected a student with a projector (trained by compress_1q), got "
                          f"{config.encoder} without: use --space own")  # fmt: skip
        encode, width = nn.Sequential(encoder, projector.to(device)), projector.out_features
    origin = {
        "encoder": {
            "spec": config.encoder,
            "weights": weights_digest(encode),
            "width": width,
            "space": config.space,
            "preprocessing": plain(encoder.preprocessing),
        },
        "data": {"name": config.data, "unusual": config.unusual}
        | {name: {"images": len(images), "fingerprint": images.fingerprint()} for name, images in splits.items()},
        "dtype": config.dtype,
        "shard_rows": config.shard_rows,
        "code": __version__,
    }
    table = TableWriter(config.out, origin)
    shards = {name: -(-len(images) // config.shard_rows) for name, images in splits.items()}
    if read_manifest(config.out).get("complete"):
        console.print(f"{config.out} is complete already: nothing to do")
        return config.out
    for name, images in splits.items():
        for shard in range(shards[name]):
            if table.finished(name, shard):
                continue
            positions = np.arange(shard * config.shard_rows, min(len(images), (shard + 1) * config.shard_rows))
            skipped: list[Skipped] = []
            rows = embed(
                encode,
                datasets.subset(images, positions),
                view=EvaluationView(encoder.preprocessing),
                device=device,
                batch_size=config.batch_size,
                workers=config.workers,
                on_skip=refuse_skipped if config.strict else skipped.append,
                console=console,
                told=f"{name}, shard {shard + 1} of {shards[name]}",
                empty_width=width,
            )
            table.write(name, shard, rows, skipped, config.dtype)
            for skip in skipped:
                console.print(f"skipped {skip.id}: {skip.kind} ({skip.detail})", markup=False)
    table.complete(shards)
    for name, images in splits.items():
        if not Table(config.out).ids(name):
            raise Refusal(
                f"expected at least one usable image in {images.name}, got none: mend them, or use --unusual convert"
            )
    return config.out


@torch.no_grad()
def embed(
    encode: Callable[[Tensor], Tensor],
    images: ImageSet,
    *,
    view: View,
    device: torch.device,
    batch_size: int = 256,
    workers: int | None = None,
    on_skip: Skip | None = None,
    console: Console | None = None,
    told: str = "embedding",
    epoch: int = 0,
    seed: int = 0,
    empty_width: int | None = None,
) -> Embeddings:
    """Unit rows of every usable image, in order, in memory.

    Args:
        encode: (B, 3, H, W) uint8 on `device` -> (B, D); put a module in eval mode first.
        on_skip: called for each image that cannot be used; such images have no row.
        epoch, seed: choose the random views where `view` is random.
        empty_width: without a usable image return no rows of this width, as a part of a larger set may; None: refuse.
    Raises: Refusal naming the image if a row is zero, infinite or not a number; if no image is usable.
    """
    rows, places = [], []
    batches = evaluation_batches(
        images, view, batch_size=batch_size, workers=workers, epoch=epoch, seed=seed, pin_memory=device.type == "cuda"
    )
    with Progress(console=console, transient=True, disable=console is None or not console.is_terminal) as bar:
        task = bar.add_task(told, total=len(images))
        for batch in batches:
            for skipped in batch.skipped:
                if on_skip is not None:
                    on_skip(skipped)
            if len(batch.index):
                batch = batch.to(device)
                rows.append(unit_rows(encode(batch.images), batch.index, images.ids).cpu())
                places.append(batch.index.cpu().numpy())
            bar.advance(task, len(batch.index) + len(batch.skipped))
    if not rows and empty_width is not None:
        return Embeddings(rows=np.empty((0, empty_width), np.float32), labels=np.empty(0, np.int64), ids=())
    if not rows:
        raise Refusal(
            f"expected at least one usable image in {images.name}, got none: see skipped.jsonl for the reasons"
        )
    index = np.concatenate(places)
    return Embeddings(
        rows=torch.cat(rows).numpy(), labels=images.labels[index], ids=tuple(images.ids[place] for place in index)
    )
