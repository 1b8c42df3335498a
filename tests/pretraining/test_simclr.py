"""SimCLR's loss against lightly's own, and without a wait for the device."""

from __future__ import annotations

import pytest
import torch
from lightly.loss import NTXentLoss

from compress_ssl.pretraining.simclr import nt_xent


def projections(device: str = "cpu") -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    first, second = (torch.randn(7, 5, generator=generator).to(device).requires_grad_() for _ in range(2))
    return first, second


@pytest.mark.parametrize("temperature", [0.07, 0.2, 1.0])
def test_the_loss_and_its_gradient_are_lightly_s(temperature: float) -> None:
    """A teacher would be pretrained by another method than the one that is named."""
    ours, theirs = projections(), projections()
    loss = nt_xent(*ours, temperature=temperature)
    expected = NTXentLoss(temperature=temperature)(*theirs)
    torch.testing.assert_close(loss, expected)
    loss.backward(), expected.backward()
    for mine, its in zip(ours, theirs, strict=True):
        torch.testing.assert_close(mine.grad, its.grad, rtol=1e-4, atol=1e-6)


def test_nobody_waits_for_it() -> None:
    """A GPU would run dry twice in every step; `meta` tensors have no values that could be waited for."""
    first, second = projections("meta")
    nt_xent(first, second, temperature=0.2).backward()
    assert first.grad is not None
    assert first.grad.shape == (7, 5)
