"""Datapoints between machines, over ZeroMQ: a DEALER socket that sends, a ROUTER socket that takes and acknowledges.

    message   := record | pickle | end | farewell
    record    := as `values.dumps` writes it: arrays, numbers, text, lists and dicts; reading it runs no code
    pickle    := of protocol 5; read only with allow_pickle, since reading one runs what its sender wants
    end       := "\\xc1MXE": the sender has no more
    taken     := the receiver's answer to each message: "\\x06", to the end "\\xc1MXE"; "" says nothing, and goes only
                 to a sender that is still there
    farewell  := "\\xc1MXB": the sender heard that the end was taken, and the receiver may close

Nothing is dropped: a sender waits while there is no room, and does not leave before everything was taken. (PUSH and
PULL lose what the receiver had no room for when the sender closes, whatever its linger time.) What a receiver took, or
had on its way, when it died is gone with it. There is no encryption and no password: use it in a network of your own.
"""

from __future__ import annotations

import contextlib
import errno
import logging
import os
import pickle
import socket as socketlib
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from multiprocessing.util import Finalize
from types import ModuleType
from typing import Any

from moxserve.dataflow import values
from moxserve.dataflow.base import DataFlow, DataFlowReentrantGuard, DataFlowTerminated
from moxserve.errors import DataError, MissingExtraError, UsageError

__all__ = ["RemoteDataZMQ", "send_dataflow_zmq"]

logger = logging.getLogger(__name__)

_END = b"\xc1MXE"
_FAREWELL = b"\xc1MXB"
_TAKEN = b"\x06"
_NOTHING = b""
# How long what is under way to a receiver may stand still before it is taken for gone.
_SETTLE_MS = 2000
_LINGER_MS = 1000
# How long a receiver that closes waits for senders that ended: what they did not read of its answers is lost with it.
_FAREWELL_S = 15.0
_REMIND_S = 30.0
# How soon `close` in one thread is seen by an iteration that waits in another.
_SLICE_MS = 200
_FORMATS = (None, "pickle")


def _zmq() -> ModuleType:
    try:
        import zmq
    except ImportError as error:
        raise MissingExtraError("pyzmq", "dataflow", "sending datapoints between machines") from error
    return zmq


@dataclass(frozen=True)
class _Place:
    """Where a socket is to be.

    Attributes:
        address: such as `tcp://10.0.0.1:8877` or `ipc:///tmp/flow`.
        bind: wait there for the other side, instead of going to it.
        hwm: datapoints that may wait on this side.
    """

    address: str
    bind: bool
    hwm: int

    def open(self, context: Any, kind: int) -> Any:
        """Open a socket.

        Raises:
            UsageError: the address is none, is in use, or is not of this machine.
        """
        zmq = _zmq()
        if self.bind and self.address.startswith("ipc://") and _is_heard(self.address[len("ipc://") :]):
            # ZeroMQ would take the path away from whoever listens there, without a word.
            raise self._in_use()
        socket = context.socket(kind)
        socket.set_hwm(self.hwm)
        # Acknowledgements always have room: there are no more of them than datapoints.
        socket.setsockopt(zmq.RCVHWM if kind == zmq.DEALER else zmq.SNDHWM, 0)
        if kind == zmq.ROUTER:
            # What cannot be delivered is told: its sender left.
            socket.setsockopt(zmq.ROUTER_MANDATORY, 1)
        # Given before any connection is made, which keeps the value of that moment: one whose other side left with
        # messages under way waits for its own linger time, by default for ever, and `destroy` waits for it.
        socket.setsockopt(zmq.LINGER, 0)
        # Wait for the other side, instead of filling a queue for one that never comes.
        socket.setsockopt(zmq.IMMEDIATE, 1)
        try:
            (socket.bind if self.bind else socket.connect)(self.address)
        except (zmq.ZMQError, TypeError) as error:
            socket.close(0)
            raise self._refused(error) from error
        return socket

    def _refused(self, error: Exception) -> UsageError:
        zmq = _zmq()
        code = getattr(error, "errno", None)
        what = "bind to" if self.bind else "connect to"
        if code == zmq.EADDRINUSE:
            return self._in_use()
        if code in (zmq.EADDRNOTAVAIL, errno.ENODEV):
            return UsageError(
                f"cannot bind to {self.address}: it is no address of this machine",
                hint="bind to tcp://*:PORT, or connect instead (bind=False)",
            )
        return UsageError(
            f"cannot {what} {self.address!r}: {error}", hint="expected an address such as tcp://HOST:PORT or ipc://PATH"
        )

    def _in_use(self) -> UsageError:
        return UsageError(
            f"cannot bind to {self.address}: another process listens there",
            hint="take another port or path; only one side binds, the other connects (bind=False)",
        )


