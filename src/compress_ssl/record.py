"""One stored view as one stretch of bytes: its row, how its picture was cut, and a checksum over all of it.

    row     (D,)   unit row: float16, float32, or int8 with a scale
    scale          int8 rows are row * scale; 1 for floats
    box     (4,)   top, left, height, width in the picture's own pixels; zeros for the evaluation view
    flip           whether the view was mirrored after resizing
    check          sum of odd weights times the 8-byte words before it, modulo 2^64; the first weight is added as it is,
                   so that a block of zeros, which a disk may give for what it has lost, does not pass

One stretch means one place on the disk and one copy, however many things are in it. An odd weight can be inverted
modulo 2^64, so whatever changes within one word, a flipped bit among it, changes the check with certainty. Checking a
row of 2048 float16 takes about as long as copying it.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from compress_ssl.quantised import quantise

RowDtype = Literal["float16", "float32", "int8"]
_FORMATS = {"float16": "<f2", "float32": "<f4", "int8": "|i1"}
_BLOCK = 512  # records packed at once: they stay in the processor's cache, and no shard is in memory several times


@functools.cache
def record_dtype(width: int, dtype: RowDtype) -> np.dtype:
    """The layout of a record; its size is a multiple of 8 bytes."""
    used = width * np.dtype(_FORMATS[dtype]).itemsize
    before = -used % 4  # so that numbers lie where processors want them
    after = -(used + before + 4 + 16 + 1) % 8
    return np.dtype(
        [
            ("row", _FORMATS[dtype], (width,)),
            ("_before", "|u1", (before,)),
            ("scale", "<f4"),
            ("box", "<i4", (4,)),
            ("flip", "|u1"),
            ("_after", "|u1", (after,)),
            ("check", "<u8"),
        ]
    )


def pack(rows: np.ndarray, crops: np.ndarray, dtype: RowDtype) -> tuple[np.ndarray, np.ndarray]:
    """Rows and crops -> records.

    Args:
        rows: (N, V, D) float32 unit rows.
        crops: (N, V, 5) int32: top, left, height, width, flip.
    Returns: (N, V) records, and the error of storing: 1 - cosine of a row with what is stored of it, (N, V) float64.
    """
    count, views, width = rows.shape
    records = np.zeros(count * views, record_dtype(width, dtype))
    error = np.empty(len(records))
    flat, cuts = rows.reshape(-1, width), crops.reshape(-1, 5)
    for start in range(0, len(records), _BLOCK):
        block = slice(start, start + _BLOCK)
        error[block] = _pack(records[block], flat[block], cuts[block], dtype)
    return records.reshape(count, views), error.reshape(count, views)


def _pack(records: np.ndarray, rows: np.ndarray, crops: np.ndarray, dtype: RowDtype) -> np.ndarray:
    """Fill (N,) records with (N, D) rows and (N, 5) crops; the (N,) errors of storing."""
    exact = torch.from_numpy(np.ascontiguousarray(rows))
    if dtype == "int8":
        quantised = quantise(exact)
        records["row"], records["scale"] = quantised.values.numpy(), quantised.scale.numpy()
    else:  # torch rounds to float16 three times as fast as numpy
        records["row"], records["scale"] = (exact.half() if dtype == "float16" else exact).numpy(), 1
    records["box"], records["flip"] = crops[:, :4], crops[:, 4]
    bytes_ = as_bytes(records)
    records["check"] = checks(bytes_)
    kept = unpack(bytes_, rows.shape[1], dtype)
    before, after, apart = (
        torch.linalg.vector_norm(vectors, dim=1).double().numpy() for vectors in (exact, kept, kept - exact)
    )
    # 1 - cosine without the difference of two numbers near 1, which float32 cannot tell apart
    return np.maximum(0, apart**2 - (before - after) ** 2) / np.maximum(1e-300, 2 * before * after)


def as_bytes(records: np.ndarray) -> np.ndarray:
    """(…) records -> (N, bytes of one) uint8, the same memory."""
    return records.reshape(-1).view(np.uint8).reshape(-1, records.dtype.itemsize)


def checks(records: np.ndarray) -> np.ndarray:
    """(N, bytes) uint8 -> (N,) uint64: what their checks must be."""
    words = records.view(np.uint64)[:, :-1]
    weights = _weights(1 + words.shape[1])
    return weights[0] + np.einsum("ij,j->i", words, weights[1:])


def damaged(records: np.ndarray) -> np.ndarray:
    """(N, bytes) uint8 -> (N,) bool: whose bytes have changed since they were packed."""
    return checks(records) != records.view(np.uint64)[:, -1]


def unpack(records: np.ndarray, width: int, dtype: RowDtype) -> Tensor:
    """(N, bytes) uint8 -> (N, D) float32 rows as stored, not yet brought back to length one."""
    layout = record_dtype(width, dtype)
    fields = records.reshape(-1).view(layout)
    rows = torch.from_numpy(records[:, : width * layout["row"].base.itemsize].view(_FORMATS[dtype])).float()
    return rows.mul_(torch.from_numpy(fields["scale"].copy())[:, None]) if dtype == "int8" else rows


def crops_of(records: np.ndarray, width: int, dtype: RowDtype) -> Sequence[tuple[int, int, int, int, bool]]:
    """(N, bytes) uint8 -> N times top, left, height, width, flip."""
    fields = records.reshape(-1).view(record_dtype(width, dtype))
    return [(*box, bool(flip)) for box, flip in zip(fields["box"].tolist(), fields["flip"].tolist(), strict=True)]


@functools.cache
def _weights(count: int) -> np.ndarray:
    """(count,) odd uint64; numpy promises that PCG64 gives the same bits for ever."""
    return np.random.PCG64(20201022).random_raw(count) | np.uint64(1)
