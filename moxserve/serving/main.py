"""Puts a server together: start-up order, addresses, shutdown.

Start: check the options and the addresses, load, wait until every model has a version, then open gRPC and REST. So a
port that answers means a server that is ready, unless `serve_while_loading` has the ports open first. Stop: refuse new
requests, let those in flight finish within a limit, unload. Both transports live on one event loop in a thread of its
own.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import importlib.util
import logging
import os
import socket
import threading
import time
from collections.abc import Coroutine
from types import TracebackType
from typing import TYPE_CHECKING, Any, Protocol, TypeVar

from moxserve import file
from moxserve.errors import MissingExtraError, Unavailable, UsageError
from moxserve.serving import backends, warmup
from moxserve.serving.dataplane import DataPlane
from moxserve.serving.execution import LoopThread, RunnerFactory, WorkPool
from moxserve.serving.execution.pool import MAX_WAITING
from moxserve.serving.grpc import profiler
from moxserve.serving.grpc.server import GrpcServer, context_of
from moxserve.serving.grpc.v2 import InferenceService
from moxserve.serving.manager import Manager
from moxserve.serving.metrics import ServingMetrics
from moxserve.serving.observe import Recorder
from moxserve.serving.observe.making import make_recorder
from moxserve.serving.open_inference import OpenInference
from moxserve.serving.options import ServerOptions
from moxserve.serving.reload import Reloader
from moxserve.serving.request_log import RequestLogs
from moxserve.serving.servable import LocalCopy, Servable

if TYPE_CHECKING:
    from moxserve.serving.rest.exchange import Routes
    from moxserve.serving.rest.server import RestServer

__all__ = ["Server", "ServerOptions"]

logger = logging.getLogger(__name__)

T = TypeVar("T")

# How long models may have no version at all until the start says that it waits.
_PATIENCE_S = 2.0
# A collector of traces that is away must not hold up the end.
_TELL_S = 3.0
_TOO_SOON = "stopped before the models were loaded"
_NO_IPV6 = (errno.EAFNOSUPPORT, errno.EADDRNOTAVAIL, errno.EPROTONOSUPPORT)


class Peers(Protocol):
    """The other server processes behind the same ports, as one of them sees them; see `moxserve.serving.processes`."""

    def before_opening(self) -> None:
        """Wait until all of them have loaded their models; raises when the start is broken off."""

    def opened(self) -> None:
        """Tell them that requests are answered."""

    def reload(self, message: Any, timeout_s: float | None) -> None:
        """Put a ModelServerConfig message in effect in all of them, or in none; raises to refuse."""

    def metrics(self) -> ServingMetrics:
        """Return the counts of all of them, added up."""


class Server:
    """A model server in this process; also a context manager that starts and stops it.

    Args:
        options: everything that it can be told.

    Attributes:
        grpc_port: real port; 0 before `start` and when gRPC has no TCP address.
        rest_port: real port; 0 before `start` and without REST.
        dataplane: answers without a transport, from `start` on.
        metrics: what it has counted.
        recorder: what tells each request, from `start` on.
    """

    def __init__(self, options: ServerOptions, peers: Peers | None = None) -> None:
        self.options = options
        self._peers = peers
        self.grpc_port = 0
        self.rest_port = 0
        self.metrics = ServingMetrics()
        models = options.models()
        self._manager = Manager(models, self._load, options.manager)
        self.recorder = Recorder()
        self._logs = RequestLogs(options.load.tags, counted=lambda *labels: self.metrics.logged.add(labels))
        self._logs.configure(models or ())
        self.reloader = Reloader(self._manager, options.config, self._logs.configure, listed=models is not None)
        self.dataplane = DataPlane(self._manager, self._logs, self.metrics, check_methods=options.check_methods)
        self._runners = RunnerFactory(
            options.grpc.max_threads, options.batching, options.max_queue_delay_s, self.metrics
        )
        self._codecs = WorkPool(options.rest.threads, MAX_WAITING, "moxserve-rest")
        self._loop: LoopThread | None = None
        self._grpc: GrpcServer | None = None
        self._rest: RestServer | None = None
        self._closing = False
        self._stopped = threading.Event()
        self._stop_lock = threading.Lock()

    def _load(self, name: str, version: int, path: str) -> Servable:
        """Load a version; one in a store is copied to this machine first, and the copy goes when it is freed."""
        load_options = self.options.load_options(name, self._manager.platform(name, path))
        copy = contextlib.ExitStack()
        with contextlib.ExitStack() as undo:
            undo.callback(copy.close)
            local = copy.enter_context(file.local_copy(path))
            with self.metrics.loading(path):
                backend = backends.load(local, load_options)
            undo.callback(backend.close)
            runner = self._runners.make(backend, local)
            undo.callback(runner.close)
            servable = Servable(name, version, path, backend, runner, LocalCopy(local, copy.close))
            if self.options.warmup:
                warmup.replay(
                    servable,
                    self.call,
                    self.options.warmup_iterations,
                    self.metrics,
                    check_methods=self.options.check_methods,
                )
            undo.pop_all()
        self.metrics.loaded(name, version, local)
        return servable

    @property
    def answering(self) -> bool:
        """Whether the ports are open, or were until `stop`."""
        return self._grpc is not None

    def call(self, coroutine: Coroutine[Any, Any, T]) -> T:
        """Run a coroutine, such as one of `dataplane`, on the server's event loop, and wait for it.

        Raises:
            Unavailable: the server is not running.
            BaseException: what the coroutine raised.
        """
        if self._loop is None:
            coroutine.close()
            raise Unavailable("the server is not running")
        return self._loop.call(coroutine)

    def start(self) -> None:
        """Load the models, then open the ports; returns when requests are answered.

        Raises:
            UsageError: an address makes no sense.
            MissingExtraError: a package that these options need is not installed.
            Unavailable: an address cannot be bound, or `stop` was called meanwhile.
            UnknownError: a model did not become available.
        """
        _require_packages(self.options)
        for flag, address in (("--port", self.options.grpc_address), ("--rest_api_port", self.options.rest_address)):
            if address:
                # Loading may take minutes: a port that is taken is told before, not after.
                bind(address, flag, share=self.options.share_ports).close()
        with self._stop_lock:
            if self._stopped.is_set():
                raise Unavailable(_TOO_SOON)
            self.recorder = make_recorder(self.options.observe, self.metrics)
            self.recorder.start()
            self._loop = LoopThread()
        try:
            self._manager.start()
            if self.options.serve_while_loading:
                self.call(self._open())
            if not self._wait_until_ready():
                raise Unavailable(_TOO_SOON)
            if self._peers is not None:
                self._peers.before_opening()
            if not self.options.serve_while_loading:
                self.call(self._open())
            self.reloader.start()
            if self._peers is not None:
                self._peers.opened()
        except BaseException:
            self.stop(0.0)
            raise

    def _wait_until_ready(self) -> bool:
        began = time.monotonic()
        if self._manager.wait_until_ready(_PATIENCE_S):
            return True
        empty = [config.name for config in self._manager.configs() if not self._manager.statuses(config.name)]
        if empty and time.monotonic() - began >= _PATIENCE_S:
            # The log tells why they have no version; that the server has not hung is told here.
            interval_s = self.options.manager.poll_interval_s
            look = f"looking every {interval_s:g} s" if interval_s > 0 else "not looking again, as its flag says"
            ports = "requests for it are refused" if self.options.serve_while_loading else "no port is open"
            logger.warning("waiting for a version of %s to load: %s; until then %s", ", ".join(empty), look, ports)
        return self._manager.wait_until_ready()

    async def _open(self) -> None:
        core = OpenInference(self.dataplane)
        for opening in (self._open_grpc, self._open_rest):
            if self._closing:
                raise Unavailable(_TOO_SOON)
            await opening(core)

    async def _open_grpc(self, core: OpenInference) -> None:
        reload = (self._peers or self.reloader).reload
        server = GrpcServer(self.dataplane, self.options.grpc, reload, self.metrics, self.recorder)
        if self.options.profiler:
            server.add_service(profiler.SERVICE, profiler.ProfilerService().methods())
        inference = InferenceService(core, self.metrics, context_of, self.recorder)
        server.add_service(inference.SERVICE, inference.methods(), inference.streams())
        self._grpc = server
        if self.options.grpc_address:
            self.grpc_port = server.listen(self.options.grpc_address)
        path = self.options.grpc_socket_path
        if path:
            _remove_old_socket(path)
            server.listen(f"unix:{path}")
        await server.start()
        if self.grpc_port:
            host = self.options.grpc_address.rpartition(":")[0]
            logger.info("Running gRPC ModelServer at %s:%d ...", host, self.grpc_port)
        if path:
            logger.info("Running gRPC ModelServer at UNIX socket %s ...", path)

    async def _open_rest(self, core: OpenInference) -> None:
        if not self.options.rest_address:
            return
        # Imported here: a server without REST needs no HTTP packages.
        from moxserve.serving.rest.app import RestApp
        from moxserve.serving.rest.page import StatusPage
        from moxserve.serving.rest.server import RestServer
        from moxserve.serving.rest.v2 import InferenceRoutes

        options = self.options.rest
        more: list[Routes] = [InferenceRoutes(core, self._codecs)]
        if options.page:
            more.append(StatusPage(self.dataplane, self._counts, options.metrics_path))
        app = RestApp(
            self.dataplane, options, self._codecs, self.metrics, lambda: self._counts().page(), more, self.recorder
        )
        sock = bind(self.options.rest_address, "--rest_api_port", share=self.options.share_ports)
        self.rest_port = sock.getsockname()[1]
        self._rest = RestServer(app, sock)
        await self._rest.start()
        logger.info("Exporting HTTP/REST API at:localhost:%d ...", self.rest_port)

    def _counts(self) -> ServingMetrics:
        return self._peers.metrics() if self._peers else self.metrics

    def wait(self, timeout_s: float | None = None) -> bool:
        """Wait until the server is stopped; False when the time was up first."""
        return self._stopped.wait(timeout_s)

    def stop(self, grace_s: float | None = None) -> bool:
        """Refuse new requests, let those in flight finish, unload the models.

        Args:
            grace_s: how long that may take; None takes the option.

        Returns:
            Whether every request finished and every model was unloaded in time.
        """
        grace_s = self.options.shutdown_grace_s if grace_s is None else grace_s
        deadline = time.monotonic() + grace_s
        self.reloader.stop()
        with self._stop_lock:
            if self._stopped.is_set():
                return True
            finished = self.call(self._close(grace_s)) if self._loop is not None else True
            finished = self._manager.stop(max(0.1, deadline - time.monotonic())) and finished
            finished = self._logs.close(max(1.0, deadline - time.monotonic())) and finished
            if not self.recorder.close(_TELL_S):
                logger.warning("traces of the last requests could not be sent within %g s", _TELL_S)
            self._runners.close()
            self._codecs.close()
            if self._loop is not None:
                self._loop.stop()
            self._stopped.set()
        return finished

    async def _close(self, grace_s: float) -> bool:
        self._closing = True
        servers = [server for server in (self._rest, self._grpc) if server is not None]
        return all(await asyncio.gather(*(server.stop(grace_s) for server in servers)))

    def __enter__(self) -> Server:
        self.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.stop()


def _require_packages(options: ServerOptions) -> None:
    # As with the addresses: told before the models are loaded, not after.
    for wanted, module, package, what in (
        (options.rest_address, "uvicorn", "uvicorn", "the REST API"),
        (options.grpc.health, "grpc_health", "grpcio-health-checking", "the health service"),
    ):
        if wanted and importlib.util.find_spec(module) is None:
            raise MissingExtraError(package, "serve", what)


def split_address(address: str) -> tuple[str, int]:
    """Split `host:port` or `[host]:port`.

    Raises:
        UsageError: it is neither.
    """
    host, sep, port = address.rpartition(":")
    if not sep or not port.isdecimal():
        raise UsageError(f"address {address!r}: expected host:port")
    return host.strip("[]"), int(port)


def bind(address: str, flag: str, *, share: bool = False) -> socket.socket:
    """Bind a TCP socket, dual stack for `[::]`, falling back to IPv4 where the machine has no IPv6.

    Raises:
        UsageError: the address makes no sense.
        Unavailable: it is in use or not ours.
    """
    host, port = split_address(address)
    try:
        return _bind(host, port, share=share)
    except OSError as error:
        if host == "::" and error.errno in _NO_IPV6:
            return bind(f"0.0.0.0:{port}", flag, share=share)
        raise Unavailable(
            f"cannot listen at {address}: {error.strerror or error}",
            hint=f"stop the other server, or choose another {flag}",
        ) from None


def _bind(host: str, port: int, *, share: bool) -> socket.socket:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    sock = socket.socket(family, socket.SOCK_STREAM)
    try:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if share:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        if family == socket.AF_INET6:
            sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0)
        sock.bind((host, port))
    except OSError:
        sock.close()
        raise
    return sock


def _remove_old_socket(path: str) -> None:
    with contextlib.suppress(FileNotFoundError):
        if not os.path.isfile(path):
            os.unlink(path)
