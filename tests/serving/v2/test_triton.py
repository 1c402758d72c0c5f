"""tritonclient, over gRPC and over HTTP alike: inference, metadata, readiness, statistics, refusals."""

from __future__ import annotations

import queue
import socket
from collections.abc import Callable
from typing import Any

import ml_dtypes
import numpy as np
import pytest

from moxserve.client import Client

X = np.array([1.0, 2.0, 5.0], np.float32)
DATATYPES = {
    "BOOL": "bool", "INT8": "int8", "INT16": "int16", "INT32": "int32", "INT64": "int64", "UINT8": "uint8",
    "UINT16": "uint16", "UINT32": "uint32", "UINT64": "uint64", "FP16": "float16", "FP32": "float32", "FP64": "float64",
}  # fmt: skip


class Triton:
    """What both of its clients have in common."""

    def __init__(self, module: Any, client: Any) -> None:
        self.module = module
        self.client = client

    def infer(self, model: str, inputs: dict[str, np.ndarray], outputs: Any = None, **options: Any) -> Any:
        return self.client.infer(model, self.tensors(inputs), outputs=outputs, **options)

    def tensors(self, inputs: dict[str, np.ndarray], **how: Any) -> list[Any]:
        from tritonclient.utils import np_to_triton_dtype

        return [
            self.module.InferInput(name, list(array.shape), np_to_triton_dtype(array.dtype)).set_data_from_numpy(
                array, **how
            )
            for name, array in inputs.items()
        ]

    def refused(self, call: Callable[[], Any]) -> tuple[str, str]:
        """Status and reason of a call that is refused."""
        from tritonclient.utils import InferenceServerException

        with pytest.raises(InferenceServerException) as caught:
            call()
        return caught.value.status().removeprefix("StatusCode."), caught.value.message()

    def as_dict(self, answer: Any) -> dict[str, Any]:
        from google.protobuf.json_format import MessageToDict

        if isinstance(answer, (dict, list)):
            return answer
        return MessageToDict(answer, preserving_proto_field_name=True, always_print_fields_with_no_presence=True)


@pytest.fixture(params=["grpc", "http"])
def triton(request: pytest.FixtureRequest) -> Triton:
    import tritonclient.grpc
    import tritonclient.http

    if request.param == "grpc":
        return Triton(tritonclient.grpc, request.getfixturevalue("triton_grpc"))
    return Triton(tritonclient.http, request.getfixturevalue("triton_http"))


# Inference


@pytest.mark.parametrize("version", ["", "123", "124", "00000123", "stable", "canary"])
def test_the_answer_is_that_of_predict(triton: Triton, server, version: str) -> None:
    column = X[:, None]
    number = {"": "124", "123": "123", "00000123": "123", "stable": "123"}.get(version, "124")
    with Client(f"127.0.0.1:{server.grpc_port}") as client:
        expected = client.predict(f"half:{number}", {"x": column})["y"]
    result = triton.infer("half", {"x": column}, model_version=version, request_id="id 1")
    answer = triton.as_dict(result.get_response())
    assert (answer["model_name"], answer["model_version"], answer["id"]) == ("half", number, "id 1")
    np.testing.assert_array_equal(result.as_numpy("y"), expected)
    np.testing.assert_array_equal(result.as_numpy("y"), column / 2 + 2)
    assert result.as_numpy("y").dtype == np.float32


@pytest.mark.parametrize("datatype", DATATYPES)
def test_every_datatype(triton: Triton, datatype: str) -> None:
    dtype = np.dtype(DATATYPES[datatype])
    array = np.array([[True, False, True]]) if datatype == "BOOL" else np.array([[0, 1, 100]]).astype(dtype)
    result = triton.infer("echo", {"x": array}, parameters={"signature_name": DATATYPES[datatype]})
    (output,) = triton.as_dict(result.get_response())["outputs"]
    assert (output["name"], output["datatype"]) == ("y", datatype)
    assert result.as_numpy("y").dtype == dtype
    np.testing.assert_array_equal(result.as_numpy("y"), array)


def test_brain_floats(triton: Triton) -> None:
    array = np.array([0.1, 1e30, np.inf], ml_dtypes.bfloat16)
    back = triton.infer("echo", {"x": array}, parameters={"signature_name": "bfloat16"}).as_numpy("y")
    assert back.dtype == array.dtype
    np.testing.assert_array_equal(back, array)


def test_text(triton: Triton) -> None:
    array = np.array([["häl".encode(), b"", b"\xff\0\1"]], object)
    back = triton.infer("echo", {"x": array}, parameters={"signature_name": "string"}).as_numpy("y")
    assert back.tolist() == array.tolist()


