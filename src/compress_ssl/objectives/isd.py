"""ISD: the student keeps the neighbours that a slow copy of itself sees, and for a share those of the frozen teacher.

Source: Tejankar et al., ISD: Self-Supervised Learning by Iterative Similarity Distillation, ICCV 2021, Sec. 3; 128 000
anchors and temperature 0.02 as in their README for ResNet-18, 0.99 of the slow copy as in that for ResNet-50. Anchors
are the slow copy's rows of past images (keys). With p(row) the distribution of a row's similarities to its anchors:

    L = (1 - λ) · KL(p(key) || p(query))  +  λ · KL(p(target) || p(query))      λ: teacher_share

The divergence is linear in its first distribution up to a constant, so this is the query following a mixture of both.
λ = 0 is ISD, self-supervision that never looks at the teacher: the frame of a table, not a distillation. λ = 1 is 2q
with these values. The default, one half, is distillation in which the slow copy has as much to say as the teacher: its
targets are of the very space that is learnt, and grow with it; the teacher's keep all rows from becoming one.
ISD lives from its two views: the slow copy sees the picture as the teacher does, the student after `--student-colour`,
which λ = 0 needs. Crops are those of the student. There is no predictor between the student and its query: the authors
add one for λ = 0 (`--projector.kind mlp` gives both copies an MLP).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.distributed import ProcessGroup

from compress_ssl.bank import BankConfig, open_bank
from compress_ssl.calibration import Temperature
from compress_ssl.quantised import Anchors
from compress_ssl.refusal import Refusal
from compress_ssl.similarity import anchor_kl, refuse_path


@dataclass(frozen=True, kw_only=True)
class Config(BankConfig):
    """The authors' values, with the teacher beside."""

    name: str = "isd"
    temperature: Temperature = 0.02  # divides similarities, of query, key and target
    momentum: float = 0.99  # of the slow student
    teacher_share: float = 0.5  # of the loss; 0: the slow student alone, the teacher is not listened to

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 <= self.teacher_share <= 1:
            raise Refusal(f"--objective.teacher-share expected in [0, 1], got {self.teacher_share}: 0 is the slow "
                          "student alone, 1 the teacher")  # fmt: skip


class Objective:
    """A bank of (key, target) pairs and two divergences of a batch over it."""

    space = "own"
    stored_anchors = False  # the slow student's anchors change: no table can hold them
    reads_key = True
    key_view = "teacher"

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
        refuse_path(config.path, device, config.temperature)
        self.config = config
        self.momentum: float | None = config.momentum
        self.temperature = config.temperature  # a number before the first step: see calibration
        widths = {"key": width, "target": target_width}
        self.bank = open_bank(config, widths, images=images, device=device, seed=seed, group=group)

    def __call__(self, query: Tensor, target: Tensor, index: Tensor, key: Tensor) -> Tensor:
        """(B, D_s) unit rows with gradient, (B, D_t), (B,) samples, (B, D_s) of the slow student -> scalar in nats."""
        share, keys = self.config.teacher_share, self.bank.anchors("key")
        losses = []
        if share < 1:
            losses.append((1 - share) * self._divergence(query, key.detach().float(), keys, index))
        if share > 0:
            losses.append(share * self._divergence(query, target, self.bank.anchors("target"), index))
        return sum(losses[1:], start=losses[0])

    def _divergence(self, query: Tensor, followed: Tensor, anchors: Anchors, index: Tensor) -> Tensor:
        masked = self.config.same_image == "mask"
        return anchor_kl(
            query,
            self.bank.anchors("key"),
            followed,
            anchors,
            temperature=float(self.temperature),
            index=index if masked else None,
            anchor_index=self.bank.index if masked else None,
            group=self.bank.group,
            path=self.config.path,
        )

    def update(self, key: Tensor, target: Tensor, index: Tensor) -> None:
        """Write the batch into the bank, that of all processes; to be called after backward."""
        self.bank.write(index, key=key.detach().float(), target=target.float())

    def state_dict(self) -> dict[str, Any]:
        return self.bank.state_dict() | {"temperature": self.temperature}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.bank.load_state_dict(state)
        self.temperature = state["temperature"]
