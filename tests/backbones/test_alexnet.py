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


def test_the_layers_are_the_maps_after_each_relu_and_end_in_the_embedding() -> None:
    """Otherwise the paper's table by layer would score another layer, or a pooled one."""
    torch.manual_seed(2)
    backbone = build("alexnet").eval()
    images = torch.randn(2, 3, 127, 131)
    with torch.no_grad():
        found = backbone.layers(images)
        maps, expected = images, []
        for place, part in enumerate(backbone.features):
            if not isinstance(part, torch.nn.ReLU):
                maps = part(maps)
            else:
                maps = functional.relu(maps)
                expected.append((place, maps))
        assert [place for place, _ in expected] == [1, 4, 7, 9, 11]
        for name, (_, original) in zip(("c1", "c2", "c3", "c4", "c5"), expected, strict=True):
            assert torch.equal(found[name], original), name
        assert list(found) == ["c1", "c2", "c3", "c4", "c5", "f6", "f7"]
        assert torch.equal(found["f7"], backbone(images))
        assert torch.equal(found["f7"], functional.relu(backbone.classifier[4](found["f6"])))
