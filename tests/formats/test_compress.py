"""The students of the paper's authors that are no ResNets: AlexNet in their own layout, and MobileNetV2."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional
from torchvision import models

from compress_ssl.encoder import open_encoder
from compress_ssl.refusal import Refusal

State = dict[str, Tensor]


def alexnet(widths: tuple[int, ...] = (2, 3, 5, 3, 3), hidden: int = 7) -> State:
    """As the authors call its layers: `features` like torchvision's, f6 and f7 as `feats`, no dropout between."""
    generator = torch.Generator().manual_seed(1)
    state: State = {}
    into = 3
    for place, out, kernel in zip((0, 3, 6, 8, 10), widths, (11, 5, 3, 3, 3), strict=True):
        state[f"features.{place}.weight"] = torch.randn(out, into, kernel, kernel, generator=generator) / (
            into**0.5 * kernel
        )
        state[f"features.{place}.bias"] = torch.randn(out, generator=generator) * 0.1
        into = out
    for place, before in ((0, into * 36), (2, hidden)):
        state[f"feats.{place}.weight"] = torch.randn(hidden, before, generator=generator) / before**0.5
        state[f"feats.{place}.bias"] = torch.randn(hidden, generator=generator) * 0.1
    return state


def features(state: State, images: Tensor) -> Tensor:
    maps = images
    for place, stride, padding, pooled in (
        (0, 4, 2, True),
        (3, 1, 2, True),
        (6, 1, 1, False),
        (8, 1, 1, False),
        (10, 1, 1, True),
    ):
        weight, bias = state[f"features.{place}.weight"], state[f"features.{place}.bias"]
        maps = functional.conv2d(maps, weight, bias, stride=stride, padding=padding).relu()
        maps = functional.max_pool2d(maps, 3, 2) if pooled else maps
    rows = functional.adaptive_avg_pool2d(maps, 6).flatten(1)
    rows = functional.linear(rows, state["feats.0.weight"], state["feats.0.bias"]).relu()
    return functional.linear(rows, state["feats.2.weight"], state["feats.2.bias"]).relu()


def saved(state: State, *, options: bool = True) -> dict[str, Any]:
    content: dict[str, Any] = {"model": {f"module.{name}": tensor for name, tensor in state.items()}}
    if options:
        momenta = {0: {"momentum_buffer": torch.ones(3)}}
        content |= {"opt": argparse.Namespace(student_arch="alexnet"), "optimizer": {"state": momenta}, "epoch": 130}
    return content


def mobilenet() -> nn.Module:
    torch.manual_seed(1)
    model = models.mobilenet_v2(weights=None)
    for module in model.modules():  # statistics as after some training, so that losing them would show
        if isinstance(module, nn.BatchNorm2d):
            module.running_mean.normal_(0, 0.1)
            module.running_var.uniform_(0.5, 2)
    return model.eval()


def mobilenet_state(model: nn.Module) -> State:
    """Its classifier is called `fc`: of a 1q student the layer into the teacher's space."""
    state = {name: tensor for name, tensor in model.state_dict().items() if name.startswith("features.")}
    return state | {"fc.weight": torch.ones(5, 1280), "fc.bias": torch.ones(5)}


def layouts() -> dict[str, Callable[[], Any]]:
    return {
        "compress: AlexNet": lambda: saved(alexnet(), options=False),
        "compress: AlexNet, 1q": lambda: saved(alexnet() | {"fc.weight": torch.ones(2, 7), "fc.bias": torch.ones(2)}),
    }


def pixels() -> Tensor:
    return torch.randint(0, 256, (2, 3, 96, 96), dtype=torch.uint8, generator=torch.Generator().manual_seed(5))


def normalised(images: Tensor) -> Tensor:
    mean, std = (torch.tensor(values).view(1, 3, 1, 1) for values in ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)))
    return (images / 255 - mean) / std


def test_the_authors_alexnet_gives_f7_after_its_relu(tmp_path: Path) -> None:
    """Otherwise the paper's best known student would be refused, or end before its last ReLU."""
    state = alexnet((64, 192, 384, 256, 256), 4096)
    torch.save(saved(state), tmp_path / "file.pth")
    encoder = open_encoder(f"compress/alexnet@compress:{tmp_path / 'file.pth'}", weights="pretrained", size=96)
    with torch.no_grad():
        rows, expected = encoder(pixels()), features(state, normalised(pixels()))
    torch.testing.assert_close(rows, expected, rtol=1e-4, atol=1e-5)
    assert encoder.embedding == "fc7"
    assert "CompRess student, 14 tensors from file.pth; dropped: optimizer state 1" in encoder.told
    with pytest.raises(Refusal, match="write compress/alexnet@compress:"):
        open_encoder(f"torchvision/resnet18@{tmp_path / 'file.pth'}", weights="pretrained")


def test_the_authors_mobilenet_gives_the_pooled_features(tmp_path: Path) -> None:
    """Otherwise its `fc` would be taken for a part of the network that is missing."""
    model = mobilenet()
    torch.save(saved(mobilenet_state(model)), tmp_path / "file.pth")
    encoder = open_encoder(f"torchvision/mobilenet_v2@{tmp_path / 'file.pth'}", weights="pretrained", size=96)
    with torch.no_grad():
        rows, expected = encoder(pixels()), model.features(normalised(pixels())).mean((2, 3))
    torch.testing.assert_close(rows, expected, rtol=1e-4, atol=1e-5)
    assert "projector 2" in encoder.told
