"""Start-up, addresses and shutdown of a whole server."""

from __future__ import annotations

import asyncio
import socket
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import grpc
import httpx2
import numpy as np
import pytest

from moxserve.errors import MissingExtraError, Unavailable, UsageError
from moxserve.protocol import messages
from moxserve.protocol.tensors import from_proto, to_proto
from moxserve.serving.flags import FLAGS
from moxserve.serving.grpc.options import GrpcOptions
from moxserve.serving.main import Server
from moxserve.serving.options import ServerOptions, from_flags

PREDICT = "/tensorflow.serving.PredictionService/Predict"


def predict_bytes(**inputs: Any) -> bytes:
    request = messages.PredictRequest()
    request.model_spec.name = "default"
    for alias, value in inputs.items():
        request.inputs[alias].CopyFrom(to_proto(value))
    return request.SerializeToString()


def ask_grpc(target: str, **inputs: Any) -> Any:
    with grpc.insecure_channel(target) as channel:
        return messages.PredictResponse.FromString(channel.unary_unary(PREDICT)(predict_bytes(**inputs), timeout=60))


@pytest.fixture(scope="module")
def linear_base(tmp_path_factory, save_linear) -> Path:
    return save_linear(tmp_path_factory.mktemp("linear") / "1", slope=2).parent


def test_a_relative_base_path_is_taken_from_the_working_directory(linear_base, serve, monkeypatch) -> None:
    monkeypatch.chdir(linear_base.parent)
    server = serve(linear_base.name)
    assert from_proto(ask_grpc(f"127.0.0.1:{server.grpc_port}", x=np.float32([3])).outputs["y"]).tolist() == [6]


def test_a_second_server_on_the_same_port_fails_before_it_loads(linear_base, serve, options) -> None:
    first = serve(linear_base)
    for clash in (
        {"grpc_address": f"127.0.0.1:{first.grpc_port}"},
        {"rest_address": f"127.0.0.1:{first.rest_port}"},
        {"grpc_address": f"127.0.0.1:{first.rest_port}"},
    ):
        second = Server(options(linear_base, **clash))
        with pytest.raises(Unavailable, match=r"cannot listen at 127\.0\.0\.1:\d+: Address already in use"):
            second.start()
        assert not second.dataplane.models()[0].status.model_version_status


def test_one_that_was_stopped_before_its_start_opens_nothing(linear_base, options) -> None:
    before = threading.enumerate()
    server = Server(options(linear_base, serve_while_loading=True))
    assert server.stop()
    with pytest.raises(Unavailable, match="stopped before the models were loaded"):
        server.start()
    assert (server.grpc_port, server.rest_port) == (0, 0)
    assert not [thread for thread in threading.enumerate() if thread.name == "moxserve-loop" and thread not in before]


def test_rest_that_is_stopped_while_it_starts_is_closed() -> None:
    from moxserve.serving.main import bind
    from moxserve.serving.rest.server import RestServer

    class App:
        async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
            """No request comes."""

    async def scenario() -> None:
        sock = bind("127.0.0.1:0", "--rest_api_port")
        port = sock.getsockname()[1]
        rest = RestServer(App(), sock)  # type: ignore[arg-type]
        starting = asyncio.ensure_future(rest.start())
        await asyncio.sleep(0)
        assert await rest.stop(60)
        await asyncio.gather(starting, return_exceptions=True)
        with pytest.raises(ConnectionRefusedError):
            await asyncio.open_connection("127.0.0.1", port)

    asyncio.run(scenario())


def test_rest_on_both_ip_versions(linear_base, serve) -> None:
    server = serve(linear_base, rest_address="[::]:0")
    hosts = ["127.0.0.1"]
    with socket.socket(socket.AF_INET6, socket.SOCK_STREAM) as probe:
        if probe.connect_ex(("::1", server.rest_port)) == 0:
            hosts.append("[::1]")
    for host in hosts:
        assert httpx2.get(f"http://{host}:{server.rest_port}/v1/models/default").status_code == 200


