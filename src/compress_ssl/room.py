"""What is free here: disk, memory, the GPU's memory; in bytes."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import torch

_CGROUP = Path("/sys/fs/cgroup")


def free_disk(path: Path) -> int:
    """Free for this user on the disk of a path, which need not exist yet."""
    path = path.absolute()
    while not path.exists():
        path = path.parent
    return shutil.disk_usage(path).free


def free_memory() -> int | None:
    """Memory that can be had without swapping, also within a container's limit; None where nobody says."""
    found = [_available(), _left_in_container()]
    known = [value for value in found if value is not None]
    return min(known) if known else None


def free_on_device(device: torch.device) -> int | None:
    """Memory that is free on a GPU; None for any other device."""
    return torch.cuda.mem_get_info(device)[0] if device.type == "cuda" else None


def _available() -> int | None:
    try:
        lines = Path("/proc/meminfo").read_text().splitlines()
        return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable:"))
    except (OSError, StopIteration, ValueError):
        try:
            return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
        except (ValueError, OSError, AttributeError):
            return None


def _left_in_container() -> int | None:
    try:
        limit = int((_CGROUP / "memory.max").read_text())  # "max": no limit
        used = int((_CGROUP / "memory.current").read_text())
        stat = dict(line.split() for line in (_CGROUP / "memory.stat").read_text().splitlines())
        return max(0, limit - used + int(stat.get("inactive_file", 0)))  # cached files make room
    except (OSError, ValueError):
        return None
