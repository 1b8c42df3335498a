"""A ring of anchors with their sample ids: rows written in step, oldest overwritten first.

Source: CompRess, Sec. 3 (FIFO queues of K = 128 000). Differs from the authors' code: a row that is not filled yet is
never compared, every row knows its image, and reading is a view: no step copies the bank.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from compress_ssl.refusal import Refusal

EMPTY = -1  # sample of a row that belongs to no image


class Bank:
    """K rows for each of several models, row j of each belonging to the same image.

    Args:
        size: K, rows.
        widths: name of each model -> width of its rows.
        device, dtype: where and as what the rows are kept.
    """

    def __init__(
        self,
        size: int,
        widths: dict[str, int],
        *,
        device: torch.device | str = "cpu",
        dtype: torch.dtype = torch.float32,
    ):
        if size < 1:
            raise Refusal(f"--objective.bank-size expected at least 1, got {size}: the paper's is 128000")
        self.size = size
        self._rows = {name: torch.zeros(size, width, device=device, dtype=dtype) for name, width in widths.items()}
        self._index = torch.full((size,), EMPTY, device=device)
        self.position = 0  # next row to be written
        self.filled = 0  # rows [0, filled) hold anchors

    def anchors(self, name: str) -> Tensor:
        """(filled, D) rows of one model: a view, to be read before the next write."""
        return self._rows[name][: self.filled]

    @property
    def index(self) -> Tensor:
        """(filled,) int64 sample of each anchor: a view."""
        return self._index[: self.filled]

    @torch.no_grad()
    def write(self, index: Tensor, **rows: Tensor) -> None:
        """Append B rows of every model, in place.

        Args:
            index: (B,) int64 samples.
            rows: name -> (B, D) unit rows. Of more than K rows the last K are kept, as if written one by one.
        """
        shapes = {name: tuple(given.shape) for name, given in rows.items()}
        expected = {name: (len(index), whole.shape[1]) for name, whole in self._rows.items()}
        if shapes != expected:
            raise ValueError(f"expected rows {expected}, got {shapes}: every model's bank is written in step")
        count = len(index)
        if count > self.size:
            self.position = (self.position + count - self.size) % self.size
            index, rows = index[-self.size :], {name: given[-self.size :] for name, given in rows.items()}
            count = self.size
        first = min(count, self.size - self.position)  # rows before the ring's end; the rest starts over at 0
        for whole, new in [(self._index, index), *((self._rows[name], rows[name]) for name in rows)]:
            whole[self.position : self.position + first] = new[:first]
            whole[: count - first] = new[first:]
        self.filled = min(self.size, max(self.filled, self.position + count))
        self.position = (self.position + count) % self.size

    @torch.no_grad()
    def fill_randomly(self, generator: torch.Generator) -> None:
        """Fill every model's rows with independent random unit rows, as the authors' code starts."""
        for rows in self._rows.values():
            noise = torch.randn(rows.shape, generator=generator)
            rows.copy_(noise / noise.norm(dim=1, keepdim=True))
        self.filled = self.size

    def state_dict(self) -> dict[str, Any]:
        """The filled rows only: views of a full bank, copies before (a file would hold all that a view is part of)."""
        rows = {name: self.anchors(name) for name in self._rows}
        if self.filled < self.size:
            rows = {name: anchors.clone() for name, anchors in rows.items()}
        return {"size": self.size, "position": self.position, "index": self.index.clone(), "rows": rows}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        expected = {name: rows.shape[1] for name, rows in self._rows.items()}
        got = {name: rows.shape[1] for name, rows in state["rows"].items()}
        if state["size"] != self.size or got != expected:
            raise Refusal(f"expected a saved bank of {self.size} rows with widths {expected}, got {state['size']} "
                          f"rows with widths {got}: resume with the options that started the run")  # fmt: skip
        self.position, self.filled = state["position"], len(state["index"])
        self._index[: self.filled] = state["index"]
        for name, rows in state["rows"].items():
            self._rows[name][: self.filled] = rows
