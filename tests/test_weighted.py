"""Several objectives as one: each sees its own part of the rows, and counts what its weight says."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional

from compress_ssl.objectives import compress_1q, compress_2q, regression
from compress_ssl.refusal import Refusal
from compress_ssl.weighted import Weighted, weight_shares

pytestmark = pytest.mark.filterwarnings("error")
WIDTHS = [(9, 9), (5, 5)]


def unit(count: int, width: int, seed: int) -> Tensor:
    return functional.normalize(torch.randn(count, width, generator=torch.Generator().manual_seed(seed)))


def make(module: Any, count: int = 2) -> Weighted:
    members = [
        module.Objective(module.Config(), width=mine, target_width=its, images=11) for mine, its in WIDTHS[:count]
    ]
    return Weighted(members, [0.75, 0.25][:count] if count > 1 else [1.0], WIDTHS[:count])


def rows(seed: int) -> tuple[list[Tensor], list[Tensor], Tensor]:
    query = [unit(3, width, seed + number) for number, (width, _) in enumerate(WIDTHS)]
    target = [unit(3, width, seed + 7 + number) for number, (_, width) in enumerate(WIDTHS)]
    return query, target, torch.arange(3) + seed % 8


@pytest.mark.parametrize("module", [compress_1q, compress_2q, regression])
def test_the_loss_is_the_weighted_mean_and_each_teacher_has_its_own_bank(module: Any) -> None:
    """One teacher would be learnt from the other's anchors, or count for more than its weight says."""
    both, alone = make(module), make(module)
    for step in range(4):
        query, target, index = rows(20 * step)
        mine = [part.clone().requires_grad_() for part in query]
        whole = torch.cat(query, dim=1).requires_grad_()
        loss = both(whole, torch.cat(target, dim=1), index)
        losses = [member(part, its, index) for member, part, its in zip(alone, mine, target, strict=True)]
        torch.testing.assert_close(loss, 0.75 * losses[0] + 0.25 * losses[1])
        loss.backward()
        (0.75 * losses[0] + 0.25 * losses[1]).backward()
        torch.testing.assert_close(whole.grad, torch.cat([part.grad for part in mine], dim=1))  # type: ignore[misc]
        both.update(whole.detach(), torch.cat(target, dim=1), index)
        for member, part, its in zip(alone, query, target, strict=True):
            member.update(part, its, index)


@pytest.mark.parametrize("count", [1, 2])
def test_a_resumed_one_goes_on_with_the_same_losses(count: int) -> None:
    """A killed run would continue with one teacher's bank in the place of the other's."""
    first, second = make(compress_2q, count), make(compress_2q, count)

    def wide(seed: int) -> tuple[Tensor, Tensor, Tensor]:
        query, target, index = rows(seed)
        return torch.cat(query[:count], dim=1), torch.cat(target[:count], dim=1), index

    for step in range(3):
        first.update(*wide(step))
    second.load_state_dict(first.state_dict())
    assert torch.equal(second(*wide(50)), first(*wide(50)))


def test_one_objective_keeps_the_state_that_it_had_alone() -> None:
    """Runs from before there were several teachers could not be resumed."""
    assert make(compress_2q, 1).state_dict().keys() == make(compress_2q, 1).members[0].state_dict().keys()


def test_weights_are_divided_by_their_sum() -> None:
    """A second teacher would double the learning rate."""
    assert weight_shares([1, 0.5], teachers=2) == [1 / 1.5, 0.5 / 1.5]
    assert weight_shares([], teachers=4) == [0.25] * 4
    assert weight_shares([3], teachers=1) == [1.0]


@pytest.mark.parametrize("weights", [[1.0], [1, 2, 3], [1, 0], [1, -1], [1, float("nan")], [1, float("inf")]])
def test_weights_of_wrong_number_or_without_worth_are_refused(weights: list[float]) -> None:
    """A teacher would cost its time and teach nothing, or the wrong thing: to be far from it."""
    with pytest.raises(Refusal, match="--teacher-weights expected"):
        weight_shares(weights, teachers=2)
