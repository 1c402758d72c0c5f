"""Where the records of TFRecord files lie, so that any of them can be read at once and their number is known without
reading them.

A file is scanned by its length fields alone. What was found is kept beside the files, in `.moxserve-records.npz`, for
as long as a file's size and time of change stay the same; where that folder cannot be written to, files are scanned
anew each time. Not here: records of compressed files in any order, which nobody can jump to.
"""

from __future__ import annotations

import itertools
import logging
import os
import resource
import struct
import threading
import zipfile
import zlib
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import numpy as np

from moxserve.errors import DataError
from moxserve.file import MoxFileNotExistsException, atomic_open
from moxserve.protocol.tfrecord import compression_of, header_fits, masked_crc, read_records

__all__ = ["SIDECAR", "RecordFile", "RecordIndex", "scan_file", "scan_files"]

SIDECAR = ".moxserve-records.npz"
Damaged = Callable[[str], None]
Lengths = np.ndarray[Any, np.dtype[np.int64]]

_log = logging.getLogger(__name__)
_HEADER_BYTES = 12
_FRAME_BYTES = 16  # length, its checksum, the payload's checksum
_SCANNERS = 8  # at once: on a network file system a scan is nothing but waiting
_MOST_OPEN_FILES = 512


@dataclass(frozen=True)
class RecordFile:
    """What is known of one file.

    Attributes:
        path: the file.
        size_bytes: its size when it was scanned.
        mtime_ns: when it was last changed.
        compression: empty, `GZIP` or `ZLIB`.
        lengths: `[records] int64`, bytes of each payload.
    """

    path: str
    size_bytes: int
    mtime_ns: int
    compression: str
    lengths: Lengths

    @property
    def offsets(self) -> Lengths:
        """Where each record begins, its header included, in bytes: `[records] int64`. Uncompressed files only."""
        ends = np.cumsum(self.lengths + _FRAME_BYTES)
        return ends - self.lengths - _FRAME_BYTES


def scan_file(path: str, damaged: Damaged | None = None) -> RecordFile:
    """Find the records of a file.

    Args:
        path: the file, on a local path.
        damaged: told of a damaged header or a cut-off record instead of an error; the records before it count.

    Raises:
        DataError: the file is no TFRecord, damaged or cut off; names the record and where it begins.
        MoxFileNotExistsException: it is not there.
    """
    try:
        file = open(path, "rb", buffering=0)  # noqa: SIM115 - closed below
    except FileNotFoundError:
        raise MoxFileNotExistsException(f"no such file: {path!r}") from None
    with file:
        status = os.fstat(file.fileno())
        compression = compression_of(os.pread(file.fileno(), _HEADER_BYTES, 0))
        if compression:
            lengths = [len(payload) for payload in read_records(path, damaged)]
        else:
            lengths = _scan(file.fileno(), status.st_size, path, damaged)
    return RecordFile(path, status.st_size, status.st_mtime_ns, compression, np.array(lengths, np.int64))


def _scan(descriptor: int, size: int, path: str, damaged: Damaged | None) -> list[int]:
    lengths: list[int] = []
    offset = 0
    while offset < size:
        head = os.pread(descriptor, _HEADER_BYTES, offset)
        fits = header_fits(head)
        (length,) = struct.unpack_from("<Q", head) if fits else (0,)
        if not fits or offset + length + _FRAME_BYTES > size:
            _tell(_problem(path, len(lengths), offset, fits or len(head) < _HEADER_BYTES), damaged)
            break
        lengths.append(length)
        offset += length + _FRAME_BYTES
    return lengths


def _problem(path: str, record: int, offset: int, cut: bool) -> str:
    if cut:
        return f"{path}: record {record} at byte {offset} is cut off"
    return f"{path}: record {record} at byte {offset} has a damaged header; is this a TFRecord file?"


