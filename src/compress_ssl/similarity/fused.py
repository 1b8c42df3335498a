"""The divergence in two Triton kernels: the fast path on NVIDIA GPUs.

`expdot`, once a side: a large product whose epilogue turns similarities into exponentials, keeps them in a scratch
(bfloat16; float32 where anchors are) and sums them. `combine`: the exponentials of both sides, as shares, weigh the
student's anchors into the gradient. Since |cos| <= 1, the fixed offset 1/temperature stands in for the running maximum,
so every sum over anchors is a plain sum: over tiles, over slabs of anchors and over processes.

Relations: the same values as naive.py, which stores K x B logits in float32 several times; here 4 bytes a pair stay
    (8 for float32 anchors), at most `scratch_bytes` at a time.
Slabs: the shares need the sum over all anchors, known only when the last slab has passed. So with more than one slab
    the two sides are weighed apart, unnormalised: one student-width product more, 17 % of the arithmetic at widths
    2048/512. Recomputing the tiles when the sums are known would cost 67 %.
Repeatable: every sum has a fixed order and none uses atomics, so the same tensors on the same kind of GPU give the
    same bits. Another number of slabs, processes or multiprocessors orders the sums differently.
Rows that are not a multiple of 16 bytes apart (an odd width) are right but slow: their loads are narrow.
Compiled for sm_80, sm_86 and sm_90 (on sm_90 and Triton 3.9 at most 40 spilt registers a thread in expdot, 24 in
    combine), interpreted on a CPU (see the tests), and not yet run or timed on a GPU.
"""

from __future__ import annotations

import os
from dataclasses import dataclass, replace
from functools import lru_cache
from types import ModuleType
from typing import NamedTuple

import torch
from torch import Tensor

from compress_ssl.quantised import Anchors, Int8Rows, quantise, values
from compress_ssl.similarity.divergence import Divergence

SCRATCH_BYTES = 512 * 2**20  # exponentials held at once; 128 000 anchors and 256 queries in bfloat16 take 125 MiB
LOWEST_TEMPERATURE = 0.025  # below it exp(-2 / temperature) leaves bfloat16's and float32's normal numbers


class Tile(NamedTuple):
    """What one program covers and how it is compiled; `width` is the step of expdot and the block of combine."""

    queries: int
    anchors: int
    width: int
    warps: int
    stages: int


# By a block's shared memory: sm_90 and sm_100 have 227 KiB, sm_80 163, sm_86, sm_89 and sm_120 99. The anchors of each
# expdot tile are a multiple of every combine tile's, so that combine never reads what expdot did not write.
# Not timed yet. By arithmetic an expdot of width 512 on an H200 spends 40 % of its time in the epilogue, which nothing
# overlaps at one block a multiprocessor; Tile(128, 128, 64, 4, 3) fits twice, at a third more reads from the cache.
TILES = {
    ("large", "expdot", "float32"): Tile(64, 128, 32, 8, 3),
    ("large", "expdot", "bfloat16"): Tile(128, 256, 64, 8, 4),
    ("large", "expdot", "int8"): Tile(128, 256, 128, 8, 4),
    ("large", "combine", "float32"): Tile(64, 32, 128, 8, 3),
    ("large", "combine", "bfloat16"): Tile(128, 64, 256, 8, 3),
    ("large", "combine", "int8"): Tile(128, 64, 256, 8, 3),
    ("middle", "expdot", "float32"): Tile(64, 128, 32, 8, 3),
    ("middle", "expdot", "bfloat16"): Tile(128, 256, 64, 8, 3),
    ("middle", "expdot", "int8"): Tile(128, 128, 64, 8, 3),
    ("middle", "combine", "float32"): Tile(64, 32, 128, 8, 3),
    ("middle", "combine", "bfloat16"): Tile(128, 64, 128, 8, 3),
    ("middle", "combine", "int8"): Tile(128, 64, 128, 8, 3),
    ("small", "expdot", "float32"): Tile(64, 64, 32, 4, 2),
    ("small", "expdot", "bfloat16"): Tile(128, 128, 32, 8, 4),
    ("small", "expdot", "int8"): Tile(128, 128, 64, 8, 4),
    ("small", "combine", "float32"): Tile(64, 32, 64, 4, 2),
    ("small", "combine", "bfloat16"): Tile(64, 64, 128, 4, 3),
    ("small", "combine", "int8"): Tile(64, 64, 128, 4, 3),
    ("interpreter", "expdot", "float32"): Tile(16, 128, 32, 1, 1),
    ("interpreter", "expdot", "bfloat16"): Tile(16, 128, 32, 1, 1),
    ("interpreter", "expdot", "int8"): Tile(16, 128, 32, 1, 1),
    ("interpreter", "combine", "float32"): Tile(16, 64, 64, 1, 1),
    ("interpreter", "combine", "bfloat16"): Tile(16, 64, 64, 1, 1),
    ("interpreter", "combine", "int8"): Tile(16, 64, 64, 1, 1),
}


