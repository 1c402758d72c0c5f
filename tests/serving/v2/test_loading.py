"""Live, loading and ready are told apart while the ports are open before the models are loaded."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import grpc
import httpx2
import numpy as np
import pytest

from moxserve.errors import MoxserveError
from moxserve.protocol import messages
from moxserve.protocol.tensors import to_proto
from moxserve.serving.grpc.options import GrpcOptions
from moxserve.serving.main import Server
from moxserve.serving.manager import ManagerOptions
from moxserve.serving.options import from_flags

BODY = {"inputs": [{"name": "x", "shape": [1], "datatype": "FP32", "data": [3]}]}


class Held:
    """A model whose load goes on until `release`: its warmup file is a pipe that nobody writes to."""

    def __init__(self, version_dir: Path) -> None:
        self.base = version_dir.parent
        self._pipe = version_dir / "assets.extra" / "tf_serving_warmup_requests"
        self._pipe.parent.mkdir()
        os.mkfifo(self._pipe)

    def release(self, content: bytes = b"") -> None:
        if not self._pipe.is_fifo():
            return
        with self._pipe.open("wb") as pipe:
            pipe.write(content)
        self._pipe.unlink()


@pytest.fixture
def held(save_linear: Callable[..., Path], tmp_path: Path) -> Held:
    return Held(save_linear(tmp_path / "held" / "1", slope=2))


@pytest.fixture
def start(options: Callable[..., Any], wait_for: Callable[..., None]) -> Iterator[Callable[..., Any]]:
    """`start(base, **options)` starts a server in a thread, and returns it and its thread when its ports are open."""
    started: list[tuple[Server, threading.Thread]] = []

    def run(base: Path, **more: Any) -> tuple[Server, threading.Thread, list[BaseException]]:
        # Two loads at once, on a machine with one CPU as well: one of them waits.
        manager = ManagerOptions(poll_interval_s=0.1, max_load_retries=0, load_threads=2)
        server = Server(options(base, serve_while_loading=True, grpc=GrpcOptions(health=True), manager=manager, **more))
        errors: list[BaseException] = []

        def work() -> None:
            try:
                server.start()
            except MoxserveError as error:
                errors.append(error)

        thread = threading.Thread(target=work)
        thread.start()
        started.append((server, thread))
        wait_for(lambda: server.rest_port, "the ports are open")
        return server, thread, errors

    yield run
    for server, thread in started:
        server.stop(120)
        thread.join(120)
        assert not thread.is_alive()


def health_of(server: Server, *services: str) -> list[str]:
    from grpc_health.v1 import health_pb2, health_pb2_grpc

    with grpc.insecure_channel(f"127.0.0.1:{server.grpc_port}") as channel:
        stub = health_pb2_grpc.HealthStub(channel)
        replies = [stub.Check(health_pb2.HealthCheckRequest(service=name), timeout=60) for name in services]
    return [health_pb2.HealthCheckResponse.ServingStatus.Name(reply.status) for reply in replies]


def health_list(server: Server) -> dict[str, str]:
    from grpc_health.v1 import health_pb2, health_pb2_grpc

    with grpc.insecure_channel(f"127.0.0.1:{server.grpc_port}") as channel:
        statuses = health_pb2_grpc.HealthStub(channel).List(health_pb2.HealthListRequest(), timeout=60).statuses
    return {name: health_pb2.HealthCheckResponse.ServingStatus.Name(reply.status) for name, reply in statuses.items()}


def state_of(server: Server) -> int:
    """The state of the first model's version, 20 while it is loaded; 0 before it was found."""
    versions = server.dataplane.models()[0].status.model_version_status
    return versions[0].state if versions else 0


def predict(server: Server, name: str) -> tuple[str, str]:
    request = messages.PredictRequest()
    request.model_spec.name = name
    request.inputs["x"].CopyFrom(to_proto(np.float32([3])))
    with grpc.insecure_channel(f"127.0.0.1:{server.grpc_port}") as channel:
        call = channel.unary_unary("/tensorflow.serving.PredictionService/Predict")
        try:
            call(request.SerializeToString(), timeout=60)
        except grpc.RpcError as error:
            return error.code().name, error.details()
    return "OK", ""


