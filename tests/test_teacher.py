"""A teacher is frozen, and the same images give the same rows, live or from a table, in whatever order they lie."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from compress_ssl import datasets, embed
from compress_ssl.datasets import ImageSet
from compress_ssl.embeddings import Embeddings, Table, TableWriter
from compress_ssl.encoder import open_encoder, save_encoder
from compress_ssl.loader import Batch, TrainLoader
from compress_ssl.picture import UnusableImage
from compress_ssl.refusal import Refusal
from compress_ssl.run_folder import plain
from compress_ssl.teacher import LiveTeacher, StoredTeacher, open_teacher
from compress_ssl.transforms import Preprocessing

CPU = torch.device("cpu")
IDS = tuple(f"photos/{letter}.png" for letter in "gbfadce")


class Photos:
    """Seven small pictures; those in `broken` cannot be used."""

    name, classes = "photos:train", ()

    def __init__(self, ids: tuple[str, ...] = IDS, broken: tuple[str, ...] = ()):
        self.ids, self.broken = ids, broken
        self.labels = np.full(len(ids), -1)

    def __len__(self) -> int:
        return len(self.ids)

    def read(self, position: int) -> np.ndarray:
        if self.ids[position] in self.broken:
            raise UnusableImage("broken", "no header")
        seed = IDS.index(self.ids[position]) if self.ids[position] in IDS else 99
        return np.random.default_rng(seed).integers(0, 256, (9, 11, 3), dtype=np.uint8)

    def fingerprint(self) -> str:
        return "f"


def whole_view(picture: np.ndarray, _: np.random.Generator) -> torch.Tensor:
    return torch.from_numpy(picture.transpose(2, 0, 1).copy())


def stored(folder: Path, *, broken: tuple[str, ...] = (), change: Any = None) -> tuple[Table, Embeddings]:
    """A table of 5-wide rows of the photos in two shards, and what was put into it."""
    generator = np.random.default_rng(0)
    kept = [place for place, id in enumerate(IDS) if id not in broken]
    rows = generator.normal(size=(len(kept), 5)).astype(np.float32)
    rows /= np.linalg.norm(rows, axis=1, keepdims=True)
    given = Embeddings(rows=rows, labels=np.full(len(kept), -1), ids=tuple(IDS[place] for place in kept))
    preprocessing = plain(Preprocessing(size=8))
    writer = TableWriter(folder, {"encoder": {"spec": "x", "width": 5, "preprocessing": preprocessing}, "data": {}})
    for shard, part in enumerate((slice(0, 3), slice(3, None))):
        piece = Embeddings(rows=rows[part], labels=given.labels[part], ids=given.ids[part])
        skipped = [(id, "broken", "no header") for id in broken] if shard == 0 else []
        writer.write("train", shard, piece, skipped, "float32")
    writer.complete({"train": 2})
    if change is not None:
        file = folder / "train" / "00001.npy"
        array = np.load(file)
        change(array)
        np.save(file, array)
        about = json.loads(file.with_suffix(".json").read_text())
        about["sha256"] = hashlib.sha256(file.read_bytes()).hexdigest()
        file.with_suffix(".json").write_text(json.dumps(about))
    return Table(folder), given


def batch(*positions: int) -> Batch:
    return Batch(torch.zeros(len(positions), 3, 8, 8, dtype=torch.uint8), torch.tensor(positions), [])


# ---- live ----


@pytest.fixture
def live() -> LiveTeacher:
    torch.manual_seed(0)
    encoder = open_encoder(
        "compress/resnet10_small_w8", weights="random", size=8
    ).train()  # as someone may hand it over
    return LiveTeacher(encoder, Photos(), device=CPU, workers=0)


def test_a_live_teacher_is_frozen_whatever_mode_it_came_in(live: LiveTeacher) -> None:
    """Targets would depend on who else is in the batch, and drift as batch norm counts along."""
    before = {name: value.clone() for name, value in live.encoder.state_dict().items()}
    images = torch.randint(0, 256, (5, 3, 8, 8), dtype=torch.uint8, generator=torch.Generator().manual_seed(1))
    rows = live(Batch(images, torch.arange(5), []))
    alone = live(Batch(images[3:4], torch.tensor([3]), []))
    assert torch.allclose(rows[3], alone[0], atol=1e-6)
    assert torch.allclose(rows.norm(dim=1), torch.ones(5), atol=1e-6)
    assert rows.dtype == torch.float32
    assert not rows.requires_grad
    assert not any(parameter.requires_grad for parameter in live.encoder.parameters())
    assert all(torch.equal(value, before[name]) for name, value in live.encoder.state_dict().items())


def test_a_teacher_put_into_train_mode_is_noticed(live: LiveTeacher) -> None:
    """Someone who extends the loop with `.train()` on everything would not see it in the loss."""
    live.encoder.train()
    with pytest.raises(AssertionError, match="eval mode"):
        live(batch(0, 1))


def test_targets_can_take_part_in_a_graph(live: LiveTeacher) -> None:
    """Rows of inference mode cannot be saved for backward: the first step would crash."""
    query = torch.randn(2, live.width, requires_grad=True)
    images = torch.randint(0, 256, (2, 3, 8, 8), dtype=torch.uint8)
    (query * live(Batch(images, torch.arange(2), []))).sum().backward()
    assert query.grad is not None


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), 0.0])
def test_a_row_that_is_no_embedding_names_its_image(
    live: LiveTeacher, monkeypatch: pytest.MonkeyPatch, bad: float
) -> None:
    """Of a million images the one that breaks the teacher must be found."""
    rows = torch.ones(3, live.width)
    rows[1] = bad
    monkeypatch.setattr(live.swift, "forward", lambda _: rows)
    with pytest.raises(Refusal, match=IDS[6]):
        live(batch(4, 6, 5))


# ---- stored ----


@pytest.mark.parametrize("order", [(0, 1, 2, 3, 4, 5, 6), (6, 2, 4, 0, 1, 3, 5), (5, 0, 3)])
def test_stored_rows_are_found_by_id(tmp_path: Path, order: tuple[int, ...]) -> None:
    """Another order, or part of the images: by position each would be taught another image's embedding."""
    table, given = stored(tmp_path / "table")
    images = Photos(tuple(IDS[place] for place in order))
    teacher = StoredTeacher(table, images, device=CPU)
    assert teacher.width == 5
    assert teacher.preprocessing == Preprocessing(size=8)
    picked = [2, 0, 1]
    rows = teacher(batch(*picked))
    assert torch.allclose(rows, torch.from_numpy(given.rows[[order[place] for place in picked]]), atol=1e-6)
    everything = teacher.embeddings(images)
    assert everything.ids == images.ids
    np.testing.assert_allclose(everything.rows, given.rows[list(order)], atol=1e-6)


