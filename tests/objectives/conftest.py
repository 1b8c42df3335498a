"""A tiny student, the loop of distill.py around it, and the paper's formula in loops over floats."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from compress_ssl import optim
from compress_ssl.bank import Bank
from compress_ssl.momentum import Momentum
from compress_ssl.projector import ProjectorConfig, shape
from compress_ssl.student import Student

IMAGES, SIDE, WIDTH, TARGET_WIDTH, BATCH = 23, 2, 5, 9, 7


def unit(count: int, width: int, *, seed: int) -> Tensor:
    rows = torch.randn(count, width, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))
    return functional.normalize(rows).float()


class TinyEncoder(nn.Module):
    """(B, 3, 2, 2) uint8 -> (B, 5), with a batch norm whose statistics count."""

    width = WIDTH

    def __init__(self) -> None:
        super().__init__()
        self.first, self.norm, self.last = nn.Linear(3 * SIDE * SIDE, 11), nn.BatchNorm1d(11), nn.Linear(11, WIDTH)

    def forward(self, images: Tensor) -> Tensor:
        return self.last(torch.tanh(self.norm(self.first(images.flatten(1).float() / 255))))


@dataclass
class World:
    """Images, the teacher's rows and the order of the batches; `train` is the loop of distill.py."""

    images: Tensor
    targets: Tensor
    batches: list[Tensor]
    learning_rate: float = 0.05

    def student(self, objective: Any) -> Student:
        torch.manual_seed(3)
        encoder: Any = TinyEncoder()
        ends = shape(ProjectorConfig(), width=WIDTH, target_width=TARGET_WIDTH, space=objective.space)
        student = Student(encoder, ends.build()).train()
        return student.to(self.targets.dtype)

    def in_float64(self, objective: Any, monkeypatch: pytest.MonkeyPatch) -> None:
        """Let our code compute in float64 where it says float32: 20 steps blow up a last digit by a thousand."""
        monkeypatch.setattr(Tensor, "float", Tensor.double)
        self.targets = self.targets.double()
        bank, widths = (
            objective.bank,
            {name: rows.shape[1] for name, rows in objective.bank.state_dict()["rows"].items()},
        )
        objective.bank = Bank(bank.size, widths, dtype=torch.float64)
        objective.bank.load_state_dict(bank.state_dict())

    def train(self, objective: Any, student: Student) -> list[float]:
        """Losses of 20 steps."""
        momentum = Momentum(student, objective.momentum)
        config = optim.OptimizerConfig(learning_rate=self.learning_rate)
        optimizer = optim.optimizer(student.parameters(), config)
        losses = []
        for index in self.batches:
            target = self.targets[index]
            query = student(self.images[index])
            key = momentum(self.images[index], query)
            loss = objective(query, target, index)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            objective.update(key, target, index)
            momentum.follow(student)
            losses.append(float(loss.detach()))
        return losses

    def by_hand(
        self,
        student: Student,
        *,
        momentum: float | None,
        temperature: float,
        target_queue: Tensor,
        query_queue: Tensor | None,
    ) -> tuple[list[float], dict[str, Tensor], Tensor, Tensor | None]:
        """The same 20 steps as paper.md has them, in float64 and with nothing of ours: two queues or one.

        Returns: losses, weights, the teacher's queue and the student's queue in the end.
        """
        weights = {name: value.detach().double() for name, value in student.named_parameters()}
        slow = dict(weights)
        velocity = {name: torch.zeros_like(value) for name, value in weights.items()}
        losses, pointer = [], 0

        def embed(parameters: dict[str, Tensor], images: Tensor) -> Tensor:
            rows = images.flatten(1).double() / 255 @ parameters["encoder.first.weight"].T
            rows = rows + parameters["encoder.first.bias"]
            rows = (rows - rows.mean(0)) / (rows.var(0, correction=0) + 1e-5).sqrt()
            rows = (rows * parameters["encoder.norm.weight"] + parameters["encoder.norm.bias"]).tanh()
            rows = rows @ parameters["encoder.last.weight"].T + parameters["encoder.last.bias"]
            if query_queue is None:
                rows = rows @ parameters["projector.weight"].T + parameters["projector.bias"]
            return rows / rows.square().sum(1, keepdim=True).sqrt()

        target_queue = target_queue.double().clone()
        query_queue = None if query_queue is None else query_queue.double().clone()
        for index in self.batches:
            leaves = {name: value.clone().requires_grad_() for name, value in weights.items()}
            query, target = embed(leaves, self.images[index]), self.targets[index].double()
            anchors = target_queue if query_queue is None else query_queue
            log_q = (query @ anchors.clone().T / temperature).log_softmax(1)
            p = (target @ target_queue.clone().T / temperature).softmax(1)
            loss = functional.kl_div(log_q, p, reduction="batchmean")
            slopes = torch.autograd.grad(loss, list(leaves.values()))
            key = query.detach() if momentum is None else embed(slow, self.images[index])
            for (name, value), slope in zip(weights.items(), slopes, strict=True):
                velocity[name] = 0.9 * velocity[name] + slope + 1e-4 * value
                weights[name] = value - self.learning_rate * velocity[name]
            for row in range(len(index)):
                target_queue[pointer] = target[row]
                if query_queue is not None:
                    query_queue[pointer] = key[row]
                pointer = (pointer + 1) % len(target_queue)
            if momentum is not None:
                slow = {name: momentum * value + (1 - momentum) * weights[name] for name, value in slow.items()}
            losses.append(float(loss.detach()))
        return losses, weights, target_queue, query_queue


@pytest.fixture
def world() -> World:
    generator = torch.Generator().manual_seed(5)
    images = torch.randint(0, 256, (IMAGES, 3, SIDE, SIDE), dtype=torch.uint8, generator=generator)
    batches = [torch.randperm(IMAGES, generator=generator)[:BATCH] for _ in range(20)]
    return World(images, unit(IMAGES, TARGET_WIDTH, seed=7), batches)


def plain(
    query: Tensor, query_anchors: Tensor, target: Tensor, target_anchors: Tensor, compared: Tensor, temperature: float
) -> tuple[float, Tensor]:
    """Loss and gradient from loops over Python's floats; `compared` (B, A) says which anchors count."""

    def shares(row: list[float], anchors: list[list[float]]) -> list[float]:
        weights = [math.exp(sum(a * b for a, b in zip(row, anchor, strict=True)) / temperature) for anchor in anchors]
        return [weight / math.fsum(weights) for weight in weights]

    student, own, teacher, theirs = (
        some.detach().double().tolist() for some in (query, query_anchors, target, target_anchors)
    )
    total, slope = 0.0, []
    for place, which in enumerate(compared.tolist()):
        mine = [row for row, counts in zip(own, which, strict=True) if counts]
        p = shares(teacher[place], [row for row, counts in zip(theirs, which, strict=True) if counts]) if mine else []
        q = shares(student[place], mine) if mine else []
        total += math.fsum(a * math.log(a / b) for a, b in zip(p, q, strict=True))
        slope.append(
            [
                math.fsum((b - a) * row[column] for a, b, row in zip(p, q, mine, strict=True))
                / (temperature * len(student))
                for column in range(len(student[place]))
            ]
        )
    return total / len(student), torch.tensor(slope, dtype=torch.float64)


@pytest.fixture(name="unit", scope="session")
def _unit() -> Any:
    return unit


@pytest.fixture(name="plain", scope="session")
def _plain() -> Any:
    return plain
