"""A store of byte strings in a few large files: many small reads become one file's pages.

    <folder>/lock                 held by the one process that writes
    <folder>/<name>.pack          entries one after another, nothing between them
    <folder>/<name>.index         magic, crc32c of the rest, then a record for each entry of the pack: key, offset,
                                  length, crc32c, shape
    <folder>/.moxserve-tmp-...    a pack that is being written

A pack counts once its index is there, which comes by a rename after the pack was flushed to disk; so a writer that is
killed leaves a temporary file, or a pack without an index, and the next writer removes both. Records say where each
entry ends and what its checksum is; an entry is checked when a process reads it first. Nothing is ever changed or
moved: readers map the files and need no lock.
"""

from __future__ import annotations

import contextlib
import logging
import mmap
import os
import shutil
import threading
import time
import uuid
import weakref
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple, cast

import numpy as np

from moxserve.errors import UsageError
from moxserve.file import atomic_write, fsync_directory, fsync_path, make_dirs, sweep, temp_name

try:
    import fcntl
except ImportError:  # no such locks: nobody writes
    fcntl = None  # type: ignore[assignment]

__all__ = ["Entry", "PackStore"]

log = logging.getLogger("moxserve.images")

_MAGIC = b"moxpack1"
_RECORD = np.dtype([
    ("key", "<u8", 2), ("offset", "<u8"), ("length", "<u8"), ("crc", "<u4"), ("shape", "<u4", 3),
])  # fmt: skip
_SEGMENT_BYTES = 256 << 20
_LOOK_AGAIN_S = 5.0
_TABLES = 8

Key = tuple[int, int]


class Entry(NamedTuple):
    """What a key holds.

    Attributes:
        data: `[length] uint8`, read only; a view of the mapped file where the entry is in a finished pack.
        shape: of the array that the bytes are, or zeros.
    """

    data: np.ndarray
    shape: tuple[int, int, int]


def _checksum(data: object) -> int:
    import google_crc32c

    return int(google_crc32c.value(data))


class _Table:
    """Entries of finished packs, to be looked up by key.

    Attributes:
        stems: names of the packs, without a suffix.
        maps: their mapped files, `[size] uint8`.
        records: sorted by key.
        packs: `[entries]`: which of the packs each is in.
    """

    def __init__(
        self, stems: tuple[str, ...], maps: tuple[np.ndarray, ...], records: np.ndarray, packs: np.ndarray
    ) -> None:
        order = np.argsort(records["key"][:, 0], kind="stable")
        self.stems, self.maps, self.records, self.packs = stems, maps, records[order], packs[order]
        self._firsts = np.ascontiguousarray(self.records["key"][:, 0])
        # Which entries this process has compared with their checksums.
        self._checked = bytearray(len(records))

    def find(self, key: Key) -> Entry | None:
        at = int(self._firsts.searchsorted(np.uint64(key[0])))
        if at == len(self._firsts) or int(self._firsts[at]) != key[0]:
            return None
        (_, second), offset, length, crc, shape = self.records[at].tolist()
        if second != key[1]:
            return None
        data = self.maps[self.packs[at]][offset : offset + length]
        if not self._checked[at]:
            if _checksum(data) != crc:
                return None
            self._checked[at] = 1
        return Entry(data, tuple(shape))


def _merged(tables: tuple[_Table, ...]) -> _Table:
    """One table of several; with many packs, looking into each would take longer than decoding."""
    starts = np.cumsum([0, *(len(table.maps) for table in tables)])
    return _Table(
        tuple(stem for table in tables for stem in table.stems),
        tuple(data for table in tables for data in table.maps),
        np.concatenate([table.records for table in tables]),
        np.concatenate([table.packs + start for table, start in zip(tables, starts, strict=False)]),
    )


