"""ResNets for small images."""

from __future__ import annotations

import pytest
import torch

from compress_ssl.backbones import build_own
from compress_ssl.backbones.resnet_small import build
from compress_ssl.refusal import Refusal


def test_resnet18_has_the_known_size_for_cifar() -> None:
    """Otherwise numbers could not be compared with anyone's: 11,173,962 with ten classes, of which 5,130 classify."""
    assert sum(parameter.numel() for parameter in build("resnet18_small").parameters()) == 11_173_962 - 5_130


@pytest.mark.parametrize(("depth", "convolutions"), [(10, 9), (18, 17), (34, 33)])
def test_depth_counts_convolutions_and_the_missing_classifier(depth: int, convolutions: int) -> None:
    """Otherwise a name would promise another network: one stem, two to a block, shortcuts aside."""
    backbone = build(f"resnet{depth}_small_w3")
    kernels = [module for module in backbone.modules() if isinstance(module, torch.nn.Conv2d)]
    assert sum(kernel.kernel_size == (3, 3) for kernel in kernels) == convolutions


def test_a_small_image_keeps_its_resolution_through_the_first_stage() -> None:
    """Otherwise 32 pixels would be one position after ImageNet's stem and pooling."""
    backbone = build("resnet10_small_w5").eval()
    maps = {}
    for name in ("layer1", "layer2", "layer3", "layer4"):
        backbone.get_submodule(name).register_forward_hook(
            lambda _, __, output, name=name: maps.update({name: tuple(output.shape[1:])})
        )
    with torch.no_grad():
        rows = backbone(torch.randn(1, 3, 32, 28))
    assert maps["layer1"] == (5, 32, 28)
    assert maps["layer2"] == (10, 16, 14)
    assert maps["layer3"] == (20, 8, 7)
    assert maps["layer4"] == (40, 4, 4)
    assert rows.shape == (1, 40)


def test_weights_start_with_the_variance_that_keeps_signals_alive() -> None:
    """Otherwise deep students would start with vanishing or exploding rows: variance 2 / (kernel area × outputs)."""
    torch.manual_seed(1)
    kernel = build("resnet10_small").layer4[0].conv2.weight
    assert kernel.var().item() == pytest.approx(2 / (9 * 512), rel=0.01)


@pytest.mark.parametrize("name", ["resnet10_small_w0", "resnet12_small", "resnet10_small_", "resnet10_small_w8_w8"])
def test_a_name_that_is_nearly_right_is_refused(name: str) -> None:
    """Otherwise a typing error would train another student than the one that was asked for."""
    assert build(name) is None
    with pytest.raises(Refusal, match="did you mean 'resnet1"):
        build_own(name)
