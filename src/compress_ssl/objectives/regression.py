"""Regression: the student's row is to lie where the teacher's lies. The baseline that the paper calls "Reg".

Source: Abbasi Koohpayegani et al., CompRess, NeurIPS 2020, Sec. 4 (baselines); the idea is that of FitNets (Romero et
al., ICLR 2015), for the embedding alone.
Relations: like 1q the student is projected into the teacher's space by one linear layer, which is kept beside it: an
index of teacher rows can be queried. Nothing else is compared: no anchors, no temperature, no bank.
The paper's better baseline "Reg-BN", which normalises each dimension over the batch first, is regression_bn.py.
The paper, ResNet-18 from MoCo's ResNet-50: Reg 41.7, Reg-BN 47.3, 1q 53.5 (% by nearest neighbour).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from torch import Tensor


@dataclass(frozen=True, kw_only=True)
class Config:
    """Nothing to choose."""

    name: str = "regression"


class Objective:
    """Squared distance of unit rows; it keeps nothing."""

    momentum: float | None = None  # there are no anchors: no keys are needed
    stored_anchors = False
    space = "teacher"
    temperature = None

    def __init__(self, config: Any, **_: Any):
        self.config = config  # each process needs its own rows alone

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
