"""Which TFRecord files make a data set, and where each of them is read from: its own place, a copy below
`redirect_dir`, or a copy in `cache_dir`.
"""

from __future__ import annotations

import atexit
import contextlib
import errno
import fcntl
import fnmatch
import glob as _glob
import hashlib
import io
import logging
import os
import shutil
import threading
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

from moxserve.errors import DataError, UsageError, did_you_mean
from moxserve.file import TEMP_PREFIX, atomic_open, glob, is_directory, list_directory, make_dirs, sweep
from moxserve.protocol.tfrecord import compression_of, encode_record, records_of
from moxserve.tensorflow.datasets.in_use import hold
from moxserve.tensorflow.datasets.raw.storage import is_remote, join, list_tree, plain_url, read_file

__all__ = ["RecordSource", "cache_folder", "cached_copies", "find_sources", "open_source"]

_log = logging.getLogger(__name__)
_ENV = "ENV"
_CACHE_VARIABLE = "DLS_LOCAL_CACHE_PATH"
_COPY_BYTES = 1 << 20
_LOCK = "in-use.lock"


@dataclass(frozen=True)
class RecordSource:
    """One file of a data set.

    Attributes:
        path: where it is read from.
        size_bytes: its size; -1 if it has vanished.
    """

    path: str
    size_bytes: int


def find_sources(base_dir: str, patterns: Sequence[str], redirect_dir: str | None = None) -> list[RecordSource]:
    """Find the files of a data set, sorted by path; each file counts once.

    Args:
        base_dir: the folder; `s3://` and `obs://`, too.
        patterns: of names relative to it (`*`, `?`, `[]`; `**` on local paths), or of absolute paths.
        redirect_dir: a folder with copies: a file is read from there if there is one of the same relative path and
            size.

    Raises:
        DataError: nothing matches, or `redirect_dir` is not there.
    """
    base = plain_url(base_dir)
    found = _remote_files(base, patterns) if is_remote(base) else _local_files(base, patterns)
    if not found:
        raise DataError(_nothing(base, patterns), hint="file_pattern is a pattern of file names, such as '*.tfrecord'")
    if redirect_dir is None:
        return found
    other = plain_url(redirect_dir)
    if is_remote(other) or not is_directory(other):
        raise DataError(f"redirect_dir: no such folder: {other!r}")
    return [_redirected(source, base, other) for source in found]


def _local_files(base: str, patterns: Sequence[str]) -> list[RecordSource]:
    paths = {path for pattern in patterns for path in glob(os.path.join(_glob.escape(base), pattern))}
    return [RecordSource(path, os.path.getsize(path)) for path in sorted(paths) if os.path.isfile(path)]


def _remote_files(base: str, patterns: Sequence[str]) -> list[RecordSource]:
    tree = list_tree(base)
    names = [name for name in tree.files if any(fnmatch.fnmatchcase(name, pattern) for pattern in patterns)]
    return [RecordSource(join(base, name), tree.size(name)) for name in names]


def _nothing(base: str, patterns: Sequence[str]) -> str:
    wanted = " or ".join(repr(pattern) for pattern in patterns)
    if is_remote(base):
        return f"no file of {base!r} matches {wanted}"
    if not is_directory(base):
        return f"no file matches {wanted}: there is no folder {base!r}"
    names = [name for name in list_directory(base, skip_dir=True) if not name.startswith(".")]
    return f"no file of {base!r} matches {wanted}; {did_you_mean(patterns[0], names) if names else 'it has no files'}"


def _redirected(source: RecordSource, base: str, other: str) -> RecordSource:
    path = os.path.join(other, os.path.relpath(source.path, base))
    with contextlib.suppress(OSError):
        if os.path.getsize(path) == source.size_bytes:
            return RecordSource(path, source.size_bytes)
    return source


@contextlib.contextmanager
def open_source(path: str) -> Iterator[Any]:
    """Open a file for reading bytes; one in a bucket is fetched whole."""
    if is_remote(path):
        yield io.BytesIO(read_file(path))
        return
    with open(path, "rb") as file:
        yield file


