"""PKT, probabilistic knowledge transfer: which images of the batch lie near which, as distributions.

    K_ij = (1 + cos(x_i, x_j)) / 2,   p_{j|i} = K_ij / sum_{k != i} K_ik,   loss = 1/B sum_i KL(p^t_{.|i} || p^s_{.|i})

Source: Passalis & Tefas, Learning Deep Representations with Probabilistic Knowledge Transfer, ECCV 2018, Sec. 3 (cosine
kernel, Eq. 5 to 8). No temperature: the kernel of an image at right angles is still half of its own.
Relations: compress_2q is the same with exp(cos / 0.04) for the kernel, which looks at near neighbours alone, and with
128 000 anchors for the batch. Differs from the paper by a factor: a mean over images, where it sums; the authors' code
leaves in the image itself.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.distributed import ProcessGroup

from compress_ssl.whole_batch import whole

SMALLEST = 1e-7  # of a kernel: rows that are opposite have none, and its logarithm is needed


@dataclass(frozen=True, kw_only=True)
class Config:
    """Nothing to choose."""

    name: str = "pkt"


class Objective:
    """Neighbourhoods within the batch; it keeps nothing."""

    momentum: float | None = None  # there are no anchors: no keys are needed
    stored_anchors = False
    space = "own"
    temperature = None
    within_batch = True

    def __init__(self, config: Config, *, group: ProcessGroup | None = None, **_: Any):
        self.config, self.group = config, group

    def __call__(self, query: Tensor, target: Tensor, index: Tensor) -> Tensor:
        """(B, D_s) unit rows with gradient, (B, D_t) unit rows, (B,) samples -> scalar in nats."""
        del index
        return neighbourhood_kl(whole(query, self.group), whole(target.detach(), self.group))

    def update(self, key: Tensor, target: Tensor, index: Tensor) -> None:
        """Nothing is kept of a step."""

    def state_dict(self) -> dict[str, Any]:
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        assert not state, state.keys()


def neighbourhood_kl(query: Tensor, target: Tensor) -> Tensor:
    """KL(teacher || student) of each image's neighbours in the batch, mean over the images.

    Args:
        query: (B, D_s) unit rows; receives the gradient.
        target: (B, D_t) unit rows.
    """
    q, p = _shares(query), _shares(target)
    return (p * (p.log() - q.log())).sum(dim=1).mean()


def _shares(rows: Tensor) -> Tensor:
    """(B, D) -> (B, B) p_{j|i}; 1 of the image itself, on both sides, whose share in the divergence is then 0."""
    kernel = ((1 + rows @ rows.T) / 2).clamp_min(SMALLEST)
    itself = torch.eye(len(rows), dtype=torch.bool, device=rows.device)
    total = kernel.masked_fill(itself, 0).sum(dim=1, keepdim=True).clamp_min(SMALLEST)
    return (kernel / total).masked_fill(itself, 1)
