"""A bank that the batch has entered before it is compared, against the order of writing and loops over floats."""

from __future__ import annotations

import copy

import pytest
import torch

from compress_ssl.objectives.batch_in_bank import Config, Objective
from compress_ssl.refusal import Refusal

pytestmark = pytest.mark.filterwarnings("error")


def make(bank_size: int = 11, **options: float) -> Objective:
    return Objective(Config(bank_size=bank_size, **options), width=9, target_width=9, images=23)


@pytest.mark.parametrize("count", [3, 4, 7, 11])
def test_the_anchors_are_the_bank_as_it_is_once_the_batch_is_written(unit, count: int) -> None:
    """Rows that leave the ring with this batch would still be compared, or some that stay left out."""
    objective = make()
    for number in range(9):
        target, index = unit(count, 9, seed=number), torch.arange(count)
        seen = objective.anchors(target)
        objective.update(target, target, index)
        held = objective.bank.anchors("target")
        assert sorted(seen.tolist()) == sorted(held.tolist())


@pytest.mark.parametrize("filled", [0, 3, 8, 14])
def test_the_loss_and_its_gradient_equal_loops_over_floats(unit, plain, filled: int) -> None:
    """The own anchor, which is what the setting is about, would be missing."""
    objective = make(temperature=0.1)
    rows = unit(filled, 9, seed=2)
    for batch in torch.arange(filled).split(3):
        objective.update(rows[batch], rows[batch], batch)
    query, target = unit(4, 9, seed=3).double().requires_grad_(), unit(4, 9, seed=4)
    anchors = torch.cat([rows, target])[-11:]
    loss = objective(query, target.double(), torch.arange(4))
    loss.backward()
    expected, slope = plain(query, anchors, target, anchors, torch.ones(4, len(anchors), dtype=torch.bool), 0.1)
    assert float(loss.detach()) == pytest.approx(expected, rel=1e-6)
    torch.testing.assert_close(query.grad, slope, rtol=1e-5, atol=1e-8)


def test_a_batch_larger_than_the_bank_is_compared_with_all_of_its_own_rows(unit) -> None:
    """Some queries would miss the anchor that is to be their strongest."""
    objective = make(bank_size=5)
    objective.update(unit(5, 9, seed=1), unit(5, 9, seed=1), torch.arange(5))
    target = unit(7, 9, seed=2)
    assert torch.equal(objective.anchors(target), target)
    objective.update(target, target, torch.arange(7))
    assert len(objective.bank.anchors("target")) == 5


def test_the_call_leaves_the_bank_alone(unit) -> None:
    """A loss that is only watched would train another student."""
    objective = make()
    objective.update(unit(9, 9, seed=1), unit(9, 9, seed=1), torch.arange(9))
    before = copy.deepcopy(objective.state_dict())
    objective(unit(4, 9, seed=3), unit(4, 9, seed=4), torch.arange(4))
    torch.testing.assert_close(objective.state_dict(), before, rtol=0, atol=0)


def test_a_larger_bank_is_refused_with_what_takes_one() -> None:
    """A comparison would be made with a setting that nobody has published."""
    with pytest.raises(Refusal, match=r"--objective.bank-size expected 1 to 8192, .*got 8193: use .*compress_1q"):
        Config(bank_size=8193)
    assert (Config().bank_size, Config().temperature) == (8192, 0.07)