def cache_folder(cache_dir: str) -> str:
    """Return the local folder that `cache_dir` means: itself, or for `ENV` what $DLS_LOCAL_CACHE_PATH names.

    Raises:
        UsageError: it is no folder, or in a bucket, or the variable is not set.
    """
    if not cache_dir or not isinstance(cache_dir, (str, os.PathLike)):
        raise UsageError(f"cache_dir={cache_dir!r}: expected a local folder", hint="leave it out for no cache")
    if cache_dir == _ENV:
        folder = os.environ.get(_CACHE_VARIABLE, "")
        if not folder:
            raise UsageError(
                f"cache_dir='ENV': ${_CACHE_VARIABLE} is not set", hint=f"set {_CACHE_VARIABLE}, or name a folder"
            )
    else:
        folder = plain_url(cache_dir)
    if is_remote(folder):
        raise UsageError(f"cache_dir {folder!r}: expected a local folder")
    return folder


def cached_copies(sources: Sequence[RecordSource], cache_dir: str, remove: bool, threads: int) -> list[str]:
    """Copy files into a local folder, uncompressed, so that their records can be read in any order; copies that are
    there are used.

    A copy is named after the path, size and time of change of its source, and appears when all of it is there.

    Args:
        sources: the files.
        cache_dir: as `cache_folder` takes it.
        remove: delete the copies when this process ends, unless another process uses them still.
        threads: how many are copied at once.

    Returns:
        The paths of the copies.

    Raises:
        DataError: a file is damaged or cannot be read, or the disk is full.
        UsageError: as `cache_folder`.
    """
    folder = os.path.join(cache_folder(cache_dir), "tfrecords")
    make_dirs(folder)
    _hold(folder, remove)
    sweep(folder)
    paths = [os.path.join(folder, _copy_name(source)) for source in sources]
    missing = [(s, path) for s, path in zip(sources, paths, strict=True) if not os.path.exists(path)]
    if missing:
        _log.info("copying %d of %d TFRecord files to %s", len(missing), len(sources), folder)
    try:
        with ThreadPoolExecutor(max(1, threads)) as pool:
            list(pool.map(lambda pair: _copy(pair[0].path, pair[1]), missing))
    except OSError as error:
        hint = "give another cache_dir, or none" if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EACCES) else None
        raise DataError(f"TFRecord files cannot be copied to {folder!r}: {error}", hint=hint) from error
    return paths


def _copy_name(source: RecordSource) -> str:
    changed = "" if is_remote(source.path) else str(os.stat(source.path).st_mtime_ns)
    place = source.path if is_remote(source.path) else os.path.realpath(source.path)
    digest = hashlib.sha256(f"{place}\n{source.size_bytes}\n{changed}".encode()).hexdigest()[:16]
    return f"{digest}-{os.path.basename(source.path)}"


def _copy(source: str, target: str) -> None:
    with open_source(source) as file:
        head = file.read(12)
        file.seek(0)
        with atomic_open(target) as out:
            if not compression_of(head):
                shutil.copyfileobj(file, out, _COPY_BYTES)
                return
            for payload in records_of(file, source):
                out.write(encode_record(payload))


_held: dict[str, tuple[int, list[bool]]] = {}
_guard = threading.Lock()


def _hold(folder: str, remove: bool) -> None:
    """Hold the folder's lock, shared, until this process ends; the last one that wants the copies removed does it."""
    with _guard:
        if folder in _held:
            _held[folder][1].append(remove)
            return
        _held[folder] = (hold(os.path.join(folder, _LOCK)), [remove])
        atexit.register(_let_go, folder, os.getpid())


def _let_go(folder: str, owner: int) -> None:
    if os.getpid() != owner or folder not in _held:  # a forked child ends
        return
    descriptor, wishes = _held.pop(folder)
    try:
        if all(wishes):
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            _remove_copies(folder)
    except OSError as error:
        _log.debug("the copies in %s stay: %s", folder, error)
    finally:
        os.close(descriptor)


def _remove_copies(folder: str) -> None:
    """Remove what this module makes, and nothing else that may lie there."""
    for name in os.listdir(folder):
        digest, dash, _ = name.partition("-")
        ours = dash and len(digest) == 16 and set(digest) <= set("0123456789abcdef")
        if ours or name.startswith((TEMP_PREFIX, ".moxserve-records")) or name == _LOCK:
            with contextlib.suppress(OSError):
                os.remove(os.path.join(folder, name))
    with contextlib.suppress(OSError):
        os.rmdir(folder)
