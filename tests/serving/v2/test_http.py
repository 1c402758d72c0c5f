"""The Open Inference Protocol over HTTP, as curl would speak it."""

from __future__ import annotations

import gzip
import json
from typing import Any

import grpc
import httpx2
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from moxserve.serving.rest.options import RestOptions

INFER = "/v2/models/half/infer"


def tensor(data: Any, shape: list[int], datatype: str = "FP32", name: str = "x") -> dict[str, Any]:
    return {"name": name, "shape": shape, "datatype": datatype, "data": data}


def test_json(http: httpx2.Client) -> None:
    reply = http.post(INFER, json={"id": "7", "inputs": [tensor([1.0, 2.0, 5.0], [3])]})
    assert reply.status_code == 200
    assert reply.headers["content-type"] == "application/json"
    assert reply.content == (
        b'{"model_name":"half","model_version":"124","id":"7","outputs":'
        b'[{"name":"y","datatype":"FP32","shape":[3],"data":[2.5,3.0,4.5]}]}'
    )
    nested = http.post(INFER, json={"inputs": [tensor([[1], [2]], [2, 1])]}).json()
    assert nested["outputs"] == [{"name": "y", "datatype": "FP32", "shape": [2, 1], "data": [2.5, 3.0]}]
    assert "id" not in nested


@pytest.mark.parametrize(
    ("path", "version"),
    [("/v2/models/half/versions/123/infer", "123"), ("/v2/models/half/versions/stable/infer", "123"),
     ("/v2/models/half/versions/canary/infer", "124"), ("/v2/models/%68alf/infer", "124"),
     ("/v2/models/half/infer/", "124"), ("/v2/models/half/infer?verbose=1", "124")],
)  # fmt: skip
def test_paths(http: httpx2.Client, path: str, version: str) -> None:
    reply = http.post(path, json={"inputs": [tensor([1.0], [1])]})
    assert (reply.status_code, reply.json()["model_version"]) == (200, version)


def test_the_same_as_the_other_rest_api(http: httpx2.Client) -> None:
    x = np.linspace(-5, 5, 300).astype(np.float32)
    old = http.post("/v1/models/half:predict", json={"instances": x.tolist()}).json()["predictions"]
    new = http.post(INFER, json={"inputs": [tensor(x.tolist(), [300])]}).json()["outputs"][0]["data"]
    assert old == new
    np.testing.assert_array_equal(np.float32(new), x / 2 + 2)


def binary(http: httpx2.Client, head: dict[str, Any], raw: bytes, length: str | None = None) -> httpx2.Response:
    text = json.dumps(head).encode()
    headers = {"Inference-Header-Content-Length": str(len(text)) if length is None else length}
    return http.post(INFER, content=text + raw, headers=headers)


def test_binary_tensors(http: httpx2.Client) -> None:
    x = np.array([1.0, 2.0, 5.0], np.float32)
    item = {"name": "x", "shape": [3], "datatype": "FP32", "parameters": {"binary_data_size": 12}}
    reply = binary(http, {"inputs": [item], "parameters": {"binary_data_output": True}}, x.tobytes())
    assert reply.status_code == 200
    assert reply.headers["content-type"] == "application/octet-stream"
    length = int(reply.headers["inference-header-content-length"])
    (output,) = json.loads(reply.content[:length])["outputs"]
    assert output == {"name": "y", "datatype": "FP32", "shape": [3], "parameters": {"binary_data_size": 12}}
    np.testing.assert_array_equal(np.frombuffer(reply.content[length:], np.float32), x / 2 + 2)
    as_json = binary(http, {"inputs": [item]}, x.tobytes())
    assert as_json.json()["outputs"][0]["data"] == [2.5, 3.0, 4.5]
    assert "inference-header-content-length" not in as_json.headers


def test_several_binary_inputs_and_a_mixed_answer(http: httpx2.Client) -> None:
    a, b = np.array([[1, 2], [3, 4]], np.float32), np.array([3, 4], np.int64)
    head = {
        "inputs": [
            {"name": "a", "shape": [2, 2], "datatype": "FP32", "parameters": {"binary_data_size": 16}},
            {"name": "b", "shape": [2], "datatype": "INT64", "parameters": {"binary_data_size": 16}},
        ],
        "outputs": [{"name": "twice", "parameters": {"binary_data": True}}, {"name": "sum"}],
    }
    text = json.dumps(head).encode()
    reply = http.post(
        "/v2/models/echo/infer",
        content=text + a.tobytes() + b.tobytes(),
        headers={"Inference-Header-Content-Length": str(len(text))},
    )
    length = int(reply.headers["inference-header-content-length"])
    twice, total = json.loads(reply.content[:length])["outputs"]
    assert twice["parameters"] == {"binary_data_size": 16}
    assert total["data"] == [6.0, 11.0]
    assert np.frombuffer(reply.content[length:], np.int64).tolist() == [6, 8]


