"""RKD against the paper's arithmetic in loops over floats."""

from __future__ import annotations

import itertools
import math

import pytest
import torch
from torch import Tensor

from compress_ssl.objectives import rkd
from compress_ssl.objectives.rkd import Config, Objective, angle_loss, distance_loss
from compress_ssl.refusal import Refusal

pytestmark = pytest.mark.filterwarnings("error")


def huber(one: float, other: float) -> float:
    apart = abs(one - other)
    return apart**2 / 2 if apart <= 1 else apart - 0.5


def distances_by_hand(query: Tensor, target: Tensor) -> float:
    pairs = list(itertools.permutations(range(len(query)), 2))
    mine, its = ([math.dist(rows[i].tolist(), rows[j].tolist()) for i, j in pairs] for rows in (query, target))
    mean = [math.fsum(side) / len(pairs) for side in (mine, its)]
    return math.fsum(huber(a / mean[0], b / mean[1]) for a, b in zip(mine, its, strict=True)) / len(pairs)


def angles_by_hand(query: Tensor, target: Tensor) -> float:
    def cosine(rows: Tensor, i: int, j: int, k: int) -> float:
        one, other = (rows[i] - rows[j]).tolist(), (rows[k] - rows[j]).tolist()
        return math.fsum(a * b for a, b in zip(one, other, strict=True)) / math.hypot(*one) / math.hypot(*other)

    triplets = list(itertools.permutations(range(len(query)), 3))
    return math.fsum(huber(cosine(query, *of), cosine(target, *of)) for of in triplets) / len(triplets)


@pytest.mark.parametrize("centres", [2, 3, 16])
def test_the_loss_equals_loops_over_floats(unit, monkeypatch: pytest.MonkeyPatch, centres: int) -> None:
    """Triplets left out between two chunks, or counted twice, would be another objective under the paper's name."""
    monkeypatch.setattr(rkd, "CENTRES", centres)
    query, target = unit(7, 5, seed=3).double(), unit(7, 9, seed=4).double()
    assert float(distance_loss(query, target)) == pytest.approx(distances_by_hand(query, target), rel=1e-10)
    assert float(angle_loss(query, target)) == pytest.approx(angles_by_hand(query, target), rel=1e-10)
    loss = Objective(Config(), width=5, target_width=9, images=23)(query, target, torch.arange(7))
    expected = 25 * distances_by_hand(query, target) + 50 * angles_by_hand(query, target)
    assert float(loss.detach()) == pytest.approx(expected, rel=1e-10)


def test_huber_s_straight_part_is_met() -> None:
    """A squared loss would pass wherever no relation differs by more than 1."""
    query = torch.tensor([[1.0, 0.0], [0.0, 1.0], [-1.0, 0.0], [0.0, -1.0], [0.6, 0.8]], dtype=torch.float64)
    target = query[[2, 0, 1, 3, 4]] * torch.tensor([1.0, 0.01])
    apart = angle_loss(query, target)
    assert float(apart) == pytest.approx(angles_by_hand(query, target), rel=1e-6)
    cosines = [rkd._cosines(rows @ rows.T, torch.arange(5)) for rows in (query, target)]
    assert (cosines[0] - cosines[1]).abs().max() > 1


def test_the_gradient_is_that_of_small_differences(unit, monkeypatch: pytest.MonkeyPatch) -> None:
    """Chunks that are computed anew in backward could be other ones."""
    monkeypatch.setattr(rkd, "CENTRES", 2)
    query, target = unit(5, 3, seed=3).double().requires_grad_(), unit(5, 7, seed=4).double()
    assert torch.autograd.gradcheck(lambda rows: distance_loss(rows, target), [query])
    assert torch.autograd.gradcheck(lambda rows: angle_loss(rows, target), [query])


def test_float32_is_near_float64(unit) -> None:
    """Products that nearly cancel would leave noise for an angle."""
    query, target = unit(31, 65, seed=3), unit(31, 129, seed=4)
    query[1] = torch.nn.functional.normalize(query[0] + 0.01 * query[1], dim=0)
    exact = angle_loss(query.double(), target.double())
    assert float(angle_loss(query, target)) == pytest.approx(float(exact), rel=1e-4)


def test_images_that_look_the_same_and_batches_of_one_or_two_have_a_finite_gradient(unit) -> None:
    """The slope of a distance of 0 would end a run in NaN."""
    objective = Objective(Config(), width=5, target_width=9, images=23)
    for count in (1, 2, 5):
        query = unit(1, 5, seed=1).repeat(count, 1).requires_grad_()
        loss = objective(query, unit(count, 9, seed=2), torch.arange(count))
        loss.backward()
        assert torch.isfinite(loss)
        assert torch.isfinite(query.grad).all()


def test_a_weight_of_0_leaves_its_part_out_and_two_are_refused(unit) -> None:
    """An option would be parsed and ignored."""
    query, target, index = unit(5, 5, seed=3), unit(5, 9, seed=4), torch.arange(5)
    makes = {"width": 5, "target_width": 9, "images": 23}
    distance = Objective(Config(angle_weight=0, distance_weight=1), **makes)(query, target, index)
    angle = Objective(Config(angle_weight=1, distance_weight=0), **makes)(query, target, index)
    assert float(distance) == pytest.approx(float(distance_loss(query, target)))
    assert float(angle) == pytest.approx(float(angle_loss(query, target)))
    with pytest.raises(Refusal, match="expected one above 0, got 0 and 0"):
        Config(angle_weight=0, distance_weight=0)
    with pytest.raises(Refusal, match=r"--objective.angle-weight expected 0 or more, got -1"):
        Config(angle_weight=-1)