def _tell(message: str, damaged: Damaged | None) -> None:
    if damaged is None:
        raise DataError(message, hint="write the file again, or skip what is damaged")
    damaged(message)


def scan_files(
    paths: Sequence[str], damaged: Damaged | None = None, before_scan: Callable[[], None] | None = None
) -> list[RecordFile]:
    """Find the records of files, with the help of what was found before.

    Args:
        paths: the files, on local paths.
        damaged: as `scan_file`.
        before_scan: called once if a file has to be scanned.

    Raises:
        DataError: as `scan_file`.
    """
    known = {folder: _load(os.path.join(folder, SIDECAR)) for folder in {os.path.dirname(path) for path in paths}}
    found = {path: _fresh(path, known[os.path.dirname(path)]) for path in paths}
    missing = [path for path, file in found.items() if file is None]
    if missing:
        if before_scan is not None:
            before_scan()
        troubles: dict[str, list[str]] = {path: [] for path in missing}
        with ThreadPoolExecutor(min(_SCANNERS, len(missing))) as pool:
            scanned = list(pool.map(lambda path: scan_file(path, damaged and troubles[path].append), missing))
        found.update(zip(missing, scanned, strict=True))
        if damaged is not None:
            # Here, in the order of the files: whoever is told need not expect several threads.
            for message in itertools.chain.from_iterable(troubles.values()):
                damaged(message)
        # What was damaged is told again each time.
        _save([file for file in scanned if not troubles[file.path]], known)
    return [file for path in paths if (file := found[path]) is not None]


def _fresh(path: str, known: dict[str, RecordFile]) -> RecordFile | None:
    """Return what is known of a file, unless it has changed since."""
    file = known.get(os.path.basename(path))
    try:
        status = os.stat(path)
    except FileNotFoundError:
        raise MoxFileNotExistsException(f"no such file: {path!r}") from None
    if file is None or (file.size_bytes, file.mtime_ns) != (status.st_size, status.st_mtime_ns):
        return None
    return file


def _load(sidecar: str) -> dict[str, RecordFile]:
    """Read a sidecar; anything that is not one of ours, whole and sound, counts for nothing."""
    try:
        with np.load(sidecar, allow_pickle=False) as data:
            return _files_of(os.path.dirname(sidecar), data)
    except FileNotFoundError:
        return {}
    except (OSError, ValueError, TypeError, KeyError, EOFError, zipfile.BadZipFile, zlib.error, struct.error) as error:
        _log.debug("%s is left alone: %s", sidecar, error)
        return {}


def _files_of(folder: str, data: Any) -> dict[str, RecordFile]:
    names, compressions, numbers = data["names"], data["compressions"], np.asarray(data["numbers"], np.int64)
    parts = np.split(np.asarray(data["lengths"], np.int64), np.cumsum(numbers[:, 2])[:-1])
    files = {}
    for name, compression, (size, mtime, count), part in zip(names, compressions, numbers, parts, strict=True):
        file = RecordFile(os.path.join(folder, str(name)), int(size), int(mtime), str(compression), part)
        sound = file.compression or (part.min(initial=0) >= 0 and (part + _FRAME_BYTES).sum() == size)
        if sound and len(part) == count:
            files[str(name)] = file
    return files


def _save(scanned: Sequence[RecordFile], known: dict[str, dict[str, RecordFile]]) -> None:
    for folder in {os.path.dirname(file.path) for file in scanned}:
        files = {**known[folder], **{os.path.basename(f.path): f for f in scanned if os.path.dirname(f.path) == folder}}
        files = {name: file for name, file in files.items() if os.path.exists(os.path.join(folder, name))}
        if not files:
            continue
        try:
            with atomic_open(os.path.join(folder, SIDECAR)) as out:
                np.savez(
                    out,
                    names=np.array(list(files), np.str_),
                    compressions=np.array([file.compression for file in files.values()], np.str_),
                    numbers=np.array([[f.size_bytes, f.mtime_ns, len(f.lengths)] for f in files.values()], np.int64),
                    lengths=np.concatenate([file.lengths for file in files.values()]),
                )
        except OSError as error:
            _log.debug("what was found in %s is not kept: %s", folder, error)


