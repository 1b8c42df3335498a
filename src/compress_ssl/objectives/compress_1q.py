"""CompRess-1q: the student learns the teacher's own space, compared with the teacher's anchors.

Source: Abbasi Koohpayegani et al., CompRess, NeurIPS 2020, Sec. 3: one queue, one linear layer
student_dim -> teacher_dim that is dropped after training (kept beside the student here: with it, an index of teacher
embeddings can be queried; projector.py has others).
Relations: 2q keeps a bank of the student's own rows instead and needs no projector. compress.py, seed.py and tokens.py
are this bank with another loss over it.
Differs from the authors' code as compress_2q does. Beyond the paper: where the teacher's embeddings are stored, all of
them can be the anchors from the first step on, without a ring (`anchors`).
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, Literal

import torch
from torch import Tensor
from torch.distributed import ProcessGroup

from compress_ssl.bank import BankConfig, compared, open_bank
from compress_ssl.refusal import Refusal
from compress_ssl.similarity import anchor_kl, refuse_path


@dataclass(frozen=True, kw_only=True)
class Config(BankConfig):
    """The paper's values."""

    name: str = "compress_1q"
    anchors: Literal["recent", "stored"] = "recent"  # stored: the whole table of a stored teacher, whatever bank_size

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.anchors == "stored" and self.start == "random":
            raise Refusal("--objective.anchors stored expected --objective.start empty, got random: leave one out")


class Objective:
    """A bank of targets and the divergence of a batch over it."""

    momentum: float | None = None  # anchors are the teacher's: no keys are needed
    space = "teacher"

    def __init__(
        self,
        config: Config,
        *,
        target_width: int,
        images: int,
        device: torch.device | str = "cpu",
        seed: int = 0,
        group: ProcessGroup | None = None,
        **_: Any,
    ):
        refuse_path(config.path, device, config.temperature)
        self.config, self.width = config, target_width
        self.temperature = config.temperature  # a number before the first step: see calibration
        self.stored_anchors = config.anchors == "stored"
        if self.stored_anchors:
            config = replace(config, bank_size=images)
        self.bank = open_bank(config, {"target": target_width}, images=images, device=device, seed=seed, group=group)

    def __call__(self, query: Tensor, target: Tensor, index: Tensor) -> Tensor:
        """(B, D_t) projected unit rows with gradient, (B, D_t) unit rows, (B,) samples -> scalar in nats."""
        anchors, how = self.bank.anchors("target"), compared(self.config, self.bank, index)
        return anchor_kl(query, anchors, target, anchors, temperature=float(self.temperature), **how)

    def update(self, key: Tensor, target: Tensor, index: Tensor) -> None:
        """Write the targets of the batch, that of all processes, into the bank; to be called after backward."""
        del key
        if not self.stored_anchors:
            self.bank.write(index, target=target.float())

    def fill(self, target: Tensor, index: Tensor) -> None:
        """Take (B, D_t) stored targets as anchors, for good; call it until the table is in."""
        self.bank.write(index, target=target.float())

    def state_dict(self) -> dict[str, Any]:
        """Without anchors that a table holds already."""
        bank = {} if self.stored_anchors else self.bank.state_dict()
        return bank | {"temperature": self.temperature}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        if not self.stored_anchors:
            self.bank.load_state_dict(state)
        self.temperature = state["temperature"]
