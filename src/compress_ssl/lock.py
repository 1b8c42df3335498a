"""Who is at a piece of work: a lock on a file beside it, which the system drops when its process dies, in any way.

A lock belongs to the opened file, and children that are forked inside the block have it open, too: a process that dies
has died for others once its children are gone.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import IO

WITHOUT = (errno.ENOLCK, errno.ENOSYS, errno.ENOTSUP)  # what a file system that has no locks answers


@contextlib.contextmanager
def alone(folder: Path, name: str, *, wait: bool = False) -> Iterator[bool]:
    """Whether the work of that name is ours: nobody else, here or in another process, is at it.

    It is until the block ends, or the process and its children. On a file system without locks everybody is told yes.

    Args:
        wait: until whoever is at it has ended; then the answer is always yes, and the work perhaps done.
    """
    folder.mkdir(parents=True, exist_ok=True)
    file = folder / lock_name(name)
    while True:
        with file.open("a") as lock:
            try:
                _flock(lock, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
            except BlockingIOError:
                yield False
                return
            if not _lies_there(lock, file):
                continue  # who had it has removed it: a third one may hold a new file of this name
            try:
                yield True
            finally:
                file.unlink(missing_ok=True)
                _flock(lock, fcntl.LOCK_UN)  # a child that is still there would keep it
            return


def has_locks(folder: Path) -> bool:
    """Whether the file system of the folder has locks, and `alone` can tell two processes apart there."""
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryFile(dir=folder) as file:
        return _flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)


def lock_name(name: str) -> str:
    """What the file of a lock is called."""
    return f".{name}.lock"


def _flock(file: IO, operation: int) -> bool:
    """Whether the file system has locks; with them it is done.

    Raises: BlockingIOError if somebody else has it, and `operation` does not wait.
    """
    try:
        fcntl.flock(file, operation)
    except OSError as trouble:
        if trouble.errno not in WITHOUT:
            raise
        return False
    return True


def _lies_there(lock: IO[str], file: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(lock.fileno()), file.stat())
    except FileNotFoundError:
        return False
