"""torchvision's sets, from small files in their publishers' own layouts."""

from __future__ import annotations

import io
import json
import urllib.request
from pathlib import Path
from typing import Any
from urllib.error import URLError

import numpy as np
import pytest
from PIL import Image
from scipy.io import savemat

from compress_ssl.datasets import cache_folder, open_splits
from compress_ssl.datasets import torchvision_sets as module
from compress_ssl.picture import UnusableImage
from compress_ssl.refusal import Refusal


@pytest.fixture(autouse=True)
def no_network(monkeypatch: pytest.MonkeyPatch) -> None:
    """No test here downloads anything, on whatever machine."""

    def unreachable(*_: object, **__: object) -> None:
        raise URLError("no network in tests")

    monkeypatch.setattr(urllib.request, "urlopen", unreachable)


def picture(value: int, mode: str = "RGB") -> bytes:
    """A picture of 5 x 7 whose top left pixel is `value`, as PNG whatever the file is called."""
    pixels = np.random.default_rng(value).integers(0, 256, (5, 7, 3), dtype=np.uint8)
    pixels[0, 0] = value
    buffer = io.BytesIO()
    Image.fromarray(pixels).convert(mode).save(buffer, "PNG")
    return buffer.getvalue()


def put(path: Path, content: bytes | str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content.encode() if isinstance(content, str) else content)


def idx(array: np.ndarray) -> bytes:
    """MNIST's own format: magic number, sizes, bytes."""
    sizes = b"".join(size.to_bytes(4, "big") for size in array.shape)
    return bytes([0, 0, 8, array.ndim]) + sizes + array.tobytes()


def grey_digits(kind: str) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(len(kind))
    images = rng.integers(0, 256, (7, 5, 3), dtype=np.uint8)
    put_folder = cache_folder() / "torchvision" / kind / kind / "raw"
    for part, count in (("train", 7), ("t10k", 4)):
        put(put_folder / f"{part}-images-idx3-ubyte", idx(images[:count]))
        put(put_folder / f"{part}-labels-idx1-ubyte", idx(np.arange(count, dtype=np.uint8)))
    return images, np.arange(7)


def food(*, bad: bytes | None = None) -> None:
    root = cache_folder() / "torchvision" / "Food101" / "food-101"
    files = {
        "train": {"pie": ["pie/2", "pie/1"], "apple": ["apple/9"]},
        "test": {"pie": ["pie/3"], "apple": ["apple/4"]},
    }
    for split, classes in files.items():
        put(root / "meta" / f"{split}.json", json.dumps(classes))
        for names in classes.values():
            for name in names:
                put(root / "images" / f"{name}.jpg", picture(int(name[-1])))
    if bad is not None:
        put(root / "images" / "pie" / "3.jpg", bad)


def example(folder: Path) -> str:  # noqa: ARG001 - the cache folder is where these sets lie
    food()
    return "torchvision/Food101"


def values(images: Any) -> list[int]:
    return [int(images.read(position)[0, 0, 0]) for position in range(len(images))]


def test_a_set_of_image_files_is_read_with_its_own_splits_and_classes() -> None:
    """Food-101's test images would be trained on, or its classes be numbered by accident."""
    food()
    splits = open_splits("torchvision/Food101")
    assert splits.test is not None
    assert list(splits.train.ids) == [f"food-101/images/{name}.jpg" for name in ("apple/9", "pie/1", "pie/2")]
    assert list(splits.test.ids) == ["food-101/images/apple/4.jpg", "food-101/images/pie/3.jpg"]
    assert splits.train.classes == splits.test.classes == ("apple", "pie")
    assert splits.train.labels.tolist() == [0, 1, 1]
    assert values(splits.train) == [9, 1, 2]
    assert values(splits.test) == [4, 3]
    assert splits.train.name == "torchvision/Food101:train"


