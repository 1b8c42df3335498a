"""Schedules against torch's own, and the optimizer that the paper names."""

from __future__ import annotations

import math

import pytest
import torch
from lightly.utils.lars import LARS
from torch import nn
from torch.optim.lr_scheduler import CosineAnnealingLR, MultiStepLR

from compress_ssl.optim import Lars, OptimizerConfig, ScheduleConfig, optimizer, rate, set_decay, set_rate
from compress_ssl.refusal import Refusal
from compress_ssl.transforms import TrainView

pytestmark = pytest.mark.filterwarnings("error")


def torch_rates(schedule: type, steps: int, **options: object) -> list[float]:
    sgd = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=1.0)
    scheduler, rates = schedule(sgd, **options), []
    for _ in range(steps):
        rates.append(sgd.param_groups[0]["lr"])
        sgd.step()
        scheduler.step()
    return rates


@pytest.mark.parametrize("steps_per_epoch", [1, 3, 7, 5004])
def test_the_step_schedule_falls_at_epochs_90_and_120_of_130(steps_per_epoch: int) -> None:
    """A milestone that rounds to the step after would not be the paper's training."""
    total = 130 * steps_per_epoch
    for epoch, expected in enumerate(torch_rates(MultiStepLR, 130, milestones=[90, 120], gamma=0.2)):
        for step in {epoch * steps_per_epoch, (epoch + 1) * steps_per_epoch - 1}:
            assert rate(step / total, ScheduleConfig()) == pytest.approx(expected)


@pytest.mark.parametrize("final", [0.0, 0.1])
def test_the_cosine_goes_from_the_peak_to_the_final_share(final: float) -> None:
    """The last epochs, which settle the student, would be trained at another rate."""
    config = ScheduleConfig(name="cosine", final=final)
    expected = torch_rates(CosineAnnealingLR, 37, T_max=37, eta_min=final)
    assert [rate(step / 37, config) for step in range(37)] == pytest.approx(expected)
    assert rate(0, config) == 1
    assert rate(1, config) == pytest.approx(final)


@pytest.mark.parametrize("name", ["step", "cosine", "constant"])
def test_the_rate_rises_from_zero_to_the_peak_in_the_warmup(name: str) -> None:
    """A jump at the end of the warmup would be the shock that it is there to avoid."""
    config = ScheduleConfig(name=name, warmup=0.25)  # type: ignore[arg-type]
    assert [rate(progress / 100, config) for progress in (0, 5, 20)] == pytest.approx([0, 0.2, 0.8])
    assert rate(0.25, config) == 1
    assert rate(0.25 - 1e-12, config) == pytest.approx(1)
    without = ScheduleConfig(name=name)  # type: ignore[arg-type]
    if name == "cosine":
        assert rate(0.25 + 0.75 / 2, config) == pytest.approx(rate(0.5, without))
    else:
        assert rate(0.95, config) == rate(0.95, without)


def test_a_constant_rate_is_constant() -> None:
    """Comparisons at a fixed rate would not be."""
    assert {rate(step / 7, ScheduleConfig(name="constant")) for step in range(8)} == {1.0}


@pytest.mark.parametrize("name", ["step", "cosine", "constant"])
@pytest.mark.parametrize("warmup", [0.0, 0.3, 1.0])
def test_every_progress_has_a_rate_between_zero_and_the_peak(name: str, warmup: float) -> None:
    """A division by zero at the very last step would lose the run."""
    config = ScheduleConfig(name=name, warmup=warmup)  # type: ignore[arg-type]
    assert all(0 <= rate(step / 101, config) <= 1 and math.isfinite(rate(step / 101, config)) for step in range(102))


def test_sgd_steps_as_the_paper_s() -> None:
    """Momentum or weight decay would be left out, and nobody would see it."""
    weight, frozen = nn.Parameter(torch.tensor([1.0, -2.0])), nn.Parameter(torch.ones(3), requires_grad=False)
    sgd = optimizer([weight, frozen], OptimizerConfig())
    expected, velocity = weight.detach().double(), torch.zeros(2, dtype=torch.float64)
    for step in range(4):
        set_rate(sgd, 0.01 / (step + 1))
        sgd.zero_grad()
        (weight**2).sum().backward()
        velocity = 0.9 * velocity + 2 * expected + 1e-4 * expected
        expected = expected - 0.01 / (step + 1) * velocity
        sgd.step()
    torch.testing.assert_close(weight.detach().double(), expected)
    assert [len(group["params"]) for group in sgd.param_groups] == [1]