def test_unix_socket(linear_base, serve, tmp_path) -> None:
    path = tmp_path / "grpc.sock"
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as left_over:
        left_over.bind(str(path))
    server = serve(linear_base, grpc_address="", grpc_socket_path=str(path), rest_address="")
    assert server.grpc_port == 0
    assert from_proto(ask_grpc(f"unix:{path}", x=np.float32([3])).outputs["y"]).tolist() == [6]


def test_tensor_content(linear_base, serve) -> None:
    server = serve(linear_base, grpc=GrpcOptions(tensor_content=True))
    y = ask_grpc(f"127.0.0.1:{server.grpc_port}", x=np.float32([3])).outputs["y"]
    assert (y.tensor_content, list(y.float_val)) == (np.float32([6]).tobytes(), [])
    reply = httpx2.post(f"http://127.0.0.1:{server.rest_port}/v1/models/default:predict", content='{"instances": [3]}')
    assert reply.json() == {"predictions": [6.0]}


def test_health(linear_base, serve) -> None:
    from grpc_health.v1 import health_pb2, health_pb2_grpc

    server = serve(linear_base, grpc=GrpcOptions(health=True))
    with grpc.insecure_channel(f"127.0.0.1:{server.grpc_port}") as channel:
        stub = health_pb2_grpc.HealthStub(channel)
        for service in ("", "ModelService", "PredictionService"):
            reply = stub.Check(health_pb2.HealthCheckRequest(service=service), timeout=60)
            assert reply.status == health_pb2.HealthCheckResponse.SERVING


@pytest.mark.parametrize(("module", "told"), [("uvicorn", "the REST API"), ("grpc_health", "the health service")])
def test_packages_that_are_missing_are_told_before_loading(
    linear_base, options: Callable[..., Any], monkeypatch: pytest.MonkeyPatch, caplog, module: str, told: str
) -> None:
    monkeypatch.setitem(sys.modules, module, None)
    server = Server(options(linear_base, grpc=GrpcOptions(health=True)))
    with pytest.raises(MissingExtraError, match=rf"{told} needs .*\n.*moxserve\[serve\]"):
        server.start()
    assert "Loading servable" not in caplog.text
    assert server.grpc_port == 0


def test_stop_lets_requests_finish_on_both_transports(linear_base, options, gates, wait_for) -> None:
    server = Server(options(linear_base, grpc=GrpcOptions(max_threads=2)))
    server.start()
    grpc_target, rest = f"127.0.0.1:{server.grpc_port}", f"http://127.0.0.1:{server.rest_port}/v1/models/default"
    first, second = gates(), gates()
    answers: dict[str, Any] = {}

    def over_grpc() -> None:
        answers["grpc"] = from_proto(ask_grpc(grpc_target, x=np.float32([first.value])).outputs["y"]).item()

    def over_rest() -> None:
        reply = httpx2.post(rest + ":predict", json={"instances": [second.value]}, timeout=120)
        answers["rest"] = reply.json()["predictions"]

    def stop() -> None:
        answers["stopped"] = server.stop(120)

    threads = [threading.Thread(target=over_grpc), threading.Thread(target=over_rest)]
    for thread in threads:
        thread.start()
    wait_for(lambda: first.began and second.began, "both requests run")
    threads.append(threading.Thread(target=stop))
    threads[-1].start()
    time.sleep(0.3)
    assert answers == {}, "it waits for the requests"
    first.open()
    second.open()
    for thread in threads:
        thread.join(120)
    assert answers == {"grpc": 2 * first.value, "rest": [2 * second.value], "stopped": True}
    with pytest.raises(httpx2.ConnectError):
        httpx2.get(rest)
    with pytest.raises(grpc.RpcError) as caught:
        ask_grpc(grpc_target, x=np.float32([1]))
    assert caught.value.code() is grpc.StatusCode.UNAVAILABLE
    assert server.wait(0)
    assert server.stop()


