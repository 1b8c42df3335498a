"""Batch norms folded into convolutions give the same rows; where they cannot be folded nothing changes."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from compress_ssl.encoder import open_encoder
from compress_ssl.folded import folded


def pixels(size: int, count: int = 5) -> Tensor:
    shape = (count, 3, size, size)
    return torch.randint(0, 256, shape, dtype=torch.uint8, generator=torch.Generator().manual_seed(1))


def seen_something(model: Any, size: int) -> Any:
    """Running statistics and affine weights as after a training."""
    torch.manual_seed(2)
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.weight, 0.5, 1.5)
            nn.init.normal_(module.bias)
    with torch.no_grad():
        for _ in range(3):
            model.train()(pixels(size, 16))
    return model.eval().requires_grad_(False)


def norms(model: nn.Module) -> int:
    return sum(isinstance(module, nn.BatchNorm2d) for module in model.modules())


@pytest.mark.parametrize(
    ("spec", "size"),
    [
        ("compress/resnet10_small_w8", 8),
        ("torchvision/resnet18", 64),
        ("timm/resnet18", 64),
        ("timm/mobilenetv3_small_050", 64),  # norms that activate too
        ("torchvision/mobilenet_v2", 64),
    ],
)
@torch.no_grad()
def test_a_folded_encoder_gives_the_rows_of_the_encoder(spec: str, size: int) -> None:
    """The student would be compressed from another teacher than the one that was named."""
    encoder = seen_something(open_encoder(f"{spec}@random", weights="random", size=size), size)
    before = {name: value.clone() for name, value in encoder.state_dict().items()}
    swift = folded(encoder, pixels(size, 2))
    assert norms(encoder) > 5
    assert norms(swift) == 0, "each follows a convolution"
    exact = encoder.double()  # its pixels are normalised in float32 either way
    expected, ours = exact(pixels(size)), swift(pixels(size)).double()
    lengths = expected.norm(dim=1)
    assert float(((ours - expected).norm(dim=1) / lengths).max()) < 2e-5
    assert all(torch.equal(value.to(before[name].dtype), before[name]) for name, value in encoder.state_dict().items())
    assert not swift.training


class Forked(nn.Module):
    """The convolution's output is read twice, by the norm and beside it; or the norm comes first."""

    def __init__(self, kind: str):
        super().__init__()
        self.kind, self.convolution = kind, nn.Conv2d(3, 5, 3)
        self.norm = nn.BatchNorm2d(3 if kind == "first" else 5)

    def forward(self, images: Tensor) -> Tensor:
        if self.kind == "first":
            return self.convolution(self.norm(images.float())).mean(dim=(2, 3))
        rows = self.convolution(images.float() / 255)
        return (self.norm(rows) + (rows if self.kind == "beside" else 0)).mean(dim=(2, 3))


@pytest.mark.parametrize(("kind", "left"), [("plain", 0), ("beside", 1), ("first", 1)])
@torch.no_grad()
def test_what_cannot_be_folded_is_left_as_it_is(kind: str, left: int) -> None:
    """A backbone of an unusual shape would give wrong rows, and nobody would see it."""
    model = seen_something(Forked(kind), 9)
    swift = folded(model, pixels(9, 2))
    assert norms(swift) == left
    assert (swift is model) == bool(left)
    torch.testing.assert_close(swift(pixels(9)), model(pixels(9)), rtol=1e-4, atol=1e-5)


def test_a_layer_that_is_used_twice_is_left_alone() -> None:
    """One convolution before two norms cannot hold both."""
    shared = nn.Conv2d(3, 3, 1)
    model = nn.Sequential(shared, nn.BatchNorm2d(3), shared, nn.BatchNorm2d(3), nn.Flatten()).eval()
    noise = torch.randn(2, 3, 4, 4)
    assert folded(model, noise) is model
