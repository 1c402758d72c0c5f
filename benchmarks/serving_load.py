"""The load generator of `serving.py`, a process of its own: closed loop, requests prepared beforehand, answers checked.

    python benchmarks/serving_load.py < PLAN.json

It starts with no request in flight and ends with none, and reads the CPU clock of the server's process tree at these
two moments: so CPU per request holds all that the counted requests cost, and nothing else. It prints a line of JSON.

An answer with bytes that were seen before is right; one with new bytes is decoded and compared with what is expected
(batches of different sizes may round differently). Nothing here imports TensorFlow.
"""

from __future__ import annotations

import asyncio
import base64
import dataclasses
import json
import math
import sys
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from serving_processes import tree_cpu_s

# More kinds of answer to one request than batch sizes could explain: then it is not worth remembering them.
_MAX_KNOWN = 256
_MAX_MESSAGE_BYTES = 64 << 20


@dataclass
class Plan:
    """What to send, to whom, for how long.

    Attributes:
        transport: `grpc` or `http`.
        address: `host:port`.
        method: full gRPC method, or HTTP path.
        payloads: files of request bytes; sent in turn.
        expected: .npy file, `[payload, ...]`.
        answer: how an answer is read; a key of `ANSWERS`.
        tolerance: largest difference from `expected`, relative to its largest value.
        headers: further HTTP headers.
        pid: head of the server's process tree.
        concurrency: requests in flight.
        connections: gRPC channels that they share; over HTTP each request in flight has a connection.
        seconds: how long to send.
        min_requests: send longer until there were so many, up to `max_seconds`.
        warm: requests before the clock starts.
    """

    transport: str
    address: str
    method: str
    payloads: list[str]
    expected: str
    answer: str
    pid: int
    tolerance: float = 1e-3
    headers: dict[str, str] = field(default_factory=dict)
    concurrency: int = 1
    connections: int = 1
    seconds: float = 2.0
    min_requests: int = 1
    max_seconds: float = 20.0
    warm: int = 2


def _tfs_grpc(data: bytes) -> np.ndarray:
    from moxserve.protocol import messages
    from moxserve.protocol.tensors import from_proto

    outputs = messages.PredictResponse.FromString(data).outputs
    (name,) = outputs
    return from_proto(outputs[name])


def _tfs_rest(data: bytes) -> np.ndarray:
    answer = json.loads(data)
    found = answer["predictions"] if "predictions" in answer else answer["outputs"]
    return np.array(found, np.float32)


def _v2_grpc(data: bytes) -> np.ndarray:
    from tritonclient.grpc import service_pb2

    answer = service_pb2.ModelInferResponse.FromString(data)
    tensor = answer.outputs[0]
    if answer.raw_output_contents:
        return np.frombuffer(answer.raw_output_contents[0], np.float32).reshape(tensor.shape)
    return np.array(tensor.contents.fp32_contents, np.float32).reshape(tensor.shape)


def _v2_rest(data: bytes) -> np.ndarray:
    tensor = json.loads(data)["outputs"][0]
    return np.array(tensor["data"], np.float32).reshape(tensor["shape"])


def _v2_binary(data: bytes) -> np.ndarray:
    size = int(json.JSONDecoder().raw_decode(data.decode("latin-1"))[1])
    tensor = json.loads(data[:size])["outputs"][0]
    return np.frombuffer(data[size:], np.float32).reshape(tensor["shape"])


def _json_list(data: bytes) -> np.ndarray:
    answer = json.loads(data)
    return np.array(answer["y"] if isinstance(answer, dict) else answer, np.float32)


def _json_b64(data: bytes) -> np.ndarray:
    return np.frombuffer(base64.b64decode(json.loads(data)["y"]), np.float32)


ANSWERS: dict[str, Callable[[bytes], np.ndarray]] = {
    "tfs_grpc": _tfs_grpc,
    "tfs_rest": _tfs_rest,
    "v2_grpc": _v2_grpc,
    "v2_rest": _v2_rest,
    "v2_binary": _v2_binary,
    "json_list": _json_list,
    "json_b64": _json_b64,
}


class Checker:
    """Knows right answers by their bytes."""

    def __init__(self, plan: Plan) -> None:
        self._read = ANSWERS[plan.answer]
        self._expected = np.load(plan.expected)
        self._tolerance = plan.tolerance
        self._known: list[set[bytes]] = [set() for _ in plan.payloads]
        self.wrong = 0
        self.example = ""

    def check(self, index: int, data: bytes) -> None:
        """Count an answer to payload `index` as wrong when it is."""
        known = self._known[index]
        if data in known:
            return
        problem = self._problem(index, data)
        if problem:
            self.wrong += 1
            self.example = self.example or f"{problem}: {data[:200]!r}"
        elif len(known) < _MAX_KNOWN:
            known.add(data)

    def _problem(self, index: int, data: bytes) -> str:
        try:
            found = self._read(data).ravel()
        except (ValueError, KeyError, IndexError, TypeError) as error:
            return f"cannot be read ({error})"
        expected = self._expected[index].ravel()
        if found.shape != expected.shape:
            return f"{found.size} values instead of {expected.size}"
        worst = float(np.abs(found - expected).max() / np.abs(expected).max())
        return "" if worst <= self._tolerance else f"off by {worst:.3g} of the largest value"


