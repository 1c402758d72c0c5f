"""What is known of one request when it has been answered."""

from __future__ import annotations

import time
from collections.abc import Iterable
from dataclasses import dataclass, field

__all__ = ["GRPC", "HTTP", "RequestRecord", "address"]

GRPC, HTTP = "grpc", "http"


def address(peer: str) -> str:
    """Write `host:port` as people read it: IPv4 as such also on a dual stack, IPv6 in brackets.

    Args:
        peer: `host:port`, IPv6 with or without brackets.
    """
    host, colon, port = peer.rpartition(":")
    host = host.strip("[]")
    if host.startswith("::ffff:") and "." in host:
        host = host.removeprefix("::ffff:")
    return f"[{host}]{colon}{port}" if ":" in host else f"{host}{colon}{port}"


@dataclass(slots=True)
class RequestRecord:
    """One request, filled in on its way. Made only when somebody is going to read it.

    Attributes:
        protocol: `grpc` or `http`.
        method: full name of a gRPC method, such as `/tensorflow.serving.PredictionService/Predict`, or verb and path of
            HTTP, such as `POST /v1/models/half:predict`.
        route: the path with its variable parts as placeholders, such as `/v1/models/{model}:predict`; empty for gRPC.
        headers: header fields, or metadata.
        peer: address of the caller.
        request_id: see `request_id`.
        trace_id: of the trace that it belongs to, in hexadecimal; empty when it belongs to none.
        time_ns: wall clock at the beginning, ns since 1970.
        began: the same by `time.perf_counter`, in s.
        model: name as asked for; empty when it could not be read.
        version: that answered, None when it did not come to that.
        signature: that was run; empty likewise.
        status: name of its gRPC status, such as `OK`; over HTTP that of the error behind the code.
        code: number of the gRPC status, or status code of HTTP.
        request_bytes: size of the message or body.
        response_bytes: the same of the answer.
        run_began: when the model began to run, by `time.perf_counter`, in s; 0.0 when not known.
        run_s: how long the model ran, in s; below 0 when it did not.
        duration_s: from the beginning to the answer, in s.
    """

    protocol: str
    method: str
    headers: Iterable[tuple[str | bytes, str | bytes]] = ()
    peer: str = ""
    request_id: str = ""
    trace_id: str = ""
    time_ns: int = field(default_factory=time.time_ns)
    began: float = field(default_factory=time.perf_counter)
    route: str = ""
    model: str = ""
    version: int | None = None
    signature: str = ""
    status: str = "OK"
    code: int = 0
    request_bytes: int = 0
    response_bytes: int = 0
    run_began: float = 0.0
    run_s: float = -1.0
    duration_s: float = 0.0

    def ran(self, began: float, seconds: float) -> None:
        """Note when the model began to run, by `time.perf_counter`, and for how long it did, in s."""
        self.run_began, self.run_s = began, seconds

    def answered(self, version: int, signature: str, run_s: float) -> None:
        """Note which version answered.

        Args:
            version: number.
            signature: key of the signature that was run.
            run_s: how long its runner took, in s; counts as the run, up to now, unless `ran` knows better.
        """
        self.version, self.signature = version, signature
        if not self.run_began:
            self.ran(time.perf_counter() - run_s, run_s)

    def end(self, status: str, code: int, response_bytes: int) -> None:
        """Note how it ended, now."""
        self.status, self.code, self.response_bytes = status, code, response_bytes
        self.duration_s = time.perf_counter() - self.began

    @property
    def queue_s(self) -> float:
        """Seconds from the beginning of the request to that of the run; below 0 when the model did not run."""
        return self.run_began - self.began if self.run_s >= 0 else -1.0
