"""Runs the processes of a job: starts them, starts again what died, ends all in order.

* A process that ends with status 0 is done. When all workers are, the job is: the evaluator is waited for, parameter
  servers are given a moment to end by themselves.
* One that ends otherwise is started again, alone or with all workers, after a pause that doubles; as often as is
  allowed, and never after status 2, which says that its command line or configuration is wrong.
* SIGTERM and SIGINT end the workers and the evaluator first, which save their state, then the parameter servers.

One thread, which waits for outputs, deaths and signals at once. A process here is a `member`, which ends the real one
when this process is gone.
"""

from __future__ import annotations

import contextlib
import fcntl
import io
import os
import selectors
import signal
import socket
import subprocess
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from moxserve.launch.output import Console, Stream
from moxserve.launch.plan import Plan, Task

__all__ = ["Policy", "Supervisor"]

_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGCHLD)
_WRONG_USAGE = 2
_MAX_PAUSE_S = 30.0
_SERVERS_END_S = 5.0
_TOGETHER_END_S = 10.0
_KILLED_S = 10.0
_LAST_WORDS_S = 1.0
_READ_BYTES = 1 << 16


_Command = Callable[[Task, int], Sequence[str]]


@dataclass(frozen=True)
class Policy:
    """How the processes are kept.

    Attributes:
        restarts: how often each may be started again; all workers of a job that goes on together count as one.
        grace_s: from SIGTERM to SIGKILL.
        pause_s: before the first time that one is started again; it doubles.
    """

    restarts: int = 3
    grace_s: float = 30.0
    pause_s: float = 0.5


@dataclass(eq=False)
class _Member:
    """One process of the plan, through all its starts.

    Attributes:
        task: what it is.
        process: while it runs.
        streams: its open outputs, by file object.
        restarts: how often it was started again.
        due: when it is to be started; None if it is not.
        started: when it was started last; the same for all that were started together.
        status: how it ended last; None while it runs or waits to.
        pid: of the command itself, where the member told it.
    """

    task: Task
    process: subprocess.Popen[bytes] | None = None
    streams: dict[Any, Stream | _Report] = field(default_factory=dict)
    restarts: int = 0
    due: float | None = None
    started: float = 0.0
    status: int | None = None
    pid: int = 0

    @property
    def alive(self) -> bool:
        return self.process is not None

    @property
    def done(self) -> bool:
        return self.status == 0


class _Report:
    """What a member tells of the command that it started."""

    def __init__(self, member: _Member, console: Console) -> None:
        self._member, self._console = member, console
        self._text = b""

    def feed(self, data: bytes) -> None:
        """Take what was read."""
        self._text += data

    def end(self) -> None:
        """The member has said all: the process id, or nothing where it is on another machine, or never was."""
        task = self._member.task
        if self._text:
            self._member.pid = int(self._text)
        if self._text or task.host:
            where = f"process {self._member.pid}" if self._text else f"on {task.host}"
            self._console.say(f"{task.name}: {where}" + (f" at {task.address}" if task.address else ""))


