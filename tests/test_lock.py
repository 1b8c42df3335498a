"""Locks as two processes of one command, or two commands, meet them."""

from __future__ import annotations

import fcntl
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from compress_ssl.lock import alone, lock_name

HOLDER = """
import sys, time
from pathlib import Path
from compress_ssl.lock import alone
with alone(Path(sys.argv[1]), "work") as ours:
    print(ours, flush=True)
    time.sleep(60)
"""


def waiting(folder: Path) -> tuple[threading.Thread, list[float]]:
    """Someone who waits for the work, and when it was theirs; started, and surely at the lock."""
    entered: list[float] = []

    def wait() -> None:
        with alone(folder, "work", wait=True) as ours:
            assert ours
            entered.append(time.monotonic())

    thread = threading.Thread(target=wait, daemon=True)
    thread.start()
    time.sleep(0.2)
    return thread, entered


def test_one_has_the_work_until_the_block_ends_and_leaves_nothing(tmp_path):
    """Two processes would train one run, each over the other's checkpoints."""
    with alone(tmp_path, "work") as ours, alone(tmp_path, "work") as theirs, alone(tmp_path, "other") as free:
        assert (ours, theirs, free) == (True, False, True)
    assert list(tmp_path.iterdir()) == []
    with pytest.raises(KeyError), alone(tmp_path, "work"):
        raise KeyError
    with alone(tmp_path, "work") as ours:
        assert ours


def test_of_a_process_that_is_killed_nothing_stays_locked(tmp_path):
    """After a kill the same command would wait for ever."""
    holder = subprocess.Popen([sys.executable, "-c", HOLDER, str(tmp_path)], stdout=subprocess.PIPE, text=True)
    assert holder.stdout is not None
    assert holder.stdout.readline() == "True\n"
    with alone(tmp_path, "work") as ours:
        assert not ours
    holder.kill()
    holder.wait()
    assert (tmp_path / lock_name("work")).exists(), "the file stays, the lock does not"
    with alone(tmp_path, "work") as ours:
        assert ours


def test_who_waits_comes_after_and_not_beside(tmp_path):
    """Who waits would begin while the work is still being done."""
    with alone(tmp_path, "work"):
        thread, entered = waiting(tmp_path)
        left = time.monotonic()
        assert not entered
    thread.join(10)
    assert entered[0] >= left


def test_a_file_that_was_removed_meanwhile_locks_nobody_out(tmp_path):
    """Who had waited at the removed file, and who came to a new one, would both be at the work."""
    with (tmp_path / lock_name("work")).open("a") as old:
        fcntl.flock(old, fcntl.LOCK_EX)
        thread, entered = waiting(tmp_path)
        (tmp_path / lock_name("work")).unlink()
        with alone(tmp_path, "work") as ours:
            assert ours
            fcntl.flock(old, fcntl.LOCK_UN)
            time.sleep(0.2)
            assert not entered
    thread.join(10)
    assert len(entered) == 1
