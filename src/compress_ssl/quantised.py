"""Rows in eight bits: signed integers and one scale a row, a quarter of float32's memory.

A row r is kept as round(r / scale) with scale = max|r| / 127, so each entry is off by half a scale at most. Against
eight-bit floats the cosine error is four to five times lower, since a unit row has no outliers that need an exponent.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor


class Int8Rows(NamedTuple):
    """values: (A, D) int8 in [-127, 127]; scale: (A,) float32; row j is values[j] * scale[j]."""

    values: Tensor
    scale: Tensor

    def float(self) -> Tensor:
        """(A, D) float32."""
        return self.values.float().mul_(self.scale[:, None])


Anchors = Tensor | Int8Rows  # (A, D) rows that queries are compared with, in any number of bits


def values(anchors: Anchors) -> Tensor:
    """(A, D), what the rows' shape, place and dtype are read from."""
    return anchors.values if isinstance(anchors, Int8Rows) else anchors


def quantise(rows: Tensor, *, levels: int = 127) -> Int8Rows:
    """(A, D) floats -> int8 rows, rounded to nearest; a zero row stays zero.

    Args:
        levels: largest absolute value that is used.
    """
    rows = rows.detach().float()
    largest = torch.maximum(
        rows.amax(dim=1), -rows.amin(dim=1)
    )  # 0.5 ms for 256 x 2560; by abs 2.7, as a norm 1.6 (Zen 3, 2 cores)
    scale = torch.where(largest > 0, largest / levels, 1)
    return Int8Rows((rows * (1 / scale)[:, None]).round_().to(torch.int8), scale)
