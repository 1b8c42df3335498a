"""SEED against the paper's arithmetic in loops over floats."""

from __future__ import annotations

import math

import pytest
import torch

from compress_ssl import objectives
from compress_ssl.objectives.seed import Config, Objective
from compress_ssl.projector import ProjectorConfig
from compress_ssl.refusal import Refusal

pytestmark = pytest.mark.filterwarnings("error")


def by_hand(query, target, anchors, compared, *, temperature: float, student_temperature: float) -> float:
    """-sum_j p_j log q_j over the own target and the anchors that are compared, mean over the batch."""

    def shares(row: list[float], among: list[list[float]], divisor: float) -> list[float]:
        weights = [math.exp(math.fsum(a * b for a, b in zip(row, one, strict=True)) / divisor) for one in among]
        return [weight / math.fsum(weights) for weight in weights]

    total = 0.0
    for mine, its, which in zip(query.tolist(), target.tolist(), compared.tolist(), strict=True):
        among = [its] + [row for row, counts in zip(anchors.tolist(), which, strict=True) if counts]
        p, q = shares(its, among, temperature), shares(mine, among, student_temperature)
        total -= math.fsum(a * math.log(b) for a, b in zip(p, q, strict=True))
    return total / len(query)


@pytest.mark.parametrize("path", ["naive", "streamed"])
@pytest.mark.parametrize("same_image", ["mask", "keep"])
@pytest.mark.parametrize("filled", [0, 3, 11])
def test_the_loss_and_its_gradient_equal_loops_over_floats(unit, same_image: str, filled: int, path: str) -> None:
    """The own anchor left out, or one temperature on both sides, would be CompRess under SEED's name."""
    config = Config(bank_size=11, temperature=0.1, same_image=same_image, path=path)
    objective = Objective(config, width=9, target_width=9, images=23)
    index, anchors = torch.arange(filled) % 6, unit(filled, 9, seed=2)
    if filled:
        objective.update(unit(filled, 5, seed=6), anchors, index)
    query, target = unit(4, 9, seed=3).double().requires_grad_(), unit(4, 9, seed=4).double()
    samples = torch.tensor([2, 40, 2, 0])
    compared = (samples[:, None] != index) | (same_image == "keep")

    def expected(rows: torch.Tensor) -> float:
        return by_hand(rows, target, anchors.double(), compared, temperature=0.1, student_temperature=0.2)

    loss = objective(query, target, samples)
    loss.backward()
    assert float(loss.detach()) == pytest.approx(expected(query.detach()), rel=1e-6, abs=1e-9)
    for place in ((0, 0), (1, 5), (3, 8)):
        step = torch.zeros(4, 9, dtype=torch.float64)
        step[place] = 1e-5
        slope = (expected(query.detach() + step) - expected(query.detach() - step)) / 2e-5
        assert float(query.grad[place]) == pytest.approx(slope, rel=1e-4, abs=1e-8)


def test_at_the_paper_s_temperatures_the_own_anchor_is_nearly_all_of_the_target(unit) -> None:
    """The student would be drawn to other images' rows."""
    objective = Objective(Config(), width=9, target_width=9, images=23)
    objective.update(unit(11, 9, seed=6), unit(11, 9, seed=2), torch.arange(11))
    target = unit(3, 9, seed=4)
    query = target.clone().requires_grad_()
    objective(query, target, torch.tensor([20, 21, 22])).backward()
    assert (torch.nn.functional.cosine_similarity(-query.grad, target) > 0).all()


def test_the_paper_s_values_are_the_defaults() -> None:
    """A run without options would not be the paper's."""
    assert (Config().bank_size, Config().temperature, Config().student_temperature) == (65_536, 0.01, 0.2)
    head = objectives.projector_of(Config(), ProjectorConfig())
    assert (head.kind, head.layers, head.batch_norm) == ("mlp", 2, False)


def test_a_student_temperature_that_divides_by_nothing_is_refused() -> None:
    """A typing error would show as NaN in the first step."""
    with pytest.raises(Refusal, match=r"--objective.student-temperature expected more than 0, got 0"):
        Config(student_temperature=0)


def test_the_whole_table_of_a_stored_teacher_can_be_the_anchors(unit) -> None:
    """An option of the bank's would be parsed and ignored, or the batch written over the table."""
    table = unit(7, 9, seed=1)
    objective = Objective(Config(anchors="stored", bank_size=2), width=5, target_width=9, images=7)
    objective.fill(table, torch.arange(7))
    objective.update(unit(3, 9, seed=5), unit(3, 9, seed=6), torch.arange(3))
    assert torch.equal(objective.bank.anchors("target"), table)
    query, target, index = unit(2, 9, seed=2), unit(2, 9, seed=3), torch.tensor([6, 0])
    others = torch.stack([torch.cat([table[:6], target[:1]]), torch.cat([table[1:], target[1:]])])
    log_q = (others @ query[:, :, None]).squeeze(2).div(0.2).log_softmax(dim=1)
    p = (others @ target[:, :, None]).squeeze(2).div(0.01).softmax(dim=1)
    assert float(objective(query, target, index)) == pytest.approx(float(-(p * log_q).sum(dim=1).mean()), rel=1e-5)
