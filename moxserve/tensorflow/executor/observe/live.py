"""One line at the bottom of a terminal that is kept up to date, while others go on printing lines above it.

Whatever is written through `sys.stdout`, `sys.stderr` or a log handler of theirs takes the line away first and puts it
back after, to the letter: nothing is wrapped or coloured. What native code writes goes past this; it finds the cursor
at the start of the line and writes over it.
"""

from __future__ import annotations

import logging
import shutil
import sys
import threading
from typing import Any

__all__ = ["LiveLine"]

_CLEAR = "\r\x1b[K"


class LiveLine:
    """The line; nothing happens before `open`.

    Args:
        stream: the terminal.
    """

    def __init__(self, stream: Any) -> None:
        self._stream = stream
        self._lock = threading.RLock()  # a signal handler may print while we do
        self._text = ""
        self._whole = True  # whether what others wrote last ended with a line's end
        self._undo: list[tuple[Any, str, Any]] = []
        self._handlers: list[tuple[logging.StreamHandler[Any], Any]] = []

    @classmethod
    def on_terminal(cls) -> LiveLine | None:
        """The line of the terminal that stderr goes to; None where that is none."""
        return cls(sys.stderr) if _is_terminal(sys.stderr) else None

    def open(self) -> None:
        """Stand between others and the terminal from now on."""
        streams = {id(stream): _Above(self, stream) for stream in (sys.stdout, sys.stderr) if _is_terminal(stream)}
        for handler in _handlers():
            if (above := streams.get(id(handler.stream))) is not None:
                self._handlers.append((handler, handler.setStream(above)))
        for name in ("stdout", "stderr"):
            stream = getattr(sys, name)
            if id(stream) in streams:
                self._undo.append((sys, name, stream))
                setattr(sys, name, streams[id(stream)])

    def show(self, text: str) -> None:
        """Replace the line; cut where the terminal is narrower."""
        with self._lock:
            self._text = text
            self._draw()

    def close(self) -> None:
        """Take the line away, and let others write to the terminal again."""
        with self._lock:
            if self._text and self._whole:
                self._write(_CLEAR)
            self._text = ""
        while self._handlers:
            handler, stream = self._handlers.pop()
            handler.setStream(stream)
        while self._undo:
            setattr(*self._undo.pop())

    def above(self, stream: Any, text: str) -> int:
        """Write what somebody else writes, above the line."""
        with self._lock:
            if self._text and self._whole:
                self._write(_CLEAR)
            written: int = stream.write(text)
            if text:
                self._whole = text.endswith("\n")
            stream.flush()
            self._draw()
            return written

    def _draw(self) -> None:
        """Draw the line; not in the middle of somebody else's."""
        if self._text and self._whole:
            width = shutil.get_terminal_size().columns - 1
            self._write(f"{_CLEAR}{self._text[:width]}\r")

    def _write(self, text: str) -> None:
        self._stream.write(text)
        self._stream.flush()


class _Above:
    """A terminal's stream whose lines go above the live line."""

    def __init__(self, line: LiveLine, stream: Any) -> None:
        self._line = line
        self._stream = stream

    def write(self, text: str) -> int:
        """Write above the line."""
        return self._line.above(self._stream, text)

    def writelines(self, lines: Any) -> None:
        """Write above the line."""
        for text in lines:
            self.write(text)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)


def _is_terminal(stream: Any) -> bool:
    isatty = getattr(stream, "isatty", None)
    return isatty is not None and bool(isatty())


def _handlers() -> list[logging.StreamHandler[Any]]:
    """The handlers of TensorFlow's log and of the root, absl's among them."""
    found = [handler for name in ("tensorflow", None) for handler in logging.getLogger(name).handlers]
    inner = [getattr(handler, "python_handler", handler) for handler in found]
    return [handler for handler in inner if isinstance(handler, logging.StreamHandler)]
