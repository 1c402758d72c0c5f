"""What a client can ask about all models of a server, and how it changes them."""

from __future__ import annotations

import asyncio
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import grpc
import numpy as np
import pytest

from moxserve.client import AsyncClient, Client, ListCall, ListedModel, MockTransport, ReloadCall, VersionStatus
from moxserve.errors import RequestError, ServerUnreachableError, UsageError
from moxserve.protocol import messages
from moxserve.serving.main import Server, ServerOptions


@pytest.fixture(scope="module")
def half(shared_dir) -> str:
    return str(shared_dir / "testdata" / "tfserving" / "saved_model_half_plus_two_cpu")


def config(name: str, base: str) -> str:
    return f'model_config_list {{ config {{ name: "{name}" base_path: "{base}" model_platform: "tensorflow" }} }}'


def test_models_and_reload_of_a_real_server(half) -> None:
    options = ServerOptions("half", half, rest_address="127.0.0.1:0")
    available = [VersionStatus(123, "AVAILABLE")]
    with (
        Server(options) as server,
        Client(f"grpc://127.0.0.1:{server.grpc_port}") as rpc,
        Client(f"http://127.0.0.1:{server.rest_port}") as rest,
    ):
        assert rest.models() == [ListedModel("half", {}, available)]
        rpc.reload(config("other", half))
        assert rest.models() == [ListedModel("other", {}, available)]
        message = messages.parse_text(config("third", half), messages.ModelServerConfig())
        rpc.reload(message, timeout_s=30)
        assert rpc.status("third") == available

        async def same() -> list[ListedModel]:
            async with AsyncClient(f"grpc://127.0.0.1:{server.grpc_port}") as client:
                await client.reload(config("fourth", half))
            async with AsyncClient(f"http://127.0.0.1:{server.rest_port}") as client:
                return await client.models()

        assert asyncio.run(same()) == [ListedModel("fourth", {}, available)]
        with pytest.raises(RequestError) as refused:
            rpc.reload("model_config_list { config { name: 'x' base_path: 'relative' model_platform: 'tensorflow' } }")
        assert refused.value.status == "INVALID_ARGUMENT"
        with pytest.raises(UsageError, match=r"no tensorflow\.serving\.ModelServerConfig: 1:1"):
            rpc.reload("nonsense")
        with pytest.raises(UsageError, match="cannot change the configuration"):
            rest.reload(config("half", half))


def test_a_list_over_grpc_is_completed_by_the_states() -> None:
    """An index in the form of the Open Inference Protocol: one entry a version, in the order of the server."""
    index = b"".join(
        b"\x0a" + bytes([len(entry)]) + entry
        for entry in (b"\x0a\x01b\x12\x011", b"\x0a\x01b\x12\x012", b"\x0a\x01a", b"\x0a\x04gone")
    )
    known = {"b": [2, 1], "a": [7]}

    def status(data: bytes, context: Any) -> bytes:
        name = messages.GetModelStatusRequest.FromString(data).model_spec.name
        if name not in known:
            context.abort(grpc.StatusCode.NOT_FOUND, f"Could not find any versions of model {name}")
        response = messages.GetModelStatusResponse()
        for version in known[name]:
            response.model_version_status.add(version=version, state=30)
        return response.SerializeToString()

    handlers = {
        "inference.GRPCInferenceService": {"RepositoryIndex": lambda data, context: index},
        "tensorflow.serving.ModelService": {"GetModelStatus": status},
    }
    server = grpc.server(ThreadPoolExecutor(2))
    for service, methods in handlers.items():
        made = {name: grpc.unary_unary_rpc_method_handler(method) for name, method in methods.items()}
        server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(service, made),))
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    try:
        with Client(f"127.0.0.1:{port}") as client:
            models = client.models()
    finally:
        server.stop(0)
    assert [(m.name, m.labels, [v.version for v in m.versions or ()]) for m in models] == [
        ("b", None, [2, 1]), ("a", None, [7]), ("gone", None, []),
    ]  # fmt: skip


def test_nobody_answers(free_port) -> None:
    with Client(f"127.0.0.1:{free_port}") as client:
        with pytest.raises(ServerUnreachableError):
            client.models()
        with pytest.raises(ServerUnreachableError):
            client.reload("model_config_list {}")


def test_models_on_disk(tmp_path, half) -> None:
    (tmp_path / "a").symlink_to(half)
    (tmp_path / "b").symlink_to(half)
    (tmp_path / "empty").mkdir()
    with Client(f"local:{tmp_path}") as client:
        assert [(m.name, [v.version for v in m.versions or ()]) for m in client.models()] == [
            ("a", [123]),
            ("b", [123]),
        ]
        with pytest.raises(UsageError, match="is no server"):
            client.reload("model_config_list {}")
    with Client(f"local:{tmp_path / 'a'}") as client:
        assert [m.name for m in client.models()] == ["a"]


def test_mock() -> None:
    transport = MockTransport(lambda inputs: {"y": inputs["x"]}, x=np.zeros((1, 2), np.float32))
    client = Client(transport)
    assert client.models() == [ListedModel("mock", None, [VersionStatus(1, "AVAILABLE")])]
    client.reload("model_config_list {}")
    assert isinstance(transport.calls[0], ListCall)
    assert isinstance(transport.calls[-1], ReloadCall)
