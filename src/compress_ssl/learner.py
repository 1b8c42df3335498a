"""What pretraining trains: views -> what the method compares. An encoder under a head, and the slow copy of both.

Source of the slow copy: He et al., MoCo, CVPR 2020, Eq. 2. Its batch norm runs in train mode on statistics of its own.
"""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import Tensor, nn

from compress_ssl.encoder import Encoder
from compress_ssl.refusal import Refusal


class Learner(nn.Module):
    """A list of views, one tensor (n, 3, s, s) uint8 for each size -> what the head makes of all their embeddings.

    Args:
        encoder: embeddings of one size after the other, as batch norm sees them; kept when the training is over.
        head: (n, D) embeddings of all views -> what is compared; thrown away.
        parts: of each tensor, embedded one after the other, with batch-norm statistics of their own; each of at least
            two images.
        local_size: of views smaller than the encoder's input; a backbone that takes no other size gets them enlarged,
            at the cost of whole ones.
    """

    def __init__(self, encoder: Encoder, head: nn.Module, *, parts: int = 1, local_size: int | None = None):
        super().__init__()
        self.encoder, self.parts = encoder, parts
        self.head: Any = head
        self.enlarges = local_size is not None and not takes(encoder, local_size)

    def forward(self, views: list[Tensor]) -> Any:
        if self.parts > 1 and len(views[0]) < 2 * self.parts:
            raise Refusal(
                f"--method.parts expected at least 2 images in each, got {len(views[0])} in {self.parts} parts on "
                "each process: lower it, or raise --batch-size"
            )
        parts = [part for images in views for part in images.tensor_split(self.parts)]
        rows = [self.encoder(part, resize=self.enlarges) for part in parts]
        return self.head(rows[0] if len(rows) == 1 else torch.cat(rows))


def takes(encoder: Encoder, size: int) -> bool:
    """Whether the encoder embeds images of `size` as they are; timm's vision transformers are told to.

    They then interpolate their position embeddings, as in DINO.
    """
    backbone: Any = encoder.backbone
    patches: Any = getattr(backbone, "patch_embed", None)
    if getattr(backbone, "dynamic_img_size", None) is False and hasattr(patches, "output_fmt"):
        from timm.layers import Format

        backbone.dynamic_img_size, patches.strict_img_size = True, False
        patches.flatten, patches.output_fmt = False, Format.NHWC
    training = encoder.training
    try:
        with torch.no_grad():
            encoder.eval()(torch.zeros(1, 3, size, size, dtype=torch.uint8), resize=False)
    except (AssertionError, RuntimeError, ValueError):
        return False
    finally:
        encoder.train(training)
    return True


def slow_copy(learner: Learner) -> Learner:
    """The learner once more, without gradient."""
    return copy.deepcopy(learner).requires_grad_(False).train()


@torch.no_grad()
def follow(slow: Learner, learner: Learner, *, momentum: float) -> None:
    """slow <- momentum · slow + (1 - momentum) · learner, parameter by parameter."""
    mine, its = ([parameter.detach() for parameter in model.parameters()] for model in (slow, learner))
    torch._foreach_lerp_(mine, its, 1 - momentum)
