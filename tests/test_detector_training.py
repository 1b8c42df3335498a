"""A detector on an encoder: what is trained, what is frozen, and that boxes stay on their objects."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from rich.console import Console
from torch import nn

from compress_ssl import datasets, detections
from compress_ssl.detector import Config as Shape
from compress_ssl.detector import Detector
from compress_ssl.detector_training import Config, Pictures, Sample, find, plan
from compress_ssl.encoder import open_encoder
from compress_ssl.refusal import Refusal
from compress_ssl.voc_layout import classes_of, halves, read_annotations

SMALL = Shape(channels=8, head=16, proposals=8, sizes=(40,), longest=48)
COLOURS = {"apple": (230, 30, 20), "leaf": (20, 200, 40), "sea": (30, 40, 230)}


@pytest.fixture(scope="module")
def pictures(make_voc, tmp_path_factory) -> Pictures:
    root = make_voc(tmp_path_factory.mktemp("data"), train=5, val=4, test=7)
    report = halves(root).report
    annotations = read_annotations(root, report)
    images = datasets.open_splits(str(root)).test
    assert images is not None
    return Pictures(images, list(annotations.values()), classes_of(annotations))


def detector(**options) -> Detector:
    torch.manual_seed(0)
    shape = Shape(**{**vars(SMALL), **options})
    return Detector(open_encoder("compress/resnet10_small_w8@random", weights="random"), shape, classes=3)


def sample(pictures: Pictures, position: int, mirrored: bool) -> Sample:
    found = pictures[position, mirrored]
    assert isinstance(found, Sample)
    return found


def test_boxes_lie_on_their_objects_also_in_the_mirror(pictures: Pictures) -> None:
    """A detector would learn to look beside the object, a pixel off or on the other side of the picture."""
    for position in range(7):
        straight, mirrored = (sample(pictures, position, flip) for flip in (False, True))
        assert torch.equal(straight.labels, mirrored.labels)
        for box, other, label in zip(straight.boxes.int(), mirrored.boxes.int(), straight.labels, strict=True):
            inside = straight.pixels[:, box[1] : box[3], box[0] : box[2]]
            assert torch.equal(mirrored.pixels[:, other[1] : other[3], other[0] : other[2]], inside.flip(2))
            colour = torch.tensor(COLOURS[sorted(COLOURS)[label - 1]])
            assert (inside.float().mean((1, 2)) - colour).abs().max() < 30


class Oracle(nn.Module):
    """Says the truth of picture after picture, moved by so many pixels."""

    def __init__(self, pictures: Pictures, moved: float):
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(1))
        self.pictures, self.moved, self.next = pictures, moved, 0

    def forward(self, images: list[torch.Tensor], proposals: None) -> list[dict[str, torch.Tensor]]:  # noqa: ARG002
        truth = [sample(self.pictures, self.next + place, False) for place in range(len(images))]
        self.next += len(images)
        return [{"boxes": one.boxes + self.moved, "labels": one.labels, "scores": torch.rand(len(one.labels))}
                for one in truth]  # fmt: skip


@pytest.mark.parametrize(("moved", "reached"), [(0, 1), (100, 0)])
def test_who_knows_the_truth_finds_all(pictures: Pictures, moved: float, reached: float) -> None:
    """Images, classes or edges that are numbered otherwise on the way out would make a good detector a bad one."""
    oracle: Detector = Oracle(pictures, moved)  # type: ignore[assignment]
    found = find(oracle, pictures, batch_size=3, workers=0, console=Console(quiet=True))
    scored = detections.score(found, pictures.objects, classes=classes_of(dict(enumerate(pictures.objects))))
    assert scored["map_11"] == pytest.approx(reached)
    assert scored["map_all"] == pytest.approx(reached)


def step(model: Detector, pictures: Pictures) -> None:
    optimizer = torch.optim.SGD([one for one in model.parameters() if one.requires_grad], lr=0.01)
    some = [sample(pictures, position, False) for position in (1, 3)]
    objects = [{"boxes": one.boxes, "labels": one.labels} for one in some]
    losses = model([one.pixels / 255 for one in some], objects)
    torch.stack(list(losses.values())).sum().backward()
    optimizer.step()


@pytest.mark.parametrize("how", ["frozen", "trained"])
def test_frozen_means_the_batch_norms_alone(pictures: Pictures, how: str) -> None:
    """Statistics of two pictures would replace those of a million, or the student itself would not be fine-tuned."""
    model = detector(batch_norm=how)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    step(model.train(), pictures)
    changed = {name for name, value in model.state_dict().items() if not torch.equal(before[name], value)}
    norms = {name for name in before if ".bn" in name or "downsample.1" in name}
    assert any("layer4.0.conv1.weight" in name for name in changed)
    assert any("conv1.weight" in name and "layer" not in name for name in changed)
    assert any("box_head" in name for name in changed)
    if how == "frozen":
        assert not changed & norms
    else:
        assert any("running_mean" in name for name in changed & norms)


def test_the_encoder_is_what_the_detector_stands_on() -> None:
    """It would be built anew, with other weights or another normalisation of its input."""
    encoder = open_encoder("compress/resnet10_small_w8@random", weights="random")
    model = Detector(encoder, SMALL, classes=3)
    assert {id(one) for one in encoder.backbone.parameters()} <= {id(one) for one in model.parameters()}
    transform = model.model.transform
    assert tuple(transform.image_mean) == encoder.preprocessing.mean
    assert tuple(transform.image_std) == encoder.preprocessing.std
    assert model.model.rpn.anchor_generator.sizes == ((32,), (64,), (128,))  # strides 4 and 8, and the pooled level


def test_an_epoch_shows_every_picture_once_and_another_epoch_another_order() -> None:
    """Some pictures would never be learnt from."""
    config = Config(batch_size=4, flip=0.5)
    first, again, second = (plan(11, config, seed=3, epoch=epoch) for epoch in (0, 0, 1))
    assert [len(batch) for batch in first] == [4, 4, 3]
    assert sorted(position for batch in first for position, _ in batch) == list(range(11))
    assert first == again != second
    assert {mirrored for batch in first for _, mirrored in batch} == {False, True}
    assert not any(mirrored for batch in plan(11, Config(flip=0.0), seed=3, epoch=0) for _, mirrored in batch)


def test_a_box_outside_its_picture_is_told(pictures: Pictures) -> None:
    """The annotation belongs to another picture, or to one of another size."""
    objects = [[one._replace(box=(0, 0, 49, 5)) for one in some] for some in pictures.objects]
    told = Pictures(pictures.images, objects, tuple(pictures.numbers))[0, False]
    assert isinstance(told, Refusal)
    assert "expected the boxes of JPEGImages/test_000.jpg within its 48 x 40 pixels" in str(told)


# fmt: off
UNUSABLE = [
    (lambda: Config(epochs=0), "--detection.epochs and --detection.batch-size expected at least 1"),
    (lambda: Config(flip=2), "--detection.flip expected a probability"),
    (lambda: Shape(sizes=()), "--detector.sizes expected pixels"),
    (lambda: Shape(sizes=(2000,)), "--detector.sizes expected pixels"),
    (lambda: Shape(head=0), "--detector.channels, head and proposals expected at least 1"),
]
# fmt: on


@pytest.mark.parametrize(("make", "told"), UNUSABLE)
def test_options_that_cannot_be_are_refused(make, told: str) -> None:
    """An error from inside of torchvision would name none of our options."""
    with pytest.raises(Refusal) as refusal:
        make()
    assert told in str(refusal.value)


def test_the_defaults_are_those_that_the_docstring_names() -> None:
    """Numbers would be taken for MoCo's schedule that are not."""
    config = Config()
    assert config.optimizer.learning_rate / config.batch_size == pytest.approx(0.02 / 16)
    assert np.multiply(config.schedule.milestones, 24000) == pytest.approx([18000, 22000])
    assert config.schedule.factor == 0.1
    assert (Shape().sizes[0], Shape().sizes[-1], Shape().longest) == (480, 800, 1333)
