"""Which pixels come in which step: always the same, whoever reads them."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import islice
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from compress_ssl.datasets import ImageSet, open_splits
from compress_ssl.loader import Batch, TrainLoader, evaluation_batches
from compress_ssl.picture import UnusableImage
from compress_ssl.refusal import Refusal
from compress_ssl.transforms import Preprocessing, RandomView, RecordedViews, Sample, TrainView, cut, draw_crop

pytestmark = pytest.mark.filterwarnings("error")


class Pictures:
    """N small pictures of odd sizes; some cannot be used, some not even read."""

    name = "pictures:train"
    classes: tuple[str, ...] = ()

    def __init__(self, count: int = 23, *, unusable: tuple[int, ...] = (), unreadable: tuple[int, ...] = ()) -> None:
        self.ids = tuple(f"{number}.png" for number in range(count))
        self.labels = np.full(count, -1)
        self.unusable, self.unreadable = unusable, unreadable

    def __len__(self) -> int:
        return len(self.ids)

    def read(self, position: int) -> np.ndarray:
        if position in self.unreadable:
            raise OSError(5, "Input/output error")
        if position in self.unusable:
            raise UnusableImage("broken", "not an image at all")
        shape = 9 + position % 4, 11 + position % 3, 3
        return np.random.default_rng(position).integers(0, 256, shape, dtype=np.uint8)

    def fingerprint(self) -> str:
        return "pictures"


def view(picture: np.ndarray, sample: Sample) -> Tensor:
    return cut(picture, draw_crop(*picture.shape[:2], TrainView(), sample.random), 5)


def make(
    images: Pictures | None = None, *, batch_size: int = 6, seed: int = 3, workers: int = 0, **options
) -> TrainLoader:
    return TrainLoader(images or Pictures(), view, batch_size=batch_size, seed=seed, workers=workers, **options)


def take(loader: TrainLoader, count: int, *, start: int = 0) -> list[Batch]:
    return list(islice(loader.batches(start), count))


def assert_same(ones: list[Batch], others: list[Batch]) -> None:
    assert len(ones) == len(others)
    for one, other in zip(ones, others, strict=True):
        assert torch.equal(one.index, other.index)
        assert torch.equal(one.images, other.images)
        assert one.skipped == other.skipped


@pytest.mark.parametrize("workers", [1, 2])
def test_the_number_of_workers_changes_no_pixel(workers: int) -> None:
    """The same seed would train another student on another machine."""
    images = Pictures(unusable=(4, 5))
    assert_same(take(make(images, workers=workers), 8), take(make(images), 8))


@pytest.mark.parametrize("start", [1, 2, 3, 7])
def test_starting_at_a_step_is_skipping_all_before(start: int) -> None:
    """A resumed run would see some images twice and others never."""
    assert_same(take(make(), 3, start=start), take(make(), start + 3)[start:])


def test_an_image_keeps_its_views_wherever_it_stands_in_its_set() -> None:
    """One photograph added to a folder would change what is seen of all others, stored views would be of no use."""
    images, turned = Pictures(), Pictures()
    turned.ids, turned.read = images.ids[::-1], lambda position: images.read(22 - position)  # type: ignore[method-assign]

    def views(images: Pictures) -> dict[str, Tensor]:
        batch = take(make(images, batch_size=23), 1, start=2)[0]
        return {images.ids[place]: view for place, view in zip(batch.index.tolist(), batch.images, strict=True)}

    first, second = views(images), views(turned)
    assert first.keys() == second.keys()
    assert all(torch.equal(first[id], second[id]) for id in first)


def test_an_epoch_has_every_image_at_most_once_in_an_order_of_its_own() -> None:
    """Some images would never be learned from, or every epoch would repeat the same batches."""
    loader = make()
    assert loader.steps_per_epoch == 3
    epochs = [torch.cat([batch.index for batch in take(loader, 3, start=3 * epoch)]) for epoch in range(7)]
    for epoch in epochs:
        assert epoch.unique().numel() == 18
    assert not torch.equal(epochs[0], epochs[1])
    assert torch.cat(epochs).unique().numel() == 23


def test_an_image_has_another_view_in_every_epoch_and_under_every_seed() -> None:
    """There would be no augmentation after the first epoch."""

    def views(seed: int, epoch: int) -> dict[int, Tensor]:
        batches = take(make(seed=seed, batch_size=23), 1, start=epoch)
        return dict(zip(batches[0].index.tolist(), batches[0].images, strict=True))

    first, second, other = views(3, 0), views(3, 1), views(4, 0)
    assert all(not torch.equal(first[place], second[place]) for place in first)
    assert all(not torch.equal(first[place], other[place]) for place in first)


@pytest.mark.parametrize("ranks", [2, 3])
def test_processes_share_out_the_batch_of_one_in_order(ranks: int) -> None:
    """Two processes would train another student than one."""
    alone = take(make(), 5)
    shares = [take(make(rank=rank, ranks=ranks), 5) for rank in range(ranks)]
    for step, whole in enumerate(alone):
        parts = [share[step] for share in shares]
        assert torch.equal(torch.cat([part.index for part in parts]), whole.index)
        assert torch.equal(torch.cat([part.images for part in parts]), whole.images)
        assert {len(part.index) for part in parts} == {6 // ranks}


@pytest.mark.parametrize("workers", [0, 1])
def test_a_batch_comes_in_channels_last(workers: int) -> None:
    """Every step would begin by turning the whole batch inside out."""
    batch = take(make(workers=workers), 1)[0]
    assert batch.images.is_contiguous(memory_format=torch.channels_last)
    assert batch.to(torch.device("cpu")).images.data_ptr() == batch.images.data_ptr()


def test_views_that_lie_otherwise_make_a_batch_too() -> None:
    """A view written outside of the package would come out with its pixels mixed."""

    def planes(picture: np.ndarray, sample: Sample) -> Tensor:
        return view(picture, sample).contiguous()

    loader = TrainLoader(Pictures(), planes, batch_size=6, seed=3, workers=0)
    assert_same(take(loader, 2), take(make(), 2))


@pytest.mark.parametrize("workers", [0, 2])
def test_photographs_decoded_around_their_crop_have_the_pixels_of_those_decoded_whole(
    tmp_path: Path, workers: int
) -> None:
    """A run would see other pixels than the same run on a machine without the fast decoder; a cut off file a crop."""
    random = np.random.default_rng(0)
    for number in range(11):
        pixels = random.integers(0, 256, (40 + number, 61 - number, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(tmp_path / f"{number:02d}.jpg", restart_marker_blocks=1 + number % 3)
    cut_off = tmp_path / "04.jpg"
    cut_off.write_bytes(cut_off.read_bytes()[:-200])
    images = open_splits(str(tmp_path)).train
    crops = RandomView(TrainView(), 23)  # more than a third of the pictures: none is reduced
    ours = take(TrainLoader(images, crops, batch_size=5, seed=1, workers=workers), 4)
    whole = take(TrainLoader(Whole(images), crops, batch_size=5, seed=1, workers=0), 4)
    assert_same(ours, whole)
    skipped = {skip[:2] for batch in ours for skip in batch.skipped}
    assert skipped == {("04.jpg", "truncated")}
    batches = list(evaluation_batches(images, view, batch_size=3, workers=workers))
    assert [skip.id for batch in batches for skip in batch.skipped] == ["04.jpg"]


class Whole:
    """A set that only knows how to read, as one written outside of the package may."""

    def __init__(self, images: ImageSet) -> None:
        self.name, self.ids, self.labels, self.classes = images.name, images.ids, images.labels, images.classes
        self.read, self.fingerprint = images.read, images.fingerprint

    def __len__(self) -> int:
        return len(self.ids)


def test_reading_leaves_the_global_generators_alone() -> None:
    """A resumed run opens its reader once more: dropout would differ from the run that was never killed."""
    before = torch.get_rng_state(), np.random.get_state()[1].copy()  # noqa: NPY002
    take(make(), 2)
    list(evaluation_batches(Pictures(), view, batch_size=4, workers=0))
    assert torch.equal(before[0], torch.get_rng_state())
    np.testing.assert_array_equal(before[1], np.random.get_state()[1])  # noqa: NPY002


def test_an_unusable_image_is_reported_and_the_next_usable_one_takes_its_place() -> None:
    """One broken file in a million would end the run, or be trained on as a black picture."""
    images = Pictures(unusable=(0, 4, 5, 22))
    whole, good = take(make(images, batch_size=23), 1)[0], take(make(batch_size=23), 1)[0]
    stand_in = {0: 1, 4: 6, 5: 6, 22: 1}
    assert whole.index.tolist() == [stand_in.get(place, place) for place in good.index.tolist()]
    for place, index in enumerate(whole.index.tolist()):
        pixels = view(images.read(index), Sample(3, 0, index, images.ids[index]))
        assert torch.equal(whole.images[place], pixels)
    assert {skip.id for skip in whole.skipped} == {"0.png", "4.png", "5.png", "22.png"}
    assert {(skip.kind, skip.detail) for skip in whole.skipped} == {("broken", "not an image at all")}


@pytest.mark.parametrize("workers", [0, 1])
def test_a_set_without_one_usable_image_is_refused(workers: int) -> None:
    """The loader would go round in circles for ever."""
    with pytest.raises(Refusal, match=r"expected usable images in pictures:train, got none \(broken"):
        take(make(Pictures(5, unusable=tuple(range(5))), batch_size=2, workers=workers), 1)


@pytest.mark.parametrize("workers", [0, 1])
def test_a_disk_that_cannot_be_read_is_refused_with_the_image_s_name(workers: int) -> None:
    """An unplugged disk would be a stack trace out of a worker, or a million skipped images."""
    images = Pictures(unreadable=(7,))
    with pytest.raises(Refusal, match=r"7\.png could not be read \(.*Input/output error\): check the disk"):
        take(make(images, batch_size=23, workers=workers), 1)
    with pytest.raises(Refusal, match=r"7\.png could not be read"):
        list(evaluation_batches(images, view, batch_size=4, workers=workers))


@pytest.mark.parametrize("workers", [0, 2])
def test_evaluation_has_every_usable_image_once_in_order(workers: int) -> None:
    """Rows would stand beside the labels of other images."""
    images = Pictures(unusable=(0, 9, 10, 11, 22))
    batches = list(evaluation_batches(images, view, batch_size=3, workers=workers, seed=5, epoch=2))
    index = torch.cat([batch.index for batch in batches])
    assert index.tolist() == [place for place in range(23) if place not in images.unusable]
    assert [skip.id for batch in batches for skip in batch.skipped] == [f"{place}.png" for place in images.unusable]
    assert len(batches[3].index) == 0  # 9, 10 and 11 are a batch: nothing in it, and nothing breaks
    for batch in batches:
        for place, pixels in zip(batch.index.tolist(), batch.images, strict=True):
            assert torch.equal(pixels, view(images.read(place), Sample(5, 2, place, images.ids[place])))


def test_evaluation_of_some_images_has_these_in_the_order_asked_for() -> None:
    """A resumed table of embeddings would be filled with the wrong rows."""
    batches = evaluation_batches(Pictures(), view, batch_size=2, workers=0, positions=np.array([9, 2, 17]))
    assert [batch.index.tolist() for batch in batches] == [[9, 2], [17]]


@pytest.mark.parametrize("count", [1, 2, 3, 6, 9])
def test_the_parts_of_a_batch_are_the_batch(count: int) -> None:
    """Accumulation would forget images, or step before the last part."""
    whole = take(make(), 1)[0]
    parts = list(whole.parts(count))
    assert torch.equal(torch.cat([part.images for part, _ in parts]), whole.images)
    assert torch.equal(torch.cat([part.index for part, _ in parts]), whole.index)
    assert [last for _, last in parts] == [False] * (len(parts) - 1) + [True]


@pytest.mark.parametrize("workers", [0, 1])
def test_a_view_may_make_several_pictures_of_one(workers: int) -> None:
    """SimCLR's two views would need a loader of their own."""
    loader = TrainLoader(Pictures(), two_views, batch_size=4, seed=0, workers=workers)
    batch = take(loader, 1)[0].to(torch.device("cpu"))
    assert batch.images.shape == (4, 2, 3, 5, 5)
    assert not torch.equal(batch.images[:, 0], batch.images[:, 1])


