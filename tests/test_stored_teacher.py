"""Stored rows teach what their encoder would: found by id, seen as it saw them, the same view in the same epoch."""

from __future__ import annotations

import pickle
from dataclasses import replace
from itertools import islice
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from compress_ssl import datasets, embed
from compress_ssl.datasets import ImageSet
from compress_ssl.encoder import open_encoder, save_encoder
from compress_ssl.loader import Batch, TrainLoader
from compress_ssl.picture import UnusableImage
from compress_ssl.refusal import Refusal
from compress_ssl.stored_teacher import StoredConfig, StoredTeacher
from compress_ssl.table import Table
from compress_ssl.teacher import LiveTeacher, open_teacher
from compress_ssl.transforms import Crop, Preprocessing, RandomView, ReplayView, Sample, TrainView, cut, evaluation_view

pytestmark = pytest.mark.filterwarnings("error")
CPU = torch.device("cpu")
IDS = tuple(f"photos/{letter}.png" for letter in "gbfadce")
LOOKED = Preprocessing(size=8, crop_fraction=0.8)


class Photos:
    """Small pictures; those in `broken` cannot be used."""

    name, classes = "photos:train", ()

    def __init__(self, ids: tuple[str, ...] = IDS, broken: tuple[str, ...] = ()):
        self.ids, self.broken = ids, broken
        self.labels = np.arange(len(ids))
        self.evidence = np.array([100 + IDS.index(id) if id in IDS else 99 for id in ids])

    def __len__(self) -> int:
        return len(self.ids)

    def read(self, position: int) -> np.ndarray:
        if self.ids[position] in self.broken:
            raise UnusableImage("broken", "no header")
        seed = IDS.index(self.ids[position]) if self.ids[position] in IDS else 99
        return np.random.default_rng(seed).integers(0, 256, (9, 11, 3), dtype=np.uint8)

    def fingerprint(self) -> str:
        return "f"


class Rows:
    """Stored rows of IDS in places 10, 11, …: (1 + V) rows each, 5 wide; counts what it is asked for."""

    path, width, view, unusual = Path("tables/a"), 5, TrainView(scale=(0.3, 0.9)), None

    def __init__(self, views: int, *, skipped: tuple[str, ...] = (), preprocessing: Preprocessing | None = LOOKED):
        self.views, self.preprocessing = views, preprocessing
        self.kept = [id for id in sorted(IDS) if id not in skipped]
        self._skipped = {id: 100 + IDS.index(id) for id in skipped}
        values = np.random.default_rng(0).normal(size=(len(self.kept), 1 + views, 5))
        self.values = torch.from_numpy(values / np.linalg.norm(values, axis=2, keepdims=True)).float()
        self.asked: list[str] = []
        self.announced: list[tuple[list[int], int | None]] = []

    def splits(self) -> list[str]:
        return ["train"]

    def ids(self, split: str) -> list[str]:
        self.asked.append(split)
        return self.kept

    def labels(self, split: str) -> np.ndarray:
        return np.full(len(self.ids(split)), -1)

    def evidence(self, split: str) -> np.ndarray:
        return np.array([100 + IDS.index(id) for id in self.ids(split)])

    def skipped(self, split: str) -> dict[str, int]:
        return self._skipped if split == "train" else {}

    def first(self, split: str) -> int:
        return {"train": 10}[split]

    def rows(self, places: np.ndarray, *, view: int | None = None) -> Tensor:
        return self.values[places - 10, 0 if view is None else 1 + view]

    def crop(self, place: int, *, view: int) -> Crop:
        assert 0 <= view < self.views
        return Crop(place - 10, view, 3, 4 + view, bool(view % 2))

    def announce(self, places: np.ndarray, *, view: int | None = None) -> None:
        self.announced.append((places.tolist(), view))

    def identity(self) -> dict[str, str]:
        return {"teacher weights": "ab"}

    def of(self, id: str, view: int | None) -> Tensor:
        return self.values[self.kept.index(id), 0 if view is None else 1 + view]


def teach(rows: Rows, images: Photos, **options: object) -> StoredTeacher:
    return StoredTeacher(rows, images, device=CPU, config=StoredConfig(**options))  # type: ignore[arg-type]