def test_rows_looked_up_ahead_go_with_their_images(tmp_path: Path) -> None:
    """With a batch in parts, each part would be taught the rows of the first."""
    table, given = stored(tmp_path / "table")
    teacher = StoredTeacher(table, Photos(), device=CPU)
    ready = teacher.prepare(batch(6, 0, 3, 5, 2)).to(CPU)
    assert ready.target is not None
    assert ready.host_index.tolist() == [6, 0, 3, 5, 2]
    parts = [part for part, _ in ready.parts(2)]
    assert [part.host_index.tolist() for part in parts] == [[6, 0, 3], [5, 2]]
    teacher._index[:] = -1  # it is not asked again
    rows = torch.cat([teacher(part) for part in parts])
    torch.testing.assert_close(rows, torch.from_numpy(given.rows[[6, 0, 3, 5, 2]]))


@pytest.mark.parametrize("bad", [float("nan"), 0.0])
def test_a_live_teacher_that_is_checked_later_is_checked(live: LiveTeacher, bad: float) -> None:
    """On a GPU a ruined teacher would be found by nobody."""
    live.check = "later"
    rows = torch.ones(3, live.width)
    rows[1] = bad
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(live.swift, "forward", lambda _: rows)
        live(batch(4, 6, 5))
    live(batch(4, 6, 5))
    with pytest.raises(Refusal, match=IDS[6]):
        live.settle(wait=True)


