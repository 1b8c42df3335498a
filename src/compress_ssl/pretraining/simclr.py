"""SimCLR: two random views of a picture attract each other and repel the views of all other pictures in the batch.

Source: Chen et al., A Simple Framework for Contrastive Learning of Visual Representations, ICML 2020.
The projection head is lightly's (SimCLRProjectionHead); the loss is that of its NTXentLoss without the index by a mask,
for which the host would wait twice a step, and for a mask that is made on the host where there are several processes.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from lightly.models.modules.heads import SimCLRProjectionHead
from lightly.utils import dist
from torch import Tensor
from torch.nn import functional

from compress_ssl import colour
from compress_ssl.crops import Crops, changed, usual_blur
from compress_ssl.encoder import Encoder
from compress_ssl.learner import Learner
from compress_ssl.loader import Batch
from compress_ssl.pretraining import Views, check
from compress_ssl.transforms import TrainView

if TYPE_CHECKING:
    from lightning.fabric import Fabric


@dataclass(frozen=True, kw_only=True)
class Config:
    """Defaults suit images of 32 to 64 pixels; configs/ holds the published ones for ImageNet."""

    name: str = "simclr"
    temperature: float = 0.2  # divides similarities; lower looks harder at the most similar negatives
    hidden_width: int = 512  # of the projection head
    projection_width: int = 128  # of what the loss compares
    view: TrainView = TrainView(scale=(0.2, 1.0))  # crop and flip of both views
    colour: colour.Config = colour.Config()  # change of colours of both views

    def __post_init__(self) -> None:
        check(self, temperature="a number above 0", hidden_width="at least 1", projection_width="at least 1")


def make_view(config: Config, size: int) -> Crops:
    """The views that the loader cuts."""
    return Crops(config.view, size)


def make_learner(config: Config, encoder: Encoder, **_: int) -> Learner:
    """The encoder under a projection head."""
    return Learner(encoder, SimCLRProjectionHead(encoder.width, config.hidden_width, config.projection_width))


class Method:
    """Two views of each picture, compared within the batch; nothing is remembered."""

    def __init__(self, config: Config, learner: Learner, *, fabric: Fabric, **_: int):
        self.config, self.fabric = config, fabric
        self.blur = usual_blur(learner.encoder.preprocessing.size)

    def views(self, batch: Batch, generator: torch.Generator) -> Views:
        rank, ranks = self.fabric.global_rank, self.fabric.world_size
        both = changed(batch.images, self.config.colour, generator, rank=rank, ranks=ranks, blur=self.blur)
        return Views([both], [])

    def keys(self, *_: Any) -> None:
        """There is no slow copy."""

    def loss(self, query: Tensor, *_: Any) -> Tensor:
        """(2·B, P) projections, all first views before all second ones -> scalar."""
        first, second = query.float().chunk(2)
        return nt_xent(first, second, temperature=self.config.temperature)

    def restrain(self, _: float) -> None:
        """All gradients are followed."""

    def update(self, *_: Any) -> None:
        """There is nothing to remember."""

    def state_dict(self) -> dict[str, Any]:
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        pass


def nt_xent(first: Tensor, second: Tensor, *, temperature: float) -> Tensor:
    """Mean cross-entropy of finding a picture's other view among all other views, those of other processes too.

    Args:
        first, second: (B, P) projections; rows i are two views of one picture.
    Returns: scalar; the gradient reaches the projections of all processes.
    """
    first, second = functional.normalize(first, dim=1), functional.normalize(second, dim=1)
    firsts, seconds = first, second
    if dist.world_size() > 1:
        firsts, seconds = torch.cat(dist.gather(first), 0), torch.cat(dist.gather(second), 0)
    places = torch.arange(len(first), device=first.device) + dist.rank() * len(first)
    itself = places[:, None] == torch.arange(len(firsts), device=first.device)
    losses = [
        functional.cross_entropy(
            torch.cat([one @ others.T, (one @ own.T).masked_fill(itself, -torch.inf)], dim=1) / temperature, places
        )
        for one, others, own in ((first, seconds, firsts), (second, firsts, seconds))
    ]
    return torch.stack(losses).mean()
