"""What pretraining trains: views of several sizes through one encoder, and the slow copy of it."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from compress_ssl.encoder import open_encoder
from compress_ssl.learner import Learner, follow, slow_copy, takes


def test_a_vision_transformer_sees_local_views_at_their_own_size() -> None:
    """Local views would cost as much as global ones; whole ones must be embedded as before."""
    encoder = open_encoder("timm/test_vit", weights="random", size=64)
    images = torch.randint(0, 256, (3, 3, 64, 64), dtype=torch.uint8)
    before = encoder(images)
    assert takes(encoder, 32)
    assert encoder(images[..., :32, :32], resize=False).shape == before.shape
    torch.testing.assert_close(encoder(images), before)


def test_a_backbone_of_one_size_gets_local_views_enlarged() -> None:
    """A training by multi-crop would end in a traceback from inside the model."""
    encoder = open_encoder("timm/test_vit", weights="random", size=64)
    assert not takes(encoder, 7), "less than a patch"
    learner = Learner(encoder, nn.Identity(), local_size=7)
    views = [torch.zeros(2, 3, size, size, dtype=torch.uint8) for size in (64, 7)]
    assert learner(views).shape == (4, encoder.width)


def test_parts_have_statistics_of_their_own() -> None:
    """MoCo's key would be told by the batch norm that it shares with its query."""
    encoder = open_encoder("compress/resnet10_small_w8", weights="random", size=16).train()
    images = torch.randint(0, 256, (6, 3, 16, 16), dtype=torch.uint8)
    expected = torch.cat([encoder(part) for part in images.split(2)])
    torch.testing.assert_close(Learner(encoder, nn.Identity(), parts=3)([images]), expected)


@pytest.mark.parametrize("momentum", [0.0, 0.75])
def test_the_slow_copy_follows(momentum: float) -> None:
    """With the shares exchanged it would be as quick as the learner."""
    learner = Learner(open_encoder("compress/resnet10_small_w8", weights="random"), nn.Linear(64, 3))
    slow = slow_copy(learner)
    with torch.no_grad():
        learner.head.weight.fill_(2.0), slow.head.weight.fill_(1.0)
    follow(slow, learner, momentum=momentum)
    assert slow.head.weight[0, 0] == momentum * 1.0 + (1 - momentum) * 2.0
    assert not slow.head.weight.requires_grad
