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

from compress_ssl.objectives import regression
from compress_ssl.projector import ProjectorConfig


@dataclass(frozen=True, kw_only=True)
class Config:
    """Nothing to choose but the projector."""

    name: str = "simreg"


class Objective(regression.Objective):
    """That of regression.py; what differs is the projector."""

    projector = ProjectorConfig(kind="mlp", layers=4)
