"""PKT against the paper's arithmetic in loops over floats."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from compress_ssl.objectives.pkt import Config, Objective, neighbourhood_kl

pytestmark = pytest.mark.filterwarnings("error")


def by_hand(query: Tensor, target: Tensor) -> float:
    def shares(rows: list[list[float]], i: int) -> dict[int, float]:
        kernel = {
            j: (1 + math.fsum(a * b for a, b in zip(rows[i], row, strict=True))) / 2
            for j, row in enumerate(rows)
            if j != i
        }
        return {j: value / math.fsum(kernel.values()) for j, value in kernel.items()}

    total = 0.0
    for i in range(len(query)):
        q, p = shares(query.tolist(), i), shares(target.tolist(), i)
        total += math.fsum(p[j] * math.log(p[j] / q[j]) for j in p)
    return total / len(query)


def test_the_loss_equals_loops_over_floats_and_its_gradient_their_differences(unit) -> None:
    """With the image itself among its neighbours, or shares over the other axis, it would be another objective."""
    query, target = unit(7, 5, seed=3).double().requires_grad_(), unit(7, 9, seed=4).double()
    loss = Objective(Config(), width=5, target_width=9, images=23)(query, target, torch.arange(7))
    assert float(loss.detach()) == pytest.approx(by_hand(query.detach(), target), rel=1e-10)
    assert torch.autograd.gradcheck(lambda rows: neighbourhood_kl(rows, target), [query])


def test_rows_that_are_opposite_or_alone_have_a_finite_loss() -> None:
    """The logarithm of a kernel of 0 would end a run in NaN."""
    rows = torch.tensor([[1.0, 0.0], [-1.0, 0.0], [0.0, 1.0]]).requires_grad_()
    loss = neighbourhood_kl(rows, torch.tensor([[1.0], [1.0], [-1.0]]))
    loss.backward()
    assert torch.isfinite(loss)
    assert torch.isfinite(rows.grad).all()
    assert float(neighbourhood_kl(rows[:1], rows[:1]).detach()) == 0
