"""Keeps TensorFlow's start-up notes out of the server's log.

TensorFlow tells of CPU features and missing GPUs from C++ before any logging can be set up, whatever its own variables
say. While models are loaded for the first time, what is written to the file descriptor of stderr goes through a filter;
the server's own log goes past it. Only lines that are known to say nothing are left out: everything else, a stack trace
or a check that failed included, is passed on at once.
"""

from __future__ import annotations

import contextlib
import logging
import os
import re
import sys
import threading
from collections.abc import Iterator
from typing import TextIO

__all__ = ["StartupNotes", "startup_notes_hidden"]

_NOTES = re.compile(
    rb"I\d{4} [\d:.]+ +\d+ [\w.]+:\d+\] "  # notes of absl's logging before it is set up
    rb"|\d{4}-\d\d-\d\d [\d:.]+: I "  # the same in TensorFlow's older form
    rb"|WARNING: All log messages before absl::InitializeLog\(\) is called are written to STDERR"
    rb"|To enable the following instructions: "
    # A machine without a GPU's driver; with one that is broken, the number is another.
    rb"|E\d{4} [\d:.]+ +\d+ cuda_platform\.cc:\d+\] failed call to cuInit: .*\(303\)"
)
_STDERR = 2
_PATIENCE_S = 5.0


@contextlib.contextmanager
def startup_notes_hidden() -> Iterator[None]:
    """Keep TensorFlow's notes off stderr within a block, and have the log written past the filter.

    Does nothing when the user asks for them, by the variable that TensorFlow itself has for that.
    """
    if os.environ.get("TF_CPP_MIN_LOG_LEVEL") in ("0", "1"):
        yield
        return
    notes = StartupNotes()
    to_stderr = [
        handler
        for handler in logging.getLogger().handlers
        if isinstance(handler, logging.StreamHandler) and handler.stream is sys.stderr
    ]
    for handler in to_stderr:
        handler.setStream(notes.stream)
    try:
        yield
    finally:
        for handler in to_stderr:
            handler.setStream(sys.stderr)
        notes.end()


class StartupNotes:
    """The filter, from its making until `end`.

    Attributes:
        stream: the real stderr, for the server's own log, until `end`.
    """

    def __init__(self) -> None:
        sys.stderr.flush()
        self._real = os.dup(_STDERR)
        self.stream: TextIO = open(os.dup(_STDERR), "w", buffering=1, encoding="utf-8", errors="backslashreplace")  # noqa: SIM115
        source, sink = os.pipe()
        os.dup2(sink, _STDERR)
        os.close(sink)
        self._thread = threading.Thread(target=self._pass_on, args=(source,), name="moxserve-stderr", daemon=True)
        self._thread.start()
        self._lock = threading.Lock()
        self._ended = False

    def _pass_on(self, source: int) -> None:
        with open(source, "rb", buffering=0) as pipe:
            rest = b""
            while data := pipe.read(65536):
                *lines, rest = (rest + data).split(b"\n")
                self._write(lines)
            if rest:
                self._write([rest])
        # By whoever uses it last: a process that was started meanwhile may keep the pipe open after the end.
        os.close(self._real)

    def _write(self, lines: list[bytes]) -> None:
        told = b"".join(line + b"\n" for line in lines if not _NOTES.match(line))
        with contextlib.suppress(OSError):  # nobody reads our stderr: there is nobody to tell
            while told:
                told = told[os.write(self._real, told) :]

    def end(self) -> None:
        """Give stderr back; what was written before is passed on. Harmless when done before."""
        with self._lock:
            if self._ended:
                return
            self._ended = True
        sys.stderr.flush()
        self.stream.close()
        os.dup2(self._real, _STDERR)  # closes the last way into the pipe, so the thread comes to its end
        self._thread.join(_PATIENCE_S)
