"""Several objectives, one for each teacher, as one: the loss is their weighted mean.

Queries, keys and targets of all teachers stand side by side in a row: (B, D_1 + D_2 + …). Weights are divided by their
sum, so the learning rate that suits one teacher suits two; weights 1 and 0.5 count two thirds and one third.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import Any

from torch import Tensor, nn

from compress_ssl.refusal import Refusal


def weight_shares(weights: Sequence[float], *, teachers: int) -> list[float]:
    """What each teacher's loss counts, sum 1; equal where no weights are given.

    Raises: Refusal unless there is one finite weight above 0 for each.
    """
    given = list(weights) or [1.0] * teachers
    if len(given) != teachers:
        raise Refusal(f"--teacher-weights expected a weight for each of {teachers} teacher{'s'[: teachers > 1]}, got "
                      f"{len(given)}: give as many as --teacher has names, or none")  # fmt: skip
    if not all(0 < weight < math.inf for weight in given):
        told = " ".join(f"{weight:g}" for weight in given)
        raise Refusal(f"--teacher-weights expected numbers above 0, got {told}: leave out a teacher that is to count "
                      "for nothing")  # fmt: skip
    return [weight / math.fsum(given) for weight in given]


class Weighted:
    """An objective made of others; of a single one it is that one.

    Args:
        members: one for each teacher, all of one kind and configuration.
        shares: of the loss, sum 1.
        widths: of each member's query and target.
    """

    def __init__(self, members: Sequence[Any], shares: Sequence[float], widths: Sequence[tuple[int, int]]):
        self.members, self.shares = list(members), list(shares)
        self.widths, self.target_widths = map(list, zip(*widths, strict=True))
        self.momentum: float | None = self.members[0].momentum
        self.reads_key: bool = getattr(self.members[0], "reads_key", False)
        self.key_view: str = getattr(self.members[0], "key_view", "student")
        heads = [getattr(member, "trained", None) for member in self.members]
        self.trained = nn.ModuleList([head for head in heads if head is not None])  # learns together with the student

    def __iter__(self) -> Iterator[Any]:
        return iter(self.members)

    def __call__(self, query: Tensor, target: Tensor, index: Tensor, key: Tensor | None = None) -> Tensor:
        """(B, sum of D_s) with gradient, (B, sum of D_t), (B,) samples -> scalar.

        Args:
            key: (B, sum of D_s), for objectives that read it.
        """
        keys = self._queries(key) if self.reads_key and key is not None else [None] * len(self.members)
        rows = zip(self.members, self.shares, self._queries(query), self._targets(target), keys, strict=True)
        losses = [
            share * member(mine, its, index, *([] if slow is None else [slow]))
            for member, share, mine, its, slow in rows
        ]
        return losses[0] if len(losses) == 1 else sum(losses[1:], start=losses[0])

    def update(self, key: Tensor, target: Tensor, index: Tensor) -> None:
        """Each writes what it keeps; after backward."""
        for member, mine, its in zip(self.members, self._queries(key), self._targets(target), strict=True):
            member.update(mine, its, index)

    def state_dict(self) -> dict[str, Any]:
        """Of a single objective its own, as runs had it before there were several."""
        if len(self.members) == 1:
            return _state(self.members[0])
        return {str(number): _state(member) for number, member in enumerate(self.members, 1)}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        if len(self.members) == 1:
            return _restore(self.members[0], state)
        for number, member in enumerate(self.members, 1):
            _restore(member, state[str(number)])
        return None

    def _queries(self, rows: Tensor) -> list[Tensor]:
        return _apart(rows, self.widths)

    def _targets(self, rows: Tensor) -> list[Tensor]:
        return _apart(rows, self.target_widths)


def leaves(objective: Any) -> dict[str, Any]:
    """The objectives that one is a sum of, by name; of one that is no sum, itself without a name."""
    return getattr(objective, "terms", None) or {"": objective}


def _apart(rows: Tensor, widths: list[int]) -> list[Tensor]:
    """The rows of each; contiguous, for kernels read them by their address."""
    return [rows] if len(widths) == 1 else [part.contiguous() for part in rows.split(widths, dim=1)]


def _state(member: Any) -> dict[str, Any]:
    """What the objective keeps, and the weights of what learns with the student."""
    head = getattr(member, "trained", None)
    return member.state_dict() | ({} if head is None else {"trained": head.state_dict()})


def _restore(member: Any, state: dict[str, Any]) -> None:
    head = getattr(member, "trained", None)
    if head is not None:
        head.load_state_dict(state["trained"])
        state = {name: value for name, value in state.items() if name != "trained"}
    member.load_state_dict(state)