@pytest.mark.parametrize("workers", [0, 1])
def test_a_batch_knows_its_epoch_and_where_its_views_were_cut(workers: int) -> None:
    """The row of one view would be stored, or looked up, beside the crop of another."""
    images, recorded = Pictures(unusable=(4,)), RecordedViews(TrainView(), Preprocessing(size=5), 2)
    loader = TrainLoader(images, recorded, batch_size=7, seed=3, workers=workers)
    batches = take(loader, 5)
    assert [batch.epoch for batch in batches] == [0, 0, 0, 1, 1]
    for batch in batches:
        assert batch.crops is not None
        assert batch.crops.shape == (7, 3, 5)
        assert batch.crops.dtype == torch.int32
        for place, views, crops in zip(batch.index.tolist(), batch.images, batch.crops, strict=True):
            expected, where = recorded(images.read(place), Sample(3, batch.epoch, place, images.ids[place]))
            assert torch.equal(views, expected)
            np.testing.assert_array_equal(crops.numpy(), where)
        parts = [part for part, _ in batch.to(torch.device("cpu")).parts(3)]
        assert torch.equal(torch.cat([part.crops for part in parts if part.crops is not None]), batch.crops)
        assert {part.epoch for part in parts} == {batch.epoch}
        assert batch.images.flatten(0, 1).is_contiguous(memory_format=torch.channels_last)
    assert take(make(), 1)[0].crops is None
    evaluated = list(evaluation_batches(images, recorded, batch_size=9, workers=workers, epoch=6))
    assert [batch.epoch for batch in evaluated] == [6, 6, 6]


