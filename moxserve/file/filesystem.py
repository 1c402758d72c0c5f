"""What every file system can do, and which one a path belongs to: the only place that knows schemes."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from types import TracebackType
from typing import IO, Any, Protocol

from moxserve.errors import UsageError

__all__ = ["Entries", "Entry", "FileInfo", "FileSystem", "Stat", "Url", "is_remote", "join", "locate"]

Url = str | bytes | os.PathLike[str]

_SCHEMES = ("s3", "obs")


class Entry(Protocol):
    """What `scan_dir` yields: os.DirEntry, or the like for objects."""

    name: str
    path: str

    def is_dir(self) -> bool:
        """Tell whether it is a directory."""
        ...

    def is_file(self) -> bool:
        """Tell whether it is a file."""
        ...

    def is_symlink(self) -> bool:
        """Tell whether it is a symbolic link."""
        ...

    def stat(self) -> Any:
        """Return size, time and kind."""
        ...


class Entries:
    """The entries of a directory, to iterate over once; a context manager, as os.scandir gives one."""

    def __init__(self, entries: Iterator[Any], close: Callable[[], None] | None = None) -> None:
        self._entries = entries
        self._close = close

    def __iter__(self) -> Entries:
        return self

    def __next__(self) -> Any:
        try:
            return next(self._entries)
        except StopIteration:
            self.close()
            raise

    def __enter__(self) -> Entries:
        return self

    def __exit__(self, kind: type[BaseException] | None, value: object, traceback: TracebackType | None) -> None:
        self.close()

    def close(self) -> None:
        """Let go of the directory."""
        if self._close is not None:
            self._close()
            self._close = None
        self._entries = iter(())


class Stat:
    """An os.stat result with MoXing's `length`, `mtime_nsec` and `is_directory` beside it.

    Attributes:
        length: size in bytes; of a directory in a store 0.
        mtime_nsec: when it was last changed, nanoseconds since 1970.
        is_directory: whether it is one.
    """

    def __init__(self, result: os.stat_result, is_directory: bool) -> None:
        self.result = result
        self.length = result.st_size
        self.mtime_nsec = result.st_mtime_ns
        self.is_directory = is_directory

    def __getattr__(self, attribute: str) -> Any:
        return getattr(self.__dict__["result"], attribute)

    def __getitem__(self, index: Any) -> Any:
        return self.result[index]

    def __repr__(self) -> str:
        return f"Stat(length={self.length}, mtime_nsec={self.mtime_nsec}, is_directory={self.is_directory})"


@dataclass(frozen=True, slots=True)
class FileInfo:
    """What is known of a file without a look into it.

    Attributes:
        name: relative to the directory that was asked for.
        size_bytes: of its content.
        mtime_ns: when it was last changed, nanoseconds since 1970.
    """

    name: str
    size_bytes: int
    mtime_ns: int


class FileSystem(Protocol):
    """Local files, or a store of objects. Paths are as the user writes them, a store's with scheme and bucket.

    What each function means is told in `api`, which has the names that users see.
    """

    def open(self, path: str, mode: str, buffering: int = -1, **text: Any) -> IO[Any]:
        """Open a file as Python does; `mode` is canonical (`rb+`)."""
        ...

    def write(self, path: str, data: bytes) -> None:
        """Replace a file, all or nothing."""
        ...

    def append_file(self, source: str, path: str) -> None:
        """Put one file of this file system behind another one."""
        ...

    def exists(self, path: str) -> bool:
        """Tell whether there is a file or directory."""
        ...

    def is_directory(self, path: str) -> bool:
        """Tell whether there is a directory."""
        ...

    def is_file(self, path: str) -> bool:
        """Tell whether there is a file."""
        ...

    def size(self, path: str, recursive: bool) -> int:
        """Return the size of a file or directory."""
        ...

    def listing(self, path: str, recursive: bool) -> tuple[list[str], list[str]]:
        """Return directories (with `/` at the end) and files of a directory, relative to it, sorted."""
        ...

    def scan(self, path: str) -> Entries:
        """Give the entries of a directory."""
        ...

    def walk(self, path: str, topdown: bool, onerror: Any, followlinks: bool) -> Iterator[Any]:
        """Walk a tree as os.walk does."""
        ...

    def glob(self, pattern: str) -> list[str]:
        """Return the paths that match, sorted."""
        ...

    def stat(self, path: str) -> Stat:
        """Return size, time and kind."""
        ...

    def make_dirs(self, path: str) -> None:
        """Make a directory and its parents."""
        ...

    def mk_dir(self, path: str) -> None:
        """Make a directory whose parent is there."""
        ...

    def remove(self, path: str, recursive: bool) -> None:
        """Remove by MoXing's table."""
        ...

    def held(self, path: str) -> list[str]:
        """Return what `remove_files` must remove for a directory to be gone, itself too (as an empty name)."""
        ...

    def remove_files(self, folder: str, names: Sequence[str]) -> None:
        """Remove files of a directory, and what is empty then."""
        ...

    def contents(self, path: str) -> Iterator[FileInfo]:
        """Yield what is known of each file below a directory, behind links too; of a store by its listing alone."""
        ...

    def tree(self, path: str) -> tuple[list[str], dict[str, str | None]]:
        """Return directories and files below a directory as `copy_parallel` copies them: behind links too.

        Of each file, what the listing told of it that changes with its content: size first, or None.
        """
        ...


def join(base: str, name: str) -> str:
    """Return the path of something in a directory."""
    if not name:
        return base
    return base + name if base.endswith("/") else f"{base}/{name}"


def is_remote(path: str) -> bool:
    """Tell whether a path leads to a store of objects."""
    scheme, sep, _ = path.partition("://")
    return bool(sep) and scheme in _SCHEMES


def text_of(url: Url) -> str:
    """Return a path as text. `s3:/bucket`, which pathlib makes of `s3://bucket`, is taken for what it was."""
    path = url if type(url) is str else os.fsdecode(url)
    if path.startswith(("s3:/", "obs:/")) and "://" not in path[:6]:
        scheme, _, rest = path.partition(":/")
        return f"{scheme}://{rest}"
    return path


def locate(url: Url) -> tuple[FileSystem, str]:
    """Return the file system of a path or URL, and the path as that takes it.

    Args:
        url: a local path, `file://…`, `s3://bucket/key` or `obs://bucket/key`.

    Raises:
        UsageError: a scheme that nobody here knows.
    """
    path = text_of(url)
    scheme, sep, rest = path.partition("://")
    if not sep or "/" in scheme:
        return _local(), path
    if scheme == "file":
        return _local(), rest
    if scheme in _SCHEMES:
        from moxserve.file.objects import ObjectFileSystem

        return ObjectFileSystem(scheme), path
    raise UsageError(
        f"{path!r}: no file engine for {scheme}:// in this version of moxserve",
        hint="s3://, obs:// and local paths are known; copy the data to one of these first",
    )


def _local() -> FileSystem:
    from moxserve.file.local import LocalFileSystem

    return LocalFileSystem()
