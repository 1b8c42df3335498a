"""SEED: the teacher's rows of other images and of the image itself, in the teacher's space; two temperatures.

Source: Fang et al., SEED: Self-supervised Distillation for Visual Representation, ICLR 2021, Sec. 3.2: a queue of
65 536 teacher rows with the image's own teacher row as one more anchor, cross-entropy, teacher temperature 0.01,
student 0.2.
At 0.01 the own anchor, at cosine 1, outweighs all that are not near it: SEED is a regression onto the own row that is
softened by the nearest neighbours. CompRess-1q (compress_1q.py) leaves the own row out and has one temperature.
Relations: like SEED's heads, the projector is an MLP of two layers without batch norm, here from the student's
features to the teacher's embedding; SEED compares with the 128 numbers of MoCo v2's own head: give that as the teacher.
Differs from the paper: older anchors of the query's own image are not compared (`same_image keep` does), and the queue
starts empty, not random (`start random`).
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from compress_ssl.bank import compared
from compress_ssl.calibration import Temperature
from compress_ssl.objectives import compress_1q
from compress_ssl.projector import ProjectorConfig
from compress_ssl.refusal import Refusal
from compress_ssl.similarity import anchor_cross_entropy


@dataclass(frozen=True, kw_only=True)
class Config(compress_1q.Config):
    """The paper's values."""

    name: str = "seed"
    bank_size: int = 65_536  # anchors held at once; capped at the number of training images
    temperature: Temperature = 0.01  # divides the teacher's similarities; larger lets more than the own row count
    student_temperature: float = 0.2  # divides the student's

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 < self.student_temperature < float("inf"):
            raise Refusal(f"--objective.student-temperature expected more than 0, got {self.student_temperature}: the "
                          "paper's is 0.2")  # fmt: skip


class Objective(compress_1q.Objective):
    """1q's bank of targets, and the cross-entropy of a batch over it and each query's own target."""

    config: Config
    projector = ProjectorConfig(kind="mlp", layers=2, batch_norm=False)

    def __call__(self, query: Tensor, target: Tensor, index: Tensor) -> Tensor:
        """(B, D_t) projected unit rows with gradient, (B, D_t) unit rows, (B,) samples -> scalar in nats."""
        anchors, target = self.bank.anchors("target"), target.detach()
        return anchor_cross_entropy(
            query,
            anchors,
            target,
            anchors,
            temperature=self.config.student_temperature,
            target_temperature=float(self.temperature),
            own=(target, target),
            **compared(self.config, self.bank, index),
        )
