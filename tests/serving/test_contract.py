"""One suite over both transports: the same questions, through official gRPC stubs and through raw HTTP."""

from __future__ import annotations

import base64
import json
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import grpc
import httpx2
import numpy as np
import pytest

from moxserve.serving.main import Server

OK = "OK"
HTTP = {"OK": 200, "INVALID_ARGUMENT": 400, "FAILED_PRECONDITION": 400, "NOT_FOUND": 404, "UNIMPLEMENTED": 501}


class Grpc:
    """The tensorflow-serving-api package as a client."""

    name = "grpc"

    def __init__(self, server: Server) -> None:
        from tensorflow_serving.apis import model_service_pb2_grpc, prediction_service_pb2_grpc

        self._channel = grpc.insecure_channel(f"127.0.0.1:{server.grpc_port}")
        self.stub = prediction_service_pb2_grpc.PredictionServiceStub(self._channel)
        self.models = model_service_pb2_grpc.ModelServiceStub(self._channel)

    def predict(
        self,
        inputs: Mapping[str, Any],
        *,
        model: str = "default",
        version: int | None = None,
        label: str = "",
        signature: str = "",
        outputs: tuple[str, ...] = (),
    ) -> tuple[str, Any]:
        import tensorflow as tf
        from tensorflow_serving.apis import predict_pb2

        request = predict_pb2.PredictRequest(output_filter=outputs)
        request.model_spec.name = model
        request.model_spec.signature_name = signature
        if version is not None:
            request.model_spec.version.value = version
        if label:
            request.model_spec.version_label = label
        for alias, array in inputs.items():
            request.inputs[alias].CopyFrom(tf.make_tensor_proto(array))
        try:
            response = self.stub.Predict(request, timeout=60)
        except grpc.RpcError as error:
            return error.code().name, error.details()
        return OK, {alias: tf.make_ndarray(proto) for alias, proto in response.outputs.items()}

    def status(self, model: str, version: int | None = None) -> tuple[str, Any]:
        from tensorflow_serving.apis import get_model_status_pb2

        request = get_model_status_pb2.GetModelStatusRequest()
        request.model_spec.name = model
        if version is not None:
            request.model_spec.version.value = version
        try:
            response = self.models.GetModelStatus(request, timeout=60)
        except grpc.RpcError as error:
            return error.code().name, error.details()
        states = get_model_status_pb2.ModelVersionStatus.State
        return OK, [(s.version, states.Name(s.state), s.status.error_code) for s in response.model_version_status]

    def signatures(self, model: str, version: int | None = None) -> tuple[str, Any]:
        from tensorflow_serving.apis import get_model_metadata_pb2

        request = get_model_metadata_pb2.GetModelMetadataRequest(metadata_field=["signature_def"])
        request.model_spec.name = model
        if version is not None:
            request.model_spec.version.value = version
        try:
            response = self.stub.GetModelMetadata(request, timeout=60)
        except grpc.RpcError as error:
            return error.code().name, error.details()
        found = get_model_metadata_pb2.SignatureDefMap()
        assert response.metadata["signature_def"].Unpack(found)
        keys = {k: (sorted(d.inputs), sorted(d.outputs), d.method_name) for k, d in found.signature_def.items()}
        return OK, (response.model_spec.version.value, keys)

    def close(self) -> None:
        self._channel.close()


