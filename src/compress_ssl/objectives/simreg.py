"""SimReg: regression through a deep head that is thrown away: the features below it are better than its output.

Source: Navaneet et al., SimReg: Regression as a Simple Yet Effective Tool for Self-supervised Knowledge Distillation,
BMVC 2021, Sec. 3: squared distance of unit rows, 2 - 2 cos; an MLP of four linear layers; the backbone's features are
what is used afterwards, which is what this package delivers of any student.
Relations: the loss is that of regression.py; there the head is one linear layer, and the paper's finding is what the
head does. It leads into the teacher's space and is kept beside the student: an index of teacher rows can be queried.
Differs from the authors' code: its layers are d, 2d, d, 2d, D wide for a student of width d, with neither batch norm
nor ReLU after the second; here all hidden ones are as wide as the wider end (`--projector.hidden-width`), each with
both.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.distributed import ProcessGroup

from compress_ssl.projector import ProjectorConfig


@dataclass(frozen=True, kw_only=True)
class Config:
    """Nothing to choose but the projector."""

    name: str = "simreg"


class Objective:
    """Squared distance of unit rows; it keeps nothing."""

    momentum: float | None = None  # there are no anchors: no keys are needed
    stored_anchors = False
    space = "teacher"
    temperature = None
    projector = ProjectorConfig(kind="mlp", layers=4)

    def __init__(
        self,
        config: Config,
        *,
        width: int,
        target_width: int,
        images: int,
        device: torch.device | str = "cpu",
        seed: int = 0,
        group: ProcessGroup | None = None,
    ):
        del width, target_width, images, device, seed, group  # each process needs its own rows alone
        self.config = config

    def __call__(self, query: Tensor, target: Tensor, index: Tensor) -> Tensor:
        """(B, D_t) projected unit rows with gradient, (B, D_t) unit rows, (B,) samples -> scalar in [0, 4]."""
        del index
        return (query.float() - target.detach().float()).square().sum(dim=1).mean()

    def update(self, key: Tensor, target: Tensor, index: Tensor) -> None:
        """Nothing is kept of a step."""

    def state_dict(self) -> dict[str, Any]:
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        assert not state, state.keys()
