"""Our default, and its changes that can be switched on: centred rows, the own row among the anchors."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from compress_ssl.calibration import calibrate
from compress_ssl.embeddings import Embeddings
from compress_ssl.evaluations import Embedded
from compress_ssl.objectives import compress_1q
from compress_ssl.objectives.compress import Config, Objective
from compress_ssl.refusal import Refusal
from compress_ssl.scorer import settle_centres, settle_temperatures
from compress_ssl.weighted import Weighted

pytestmark = pytest.mark.filterwarnings("error")


def make(**options: Any) -> Objective:
    given = {"temperature": 0.1, "centre": "mean", "own_anchor": "compared", "regression": 0.0, **options}
    return Objective(Config(**given), width=5, target_width=9, images=23)


def by_loops(query: Tensor, target: Tensor, anchors: list[Tensor], left_out: list[list[int]], mean: Tensor) -> float:
    """The docstring's formula, a row at a time in float64, the own row last."""
    total = 0.0
    for row, (mine, its) in enumerate(zip(query.double(), target.double(), strict=True)):
        its = (its - mean.double()) / (its - mean.double()).norm()
        kept = [one.double() - mean.double() for place, one in enumerate(anchors) if place not in left_out[row]]
        kept = [one / one.norm() for one in kept] + [its]
        p = torch.stack([torch.exp(its @ one / 0.1) for one in kept])
        q = torch.stack([torch.exp(mine @ one / 0.1) for one in kept])
        p, q = p / p.sum(), q / q.sum()
        total += float((p * (p / q).log()).sum())
    return total / len(query)


@pytest.mark.parametrize("filled", [0, 3, 11, 17])
def test_the_loss_is_the_formula_in_loops(unit, filled: int) -> None:
    """Students would be trained on something else than the docstring and the results page say."""
    objective, mean = make(bank_size=11), torch.full((9,), 0.2)
    objective.centre_on(mean)
    rows, index = unit(filled, 9, seed=1), torch.arange(filled) % 6
    for batch in torch.arange(filled).split(4):
        objective.update(unit(len(batch), 9, seed=6), rows[batch], index[batch])
    query, target, samples = unit(4, 9, seed=3).requires_grad_(), unit(4, 9, seed=4), torch.tensor([2, 40, 2, 0])
    loss = objective(query, target, samples)
    loss.backward()

    held = sorted(range(max(0, filled - 11), filled), key=lambda row: row % 11)
    left_out = [[place for place, row in enumerate(held) if index[row] == sample] for sample in samples.tolist()]
    anchors = [rows[row] for row in held]

    def formula(at: Tensor) -> float:
        return by_loops(at, target, anchors, left_out, mean)

    assert float(loss.detach()) == pytest.approx(formula(query.detach()), rel=1e-5, abs=1e-7)
    assert query.grad is not None
    for row, column in ((0, 0), (3, 8), (1, 4)):  # central differences of the formula
        step = torch.zeros_like(query.detach())
        step[row, column] = 1e-4
        above, below = (formula(query.detach().double() + sign * step.double()) for sign in (1, -1))
        assert float(query.grad[row, column]) == pytest.approx((above - below) / 2e-4, rel=1e-3, abs=1e-5)


def test_at_the_paper_s_temperature_the_default_is_1q_to_the_last_bit(unit) -> None:
    """What each change is worth could not be measured one by one."""
    ours = Objective(Config(temperature=0.04, regression=0.0, bank_size=7), width=5, target_width=9, images=23)
    theirs = compress_1q.Objective(compress_1q.Config(bank_size=7), width=5, target_width=9, images=23)
    for objective in (ours, theirs):
        objective.update(unit(5, 9, seed=1), unit(5, 9, seed=2), torch.arange(5))
    args = unit(3, 9, seed=3), unit(3, 9, seed=4), torch.tensor([0, 9, 4])
    assert torch.equal(ours(*args), theirs(*args))


