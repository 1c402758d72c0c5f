"""A file that says that a cache is in use: each process that uses the cache holds its lock, shared, and the last one
removes the cache, and the file with it.
"""

from __future__ import annotations

import fcntl
import os

__all__ = ["hold"]


def hold(path: str) -> int:
    """Hold the lock of a file, shared; where the disk has no locks the file is only opened.

    Args:
        path: made if missing, with its folder.

    Returns:
        The descriptor, which holds the lock until it is closed.

    Raises:
        OSError: the file cannot be opened.
    """
    while True:
        os.makedirs(os.path.dirname(path), exist_ok=True)
        try:
            descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
        except FileNotFoundError:  # whoever removes the cache has removed the folder meanwhile
            continue
        try:
            fcntl.flock(descriptor, fcntl.LOCK_SH)
        except OSError:
            return descriptor
        if _is_at(path, descriptor):
            return descriptor
        os.close(descriptor)  # it was waited for until the cache was removed: this is another one


def _is_at(path: str, descriptor: int) -> bool:
    try:
        return os.path.samestat(os.stat(path), os.fstat(descriptor))
    except FileNotFoundError:
        return False
