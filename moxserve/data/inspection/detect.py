"""Which data sets are at a path: told by content for files, by what lies where for folders.

multilabel    images/ and labels/ (NAME.jpg.txt)
image folder  a folder for each class with images directly in it
images        images without labels
tfrecord      files of records; all of a folder are one data set
csv, parquet, npz, idx, lmdb    a file each, lmdb also a folder
"""

from __future__ import annotations

import gzip
import os
import re
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from moxserve.errors import DataError, UsageError
from moxserve.images.header import image_format
from moxserve.images.names import IMAGE_EXTENSIONS
from moxserve.protocol.tfrecord import compression_of, header_fits

__all__ = ["KINDS", "Found", "detect", "has_images", "visible"]

KINDS = ("image folder", "multilabel", "images", "tfrecord", "csv", "parquet", "npz", "idx", "lmdb")
_DEPTH = 4
_SHARD = re.compile(r"(.+)-\d+-of-\d+")
_HEAD_BYTES = 1 << 12
_LMDB_MAGIC = b"\xde\xc0\xef\xbe"
_TEXT_TABLES = (".csv", ".csv.gz", ".tsv", ".tsv.gz")


@dataclass(frozen=True)
class Found:
    """A data set.

    Attributes:
        path: of the file or folder.
        kind: one of `KINDS`.
        files: paths of the files that it is made of, where those are not all files of the folder.
    """

    path: str
    kind: str
    files: tuple[str, ...] = ()


def visible(folder: str) -> list[os.DirEntry[str]]:
    """Return what is in a folder, sorted by name, without what starts with a dot or an underscore."""
    with os.scandir(folder) as entries:
        return sorted((e for e in entries if not e.name.startswith((".", "_"))), key=lambda e: e.name)


def has_images(folder: str) -> bool:
    """Tell whether one of the first files of a folder is an image."""
    return any(_file_kind(entry.path) == "images" for entry in _some_files(folder))


def _some_files(folder: str) -> Iterator[os.DirEntry[str]]:
    files = [entry for entry in visible(folder) if entry.is_file()]
    # Not only the first ones: those may be what is broken.
    yield from files[:20]
    yield from files[20 :: max(1, len(files) // 20)]


def _head(path: str) -> bytes:
    try:
        with open(path, "rb") as file:
            return file.read(_HEAD_BYTES)
    except OSError:  # it is what its name says, and will be told to be broken
        return b""


def _unpacked(head: bytes, path: str) -> bytes:
    """Return the first bytes inside of a gzip file; nothing for a damaged one."""
    try:
        with gzip.open(path) as file:
            return file.read(16)
    except (OSError, EOFError, zlib.error):
        return head[:0]


def _is_idx(head: bytes) -> bool:
    return len(head) >= 4 and head[:2] == b"\0\0" and head[2] in (8, 9, 11, 12, 13, 14) and 1 <= head[3] <= 8


def _is_records(head: bytes) -> bool:
    return len(head) >= 12 and header_fits(head[:12])


_BY_CONTENT: tuple[tuple[str, Callable[[bytes], bool]], ...] = (
    ("images", lambda head: image_format(head) is not None),
    ("parquet", lambda head: head[:4] == b"PAR1"),
    ("npz", lambda head: head[:4] in (b"PK\3\4", b"PK\5\6")),
    ("lmdb", lambda head: head[16:20] == _LMDB_MAGIC or head[24:28] == _LMDB_MAGIC),
    ("tfrecord", _is_records),
    ("idx", _is_idx),
)
# A damaged or empty file is what its name says.
_BY_NAME = {
    ".tfrecord": "tfrecord", ".tfrecords": "tfrecord", ".parquet": "parquet", ".npz": "npz", ".mdb": "lmdb",
    ".lmdb": "lmdb", **dict.fromkeys(IMAGE_EXTENSIONS, "images"),
}  # fmt: skip


def _file_kind(path: str) -> str | None:
    """Tell what a file is; None for what is no data set."""
    name = os.path.basename(path).lower()
    if name.endswith(_TEXT_TABLES):
        return "csv"
    head = _head(path)
    if head[:2] == b"\x1f\x8b" or (compression_of(head[:12]) and not _is_records(head)):
        inside = _unpacked(head, path)
        found = "idx" if _is_idx(inside) else "tfrecord" if _is_records(inside) else None
        return found or ("idx" if "ubyte" in name else "tfrecord" if "tfrecord" in name else None)
    for kind, fits in _BY_CONTENT:
        if fits(head):
            return kind
    if "idx" in name and "ubyte" in name:
        return "idx"
    return _BY_NAME.get(os.path.splitext(name)[1])


def detect(path: str) -> list[Found]:
    """Find the data sets at a path.

    Args:
        path: a file or folder; a folder of several data sets, such as `train` and `eval`, gives each.

    Raises:
        DataError: there is nothing, or nothing that is a data set.
        UsageError: it is the URL of a bucket.
    """
    if "://" in path:
        raise UsageError(
            f"{path!r}: only local data sets can be looked into",
            hint="copy it first: moxserve.tensorflow.file.copy_parallel",
        )
    if not os.path.exists(path):
        raise DataError(f"no such file or folder: {path!r}")
    if os.path.isfile(path):
        kind = _file_kind(path)
        found = [] if kind is None else [Found(path, kind, (path,))]
    else:
        found = _folder(path.rstrip("/") or path, _DEPTH)
    if not found:
        raise DataError(f"{path!r} is no data set", hint=f"known: {', '.join(KINDS)}")
    return found


def _folder(path: str, depth: int) -> list[Found]:
    entries = visible(path)
    folders = [entry for entry in entries if entry.is_dir()]
    names = {entry.name for entry in entries}
    if "data.mdb" in names:
        return [Found(path, "lmdb")]
    if {"images", "labels"} <= {entry.name for entry in folders} and has_images(os.path.join(path, "images")):
        return [Found(path, "multilabel")]
    if any(has_images(entry.path) for entry in folders):
        return [Found(path, "image folder")]
    found = _files(path, entries)
    if depth:
        found += [part for entry in folders for part in _folder(entry.path, depth - 1)]
    return found


def _files(path: str, entries: list[os.DirEntry[str]]) -> list[Found]:
    by_kind: dict[str, list[str]] = {}
    for entry in entries:
        kind = _file_kind(entry.path) if entry.is_file() else None
        if kind is not None:
            by_kind.setdefault(kind, []).append(entry.path)
    found: list[Found] = []
    for kind, files in by_kind.items():
        if kind == "images":
            found.append(Found(path, kind))
        elif kind == "tfrecord":
            found += _sets_of_records(path, files)
        else:
            found += [Found(file, kind, (file,)) for file in files]
    return found


def _sets_of_records(path: str, files: list[str]) -> list[Found]:
    """Put the files of a set together: `train-00000-of-00002` and the like by their prefix, others all in one."""
    sets: dict[str, list[str]] = {}
    for file in files:
        match = _SHARD.match(os.path.basename(file))
        sets.setdefault(f"{match.group(1)}-*" if match else "", []).append(file)
    return [
        Found(
            parts[0] if len(parts) == 1 else os.path.join(path, pattern) if pattern else path, "tfrecord", tuple(parts)
        )
        for pattern, parts in sets.items()
    ]
