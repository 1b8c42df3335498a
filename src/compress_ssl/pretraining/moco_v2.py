"""MoCo v2: a view finds its picture's other view, as a slow copy embeds it, among the keys of many earlier pictures.

Source: He et al., Momentum Contrast for Unsupervised Visual Representation Learning, CVPR 2020; Chen et al., Improved
Baselines with Momentum Contrastive Learning, 2020 (MLP head, blur). The head is lightly's (MoCoProjectionHead).
Batch norm would tell a key that is of the query's own batch from the bank's: so both are embedded in parts of the batch
with statistics of their own, and the slow copy's parts are shuffled among all processes (ShuffleBN). With 8 processes
that is the authors' way; with fewer each embeds several parts, one after the other.
Differs from the authors' code: the bank starts empty instead of random, and a key of the query's own image is masked.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from lightly.models.modules.heads import MoCoProjectionHead
from torch import Tensor
from torch.nn import functional
from torch.nn.modules.batchnorm import _BatchNorm

from compress_ssl import colour
from compress_ssl.bank import Bank
from compress_ssl.crops import Crops, changed, usual_blur
from compress_ssl.encoder import Encoder
from compress_ssl.learner import Learner, follow, slow_copy
from compress_ssl.loader import Batch
from compress_ssl.pretraining import Views, check
from compress_ssl.processes import everywhere
from compress_ssl.transforms import TrainView

if TYPE_CHECKING:
    from lightning.fabric import Fabric


@dataclass(frozen=True, kw_only=True)
class Config:
    """The authors' values but for a narrower head, which suits small images; configs/ holds theirs for ImageNet."""

    name: str = "moco_v2"
    temperature: float = 0.2  # divides similarities; lower looks harder at the most similar negatives
    bank_size: int = 65_536  # keys of earlier pictures; at most a tenth of the training images
    momentum: float = 0.999  # of the slow copy; a training of a few thousand steps wants 0.99
    # of the batch, over all processes, with batch-norm statistics of their own, as on the authors' 8 GPUs; 1: the whole
    # batch at once, which lets batch norm tell the positive key. A process embeds its parts one after the other:
    # 284 ms instead of 229 for a small ResNet-10, 256 images of 32 pixels on one core (median of 7), and more on a GPU
    # that a part does not keep busy
    parts: int = 8
    hidden_width: int = 512  # of the projection head
    projection_width: int = 128  # of what the loss compares
    view: TrainView = TrainView(scale=(0.2, 1.0))  # crop and flip of both views
    colour: colour.Config = colour.Config()  # change of colours of both views

    def __post_init__(self) -> None:
        check(self, temperature="a number above 0", momentum="a number in [0, 1)")
        check(
            self, bank_size="at least 1", parts="at least 1", hidden_width="at least 1", projection_width="at least 1"
        )


def make_view(config: Config, size: int) -> Crops:
    """The views that the loader cuts."""
    return Crops(config.view, size)


def make_learner(config: Config, encoder: Encoder, *, ranks: int) -> Learner:
    """The encoder under a projection head, embedding this process's share of the parts; without batch norm, at once."""
    head = MoCoProjectionHead(encoder.width, config.hidden_width, config.projection_width)
    normed = any(isinstance(module, _BatchNorm) for module in encoder.modules())
    return Learner(encoder, head, parts=-(-config.parts // ranks) if normed else 1)


class Method:
    """The slow copy and the bank of its keys."""

    def __init__(self, config: Config, learner: Learner, *, images: int, fabric: Fabric):
        self.config, self.learner, self.fabric = config, learner, fabric
        self.blur = usual_blur(learner.encoder.preprocessing.size)
        self.slow = slow_copy(learner)
        size = max(1, min(config.bank_size, images // 10))
        self.bank = Bank(size, {"key": config.projection_width}, device=fabric.device)

    def views(self, batch: Batch, generator: torch.Generator) -> Views:
        rank, ranks = self.fabric.global_rank, self.fabric.world_size
        both = changed(batch.images, self.config.colour, generator, rank=rank, ranks=ranks, blur=self.blur)
        first, second = both.chunk(2)
        return Views([first], [second])

    @torch.no_grad()
    def keys(self, views: Views, generator: torch.Generator) -> Tensor:
        """(B, P) unit rows of the second views, embedded in another order than they are in."""
        (whole,) = everywhere(self.fabric, views.key[0])
        order = torch.randperm(len(whole), generator=generator)
        if whole.device.type == "cuda":
            order = order.pin_memory()  # else the host would wait for the copy
        order = order.to(whole.device, non_blocking=True)
        count, rank = len(views.key[0]), self.fabric.global_rank
        mine = slice(rank * count, (rank + 1) * count)
        shuffled = whole[order[mine]].contiguous(memory_format=torch.channels_last)
        with self.fabric.autocast():
            rows = self.slow([shuffled])
        (shuffled_rows,) = everywhere(self.fabric, functional.normalize(rows.float(), dim=1))
        return shuffled_rows[order.argsort()[mine]]

    def loss(self, query: Tensor, key: Tensor, index: Tensor, _: float) -> Tensor:
        """(B, P) projections of the first views -> scalar."""
        anchors, of = self.bank.anchors("key"), self.bank.index
        assert isinstance(anchors, Tensor)
        return info_nce(
            functional.normalize(query.float(), dim=1),
            key,
            anchors,
            same=index[:, None] == of,
            temperature=self.config.temperature,
        )

    def restrain(self, _: float) -> None:
        """All gradients are followed."""

    def update(self, _: Tensor, key: Tensor, index: Tensor, __: float) -> None:
        """The batch's keys enter the bank, of all processes; the slow copy follows."""
        keys, indices = everywhere(self.fabric, key, index)
        self.bank.write(indices, key=keys)
        follow(self.slow, self.learner, momentum=self.config.momentum)

    def state_dict(self) -> dict[str, Any]:
        return {"slow": self.slow.state_dict(), "bank": self.bank.state_dict()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.slow.load_state_dict(state["slow"])
        self.bank.load_state_dict(state["bank"])


def info_nce(query: Tensor, key: Tensor, anchors: Tensor, *, same: Tensor, temperature: float) -> Tensor:
    """Mean cross-entropy of finding each query's key before all anchors.

    Args:
        query, key: (B, P) unit rows; rows i are two views of one picture.
        anchors: (A, P) unit rows.
        same: (B, A) bool, anchors that are of the query's own picture: not compared.
    """
    positive = (query * key).sum(dim=1, keepdim=True)
    negatives = (query @ anchors.T).masked_fill(same, -torch.inf)
    logits = torch.cat([positive, negatives], dim=1) / temperature
    return functional.cross_entropy(logits, torch.zeros(len(query), dtype=torch.int64, device=query.device))
