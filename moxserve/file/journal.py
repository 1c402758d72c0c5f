"""What a copy of a directory has done, so that the same copy goes on where it was broken off.

A journal is a file of lines in moxserve's cache directory, named after source and target: each line has a file's name,
and what was known of the source when it was copied. It is begun when a copy takes longer than a moment, and removed
when the copy is complete. A line counts only if the source is still what it says and the target has a file of that
size; a line that was cut off does not count. Without a place to write there is no journal, and no harm.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import time
from types import TracebackType
from typing import IO, TYPE_CHECKING

from moxserve.file.filesystem import join
from moxserve.file.places import cache_directory

if TYPE_CHECKING:
    from moxserve.file.copying import Place
    from moxserve.file.trees import Plan

__all__ = ["Journal"]

_BEGIN_AFTER_S = 2.0
_FORGET_AFTER_S = 30 * 24 * 3600.0


class Journal:
    """The journal of one copy; a context manager.

    Args:
        source: path of the source directory.
        target: path of the target directory.

    Attributes:
        resumed: whether a copy that was broken off left something here.
    """

    resumed = False

    def __init__(self, source: str, target: str) -> None:
        name = hashlib.sha256(f"{source}\0{target}".encode()).hexdigest()[:32]
        self._folder = os.path.join(cache_directory(), "copies")
        self._path = os.path.join(self._folder, f"{name}.jsonl")
        self._begin, self._begin_ns = time.monotonic(), time.time_ns()
        self._known: dict[str, str] = {}
        self._kept: list[str] = []  # names that were done before the file was begun
        self._file: IO[str] | None = None
        self._possible = True

    def __enter__(self) -> Journal:
        return self

    def __exit__(self, kind: type[BaseException] | None, value: object, traceback: TracebackType | None) -> None:
        if self._file is not None:
            self._file.close()

    def left(self, made: Plan) -> list[str]:
        """Return what is still to be copied of a plan, by what a copy that was broken off left here."""
        self._source = made.source
        self._known = {name: known for name, known in made.files.items() if known is not None}
        written = self._read()
        self.resumed = bool(written)
        if not written:
            return list(made.files)
        there = _sizes(made.target, written)
        left = []
        for name in made.files:
            known = written.get(name)
            if known is None or known != self._identity(name) or there.get(name) != known.split(" ")[0]:
                left.append(name)
        return left

    def done(self, name: str) -> None:
        """Note that a file is copied."""
        if not self._possible:
            return
        self._kept.append(name)
        if self._file is None and time.monotonic() - self._begin < _BEGIN_AFTER_S:
            return
        try:
            file = self._open()
            for kept in self._kept:
                identity = self._identity(kept)
                if identity is not None:
                    file.write(json.dumps([kept, identity]) + "\n")
            file.flush()
        except OSError:
            self._possible = False
        self._kept.clear()

    def complete(self) -> None:
        """Everything is copied: forget it."""
        with contextlib.suppress(OSError):
            os.remove(self._path)

    def _open(self) -> IO[str]:
        if self._file is None:
            os.makedirs(self._folder, mode=0o700, exist_ok=True)
            self._forget_old()
            self._file = open(self._path, "a", encoding="utf-8")  # noqa: SIM115 - closed on exit
        return self._file

    def _forget_old(self) -> None:
        with contextlib.suppress(OSError), os.scandir(self._folder) as entries:
            for entry in entries:
                if time.time() - entry.stat().st_mtime > _FORGET_AFTER_S:
                    os.remove(entry.path)

    def _read(self) -> dict[str, str]:
        written: dict[str, str] = {}
        try:
            with open(self._path, encoding="utf-8") as file:
                for line in file:
                    with contextlib.suppress(ValueError, TypeError):
                        name, known = json.loads(line)
                        written[str(name)] = str(known)
        except (OSError, UnicodeDecodeError):
            return {}
        return written

    def _identity(self, name: str) -> str | None:
        """What tells that a file of the source is still the same: its size, and its tag in a store or its time here."""
        if self._source.remote:
            return self._known.get(name)
        try:
            found = os.stat(join(self._source.path, name))
        except OSError:
            return None
        if found.st_mtime_ns >= self._begin_ns:  # written while it was copied: nobody knows what was read
            return None
        return f"{found.st_size} {found.st_mtime_ns}"


def _sizes(target: Place, names: dict[str, str]) -> dict[str, str]:
    """Return the sizes, as text, of files that are in a directory."""
    if target.remote:
        try:
            files = target.fs.tree(target.path)[1]
        except FileNotFoundError:
            return {}
        return {name: str(known).split(" ")[0] for name, known in files.items()}
    sizes = {}
    for name in names:
        with contextlib.suppress(OSError):
            sizes[name] = str(os.stat(join(target.path, name)).st_size)
    return sizes
