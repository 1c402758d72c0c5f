"""The process around one process of a job: `python -m moxserve.launch.member [--grace S] [--report FD] -- COMMAND...`.

Its standard input is the lifeline to whoever started it, on this machine a pipe, on another one what ssh carries. A
line there is the number of a signal to pass on; its end means that the launcher is gone, however that happened, and the
command is then ended: SIGTERM first, so that a training saves its state, SIGKILL after the grace time. What the command
leaves behind in its process group is killed with it.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Sequence

from moxserve.export.children import die_with_parent

__all__ = ["main"]

NOT_FOUND = 127


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command to its end.

    Args:
        argv: arguments without the program name; None takes those of the process.

    Returns:
        Its exit status; 128 and the number of the signal for one that a signal ended, as a shell says it.
    """
    parser = argparse.ArgumentParser(prog="python -m moxserve.launch.member")
    parser.add_argument("--grace", type=float, default=30.0, help="seconds from SIGTERM to SIGKILL")
    parser.add_argument("--report", type=int, help="file descriptor that the command's process id is written to")
    words = list(sys.argv[1:] if argv is None else argv)
    split = words.index("--")
    options, command = parser.parse_args(words[:split]), words[split + 1 :]
    try:
        # A session of its own: Ctrl-C reaches the launcher alone, which ends everything in order.
        process = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            start_new_session=True,
            preexec_fn=lambda: _begin(options.report),  # safe: there are no threads yet
        )
    except OSError as error:
        sys.stderr.write(f"{command[0]}: {error.strerror or error}\n")
        return NOT_FOUND
    if options.report is not None:
        os.close(options.report)
    ending = _Ending(process, options.grace)
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        signal.signal(number, lambda *_: ending.begin())
    threading.Thread(target=_listen, args=(process, ending), daemon=True).start()
    status = process.wait()
    _kill_group(process)
    return status if status >= 0 else 128 - status


def _begin(report: int | None) -> None:
    """What the command's process does first. It tells its number itself: this one may be killed before it knows it."""
    die_with_parent()
    if report is not None:
        os.write(report, b"%d\n" % os.getpid())


class _Ending:
    """Ends the command, once: SIGTERM, then SIGKILL to all of its group."""

    def __init__(self, process: subprocess.Popen[bytes], grace_s: float) -> None:
        self._process = process
        self._grace_s = grace_s
        self._first = threading.Lock()

    def begin(self) -> None:
        # Asked by signal handlers and by the lifeline. A second SIGTERM would end a training that saves its state.
        if not self._first.acquire(blocking=False):
            return
        _send(self._process, signal.SIGTERM)
        killer = threading.Timer(self._grace_s, _kill_group, (self._process,))
        killer.daemon = True
        killer.start()


def _listen(process: subprocess.Popen[bytes], ending: _Ending) -> None:
    """Pass signals on, until the lifeline ends."""
    buffered = b""
    with contextlib.suppress(OSError):
        while data := os.read(sys.stdin.fileno(), 64):
            *lines, buffered = (buffered + data).split(b"\n")
            for line in lines:
                number = int(line)
                if number == signal.SIGKILL:
                    _kill_group(process)
                elif number == signal.SIGTERM:
                    ending.begin()
                else:
                    _send(process, number)
    ending.begin()


def _send(process: subprocess.Popen[bytes], number: int) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.kill(process.pid, number)


def _kill_group(process: subprocess.Popen[bytes]) -> None:
    # Its leader is a child that has not been waited for, or was just now: the number still is this group's.
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(process.pid, signal.SIGKILL)


if __name__ == "__main__":
    sys.exit(main())