def refused(
    query: Tensor,
    query_anchors: Anchors,
    target: Tensor,
    target_anchors: Anchors,
    *,
    temperature: float,
    target_temperature: float,
) -> str | None:
    """Why these tensors cannot take this path, in words that end a sentence, or None."""
    if min(temperature, target_temperature) < LOWEST_TEMPERATURE:
        return f"a temperature of {min(temperature, target_temperature)} is below {LOWEST_TEMPERATURE}"
    for name, rows in (("query", query), ("target", target)):
        if rows.dtype != torch.float32:
            return f"{name} is {rows.dtype}, not torch.float32"
    for name, anchors in (("query_anchors", query_anchors), ("target_anchors", target_anchors)):
        if not isinstance(anchors, Int8Rows) and anchors.dtype not in (torch.float32, torch.bfloat16):
            return f"{name} is {anchors.dtype}, not torch.float32, torch.bfloat16 or Int8Rows"
    devices = {rows.device for rows in (query, target, values(query_anchors), values(target_anchors))}
    if len(devices) > 1:
        return f"the tensors lie on {' and '.join(sorted(map(str, devices)))}"
    return machine_refused(query.device)


@lru_cache
def machine_refused(device: torch.device) -> str | None:
    """Why this device cannot take this path, in words that end a sentence, or None."""
    if device.type != "cuda" and not os.environ.get("TRITON_INTERPRET"):  # not worth importing Triton to learn
        return f"the tensors lie on {device}, not on a CUDA device"
    try:
        interpreted = _kernels().INTERPRETED
    except ImportError as trouble:
        return f"Triton cannot be imported ({trouble})"
    if interpreted:
        return None
    if device.type != "cuda":
        return f"the tensors lie on {device}, and Triton's interpreter is not on"
    if torch.version.hip:
        return "the kernels' tiles are not made for AMD's GPUs"
    if torch.cuda.get_device_capability(device) < (8, 0):
        return f"{torch.cuda.get_device_name(device)} has no bfloat16 tensor cores"
    return None


def divergence(
    query: Tensor,
    query_anchors: Anchors,
    target: Tensor,
    target_anchors: Anchors,
    *,
    temperature: float,
    target_temperature: float,
    index: Tensor | None = None,
    anchor_index: Tensor | None = None,
    own: tuple[Tensor, Tensor] | None = None,
    gradient: bool = True,
    group: torch.distributed.ProcessGroup | None = None,
    scratch_bytes: int = SCRATCH_BYTES,
) -> Divergence:
    """Each query's divergence between the two models' similarities to the anchors; constants in, constants out.

    Never waits for the device. Shapes are the caller's to check.

    Args:
        query: (B, D_s) float32 unit rows of the student; rounded inside to the kind of its anchors.
        query_anchors: (A, D_s) float32, bfloat16 or Int8Rows unit rows; row j is the image of target_anchors' row j.
        target: (B, D_t) float32 unit rows of the teacher.
        target_anchors: (A, D_t), of any of the three kinds. May be query_anchors itself.
            Anchors whose last stride is not 1 are copied.
        temperature, target_temperature: divide the student's and the teacher's similarities.
        index: (B,) int64 sample of each query, with anchor_index: an anchor of the query's own sample is left out.
        anchor_index: (A,) int64 sample of each anchor.
        own: (B, D_s) and (B, D_t) float32 unit rows, one anchor more for each query that no other sees; never left out.
        gradient: False saves the last product and half the scratch.
        group: processes that hold a shard of the anchors each, of any sizes; all else is the same on every one, and so
            is the result.
        scratch_bytes: upper limit of the exponentials in memory, though never less than one tile of anchors.
    """
    options = {"temperature": temperature, "target_temperature": target_temperature}
    reason = refused(query, query_anchors, target, target_anchors, **options)
    if reason:
        raise ValueError(f"expected tensors that the Triton kernels take, but {reason}: use the streamed path")
    with torch.no_grad(), torch.cuda.device_of(query):
        teacher = _side(target, target_anchors, target_temperature)
        student = _side(query, query_anchors, temperature)
        samples = None if index is None or anchor_index is None else (index.contiguous(), anchor_index.contiguous())
        sums, tiles, parts = _sweep(teacher, student, samples, gradient, scratch_bytes)
        if group is not None:
            torch.distributed.all_reduce(sums, group=group)
        exponentials = None
        if own is not None:
            there = ((target * own[1]).sum(1) - 1) / target_temperature
            here = ((query * own[0]).sum(1) - 1) / temperature
            offset = torch.stack([there, here])
            exponentials = offset.exp()
            sums += torch.stack([exponentials, exponentials[0] * offset], dim=1)
        total, mean = sums.unbind(1)
        alone = total == 0  # nothing to compare with; NaN is not 0 and stays
        inverse = torch.where(alone, 0, 1 / total)
        entropy, cross_entropy = torch.where(alone, 1, total).log() - mean * inverse[0]
        if not gradient:
            return Divergence(cross_entropy - entropy, entropy, None)
        weighed = _weigh(student, tiles, parts, inverse)
        if group is not None:
            torch.distributed.all_reduce(weighed, group=group)
        if own is not None and exponentials is not None:
            weight = exponentials * inverse
            weighed += (weight[1] - weight[0])[:, None] * own[0]
        return Divergence(cross_entropy - entropy, entropy, weighed / temperature)


