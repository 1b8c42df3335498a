"""Optimizers and learning-rate schedules, both functions of the share of the training that is done.

A schedule is a function of progress in [0, 1], not of a step count, so the same shape fits 130 epochs or 30 minutes.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn

from compress_ssl.refusal import Refusal


@dataclass(frozen=True, kw_only=True)
class OptimizerConfig:
    """Gradient descent. The defaults are the paper's (Sec. 4)."""

    name: Literal["sgd", "adamw", "lars"] = "sgd"  # lars: SGD for batches of thousands, every layer at its own rate
    learning_rate: float = 0.01  # peak; the paper's 0.01 is for batches of 256
    sgd_momentum: float = 0.9  # of SGD and LARS; AdamW keeps its own 0.9 and 0.999
    weight_decay: float = 1e-4  # the paper's
    # all: every parameter, as in the paper; weights: neither biases nor norms; auto: weights with lars, else all
    decayed: Literal["auto", "all", "weights"] = "auto"

    def __post_init__(self) -> None:
        if not 0 <= self.sgd_momentum < 1:
            raise Refusal(
                f"--optimizer.sgd-momentum expected a number in [0, 1), got {self.sgd_momentum}: 0.9 is usual"
            )
        if not self.weight_decay >= 0:
            raise Refusal(f"--optimizer.weight-decay expected 0 or more, got {self.weight_decay}: 1e-4 is the paper's")


@dataclass(frozen=True, kw_only=True)
class ScheduleConfig:
    """Learning rate over the training, as a share of the peak."""

    name: Literal["step", "cosine", "constant"] = "step"
    milestones: tuple[float, ...] = (90 / 130, 120 / 130)  # step: shares of the training (the paper's epochs of 130)
    factor: float = 0.2  # step: multiplies the rate at every milestone
    warmup: float = 0.0  # share of the training over which the rate rises linearly from 0
    final: float = 0.0  # cosine: share of the peak that is left at the end
    final_weight_decay: float | None = None  # to which the weight decay goes along a cosine; None: it stays

    def __post_init__(self) -> None:
        if not 0 <= self.warmup <= 1:
            raise Refusal(
                f"--schedule.warmup expected a share of the training in [0, 1], got {self.warmup}: 0.05 is 5 %"
            )
        if not all(0 <= milestone <= 1 for milestone in self.milestones):
            raise Refusal(f"--schedule.milestones expected shares of the training in [0, 1], got {self.milestones}: "
                          "divide epochs by their number")  # fmt: skip
        if self.final_weight_decay is not None and not 0 <= self.final_weight_decay < math.inf:
            raise Refusal(f"--schedule.final-weight-decay expected 0 or more, got {self.final_weight_decay}: 0.4 is "
                          "DINO's")  # fmt: skip


def optimizer(parameters: Iterable[nn.Parameter], config: OptimizerConfig) -> torch.optim.Optimizer:
    """The configured optimizer over the parameters that want a gradient."""
    wanted = [parameter for parameter in parameters if parameter.requires_grad]
    if not config.learning_rate > 0:
        raise Refusal(f"--optimizer.learning-rate expected more than 0, got {config.learning_rate}: raise it")
    # one pass over each weight: for the 11 M of ResNet-18 on one Zen 3 core SGD takes 14.7 ms instead of 17.6, AdamW
    # 17.7 instead of 68.9. A checkpoint keeps which of the two it was made with, so a resumed run goes on as it began.
    fused = True if wanted and all(weight.device.type in ("cpu", "cuda") for weight in wanted) else None
    groups = _groups(wanted, config)
    if config.name == "adamw":
        return torch.optim.AdamW(groups, lr=config.learning_rate, weight_decay=config.weight_decay, fused=fused)
    if config.name == "lars":
        momentum, decay = config.sgd_momentum, config.weight_decay
        return Lars(groups, lr=config.learning_rate, momentum=momentum, weight_decay=decay)
    return torch.optim.SGD(
        groups, lr=config.learning_rate, momentum=config.sgd_momentum, weight_decay=config.weight_decay, fused=fused
    )