def batch(*positions: int, epoch: int = 0) -> Batch:
    return Batch(torch.zeros(len(positions), 3, 8, 8, dtype=torch.uint8), torch.tensor(positions), [], epoch=epoch)


@pytest.mark.parametrize("order", [(0, 1, 2, 3, 4, 5, 6), (6, 2, 4, 0, 1, 3, 5), (5, 0, 3)])
@pytest.mark.parametrize("views", [0, 3])
def test_stored_rows_are_found_by_id_in_the_view_of_the_epoch(order: tuple[int, ...], views: int) -> None:
    """Another order, or part of the images: by position each would be taught another image's row, or another view's."""
    rows, images = Rows(views), Photos(tuple(IDS[place] for place in order))
    teacher = teach(rows, images, part=True)
    for epoch in (0, 1, 2, 3, 7):
        found = teacher(batch(2, 0, 1, epoch=epoch))
        wanted = [rows.of(images.ids[place], epoch % views if views else None) for place in (2, 0, 1)]
        assert torch.equal(found, torch.stack(wanted))
    everything = teacher.embeddings(images)
    assert everything.ids == images.ids
    np.testing.assert_array_equal(everything.labels, images.labels)
    np.testing.assert_array_equal(everything.rows, torch.stack([rows.of(id, None) for id in images.ids]))
    parts = list(teacher.stored())
    assert torch.cat([index for index, _ in parts]).tolist() == list(range(len(order)))
    assert torch.equal(torch.cat([found for _, found in parts]), torch.from_numpy(everything.rows))


def test_rows_looked_up_ahead_go_with_their_images() -> None:
    """With a batch in parts, each part would be taught the rows of the first."""
    rows, images = Rows(2), Photos()
    teacher = teach(rows, images)
    ready = teacher.prepare(batch(6, 0, 3, 5, 2, epoch=1)).to(CPU)
    assert ready.target is not None
    assert ready.epoch == 1
    parts = [part for part, _ in ready.parts(2)]
    assert [part.host_index.tolist() for part in parts] == [[6, 0, 3], [5, 2]]
    teacher._places[:] = -1  # it is not asked again
    found = torch.cat([teacher(part) for part in parts])
    assert torch.equal(found, torch.stack([rows.of(images.ids[place], 1) for place in (6, 0, 3, 5, 2)]))


def test_a_step_looks_up_nothing_that_could_be_known_before() -> None:
    """A million ids would be gone through in every step."""
    rows = Rows(2)
    teacher, crop_of = teach(rows, Photos()), teach(rows, Photos()).view(TrainView(), 8)
    rows.asked.clear()
    teacher.announce([(0, 3), (0, 4)])
    teacher.prepare(batch(3, 4))
    assert isinstance(crop_of, ReplayView)
    crop_of.crop_of(3, 0)
    assert rows.asked == []


def test_the_rows_of_a_batch_to_come_are_announced_in_their_view() -> None:
    """The system would read ahead what nobody wants, and the step would wait for the disk."""
    rows = Rows(3, skipped=(IDS[1],))
    teacher = teach(rows, Photos(broken=(IDS[1],)))
    teacher.announce([(4, 0), (4, 1), (4, 2)])
    places = [10 + rows.kept.index(IDS[place]) for place in (0, 2)]
    assert rows.announced == [(places, 1)], "an image that cannot be used has no row"
    alone = Rows(3)
    teach(alone, Photos(), student_view="random").announce([(4, 2)])
    assert alone.announced == [([10 + alone.kept.index(IDS[2])], None)]


# ---- what the student sees ----


@pytest.mark.parametrize("size", [8, 5])
def test_the_student_sees_exactly_what_the_teacher_saw_in_its_own_size(size: int) -> None:
    """Another crop than the teacher's is what the paper loses half a point to."""
    rows, images = Rows(3), Photos()
    view = teach(rows, images).view(TrainView(), size)
    assert view.size == size
    for workers in (0, 1):
        loader = TrainLoader(images, pickle.loads(pickle.dumps(view)), batch_size=7, seed=0, workers=workers)
        for epoch, found in enumerate(islice(loader.batches(), 5)):
            for place, shown in zip(found.index.tolist(), found.images, strict=True):
                crop = rows.crop(10 + rows.kept.index(images.ids[place]), view=epoch % 3)
                assert torch.equal(shown, cut(images.read(place), crop, size))


