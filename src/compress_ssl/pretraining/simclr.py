"""SimCLR: two random views of a picture attract each other and repel the views of all other pictures in the batch.

Source: Chen et al., A Simple Framework for Contrastive Learning of Visual Representations, ICML 2020.
Loss and projection head are lightly's (NTXentLoss, SimCLRProjectionHead).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from lightly.loss import NTXentLoss
from lightly.models.modules.heads import SimCLRProjectionHead
from torch import Tensor, nn

from compress_ssl import colour
from compress_ssl.transforms import TrainView, cut, draw_crop


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

    def __call__(self, picture: np.ndarray, random: np.random.Generator) -> Tensor:
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
        gather = torch.distributed.is_available() and torch.distributed.is_initialized()
        self.contrast = NTXentLoss(temperature=config.temperature, gather_distributed=gather)

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
        return self.contrast(first, second)