def _groups(parameters: list[nn.Parameter], config: OptimizerConfig) -> list[dict[str, Any]]:
    """All in one, or vectors and scalars (biases, norms) in a second one that does not decay: LARS leaves its rate."""
    if config.decayed == "all" or (config.decayed == "auto" and config.name != "lars"):
        return [{"params": parameters}]
    weights = [parameter for parameter in parameters if parameter.ndim > 1]
    rest = [parameter for parameter in parameters if parameter.ndim <= 1]
    groups: list[dict[str, Any]] = [{"params": weights}, {"params": rest, "weight_decay": 0.0}]
    return [group for group in groups if group["params"]]


class Lars(torch.optim.Optimizer):
    """SGD whose every tensor first has its gradient, decay added, brought to a thousandth of the tensor's own length.

    A group that does not decay takes plain steps, and so does a tensor of length 0.
    Source: You et al., Large Batch Training of Convolutional Networks, 2017. The step is that of lightly's LARS, but
    for its two questions about each tensor: a GPU would run dry for them hundreds of times a step.
    """

    TRUST = 0.001  # the length of a step before the rate, as a share of the tensor's

    def __init__(self, parameters: list[dict[str, Any]], *, lr: float, momentum: float, weight_decay: float):
        super().__init__(parameters, {"lr": lr, "momentum": momentum, "weight_decay": weight_decay})

    @torch.no_grad()
    def step(self, closure: Any = None) -> Any:
        """One step; `closure`, if given, computes the loss anew."""
        with torch.enable_grad():
            loss = None if closure is None else closure()
        for group in self.param_groups:
            weights = [weight for weight in group["params"] if weight.grad is not None]
            if not weights:
                continue
            steps: Any = [weight.grad for weight in weights]
            if group["weight_decay"]:
                shares = self._shares(weights, steps, group["weight_decay"])
                steps = torch._foreach_add(steps, weights, alpha=group["weight_decay"])
                torch._foreach_mul_(steps, shares)
            speeds = [self.state[weight].setdefault("speed", torch.zeros_like(weight)) for weight in weights]
            torch._foreach_mul_(speeds, group["momentum"])
            torch._foreach_add_(speeds, steps)
            torch._foreach_add_(weights, speeds, alpha=-group["lr"])
        return loss

    def _shares(self, weights: list[Tensor], gradients: list[Tensor], decay: float) -> list[Tensor]:
        """What each gradient, decay added, is multiplied by: 1 for a tensor of length 0, 0 without a gradient."""
        length, slope = (torch.stack(torch._foreach_norm(tensors)) for tensors in (weights, gradients))
        share = self.TRUST * length / (slope + decay * length + 1e-8)
        return list(torch.where(slope == 0, 0.0, torch.where(length == 0, 1.0, share)).unbind())


def rate(progress: float, config: ScheduleConfig) -> float:
    """Share of the peak learning rate when `progress` (in [0, 1]) of the training is done."""
    if progress < config.warmup:
        return progress / config.warmup
    if config.name == "constant":
        return 1.0
    if config.name == "step":
        # a step that starts exactly at a milestone already has the lower rate; 1e-9 forgives m/n·n != m
        return config.factor ** sum(progress >= milestone - 1e-9 for milestone in config.milestones)
    done = (progress - config.warmup) / max(1e-12, 1 - config.warmup)
    return config.final + (1 - config.final) * 0.5 * (1 + math.cos(math.pi * min(1.0, done)))


def set_rate(target: torch.optim.Optimizer, learning_rate: float) -> None:
    """Write the learning rate of the coming step into every parameter group."""
    for group in target.param_groups:
        group["lr"] = learning_rate


def set_decay(target: torch.optim.Optimizer, peaks: list[float], progress: float, config: ScheduleConfig) -> None:
    """Write the weight decay of the coming step into every group that decays, where the schedule moves it.

    Args:
        peaks: of each parameter group at the beginning.
    """
    if config.final_weight_decay is None:
        return
    left = 0.5 * (1 + math.cos(math.pi * min(1.0, progress)))
    for group, first in zip(target.param_groups, peaks, strict=True):
        if first:
            group["weight_decay"] = config.final_weight_decay + (first - config.final_weight_decay) * left
