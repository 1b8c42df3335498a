"""A few numbers on their way from the device to the host: asked for now, read later, the device's queue never stopped.

`.item()`, `bool(tensor)` and `.cpu()` make the host wait until the device has done everything it was given; meanwhile
nobody gives it more. Here the copy waits in the device's own queue, and the host reads it a step later.
"""

from __future__ import annotations

import torch
from torch import Tensor


class HostCopy:
    """A copy of `values`, which may be written over afterwards, in memory of the host."""

    def __init__(self, values: Tensor):
        self._arrives: torch.cuda.Event | None = None
        if values.device.type == "cuda":
            self._values = torch.empty(values.shape, dtype=values.dtype, pin_memory=True)
            self._values.copy_(values, non_blocking=True)
            self._arrives = torch.cuda.Event()
            self._arrives.record()
        else:  # no pinned memory: the copy stays where it is until it is read
            self._values = values.detach().clone()

    def arrived(self) -> bool:
        """Whether reading would not wait."""
        return self._values.device.type == "cpu" if self._arrives is None else self._arrives.query()

    def read(self) -> Tensor:
        """The numbers, on the CPU; waits for them if it must."""
        if self._arrives is not None:
            self._arrives.synchronize()
        return self._values.cpu()
