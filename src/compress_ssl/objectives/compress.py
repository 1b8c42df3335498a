"""CompRess-1q at a temperature found for the teacher, with a standardised regression beside it: the default.

    L = KL( softmax_j(t·a_j / τ) || softmax_j(q·a_j / τ) )  +  regression · mean_d (z_d - y_d)^2

with z the student's projected row through a linear head and y the teacher's row, each dimension standardised over the
batch (regression_bn.py). Similarities say which images are near, the regression where in the space they lie. It
learns much sooner and looks at no anchor; they bring the projected row into the teacher's own space, whose index can
then be queried. What was measured, and what did not help and is therefore off: docs/results/compress.md.
Source: Abbasi Koohpayegani et al., CompRess, NeurIPS 2020, Sec. 3 (1q) and Sec. 4 (its baseline Reg-BN). The
temperature is that at which a row has 2 % of the anchors as neighbours (calibration.py): one default for any teacher.
Off by default: with m the mean of the teacher's rows,

    t' = (t - m) / |t - m|      a_j' likewise      centre mean: t' and a_j' stand for t and a_j in the similarities
    a_0' = t'                                      own_anchor compared: the query's own row is one more anchor

The own anchor is that of Fang et al., SEED, ICLR 2021, Sec. 3.2, here at the one temperature of both sides.
Relations: with `temperature 0.04` and `regression 0` it is compress_1q to the last bit. The bank is 1q's. The head is
over the projected row, so that the gradient of the regression, too, goes through the projector.
With `centre mean` the student's projector leads into the centred space. An index of the teacher's plain unit rows can
still be queried by dot product, for q·t = q·(t - m) + q·m, where the last term is the same for all; only |t - m| is
then not divided out.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.distributed import ProcessGroup
from torch.nn import functional

from compress_ssl.bank import compared
from compress_ssl.calibration import Temperature
from compress_ssl.objectives import compress_1q
from compress_ssl.objectives.regression_bn import standardised_distance
from compress_ssl.refusal import Refusal
from compress_ssl.similarity import anchor_kl
from compress_ssl.whole_batch import whole


@dataclass(frozen=True, kw_only=True)
class Config(compress_1q.Config):
    """Defaults chosen on two data sets, docs/results/compress.md."""

    name: str = "compress"
    temperature: Temperature = "auto"  # divides similarities, both sides; auto: by perplexity
    regression: float = 4.0  # weight of the standardised regression; 0: similarities alone, and --accumulate works
    centre: Literal["none", "mean"] = "none"  # what is taken from the teacher's rows before they are compared
    own_anchor: Literal["left_out", "compared"] = "left_out"  # the query's own target, beside those of the bank

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 <= self.regression < math.inf:
            raise Refusal(f"--objective.regression expected a weight of 0 or more, got {self.regression}: 0 is none")

    def share_of(self, anchors: int) -> float:
        """Share of so many anchors that are to be neighbours: the perplexity asked for, of few images two at least."""
        return max(self.perplexity, min(2 / anchors, 0.99))


class Objective(compress_1q.Objective):
    """1q's bank, the divergence of a batch over it, and a linear head for the regression."""

    config: Config

    def __init__(
        self,
        config: Config,
        *,
        target_width: int,
        device: torch.device | str = "cpu",
        seed: int = 0,
        group: ProcessGroup | None = None,
        **how: Any,
    ):
        super().__init__(config, target_width=target_width, device=device, seed=seed, group=group, **how)
        self.group, self.centre = group, torch.zeros(target_width, device=device)
        self.within_batch = config.regression > 0  # through its means and variances
        self.trained = None
        if config.regression:
            with torch.random.fork_rng(devices=[]):
                torch.manual_seed(seed)
                self.trained = nn.Linear(target_width, target_width)

    def centre_on(self, mean: Tensor) -> None:
        """Take the mean (D_t,) of the teacher's unit rows; before the first step."""
        if self.config.centre == "mean":
            self.centre = mean.to(self.centre)

    def seen(self, rows: Tensor) -> Tensor:
        """(N, D_t) unit rows of the teacher -> as they are compared, (N, D_t) float32 unit rows.

        A row that is the mean itself, to the last digits, comes out as zeros: equally far from all anchors.
        """
        if self.config.centre == "none":
            return rows.float()
        return functional.normalize(rows.float() - self.centre.to(rows.device), dim=1)

    def __call__(self, query: Tensor, target: Tensor, index: Tensor) -> Tensor:
        """(B, D_t) projected unit rows with gradient, (B, D_t) unit rows, (B,) samples -> scalar."""
        anchors, seen = self.bank.anchors("target"), self.seen(target.detach())
        own = (seen, seen) if self.config.own_anchor == "compared" else None
        how = compared(self.config, self.bank, index)
        loss = anchor_kl(query, anchors, seen, anchors, temperature=float(self.temperature), own=own, **how)
        if self.trained is None:
            return loss
        rows = self.trained(query.to(self.trained.weight.dtype))
        distance = standardised_distance(whole(rows, self.group), whole(target.detach().float(), self.group))
        return loss + self.config.regression * distance

    def update(self, key: Tensor, target: Tensor, index: Tensor) -> None:
        super().update(key, self.seen(target), index)

    def fill(self, target: Tensor, index: Tensor) -> None:
        """As 1q; after `centre_on`."""
        super().fill(self.seen(target), index)

    def state_dict(self) -> dict[str, Any]:
        return super().state_dict() | {"centre": self.centre}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        super().load_state_dict(state)
        self.centre = state["centre"].to(self.centre)
