"""Rows of length one: what teacher, student and bank compare. A row that can have no length one names its image."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from compress_ssl.host_copy import HostCopy
from compress_ssl.refusal import Refusal

SHORTEST = 1e-12  # a row not longer than this counts as zero


def unit_rows(rows: Tensor, index: Tensor, ids: Sequence[str]) -> Tensor:
    """(B, D) -> (B, D) float32 rows of length one, checked at once: on an accelerator the host waits for it.

    Raises: Refusal naming the first image whose row is zero, infinite or NaN, or if the output is no matrix of B rows.
    """
    rows, lengths = _lengths(rows, len(index))
    bad = _bad(lengths)
    if bad.any():
        first = int(bad.nonzero()[0])
        _refuse(length=float(lengths[first]), bad=int(bad.sum()), image=ids[int(index[first])], of=len(rows))
    return rows / lengths


class UncheckedRows:
    """Rows of length one whose check is read later, so that a step on an accelerator never waits for it.

    What comes between is spoilt too if a row was (NaN losses, NaN weights): whoever writes to disk settles first.
    """

    def __init__(self, ids: Sequence[str]):
        self._ids = ids
        self._waiting: list[tuple[HostCopy, Tensor]] = []

    def __call__(self, rows: Tensor, host_index: Tensor) -> Tensor:
        """As `unit_rows`.

        Args:
            host_index: (B,) int64 on the CPU.
        Raises: Refusal if the output is no matrix of B rows; that much is known at once.
        """
        rows, lengths = _lengths(rows, len(host_index))
        bad = _bad(lengths)
        first = bad.int().argmax()  # of equal values the first, on CPU and CUDA
        shortest = lengths.squeeze(1).index_select(0, first[None]).squeeze(0)
        found = torch.stack([bad.sum().float(), first.float(), shortest])
        self._waiting.append((HostCopy(found), host_index))
        return rows / lengths

    def settle(self, *, wait: bool) -> None:
        """Read the checks that have arrived; with `wait`, all of them.

        Raises: Refusal naming the first image whose row is zero, infinite or NaN.
        """
        while self._waiting and (wait or self._waiting[0][0].arrived()):
            copy, index = self._waiting.pop(0)
            bad, first, length = copy.read().tolist()
            if bad:
                _refuse(length=length, bad=int(bad), image=self._ids[int(index[int(first)])], of=len(index))


def _lengths(rows: Tensor, count: int) -> tuple[Tensor, Tensor]:
    if rows.ndim != 2 or len(rows) != count:
        raise Refusal(
            f"expected one embedding per image, of shape ({count}, D), got shape {tuple(rows.shape)}: "
            "the encoder must return one vector an image"
        )
    rows = rows.float()
    return rows, rows.norm(dim=1, keepdim=True)


def _bad(lengths: Tensor) -> Tensor:
    return ~(torch.isfinite(lengths) & (lengths > SHORTEST)).squeeze(1)


def _refuse(*, length: float, bad: int, image: str, of: int) -> None:
    what = "a zero vector" if length <= SHORTEST else "NaN or infinity"
    raise Refusal(
        f"expected a finite embedding that is not zero, got {what} for image {image} "
        f"({bad} of {of} in its batch): check the encoder's weights and its precision"
    )
