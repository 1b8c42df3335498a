"""The paper's AlexNet student."""

from __future__ import annotations

import torch
from torch.nn import functional
from torchvision import models

from compress_ssl.backbones.alexnet import build
from compress_ssl.weights import backbone_part, fit_weights


def test_the_embedding_is_f7_after_its_relu_and_without_dropout() -> None:
    """Otherwise the student of the paper's tables would be another network; torchvision's own file must fit it."""
    torch.manual_seed(1)
    original = models.alexnet(weights=None)
    backbone = build("alexnet").train()  # train mode: a dropout would show
    fit_weights(backbone, backbone_part(original.state_dict(), backbone), source="torchvision's file")
    images = torch.randn(3, 3, 71, 67)
    with torch.no_grad():
        flat = original.avgpool(original.features(images)).flatten(1)
        f6 = functional.relu(original.classifier[1](flat))
        f7 = functional.relu(original.classifier[4](f6))
        assert torch.equal(backbone(images), f7)
    assert backbone.width == 4096


def test_it_has_alexnets_parameters_without_the_classifiers() -> None:
    """Otherwise the compression that a report states would be wrong: 61,100,840 less 1000 × 4097."""
    assert sum(parameter.numel() for parameter in build("alexnet").parameters()) == 61_100_840 - 1000 * 4097
