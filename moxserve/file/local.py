"""The file system of this machine, by the rules of `api`."""

from __future__ import annotations

import contextlib
import glob as _glob
import os
import shutil
from collections.abc import Iterator, Sequence
from typing import IO, Any

from moxserve.file.atomic import atomic_write
from moxserve.file.errors import MoxFileIsADirectoryException, missing
from moxserve.file.filesystem import Entries, FileInfo, Stat

__all__ = ["LocalFileSystem"]


class LocalFileSystem:
    """Paths of this machine. Holds nothing."""

    def open(self, path: str, mode: str, buffering: int = -1, **text: Any) -> IO[Any]:
        """Open a file.

        Raises:
            MoxFileNotExistsException: it, or its directory, is not there.
            MoxFileIsADirectoryException: it is a directory.
        """
        try:
            return open(path, mode, buffering, **text)
        except (FileNotFoundError, NotADirectoryError):
            raise missing(path) from None
        except IsADirectoryError:
            raise MoxFileIsADirectoryException(f"{path!r} is a directory; expected a file") from None

    def write(self, path: str, data: bytes) -> None:
        """Replace a file, all or nothing.

        Raises:
            MoxFileNotExistsException: its directory is not there.
            MoxFileIsADirectoryException: it is a directory.
        """
        if os.path.exists(path) and not os.path.isfile(path):
            with self.open(path, "wb") as f:  # a device is written to, not replaced; a directory is refused
                f.write(data)
            return
        try:
            atomic_write(path, data)
        except (FileNotFoundError, NotADirectoryError):
            raise missing(os.path.dirname(path)) from None

    def append_file(self, source: str, path: str) -> None:
        """Put one file behind another one."""
        with self.open(source, "rb") as data, self.open(path, "ab") as out:
            left = os.fstat(data.fileno()).st_size  # a file may be put behind itself
            while left and (chunk := data.read(min(left, 1 << 20))):
                out.write(chunk)
                left -= len(chunk)

    def exists(self, path: str) -> bool:
        """Tell whether there is something."""
        return os.path.exists(path)

    def is_directory(self, path: str) -> bool:
        """Tell whether there is a directory."""
        return os.path.isdir(path)

    def is_file(self, path: str) -> bool:
        """Tell whether there is a file, or a device, and no directory."""
        return os.path.exists(path) and not os.path.isdir(path)

    def size(self, path: str, recursive: bool) -> int:
        """Return a file's size, or that of all files below a directory, recursive or not.

        Raises:
            MoxFileNotExistsException: it is not there.
        """
        del recursive
        if os.path.isdir(path):
            return sum(_size(os.path.join(d, f)) for d, _, files in os.walk(path, onerror=_unreadable) for f in files)
        return self.stat(path).length

    def listing(self, path: str, recursive: bool) -> tuple[list[str], list[str]]:
        """Return directories (with `/` at the end) and files, relative to the directory.

        Raises:
            MoxFileNotExistsException: it is no directory.
        """
        return _listed(path, recursive, followlinks=False)

    def tree(self, path: str) -> tuple[list[str], dict[str, str | None]]:
        """Return what is below a directory, and behind the symbolic links there; what a file holds is not looked at.

        Raises:
            MoxFileNotExistsException: it is no directory.
        """
        dirs, files = _listed(path, recursive=True, followlinks=True)
        return dirs, dict.fromkeys(files)

    def held(self, path: str) -> list[str]:
        """Return the names of files and directories below a directory, and of itself.

        Raises:
            MoxFileNotExistsException: it is no directory.
        """
        dirs, files = self.tree(path)
        return [*files, *dirs, ""]

    def contents(self, path: str) -> Iterator[FileInfo]:
        """Yield what is known of each file below a directory, and behind the symbolic links there."""
        for folder, _, names in os.walk(path, onerror=_unreadable, followlinks=True):
            for name in names:
                full = os.path.join(folder, name)
                with contextlib.suppress(FileNotFoundError):  # removed meanwhile, or a link to nowhere
                    found = os.stat(full)
                    yield FileInfo(os.path.relpath(full, path), found.st_size, found.st_mtime_ns)

    def scan(self, path: str) -> Entries:
        """Give the entries of a directory.

        Raises:
            MoxFileNotExistsException: it is no directory.
        """
        try:
            entries = os.scandir(path)
        except (FileNotFoundError, NotADirectoryError):
            raise missing(path) from None
        return Entries(entries, entries.close)

    def walk(self, path: str, topdown: bool, onerror: Any, followlinks: bool) -> Iterator[Any]:
        """Walk a tree."""
        return os.walk(path, topdown=topdown, onerror=onerror, followlinks=followlinks)

    def glob(self, pattern: str) -> list[str]:
        """Return the paths that match, sorted."""
        return sorted(_glob.glob(pattern, recursive=True))

    def stat(self, path: str) -> Stat:
        """Return size, time and kind.

        Raises:
            MoxFileNotExistsException: it is not there.
        """
        try:
            return Stat(os.stat(path), os.path.isdir(path))
        except (FileNotFoundError, NotADirectoryError):
            raise missing(path) from None

    def make_dirs(self, path: str) -> None:
        """Make a directory and its parents."""
        os.makedirs(path, exist_ok=True)

    def mk_dir(self, path: str) -> None:
        """Make a directory.

        Raises:
            MoxFileNotExistsException: its parent is not there.
        """
        if os.path.isdir(path):
            return
        try:
            os.mkdir(path)
        except FileNotFoundError:
            raise missing(os.path.dirname(path.rstrip("/"))) from None

    def remove(self, path: str, recursive: bool) -> None:
        """Remove by MoXing's table.

        Raises:
            MoxFileNotExistsException: there is nothing of that name.
        """
        if os.path.isdir(path) and not os.path.islink(path):
            if recursive:
                shutil.rmtree(path)
            return
        if path.endswith("/"):
            return
        try:
            os.remove(path)
        except (FileNotFoundError, NotADirectoryError):
            raise missing(path) from None

    def remove_files(self, folder: str, names: Sequence[str]) -> None:
        """Remove files, links and empty directories; what is behind a link stays, and so does what came later."""
        root = os.path.realpath(folder)
        for name in sorted(names, reverse=True):  # what is in a directory before the directory
            path = os.path.join(folder, name).rstrip("/")
            inside = os.path.join(root, os.path.dirname(name.rstrip("/"))).rstrip("/")
            if name and os.path.realpath(os.path.dirname(path)) != inside:
                continue
            if os.path.islink(path) or not os.path.isdir(path):
                os.remove(path)
            else:
                with contextlib.suppress(OSError):
                    os.rmdir(path)


