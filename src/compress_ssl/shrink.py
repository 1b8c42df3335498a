"""A one-off copy of a data set with images of a few hundred pixels a side: all that training needs, read quickly.

All splits are copied, upright and as JPEG; images that are small already keep their size. Unusable images are left
out and listed in skipped.jsonl. Restart markers stand in every row of blocks, so that a training crop is decoded
without the rest of its image (`compress_ssl.jpeg`); any other program reads these files like every JPEG.

Ids are those of the original, so that stored embeddings and held-out images stay theirs: always in parquet; in a
folder if the original was one, or its ids could be (paths that begin with split and class), where only a name that
promises no JPEG gets `.jpg` behind it. From other originals a folder becomes SPLIT/CLASS/ID.jpg, each written as in a
URL. Classes keep their names; their numbers too in parquet, while a folder numbers its sorted names.

Killed and started again it does only what is missing and ends with the same files, byte for byte.
"""

from __future__ import annotations

import hashlib
import io
import json
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal
from urllib.parse import quote

import numpy as np
import torch
from PIL import Image
from rich.console import Console
from rich.progress import Progress
from torch.utils.data import DataLoader, Dataset

from compress_ssl import __version__, datasets
from compress_ssl.datasets import ImageSet, open_image
from compress_ssl.loader import Skipped, default_workers, quiet_worker, refuse_skipped
from compress_ssl.picture import Box, Picture, UnusableImage
from compress_ssl.refusal import Refusal
from compress_ssl.run_folder import differences, write_atomically

_MANIFEST, _SKIPPED = datasets.SHRUNK, "skipped.jsonl"
_JPEG_SUFFIXES = (".jpg", ".jpeg", ".jpe", ".jfif")
_TEST_FOLDERS = ("test", "val", "validation")
_UNFINISHED = ".unfinished"
_END = b"\xff\xd9"  # of every JPEG: a file that a power cut left half on disk does not end so


@dataclass(frozen=True, kw_only=True)
class Config:
    """Copy a data set with its images shrunk to a short side; started again, it does only what is missing."""

    data: str  # images: a folder, parquet, torchvision/NAME, …
    out: Path  # the copy's folder; its name is then the --data of every other verb
    short_side: int = 384  # pixels; smaller images are not enlarged; 384 leaves half of all random crops at 224 or more
    format: Literal["folder", "parquet"] = "folder"  # one file an image, or shards with some thousand images each
    quality: int = 95  # of the JPEG files, 1 to 100; 90 is a third smaller, quicker to read and hardly worse
    unusual: datasets.Unusual = "skip"  # CMYK, 16-bit, palette, transparent and animated files: skip or convert
    strict: bool = False  # an unusable image is an error
    workers: int | None = None  # processes that shrink images; None: one a core but one, eight at most
    shard_rows: int = 2048  # images of a parquet file; a kill costs at most one of these

    def __post_init__(self) -> None:
        if self.short_side < 1:
            raise Refusal(f"--short-side expected at least 1 pixel, got {self.short_side}: 384 is usual")
        if not 1 <= self.quality <= 100:
            raise Refusal(f"--quality expected 1 to 100, got {self.quality}: 95 is hardly to be told from the original")
        if self.shard_rows < 1:
            raise Refusal(f"--shard-rows expected at least 1, got {self.shard_rows}: 2048 is usual")


def run(config: Config) -> Path:
    """Write the copy and return its folder."""
    console = Console(stderr=True)
    _refuse_a_place_inside(config)
    opened = datasets.open_splits(config.data, unusual=config.unusual)
    splits = {name: images for name, images in (("train", opened.train), ("test", opened.test)) if images is not None}
    origin = {
        "data": config.data,
        "short_side": config.short_side,
        "format": config.format,
        "quality": config.quality,
        "unusual": config.unusual,
        "shard_rows": config.shard_rows,
        "code": __version__,
    } | {name: {"images": len(images), "fingerprint": images.fingerprint()} for name, images in splits.items()}
    if _begin(config.out, origin):
        listed = (config.out / _SKIPPED).read_text().splitlines()
        if config.strict and listed:
            refuse_skipped(Skipped(**json.loads(listed[0])))
        console.print(f"{config.out} is complete already: nothing to do", markup=False, soft_wrap=True)
        return config.out
    skipped: list[Skipped] = []
    paths = _paths(splits)
    copy = _to_folder if config.format == "folder" else _to_parquet
    for name, images in splits.items():
        before = len(skipped)
        for skip in copy(config, name, images, paths[name], console):
            if config.strict:
                refuse_skipped(skip)
            console.print(f"skipped {skip.id}: {skip.kind} ({skip.detail})", markup=False, soft_wrap=True)
            skipped.append(skip)
        if len(skipped) - before == len(images):
            raise Refusal(
                f"expected at least one usable image in {images.name}, got none: mend them, or use --unusual convert"
            )
    lines = (json.dumps(skip._asdict(), ensure_ascii=False) + "\n" for skip in skipped)
    write_atomically(config.out / _SKIPPED, "".join(lines))
    os.sync()  # the files themselves; before the word that all of them are there
    _write_manifest(config.out, origin, complete=True)
    return config.out


