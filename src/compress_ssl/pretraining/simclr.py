"""SimCLR: two random views of a picture attract each other and repel the views of all other pictures in the batch.

Source: Chen et al., A Simple Framework for Contrastive Learning of Visual Representations, ICML 2020.
The projection head is lightly's (SimCLRProjectionHead); the loss is that of its NTXentLoss without the index by a mask,
for which the host would wait twice a step, and for a mask that is made on the host where there are several processes.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from lightly.models.modules.heads import SimCLRProjectionHead
from lightly.utils import dist
from torch import Tensor, nn
from torch.nn import functional

from compress_ssl import colour
from compress_ssl.picture import Picture
from compress_ssl.transforms import Sample, TrainView, cut, draw_crop


@dataclass(frozen=True, kw_only=True)
class Config:
    """Defaults suit images of 32 to 64 pixels; configs/ holds the published ones for ImageNet."""

    name: str = "simclr"
    temperature: float = 0.2  # divides similarities; lower looks harder at the most similar negatives
    hidden_width: int = 512  # of the projection head
    projection_width: int = 128  # of what the loss compares
    view: TrainView = TrainView(scale=(0.2, 1.0))  # crop and flip of both views
    colour: colour.Config = colour.Config()  # change of colours of both views


class TwoCrops:
    """(H, W, 3) uint8 -> (2, 3, size, size) uint8: two random crops; colours change later, on the device."""

    def __init__(self, view: TrainView, size: int):
        self.view, self.size = view, size

    def __call__(self, picture: np.ndarray | Picture, sample: Sample) -> Tensor:
        picture = np.asarray(picture)  # decoded once, and not around each crop
        random = sample.random
        height, width = picture.shape[:2]
        crops = [draw_crop(height, width, self.view, random) for _ in range(2)]
        return torch.stack([cut(picture, crop, self.size) for crop in crops])


def make_view(config: Config, size: int) -> TwoCrops:
    """The views that the loader cuts."""
    return TwoCrops(config.view, size)


class Method(nn.Module):
    """Projection head and loss over an encoder of `width`."""

    def __init__(self, config: Config, *, width: int):
        super().__init__()
        self.config = config
        self.head = SimCLRProjectionHead(width, config.hidden_width, config.projection_width)

    def change(self, views: Tensor, generator: torch.Generator, *, rank: int, ranks: int) -> Tensor:
        """Colours of the views (B, 2, 3, H, W) uint8 changed; numbers are drawn for all ranks and this one's taken."""
        count = views.shape[0] * views.shape[1]
        drawn = colour.draw(count * ranks, self.config.colour, generator).part(rank * count, (rank + 1) * count)
        return colour.apply(views.flatten(0, 1), drawn).view_as(views)

    def forward(self, embeddings: Tensor) -> Tensor:
        """(2·B, D) embeddings -> (2·B, P) projections."""
        return self.head(embeddings)

    def loss(self, projections: Tensor) -> Tensor:
        """(2·B, P) projections, all first views before all second ones -> scalar."""
        first, second = projections.float().chunk(2)
        return nt_xent(first, second, temperature=self.config.temperature)


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
