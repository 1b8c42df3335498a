"""Where a training runs: what is asked for is there, and as many processes as their launcher says."""

from __future__ import annotations

from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
from lightning.fabric.plugins.environments import SLURMEnvironment

from compress_ssl import hardware
from compress_ssl.hardware import HardwareConfig, Standing, launch, standing
from compress_ssl.refusal import Refusal

HARDWARE = HardwareConfig(accelerator="cpu", precision="32", workers=0)


def test_hardware_that_is_not_there_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """A traceback of the driver does not say which option asked for it."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(Refusal, match="--accelerator cuda"):
        launch(replace(HARDWARE, accelerator="cuda"), 0)
    with pytest.raises(Refusal, match="--devices"):
        launch(replace(HARDWARE, devices=0), 0)


def test_torchrun_decides_the_number_of_processes(monkeypatch: pytest.MonkeyPatch) -> None:
    """With --devices left at 1, each process of torchrun would train alone and write the same folder."""
    for name, value in {"LOCAL_WORLD_SIZE": 4, "WORLD_SIZE": 8, "RANK": 5, "LOCAL_RANK": 1, "GROUP_RANK": 1}.items():
        monkeypatch.setenv(name, str(value))
    assert hardware._processes(HARDWARE) == (1, 1), "these names alone are not torchrun's"
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "none")
    assert hardware._processes(HARDWARE) == (4, 2)


def test_work_is_shared_out_as_the_launcher_says(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each of eight processes would embed everything, on the first GPU."""
    for name in ("TORCHELASTIC_RUN_ID", "SLURM_NTASKS"):
        monkeypatch.delenv(name, raising=False)
    for name, value in {"LOCAL_WORLD_SIZE": 4, "WORLD_SIZE": 8, "RANK": 5, "LOCAL_RANK": 1, "GROUP_RANK": 1}.items():
        monkeypatch.setenv(name, str(value))
    assert standing() == (0, 1, 0), "these names alone are not torchrun's"
    with monkeypatch.context() as patch:
        patch.setenv("TORCHELASTIC_RUN_ID", "none")
        assert standing() == Standing(rank=5, ranks=8, local_rank=1)
    slurm = {"NTASKS": 6, "NNODES": 2, "PROCID": 0, "LOCALID": 0, "JOB_NAME": "embed"}
    for name, value in slurm.items():
        monkeypatch.setenv(f"SLURM_{name}", str(value))
    assert standing() == Standing(), "a batch script without srun is one process of one"
    for name, value in {"STEP_NUM_TASKS": 6, "PROCID": 4, "LOCALID": 2}.items():
        monkeypatch.setenv(f"SLURM_{name}", str(value))
    assert standing() == Standing(rank=4, ranks=6, local_rank=2)
    monkeypatch.setenv("SLURM_JOB_NAME", "bash")  # a shell on the cluster, and no srun
    assert standing() == Standing()


def test_srun_without_tasks_per_node_is_understood(monkeypatch: pytest.MonkeyPatch) -> None:
    """`srun -n 4` sets no such number, and Lightning ends in a traceback without it."""
    monkeypatch.delenv("TORCHELASTIC_RUN_ID", raising=False)
    monkeypatch.setenv("SLURM_NTASKS_PER_NODE", "9")  # so that it is taken back after the test
    monkeypatch.delenv("SLURM_NTASKS_PER_NODE")
    for name, value in {"NTASKS": "4", "NNODES": "2", "PROCID": "0", "LOCALID": "0", "JOB_NAME": "distill"}.items():
        monkeypatch.setenv(f"SLURM_{name}", value)
    with pytest.raises(RuntimeError, match="--ntasks=4"):
        SLURMEnvironment()

    class Seen(Exception):
        pass

    def fabric(**given: object) -> None:
        SLURMEnvironment()  # as Lightning does
        raise Seen(given["devices"], given["num_nodes"])

    monkeypatch.setattr("lightning.fabric.Fabric", fabric)
    with pytest.raises(Seen) as seen:
        launch(HARDWARE, 0)
    assert seen.value.args == (2, 2)


def test_a_process_left_behind_is_ended() -> None:
    """After an error in the first process the others would keep their accelerators until someone looks."""
    told = SimpleNamespace(killed=False)

    class Hanging:
        def wait(self, timeout: float) -> None:
            raise hardware.subprocess.TimeoutExpired("rank 1", timeout)

        def kill(self) -> None:
            told.killed = True

    hardware._see_off(Hanging())  # type: ignore[arg-type]
    assert told.killed


def test_emulated_bf16_is_told_and_lightnings_own_line_is_not(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    """People ask for bf16 to be quicker; on most processors it is several times slower, in silence."""
    caplog.set_level("INFO")
    for fast, told in ((False, "--precision bf16 is emulated, several times slower"), (True, "")):
        monkeypatch.setattr(hardware, "has_fast_bf16", lambda _, fast=fast: fast)
        launch(replace(HARDWARE, precision="bf16"), 0)
        seen = capfd.readouterr()
        assert told in seen.err
        assert bool(told) == ("emulated" in seen.err)
        assert "bfloat16 Automatic" not in seen.err + seen.out + caplog.text
