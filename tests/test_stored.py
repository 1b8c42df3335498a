"""Stored rows and the images they belong to: found by id wherever they lie, refused when they no longer fit."""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from compress_ssl import datasets, embed, room
from compress_ssl.encoder import open_encoder, save_encoder
from compress_ssl.picture import UnusableImage
from compress_ssl.refusal import Refusal
from compress_ssl.stored import (
    Stored,
    find,
    is_stored,
    needs_ids,
    of,
    open_stored,
    refuse_other_unusual,
    refuse_too_large,
)
from compress_ssl.table import Table
from compress_ssl.transforms import Crop, EvaluationView
from compress_ssl.vectors import Vectors

pytestmark = pytest.mark.filterwarnings("error")
IDS = tuple(f"kind{number % 3}/{number}.png" for number in range(11))


class Photos:
    """An image set of black pixels; images in `broken` cannot be opened."""

    broken: tuple[str, ...] = ()

    def __init__(self, ids: Sequence[str] = IDS, evidence: Sequence[int] | None = None, name: str = "photos:train"):
        self.name, self.ids, self.classes = name, tuple(ids), ("a", "b")
        self.labels = np.array([len(id) % 2 for id in self.ids], dtype=np.int64)
        if evidence is not None:
            self.evidence = np.array(evidence, dtype=np.int64)

    def __len__(self) -> int:
        return len(self.ids)

    def read(self, position: int) -> np.ndarray:
        if self.ids[position] in self.broken:
            raise UnusableImage("broken", "no picture")
        return np.zeros((1, 1, 3), np.uint8)

    def fingerprint(self) -> str:
        return "photos"


class Rows:
    """Stored rows in memory: split -> ids, evidence; the row of an image is its id's length and its split's place."""

    path, width, views, preprocessing = Path("tables/a"), 2, 0, None

    unusual: datasets.Unusual | None = None

    def __init__(self, skipped: dict[str, int] | None = None, **splits: tuple[Sequence[str], Sequence[int] | None]):
        self._splits, self._skipped = splits, skipped or {}
        self._all = np.array([[len(id), place + 1] for place, (ids, _) in enumerate(splits.values()) for id in ids])

    def splits(self) -> list[str]:
        return list(self._splits)

    def ids(self, split: str) -> list[str]:
        return list(self._splits[split][0])

    def labels(self, split: str) -> np.ndarray:
        return np.full(len(self.ids(split)), -1)

    def evidence(self, split: str) -> np.ndarray | None:
        found = self._splits[split][1]
        return None if found is None else np.array(found)

    def skipped(self, split: str) -> dict[str, int]:
        return self._skipped if split == "train" else {}

    def first(self, split: str) -> int:
        names = list(self._splits)
        return sum(len(self.ids(name)) for name in names[: names.index(split)])

    def rows(self, places: np.ndarray, *, view: int | None = None) -> Tensor:
        assert view is None
        rows = torch.from_numpy(self._all[places]).float()
        return rows / rows.norm(dim=1, keepdim=True)

    def crop(self, place: int, *, view: int) -> Crop:
        raise AssertionError((place, view))

    def announce(self, places: np.ndarray, *, view: int | None = None) -> None: ...

    def identity(self) -> dict[str, str]:
        return {}


# ---- by id -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("order", [(0, 1, 2, 3, 4), (4, 2, 0, 1, 3), (3, 0)])
def test_rows_are_found_by_id_in_any_order(order: tuple[int, ...]) -> None:
    """By position, each image would be taught another image's row as soon as a file is renamed."""
    stored = Rows(test=(IDS[5:], None), train=(IDS[:5], (10, 11, 12, 13, 14)))
    images = Photos([IDS[place] for place in order], [10 + place for place in order])
    assert find(stored, images, part=True).tolist() == [6 + place for place in order], "after the six of the test split"


@pytest.mark.parametrize("evidence", [((1, 2, 3), (4, 5, 6)), ((1, 1, 1), (1, 1, 1)), (None, None)])
def test_one_id_in_both_splits_is_told_apart(evidence: tuple) -> None:
    """cat/1.png of the test folder would get the row of cat/1.png of the training folder."""
    stored = Rows(train=(("a", "b", "c"), evidence[0]), test=(("a", "b", "c"), evidence[1]))
    assert find(stored, Photos("cab", evidence[0] and [evidence[0][place] for place in (2, 0, 1)])).tolist() == [
        2,
        0,
        1,
    ]
    test = Photos("cab", evidence[1] and [evidence[1][place] for place in (2, 0, 1)], "photos:test")
    assert find(stored, test).tolist() == [5, 3, 4]


