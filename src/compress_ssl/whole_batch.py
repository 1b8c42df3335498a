"""The batch of all processes, for objectives that compare the images of a batch with one another.

Each process computes the loss of the whole batch and its gradient for its own rows alone. The student's gradients are
then averaged over the processes, which would make the step smaller by their number: `whole` makes up for it.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor
from torch.distributed import ProcessGroup, all_gather, get_rank, get_world_size

from compress_ssl.refusal import Refusal


def whole(rows: Tensor, group: ProcessGroup | None) -> Tensor:
    """(B, D) rows of this process -> (B · processes, D) of all, float32 at least; equally many on each.

    Returns: in order of rank. The gradient reaches this process's rows, multiplied by the number of processes.
    """
    rows = rows.to(torch.promote_types(rows.dtype, torch.float32))
    if group is None:
        return rows
    parts = [torch.empty_like(rows) for _ in range(get_world_size(group))]
    all_gather(parts, rows.detach().contiguous(), group=group)
    parts[get_rank(group)] = _Louder.apply(rows, len(parts))
    return torch.cat(parts)


def refuse_parts(objectives: Iterable[Any], *, accumulate: int) -> None:
    """Refuse to compute a batch in parts where its images are compared with one another.

    Args:
        objectives: as the contract of objectives/ has them.
    """
    for one in objectives:
        if getattr(one, "within_batch", False) and accumulate != 1:
            without = ", or --objective.regression 0" if hasattr(one.config, "regression") else ""
            raise Refusal(f"--accumulate expected 1 with --objective {one.config.name}, which compares all images of a "
                          f"batch with each other, got {accumulate}: lower --batch-size instead{without}")  # fmt: skip


class _Louder(torch.autograd.Function):
    """The rows as they are, their gradient `times` as large."""

    @staticmethod
    def forward(ctx: Any, rows: Tensor, times: int) -> Tensor:
        ctx.times = times
        return rows.view_as(rows)

    @staticmethod
    def backward(ctx: Any, upstream: Tensor) -> tuple[Tensor, None]:
        return upstream * ctx.times, None