@pytest.mark.parametrize("workers", [0, 2])
def test_the_images_of_a_batch_are_announced_before_they_are_read(workers: int) -> None:
    """The rows of a stored teacher would be waited for, one seek after the other."""
    heard: list[list[tuple[int, int]]] = []
    loader = make(workers=workers, announce=heard.append)
    batches = loader.batches(2)
    for step in range(2, 6):
        batch = next(batches)
        assert [(batch.epoch, place) for place in batch.index.tolist()] == heard[step - 2] == loader.keys(step)
    assert len(heard) == 4 if workers == 0 else len(heard) > 8, "workers are some batches ahead"


@pytest.mark.parametrize("workers", [0, 1])
def test_what_a_view_refuses_reaches_the_user_as_one_sentence(workers: int) -> None:
    """A stored crop that does not fit would be a traceback out of a process that nobody knows."""
    loader = TrainLoader(Pictures(), fussy, batch_size=4, seed=0, workers=workers)
    with pytest.raises(Refusal, match=r"^expected another picture than \d+\.png, got this one: change it$"):
        take(loader, 1)
    with pytest.raises(Refusal, match=r"^expected another picture than 0\.png, got this one: change it$"):
        list(evaluation_batches(Pictures(), fussy, batch_size=4, workers=workers))


