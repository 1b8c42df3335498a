"""CompRess-2q against the paper's arithmetic written out, and against loops over floats."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from compress_ssl.objectives.compress_2q import Config, Objective

pytestmark = pytest.mark.filterwarnings("error")


def make(images: int = 23, **options: Any) -> Objective:
    return Objective(Config(**options), width=5, target_width=9, images=images)


def assert_same_training(world, objective: Objective, *, temperature: float, tolerance: float) -> None:
    student = world.student(objective)
    queues = {"query_queue": objective.bank.anchors("key"), "target_queue": objective.bank.anchors("target")}
    options = {"momentum": objective.momentum, "temperature": temperature}
    losses, weights, targets, keys = world.by_hand(student, **options, **queues)
    got = world.train(objective, student)
    assert got == pytest.approx(losses, rel=tolerance, abs=tolerance)
    for name, value in student.named_parameters():
        torch.testing.assert_close(value.detach().double(), weights[name], rtol=tolerance, atol=tolerance, msg=name)
    torch.testing.assert_close(objective.bank.anchors("key").double(), keys, rtol=tolerance, atol=tolerance)
    torch.testing.assert_close(objective.bank.anchors("target").double(), targets, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("start", ["random", "loaded"])
@pytest.mark.parametrize("bank_size", [5, 19, 23])
@pytest.mark.parametrize("momentum", [None, 0.999, 0.7])
def test_twenty_steps_are_the_paper_s(
    world, unit, monkeypatch: pytest.MonkeyPatch, momentum: float | None, bank_size: int, start: str
) -> None:
    """Results could not be compared with the paper's."""
    objective = make(bank_size=bank_size, momentum=momentum, same_image="keep", start="random")
    if start == "loaded":
        rows = {"key": unit(bank_size, 5, seed=8), "target": unit(bank_size, 9, seed=9)}
        nobody = torch.full((bank_size,), -1)
        objective.load_state_dict(
            {"size": bank_size, "position": 0, "index": nobody, "rows": rows, "temperature": 0.04}
        )
    world.in_float64(objective, monkeypatch)
    assert_same_training(world, objective, temperature=0.04, tolerance=1e-6)


@pytest.mark.parametrize("momentum", [None, 0.999, 0.7])
def test_twenty_steps_in_float32_are_the_paper_s(world, momentum: float | None) -> None:
    """What is really run would be something else than what is tested in float64."""
    world.learning_rate = 0.01
    objective = make(bank_size=19, momentum=momentum, same_image="keep", start="random", temperature=0.2)
    assert_same_training(world, objective, temperature=0.2, tolerance=1e-5)


def test_the_three_variants_train_different_students(world) -> None:
    """The comparison with the paper could not tell one momentum from another: it would prove nothing."""
    ends = []
    for momentum in (None, 0.999, 0.7):
        objective = make(bank_size=19, momentum=momentum, same_image="keep", start="random")
        student = world.student(objective)
        world.train(objective, student)
        ends.append(student.encoder.last.weight.detach())
    for one, other in [(0, 1), (0, 2), (1, 2)]:
        assert (ends[one] - ends[other]).abs().max() > 1e-3


@pytest.mark.parametrize("same_image", ["mask", "keep"])
@pytest.mark.parametrize("filled", [0, 3, 11, 17])
def test_the_loss_and_its_gradient_equal_loops_over_floats(unit, plain, same_image: str, filled: int) -> None:
    """An image would be compared with itself, or with rows that hold nothing yet."""
    objective = make(bank_size=11, temperature=0.1, same_image=same_image)
    index = torch.arange(filled) % 6
    keys, targets = unit(filled, 5, seed=1), unit(filled, 9, seed=2)
    for batch in torch.arange(filled).split(4):
        objective.update(keys[batch], targets[batch], index[batch])
    query = unit(4, 5, seed=3).double().requires_grad_()
    target, samples = unit(4, 9, seed=4).double(), torch.tensor([2, 40, 2, 0])
    loss = objective(query, target, samples)
    loss.backward()

    rows = sorted(range(max(0, filled - 11), filled), key=lambda row: row % 11)
    compared = (samples[:, None] != index[rows]) | (same_image == "keep")
    expected, slope = plain(query, keys[rows], target, targets[rows], compared, 0.1)
    assert float(loss.detach()) == pytest.approx(expected, rel=1e-6, abs=1e-9)
    torch.testing.assert_close(query.grad, slope, rtol=1e-6, atol=1e-9)


def test_a_batch_is_compared_before_it_enters_the_bank(unit) -> None:
    """Every query would be its own strongest anchor."""
    objective = make(bank_size=11, same_image="keep")
    assert float(objective(unit(3, 5, seed=0), unit(3, 9, seed=1), torch.arange(3))) == 0
    assert objective.bank.filled == 0


def test_the_paper_s_values_are_the_defaults() -> None:
    """A run without options would not be the paper's."""
    config = Config()
    assert (config.bank_size, config.temperature, config.momentum) == (128_000, 0.04, 0.999)
    assert make().momentum == 0.999
    assert make(momentum=None).momentum is None
    assert make().space == "own"
