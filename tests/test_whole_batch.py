"""The batch of two processes against the same batch in one. Run as a program, this file is one of the processes."""

from __future__ import annotations

import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, distributed
from torch.nn import functional

from compress_ssl import objectives
from compress_ssl.objectives import compress
from compress_ssl.refusal import Refusal
from compress_ssl.whole_batch import refuse_parts, whole

BATCH, WIDTH, TARGET_WIDTH = 10, 5, 9


def make(config: Any, group: distributed.ProcessGroup | None = None) -> Any:
    width = TARGET_WIDTH if objectives.space_of(config) == "teacher" else WIDTH
    objective = objectives.find(config.name).Objective(
        config, width=width, target_width=TARGET_WIDTH, images=23, group=group
    )
    if objective.temperature == "auto":
        objective.temperature = 0.07  # before the first step it is a number
    return objective


def within_batch() -> dict[str, Any]:
    """Name -> configuration of every objective that compares the images of a batch; the default over a spread bank."""
    configs = {name: objectives.find(name).Config() for name in objectives.names()}
    found = {name: config for name, config in configs.items() if getattr(make(config), "within_batch", False)}
    assert "compress" in found
    spread = replace(configs["compress"], bank_processes="sharded", own_anchor="compared", centre="mean")
    return found | {"compress, its bank spread": spread}


def step(config: Any, rank: int, ranks: int, group: distributed.ProcessGroup | None) -> list[Tensor]:
    """Loss, and the gradients of this process's rows and of the objective's own head, for its part of a batch."""
    objective = make(config, group)

    def unit(count: int, width: int, *, seed: int) -> Tensor:
        return functional.normalize(torch.randn(count, width, generator=torch.Generator().manual_seed(seed)))

    width, index = TARGET_WIDTH if objective.space == "teacher" else WIDTH, torch.arange(BATCH)
    objective.update(unit(7, width, seed=3), unit(7, TARGET_WIDTH, seed=4), torch.arange(7))
    mine = slice(rank * BATCH // ranks, (rank + 1) * BATCH // ranks)
    query = unit(BATCH, width, seed=1)[mine].clone().requires_grad_()
    loss = objective(query, unit(BATCH, TARGET_WIDTH, seed=2)[mine], index[mine])
    loss.backward()
    assert query.grad is not None
    head = [parameter.grad for parameter in getattr(objective, "trained", torch.nn.Module()).parameters()]
    return [loss.detach(), query.grad, *head]


def program(folder: Path, rank: int, ranks: int) -> None:
    distributed.init_process_group("gloo", init_method=f"file://{folder / 'meeting'}", rank=rank, world_size=ranks)
    found = {name: step(one, rank, ranks, distributed.group.WORLD) for name, one in within_batch().items()}
    torch.save(found, folder / f"{rank}")
    distributed.destroy_process_group()


def test_two_processes_make_the_step_of_one(tmp_path: Path) -> None:
    """With more devices each would compare fewer images, and train another student."""
    command = [sys.executable, __file__, str(tmp_path)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    processes = [subprocess.Popen([*command, str(rank), "2"], env=environment) for rank in range(2)]
    assert [process.wait(timeout=120) for process in processes] == [0, 0]
    found = [torch.load(tmp_path / str(rank), weights_only=True) for rank in range(2)]
    for name, config in within_batch().items():
        loss, gradient, *head = step(config, 0, 1, None)
        losses, gradients, *heads = zip(*(part[name] for part in found), strict=True)
        close = {"rtol": 1e-4, "atol": 1e-6 * float(gradient.abs().max())}
        torch.testing.assert_close(torch.stack(losses).mean(), loss, rtol=1e-5, atol=1e-7, msg=name)
        # the gradients of both are averaged, as those of the student's weights are
        torch.testing.assert_close(torch.cat(gradients) / 2, gradient, **close, msg=name)
        for parts, alone in zip(heads, head, strict=True):
            largest = max(float(one.abs().max()) for one in head)  # a bias before batch norm has none but rounding
            close = {"rtol": 1e-4, "atol": 1e-6 * largest}
            torch.testing.assert_close(torch.stack(parts).mean(dim=0), alone, **close, msg=name)


def test_rows_of_one_process_are_its_own_in_float32_at_least() -> None:
    """Squares of small differences would be zero under --precision bf16-mixed; float64 truth would be rounded."""
    for given, kept in ((torch.bfloat16, torch.float32), (torch.float64, torch.float64)):
        rows = torch.ones(3, 5, dtype=given)
        assert torch.equal(whole(rows, None), rows.to(kept))
        assert whole(rows, None).dtype == kept


def test_parts_of_a_batch_whose_images_are_compared_are_refused() -> None:
    """`--accumulate 4` would compare a quarter of the images, and say nothing."""
    one = SimpleNamespace(within_batch=True, config=SimpleNamespace(name="sp"))
    refuse_parts([one], accumulate=1)
    refuse_parts([SimpleNamespace(config=one.config)], accumulate=4)
    with pytest.raises(Refusal, match=r"--accumulate expected 1 with --objective sp, .* got 4: lower --batch-size"):
        refuse_parts([one], accumulate=4)
    default, alone = (make(compress.Config(regression=weight)) for weight in (4.0, 0.0))
    refuse_parts([alone], accumulate=4)
    with pytest.raises(Refusal, match=r"lower --batch-size instead, or --objective.regression 0$"):
        refuse_parts([default], accumulate=4)


if __name__ == "__main__":
    torch.set_num_threads(1)
    program(Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]))
