"""Single files from one file system to another: `copy`, `rename`. See `trees` for directories.

Between two places of one store the store copies by itself. Everything that can be known to be wrong is found before the
first byte is written. A target is replaced at once, when all of it is there.
"""

from __future__ import annotations

import errno
import os
import shutil
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from moxserve.errors import DataError, UsageError
from moxserve.file.atomic import atomic_open, temp_name
from moxserve.file.errors import (
    MoxFileIsADirectoryException,
    MoxFileNotExistsException,
    missing,
)
from moxserve.file.filesystem import FileSystem, Url, join, locate

if TYPE_CHECKING:
    from moxserve.file.s3 import Bucket

__all__ = ["STREAMS", "Place", "absolute", "copy_file", "rename", "replacing"]

_CHUNK_BYTES = 1 << 20
# How many ranges of a large object come at once, by default.
STREAMS = 4


@dataclass(frozen=True)
class Place:
    """A path and the file system that it is in."""

    fs: FileSystem
    path: str

    @classmethod
    def of(cls, url: Url) -> Place:
        """Find it."""
        return cls(*locate(url))

    @property
    def remote(self) -> bool:
        """Whether it is in a store."""
        return hasattr(self.fs, "scheme")

    def below(self, name: str) -> Place:
        """Return what has a relative name in this directory."""
        return Place(self.fs, join(self.path, name))

    def at(self) -> tuple[Bucket, str]:
        """Return bucket and key."""
        return self.fs.at(self.path)  # type: ignore[attr-defined]


def copy_file(source: Place, target: Place, streams: int = STREAMS) -> None:
    """Copy one file.

    Args:
        source: the file.
        target: what it will be.
        streams: how many ranges of a large object may come at once.

    Raises:
        MoxFileNotExistsException: the source is not there, or the target's local directory.
        MoxFileIsADirectoryException: the source is a directory, or the target's name ends in a slash, or is that of a
            local directory.
    """
    if target.path.endswith("/") or (not target.remote and os.path.isdir(target.path)):
        raise MoxFileIsADirectoryException(
            f"{target.path!r} is a directory; expected the name of the new file", hint="add the file's name"
        )
    if source.remote and target.remote:
        _remote_to_remote(source, target)
    elif target.remote:
        _upload(source, target)
    elif source.remote:
        bucket, key = source.at()
        _not_a_directory(source, key)
        with _explained(source, bucket, key), replacing(target.path) as out:
            bucket.download(key, out, streams if os.path.isfile(out.name) else 1)
    else:
        _local_to_local(source.path, target.path)


def _local_to_local(source: str, target: str) -> None:
    if os.path.isdir(source):
        raise _is_a_directory(source)
    try:
        if os.path.exists(target) and os.path.samefile(source, target):
            return
        with open(source, "rb") as data, replacing(target) as out:
            shutil.copyfileobj(data, out, _CHUNK_BYTES)
    except (FileNotFoundError, NotADirectoryError):
        raise missing(source if not os.path.exists(source) else os.path.dirname(target)) from None


def replacing(path: str) -> Any:
    """Give a file that replaces the one at a path; a device is written to, not replaced.

    Raises:
        MoxFileNotExistsException: its directory is not there.
    """
    if os.path.exists(path) and not os.path.isfile(path):
        return open(path, "wb")
    if not os.path.isdir(os.path.dirname(path) or "."):
        raise missing(os.path.dirname(path))
    return atomic_open(path)


def _upload(source: Place, target: Place) -> None:
    if os.path.isdir(source.path):
        raise _is_a_directory(source.path)
    bucket, key = target.at()
    _not_a_directory(target, key)
    try:
        bucket.upload(source.path, key)
    except FileNotFoundError as error:
        if isinstance(error, DataError):
            raise
        raise missing(source.path) from None


