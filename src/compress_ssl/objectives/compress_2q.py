"""CompRess-2q: match the teacher's similarities to shared anchors, each model in its own space.

Source: Abbasi Koohpayegani et al., CompRess, NeurIPS 2020, Sec. 3.
Relations: 1q puts the student in the teacher's space (query an existing index); 2q leaves it its own width. isd.py is
this bank with a second divergence over it.
Differs from the authors' code: the bank is written after backward; same values, no copy of the bank. Rows that are not
filled yet and anchors of the query's own image are not compared (`start`, `same_image` bring the authors' way back).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.distributed import ProcessGroup

from compress_ssl.bank import BankConfig, compared, open_bank
from compress_ssl.similarity import anchor_kl, refuse_path


@dataclass(frozen=True, kw_only=True)
class Config(BankConfig):
    """The paper's values."""

    name: str = "compress_2q"
    momentum: float | None = 0.999  # of the slow student that makes the keys; none: keys are the queries themselves


class Objective:
    """A bank of (key, target) pairs and the divergence of a batch over it."""

    space = "own"  # the backbone's features are the embedding; with a projector, both query and key go through it
    stored_anchors = False  # the student's anchors change: no table can hold them

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
        self.config, self.momentum = config, config.momentum
        self.temperature = config.temperature  # a number before the first step: see calibration
        widths = {"key": width, "target": target_width}
        self.bank = open_bank(config, widths, images=images, device=device, seed=seed, group=group)

    def __call__(self, query: Tensor, target: Tensor, index: Tensor) -> Tensor:
        """(B, D_s) unit rows with gradient, (B, D_t) unit rows, (B,) samples -> scalar in nats."""
        keys, targets = self.bank.anchors("key"), self.bank.anchors("target")
        how = compared(self.config, self.bank, index)
        return anchor_kl(query, keys, target, targets, temperature=float(self.temperature), **how)

    def update(self, key: Tensor, target: Tensor, index: Tensor) -> None:
        """Write the batch into the bank, that of all processes; to be called after backward."""
        self.bank.write(index, key=key.detach().float(), target=target.float())

    def state_dict(self) -> dict[str, Any]:
        return self.bank.state_dict() | {"temperature": self.temperature}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.bank.load_state_dict(state)
        self.temperature = state["temperature"]
