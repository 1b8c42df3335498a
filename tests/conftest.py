"""What several tests share: where real images lie, when they are there at all; pictures laid out like PASCAL VOC; a
teacher of digits, and one thread to train its students in; rows and classes for a regression."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
from PIL import Image


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """Folder with cifar10/, tiny-imagenet-100/ and imagenet-sample/; a newcomer does not have it."""
    folder = Path(os.environ.get("COMPRESS_SSL_DATA", Path(__file__).parents[2] / "shared" / "data"))
    if not folder.is_dir():
        pytest.skip(f"no real images in {folder}: set COMPRESS_SSL_DATA to a folder that holds cifar10/ and its like")
    return folder


@pytest.fixture(scope="module")
def one_thread() -> Iterator[None]:
    """As processes that are started with one, so that sums are made in the same order."""
    import torch  # not by those who need no tensors

    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="session")
def digits_teacher(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A saved encoder for 8 pixels, 64 wide, whose batch norm has seen something."""
    import torch

    from compress_ssl import datasets
    from compress_ssl.encoder import open_encoder, save_encoder

    folder = tmp_path_factory.mktemp("digits_teacher")
    torch.manual_seed(5)
    encoder = open_encoder("compress/resnet10_small_w8", weights="random", size=8).train()
    pictures = datasets.open_splits("digits").test
    assert pictures is not None
    images = np.stack([pictures.read(place).transpose(2, 0, 1) for place in range(70)])
    with torch.no_grad():
        for _ in range(9):
            encoder(torch.from_numpy(images))
    save_encoder(encoder, folder)
    return str(folder)


@pytest.fixture(scope="session")
def problem() -> Callable[..., tuple[np.ndarray, np.ndarray]]:
    """Makes what a softmax regression is to solve; see `_problem`."""
    return _problem


def _problem(*, count: int = 211, width: int = 7, classes: int = 3, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Correlated, standardised rows in float32 and classes that overlap."""
    generator = np.random.default_rng(seed)
    targets = generator.integers(0, classes, count)
    rows = generator.standard_normal((classes, width))[targets] + generator.standard_normal((count, width))
    rows = rows @ generator.standard_normal((width, width))
    rows = (rows - rows.mean(axis=0)) / rows.std(axis=0)
    return rows.astype(np.float32), targets


VOC_COLOURS = {"apple": (230, 30, 20), "leaf": (20, 200, 40), "sea": (30, 40, 230)}


@pytest.fixture(scope="session")
def make_voc() -> Callable[..., Path]:
    """Lays out VOCdevkit/VOC2007 in a folder: grey noise with coloured rectangles, whose colour is their class."""
    return _make_voc


def _make_voc(folder: Path, *, size: tuple[int, int] = (48, 40), seed: int = 0, **splits: int) -> Path:
    """As many pictures of `size` (width, height) in each split; one rectangle in eight is difficult."""
    root = folder / "VOCdevkit" / "VOC2007"
    for below in ("JPEGImages", "Annotations", "ImageSets/Main"):
        (root / below).mkdir(parents=True)
    random = np.random.default_rng(seed)
    ids: dict[str, list[str]] = {}
    for split, count in splits.items():
        ids[split] = [f"{split}_{number:03d}" for number in range(count)]
        for number, id in enumerate(ids[split]):
            _draw(root, id, size, random, classes=[number % 3, *random.permutation(3)[: number % 2]])
    if "train" in ids and "val" in ids:
        ids["trainval"] = ids["train"] + ids["val"]
    for split, names in ids.items():
        (root / "ImageSets/Main" / f"{split}.txt").write_text("".join(f"{id}\n" for id in names))
    return root


def _draw(root: Path, id: str, size: tuple[int, int], random: np.random.Generator, *, classes: list[int]) -> None:
    width, height = size
    pixels = random.integers(90, 140, (height, width, 3), dtype=np.uint8)
    objects = ""
    for place, kind in enumerate(dict.fromkeys(classes)):  # side by side, so that none hides another
        wide, tall = (int(random.integers(side // 4, side // 2)) for side in (width // 2, height))
        left = place * (width // 2) + int(random.integers(0, width // 2 - wide))
        top = int(random.integers(0, height - tall))
        name = list(VOC_COLOURS)[kind]
        pixels[top : top + tall, left : left + wide] = VOC_COLOURS[name]
        box = {"xmin": left + 1, "ymin": top + 1, "xmax": left + wide, "ymax": top + tall}  # counted from 1, inclusive
        edges = "".join(f"<{edge}>{value}</{edge}>" for edge, value in box.items())
        difficult = int(place > 0 and random.random() < 0.25)
        objects += f"<object><name>{name}</name><difficult>{difficult}</difficult><bndbox>{edges}</bndbox></object>"
    Image.fromarray(pixels).save(root / "JPEGImages" / f"{id}.jpg", quality=95)
    (root / "Annotations" / f"{id}.xml").write_text(f"<annotation>{objects}</annotation>")
