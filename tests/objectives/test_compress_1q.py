"""CompRess-1q against the paper's arithmetic written out, and against loops over floats."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from compress_ssl.objectives.compress_1q import Config, Objective
from compress_ssl.refusal import Refusal

pytestmark = pytest.mark.filterwarnings("error")


def make(images: int = 23, **options: Any) -> Objective:
    return Objective(Config(**options), width=5, target_width=9, images=images)


def assert_same_training(world, objective: Objective, *, temperature: float, tolerance: float) -> None:
    student, queue = world.student(objective), objective.bank.anchors("target")
    options = {"momentum": None, "temperature": temperature}
    losses, weights, targets, _ = world.by_hand(student, **options, target_queue=queue, query_queue=None)
    got = world.train(objective, student)
    assert got == pytest.approx(losses, rel=tolerance, abs=tolerance)
    for name, value in student.named_parameters():
        torch.testing.assert_close(value.detach().double(), weights[name], rtol=tolerance, atol=tolerance, msg=name)
    torch.testing.assert_close(objective.bank.anchors("target").double(), targets, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("start", ["random", "loaded"])
@pytest.mark.parametrize("bank_size", [5, 19, 23])
def test_twenty_steps_are_the_paper_s(world, unit, monkeypatch: pytest.MonkeyPatch, bank_size: int, start: str) -> None:
    """Results could not be compared with the paper's."""
    objective = make(bank_size=bank_size, same_image="keep", start="random")
    if start == "loaded":
        rows, nobody = {"target": unit(bank_size, 9, seed=9)}, torch.full((bank_size,), -1)
        objective.load_state_dict(
            {"size": bank_size, "position": 0, "index": nobody, "rows": rows, "temperature": 0.04}
        )
    world.in_float64(objective, monkeypatch)
    assert_same_training(world, objective, temperature=0.04, tolerance=1e-6)


def test_twenty_steps_in_float32_are_the_paper_s(world) -> None:
    """What is really run would be something else than what is tested in float64."""
    world.learning_rate = 0.01
    objective = make(bank_size=19, same_image="keep", start="random", temperature=0.2)
    assert_same_training(world, objective, temperature=0.2, tolerance=1e-5)


@pytest.mark.parametrize("same_image", ["mask", "keep"])
@pytest.mark.parametrize("filled", [0, 3, 11, 17])
def test_the_loss_and_its_gradient_equal_loops_over_floats(unit, plain, same_image: str, filled: int) -> None:
    """An image would be compared with itself, or with rows that hold nothing yet."""
    objective = make(bank_size=11, temperature=0.1, same_image=same_image)
    index, targets = torch.arange(filled) % 6, unit(filled, 9, seed=2)
    for batch in torch.arange(filled).split(4):
        objective.update(unit(len(batch), 5, seed=6), targets[batch], index[batch])
    query = unit(4, 9, seed=3).double().requires_grad_()
    target, samples = unit(4, 9, seed=4).double(), torch.tensor([2, 40, 2, 0])
    loss = objective(query, target, samples)
    loss.backward()

    rows = sorted(range(max(0, filled - 11), filled), key=lambda row: row % 11)
    compared = (samples[:, None] != index[rows]) | (same_image == "keep")
    expected, slope = plain(query, targets[rows], target, targets[rows], compared, 0.1)
    assert float(loss.detach()) == pytest.approx(expected, rel=1e-6, abs=1e-9)
    torch.testing.assert_close(query.grad, slope, rtol=1e-6, atol=1e-9)


def test_the_student_is_projected_into_the_teacher_s_space_and_makes_no_keys() -> None:
    """Its rows could not be compared with an index of teacher rows; a slow copy would cost time for nothing."""
    assert make().space == "teacher"
    assert make().momentum is None


def test_the_paper_s_values_are_the_defaults() -> None:
    """A run without options would not be the paper's."""
    assert (Config().bank_size, Config().temperature) == (128_000, 0.04)


def test_stored_anchors_are_all_there_from_the_first_step_and_stay(unit) -> None:
    """With a table the bank would still have to fill, and would forget what the table remembers."""
    objective, table = make(7, anchors="stored", bank_size=2), unit(7, 9, seed=1)
    assert objective.stored_anchors
    for part in ([0, 1, 2], [3, 4, 5, 6]):
        objective.fill(table[part], torch.tensor(part))
    before = objective.bank.anchors("target").clone()
    assert torch.equal(before, table)
    query, target, index = unit(3, 9, seed=2), unit(3, 9, seed=3), torch.tensor([6, 0, 2])
    loss = objective(query, target, index)
    assert float(loss) > 0
    objective.update(query, target, index)
    assert torch.equal(objective.bank.anchors("target"), before)
    assert set(objective.state_dict()) == {"temperature"}, "the table holds the rows"


def test_stored_anchors_that_start_at_random_are_refused() -> None:
    """One of the two would be ignored."""
    with pytest.raises(Refusal, match=r"--objective.start empty, got random"):
        Config(anchors="stored", start="random")
