"""CRD against its equations in loops over floats."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor

from compress_ssl.objectives.crd import Config, Objective, log_mean_of_random_rows
from compress_ssl.refusal import Refusal

pytestmark = pytest.mark.filterwarnings("error")


def make(images: int = 23, **options: Any) -> Objective:
    objective = Objective(Config(**{"head_width": 3, **options}), width=5, target_width=9, images=images)
    objective.trained.double()
    return objective


def head(layer: torch.nn.Linear, rows: Tensor) -> list[list[float]]:
    """sqrt(D) · row through a linear layer, at length one."""
    made = []
    for row in rows.tolist():
        out = [
            math.fsum(math.sqrt(len(row)) * a * b for a, b in zip(row, line, strict=True)) + shift
            for line, shift in zip(layer.weight.tolist(), layer.bias.tolist(), strict=True)
        ]
        length = math.sqrt(math.fsum(value**2 for value in out))
        made.append([value / length for value in out])
    return made


def by_hand(objective: Objective, query: Tensor, target: Tensor, index: list[int], bank: Any) -> float:
    """The two losses as the module writes them; `bank` has (image, student's row, teacher's row)."""
    temperature, constant = objective.temperature, math.exp(log_mean_of_random_rows(3, temperature=0.3))
    student, teacher = head(objective.trained.student, query), head(objective.trained.teacher, target)
    total = 0.0
    for place, image in enumerate(index):
        for anchors, positives, side in ((student, teacher, 2), (teacher, student, 1)):
            others = [one[side] for one in bank if one[0] != image]
            count = max(len(others), 1)

            def h(row: list[float], other: list[float], count: int = count) -> float:
                critic = math.exp(math.fsum(a * b for a, b in zip(row, other, strict=True)) / temperature)
                return critic / (critic + count * constant)

            anchor = anchors[place]
            total -= math.log(h(anchor, positives[place]))
            total -= math.fsum(math.log(1 - h(anchor, other)) for other in others)
    return total / len(index)


@pytest.mark.parametrize("steps", [0, 1, 2, 4])
def test_the_loss_and_its_gradient_equal_the_equations(unit, steps: int) -> None:
    """The baseline of the table would be another method; an image would be its own negative."""
    objective, bank = make(bank_size=8, temperature=0.3), []
    for step in range(steps):
        key, target = unit(3, 5, seed=step), unit(3, 9, seed=20 + step)
        images = [(3 * step + number) % 7 for number in range(3)]
        objective.update(key, target, torch.tensor(images))
        rows = (head(objective.trained.student, key), head(objective.trained.teacher, target))
        bank = [*bank, *zip(images, *rows, strict=True)][-8:]
    query, target, index = unit(4, 5, seed=50).double().requires_grad_(), unit(4, 9, seed=51).double(), [2, 9, 0, 2]
    loss = objective(query, target, torch.tensor(index))
    loss.backward()
    assert float(loss.detach()) == pytest.approx(by_hand(objective, query, target, index, bank), rel=1e-6)

    slope = torch.zeros_like(query)
    for place in range(4):
        for column in range(5):
            ends = []
            for shift in (1e-5, -1e-5):
                moved = query.detach().clone()
                moved[place, column] += shift
                ends.append(by_hand(objective, moved, target, index, bank))
            slope[place, column] = (ends[0] - ends[1]) / 2e-5
    torch.testing.assert_close(query.grad, slope, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize(("width", "temperature"), [(3, 0.3), (128, 0.07), (5, 1.0), (2, 0.5)])
def test_the_constant_is_the_mean_over_random_rows(width: int, temperature: float) -> None:
    """h would start near 0 or 1 for all pairs, where its gradient says nothing."""
    rows = torch.randn(100_000, width, dtype=torch.float64, generator=torch.Generator().manual_seed(0))[:, :1]
    if width > 1:
        lengths = torch.randn(100_000, width - 1, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
        rows = rows / (rows.square() + lengths.square().sum(dim=1, keepdim=True)).sqrt()
    drawn = float((rows / temperature).exp().mean())
    assert math.exp(log_mean_of_random_rows(width, temperature=temperature)) == pytest.approx(drawn, rel=3e-2)


@pytest.mark.parametrize("temperature", [0.001, 0.02, 5.0])
def test_the_constant_is_known_in_closed_form_for_three_numbers(temperature: float) -> None:
    """At a small temperature the sum would leave out its largest terms, or overflow."""
    sharp = 1 / temperature  # mean of e^{x/τ} for x uniform in [-1, 1]: sinh(1/τ)·τ
    expected = sharp + math.log((1 - math.exp(-2 * sharp)) / 2) - math.log(sharp)
    assert log_mean_of_random_rows(3, temperature=temperature) == pytest.approx(expected, rel=1e-9)


def test_training_brings_the_rows_of_one_image_together(unit) -> None:
    """A sign would drive them apart."""
    objective = make(bank_size=20, head_width=4)
    query, target, index = unit(23, 5, seed=1).double(), unit(23, 9, seed=2).double(), torch.arange(23)
    query.requires_grad_()
    optimizer = torch.optim.SGD([query, *objective.trained.parameters()], lr=0.2)
    found = []
    for step in range(60):
        part = (torch.arange(7) + 7 * step) % 23
        optimizer.zero_grad()
        objective(query[part], target[part], index[part]).backward()
        optimizer.step()
        objective.update(query[part], target[part], index[part])
        with torch.no_grad():
            student, teacher = objective.trained(query, target)
        nearest = (student @ teacher.T).argmax(dim=1)
        found.append(float((nearest == index).double().mean()))
    assert found[-1] > found[0]
    assert found[-1] > 0.8


def test_the_authors_values_are_the_defaults() -> None:
    """A run without options would not be theirs."""
    assert (Config().bank_size, Config().temperature, Config().head_width) == (16_384, 0.07, 128)


@pytest.mark.parametrize("option", ["bank_size", "head_width"])
def test_nothing_to_compare_with_is_refused(option: str) -> None:
    """An empty ring would fail at the first write."""
    with pytest.raises(Refusal, match=f"--objective.{option.replace('_', '-')} expected at least 1, got 0"):
        Config(**{option: 0})
