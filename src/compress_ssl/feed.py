"""Batches on the device, the next one made ready while this one computes.

A thread of its own takes the next batch from the loader, lets the teacher add what it has stored, and on a GPU copies
both on a stream of its own; the step's stream waits for that copy, the host for nothing. One batch ahead is enough:
the loader's workers are further ahead already.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor

import torch

from compress_ssl.loader import Batch

Ready = tuple[Batch, "torch.cuda.Event | None"]


class Feed:
    """An iterator over the batches, in their order; what fails is raised when its batch is due.

    Args:
        batches: of the loader, on the host.
        prepare: what else is to be done on the host, once a batch.
    """

    def __init__(
        self, batches: Iterator[Batch], *, device: torch.device, prepare: Callable[[Batch], Batch] = lambda batch: batch
    ):
        self._batches, self._device, self._prepare = batches, device, prepare
        self._stream = torch.cuda.Stream(device) if device.type == "cuda" else None
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="feed")
        self._next: Future[Ready] | None = None

    def __iter__(self) -> Feed:
        return self

    def __next__(self) -> Batch:
        # the first in the caller's thread: there the loader forks its workers
        batch, copied = self._make() if self._next is None else self._next.result()
        self._next = self._thread.submit(self._make)
        if copied is not None:
            stream = torch.cuda.current_stream(self._device)
            stream.wait_event(copied)
            for tensor in (batch.images, batch.index, batch.target, batch.local):
                if tensor is not None:  # the memory was taken by the other stream: not to be reused before this one
                    tensor.record_stream(stream)
        return batch

    def close(self) -> None:
        """Wait for the batch under way, drop it, and end the loader: its workers heed no signal, only their loader."""
        self._thread.shutdown(wait=True, cancel_futures=True)
        self._next = None
        close = getattr(self._batches, "close", None)
        if close is not None:
            close()

    def _make(self) -> Ready:
        batch = self._prepare(next(self._batches))
        if self._stream is None:
            return batch.to(self._device), None
        with torch.cuda.device(self._device), torch.cuda.stream(self._stream):
            batch = batch.to(self._device)
            copied = torch.cuda.Event()
            copied.record()
        return batch, copied
