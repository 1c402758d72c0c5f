"""The locust users: each keeps one connection and sends one request after the other.

Importing this module patches the standard library for gevent (locust does that) and makes grpc yield to it; without the
second, the first gRPC call would stop all users at once.
"""

from __future__ import annotations

import itertools
import time
from typing import Any, ClassVar
from urllib.parse import urlsplit

from locust import User, task  # isort: skip - patches the standard library: before everything that uses sockets
import grpc.experimental.gevent as grpc_gevent

grpc_gevent.init_gevent()

import grpc  # noqa: E402
from geventhttpclient import HTTPClient  # noqa: E402

from moxserve_loadtests.plan import Plan  # noqa: E402

__all__ = ["GrpcSender", "GrpcUser", "PlanUser", "RefusedError", "RestSender", "RestUser", "user_for"]


class RefusedError(Exception):
    """The server answered with an error; the text is what locust groups failures by."""


class GrpcSender:
    """One gRPC connection that is shared with nobody."""

    def __init__(self, plan: Plan) -> None:
        options = [
            ("grpc.max_receive_message_length", -1),
            ("grpc.max_send_message_length", -1),
            # Channels of the same address would share one connection, and so not be users of their own.
            ("grpc.use_local_subchannel_pool", 1),
            ("grpc.enable_http_proxy", 0),
        ]
        if plan.secure:
            self._channel = grpc.secure_channel(plan.address, grpc.ssl_channel_credentials(), options)
        else:
            self._channel = grpc.insecure_channel(plan.address, options)
        self._call = self._channel.unary_unary(plan.path)
        self._timeout_s = plan.timeout_s

    def send(self, payload: bytes) -> int:
        """Send one request and return the answer's size in bytes.

        Raises:
            RefusedError: any status but OK.
        """
        try:
            return len(self._call(payload, timeout=self._timeout_s))
        except grpc.RpcError as error:
            raise RefusedError(f"{error.code().name}: {error.details()}"[:300]) from None

    def close(self) -> None:
        """Close the connection."""
        self._channel.close()


class RestSender:
    """One HTTP connection that is kept open."""

    def __init__(self, plan: Plan) -> None:
        url = urlsplit(plan.address)
        self._path = url.path.rstrip("/") + plan.path
        self._http = HTTPClient.from_url(
            plan.address, concurrency=1, connection_timeout=plan.timeout_s, network_timeout=plan.timeout_s
        )

    def send(self, payload: bytes) -> int:
        """Send one request and return the answer's size in bytes.

        Raises:
            RefusedError: any status but 200, or the connection broke.
        """
        try:
            response = self._http.request("POST", self._path, payload, {"Content-Type": "application/json"})
            body = response.read()
        except (OSError, ValueError) as error:
            raise RefusedError(f"{type(error).__name__}: {error}"[:300]) from None
        if response.status_code != 200:
            raise RefusedError(f"{response.status_code}: {bytes(body)[:250].decode(errors='replace')}")
        return len(body)

    def close(self) -> None:
        """Close the connection."""
        self._http.close()


class PlanUser(User):
    """Sends the payloads of a plan, one after the other, without pauses.

    Attributes:
        plan: set on the class before the users start.
    """

    abstract = True
    plan: ClassVar[Plan]
    _number: ClassVar[Any] = itertools.count()

    def on_start(self) -> None:
        """Connect; each user starts at another payload."""
        self._sender = GrpcSender(self.plan) if self.plan.kind == "grpc" else RestSender(self.plan)
        start = next(self._number) % len(self.plan.payloads)
        self._payloads = itertools.cycle(self.plan.payloads[start:] + self.plan.payloads[:start])

    def on_stop(self) -> None:
        """Disconnect."""
        self._sender.close()

    @task
    def predict(self) -> None:
        """Send one request and tell locust about it."""
        error = None
        size = 0
        start = time.perf_counter()
        try:
            size = self._sender.send(next(self._payloads))
        except RefusedError as refused:
            error = refused
        self.environment.events.request.fire(
            request_type="gRPC" if self.plan.kind == "grpc" else "REST",
            name=f"predict {self.plan.model}",
            response_time=(time.perf_counter() - start) * 1e3,
            response_length=size,
            exception=error,
            context={},
        )


class GrpcUser(PlanUser):
    """A user of the gRPC service."""

    abstract = True


class RestUser(PlanUser):
    """A user of the REST API."""

    abstract = True


def user_for(plan: Plan) -> type[PlanUser]:
    """Make the user class of a plan."""
    base = GrpcUser if plan.kind == "grpc" else RestUser
    return type(base.__name__, (base,), {"plan": plan, "abstract": False, "host": plan.target})