def test_loading_is_told_from_ready(held: Held, start, save_linear, tmp_path, wait_for) -> None:
    quick = save_linear(tmp_path / "quick" / "1").parent
    server, thread, errors = start(held.base, more_models={"quick": str(quick)})
    loading = "Servable for request Latest(default) is loading, the server has just been started; try again"
    with httpx2.Client(base_url=f"http://127.0.0.1:{server.rest_port}") as http:

        def states() -> dict[str, str]:
            return {m["name"]: m["state"] for m in http.post("/v2/repository/index").json()}

        wait_for(lambda: states() == {"default": "LOADING", "quick": "READY"}, "one is loaded, one is being loaded")
        assert http.get("/v2/health/live").status_code == 200
        ready = http.get("/v2/health/ready")
        assert (ready.status_code, ready.json()) == (503, {"ready": False})
        assert http.get("/v2/models/default/ready").status_code == 503
        assert http.get("/v2/models/quick/ready").status_code == 200
        for path, body in (("/v1/models/default:predict", {"instances": [3]}), ("/v2/models/default/infer", BODY)):
            reply = http.post(path, json=body)
            assert (reply.status_code, reply.json()) == (503, {"error": loading})
        assert http.post("/v2/models/nope/infer", json=BODY).status_code == 404
        assert http.post("/v2/models/quick/infer", json=BODY).json()["outputs"][0]["data"] == [3.0]
        assert predict(server, "default") == ("UNAVAILABLE", loading)
        assert predict(server, "quick") == ("OK", "")
        assert predict(server, "nope")[0] == "NOT_FOUND"
        wait_for(lambda: health_of(server, "quick") == ["SERVING"], "the service has seen the quick model")
        assert health_of(server, "", "PredictionService", "inference.GRPCInferenceService", "default", "quick") == [
            "NOT_SERVING", "NOT_SERVING", "NOT_SERVING", "NOT_SERVING", "SERVING",
        ]  # fmt: skip
        (status,) = http.get("/v1/models/default").json()["model_version_status"]
        assert (status["version"], status["state"]) == ("1", "LOADING")
        listed = health_list(server)
        assert (listed["default"], listed["quick"], listed["inference.GRPCInferenceService"]) == (
            "NOT_SERVING", "SERVING", "NOT_SERVING",
        )  # fmt: skip
        assert thread.is_alive()

        held.release()
        thread.join(120)
        assert errors == []
        assert http.get("/v2/health/ready").status_code == 200
        assert http.post("/v2/models/default/infer", json=BODY).json()["outputs"][0]["data"] == [6.0]
        assert predict(server, "default") == ("OK", "")
        wait_for(lambda: health_of(server, "", "default") == ["SERVING", "SERVING"], "health tells it, too")
    # From now on what is missing is missing, as in a server that opened its ports later.
    for version in held.base.iterdir():
        version.rename(tmp_path / "gone")
    wait_for(lambda: predict(server, "default") != ("OK", ""), "the model is unloaded")
    assert predict(server, "default") == ("NOT_FOUND", "Servable not found for request: Latest(default)")


def test_a_start_that_fails_ends_the_server(held: Held, start) -> None:
    server, thread, errors = start(held.base)
    held.release(b"no record")
    thread.join(120)
    assert not thread.is_alive()
    assert "did not become available" in str(errors[0])
    with pytest.raises(httpx2.ConnectError):
        httpx2.get(f"http://127.0.0.1:{server.rest_port}/v2/health/live")


def test_a_stop_while_loading(held: Held, start, wait_for) -> None:
    server, thread, errors = start(held.base)
    wait_for(lambda: state_of(server) == 20, "it is being loaded")
    server.stop(0.0)
    thread.join(120)
    assert not thread.is_alive()
    assert "stopped before the models were loaded" in str(errors[0])
    held.release()


def test_a_reload_while_loading(held: Held, start, save_linear, tmp_path, wait_for) -> None:
    """The new configuration is what is waited for then."""
    server, thread, errors = start(held.base)
    wait_for(lambda: state_of(server) == 20, "it is being loaded")
    request = messages.ReloadConfigRequest()
    base = save_linear(tmp_path / "other" / "1").parent
    request.config.model_config_list.config.add(name="other", base_path=str(base), model_platform="tensorflow")
    with grpc.insecure_channel(f"127.0.0.1:{server.grpc_port}") as channel:
        reload = channel.unary_unary("/tensorflow.serving.ModelService/HandleReloadConfigRequest")
        reload(request.SerializeToString(), timeout=60)
    thread.join(120)
    assert not thread.is_alive()
    assert errors == []
    assert server.dataplane.ready()
    assert predict(server, "other") == ("OK", "")
    assert predict(server, "default")[0] == "NOT_FOUND"
    held.release()


def test_the_ports_open_last_unless_told(options, held: Held, wait_for) -> None:
    server = Server(options(held.base))
    thread = threading.Thread(target=server.start)
    thread.start()
    try:
        wait_for(lambda: state_of(server) == 20, "it is being loaded")
        assert (server.grpc_port, server.rest_port) == (0, 0)
        assert not server.dataplane.ready()
    finally:
        held.release()
        thread.join(120)
        assert server.rest_port
        assert server.dataplane.ready()
        server.stop(120)


def test_the_flags() -> None:
    from moxserve.serving.flags import FLAGS

    values = {flag.name: [] if flag.repeats else flag.default for flag in FLAGS} | {"model_base_path": "/m"}
    assert not from_flags(values).serve_while_loading
    assert from_flags(values | {"serve_while_loading": True}).serve_while_loading
    assert from_flags(values).grpc.reflection
    assert not from_flags(values | {"enable_grpc_reflection": False}).grpc.reflection
