"""The two Triton kernels of the fused path: tiles of exponentials with their sums, and the product that they weight.

Written for NVIDIA's tensor cores; on a CPU they run in Triton's interpreter, which is what the tests do. Importing this
file imports Triton, so only fused.py does, when it is asked.
"""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def _none():
    pass


# TRITON_INTERPRET is read by the decorator; what it made is the only safe witness
INTERPRETED = tl.constexpr(not isinstance(_none, triton.JITFunction))


@triton.jit
def _dot(left, right, total):
    # the interpreter multiplies bfloat16's raw bits; float32 holds each of them exactly
    if INTERPRETED:
        return tl.dot(left.to(tl.float32), right.to(tl.float32), total, input_precision="ieee")
    else:  # noqa: RET505  (both branches are needed: the compiler drops one)
        # ieee, not tf32x3, for float32: tensor cores truncate their sums, and the temperature multiplies it by 25
        return tl.dot(left, right, total, input_precision="ieee")


@triton.jit
def _halves(tile):
    """Left and right half of its columns."""
    return tl.split(tl.permute(tl.reshape(tile, (tile.shape[0], 2, tile.shape[1] // 2)), (0, 2, 1)))


@triton.jit
def expdot(
    rows,
    row_scale,
    anchors,
    anchor_scale,
    index,
    anchor_index,
    weights,
    tiles,
    sums,
    count,
    anchor_count,
    width,
    inverse_temperature,
    row_stride,
    anchor_stride,
    tile_stride,
    INT8: tl.constexpr,
    MASKED: tl.constexpr,
    WEIGHTED: tl.constexpr,
    STORED: tl.constexpr,
    QUERIES: tl.constexpr,
    ANCHORS: tl.constexpr,
    WIDTH: tl.constexpr,
):
    """One tile of e = exp(x), x = (row · anchor - 1) / temperature, e rounded to the dtype of `tiles`.

    tiles (count, >= anchor_count rounded up to ANCHORS): e, 0 for an anchor left out or past the end; only if STORED.
    sums (anchor tiles, 2, count) float32: this tile's Σ e and Σ w x, with w = `weights`, laid out as `tiles`, if
    WEIGHTED, else e.
    """
    blocks = tl.cdiv(count, QUERIES)
    # neighbours share the anchors' tile: each row of the bank is read from memory once, then from the cache
    block = tl.program_id(0) % blocks
    tile = tl.program_id(0) // blocks
    q = block * QUERIES + tl.arange(0, QUERIES)
    a = tile * ANCHORS + tl.arange(0, ANCHORS)
    d = tl.arange(0, WIDTH)
    some_q = q < count
    some_a = a < anchor_count
    left = rows + q[:, None].to(tl.int64) * row_stride + d[None, :]
    right = anchors + a[None, :].to(tl.int64) * anchor_stride + d[:, None]
    if INT8:
        total = tl.zeros((QUERIES, ANCHORS), dtype=tl.int32)
    else:
        total = tl.zeros((QUERIES, ANCHORS), dtype=tl.float32)
    for step in range(tl.cdiv(width, WIDTH)):
        some_d = d < width - step * WIDTH
        x = tl.load(left, mask=some_q[:, None] & some_d[None, :], other=0)
        y = tl.load(right, mask=some_a[None, :] & some_d[:, None], other=0)
        if INT8:
            total = tl.dot(x, y, total, out_dtype=tl.int32)
        else:
            total = _dot(x, y, total)
        left += WIDTH
        right += WIDTH
    # a quarter at a time: with a whole tile's exponentials beside its product there are not enough registers
    left_half, right_half = _halves(total)
    first, second = _halves(left_half)
    third, fourth = _halves(right_half)
    total_e = tl.zeros((QUERIES,), dtype=tl.float32)
    total_wx = tl.zeros((QUERIES,), dtype=tl.float32)
    for quarter in tl.static_range(4):
        x = (first if quarter == 0 else second if quarter == 1 else third if quarter == 2 else fourth).to(tl.float32)
        a = tile * ANCHORS + quarter * (ANCHORS // 4) + tl.arange(0, ANCHORS // 4)
        some_a = a < anchor_count
        if INT8:
            x *= tl.load(row_scale + q, mask=some_q, other=0)[:, None]
            x *= tl.load(anchor_scale + a, mask=some_a, other=0)[None, :]
        x = x * inverse_temperature - inverse_temperature
        some = some_q[:, None] & some_a[None, :]
        if MASKED:
            own = tl.load(index + q, mask=some_q, other=0)[:, None] == tl.load(anchor_index + a, mask=some_a, other=0)
            some = some & (own == 0)
        # sums of the rounded exponentials: the shares that `combine` takes from the tiles then add up to one
        rounded = tl.where(some, tl.exp(x), 0.0).to(tiles.dtype.element_ty)
        e = rounded.to(tl.float32)
        corner = (block * QUERIES).to(tl.int64) * tile_stride + tile * ANCHORS + quarter * (ANCHORS // 4)
        within = tl.arange(0, QUERIES)[:, None] * tile_stride + tl.arange(0, ANCHORS // 4)[None, :]
        if STORED:
            tl.store(tiles + corner + within, rounded, mask=some_q[:, None])
        w = e
        if WEIGHTED:
            w = tl.load(weights + corner + within, mask=some_q[:, None], other=0).to(tl.float32)
        total_e += tl.sum(e, 1)
        total_wx += tl.sum(w * x, 1)
    sums += tile.to(tl.int64) * 2 * count + q
    tl.store(sums, total_e, mask=some_q)
    tl.store(sums + count, total_wx, mask=some_q)


@triton.jit
def combine(
    tiles,
    inverse,
    anchors,
    anchor_scale,
    parts,
    count,
    anchor_count,
    width,
    anchors_per_part,
    tile_stride,
    anchor_stride,
    INT8: tl.constexpr,
    DIFFERENCE: tl.constexpr,
    ADDED: tl.constexpr,
    QUERIES: tl.constexpr,
    ANCHORS: tl.constexpr,
    WIDTH: tl.constexpr,
):
    """Σ_j w_j a_j over one part of the anchors, for a block of queries and of columns.

    parts (parts, count, width) float32: the sums of each part; added to if ADDED.
    w is `tiles` (count, ...) as they are; with DIFFERENCE, `tiles` is (2, count, ...), teacher first, `inverse`
    (2, count) one over the sums, and w the student's share less the teacher's.
    """
    blocks = tl.cdiv(count, QUERIES)
    columns = tl.cdiv(width, WIDTH)
    # programs of one part lie side by side: they read the same tiles and anchors, from the cache but once
    block = tl.program_id(0) % blocks
    column = tl.program_id(0) // blocks % columns
    part = tl.program_id(0) // (blocks * columns)
    q = block * QUERIES + tl.arange(0, QUERIES)
    d = column * WIDTH + tl.arange(0, WIDTH)
    a = tl.arange(0, ANCHORS)
    some_q = q < count
    some_d = d < width
    place = parts + (part.to(tl.int64) * count + q[:, None]) * width + d[None, :]
    if ADDED:
        total = tl.load(place, mask=some_q[:, None] & some_d[None, :], other=0)
    else:
        total = tl.zeros((QUERIES, WIDTH), dtype=tl.float32)
    if DIFFERENCE:
        inverse_t = tl.load(inverse + q, mask=some_q, other=0)[:, None]
        inverse_s = tl.load(inverse + count + q, mask=some_q, other=0)[:, None]
    first = part * anchors_per_part
    last = tl.minimum(first + anchors_per_part, anchor_count)
    for start in range(first, last, ANCHORS):
        some_a = start + a < anchor_count  # past the end the tiles hold 0
        tile = tiles + q[:, None].to(tl.int64) * tile_stride + (start + a)[None, :]
        w = tl.load(tile, mask=some_q[:, None], other=0)
        if DIFFERENCE:
            tile = tiles + (count + q)[:, None].to(tl.int64) * tile_stride + (start + a)[None, :]
            student = tl.load(tile, mask=some_q[:, None], other=0)
            w = student.to(tl.float32) * inverse_s - w.to(tl.float32) * inverse_t
        row = anchors + (start + a)[:, None].to(tl.int64) * anchor_stride + d[None, :]
        y = tl.load(row, mask=some_a[:, None] & some_d[None, :], other=0)
        if INT8:
            w = w.to(tl.float32) * tl.load(anchor_scale + start + a, mask=some_a, other=0)[None, :]
            y = y.to(tl.float32).to(tl.bfloat16)  # exact; straight to bfloat16 is wrong in the interpreter
        total = _dot(w.to(y.dtype), y, total)
    tl.store(place, total, mask=some_q[:, None] & some_d[None, :])
