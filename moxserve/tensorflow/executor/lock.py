"""One training at a time in a log_dir: two would drop each other's checkpoints and write into one events file. And how
that training went, for whoever watches the folder: it is going on, or has ended.

The lock is the process's own (fcntl record lock on a hidden file): it goes when the process goes, however that ends,
and processes that it forked do not hold it.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import threading
from collections.abc import Callable, Iterator
from typing import IO

from moxserve.errors import UsageError

__all__ = ["LOCK_FILE", "Held", "ended_at", "held"]

LOCK_FILE = ".moxserve-training"

# A record lock does not keep out the process that has it.
_here: set[str] = set()
_guard = threading.Lock()


_ENDED = "ended at step "


class Held:
    """The lock of a folder, as long as it is held.

    Args:
        file: that is locked.
        told: called when the file says something else.
    """

    def __init__(self, file: IO[str], told: Callable[[], None]) -> None:
        self._file, self._told = file, told
        self._file.truncate(0)
        self._say(f"{os.getpid()}\n")

    def ended(self, step: int) -> None:
        """Say that the training has come to its end, which a crash or a signal is not."""
        self._say(f"{_ENDED}{step}\n")

    def _say(self, text: str) -> None:
        self._file.write(text)
        self._file.flush()
        self._told()


def ended_at(folder: str) -> int | None:
    """Return the step that the last training into a folder ended at; None while it is going on, and after a crash."""
    try:
        with open(os.path.join(folder, LOCK_FILE), encoding="utf-8") as file:
            last = file.read().rpartition(_ENDED)
    except FileNotFoundError:
        return None
    return int(last[2]) if last[1] and last[2].strip().isdecimal() else None


def _refusal(folder: str, who: str) -> UsageError:
    return UsageError(
        f"log_dir={folder!r}: {who} is training into it", hint="wait for it or stop it, or choose another log_dir"
    )


@contextlib.contextmanager
def held(folder: str, told: Callable[[], None] = lambda: None) -> Iterator[Held]:
    """Hold the lock of a folder, which is made if missing.

    Args:
        folder: of checkpoints.
        told: called when its file says something else of how the training goes.

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
            yield Held(file, told)
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