def test_part_of_the_images_is_looked_for_where_all_of_them_are() -> None:
    """Ten held-out images, whose ids happen to be those of the test split, would get its rows."""
    stored = Rows(train=(IDS, None), test=(("x", IDS[3]), None))
    held_out = Photos([IDS[3]], name="photos:test")
    assert find(stored, held_out, whole=Photos()).tolist() == [3]


def test_an_image_that_could_not_be_used_has_no_place() -> None:
    """One broken file among a million would make the whole table useless."""
    stored = Rows(train=(IDS[1:], None), skipped={IDS[0]: 7})
    assert find(stored, Photos()).tolist() == [-1, *range(10)]
    assert find(stored, Photos(evidence=[7] * 11)).tolist() == [-1, *range(10)]
    assert of(stored, Photos()).ids == IDS[1:]


def test_an_image_mended_since_is_refused_before_anything_is_trained() -> None:
    """The run would die in the middle of an epoch, at the first batch that holds it."""
    stored = Rows(train=(IDS[1:], range(101, 111)), skipped={IDS[0]: 7})
    now = list(range(100, 111))
    with pytest.raises(Refusal, match=r"none for 1 of 11 \(kind0/0\.png, …\) .* --out tables/a` again, .* or mended"):
        find(stored, Photos(evidence=now))
    assert find(stored, Photos(evidence=[7, *now[1:]])).tolist() == [-1, *range(10)]


def test_strict_rows_are_those_of_all_images() -> None:
    """A benchmark with an image missing is another benchmark."""
    stored = Rows(train=(IDS[1:], None), skipped={IDS[0]: 7})
    with pytest.raises(Refusal, match=r"--strict expected every image of photos:train .* got 1 that could not be when "
                       r"tables/a was made \(kind0/0\.png, …\)"):  # fmt: skip
        of(stored, Photos(), strict=True)
    assert of(stored, Photos(IDS[1:]), strict=True).ids == IDS[1:]


def test_rows_come_with_the_labels_of_the_data() -> None:
    """Vectors know no labels: evaluations would find none."""
    found = of(Rows(all=(IDS, None)), Photos(IDS[::-2]))
    assert found.ids == IDS[::-2]
    assert found.labels.tolist() == [len(id) % 2 for id in IDS[::-2]]
    expected = [np.array([len(id), 1]) / np.hypot(len(id), 1) for id in IDS[::-2]]
    np.testing.assert_allclose(found.rows, expected, atol=1e-6)


def test_many_images_are_found_at_once() -> None:
    """Every start of a run on ImageNet would begin with minutes of waiting."""
    ids = [f"n{number % 1000:08d}/n{number % 1000:08d}_{number}.JPEG" for number in range(100_000)]
    order = np.random.default_rng(0).permutation(len(ids))
    evidence = np.arange(len(ids))
    stored = Rows(train=(ids, evidence))
    images = Photos([ids[place] for place in order], evidence[order])
    start = time.perf_counter()
    places = find(stored, images)
    assert time.perf_counter() - start < 2
    np.testing.assert_array_equal(places, order)


# ---- what no longer fits ---------------------------------------------------------------------------------------------


def test_added_images_are_refused_with_their_number_and_what_mends_it() -> None:
    """They would be taught noise, or end in an error at some step."""
    stored = Rows(train=(IDS[:9], None))
    with pytest.raises(Refusal, match=r"every image of photos:train, got none for 2 of 11 \(kind0/9\.png, …\) in "
                       r"tables/a: run `compress-ssl embed --out tables/a` again, .* what is new"):  # fmt: skip
        find(stored, Photos())


def test_changed_images_are_refused_with_what_was_expected_and_found() -> None:
    """The teacher saw other pixels than the student is shown."""
    stored = Rows(train=(IDS, range(100, 111)))
    evidence = [100 + number + (number in (4, 7)) for number in range(11)]
    with pytest.raises(Refusal, match=r"2 of 11 changed \(kind1/4\.png: size or checksum 104 expected, 105 found\): "
                       r"restore them, or run `compress-ssl embed`"):  # fmt: skip
        find(stored, Photos(evidence=evidence))
    assert find(stored, Photos()).tolist() == list(range(11)), "a data set of one's own may not know"
    assert find(Rows(train=(IDS, None)), Photos(evidence=evidence)).tolist() == list(range(11)), "nor may vectors"


def test_missing_images_are_refused_unless_a_part_is_wanted() -> None:
    """Half a data set, for a folder that is not mounted, would be trained on without a word."""
    stored = Rows(train=(IDS, range(11)), test=(("x", "y"), (0, 0)))
    some = Photos(IDS[2:])
    with pytest.raises(Refusal, match=r"in photos:train the images of all 11 rows of tables/a, got 2 missing "
                       r"\(kind0/0\.png, …\): put them back, or allow it by --stored\.part"):  # fmt: skip
        find(stored, some)
    assert find(stored, some, part=True).tolist() == list(range(2, 11))
    assert find(stored, some, whole=Photos()).tolist() == list(range(2, 11)), "held-out images are not missing"
    with pytest.raises(Refusal, match="got 1 missing"):
        find(stored, some, whole=Photos(IDS[1:]))
    of_everything = Rows(all=((*IDS, "x", "y"), None))
    assert find(of_everything, some).tolist() == list(range(2, 11)), "one file of vectors may serve many data sets"


