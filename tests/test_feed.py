"""The next batch is made ready while this one computes, and nothing else changes for it."""

from __future__ import annotations

import threading
from collections.abc import Iterator

import pytest
import torch

from compress_ssl.feed import Feed
from compress_ssl.loader import Batch
from compress_ssl.refusal import Refusal

CPU = torch.device("cpu")


def numbered(count: int, *, broken: int = -1, seen: list[int] | None = None) -> Iterator[Batch]:
    for step in range(count):
        if seen is not None:
            seen.append(step)
        if step == broken:
            raise Refusal(f"expected usable images, got none at {step}")
        yield Batch(torch.full((3, 3, 2, 2), step, dtype=torch.uint8), torch.arange(3) + step, [])


def test_batches_come_in_their_order_and_end() -> None:
    """A resumed run would see other images."""
    assert [int(batch.images[0, 0, 0, 0]) for batch in Feed(numbered(7), device=CPU)] == list(range(7))


def test_the_next_batch_is_read_and_prepared_while_this_one_computes() -> None:
    """Every step would wait for its pictures and for the disk with the teacher's rows."""
    ready = threading.Event()
    threads = []

    def prepare(batch: Batch) -> Batch:
        threads.append(threading.current_thread() is threading.main_thread())
        if batch.index[0] == 1:
            ready.set()
        return batch

    feed = Feed(numbered(9), device=CPU, prepare=prepare)
    next(feed)
    assert ready.wait(10), "the second is ready although nobody has asked for it"
    assert threads == [True, False], "the first in the caller's thread: workers are forked there"
    feed.close()


def test_no_more_than_one_batch_is_read_ahead() -> None:
    """Memory of the device would fill with images."""
    seen: list[int] = []
    feed = Feed(numbered(9, seen=seen), device=CPU)
    next(feed), next(feed)
    assert feed._next is not None
    feed._next.result()
    feed.close()
    assert seen == [0, 1, 2]


def test_what_fails_is_raised_when_its_batch_is_due() -> None:
    """The steps before it would be lost, or the failure would be, in a thread that nobody asks."""
    feed = Feed(numbered(9, broken=2), device=CPU)
    next(feed), next(feed)
    for _ in range(2):
        with pytest.raises(Refusal, match="none at 2"):
            next(feed)
    feed.close()


def test_images_come_in_channels_last_with_their_index_on_the_host() -> None:
    """A convolution would turn them around in every layer; an index on the device would be waited for."""
    batch = next(Feed(numbered(1), device=CPU))
    assert batch.images.is_contiguous(memory_format=torch.channels_last)
    assert batch.host_index.tolist() == [0, 1, 2]


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_copies_on_a_stream_of_their_own_are_waited_for() -> None:
    """A step would compute on what was in that memory before."""
    device = torch.device("cuda")

    def large() -> Iterator[Batch]:
        for step in range(9):
            yield Batch(torch.full((64, 3, 224, 224), step, dtype=torch.uint8).pin_memory(), torch.arange(64), [])

    sums = [batch.images.float().mean() for batch in Feed(large(), device=device)]
    assert [float(mean) for mean in sums] == list(range(9))
