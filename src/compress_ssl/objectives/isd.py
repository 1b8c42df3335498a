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

from torch import Tensor

from compress_ssl.bank import compared
from compress_ssl.calibration import Temperature
from compress_ssl.objectives import compress_2q
from compress_ssl.refusal import Refusal
from compress_ssl.similarity import anchor_kl


@dataclass(frozen=True, kw_only=True)
class Config(compress_2q.Config):
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


class Objective(compress_2q.Objective):
    """2q's bank of (key, target) pairs, and two divergences of a batch over it."""

    config: Config
    reads_key = True
    key_view = "teacher"

    def __call__(self, query: Tensor, target: Tensor, index: Tensor, key: Tensor) -> Tensor:  # type: ignore[override]
        """(B, D_s) unit rows with gradient, (B, D_t), (B,) samples, (B, D_s) of the slow student -> scalar in nats."""
        share, keys = self.config.teacher_share, self.bank.anchors("key")
        how: Any = {"temperature": float(self.temperature), **compared(self.config, self.bank, index)}
        losses = []
        if share < 1:
            losses.append((1 - share) * anchor_kl(query, keys, key.detach().float(), keys, **how))
        if share > 0:
            losses.append(share * anchor_kl(query, keys, target, self.bank.anchors("target"), **how))
        return sum(losses[1:], start=losses[0])
