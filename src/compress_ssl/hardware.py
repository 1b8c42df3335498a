"""Where a training runs: the configured device, precision and processes -> Fabric, every process started and seeded."""

from __future__ import annotations

import atexit
import contextlib
import logging
import os
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import timedelta
from typing import TYPE_CHECKING, Literal, NamedTuple

import torch
from lightning_utilities.core import rank_zero

from compress_ssl.device import has_fast_bf16
from compress_ssl.refusal import Refusal

if TYPE_CHECKING:  # it brings torchmetrics along, 5 s of processor time, which only a training should wait for
    from lightning.fabric import Fabric

PATIENCE = timedelta(days=1)  # of processes that wait while the first one embeds or scores; torch's is 10 to 30 minutes


LIGHTNINGS_PRECISION = "Using bfloat16 Automatic Mixed Precision"


@dataclass(frozen=True, kw_only=True)
class HardwareConfig:
    """Where the training runs."""

    accelerator: Literal["auto", "cpu", "cuda", "mps"] = "auto"
    devices: int = 1  # processes on this machine; with torchrun or SLURM their own count is used
    nodes: int = 1  # machines
    precision: Literal["auto", "32", "bf16"] = "auto"  # auto: bf16 where the hardware multiplies it natively
    compile: Literal["auto", "on", "off"] = "auto"  # torch.compile; auto: on a GPU, if measured to pay in this run
    workers: int | None = None  # processes that read images; None: one a core but one, eight at most


def launch(config: HardwareConfig, seed: int) -> Fabric:
    """Fabric on the configured hardware, all processes started and seeded alike."""
    from lightning import fabric as lightning
    from lightning.fabric.strategies import DDPStrategy

    accelerator = config.accelerator
    if accelerator == "auto":
        accelerator = "cuda" if torch.cuda.is_available() else "cpu"
    if accelerator == "cuda" and not torch.cuda.is_available():
        raise Refusal("--accelerator cuda expected an NVIDIA device, got none that torch sees: use cpu")
    if accelerator == "mps" and not torch.backends.mps.is_available():
        raise Refusal("--accelerator mps expected an Apple device, got none that torch sees: use cpu")
    if config.devices < 1:
        raise Refusal(f"--devices expected at least 1, got {config.devices}: raise it")
    bf16 = config.precision == "bf16" or (config.precision == "auto" and has_fast_bf16(torch.device(accelerator)))
    if config.precision == "bf16" and accelerator == "cpu" and not has_fast_bf16(torch.device("cpu")):
        _tell_once("this processor has no bf16 of its own: --precision bf16 is emulated, several times slower than "
                   "--precision 32")  # fmt: skip
    devices, nodes = _processes(config)
    if seed < 0:
        raise Refusal(f"--seed expected 0 or more, got {seed}: choose another")
    if accelerator == "cuda":  # the same losses again, also after a resumption, cost some speed
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
        torch.backends.cudnn.deterministic, torch.backends.cudnn.benchmark = True, False
    if _by_slurm() and "SLURM_NTASKS_PER_NODE" not in os.environ:
        os.environ["SLURM_NTASKS_PER_NODE"] = str(devices)  # `srun -n 4` does not set it, and Lightning asks for it
    with _without(LIGHTNINGS_PRECISION):
        fabric = lightning.Fabric(
            accelerator=accelerator,
            devices=devices,
            num_nodes=nodes,
            strategy=DDPStrategy(timeout=PATIENCE) if devices * nodes > 1 else "auto",
            precision="bf16-mixed" if bf16 else "32-true",
        )
    fabric.launch()
    for process in getattr(fabric.strategy.launcher, "procs", ()):
        atexit.register(_see_off, process)
    fabric.seed_everything(seed, workers=False, verbose=False)
    return fabric


def _processes(config: HardwareConfig) -> tuple[int, int]:
    """Processes on a machine and machines: as torchrun or SLURM started them, else as configured."""
    if _by_torchrun():
        devices = int(os.environ["LOCAL_WORLD_SIZE"])
        return devices, int(os.environ["WORLD_SIZE"]) // devices
    if _by_slurm():
        nodes = int(os.environ.get("SLURM_NNODES", "1"))
        return int(os.environ["SLURM_NTASKS"]) // nodes, nodes
    return config.devices, config.nodes


def _by_torchrun() -> bool:
    return torch.distributed.is_available() and torch.distributed.is_torchelastic_launched()


def _by_slurm() -> bool:
    """As Lightning tells a job from an interactive shell."""
    if "SLURM_NTASKS" not in os.environ:
        return False
    from lightning.fabric.plugins.environments import SLURMEnvironment

    return SLURMEnvironment.detect()


class Standing(NamedTuple):
    """Which of several processes this one is, as torchrun or SLURM started it."""

    rank: int = 0
    ranks: int = 1
    local_rank: int = 0  # among those of this machine: the number of its GPU


def standing() -> Standing:
    """Of this process; for work that is shared out and needs no messages between the processes.

    Under SLURM only `srun` makes several: a batch script by itself is one process, however many tasks its job has.
    """
    if _by_torchrun():
        names = ("RANK", "WORLD_SIZE", "LOCAL_RANK")
    elif _by_slurm() and "SLURM_STEP_NUM_TASKS" in os.environ:
        names = ("SLURM_PROCID", "SLURM_STEP_NUM_TASKS", "SLURM_LOCALID")
    else:
        return Standing()
    return Standing(*(int(os.environ[name]) for name in names))


def _tell_once(told: str) -> None:
    """On stderr; of several processes only one says it."""
    if os.environ.get("RANK", os.environ.get("SLURM_PROCID", os.environ.get("LOCAL_RANK", "0"))) == "0":
        print(told, file=sys.stderr)


@contextlib.contextmanager
def _without(beginning: str) -> Iterator[None]:
    """Lightning's log without its lines that begin like this."""
    log = rank_zero.log  # fabric's, or of Lightning's other half once that is imported

    def others(record: logging.LogRecord) -> bool:
        return not record.getMessage().startswith(beginning)

    log.addFilter(others)
    try:
        yield
    finally:
        log.removeFilter(others)


def _see_off(process: subprocess.Popen) -> None:
    """At the end of the first process: one that still waits for it in a collective would wait for a day."""
    try:
        process.wait(timeout=10)
    except subprocess.TimeoutExpired:
        process.kill()