def test_the_regression_is_added_with_its_weight(unit) -> None:
    """A student would learn by similarities alone, or by a regression of other rows than the docstring says."""
    ours = Objective(Config(temperature=0.1, regression=2.5), width=5, target_width=9, images=23)
    alone = Objective(Config(temperature=0.1, regression=0.0), width=5, target_width=9, images=23)
    for objective in (ours, alone):
        objective.update(unit(5, 9, seed=1), unit(5, 9, seed=2), torch.arange(5))
    query, target, index = unit(7, 9, seed=3), unit(7, 9, seed=4), torch.arange(11, 18)
    assert ours.trained is not None
    rows = query.double() @ ours.trained.weight.detach().double().T + ours.trained.bias.detach().double()
    total = 0.0
    for mine, its in zip(rows.T, target.double().T, strict=True):
        pair = [(one - one.mean()) / (one.var(correction=0) + 1e-5 / 9).sqrt() for one in (mine, its)]
        total += float((pair[0] - pair[1]).square().mean()) / 9
    expected = float(alone(query, target, index)) + 2.5 * total
    assert float(ours(query, target, index).detach()) == pytest.approx(expected, rel=1e-5)
    assert (ours.within_batch, alone.within_batch, alone.trained) == (True, False, None)


def test_without_a_centre_nothing_is_taken_away(unit) -> None:
    """`centre none` would be parsed and ignored."""
    objective = make(centre="none")
    objective.centre_on(torch.ones(9))
    rows = unit(3, 9, seed=1)
    torch.testing.assert_close(objective.seen(rows), rows)


def judge(gallery: Tensor, held_out: Tensor) -> Embedded:
    parts = [
        Embeddings(rows=rows.numpy(), labels=np.full(len(rows), -1), ids=tuple(f"{name}{n}" for n in range(len(rows))))
        for name, rows in (("g", gallery), ("h", held_out))
    ]
    return Embedded(train=parts[0], test=parts[1])


def test_centre_and_temperature_come_from_the_teacher_s_rows(unit) -> None:
    """A cone of rows would keep its mean, or the temperature would be that of other rows than are compared."""
    cone = torch.nn.functional.normalize(unit(211, 9, seed=1) + 2.0)
    gallery, held_out = cone[:180], cone[180:]
    objective = make(temperature="auto")
    whole: Any = Weighted([objective], [1.0], [(9, 9)])
    alone: Any = SimpleNamespace(world_size=1, broadcast=lambda found: found)
    settle_centres(whole, [judge(gallery, held_out)], alone)
    assert settle_temperatures(whole, [judge(gallery, held_out)], alone)
    torch.testing.assert_close(objective.centre, gallery.mean(dim=0), rtol=1e-5, atol=1e-6)
    expected = calibrate(objective.seen(held_out), objective.seen(gallery), share=0.02).temperature
    assert objective.temperature == pytest.approx(expected)
    assert objective.temperature > 2 * calibrate(held_out, gallery, share=0.02).temperature


def test_a_resumed_run_finds_centre_temperature_and_anchors(unit) -> None:
    """It would go on in another space than it began in."""
    first, second = make(bank_size=7), make(bank_size=7, temperature="auto")
    first.centre_on(torch.full((9,), 0.3))
    first.update(unit(5, 9, seed=1), unit(5, 9, seed=2), torch.arange(5))
    second.load_state_dict(first.state_dict())
    args = unit(3, 9, seed=3), unit(3, 9, seed=4), torch.tensor([0, 9, 4])
    assert torch.equal(first(*args), second(*args))


def test_stored_anchors_are_centred_too(unit) -> None:
    """A table's rows would be compared where they lie, the batch's where they lie without their mean."""
    objective, table = make(anchors="stored"), unit(6, 9, seed=1)
    objective.centre_on(torch.full((9,), 0.2))
    objective.fill(table, torch.arange(6))
    torch.testing.assert_close(objective.bank.anchors("target"), objective.seen(table))
    assert set(objective.state_dict()) == {"temperature", "centre"}, "the table holds the rows"
    with pytest.raises(Refusal, match=r"--objective.start empty, got random"):
        Config(anchors="stored", start="random")


def test_a_few_images_have_a_temperature_too(unit) -> None:
    """The default would be refused on the first small folder that a newcomer tries."""
    objective = Objective(Config(), width=5, target_width=9, images=7)
    whole: Any = Weighted([objective], [1.0], [(9, 9)])
    alone: Any = SimpleNamespace(world_size=1, broadcast=lambda found: found)
    settle_temperatures(whole, [judge(unit(5, 9, seed=1), unit(3, 9, seed=2))], alone)
    assert 0 < float(objective.temperature) < 10