class Rest:
    """Plain HTTP in column format."""

    name = "rest"

    def __init__(self, server: Server) -> None:
        self.http = httpx2.Client(base_url=f"http://127.0.0.1:{server.rest_port}", timeout=60)

    def _path(self, model: str, version: int | None, label: str = "") -> str:
        which = f"/versions/{version}" if version is not None else f"/labels/{label}" if label else ""
        return f"/v1/models/{model}{which}"

    def _status_of(self, reply: Any, text: str) -> str:
        names = [n for n, code in HTTP.items() if code == reply.status_code]
        # 400 stands for two statuses; the text tells which one the contract means.
        return names[0] if len(names) == 1 else ("FAILED_PRECONDITION" if "key" in text else "INVALID_ARGUMENT")

    def predict(
        self,
        inputs: Mapping[str, Any],
        *,
        model: str = "default",
        version: int | None = None,
        label: str = "",
        signature: str = "",
        outputs: tuple[str, ...] = (),
    ) -> tuple[str, Any]:
        assert not outputs, "REST has no output filter"
        body: dict[str, Any] = {"inputs": {alias: _plain(array) for alias, array in inputs.items()}}
        if signature:
            body["signature_name"] = signature
        reply = self.http.post(self._path(model, version, label) + ":predict", content=json.dumps(body))
        assert reply.headers["content-type"] == "application/json"
        answer = reply.json()
        if reply.status_code != 200:
            return self._status_of(reply, answer["error"]), answer["error"]
        values = answer["outputs"]
        known = self.signatures(model, version)[1][1][signature or "serving_default"][1]
        return OK, ({known[0]: values} if len(known) == 1 else values)

    def status(self, model: str, version: int | None = None) -> tuple[str, Any]:
        reply = self.http.get(self._path(model, version))
        if reply.status_code != 200:
            return self._status_of(reply, ""), reply.json()["error"]
        rows = reply.json()["model_version_status"]
        return OK, [(int(r["version"]), r["state"], 0 if r["status"]["error_code"] == "OK" else 1) for r in rows]

    def signatures(self, model: str, version: int | None = None) -> tuple[str, Any]:
        reply = self.http.get(self._path(model, version) + "/metadata")
        if reply.status_code != 200:
            return self._status_of(reply, ""), reply.json()["error"]
        answer = reply.json()
        found = answer["metadata"]["signature_def"]["signature_def"]
        keys = {k: (sorted(d["inputs"]), sorted(d["outputs"]), d["method_name"]) for k, d in found.items()}
        return OK, (int(answer["model_spec"]["version"]), keys)

    def close(self) -> None:
        self.http.close()


def _plain(array: Any) -> Any:
    value = np.asarray(array).tolist()

    def convert(item: Any) -> Any:
        if isinstance(item, list):
            return [convert(i) for i in item]
        return {"b64": base64.b64encode(item).decode()} if isinstance(item, bytes) else item

    return convert(value)


@pytest.fixture(scope="module")
def half(testdata: Path, options: Callable[..., Any]) -> Iterator[Server]:
    with Server(options(testdata / "saved_model_half_plus_two_2_versions")) as server:
        yield server


@pytest.fixture(scope="module")
def echo(echo_base: Path, options: Callable[..., Any]) -> Iterator[Server]:
    with Server(options(echo_base, model_name="echo")) as server:
        yield server


@pytest.fixture(params=[Grpc, Rest], ids=lambda t: t.name)
def half_client(request: pytest.FixtureRequest, half: Server) -> Iterator[Any]:
    client = request.param(half)
    yield client
    client.close()


@pytest.fixture(params=[Grpc, Rest], ids=lambda t: t.name)
def echo_client(request: pytest.FixtureRequest, echo: Server) -> Iterator[Any]:
    client = request.param(echo)
    yield client
    client.close()


@pytest.fixture
def grpc_half(half: Server) -> Iterator[Grpc]:
    client = Grpc(half)
    yield client
    client.close()


@pytest.fixture
def grpc_echo(echo: Server) -> Iterator[Grpc]:
    client = Grpc(echo)
    yield client
    client.close()


F32 = np.float32


@pytest.mark.parametrize(
    ("x", "y"), [([1.0, 2.0, 5.0], [2.5, 3.0, 4.5]), ([[1.0], [2.0]], [[2.5], [3.0]]), (4.0, 4.0), ([], [])]
)
def test_predict_takes_any_shape_that_the_graph_can_run(half_client, x, y) -> None:
    status, outputs = half_client.predict({"x": F32(x)})
    assert status == OK
    np.testing.assert_array_equal(np.array(outputs["y"], F32), F32(y))


def test_the_latest_version_answers_and_only_it_is_loaded(half_client) -> None:
    assert half_client.status("default") == (OK, [(124, "AVAILABLE", 0)])
    assert half_client.status("default", 124) == (OK, [(124, "AVAILABLE", 0)])
    assert half_client.predict({"x": F32([2])}, version=124)[0] == OK
    assert half_client.signatures("default")[1][0] == 124


