"""What is particular to HTTP: paths, headers, bodies, and the JSON that other tools read."""

from __future__ import annotations

import gzip
import json
import socket
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx2
import pytest

from moxserve.serving.main import Server

PREDICT = "/v1/models/default:predict"
BODY = '{"instances": [1.0, 2.0, 5.0]}'
ANSWER = {"predictions": [2.5, 3.0, 4.5]}


@pytest.fixture(scope="module")
def server(testdata: Path, options: Callable[..., Any]) -> Iterator[Server]:
    with Server(options(testdata / "saved_model_half_plus_two_cpu")) as server:
        yield server


@pytest.fixture(scope="module")
def http(server: Server) -> Iterator[httpx2.Client]:
    with httpx2.Client(base_url=f"http://127.0.0.1:{server.rest_port}") as client:
        yield client


def raw(server: Server, request: bytes) -> bytes:
    """Send bytes as they are and read until the server closes."""
    with socket.create_connection(("127.0.0.1", server.rest_port), timeout=60) as connection:
        connection.sendall(request)
        parts = []
        while part := connection.recv(65536):
            parts.append(part)
    return b"".join(parts)


def test_the_answer_byte_by_byte(server: Server) -> None:
    request = f"POST {PREDICT} HTTP/1.1\r\nHost: x\r\nConnection: close\r\nContent-Length: {len(BODY)}\r\n\r\n{BODY}"
    head, _, body = raw(server, request.encode()).partition(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.1 200 OK\r\n")
    assert b"content-type: application/json" in head.lower()
    assert body == b'{\n    "predictions": [2.5, 3.0, 4.5\n    ]\n}'


@pytest.mark.parametrize(
    "path",
    [
        PREDICT, "/V1/Models/default:PREDICT", "/v1/models/default/versions/123:predict", PREDICT + "?debug=1",
        "/v1/models/%64efault:predict",
    ],
)  # fmt: skip
def test_paths_of_predict(http, path) -> None:
    reply = http.post(path, content=BODY)
    assert (reply.status_code, reply.json()) == (200, ANSWER)


@pytest.mark.parametrize(
    ("method", "path", "status", "error"),
    [
        ("POST", "/v1/models/default", 400, "Malformed request: POST /v1/models/default"),
        ("POST", "/v1/models/default:predic", 400, "Malformed request: POST /v1/models/default:predic"),
        ("GET", PREDICT, 400, f"Malformed request: GET {PREDICT}"),
        ("PUT", PREDICT, 400, f"Malformed request: PUT {PREDICT}"),
        ("DELETE", "/v1/models/default", 400, "Malformed request: DELETE /v1/models/default"),
        ("GET", "/v1/models/default/versions/x", 400, "Malformed request: GET /v1/models/default/versions/x"),
        ("GET", "/v1/models/a/b/c", 400, "Malformed request: GET /v1/models/a/b/c"),
        ("GET", "/v1/models/versions/1", 400, "Missing model name in request."),
        ("GET", "/v1/models/default/versions/9223372036854775808", 400,
         "Failed to convert version: 9223372036854775808 to numeric."),
        ("POST", f"/v1/models/default/versions/{'9' * 5000}:predict", 400,
         f"Failed to convert version: {'9' * 5000} to numeric."),
        ("GET", "/v1/models/default/versions/9223372036854775807", 404,
         "Could not find version 9223372036854775807 of model default"),
    ],
)  # fmt: skip
def test_paths_that_are_none(http, method, path, status, error) -> None:
    reply = http.request(method, path, content=BODY if method == "POST" else None)
    assert (reply.status_code, reply.json()) == (status, {"error": error})


def test_other_paths_are_a_plain_404(http) -> None:
    for path in ("/v1", "/favicon.ico", "/nowhere"):
        reply = http.get(path)
        assert reply.status_code == 404
        assert reply.headers["content-type"] == "text/html"


@pytest.mark.slow
def test_gzip(http) -> None:
    zipped = gzip.compress(BODY.encode())
    headers = {"Content-Encoding": "gzip"}
    assert http.post(PREDICT, content=zipped, headers=headers).json() == ANSWER
    for bad in (BODY.encode(), zipped[:-10]):
        reply = http.post(PREDICT, content=bad, headers=headers)
        assert reply.status_code == 400
        assert "gzip" in reply.json()["error"]
    bomb = gzip.compress(b" " * (101 << 20))
    assert http.post(PREDICT, content=bomb, headers=headers).status_code == 429


def test_a_body_in_pieces(http) -> None:
    reply = http.post(PREDICT, content=(BODY[i : i + 3].encode() for i in range(0, len(BODY), 3)))
    assert reply.json() == ANSWER


def test_several_requests_on_one_connection(http) -> None:
    for body, status in ((BODY, 200), ("", 400), (BODY, 200)):
        assert http.post(PREDICT, content=body).status_code == status


def comparable(metadata: Any) -> Any:
    """Leave defaults out: the TF2 golden file was made of an older export, whose inputs had none."""
    for definition in metadata["metadata"]["signature_def"]["signature_def"].values():
        definition.pop("defaults", None)
    return metadata


@pytest.mark.parametrize(
    ("model", "name", "golden"),
    [
        ("saved_model_half_plus_two_cpu", "default", "half_plus_two_model_metadata.json"),
        ("saved_model_half_plus_two_2_versions", "saved_model_half_plus_two_2_versions",
         "saved_model_half_plus_two_2_versions_metadata.json"),
        ("saved_model_half_plus_two_tf2_cpu", "saved_model_half_plus_two_2_versions",
         "saved_model_half_plus_two_tf2_2_versions_metadata.json"),
    ],
)  # fmt: skip
def test_metadata_is_what_the_original_answers(testdata, serve, tmp_path, model, name, golden) -> None:
    base = tmp_path / "base"
    base.mkdir()
    (base / "123").symlink_to(testdata / model / "00000123")
    server = serve(base, model_name=name)
    reply = httpx2.get(f"http://127.0.0.1:{server.rest_port}/v1/models/{name}/metadata")
    expected = json.loads((testdata / golden).read_text())
    if "tf2" in model:
        assert comparable(reply.json()) == comparable(expected)
    else:
        assert reply.json() == expected
    assert reply.text.startswith('{\n "model_spec": {\n  "name"')


def test_status_is_what_the_original_answers(http) -> None:
    expected = {
        "model_version_status": [
            {"version": "123", "state": "AVAILABLE", "status": {"error_code": "OK", "error_message": ""}}
        ]
    }
    for path in ("/v1/models/default", "/v1/models/default/versions/123", "/v1/models/default/labels/any"):
        assert http.get(path).json() == expected
    assert http.get("/v1/models/default").text.startswith('{\n "model_version_status": [\n  {\n   "version": "123"')


def test_rows_need_equal_first_dimensions(echo_base, serve) -> None:
    server = serve(echo_base, model_name="echo")
    url = f"http://127.0.0.1:{server.rest_port}/v1/models/echo:predict"
    uneven = httpx2.post(url, content='{"signature_name": "uneven", "instances": [[1, 2], [3, 4]]}')
    assert (uneven.status_code, uneven.json()) == (
        400,
        {"error": "Tensor name: q has inconsistent batch size: 4 expecting: 2"},
    )
    total = httpx2.post(url, content='{"signature_name": "total", "instances": [[1, 2]]}')
    assert total.json() == {"error": "Tensor name: total has no shape information "}
    assert httpx2.post(url, content='{"signature_name": "total", "inputs": [[1, 2]]}').json() == {"outputs": 3.0}
    rows = httpx2.post(url, content='{"instances": [{"a": [1, 2], "b": 5}, {"a": [3, 4], "b": 6}]}')
    assert rows.json() == {"predictions": [{"sum": 8.0, "twice": 10}, {"sum": 13.0, "twice": 12}]}
