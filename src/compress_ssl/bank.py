"""A ring of anchors with their sample ids: rows written in step, oldest overwritten first.

Source: CompRess, Sec. 3 (FIFO queues of K = 128 000). Differs from the authors' code: a row that is not filled yet is
never compared, every row knows its image, and reading is a view: no step copies the bank.
A bank may be kept in fewer bits, in host memory, or spread over the processes that train together.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor
from torch.distributed import ProcessGroup, gather, get_rank, get_world_size

from compress_ssl.calibration import Temperature, check_temperature
from compress_ssl.quantised import Anchors, Int8Rows, quantise, values
from compress_ssl.refusal import Refusal

EMPTY = -1  # sample of a row that belongs to no image
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "int8": torch.int8}
GATHERED_AT_ONCE = 65_536  # rows of each process sent at a time when a spread bank is saved


@dataclass(frozen=True, kw_only=True)
class BankConfig:
    """Of every objective that compares with a bank. The paper's values, but for what is not compared and the start."""

    bank_size: int = 128_000  # anchors held at once; capped at the number of training images
    bank_dtype: Literal["float32", "bfloat16", "int8"] = "float32"  # 1/2 and 1/4 of the memory
    bank_home: Literal["device", "host"] = "device"  # host: streamed from pinned memory, if the device can't hold it
    bank_processes: Literal["gathered", "sharded"] = "gathered"  # sharded: each process holds its part, not all of it
    temperature: Temperature = 0.04  # divides similarities, both sides; larger blurs near neighbours into far ones
    perplexity: float = 0.02  # temperature auto: neighbours that a query is to have, as a share of the anchors
    same_image: Literal["mask", "keep"] = "mask"  # an anchor of the query's own image; keep: as the authors' code
    start: Literal["empty", "random"] = "empty"  # of the bank; random: noise rows, as the authors' code
    path: Literal["auto", "naive", "streamed", "fused"] = "auto"  # of similarity.anchor_kl; fused: Triton, CUDA only

    def __post_init__(self) -> None:
        if self.bank_size < 1:
            raise Refusal(f"--objective.bank-size expected at least 1, got {self.bank_size}: the paper's is 128000")
        check_temperature(self.temperature, self.perplexity)
        if self.path == "naive" and self.bank_processes == "sharded":
            raise Refusal("--objective.path naive expected --objective.bank-processes gathered, got sharded: leave one "
                          "out")  # fmt: skip
        if self.path == "fused" and self.bank_home == "host":
            raise Refusal("--objective.path fused expected --objective.bank-home device, got host: leave one out")