def _is_heard(path: str) -> bool:
    """Tell whether somebody listens at the path of a Unix socket: a file is also left by a process that was killed."""
    with socketlib.socket(socketlib.AF_UNIX) as probe:
        probe.settimeout(1.0)
        try:
            probe.connect(path)
        except TimeoutError:
            return True
        except (OSError, ValueError):
            return False
        return True


def _wait(poll: Any, timeout_s: float | None, what: str) -> Any:
    """Poll until something is there.

    Raises:
        DataError: nothing was for `timeout_s`.
    """
    began = time.monotonic()
    while True:
        waited = time.monotonic() - began
        left = _REMIND_S if timeout_s is None else min(_REMIND_S, max(timeout_s - waited, 0.0))
        found = poll(int(left * 1000) + 1)
        if found:
            return found
        waited = time.monotonic() - began
        if timeout_s is not None and waited >= timeout_s:
            raise DataError(
                f"{what} for {timeout_s:g} s",
                hint="is the other side running, with the same address, and one of both with bind=True?",
            )
        if timeout_s is None or waited >= _REMIND_S:
            logger.warning("%s for %.0f s; waiting on", what, waited)


def send_dataflow_zmq(
    df: DataFlow,
    addr: str,
    hwm: int = 50,
    format: str | None = None,
    bind: bool = False,
    *,
    passes: int | None = None,
    timeout_s: float | None = None,
) -> int:
    """Iterate a flow, over and over, and send its datapoints to where a RemoteDataZMQ receives them.

    Args:
        df: the flow; it is reset here.
        addr: of ZeroMQ, such as `tcp://10.0.0.1:8877` or `ipc:///tmp/flow`.
        hwm: datapoints that may wait on this side; then the flow does.
        format: None for arrays, numbers, text, lists and dicts; `pickle` for any object, which the receiver has to
            allow.
        bind: wait at the address for receivers, instead of connecting to one.
        passes: how often to iterate; the receiver is told of the end. None never ends.
        timeout_s: how long to wait for someone who takes a datapoint; None waits for ever, with a warning.

    Returns:
        How many datapoints were sent, when `passes` are over.

    Raises:
        UsageError: an argument is wrong, or the address is in use.
        DataError: nobody takes a datapoint for `timeout_s`; the flow is empty; or the format has no place for what is
            in it.
    """
    if format not in _FORMATS:
        raise UsageError(
            f"format={format!r}: expected None or 'pickle'",
            hint="zmq_ops is a format of TensorFlow operations for which no package is maintained; ZMQInput reads ours",
        )
    zmq = _zmq()
    context = zmq.Context()
    try:
        socket = _Place(addr, bind, _checked_hwm(hwm)).open(context, zmq.DEALER)
        sender = _Sender(socket, f"nobody takes a datapoint at {addr}", format == "pickle", timeout_s)
        df.reset_state()
        return sender.run(df, passes)
    finally:
        context.destroy(linger=_LINGER_MS)


def _checked_hwm(hwm: int) -> int:
    if hwm < 1:
        raise UsageError(
            f"hwm must be at least 1, got {hwm}", hint="without a limit, a slow receiver would fill memory"
        )
    return int(hwm)