def _remote_to_remote(source: Place, target: Place) -> None:
    bucket, key = source.at()
    other, target_key = target.at()
    _not_a_directory(source, key)
    _not_a_directory(target, target_key)
    if _object_name(source) == _object_name(target):
        if not bucket.exists(key):
            raise missing(source.path)
        return
    with _explained(source, bucket, key):
        if bucket.store is other.store:
            other.copy_from(bucket, key, target_key)
            return
        from moxserve.file.multipart import spool

        with spool() as temp:
            size = bucket.download(key, temp)
            other.upload_file(temp, size, target_key)


class _explained:  # noqa: N801 - used like a function
    """Tell of a directory that was given in place of a file; looked for only when there is no such file."""

    def __init__(self, source: Place, bucket: Bucket, key: str) -> None:
        self._source, self._bucket, self._key = source, bucket, key

    def __enter__(self) -> None:
        return None

    def __exit__(self, kind: Any, error: Any, traceback: Any) -> None:
        if (
            isinstance(error, MoxFileNotExistsException)
            and "NoSuchBucket" not in error.message
            and self._bucket.has_any(f"{self._key}/")
        ):
            raise _is_a_directory(self._source.path) from None


def _not_a_directory(place: Place, key: str) -> None:
    if not key or key.endswith("/"):
        raise _is_a_directory(place.path)


def _is_a_directory(path: str) -> MoxFileIsADirectoryException:
    return MoxFileIsADirectoryException(f"{path!r} is a directory; copy_parallel copies directories")


def absolute(place: Place) -> str:
    """Return the path of a directory, with a slash at its end, by which two places can be compared."""
    if place.remote:
        name = _object_name(place)
        return name if name.endswith("/") else f"{name}/"  # `d//` is another directory than `d/`
    return os.path.realpath(place.path).rstrip("/") + "/"


def _object_name(place: Place) -> str:
    """Return what an object has only one of, while `s3://` and `obs://` may both lead to it."""
    bucket, key = place.at()
    return f"{bucket.store.client.meta.endpoint_url}/{bucket.name}/{key}"


def _rename_local(source: str, target: str) -> None:
    try:
        os.rename(source, target)
    except OSError as error:
        if error.errno != errno.EXDEV:
            raise
        if os.path.isdir(target):  # `move` would put it inside
            raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST), target) from None
        shutil.move(source, target)


def _check_two_buckets(source: Place, target: Place) -> None:
    """Refuse to move between two addresses of one bucket: what is removed at the end could be what was written."""
    (bucket, key), (other, _) = source.at(), target.at()
    if bucket.name != other.name or bucket.store.client.meta.endpoint_url == other.store.client.meta.endpoint_url:
        return
    mark = key.rstrip("/") + temp_name()
    bucket.put_if(mark, b"", {})
    try:
        is_one = other.exists(mark)
    finally:
        bucket.delete([mark])
    if is_one:
        raise UsageError(
            f"{source.path!r} and {target.path!r} are in one bucket under two addresses",
            hint="use one scheme for both, or give s3:// and obs:// the same endpoint",
        )


def _remove_file(source: Place) -> None:
    if source.remote:
        bucket, key = source.at()
        bucket.delete([key])
    else:
        os.remove(source.path)


def rename(source: Place, target: Place) -> None:
    """Move a file or directory; a file that has the new name is replaced.

    Raises:
        MoxFileNotExistsException: the source is not there.
        OSError: as `os.rename` has it, where both are local: a directory of the new name is not empty, for example.
        UsageError: a directory would be moved into itself, or onto one that it is in; or the two are in one bucket
            under two addresses.
    """
    if not source.remote and not target.remote:
        if not os.path.lexists(source.path):
            raise missing(source.path)
        _rename_local(source.path, target.path)
        return
    if source.remote and target.remote:
        _check_two_buckets(source, target)
    if source.fs.is_file(source.path):
        if source.remote != target.remote or _object_name(source) != _object_name(target):
            copy_file(source, target)
            _remove_file(source)
        return
    if not source.fs.is_directory(source.path):
        raise missing(source.path)
    if absolute(source) != absolute(target):
        from moxserve.file.trees import move_tree

        move_tree(source, target)
