"""Servers that misbehave on purpose: what a real one cannot be made to do reliably."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import grpc
import numpy as np
import pytest

from moxserve.protocol import messages
from moxserve.protocol.tensors import from_proto, to_proto


class FaultyGrpc:
    """A gRPC model server whose model and failures a test sets.

    `faults` are raised first, one a Predict call: (status code, message), a number of seconds to wait, or a barrier to
    wait at; `status_pauses` are waited for, one a GetModelStatus call. `stop` ends waits.
    """

    def __init__(self) -> None:
        self.version = 1
        self.dtype = 1
        self.dims = [-1]
        self.faults: list[Any] = []
        self.status_pauses: list[float] = []
        self.calls: list[str] = []
        self._stopped = threading.Event()
        self._server = grpc.server(ThreadPoolExecutor(4), options=[("grpc.max_receive_message_length", 1 << 20)])
        self._server.add_generic_rpc_handlers((self,))
        self.target = f"127.0.0.1:{self._server.add_insecure_port('127.0.0.1:0')}"
        self._server.start()

    def service(self, details: Any) -> Any:
        name = details.method.rpartition("/")[2]
        handler: Callable[..., bytes] | None = getattr(self, f"on_{name}", None)
        return grpc.unary_unary_rpc_method_handler(handler) if handler else None

    def on_Predict(self, data: bytes, context: Any) -> bytes:
        self.calls.append("Predict")
        if self.faults:
            fault = self.faults.pop(0)
            if isinstance(fault, float):
                self._stopped.wait(fault)
            elif isinstance(fault, threading.Barrier):
                fault.wait()
            else:
                context.abort(*fault)
        request = messages.PredictRequest.FromString(data)
        array = from_proto(request.inputs["x"])
        if request.inputs["x"].dtype != self.dtype:
            context.abort(grpc.StatusCode.INVALID_ARGUMENT, f"expected dtype {self.dtype}")
        response = messages.PredictResponse()
        response.model_spec.name = request.model_spec.name
        response.model_spec.version.value = self.version
        response.outputs["y"].CopyFrom(to_proto(array * 2))
        return response.SerializeToString()

    def on_GetModelMetadata(self, data: bytes, context: Any) -> bytes:
        self.calls.append("GetModelMetadata")
        response = messages.GetModelMetadataResponse()
        response.model_spec.name = "m"
        response.model_spec.version.value = self.version
        found = messages.SignatureDefMap()
        definition = found.signature_def["serving_default"]
        for infos, alias in ((definition.inputs, "x"), (definition.outputs, "y")):
            infos[alias].name = f"{alias}:0"
            infos[alias].dtype = self.dtype
            for size in self.dims:
                infos[alias].tensor_shape.dim.add().size = size
        response.metadata["signature_def"].Pack(found)
        return response.SerializeToString()

    def on_GetModelStatus(self, data: bytes, context: Any) -> bytes:
        self.calls.append("GetModelStatus")
        if self.status_pauses:
            self._stopped.wait(self.status_pauses.pop(0))
        response = messages.GetModelStatusResponse()
        status = response.model_version_status.add(version=self.version, state=20)
        status.status.error_code = 13
        status.status.error_message = "still reading the weights"
        return response.SerializeToString()

    def stop(self) -> None:
        self._stopped.set()
        self._server.stop(0).wait()


@pytest.fixture
def faulty() -> Iterator[FaultyGrpc]:
    server = FaultyGrpc()
    yield server
    server.stop()


@pytest.fixture
def http_answer() -> Iterator[Callable[..., str]]:
    """Start an HTTP server that gives one answer to everything: `url = http_answer(status, body, delay_s)`."""
    servers = []
    stopped = threading.Event()

    def start(status: int, body: bytes, delay_s: float = 0.0) -> str:
        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                self.rfile.read(int(self.headers.get("content-length", 0)))
                if stopped.wait(delay_s):
                    return  # nobody waits any more
                self.send_response(status)
                self.send_header("content-length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

            do_GET = do_POST

            def log_message(self, *args: Any) -> None:
                pass

        server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        threading.Thread(target=server.serve_forever, daemon=True).start()
        servers.append(server)
        return f"http://127.0.0.1:{server.server_port}"

    yield start
    stopped.set()
    for server in servers:
        server.shutdown()
        server.server_close()


@pytest.fixture
def ones() -> np.ndarray:
    return np.ones(3, np.float32)