def test_a_large_tensor(triton: Triton) -> None:
    array = np.random.default_rng(0).random((4, 224, 224, 3), np.float32)
    back = triton.infer("echo", {"x": array}, parameters={"signature_name": "float32"}).as_numpy("y")
    np.testing.assert_array_equal(back, array)


def test_empty_tensors_and_scalars(triton: Triton) -> None:
    for array in (np.zeros((0, 3), np.float32), np.array(7, np.float32)):
        if array.ndim or triton.module.__name__.endswith("grpc"):  # its HTTP client cannot read a scalar's shape
            back = triton.infer("echo", {"x": array}, parameters={"signature_name": "float32"}).as_numpy("y")
            assert back.shape == array.shape
            np.testing.assert_array_equal(back, array)


def test_several_inputs_and_chosen_outputs(triton: Triton) -> None:
    inputs = {"b": np.array([3, 4], np.int64), "a": np.array([[1, 2], [3, 4]], np.float32)}
    whole = triton.infer("echo", inputs)
    assert whole.as_numpy("sum").tolist() == [6, 11]
    assert whole.as_numpy("twice").tolist() == [6, 8]
    asked = [triton.module.InferRequestedOutput(name) for name in ("twice", "sum")]
    chosen = triton.infer("echo", inputs, asked)
    assert [output["name"] for output in triton.as_dict(chosen.get_response())["outputs"]] == ["twice", "sum"]
    only = triton.infer("echo", inputs, asked[1:])
    assert only.as_numpy("twice") is None
    assert only.as_numpy("sum").tolist() == [6, 11]


def test_json_both_ways(triton_http, server) -> None:
    import tritonclient.http

    triton = Triton(tritonclient.http, triton_http)
    tensors = triton.tensors({"x": X}, binary_data=False)
    asked = [tritonclient.http.InferRequestedOutput("y", binary_data=False)]
    result = triton_http.infer("half", tensors, outputs=asked)
    assert result.get_response()["outputs"] == [
        {"name": "y", "datatype": "FP32", "shape": [3], "data": [2.5, 3.0, 4.5]}
    ]
    text = triton.tensors({"x": np.array(["ü"], object)}, binary_data=False)
    answer = triton_http.infer("echo", text, outputs=asked, parameters={"signature_name": "string"})
    assert answer.get_response()["outputs"][0]["data"] == ["ü"]


@pytest.mark.parametrize("algorithm", ["gzip", "deflate"])
def test_compressed_requests(triton: Triton, algorithm: str) -> None:
    name = "compression_algorithm" if triton.module.__name__.endswith("grpc") else "request_compression_algorithm"
    np.testing.assert_array_equal(triton.infer("half", {"x": X}, **{name: algorithm}).as_numpy("y"), X / 2 + 2)


def test_streams(triton_grpc) -> None:
    """Answers come in the order of their requests, and one that fails does not end the stream."""
    import tritonclient.grpc

    triton = Triton(tritonclient.grpc, triton_grpc)
    answers: queue.Queue[tuple[Any, Any]] = queue.Queue()
    triton_grpc.start_stream(lambda result, error: answers.put((result, error)))
    for i in range(100):
        model = "nope" if i == 7 else "half"
        triton_grpc.async_stream_infer(
            model, triton.tensors({"x": X + i}), request_id=str(i), enable_empty_final_response=i == 0
        )
    for i in range(100):
        result, error = answers.get(timeout=60)
        if i == 7:
            assert result is None
            assert "Servable not found for request: Latest(nope)" in error.message()
            continue
        assert error is None
        assert result.get_response().id == str(i)
        assert ("triton_final_response" in result.get_response().parameters) == (i == 0)
        np.testing.assert_array_equal(result.as_numpy("y"), (X + i) / 2 + 2)
    triton_grpc.stop_stream()


def test_an_open_stream_does_not_hold_up_a_stop(serve, testdata) -> None:
    import tritonclient.grpc

    server = serve(testdata / "saved_model_half_plus_two_cpu")
    with tritonclient.grpc.InferenceServerClient(f"127.0.0.1:{server.grpc_port}") as client:
        triton = Triton(tritonclient.grpc, client)
        answers: queue.Queue[tuple[Any, Any]] = queue.Queue()
        client.start_stream(lambda result, error: answers.put((result, error)))
        client.async_stream_infer("default", triton.tensors({"x": X}))
        assert answers.get(timeout=60)[1] is None
        assert server.stop(60)
        client.stop_stream()


# Refusals


