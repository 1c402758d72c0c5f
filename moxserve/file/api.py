"""The functions of `mox.file`, with MoXing's names and meaning, on the local file system.

Source: MoXing guide §1.1.2. Each function asks `_local` for the path first; that is the seam where the engines of
`s3://` and `obs://` come in. Until they do, such a URL is answered by an error that says so, never treated as a folder
called `s3:`.
"""

from __future__ import annotations

import glob as _glob
import os
import shutil
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import IO, Any

from moxserve.errors import DataError, UsageError
from moxserve.file.atomic import atomic_open, atomic_write

Url = str | bytes | os.PathLike[str]


class MoxFileNotExistsException(DataError, FileNotFoundError):  # noqa: N818 - MoXing's name
    """The file or directory does not exist."""


class MoxFileNameDuplicateException(DataError):  # noqa: N818 - MoXing's name
    """A file and a directory would have the same name."""


def _local(url: Url) -> str:
    path = os.fsdecode(url)
    scheme, sep, _ = path.partition("://")
    if sep and scheme != "file":
        raise UsageError(
            f"{path!r}: no file engine for {scheme}:// in this version of moxserve",
            hint="copy the data to a local path first",
        )
    return path[len("file://") :] if sep else path


def _missing(path: str) -> MoxFileNotExistsException:
    return MoxFileNotExistsException(f"no such file or directory: {path!r}")


_MODES = {"".join(sorted(m)) for m in ("r", "w", "a", "r+", "w+", "a+", "rb", "wb", "ab", "rb+", "wb+", "ab+")}


class File:
    """A file object with the built-in file's methods, plus `size()` and `next()`.

    Args:
        name: path or URL.
        mode: one of r, w, a, r+, w+, a+ and their binary forms, letters in any order (`br+` is `rb+`).

    Raises:
        MoxFileNotExistsException: opened for reading and not there.
        UsageError: the mode is none of those.
    """

    def __init__(self, name: Url, mode: str = "r", **kwargs: Any) -> None:
        if "".join(sorted(mode)) not in _MODES:
            raise UsageError(
                f"File({os.fsdecode(name)!r}): mode {mode!r} is none of r, w, a, r+, w+, a+ with or without b"
            )
        path = _local(name)
        first = next(c for c in mode if c in "rwa")
        canonical = first + "".join(c for c in mode if c in "b+")
        try:
            self._file: IO[Any] = open(path, canonical, **kwargs)  # noqa: SIM115 - closed by close()
        except FileNotFoundError:
            raise _missing(path) from None
        self.name = os.fsdecode(name)
        self.mode = mode

    def __getattr__(self, attribute: str) -> Any:
        return getattr(self.__dict__["_file"], attribute)

    def __enter__(self) -> File:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    def __iter__(self) -> Iterator[Any]:
        return iter(self._file)

    def __next__(self) -> Any:
        return next(self._file)

    next = __next__

    def close(self) -> None:
        """Flush and close; harmless when closed already."""
        self._file.close()

    def size(self) -> int:
        """Size in bytes, what is written but not yet flushed included."""
        if self._file.writable():
            self._file.flush()
        return os.fstat(self._file.fileno()).st_size


def read(url: Url, client_id: str | None = None, binary: bool = False) -> Any:
    """Return a whole file as str, or as bytes when `binary`.

    Raises:
        MoxFileNotExistsException: it is not there.
    """
    # Text is UTF-8 whatever the locale says, as `write` puts it.
    with File(url, "rb") if binary else File(url, "r", encoding="utf-8") as f:
        return f.read()


def write(url: Url, data: str | bytes, binary: bool = False) -> None:
    """Replace a file's content, all or nothing: readers see the old file or the new one."""
    payload = data.encode() if isinstance(data, str) else data
    atomic_write(_local(url), payload)


def append(url: Url, data: str | bytes, binary: bool = False) -> None:
    """Append to a file, which is made if it is not there."""
    with open(_local(url), "ab") as f:
        f.write(data.encode() if isinstance(data, str) else data)


def exists(url: Url) -> bool:
    """Tell whether a file or directory is there."""
    return os.path.exists(_local(url))


def is_directory(url: Url) -> bool:
    """Tell whether a directory is there."""
    return os.path.isdir(_local(url))


def get_size(url: Url, recursive: bool = False) -> int:
    """Return a file's size in bytes; for a directory, the sum of everything below it.

    Raises:
        MoxFileNotExistsException: it is not there.
    """
    path = _local(url)
    if os.path.isdir(path):
        return sum(os.path.getsize(os.path.join(d, f)) for d, _, files in os.walk(path) for f in files)
    try:
        return os.path.getsize(path)
    except FileNotFoundError:
        raise _missing(path) from None


def list_directory(
    url: Url,
    recursive: bool = False,
    remove_sep: bool = True,
    skip_file: bool = False,
    skip_dir: bool = False,
) -> list[str]:
    """List a directory's entries, sorted, as paths relative to it.

    Args:
        url: the directory.
        recursive: list everything below it.
        remove_sep: without it, directories end in `/`.
        skip_file: leave files out.
        skip_dir: leave directories out.

    Raises:
        MoxFileNotExistsException: it is not there.
    """
    base = _local(url)
    if not os.path.isdir(base):
        raise _missing(base)
    found: list[str] = []
    for folder, dirs, files in os.walk(base):
        prefix = os.path.relpath(folder, base)
        prefix = "" if prefix == "." else f"{prefix}/"
        if not skip_dir:
            found += [prefix + d + ("" if remove_sep else "/") for d in dirs]
        if not skip_file:
            found += [prefix + f for f in files]
        if not recursive:
            break
    return sorted(found)


