"""How a server process is told to stop: SIGTERM, SIGINT or SIGHUP, and what is waited for then.

A server that writes an access log takes SIGHUP as logrotate means it: its file was moved away.
"""

from __future__ import annotations

import logging
import os
import signal
import threading
import time
from collections.abc import Callable
from typing import TYPE_CHECKING

from moxserve.serving.observe.stderr import startup_notes_hidden

if TYPE_CHECKING:
    from moxserve.serving.main import Server

__all__ = ["ignore_stop_signals", "on_stop_signals", "serve_until_signal"]

logger = logging.getLogger("moxserve.serve")

_SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)
_DUPLICATE_S = 0.5


def on_stop_signals(
    stop: Callable[[int], None], kill: Callable[[], None] = lambda: None, moved: Callable[[], None] | None = None
) -> threading.Event:
    """Have a function called, in a thread of its own, when the process is told to stop.

    A second signal ends the process at once, but for one that comes right after the first: a terminal sends Ctrl-C to
    every process of a group and a parent passes it on to its children, so each of those gets it twice.

    Args:
        stop: called with the number of the first signal.
        kill: called before the second signal ends the process.
        moved: called on SIGHUP instead, quickly; None has SIGHUP stop like the others.

    Returns:
        Set when the first signal came.
    """
    asked = threading.Event()
    first_at = 0.0

    def ask(signum: int, frame: object) -> None:  # noqa: ARG001 - the signature of a handler
        nonlocal first_at
        now = time.monotonic()
        if asked.is_set():
            if now - first_at > _DUPLICATE_S:
                kill()
                os._exit(128 + signum)
            return
        first_at = now
        asked.set()
        # Not here: a handler interrupts whatever holds a lock that stopping needs.
        threading.Thread(target=stop, args=(signum,), name="moxserve-stop").start()
        first_at = time.monotonic()  # on a busy machine the thread's start takes a while, and its signal waits for this

    for signum in _SIGNALS:
        # What was started with nohup is to outlive its terminal.
        if signal.getsignal(signum) is not signal.SIG_IGN or signum == signal.SIGTERM:
            signal.signal(signum, ask)
    if moved is not None:
        signal.signal(signal.SIGHUP, lambda _signum, _frame: moved())
    return asked


def ignore_stop_signals() -> None:
    """Let no signal that comes once more turn a clean end into a kill: Python would, while it ends."""
    for signum in _SIGNALS:
        signal.signal(signum, signal.SIG_IGN)


def serve_until_signal(server: Server) -> None:
    """Run a server until the process is told to stop, then let its requests finish.

    Args:
        server: not started yet.

    Raises:
        MoxserveError: the server could not start.
    """
    asked = on_stop_signals(
        lambda signum: _stop(server, signal.Signals(signum).name, opened=server.answering),
        # At its time, since the recorder is made by the start.
        moved=(lambda: server.recorder.reopen()) if server.options.observe.access_log_file else None,
    )
    try:
        with startup_notes_hidden():
            server.start()
    except Exception:
        if not asked.is_set():
            raise
        logger.debug("the start ended because the server was told to stop", exc_info=True)
    while not server.wait(0.5):
        pass
    ignore_stop_signals()


def _stop(server: Server, name: str, *, opened: bool) -> None:
    if opened:
        logger.info("%s: no new requests are taken; those in flight may finish", name)
    else:
        logger.info("%s: the start is broken off; no port was open yet", name)
    grace_s = server.options.shutdown_grace_s
    began = time.monotonic()
    if server.stop():
        logger.info("all requests finished, all models are unloaded" if opened else "all models are unloaded")
        return
    if opened and time.monotonic() - began >= grace_s:
        logger.warning("some requests did not finish within --shutdown_grace_seconds=%g; they are cut off", grace_s)
    else:
        # A load cannot be ended apart and is not waited for.
        logger.warning("a model was being loaded; that is cut off")
    logging.shutdown()
    # Threads that still work would keep the interpreter from ending.
    os._exit(0)