def test_unknown_models_and_versions(triton: Triton) -> None:
    not_found = "NOT_FOUND" if triton.module.__name__.endswith("grpc") else "404"
    for model, version, reason in (
        ("nope", "", "Servable not found for request: Latest(nope)"),
        ("half", "7", "Servable not found for request: Specific(half, 7)"),
    ):
        for call in (
            lambda m=model, v=version: triton.infer(m, {"x": X}, model_version=v),
            lambda m=model, v=version: triton.client.get_model_metadata(m, v),
            lambda m=model, v=version: triton.client.get_model_config(m, v),
            lambda m=model, v=version: triton.client.get_inference_statistics(m, v),
        ):
            assert triton.refused(call) == (not_found, reason)
        assert not triton.client.is_model_ready(model, version)


def test_requests_that_do_not_fit_the_model(triton: Triton) -> None:
    invalid = "INVALID_ARGUMENT" if triton.module.__name__.endswith("grpc") else "400"
    unimplemented = "UNIMPLEMENTED" if triton.module.__name__.endswith("grpc") else "501"
    output = triton.module.InferRequestedOutput
    pair = np.ones((2, 2), np.float32)
    for model, inputs, options, status, reason in (
        (
            "half",
            {"x": X.astype(np.float64)},
            {},
            invalid,
            "input 'x' is FP64; signature 'serving_default' of model 'half' takes FP32",
        ),
        ("half", {"z": X}, {}, invalid, "Signature input alias: x"),
        ("echo", {"a": pair}, {}, invalid, "Missing but required: {b}"),
        ("half", {"x": X, "z": X}, {}, invalid, "Sent extra: {z}"),
        ("half", {"x": X}, {"outputs": [output("q")]}, invalid, "output tensor alias not found in signature: q"),
        ("half", {"x": X}, {"outputs": [output("y"), output("y")]}, invalid, "duplicate output tensor alias: y"),
        ("half", {"x": X}, {"outputs": [output("y", class_count=2)]}, unimplemented, "asked for as a classification"),
        ("half", {"x": X}, {"model_version": "gone"}, invalid, "Unrecognized servable version label: gone"),
        ("half", {"x": X}, {"model_version": str(2**63)}, invalid, "larger than any version can be"),
        ("half", {"x": X}, {"parameters": {"signature_name": 7}}, invalid, "parameter 'signature_name' is 7"),
        (
            "echo",
            {"x": np.float32([[1, np.nan]])},
            {"parameters": {"signature_name": "failing"}},
            invalid,
            "bad number",
        ),
    ):
        got, told = triton.refused(lambda m=model, i=inputs, o=options: triton.infer(m, i, **o))
        assert (got, reason in told) == (status, True), told


def test_an_unknown_signature(triton: Triton) -> None:
    status, told = triton.refused(lambda: triton.infer("half", {"x": X}, parameters={"signature_name": "nope"}))
    assert (status, told) == (
        "FAILED_PRECONDITION" if triton.module.__name__.endswith("grpc") else "400",
        'Serving signature key "nope" not found.',
    )


def test_loading_is_up_to_the_configuration(triton: Triton) -> None:
    for call in (triton.client.load_model, triton.client.unload_model):
        status, told = triton.refused(lambda c=call: c("half"))
        assert status in ("FAILED_PRECONDITION", "400")
        assert "which models are served is told by the configuration" in told
        assert "moxserve models reload" in told
    assert triton.client.is_model_ready("half")


def test_what_is_not_offered_says_so(triton_grpc) -> None:
    import tritonclient.grpc

    triton = Triton(tritonclient.grpc, triton_grpc)
    for call, reason in (
        (triton_grpc.get_system_shared_memory_status, "SystemSharedMemoryStatus: shared memory is not offered here"),
        (triton_grpc.get_trace_settings, "TraceSetting: traces are set up when the server starts"),
        (triton_grpc.get_log_settings, "LogSettings: the log is set up when the server starts"),
    ):
        status, told = triton.refused(call)
        assert (status, told.startswith(reason)) == ("UNIMPLEMENTED", True)


# Descriptions


def test_the_server(triton: Triton) -> None:
    from moxserve import __version__

    assert triton.client.is_server_live()
    assert triton.client.is_server_ready()
    told = triton.as_dict(triton.client.get_server_metadata())
    assert (told["name"], told["version"]) == ("moxserve", __version__)
    assert "binary_tensor_data" in told["extensions"]


def test_the_models(triton: Triton) -> None:
    assert triton.client.is_model_ready("half")
    assert triton.client.is_model_ready("half", "123")
    assert triton.client.is_model_ready("half", "stable")
    found = triton.as_dict(triton.client.get_model_metadata("half"))
    as_text = triton.module.__name__.endswith("grpc")  # int64 in protobuf's JSON
    dims = ["-1", "1"] if as_text else [-1, 1]
    assert found["versions"] == ["123", "124"]
    assert found["platform"] == "tensorflow_savedmodel"
    assert found["inputs"] == [{"name": "x", "datatype": "FP32", "shape": dims}]
    assert found["outputs"] == [{"name": "y", "datatype": "FP32", "shape": dims}]
    config = triton.as_dict(triton.client.get_model_config("half"))
    config = config.get("config", config)
    assert (config["name"], config["max_batch_size"]) == ("half", 0)
    assert [(t["name"], t["data_type"], t["dims"]) for t in config["input"]] == [("x", "TYPE_FP32", dims)]