def _listed(path: str, recursive: bool, followlinks: bool) -> tuple[list[str], list[str]]:
    if not os.path.isdir(path):
        raise missing(path)
    dirs: list[str] = []
    files: list[str] = []
    above = {path: {_identity(path)}}
    for folder, inner, names in os.walk(path, onerror=_unreadable, followlinks=followlinks):
        prefix = os.path.relpath(folder, path)
        prefix = "" if prefix == "." else f"{prefix}/"
        if followlinks:
            _stop_at_circles(folder, inner, above)
        dirs += [f"{prefix}{name}/" for name in inner]
        files += [prefix + name for name in names]
        if not recursive:
            break
    return sorted(dirs), sorted(files)


def _unreadable(error: OSError) -> None:
    """Let a walk fail at a directory that cannot be read, which os.walk leaves out; one may have been removed."""
    if not isinstance(error, FileNotFoundError):
        raise error


def _stop_at_circles(folder: str, inner: list[str], above: dict[str, set[tuple[int, int]]]) -> None:
    """Leave out of a walk the links that lead back to a directory above them."""
    seen = above.pop(folder)
    for name in list(inner):
        below = os.path.join(folder, name)
        identity = _identity(below)
        if identity in seen:
            inner.remove(name)
        else:
            above[below] = seen | {identity}


def _identity(path: str) -> tuple[int, int]:
    found = os.stat(path)
    return found.st_dev, found.st_ino


def _size(path: str) -> int:
    try:
        return os.path.getsize(path)
    except FileNotFoundError:  # a link to nowhere, or just removed
        return 0
