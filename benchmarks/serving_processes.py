"""Servers under test: start one, wait until it answers, know what CPU and memory it costs, stop it. Nothing of models.

CPU time is the kernel's clock of each process of the server's tree (user + system, nanoseconds), which a busy machine
blurs little; the wall clock it blurs a lot.
"""

from __future__ import annotations

import contextlib
import ipaddress
import os
import signal
import subprocess
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType

import psutil

# CPUCLOCK_SCHED of a whole process, as clock_getcpuclockid() of the C library makes it.
_PROCESS_CLOCK = 2


def tree(pid: int) -> list[int]:
    """Return a process and all its descendants."""
    try:
        return [pid, *(child.pid for child in psutil.Process(pid).children(recursive=True))]
    except psutil.NoSuchProcess:
        return []


def tree_cpu_s(pid: int) -> float:
    """Return the user and system seconds of a process and all its living descendants."""
    total = 0.0
    for one in tree(pid):
        with contextlib.suppress(OSError):  # it ended meanwhile
            total += time.clock_gettime(~one << 3 | _PROCESS_CLOCK)
    return total


def tree_memory_mb(pid: int) -> float:
    """Return the proportional set size of a process tree, in MB."""
    total = 0
    for one in tree(pid):
        with contextlib.suppress(psutil.Error):
            total += psutil.Process(one).memory_full_info().pss
    return total / 1e6


def foreign_addresses(pid: int) -> list[str]:
    """Return the addresses that a process tree listens on and that are not loopback; there should be none."""
    found = []
    for one in tree(pid):
        with contextlib.suppress(psutil.Error):
            for connection in psutil.Process(one).net_connections("tcp"):
                address = connection.laddr
                host = ipaddress.ip_address(address.ip)
                host = getattr(host, "ipv4_mapped", None) or host
                if connection.status == psutil.CONN_LISTEN and not host.is_loopback:
                    found.append(f"{address.ip}:{address.port}")
    return found


@dataclass
class ServerProcess:
    """A server in a process group of its own; a context manager.

    Args:
        command: how it is started.
        ready: told whether it answers; called again and again until it does.
        log: file for its output.
        environment: additions to this process's environment.
        timeout_s: how long it may take to become ready.
        poll_s: time between two looks whether it is.
        scratch: folder of its own that goes with it.

    Attributes:
        start_s: from the start to the first answer.
        start_cpu_s: CPU of its process tree until then.
    """

    command: Sequence[str | os.PathLike[str]]
    ready: Callable[[], bool]
    log: Path
    environment: Mapping[str, str] = field(default_factory=dict)
    timeout_s: float = 90.0
    poll_s: float = 0.05
    scratch: tempfile.TemporaryDirectory[str] | None = None
    start_s: float = 0.0
    start_cpu_s: float = 0.0
    _process: subprocess.Popen[bytes] | None = None

    @property
    def pid(self) -> int:
        """Of the process at the head of the tree."""
        assert self._process is not None, "not started"
        return self._process.pid

    def start(self) -> None:
        """Start it and wait until it is ready.

        Raises:
            RuntimeError: it ended, took too long, or listens where others could reach it.
        """
        began = time.monotonic()
        with self.log.open("wb") as out:
            self._process = subprocess.Popen(
                [os.fspath(part) for part in self.command],
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=subprocess.STDOUT,
                env={**os.environ, **self.environment},
                start_new_session=True,
            )
        try:
            while not self.ready():
                if self._process.poll() is not None:
                    raise RuntimeError(f"it ended with status {self._process.returncode}:\n{self.log_tail()}")
                if time.monotonic() - began > self.timeout_s:
                    raise RuntimeError(f"not ready after {self.timeout_s:.0f} s:\n{self.log_tail()}")
                time.sleep(self.poll_s)
            self.start_s = time.monotonic() - began
            self.start_cpu_s = tree_cpu_s(self.pid)
            if foreign := foreign_addresses(self.pid):
                raise RuntimeError(f"it listens on {', '.join(foreign)}, not on loopback only")
        except BaseException:
            self.stop()
            raise

    def log_tail(self, lines: int = 12) -> str:
        """Return the end of its output."""
        return "\n".join(self.log.read_text(errors="replace").splitlines()[-lines:])

    def stop(self, grace_s: float = 8.0) -> None:
        """Ask it to end, then end its whole group."""
        if self._process is None:
            return
        if self._process.poll() is None:
            self._process.terminate()
            with contextlib.suppress(subprocess.TimeoutExpired):
                self._process.wait(grace_s)
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(self._process.pid, signal.SIGKILL)
        self._process.wait()
        if self.scratch is not None:
            self.scratch.cleanup()

    def __enter__(self) -> ServerProcess:
        self.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.stop()
