"""What every file in datasets/ promises. A file enters by existing, with `example(folder) -> name` in its own test."""

from __future__ import annotations

import importlib
import importlib.util
import pickle
import pkgutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

import compress_ssl.datasets
from compress_ssl.datasets import ImageSet, open_image, open_splits, subset
from compress_ssl.refusal import Refusal

FAMILY = sorted(found.name for found in pkgutil.iter_modules(compress_ssl.datasets.__path__))


def example_of(module: str) -> Callable[[Path], str]:
    """`example` of tests/datasets/test_MODULE.py: makes a small, labelled data set in a folder and returns its name."""
    path = Path(__file__).with_name(f"test_{module}.py")
    assert path.exists(), f"datasets/{module}.py needs a test beside this one, with example(folder) -> name"
    spec = importlib.util.spec_from_file_location(f"example_of_{module}", path)
    assert spec is not None
    assert spec.loader is not None
    loaded = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(loaded)
    return loaded.example


@pytest.fixture(params=FAMILY)
def name(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    return example_of(request.param)(tmp_path)


def splits_of(name: str) -> list[ImageSet]:
    splits = open_splits(name)
    return [splits.train] if splits.test is None else [splits.train, splits.test]


def test_exactly_one_file_claims_a_name(name: str) -> None:
    """Which reader a user gets would depend on the alphabet."""
    modules = [importlib.import_module(f"compress_ssl.datasets.{module}") for module in FAMILY]
    assert sum(module.claims(name) for module in modules) == 1


def test_a_split_is_an_image_set(name: str) -> None:
    """The loader, the embeddings and the page would each need to know every kind of data."""
    for images in splits_of(name):
        assert isinstance(images, ImageSet)
        assert len(images) == len(images.ids) == len(images.labels) > 0
        assert images.labels.dtype == np.int64
        assert images.labels.min() >= -1
        assert images.labels.max() < len(images.classes)
        assert isinstance(images.classes, tuple)
        assert name in images.name


def test_every_image_is_rgb_bytes(name: str) -> None:
    """A batch could not be stacked, or would be normalised twice."""
    for images in splits_of(name):
        for position in range(len(images))[:20]:
            image = images.read(position)
            assert image.ndim == 3
            assert image.shape[2] == 3
            assert image.dtype == np.uint8
            assert image.flags.c_contiguous
            assert image.flags.writeable


def test_an_image_opened_for_later_is_the_image(name: str) -> None:
    """Training, which decodes as little as it can, would see other pictures than everything else."""
    for images in splits_of(name):
        for position in range(len(images))[:20]:
            opened, image = open_image(images, position), images.read(position)
            assert opened.shape == image.shape
            np.testing.assert_array_equal(np.asarray(opened), image)
        part = subset(images, np.array([len(images) - 1]))
        np.testing.assert_array_equal(np.asarray(open_image(part, 0)), images.read(len(images) - 1))


def test_ids_are_unique_over_both_splits(name: str) -> None:
    """Stored embeddings of a training image would be handed out for a test image."""
    splits = splits_of(name)
    ids = [name for images in splits for name in images.ids]
    assert len(set(ids)) == len(ids)
    assert all(isinstance(name, str) and name.encode("utf-8") for name in ids)


def test_opened_again_it_is_the_same(name: str) -> None:
    """A cache would be thrown away, or worse, used for other images."""
    for first, second in zip(splits_of(name), splits_of(name), strict=True):
        assert list(first.ids) == list(second.ids)
        np.testing.assert_array_equal(first.labels, second.labels)
        assert first.fingerprint() == second.fingerprint()
        assert len(first.fingerprint()) == 64
        np.testing.assert_array_equal(first.read(0), second.read(0))


def test_there_is_evidence_of_every_image(name: str) -> None:
    """A stored embedding would be handed out for a picture that has been exchanged since."""
    for images, again in zip(splits_of(name), splits_of(name), strict=True):
        evidence = images.evidence
        assert evidence.dtype == np.int64
        assert evidence.shape == (len(images),)
        assert evidence.min() > 0, "all of them can be read"
        np.testing.assert_array_equal(again.evidence, evidence)
        np.testing.assert_array_equal(pickle.loads(pickle.dumps(images)).evidence, evidence)
        part = np.array([len(images) - 1, 0])
        np.testing.assert_array_equal(subset(images, part).evidence, evidence[part])


def test_splits_have_different_fingerprints(name: str) -> None:
    """Embeddings of the training images would pass for those of the test images."""
    prints = [images.fingerprint() for images in splits_of(name)]
    assert len(set(prints)) == len(prints)


def test_it_travels_to_a_worker_process(name: str) -> None:
    """Loading with workers would fail on machines that do not fork, or send all pixels along."""
    for images in splits_of(name):
        before = images.read(0)  # a file or a memory map is open now
        again = pickle.loads(pickle.dumps(images))
        np.testing.assert_array_equal(again.read(0), before)
        assert again.fingerprint() == images.fingerprint()


def test_a_position_outside_is_an_index_error(name: str) -> None:
    """An off-by-one in a loop would read some other image without a word."""
    for images in splits_of(name):
        with pytest.raises(IndexError):
            images.read(len(images))


def test_known_names_are_claimed_by_their_file() -> None:
    """The refusal would suggest a name that nothing answers to."""
    for module in FAMILY:
        loaded = importlib.import_module(f"compress_ssl.datasets.{module}")
        assert all(loaded.claims(name) for name in getattr(loaded, "NAMES", ()))


@pytest.mark.parametrize(
    ("wrong", "meant"),
    [("digit", "digits"), ("torchvison/CIFAR10", "torchvision/CIFAR10"), ("torchvision/STL", "STL10")],
)
def test_an_unknown_name_is_answered_with_the_nearest(wrong: str, meant: str) -> None:
    """A typing error would cost a search through the documentation."""
    with pytest.raises(Refusal, match=meant):
        open_splits(wrong)


@pytest.mark.parametrize("wrong", ["no/such/folder", "nowhere.parquet", "no_package.no_module", "", "hf/cifar10"])
def test_a_name_of_nothing_says_what_is_accepted(wrong: str) -> None:
    """A user who mistypes a path would get a stack trace."""
    with pytest.raises(Refusal, match=r"a folder of images, a \.parquet file"):
        open_splits(wrong)


def test_a_single_file_that_is_no_data_set_is_refused(tmp_path: Path) -> None:
    """'no such file' about a file that is plainly there."""
    (tmp_path / "photo.jpg").write_bytes(b"x")
    with pytest.raises(Refusal, match=r"\(a file\)"):
        open_splits(str(tmp_path / "photo.jpg"))
