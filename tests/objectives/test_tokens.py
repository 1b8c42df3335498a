"""The token term against loops over floats, and what runs with it need."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from compress_ssl import datasets, distill, doctor
from compress_ssl.hardware import HardwareConfig
from compress_ssl.objectives import compress_1q, weighted_sum
from compress_ssl.objectives.tokens import Config, Objective, token_kl
from compress_ssl.refusal import Refusal
from compress_ssl.training import TrainingConfig

pytestmark = pytest.mark.filterwarnings("error")


def by_hand(query: list[Any], target: list[Any], temperature: float) -> float:
    """One picture after the other, one token after the other, one other token after the other."""

    def shares(tokens: list[list[float]], of: int) -> dict[int, float]:
        weights = {
            other: math.exp(sum(a * b for a, b in zip(tokens[of], row, strict=True)) / temperature)
            for other, row in enumerate(tokens)
            if other != of
        }
        return {other: weight / math.fsum(weights.values()) for other, weight in weights.items()}

    total = []
    for mine, its in zip(query, target, strict=True):
        for token in range(len(mine)):
            p, q = shares(its, token), shares(mine, token)
            total.append(math.fsum(p[other] * math.log(p[other] / q[other]) for other in p))
    return math.fsum(total) / len(total)


def tokens(unit: Any, pictures: int, count: int, width: int, *, seed: int) -> Tensor:
    return unit(pictures * count, width, seed=seed).reshape(pictures, count, width).double()


@pytest.mark.parametrize(("pictures", "count", "temperature"), [(3, 4, 0.1), (2, 9, 1.0), (1, 2, 0.3)])
def test_the_token_term_and_its_gradient_equal_loops_over_floats(
    unit, pictures: int, count: int, temperature: float
) -> None:
    """Patches of one picture would be compared with another's, or each with itself."""
    query, target = tokens(unit, pictures, count, 3, seed=1).requires_grad_(), tokens(unit, pictures, count, 5, seed=2)
    loss = token_kl(query, target, temperature=temperature)
    loss.backward()
    assert float(loss.detach()) == pytest.approx(
        by_hand(query.tolist(), target.tolist(), temperature), rel=1e-10, abs=1e-14
    )
    slope = torch.zeros_like(query)
    for place in np.ndindex(*query.shape):
        ends = []
        for shift in (1e-6, -1e-6):
            moved = query.detach().clone()
            moved[place] += shift
            ends.append(by_hand(moved.tolist(), target.tolist(), temperature))
        slope[place] = (ends[0] - ends[1]) / 2e-6
    torch.testing.assert_close(query.grad, slope, rtol=1e-5, atol=1e-7)


def test_tokens_that_relate_as_the_teacher_s_do_cost_nothing(unit) -> None:
    """A student in a rotated space of another width would be punished for it."""
    target = tokens(unit, 2, 6, 3, seed=1)
    rotation, _ = torch.linalg.qr(torch.randn(7, 7, dtype=torch.float64, generator=torch.Generator().manual_seed(0)))
    assert float(token_kl(target @ rotation[:3], target, temperature=0.1)) == pytest.approx(0, abs=1e-12)


def test_the_whole_loss_is_1q_of_the_rows_and_the_weighted_tokens(unit) -> None:
    """Tokens would be taken for a part of the embedding, or the weight be ignored."""
    objective = Objective(Config(token_weight=0.5, token_temperature=0.2), width=9, target_width=9, images=23)
    alone = compress_1q.Objective(compress_1q.Config(), width=9, target_width=9, images=23)
    objective.token_side = 2

    def wide(rows: Tensor, width: int, seed: int) -> tuple[Tensor, Tensor]:
        own = tokens(unit, len(rows), 4, width, seed=seed).float()
        return torch.cat([rows, own.flatten(1)], dim=1), own

    for step in range(3):
        query, target, index = unit(3, 9, seed=step), unit(3, 9, seed=10 + step), torch.arange(3) + 3 * step
        (whole, mine), (theirs, its) = wide(query, 3, 20 + step), wide(target, 5, 30 + step)
        expected = alone(query, target, index) + 0.5 * token_kl(mine, its, temperature=0.2)
        torch.testing.assert_close(objective(whole, theirs, index), expected)
        objective.update(whole, theirs, index)
        alone.update(query, target, index)
    assert torch.equal(objective.bank.anchors("target"), alone.bank.anchors("target"))


@pytest.mark.parametrize("option", ["token_weight", "token_temperature"])
@pytest.mark.parametrize("value", [0.0, -1.0, float("nan")])
def test_options_that_leave_the_tokens_out_are_refused(option: str, value: float) -> None:
    """The table would name a method that was not run."""
    with pytest.raises(Refusal, match=f"--objective.{option.replace('_', '-')} expected more than 0"):
        Config(**{option: value})


def run(tmp_path: Path, **how: Any) -> None:
    distill.run(
        distill.Config(
            **{"teacher": "timm/test_vit@random", "student": "timm/test_vit", "student_size": 32, **how},
            data="digits",
            out=tmp_path / "run",
            objective=Config(),
            training=TrainingConfig(epochs=0.01, batch_size=16),
            hardware=HardwareConfig(accelerator="cpu", workers=0, compile="off"),
        )
    )


def test_models_without_patch_tokens_are_refused(tmp_path: Path) -> None:
    """The run would end in a traceback at its first step, or compare something else."""
    with pytest.raises(Refusal, match=r"--student expected a vision transformer of timm .* compress/resnet10_small_w8"):
        run(tmp_path, student="compress/resnet10_small_w8", teacher_size=32)
    with pytest.raises(Refusal, match=r"--teacher expected a vision transformer of timm .* compress/resnet10_small"):
        run(tmp_path / "other", teacher="compress/resnet10_small_w8@random")
    with pytest.raises(Refusal, match=r"--student expected .* at least 2 × 2 patch tokens"):
        run(tmp_path / "one", student_size=16)


def test_stored_rows_are_refused_as_teachers(tmp_path: Path) -> None:
    """A table holds one row a picture: there is nothing to compare patches with."""
    images = datasets.open_splits("digits").train
    np.save(tmp_path / "vectors.npy", np.random.default_rng(0).normal(size=(len(images), 7)).astype(np.float32))
    (tmp_path / "ids.txt").write_text("\n".join(images.ids))
    with pytest.raises(Refusal, match=r"--objective tokens expected a live encoder as --teacher, got .* stored"):
        run(tmp_path, teacher=str(tmp_path / "vectors.npy"), ids=tmp_path / "ids.txt")


def test_where_rows_alone_are_compared_it_is_refused() -> None:
    """Other terms of a sum would take patches for a part of the embedding."""
    with pytest.raises(Refusal, match=r"--objective.terms expected objectives that compare rows alone, got tokens"):
        weighted_sum.Config(terms=("regression", "tokens"))
    with pytest.raises(Refusal, match=r"--objective expected one that compares rows alone, got tokens"):
        doctor.Config(data="digits", objective=Config())