class HttpConnection(asyncio.Protocol):
    """One keep-alive connection with one request at a time; understands what servers send, and no more of HTTP."""

    def __init__(self) -> None:
        self._transport: Any = None
        self._buffer = bytearray()
        self._wanted = -1
        self._waiter: asyncio.Future[bytes] | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Keep the transport."""
        self._transport = transport

    def connection_lost(self, exc: Exception | None) -> None:
        """Fail the request under way."""
        if self._waiter and not self._waiter.done():
            self._waiter.set_exception(exc or ConnectionError("closed by the server"))

    def data_received(self, data: bytes) -> None:
        """Gather an answer; hand it over when it is whole."""
        self._buffer += data
        if self._wanted < 0:
            head_end = self._buffer.find(b"\r\n\r\n")
            if head_end < 0:
                return
            self._wanted = head_end + 4 + self._body_bytes(bytes(self._buffer[:head_end]))
        if len(self._buffer) < self._wanted or self._waiter is None:
            return
        whole, self._buffer = bytes(self._buffer), bytearray()
        self._wanted = -1
        if not self._waiter.done():
            self._waiter.set_result(whole)

    def _body_bytes(self, head: bytes) -> int:
        for line in head.lower().split(b"\r\n"):
            if line.startswith(b"content-length:"):
                return int(line[15:])
        raise ValueError(f"an answer without Content-Length: {head!r}")

    async def ask(self, request: bytes) -> bytes:
        """Send a whole request; return the body of its answer.

        Raises:
            ConnectionError: the answer is no 200, or the connection broke.
        """
        self._waiter = asyncio.get_running_loop().create_future()
        self._transport.write(request)
        answer = await self._waiter
        status = answer[9:12]
        head, _, body = answer.partition(b"\r\n\r\n")
        if status != b"200":
            raise ConnectionError(f"HTTP {status.decode()}: {body[:200]!r} ({head[:80]!r})")
        return body


Ask = Callable[[bytes], Awaitable[bytes]]


async def _http(plan: Plan) -> tuple[list[Ask], list[bytes]]:
    host, _, port = plan.address.rpartition(":")
    loop = asyncio.get_running_loop()
    asks: list[Ask] = []
    for _ in range(plan.concurrency):
        _, connection = await loop.create_connection(HttpConnection, host, int(port))
        asks.append(connection.ask)
    requests = []
    for path in plan.payloads:
        body = Path(path).read_bytes()
        headers = {"Host": plan.address, "Content-Length": str(len(body)), **plan.headers}
        head = f"POST {plan.method} HTTP/1.1\r\n" + "".join(f"{name}: {value}\r\n" for name, value in headers.items())
        requests.append(head.encode() + b"\r\n" + body)
    return asks, requests


async def _grpc(plan: Plan) -> tuple[list[Ask], list[bytes]]:
    import grpc.aio

    options = [
        ("grpc.max_send_message_length", _MAX_MESSAGE_BYTES),
        ("grpc.max_receive_message_length", _MAX_MESSAGE_BYTES),
        ("grpc.use_local_subchannel_pool", 1),  # otherwise channels to one address share one connection
    ]
    calls = []
    for _ in range(plan.connections):
        channel = grpc.aio.insecure_channel(plan.address, options)
        await channel.channel_ready()
        calls.append(channel.unary_unary(plan.method))
    return [calls[i % len(calls)] for i in range(plan.concurrency)], [Path(p).read_bytes() for p in plan.payloads]


async def _run(plan: Plan) -> dict[str, Any]:
    asks, requests = await (_grpc if plan.transport == "grpc" else _http)(plan)
    checker = Checker(plan)
    for turn in range(max(plan.warm, len(requests))):
        checker.check(turn % len(requests), await asks[turn % len(asks)](requests[turn % len(requests)]))
    latencies: list[float] = []
    failures: list[str] = []
    started = time.monotonic()

    def enough() -> bool:
        passed = time.monotonic() - started
        done = len(latencies) + len(failures)
        return passed > plan.max_seconds or (passed > plan.seconds and done >= plan.min_requests)

    async def worker(number: int) -> None:
        turn = number
        while not enough():
            index = turn % len(requests)
            turn += 1
            sent = time.monotonic()
            try:
                answer = await asks[number](requests[index])
            except Exception as error:  # noqa: BLE001 - whatever a server does is a figure, not the end of the run
                failures.append(f"{type(error).__name__}: {error}"[:300])
                await asyncio.sleep(0.01)
                continue
            latencies.append(time.monotonic() - sent)
            checker.check(index, answer)

    cpu, own_cpu = tree_cpu_s(plan.pid), time.process_time()
    started = time.monotonic()
    await asyncio.gather(*(worker(number) for number in range(plan.concurrency)))
    wall = time.monotonic() - started
    cpu, own_cpu = tree_cpu_s(plan.pid) - cpu, time.process_time() - own_cpu
    return _figures(latencies, failures, checker, (wall, cpu, own_cpu))


def _figures(
    latencies: list[float], failures: list[str], checker: Checker, spent: tuple[float, float, float]
) -> dict[str, Any]:
    wall, cpu, own_cpu = spent
    count = len(latencies)
    quantiles = np.quantile(latencies, [0.5, 0.99]) * 1e3 if latencies else [math.nan, math.nan]
    return {
        "requests": count,
        "failed": len(failures),
        "wrong": checker.wrong,
        "example": checker.example or (failures[0] if failures else ""),
        "wall_s": wall,
        "cpu_ms": cpu / count * 1e3 if count else math.nan,
        "client_cpu_ms": own_cpu / count * 1e3 if count else math.nan,
        "per_s": count / wall,
        "p50_ms": float(quantiles[0]),
        "p99_ms": float(quantiles[1]),
    }


def main() -> None:
    plan = Plan(**json.load(sys.stdin))
    if plan.concurrency < plan.connections:
        plan = dataclasses.replace(plan, connections=plan.concurrency)
    import uvloop

    print(json.dumps(uvloop.run(_run(plan))))


if __name__ == "__main__":
    main()