def test_compressed_bodies(http: httpx2.Client) -> None:
    body = gzip.compress(json.dumps({"inputs": [tensor([1.0], [1])]}).encode())
    assert http.post(INFER, content=body, headers={"Content-Encoding": "gzip"}).json()["outputs"][0]["data"] == [2.5]


@pytest.mark.parametrize(
    ("content", "headers", "status", "message"),
    [
        (b"", {}, 400, "JSON Parse error: The document is empty"),
        (b"{", {}, 400, "JSON Parse error"),
        (b"[]", {}, 400, "JSON Value: [] Is not object"),
        (b'{"inputs": [{"name": "x", "shape": [2], "datatype": "FP32", "data": [1]}]}', {}, 400,
         "input 'x' has 1 elements; its shape [2] needs 2"),
        (b'{"inputs": [{"name": "x", "shape": [1], "datatype": "FP64", "data": [1]}]}', {}, 400,
         "input 'x' is FP64; signature 'serving_default' of model 'half' takes FP32"),
        (b'{"inputs": [{"name": "z", "shape": [1], "datatype": "FP32", "data": [1]}]}', {}, 400,
         "Signature input alias: x(feed name: x:0) not found in request"),
        (b"{}", {"Inference-Header-Content-Length": "two"}, 400,
         "Inference-Header-Content-Length is 'two'; expected a number of bytes"),
        (b"{}", {"Inference-Header-Content-Length": "3"}, 400, "Content-Length is 3; expected the length"),
        (b"{}", {"Inference-Header-Content-Length": "0"}, 400, "Content-Length is 0; expected the length"),
        (b"{}", {"Content-Encoding": "gzip"}, 400, "the body is no gzip data"),
    ],
)  # fmt: skip
def test_bodies_that_are_refused(http: httpx2.Client, content: bytes, headers: Any, status: int, message: str) -> None:
    reply = http.post(INFER, content=content, headers=headers)
    assert reply.status_code == status
    assert message in reply.json()["error"]


@pytest.mark.parametrize(
    ("method", "path", "status", "message"),
    [
        ("POST", "/v2/models/nope/infer", 404, "Servable not found for request: Latest(nope)"),
        ("POST", "/v2/models/half/versions/7/infer", 404, "Servable not found for request: Specific(half, 7)"),
        ("POST", "/v2/models/half/versions/gone/infer", 400, "Unrecognized servable version label: gone"),
        ("POST", "/v2/models/half/versions/9999999999999999999/infer", 400, "larger than any version can be"),
        ("GET", INFER, 404, "there is no GET /v2/models/half/infer in the Open Inference Protocol"),
        ("POST", "/v2/models/half", 404, "there is no POST /v2/models/half"),
        ("GET", "/v2/nothing", 404, "there is no GET /v2/nothing"),
        ("POST", "/v2/repository/models/half/load", 400, "which models are served is told by the configuration"),
        ("POST", "/v2/repository/models/half/unload", 400, "unload of model 'half'"),
        ("POST", "/v2/repository/index", 400, "expected nothing, or an object such as"),
        ("GET", "/v2/models/nope", 404, "Servable not found"),
        ("GET", "/v2/models/nope/config", 404, "Servable not found"),
        ("GET", "/v2/models/nope/stats", 404, "Servable not found"),
    ],
)  # fmt: skip
def test_paths_that_are_refused(http: httpx2.Client, method: str, path: str, status: int, message: str) -> None:
    content = {"inputs": [tensor([1.0], [1])]} if path.endswith("infer") else [1]
    reply = http.request(method, path, json=content)
    assert reply.status_code == status
    assert message in reply.json()["error"]


def test_what_is_not_ours_is_not_answered(http: httpx2.Client) -> None:
    assert http.get("/v2x").status_code == 404
    assert http.get("/v20/models").status_code == 404
    assert http.get("/v1/models").status_code == 200


def test_descriptions(http: httpx2.Client) -> None:
    assert http.get("/v2").json()["name"] == http.get("/v2/").json()["name"] == "moxserve"
    assert http.get("/v2/models/half").json() == {
        "name": "half", "versions": ["123", "124"], "platform": "tensorflow_savedmodel",
        "inputs": [{"name": "x", "datatype": "FP32", "shape": [-1, 1]}],
        "outputs": [{"name": "y", "datatype": "FP32", "shape": [-1, 1]}],
    }  # fmt: skip
    assert http.get("/v2/models/half/versions/123/config").json()["name"] == "half"
    assert [s["version"] for s in http.get("/v2/models/half/stats").json()["model_stats"]] == ["123", "124"]
    assert [s["version"] for s in http.get("/v2/models/half/versions/stable/stats").json()["model_stats"]] == ["123"]
    assert len(http.get("/v2/models/stats").json()["model_stats"]) == 4