def test_a_set_of_image_files_counts_its_unusual_ones() -> None:
    """torchvision converts them without a word, and a CMYK photograph has other colours under other programs."""
    food(bad=picture(3, "RGBA"))
    splits = open_splits("torchvision/Food101")
    assert splits.test is not None
    with pytest.raises(UnusableImage, match="transparent"):
        splits.test.read(1)
    converted = open_splits("torchvision/Food101", unusual="convert").test
    assert converted is not None
    assert values(converted) == [4, 3]


@pytest.mark.parametrize("kind", ["MNIST", "FashionMNIST", "KMNIST"])
def test_a_set_of_grey_pixels_is_read_exactly(kind: str) -> None:
    """Pixels would be transposed, or three channels be one."""
    images, labels = grey_digits(kind)
    splits = open_splits(f"torchvision/{kind}")
    assert splits.test is not None
    assert (len(splits.train), len(splits.test)) == (7, 4)
    assert splits.train.labels.tolist() == labels.tolist()
    assert list(splits.train.ids)[:2] == [f"{kind}/train/000000", f"{kind}/train/000001"]
    for position in range(7):
        np.testing.assert_array_equal(splits.train.read(position), np.dstack([images[position]] * 3))
    np.testing.assert_array_equal(splits.test.read(3), np.dstack([images[3]] * 3))


def test_a_set_of_colour_pixels_is_read_upright(monkeypatch: pytest.MonkeyPatch) -> None:
    """STL10 is stored column by column, channel by channel: its birds would lie on their side."""
    from torchvision.datasets import STL10

    # The published files are 3 GB and torchvision knows their MD5, so the check alone is left out.
    monkeypatch.setattr(STL10, "_check_integrity", lambda _: True)
    root = cache_folder() / "torchvision" / "STL10" / "stl10_binary"
    images = np.random.default_rng(0).integers(0, 256, (5, 96, 96, 3), dtype=np.uint8)
    for part, count in (("train", 3), ("test", 2), ("unlabeled", 5)):
        put(root / f"{part}_X.bin", np.ascontiguousarray(images[:count].transpose(0, 3, 2, 1)).tobytes())
        put(root / f"{part}_y.bin", np.arange(1, count + 1, dtype=np.uint8).tobytes())
    put(root / "class_names.txt", "airplane\nbird\ncar\n")
    splits = open_splits("torchvision/STL10")
    assert splits.test is not None
    assert splits.train.classes == ("airplane", "bird", "car")
    assert splits.train.labels.tolist() == [0, 1, 2]
    for position in range(3):
        np.testing.assert_array_equal(splits.train.read(position), images[position])
    unlabelled = open_splits("torchvision/STL10:unlabeled")
    assert unlabelled.train.labels.tolist() == [-1] * 5
    np.testing.assert_array_equal(unlabelled.train.read(4), images[4])
    assert unlabelled.test is not None
    assert list(unlabelled.test.ids) == list(splits.test.ids)


