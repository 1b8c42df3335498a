"""What the processes of one run tell each other: rows, numbers, troubles; with one process each is itself."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, TypeVar

import torch
from torch import Tensor

if TYPE_CHECKING:
    from lightning.fabric import Fabric

_T = TypeVar("_T")


def on_first(fabric: Fabric, work: Callable[[], _T]) -> _T | None:
    """Do `work` in the first process while the others wait; if it fails, all end, and only the first says why.

    Returns: what `work` returns, None in the other processes. Every process must call it.
    """
    if fabric.world_size == 1:
        return work()
    result, trouble = None, None
    if fabric.is_global_zero:
        try:
            result = work()
        except Exception as error:  # raised again below, once the others know
            trouble = error
    failed = largest(fabric, float(trouble is not None)) > 0
    if trouble is not None:
        raise trouble
    if failed:
        raise SystemExit(0)  # not an error of this process: another code would make the launcher kill the first one
    return result


def on_this_machine(fabric: Fabric) -> int:
    """How many of the processes run on this machine."""
    return fabric.world_size // getattr(fabric.strategy, "num_nodes", 1)


def largest(fabric: Fabric, value: float) -> float:
    """The largest value over all processes; every process must call it."""
    if fabric.world_size == 1:
        return value
    reduced = fabric.all_reduce(torch.full((), value, device=fabric.device), reduce_op="max")
    assert isinstance(reduced, Tensor)
    return float(reduced)


def told_by_all(fabric: Fabric, told: _T) -> list[_T]:
    """What each process has to tell, in order of rank; picklable. Every process must call it."""
    if fabric.world_size == 1:
        return [told]
    heard: list[Any] = [None] * fabric.world_size
    torch.distributed.all_gather_object(heard, told)
    return heard


def everywhere(fabric: Fabric, *rows: Tensor) -> tuple[Tensor, ...]:
    """Rows of all processes, in the order in which one process would have had them: every rank's bank is the same."""
    if fabric.world_size == 1:
        return rows
    whole = []
    for part in rows:
        part = part.contiguous()  # images lie channels last, and bytes are what is sent
        parts = [torch.empty_like(part) for _ in range(fabric.world_size)]
        torch.distributed.all_gather(parts, part)
        whole.append(torch.cat(parts))
    return tuple(whole)
