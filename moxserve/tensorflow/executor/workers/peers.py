"""Addresses of a job's processes: whether they are this machine's, free, or answering; waiting for the others'."""

from __future__ import annotations

import contextlib
import socket
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

from moxserve.errors import UsageError, WorkersLostError
from moxserve.tensorflow.executor.cluster import Topology
from moxserve.tensorflow.executor.env import tf1

__all__ = ["POLL_S", "Peer", "Reminder", "check_own", "listening", "members", "unreachable", "wait_for"]

POLL_S = 0.5
_CONNECT_S = 2.0
_FIRST_REMINDER_S, _LONGEST_REMINDER_S = 5.0, 60.0


@dataclass(frozen=True)
class Peer:
    """A process of the job.

    Attributes:
        job: `ps` or `worker`.
        index: within the job.
        address: `host:port`.
    """

    job: str
    index: int
    address: str

    @property
    def host(self) -> str:
        """The address without the port, and without the brackets of an IPv6 one."""
        return self.address.rpartition(":")[0].strip("[]")

    @property
    def port(self) -> int:
        """The number after the last colon.

        Raises:
            UsageError: there is none.
        """
        text = self.address.rpartition(":")[2]
        if not text.isdigit() or not 0 < int(text) < 1 << 16 or not self.host:
            raise UsageError(
                f"flag --{self.job}_hosts: entry {self.index} is {self.address!r}; expected host:port",
                hint=f"--{self.job}_hosts=192.168.1.100:2222,192.168.1.101:2222",
            )
        return int(text)

    def answers(self) -> bool:
        """Whether somebody accepts connections there."""
        try:
            with socket.create_connection((self.host, self.port), timeout=_CONNECT_S):
                return True
        except OSError:
            return False

    def __str__(self) -> str:
        return f"{self.job} {self.index} at {self.address}"


def members(topology: Topology, *jobs: str) -> list[Peer]:
    """List the processes of some of the jobs, `ps` and `worker`, in order."""
    hosts = {"ps": topology.ps, "worker": topology.workers}
    return [Peer(job, index, address) for job in jobs for index, address in enumerate(hosts[job])]


def unreachable(peers: Sequence[Peer]) -> list[Peer]:
    """Those of the processes that accept no connection now."""
    return [peer for peer in peers if not peer.answers()]


class Reminder:
    """Says when a line about a wait is due: after 5 seconds, then ever more seldom, once a minute at last.

    Args:
        timeout_s: how long the wait may be; 0 for ever.
    """

    def __init__(self, timeout_s: float = 0) -> None:
        self._start = time.monotonic()
        self._timeout_s = timeout_s
        self._next_s = self._step_s = _FIRST_REMINDER_S

    @property
    def waited_s(self) -> int:
        """Whole seconds since the wait began."""
        return int(time.monotonic() - self._start)

    @property
    def over(self) -> bool:
        """Whether the wait has been too long."""
        return bool(self._timeout_s) and time.monotonic() - self._start > self._timeout_s

    def due(self) -> bool:
        """Whether to say something now; at most once for each point in time."""
        if time.monotonic() - self._start < self._next_s:
            return False
        self._step_s = min(self._step_s * 1.5, _LONGEST_REMINDER_S)
        self._next_s = time.monotonic() - self._start + self._step_s
        return True


def wait_for(peers: Sequence[Peer], timeout_s: float, stopped: Callable[[], bool] = lambda: False) -> None:
    """Wait until all of these processes accept connections, and say for whom.

    Args:
        peers: the processes.
        timeout_s: how long; 0 for ever.
        stopped: asked now and then; True ends the wait.

    Raises:
        WorkersLostError: some do not in time.
    """
    reminder = Reminder(timeout_s)
    missing = unreachable(peers)
    while missing and not stopped():
        if reminder.over:
            raise WorkersLostError(
                f"no answer within {timeout_s:g} s (flag --session_timeout) from {_listed(missing)}",
                hint="start these processes, with the same --ps_hosts and --worker_hosts; a firewall may be between",
            )
        if reminder.due():
            tf1.logging.info(
                "waiting for %s (%d s): is it started? does its log say why not? is a firewall between?",
                _listed(missing),
                reminder.waited_s,
            )
        time.sleep(POLL_S)
        missing = unreachable(missing)


def _listed(peers: Sequence[Peer]) -> str:
    return ", ".join(map(str, peers))


def check_own(own: Peer) -> None:
    """Check that a server of this process can have its address.

    Raises:
        UsageError: the address is not of this machine, or the port is taken.
    """
    where = f"flag --task_index={own.index}: entry {own.index} of --{own.job}_hosts is {own.address}"
    try:
        found = socket.getaddrinfo(own.host, own.port, type=socket.SOCK_STREAM)
    except OSError as error:
        raise UsageError(
            f"{where}, and the name {own.host!r} is not known here: {error}", hint="check the host name"
        ) from None
    if not any(_is_local(family, address) for family, _, _, _, address in found):
        raise UsageError(
            f"{where}, which is not an address of this machine ({', '.join(_own_addresses()) or 'it has none'})",
            hint="start this process on that machine, or give the --task_index of this machine's entry",
        )
    try:
        with _bound(own.port):
            pass
    except OSError as error:
        raise UsageError(
            f"{where}, and port {own.port} is taken on this machine: {error.strerror}",
            hint="choose another port in all processes, or end the process that has it (an earlier run?)",
        ) from None


def _is_local(family: int, address: tuple[object, ...]) -> bool:
    with socket.socket(family, socket.SOCK_STREAM) as probe:
        try:
            probe.bind((address[0], 0, *address[2:]))
        except OSError:
            return False
        return True


def _own_addresses() -> list[str]:
    """The addresses that this machine's name stands for, and the one that it sends from."""
    known: dict[str, None] = {}
    with contextlib.suppress(OSError):
        known.update({str(entry[4][0]): None for entry in socket.getaddrinfo(socket.gethostname(), None)})
    with contextlib.suppress(OSError), socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        probe.connect(("192.0.2.1", 9))  # sends nothing: only asks for the way there
        known[probe.getsockname()[0]] = None
    return list(known)


@contextlib.contextmanager
def _bound(port: int) -> Iterator[socket.socket]:
    """A socket that has a port of this machine, as TensorFlow's server will have it: on all addresses."""
    with socket.socket() as sock:
        # Connections of a process that was killed linger for a minute; they do not keep a server out.
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        sock.bind(("", port))
        yield sock


@contextlib.contextmanager
def listening(own: Peer) -> Iterator[None]:
    """Accept connections at this process's address, and do nothing with them: so that others see it before its server
    starts.
    """
    with _bound(own.port) as sock:
        sock.listen(64)
        yield
