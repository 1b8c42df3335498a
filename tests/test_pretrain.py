"""Pretraining makes a teacher from pictures alone. Every file of pretraining/ enters the contract by existing."""

from __future__ import annotations

import contextlib
import copy
import dataclasses
import json
import math
import os
import pickle
import re
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from torch import Tensor

from compress_ssl import checkpoint, cli, datasets, pretrain, pretraining
from compress_ssl.crops import LocalConfig
from compress_ssl.datasets import Splits
from compress_ssl.encoder import open_encoder
from compress_ssl.hardware import HardwareConfig
from compress_ssl.learner import Learner
from compress_ssl.loader import Batch
from compress_ssl.optim import OptimizerConfig
from compress_ssl.pretrain import Config
from compress_ssl.pretraining import Views, simclr
from compress_ssl.refusal import Refusal
from compress_ssl.run_folder import plain
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


SMALL: dict[str, dict[str, Any]] = {  # of every method: what makes a run of a few steps small, and shows its parts
    "simclr": {"hidden_width": 11, "projection_width": 7},
    "moco_v2": {"hidden_width": 11, "projection_width": 7, "bank_size": 40, "momentum": 0.9, "parts": 2},
    "swav": {
        "hidden_width": 11,
        "projection_width": 7,
        "prototypes": 13,
        "bank_size": 40,
        "bank_start": 0.4,
        "freeze": 0.2,
        "local": LocalConfig(views=3, size=8),
    },
    "dino": {
        "hidden_width": 11,
        "bottleneck_width": 7,
        "outputs": 13,
        "momentum": 0.9,
        "freeze": 0.2,
        "key_temperature_start": 0.07,
        "local": LocalConfig(views=3, size=8),
    },
    "supervised": {"label_smoothing": 0.1},
}


def small(name: str) -> Any:
    return pretraining.find(name).Config(**SMALL[name])


@pytest.mark.parametrize("shape", [(9, 23), (23, 9), (5, 5), (1, 1), (64, 64)])
def test_views_are_cut_alike_for_the_same_sample(method: ModuleType, shape: tuple[int, int]) -> None:
    """A resumed run, or one with more workers, would see other pixels; loader workers must be able to pickle it."""
    view = pickle.loads(pickle.dumps(method.make_view(method.Config(), 16)))
    picture = np.random.default_rng(0).integers(0, 256, (*shape, 3), dtype=np.uint8)
    made = [view(picture, Sample(0, epoch, 3, "a.png")) for epoch in (1, 1, 2)]
    parts = list(zip(*(views if isinstance(views, tuple) else (views,) for views in made), strict=True))
    for (first, again, other), size in zip(parts, (16, 8), strict=False):
        assert first.dtype == torch.uint8
        assert first.shape[1:] == (3, size, size)
        assert len(first) >= (1 if hasattr(method, "LABELLED") else 2)
        assert torch.equal(first, again)
        if shape == (64, 64):
            assert not torch.equal(first, other)
            assert len(first) == 1 or not torch.equal(first[0], first[1])


class One:
    """What a method asks of Fabric, of one of several processes that tell each other nothing."""

    device = torch.device("cpu")

    def __init__(self, rank: int = 0, ranks: int = 1):
        self.global_rank, self.world_size = rank, ranks

    def autocast(self) -> contextlib.AbstractContextManager[None]:
        return contextlib.nullcontext()


def made(method: ModuleType, fabric: One | None = None) -> tuple[Learner, Any]:
    """A learner of 16 pixels, and the rest of the method, always of the same weights."""
    torch.manual_seed(0)
    config = small(method.Config().name)
    encoder = open_encoder("compress/resnet10_small_w8", weights="random", size=16)
    labelled = hasattr(method, "LABELLED")
    learner = method.make_learner(config, encoder, ranks=1, **({"classes": 13} if labelled else {})).train()
    known = {"labels": torch.arange(1000) % 13} if labelled else {}
    return learner, method.Method(config, learner, images=1000, fabric=fabric or One(), **known)


def pictures(count: int) -> Batch:
    generator = torch.Generator().manual_seed(0)
    images, local = (
        torch.randint(0, 256, (count, views, 3, size, size), dtype=torch.uint8, generator=generator)
        for views, size in ((2, 16), (3, 8))
    )
    return Batch(images, torch.arange(count), [], local=local)


def test_processes_change_views_as_one_would(method: ModuleType) -> None:
    """Two processes drawing the same numbers would halve the variety of views."""
    batch = pictures(6)
    before = batch.images.clone()

    def change(part: Batch, rank: int, ranks: int) -> Views:
        return made(method, One(rank, ranks))[1].views(part, torch.Generator().manual_seed(3))

    whole = change(batch, 0, 1)
    parts = [change(part, rank, 2) for rank, (part, _) in enumerate(batch.parts(2))]
    for kind in ("query", "key"):
        for alone, *together in zip(getattr(whole, kind), *(getattr(part, kind) for part in parts), strict=True):
            assert alone.dtype == torch.uint8
            views = [tensor.unflatten(0, (-1, 3)) for tensor in together]
            assert torch.equal(alone.unflatten(0, (-1, 6)), torch.cat(views, dim=1))
    assert torch.equal(batch.images, before)


