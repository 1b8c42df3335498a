"""Locks as two processes of one command, or two commands, meet them."""

from __future__ import annotations

import errno
import fcntl
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import pytest

from compress_ssl.lock import alone, has_locks, lock_name

HOLDER = """
import sys, time
from pathlib import Path
from compress_ssl.lock import alone
with alone(Path(sys.argv[1]), "work") as ours:
    print(ours, flush=True)
    time.sleep(60)
"""


PARENT = """
import fcntl, os, sys
from pathlib import Path
from compress_ssl.lock import alone, lock_name
folder = Path(sys.argv[1])
end, kept = os.pipe()
with alone(folder, "work"):
    waiting = (folder / lock_name("work")).open("a")
    child = os.fork()
    if not child:
        os.close(kept)
        os.read(end, 1)  # until the parent ends
        os._exit(0)
fcntl.flock(waiting, fcntl.LOCK_EX | fcntl.LOCK_NB)
print(os.waitpid(child, os.WNOHANG))
"""


class Waiting:
    """Someone who waits for the work in a thread, at the lock of the file that is there now.

    entered: when it was theirs, and whether they were told so.
    """

    def __init__(self, folder: Path, monkeypatch: pytest.MonkeyPatch):
        self.entered: list[tuple[float, bool]] = []
        flock, asked = fcntl.flock, threading.Event()

        def noted(file: Any, operation: int) -> None:
            if operation == fcntl.LOCK_EX:  # theirs alone waits
                asked.set()
            flock(file, operation)

        def wait() -> None:
            with alone(folder, "work", wait=True) as ours:
                self.entered.append((time.monotonic(), ours))

        monkeypatch.setattr("compress_ssl.lock.fcntl.flock", noted)
        self.thread = threading.Thread(target=wait, daemon=True)
        self.thread.start()
        assert asked.wait(60)

    def still(self) -> float:
        """The time, after a while in which they could begin and did not."""
        time.sleep(0.2)
        assert not self.entered
        return time.monotonic()

    def came_after(self, left: float) -> bool:
        """Whether they were told that it is theirs, and not before that time."""
        self.thread.join(60)
        ((entered, ours),) = self.entered
        return ours and entered >= left


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


def test_children_that_outlive_the_block_do_not_keep_its_lock(tmp_path):
    """After an interruption whoever waited would wait as long as a process that reads images."""
    done = subprocess.run([sys.executable, "-c", PARENT, str(tmp_path)], capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stdout) == (0, "(0, 0)\n"), f"the child is still there: {done.stderr}"


def test_who_waits_comes_after_and_not_beside(tmp_path, monkeypatch):
    """Who waits would begin while the work is still being done."""
    with alone(tmp_path, "work"):
        waiting = Waiting(tmp_path, monkeypatch)
        left = waiting.still()
    assert waiting.came_after(left)


def test_a_file_that_was_removed_meanwhile_locks_nobody_out(tmp_path, monkeypatch):
    """Who had waited at the removed file, and who came to a new one, would both be at the work."""
    with (tmp_path / lock_name("work")).open("a") as old:
        fcntl.flock(old, fcntl.LOCK_EX)
        waiting = Waiting(tmp_path, monkeypatch)
        (tmp_path / lock_name("work")).unlink()
        with alone(tmp_path, "work") as ours:
            assert ours
            fcntl.flock(old, fcntl.LOCK_UN)
            left = waiting.still()
    assert waiting.came_after(left)


def test_a_file_system_without_locks_is_known(tmp_path, monkeypatch):
    """Two commands would train one run, each told that it is alone, and nobody would say so."""
    assert has_locks(tmp_path / "new")
    assert list((tmp_path / "new").iterdir()) == []

    def none(*_: object) -> None:
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr("compress_ssl.lock.fcntl.flock", none)
    assert not has_locks(tmp_path)
    with alone(tmp_path, "work") as ours, alone(tmp_path, "work") as theirs:
        assert (ours, theirs) == (True, True)
