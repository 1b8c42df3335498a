"""The slow copy of the student against its one-line formula."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from compress_ssl.momentum import Momentum
from compress_ssl.refusal import Refusal
from compress_ssl.student import Student

pytestmark = pytest.mark.filterwarnings("error")


class TinyEncoder(nn.Module):
    width = 5

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.Flatten(), nn.Linear(12, 7), nn.BatchNorm1d(7), nn.Tanh(), nn.Linear(7, 5))

    def forward(self, images: Tensor) -> Tensor:
        return self.layers(images.float() / 255)


def make_student() -> Student:
    torch.manual_seed(3)
    return Student(TinyEncoder()).train()  # type: ignore[arg-type]


def pictures(seed: int = 0) -> Tensor:
    return torch.randint(0, 256, (7, 3, 2, 2), dtype=torch.uint8, generator=torch.Generator().manual_seed(seed))


def weights(model: Any) -> dict[str, Tensor]:
    return {name: value.detach().clone() for name, value in model.named_parameters()}


@pytest.mark.parametrize("share", [0.0, 0.3, 0.999])
def test_the_copy_moves_by_the_formula(share: float) -> None:
    """Keys would be too fresh or too stale, by a factor nobody would notice."""
    student = make_student()
    momentum = Momentum(student, share)
    assert momentum.slow is not None
    expected = weights(student)
    for step in range(4):
        with torch.no_grad():
            for parameter in student.parameters():
                parameter.add_(torch.randn(parameter.shape, generator=torch.Generator().manual_seed(step)))
        momentum.follow(student)
        now = weights(student)
        expected = {name: share * value + (1 - share) * now[name] for name, value in expected.items()}
    torch.testing.assert_close(weights(momentum.slow), expected)


def test_the_student_is_left_alone() -> None:
    """The copy would share its weights with the student, and nothing would be slow."""
    student = make_student()
    momentum = Momentum(student, 0.9)
    before = {name: value.clone() for name, value in student.state_dict().items()}
    momentum(pictures(), student.encoder.layers[4].bias.detach())  # type: ignore[index, union-attr, operator]
    momentum.follow(student)
    torch.testing.assert_close(dict(student.state_dict()), before, rtol=0, atol=0)
    assert all(parameter.requires_grad for parameter in student.parameters())


def test_batch_norm_of_the_copy_uses_the_batch_and_counts_for_itself() -> None:
    """With the statistics of another network the keys would be shifted; the paper's copy is in train mode."""
    student = make_student()
    momentum = Momentum(student, 0.9)
    assert momentum.slow is not None
    query = student(pictures())
    torch.testing.assert_close(momentum(pictures(), query), query.detach())  # equal weights, same batch
    student.eval()
    assert momentum.slow.training
    norm = momentum.slow.encoder.layers[2]  # type: ignore[index, union-attr]
    counted = norm.running_mean.clone()
    momentum(pictures(1), query)
    momentum.follow(student)
    assert not torch.equal(norm.running_mean, counted)
    assert not torch.equal(norm.running_mean, student.encoder.layers[2].running_mean)  # type: ignore


@pytest.mark.parametrize("share", [None, 0.9])
def test_a_key_has_no_gradient(share: float | None) -> None:
    """The graph of every step would be kept alive by the bank."""
    student = make_student()
    momentum = Momentum(student, share)
    key = momentum(pictures(), student(pictures()))
    assert not key.requires_grad
    torch.testing.assert_close(key.norm(dim=1), torch.ones(7))
    assert momentum.slow is None or not any(parameter.requires_grad for parameter in momentum.slow.parameters())


def test_without_momentum_the_key_is_the_query_and_nothing_is_copied() -> None:
    """A second forward pass and a second student in memory would be paid for nothing."""
    student = make_student()
    momentum = Momentum(student, None)
    query = student(pictures())
    assert momentum.slow is None
    assert momentum(pictures(), query).data_ptr() == query.data_ptr()
    momentum.follow(student)
    assert momentum.state_dict() == {}


def test_a_saved_copy_goes_on_as_if_nothing_had_happened() -> None:
    """A resumed run would start with fresh keys."""
    student = make_student()
    momentum, twin = Momentum(student, 0.9), Momentum(make_student(), 0.9)
    with torch.no_grad():
        for parameter in student.parameters():
            parameter.mul_(1.5)
    momentum.follow(student)
    momentum(pictures(), student(pictures()))
    twin.load_state_dict(momentum.state_dict())
    for one in (momentum, twin):
        one.follow(student)
    torch.testing.assert_close(twin.state_dict(), momentum.state_dict(), rtol=0, atol=0)


@pytest.mark.parametrize("share", [1.0, -0.1, 1.5, float("nan")])
def test_a_momentum_that_never_moves_or_overshoots_is_refused(share: float) -> None:
    """A typing error would show as a stack trace, or as keys that stay random for ever."""
    with pytest.raises(Refusal, match=r"--objective.momentum expected in \[0, 1\), got"):
        Momentum(make_student(), share)
