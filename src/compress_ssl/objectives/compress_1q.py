"""CompRess-1q: the student learns the teacher's own space, compared with the teacher's anchors.

Source: Abbasi Koohpayegani et al., CompRess, NeurIPS 2020, Sec. 3: one queue, one linear layer
student_dim -> teacher_dim that is dropped after training (kept beside the student here: with it, an index of teacher
embeddings can be queried).
Relations: 2q keeps a bank of the student's own rows instead and needs no projector.
Differs from the authors' code as compress_2q does.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor

from compress_ssl.bank import Bank
from compress_ssl.refusal import Refusal
from compress_ssl.similarity import anchor_kl


@dataclass(frozen=True, kw_only=True)
class Config:
    """The paper's values."""

    name: str = "compress_1q"
    bank_size: int = 128_000  # anchors held at once; capped at the number of training images
    temperature: float = 0.04  # divides similarities, both sides; larger blurs near neighbours into far ones
    same_image: Literal["mask", "keep"] = "mask"  # an anchor of the query's own image; keep: as the authors' code
    start: Literal["empty", "random"] = "empty"  # of the bank; random: noise rows, as the authors' code


class Objective:
    """A bank of targets and the divergence of a batch over it."""

    momentum: float | None = None  # anchors are the teacher's: no keys are needed

    def __init__(
        self,
        config: Config,
        *,
        width: int,
        target_width: int,
        images: int,
        device: torch.device | str = "cpu",
        seed: int = 0,
    ):
        del width  # of the backbone: a linear projector brings it to the teacher's
        if not config.temperature > 0:
            raise Refusal(
                f"--objective.temperature expected more than 0, got {config.temperature}: the paper's is 0.04"
            )
        self.config = config
        self.projector_width: int | None = target_width
        self.bank = Bank(min(config.bank_size, images), {"target": target_width}, device=device)
        if config.start == "random":
            self.bank.fill_randomly(torch.Generator().manual_seed(seed))

    def __call__(self, query: Tensor, target: Tensor, index: Tensor) -> Tensor:
        """(B, D_t) projected unit rows with gradient, (B, D_t) unit rows, (B,) samples -> scalar in nats."""
        masked = self.config.same_image == "mask"
        anchors = self.bank.anchors("target")
        return anchor_kl(
            query,
            anchors,
            target,
            anchors,
            temperature=self.config.temperature,
            index=index if masked else None,
            anchor_index=self.bank.index if masked else None,
        )

    def update(self, key: Tensor, target: Tensor, index: Tensor) -> None:
        """Write the batch's targets into the bank; to be called after backward."""
        del key
        self.bank.write(index, target=target.float())

    def state_dict(self) -> dict[str, Any]:
        return self.bank.state_dict()

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.bank.load_state_dict(state)