def test_adamw_is_there_for_those_who_want_it() -> None:
    """`--optimizer.name adamw` would train with SGD."""
    adamw = optimizer(
        [nn.Parameter(torch.ones(1))], OptimizerConfig(name="adamw", learning_rate=3e-4, weight_decay=0.05)
    )
    assert type(adamw) is torch.optim.AdamW
    assert (adamw.defaults["lr"], adamw.defaults["weight_decay"]) == (3e-4, 0.05)


@pytest.mark.parametrize("learning_rate", [0.0, -0.1, float("nan")])
def test_a_rate_that_cannot_train_is_refused(learning_rate: float) -> None:
    """A night of computing would leave the student as it was."""
    with pytest.raises(Refusal, match=r"--optimizer.learning-rate expected more than 0, got"):
        optimizer([nn.Parameter(torch.ones(1))], OptimizerConfig(learning_rate=learning_rate))


@pytest.mark.parametrize(
    ("make", "option"),
    [
        (lambda: OptimizerConfig(sgd_momentum=1.0), "--optimizer.sgd-momentum"),
        (lambda: OptimizerConfig(weight_decay=-1e-4), "--optimizer.weight-decay"),
        (lambda: ScheduleConfig(warmup=5.0), "--schedule.warmup"),
        (lambda: ScheduleConfig(final_weight_decay=-0.1), "--schedule.final-weight-decay"),
        (lambda: ScheduleConfig(milestones=(90.0, 120.0)), "--schedule.milestones"),
        (lambda: TrainView(scale=(1.0, 0.2)), "--view.scale"),
        (lambda: TrainView(ratio=(0.0, 1.0)), "--view.ratio"),
        (lambda: TrainView(flip=2.0), "--view.flip"),
    ],
)
def test_values_out_of_range_are_refused_by_the_name_of_their_option(make, option) -> None:
    """Milestones given in epochs would never come, and a week of training would keep its first learning rate."""
    with pytest.raises(Refusal, match=option):
        make()


