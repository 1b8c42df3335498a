"""Supervised training against cross-entropy in loops over floats, and what it asks of the labels."""

from __future__ import annotations

import math
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from compress_ssl import colour, datasets, pretrain, pretraining
from compress_ssl.encoder import open_encoder
from compress_ssl.hardware import HardwareConfig
from compress_ssl.loader import Batch
from compress_ssl.optim import OptimizerConfig
from compress_ssl.pretraining import supervised
from compress_ssl.refusal import Refusal
from compress_ssl.run_folder import RunFolder
from compress_ssl.training import TrainingConfig
from compress_ssl.transforms import TrainView

ALONE: Any = SimpleNamespace(device=torch.device("cpu"), global_rank=0, world_size=1)


def make(config: supervised.Config, labels: torch.Tensor, classes: int) -> supervised.Method:
    encoder = open_encoder("compress/resnet10_small_w8", weights="random", size=8)
    learner = supervised.make_learner(config, encoder, classes=classes)
    return supervised.Method(config, learner, labels=labels, fabric=ALONE)


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_the_loss_is_smoothed_cross_entropy_with_the_images_own_labels(smoothing: float) -> None:
    """Labels by their place in the batch, or smoothing that spares the right class, would train something else."""
    labels, index = torch.tensor([4, 0, 2, 2, 1, 3, 0]), torch.tensor([5, 0, 3])
    method = make(supervised.Config(label_smoothing=smoothing), labels, 5)
    scores = torch.randn(3, 5, generator=torch.Generator().manual_seed(1))
    total = 0.0
    for row, label in zip(scores.tolist(), (3, 4, 2), strict=True):
        whole = math.log(math.fsum(map(math.exp, row)))
        target = [(1 - smoothing) * (place == label) + smoothing / 5 for place in range(5)]
        total += math.fsum(share * (whole - score) for share, score in zip(target, row, strict=True))
    assert float(method.loss(scores, None, index, 0.5)) == pytest.approx(total / 3, rel=1e-5)


def test_colours_stay_as_they_are_unless_asked_for() -> None:
    """The usual training is by crop and flip alone; an option would be ignored."""
    images = torch.randint(0, 256, (4, 1, 3, 8, 8), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    batch = Batch(images, torch.arange(4), [])
    plain = make(supervised.Config(), torch.zeros(4, dtype=torch.int64), 2)
    assert torch.equal(plain.views(batch, torch.Generator()).query[0], images[:, 0])
    loud = make(supervised.Config(colour=colour.Config()), torch.zeros(4, dtype=torch.int64), 2)
    assert not torch.equal(loud.views(batch, torch.Generator()).query[0], images[:, 0])


def test_digits_are_learnt(tmp_path: Path) -> None:
    """Labels of other images, or a classifier that is not trained, would leave the loss at log 10."""
    config = pretrain.Config(
        data="digits",
        out=tmp_path / "run",
        encoder="compress/resnet10_small_w8",
        size=8,
        method=supervised.Config(view=TrainView(scale=(0.8, 1.0), flip=0)),
        training=TrainingConfig(epochs=1, batch_size=16, log_every_steps=20, validate_every_epochs=1),
        optimizer=OptimizerConfig(name="adamw", learning_rate=1e-2),
        hardware=HardwareConfig(accelerator="cpu", workers=0, precision="32"),
        held_out=140,
        gallery=60,
    )
    folder = RunFolder(pretrain.run(config))
    losses = [line["loss"] for line in folder.metrics() if line["kind"] == "train"]
    assert losses[0] > 1.5
    assert losses[-1] < 0.75 * losses[0]


class Labelled:
    """The digits with other labels."""

    def __init__(self, labels: np.ndarray):
        self._digits, self.labels = datasets.open_splits("digits").train, labels

    def __getattr__(self, name: str) -> Any:
        return getattr(self._digits, name)

    def __len__(self) -> int:
        return len(self._digits)


def test_images_without_labels_or_of_one_class_are_refused() -> None:
    """A class of its own would be made of the images that have none, and the run would look like any other."""
    digits: Any = datasets.open_splits("digits").train
    assert pretraining.classes_of(supervised, digits) == 10
    some = digits.labels.copy()
    some[[7, 9]] = -1
    with pytest.raises(Refusal, match=rf"got none for 2 of {len(digits)}, {digits.ids[7]} the first"):
        pretraining.classes_of(supervised, Labelled(some))  # type: ignore[arg-type]
    with pytest.raises(Refusal, match="at least two classes"):
        pretraining.classes_of(supervised, Labelled(np.zeros_like(some)))  # type: ignore[arg-type]
    assert pretraining.classes_of(pretraining.find("simclr"), Labelled(some)) is None  # type: ignore[arg-type]
