"""Files and trees from one file system to another: `copy`, `copy_parallel`, `rename`.

Between two places of one store the store copies by itself. Everything that can be known to be wrong is found before the
first byte is written. A target is replaced at once, when all of it is there.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from moxserve.errors import DataError, UsageError
from moxserve.file.atomic import atomic_open
from moxserve.file.errors import (
    MoxFileIsADirectoryException,
    MoxFileNameDuplicateException,
    MoxFileNotExistsException,
    missing,
)
from moxserve.file.filesystem import FileSystem, Url, join, locate, text_of

if TYPE_CHECKING:
    from moxserve.file.s3 import Bucket

__all__ = ["copy_file", "copy_tree", "rename"]

_CHUNK_BYTES = 1 << 20


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


def copy_file(source: Place, target: Place) -> None:
    """Copy one file.

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
        with _explained(source, bucket, key), _replacing(target.path) as out:
            bucket.download(key, out)
    else:
        _local_to_local(source.path, target.path)


def _local_to_local(source: str, target: str) -> None:
    if os.path.isdir(source):
        raise _is_a_directory(source)
    try:
        if os.path.exists(target) and os.path.samefile(source, target):
            return
        with open(source, "rb") as data, _replacing(target) as out:
            shutil.copyfileobj(data, out, _CHUNK_BYTES)
    except (FileNotFoundError, NotADirectoryError):
        raise missing(source if not os.path.exists(source) else os.path.dirname(target)) from None


def _replacing(path: str) -> Any:
    """Give a file that replaces the one at a path; a device is written to, not replaced."""
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
    if (bucket.name, key) == (other.name, target_key) and bucket.store is other.store:
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


@dataclass(frozen=True)
class Plan:
    """What `copy_tree` will do: names relative to both directories; `dirs` have a slash at their ends."""

    source: Place
    target: Place
    dirs: Sequence[str]
    files: Sequence[str]


def plan(source: Place, target: Place, file_list: Iterable[str] | None) -> Plan:
    """Look what there is to copy, and whether it can be.

    Raises:
        MoxFileNotExistsException: the source is no directory.
        MoxFileNameDuplicateException: a file would land on a directory, or two on one name.
        UsageError: a name that leads out of the directory; a directory that would be copied over itself.
    """
    if file_list is None:
        dirs, files = source.fs.tree(source.path)
    else:
        if not source.fs.is_directory(source.path):
            raise missing(source.path)
        dirs, files = [], sorted({_listed_name(source, name) for name in file_list})
    if source.remote and not target.remote:
        _check_names(source, [*dirs, *files])
    made = Plan(source, target, dirs, files)
    if not target.remote:
        _check_duplicates(made)
    _check_overlap(made)
    return made


def _listed_name(source: Place, name: Url) -> str:
    """Return an entry of a file list as a relative name; one that begins with the source's path is taken for it."""
    text = text_of(name)
    base = join(source.path, "") if source.path.endswith("/") else f"{source.path}/"
    text = text.removeprefix(base)
    if not source.remote:
        text = os.path.normpath(text)
    if text in ("", ".") or text.startswith("/") or "://" in text or ".." in text.split("/"):
        raise UsageError(f"file_list: {text!r} is no path relative to {source.path!r}")
    return text


def _check_names(source: Place, names: Iterable[str]) -> None:
    for name in names:
        parts = name.removesuffix("/").split("/")
        if ".." in parts:
            raise UsageError(f"{join(source.path, name)!r} would be written outside of the target directory")
        if "" in parts or "." in parts:
            raise MoxFileNameDuplicateException(
                f"{join(source.path, name)!r} has no name of its own in a local directory",
                hint="copy the files that are needed one by one, or leave it out with file_list",
            )


