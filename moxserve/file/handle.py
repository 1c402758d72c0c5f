"""`File`: one file object for local files and objects."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from types import TracebackType
from typing import IO, Any

from moxserve.errors import UsageError
from moxserve.file.filesystem import Url, locate, text_of

__all__ = ["File", "canonical_mode"]

_MODES = {"".join(sorted(m)) for m in ("r", "w", "a", "r+", "w+", "a+", "rb", "wb", "ab", "rb+", "wb+", "ab+")}


def canonical_mode(mode: str, name: str) -> str:
    """Return a mode as Python writes it: `rb+` for `br+`.

    Raises:
        UsageError: it is none of r, w, a, r+, w+, a+ with or without b.
    """
    if "".join(sorted(mode)) not in _MODES:
        raise UsageError(f"File({name!r}): mode {mode!r} is none of r, w, a, r+, w+, a+ with or without b")
    return next(c for c in mode if c in "rwa") + "".join(c for c in ("b", "+") if c in mode)


class File:
    """A file object with the built-in file's methods, plus `size()` and `next()`.

    An object in a store is read as a stream: opening sends one request, `seek` may send another one, and no more than a
    small buffer is held. What is written is collected in a temporary file (in memory while it is small) and appears in
    the store, all at once, at `flush()` and `close()`; each flush uploads anew, so a log is flushed now and then, not
    line by line. Modes r+ and a+ replace the object only if nobody else has since it was opened; mode a puts what is
    new behind what is there at that moment. Left by an exception, a `with` block keeps what was
    written, as Python does.

    Args:
        name: path or URL.
        mode: one of r, w, a, r+, w+, a+ and their binary forms, letters in any order (`br+` is `rb+`).
        kwargs: `buffering`, and for text `encoding`, `errors`, `newline`, as of `open`. Text in a store is UTF-8.

    Attributes:
        name: as it was given.
        mode: as it was given.

    Raises:
        MoxFileNotExistsException: opened for reading and not there.
        MoxFileIsADirectoryException: it is a directory.
        UsageError: the mode is none of those.
    """

    def __init__(self, name: Url, mode: str = "r", **kwargs: Any) -> None:
        canonical = canonical_mode(mode, text_of(name))
        fs, path = locate(name)
        self._file: IO[Any] = fs.open(path, canonical, **kwargs)
        self.name = os.fsdecode(name)
        self.mode = mode

    def __getattr__(self, attribute: str) -> Any:
        # Attributes of the built-in file that are not methods of the document: closed, encoding, buffer, readinto …
        return getattr(self.__dict__["_file"], attribute)

    def __repr__(self) -> str:
        return f"<File {self.name!r} mode {self.mode!r}{' closed' if self._file.closed else ''}>"

    def __enter__(self) -> File:
        return self

    def __exit__(self, kind: type[BaseException] | None, value: object, traceback: TracebackType | None) -> None:
        self.close()

    def __iter__(self) -> Iterator[Any]:
        return iter(self._file)

    def __next__(self) -> Any:
        return next(self._file)

    next = __next__

    def close(self) -> None:
        """Flush and close; harmless when closed already. Only then is an object sure to be in the store."""
        self._file.close()

    def flush(self) -> None:
        """Write out what is collected; an object is uploaded."""
        self._file.flush()

    def isatty(self) -> bool:
        """Tell whether it is a terminal."""
        return self._file.isatty()

    def read(self, n: int | None = -1) -> Any:
        """Read so many bytes or characters, or all that is left."""
        return self._file.read(-1 if n is None else n)

    def readable(self) -> bool:
        """Tell whether it can be read."""
        return self._file.readable()

    def readline(self, size: int = -1) -> Any:
        """Read a line, or so much of it."""
        return self._file.readline(size)

    def readlines(self, sizeint: int = -1) -> list[Any]:
        """Read lines: all, or until so many bytes or characters are there (`sizeint` as MoXing's document names it)."""
        return self._file.readlines(sizeint)

    def seek(self, offset: int, whence: int = 0) -> int:
        """Go to a position: from the beginning (0), from here (1) or from the end (2)."""
        return self._file.seek(offset, whence)

    def seekable(self) -> bool:
        """Tell whether `seek` can be used."""
        return self._file.seekable()

    def size(self) -> int:
        """Return the size in bytes, what is written but not yet flushed included."""
        buffer: Any = getattr(self._file, "buffer", self._file)
        raw = getattr(buffer, "raw", buffer)
        if not hasattr(raw, "size"):
            if self._file.writable():
                self._file.flush()
            return os.fstat(self._file.fileno()).st_size
        if self._file.writable():
            # Out of the buffers, not to the store.
            buffer.quiet = True
            try:
                self._file.flush()
            finally:
                buffer.quiet = False
        return int(raw.size)

    def tell(self) -> int:
        """Return the position."""
        return self._file.tell()

    def writable(self) -> bool:
        """Tell whether it can be written to."""
        return self._file.writable()

    def write(self, data: Any) -> int:
        """Write text or bytes; returns how much."""
        return self._file.write(data)

    def writelines(self, sequence: Iterable[Any]) -> None:
        """Write several pieces of text or bytes."""
        self._file.writelines(sequence)
