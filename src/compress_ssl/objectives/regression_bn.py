"""Regression after batch norm: what varies in each of the teacher's dimensions counts, not its mean or its scale.

    z_id = (s_id - mean_d) / sqrt(var_d + 1e-5 / D_t)   over the batch; likewise the teacher's t_id -> y_id
    loss = 1/(B D_t) sum_id (z_id - y_id)^2             which is 2 - 2 · the dimensions' mean correlation

Source: Abbasi Koohpayegani et al., CompRess, NeurIPS 2020, Sec. 4, the baseline "Reg-BN": batch norm without affine on
both sides. ResNet-18 from MoCo's ResNet-50: Reg 41.7, Reg-BN 47.3, 1q 53.5 (% by nearest neighbour).
Relations: regression.py compares the rows as they are. Here what comes out of the linear layer equals the teacher's row
but for a shift and a scale of every dimension: it is no row of the teacher's space, so the layer is a head of this
objective, dropped after training, and not a projector that queries an index of teacher rows.
The head takes the student's rows at length one, as it is given them: features of any length would do, for batch norm
follows; nearest neighbours by cosine, which is what the student is for, do not see their length either. Entries of a
row of length one are of the size 1 / sqrt(D_t): divided by D_t, batch norm's 1e-5 is as small beside their variance as
it is beside that of the features which the paper normalises. Undivided it is a fifth of the median dimension's variance
in rows of 2048 pooled ReLU features (a ResNet-50 on CIFAR-10), more in half of them, and they would hardly count.
Measured on CIFAR-10, 386 steps of 64, a student of 77 352 parameters, one seed: of a teacher's rows of 256 numbers led
through random ReLU features to 2048 it keeps 16.0 % of ten neighbours divided, 11.9 % undivided (1-NN 33.6 and 32.2 %).
The statistics are those of the batch, of all processes, in every call: nothing runs along, and nothing is needed for
evaluation, where neither head nor norm takes part. The paper does not give its scale: here the loss is a mean over
dimensions, in [0, 4] as that of unit rows is.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed import ProcessGroup

from compress_ssl.whole_batch import whole

SMALLEST = 1e-5  # added to a variance, as batch norm has it, of entries whose squares are 1 in the mean


@dataclass(frozen=True, kw_only=True)
class Config:
    """Nothing to choose."""

    name: str = "regression_bn"


class Objective:
    """A linear layer that learns with the student, and the squared distance of standardised rows."""

    momentum: float | None = None  # there are no anchors: no keys are needed
    stored_anchors = False
    space = "own"
    temperature = None
    within_batch = True  # through its mean and variance

    def __init__(
        self,
        config: Config,
        *,
        width: int,
        target_width: int,
        seed: int = 0,
        group: ProcessGroup | None = None,
        **_: Any,
    ):
        self.config, self.group = config, group
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            self.trained = nn.Linear(width, target_width)

    def __call__(self, query: Tensor, target: Tensor, index: Tensor) -> Tensor:
        """(B, D_s) unit rows with gradient, (B, D_t) unit rows, (B,) samples -> scalar in [0, 4]."""
        del index
        rows = self.trained(query.to(self.trained.weight.dtype))
        return standardised_distance(whole(rows, self.group), whole(target.detach(), self.group))

    def update(self, key: Tensor, target: Tensor, index: Tensor) -> None:
        """Nothing is kept of a step."""

    def state_dict(self) -> dict[str, Any]:
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        assert not state, state.keys()


def standardised_distance(query: Tensor, target: Tensor) -> Tensor:
    """Mean squared difference of (B, D) and (B, D), each dimension standardised over the batch; of one row it is 0."""
    return (_standardised(query) - _standardised(target)).square().mean()


def _standardised(rows: Tensor) -> Tensor:
    """As batch norm without affine of rows · sqrt(D): the variance is that of the batch, divided by B."""
    centred = rows - rows.mean(dim=0)
    return centred * (centred.square().mean(dim=0) + SMALLEST / rows.shape[1]).rsqrt()
