"""One of several server processes: `python -m moxserve.serving.processes.member FD`, started by the supervisor.

A whole server, but that its ports are shared, that it opens them when the supervisor says so, and that a change of the
configuration and the page of metrics go to the supervisor, which knows the others.
"""

from __future__ import annotations

import logging
import os
import signal
import socket
import sys
from base64 import b64decode, b64encode
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from moxserve.errors import MoxserveError
from moxserve.protocol import messages
from moxserve.serving.main import Server
from moxserve.serving.metrics import ServingMetrics
from moxserve.serving.processes.channel import Channel
from moxserve.serving.processes.options import member_options
from moxserve.serving.processes.signals import serve_until_signal

__all__ = ["Membership", "main"]

logger = logging.getLogger(__name__)

_PATIENCE_S = 60.0
_METRICS_S = 5.0


class Membership:
    """The server's way to the other processes.

    Args:
        sock: leads to the supervisor.
    """

    def __init__(self, sock: socket.socket) -> None:
        self._server: Server | None = None
        handlers = {"apply": self._apply, "undo": self._undo, "counts": self._counts}
        self._channel = Channel(sock, handlers, _supervisor_gone)
        self._channel.start()
        hello = self._channel.call("hello", timeout_s=_PATIENCE_S)
        self.index: int = hello["index"]
        self.flags: Mapping[str, Any] = hello["flags"]
        self.config = None if hello["config"] is None else b64decode(hello["config"])
        self._generation: int = hello["generation"]
        self._opened: bool = hello["opened"]

    def serve(self) -> None:
        """Run the server until the process is told to stop.

        Raises:
            MoxserveError: it could not start.
        """
        options = member_options(self.flags, self.config, self.index)
        if self._opened:
            # The others answer already: requests are to go to them until this one has loaded its models, too.
            options = replace(options, serve_while_loading=False)
        self._server = Server(options, peers=self)
        serve_until_signal(self._server)

    def failed(self, error: MoxserveError) -> None:
        """Tell why the server could not start."""
        failure = {"exit_code": error.exit_code, "message": error.message, "hint": error.hint}
        self._channel.call("failed", failure, timeout_s=_PATIENCE_S)

    # What the server asks for

    def before_opening(self) -> None:
        """Wait until every process has loaded its models, and catch up with the configuration.

        Raises:
            Unavailable: the server is being stopped.
            ServingError: the configuration has changed since the start, and this process cannot follow.
        """
        while (told := self._channel.call("loaded", self._generation))["config"] is not None:
            self._apply({"config": told["config"], "timeout_s": None})
            self._generation = told["generation"]

    def opened(self) -> None:
        """Tell that requests are answered."""
        self._channel.call("ready")

    def reload(self, message: Any, timeout_s: float | None) -> None:
        """Have all processes serve what a ModelServerConfig message tells; see `Supervisor.reload`."""
        config = b64encode(message.SerializeToString()).decode()
        self._channel.call("reload", {"config": config, "timeout_s": timeout_s})

    def metrics(self) -> ServingMetrics:
        """Return the counts of all processes, added up.

        Raises:
            ServingError: they cannot be had.
        """
        total = ServingMetrics()
        total.absorb(self._channel.call("counts", timeout_s=_METRICS_S))
        return total

    # What the supervisor asks for

    def _apply(self, asked: Mapping[str, Any]) -> None:
        message = messages.ModelServerConfig.FromString(b64decode(asked["config"]))
        self._required().reloader.reload(message, asked["timeout_s"])

    def _undo(self, _: Any) -> None:
        self._required().reloader.undo()

    def _counts(self, _: Any) -> dict[str, Any]:
        # Also asked of a member that has only just been started.
        return {} if self._server is None else self._server.metrics.counts()

    def _required(self) -> Server:
        if self._server is None:
            raise RuntimeError("the supervisor asked before the server was made")
        return self._server


def _supervisor_gone() -> None:
    logger.error("the process that started this one is gone; finishing the requests")
    os.kill(os.getpid(), signal.SIGTERM)


def main(argv: list[str]) -> int:
    """Serve as one of several processes; returns the exit status.

    Args:
        argv: the file descriptor of the channel to the supervisor.
    """
    membership = Membership(socket.socket(fileno=int(argv[0])))
    log_format = f"%(asctime)s %(levelname).1s {membership.index} %(name)s] %(message)s"
    logging.basicConfig(stream=sys.stderr, level=logging.INFO, format=log_format)
    logging.getLogger("tensorflow").setLevel(logging.WARNING)
    try:
        membership.serve()
    except MoxserveError as error:
        membership.failed(error)
        return error.exit_code
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
