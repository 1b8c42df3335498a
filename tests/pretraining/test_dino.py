"""DINO's loss and centre against lightly's own, and what it holds back from the optimizer."""

from __future__ import annotations

import contextlib
from types import SimpleNamespace

import pytest
import torch
from lightly.loss import DINOLoss

from compress_ssl.encoder import open_encoder
from compress_ssl.pretraining import dino

FABRIC = SimpleNamespace(
    device=torch.device("cpu"), global_rank=0, world_size=1, autocast=lambda: contextlib.nullcontext()
)


def method(**options: float) -> dino.Method:
    torch.manual_seed(0)
    config = dino.Config(outputs=11, hidden_width=7, bottleneck_width=5, **options)  # type: ignore[arg-type]
    encoder = open_encoder("compress/resnet10_small_w8", weights="random", size=16)
    return dino.Method(config, dino.make_learner(config, encoder, ranks=1), fabric=FABRIC)  # type: ignore[arg-type]


def test_loss_and_centre_are_lightly_s_over_several_steps() -> None:
    """A teacher would be pretrained by another method than the one that is named."""
    generator = torch.Generator().manual_seed(0)
    judge, ours = DINOLoss(11, teacher_temp=0.05, center_momentum=0.9), method(centre_momentum=0.9)
    for _ in range(3):
        query, key = (torch.randn(views * 3, 11, generator=generator) for views in (5, 2))
        loss = dino.cross_view(
            query.unflatten(0, (5, 3)), key.unflatten(0, (2, 3)), ours.centre, temperature=0.1, key_temperature=0.05
        )
        torch.testing.assert_close(loss, judge(list(key.split(3)), list(query.split(3)), teacher_temp=0.05))
        ours.update(query, key, torch.arange(3), 0.5)
        torch.testing.assert_close(ours.centre, judge.center.flatten())


@pytest.mark.parametrize(("progress", "expected"), [(0.0, 0.07), (0.15, 0.055), (0.3, 0.04), (1.0, 0.04)])
def test_the_key_temperature_follows_the_share_of_the_training(progress: float, expected: float) -> None:
    """Counted in epochs it would never be warm in a short training."""
    ours = method(key_temperature_start=0.07, key_temperature=0.04, key_temperature_warmup=0.3)
    query, key = torch.randn(3 * 3, 11), torch.randn(2 * 3, 11)
    told = dino.cross_view(
        query.unflatten(0, (3, 3)), key.unflatten(0, (2, 3)), ours.centre, temperature=0.1, key_temperature=expected
    )
    torch.testing.assert_close(ours.loss(query, key, torch.arange(3), progress), told)


def test_the_last_layer_stays_at_first_and_long_gradients_are_cut() -> None:
    """The outputs would collapse in the first steps, while the slow copy is still random."""
    ours = method(freeze=0.1, clip=0.5)
    for parameter in ours.learner.parameters():
        parameter.grad = torch.full_like(parameter, 3.0) if parameter.requires_grad else None
    ours.restrain(0.05)
    lengths = [float(weight.grad.norm()) for weight in ours.learner.parameters() if weight.grad is not None]
    assert max(lengths) <= 0.5 + 1e-5
    last = ours.learner.head.last_layer.weight_v
    assert float(last.grad.abs().sum()) == 0
    last.grad.fill_(0.01)
    ours.restrain(0.1)
    assert float(last.grad.min()) == pytest.approx(0.01), "a short gradient is left alone"


@pytest.mark.parametrize(("progress", "expected"), [(0.0, 0.9), (0.5, 0.95), (1.0, 1.0)])
def test_the_slow_copy_follows_ever_less(progress: float, expected: float) -> None:
    """It would never settle, or never move."""
    ours = method(momentum=0.9)
    weight, slow = (model.encoder.backbone.conv1.weight for model in (ours.learner, ours.slow))
    before = slow.clone()
    with torch.no_grad():
        weight.add_(1.0)
    ours.update(torch.zeros(3, 11), torch.zeros(2, 11), torch.arange(1), progress)
    torch.testing.assert_close(slow - before, torch.full_like(before, 1 - expected), rtol=1e-3, atol=1e-6)
