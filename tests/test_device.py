"""A device, and what it is good for."""

from __future__ import annotations

import pytest
import torch

from compress_ssl import device
from compress_ssl.refusal import Refusal


def test_bf16_only_where_it_is_native(monkeypatch: pytest.MonkeyPatch) -> None:
    """Emulated bf16 on an old processor is ten times slower than float32."""
    for name in ("_is_amx_tile_supported", "_is_avx512_bf16_supported"):
        monkeypatch.setattr(torch.cpu, name, lambda: False, raising=False)
    assert not device.has_fast_bf16(torch.device("cpu"))
    monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: True, raising=False)
    assert device.has_fast_bf16(torch.device("cpu"))
    assert not device.has_fast_bf16(torch.device("mps"))


def test_convolutions_that_are_not_safe_on_a_cpu_are_refused() -> None:
    """Wrong gradients and damaged memory would come without a word from oneDNN."""
    narrow, wide = (torch.nn.Sequential(torch.nn.Conv2d(width, 16, 1, stride=2)) for width in (7, 8))
    device.refuse_unsafe(wide, torch.device("cpu"))
    device.refuse_unsafe(narrow, torch.device("cuda"))
    with pytest.raises(Refusal, match="got 7 in 0"):
        device.refuse_unsafe(narrow, torch.device("cpu"))


def test_a_device_that_is_not_here_is_refused():
    """A stack trace out of torch's initialisation says nothing about the flag."""
    assert device.open_device("cpu").type == "cpu"
    for name in ("gpu", "cuda:99", "quantum"):
        with pytest.raises(Refusal, match=rf"--device expected .* got '{name}' .*: use cpu") as refusal:
            device.open_device(name)
        assert "\n" not in str(refusal.value)


def test_each_process_takes_a_gpu_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    """Eight processes on one of eight GPUs: an eighth of the speed, if there is memory enough at all."""
    asked = []

    def empty(*_: int, device: str) -> torch.Tensor:
        asked.append(device)
        return torch.zeros(0)

    monkeypatch.setattr(torch, "empty", empty)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    for count in (1, 4):
        monkeypatch.setattr(torch.cuda, "device_count", lambda count=count: count)
        for name, local_rank in (("auto", 0), ("cuda", 3), ("auto", 5), ("cuda:2", 3), ("cpu", 3)):
            device.open_device(name, local_rank=local_rank)
    assert asked == ["cuda", "cuda", "cuda", "cuda:2", "cpu", "cuda:0", "cuda:3", "cuda:1", "cuda:2", "cpu"]