@dataclass
class _Sender:
    """Sends datapoints, and counts those that were taken.

    Attributes:
        socket: to send by.
        what: is wrong when nobody is there.
        pickled: the format.
        timeout_s: to wait for room.
        under_way: how many datapoints were sent, and are not known to be taken.
        end_taken: whether the end is.
    """

    socket: Any
    what: str
    pickled: bool
    timeout_s: float | None
    under_way: int = 0
    end_taken: bool = False

    def run(self, df: DataFlow, passes: int | None) -> int:
        """Send as many passes of a flow, and the end; return how many datapoints that were."""
        done = sent = 0
        while passes is None or done < passes:
            before = sent
            for dp in self._source(df):
                self._send(self._encode(dp))
                sent += 1
            if sent == before and passes is None:
                raise DataError(f"{type(df).__name__} ended without a datapoint: there is nothing to send")
            done += 1
        self._send(_END)
        self.settle(ended=True)
        self._say_farewell()
        return sent

    def _source(self, df: DataFlow) -> Iterator[Any]:
        try:
            yield from df
        except Exception:
            # What came before the error arrives.
            self.settle(ended=False)
            raise

    def _encode(self, dp: Any) -> bytes:
        return pickle.dumps(dp, 5) if self.pickled else values.dumps(dp)

    def settle(self, ended: bool) -> None:
        """Wait until everything was taken: after the end was sent as long as that takes, otherwise while it goes on.

        Raises:
            DataError: nobody took it, in time.
        """
        zmq = _zmq()
        while self.under_way:
            if ended and not self.end_taken:
                _wait(lambda ms: self.socket.poll(ms, zmq.POLLIN), self.timeout_s, self.what)
            elif not self.socket.poll(_SETTLE_MS, zmq.POLLIN):
                # With a receiver that left, or is not the one that took the end.
                return
            self._count()

    def _count(self) -> None:
        zmq = _zmq()
        with contextlib.suppress(zmq.Again):
            while self.under_way:
                answer = self.socket.recv(zmq.NOBLOCK)
                self.end_taken |= answer == _END
                self.under_way -= answer != _NOTHING

    def _say_farewell(self) -> None:
        """Everything was taken: a receiver that has left already, or is not heard of for a moment, misses nothing."""
        zmq = _zmq()
        if self.socket.poll(_LINGER_MS, zmq.POLLOUT):
            with contextlib.suppress(zmq.Again):
                self.socket.send(_FAREWELL, zmq.NOBLOCK)

    def _send(self, message: bytes) -> None:
        zmq = _zmq()
        self._count()
        while True:
            try:
                self.socket.send(message, zmq.NOBLOCK, copy=False)
            except zmq.Again:
                _wait(lambda ms: self.socket.poll(ms, zmq.POLLOUT), self.timeout_s, self.what)
            else:
                self.under_way += 1
                return


_Peer = tuple[Any, bytes]


@dataclass
class _Line:
    """The sockets that receive.

    Attributes:
        context: of the sockets.
        sockets: one for each address.
        leaving: senders that ended and wait to hear that the end was taken: socket and name.
        pid: of the process whose they are.
    """

    context: Any
    sockets: list[Any]
    leaving: set[_Peer] = field(default_factory=set)
    pid: int = field(default_factory=os.getpid)

    def take(self, socket: Any) -> Any:
        """Receive one message, and tell its sender; None if it was a farewell."""
        name, *parts = socket.recv_multipart(copy=False)
        message = parts[0].buffer if len(parts) == 1 else b""
        sender = (socket, name.bytes)
        if message == _FAREWELL:
            self.leaving.discard(sender)
            return None
        ends = message == _END
        if ends:
            self.leaving.add(sender)
        self._answer(sender, _END if ends else _TAKEN)
        return message

    def _answer(self, sender: _Peer, answer: bytes) -> None:
        zmq = _zmq()
        socket, name = sender
        try:
            socket.send_multipart([name, answer])
        except zmq.ZMQError as error:
            if error.errno != zmq.EHOSTUNREACH:
                raise
            self.leaving.discard(sender)

    def close(self) -> None:
        """Close the sockets, when those that ended know that they were heard, or are gone, or after a while."""
        zmq = _zmq()
        deadline = time.monotonic() + _FAREWELL_S
        while self.leaving and time.monotonic() < deadline:
            for socket in self.sockets:
                if socket.poll(20, zmq.POLLIN):
                    self.take(socket)
            for sender in tuple(self.leaving):
                self._answer(sender, _NOTHING)
        self.context.destroy(linger=0)


