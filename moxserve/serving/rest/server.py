"""The HTTP server of the REST API: uvicorn on the server's event loop, on a socket that is bound already."""

from __future__ import annotations

import asyncio
import socket

import uvicorn

from moxserve.errors import Unavailable
from moxserve.serving.rest.app import RestApp

__all__ = ["RestServer"]

_KEEP_ALIVE_S = 75
_START_LIMIT_S = 30.0
_BACKLOG = 2048
_LOOK_S = 0.002


class RestServer:
    """Serves the API until it is stopped. Made, used and stopped on the event loop.

    Args:
        app: that answers.
        sock: bound, not yet listening; the server closes it.
    """

    def __init__(self, app: RestApp, sock: socket.socket) -> None:
        self._server = uvicorn.Server(
            uvicorn.Config(
                app,
                lifespan="off",
                # One that asks for a WebSocket is answered over HTTP, whichever packages are installed.
                ws="none",
                log_config=None,
                log_level="warning",
                access_log=False,
                server_header=False,
                # Callers are told as they are connected: anyone can send a header that says otherwise.
                proxy_headers=False,
                timeout_keep_alive=_KEEP_ALIVE_S,
                backlog=_BACKLOG,
            )
        )
        self._socket = sock
        self._task: asyncio.Task[None] | None = None

    async def start(self) -> None:
        """Begin to answer.

        Raises:
            Unavailable: the server did not come up.
        """
        loop = asyncio.get_running_loop()
        self._task = loop.create_task(self._server.serve(sockets=[self._socket]))
        deadline = loop.time() + _START_LIMIT_S
        while not self._server.started:
            if self._task.done() or loop.time() > deadline:
                raise Unavailable("the HTTP server did not start; its log says why")
            await asyncio.sleep(_LOOK_S)

    async def stop(self, grace_s: float) -> bool:
        """Refuse new connections and let requests in flight finish.

        Args:
            grace_s: how long they may take.

        Returns:
            False when the time was up first.
        """
        if self._task is None:
            return True
        while not (self._server.started or self._task.done()):
            # One that is told to stop before it has started would leave its socket open.
            await asyncio.sleep(_LOOK_S)
        self._server.config.timeout_graceful_shutdown = max(1, round(grace_s))
        self._server.should_exit = True
        done, _ = await asyncio.wait([self._task], timeout=max(1.0, grace_s))
        return bool(done)
