"""The ring of anchors against a Python list that forgets its oldest rows."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.nn.functional import normalize
from torch.profiler import ProfilerActivity, profile

from compress_ssl import checkpoint
from compress_ssl.bank import EMPTY, Bank
from compress_ssl.objectives import compress_2q
from compress_ssl.quantised import Int8Rows
from compress_ssl.refusal import Refusal

pytestmark = pytest.mark.filterwarnings("error")


def rows_of(index: Tensor, width: int) -> Tensor:
    """A row that tells its sample in every column."""
    return index[:, None].float() * 100 + torch.arange(width)


def write(bank: Bank, index: Tensor) -> None:
    bank.write(index, key=rows_of(index, 3), target=rows_of(index, 5))


@settings(max_examples=60, deadline=None)
@given(size=st.integers(1, 11), batches=st.lists(st.integers(0, 25), max_size=7))
def test_the_newest_rows_are_kept_at_the_places_where_one_by_one_would_put_them(size: int, batches: list[int]) -> None:
    """Anchors would be older than they could be, or a teacher's row would stand beside another image's student row."""
    bank, slots, written = Bank(size, {"key": 3, "target": 5}), [EMPTY] * size, 0
    for count in batches:
        write(bank, torch.arange(written, written + count))
        for sample in range(written, written + count):
            slots[sample % size] = sample
        written += count
        filled = torch.tensor(slots[: min(written, size)], dtype=torch.int64)
        assert bank.filled == len(filled)
        assert torch.equal(bank.index, filled)
        assert torch.equal(bank.anchors("key"), rows_of(filled, 3))
        assert torch.equal(bank.anchors("target"), rows_of(filled, 5))
        assert bank.position == written % size


def test_rows_that_are_not_filled_yet_are_not_anchors() -> None:
    """The first steps would match zeros."""
    bank = Bank(7, {"key": 3, "target": 5})
    assert bank.anchors("key").shape == (0, 3)
    assert bank.index.shape == (0,)
    write(bank, torch.tensor([9, 4]))
    assert bank.index.tolist() == [9, 4]
    assert bank.anchors("target").shape == (2, 5)


def test_anchors_are_a_view() -> None:
    """Every step would copy gigabytes."""
    bank = Bank(7, {"key": 3, "target": 5})
    write(bank, torch.arange(7))
    place = bank.anchors("key").data_ptr(), bank.index.data_ptr()
    write(bank, torch.arange(7, 11))
    assert (bank.anchors("key").data_ptr(), bank.index.data_ptr()) == place


def allocated(work: Callable[[], object]) -> list[int]:
    """Net bytes that each operation of `work` took from the allocator."""
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
        work()
    return [event.cpu_memory_usage for event in profiler.events()]


def test_a_step_allocates_less_than_the_bank_and_a_write_less_than_a_batch() -> None:
    """A bank of the paper's size would be copied each step, and all similarities kept: 2.5 GB in the authors' code."""
    size, batch, width, target_width = 20_001, 7, 129, 67
    config = compress_2q.Config(bank_size=size, start="random")
    objective = compress_2q.Objective(config, width=width, target_width=target_width, images=size)
    query, target = torch.randn(batch, width).requires_grad_(), torch.randn(batch, target_width)
    index = torch.arange(batch)

    def step() -> None:
        objective(query, target, index).backward()

    def update() -> None:
        objective.update(query, target, index)

    for work in (step, update):
        work()  # what is made once is not made by a step
    query.grad = None
    bank_bytes = size * target_width * 4  # the smaller of the two
    assert max(allocated(step)) < batch * size * 4 / 2  # nor a matrix of the similarities to all anchors
    assert max(allocated(update), default=0) <= batch * (width + target_width) * 4
    rows = objective.bank.anchors("key")
    assert max(allocated(lambda: [rows.clone()])) >= bank_bytes  # and it would see a copy


def test_a_random_start_is_full_of_unit_rows_that_belong_to_no_image() -> None:
    """The authors' results could not be reproduced; a noise row would be masked as the image with its number."""
    bank = Bank(51, {"key": 3, "target": 5})
    bank.fill_randomly(torch.Generator().manual_seed(3))
    assert bank.filled == 51
    assert bank.index.tolist() == [EMPTY] * 51
    for name in ("key", "target"):
        torch.testing.assert_close(bank.anchors(name).norm(dim=1), torch.ones(51))
        assert bank.anchors(name).unique(dim=0).shape[0] == 51
    assert not torch.equal(bank.anchors("key"), bank.anchors("target")[:, :3])
    write(bank, torch.tensor([4, 8]))
    assert bank.filled == 51
    assert bank.index.tolist() == [4, 8] + [EMPTY] * 49


