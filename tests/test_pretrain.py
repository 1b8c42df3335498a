"""Pretraining makes a teacher from pictures alone. Every file of pretraining/ enters the contract by existing."""

from __future__ import annotations

import dataclasses
import json
import math
import pickle
import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from compress_ssl import checkpoint, datasets, pretrain, pretraining
from compress_ssl.datasets import Splits
from compress_ssl.encoder import open_encoder
from compress_ssl.hardware import HardwareConfig
from compress_ssl.optim import OptimizerConfig
from compress_ssl.pretrain import Config
from compress_ssl.pretraining import simclr
from compress_ssl.refusal import Refusal
from compress_ssl.training import TrainingConfig
from compress_ssl.transforms import Sample

EPOCH = 80  # steps


class Killed(BaseException):
    pass


@pytest.fixture(params=pretraining.names())
def method(request: pytest.FixtureRequest) -> ModuleType:
    return pretraining.find(request.param)


# ---- the contract ----


def test_a_file_is_a_method(method: ModuleType) -> None:
    """`--method NAME` needs a Config of plain fields with a default each, which knows its own name."""
    config = method.Config()
    assert config.name == method.__name__.rpartition(".")[2]
    assert dataclasses.is_dataclass(config)
    assert type(config).__dataclass_params__.frozen
    assert all(field.kw_only for field in dataclasses.fields(config))


@pytest.mark.parametrize("shape", [(9, 23), (23, 9), (5, 5), (1, 1), (64, 64)])
def test_views_are_cut_alike_for_the_same_sample(method: ModuleType, shape: tuple[int, int]) -> None:
    """A resumed run, or one with more workers, would see other pixels; loader workers must be able to pickle it."""
    view = pickle.loads(pickle.dumps(method.make_view(method.Config(), 7)))
    picture = np.random.default_rng(0).integers(0, 256, (*shape, 3), dtype=np.uint8)
    first, again, other = (view(picture, Sample(0, epoch, 3, "a.png")) for epoch in (1, 1, 2))
    assert first.dtype == torch.uint8
    assert first.shape[1:] == (3, 7, 7)
    assert len(first) >= 2
    assert torch.equal(first, again)
    if shape == (64, 64):
        assert not torch.equal(first, other)
        assert not torch.equal(first[0], first[1])


def test_processes_change_views_as_one_would(method: ModuleType) -> None:
    """Two processes drawing the same numbers would halve the variety of views."""
    made = method.Method(method.Config(), width=5)
    views = torch.randint(0, 256, (6, 2, 3, 7, 7), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    before = views.clone()

    def change(part: Tensor, rank: int, ranks: int) -> Tensor:
        return made.change(part, torch.Generator().manual_seed(3), rank=rank, ranks=ranks)

    whole = change(views, 0, 1)
    parts = torch.cat([change(views[:3], 0, 2), change(views[3:], 1, 2)])
    assert whole.dtype == torch.uint8
    assert whole.shape == views.shape
    assert torch.equal(whole, parts)
    assert torch.equal(views, before)


def test_a_loss_is_finite_has_a_gradient_and_falls_as_views_agree(method: ModuleType) -> None:
    """A loss with its views in another order than the encoder's rows would still fall, and teach nothing."""
    torch.manual_seed(0)
    made = method.Method(method.Config(), width=5)
    first = torch.randn(7, 5)
    rows = torch.cat([first, first + 0.01 * torch.randn(7, 5)]).requires_grad_()
    mixed = torch.cat([first, first.roll(1, 0)])
    near, far = made.loss(made(rows)), made.loss(made(mixed))
    assert near.shape == ()
    assert torch.isfinite(near)
    assert near < far
    near.backward()
    assert rows.grad is not None
    assert rows.grad.abs().sum() > 0


def test_simclr_is_the_papers_loss() -> None:
    """Chen et al., Eq. 1, written out: each view against its partner, all other 2B - 2 views as negatives."""
    torch.manual_seed(0)
    temperature = 0.3
    made = simclr.Method(simclr.Config(temperature=temperature), width=5)
    rows = torch.randn(2 * 5, 3)
    unit = [[float(x) / math.hypot(*row) for x in row] for row in rows.tolist()]
    total = 0.0
    for i, row in enumerate(unit):
        similar = [math.exp(sum(a * b for a, b in zip(row, other, strict=True)) / temperature) for other in unit]
        total -= math.log(similar[(i + 5) % 10] / (sum(similar) - similar[i]))
    assert float(made.loss(rows)) == pytest.approx(total / 10, abs=1e-5)


def test_an_unknown_method_is_refused_with_the_nearest() -> None:
    """A KeyError does not say which methods there are."""
    with pytest.raises(Refusal, match="did you mean 'simclr'"):
        pretraining.find("simcrl")
    with pytest.raises(Refusal, match="can be imported"):
        pretraining.find("nowhere.to_be_found")


# ---- a run ----


@pytest.fixture
def config(tmp_path: Path) -> Config:
    """9 steps of 16 digits."""
    return Config(
        data="digits",
        out=tmp_path / "run",
        encoder="compress/resnet10_small_w8",
        size=8,
        method=simclr.Config(hidden_width=11, projection_width=7),
        training=TrainingConfig(
            epochs=9 / EPOCH,
            batch_size=16,
            validate_every_epochs=4 / EPOCH,
            save_every_minutes=0,
            log_every_steps=2,
            seed=3,
        ),
        optimizer=OptimizerConfig(name="adamw", learning_rate=1e-2),
        hardware=HardwareConfig(accelerator="cpu", workers=0, precision="32"),
        held_out=140,
        gallery=60,
    )


def lines(run: Path, kind: str) -> list[dict[str, Any]]:
    found = map(json.loads, (run / "metrics.jsonl").read_text().splitlines())
    return [
        {name: value for name, value in line.items() if not re.match("images_per_second|step_seconds|share_", name)}
        for line in found
        if line["kind"] == kind
    ]


def state(run: Path) -> dict[str, Tensor]:
    return torch.load(run / "checkpoints" / "last.ckpt", weights_only=True)["parts"]["learner"]


def assert_same_run(first: Path, second: Path) -> None:
    for kind in ("train", "validation"):
        assert lines(first, kind) == lines(second, kind)
    ours, theirs = state(first), state(second)
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)


