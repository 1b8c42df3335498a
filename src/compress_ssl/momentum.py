"""The slow copy of the student that makes the keys: slow <- m · slow + (1 - m) · student.

Source: He et al., MoCo, CVPR 2020, Eq. 2; in CompRess-2q (Sec. 3) with m = 0.999. Batch norm runs in train mode on the
copy's own statistics and there is no gradient.
"""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import Tensor

from compress_ssl.refusal import Refusal
from compress_ssl.student import Student


class Momentum:
    """Images, query -> key. With momentum None the key is the query without gradient and nothing is copied."""

    def __init__(self, student: Student, momentum: float | None):
        if momentum is not None and not 0 <= momentum < 1:
            raise Refusal(f"--objective.momentum expected in [0, 1), got {momentum}: the paper's is 0.999")
        self.momentum = momentum
        self.slow = None if momentum is None else copy.deepcopy(student).requires_grad_(False).train()

    @torch.no_grad()
    def __call__(self, images: Tensor, query: Tensor) -> Tensor:
        """(B, 3, H, W) uint8 and its query (B, D_s) -> key (B, D_s) unit rows without gradient."""
        return query.detach() if self.slow is None else self.slow(images)

    @torch.no_grad()
    def follow(self, student: Student) -> None:
        """Move every parameter a share 1 - momentum towards the student's."""
        if self.slow is None or self.momentum is None:
            return
        slow, fast = ([parameter.detach() for parameter in model.parameters()] for model in (self.slow, student))
        torch._foreach_lerp_(slow, fast, 1 - self.momentum)

    def state_dict(self) -> dict[str, Any]:
        return {} if self.slow is None else self.slow.state_dict()

    def load_state_dict(self, state: dict[str, Any]) -> None:
        if self.slow is not None:
            self.slow.load_state_dict(state)
