"""SwAV: each view predicts to which prototypes another view of its picture belongs, all prototypes being used equally.

Source: Caron et al., Unsupervised Learning of Visual Features by Contrasting Cluster Assignments, NeurIPS 2020. Head,
loss and the Sinkhorn-Knopp assignment are lightly's (SwaVProjectionHead, SwaVLoss), prototypes without its bias, as the
authors have them.
Differs from the authors' code: the bank is one of all processes, each of which assigns its share of it, so that the
result does not depend on their number; it is written from the first step on, and compared from `bank_start` on.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from lightly.loss import SwaVLoss
from lightly.models.modules.heads import SwaVProjectionHead
from torch import Tensor, nn
from torch.nn import functional

from compress_ssl import colour
from compress_ssl.bank import Bank
from compress_ssl.crops import Crops, LocalConfig, changed, usual_blur
from compress_ssl.encoder import Encoder
from compress_ssl.learner import Learner
from compress_ssl.loader import Batch
from compress_ssl.pretraining import Views, check
from compress_ssl.processes import everywhere
from compress_ssl.refusal import Refusal
from compress_ssl.transforms import TrainView

if TYPE_CHECKING:
    from lightning.fabric import Fabric

LEAST_EPSILON = 0.015  # exp(1 / epsilon), summed over rows and prototypes, is still a float32


@dataclass(frozen=True, kw_only=True)
class Config:
    """Defaults suit images of 32 to 64 pixels; configs/ holds the published ones for ImageNet."""

    name: str = "swav"
    prototypes: int = 512  # a few times the classes that are expected; the authors' is 3000
    temperature: float = 0.1  # divides similarities with prototypes
    # of Sinkhorn-Knopp: larger makes assignments softer; the authors' is 0.05. Of small images it left the loss of the
    # first 90 steps of 128 at ln(prototypes), that of rows that are all one; their advice is 0.03, which does not
    epsilon: float = 0.03
    iterations: int = 3  # of Sinkhorn-Knopp
    freeze: float = 0.01  # share of the training in which the prototypes stay as they are
    # earlier pictures assigned with the batch, at most a tenth of the training images; the authors' is 3840 beside
    # batches of 256. For batches of fewer views than prototypes; none by default, for where it joins before the rows
    # have settled, the batch as a whole runs away from the bank, and 1-NN falls below an untrained encoder's
    bank_size: int = 0
    bank_start: float = 0.075  # share of the training after which they are; the authors' is epoch 15 of 200
    hidden_width: int = 512  # of the projection head
    projection_width: int = 128  # of what is compared with the prototypes
    local: LocalConfig = field(default_factory=LocalConfig)  # multi-crop
    view: TrainView = TrainView(scale=(0.14, 1.0))  # crop and flip of the two global views
    colour: colour.Config = colour.Config(brightness=0.8, contrast=0.8, saturation=0.8, hue=0.2)  # of all views

    def __post_init__(self) -> None:
        check(self, prototypes="at least 2", temperature="a number above 0", iterations="at least 1")
        check(self, freeze="a number in [0, 1]", bank_start="a number in [0, 1]", bank_size="0 or more")
        check(self, hidden_width="at least 1", projection_width="at least 1")
        if not LEAST_EPSILON <= self.epsilon < math.inf:
            raise Refusal(
                f"--method.epsilon expected at least {LEAST_EPSILON}, got {self.epsilon}: 0.03 where 0.05 collapses"
            )


class Assigned(NamedTuple):
    """What the head makes of embeddings."""

    rows: Tensor  # (n, P) unit rows
    scores: Tensor  # (n, prototypes) their similarities with the prototypes


class Head(nn.Module):
    """(n, D) embeddings -> unit rows and their scores."""

    def __init__(self, config: Config, width: int):
        super().__init__()
        self.projection = SwaVProjectionHead(width, config.hidden_width, config.projection_width)
        self.prototypes = nn.Linear(config.projection_width, config.prototypes, bias=False)
        self.normalise()

    def forward(self, embeddings: Tensor) -> Assigned:
        rows = functional.normalize(self.projection(embeddings).float(), dim=1)
        with torch.autocast(rows.device.type, enabled=False):  # divided by 0.05, a bfloat16's rounding would show
            return Assigned(rows, self.prototypes(rows))

    @torch.no_grad()
    def normalise(self) -> None:
        """Prototypes are unit rows."""
        self.prototypes.weight.copy_(functional.normalize(self.prototypes.weight, dim=1))


def make_view(config: Config, size: int) -> Crops:
    """The views that the loader cuts."""
    return Crops(config.view, size, config.local)


def make_learner(config: Config, encoder: Encoder, **_: int) -> Learner:
    """The encoder under a projection head and prototypes."""
    local = config.local.size_at(encoder.preprocessing.size) if config.local.views else None
    return Learner(encoder, Head(config, encoder.width), local_size=local)


class Method:
    """The bank: rows of both global views of earlier pictures."""

    def __init__(self, config: Config, learner: Learner, *, images: int, fabric: Fabric):
        self.config, self.head, self.fabric = config, learner.head, fabric
        self.blur = usual_blur(learner.encoder.preprocessing.size)
        size = min(config.bank_size, images // 10)
        widths = {"first": config.projection_width, "second": config.projection_width}
        self.bank = Bank(size, widths, device=fabric.device) if size else None
        self.judge = SwaVLoss(config.temperature, config.iterations, config.epsilon, fabric.world_size > 1)

    def views(self, batch: Batch, generator: torch.Generator) -> Views:
        crops = [batch.images] if batch.local is None else [batch.images, batch.local]
        rank, ranks = self.fabric.global_rank, self.fabric.world_size
        return Views(
            [changed(part, self.config.colour, generator, rank=rank, ranks=ranks, blur=self.blur) for part in crops], []
        )

    def keys(self, *_: Any) -> None:
        """There is no slow copy: views are assigned by the learner's own rows."""

    def loss(self, query: Assigned, _: None, index: Tensor, progress: float) -> Tensor:
        """((2 + L)·B, …) of both global views, then of the local ones -> scalar."""
        scores = list(query.scores.float().split(len(index)))
        return self.judge(scores[:2], scores[2:], self._bank_scores(progress)).squeeze()

    @torch.no_grad()
    def _bank_scores(self, progress: float) -> list[Tensor] | None:
        """Of this process's share of a full bank, first and second views."""
        bank = self.bank
        if bank is None or progress < self.config.bank_start or bank.filled < bank.size:
            return None
        share = slice(self.fabric.global_rank, None, self.fabric.world_size)
        weight = self.head.prototypes.weight.float()
        return [bank.anchors(name)[share] @ weight.T for name in ("first", "second")]

    def restrain(self, progress: float) -> None:
        """Prototypes stay at first, while the rows that they are to order are still random."""
        if progress < self.config.freeze:
            self.head.prototypes.weight.grad.zero_()  # not None: torch's fused SGD stumbles over one that comes later

    def update(self, query: Assigned, _: None, index: Tensor, __: float) -> None:
        """Prototypes have length one again; the global views' rows of all processes enter the bank."""
        self.head.normalise()
        if self.bank is not None:
            first, second = query.rows.detach().float().split(len(index))[:2]
            first, second, index = everywhere(self.fabric, first, second, index)
            self.bank.write(index, first=first, second=second)

    def state_dict(self) -> dict[str, Any]:
        return {} if self.bank is None else self.bank.state_dict()

    def load_state_dict(self, state: dict[str, Any]) -> None:
        if self.bank is not None:
            self.bank.load_state_dict(state)