class Bank:
    """K rows for each of several models, row j of each belonging to the same image.

    Args:
        size: K, rows over all processes.
        widths: name of each model -> width of its rows.
        device: of the samples' ids, and of the rows unless `host`.
        dtype: as what the rows are kept; int8 with a scale for each row.
        host: keep the rows in host memory, pinned where the device is CUDA.
        group: spread the rows over its processes: row j lies on process j modulo their number.
    """

    def __init__(
        self,
        size: int,
        widths: dict[str, int],
        *,
        device: torch.device | str = "cpu",
        dtype: torch.dtype = torch.float32,
        host: bool = False,
        group: ProcessGroup | None = None,
    ):
        if size < 1:
            raise Refusal(f"--objective.bank-size expected at least 1, got {size}: the paper's is 128000")
        self.size, self.dtype, self.group = size, dtype, group
        self._rank, self._ranks = (0, 1) if group is None else (get_rank(group), get_world_size(group))
        count = self._local(size)
        home = torch.device("cpu") if host else torch.device(device)
        pinned = host and torch.device(device).type == "cuda"
        self._rows = {name: _empty(count, width, dtype, home, pinned) for name, width in widths.items()}
        self._index = torch.full((count,), EMPTY, device=device)
        self.position = 0  # next row to be written, of all processes' rows
        self.filled = 0  # rows [0, filled) hold anchors

    @property
    def widths(self) -> dict[str, int]:
        """Of each model's rows."""
        return {name: _width(rows) for name, rows in self._rows.items()}

    def anchors(self, name: str) -> Anchors:
        """(filled, D) rows of one model, of this process's part: a view, to be read before the next write."""
        return _slice(self._rows[name], 0, self._local(self.filled))

    @property
    def index(self) -> Tensor:
        """(filled,) int64 sample of each anchor, of this process's part: a view."""
        return self._index[: self._local(self.filled)]

    @torch.no_grad()
    def write(self, index: Tensor, **rows: Tensor) -> None:
        """Append B rows of every model, in place; on every process the rows of all of them.

        Args:
            index: (B,) int64 samples.
            rows: name -> (B, D) unit rows. Of more than K rows the last K are kept, as if written one by one.
        """
        shapes = {name: tuple(given.shape) for name, given in rows.items()}
        expected = {name: (len(index), width) for name, width in self.widths.items()}
        if shapes != expected:
            raise ValueError(f"expected rows {expected}, got {shapes}: every model's bank is written in step")
        count = len(index)
        if count > self.size:
            self.position = (self.position + count - self.size) % self.size
            index, rows = index[-self.size :], {name: given[-self.size :] for name, given in rows.items()}
            count = self.size
        first = min(count, self.size - self.position)  # rows before the ring's end; the rest starts over at 0
        for position, taken in ((self.position, slice(0, first)), (0, slice(first, count))):
            if taken.start < taken.stop:
                self._put(position, index[taken], {name: given[taken] for name, given in rows.items()})
        self.filled = min(self.size, max(self.filled, self.position + count))
        self.position = (self.position + count) % self.size

    def _put(self, position: int, index: Tensor, rows: dict[str, Tensor]) -> None:
        """Write consecutive rows that do not pass the ring's end: those of them that lie on this process."""
        mine = slice((self._rank - position) % self._ranks, None, self._ranks)
        index = index[mine]
        start = self._local(position)
        here = slice(start, start + len(index))
        self._index[here] = index
        for name, given in rows.items():
            _assign(self._rows[name], here, given[mine])

    @torch.no_grad()
    def fill_randomly(self, generator: torch.Generator) -> None:
        """Fill every model's rows with independent random unit rows, as the authors' code starts."""
        for rows in self._rows.values():
            noise = torch.randn(self.size, _width(rows), generator=generator)[self._rank :: self._ranks]
            _assign(rows, slice(None), noise / noise.norm(dim=1, keepdim=True))
        self.filled = self.size

    def state_dict(self) -> dict[str, Any]:
        """The filled rows only: views of a full bank, copies before (a file would hold all that a view is part of).

        Of a spread bank every process must call it; the first one gets the rows of all, the others none.
        """
        index, rows = self.index.clone(), {name: self.anchors(name) for name in self._rows}
        if self.group is not None:
            index = self._whole(index)
            rows = {name: _map(self._whole, anchors) for name, anchors in rows.items()}
        elif self.filled < self.size:
            rows = {name: _map(Tensor.clone, anchors) for name, anchors in rows.items()}
        stored = {name: list(part) if isinstance(part, Int8Rows) else part for name, part in rows.items()}
        return {"size": self.size, "position": self.position, "index": index, "rows": stored}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take back what `state_dict` gave, on any number of processes.

        Raises: Refusal if it is of another size or width, or int8 where floats are kept, or the reverse.
        """
        saved = {name: Int8Rows(*part) if isinstance(part, list) else part for name, part in state["rows"].items()}
        expected = self.widths
        got = {name: _width(rows) for name, rows in saved.items()}
        if state["size"] != self.size or got != expected:
            raise Refusal(f"expected a saved bank of {self.size} rows with widths {expected}, got {state['size']} "
                          f"rows with widths {got}: resume with the options that started the run")  # fmt: skip
        if any(isinstance(rows, Int8Rows) != (self.dtype == torch.int8) for rows in saved.values()):
            raise Refusal("expected a saved bank of the kind that --objective.bank-dtype names, got the other of int8 "
                          "and floats: resume with the options that started the run")  # fmt: skip
        self.position, self.filled = state["position"], len(state["index"])
        mine = slice(self._rank, None, self._ranks)
        self.index.copy_(state["index"][mine])
        for name, rows in saved.items():
            for whole, part in zip(_tensors(self.anchors(name)), _tensors(rows), strict=True):
                whole.copy_(part[mine])

    def _local(self, rows: int) -> int:
        """How many of the first `rows` rows lie on this process."""
        return max(0, -(-(rows - self._rank) // self._ranks))

    def _whole(self, part: Tensor) -> Tensor:
        """(filled here, …) of every process -> (filled, …) on the first one, in host memory; a block at a time."""
        blocks = []
        most = -(-self.filled // self._ranks)
        for start in range(0, most, GATHERED_AT_ONCE):
            stop = min(most, start + GATHERED_AT_ONCE)
            block = part.new_zeros(stop - start, *part.shape[1:])
            given = part[start:stop]
            block[: len(given)] = given
            block = block.to(self._index.device)
            parts = [torch.empty_like(block) for _ in range(self._ranks)] if self._rank == 0 else None
            gather(block, parts, group=self.group, group_dst=0)
            if parts is not None:
                blocks.append(torch.stack(parts, dim=1).flatten(0, 1).cpu())
        if self._rank != 0 or not blocks:
            return part.new_zeros(0, *part.shape[1:]).cpu()
        return torch.cat(blocks)[: self.filled]


def open_bank(
    config: BankConfig,
    widths: dict[str, int],
    *,
    images: int,
    device: torch.device | str,
    seed: int,
    group: ProcessGroup | None,
) -> Bank:
    """The bank that the options ask for, for a data set of `images`; `group` of all processes, if there are several."""
    bank = Bank(
        min(config.bank_size, images),
        widths,
        device=device,
        dtype=DTYPES[config.bank_dtype],
        host=config.bank_home == "host",
        group=group if config.bank_processes == "sharded" else None,
    )
    if config.start == "random":
        bank.fill_randomly(torch.Generator().manual_seed(seed))
    return bank


def compared(config: BankConfig, bank: Bank, index: Tensor) -> dict[str, Any]:
    """What `similarity.anchor_kl` needs to know of the bank beside its anchors; index: (B,) samples of the queries."""
    samples = {"index": index, "anchor_index": bank.index} if config.same_image == "mask" else {}
    return {**samples, "group": bank.group, "path": config.path}


def _empty(count: int, width: int, dtype: torch.dtype, device: torch.device, pinned: bool) -> Anchors:
    rows = torch.zeros(count, width, device=device, dtype=dtype, pin_memory=pinned)
    if dtype != torch.int8:
        return rows
    return Int8Rows(rows, torch.ones(count, device=device, pin_memory=pinned))


def _assign(rows: Anchors, places: slice, new: Tensor) -> None:
    # a copy from the device to pinned memory does not wait: later reads of the bank come after it on the same stream
    parts = quantise(new) if isinstance(rows, Int8Rows) else (new,)
    for whole, part in zip(_tensors(rows), parts, strict=True):
        whole[places].copy_(part, non_blocking=True)


def _tensors(rows: Anchors) -> tuple[Tensor, ...]:
    return rows if isinstance(rows, Int8Rows) else (rows,)


def _width(rows: Anchors) -> int:
    return values(rows).shape[1]


def _slice(rows: Anchors, start: int, stop: int) -> Anchors:
    return _map(lambda part: part[start:stop], rows)


def _map(function: Callable[[Tensor], Tensor], rows: Anchors) -> Anchors:
    if isinstance(rows, Int8Rows):
        return Int8Rows(*(function(part) for part in rows))
    return function(rows)
