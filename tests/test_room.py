"""What is free."""

from __future__ import annotations

import shutil

import torch

from compress_ssl import room


def test_room_on_the_disk_of_a_path_that_is_not_there_yet(tmp_path):
    """The table's folder is made by `embed`, later."""
    free = room.free_disk(tmp_path / "not" / "yet")
    assert abs(free - shutil.disk_usage(tmp_path).free) < 2**28


def test_a_containers_limit_counts(tmp_path, monkeypatch):
    """The machine has 512 GB, the job may have 8: the rest kills it."""
    monkeypatch.setattr(room, "_CGROUP", tmp_path)
    without = room.free_memory()
    (tmp_path / "memory.max").write_text("8000\n")
    (tmp_path / "memory.current").write_text("5000\n")
    (tmp_path / "memory.stat").write_text("anon 4000\ninactive_file 700\n")
    assert room.free_memory() == 3700
    (tmp_path / "memory.max").write_text("max\n")
    assert without is None or room.free_memory() > 3700


def test_only_a_gpu_has_memory_of_its_own():
    """A CPU's memory would be counted twice."""
    assert room.free_on_device(torch.device("cpu")) is None
