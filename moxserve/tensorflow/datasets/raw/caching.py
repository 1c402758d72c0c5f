"""The local cache of a raw data set: where it is, who uses it, and when it goes.

    <cache_dir>/<name of base_dir>-<hash of base_dir>/bytes/      encoded files, see moxserve.images.cache
                                                     /decoded/    decoded images

Data sets of one process that read the same folder share its cache: the one that is done with it last removes it,
unless one of them is to keep it. Processes share it too, as `moxserve.images.pack` says; one that removes it takes
nothing from another that it cannot fetch again.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import threading
import weakref
from dataclasses import dataclass

from moxserve.errors import DataError
from moxserve.images.cache import BytesCache, DecodedCache
from moxserve.tensorflow.datasets.raw.storage import read_file

__all__ = ["Cache", "open_cache"]

Cache = BytesCache | DecodedCache

_lock = threading.Lock()


@dataclass
class _Shared:
    cache: Cache
    users: int = 0
    keep: bool = False


_open: dict[tuple[str, bool], _Shared] = {}


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
                cache = DecodedCache(folder) if decoded else BytesCache(folder, fetch=read_file)
            except OSError as error:
                raise DataError(f"cache_dir {cache_dir!r} cannot be used: {error}") from error
            shared = _open[key] = _Shared(cache)
        shared.users += 1
        shared.keep |= not remove
    weakref.finalize(owner, _release, key, os.getpid())
    return shared.cache


def _release(key: tuple[str, bool], owner: int) -> None:
    if os.getpid() != owner:  # a forked child ends
        return
    with _lock:
        shared = _open[key]
        shared.users -= 1
        if shared.users:
            return
        del _open[key]
    if shared.keep:
        shared.cache.close()
        return
    shared.cache.remove()
    with contextlib.suppress(OSError):  # the other kind of cache is in it, too
        os.rmdir(key[0])
