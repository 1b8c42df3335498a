"""Encoder + images -> embeddings, in memory or as a table on disk that a killed run continues.

With `--views V` the table holds, beside the evaluation view, V random views of each training image, each with its crop
and flip: `distill` then shows the student exactly what the teacher saw. The views are those of a live training with the
same seed: view v is what its epoch v would have looked at. The paper stores the evaluation view alone and lets the
student look elsewhere, which costs it 0.4 to 0.5 points (CompRess, Sec. 4).

Several processes (torchrun, SLURM) write one table, each its own shards. Images added to the data are embedded alone.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from rich.console import Console
from rich.progress import Progress
from torch import Tensor, nn

from compress_ssl import __version__, datasets
from compress_ssl.backbones import model_folder
from compress_ssl.datasets import ImageSet
from compress_ssl.device import open_device
from compress_ssl.embeddings import Embeddings
from compress_ssl.encoder import open_encoder, tell
from compress_ssl.hardware import standing
from compress_ssl.loader import Skipped, View, evaluation_batches, refuse_skipped
from compress_ssl.projector import choose_projector, load_projectors
from compress_ssl.record import RowDtype, record_dtype
from compress_ssl.refusal import Refusal
from compress_ssl.run_folder import plain
from compress_ssl.table import Table, is_table, read_manifest
from compress_ssl.table_writer import TableWriter
from compress_ssl.transforms import Preprocessing, RecordedViews, TrainView
from compress_ssl.unit_rows import unit_rows
from compress_ssl.verification import information, verify
from compress_ssl.weights import weights_digest

Skip = Callable[[Skipped], Any]
SHARD_ROWS, SHARD_BYTES = 8192, 256 * 2**20  # of a shard at most: it is made in memory, and is what a kill can cost


@dataclass(frozen=True, kw_only=True)
class Config:
    """Store embeddings of a data set; started again, it does only what is missing."""

    encoder: str | None = None  # required: a run folder, timm/NAME, torchvision/NAME, …@weights
    data: str | None = None  # required: images: a folder, parquet, digits, torchvision/CIFAR10, …
    out: Path | None = None  # required: the table's folder, new, or one to go on with
    views: int = 0  # random crops of each training image, beside its centre crop; distill shows the student the same
    view: TrainView = TrainView()  # crop and flip of the random views
    seed: int = 0  # of the random views: view v is what epoch v of a live training with this seed looks at
    # own, or teacher: through a 1q student's projector, to query a teacher's index; of several its name, or teacher_2
    space: str = "own"
    size: int | None = None  # pixels of the input; None: the encoder's own
    dtype: RowDtype = "float16"  # of the stored rows; 1 - cosine moves by 1e-7 (float16), by 1e-5 to 4e-5 (int8)
    shard_rows: int | None = None  # images a shard; None: as begun, else 8192 or what 256 MiB hold; a kill costs one
    batch_size: int = 256  # views embedded at once
    workers: int | None = None  # processes that read images; None: one a core but one, eight at most
    device: str = "auto"  # cpu, cuda, mps; each process on its own GPU
    unusual: datasets.Unusual = "skip"  # CMYK, 16-bit, palette, transparent and animated files: skip or convert
    strict: bool = False  # an unusable image is an error
    verify: Path | None = None  # instead of all else, a table: read it whole, and say what is wrong with it
    info: Path | None = None  # instead of all else, a table: say what it holds


def run(config: Config) -> Path:
    """Write, verify or describe a table; returns its folder."""
    if config.verify is not None or config.info is not None:
        return _look(config)
    here = standing()
    console = Console(stderr=True, quiet=here.rank > 0)
    encoder_name, data, out = _asked(config)
    opened = datasets.open_splits(data, unusual=config.unusual)
    device = open_device(config.device, local_rank=here.local_rank)
    encode, width, preprocessing, space = _encoder(encoder_name, config, device)
    config = replace(config, space=space)
    splits = {"train": (opened.train, config.views)} | ({} if opened.test is None else {"test": (opened.test, 0)})
    fitting = SHARD_BYTES // ((1 + config.views) * record_dtype(width, config.dtype).itemsize)
    begun = read_manifest(out)["origin"].get("shard_rows") if is_table(out) else None
    shard_rows = config.shard_rows or begun or max(1, min(SHARD_ROWS, fitting))
    origin = _origin(config, encode, width, preprocessing) | {"shard_rows": shard_rows}
    writer = TableWriter(out, origin, splits, shard_rows=shard_rows)
    for id in (gone := writer.gone())[:1]:
        console.print(f"{len(gone)} images with rows in {out} are no longer in {data} ({id}, …): their rows stay",
                      markup=False)  # fmt: skip
    if config.strict and (unusable := writer.unusable()):
        raise Refusal(f"--strict expected every image to be usable, got {len(unusable)} that were found not to be when "
                      f"{out} was begun ({unusable[0]}, …): mend or remove them, or leave out --strict")  # fmt: skip
    tasks = writer.tasks()
    last = {task.split: task.number for task in tasks}
    others = [task for task in tasks if task.number % here.ranks != here.rank]
    for task in [task for task in tasks if task.number % here.ranks == here.rank] + others:
        with writer.claim(task) as mine:
            if not mine:
                continue
            images, views = splits[task.split]
            skipped: list[Skipped] = []
            found = embed_views(
                encode,
                datasets.subset(images, task.positions),
                view=RecordedViews(config.view, preprocessing, views),
                width=width,
                device=device,
                batch_size=config.batch_size,
                workers=config.workers,
                seed=config.seed,
                on_skip=refuse_skipped if config.strict else skipped.append,
                console=console,
                told=f"{task.split}, shard {task.number + 1} of {last[task.split] + 1}",
            )
            writer.write(task, task.positions[found.places], found.rows, found.crops, skipped)
        for skip in skipped:
            console.print(f"skipped {skip.id}: {skip.kind} ({skip.detail})", markup=False)
    if not writer.complete():
        console.print("other processes are at the shards that are left: the last of them completes the table")
        return out
    _refuse_nothing(out, opened)
    if not tasks:
        console.print(f"{out} is complete already: nothing to do (--verify reads every bit of it)", markup=False)
    return out


def _origin(config: Config, encode: nn.Module, width: int, preprocessing: Preprocessing) -> dict[str, Any]:
    """What produces the rows, as the manifest keeps it."""
    return {
        "encoder": {
            "spec": config.encoder,
            "weights": weights_digest(encode),
            "width": width,
            "space": config.space,
            "preprocessing": preprocessing.identity(),
        },
        "data": {"name": config.data, "unusual": config.unusual},
        "views": {"count": config.views} | ({"seed": config.seed, "view": plain(config.view)} if config.views else {}),
        "dtype": config.dtype,
        "code": __version__,
    }


def _refuse_nothing(out: Path, data: datasets.Splits) -> None:
    """A table without a row, or without one of the test split, helps nobody."""
    table = Table(out)
    for name, images in (("train", data.train), ("test", data.test)):
        if images is not None and not table.ids(name):
            raise Refusal(f"expected at least one usable image in {images.name}, got none: mend them, or use --unusual "
                          "convert with another --out")  # fmt: skip


def _encoder(name: str, config: Config, device: torch.device) -> tuple[nn.Module, int, Preprocessing, str]:
    """What makes the rows, on the device; their width; what it expects of its images; the space, one name for each."""
    torch.manual_seed(config.seed)  # of random weights, where they are asked for: every process must have the same
    encoder = open_encoder(name, weights="pretrained", size=config.size)
    tell(encoder)
    encode: nn.Module = encoder.to(device).to(memory_format=torch.channels_last)
    if config.space == "own":
        return encode, encoder.width, encoder.preprocessing, "own"
    home = model_folder(Path(name))
    projector = choose_projector(load_projectors(home) if home else [], config.space, option="--space", student=name)
    whole = nn.Sequential(encode, projector.module.to(device))
    return whole, projector.width, encoder.preprocessing, projector.name


class Views(NamedTuple):
    """Rows of n usable images of N: their evaluation view and V random ones each, and how all were cut.

    places: (n,) int64, their positions in the set, in order.
    rows: (n, 1 + V, D) float32 unit rows, the evaluation view first.
    crops: (n, 1 + V, 5) int32: top, left, height, width, flip; zeros for the evaluation view.
    """

    places: np.ndarray
    rows: np.ndarray
    crops: np.ndarray


def embed_views(
    encode: Callable[[Tensor], Tensor], images: ImageSet, *, view: RecordedViews, width: int, **how: Any
) -> Views:
    """Unit rows of the evaluation view and of random views of every usable image, in order.

    Args:
        width: D, of what `encode` returns.
        how: as of `embed`; `batch_size` counts views.
    """
    how["batch_size"] = max(1, how["batch_size"] // (1 + view.views))
    rows = np.empty((len(images), 1 + view.views, width), np.float32)  # whole from the start: they are in memory once
    crops = np.empty((len(images), 1 + view.views, 5), np.int32)
    places = np.empty(len(images), np.int64)
    count = 0
    for some_rows, some_crops, index in _embedded(encode, images, view=view, **how):
        here = slice(count, count + len(index))
        rows[here], crops[here], places[here] = some_rows.numpy(), some_crops, index
        count = here.stop
    return Views(places[:count], rows[:count], crops[:count])


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
) -> Embeddings:
    """Unit rows of every usable image, in order, in memory.

    Args:
        encode: (B, 3, H, W) uint8 on `device` -> (B, D); put a module in eval mode first.
        on_skip: called for each image that cannot be used; such images have no row.
        epoch, seed: choose the random views where `view` is random.
    Raises: Refusal naming the image if a row is zero, infinite or not a number; if no image is usable.
    """
    found = list(
        _embedded(
            encode,
            images,
            view=view,
            device=device,
            batch_size=batch_size,
            workers=workers,
            on_skip=on_skip,
            console=console,
            told=told,
            epoch=epoch,
            seed=seed,
        )
    )
    if not found:
        raise Refusal(
            f"expected at least one usable image in {images.name}, got none: see skipped.jsonl for the reasons"
        )
    index = np.concatenate([index for _, _, index in found])
    return Embeddings(
        rows=torch.cat([rows for rows, _, _ in found]).flatten(0, 1).numpy(),
        labels=images.labels[index],
        ids=tuple(images.ids[place] for place in index),
    )


@torch.no_grad()
def _embedded(
    encode: Callable[[Tensor], Tensor],
    images: ImageSet,
    *,
    view: View,
    device: torch.device,
    batch_size: int,
    workers: int | None,
    on_skip: Skip | None,
    console: Console | None,
    told: str,
    epoch: int = 0,
    seed: int = 0,
) -> Iterator[tuple[Tensor, np.ndarray, np.ndarray]]:
    """(B, V, D) unit rows on the CPU, (B, V, 5) crops if the view tells them, (B,) positions, batch by batch."""
    batches = evaluation_batches(
        images, view, batch_size=batch_size, workers=workers, epoch=epoch, seed=seed, pin_memory=device.type == "cuda"
    )
    with Progress(console=console, transient=True, disable=console is None or not console.is_terminal) as bar:
        task = bar.add_task(told, total=len(images))
        for batch in batches:
            for skipped in batch.skipped:
                if on_skip is not None:
                    on_skip(skipped)
            count = len(batch.index)
            if count:
                batch = batch.to(device)
                views = batch.images.flatten(0, 1) if batch.images.ndim == 5 else batch.images
                index = batch.host_index.repeat_interleave(len(views) // count)
                rows = unit_rows(encode(views.contiguous(memory_format=torch.channels_last)), index, images.ids)
                crops = np.empty((count, 0, 5), np.int32) if batch.crops is None else batch.crops.numpy()
                yield rows.view(count, len(views) // count, -1).cpu(), crops, batch.host_index.numpy()
            bar.advance(task, count + len(batch.skipped))


def _asked(config: Config) -> tuple[str, str, Path]:
    """Encoder, data and out of a table to be made."""
    missing = [f"--{name}" for name in ("encoder", "data", "out") if getattr(config, name) is None]
    if missing:
        raise Refusal(f"expected {', '.join(missing)}, got nothing for {'it' if len(missing) == 1 else 'them'}: see "
                      "compress-ssl embed --help")  # fmt: skip
    if config.views < 0:
        raise Refusal(f"--views expected 0 or more, got {config.views}: 0 stores the evaluation view alone")
    if config.view != TrainView() and not config.views:
        raise Refusal(f"--view.* expected --views too, got {config.view} without: say how many, as in --views 4")
    if config.seed < 0:
        raise Refusal(f"--seed expected 0 or more, got {config.seed}: choose another")
    for name, count in (("--shard-rows", config.shard_rows), ("--batch-size", config.batch_size)):
        if count is not None and count < 1:
            raise Refusal(f"{name} expected at least 1, got {count}: raise it")
    assert config.encoder is not None
    assert config.data is not None
    assert config.out is not None
    return config.encoder, config.data, config.out


def _look(config: Config) -> Path:
    """--info and --verify."""
    others = replace(Config(), info=config.info, verify=config.verify)
    if config != others:
        raise Refusal("expected --info and --verify alone, for they describe a table that is there, got other options "
                      "too: leave those out")  # fmt: skip
    if config.info is not None:
        Console().print(information(config.info))
    if config.verify is not None:
        console = Console(stderr=True)
        troubles = verify(config.verify, console=console)
        if troubles:
            raise Refusal(
                "\n".join([f"{config.verify} is damaged in {len(troubles)} place{'s'[: len(troubles) > 1]}", *troubles])
            )
        console.print(f"every bit of {config.verify} is as it was written", markup=False)
    path = config.verify or config.info
    assert path is not None
    return path