def test_where_evaluation_views_alone_are_stored_replay_shows_these() -> None:
    """`--stored.student-view replay` over such a table would show some crop that the teacher never saw."""
    images = Photos()
    view = teach(Rows(0), images, student_view="replay").view(TrainView(), 5)
    shown = view(images.read(2), Sample(0, 4, 2, images.ids[2]))
    assert torch.equal(shown, evaluation_view(images.read(2), replace(LOOKED, size=5)))


@pytest.mark.parametrize(("views", "student_view"), [(0, "auto"), (0, "random"), (3, "random")])
def test_the_papers_way_is_the_row_of_the_evaluation_view_beside_random_crops(views: int, student_view: str) -> None:
    """The comparison with the paper's cached teacher would be one with something else."""
    rows, images, train = Rows(views), Photos(), TrainView(scale=(0.2, 0.4))
    teacher = teach(rows, images, student_view=student_view)
    view, sample = teacher.view(train, 6), Sample(3, 5, 2, images.ids[2])
    assert torch.equal(view(images.read(2), sample), RandomView(train, 6)(images.read(2), sample))
    assert torch.equal(teacher(batch(2, epoch=1))[0], rows.of(images.ids[2], None))


def test_other_crops_than_the_stored_ones_are_refused() -> None:
    """`--view.scale` would be ignored without a word."""
    other = TrainView(scale=(0.5, 1.0))
    for rows, told in ((Rows(3), "3 random views"), (Rows(0), "the evaluation view alone")):
        teacher = teach(rows, Photos(), student_view="replay")
        with pytest.raises(Refusal, match=rf"--view expected .*scale=\(0\.5, 1\.0\).* where tables/a holds {told}"):
            teacher.view(other, 8)
        for same in (TrainView(), rows.view):
            assert isinstance(teacher.view(same, 8), ReplayView)
    assert isinstance(teach(Rows(3), Photos(), student_view="random").view(other, 8), RandomView)


def test_vectors_alone_cannot_be_replayed_and_need_not_be() -> None:
    """Nobody knows what a service has seen of an image; some view would be passed off as it."""
    vectors = Rows(0, preprocessing=None)
    assert isinstance(teach(vectors, Photos()).view(TrainView(scale=(0.5, 1.0)), 8), RandomView)
    with pytest.raises(Refusal, match=r"--stored\.student-view replay expected .* tables/a, which holds vectors alone"):
        teach(vectors, Photos(), student_view="replay")


# ---- images that could not be used, are new, or are gone ----


@pytest.mark.parametrize("views", [0, 2])
def test_images_that_could_not_be_used_when_they_were_embedded_are_tolerated(views: int) -> None:
    """One broken file in a folder of a million would make the whole table useless."""
    broken = (IDS[1], IDS[5])
    rows, images = Rows(views, skipped=broken), Photos(broken=broken)
    teacher = teach(rows, images)
    assert teacher.embeddings(images).ids == tuple(id for id in IDS if id not in broken)
    assert torch.cat([index for index, _ in teacher.stored()]).tolist() == [0, 2, 3, 4, 6]
    loader = TrainLoader(images, teacher.view(TrainView(), 8), batch_size=7, seed=0, workers=0)
    found = next(loader.batches())
    met = [images.ids[place] for place in found.index.tolist()]
    assert len(met) == 7
    assert not {*met} & {*broken}
    assert torch.equal(teacher(found), torch.stack([rows.of(id, 0 if views else None) for id in met]))


@pytest.mark.parametrize("views", [0, 2])
def test_an_image_that_can_be_used_only_now_is_refused_by_name(views: int) -> None:
    """Mended into a file of the same size, it would be taught the row of the table's other end."""
    teacher = teach(Rows(views, skipped=(IDS[1],)), Photos())
    view = teacher.view(TrainView(), 8)
    view(Photos().read(1), Sample(0, 0, 1, IDS[1]))  # whether it is usable, only reading tells
    with pytest.raises(Refusal, match=rf"{IDS[1]}.*tables/a was made and can be now.*: leave it out of the data"):
        teacher(batch(0, 1, 2))