def test_svhn_of_a_matlab_file_is_read(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its pixels come with the image number last and its zeros as tens."""
    from torchvision.datasets import SVHN

    monkeypatch.setattr(
        SVHN, "_check_integrity", lambda _: True
    )  # these are not the published files, whose MD5 it knows
    images = np.random.default_rng(0).integers(0, 256, (4, 32, 32, 3), dtype=np.uint8)
    for part in ("train", "test"):
        path = cache_folder() / "torchvision" / "SVHN" / f"{part}_32x32.mat"
        path.parent.mkdir(parents=True, exist_ok=True)
        savemat(path, {"X": images.transpose(1, 2, 3, 0), "y": np.array([[10], [1], [9], [2]])})
    splits = open_splits("torchvision/SVHN")
    assert splits.train.labels.tolist() == [0, 1, 9, 2]
    assert splits.train.classes == tuple("0123456789")
    np.testing.assert_array_equal(splits.train.read(2), images[2])


def test_cifar_is_read_and_its_own_pickle_only_after_its_checksum(monkeypatch: pytest.MonkeyPatch) -> None:
    """A pickle from anywhere runs as a program; the published ones are known by their MD5."""
    import hashlib
    import pickle

    from torchvision.datasets import CIFAR10

    root = cache_folder() / "torchvision" / "CIFAR10" / "cifar-10-batches-py"
    images = np.random.default_rng(0).integers(0, 256, (3, 32, 32, 3), dtype=np.uint8)
    batch = pickle.dumps({"data": images.transpose(0, 3, 1, 2).reshape(3, -1), "labels": [2, 0, 1]})
    meta = pickle.dumps({"label_names": ["airplane", "automobile", "bird"]})
    put(root / "data_batch_1", batch)
    put(root / "test_batch", batch)
    put(root / "batches.meta", meta)
    with pytest.raises(Refusal, match=r"put cifar-10-batches-py/ there"):  # right layout, unknown content
        open_splits("torchvision/CIFAR10")
    checksum = hashlib.md5(batch).hexdigest()
    monkeypatch.setattr(CIFAR10, "train_list", [["data_batch_1", checksum]])
    monkeypatch.setattr(CIFAR10, "test_list", [["test_batch", checksum]])
    monkeypatch.setattr(CIFAR10, "meta", CIFAR10.meta | {"md5": hashlib.md5(meta).hexdigest()})
    splits = open_splits("torchvision/CIFAR10")
    assert splits.train.classes == ("airplane", "automobile", "bird")
    assert splits.train.labels.tolist() == [2, 0, 1]
    np.testing.assert_array_equal(splits.train.read(1), images[1])


def test_a_validation_split_joins_the_training_split() -> None:
    """A third of DTD would never be used."""
    root = cache_folder() / "torchvision" / "DTD" / "dtd" / "dtd"
    for value, (split, name) in enumerate({"train1": "dots/a", "val1": "lines/b", "test1": "dots/c"}.items()):
        put(root / "labels" / f"{split}.txt", f"{name}.jpg\n")
        put(root / "images" / f"{name}.jpg", picture(value))
    splits = open_splits("torchvision/DTD")
    assert splits.test is not None
    assert [Path(name).name for name in splits.train.ids] == ["a.jpg", "b.jpg"]
    assert [Path(name).name for name in splits.test.ids] == ["c.jpg"]


def test_a_set_without_splits_holds_out_a_fifth() -> None:
    """EuroSAT could be trained on and never be scored."""
    root = cache_folder() / "torchvision" / "EuroSAT" / "eurosat" / "2750"
    for value in range(11):
        put(root / ("Forest" if value % 2 else "River") / f"{value}.jpg", picture(value))
    splits = open_splits("torchvision/EuroSAT")
    assert splits.test is not None
    assert (len(splits.train), len(splits.test)) == (9, 2)
    assert sorted(values(splits.train) + values(splits.test)) == list(range(11))
    assert splits.train.classes == ("Forest", "River")


def test_pixels_are_unpacked_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every command would import torchvision and check the MD5 of 3 GB."""
    grey_digits("MNIST")
    before = open_splits("torchvision/MNIST").train

    def never(*_: object) -> None:
        raise AssertionError("asked torchvision a second time")

    monkeypatch.setattr(module, "_published", never)
    again = open_splits("torchvision/MNIST").train
    assert again.fingerprint() == before.fingerprint()
    np.testing.assert_array_equal(again.read(6), before.read(6))


@pytest.mark.parametrize("name", module.NAMES)
def test_without_files_and_network_the_folder_is_named(name: str) -> None:
    """A stack trace of urllib, and no word on where the files may be put by hand."""
    kind = name.removeprefix("torchvision/").partition(":")[0]
    with pytest.raises(Refusal) as caught:
        open_splits(name)
    assert str(cache_folder() / "torchvision" / kind) in str(caught.value)
    assert "\n" not in str(caught.value)
    assert f"put {module._SOURCES[name.removeprefix('torchvision/')].holds}" in str(caught.value)


def test_files_that_are_there_in_part_are_refused_by_folder() -> None:
    """An extraction that stopped half-way would be a FileNotFoundError deep inside torchvision."""
    food()
    (cache_folder() / "torchvision" / "Food101" / "food-101" / "meta" / "test.json").unlink()
    with pytest.raises(Refusal, match=r"Food101.*test\.json"):
        open_splits("torchvision/Food101")


def test_an_unknown_set_is_answered_with_the_nearest() -> None:
    """torchvision's own classes that are no image sets, and typing errors, would end in AttributeError."""
    for wrong, meant in (("cifar10", "CIFAR10"), ("Food-101", "Food101"), ("STL10:unlabelled", "STL10:unlabeled")):
        with pytest.raises(Refusal, match=f"did you mean 'torchvision/{meant}'"):
            open_splits(f"torchvision/{wrong}")


def test_the_default_folder_is_in_the_users_cache(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Data sets would be downloaded into whatever folder the command was started from."""
    monkeypatch.delenv("COMPRESS_SSL_HOME")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert cache_folder() == tmp_path / ".cache" / "compress-ssl"


def test_every_listed_set_is_a_class_of_torchvision() -> None:
    """A name in the help that torchvision does not know."""
    from torchvision import datasets

    assert all(hasattr(datasets, source.kind) for source in module._SOURCES.values())


def names_and_labels(images: Any) -> list[tuple[str, str]]:
    """File name and class name of every image."""
    return [(Path(id).name, images.classes[label]) for id, label in zip(images.ids, images.labels, strict=True)]


def test_flowers_train_on_train_and_validation(monkeypatch: pytest.MonkeyPatch) -> None:
    """Literature trains on 2040 flowers; half of them, or the 6149 of the test split, would give another number."""
    from torchvision.datasets import Flowers102

    monkeypatch.setattr(
        Flowers102, "_file_dict", {name: (file, None) for name, (file, _) in Flowers102._file_dict.items()}
    )
    root = cache_folder() / "torchvision" / "Flowers102" / "flowers-102"
    for number in range(1, 7):
        put(root / "jpg" / f"image_{number:05d}.jpg", picture(number))
    savemat(root / "imagelabels.mat", {"labels": np.array([[2, 1, 2, 1, 3, 3]])})
    savemat(root / "setid.mat", {"trnid": [[1, 5]], "valid": [[2, 6]], "tstid": [[3, 4]]})
    splits = open_splits("torchvision/Flowers102")
    assert splits.test is not None
    assert values(splits.train) == [1, 2, 5, 6]
    assert splits.train.labels.tolist() == [1, 0, 2, 2]
    assert values(splits.test) == [3, 4]
    assert splits.test.labels.tolist() == [1, 0]


def test_cars_are_read_with_their_training_and_test_annotations() -> None:
    """The test labels lie in another file than the training labels, and both count from one."""
    root = cache_folder() / "torchvision" / "StanfordCars" / "stanford_cars"
    kind = np.dtype([("class", object), ("fname", object)])
    for file, folder, cars in (
        ("devkit/cars_train_annos.mat", "cars_train", [(2, "00001.jpg"), (1, "00002.jpg"), (3, "00003.jpg")]),
        ("cars_test_annos_withlabels.mat", "cars_test", [(3, "00001.jpg"), (2, "00002.jpg")]),
    ):
        (root / file).parent.mkdir(parents=True, exist_ok=True)
        savemat(root / file, {"annotations": np.array([cars], dtype=kind)})
        for number in range(len(cars)):
            put(root / folder / f"{number + 1:05d}.jpg", picture(number + 10 * (folder == "cars_test")))
    savemat(
        root / "devkit" / "cars_meta.mat", {"class_names": np.array([["AM General", "Acura", "BMW"]], dtype=object)}
    )
    splits = open_splits("torchvision/StanfordCars")
    assert splits.test is not None
    assert names_and_labels(splits.train) == [("00001.jpg", "Acura"), ("00002.jpg", "AM General"), ("00003.jpg", "BMW")]
    assert names_and_labels(splits.test) == [("00001.jpg", "BMW"), ("00002.jpg", "Acura")]
    assert (values(splits.train), values(splits.test)) == ([0, 1, 2], [10, 11])


def test_pets_train_on_trainval() -> None:
    """A cat's class is in a list beside the pictures, and so is its split."""
    root = cache_folder() / "torchvision" / "OxfordIIITPet" / "oxford-iiit-pet"
    put(root / "annotations" / "trainval.txt", "Abyssinian_1 1 1 1\nbasset_hound_2 2 2 1\n")
    put(root / "annotations" / "test.txt", "Abyssinian_3 1 1 1\n")
    for value, name in enumerate(("Abyssinian_1", "basset_hound_2", "Abyssinian_3")):
        put(root / "images" / f"{name}.jpg", picture(value))
    splits = open_splits("torchvision/OxfordIIITPet")
    assert splits.test is not None
    assert names_and_labels(splits.train) == [
        ("Abyssinian_1.jpg", "Abyssinian"),
        ("basset_hound_2.jpg", "Basset Hound"),
    ]
    assert values(splits.test) == [2]
    assert splits.test.labels.tolist() == [0]


def test_aircraft_are_told_apart_by_variant_and_train_on_trainval() -> None:
    """Thirty manufacturers instead of a hundred variants would be an easier set under the same name."""
    data = cache_folder() / "torchvision" / "FGVCAircraft" / "fgvc-aircraft-2013b" / "data"
    put(data / "variants.txt", "707-320\nA300B4\n")
    for split, lines in {"train": "", "val": "", "trainval": "01 707-320\n02 A300B4\n", "test": "03 A300B4\n"}.items():
        put(data / f"images_variant_{split}.txt", lines)
    for value in (1, 2, 3):
        put(data / "images" / f"{value:02d}.jpg", picture(value))
    splits = open_splits("torchvision/FGVCAircraft")
    assert splits.test is not None
    assert names_and_labels(splits.train) == [("01.jpg", "707-320"), ("02.jpg", "A300B4")]
    assert names_and_labels(splits.test) == [("03.jpg", "A300B4")]
    assert values(splits.test) == [3]


@pytest.mark.parametrize(("name", "size"), [("Places365", "large"), ("Places365:256", "256")])
def test_places_train_on_train_standard_and_test_on_val(monkeypatch: pytest.MonkeyPatch, name: str, size: str) -> None:
    """The labels of its test split were never published: nothing could be scored there."""
    from torchvision.datasets import Places365

    monkeypatch.setattr(Places365, "_CATEGORIES_META", (Places365._CATEGORIES_META[0], None))
    lists = {split: (file, None) for split, (file, _) in Places365._FILE_LIST_META.items()}
    monkeypatch.setattr(Places365, "_FILE_LIST_META", lists)
    root = cache_folder() / "torchvision" / "Places365"
    put(root / "categories_places365.txt", "/a/airfield 0\n/b/bar 1\n")
    put(root / "places365_train_standard.txt", "/b/bar/00000001.jpg 1\n/a/airfield/00000001.jpg 0\n")
    put(root / "places365_val.txt", "Places365_val_00000001.jpg 1\n")
    with pytest.raises(Refusal, match=r"put categories_places365\.txt"):  # the lists alone
        open_splits(f"torchvision/{name}")
    put(root / f"data_{size}_standard" / "b" / "bar" / "00000001.jpg", picture(1))
    put(root / f"data_{size}_standard" / "a" / "airfield" / "00000001.jpg", picture(2))
    put(root / f"val_{size}" / "Places365_val_00000001.jpg", picture(3))
    splits = open_splits(f"torchvision/{name}")
    assert splits.test is not None
    assert splits.train.classes == ("/a/airfield", "/b/bar")
    assert (values(splits.train), splits.train.labels.tolist()) == ([2, 1], [0, 1])
    assert (values(splits.test), splits.test.labels.tolist()) == ([3], [1])
