"""How files and directories come to be: under a temporary name, flushed to disk, then renamed.

A reader sees the old state or the new one, never something between, whatever moment the writer dies at. Temporary names
start with `TEMP_PREFIX`, which no reader of ours takes for data, and say who writes: process id, start of the process
and host. So `sweep` tells a dead writer's leavings from work in progress, also where containers use the same process
ids again and again, and where several machines share a folder.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import shutil
import socket
import tempfile
import time
import uuid
from collections.abc import Iterator
from functools import cache
from typing import BinaryIO

from moxserve.errors import UsageError, VersionExistsError
from moxserve.file.filesystem import is_remote, text_of

__all__ = [
    "TEMP_PREFIX",
    "abandoned",
    "atomic_open",
    "atomic_write",
    "fsync_directory",
    "fsync_path",
    "publish_directory",
    "scratch_directory",
    "staging_directory",
    "sweep",
    "temp_name",
]

TEMP_PREFIX = ".moxserve-tmp-"


_FOREIGN_LITTER_S = 24 * 3600.0


def temp_name() -> str:
    """Return a fresh temporary name that tells who writes, as `abandoned` reads it."""
    pid = os.getpid()
    return f"{TEMP_PREFIX}{pid}-{_started(pid)}-{_host()}-{uuid.uuid4().hex[:12]}"


def _started(pid: int) -> str:
    """Return when a process began, in clock ticks since boot; empty where the system does not tell, or it has ended.

    One that has ended keeps its number until its parent asks for its status, which some never do.
    """
    try:
        with open(f"/proc/{pid}/stat", "rb") as f:
            # The second field, the program's name, may hold blanks and brackets: count from its end.
            fields = f.read().rpartition(b")")[2].split()
        return "" if fields[0] in (b"Z", b"X") else fields[19].decode()
    except (OSError, IndexError):
        return ""


@cache
def _host() -> str:
    """Return what tells apart the process numberings of machines and containers."""
    known = [socket.gethostname()]
    with contextlib.suppress(OSError), open("/etc/machine-id") as f:
        known.append(f.read().strip())
    with contextlib.suppress(OSError):
        known.append(str(os.stat("/proc/self/ns/pid").st_ino))
    return hashlib.sha256("\n".join(known).encode()).hexdigest()[:8]


def fsync_path(path: str) -> None:
    """Flush what was written to a file, or the entries of a directory, to disk."""
    fd = os.open(path, os.O_RDONLY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def fsync_directory(path: str) -> None:
    """Flush a directory's entries, so that a rename in it survives a power cut."""
    fsync_path(path)


def _refuse_url(path: str | os.PathLike[str]) -> None:
    """Make no local folder called `s3:` of a URL that somebody gave where a path is expected.

    Raises:
        UsageError: it is a URL.
    """
    if is_remote(text_of(path)):
        raise UsageError(
            f"{os.fspath(path)!r} is in a store; expected a path of this machine",
            hint="write it here, and copy it then: mox.file.copy, mox.file.copy_parallel",
        )


def atomic_write(path: str | os.PathLike[str], data: bytes | str) -> None:
    """Replace a file's content, all or nothing.

    Args:
        path: the file; its directory must exist.
        data: bytes, or text that is written as UTF-8.

    Raises:
        OSError: the directory is missing or not writable; the old content is untouched.
    """
    with atomic_open(path) as f:
        f.write(data.encode() if isinstance(data, str) else data)


@contextlib.contextmanager
def atomic_open(path: str | os.PathLike[str]) -> Iterator[BinaryIO]:
    """Give a file to write bytes to, which replaces the file at `path` when the block ends without an error.

    Args:
        path: the file; its directory must exist.

    Raises:
        OSError: the directory is missing or not writable; the old content is untouched.
    """
    _refuse_url(path)
    # Behind a symbolic link, as an ordinary open would write.
    target = os.path.realpath(path)
    folder = os.path.dirname(target)
    temp = os.path.join(folder, temp_name())
    try:
        with open(temp, "wb") as f:
            yield f
            f.flush()
            os.fsync(f.fileno())
        os.replace(temp, target)
    except BaseException:
        with contextlib.suppress(FileNotFoundError):
            os.remove(temp)
        raise
    fsync_directory(folder)


@contextlib.contextmanager
def staging_directory(parent: str | os.PathLike[str]) -> Iterator[str]:
    """Give a fresh hidden directory beside where its content will be published.

    It is removed on exit if it is still there, so an exception leaves nothing behind; after a crash `sweep` removes it.

    Args:
        parent: the directory that the result is published into; made if missing.
    """
    _refuse_url(parent)
    os.makedirs(parent, exist_ok=True)
    temp = os.path.join(os.path.abspath(parent), temp_name())
    os.mkdir(temp)
    try:
        yield temp
    finally:
        shutil.rmtree(temp, ignore_errors=True)


@contextlib.contextmanager
def scratch_directory() -> Iterator[str]:
    """Give a fresh directory for temporary files, where TMPDIR says, that only this user can look into.

    It is removed on exit; what a process left that was killed inside is removed by the next one that comes here.
    """
    parent = tempfile.gettempdir()
    sweep(parent)
    with staging_directory(parent) as folder:
        os.chmod(folder, 0o700)
        yield folder


def publish_directory(staged: str, final: str) -> None:
    """Flush a staged directory to disk and rename it into place.

    Args:
        staged: a directory made by `staging_directory` on the same file system.
        final: its final path, which must not exist.

    Raises:
        VersionExistsError: the final path is taken, by a directory with content or a file.
    """
    for folder, _, files in os.walk(staged):
        for name in files:
            fsync_path(os.path.join(folder, name))
        fsync_path(folder)
    try:
        os.rename(staged, final)
    except OSError as error:
        if os.path.lexists(final):
            raise VersionExistsError(
                f"{final!r} exists already",
                hint="choose another version, or leave it out to take the next free one",
            ) from error
        raise
    fsync_directory(os.path.dirname(os.path.abspath(final)))


def _alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except (ProcessLookupError, OverflowError):
        return False
    except PermissionError:
        return True
    return True


def abandoned(name: str, modified_at: float) -> bool:
    """Tell whether the writer of what has a temporary name is gone.

    Args:
        name: as `temp_name` gives it.
        modified_at: when it was last written to, seconds since 1970: what machines that cannot be seen from here wrote
            is given up after a day, since nobody writes one file or version for that long.
    """
    parts = name[len(TEMP_PREFIX) :].split("-")
    if not parts[0].isdecimal():
        return True
    pid = int(parts[0])
    if len(parts) != 4:
        return not _alive(pid)
    started, host = parts[1], parts[2]
    if host != _host():
        return time.time() - modified_at > _FOREIGN_LITTER_S
    return not _alive(pid) or _started(pid) != started


def sweep(folder: str | os.PathLike[str]) -> list[str]:
    """Remove what writers that died left in a folder.

    Returns:
        The names that were removed. Those of living writers stay, and for a day those of writers on other machines.
    """
    removed = []
    with contextlib.suppress(FileNotFoundError), os.scandir(folder) as entries:
        for entry in list(entries):
            if not entry.name.startswith(TEMP_PREFIX):
                continue
            try:
                if not abandoned(entry.name, entry.stat(follow_symlinks=False).st_mtime):
                    continue
            except FileNotFoundError:
                continue
            if entry.is_dir(follow_symlinks=False):
                shutil.rmtree(entry.path, ignore_errors=True)
            else:
                with contextlib.suppress(FileNotFoundError):
                    os.remove(entry.path)
            removed.append(entry.name)
    return removed