@pytest.mark.parametrize("seed", [0, 3])
def test_a_random_start_depends_on_the_seed_alone(seed: int) -> None:
    """Two runs with the same seed would differ; filling a bank would change the weights drawn after it."""
    before = torch.get_rng_state()
    banks = []
    for chosen in (seed, seed, seed + 1):
        banks.append(Bank(7, {"key": 5}))
        banks[-1].fill_randomly(torch.Generator().manual_seed(chosen))
    assert torch.equal(banks[0].anchors("key"), banks[1].anchors("key"))
    assert not torch.equal(banks[0].anchors("key"), banks[2].anchors("key"))
    assert torch.equal(before, torch.get_rng_state())


@pytest.mark.parametrize("written", [0, 4, 7, 9])
def test_a_saved_bank_goes_on_as_if_nothing_had_happened(written: int, tmp_path: Path) -> None:
    """A resumed run would compare with other anchors than the run that was never killed."""
    bank = Bank(7, {"key": 3, "target": 5})
    write(bank, torch.arange(100, 100 + written))
    file = tmp_path / "last.ckpt"
    checkpoint.save(file, {"bank": bank}, {})
    twin = Bank(7, {"key": 3, "target": 5})
    twin.fill_randomly(torch.Generator())
    checkpoint.load(file, {"bank": twin})
    for more in (0, 5, 3):
        for one in (bank, twin):
            write(one, torch.arange(more))
        assert torch.equal(twin.index, bank.index)
        for name in ("key", "target"):
            assert torch.equal(twin.anchors(name), bank.anchors(name))


def test_a_bank_that_is_hardly_filled_makes_a_small_checkpoint(tmp_path: Path) -> None:
    """The first second of every run would write a gigabyte of zeros."""
    bank = Bank(50_001, {"key": 3, "target": 5})
    write(bank, torch.arange(11))
    checkpoint.save(tmp_path / "last.ckpt", {"bank": bank}, {})
    empty = Bank(1, {"key": 3, "target": 5})
    checkpoint.save(tmp_path / "empty.ckpt", {"bank": empty}, {})
    extra = (tmp_path / "last.ckpt").stat().st_size - (tmp_path / "empty.ckpt").stat().st_size
    assert extra < 5_000


def test_a_saved_bank_of_another_size_is_refused() -> None:
    """Half of the anchors would be silently lost, or stand where the pointer never comes."""
    bank = Bank(7, {"key": 3, "target": 5})
    with pytest.raises(Refusal, match=r"saved bank of 7 rows .* got 5 rows"):
        bank.load_state_dict(Bank(5, {"key": 3, "target": 5}).state_dict())
    with pytest.raises(Refusal, match="target"):
        bank.load_state_dict(Bank(7, {"target": 5}).state_dict())
    with pytest.raises(Refusal, match="widths"):
        bank.load_state_dict(Bank(7, {"key": 4, "target": 5}).state_dict())


def test_a_bank_without_rows_is_refused() -> None:
    """Training would go on with a loss of zero."""
    with pytest.raises(Refusal, match=r"--objective.bank-size expected at least 1, got 0"):
        Bank(0, {"key": 3})


