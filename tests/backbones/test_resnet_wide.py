"""Wide ResNets; that they compute their authors' features is tested with the formats."""

from __future__ import annotations

import pytest
import torch

from compress_ssl.backbones.resnet_wide import build, pad_same

MILLIONS = {"resnet50_w1": 23.5, "resnet50_w2": 94, "resnet50_w4": 375, "resnet50_w5": 586}


@pytest.mark.parametrize("name", MILLIONS)
def test_it_has_the_parameters_that_its_authors_state(name: str) -> None:
    """Otherwise it would be torchvision's wide ResNet, which is wide inside its blocks alone."""
    with torch.device("meta"):
        backbone = build(name)
    count = sum(parameter.numel() for parameter in backbone.parameters())
    assert round(count / 1e6, 1 if name == "resnet50_w1" else 0) == MILLIONS[name]
    assert backbone.width == 2048 * int(name[-1])


@pytest.mark.parametrize(("side", "before", "after"), [(6, 0, 1), (7, 1, 1)])
def test_padding_is_tensorflows(side: int, before: int, after: int) -> None:
    """Otherwise converted weights would see every map shifted by a pixel."""
    padded = pad_same(torch.zeros(1, 1, side, side), 3, 2, 1)
    column = padded[0, 0, padded.shape[2] // 2]
    assert column.tolist() == [1.0] * before + [0.0] * side + [1.0] * after


@pytest.mark.parametrize("name", ["resnet50_w0", "resnet18_w2", "resnet50_wide", "resnet50_w2_torch"])
def test_another_name_is_not_its_own(name: str) -> None:
    """Otherwise a wrong name would be built as something near it."""
    assert build(name) is None
