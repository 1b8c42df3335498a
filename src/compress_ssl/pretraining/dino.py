"""DINO: every view, small ones too, predicts what a slow copy makes of the global views, among many outputs.

Source: Caron et al., Emerging Properties in Self-Supervised Vision Transformers, ICCV 2021. The head is lightly's
(DINOProjectionHead); the loss is that of its DINOLoss as a function of tensors, for that one moves its centre while it
compares. The slow copy's outputs are centred and sharpened, so that neither one output nor all alike win.
Differs from the authors' code: crops are resized bilinearly, as everywhere here, not bicubically.
"""

from __future__ import annotations

import math
import warnings
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

import torch
from lightly.models.modules.heads import DINOProjectionHead
from torch import Tensor
from torch.nn import functional

from compress_ssl import colour
from compress_ssl.crops import Crops, LocalConfig, changed, usual_blur
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
    """Defaults suit images of 32 to 64 pixels; configs/ holds the published ones for ImageNet."""

    name: str = "dino"
    outputs: int = 2048  # compared by; the authors' is 65536
    temperature: float = 0.1  # divides the learner's outputs
    key_temperature: float = 0.04  # divides the slow copy's centred outputs, once it is warmed up
    key_temperature_start: float = 0.04  # at the beginning
    key_temperature_warmup: float = 0.3  # share of the training over which the one becomes the other
    momentum: float = 0.996  # of the slow copy at first, 1 at the end; a training of a few thousand steps wants 0.99
    centre_momentum: float = 0.9  # of the mean that is taken from the slow copy's outputs
    freeze: float = 0.01  # share of the training in which the head's last layer stays as it is
    clip: float | None = 3.0  # length to which the gradient of each parameter is cut
    hidden_width: int = 1024  # of the head
    bottleneck_width: int = 256  # of the unit rows before the head's last layer
    head_norm: bool = False  # batch norm in the head
    local: LocalConfig = field(default_factory=LocalConfig)  # multi-crop
    view: TrainView = TrainView(scale=(0.4, 1.0))  # crop and flip of the two global views
    # of all views; blur, where it is left open, is 1 for first, 0.1 for second, 0.5 for local ones
    colour: colour.Config = colour.Config(saturation=0.2, solarise=0.2)

    def __post_init__(self) -> None:
        above, share = "a number above 0", "a number in [0, 1]"
        check(self, temperature=above, key_temperature=above, key_temperature_start=above, clip=above)
        check(self, key_temperature_warmup=share, freeze=share, momentum="a number in [0, 1)")
        check(self, centre_momentum="a number in [0, 1)", outputs="at least 2")
        check(self, hidden_width="at least 1", bottleneck_width="at least 1")


def make_view(config: Config, size: int) -> Crops:
    """The views that the loader cuts."""
    return Crops(config.view, size, config.local)


def make_learner(config: Config, encoder: Encoder, **_: int) -> Learner:
    """The encoder under DINO's head, whose last layer has rows of length one."""
    local = config.local.size_at(encoder.preprocessing.size) if config.local.views else None
    with torch.no_grad(), warnings.catch_warnings():  # else its weight hangs on a graph, and cannot be copied
        warnings.simplefilter("ignore", FutureWarning)  # lightly's weight_norm has a newer name
        head = DINOProjectionHead(
            encoder.width,
            config.hidden_width,
            config.bottleneck_width,
            config.outputs,
            batch_norm=config.head_norm,
        )
    return Learner(encoder, head, local_size=local)


class Method:
    """The slow copy and the centre of its outputs."""

    def __init__(self, config: Config, learner: Learner, *, fabric: Fabric, **_: int):
        self.config, self.learner, self.fabric = config, learner, fabric
        size = learner.encoder.preprocessing.size
        self.blurs = [usual_blur(size, published) for published in (1.0, 0.1, 0.5)]
        self.slow = slow_copy(learner)
        self.centre = torch.zeros(config.outputs, device=fabric.device)

    def views(self, batch: Batch, generator: torch.Generator) -> Views:
        """Global views solarised at most in the second, as the authors do."""
        plain = replace(self.config.colour, solarise=0.0)
        crops = [(batch.images[:, :1], plain), (batch.images[:, 1:], self.config.colour)]
        crops += [] if batch.local is None else [(batch.local, plain)]
        rank, ranks = self.fabric.global_rank, self.fabric.world_size
        first, second, *local = (
            changed(part, config, generator, rank=rank, ranks=ranks, blur=blur)
            for (part, config), blur in zip(crops, self.blurs, strict=False)
        )
        both = torch.cat([first, second]).contiguous(memory_format=torch.channels_last)
        return Views([both, *local], [both])

    @torch.no_grad()
    def keys(self, views: Views, _: torch.Generator) -> Tensor:
        """(2·B, outputs) of the global views."""
        with self.fabric.autocast():
            return self.slow(views.key).float()

    def loss(self, query: Tensor, key: Tensor, index: Tensor, progress: float) -> Tensor:
        """((2 + L)·B, outputs) of global and local views -> scalar."""
        config = self.config
        warm = min(1.0, progress / max(1e-9, config.key_temperature_warmup))
        first, last = config.key_temperature_start, config.key_temperature
        return cross_view(
            query.float().unflatten(0, (-1, len(index))),
            key.unflatten(0, (-1, len(index))),
            self.centre,
            temperature=config.temperature,
            key_temperature=first + (last - first) * warm,
        )

    def restrain(self, progress: float) -> None:
        """The last layer stays at first; the gradient of every parameter is cut to `clip`."""
        if progress < self.config.freeze:
            self.learner.head.last_layer.weight_v.grad.zero_()  # not None: torch's fused SGD stumbles over a later one
        if self.config.clip is not None:
            gradients = [parameter.grad for parameter in self.learner.parameters() if parameter.grad is not None]
            shares = torch._foreach_div(torch._foreach_norm(gradients), self.config.clip)  # a few kernels for them all
            torch._foreach_clamp_min_(shares, 1.0)
            torch._foreach_div_(gradients, shares)

    def update(self, _: Tensor, key: Tensor, __: Tensor, progress: float) -> None:
        """The centre moves to the mean output of all processes; the slow copy follows, ever less."""
        (means,) = everywhere(self.fabric, key.mean(dim=0, keepdim=True))
        self.centre.lerp_(means.mean(dim=0), 1 - self.config.centre_momentum)
        momentum = 1 - (1 - self.config.momentum) * 0.5 * (1 + math.cos(math.pi * progress))
        follow(self.slow, self.learner, momentum=momentum)

    def state_dict(self) -> dict[str, Any]:
        return {"slow": self.slow.state_dict(), "centre": self.centre}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.slow.load_state_dict(state["slow"])
        self.centre.copy_(state["centre"])


def cross_view(query: Tensor, key: Tensor, centre: Tensor, *, temperature: float, key_temperature: float) -> Tensor:
    """Mean cross-entropy of each view's outputs under each other global view's, as the slow copy has them.

    Args:
        query: (V, B, outputs) of all views, the G global ones first.
        key: (G, B, outputs) of the slow copy.
        centre: (outputs,) taken from `key`.
    """
    wanted = functional.softmax((key - centre) / key_temperature, dim=-1)
    found = functional.log_softmax(query / temperature, dim=-1)
    pairs = -torch.einsum("gbo,vbo->gv", wanted, found)
    itself = torch.eye(*pairs.shape, device=pairs.device, dtype=torch.bool)
    return pairs.masked_fill(itself, 0).sum() / ((pairs.numel() - len(key)) * key.shape[1])
