"""Who is at a piece of work: a lock on a file beside it, which the system drops when its process dies, in any way."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
from collections.abc import Iterator
from pathlib import Path
from typing import IO


@contextlib.contextmanager
def alone(folder: Path, name: str, *, wait: bool = False) -> Iterator[bool]:
    """Whether the work of that name is ours: nobody else, here or in another process, is at it.

    It is until the block ends, or the process. On a file system without locks everybody is told yes.

    Args:
        wait: until whoever is at it has ended; then the answer is always yes, and the work perhaps done.
    """
    folder.mkdir(parents=True, exist_ok=True)
    file = folder / lock_name(name)
    while True:
        with file.open("a") as lock:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
            except BlockingIOError:
                yield False
                return
            except OSError as trouble:
                if trouble.errno not in (errno.ENOLCK, errno.ENOSYS, errno.ENOTSUP):
                    raise
            if not _lies_there(lock, file):
                continue  # who had it has removed it: a third one may hold a new file of this name
            try:
                yield True
            finally:
                file.unlink(missing_ok=True)
            return


def lock_name(name: str) -> str:
    """What the file of a lock is called."""
    return f".{name}.lock"


def _lies_there(lock: IO[str], file: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(lock.fileno()), file.stat())
    except FileNotFoundError:
        return False