def shrink(picture: np.ndarray | Picture, short_side: int, quality: int) -> bytes:
    """One image as a JPEG whose shorter side has `short_side` pixels, or as many as it had if these are fewer.

    Args:
        picture: (H, W, 3) uint8, or one that is decoded here, no further than is needed.
    """
    height, width = picture.shape[:2]
    pixels, box = np.asarray(picture) if min(height, width) <= short_side else None, None
    if pixels is None:
        whole = Box(0, 0, height, width)
        pixels, box = picture.part(whole, enough=short_side) if isinstance(picture, Picture) else (picture, whole)
    image = Image.fromarray(pixels)
    if box is not None:
        scale = short_side / min(height, width)
        size = max(short_side, round(width * scale)), max(short_side, round(height * scale))
        corners = box.left, box.top, min(box.left + box.width, image.width), min(box.top + box.height, image.height)
        image = image.resize(size, Image.Resampling.LANCZOS, box=corners)
    # Colours at half the resolution: a third less to decode. Not in thumbnails, where half of little is nothing.
    halved = min(image.size) >= 160
    blocks = -(-image.width // (16 if halved else 8))
    every = max(count for count in (1, 2, 3, 4) if blocks % count == 0)
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=quality, subsampling=2 if halved else 0, restart_marker_blocks=every)
    return buffer.getvalue()


class _Shrunk(Dataset):
    """Position -> (position, JPEG or None, why not); picklable."""

    def __init__(self, images: ImageSet, positions: list[int], short_side: int, quality: int) -> None:
        self.images, self.positions, self.short_side, self.quality = images, positions, short_side, quality

    def __len__(self) -> int:
        return len(self.positions)

    def __getitem__(self, number: int) -> tuple[int, bytes | None, Skipped | str | None]:
        position = self.positions[number]
        name = self.images.ids[position]
        try:
            return position, shrink(open_image(self.images, position), self.short_side, self.quality), None
        except UnusableImage as trouble:
            return position, None, Skipped(name, trouble.kind, trouble.detail)
        except OSError as trouble:  # in words: a worker's traceback says nothing to a user
            return position, None, f"{name} could not be read ({trouble}): check the disk"


def _each(
    config: Config, images: ImageSet, positions: list[int], console: Console, told: str
) -> Iterator[tuple[int, bytes | None, Skipped | None]]:
    """(position, JPEG or None, why not) in the order of `positions`."""
    workers = default_workers() if config.workers is None else config.workers
    loader: DataLoader = DataLoader(
        _Shrunk(images, positions, config.short_side, config.quality),
        batch_size=None,
        num_workers=workers if len(positions) > 8 else 0,  # starting processes takes longer than a few images
        collate_fn=_as_it_is,
        generator=torch.Generator(),
        worker_init_fn=quiet_worker,
    )
    with Progress(console=console, transient=True, disable=not console.is_terminal) as bar:
        task = bar.add_task(told, total=len(images), completed=len(images) - len(positions))
        for position, data, trouble in loader:
            if isinstance(trouble, str):
                raise Refusal(trouble)
            yield position, data, trouble
            bar.advance(task)


def _as_it_is(item: Any) -> Any:
    return item


def _to_folder(config: Config, _: str, images: ImageSet, paths: list[str], console: Console) -> Iterator[Skipped]:
    missing = [place for place, path in enumerate(paths) if not _is_whole(config.out / path)]
    for place, data, skip in _each(config, images, missing, console, f"shrinking {images.name}"):
        if data is None:
            assert skip is not None
            yield skip
            continue
        path = config.out / paths[place]
        path.parent.mkdir(parents=True, exist_ok=True)
        unfinished = path.with_name(f".{hashlib.sha256(path.name.encode()).hexdigest()[:16]}{_UNFINISHED}")
        unfinished.write_bytes(data)
        unfinished.replace(path)