@pytest.mark.parametrize(
    ("call", "expected"),
    [
        ({"model": "nope"}, ("NOT_FOUND", "Servable not found for request: Latest(nope)")),
        ({"model": "Default"}, ("NOT_FOUND", "Servable not found for request: Latest(Default)")),
        ({"version": 123}, ("NOT_FOUND", "Servable not found for request: Specific(default, 123)")),
        ({"label": "stable"}, ("INVALID_ARGUMENT", "Unrecognized servable version label: stable")),
    ],
)
def test_a_model_that_is_not_there(half_client, call, expected) -> None:
    assert half_client.predict({"x": F32([1])}, **call) == expected


def test_status_and_metadata_of_what_is_not_there(half_client) -> None:
    assert half_client.status("nope") == ("NOT_FOUND", "Could not find any versions of model nope")
    assert half_client.status("default", 7) == ("NOT_FOUND", "Could not find version 7 of model default")
    assert half_client.signatures("nope") == ("NOT_FOUND", "Servable not found for request: Latest(nope)")
    assert half_client.signatures("default", 7) == (
        "NOT_FOUND",
        "Servable not found for request: Specific(default, 7)",
    )


def test_unknown_signature_has_the_text_of_its_transport(half_client) -> None:
    status, message = half_client.predict({"x": F32([1])}, signature="zz")
    if half_client.name == "grpc":
        assert (status, message) == ("FAILED_PRECONDITION", 'Serving signature key "zz" not found.')
    else:
        assert (status, message) == ("INVALID_ARGUMENT", 'Serving signature name: "zz" not found in signature def')


def test_classify_and_regress_signatures_answer_predict(half_client) -> None:
    from moxserve.protocol.examples import make_example

    assert half_client.predict({"inputs": F32([[1], [3]])}, signature="regress_x2_to_y3")[0] == OK
    example = make_example({"x": [4.0]}).SerializeToString()
    status, outputs = half_client.predict({"inputs": np.array([example], object)}, signature="regress_x_to_y")
    assert status == OK
    assert np.array(outputs["outputs"]).tolist() == [[4.0]]


def test_a_graph_error_keeps_code_and_text(half_client, echo_client) -> None:
    status, message = half_client.predict({"inputs": np.array([b"a"], object)}, signature="regress_x_to_y")
    assert status == "INVALID_ARGUMENT"
    assert message.startswith("Could not parse example input, value: 'a'")
    status, message = half_client.predict({"inputs": np.array([b"\xff"], object)}, signature="regress_x_to_y")
    assert status == "INVALID_ARGUMENT"
    assert message.startswith("Could not parse example input, value: '\ufffd'")
    status, message = echo_client.predict({"x": F32([[np.nan, 1]])}, model="echo", signature="failing")
    assert status == "INVALID_ARGUMENT"
    assert "bad number" in message


def test_several_inputs_and_outputs(echo_client) -> None:
    inputs = {"a": F32([[1, 2], [3, 4]]), "b": np.int64([10, -(2**40)])}
    status, outputs = echo_client.predict(inputs, model="echo")
    assert status == OK
    assert sorted(outputs) == ["sum", "twice"]
    assert np.array(outputs["sum"]).tolist() == [13.0, F32(7) + F32(-(2**40))]
    assert np.array(outputs["twice"]).tolist() == [20, -(2**41)]


def test_an_input_that_is_also_an_output(echo_client) -> None:
    status, outputs = echo_client.predict({"x": F32([[1, 2]])}, model="echo", signature="handed_through")
    assert status == OK
    assert np.array(outputs["y"]).tolist() == [[1.0, 2.0]]
    assert np.array(outputs["z"]).tolist() == [[2.0, 3.0]]


@pytest.mark.parametrize(
    ("dtype", "values"),
    [
        ("float32", [0.1, -0.0, 1e-45, 3.4e38, np.inf, -np.inf, np.nan]),
        ("float64", [0.1, 1e-320, 1.7976931348623157e308, np.nan]),
        ("int8", [-128, 127]),
        ("uint8", [0, 255]),
        ("int16", [-32768, 32767]),
        ("int32", [-(2**31), 2**31 - 1]),
        ("uint32", [0, 2**32 - 1]),
        ("int64", [-(2**63), 2**63 - 1]),
        ("uint64", [0, 2**64 - 1]),
        ("bool", [True, False]),
    ],
)
@pytest.mark.parametrize("shape", [(-1,), (1, -1), (-1, 1)])
def test_every_json_dtype_survives(echo_client, dtype, values, shape) -> None:
    array = np.array(values, dtype).reshape(shape)
    status, outputs = echo_client.predict({"x": array}, model="echo", signature=dtype)
    assert status == OK, outputs
    np.testing.assert_array_equal(np.array(outputs["y"], dtype), array)