def test_a_loss_is_finite_and_its_gradient_reaches_the_encoder(method: ModuleType) -> None:
    """A head that were cut off would still let the loss fall, and the encoder learn nothing."""
    learner, rest = made(method)
    for progress in (0.0, 0.5, 1.0):  # layers frozen, bank compared, the last step
        for _ in range(6):
            batch, generator = pictures(8), torch.Generator().manual_seed(1)
            views = rest.views(batch, generator)
            key = rest.keys(views, generator)
            query = learner(views.query)
            learner.zero_grad()
            loss = rest.loss(query, key, batch.index + 8 * int(100 * progress), progress)
            assert loss.shape == ()
            assert torch.isfinite(loss)
            loss.backward()
            rest.restrain(progress)
            rest.update(query, key, batch.index + 8 * int(100 * progress), progress)
        gradient = learner.encoder.backbone.conv1.weight.grad
        assert gradient is not None
        assert gradient.abs().sum() > 0


def test_a_loss_changes_nothing(method: ModuleType) -> None:
    """What is remembered would depend on how often the loss is asked for; a resumed step would find other rows."""
    learner, rest = made(method)
    batch, generator = pictures(8), torch.Generator().manual_seed(1)
    views = rest.views(batch, generator)
    key = rest.keys(views, generator)
    query = learner(views.query)
    before = copy.deepcopy(rest.state_dict())
    first, second = (rest.loss(query, key, batch.index, 0.5) for _ in range(2))
    assert torch.equal(first, second)
    assert same(before, rest.state_dict())


def same(one: Any, other: Any) -> bool:
    if isinstance(one, Tensor):
        return torch.equal(one, other)
    if isinstance(one, dict):
        return one.keys() == other.keys() and all(same(one[name], other[name]) for name in one)
    return bool(one == other)


def test_simclr_is_the_papers_loss() -> None:
    """Chen et al., Eq. 1, written out: each view against its partner, all other 2B - 2 views as negatives."""
    torch.manual_seed(0)
    temperature = 0.3
    rows = torch.randn(2 * 5, 3)
    unit = [[float(x) / math.hypot(*row) for x in row] for row in rows.tolist()]
    total = 0.0
    for i, row in enumerate(unit):
        similar = [math.exp(sum(a * b for a, b in zip(row, other, strict=True)) / temperature) for other in unit]
        total -= math.log(similar[(i + 5) % 10] / (sum(similar) - similar[i]))
    assert float(simclr.nt_xent(*rows.chunk(2), temperature=temperature)) == pytest.approx(total / 10, abs=1e-5)


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
        method=small("simclr"),
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


def parts(run: Path) -> dict[str, Any]:
    return torch.load(run / "checkpoints" / "last.ckpt", weights_only=True)["parts"]


def state(run: Path) -> dict[str, Tensor]:
    return parts(run)["learner"]


def assert_same_run(first: Path, second: Path) -> None:
    for kind in ("train", "validation"):
        assert lines(first, kind) == lines(second, kind)
    ours, theirs = parts(first), parts(second)
    assert same(ours["learner"], theirs["learner"])
    assert same(ours["method"], theirs["method"])


PLAIN = '''
"""The method that METHOD names, without the batch norm of its head."""
import os
from dataclasses import dataclass
from torch import nn
from compress_ssl import pretraining

family = pretraining.find(os.environ["METHOD"])
make_view, Method, LABELLED = family.make_view, family.Method, getattr(family, "LABELLED", False)

@dataclass(frozen=True, kw_only=True)
class Config(family.Config):
    name: str = "plain.method"

def make_learner(config, encoder, **known):
    learner = family.make_learner(config, encoder, **known)
    for module in list(learner.modules()):
        for name, child in list(module.named_children()):
            if isinstance(child, nn.BatchNorm1d):
                setattr(module, name, nn.Identity())
    return learner
'''