def _to_parquet(config: Config, split: str, images: ImageSet, _: list[str], console: Console) -> Iterator[Skipped]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    shards = -(-len(images) // config.shard_rows)
    for shard in range(shards):
        path = config.out / f"{split}-{shard:05d}-of-{shards:05d}.parquet"
        if path.exists():
            yield from _skipped_in(path)
            continue
        places = list(range(shard * config.shard_rows, min(len(images), (shard + 1) * config.shard_rows)))
        rows, labels, skipped = [], [], []
        part = datasets.subset(images, np.array(places))
        told = f"shrinking {images.name}, shard {shard + 1} of {shards}"
        for place, data, skip in _each(config, part, list(range(len(part))), console, told):
            if skip is not None:
                skipped.append(skip)
                if config.strict:
                    break
            else:
                label = int(part.labels[place])
                rows.append({"bytes": data, "path": part.ids[place]})
                labels.append(None if label < 0 else label)
        if config.strict and skipped:
            yield from skipped
        features: dict[str, Any] = {"image": {"_type": "Image"}}
        columns: dict[str, Any] = {"image": pa.array(rows, pa.struct({"bytes": pa.binary(), "path": pa.string()}))}
        if images.classes:
            features["label"] = {"names": list(images.classes), "_type": "ClassLabel"}
            columns["label"] = pa.array(labels, pa.int64())
        table = pa.table(columns).replace_schema_metadata(
            {
                "huggingface": json.dumps({"info": {"features": features}}),
                "skipped": json.dumps([skip._asdict() for skip in skipped]),
            }
        )
        buffer = io.BytesIO()
        pq.write_table(table, buffer, compression="none", row_group_size=256)  # JPEG does not get any smaller
        write_atomically(path, buffer.getvalue())
        yield from skipped


def _skipped_in(path: Path) -> list[Skipped]:
    import pyarrow.parquet as pq

    return [Skipped(**skip) for skip in json.loads((pq.read_schema(path).metadata or {})[b"skipped"])]


def _paths(splits: dict[str, ImageSet]) -> dict[str, list[str]]:
    """Split -> where each image goes in a folder, relative to it."""
    if _may_keep_ids(splits):
        paths = {
            split: [name if name.lower().endswith(_JPEG_SUFFIXES) else f"{name}.jpg" for name in images.ids]
            for split, images in splits.items()
        }
        every = [path for found in paths.values() for path in found]
        if len(set(every)) == len(every):  # not if there are both a.png and a.png.jpg
            return paths
    return {split: [_path(split, images, place) for place in range(len(images))] for split, images in splits.items()}


def _may_keep_ids(splits: dict[str, ImageSet]) -> bool:
    """Whether the ids, taken for paths, are a folder that opens with these splits, labels and ids again."""
    folders = {split: {name.partition("/")[0] for name in images.ids} for split, images in splits.items()}
    test = next(iter(folders.get("test", {""})))
    divided = len(splits) == 2
    if divided and not (
        all(len(found) == 1 for found in folders.values())
        and next(iter(folders["train"])).lower() == "train"
        and test.lower() in _TEST_FOLDERS
    ):
        return False
    if not divided and any(name.lower() == "train" for name in folders["train"]):
        divided = len(folders["train"]) == 1
        if not divided:
            return False
    for images in splits.values():
        for name, label in zip(images.ids, images.labels.tolist(), strict=True):
            parts = name.split("/")
            inside = parts[1:] if divided else parts
            if not inside or any(not part or part.startswith(".") or "\0" in part for part in parts):
                return False
            if (inside[0] if len(inside) > 1 else None) != (images.classes[label] if label >= 0 else None):
                return False
    return True


def _path(split: str, images: ImageSet, place: int) -> str:
    label = int(images.labels[place])
    owner = [_as_a_name(images.classes[label])] if label >= 0 else []
    return "/".join([split, *owner, f"{_as_a_name(images.ids[place])}.jpg"])


def _as_a_name(text: str) -> str:
    """A text as the name of a file: as in a URL, but for spaces; a very long one is cut and told apart by its hash."""
    name = quote(text, safe=" ,;=@()[]{}!$&'+~#^")
    name = f"%2E{name[1:]}" if name.startswith(".") else name
    return name if len(name) <= 200 else f"{name[:180]}-{hashlib.sha256(text.encode()).hexdigest()[:16]}"


def _is_whole(path: Path) -> bool:
    try:
        with path.open("rb") as file:
            return file.seek(0, os.SEEK_END) > 2 and file.seek(-2, os.SEEK_END) > 0 and file.read() == _END
    except FileNotFoundError:
        return False


def _refuse_a_place_inside(config: Config) -> None:
    data, out = Path(config.data).expanduser().absolute(), config.out.absolute()
    if Path(config.data).expanduser().is_dir() and (out == data or data in out.parents):
        raise Refusal(
            f"--out expected a folder outside of the data, got {config.out} in {config.data}: the copies would be "
            "taken for more images of it"
        )


def _begin(out: Path, origin: dict[str, Any]) -> bool:
    """Claim the folder for this copy; True if the copy is complete."""
    manifest = out / _MANIFEST
    if manifest.exists():
        found = json.loads(manifest.read_text())
        other = differences(found["origin"], origin)
        if other:
            raise Refusal(f"--out expected a new folder or one begun with the same settings, got {out} with "
                          f"{'; '.join(other)}: choose another folder, or delete it")  # fmt: skip
        if found["complete"]:
            return True
        for unfinished in out.rglob(".*"):  # of a process that was killed; nothing else here is hidden
            if unfinished.is_file():
                unfinished.unlink()
        return False
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise Refusal(f"--out expected a new or empty folder, got {out} with something in it: choose another")
    _write_manifest(out, origin, complete=False)
    return False


def _write_manifest(out: Path, origin: dict[str, Any], *, complete: bool) -> None:
    write_atomically(out / _MANIFEST, json.dumps({"origin": origin, "complete": complete}, indent=1) + "\n")