def test_pictures_that_cannot_be_opened_need_no_vector() -> None:
    """Nobody has the vector of a broken file: one among a million would keep the others from being used."""
    stored, images = Rows(all=(IDS[:9], None)), Photos()
    images.broken = IDS[9:]
    assert find(stored, images).tolist() == [*range(9), -1, -1]
    images.broken = IDS[10:]
    with pytest.raises(Refusal, match="got none for 1 of 11"):
        find(stored, images)


def test_ids_of_another_kind_show_one_of_each_side() -> None:
    """ "None for 11 of 11" does not tell that a folder's name is missing in front."""
    stored = Rows(all=([f"train/{id}" for id in IDS], None))
    with pytest.raises(Refusal, match=r"none for 11 of 11: the data's ids are as 'kind0/0\.png', those in tables/a as "
                       r"'train/kind0/0\.png'"):  # fmt: skip
        find(stored, Photos())


def test_other_treatment_of_unusual_images_is_refused_with_both_values() -> None:
    """A CMYK picture without a row would end the training, one with a row would be replaced without a word."""
    stored = Rows(train=(IDS, None))
    refuse_other_unusual(stored, "convert")  # nobody knows how it was made
    stored.unusual = "skip"
    refuse_other_unusual(stored, "skip")
    with pytest.raises(Refusal, match=r"--unusual expected skip, .* in tables/a were made, got convert: give --unusual "
                       r"skip, or run `compress-ssl embed` with --unusual convert and another --out"):  # fmt: skip
        refuse_other_unusual(stored, "convert")


# ---- by name ---------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Thirteen pictures in train and seven in test, and one that is none."""
    folder, random = tmp_path_factory.mktemp("data") / "photos", np.random.default_rng(5)
    for split, count in (("train", 13), ("test", 7)):
        for number in range(count):
            file = folder / split / f"kind{number % 2}" / f"{number}.png"
            file.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(random.integers(0, 256, (9, 8, 3), dtype=np.uint8)).save(file)
    (folder / "train" / "kind0" / "broken.png").write_bytes(b"no picture")
    return folder


