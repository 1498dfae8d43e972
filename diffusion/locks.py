"""Folders that one process at a time writes to."""

import contextlib
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any


@contextlib.contextmanager
def held(file: Path) -> Iterator[None]:
    """Keeps the folder of the lock file for this process; ValueError where another one trains there.

    The system frees the lock when a process ends, however it ends; the file stays.
    """
    with open(file, "a") as opened:
        for attempt in range(10):  # a question whether it is held holds it for a moment
            if _lock(opened):
                break
            if attempt == 9:
                raise ValueError(f"{file.parent} is being trained by another process; wait for it, or stop it first.")
            time.sleep(0.1)
        yield


def is_held(file: Path) -> bool:
    """Whether a process holds the lock file now."""
    try:
        with open(file) as opened:
            return not _lock(opened)
    except OSError:
        return False


def _lock(file: Any) -> bool:
    """Whether this process has the lock now; a file system without locks (or Windows) gives it to everybody."""
    try:
        import fcntl

        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except (ImportError, OSError):
        pass
    return True