@pytest.mark.parametrize("name", ["sgd", "adamw"])
def test_one_pass_over_the_weights_is_the_step_of_many(name: str) -> None:
    """The quicker kernel would train another student than the formula."""
    shapes = [(7, 5), (11,), (3, 2, 5)]
    ours = [nn.Parameter(torch.randn(shape, generator=torch.Generator().manual_seed(1))) for shape in shapes]
    theirs = [nn.Parameter(weight.detach().double()) for weight in ours]
    config = OptimizerConfig(name=name, learning_rate=0.05, weight_decay=0.1)  # type: ignore[arg-type]
    fused = optimizer(ours, config)
    assert fused.defaults["fused"]
    kind, options = type(fused), {"momentum": 0.9} if name == "sgd" else {}
    plain = kind(theirs, lr=0.05, weight_decay=0.1, fused=False, foreach=False, **options)  # type: ignore[call-arg]
    for step in range(5):
        for mine, its in zip(ours, theirs, strict=True):
            its.grad = torch.randn(its.shape, generator=torch.Generator().manual_seed(step)).double()
            mine.grad = its.grad.float()
        fused.step(), plain.step()
    for mine, its in zip(ours, theirs, strict=True):
        torch.testing.assert_close(mine.detach().double(), its.detach(), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("name", ["sgd", "adamw"])
@pytest.mark.parametrize("began", [None, True])
def test_a_resumed_optimizer_goes_on_as_it_began(name: str, began: bool | None) -> None:
    """A checkpoint from before the quicker kernel, or from after, would be continued with other roundings."""

    def trained(steps: range, state: dict | None = None, *, fused: bool | None) -> tuple[list, torch.optim.Optimizer]:
        weights = [nn.Parameter(torch.randn(7, 5, generator=torch.Generator().manual_seed(1)))]
        made = optimizer(weights, OptimizerConfig(name=name, learning_rate=0.05))  # type: ignore[arg-type]
        for group in made.param_groups:
            group["fused"] = fused
        if state is not None:
            made.load_state_dict(state["optimizer"])
            weights[0].data.copy_(state["weight"])
        for step in steps:
            weights[0].grad = torch.randn(7, 5, generator=torch.Generator().manual_seed(step))
            made.step()
        return weights, made

    whole, _ = trained(range(6), fused=began)
    half, made = trained(range(3), fused=began)
    state = {"optimizer": made.state_dict(), "weight": half[0].detach().clone()}
    resumed, again = trained(range(3, 6), state, fused=True)
    assert again.param_groups[0]["fused"] == began
    assert torch.equal(resumed[0], whole[0])


@pytest.mark.parametrize("decay", [0.0, 0.3])
def test_lars_steps_as_lightly_s(decay: float) -> None:
    """The published recipes for batches of 4096 would be trained by another optimizer than the one that is named."""
    shapes, groups = [(7, 5), (11,), (3, 2, 5), (5,)], []
    for _ in range(2):
        weights = [nn.Parameter(torch.randn(shape, generator=torch.Generator().manual_seed(1))) for shape in shapes]
        with torch.no_grad():
            weights[1].zero_()  # a bias at the beginning
        groups.append([{"params": weights[:2]}, {"params": weights[2:3]}, {"params": weights[3:], "weight_decay": 0.0}])
    ours = Lars(groups[0], lr=0.5, momentum=0.9, weight_decay=decay)
    theirs = LARS(groups[1], lr=0.5, momentum=0.9, weight_decay=decay)
    for step in range(5):
        for mine, its in zip(ours.param_groups, theirs.param_groups, strict=True):
            for number, (weight, other) in enumerate(zip(mine["params"], its["params"], strict=True)):
                gradient = torch.randn(weight.shape, generator=torch.Generator().manual_seed(10 * step + number))
                weight.grad, other.grad = gradient.clone(), gradient.clone()
        if step == 2:
            ours.param_groups[1]["params"][0].grad.zero_()  # frozen prototypes
            theirs.param_groups[1]["params"][0].grad.zero_()
        ours.step(), theirs.step()
    for mine, its in zip(ours.param_groups, theirs.param_groups, strict=True):
        torch.testing.assert_close(mine["params"], its["params"], rtol=1e-5, atol=1e-6)


def test_nobody_waits_for_lars() -> None:
    """A GPU would run dry twice for each of a network's tensors; `meta` tensors have no values to be waited for."""
    weights = [nn.Parameter(torch.zeros(shape, device="meta")) for shape in ((7, 5), (11,))]
    lars = Lars([{"params": weights}], lr=0.5, momentum=0.9, weight_decay=0.1)
    for weight in weights:
        weight.grad = torch.zeros_like(weight)
    lars.step()
    assert lars.state[weights[0]]["speed"].shape == (7, 5)


class Two(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(3, 5)
        self.norm = nn.BatchNorm1d(5)


@pytest.mark.parametrize(
    ("name", "decayed", "shapes"),
    [
        ("sgd", "auto", [[(5, 3), (5,), (5,), (5,)]]),
        ("adamw", "weights", [[(5, 3)], [(5,), (5,), (5,)]]),
        ("lars", "auto", [[(5, 3)], [(5,), (5,), (5,)]]),
        ("lars", "all", [[(5, 3), (5,), (5,), (5,)]]),
    ],
)
def test_biases_and_norms_decay_only_where_they_are_to(name: str, decayed: str, shapes: list[list[tuple]]) -> None:
    """LARS would scale the rate of a bias by its length, which begins at 0: it would never learn."""
    config = OptimizerConfig(name=name, decayed=decayed, weight_decay=0.1)  # type: ignore[arg-type]
    groups = optimizer(Two().parameters(), config).param_groups
    assert [[tuple(weight.shape) for weight in group["params"]] for group in groups] == shapes
    assert [group["weight_decay"] for group in groups] == [0.1, 0.0][: len(groups)]


def test_the_weight_decay_goes_along_a_cosine_where_it_is_told_to() -> None:
    """DINO's 0.04 to 0.4 would stay at 0.04, and biases begin to decay."""
    made = optimizer(Two().parameters(), OptimizerConfig(name="adamw", decayed="weights", weight_decay=0.04))
    for progress, expected in ((0.0, 0.04), (0.5, 0.22), (1.0, 0.4)):
        set_decay(made, [0.04, 0.0], progress, ScheduleConfig(final_weight_decay=0.4))
        assert made.param_groups[0]["weight_decay"] == pytest.approx(expected)
        assert made.param_groups[1]["weight_decay"] == 0
    set_decay(made, [0.04, 0.0], 0.5, ScheduleConfig())
    assert made.param_groups[0]["weight_decay"] == pytest.approx(0.4), "left alone"
