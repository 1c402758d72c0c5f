"""Requests and answers between two processes, over a pair of sockets.

A frame is the length of its body in four bytes, most significant first, and the body, a JSON object: a request
`{"id": 1, "method": "reload", "argument": ...}`, or an answer `{"id": 1, "result": ...}` or
`{"id": 1, "error": [code, message]}` with the number of a gRPC status. Either side asks, any number at a time.
"""

from __future__ import annotations

import contextlib
import json
import logging
import socket
import struct
import threading
from collections.abc import Callable, Mapping
from concurrent.futures import Future
from concurrent.futures import TimeoutError as FutureTimeout
from itertools import count
from typing import Any

from moxserve.errors import DeadlineExceeded, Internal, MoxserveError, Unavailable, serving_error

__all__ = ["Channel", "ChannelClosed"]

logger = logging.getLogger(__name__)

_LENGTH = struct.Struct(">I")

Handler = Callable[[Any], Any]


class ChannelClosed(Unavailable):
    """The other process is gone."""

    def __init__(self) -> None:
        super().__init__("the other process is gone")


class Channel:
    """One end.

    Args:
        sock: connected; closed with the channel.
        handlers: method -> function that takes the argument and returns the result. Each call runs in a thread of its
            own, so a slow one holds up no other.
        closed: called once, when the other end is gone.
    """

    def __init__(self, sock: socket.socket, handlers: Mapping[str, Handler], closed: Callable[[], None]) -> None:
        self._socket = sock
        self._handlers = handlers
        self._closed = closed
        self._lock = threading.Lock()
        # One of its own: whoever waits for the other end to read must not keep this end from reading.
        self._send_lock = threading.Lock()
        self._ids = count(1)
        self._waiting: dict[int, Future[Any]] = {}
        self._open = True

    def start(self) -> None:
        """Begin to read what the other end sends."""
        threading.Thread(target=self._read, name="moxserve-channel", daemon=True).start()

    def call(self, method: str, argument: Any = None, timeout_s: float | None = None) -> Any:
        """Ask the other end, and return its result.

        Args:
            method: one of the other end's handlers.
            argument: what JSON can hold.
            timeout_s: how long to wait; None for as long as it takes.

        Raises:
            ChannelClosed: the other end is gone.
            DeadlineExceeded: no answer came in time.
            ServingError: what its handler raised.
        """
        answer: Future[Any] = Future()
        with self._lock:
            if not self._open:
                raise ChannelClosed
            number = next(self._ids)
            self._waiting[number] = answer
        try:
            self._send({"id": number, "method": method, "argument": argument})
            return answer.result(timeout_s)
        except FutureTimeout:
            raise DeadlineExceeded(f"the other process did not answer {method!r} within {timeout_s:g} s") from None
        finally:
            with self._lock:
                self._waiting.pop(number, None)

    def close(self) -> None:
        """End the conversation; calls that wait raise Unavailable."""
        with contextlib.suppress(OSError):
            self._socket.shutdown(socket.SHUT_RDWR)

    def _send(self, message: Mapping[str, Any]) -> None:
        body = json.dumps(message).encode()
        try:
            with self._send_lock:
                self._socket.sendall(_LENGTH.pack(len(body)) + body)
        except OSError:
            raise ChannelClosed from None

    def _read(self) -> None:
        try:
            with self._socket, self._socket.makefile("rb") as stream:
                while len(head := stream.read(_LENGTH.size)) == _LENGTH.size:
                    body = stream.read(_LENGTH.unpack(head)[0])
                    self._take(json.loads(body))
        except (OSError, ValueError) as error:
            logger.debug("the channel broke off: %s", error)
        finally:
            with self._lock:
                self._open = False
                waiting = list(self._waiting.values())
            for answer in waiting:
                answer.set_exception(ChannelClosed())
            self._closed()

    def _take(self, message: Mapping[str, Any]) -> None:
        if "method" in message:
            threading.Thread(target=self._handle, args=(message,), name="moxserve-call", daemon=True).start()
            return
        with self._lock:
            answer = self._waiting.pop(message["id"], None)
        if answer is None:
            return  # nobody waits for it any more
        if "error" in message:
            answer.set_exception(serving_error(*message["error"]))
        else:
            answer.set_result(message["result"])

    def _handle(self, message: Mapping[str, Any]) -> None:
        answer: dict[str, Any] = {"id": message["id"]}
        try:
            answer["result"] = self._handlers[message["method"]](message["argument"])
        except MoxserveError as error:
            answer["error"] = [error.grpc_code, error.message]
        except Exception as error:
            logger.exception("answering %r of another process failed", message["method"])
            answer["error"] = [Internal.grpc_code, f"{type(error).__name__}: {error}"]
        with contextlib.suppress(Unavailable):
            self._send(answer)