def test_readiness(http: httpx2.Client) -> None:
    for path, status, answer in (
        ("/v2/health/live", 200, {"live": True}),
        ("/v2/health/ready", 200, {"ready": True}),
        ("/v2/models/half/ready", 200, {"name": "half", "ready": True}),
        ("/v2/models/half/versions/123/ready", 200, {"name": "half", "ready": True}),
        ("/v2/models/half/versions/7/ready", 503, {"name": "half", "ready": False}),
        ("/v2/models/nope/ready", 404, {"name": "nope", "ready": False}),
    ):
        reply = http.get(path)
        assert (reply.status_code, reply.json()) == (status, answer)


def test_the_index(http: httpx2.Client) -> None:
    everything = http.post("/v2/repository/index").json()
    assert everything[0] == {"name": "half", "version": "124", "state": "READY", "reason": ""}
    assert http.post("/v2/repository/index", json={"ready": True}).json() == everything


def test_versions_that_do_not_answer(serve, testdata, save_linear, tmp_path, wait_for) -> None:
    base = save_linear(tmp_path / "m" / "1").parent
    server = serve(base)
    with httpx2.Client(base_url=f"http://127.0.0.1:{server.rest_port}") as http:
        broken = base / "2"
        (broken / "variables").mkdir(parents=True)
        (broken / "saved_model.pb").write_bytes(b"no graph")

        def index(**only: bool) -> list[dict[str, str]]:
            return http.post("/v2/repository/index", json=only).json()

        wait_for(lambda: index()[0]["state"] == "UNAVAILABLE", "the broken version is told")
        first, second = index()
        assert (first["version"], bool(first["reason"])) == ("2", True)
        assert (second["version"], second["state"], second["reason"]) == ("1", "READY", "")
        assert index(ready=True) == [second]
        assert http.get("/v2/models/default/versions/2/ready").status_code == 503
        assert http.get("/v2/models/default").json()["versions"] == ["1"]


def test_web_pages_and_time_limits(serve, save_linear, tmp_path, gates) -> None:
    """What holds for the other REST API holds for this one."""
    options = RestOptions(cors=True, timeout_s=1.0)
    server, gate = serve(save_linear(tmp_path / "linear" / "1").parent, rest=options), gates()
    with httpx2.Client(base_url=f"http://127.0.0.1:{server.rest_port}", timeout=60) as http:
        path = "/v2/models/default/infer"
        assert http.options(path, headers={"Origin": "http://a.example"}).status_code == 200
        reply = http.post(path, json={"inputs": [tensor([gate.value], [1], "FP32", "x")]})
        assert (reply.status_code, reply.json()["error"]) == (504, "Timed out waiting for notification")
        for answer in (reply, http.get("/v2/health/ready")):
            assert answer.headers["access-control-allow-origin"] == "*"
    gate.open()


# What no client sends


@given(
    st.recursive(
        st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
        lambda children: (
            st.lists(children, max_size=4)
            | st.dictionaries(
                st.sampled_from(["name", "shape", "datatype", "data", "parameters", "binary_data_size", "b64"]),
                children,
            )
        ),
        max_leaves=12,
    ),
    st.sampled_from(["inputs", "outputs", "parameters", "id", "item"]),
)
@settings(
    max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow]
)
def test_any_json_is_answered_or_refused_with_a_reason(http: httpx2.Client, value: Any, where: str) -> None:
    document: dict[str, Any] = {"inputs": [tensor([1.0], [1])]}
    if where == "item":
        document["inputs"] = [value]
    else:
        document[where] = value
    reply = http.post(INFER, content=json.dumps(document))
    assert reply.status_code in (200, 400, 501)
    assert reply.status_code == 200 or reply.json()["error"]
    assert http.get("/v2/health/ready").status_code == 200


@given(
    st.sampled_from(
        ["ModelInfer", "ModelReady", "ModelMetadata", "ModelConfig", "ModelStatistics", "RepositoryIndex",
         "RepositoryModelLoad", "TraceSetting", "ServerMetadata"]
    ),
    st.binary(max_size=60),
)  # fmt: skip
@settings(
    max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow]
)
def test_any_bytes_over_grpc_are_answered_or_refused(server: Any, method: str, data: bytes) -> None:
    with grpc.insecure_channel(f"127.0.0.1:{server.grpc_port}", (("grpc.use_local_subchannel_pool", 0),)) as channel:
        call = channel.unary_unary(f"/inference.GRPCInferenceService/{method}").future(data, timeout=60)
        assert call.code().name in ("OK", "INVALID_ARGUMENT", "NOT_FOUND", "FAILED_PRECONDITION", "UNIMPLEMENTED")
        assert call.code().name == "OK" or call.details()
