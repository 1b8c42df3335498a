"""Supervised: a classifier on the encoder, trained with it on labels. What learning without labels is held against.

The paper's tables have such a row for each student (Abbasi Koohpayegani et al., CompRess, NeurIPS 2020, Tables 1 to 3);
the method is the ordinary one: random crop and flip, softmax cross-entropy. Label smoothing: Szegedy et al., Rethinking
the Inception Architecture, CVPR 2016, Sec. 7. The classifier is thrown away, as the heads of the other methods are, so
that the encoder is scored in the same way.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
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

LABELLED = True


@dataclass(frozen=True, kw_only=True)
class Config:
    """Defaults suit images of 32 to 64 pixels; configs/ holds the published ones for ImageNet."""

    name: str = "supervised"
    label_smoothing: float = 0.0  # share of each target that is spread evenly over all classes
    view: TrainView = TrainView(scale=(0.2, 1.0))  # crop and flip
    colour: colour.Config = colour.OFF  # change of colours; off

    def __post_init__(self) -> None:
        check(self, label_smoothing="a number in [0, 1)")


def make_view(config: Config, size: int) -> Crops:
    """The one view that the loader cuts."""
    return Crops(config.view, size, count=1)


def make_learner(config: Config, encoder: Encoder, *, classes: int, **_: int) -> Learner:
    """The encoder under a linear classifier."""
    del config
    return Learner(encoder, nn.Linear(encoder.width, classes))


class Method:
    """Cross-entropy with the labels; nothing else is remembered.

    Args:
        labels: (N,) int64 class of each training image.
    """

    def __init__(self, config: Config, learner: Learner, *, labels: Tensor, fabric: Fabric, **_: int):
        self.config, self.fabric, self.labels = config, fabric, labels.to(fabric.device)
        self.blur = usual_blur(learner.encoder.preprocessing.size)

    def views(self, batch: Batch, generator: torch.Generator) -> Views:
        if not self.config.colour.changes:
            plain = batch.images.transpose(0, 1).flatten(0, 1)
            return Views([plain.contiguous(memory_format=torch.channels_last)], [])
        rank, ranks = self.fabric.global_rank, self.fabric.world_size
        seen = changed(batch.images, self.config.colour, generator, rank=rank, ranks=ranks, blur=self.blur)
        return Views([seen], [])

    def keys(self, *_: Any) -> None:
        """There is no slow copy."""

    def loss(self, query: Tensor, key: None, index: Tensor, progress: float) -> Tensor:
        """(V·B, C) scores of the classes, all first views first, (B,) samples -> scalar in nats."""
        del key, progress
        labels = self.labels[index].repeat(len(query) // len(index))
        return functional.cross_entropy(query.float(), labels, label_smoothing=self.config.label_smoothing)

    def restrain(self, _: float) -> None:
        """All gradients are followed."""

    def update(self, *_: Any) -> None:
        """There is nothing to remember."""

    def state_dict(self) -> dict[str, Any]:
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        assert not state, state.keys()