def test_rows_without_an_image_are_noticed_in_the_whole_split_alone() -> None:
    """Images held out of the training would pass for lost ones, or lost ones for images held out."""
    images, some = Photos(), Photos(IDS[:5])
    StoredTeacher(Rows(2), some, device=CPU, whole=images)  # type: ignore[arg-type]
    with pytest.raises(Refusal, match=r"--stored\.part"):
        StoredTeacher(Rows(2), some, device=CPU, whole=some)  # type: ignore[arg-type]
    teach(Rows(2), some, part=True)
    with pytest.raises(Refusal, match=r"for 1 of 8 .*photos/new\.png"):
        teach(Rows(2), Photos((*IDS, "photos/new.png")))


# ---- over a table that `embed` has written ----


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A saved encoder for 8 pixels."""
    folder = tmp_path_factory.mktemp("model")
    torch.manual_seed(0)
    save_encoder(open_encoder("compress/resnet10_small_w8", weights="random", size=8), folder)
    return folder


@pytest.fixture(scope="module")
def table(model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Of the digits, two random views in float32."""
    out = tmp_path_factory.mktemp("table") / "digits"
    given = embed.Config(encoder=str(model), data="digits", out=out, views=2, seed=5, dtype="float32", shard_rows=500)
    return embed.run(replace(given, workers=0, device="cpu"))


@pytest.mark.parametrize("in_memory", [False, True])
def test_a_stored_teacher_is_the_live_one_in_every_view(model: Path, table: Path, in_memory: bool) -> None:
    """A training from a table would be another training, and its scores those of another teacher."""
    whole: ImageSet = datasets.open_splits("digits").train
    images = datasets.subset(whole, np.random.default_rng(0).permutation(1437)[:700])
    config = StoredConfig(in_memory=in_memory)
    kept = open_teacher(
        str(table), images, size=None, device=CPU, workers=0, stored=config, whole=datasets.open_splits("digits").train
    )
    live = open_teacher(str(model), images, size=None, device=CPU, workers=0)
    assert isinstance(kept, StoredTeacher)
    assert isinstance(live, LiveTeacher)
    assert live.preprocessing == kept.preprocessing
    assert live.identity().items() <= kept.identity().items()

    loaders = [
        TrainLoader(images, teacher.view(TrainView(), 8), batch_size=233, seed=5, workers=0, announce=teacher.announce)
        for teacher in (live, kept)
    ]
    for seen, replayed in islice(zip(*(loader.batches() for loader in loaders), strict=True), 6):
        assert torch.equal(seen.images, replayed.images)
        assert torch.equal(seen.index, replayed.index)
        assert float((live(seen) - kept(replayed)).abs().max()) < 1e-5
    with pytest.raises(Refusal, match=r"--unusual expected skip, .*, got convert"):
        open_teacher(str(table), images, size=None, device=CPU, workers=0, whole=whole, unusual="convert")
    open_teacher(str(table), images, size=None, device=CPU, workers=0, whole=whole, unusual="skip")
    third = next(loaders[1].batches(6))
    assert third.epoch == 2
    assert torch.equal(kept(third), kept(replace(third, epoch=0))), "epoch 2 has the first of two views again"

    some = datasets.subset(images, np.array([9, 4, 600]))
    ours, theirs = kept.embeddings(some), live.embeddings(some)
    assert ours.ids == theirs.ids
    np.testing.assert_allclose(ours.rows, theirs.rows, atol=1e-5)
    np.testing.assert_array_equal(ours.labels, theirs.labels)


def test_it_travels_to_a_worker_that_is_not_forked(table: Path) -> None:
    """On systems that start processes anew, a table could only be read without workers."""
    images = datasets.open_splits("digits").train
    teacher = StoredTeacher(Table(table), images, device=CPU)
    view = teacher.view(TrainView(), 8)
    sample = Sample(0, 1, 8, images.ids[8])
    assert torch.equal(pickle.loads(pickle.dumps(view))(images.read(8), sample), view(images.read(8), sample))
