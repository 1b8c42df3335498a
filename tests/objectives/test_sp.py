"""SP against the paper's arithmetic in loops over floats."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from compress_ssl.objectives.sp import Config, Objective, gram_distance
from compress_ssl.refusal import Refusal

pytestmark = pytest.mark.filterwarnings("error")


def by_hand(query: Tensor, target: Tensor) -> float:
    def gram(rows: list[list[float]]) -> list[list[float]]:
        products = [[math.fsum(a * b for a, b in zip(one, other, strict=True)) for other in rows] for one in rows]
        return [[value / math.sqrt(math.fsum(other**2 for other in row)) for value in row] for row in products]

    mine, its = gram(query.tolist()), gram(target.tolist())
    return math.fsum(
        (a - b) ** 2 for one, other in zip(mine, its, strict=True) for a, b in zip(one, other, strict=True)
    )


def test_the_loss_equals_loops_over_floats_and_its_gradient_their_differences(unit) -> None:
    """Columns brought to length one, or a sum for a mean, would be another objective under the paper's name."""
    query, target = unit(7, 5, seed=3).double().requires_grad_(), unit(7, 9, seed=4).double()
    loss = Objective(Config(), width=5, target_width=9, images=23)(query, target, torch.arange(7))
    assert float(loss.detach()) == pytest.approx(3000 / 49 * by_hand(query.detach(), target), rel=1e-10)
    assert torch.autograd.gradcheck(lambda rows: gram_distance(rows, target), [query])


def test_a_student_turned_as_a_whole_has_no_loss(unit) -> None:
    """Its space is its own: the same similarities in other coordinates are the same."""
    target = unit(7, 9, seed=4)
    turn = torch.linalg.qr(torch.randn(9, 9, generator=torch.Generator().manual_seed(0))).Q
    assert float(gram_distance(target @ turn, target)) < 1e-12


def test_a_weight_that_counts_nothing_is_refused() -> None:
    """A run would train on nothing."""
    with pytest.raises(Refusal, match=r"--objective.weight expected more than 0, got 0"):
        Config(weight=0)