def test_rows_that_do_not_go_in_step_are_refused() -> None:
    """One row would be written over a whole batch, or one model's ring would run ahead of the other's."""
    bank = Bank(7, {"key": 3, "target": 5})
    index = torch.arange(4)
    with pytest.raises(ValueError, match="in step"):
        bank.write(index, key=rows_of(index, 3))
    with pytest.raises(ValueError, match="in step"):
        bank.write(index, key=rows_of(index, 3), target=rows_of(index[:1], 5))
    with pytest.raises(ValueError, match="in step"):
        bank.write(index[:1], key=rows_of(index, 3), target=rows_of(index, 5))
    with pytest.raises(ValueError, match="in step"):
        bank.write(index, key=rows_of(index, 1), target=rows_of(index, 5))
    assert bank.filled == 0


def test_written_rows_carry_no_graph() -> None:
    """Memory would grow with every step until the machine has none left."""
    bank = Bank(7, {"key": 3, "target": 5})
    index = torch.arange(4)
    bank.write(index, key=rows_of(index, 3).requires_grad_(), target=rows_of(index, 5))
    assert not bank.anchors("key").requires_grad


KINDS = {"bfloat16": (torch.bfloat16, 4e-3), "int8": (torch.int8, 2.1e-2)}


@pytest.mark.parametrize("kind", KINDS)
@settings(max_examples=25, deadline=None)
@given(size=st.integers(1, 11), batches=st.lists(st.integers(0, 25), max_size=5), seed=st.integers(0, 99))
def test_a_bank_in_fewer_bits_keeps_the_same_rows_rounded(kind: str, size: int, batches: list[int], seed: int) -> None:
    """Half or a quarter of the memory would be paid for with other anchors."""
    dtype, tolerance = KINDS[kind]
    whole, small = (Bank(size, {"key": 3, "target": 5}, dtype=kept) for kept in (torch.float32, dtype))
    draw = torch.Generator().manual_seed(seed)
    for count in batches:
        index = torch.randint(99, (count,), generator=draw)
        rows = {name: normalize(torch.randn(count, width, generator=draw)) for name, width in widths(whole).items()}
        for bank in (whole, small):
            bank.write(index, **rows)
    assert torch.equal(whole.index, small.index)
    for name in ("key", "target"):
        kept = small.anchors(name)
        assert (kept.values if isinstance(kept, Int8Rows) else kept).dtype == dtype
        torch.testing.assert_close(kept.float(), whole.anchors(name), atol=tolerance / 2, rtol=tolerance / 2)


def widths(bank: Bank) -> dict[str, int]:
    return {name: bank.anchors(name).shape[1] for name in ("key", "target")}


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.int8], ids=str)
@pytest.mark.parametrize("written", [4, 7, 11])
def test_a_saved_bank_comes_back_bit_for_bit_in_every_dtype(dtype: torch.dtype, written: int, tmp_path: Path) -> None:
    """A resumed run would continue with other anchors."""
    bank, again = (Bank(7, {"key": 3, "target": 5}, dtype=dtype) for _ in range(2))
    write(bank, torch.arange(written))
    checkpoint.save(tmp_path / "last.ckpt", {"bank": bank}, {})
    checkpoint.load(tmp_path / "last.ckpt", {"bank": again})
    for one in (bank, again):
        write(one, torch.arange(50, 53))
    assert torch.equal(bank.index, again.index)
    for name in ("key", "target"):
        pairs = zip(
            *(part if isinstance(part, Int8Rows) else (part,) for part in (bank.anchors(name), again.anchors(name))),
            strict=True,
        )
        assert all(torch.equal(ours, theirs) for ours, theirs in pairs)


@pytest.mark.parametrize(("saved", "asked"), [(torch.int8, torch.float32), (torch.float32, torch.int8)], ids=str)
def test_a_bank_of_another_kind_is_refused(saved: torch.dtype, asked: torch.dtype) -> None:
    """Integers would be read as rows two hundred times too long."""
    bank = Bank(7, {"key": 3, "target": 5}, dtype=saved)
    write(bank, torch.arange(4))
    with pytest.raises(Refusal, match=r"--objective.bank-dtype"):
        Bank(7, {"key": 3, "target": 5}, dtype=asked).load_state_dict(bank.state_dict())