class _Writer:
    """The pack that this process writes, and the lock."""

    def __init__(self, folder: str, lock: BinaryIO) -> None:
        self.folder, self.lock, self.pid = folder, lock, os.getpid()
        self.temp = ""
        self.file: BinaryIO | None = None
        self.size = 0
        self.entries: dict[Key, tuple[int, int, int, tuple[int, int, int]]] = {}

    def add(self, key: Key, data: np.ndarray | bytes, shape: tuple[int, int, int]) -> None:
        if self.file is None:
            self.temp = os.path.join(self.folder, temp_name())
            self.file = open(self.temp, "x+b", buffering=0)  # noqa: SIM115 - closed by finish
            self.size, self.entries = 0, {}
        view = memoryview(cast(Any, data)).cast("B")
        written = 0
        while written < len(view):
            written += os.pwrite(self.file.fileno(), view[written:], self.size + written)
        self.entries[key] = (self.size, len(view), _checksum(data), shape)
        self.size += len(view)

    def find(self, key: Key) -> Entry | None:
        found = self.entries.get(key)
        if found is None or self.file is None:
            return None
        offset, length, _, shape = found
        return Entry(np.frombuffer(os.pread(self.file.fileno(), length, offset), np.uint8), shape)

    def finish(self) -> None:
        """Flush the pack, give it its name, and then its index."""
        if self.file is None:
            return
        file, self.file = self.file, None
        file.close()
        if not self.entries:
            with contextlib.suppress(OSError):
                os.remove(self.temp)
            return
        stem = os.path.join(self.folder, uuid.uuid4().hex[:16])
        try:
            self._publish(stem)
        except OSError as error:
            # What is not whole must not take up room.
            for path in (self.temp, f"{stem}.pack"):
                with contextlib.suppress(OSError):
                    os.remove(path)
            # Not when somebody removed the folder: there is nothing to be kept then.
            if os.path.isdir(self.folder):
                log.warning("%s: %d entries were not kept: %s", self.folder, len(self.entries), error.strerror or error)

    def _publish(self, stem: str) -> None:
        fsync_path(self.temp)
        os.rename(self.temp, f"{stem}.pack")
        fsync_directory(self.folder)
        records = np.zeros(len(self.entries), _RECORD)
        for row, (key, (offset, length, crc, shape)) in enumerate(self.entries.items()):
            records[row] = (key, offset, length, crc, shape)
        body = records.tobytes()
        atomic_write(f"{stem}.index", _MAGIC + _checksum(body).to_bytes(4, "little") + body)


class PackStore:
    """Byte strings by 128-bit keys, in a folder that several processes may share.

    One process writes: the first that has something to put. What it wrote, it can read at once; others can when a pack
    is finished, which is at 256 MiB, on `commit` and `close`, and at the end of the program. Processes that cannot
    write read what is there, and their `put` does nothing.

    Args:
        folder: made if missing.
        max_bytes: no more than this is stored, over all packs; None for no limit. What is there stays: data sets are
            read in rounds, where giving up the oldest for the newest would never hit.

    Raises:
        UsageError: `max_bytes` is negative.
        OSError: the folder cannot be made.
    """

    def __init__(self, folder: str | os.PathLike[str], max_bytes: int | None = None) -> None:
        if max_bytes is not None and max_bytes < 0:
            raise UsageError(f"max_bytes={max_bytes}: expected at least 0, or None for no limit")
        self.folder = os.path.abspath(os.fspath(folder))
        self.max_bytes = max_bytes
        make_dirs(self.folder)
        self._start()
        self._load()
        _stores.add(self)

    def _start(self) -> None:
        self._mutex = threading.RLock()
        self._tables: tuple[_Table, ...] = ()
        self._state: dict[str, _Writer | None] = {"writer": None}
        self._full = False
        self._looked_at = self._asked_at = float("-inf")
        # At the end of the program, too: what was put must not be lost with it.
        self._finalize = weakref.finalize(self, _close, self._state)

    def forked(self) -> None:
        """In a process that was forked: nothing but the finished packs is its own; file and lock are the parent's."""
        tables, writer = self._tables, self._state["writer"]
        if writer is not None:
            writer.lock.close()  # it stays locked for the parent, and only as long as that lives
        self._start()
        self._tables = tables

    def get(self, key: Key) -> Entry | None:
        """Return what was put under a key; None if nothing was, or it is damaged."""
        tables = self._tables
        entry = _find(tables, key)
        if entry is not None:
            return entry
        with self._mutex:
            writer = self._state["writer"]
            if writer is None:
                self._load()
            elif (entry := writer.find(key)) is not None:
                return entry
        # Packs that were finished meanwhile, by another thread or another process.
        return None if self._tables is tables else _find(self._tables, key)

    def put(self, key: Key, data: np.ndarray | bytes, shape: tuple[int, int, int] = (0, 0, 0)) -> bool:
        """Store data under a key.

        Args:
            key: two numbers of 64 bits.
            data: bytes, or a contiguous array.
            shape: given back by `get`.

        Returns:
            Whether it is stored now: not when another process writes, or the limit is reached, or the folder cannot be
            written, as on a full disk.
        """
        length = data.nbytes if isinstance(data, np.ndarray) else len(data)
        with self._mutex:
            # Here, not before: of threads that find the folder full together, one tells.
            if self._full:
                return False
            if self.max_bytes is not None and self.stored_bytes + length > self.max_bytes:
                self._full = True
                log.warning("%s is full: it holds %d of %d bytes", self.folder, self.stored_bytes, self.max_bytes)
                return False
            try:
                return self._put(key, data, shape)
            except OSError as error:
                # A folder that cannot be written is no reason to lose images: they are read without it.
                self._full = True
                log.warning("%s takes no more: %s", self.folder, error.strerror or error)
                return False

    def _put(self, key: Key, data: np.ndarray | bytes, shape: tuple[int, int, int]) -> bool:
        writer = self._writer()
        if writer is None:
            return False
        # Another thread may have put it, and finished the pack, since the caller looked.
        if writer.find(key) is None and _find(self._tables, key) is None:
            writer.add(key, data, shape)
            if writer.size >= _SEGMENT_BYTES:
                self.commit()
        return True

    @property
    def stored_bytes(self) -> int:
        """How many bytes are stored, those of this process's unfinished pack included."""
        writer = self._state["writer"]
        unfinished = writer.size if writer is not None and writer.file is not None else 0
        return sum(data.size for table in self._tables for data in table.maps) + unfinished

    def __len__(self) -> int:
        """How many entries can be read."""
        writer = self._state["writer"]
        unfinished = len(writer.entries) if writer is not None and writer.file is not None else 0
        return sum(len(table.records) for table in self._tables) + unfinished

    def commit(self) -> None:
        """Finish the pack that is being written, so that it outlasts this process and others see it."""
        with self._mutex:
            writer = self._state["writer"]
            if writer is not None:
                writer.finish()
                self._load(force=True)
                writer.entries = {}

    def close(self) -> None:
        """Finish what is being written and let others write; the store can still be read."""
        with self._mutex:
            self.commit()
            _close(self._state)

    def remove(self) -> None:
        """Remove the folder. Who has read from it goes on with what it has mapped."""
        with self._mutex:
            writer, self._state["writer"] = self._state["writer"], None
            if writer is not None:
                if writer.file is not None:
                    writer.file.close()
                writer.lock.close()
            self._tables = ()
            self._full = False
            shutil.rmtree(self.folder, ignore_errors=True)

    def _writer(self) -> _Writer | None:
        """Become the writer if nobody is."""
        writer = self._state["writer"]
        now = time.monotonic()
        if writer is not None or fcntl is None or now - self._asked_at < _LOOK_AGAIN_S:
            return writer
        self._asked_at = now
        make_dirs(self.folder)
        lock = open(os.path.join(self.folder, "lock"), "ab")  # noqa: SIM115 - held while writing
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            lock.close()
            return None
        self._tidy()
        self._load(force=True)
        writer = self._state["writer"] = _Writer(self.folder, lock)
        return writer

    def _tidy(self) -> None:
        """Remove what writers left that were killed; nobody else writes now."""
        sweep(self.folder)
        for pack in Path(self.folder).glob("*.pack"):
            if not pack.with_suffix(".index").exists():
                with contextlib.suppress(FileNotFoundError):
                    pack.unlink()

    def _load(self, force: bool = False) -> bool:
        """Map packs that were finished since; tell whether there are any."""
        now = time.monotonic()
        if not force and now - self._looked_at < _LOOK_AGAIN_S:
            return False
        self._looked_at = now
        known = {stem for table in self._tables for stem in table.stems}
        new = [table for stem in _finished(self.folder) - known if (table := _open(self.folder, stem)) is not None]
        tables = (*self._tables, *new)
        self._tables = tables if len(tables) <= _TABLES else (_merged(tables),)
        return bool(new)