def test_the_index(triton: Triton) -> None:
    index = triton.as_dict(triton.client.get_model_repository_index())
    models = index if isinstance(index, list) else index["models"]
    assert [(m["name"], m["version"], m["state"]) for m in models] == [
        ("half", "124", "READY"), ("half", "123", "READY"), ("three", "123", "READY"), ("echo", "1", "READY"),
    ]  # fmt: skip


def test_statistics(triton: Triton) -> None:
    def counts() -> dict[str, int]:
        (found,) = triton.as_dict(triton.client.get_inference_statistics("three", "123"))["model_stats"]
        stats = found["inference_stats"]
        assert int(stats["success"]["ns"]) >= int(stats["compute_infer"]["ns"]) >= 0
        return {"done": int(found["inference_count"]), "failed": int(stats["fail"]["count"])}

    before = counts()
    triton.infer("three", {"x": X})
    triton.infer("three", {"x": X})
    triton.refused(lambda: triton.infer("three", {"z": X}))
    assert counts() == {"done": before["done"] + 2, "failed": before["failed"] + 1}
    everything = triton.as_dict(triton.client.get_inference_statistics())["model_stats"]
    assert [(s["name"], s["version"]) for s in everything] == [
        ("half", "123"), ("half", "124"), ("three", "123"), ("echo", "1"),
    ]  # fmt: skip


def test_requests_are_counted(triton: Triton, server) -> None:
    ok, failed = (server.metrics.request_count.value(("half", status)) for status in ("OK", "INVALID_ARGUMENT"))
    triton.infer("half", {"x": X})
    triton.refused(lambda: triton.infer("half", {"z": X}))
    after = [server.metrics.request_count.value(("half", status)) for status in ("OK", "INVALID_ARGUMENT")]
    assert after == [ok + 1, failed + 1]


# Time


def test_a_caller_that_waits_too_short(triton: Triton, serve, save_linear, tmp_path, gates) -> None:
    server, gate = serve(save_linear(tmp_path / "linear" / "1").parent), gates()
    port = server.grpc_port if triton.module.__name__.endswith("grpc") else server.rest_port
    with triton.module.InferenceServerClient(f"127.0.0.1:{port}") as client:
        inputs = Triton(triton.module, client).tensors({"x": np.float32([gate.value])})
        status, _ = triton.refused(lambda: client.infer("default", inputs, timeout=300_000))
    assert status in ("DEADLINE_EXCEEDED", "504")
    gate.open()


def test_a_caller_over_http_that_has_left_is_seen(serve, save_linear, tmp_path, gates, wait_for) -> None:
    server, gate = serve(save_linear(tmp_path / "linear" / "1").parent), gates()
    body = b'{"inputs": [{"name": "x", "shape": [1], "datatype": "FP32", "data": [%f]}]}' % gate.value
    head = f"POST /v2/models/default/infer HTTP/1.1\r\nHost: a\r\nContent-Length: {len(body)}\r\n\r\n".encode()
    with socket.create_connection(("127.0.0.1", server.rest_port)) as connection:
        connection.sendall(head + body)
        wait_for(lambda: gate.began, "the request runs")
    count = server.metrics.request_count
    wait_for(lambda: count.value(("default", "CANCELLED")) > 0, "the server sees that a caller has left")
    gate.open()


def test_a_cancelled_call_is_dropped(serve, save_linear, tmp_path, gates, wait_for) -> None:
    import tritonclient.grpc

    server, gate = serve(save_linear(tmp_path / "linear" / "1").parent), gates()
    with tritonclient.grpc.InferenceServerClient(f"127.0.0.1:{server.grpc_port}") as client:
        inputs = Triton(tritonclient.grpc, client).tensors({"x": np.float32([gate.value])})
        errors: queue.Queue[Any] = queue.Queue()
        call = client.async_infer("default", inputs, lambda result, error: errors.put(error))
        wait_for(lambda: gate.began, "the request runs")
        call.cancel()
        assert "cancel" in str(errors.get(timeout=60)).lower()
        count = server.metrics.request_count
        wait_for(lambda: count.value(("default", "CANCELLED")) > 0, "the server sees that a caller has left")
    gate.open()
    assert count.value(("default", "OK")) == 0
