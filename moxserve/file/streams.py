"""Open objects in the buffers and the text layer of `io`, with a `flush` that reaches the store."""

from __future__ import annotations

import io
from collections.abc import Callable
from typing import Any

from moxserve.file.reader import ObjectReader

__all__ = ["ObjectText", "buffered"]

_READ_AHEAD_BYTES = 256 << 10


class _Writer(io.BufferedWriter):
    """Python's buffer whose `flush` reaches the store."""

    quiet = False

    def flush(self) -> None:
        """Upload what is new, unless the text layer above only moves about."""
        super().flush()
        if not self.quiet and not self.closed:
            self.raw.sync()  # type: ignore[attr-defined]

    def close(self) -> None:
        """Upload what is new, once."""
        _close(self, self.raw, super().close)


class _Random(io.BufferedRandom):
    """Python's buffer for both directions whose `flush` reaches the store."""

    quiet = False

    def flush(self) -> None:
        """Upload what is new, unless the text layer above only moves about."""
        super().flush()
        if not self.quiet and not self.closed:
            self.raw.sync()  # type: ignore[attr-defined]

    def close(self) -> None:
        """Upload what is new, once."""
        _close(self, self.raw, super().close)


def _close(stream: Any, raw: Any, close: Callable[[], None]) -> None:
    """Close a stream whose last flush may fail: io's own `close` would flush again, and wait for a dead store twice."""
    if stream.closed:
        return
    try:
        stream.flush()
    except BaseException:
        raw.discard()
        raise
    finally:
        close()


class ObjectText(io.TextIOWrapper):
    """Python's text layer; going to a position flushes the buffers, but uploads nothing."""

    def seek(self, cookie: int, whence: int = 0) -> int:
        """Go to a position."""
        return self._quietly(lambda: super(ObjectText, self).seek(cookie, whence))

    def tell(self) -> int:
        """Return the position."""
        return self._quietly(lambda: super(ObjectText, self).tell())

    def close(self) -> None:
        """Upload what is new, once."""
        if self.closed or not hasattr(self.buffer, "quiet"):
            super().close()
        else:
            _close(self, self.buffer.raw, super().close)  # type: ignore[attr-defined]

    def _quietly(self, move: Callable[[], int]) -> int:
        buffer: Any = self.buffer
        if not hasattr(buffer, "quiet"):
            return move()
        buffer.quiet = True
        try:
            return move()
        finally:
            buffer.quiet = False


def buffered(raw: io.RawIOBase, buffering: int = -1) -> Any:
    """Wrap a raw stream of this module as `open` wraps a file."""
    if buffering == 0:
        return raw
    size = buffering if buffering > 1 else _READ_AHEAD_BYTES
    if isinstance(raw, ObjectReader):
        return io.BufferedReader(raw, size)
    return _Random(raw, size) if raw.readable() else _Writer(raw, size)