def test_missing_ids_are_refused_by_name_and_number(tmp_path: Path) -> None:
    """Images added since the table was made would be taught noise, or end in an IndexError at some step."""
    table, _ = stored(tmp_path / "table")
    images = Photos((*IDS[:3], "photos/new.png", "photos/newer.png"))
    with pytest.raises(Refusal, match=r"none for 2 of 5 \(photos/new\.png, …\).*`embed`"):
        StoredTeacher(table, images, device=CPU)


def test_images_that_could_not_be_used_when_they_were_embedded_are_tolerated(tmp_path: Path) -> None:
    """One broken file in a folder of a million would make the whole table useless."""
    broken = (IDS[1], IDS[5])
    table, given = stored(tmp_path / "table", broken=broken)
    images = Photos(broken=broken)
    teacher = StoredTeacher(table, images, device=CPU)
    kept = teacher.embeddings(images)
    assert kept.ids == given.ids
    loader = TrainLoader(images, whole_view, batch_size=7, seed=0, workers=0)
    found = next(loader.batches())
    assert len(found.index) == 7
    assert not {images.ids[place] for place in found.index.tolist()} & set(broken)
    want = np.stack([given.rows[given.ids.index(images.ids[place])] for place in found.index.tolist()])
    np.testing.assert_allclose(teacher(found).numpy(), want, atol=1e-6)


def test_an_image_that_can_be_used_only_now_is_refused_by_name(tmp_path: Path) -> None:
    """With --unusual convert now and skip then, it would be taught the row of the table's other end."""
    table, _ = stored(tmp_path / "table", broken=(IDS[1],))
    teacher = StoredTeacher(table, Photos(), device=CPU)
    with pytest.raises(Refusal, match=rf"{IDS[1]}.*--unusual"):
        teacher(batch(0, 1, 2))


@pytest.mark.parametrize(("value", "told"), [(float("nan"), "NaN"), (0.0, "zero vector")])
def test_a_stored_row_that_is_no_embedding_names_its_image(tmp_path: Path, value: float, told: str) -> None:
    """A table written by another program may hold anything."""
    table, _ = stored(tmp_path / "table", change=lambda array: array[1].fill(value))
    teacher = StoredTeacher(table, Photos(), device=CPU)
    with pytest.raises(Refusal, match=rf"{told}.*{IDS[4]}"):
        teacher(batch(0, 4))


def test_a_stored_teacher_equals_the_live_one_on_evaluation_views(tmp_path: Path) -> None:
    """Scores with a table would not be comparable with scores with the model that made it."""
    images: ImageSet = datasets.open_splits("digits").train
    spec = "compress/resnet10_small_w8"
    torch.manual_seed(0)
    save_encoder(open_encoder(spec, weights="random", size=8), tmp_path / "model")
    table = embed.run(
        embed.Config(
            encoder=str(tmp_path / "model"),
            data="digits",
            out=tmp_path / "table",
            dtype="float32",
            workers=0,
            device="cpu",
        )
    )
    some = datasets.subset(images, np.array([9, 4, 700]))
    teachers = [
        open_teacher(str(where), images, size=None, device=CPU, workers=0) for where in (tmp_path / "model", table)
    ]
    assert [type(teacher) for teacher in teachers] == [LiveTeacher, StoredTeacher]
    assert teachers[0].preprocessing == teachers[1].preprocessing
    live, kept = (teacher.embeddings(some) for teacher in teachers)
    assert live.ids == kept.ids
    np.testing.assert_allclose(live.rows, kept.rows, atol=1e-5)
    np.testing.assert_array_equal(live.labels, kept.labels)
