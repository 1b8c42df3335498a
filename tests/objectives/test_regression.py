"""Regression against the paper's arithmetic in loops over floats."""

from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from torch.nn import functional

from compress_ssl import datasets, distill, embed
from compress_ssl.hardware import HardwareConfig
from compress_ssl.objectives.regression import Config, Objective
from compress_ssl.optim import OptimizerConfig
from compress_ssl.table import Table
from compress_ssl.training import TrainingConfig

pytestmark = pytest.mark.filterwarnings("error")


def make() -> Objective:
    return Objective(Config(), width=5, target_width=9, images=23)


def test_the_loss_and_its_gradient_equal_loops_over_floats(unit) -> None:
    """A sum over the batch, or a mean over the dimensions, would be another learning rate than the paper's."""
    query, target = unit(4, 9, seed=3).double().requires_grad_(), unit(4, 9, seed=4).double()
    loss = make()(query, target, torch.arange(4))
    loss.backward()
    rows = list(zip(query.tolist(), target.tolist(), strict=True))
    expected = math.fsum((a - b) ** 2 for one, other in rows for a, b in zip(one, other, strict=True)) / 4
    slope = [[2 * (a - b) / 4 for a, b in zip(one, other, strict=True)] for one, other in rows]
    assert float(loss.detach()) == pytest.approx(expected, rel=1e-6)
    torch.testing.assert_close(query.grad, torch.tensor(slope, dtype=torch.float64), rtol=1e-6, atol=1e-7)


def test_the_loss_is_two_minus_two_cosines(unit) -> None:
    """Rows of another length would be compared by their lengths."""
    query, target = unit(7, 9, seed=3), unit(7, 9, seed=4)
    cosine = functional.cosine_similarity(query, target).mean()
    assert float(make()(query, target, torch.arange(7))) == pytest.approx(float(2 - 2 * cosine), rel=1e-5)
    assert float(make()(target, target, torch.arange(7))) == 0
    assert float(make()(-target, target, torch.arange(7))) == pytest.approx(4)


def test_twenty_steps_bring_the_student_nearer_to_the_teacher(world) -> None:
    """A sign, or a gradient into the wrong tensor, would drive them apart."""
    objective = make()
    losses = world.train(objective, world.student(objective))
    assert all(map(math.isfinite, losses))
    assert sum(losses[-5:]) < sum(losses[:5])


def test_half_precision_rows_are_compared_in_float32(unit) -> None:
    """Squares of small differences would be zero under --precision bf16-mixed."""
    query, target = unit(3, 9, seed=1), unit(3, 9, seed=2)
    loss = make()(query.bfloat16(), target.bfloat16(), torch.arange(3))
    assert loss.dtype == torch.float32
    assert float(loss.detach()) == pytest.approx(float(make()(query, target, torch.arange(3))), rel=1e-2)


def test_the_student_is_projected_into_the_teacher_s_space_and_keeps_nothing_between_steps(unit) -> None:
    """A bank, or keys of a slow copy, would cost memory and time for nothing."""
    objective = make()
    assert (objective.space, objective.momentum, objective.temperature) == ("teacher", None, None)
    objective.update(unit(3, 9, seed=1), unit(3, 9, seed=2), torch.arange(3))
    assert objective.state_dict() == {}


def test_a_run_against_vectors_alone_leaves_a_student_that_speaks_their_language(tmp_path: Path) -> None:
    """A service's vectors would be of no use without the model behind them."""
    images = datasets.open_splits("digits").train
    rows = np.array([images.read(place).mean(axis=2).reshape(-1) for place in range(len(images))], dtype=np.float32)
    np.save(tmp_path / "vectors.npy", rows)
    (tmp_path / "ids.txt").write_text("\n".join(images.ids))
    run = distill.run(
        distill.Config(
            teacher=str(tmp_path / "vectors.npy"),
            ids=tmp_path / "ids.txt",
            student="compress/resnet10_small_w8",
            student_size=8,
            data="digits",
            out=tmp_path / "run",
            objective=Config(),
            training=TrainingConfig(epochs=2, batch_size=64, log_every_steps=5),
            optimizer=OptimizerConfig(learning_rate=0.1),
            hardware=HardwareConfig(accelerator="cpu", workers=0, compile="off"),
        )
    )
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    losses = [line["loss"] for line in lines if line["kind"] == "train"]
    assert losses[-1] < losses[0] / 2
    assert {"teacher", "student"} == json.loads((run / "results.json").read_text())["models"].keys()
    table = embed.run(embed.Config(encoder=str(run), data="digits", out=tmp_path / "table", space="teacher", workers=0,
                                   device="cpu"))  # fmt: skip
    assert Table(table).width == 64, "as wide as the vectors"
