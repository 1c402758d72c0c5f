"""One training at a time in a log_dir: two would drop each other's checkpoints and write into one events file.

The lock is the process's own (fcntl record lock on a hidden file): it goes when the process goes, however that ends,
and processes that it forked do not hold it.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import threading
from collections.abc import Iterator

from moxserve.errors import UsageError

__all__ = ["LOCK_FILE", "held"]

LOCK_FILE = ".moxserve-training"

# A record lock does not keep out the process that has it.
_here: set[str] = set()
_guard = threading.Lock()


def _refusal(folder: str, who: str) -> UsageError:
    return UsageError(
        f"log_dir={folder!r}: {who} is training into it", hint="wait for it or stop it, or choose another log_dir"
    )


@contextlib.contextmanager
def held(folder: str) -> Iterator[None]:
    """Hold the lock of a folder, which is made if missing.

    Raises:
        UsageError: another run has it, or the folder cannot be made.
    """
    try:
        os.makedirs(folder, exist_ok=True)
    except OSError as error:
        raise UsageError(f"log_dir={folder!r} cannot be a folder for checkpoints: {error}") from error
    real = os.path.realpath(folder)
    with _guard:
        if real in _here:
            raise _refusal(folder, "another run of this process")
        _here.add(real)
    try:
        with open(os.path.join(real, LOCK_FILE), "a+") as file:
            _lock(file.fileno(), folder)
            file.truncate(0)
            file.write(f"{os.getpid()}\n")
            file.flush()
            yield
    finally:
        with _guard:
            _here.discard(real)


def _lock(descriptor: int, folder: str) -> None:
    try:
        fcntl.lockf(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except (BlockingIOError, PermissionError):
        pid = os.pread(descriptor, 20, 0).decode(errors="replace").strip()
        raise _refusal(folder, f"process {pid}" if pid else "another process") from None
    except OSError:
        # A file system without locks: better no lock than no training.
        return
