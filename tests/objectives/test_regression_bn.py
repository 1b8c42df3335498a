"""Regression after batch norm against torch's own layer and loops over floats."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from compress_ssl.objectives.regression_bn import Config, Objective, standardised_distance
from compress_ssl.weighted import Weighted

pytestmark = pytest.mark.filterwarnings("error")


def make(seed: int = 0) -> Objective:
    return Objective(Config(), width=5, target_width=9, images=23, seed=seed)


def by_hand(query: Tensor, target: Tensor) -> float:
    def standardised(rows: Tensor) -> list[list[float]]:
        columns = []
        for column in rows.T.tolist():
            mean = math.fsum(column) / len(column)
            variance = math.fsum((value - mean) ** 2 for value in column) / len(column)
            columns.append([(value - mean) / math.sqrt(variance + 1e-5 / rows.shape[1]) for value in column])
        return columns

    pairs = zip(standardised(query), standardised(target), strict=True)
    return math.fsum((a - b) ** 2 for one, other in pairs for a, b in zip(one, other, strict=True)) / query.numel()


def test_the_loss_equals_loops_over_floats_and_batch_norm_without_affine(unit) -> None:
    """Statistics of rows for those of columns, or a variance over B - 1, would be another baseline than the paper's."""
    objective = make()
    query, target = unit(7, 5, seed=3), unit(7, 9, seed=4)
    rows = objective.trained(query).detach()
    loss = objective(query, target, torch.arange(7))
    assert float(loss.detach()) == pytest.approx(by_hand(rows.double(), target.double()), rel=1e-5)
    norms = [nn.BatchNorm1d(9, affine=False)(side * 3) for side in (rows, target)]  # entries of the size 1
    assert float(loss.detach()) == pytest.approx(float((norms[0] - norms[1]).square().mean()), rel=1e-5)
    double = rows.double().requires_grad_()
    assert torch.autograd.gradcheck(lambda one: standardised_distance(one, target.double()), [double])


def test_of_wide_rows_too_it_is_the_correlation_that_counts() -> None:
    """Of a ResNet-50's 2048 numbers most vary so little in a row of length one that batch norm's 1e-5 would decide how
    much they count: those of little variance would not be learnt, and nobody would know why wide teachers do worse."""
    random = np.random.default_rng(5)
    sizes = random.exponential(size=2048) * 0.3  # pooled ReLU features: far from zero in the mean
    target, noise = (np.maximum(0, 1 + sizes * random.standard_normal((64, 2048))) for _ in range(2))
    query = target + 0.5 * noise
    target, query = (rows / np.linalg.norm(rows, axis=1, keepdims=True) for rows in (target, query))
    correlations = [np.corrcoef(query[:, column], target[:, column])[0, 1] for column in range(2048)]
    assert 0.8 < np.mean(correlations) < 0.95
    loss = standardised_distance(torch.from_numpy(query).float(), torch.from_numpy(target).float())
    assert float(loss) == pytest.approx(2 - 2 * float(np.mean(correlations)), rel=0.02)


@pytest.mark.parametrize("count", [1, 2])
def test_of_a_single_row_nothing_is_learnt_and_of_two_something(unit, count: int) -> None:
    """The last image of an epoch, or a batch that holds one picture twice, would end the run with NaN."""
    query = unit(count, 9, seed=3).requires_grad_()
    loss = standardised_distance(query, unit(count, 9, seed=4))
    loss.backward()
    assert query.grad is not None
    assert torch.isfinite(query.grad).all()
    assert (float(loss.detach()) > 0) == (count > 1)
    twice = unit(1, 9, seed=5).repeat(4, 1).requires_grad_()
    standardised_distance(twice, unit(4, 9, seed=6)).backward()
    assert twice.grad is not None
    assert torch.isfinite(twice.grad).all()


def test_a_shift_and_a_scale_of_a_dimension_do_not_count(unit) -> None:
    """It would be regression without batch norm."""
    target = unit(7, 9, seed=4)
    moved = target * torch.linspace(3, 5, 9) + torch.linspace(-1, 1, 9)
    assert float(standardised_distance(moved, target)) < 1e-5
    assert float(standardised_distance(-moved, target)) == pytest.approx(4, rel=1e-2)


def test_the_head_learns_is_chosen_by_the_seed_and_is_kept(unit) -> None:
    """Five seeds would share a head, or a resumed run start with another one."""
    random = torch.get_rng_state()
    one, same, other = make(3), make(3), make(4)
    assert torch.equal(torch.get_rng_state(), random), "weights drawn afterwards would depend on the objective"
    assert torch.equal(one.trained.weight, same.trained.weight)
    assert not torch.equal(one.trained.weight, other.trained.weight)
    one(unit(7, 5, seed=1), unit(7, 9, seed=2), torch.arange(7)).backward()
    assert one.trained.weight.grad is not None
    resumed, kept = (Weighted([objective], [1.0], [(5, 9)]) for objective in (other, one))
    resumed.load_state_dict(kept.state_dict())
    assert torch.equal(one.trained.weight, other.trained.weight)