def _check_duplicates(made: Plan) -> None:
    """Find names that are a file here and a directory there, in the source (a store allows that) or the target."""
    folders = {name[:-1] for name in made.dirs}
    folders.update(parent for name in made.files for parent in _parents(name))
    clashes = sorted(folders.intersection(made.files))
    base = made.target.path
    if os.path.exists(base) and not os.path.isdir(base):
        raise MoxFileNameDuplicateException(f"{base!r} is a file; a directory of this name would be made")
    if not clashes and os.path.isdir(base):
        clashes = [name for name in made.files if os.path.isdir(os.path.join(base, name))]
        clashes += [name for name in sorted(folders) if _taken_by_file(os.path.join(base, name))]
    if clashes:
        raise MoxFileNameDuplicateException(
            f"file and directory of one name below {base!r}: {', '.join(clashes[:5])}"
            + (f" and {len(clashes) - 5} more" if len(clashes) > 5 else "")
        )


def _taken_by_file(path: str) -> bool:
    return os.path.lexists(path) and not os.path.isdir(path)


def _parents(name: str) -> Iterator[str]:
    while (name := name.rpartition("/")[0]) != "":
        yield name


def _check_overlap(made: Plan) -> None:
    """Refuse to write over files of the source that are still to be read."""
    source, target = _absolute(made.source), _absolute(made.target)
    if source == target or not (source.startswith(target) or target.startswith(source)):
        return
    sources = {source + name for name in made.files}
    doubled = sorted(sources.intersection(target + name for name in made.files))
    if doubled:
        raise UsageError(
            f"copying {made.source.path!r} to {made.target.path!r} would write over what is copied: {doubled[0]}"
        )


def _absolute(place: Place) -> str:
    path = place.path if place.remote else os.path.realpath(place.path)
    return path.rstrip("/") + "/"


def copy_tree(source: Place, target: Place, file_list: Iterable[str] | None, threads: int) -> None:
    """Copy a directory into another one.

    Raises:
        MoxFileNotExistsException: the source is no directory, or a listed file is not there.
        MoxFileNameDuplicateException: names clash; nothing was written.
        UsageError: names that cannot be; nothing was written.
    """
    made = plan(source, target, file_list)
    if _absolute(source) == _absolute(target):
        return
    _make_directories(made)
    pool = ThreadPoolExecutor(max(1, threads), thread_name_prefix="moxserve-copy")
    try:
        done = [pool.submit(copy_file, source.below(name), target.below(name)) for name in made.files]
        for future in done:
            future.result()
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


def _make_directories(made: Plan) -> None:
    if made.target.remote:
        # Directories with something in them are there by that; the others need something to hold their places.
        used = {f"{parent}/" for name in (*made.files, *(d[:-1] for d in made.dirs)) for parent in _parents(name)}
        for name in made.dirs:
            if name not in used:
                made.target.below(name).fs.make_dirs(made.target.below(name).path)
        if not made.files and not made.dirs:
            made.target.fs.make_dirs(made.target.path)
        return
    wanted = {made.target.path, *(join(made.target.path, name) for name in made.dirs)}
    wanted.update(os.path.dirname(join(made.target.path, name)) for name in made.files)
    for folder in sorted(wanted):
        os.makedirs(folder, exist_ok=True)


def rename(source: Place, target: Place) -> None:
    """Move a file or directory.

    Raises:
        MoxFileNotExistsException: the source is not there.
        UsageError: a directory would be moved into itself, or onto one that it is in.
    """
    if not source.remote and not target.remote:
        if not os.path.lexists(source.path):
            raise missing(source.path)
        if source.path != target.path:
            shutil.move(source.path, target.path)
        return
    same = _absolute(source) == _absolute(target)
    if source.fs.is_file(source.path):
        if not same or source.path != target.path:
            copy_file(source, target)
            source.fs.remove(source.path, recursive=False)
        return
    if not source.fs.is_directory(source.path):
        raise missing(source.path)
    if not same:
        _move_tree(source, target)


def _move_tree(source: Place, target: Place) -> None:
    old, new = _absolute(source), _absolute(target)
    if old.startswith(new) or new.startswith(old):
        raise UsageError(f"{source.path!r} cannot be moved to {target.path!r}: one is inside the other")
    dirs, files = source.fs.tree(source.path)
    copy_tree(source, target, None, threads=16)
    # Only when all of it is there, and only what was copied.
    source.fs.remove_files(source.path, [*files, *dirs, ""])