class RecordIndex:
    """The records of uncompressed files, numbered through, read in any order from any thread.

    Args:
        files: as `scan_files` found them.

    Raises:
        DataError: a file is compressed.
    """

    def __init__(self, files: Iterable[RecordFile]) -> None:
        self._files = list(files)
        for file in self._files:
            if file.compression:
                raise DataError(f"{file.path} is compressed ({file.compression}): its records cannot be jumped to")
        counts = [len(file.lengths) for file in self._files]
        self._starts = np.concatenate([[0], np.cumsum(counts)]).astype(np.int64)
        none = np.empty(0, np.int64)
        self._lengths = np.concatenate([none, *(file.lengths for file in self._files)])
        self._offsets = np.concatenate([none, *(file.offsets for file in self._files)])
        soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
        self._may_open = min(_MOST_OPEN_FILES, soft // 4)
        self._open: dict[int, int] = {}
        self._lock = threading.Lock()

    def __len__(self) -> int:
        return len(self._lengths)

    def __del__(self) -> None:
        self.close()

    def close(self) -> None:
        """Close the files; reading opens them again. Not while another thread reads."""
        opened, self._open = getattr(self, "_open", {}), {}
        for descriptor in opened.values():
            os.close(descriptor)

    def name(self, row: int) -> str:
        """Tell where a record is: `FILE: record N at byte B`, N counted in its file."""
        number = int(np.searchsorted(self._starts, row, side="right")) - 1
        return f"{self._files[number].path}: record {row - self._starts[number]} at byte {self._offsets[row]}"

    def read(self, rows: Sequence[int] | np.ndarray[Any, Any], damaged: Damaged | None = None) -> list[bytes | None]:
        """Read records.

        Args:
            rows: their numbers, from 0, through all files.
            damaged: told of each record whose checksum differs, instead of an error.

        Returns:
            The payloads, in the order of `rows`; None for one that is damaged.

        Raises:
            DataError: a record is damaged, or its file has changed since the scan.
        """
        numbers = np.searchsorted(self._starts, np.asarray(rows, np.int64), side="right") - 1
        return [self._read(int(row), int(number), damaged) for row, number in zip(rows, numbers, strict=True)]

    def _read(self, row: int, number: int, damaged: Damaged | None) -> bytes | None:
        length, offset = int(self._lengths[row]), int(self._offsets[row])
        # Head and payload checksum in one go: a file that has changed shows at once.
        data = self._pread(number, length + _FRAME_BYTES, offset)
        payload = data[_HEADER_BYTES:-4]
        if len(payload) != length or not header_fits(data[:_HEADER_BYTES]):
            _tell(f"{self.name(row)} is gone: the file has changed since it was scanned", damaged)
            return None
        if masked_crc(payload) != struct.unpack_from("<I", data, length + _HEADER_BYTES)[0]:
            _tell(f"{self.name(row)} is damaged: its checksum differs", damaged)
            return None
        return payload

    def _pread(self, number: int, size: int, offset: int) -> bytes:
        descriptor = self._open.get(number)
        if descriptor is not None:
            return os.pread(descriptor, size, offset)
        try:
            with self._lock:
                if number not in self._open and len(self._open) < self._may_open:
                    self._open[number] = os.open(self._files[number].path, os.O_RDONLY | os.O_CLOEXEC)
            if number in self._open:
                return os.pread(self._open[number], size, offset)
            # More files than may be open: this one for a moment only.
            with open(self._files[number].path, "rb", buffering=0) as file:
                return os.pread(file.fileno(), size, offset)
        except FileNotFoundError:
            raise MoxFileNotExistsException(f"no such file any more: {self._files[number].path!r}") from None