@pytest.fixture(scope="module")
def table(photos: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A table of two random views, in shards of five, and the model that made it."""
    folder = tmp_path_factory.mktemp("stored")
    torch.manual_seed(1)
    save_encoder(open_encoder("compress/resnet10_small_w8", weights="random", size=8), folder / "model")
    embed.run(
        embed.Config(
            encoder=str(folder / "model"),
            data=str(photos),
            out=folder / "table",
            views=2,
            dtype="float32",
            shard_rows=5,
            workers=0,
            device="cpu",
        )
    )
    return folder / "table", folder / "model"


def test_rows_of_a_table_are_those_of_the_model_image_by_image(photos: Path, table: tuple[Path, Path]) -> None:
    """Rows of another split, shard or view would be taught and scored."""
    stored = open_stored(str(table[0]))
    assert stored is not None
    encoder = open_encoder(str(table[1]), weights="pretrained")
    splits = datasets.open_splits(str(photos))
    assert splits.test is not None
    for images in (splits.train, splits.test):
        view, device = EvaluationView(encoder.preprocessing), torch.device("cpu")
        live = embed.embed(encoder.eval(), images, view=view, device=device, workers=0)
        found = of(stored, images)
        assert found.ids == live.ids
        np.testing.assert_array_equal(found.labels, live.labels)
        np.testing.assert_allclose(found.rows, live.rows, atol=1e-5)
    places = find(stored, splits.train)
    assert [splits.train.ids[place] for place in np.flatnonzero(places < 0)] == ["train/kind0/broken.png"]


def test_a_table_is_refused_over_pictures_that_have_come_gone_or_changed(
    photos: Path, table: tuple[Path, Path], tmp_path: Path
) -> None:
    """What a real folder knows of its files must be what a real table has kept."""
    stored = open_stored(str(table[0]))
    assert stored is not None

    def after(change: str) -> datasets.ImageSet:
        folder = tmp_path / change
        for file in sorted(photos.rglob("*.png")):
            copy = folder / file.relative_to(photos)
            copy.parent.mkdir(parents=True, exist_ok=True)
            copy.write_bytes(file.read_bytes())
        victim = folder / "train" / "kind0" / "2.png"
        if change == "added":
            victim.with_name("new.png").write_bytes(victim.read_bytes())
        elif change == "changed":
            victim.write_bytes(victim.read_bytes() + b"\0")
        elif change == "mended":
            victim.with_name("broken.png").write_bytes(victim.read_bytes())
        elif change == "missing":
            victim.unlink()
        return datasets.open_splits(str(folder)).train

    assert (find(stored, after("copied")) >= 0).sum() == 13
    told = rf"none for 1 of 15 \(train/kind0/new\.png, …\) .* embed --encoder .* --out {table[0]} .* or mended"
    with pytest.raises(Refusal, match=told):
        find(stored, after("added"))
    with pytest.raises(Refusal, match=r"none for 1 of 14 \(train/kind0/broken\.png, …\)"):
        find(stored, after("mended"))
    with pytest.raises(Refusal, match=r"1 of 14 changed \(train/kind0/2\.png"):
        find(stored, after("changed"))
    missing = after("missing")
    with pytest.raises(Refusal, match=r"1 missing \(train/kind0/2\.png, …\)"):
        find(stored, missing)
    assert len(of(stored, missing).ids) == 12


def test_what_is_stored_is_known_by_its_name(table: tuple[Path, Path], tmp_path: Path) -> None:
    """A table would be opened as a model, or a model as a table."""
    np.save(tmp_path / "v.npy", np.eye(3, dtype=np.float32))
    (tmp_path / "ids.txt").write_text("a\nb\nc\n")
    opened: list[Stored | None] = [
        open_stored(str(table[0]), in_memory=True),
        open_stored(str(tmp_path / "v.npy"), ids=tmp_path / "ids.txt"),
        open_stored(str(table[1])),
        open_stored("timm/resnet18"),
    ]
    assert [type(one) for one in opened] == [Table, Vectors, type(None), type(None)]
    assert [is_stored(spec) for spec in (str(table[0]), "nobody.npy", str(table[1]), "timm/resnet18")] == [
        True,
        True,
        False,
        False,
    ]
    assert [needs_ids(spec) for spec in ("a.npy", "a.parquet", str(table[0]))] == [True, False, False]


def test_a_table_is_known_by_how_it_took_unusual_images(table: tuple[Path, Path]) -> None:
    """What `embed` was told must be what a training is compared with."""
    assert Table(table[0]).unusual == "skip"


def test_rows_that_do_not_fit_into_memory_are_refused_with_both_numbers(
    table: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The system would kill the run, and say nothing, after minutes of reading."""
    np.save(tmp_path / "v.npy", np.ones((100, 250), dtype=np.float32))
    (tmp_path / "v.csv").write_text("a,1\n")
    for spec in (table[0], tmp_path / "v.npy"):
        files = [spec] if spec.is_file() else [*spec.glob("t*/*.npy")]
        size = sum(len(file.read_bytes()) for file in files)
        assert size > 1000
        monkeypatch.setattr(room, "free_memory", lambda size=size: 2 * size)
        refuse_too_large(str(spec), processes=2)
        told = (rf"--stored\.in-memory expected {3 * size / 1e9:.3g} GB of free memory, to hold the rows of {spec} in "
                rf"each of 3 processes, got {2 * size / 1e9:.3g} GB: leave it out")  # fmt: skip
        with pytest.raises(Refusal, match=told):
            refuse_too_large(str(spec), processes=3)
    monkeypatch.setattr(room, "free_memory", lambda: 1)
    for spec in (tmp_path / "v.csv", table[1], "timm/resnet18"):
        refuse_too_large(str(spec), processes=1)
    monkeypatch.setattr(room, "free_memory", lambda: None)
    refuse_too_large(str(table[0]), processes=9)


def test_names_that_cannot_be_opened_are_refused(table: tuple[Path, Path], tmp_path: Path) -> None:
    """A mistyped file would be looked for among models; ids given in vain would seem to be used."""
    with pytest.raises(Refusal, match=r"nobody\.npy, got no such file"):
        open_stored(str(tmp_path / "nobody.npy"), ids=tmp_path / "ids.txt")
    for spec in (str(table[0]), "timm/resnet18"):
        with pytest.raises(Refusal, match=r"--ids only with vectors in a \.npy, .* leave --ids out"):
            open_stored(spec, ids=tmp_path / "ids.txt")


def test_rows_added_to_vectors_are_asked_for_in_their_file(tmp_path: Path) -> None:
    """`embed` cannot mend what it did not write."""
    np.save(tmp_path / "v.npy", np.eye(9, dtype=np.float32))
    (tmp_path / "ids.txt").write_text("\n".join(IDS[:9]))
    stored = open_stored(str(tmp_path / "v.npy"), ids=tmp_path / "ids.txt")
    assert stored is not None
    with pytest.raises(
        Refusal, match=r"none for 2 of 11 .*v\.npy: add their rows to the file, or take these images out"
    ):
        find(stored, Photos())
