"""Maps of backbones, found by looking."""

from __future__ import annotations

import pytest
import torch

from compress_ssl.encoder import open_encoder
from compress_ssl.feature_maps import FeatureMaps, find_maps
from compress_ssl.refusal import Refusal

FOUND = {
    "compress/resnet10_small_w8": [("layer3", 4, 32), ("layer4", 8, 64)],
    "compress/alexnet": [
        ("features.1", 4, 64),
        ("features.4", 8, 192),
        ("features.11", 16, 256),
        ("features", 32, 256),
    ],
    "torchvision/resnet18": [("layer1", 4, 64), ("layer2", 8, 128), ("layer3", 16, 256), ("layer4", 32, 512)],
    "timm/mobilenetv4_conv_small": [
        ("blocks.0", 4, 32),
        ("blocks.1", 8, 64),
        ("blocks.2", 16, 96),
        ("blocks", 32, 960),
    ],
    "timm/convnext_atto": [("stages.0", 4, 40), ("stages.1", 8, 80), ("stages.2", 16, 160), ("norm_pre", 32, 320)],
}


def backbone(spec: str):
    return open_encoder(f"{spec}@random", weights="random").backbone


@pytest.mark.parametrize("spec", FOUND)
def test_every_stride_has_its_last_map(spec: str) -> None:
    """A detector on a stem, or on the inside of a block, would score a worse student than the one it is given."""
    assert [tuple(place) for place in find_maps(backbone(spec), spec=spec)] == FOUND[spec]


def test_maps_are_what_the_stages_give() -> None:
    """Maps of another picture, or of before a stage, would look like maps all the same."""
    model = backbone("compress/resnet10_small_w8").train()
    for part in model.modules():
        if isinstance(part, torch.nn.BatchNorm2d):
            part.eval()
    pictures = torch.randn(2, 3, 24, 40)
    maps = FeatureMaps(model, find_maps(model, spec="it"))(pictures)
    expected = model.layer3(model.layer2(model.layer1(model.relu(model.bn1(model.conv1(pictures))))))
    torch.testing.assert_close(maps["layer3"], expected)
    torch.testing.assert_close(maps["layer4"], model.layer4(expected))
    assert maps["layer3"].requires_grad


def test_looking_leaves_nothing_behind() -> None:
    """Batch norms would be left in another mode, or every later forward would be slowed by hooks."""
    model = backbone("compress/resnet10_small_w8").train()
    model.layer2.eval()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    find_maps(model, spec="it")
    assert model.training
    assert model.layer1.training
    assert not model.layer2.training
    assert not any(part._forward_hooks for part in model.modules())
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())


@pytest.mark.parametrize("spec", ["torchvision/vit_b_32", "timm/vit_tiny_patch16_224"])
def test_a_transformer_is_refused_by_name(spec: str) -> None:
    """The error would come from inside of a stranger's attention."""
    with pytest.raises(Refusal, match=f"pictures of any size, to detect with it, got '{spec}'"):
        find_maps(backbone(spec), spec=spec)


def test_a_backbone_without_maps_is_refused() -> None:
    """One that only averages colours has nowhere to look for objects."""
    with pytest.raises(Refusal, match="expected a backbone with maps"):
        find_maps(torch.nn.Sequential(torch.nn.AdaptiveAvgPool2d(1), torch.nn.Flatten()), spec="mean")