def make_dirs(url: Url) -> None:
    """Make a directory and its parents; harmless when it is there."""
    os.makedirs(_local(url), exist_ok=True)


def mk_dir(url: Url) -> None:
    """Make one directory.

    Raises:
        OSError: its parent is not there.
    """
    path = _local(url)
    if not os.path.isdir(path):
        os.mkdir(path)


def remove(url: Url, recursive: bool = False) -> None:
    """Remove a file, or with `recursive` a directory; a directory without `recursive` is left alone.

    Raises:
        MoxFileNotExistsException: there is nothing of that name.
    """
    path = _local(url)
    if os.path.isdir(path) and not os.path.islink(path):
        if recursive:
            shutil.rmtree(path)
        return
    if path.endswith("/"):
        return
    try:
        os.remove(path)
    except FileNotFoundError:
        raise _missing(path) from None


def rename(src_url: Url, dst_url: Url) -> None:
    """Rename a file or directory, also across file systems.

    Raises:
        MoxFileNotExistsException: the source is not there.
    """
    src, dst = _local(src_url), _local(dst_url)
    if not os.path.exists(src):
        raise _missing(src)
    if src != dst:
        shutil.move(src, dst)


def copy(src_url: Url, dst_url: Url, client_id: str | None = None) -> None:
    """Copy one file; the target is replaced at once, when all of it is there.

    Raises:
        MoxFileNotExistsException: the source is not there.
        IsADirectoryError: the source is a directory; `copy_parallel` copies those.
    """
    src, dst = _local(src_url), _local(dst_url)
    if os.path.isdir(src):
        raise IsADirectoryError(f"{src!r} is a directory; copy_parallel copies directories")
    try:
        if os.path.exists(dst) and not os.path.isfile(dst):
            shutil.copyfile(src, dst)  # a device is written to, not replaced; a directory is refused
            return
        with open(src, "rb") as data, atomic_open(dst) as out:
            shutil.copyfileobj(data, out, 1 << 20)
    except FileNotFoundError:
        raise _missing(src if not os.path.exists(src) else os.path.dirname(dst)) from None


def copy_parallel(
    src_url: Url,
    dst_url: Url,
    file_list: list[str] | None = None,
    threads: int = 16,
    is_processing: bool = True,
    use_queue: bool = True,
) -> None:
    """Copy a directory into another, which may exist and is merged into.

    Args:
        src_url: source directory.
        dst_url: target directory.
        file_list: only these files, relative to the source.
        threads: how many copies run at once.
        is_processing: accepted for compatibility; threads give the same result.
        use_queue: accepted for compatibility.

    Raises:
        MoxFileNotExistsException: the source is not a directory.
        MoxFileNameDuplicateException: a file would land on a directory or the other way round; nothing was written.
    """
    src, dst = _local(src_url), _local(dst_url)
    names = file_list if file_list is not None else list_directory(src, recursive=True, skip_dir=True)
    dirs = [] if file_list is not None else list_directory(src, recursive=True, skip_file=True)
    clashes = [n for n in names if os.path.isdir(os.path.join(dst, n))]
    clashes += [d for d in dirs if os.path.isfile(os.path.join(dst, d))]
    if clashes:
        raise MoxFileNameDuplicateException(f"file and directory of one name below {dst!r}: {', '.join(clashes[:5])}")
    for folder in {
        dst,
        *(os.path.join(dst, d) for d in dirs),
        *(os.path.dirname(os.path.join(dst, n)) for n in names),
    }:
        os.makedirs(folder, exist_ok=True)
    with ThreadPoolExecutor(max(1, threads)) as pool:
        for _ in pool.map(lambda n: copy(os.path.join(src, n), os.path.join(dst, n)), names):
            pass


def glob(url: Url) -> list[str]:
    """Return the paths that match a pattern (`*`, `?`, `[]`, `**`), sorted."""
    return sorted(_glob.glob(_local(url), recursive=True))


def scan_dir(url: Url) -> Iterator[os.DirEntry[str]]:
    """Yield the entries of a directory, as os.scandir does.

    Raises:
        MoxFileNotExistsException: it is not there.
    """
    path = _local(url)
    if not os.path.isdir(path):
        raise _missing(path)
    with os.scandir(path) as entries:
        yield from entries


class Stat:
    """An os.stat result with MoXing's `length`, `mtime_nsec` and `is_directory` beside it."""

    def __init__(self, result: os.stat_result, is_directory: bool) -> None:
        self._result = result
        self.length = result.st_size
        self.mtime_nsec = result.st_mtime_ns
        self.is_directory = is_directory

    def __getattr__(self, attribute: str) -> Any:
        return getattr(self.__dict__["_result"], attribute)


def stat(url: Url) -> Stat:
    """Return size, time and kind of a file or directory.

    Raises:
        MoxFileNotExistsException: it is not there.
    """
    path = _local(url)
    try:
        return Stat(os.stat(path), os.path.isdir(path))
    except FileNotFoundError:
        raise _missing(path) from None


def walk(
    url: Url, topdown: bool = True, onerror: Any = None, followlinks: bool = False
) -> Iterator[tuple[str, list[str], list[str]]]:
    """Walk a directory tree, as os.walk does."""
    return os.walk(_local(url), topdown=topdown, onerror=onerror, followlinks=followlinks)
