"""The local cache of a raw data set: where it is, who uses it, and when it goes.

    <cache_dir>/<name of base_dir>-<hash of base_dir>/bytes/      encoded files, see moxserve.images.cache
                                                     /decoded/    decoded images
                                                     /<one of the two>-in-use.lock

Data sets of one process that read the same folder share its cache: the one that is done with it last removes it,
unless one of them is to keep it. Processes share it too, as `moxserve.images.pack` says: each holds the lock, shared,
and one that is done while another still has it leaves the cache to that.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import os
import threading
import weakref
from collections import deque
from dataclasses import dataclass

from moxserve.errors import DataError
from moxserve.images.cache import BytesCache, DecodedCache
from moxserve.tensorflow.datasets.in_use import hold
from moxserve.tensorflow.datasets.raw.storage import read_file

__all__ = ["Cache", "open_cache"]

Cache = BytesCache | DecodedCache

_lock = threading.Lock()


@dataclass
class _Shared:
    cache: Cache
    lock: int | None
    users: int = 0
    keep: bool = False


_open: dict[tuple[str, bool], _Shared] = {}
# Caches that lost an owner, once for each, until somebody has taken note of it.
_given_up: deque[tuple[str, bool]] = deque()


def open_cache(owner: object, cache_dir: str, base_dir: str, decoded: bool, remove: bool) -> Cache:
    """Open the cache of a data set, for as long as an object lives; at the latest until the process ends.

    Args:
        owner: the object.
        cache_dir: a local folder, made if missing.
        base_dir: the data set.
        decoded: keep decoded images instead of encoded files.
        remove: remove the cache when the last owner is gone.

    Raises:
        DataError: the folder cannot be made.
    """
    digest = hashlib.sha256(base_dir.encode("utf-8", "surrogateescape")).hexdigest()[:12]
    folder = os.path.join(os.path.abspath(cache_dir), f"{os.path.basename(base_dir)}-{digest}")
    key = (folder, decoded)
    with _lock:
        shared = _open.get(key)
        if shared is None:
            try:
                shared = _open[key] = _made(key)
            except OSError as error:
                raise DataError(f"cache_dir {cache_dir!r} cannot be used: {error}") from error
        shared.users += 1
        shared.keep |= not remove
    weakref.finalize(owner, _release, key, os.getpid())
    _settle()
    return shared.cache


def _made(key: tuple[str, bool]) -> _Shared:
    folder, decoded = key
    lock = _hold(key)  # first, so that nobody removes what is made next
    try:
        return _Shared(DecodedCache(folder) if decoded else BytesCache(folder, fetch=read_file), lock)
    except OSError:
        if lock is not None:
            os.close(lock)
        raise


def _release(key: tuple[str, bool], owner: int) -> None:
    if os.getpid() == owner:  # else a forked child ends
        _given_up.append(key)
        _settle()


def _settle() -> None:
    """Take note of the owners that are gone. Garbage is collected at any moment, also while this thread has the lock:
    whoever has it comes here when it is free again.
    """
    while _given_up and _lock.acquire(blocking=False):
        unused: list[tuple[tuple[str, bool], _Shared]] = []
        try:
            while _given_up:
                key = _given_up.popleft()
                _open[key].users -= 1
                if not _open[key].users:
                    unused.append((key, _open.pop(key)))
        finally:
            _lock.release()
        for key, shared in unused:
            _end(key, shared)


def _end(key: tuple[str, bool], shared: _Shared) -> None:
    try:
        if shared.keep or not _last(shared.lock):
            shared.cache.close()
            return
        shared.cache.remove()
        with contextlib.suppress(OSError):  # there may be none; the other kind of cache may be in the folder, too
            os.remove(_lock_path(key))
        with contextlib.suppress(OSError):
            os.rmdir(key[0])
    finally:
        if shared.lock is not None:
            os.close(shared.lock)


def _lock_path(key: tuple[str, bool]) -> str:
    folder, decoded = key
    return os.path.join(folder, f"{'decoded' if decoded else 'bytes'}-in-use.lock")


def _hold(key: tuple[str, bool]) -> int | None:
    """Hold the lock of a cache, shared; None where the disk has no locks, or may only be read."""
    try:
        return hold(_lock_path(key))
    except OSError:
        return None


def _last(lock: int | None) -> bool:
    """Tell whether no other process holds the lock."""
    if lock is None:
        return True
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError:
        return True
    return True
