"""The batch enters the bank before it is compared: a small ring of teacher rows of which each image's own is nearest.

Source: the distillation that LightlyTrain shipped first, up to 0.6, as "distillationv1" since; described in its
documentation (docs.lightly.ai/train, Methods, Distillation): pseudo labels from similarities to a queue of teacher
rows, after Beyer et al., A Good Teacher is Patient and Consistent, CVPR 2022. Temperature 0.07 on both sides, at most
8192 rows, mixup, LARS: configs/lightly_train_v1_like.yaml sets the last two.
Relations: compress_1q compares with a larger ring at 0.04 before the batch enters it, so that no query is its own
anchor; here the own row, at cosine 1, is each query's strongest. SEED has it too, in a slot that no other query sees.
A re-creation from the public description, written anew. Not reproduced: its default teacher (DINOv2's ViT-B/14 on
unlabelled data of the user's), its choice of the queue's size by that of the data (a half to a quarter of it, 8192 from
20 000 images on), a queue for each process, a queue that starts with rows of zeros, its clipping of gradients at
length 1, and its own strong views.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.distributed import ProcessGroup

from compress_ssl.bank import Bank
from compress_ssl.calibration import Temperature, check_temperature
from compress_ssl.refusal import Refusal
from compress_ssl.similarity import anchor_kl
from compress_ssl.whole_batch import whole

MOST = 8192  # rows of the ring


@dataclass(frozen=True, kw_only=True)
class Config:
    """LightlyTrain's values."""

    name: str = "batch_in_bank"
    bank_size: int = MOST  # anchors held at once, the batch among them; capped at the number of training images
    temperature: Temperature = 0.07  # divides similarities, both sides; larger blurs near neighbours into far ones
    perplexity: float = 0.02  # temperature auto: neighbours that a query is to have, as a share of the anchors

    def __post_init__(self) -> None:
        if not 1 <= self.bank_size <= MOST:
            raise Refusal(f"--objective.bank-size expected 1 to {MOST}, which is what this setting is, got "
                          f"{self.bank_size}: use --objective compress_1q for a larger one")  # fmt: skip
        check_temperature(self.temperature, self.perplexity)


class Objective:
    """A bank of targets and the divergence of a batch over it, the batch included."""

    momentum: float | None = None  # anchors are the teacher's: no keys are needed
    space = "teacher"
    stored_anchors = False
    within_batch = True  # each query is compared with the targets of all others of its batch

    def __init__(
        self,
        config: Config,
        *,
        target_width: int,
        images: int,
        device: torch.device | str = "cpu",
        group: ProcessGroup | None = None,
        **_: Any,
    ):
        self.config, self.group = config, group
        self.temperature = config.temperature  # a number before the first step: see calibration
        self.bank = Bank(min(config.bank_size, images), {"target": target_width}, device=device)

    def __call__(self, query: Tensor, target: Tensor, index: Tensor) -> Tensor:
        """(B, D_t) projected unit rows with gradient, (B, D_t) unit rows, (B,) samples -> scalar in nats."""
        del index  # no anchor is left out: the own one is the point
        anchors = self.anchors(whole(target.detach(), self.group))
        return anchor_kl(query, anchors, target, anchors, temperature=float(self.temperature))

    def anchors(self, target: Tensor) -> Tensor:
        """(B, D_t) targets of the batch -> (A, D_t) as the bank will hold them once the batch is written.

        The bank itself is left as it is. Of a batch that is larger than the bank all rows are anchors, else a query
        could miss its own.
        """
        held: Any = self.bank.anchors("target")
        first = self.bank.position  # where the batch will be written, over the oldest rows of a full ring
        last = first + len(target)
        kept = held[max(0, last - self.bank.size) : first], held[last:]
        return torch.cat([target.to(held.dtype), *kept])

    def update(self, key: Tensor, target: Tensor, index: Tensor) -> None:
        """Write the targets of the batch, that of all processes, into the bank; to be called after backward."""
        del key
        self.bank.write(index, target=target.float())

    def state_dict(self) -> dict[str, Any]:
        return self.bank.state_dict() | {"temperature": self.temperature}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.bank.load_state_dict(state)
        self.temperature = state["temperature"]