class Supervisor:
    """Runs a job to its end.

    Args:
        plan: the processes.
        policy: how they are kept.
        command: returns what starts one, given a file descriptor that it may tell its process id to; see
            `hosts.member_command`.
        console: where their output goes.
    """

    def __init__(self, plan: Plan, policy: Policy, command: _Command, console: Console) -> None:
        self._plan, self._policy, self._command, self._console = plan, policy, command, console
        self._members = [_Member(task) for task in plan.tasks]
        self._selector = selectors.DefaultSelector()
        self._result: int | None = None
        self._signum = 0
        self._over = False
        self._rounds = 0
        self._unseen = False

    def run(self) -> int:
        """Run until the job is over.

        Returns:
            0 when all workers ended so; the status of the process that could not be kept running; 128 and the number of
            the signal that ended the job.
        """
        with self._signals():
            try:
                now = time.monotonic()
                for member in self._members:
                    member.due = now
                while self._result is None and not self._all_ended():
                    self._start_due()
                    self._wait(self._next_due())
                    self._look()
                self._stop_all()
            finally:
                self._kill_all()
        return self._result or 0

    # -- one process

    def _start_due(self) -> None:
        now = time.monotonic()
        for member in self._members:
            if member.due is not None and member.due <= now:
                member.due, member.started = None, now
                self._start(member)

    def _start(self, member: _Member) -> None:
        task = member.task
        ours, theirs = os.pipe()
        self._console.started(task.name)
        with open(theirs, "wb"):  # closed here once the member has it
            member.process = subprocess.Popen(
                self._command(task, theirs),
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                pass_fds=[theirs],
                env={**os.environ, **task.environment},
                start_new_session=True,
            )
        member.status = None
        self._read(member.process.stdout, Stream(self._console, task.name, err=False), member)
        self._read(member.process.stderr, Stream(self._console, task.name, err=True), member)
        self._read(io.FileIO(ours), _Report(member, self._console), member)

    def _read(self, pipe: Any, stream: Stream | _Report, member: _Member) -> None:
        fcntl.fcntl(pipe, fcntl.F_SETFL, fcntl.fcntl(pipe, fcntl.F_GETFL) | os.O_NONBLOCK)
        member.streams[pipe] = stream
        self._selector.register(pipe, selectors.EVENT_READ, member)

    def _signal(self, member: _Member, number: int) -> None:
        """Have the command of a member get a signal."""
        if member.process is not None and member.process.stdin is not None:
            with contextlib.suppress(OSError, ValueError):  # it is closed: a signal came while its end was noted
                os.write(member.process.stdin.fileno(), b"%d\n" % number)

    def _drain(self, member: _Member, pipe: Any) -> None:
        try:
            data = os.read(pipe.fileno(), _READ_BYTES)
        except BlockingIOError:
            return
        if data:
            member.streams[pipe].feed(data)
            return
        self._selector.unregister(pipe)
        member.streams.pop(pipe).end()
        pipe.close()

    def _reap(self, member: _Member) -> bool:
        """Take note of a death; tells whether there was one."""
        process = member.process
        if process is None or process.poll() is None:
            return False
        deadline, late = time.monotonic() + _LAST_WORDS_S, False
        while member.streams and not late:  # somebody else may hold the pipes open
            late = time.monotonic() > deadline  # before the last look: what is there by then is read
            for pipe in list(member.streams):
                self._drain(member, pipe)
            time.sleep(0.0 if late else 0.01)
        for pipe, stream in member.streams.items():
            self._selector.unregister(pipe)
            stream.end()
            pipe.close()
        member.streams.clear()
        if process.stdin is not None:
            with contextlib.suppress(OSError):
                process.stdin.close()
        if member.pid:
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.killpg(member.pid, signal.SIGKILL)  # where the member itself was killed
        code = process.returncode
        member.status, member.process, member.pid = code if code >= 0 else 128 - code, None, 0
        return True

    # -- waiting

    @contextlib.contextmanager
    def _signals(self) -> Iterator[None]:
        """Have signals wake the loop, through a socket."""
        ours, theirs = socket.socketpair()
        ours.setblocking(False)
        theirs.setblocking(False)
        before: Mapping[int, Any] = {number: signal.signal(number, self._on_signal) for number in _SIGNALS}
        before_fd = signal.set_wakeup_fd(theirs.fileno(), warn_on_full_buffer=False)
        self._selector.register(ours, selectors.EVENT_READ, None)
        try:
            yield
        finally:
            signal.set_wakeup_fd(before_fd)
            for number, handler in before.items():
                signal.signal(number, handler)
            self._selector.close()
            ours.close()
            theirs.close()

    def _on_signal(self, number: int, _frame: object) -> None:
        if number == signal.SIGCHLD:
            return
        if self._signum:
            self._kill_all()
        self._signum = self._signum or number

    def _next_due(self) -> float | None:
        """Seconds until something is to be looked at or started; None for nothing."""
        if self._unseen:
            return 0.0
        due = [member.due for member in self._members if member.due is not None]
        return max(0.0, min(due) - time.monotonic()) if due else None

    def _wait(self, timeout_s: float | None) -> None:
        """Wait for output, a death, a signal, or the time."""
        for key, _ in self._selector.select(timeout_s):
            if key.data is None:
                with contextlib.suppress(BlockingIOError):
                    while key.fileobj.recv(64):  # type: ignore[union-attr]
                        pass
            elif key.fileobj in key.data.streams:
                self._drain(key.data, key.fileobj)

    # -- the job

    def _of(self, job: str) -> list[_Member]:
        return [member for member in self._members if member.task.job == job]

    def _all_ended(self) -> bool:
        return not any(member.alive or member.due is not None for member in self._members)

    def _look(self) -> None:
        """See who died, and decide."""
        self._unseen = False
        if self._signum:
            self._console.say(f"{signal.Signals(self._signum).name}: ending all processes")
            self._result = 128 + self._signum
            return
        for member in self._members:
            if self._reap(member):
                self._on_end(member)
            if self._result is not None:
                return
        if not self._over and all(member.done for member in self._of("worker")):
            self._training_done()

    def _training_done(self) -> None:
        self._over = True
        self._console.say("all workers are done")
        for member in self._members:
            member.due = None  # whatever died with the last of them
        self._end(self._of("ps"), _SERVERS_END_S)
        if any(member.alive for member in self._of("evaluator")):
            self._console.say("waiting for the evaluator")

    def _on_end(self, member: _Member) -> None:
        if member.done:
            self._console.say(f"{member.task.name} is done")
            if member.task.job == "ps" and self._is_missed(member):
                self._console.say(f"{member.task.name} is started again, for workers that were")
                member.due = time.monotonic()
            return
        how = f"{member.task.name} {_ending(member.status)}"
        chief = self._of("worker")[0]
        if chief.done:
            # Nobody is left to save what it would do.
            self._console.say(f"{how}; the chief is done, it is not started again")
            member.status = 0
        elif self._plan.together and member.task.job == "worker":
            self._restart_workers(how, member)
        elif self._may_restart(member, member.restarts):
            member.restarts += 1
            pause_s = self._pause(member.restarts)
            with_it = self._needed_by(member)
            what = f"it and {', '.join(other.task.name for other in with_it)} are" if with_it else "it is"
            self._console.say(f"{how}; {what} started again in {pause_s:g} s{self._left(member.restarts)}")
            for started in [member, *with_it]:
                started.due = time.monotonic() + pause_s
        else:
            self._give_up(how, member)

    def _needed_by(self, member: _Member) -> list[_Member]:
        """Return who has ended well and is needed once more: a worker that starts again joins a whole job, if only to
        learn that the training is over.
        """
        if member.task.job != "worker" or not any(server.done for server in self._of("ps")):
            return []
        return [other for other in (*self._of("ps"), *self._of("worker")) if other.done]

    def _is_missed(self, server: _Member) -> bool:
        """Whether a parameter server ended with workers that are back by now, or will be: those that a signal ended
        have told it that they are done.
        """
        left = [worker for worker in self._of("worker") if not worker.done]
        return any(worker.due is not None or worker.started > server.started for worker in left)

    def _restart_workers(self, how: str, first: _Member) -> None:
        workers = self._of("worker")
        if not self._may_restart(first, self._rounds):
            self._give_up(how, first)
            return
        self._rounds += 1
        pause_s = self._pause(self._rounds)
        self._console.say(f"{how}; all workers are started again in {pause_s:g} s{self._left(self._rounds)}")
        self._end(workers, min(_TOGETHER_END_S, self._policy.grace_s))
        for member in workers:
            member.due = time.monotonic() + pause_s

    def _may_restart(self, member: _Member, restarts: int) -> bool:
        return member.status != _WRONG_USAGE and restarts < self._policy.restarts

    def _pause(self, restarts: int) -> float:
        return float(min(_MAX_PAUSE_S, self._policy.pause_s * 2 ** (restarts - 1)))

    def _left(self, restarts: int) -> str:
        return f" ({restarts} of {self._policy.restarts})"

    def _give_up(self, how: str, member: _Member) -> None:
        why = "its command line or configuration is wrong" if member.status == _WRONG_USAGE else "no restart is left"
        self._console.say(f"{how}; {why}: ending all processes")
        self._result = member.status

    # -- the end

    def _stop_all(self) -> None:
        """End everybody, those with state to save first."""
        for member in self._members:
            member.due = None
        self._end([*self._of("worker"), *self._of("evaluator")], self._policy.grace_s, ask=True)
        self._end(self._of("ps"), _SERVERS_END_S, ask=True)

    def _end(self, members: list[_Member], grace_s: float, *, ask: bool = False) -> None:
        """Wait until some are gone: by themselves at first, unless they are to be asked at once; then by force."""
        for number, wait_s in ((0, 0.0 if ask else grace_s), (signal.SIGTERM, grace_s), (signal.SIGKILL, _KILLED_S)):
            deadline = time.monotonic() + wait_s
            for member in members:
                if number:
                    self._signal(member, number)
            while self._left_of(members) and (left_s := deadline - time.monotonic()) > 0:
                self._wait(left_s)
        for member in members:
            if member.process is not None:  # one that does not even listen: a connection that hangs
                member.process.kill()
                member.process.wait()
                self._reap(member)
        self._unseen = True  # deaths of others, and signals, have woken the waiting here, where nobody looked at them

    def _left_of(self, members: list[_Member]) -> bool:
        """Take note of deaths, also of those that woke an earlier waiting; tells whether one of these still runs."""
        for member in members:
            self._reap(member)
        return any(member.alive for member in members)

    def _kill_all(self) -> None:
        """End everybody at once."""
        for member in self._members:
            if member.process is not None:
                self._signal(member, signal.SIGKILL)


def _ending(status: int | None) -> str:
    """Tell how a process ended; a status above 128 is how shells write signals."""
    if status is not None and status > 128:
        with contextlib.suppress(ValueError):
            return f"was ended by {signal.Signals(status - 128).name}"
    return f"ended with status {status}"
