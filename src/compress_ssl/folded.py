"""A frozen encoder with its batch norms folded into the convolutions before them: the same rows, a pass less for each.

In eval mode a batch norm multiplies and adds per channel, and so does a convolution before it: w' = w·γ/√(σ²+ε),
b' = (b - μ)·γ/√(σ²+ε) + β, computed in float64. Which convolution feeds which norm is seen, not guessed from names: one
forward pass notes where an output enters a norm. Whether nothing else reads that output is checked by the result.
"""

from __future__ import annotations

import copy
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

_Module = TypeVar("_Module", bound=nn.Module)
TOLERANCE = 1e-2  # of a row's length; folding moves rows by 1e-5, by 1e-3 where TF32 rounds; a wrong fold by 1e-1


@torch.no_grad()
def folded(encoder: _Module, images: Tensor) -> _Module:
    """A copy of the encoder with as many batch norms folded as can be; the encoder itself where none can.

    Args:
        encoder: in eval mode; not changed.
        images: (B, …) a few inputs, of random pixels for instance: by them the copy is checked.
    """
    if not any(isinstance(module, nn.BatchNorm2d) for module in encoder.modules()):
        return encoder  # a copy would be for nothing
    try:
        swift = copy.deepcopy(encoder)
    except Exception:  # what a person's own module holds may not be copied: a lock, a connection
        return encoder
    pairs = _pairs(swift, images)
    if not pairs:
        return encoder
    for convolution, norm in pairs:
        _fold(convolution, norm)
    for parent in list(swift.modules()):
        for name, child in parent.named_children():
            if any(child is norm for _, norm in pairs):
                setattr(parent, name, _rest(child))
    rows, expected = swift(images).float(), encoder(images).float()
    sound = (rows - expected).norm(dim=-1) <= TOLERANCE * expected.norm(dim=-1)
    return swift if bool(sound.all()) else encoder


def _pairs(encoder: nn.Module, images: Tensor) -> list[tuple[nn.Conv2d, nn.BatchNorm2d]]:
    """Convolutions whose output is the very input of a batch norm, each of both used once."""
    made: list[tuple[nn.Conv2d, Tensor]] = []  # the outputs too: a freed one's place in memory is taken by another
    read: list[tuple[nn.BatchNorm2d, Tensor]] = []
    hooks = []

    def makes(module: Any, _: Any, output: Tensor) -> None:
        made.append((module, output))

    def reads(module: Any, inputs: tuple[Tensor, ...]) -> None:
        read.append((module, inputs[0]))

    for module in encoder.modules():
        if type(module) is nn.Conv2d:
            hooks.append(module.register_forward_hook(makes))
        elif isinstance(module, nn.BatchNorm2d) and module.track_running_stats:
            hooks.append(module.register_forward_pre_hook(reads))
    encoder(images)
    for hook in hooks:
        hook.remove()
    found = []
    for norm, row in read:
        sources = [module for module, output in made if output is row]
        readers = sum(other is row for _, other in read)
        if len(sources) == 1 and readers == 1:
            found.append((sources[0], norm))
    return [
        (convolution, norm)
        for convolution, norm in found
        if sum(module is convolution for module, _ in made) == 1 and sum(module is norm for module, _ in read) == 1
    ]


def _fold(convolution: nn.Conv2d, norm: nn.BatchNorm2d) -> None:
    assert norm.running_mean is not None
    assert norm.running_var is not None
    gain = (norm.running_var.double() + norm.eps).rsqrt()
    if norm.weight is not None:
        gain = gain * norm.weight.double()
    bias = -norm.running_mean.double() if convolution.bias is None else convolution.bias - norm.running_mean.double()
    bias = bias * gain
    if norm.bias is not None:
        bias = bias + norm.bias.double()
    weight = convolution.weight
    folded_weight = (weight.double() * gain[:, None, None, None]).to(weight.dtype)
    layout = torch.channels_last if weight.is_contiguous(memory_format=torch.channels_last) else torch.contiguous_format
    convolution.weight = nn.Parameter(folded_weight.contiguous(memory_format=layout), requires_grad=False)
    convolution.bias = nn.Parameter(bias.to(weight.dtype), requires_grad=False)


def _rest(norm: nn.Module) -> nn.Module:
    """What a norm does besides: timm's `BatchNormAct2d` drops and activates too."""
    rest = [part for name in ("drop", "act") if isinstance(part := getattr(norm, name, None), nn.Module)]
    return nn.Sequential(*rest) if rest else nn.Identity()