@dataclass(frozen=True)
class _Side:
    """One model's rows and anchors as the kernels take them: the same dtype, neighbours in a row adjacent."""

    rows: Tensor
    row_scale: Tensor | None
    anchors: Tensor
    anchor_scale: Tensor | None
    temperature: float

    def piece(self, which: slice) -> _Side:
        scale = None if self.anchor_scale is None else self.anchor_scale[which]
        return replace(self, anchors=self.anchors[which], anchor_scale=scale)

    def tile(self, kernel: str) -> Tile:
        tile = TILES[_memory(self.rows.device), kernel, str(self.anchors.dtype).removeprefix("torch.")]
        # tensor cores multiply 64 rows at once on Hopper: a smaller block would only leave them idle
        return tile._replace(queries=64) if tile.queries > 64 >= len(self.rows) else tile


def _side(rows: Tensor, anchors: Anchors, temperature: float) -> _Side:
    if isinstance(anchors, Int8Rows):
        values, scale = quantise(rows)
        return _Side(values, scale, _dense(anchors.values), anchors.scale.contiguous(), temperature)
    return _Side(_dense(rows.to(anchors.dtype)), None, _dense(anchors), None, temperature)


def _dense(rows: Tensor) -> Tensor:
    return rows if rows.stride(1) == 1 else rows.contiguous()


