"""SIGINT and SIGTERM during a run: the first asks the loop to stop, the second ends the process at once.

Python runs signal handlers between bytecodes of the main thread, so a main thread that waits inside the runtime (for
input that never comes, say) would never see the second one. The interpreter does write every signal to its wake-up
descriptor at once; a small thread reads it there.
"""

from __future__ import annotations

import os
import signal
import socket
import threading
from types import TracebackType
from typing import Any

__all__ = ["SignalGuard"]

_SIGNALS = (signal.SIGINT, signal.SIGTERM)


class SignalGuard:
    """Context manager: while it is open, signals set `signum` instead of ending the process.

    Outside of the main thread it does nothing, because only the main thread may handle signals.

    Attributes:
        signum: number of the first signal that came, 0 before that.
    """

    def __init__(self) -> None:
        self.signum = 0
        self._saved: dict[int, Any] = {}
        self._reader: socket.socket | None = None
        self._writer: socket.socket | None = None
        self._saved_fd = -1
        self._thread: threading.Thread | None = None

    def __enter__(self) -> SignalGuard:
        if threading.current_thread() is not threading.main_thread():
            return self
        self._reader, self._writer = socket.socketpair()
        self._writer.setblocking(False)
        for signum in _SIGNALS:
            self._saved[signum] = signal.signal(signum, self._handle)
        self._saved_fd = signal.set_wakeup_fd(self._writer.fileno(), warn_on_full_buffer=False)
        self._thread = threading.Thread(target=self._watch, args=(self._reader,), name="moxserve-signals", daemon=True)
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._writer is None or self._reader is None or self._thread is None:
            return
        signal.set_wakeup_fd(self._saved_fd)
        for signum, handler in self._saved.items():
            signal.signal(signum, handler)
        self._writer.close()  # the watcher reads end of file
        self._thread.join()
        self._reader.close()

    def _handle(self, signum: int, frame: Any) -> None:
        """Note the signal; the watcher may have done so already."""
        self.signum = self.signum or signum

    def _watch(self, reader: socket.socket) -> None:
        seen = 0
        while data := reader.recv(16):
            for number in data:
                if number not in _SIGNALS:
                    continue
                seen += 1
                self.signum = self.signum or number
                if seen > 1:
                    os._exit(128 + number)
