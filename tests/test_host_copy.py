"""Numbers on their way from the device to the host."""

from __future__ import annotations

import pytest
import torch

from compress_ssl.host_copy import HostCopy


@pytest.mark.parametrize("device", ["cpu", "cuda"])
def test_a_copy_is_of_the_moment_it_was_asked_for(device: str) -> None:
    """The next step writes over the flags before they are read: it would be accused of this one's fault."""
    if device == "cuda" and not torch.cuda.is_available():
        pytest.skip("needs a CUDA device")
    values = torch.arange(5.0, device=device)
    copy = HostCopy(values)
    values.fill_(-1)
    assert copy.read().tolist() == [0, 1, 2, 3, 4]
    assert copy.arrived()
    assert copy.read().device.type == "cpu"


def test_a_device_without_pinned_memory_is_asked_only_when_it_must_be() -> None:
    """On Apple's devices every step would wait; `meta` stands in for one."""
    assert not HostCopy(torch.ones(3, device="meta")).arrived()
