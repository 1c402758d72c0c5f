"""The process that keeps the others running.

Members load their models at the same time, and open the ports when all of them have: a port that answers means that
every process is ready. One that dies is started again, with the configuration that is in effect by then; one that dies
while the server starts ends the start, since it would die again.
"""

from __future__ import annotations

import contextlib
import logging
import math
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from base64 import b64decode, b64encode
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any

from moxserve.errors import DeadlineExceeded, MoxserveError, ServingError, Unavailable, UnknownError
from moxserve.serving.cpus import SHARED_BY
from moxserve.serving.metrics import ServingMetrics
from moxserve.serving.processes.channel import Channel, ChannelClosed

__all__ = ["Plan", "Supervisor"]

logger = logging.getLogger(__name__)

_PATIENCE_S = 30.0
_MAX_PAUSE_S = 30.0
_STEADY_S = 60.0
_MAX_DEATHS = 5
_SNAPSHOT_S = 2.0
_KILL_S = 10.0


@dataclass(frozen=True)
class Plan:
    """What the members are to be.

    Attributes:
        count: how many.
        flags: name -> value of the flags of `moxserve serve` that each of them gets.
        config: ModelServerConfig message to start with; None when flags name the models.
        ports: held for them, so that nobody else takes them while models load.
        grace_s: how long a member may take to end once it is told to.
    """

    count: int
    flags: Mapping[str, Any]
    config: bytes | None = None
    ports: Sequence[socket.socket] = ()
    grace_s: float = 25.0


@dataclass(eq=False)
class _Member:
    """One process, from its start to its end."""

    index: int
    process: subprocess.Popen[bytes]
    channel: Channel = field(init=False)
    joined: bool = False
    ready_at: float = math.inf
    failure: Mapping[str, Any] | None = None
    counts: Any = None

    def __str__(self) -> str:
        return f"server process {self.index} (pid {self.process.pid})"


class _MemberError(UnknownError):
    """What kept a member from starting, with its own exit status."""

    def __init__(self, failure: Mapping[str, Any]) -> None:
        super().__init__(failure["message"], hint=failure["hint"])
        self.code = failure["exit_code"]


class _MemberDiedError(UnknownError):
    """A member died while it took a new configuration."""


