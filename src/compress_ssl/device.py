"""A device: which one, what it multiplies natively, what is not safe to train on it."""

from __future__ import annotations

import torch
from torch import nn

from compress_ssl.refusal import Refusal


def open_device(name: str, *, local_rank: int = 0) -> torch.device:
    """The device of that name; `auto` is CUDA where there is one.

    Args:
        local_rank: of a process among those of this machine: each takes a GPU of its own where there are several.
    Raises: Refusal if torch has no such device here.
    """
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    if name == "cuda" and torch.cuda.device_count() > 1:
        name = f"cuda:{local_rank % torch.cuda.device_count()}"
    try:
        return torch.empty(0, device=name).device
    except (RuntimeError, AssertionError) as trouble:
        reason = str(trouble).splitlines()[0]
        raise Refusal(
            f"--device expected cpu, cuda or mps as available here, got {name!r} ({reason}): use cpu"
        ) from None


def has_fast_bf16(device: torch.device) -> bool:
    """Whether bf16 is multiplied natively; emulated bf16 is ten times slower than float32."""
    if device.type == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    if device.type == "cpu":
        return any(
            getattr(torch.cpu, name, lambda: False)()
            for name in ("_is_amx_tile_supported", "_is_avx512_bf16_supported")
        )
    return False


def refuse_unsafe(model: nn.Module, device: torch.device) -> None:
    """Refusal of layers whose training is not safe on a CPU.

    oneDNN on AVX2 (torch 2.15) computes wrong weight gradients in strided 1×1 convolutions of fewer than 8 input
    channels, and writes outside its memory; with stride 1 they are right.
    """
    for name, layer in model.named_modules():
        if (
            device.type == "cpu"
            and isinstance(layer, nn.Conv2d)
            and layer.kernel_size == (1, 1)
            and layer.stride != (1, 1)
            and layer.groups == 1
            and layer.in_channels < 8
        ):
            raise Refusal(
                "expected at least 8 channels into every strided 1×1 convolution trained on a CPU, got "
                f"{layer.in_channels} in {name}: take a wider backbone (compress/resnet10_small_w8), or a GPU"
            )
