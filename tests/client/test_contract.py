"""The same cases over every transport, blocking and async: answers, dtypes, errors."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest

from moxserve.client import AsyncClient, Client, MockTransport, RestTransport
from moxserve.errors import RequestError, UsageError
from moxserve.types import Signature, TensorSpec, dtype_by_name


class Blocking:
    """An AsyncClient behind the methods of Client, so that one suite tests both."""

    def __init__(self, target: Any, **options: Any) -> None:
        self._loop = asyncio.new_event_loop()
        self._client = self._loop.run_until_complete(self._make(target, options))

    async def _make(self, target: Any, options: dict[str, Any]) -> AsyncClient:
        return AsyncClient(target, **options)

    def __getattr__(self, name: str) -> Callable[..., Any]:
        method = getattr(self._client, name)
        return lambda *args, **kwargs: self._loop.run_until_complete(method(*args, **kwargs))

    def close(self) -> None:
        self._loop.run_until_complete(self._client.aclose())
        self._loop.close()


def target_of(kind: str, toy_server: Any) -> Any:
    return {
        "grpc": f"grpc://{toy_server.grpc}",
        "rest": toy_server.rest,
        "rest-rows": RestTransport(toy_server.rest, rows=True),
        "local": f"local:{toy_server.base}",
    }[kind]


@pytest.fixture(params=["grpc", "rest", "rest-rows", "local", "async-grpc", "async-rest", "async-local"])
def client(request: pytest.FixtureRequest, toy_server: Any) -> Iterator[Any]:
    make: Any = Client
    kind = request.param
    if kind.startswith("async-"):
        make, kind = Blocking, kind.removeprefix("async-")
    made = make(target_of(kind, toy_server), timeout_s=60)
    yield made
    made.close()


def test_bare_array_and_all_outputs(client) -> None:
    images = np.stack([np.full((8, 8, 1), value, np.uint8) for value in (3, 128, 250, 255)])
    answer = client.predict("toy", images)
    assert answer["classes"].dtype == np.int64
    assert answer["classes"].tolist() == [0, 1, 2, 2]
    assert answer["probabilities"].dtype == np.float32
    assert answer["probabilities"].shape == (4, 3)
    assert answer["probabilities"].sum(1) == pytest.approx(np.ones(4))
    answer["classes"][0] = 7  # answers may be written to


def test_every_dtype_comes_back_as_it_went(client) -> None:
    inputs = {
        "x": np.array([[0.1, -1e-30, 3e38], [1, 2, 3]], np.float32),
        "n": np.array([2**62 + 1, -5]),
        "s": np.array([b"\x00\xff\xfe", "grün".encode()], object),
        "b": np.array([True, False]),
    }
    answer = client.predict("toy", inputs, signature="echo")
    assert sorted(answer) == ["b", "n", "s_bytes", "x"]
    for name in ("x", "n", "b"):
        assert answer[name].dtype == inputs[name].dtype
        np.testing.assert_array_equal(answer[name], inputs[name])
    assert answer["s_bytes"].tolist() == inputs["s"].tolist()


def test_lists_and_text_take_the_signature_dtype(client) -> None:
    answer = client.predict("toy", {"x": [[1, 2.5, 3]], "n": [7], "s": ["a"], "b": [True]}, signature="echo")
    assert answer["x"].tolist() == [[1.0, 2.5, 3.0]]
    assert answer["n"].tolist() == [7]
    assert answer["s_bytes"].tolist() == [b"a"]


def test_narrow_arrays_are_widened(client) -> None:
    answer = client.predict("toy", np.array([4, 9], np.uint8), signature="positive")
    assert answer["root"].tolist() == [2.0, 3.0]


def test_output_selection(client) -> None:
    image = np.zeros((1, 8, 8, 1), np.uint8)
    assert list(client.predict("toy", image, outputs=["classes"])) == ["classes"]
    with pytest.raises(UsageError, match=r"no output is named 'clases'; did you mean 'classes'\?"):
        client.predict("toy", image, outputs=["clases"])


def test_infinities_and_nan(client) -> None:
    answer = client.predict("toy", np.array([0.0, -0.0, np.nan, np.inf], np.float32), signature="inverse")
    np.testing.assert_array_equal(answer["inverse"], np.array([np.inf, -np.inf, np.nan, 0], np.float32))


def test_server_message_reaches_the_caller(client) -> None:
    with pytest.raises(RequestError, match="negative numbers are refused") as caught:
        client.predict("toy", [1.0, -1.0], signature="positive")
    assert caught.value.status == "INVALID_ARGUMENT"


@pytest.mark.parametrize(
    ("inputs", "message"),
    [
        ({"image": np.zeros((1, 8, 8, 1), np.uint8)}, r"no input is named 'image'; did you mean 'images'\?"),
        (np.zeros((1, 8, 8), np.uint8), r"shape \[1, 8, 8\]; expected images: uint8\[\?, 8, 8, 1\]"),
        (np.zeros((1, 8, 8, 1), np.float32), "is float32, which uint8 cannot hold without loss"),
        ([[[[300]]]], "holds 300, which uint8 cannot hold exactly"),
        ({}, "missing input 'images'"),
    ],
)
def test_wrong_inputs_are_refused_with_the_signature(client, inputs, message) -> None:
    with pytest.raises(UsageError, match=message) as caught:
        client.predict("toy", inputs)
    assert "expected serving_default(images: uint8[?, 8, 8, 1]) -> (classes: int64[?]" in (caught.value.hint or "")


def test_unknown_signature_lists_the_known(client) -> None:
    with pytest.raises(UsageError, match="no signature 'eco'; did you mean 'echo'") as caught:
        client.predict("toy", [1.0], signature="eco")
    assert "half(x: float16[?, 2]) -> (y: float16[?, 2])" in (caught.value.hint or "")


def test_metadata(client) -> None:
    metadata = client.metadata("toy")
    assert (metadata.name, metadata.version) == ("toy", 1)
    assert str(metadata.signatures["echo"]) == (
        "echo(b: bool[?], n: int64[?], s: string[?], x: float32[?, 3])"
        " -> (b: bool[?], n: int64[?], s_bytes: string[?], x: float32[?, 3])"
    )
    assert not [name for name in metadata.signatures if name.startswith("__")]


def test_status_and_readiness(client) -> None:
    (status,) = client.status("toy")
    assert (status.version, status.state, status.error_code) == (1, "AVAILABLE", "OK")
    assert client.wait_ready("toy", timeout_s=60) == 1
    assert client.wait_ready("toy:1", timeout_s=60) == 1


def test_unknown_version(client) -> None:
    for call in (client.metadata, client.status, lambda m: client.predict(m, [1.0], signature="positive")):
        with pytest.raises(RequestError) as caught:
            call("toy:9")
        assert caught.value.status == "NOT_FOUND"


def test_empty_batch(client, request) -> None:
    if "rest-rows" in request.node.callspec.id:
        with pytest.raises(RequestError, match="No values in 'instances' array"):
            client.predict("toy", np.zeros(0, np.float32), signature="positive")
        return
    answer = client.predict("toy", np.zeros((0, 3), np.float32).sum(1), signature="positive")
    assert answer["root"].shape == (0,)
    assert answer["root"].dtype == np.float32


def test_scalar_outputs_need_columns(toy_server) -> None:
    for target in (f"grpc://{toy_server.grpc}", toy_server.rest, f"local:{toy_server.base}"):
        with Client(target) as client:
            answer = client.predict("toy", [1.0, 2.0], signature="total")
            assert answer["total"].shape == ()
            assert float(answer["total"]) == 3.0


def test_half_precision_travels_everywhere_but_rest(toy_server) -> None:
    x = np.array([[1, 3]], np.float16)
    for target in (f"grpc://{toy_server.grpc}", f"local:{toy_server.base}"):
        with Client(target) as client:
            answer = client.predict("toy", x, signature="half")
            assert answer["y"].dtype == np.float16
            assert answer["y"].tolist() == [[0.5, 1.5]]
    with Client(toy_server.rest) as client, pytest.raises(UsageError, match="float16, which REST cannot carry"):
        client.predict("toy", x, signature="half")


def test_several_megabytes_pass(toy_server) -> None:
    images = np.zeros((200_000, 8, 8, 1), np.uint8)  # 12.8 MB out, 4 MB and more back
    with Client(toy_server.grpc) as client:
        answer = client.predict("toy", images)
    assert answer["probabilities"].shape == (200_000, 3)


def test_unchecked_arrays_go_out_as_they_are(toy_server) -> None:
    for target in (toy_server.grpc, toy_server.rest):
        with Client(target, check=False) as client:
            assert client.predict("toy", {"x": np.array([4.0], np.float32)}, signature="positive")["root"].tolist() == [
                2.0
            ]
            assert client.predict("toy", [4.0], signature="positive")["root"].tolist() == [2.0]
    with Client(toy_server.grpc, check=False) as client, pytest.raises(RequestError) as caught:
        client.predict("toy", {"x": np.array([4.0], np.float64)}, signature="positive")
    assert caught.value.status == "INVALID_ARGUMENT"


def test_mock_behaves_as_a_server() -> None:
    mock = MockTransport(lambda inputs: {"y": inputs["x"] * 2}, x=np.zeros((1, 3), np.float32))
    for make in (Client, Blocking):
        client = make(mock)
        assert client.predict("any", [[1.0, 2.0, 3.0]])["y"].tolist() == [[2.0, 4.0, 6.0]]
        assert client.wait_ready("any") == 1
        assert str(client.metadata("any").signatures["serving_default"]) == (
            "serving_default(x: float32[?, 3]) -> (y: float32[?, 3])"
        )
        with pytest.raises(UsageError, match=r"shape \[3\]; expected x: float32\[\?, 3\]"):
            client.predict("any", [1.0, 2.0, 3.0])
        with pytest.raises(RequestError):
            client.predict("any:7", [[1.0, 2.0, 3.0]])


def test_mock_with_a_signature_of_ones_own() -> None:
    text = TensorSpec("t", dtype_by_name("string"), (None,))
    signature = Signature("shout", "tensorflow/serving/predict", {"t": text}, {"t": text})
    mock = MockTransport(lambda inputs: {"t": [word.upper() for word in inputs["t"]]}, signature=signature, version=4)
    with Client(mock) as client:
        assert client.predict("m", ["a"], signature="shout")["t"].tolist() == [b"A"]
        assert client.metadata("m").version == 4
