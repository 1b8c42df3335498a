"""SimReg against the paper's arithmetic in loops over floats."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn

from compress_ssl import objectives
from compress_ssl.objectives.simreg import Config, Objective
from compress_ssl.projector import ProjectorConfig, shape

pytestmark = pytest.mark.filterwarnings("error")


def test_the_loss_and_its_gradient_equal_loops_over_floats(unit) -> None:
    """A sum over the batch, or a mean over the dimensions, would be another learning rate than the paper's."""
    query, target = unit(4, 9, seed=3).double().requires_grad_(), unit(4, 9, seed=4).double()
    loss = Objective(Config(), width=9, target_width=9, images=23)(query, target, torch.arange(4))
    loss.backward()
    rows = list(zip(query.tolist(), target.tolist(), strict=True))
    expected = math.fsum(2 - 2 * math.fsum(a * b for a, b in zip(one, other, strict=True)) for one, other in rows) / 4
    slope = [[2 * (a - b) / 4 for a, b in zip(one, other, strict=True)] for one, other in rows]
    assert float(loss.detach()) == pytest.approx(expected, rel=1e-6)
    torch.testing.assert_close(query.grad, torch.tensor(slope, dtype=torch.float64), rtol=1e-6, atol=1e-7)


def test_the_head_is_an_mlp_of_four_layers_with_batch_norm_unless_another_is_asked_for() -> None:
    """It would be plain regression: the head is all that the paper adds."""
    asked = objectives.projector_of(Config(), ProjectorConfig())
    head = shape(asked, width=5, target_width=9, space=objectives.space_of(Config())).build()
    kinds = [type(layer) for layer in head]
    assert kinds == [nn.Linear, nn.BatchNorm1d, nn.ReLU] * 3 + [nn.Linear]
    assert head[-1].out_features == 9
    assert objectives.projector_of(Config(), ProjectorConfig(kind="linear")) == ProjectorConfig(kind="linear")