# In a forked process before any thread of it can ask.
_stores: weakref.WeakSet[PackStore] = weakref.WeakSet()


def _forked() -> None:
    for store in list(_stores):
        store.forked()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forked)


def _find(tables: tuple[_Table, ...], key: Key) -> Entry | None:
    for table in tables:
        entry = table.find(key)
        if entry is not None:
            return entry
    return None


def _finished(folder: str) -> set[str]:
    try:
        return {name[: -len(".index")] for name in os.listdir(folder) if name.endswith(".index")}
    except FileNotFoundError:
        return set()


def _close(state: dict[str, _Writer | None]) -> None:
    writer, state["writer"] = state["writer"], None
    # A child of the writing process must not finish the parent's pack.
    if writer is not None and writer.pid == os.getpid():
        writer.finish()
        writer.lock.close()


def _open(folder: str, stem: str) -> _Table | None:
    """Map a pack; None if it is not what its index says."""
    path = os.path.join(folder, stem)
    try:
        raw = Path(f"{path}.index").read_bytes()
        body = raw[12:]
        if raw[:8] != _MAGIC or len(body) % _RECORD.itemsize or _checksum(body) != int.from_bytes(raw[8:12], "little"):
            return None
        records = np.frombuffer(body, _RECORD)
        with open(f"{path}.pack", "rb") as f:
            size = os.fstat(f.fileno()).st_size
            if not len(records) or not size or int((records["offset"] + records["length"]).max()) > size:
                return None
            data = np.frombuffer(mmap.mmap(f.fileno(), 0, access=mmap.ACCESS_READ), np.uint8)
    except OSError:
        return None
    return _Table((stem,), (data,), records, np.zeros(len(records), np.int64))