def _sweep(
    teacher: _Side, student: _Side, samples: tuple[Tensor, Tensor] | None, gradient: bool, scratch_bytes: int
) -> tuple[Tensor, Tensor, Tensor | None]:
    """All anchors once, a slab at a time.

    Returns: sums (2, 2, B), for teacher and student Σ e and, with the teacher's e and the side's own x, Σ e x;
        the last slab's tiles, teacher's and, for the gradient, student's; and, if there were more slabs and a gradient
        is wanted, the sums of the anchors that each side's e weighs, (parts, 2 B, D_s).
    """
    queries, anchors = len(student.rows), len(student.anchors)
    block = max(teacher.tile("expdot").anchors, student.tile("expdot").anchors)
    exact = torch.float32 in (teacher.anchors.dtype, student.anchors.dtype)
    dtype = torch.float32 if exact else torch.bfloat16
    sides = 2 if gradient else 1
    slab = scratch_bytes // max(1, sides * queries * dtype.itemsize * block) * block
    slab = max(block, min(slab, -(-anchors // block) * block))
    tiles = torch.empty(sides, queries, slab, dtype=dtype, device=student.rows.device)
    sums = torch.zeros(2, 2, queries, device=student.rows.device)
    parts = None
    for start in range(0, anchors if queries else 0, slab):
        which = slice(start, start + slab)
        masks = None if samples is None else (samples[0], samples[1][which])
        there, here = teacher.piece(which), student.piece(which)
        written = -(-len(here.anchors) // block) * block  # by each side: their programs may differ in length
        sums[0] += _expdot(there, tiles[0, :, :written], masks, stored=True)
        sums[1] += _expdot(here, tiles[-1, :, :written], masks, stored=gradient, weights=tiles[0])
        if gradient and slab < anchors:
            parts = _combine(here, tiles.flatten(0, 1), parts)
    return sums, tiles, parts


def _weigh(student: _Side, tiles: Tensor, parts: Tensor | None, inverse: Tensor) -> Tensor:
    """(B, D_s) float32: the student's anchors, weighed by its shares less the teacher's."""
    if parts is not None:
        teachers, students = parts.sum(0).unflatten(0, inverse.shape)
        return students * inverse[1, :, None] - teachers * inverse[0, :, None]
    if student.rows.numel() == 0 or len(student.anchors) == 0:
        return torch.zeros(student.rows.shape, device=student.rows.device)
    return _combine(student, tiles, inverse=inverse).sum(0)


def _expdot(
    side: _Side, tiles: Tensor, masks: tuple[Tensor, Tensor] | None, *, stored: bool, weights: Tensor | None = None
) -> Tensor:
    """(2, B) float32 sums over a slab, of e and of weights (or else e) times x; if stored, fills `tiles` with e."""
    tile = side.tile("expdot")
    queries, width = side.rows.shape
    blocks = tiles.shape[1] // tile.anchors
    sums = torch.empty(blocks, 2, queries, device=tiles.device)
    index, anchor_index = masks or (None, None)
    _kernels().expdot[(blocks * -(-queries // tile.queries),)](
        side.rows,
        side.row_scale,
        side.anchors,
        side.anchor_scale,
        index,
        anchor_index,
        weights,
        tiles,
        sums,
        queries,
        len(side.anchors),
        width,
        1 / side.temperature,
        side.rows.stride(0),
        side.anchors.stride(0),
        tiles.stride(0),
        INT8=side.row_scale is not None,
        MASKED=masks is not None,
        WEIGHTED=weights is not None,
        STORED=stored,
        QUERIES=tile.queries,
        ANCHORS=tile.anchors,
        WIDTH=tile.width,
        num_warps=tile.warps,
        num_stages=tile.stages,
    )
    return sums.sum(0)


def _combine(student: _Side, tiles: Tensor, added: Tensor | None = None, inverse: Tensor | None = None) -> Tensor:
    """(parts, rows, D_s) float32, to be summed over parts: the anchors of a slab as `tiles` (rows, slab) weigh them.

    `added`, of an earlier slab, takes the sums on top. With `inverse` (2, B) the tiles are (2, B, slab), made shares
    by it, and the weights are the student's less the teacher's.
    """
    tile = student.tile("combine")
    queries, (anchors, width) = tiles.shape[-2], student.anchors.shape
    programs = -(-queries // tile.queries) * -(-width // tile.width)
    parts = added
    if parts is None:
        # anchors are split until every multiprocessor has a program; on 132 of them the sums take 17 MB at most
        wanted = max(1, _multiprocessors(tiles.device) // programs)
        parts = torch.empty(min(wanted, -(-anchors // tile.anchors)), queries, width, device=tiles.device)
    anchors_per_part = -(-anchors // (len(parts) * tile.anchors)) * tile.anchors
    _kernels().combine[(programs * len(parts),)](
        tiles,
        inverse,
        student.anchors,
        student.anchor_scale,
        parts,
        queries,
        anchors,
        width,
        anchors_per_part,
        tiles.stride(-2),
        student.anchors.stride(0),
        INT8=student.anchor_scale is not None,
        DIFFERENCE=inverse is not None,
        ADDED=added is not None,
        QUERIES=tile.queries,
        ANCHORS=tile.anchors,
        WIDTH=tile.width,
        num_warps=tile.warps,
        num_stages=tile.stages,
    )
    return parts


def _kernels() -> ModuleType:
    """Imported at the first use: Triton takes its time and is not everywhere."""
    from compress_ssl.similarity import kernels

    return kernels


@lru_cache
def _memory(device: torch.device) -> str:
    """The tiles' name of this device's shared memory."""
    if _kernels().INTERPRETED:
        return "interpreter"
    size = getattr(torch.cuda.get_device_properties(device), "shared_memory_per_block_optin", 0)
    return "large" if size >= 220 * 2**10 else "middle" if size >= 160 * 2**10 else "small"


@lru_cache
def _multiprocessors(device: torch.device) -> int:
    return 6 if device.type != "cuda" else torch.cuda.get_device_properties(device).multi_processor_count
