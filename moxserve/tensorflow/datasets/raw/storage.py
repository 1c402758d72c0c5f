"""Where raw data lies: listing folders and reading whole files, on the local file system and in buckets.

Only listing and reading; writing is local.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor

from moxserve.errors import DataError, UsageError
from moxserve.file import (
    MoxFileNotExistsException,
    MoxFileReadException,
    MoxFileRespException,
    is_directory,
    scan_dir,
)
from moxserve.file.filesystem import is_remote
from moxserve.file.s3 import open_bucket
from moxserve.images.cache import FileKey

__all__ = [
    "Tree",
    "data_folder",
    "is_remote",
    "join",
    "list_tree",
    "plain_url",
    "read_all",
    "read_file",
]

# What a file's name ends in to be taken for an image; what is inside decides how it is decoded.
_LATENCY_THREADS = 32


class Tree:
    """The files directly in a folder, and directly in its folders; what starts with a dot is left out.

    Attributes:
        base: the folder.
        folders: names of its folders, sorted.
        files: paths relative to the folder, with `/`, sorted.
    """

    def __init__(self, base: str, folders: Iterable[str], keys: dict[str, FileKey | None]) -> None:
        self.base = base
        self.folders = sorted(folders)
        self.files = sorted(keys)
        self._keys = keys

    def __contains__(self, name: str) -> bool:
        return name in self._keys

    def key(self, name: str) -> FileKey | None:
        """What the listing of a bucket tells of an object; None for a local file, which can be asked at any time."""
        return self._keys[name]

    def size(self, name: str) -> int:
        """Size of a file in bytes; -1 if it has vanished."""
        key = self._keys[name]
        if key is not None:
            return key.size
        try:
            return os.path.getsize(join(self.base, name))
        except OSError:
            return -1


def plain_url(url: str | os.PathLike[str]) -> str:
    """Return a path or URL as this package writes it: no `file://`, no slash at the end."""
    path = os.fsdecode(url).removeprefix("file://")
    return path.rstrip("/") or path


def data_folder(path: str | os.PathLike[str], argument: str) -> str:
    """Return the folder that a script names for its data, as `plain_url` does.

    Args:
        path: what the script gave.
        argument: its name, for messages.

    Raises:
        UsageError: nothing was given, as by a platform that passes `--data_url=` for a field that was left blank: the
            flag is then given, and its default does not count.
    """
    if not isinstance(path, (str, bytes, os.PathLike)) or not os.fspath(path):
        raise UsageError(
            f"{argument}={path!r}: expected the folder of the data",
            hint="a flag without a value, as in --data_url=, is empty: its default counts only where it is left out",
        )
    return plain_url(path)


def join(base: str, name: str) -> str:
    """Return the path of something in a folder."""
    return f"{base.rstrip('/')}/{name}" if name else base


def list_tree(base: str) -> Tree:
    """List a folder and the folders in it.

    Args:
        base: as `plain_url` gives it.

    Raises:
        MoxFileNotExistsException: there is no such folder.
        DataError: the bucket cannot be read.
    """
    if is_remote(base):
        return _list_bucket(base)
    if not is_directory(base):
        raise MoxFileNotExistsException(f"no such folder: {base!r}")
    folders: list[str] = []
    keys: dict[str, FileKey | None] = {}
    for entry in _visible(base):
        if not entry.is_dir():
            keys[entry.name] = None
            continue
        folders.append(entry.name)
        keys.update((f"{entry.name}/{inner.name}", None) for inner in _visible(entry.path) if not inner.is_dir())
    return Tree(base, folders, keys)


def _visible(folder: str) -> list[os.DirEntry[str]]:
    return [entry for entry in scan_dir(folder) if not entry.name.startswith(".")]


def _list_bucket(base: str) -> Tree:
    bucket, prefix = open_bucket(base)
    start = f"{prefix}/" if prefix else ""
    folders: set[str] = set()
    keys: dict[str, FileKey | None] = {}
    for found in bucket.objects(start):
        parts = found.key[len(start) :].split("/")
        if any(part.startswith(".") for part in parts):
            continue
        if len(parts) > 1:
            folders.add(parts[0])
        # Consoles make objects with a slash at the end of the key to stand for folders.
        if len(parts) <= 2 and parts[-1]:
            path = bucket.url(found.key)
            keys["/".join(parts)] = FileKey(path, found.size_bytes, int(found.modified.timestamp() * 1e9))
    if not keys and not folders:
        raise MoxFileNotExistsException(f"no such folder: {base!r}")
    return Tree(base, folders, keys)


def read_file(path: str) -> bytes:
    """Return a file's content.

    Raises:
        MoxFileNotExistsException: it is not there.
        OSError: it cannot be read.
        DataError: the bucket cannot be read.
    """
    if is_remote(path):
        bucket, key = open_bucket(path)
        try:
            data: bytes = bucket.read(key)[0]
        except MoxFileNotExistsException:
            raise
        except (MoxFileReadException, MoxFileRespException) as error:
            # The store is at fault, not this one file: no OSError, which would be a bad image.
            raise DataError(error.message, hint=error.hint) from error
        return data
    try:
        with open(path, "rb", buffering=0) as f:
            return f.read()
    except FileNotFoundError:
        raise MoxFileNotExistsException(f"no such file: {path!r}") from None


def read_all(paths: Sequence[str]) -> list[bytes]:
    """Return the contents of many small files, in order; those in a bucket are fetched by many threads.

    Raises:
        DataError: one cannot be read.
    """
    try:
        if not any(map(is_remote, paths)):
            return [read_file(path) for path in paths]
        with ThreadPoolExecutor(_LATENCY_THREADS) as pool:
            return list(pool.map(read_file, paths))
    except OSError as error:
        raise DataError(f"a file cannot be read: {error}") from error