def test_strings_and_bytes(echo_client) -> None:
    texts = np.array(["grün".encode(), b"", b"a\x00b"], object)
    status, outputs = echo_client.predict({"text": texts}, model="echo", signature="text")
    assert status == OK
    if echo_client.name == "rest":
        assert outputs["upper"] == ["GRüN", "", "A\u0000B"]
        assert [base64.b64decode(v["b64"]) for v in outputs["raw_bytes"]] == texts.tolist()
    else:
        assert outputs["upper"].tolist() == ["GRüN".encode(), b"", b"A\x00B"]
        assert outputs["raw_bytes"].tolist() == texts.tolist()


# gRPC alone


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "uint16", "complex64", "complex128", "string"])
def test_dtypes_without_json_form_go_over_grpc(grpc_echo, dtype) -> None:
    import tensorflow as tf

    values: Any = [b"a", b"\xff\x00"] if dtype == "string" else [1, 2]
    array = np.array(values, tf.dtypes.as_dtype(dtype).as_numpy_dtype)
    status, outputs = grpc_echo.predict({"x": array}, model="echo", signature=dtype)
    assert status == OK, outputs
    assert outputs["y"].dtype == array.dtype
    assert outputs["y"].tolist() == array.tolist()


def test_output_filter(grpc_echo) -> None:
    inputs = {"a": F32([[1, 2]]), "b": np.int64([1])}
    assert list(grpc_echo.predict(inputs, model="echo", outputs=("twice",))[1]) == ["twice"]
    assert grpc_echo.predict(inputs, model="echo", outputs=("zz",)) == (
        "INVALID_ARGUMENT",
        "output tensor alias not found in signature: zz Outputs expected to be in the set {sum,twice}.",
    )
    assert grpc_echo.predict(inputs, model="echo", outputs=("sum", "sum")) == (
        "INVALID_ARGUMENT",
        "duplicate output tensor alias: sum",
    )


def test_only_the_part_that_is_fetched_runs(grpc_echo) -> None:
    # `b` is not needed for anything but `twice` and `sum`; a shape that breaks `sum` leaves `twice` alone.
    inputs = {"a": F32([[1, 2], [3, 4]]), "b": np.int64([1, 2, 3])}
    assert grpc_echo.predict(inputs, model="echo")[0] == "INVALID_ARGUMENT"
    assert grpc_echo.predict(inputs, model="echo", outputs=("twice",))[1]["twice"].tolist() == [2, 4, 6]


@pytest.mark.parametrize(
    ("inputs", "message"),
    [
        ({}, "input size does not match signature: 0!=2 len({}) != len({a,b}). Sent extra: {}. "
             "Missing but required: {a,b}."),
        ({"a": 1, "b": 1, "c": 1}, "input size does not match signature: 3!=2 len({a,b,c}) != len({a,b}). "
                                   "Sent extra: {c}. Missing but required: {}."),
        ({"a": 1, "z": 1}, "Signature input alias: b(feed name: b:0) not found in request and no default value "
                           "provided. Inputs expected to be in the request {a,z}, or default input alias set: {}."),
    ],
)  # fmt: skip
def test_names_of_inputs(grpc_echo, inputs, message) -> None:
    assert grpc_echo.predict(inputs, model="echo") == ("INVALID_ARGUMENT", message)


def test_wrong_dtype_has_the_text_of_the_original(grpc_half) -> None:
    status, message = grpc_half.predict({"x": np.float64([1])})
    assert status == "INVALID_ARGUMENT"
    assert message.startswith("Expects arg[0] to be float but double is provided")


def test_model_spec_of_the_answer_and_typed_fields(grpc_half) -> None:
    import tensorflow as tf
    from tensorflow_serving.apis import predict_pb2

    request = predict_pb2.PredictRequest()
    request.model_spec.name = "default"
    request.inputs["x"].CopyFrom(tf.make_tensor_proto([1.0, 2.0]))
    response = grpc_half.stub.Predict(request)
    spec = response.model_spec
    assert (spec.name, spec.version.value, spec.signature_name) == ("default", 124, "serving_default")
    assert list(response.outputs["y"].float_val) == [2.5, 3.0]
    assert response.outputs["y"].tensor_content == b""


