"""ISD against two divergences in loops over floats, and against 2q."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from compress_ssl.objectives import compress_2q
from compress_ssl.objectives.isd import Config, Objective
from compress_ssl.refusal import Refusal

pytestmark = pytest.mark.filterwarnings("error")


def make(images: int = 23, **options: Any) -> Objective:
    return Objective(Config(**options), width=5, target_width=9, images=images)


@pytest.mark.parametrize("share", [0.0, 0.3, 1.0])
@pytest.mark.parametrize("temperature", [0.02, 0.1])
def test_the_loss_and_its_gradient_equal_loops_over_floats(unit, plain, share: float, temperature: float) -> None:
    """The slow student or the teacher would count for more than its share, or look at the other's anchors."""
    objective = make(bank_size=11, temperature=temperature, teacher_share=share)
    keys, targets, index = unit(9, 5, seed=1), unit(9, 9, seed=2), torch.arange(9) % 6
    objective.update(keys, targets, index)
    query, key = unit(4, 5, seed=3).double().requires_grad_(), unit(4, 5, seed=4).requires_grad_()
    target, samples = unit(4, 9, seed=5), torch.tensor([2, 40, 2, 0])
    loss = objective(query, target, samples, key)
    loss.backward()
    compared = samples[:, None] != index
    slow, slow_slope = plain(query, keys, key, keys, compared, temperature)
    frozen, frozen_slope = plain(query, keys, target, targets, compared, temperature)
    assert float(loss.detach()) == pytest.approx((1 - share) * slow + share * frozen, rel=1e-5)
    torch.testing.assert_close(query.grad, (1 - share) * slow_slope + share * frozen_slope, rtol=1e-5, atol=1e-6)
    assert key.grad is None


def test_a_whole_share_of_the_teacher_is_2q(unit) -> None:
    """What the docstring says of the two would be false."""
    mine = make(bank_size=11, temperature=0.1, teacher_share=1)
    other = compress_2q.Objective(compress_2q.Config(bank_size=11, temperature=0.1), width=5, target_width=9, images=23)
    for one in (mine, other):
        one.update(unit(8, 5, seed=1), unit(8, 9, seed=2), torch.arange(8))
    rows = unit(3, 5, seed=3), unit(3, 9, seed=4), torch.tensor([1, 2, 20])
    assert torch.equal(mine(*rows, unit(3, 5, seed=5)), other(*rows))


def test_a_share_of_none_never_looks_at_the_teacher(unit) -> None:
    """The row of the table without a teacher would have had one."""
    objective = make(bank_size=11, teacher_share=0)
    query, key, index = unit(3, 5, seed=3), unit(3, 5, seed=4), torch.tensor([1, 2, 20])
    objective.update(unit(8, 5, seed=1), unit(8, 9, seed=2), torch.arange(8))
    losses = {float(objective(query, unit(3, 9, seed=seed), index, key)) for seed in (6, 7)}
    assert len(losses) == 1
    assert float(objective(key, unit(3, 9, seed=6), index, key)) == pytest.approx(0, abs=1e-6)


def test_the_slow_student_sees_what_the_teacher_sees() -> None:
    """Without two views there is nothing to learn from oneself."""
    objective = make()
    assert (objective.reads_key, objective.key_view, objective.space) == (True, "teacher", "own")


def test_the_authors_values_are_the_defaults() -> None:
    """A run without options would not be theirs."""
    assert (Config().bank_size, Config().temperature, Config().momentum) == (128_000, 0.02, 0.99)


@pytest.mark.parametrize("share", [-0.1, 1.1, float("nan")])
def test_a_share_that_is_none_is_refused(share: float) -> None:
    """The loss would reward to be far from the slow student."""
    with pytest.raises(Refusal, match=r"--objective.teacher-share expected in \[0, 1\], got"):
        Config(teacher_share=share)
