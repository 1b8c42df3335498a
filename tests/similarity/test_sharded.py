"""A bank spread over processes against the whole bank in one. Run as a program, this file is one of the processes."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import Tensor, distributed
from torch.nn import functional

from compress_ssl.bank import Bank
from compress_ssl.quantised import Int8Rows
from compress_ssl.similarity import anchor_kl

BATCH, WIDTH, TARGET_WIDTH, SIZE, STEPS = 12, 23, 37, 61, 9  # 12 images divide among 1, 2 and 4; 61 rows do not


def steps(rank: int, ranks: int, group, *, temperature: float, dtype: torch.dtype) -> list[tuple[Tensor, Tensor]]:
    """Losses and gradients of this process's part of some batches, over a bank that fills and wraps."""
    computed = torch.float64 if dtype == torch.float64 else torch.float32

    def unit(count: int, width: int, *, seed: int) -> Tensor:
        rows = torch.randn(count, width, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
        return functional.normalize(rows).to(computed)

    bank = Bank(SIZE, {"key": WIDTH, "target": TARGET_WIDTH}, group=group, dtype=dtype)
    mine, found = slice(rank * BATCH // ranks, (rank + 1) * BATCH // ranks), []
    for step in range(STEPS):
        query, target = unit(BATCH, WIDTH, seed=3 * step), unit(BATCH, TARGET_WIDTH, seed=3 * step + 1)
        index = (torch.arange(BATCH) * 5 + step) % 47
        leaf = query[mine].clone().requires_grad_()
        loss = anchor_kl(
            leaf, bank.anchors("key"), target[mine], bank.anchors("target"), temperature=temperature, index=index[mine],
            anchor_index=bank.index, own=(target[mine, :WIDTH], target[mine]) if step % 2 else None, group=group,
        )  # fmt: skip
        loss.backward()
        found.append((loss.detach(), leaf.grad))
        bank.write(index, key=unit(BATCH, WIDTH, seed=3 * step + 2), target=target)
    state = bank.state_dict()
    if rank == 0:
        alone = Bank(SIZE, {"key": WIDTH, "target": TARGET_WIDTH}, dtype=dtype)
        alone.load_state_dict(state)
        found.append((alone.index.clone(), _floats(alone.anchors("key"))))
    return found


def _floats(rows: Tensor | Int8Rows) -> Tensor:
    return rows.float() if isinstance(rows, Int8Rows) else rows.clone()


def program(folder: Path, rank: int, ranks: int, temperature: float, dtype: str) -> None:
    distributed.init_process_group("gloo", init_method=f"file://{folder / 'meeting'}", rank=rank, world_size=ranks)
    group = distributed.group.WORLD
    torch.save(steps(rank, ranks, group, temperature=temperature, dtype=getattr(torch, dtype)), folder / f"{rank}.pt")
    distributed.destroy_process_group()


# 0.04: a constant offset, 0.01: running maxima, which float32 would hide behind the rounding of similarities / 0.01
@pytest.mark.parametrize(
    ("temperature", "dtype", "tolerance"), [(0.04, "float32", 1e-6), (0.04, "int8", 1e-6), (0.01, "float64", 1e-13)]
)
@pytest.mark.parametrize("ranks", [1, 2, 4])
def test_a_spread_bank_gives_loss_gradient_and_state_of_a_whole_one(
    ranks: int, temperature: float, dtype: str, tolerance: float, tmp_path: Path
) -> None:
    """A bank too large for one device would train another student, or could not be resumed on fewer devices."""
    command = [sys.executable, __file__, str(tmp_path)]
    processes = [
        subprocess.Popen(
            [*command, str(rank), str(ranks), str(temperature), dtype], env={**os.environ, "OMP_NUM_THREADS": "1"}
        )
        for rank in range(ranks)
    ]
    assert [process.wait(timeout=120) for process in processes] == [0] * ranks
    found = [torch.load(tmp_path / f"{rank}.pt", weights_only=True) for rank in range(ranks)]
    expected = steps(0, 1, None, temperature=temperature, dtype=getattr(torch, dtype))
    for step in range(STEPS):
        losses, gradients = zip(*(part[step] for part in found), strict=True)
        loss, gradient = expected[step]
        assert float(torch.stack(losses).mean()) == pytest.approx(float(loss), rel=tolerance, abs=tolerance)
        # each process averages over its own queries: the mean over processes is the whole batch's
        together = torch.cat(gradients) / ranks
        assert float((together - gradient).norm()) <= tolerance * float(gradient.norm())
    torch.testing.assert_close(found[0][STEPS], expected[STEPS])


if __name__ == "__main__":
    torch.set_num_threads(1)
    program(Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]), float(sys.argv[4]), sys.argv[5])
