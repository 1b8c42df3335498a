"""RKD, relational knowledge distillation: distances of pairs and angles of triplets within the batch.

    psi_D(i, j) = |x_i - x_j| / mean over pairs          loss_D = mean over i != j of huber(psi_D^t, psi_D^s)
    psi_A(i, j, k) = cos of the angle at x_j             loss_A = mean over distinct i, j, k of huber(psi_A^t, psi_A^s)
    huber(a, b) = (a - b)^2 / 2 where |a - b| <= 1, else |a - b| - 1/2

Source: Park et al., Relational Knowledge Distillation, CVPR 2019, Sec. 3.2 and 3.3. Weights 25 and 50 are the paper's
for classification, where other losses of the order of 1 stand beside it, as its own, at 1 and 2 for metric learning,
do not: the learning rate that suits the other objectives here suits 25 and 50.
Relations: sp.py and pkt.py compare similarities of pairs. Differs from the paper: rows are of length one; means, where
it sums.
The cosines are had from the matrix of products, so that a triplet costs a few operations whatever the width, and a few
images' triplets at a time, once more in backward: CENTRES · B^2 numbers in memory, never B^3.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.distributed import ProcessGroup
from torch.nn import functional
from torch.utils.checkpoint import checkpoint

from compress_ssl.refusal import Refusal
from compress_ssl.whole_batch import whole

CENTRES = 16  # images whose angles are held at once: 16 · 256^2 float32 are 4 MiB
SMALLEST = 1e-6  # of a squared distance: below, float32 holds no direction, and a root has no slope that can be used


@dataclass(frozen=True, kw_only=True)
class Config:
    """The paper's values; a weight of 0 leaves that part out."""

    name: str = "rkd"
    distance_weight: float = 25.0  # of the distances of pairs
    angle_weight: float = 50.0  # of the angles of triplets

    def __post_init__(self) -> None:
        weights = {"distance-weight": self.distance_weight, "angle-weight": self.angle_weight}
        for name, weight in weights.items():
            if not 0 <= weight < float("inf"):
                raise Refusal(f"--objective.{name} expected 0 or more, got {weight}: the paper's are 25 and 50")
        if not any(weights.values()):
            raise Refusal("--objective.distance-weight and --objective.angle-weight expected one above 0, got 0 and 0: "
                          "leave one out")  # fmt: skip


class Objective:
    """Distances and angles within the batch; it keeps nothing."""

    momentum: float | None = None  # there are no anchors: no keys are needed
    stored_anchors = False
    space = "own"
    temperature = None
    within_batch = True

    def __init__(self, config: Config, *, group: ProcessGroup | None = None, **_: Any):
        self.config, self.group = config, group

    def __call__(self, query: Tensor, target: Tensor, index: Tensor) -> Tensor:
        """(B, D_s) unit rows with gradient, (B, D_t) unit rows, (B,) samples -> scalar."""
        del index
        query, target = whole(query, self.group), whole(target.detach(), self.group)
        loss = query.sum() * 0  # where a batch has no pair, or no triplet
        if self.config.distance_weight and len(query) > 1:
            loss = loss + self.config.distance_weight * distance_loss(query, target)
        if self.config.angle_weight and len(query) > 2:
            loss = loss + self.config.angle_weight * angle_loss(query, target)
        return loss

    def update(self, key: Tensor, target: Tensor, index: Tensor) -> None:
        """Nothing is kept of a step."""

    def state_dict(self) -> dict[str, Any]:
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        assert not state, state.keys()


def distance_loss(query: Tensor, target: Tensor) -> Tensor:
    """(B, D_s) and (B, D_t), B at least 2 -> Huber loss of their distances, each side's divided by their mean."""
    pairs = len(query) * (len(query) - 1)
    lengths = [_lengths(rows @ rows.T) for rows in (query, target)]
    mine, its = (one.masked_fill(_itself(one), 0) for one in lengths)
    mine, its = mine * (pairs / mine.sum()), its * (pairs / its.sum())
    return functional.huber_loss(mine, its, reduction="sum") / pairs  # 0 on the diagonal


def angle_loss(query: Tensor, target: Tensor) -> Tensor:
    """(B, D_s) and (B, D_t), B at least 3 -> Huber loss of the cosines of all triplets' angles."""
    products = query @ query.T, target @ target.T
    total = query.new_zeros(())
    for centres in torch.arange(len(query), device=query.device).split(CENTRES):
        part = checkpoint(_angles_apart, *products, centres, use_reentrant=False, preserve_rng_state=False)
        total = total + part
    return total / (len(query) * (len(query) - 1) * (len(query) - 2))


def _angles_apart(products: Tensor, others: Tensor, centres: Tensor) -> Tensor:
    """Huber loss of the angles at some of the images, summed over triplets."""
    one, other = _cosines(products, centres), _cosines(others, centres)
    return functional.huber_loss(one, other, reduction="sum")


def _cosines(products: Tensor, centres: Tensor) -> Tensor:
    """(B, B) products, (c,) images -> (c, B, B) cosines of the angles at them; 0 where two of three are the same.

    (x_i - x_j) · (x_k - x_j) = x_i·x_k - x_i·x_j - x_j·x_k + x_j·x_j
    """
    here, lengths = products[centres], _lengths(products)[centres]
    own = products.diagonal()[centres]
    inner = products - here[:, :, None] - here[:, None, :] + own[:, None, None]
    cosines = inner / (lengths[:, :, None] * lengths[:, None, :])
    at_centre = centres[:, None] == torch.arange(len(products), device=products.device)
    return cosines.masked_fill(at_centre[:, :, None] | at_centre[:, None, :] | _itself(products), 0)


def _lengths(products: Tensor) -> Tensor:
    """(B, B) products of rows -> their distances; of an image from itself the root of SMALLEST."""
    squares = products.diagonal()
    return (squares[:, None] + squares - 2 * products).clamp_min(SMALLEST).sqrt()


def _itself(matrix: Tensor) -> Tensor:
    return torch.eye(len(matrix), dtype=torch.bool, device=matrix.device)