def fussy(_: np.ndarray, sample: Sample) -> Tensor:
    raise Refusal(f"expected another picture than {sample.id}, got this one: change it")


def two_views(picture: np.ndarray, sample: Sample) -> Tensor:
    return torch.stack([view(picture, sample), view(picture, sample._replace(epoch=9))])


def refusals() -> Iterator[tuple[int, dict[str, int], str]]:
    yield 1, {"batch_size": 2}, r"expected at least 2 training images in pictures:train, got 1: add images"
    yield 23, {"batch_size": 1}, r"--batch-size expected at least 2 \(.*\), got 1: raise it"
    yield 23, {"batch_size": 24}, r"number of training images \(23 in pictures:train\), got 24: lower it"
    yield 23, {"batch_size": 7, "ranks": 2}, r"multiple of the 2 processes, got 7"
    yield 23, {"batch_size": 3, "ranks": 3}, r"at least 2 for each of the 3 processes, got 3: raise it"


@pytest.mark.parametrize(("count", "options", "words"), list(refusals()))
def test_a_batch_that_cannot_be_trained_on_is_refused(count: int, options: dict[str, int], words: str) -> None:
    """Batch norm would stop at the first step with a stack trace, or an epoch would have no step at all."""
    with pytest.raises(Refusal, match=words):
        make(Pictures(count), **options)  # type: ignore[arg-type]
