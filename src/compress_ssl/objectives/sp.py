"""SP, similarity-preserving: the student's matrix of similarities within the batch is to be the teacher's.

    G = Q Q^T,  each row of it brought to length one;    loss = weight / B^2 · ||G_t - G_s||_F^2

Source: Tung & Mori, Similarity-Preserving Knowledge Distillation, ICCV 2019, Sec. 3 (Eq. 1 to 4); weight 3000 is the
paper's gamma. There the rows are activations of a layer, flattened; here they are the unit rows of the embedding.
Relations: compress_2q compares with 128 000 anchors where this has the batch's own images, and by their ranks' weight
where this takes each similarity for itself; pkt.py makes distributions of the same matrix.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from torch import Tensor
from torch.distributed import ProcessGroup
from torch.nn import functional

from compress_ssl.refusal import Refusal
from compress_ssl.whole_batch import whole


@dataclass(frozen=True, kw_only=True)
class Config:
    """The paper's value."""

    name: str = "sp"
    weight: float = 3000.0  # of the loss: differences of rows of length one are small, and are divided by B^2

    def __post_init__(self) -> None:
        if not 0 < self.weight < float("inf"):
            raise Refusal(f"--objective.weight expected more than 0, got {self.weight}: the paper's is 3000")


class Objective:
    """Similarities within the batch; it keeps nothing."""

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
        distance = gram_distance(whole(query, self.group), whole(target.detach(), self.group))
        return self.config.weight * distance

    def update(self, key: Tensor, target: Tensor, index: Tensor) -> None:
        """Nothing is kept of a step."""

    def state_dict(self) -> dict[str, Any]:
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        assert not state, state.keys()


def gram_distance(query: Tensor, target: Tensor) -> Tensor:
    """(B, D_s) and (B, D_t) -> mean squared difference of both Gram matrices' entries, their rows of length one."""
    mine, its = (functional.normalize(rows @ rows.T, dim=1) for rows in (query, target))
    return (mine - its).square().mean()