@pytest.mark.parametrize("name", SMALL)
def test_two_processes_pretrain_the_teacher_of_one(
    config: Config, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    """A second device would change the method: negatives, assignments, centre or bank of half the images."""
    (tmp_path / "plain").mkdir()
    (tmp_path / "plain" / "__init__.py").touch()
    (tmp_path / "plain" / "method.py").write_text(PLAIN)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setenv("METHOD", name)
    for module in ("plain", "plain.method"):
        monkeypatch.delitem(sys.modules, module, raising=False)
    values = {field: value for field, value in SMALL[name].items() if field != "local"}
    local = SMALL[name].get("local")
    config = replace(
        config,
        encoder="timm/test_vit",  # without batch norm
        size=32,
        method=pretraining.find("plain.method").Config(**SMALL[name]),
        optimizer=OptimizerConfig(name="sgd", learning_rate=0.05),
    )
    told = {
        "data": config.data,
        "out": str(config.out),
        "encoder": config.encoder,
        "size": config.size,
        "method": {"name": "plain.method", **values, **({"local": plain(local)} if local else {})},
        **plain(config.training),
        "optimizer": {"name": "sgd", "learning_rate": 0.05},
        "accelerator": "cpu",
        "workers": 0,
        "precision": "32",
        "devices": 2,
        "held_out": 140,
        "gallery": 60,
    }
    (tmp_path / "two.yaml").write_text(yaml.safe_dump(told))
    together = subprocess.Popen(
        [str(Path(sys.executable).with_name("compress-ssl")), "pretrain", str(tmp_path / "two.yaml")],
        env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join([str(tmp_path), *sys.path])},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    alone = replace(config, out=tmp_path / "one")
    pretrain.run(alone)
    _, said = together.communicate(timeout=200)
    assert together.returncode == 0, said
    losses, others = (np.array([line["loss"] for line in lines(run, "train")]) for run in (alone.out, config.out))
    assert np.abs(losses - others).max() < 1e-4
    assert_close(parts(alone.out)["learner"], parts(config.out)["learner"])
    assert_close(parts(alone.out)["method"], parts(config.out)["method"])


def assert_close(one: Any, other: Any) -> None:
    if isinstance(one, Tensor):
        assert float((one.double() - other.double()).abs().max()) < 1e-4
    elif isinstance(one, dict):
        assert one.keys() == other.keys()
        for name in one:
            assert_close(one[name], other[name])
    else:
        assert one == other


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


@pytest.mark.parametrize(
    ("name", "moment"), [("simclr", before_first_checkpoint), *((name, in_the_middle) for name in SMALL)]
)
def test_a_pretraining_killed_and_resumed_is_the_one_that_was_never_killed(
    config: Config, monkeypatch: pytest.MonkeyPatch, name: str, moment: Callable[[int], bool]
) -> None:
    """Teachers take days to train: heads, slow copies, banks, centres, AdamW's moments and colour changes must go on
    as if nothing had happened."""
    config = replace(config, method=small(name))
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


@pytest.mark.parametrize("name", SMALL)
def test_a_pretraining_in_bfloat16_is_finite_and_near_the_one_in_float32(config: Config, name: str) -> None:
    """On a GPU bf16 is the default: a loss computed in it would be another method's, or NaN after a week."""
    config = replace(config, method=small(name))
    pretrain.run(config)
    half = replace(config, out=config.out.parent / "half", hardware=replace(config.hardware, precision="bf16"))
    pretrain.run(half)
    whole, found = (np.array([line["loss"] for line in lines(run, "train")]) for run in (config.out, half.out))
    assert np.isfinite(found).all()
    assert not np.array_equal(found, whole), "bf16 was asked for"
    assert abs(found[0] - whole[0]) < 0.01 * whole[0], "later steps part, as roundings grow"
    learned = state(half.out)
    assert all(value.dtype != torch.bfloat16 for value in learned.values()), "weights stay float32"
    pretrain.run(replace(half, resume=True))  # what is saved in bf16 can be read again


@pytest.mark.parametrize(
    ("method", "option", "value", "expected"),
    [
        ("simclr", "temperature", "0", "a number above 0"),
        ("simclr", "projection-width", "0", "at least 1"),
        ("moco_v2", "temperature", "nan", "a number above 0"),
        ("moco_v2", "momentum", "1", "a number in [0, 1)"),
        ("moco_v2", "bank-size", "0", "at least 1"),
        ("moco_v2", "parts", "0", "at least 1"),
        ("swav", "epsilon", "0.01", "at least 0.015"),
        ("swav", "prototypes", "1", "at least 2"),
        ("swav", "bank-size", "-1", "0 or more"),
        ("swav", "iterations", "0", "at least 1"),
        ("swav", "freeze", "1.5", "a number in [0, 1]"),
        ("swav", "local.views", "-1", "0 or more"),
        ("dino", "clip", "0", "a number above 0"),
        ("dino", "outputs", "0", "at least 2"),
        ("dino", "momentum", "1", "a number in [0, 1)"),
        ("dino", "centre-momentum", "1", "a number in [0, 1)"),
        ("dino", "key-temperature", "-0.04", "a number above 0"),
    ],
)
def test_a_value_that_cannot_be_meant_is_refused_by_the_name_of_its_option(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], method: str, option: str, value: str, expected: str
) -> None:
    """A temperature of 0 would be found out by a NaN after the data had been read; a momentum of 1, never."""
    words = ["pretrain", "--data", "digits", "--out", str(tmp_path / "run"), "--method", method]
    assert cli.main([*words, f"--method.{option}", *value.split()]) == 2
    said = capsys.readouterr().err.strip()
    assert f"--method.{option} expected {expected}" in said
    assert len(said.splitlines()) == 1
    assert not (tmp_path / "run").exists()


def test_parts_of_a_batch_are_refused(config: Config) -> None:
    """--accumulate would be ignored, and the memory run out in spite of it."""
    with pytest.raises(Refusal, match="--accumulate expected 1"):
        pretrain.run(replace(config, training=replace(config.training, accumulate=2)))
    assert not config.out.exists()