class RemoteDataZMQ(DataFlow):
    """Yields what `send_dataflow_zmq` sends, from any number of senders.

    The next iteration goes on where one ended: the sockets stay open, from the first iteration to `close`.

    Args:
        addr1: of ZeroMQ, such as `tcp://*:8877` or `ipc:///tmp/flow`.
        addr2: a second one, for two protocols.
        hwm: datapoints that may wait on this side.
        bind: wait there for senders, instead of connecting to one.
        allow_pickle: read pickles, too: whoever can send them runs any code here.
        senders: how many senders have to tell that they ended until an iteration ends.
        timeout_s: how long to wait for a datapoint; None waits for ever, with a warning.

    Attributes:
        cnt1: datapoints that came from `addr1`.
        cnt2: datapoints that came from `addr2`.

    Raises:
        UsageError: an argument is wrong; when the first iteration begins, that the address is in use.
    """

    def __init__(
        self,
        addr1: str,
        addr2: str | None = None,
        hwm: int = 50,
        bind: bool = True,
        *,
        allow_pickle: bool = False,
        senders: int = 1,
        timeout_s: float | None = None,
    ) -> None:
        if not addr1:
            raise UsageError("RemoteDataZMQ needs an address, such as tcp://*:8877")
        if senders < 1:
            raise UsageError(f"senders must be at least 1, got {senders}")
        self.cnt1 = self.cnt2 = 0
        self._places = [_Place(address, bind, _checked_hwm(hwm)) for address in (addr1, addr2) if address]
        self._allow_pickle, self._senders, self._timeout_s = allow_pickle, senders, timeout_s
        self._guard = DataFlowReentrantGuard()
        self._line: _Line | None = None
        self._closed = False
        # Held by whoever uses the sockets: they may go from thread to thread, but belong to one at a time.
        self._using = threading.RLock()

    def __getstate__(self) -> dict[str, Any]:
        """A copy has no sockets yet."""
        kept = {k: v for k, v in super().__getstate__().items() if k not in ("_finalizer", "_using")}
        return kept | {"_line": None}

    def __setstate__(self, state: dict[str, Any]) -> None:
        """With a lock of its own."""
        self.__dict__.update(state)
        self._using = threading.RLock()

    def reset_state(self) -> None:
        """Count from 0."""
        super().reset_state()
        if self._line is not None and self._line.pid != os.getpid():
            # Sockets, and the thread that may use them, stayed in the process that this one was forked from.
            self._line, self._using = None, threading.RLock()
        self.cnt1 = self.cnt2 = 0
        self._ended = 0
        self._inbox: deque[tuple[int, Any]] = deque()

    def __iter__(self) -> Iterator[Any]:
        """Yield datapoints as they come; ends when as many senders as there are said that they have no more.

        Raises:
            UsageError: the address is in use or wrong.
            DataError: nothing came for `timeout_s`, or what came is no datapoint, or a pickle that is not allowed.
            DataFlowTerminated: `close` was called.
        """
        with self._guard:
            self._open()
            while self._ended < self._senders:
                index, message = self._next()
                if message == _END:
                    self._ended += 1
                    continue
                self.cnt1, self.cnt2 = self.cnt1 + (index == 0), self.cnt2 + (index == 1)
                yield self._decode(message, self._places[index].address)
            self._ended = 0

    def _open(self) -> None:
        zmq = _zmq()
        with self._using:
            if self._closed:
                raise DataFlowTerminated("RemoteDataZMQ was closed")
            if self._line is not None:
                return
            context = zmq.Context()
            try:
                sockets = [place.open(context, zmq.ROUTER) for place in self._places]
            except BaseException:
                context.destroy(linger=0)
                raise
            self._line = _Line(context, sockets)
            # At the end of the program a context that is still open would wait for its sockets.
            self._finalizer = Finalize(self, self._line.close, exitpriority=100)

    def _next(self) -> tuple[int, Any]:
        # One message of each socket that has any, so that none starves.
        while not self._inbox:
            self._inbox.extend(self._receive())
        return self._inbox.popleft()

    def _receive(self) -> list[tuple[int, Any]]:
        zmq = _zmq()
        where = " or ".join(place.address for place in self._places)
        with self._using:
            line = self._line
            if line is None or self._closed:
                raise DataFlowTerminated("RemoteDataZMQ was closed")
            poller = zmq.Poller()
            for socket in line.sockets:
                poller.register(socket, zmq.POLLIN)
            try:
                ready = dict(_wait(self._poll(poller), self._timeout_s, f"no datapoint came to {where}"))
                taken = [(i, line.take(s)) for i, s in enumerate(line.sockets) if s in ready]
            except zmq.ZMQError as error:
                raise DataError(f"receiving from {where} failed: {error}") from error
        return [(i, message) for i, message in taken if message is not None]

    def _poll(self, poller: Any) -> Callable[[int], Any]:
        def poll(wait_ms: int) -> Any:
            for start in range(0, max(wait_ms, 1), _SLICE_MS):
                if self._closed:
                    raise DataFlowTerminated("RemoteDataZMQ was closed")
                if found := poller.poll(min(_SLICE_MS, wait_ms - start)):
                    return found
            return []

        return poll

    def _decode(self, message: Any, address: str) -> Any:
        try:
            return values.loads(message, self._allow_pickle)
        except DataError as error:
            pickled = bytes(message[:1]) == b"\x80"
            raise DataError(
                f"what came to {address} cannot be read: {error.message}",
                hint="send without format='pickle', or set allow_pickle=True if you trust everyone who can send"
                if pickled
                else "only send_dataflow_zmq of the same version sends there",
            ) from error

    def close(self) -> None:
        """Close the sockets, instead of when this flow is collected or the program ends.

        They are closed when this returns, also under an iteration that is open: its next datapoint is a
        `DataFlowTerminated`. Senders that ended are given up to 15 s to hear that everything was taken.
        """
        self._closed = True
        line = self._line
        if line is None or line.pid != os.getpid():
            return
        with self._using:  # an iteration that waits in another thread sees within a moment that it is to end
            self._finalizer()
