"""The HTTP server of the REST API: uvicorn in a thread, on a socket that is bound already."""

from __future__ import annotations

import socket
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import uvicorn

from moxserve.errors import Unavailable
from moxserve.serving.dataplane import DataPlane
from moxserve.serving.metrics import ServingMetrics
from moxserve.serving.rest.app import RestApp
from moxserve.serving.rest.options import RestOptions

__all__ = ["RestServer"]

_KEEP_ALIVE_S = 75
_START_LIMIT_S = 30.0


class RestServer:
    """Serves the API until it is stopped.

    Args:
        dataplane: that answers.
        options: threads and limits.
        sock: bound, not yet listening; the server closes it.
        metrics: where requests are counted.
    """

    def __init__(
        self, dataplane: DataPlane, options: RestOptions, sock: socket.socket, metrics: ServingMetrics
    ) -> None:
        self._pool = ThreadPoolExecutor(options.threads, thread_name_prefix="moxserve-rest")
        app = RestApp(dataplane, options, self._pool, metrics)
        self._server = uvicorn.Server(
            uvicorn.Config(
                app,
                lifespan="off",
                log_config=None,
                log_level="warning",
                access_log=False,
                server_header=False,
                timeout_keep_alive=_KEEP_ALIVE_S,
            )
        )
        self._socket = sock
        self._thread = threading.Thread(target=self._run, name="moxserve-http", daemon=True)

    def _run(self) -> None:
        self._server.run(sockets=[self._socket])

    def start(self) -> None:
        """Begin to answer.

        Raises:
            Unavailable: the server did not come up.
        """
        self._thread.start()
        deadline = time.monotonic() + _START_LIMIT_S
        while not self._server.started:
            if not self._thread.is_alive() or time.monotonic() > deadline:
                raise Unavailable("the HTTP server did not start; its log says why")
            time.sleep(0.005)

    def begin_stop(self, grace_s: float) -> None:
        """Refuse new connections and let requests in flight finish; returns at once."""
        self._server.config.timeout_graceful_shutdown = max(1, round(grace_s))
        self._server.should_exit = True

    def wait_stopped(self, timeout_s: float) -> bool:
        """Wait until every request has finished; False when the time was up first."""
        self._thread.join(timeout_s)
        self._pool.shutdown(wait=False, cancel_futures=True)
        return not self._thread.is_alive()