def test_stop_has_a_limit(linear_base, options: Callable[..., Any], gates, wait_for) -> None:
    server = Server(options(linear_base))
    server.start()
    target, gate = f"127.0.0.1:{server.grpc_port}", gates()
    outcome: list[Any] = []

    def ask() -> None:
        try:
            outcome.append(ask_grpc(target, x=np.float32([gate.value])))
        except grpc.RpcError as error:
            outcome.append(error.code())

    thread = threading.Thread(target=ask)
    thread.start()
    wait_for(lambda: gate.began, "the request runs")
    assert not server.stop(0.5)
    thread.join(60)
    assert outcome[0] in (grpc.StatusCode.CANCELLED, grpc.StatusCode.UNAVAILABLE)
    gate.open()


def test_a_rest_request_that_takes_too_long(linear_base, serve, gates) -> None:
    from moxserve.serving.rest.options import RestOptions

    server, gate = serve(linear_base, rest=RestOptions(timeout_s=1.0)), gates()
    url = f"http://127.0.0.1:{server.rest_port}/v1/models/default:predict"
    reply = httpx2.post(url, json={"instances": [gate.value]})
    assert (reply.status_code, reply.json()) == (504, {"error": "Timed out waiting for notification"})
    gate.open()
    assert httpx2.post(url, json={"instances": [gate.value]}).json() == {"predictions": [2 * gate.value]}


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"model_base_path": ""}, "model_base_path and server_options.model_config_file are empty"),
        ({"grpc_address": ""}, "At least one of server_options.grpc_port or server_options.grpc_socket_path"),
        ({"model_name": ""}, "--model_name is empty"),
        ({"model_base_path": "nfs://host/m"}, "no file engine for nfs://"),
    ],
)
def test_options_that_make_no_sense(options, message) -> None:
    with pytest.raises(UsageError, match=message):
        Server(ServerOptions(**{"model_base_path": "/m", **options}))


def flags(**given: Any) -> ServerOptions:
    return from_flags({**{flag.name: flag.default for flag in FLAGS}, **given})


def test_defaults_of_the_flags_are_those_of_the_original() -> None:
    options = flags(model_base_path="/m")
    assert options.grpc_address == "0.0.0.0:8500"
    assert options.rest_address == ""
    assert options.model_name == "default"
    assert (options.manager.poll_interval_s, options.manager.max_load_retries) == (1, 5)
    assert options.manager.load_retry_interval_s == 60
    assert options.rest.timeout_s == 30
    assert options.load.tags == ("serve",)
    assert options.warmup


def test_flags_become_options() -> None:
    options = flags(
        port=0, grpc_socket_path="s", rest_api_port=8501, host="127.0.0.1", saved_model_tags="serve, gpu",
        rest_api_timeout_in_ms=-1, tensorflow_session_parallelism=3, load_retry_interval_micros=5,
    )  # fmt: skip
    assert (options.grpc_address, options.rest_address) == ("", "127.0.0.1:8501")
    assert options.load.tags == ("serve", "gpu")
    assert options.rest.timeout_s == 0
    assert (options.load.intra_op_threads, options.load.inter_op_threads) == (3, 3)
    assert options.manager.load_retry_interval_s == 5e-6
    assert flags(rest_api_port=1).rest_address == "[::]:1"
    threads = flags(tensorflow_session_parallelism=3, tensorflow_intra_op_parallelism=2).load
    assert (threads.intra_op_threads, threads.inter_op_threads) == (2, 0)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"port": 70000}, "--port=70000: expected a port from 0 to 65535"),
        ({"port": 9, "rest_api_port": 9}, "both 9; gRPC and HTTP need a port each"),
        ({"tensorflow_session_parallelism": 1, "tensorflow_intra_op_parallelism": 1,
          "tensorflow_inter_op_parallelism": 1}, "You cannot configure all"),
    ],
)  # fmt: skip
def test_flags_that_contradict_each_other(given, message) -> None:
    with pytest.raises(UsageError, match=message):
        flags(**given)