class Supervisor:
    """Runs the members.

    Args:
        plan: what they are to be.
        command: starts one, given the file descriptor of its channel; None takes `member`.
    """

    def __init__(self, plan: Plan, command: Callable[[int], Sequence[str]] | None = None) -> None:
        self._plan = plan
        self._command = command or _member_command
        self._config = plan.config
        self._generation = 0
        self._reloading = threading.Lock()
        self._changed = threading.Condition(threading.RLock())
        self._members: dict[int, _Member] = {}
        self._loaded: set[_Member] = set()
        self._opened = False
        self._started = False
        self._stopping = False
        self._deaths: Counter[int] = Counter()
        self._error: MoxserveError | None = None
        self._ended_counts = ServingMetrics()

    # Life

    def start(self) -> None:
        """Start all members; returns when each answers requests.

        Raises:
            MoxserveError: one of them could not start; the others are ended.
            OSError: the system does not start another process.
        """
        try:
            for index in range(self._plan.count):
                self._spawn(index)
        except OSError:
            self.stop(0.0)
            raise
        with self._changed:
            self._changed.wait_for(lambda: self._error or self._stopping or self._all_ready())
            error = self._error
            self._started = error is None
        if error is not None:
            self.stop(0.0)
            raise error

    def wait(self) -> None:
        """Wait until `stop` has been called and every member has ended.

        Raises:
            UnknownError: no member could be kept running.
        """
        with self._changed:
            self._changed.wait_for(lambda: self._error or (self._stopping and not self._members))
            error = self._error
        if error is not None and not self._stopping:
            self.stop(0.0)
            raise error

    def stop(self, grace_s: float | None = None) -> bool:
        """Have every member finish its requests and end.

        Args:
            grace_s: how long they may take; None takes that of the plan and a little for the unloading.

        Returns:
            Whether all ended in time; those that did not are killed.
        """
        grace_s = self._plan.grace_s + _KILL_S if grace_s is None else grace_s
        with self._changed:
            self._stopping = True
            self._changed.notify_all()
            for member in self._members.values():
                _signal(member.process.terminate)
            in_time = self._changed.wait_for(lambda: not self._members, grace_s)
        self.kill()
        with self._changed:
            self._changed.wait_for(lambda: not self._members, _KILL_S)
        return in_time

    def kill(self) -> None:
        """End every member at once."""
        for member in list(self._members.values()):
            _signal(member.process.kill)

    def pids(self) -> list[int]:
        """Return the process ids of the members that answer requests, in their order."""
        with self._changed:
            return [m.process.pid for _, m in sorted(self._members.items()) if m.ready_at < math.inf]

    def _all_ready(self) -> bool:
        members = self._members.values()
        return len(members) == self._plan.count and all(m.ready_at < math.inf for m in members)

    def _spawn(self, index: int) -> None:
        ours, theirs = socket.socketpair()
        with theirs:
            process = subprocess.Popen(
                self._command(theirs.fileno()),
                pass_fds=[theirs.fileno()],
                stdin=subprocess.DEVNULL,
                env={**os.environ, SHARED_BY: str(self._plan.count)},
                # Ctrl-C reaches this process alone, which passes it on.
                start_new_session=True,
            )
        member = _Member(index, process)
        handlers: Mapping[str, Callable[[Any], Any]] = {
            "hello": lambda _: self._hello(index),
            "loaded": lambda generation: self._on_loaded(member, generation),
            "ready": lambda _: self._on_ready(member),
            "failed": lambda failure: setattr(member, "failure", failure),
            "reload": lambda asked: self.reload(b64decode(asked["config"]), asked["timeout_s"]),
            "counts": lambda _: self.counts(),
        }
        member.channel = Channel(ours, handlers, lambda: None)
        with self._changed:
            self._members[index] = member
        member.channel.start()
        threading.Thread(target=self._watch, args=(member,), name=f"moxserve-watch-{index}", daemon=True).start()
        if self._stopping:
            _signal(process.terminate)

    def _hello(self, index: int) -> dict[str, Any]:
        with self._changed:
            config, generation, opened = self._config, self._generation, self._opened
        flags = dict(self._plan.flags)
        return {"index": index, "flags": flags, "config": _text(config), "generation": generation, "opened": opened}

    def _on_loaded(self, member: _Member, generation: int) -> dict[str, Any]:
        """Hold a member until all have loaded; tell it the configuration if that has changed since its start."""
        with self._changed:
            self._loaded.add(member)
            self._opened = self._opened or len(self._loaded) == self._plan.count
            self._changed.notify_all()
            self._changed.wait_for(lambda: self._opened or self._stopping or self._error)
            if not self._opened or self._stopping:
                raise Unavailable("stopped before all processes had loaded their models")
        with self._reloading, self._changed:
            member.joined = generation == self._generation
            return {"config": None if member.joined else _text(self._config), "generation": self._generation}

    def _on_ready(self, member: _Member) -> None:
        with self._changed:
            member.ready_at = time.monotonic()
            self._changed.notify_all()

    # Death

    def _watch(self, member: _Member) -> None:
        status = member.process.wait()
        member.channel.close()
        with self._changed:
            self._members.pop(member.index, None)
            self._loaded.discard(member)
            self._retire(member)
            self._changed.notify_all()
            if self._stopping:
                return
            if not self._started:
                self._error = self._error or _start_error(member, status)
                return
            steady = time.monotonic() - member.ready_at >= _STEADY_S
            deaths = self._deaths[member.index] = 1 if steady else self._deaths[member.index] + 1
            if deaths > _MAX_DEATHS and not self.pids():
                reason = _start_error(member, status)
                self._error = UnknownError(f"no server process stays alive; the last one: {reason.message}")
                return
        self._replace(member.index, f"{member} {_ending(status)}", deaths)

    def _replace(self, index: int, why: str, deaths: int) -> None:
        while True:
            pause_s = 0.0 if deaths <= 1 else min(_MAX_PAUSE_S, 2.0 ** (deaths - 2))
            logger.error("%s; it is started again in %g s", why, pause_s)
            with self._changed:
                if self._changed.wait_for(lambda: self._stopping, pause_s):
                    return
            try:
                self._spawn(index)
            except OSError as error:
                # The machine is out of processes or memory: that may pass.
                why, deaths = f"server process {index} could not be started: {error}", deaths + 1
            else:
                return

    def _retire(self, member: _Member) -> None:
        """Keep what it has counted, as far as it was asked: a counter that falls looks like a restart of them all."""
        if member.counts is not None:
            self._ended_counts.absorb(member.counts)
            member.counts = None

    # What concerns all of them

    def reload(self, config: bytes, timeout_s: float | None = None) -> None:
        """Have every member serve what a ModelServerConfig message tells, or none.

        One of them tries it first. When the others do not follow, those that did go back.

        Args:
            config: the message.
            timeout_s: how long the caller waits; None for as long as it takes.

        Raises:
            ServingError: it was refused, and everything is as before.
        """
        deadline = math.inf if timeout_s is None else time.monotonic() + timeout_s
        if not self._reloading.acquire(timeout=-1 if timeout_s is None else max(0.0, timeout_s)):
            raise DeadlineExceeded("another change of the configuration is under way; nothing was changed")
        try:
            with self._changed:
                members = [m for _, m in sorted(self._members.items()) if m.joined]
            if not members:
                raise Unavailable("no server process is ready; the configuration was not changed")
            first, others = members[0], members[1:]
            _apply(first, config, deadline)
            changed, errors = [first], []
            with ThreadPoolExecutor(max(1, len(others))) as pool:
                asked = {member: pool.submit(_apply, member, config, deadline) for member in others}
            for member, outcome in asked.items():
                error = outcome.exception()
                if error is None:
                    changed.append(member)
                elif not isinstance(error, _MemberDiedError):
                    errors.append(error)
            # One that died meanwhile refused nothing: the next in its place starts with what is decided here.
            if errors:
                self._undo(changed)
                raise errors[0]
            with self._changed:
                self._config, self._generation = config, self._generation + 1
        finally:
            self._reloading.release()

    @property
    def config(self) -> bytes | None:
        """The ModelServerConfig message that is in effect; None while that is what flags named."""
        return self._config

    def _undo(self, members: Sequence[_Member]) -> None:
        for member in members:
            try:
                member.channel.call("undo", timeout_s=_PATIENCE_S)
            except ServingError as error:
                # The one that takes its place starts with what is in effect.
                logger.error("%s could not go back to what it served before and is ended: %s", member, error.message)
                _signal(member.process.kill)

    def counts(self) -> dict[str, Any]:
        """Return what all members have counted together, those that have died included."""
        with self._changed:
            members = list(self._members.values())
        with ThreadPoolExecutor(max(1, len(members))) as pool:
            list(pool.map(self._count, members))
        total = ServingMetrics()
        with self._changed:
            total.absorb(self._ended_counts.counts())
            for member in members:
                if member.counts is not None:
                    total.absorb(member.counts)
        return total.counts()

    def _count(self, member: _Member) -> None:
        # One that does not answer in time is told as it was last: it is busy, and nothing else is lost with it.
        with contextlib.suppress(ServingError):
            counts = member.channel.call("counts", timeout_s=_SNAPSHOT_S)
            with self._changed:
                if self._members.get(member.index) is member:
                    member.counts = counts


def _apply(member: _Member, config: bytes, deadline: float) -> None:
    left_s = None if deadline == math.inf else max(0.0, deadline - time.monotonic())
    try:
        member.channel.call("apply", {"config": _text(config), "timeout_s": left_s})
    except ChannelClosed as error:
        raise _MemberDiedError(f"{member} died of the new configuration, which was not taken") from error


def _text(config: bytes | None) -> str | None:
    return None if config is None else b64encode(config).decode()


def _signal(send: Callable[[], None]) -> None:
    with contextlib.suppress(ProcessLookupError):
        send()


def _start_error(member: _Member, status: int) -> MoxserveError:
    if member.failure is None:
        return UnknownError(f"{member} {_ending(status)} while it started; what it said is above")
    return _MemberError(member.failure)


def _ending(status: int) -> str:
    if status >= 0:
        return f"ended with status {status}"
    try:
        return f"was ended by {signal.Signals(-status).name}"
    except ValueError:
        return f"was ended by signal {-status}"


def _member_command(fd: int) -> list[str]:
    return [sys.executable, "-m", "moxserve.serving.processes.member", str(fd)]