def test_a_pretrained_run_is_a_teacher(config: Config) -> None:
    """What `pretrain` writes must open wherever an encoder is asked for, with the weights of the last step."""
    pretrain.run(config)
    encoder = open_encoder(str(config.out), weights="pretrained")
    last = state(config.out)
    assert encoder.preprocessing.size == 8
    for name, value in encoder.backbone.state_dict().items():
        assert torch.equal(value, last[f"encoder.backbone.{name}"].to(value.dtype)), name
    assert [line["step"] for line in lines(config.out, "validation")] == [0, 4, 8, 9]
    assert all(0 <= line["nearest_neighbour"] <= 1 for line in lines(config.out, "validation"))


def before_first_checkpoint(step: int) -> bool:
    return step == 0


def in_the_middle(step: int) -> bool:
    return step == 6


@pytest.mark.parametrize("moment", [before_first_checkpoint, in_the_middle])
def test_a_pretraining_killed_and_resumed_is_the_one_that_was_never_killed(
    config: Config, monkeypatch: pytest.MonkeyPatch, moment: Callable[[int], bool]
) -> None:
    """Teachers take days to train: heads, AdamW's moments and colour changes must go on as if nothing had happened."""
    reference = replace(config, out=config.out.parent / "whole")
    pretrain.run(reference)
    save = checkpoint.save

    def killed(path: Path, parts: Any, standing: dict[str, Any]) -> None:
        if moment(standing["step"]):
            raise Killed
        save(path, parts, standing)

    with monkeypatch.context() as patch:
        patch.setattr(checkpoint, "save", killed)
        with pytest.raises(Killed):
            pretrain.run(config)
    pretrain.run(replace(config, resume=True))
    assert_same_run(reference.out, config.out)


def test_labels_are_never_read_in_pretraining(config: Config, monkeypatch: pytest.MonkeyPatch) -> None:
    """A self-supervised teacher that saw labels would not be one."""
    pretrain.run(config)
    open_splits = datasets.open_splits

    def unlabelled(*arguments: Any, **options: Any) -> Splits:
        splits = open_splits(*arguments, **options)
        splits.train.labels = np.full(len(splits.train), -1)  # type: ignore[misc]
        return splits

    monkeypatch.setattr(datasets, "open_splits", unlabelled)
    other = replace(config, out=config.out.parent / "unlabelled")
    pretrain.run(other)
    assert lines(config.out, "train") == lines(other.out, "train")
    assert lines(other.out, "validation") == []
    ours, theirs = state(config.out), state(other.out)
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)
    assert (other.out / "student" / "model.safetensors").exists()


def test_another_seed_gives_another_teacher(config: Config) -> None:
    """Five seeds would be one result told five times."""
    pretrain.run(config)
    other = replace(config, out=config.out.parent / "b", training=replace(config.training, seed=4))
    pretrain.run(other)
    first, second = lines(config.out, "train"), lines(other.out, "train")
    assert all(one["loss"] != two["loss"] for one, two in zip(first, second, strict=True))


def test_parts_of_a_batch_are_refused(config: Config) -> None:
    """--accumulate would be ignored, and the memory run out in spite of it."""
    with pytest.raises(Refusal, match="--accumulate expected 1"):
        pretrain.run(replace(config, training=replace(config.training, accumulate=2)))
    assert not config.out.exists()