def _code(call: Callable[..., Any], request: Any) -> tuple[str, str]:
    with pytest.raises(grpc.RpcError) as caught:
        call(request, timeout=60)
    return caught.value.code().name, caught.value.details()


def test_messages_without_a_model(grpc_half) -> None:
    from tensorflow_serving.apis import get_model_metadata_pb2, get_model_status_pb2, predict_pb2

    missing = ("INVALID_ARGUMENT", "Missing ModelSpec")
    assert _code(grpc_half.stub.Predict, predict_pb2.PredictRequest()) == missing
    assert _code(grpc_half.models.GetModelStatus, get_model_status_pb2.GetModelStatusRequest()) == missing
    assert _code(grpc_half.stub.GetModelMetadata, get_model_metadata_pb2.GetModelMetadataRequest()) == missing
    nameless = predict_pb2.PredictRequest()
    nameless.model_spec.signature_name = "serving_default"
    assert _code(grpc_half.stub.Predict, nameless) == ("INVALID_ARGUMENT", "ModelSpec has no name specified.")


def test_metadata_fields(grpc_half) -> None:
    from tensorflow_serving.apis import get_model_metadata_pb2

    request = get_model_metadata_pb2.GetModelMetadataRequest()
    request.model_spec.name = "default"
    assert _code(grpc_half.stub.GetModelMetadata, request) == (
        "INVALID_ARGUMENT",
        "GetModelMetadataRequest must specify at least one metadata_field",
    )
    request.metadata_field.append("assets")
    assert _code(grpc_half.stub.GetModelMetadata, request) == (
        "INVALID_ARGUMENT",
        "Metadata field assets is not supported",
    )


def test_a_tensor_that_does_not_parse(grpc_half) -> None:
    from tensorflow_serving.apis import predict_pb2

    request = predict_pb2.PredictRequest()
    request.model_spec.name = "default"
    x = request.inputs["x"]
    x.dtype = 1
    x.tensor_content = b"123"
    status, message = _code(grpc_half.stub.Predict, request)
    assert status == "INVALID_ARGUMENT"
    assert message.startswith("tensor parsing error: x")
    x.tensor_content = b""
    for size in (2**62, 2**63 - 1):
        del x.tensor_shape.dim[:]
        x.tensor_shape.dim.add().size = size
        status, message = _code(grpc_half.stub.Predict, request)
        assert status == "INVALID_ARGUMENT"
        assert message.startswith("tensor parsing error: x")


def test_bytes_that_are_no_message(half: Server) -> None:
    with grpc.insecure_channel(f"127.0.0.1:{half.grpc_port}") as channel:
        call = channel.unary_unary("/tensorflow.serving.PredictionService/Predict")
        status, message = _code(call, b"\xff\xff\xff")
    assert status == "INVALID_ARGUMENT"
    assert "no PredictRequest" in message


def test_long_messages_are_cut(grpc_echo) -> None:
    status, message = grpc_echo.predict({"n" * 3000: 1, "b": 1}, model="echo")
    assert status == "INVALID_ARGUMENT"
    assert len(message) == 1024
    assert message.endswith("...TRUNCATED")


def test_large_messages_both_ways(grpc_echo) -> None:
    array = np.arange(4_000_000, dtype=F32)
    import tensorflow as tf
    from tensorflow_serving.apis import predict_pb2

    request = predict_pb2.PredictRequest()
    request.model_spec.name = "echo"
    request.model_spec.signature_name = "float32"
    request.inputs["x"].CopyFrom(tf.make_tensor_proto(array))
    unlimited = [("grpc.max_receive_message_length", -1), ("grpc.max_send_message_length", -1)]
    target = grpc_echo._channel._channel.target().decode()
    with grpc.insecure_channel(target, options=unlimited) as channel:
        from tensorflow_serving.apis import prediction_service_pb2_grpc

        response = prediction_service_pb2_grpc.PredictionServiceStub(channel).Predict(request)
    np.testing.assert_array_equal(tf.make_ndarray(response.outputs["y"]), array)
