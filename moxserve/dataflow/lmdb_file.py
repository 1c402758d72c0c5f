"""One LMDB database: opened once a process however many read it, written under a temporary name."""

from __future__ import annotations

import os
import weakref
from collections.abc import Iterable, Iterator
from itertools import islice
from typing import Any, ClassVar

from moxserve.errors import DataError, MissingExtraError
from moxserve.file.forks import ForkLock

__all__ = ["KEYS", "LmdbFile", "write_lmdb"]

KEYS = b"__keys__"
_FIRST_MAP_BYTES = 1 << 24
_TRANSACTION_BYTES = 1 << 26


def _lmdb() -> Any:
    try:
        import lmdb
    except ImportError:
        raise MissingExtraError("lmdb", "dataflow", "reading and writing LMDB databases") from None
    return lmdb


class LmdbFile:
    """A database that is open for reading.

    LMDB must not open a database twice in a process, so all readers share one; without locks, it serves a forked
    process as well. It is closed with its last reader.
    """

    _opened: ClassVar[weakref.WeakValueDictionary[str, LmdbFile]] = weakref.WeakValueDictionary()
    _lock = ForkLock()

    def __init__(self, path: str) -> None:
        lmdb = _lmdb()
        folder = os.path.isdir(path)
        self.path = os.path.join(path, "data.mdb") if folder else path
        try:
            self._env = lmdb.open(path, subdir=folder, readonly=True, lock=False, create=False)
        except lmdb.Error as error:
            raise DataError(f"{path} cannot be opened as an LMDB database: {error}") from None
        status = os.stat(self.path)
        self._inode = (status.st_dev, status.st_ino)
        needed = (self._env.info()["last_pgno"] + 1) * self._env.stat()["psize"]
        if status.st_size < needed:
            # Reading a page that is not there would end the process with SIGBUS.
            self._env.close()
            raise DataError(f"{path} is cut off: it has {status.st_size} bytes of {needed}")

    @classmethod
    def open(cls, path: str) -> LmdbFile:
        """Open a database, or take the one that is open already.

        Raises:
            DataError: it is no LMDB database, is cut off, or was replaced while somebody reads the old one.
            MissingExtraError: lmdb is not installed.
        """
        name = os.path.realpath(path)
        with cls._lock:
            file = cls._opened.get(name)
            if file is None:
                file = cls._opened[name] = cls(name)
        status = os.stat(file.path)
        if file._inode != (status.st_dev, status.st_ino):
            raise DataError(f"{path} was replaced while this process reads it; drop the flows that read the old file")
        return file

    @property
    def entries(self) -> int:
        """How many keys there are."""
        return int(self._env.stat()["entries"])

    def get(self, key: bytes) -> bytes | None:
        """Return a value, None if there is none.

        Raises:
            DataError: the database is damaged.
        """
        try:
            with self._env.begin() as transaction:
                value: bytes | None = transaction.get(key)
                return value
        except _lmdb().Error as error:
            raise DataError(f"{self.path} is damaged: reading key {key!r}: {error}") from None

    def all_keys(self) -> Iterator[bytes]:
        """Yield all keys, in their order."""
        with self._env.begin() as transaction, transaction.cursor() as cursor:
            yield from cursor.iternext(keys=True, values=False)


def write_lmdb(path: str, items: Iterable[tuple[bytes, bytes]], frequency: int) -> None:
    """Write a database as one file; its map grows as needed.

    Args:
        path: the file, which does not exist.
        items: keys and values.
        frequency: pairs in a transaction; fewer where they are large.
    """
    lmdb = _lmdb()
    # A file that nobody else knows: no locks, and one flush at the end.
    env = lmdb.open(path, subdir=False, lock=False, map_size=_FIRST_MAP_BYTES, meminit=False, sync=False)
    try:
        items = iter(items)
        while group := _group(items, frequency):
            _put(env, group, lmdb.MapFullError)
        env.sync(True)
    finally:
        env.close()


def _group(items: Iterator[tuple[bytes, bytes]], frequency: int) -> list[tuple[bytes, bytes]]:
    group, size = [], 0
    for key, value in islice(items, frequency):
        group.append((key, value))
        size += len(value)
        if size > _TRANSACTION_BYTES:
            break
    return group


def _put(env: Any, group: list[tuple[bytes, bytes]], full: type[Exception]) -> None:
    while True:
        try:
            with env.begin(write=True) as transaction:
                for key, value in group:
                    transaction.put(key, value)
        except full:
            env.set_mapsize(2 * env.info()["map_size"])
        else:
            return
