"""Models in every format behind a real server, asked with the official stubs, with raw HTTP and with our client."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pytest

from moxserve.client import Client
from moxserve.errors import RequestError, UnknownError
from moxserve.export.manifest import Variant
from moxserve.serving.backends import LoadOptions, TfliteOptions
from moxserve.serving.main import Server
from moxserve.serving.reload import ReloadOptions

Make = Callable[..., Path]
Serve = Callable[..., Server]

X = np.float32([[1, 2, 3, 4], [-1, 0.5, 0, 2]])


@pytest.fixture
def predict() -> Iterator[Callable[..., dict[str, np.ndarray]]]:
    """`predict(server, {"x": array}, signature="")` with tensorflow-serving-api's stub."""
    import tensorflow as tf
    from tensorflow_serving.apis import predict_pb2, prediction_service_pb2_grpc

    channels = []

    def run(server: Server, inputs: dict[str, Any], signature: str = "", model: str = "default") -> Any:
        channel = grpc.insecure_channel(f"127.0.0.1:{server.grpc_port}")
        channels.append(channel)
        request = predict_pb2.PredictRequest()
        request.model_spec.name, request.model_spec.signature_name = model, signature
        for alias, value in inputs.items():
            request.inputs[alias].CopyFrom(tf.make_tensor_proto(value))
        answer = prediction_service_pb2_grpc.PredictionServiceStub(channel).Predict(request, timeout=60)
        return {alias: tf.make_ndarray(proto) for alias, proto in answer.outputs.items()}

    yield run
    for channel in channels:
        channel.close()


def rest(server: Server, path: str, body: Any = None) -> Any:
    data = None if body is None else json.dumps(body).encode()
    with urllib.request.urlopen(f"http://127.0.0.1:{server.rest_port}{path}", data, timeout=60) as answer:
        return json.load(answer)


@pytest.mark.parametrize("name", ["tensorflow", "onnx", "openvino", "tflite"])
def test_every_format_answers_the_same(
    name: str, version: Make, forms: Any, serve: Serve, predict: Any, options: Any
) -> None:
    path = version(variants={"o": forms.onnx, "v": forms.xml, "t": forms.tflite})
    server = serve(path.parent, load=LoadOptions(backend=name))
    outputs = predict(server, {"x": X})
    np.testing.assert_allclose(outputs["scores"], forms.scores(X), rtol=1e-5)
    assert (outputs["scores"].dtype, outputs["best"].dtype) == (np.float32, np.int64)
    assert outputs["best"].tolist() == forms.scores(X).argmax(1).tolist()
    with pytest.raises(grpc.RpcError) as caught:
        predict(server, {"x": X.astype(np.float64)})
    assert caught.value.code() is grpc.StatusCode.INVALID_ARGUMENT
    assert caught.value.details() == "Expects arg[0] to be float but double is provided (input 'x')"
    answer = rest(server, "/v1/models/default:predict", {"instances": X.tolist()})
    np.testing.assert_allclose([row["scores"] for row in answer["predictions"]], forms.scores(X), rtol=1e-5)
    metadata = rest(server, "/v1/models/default/metadata")["metadata"]["signature_def"]["signature_def"]
    assert set(metadata) == {"serving_default", "just_scores", "twice", "text"}
    assert metadata["serving_default"]["outputs"]["best"]["dtype"] == "DT_INT64"


def test_the_test_models_of_tflite(testdata: Path, serve: Serve, predict: Any) -> None:
    for name in ("saved_model_half_plus_two_tflite", "saved_model_half_plus_two_tflite_with_sigdef"):
        server = serve(testdata / name, load=LoadOptions(prefer_tflite=True, tflite=TfliteOptions(2, 2)))
        for x in (np.float32([[1]]), np.float32([[1], [2], [5]]), np.float32([1, 2]), np.float32(4)):
            np.testing.assert_array_equal(predict(server, {"x": x})["y"], x / 2 + 2)
        answer = rest(server, "/v1/models/default:predict", {"instances": [1.0, 2.0, 5.0]})
        assert answer == {"predictions": [2.5, 3.0, 4.5]}
        metadata = rest(server, "/v1/models/default/metadata")["metadata"]["signature_def"]["signature_def"]
        assert set(metadata["serving_default"]["inputs"]) == {"x"}
        assert metadata["serving_default"]["method_name"] == "tensorflow/serving/predict"


def test_a_savedmodel_is_served_as_usual_when_tflite_is_preferred(
    testdata: Path, serve: Serve, predict: Any
) -> None:  # fmt: skip
    server = serve(testdata / "saved_model_half_plus_two_cpu", load=LoadOptions(prefer_tflite=True))
    assert predict(server, {"x": np.float32([[2]])})["y"].tolist() == [[3.0]]


def test_platforms_of_a_configuration(
    version: Make, forms: Any, tmp_path: Path, serve: Serve, predict: Any, testdata: Path, wait_for: Any
) -> None:
    path = version(variants={"o": forms.onnx, "v": forms.xml})
    config = tmp_path / "models.txt"
    entries = [
        f'config {{ name: "{name}" base_path: "{base}" model_platform: "{platform}" }}'
        for name, base, platform in (
            ("o", path.parent, "onnxruntime"),
            ("v", path.parent, "openvino"),
            ("t", testdata / "saved_model_half_plus_two_tflite", "tflite"),
            ("s", testdata / "saved_model_half_plus_two_cpu", "tensorflow"),
        )
    ]
    config.write_text(f"model_config_list {{ {' '.join(entries)} }}")
    server = serve("", config=ReloadOptions(file=str(config)))
    for name in ("o", "v"):
        np.testing.assert_allclose(predict(server, {"x": X}, model=name)["scores"], forms.scores(X), rtol=1e-5)
        with pytest.raises(grpc.RpcError) as caught:
            predict(server, {"text": np.array([b"a"])}, "text", name)
        assert caught.value.details() == 'Serving signature key "text" not found.'
    assert predict(server, {"x": np.float32([[2]])}, model="t")["y"].tolist() == [[3.0]]
    assert predict(server, {"x": np.float32([[2]])}, model="s")["y"].tolist() == [[3.0]]


def test_one_model_held_to_a_runtime(version: Make, forms: Any, serve: Serve, predict: Any, testdata: Path) -> None:
    path = version(variants={"o": forms.onnx})
    server = serve(
        path.parent,
        more_models={"half": str(testdata / "saved_model_half_plus_two_cpu")},
        backends={"default": "onnx"},
        load=LoadOptions(backend="tensorflow"),
    )
    assert predict(server, {"x": np.float32([[2]])}, model="half")["y"].tolist() == [[3.0]]
    with pytest.raises(grpc.RpcError, match='Serving signature key "text" not found'):
        predict(server, {"text": np.array([b"a"])}, "text")


def test_a_backend_that_a_version_does_not_have(testdata: Path, options: Any) -> None:
    server = Server(options(testdata / "saved_model_half_plus_two_cpu", load=LoadOptions(backend="onnx")))
    with pytest.raises(UnknownError, match=r"NOT_FOUND: .* holds nothing that onnx could serve; it holds a SavedModel"):
        server.start()


def test_a_new_version_of_another_format_takes_over(
    version: Make, forms: Any, serve: Serve, predict: Any, wait_for: Any, declare: Callable[..., None]
) -> None:
    path = version(1, saved_model=False, top=forms.onnx)
    server = serve(path.parent)
    assert set(predict(server, {"x:0": X})) == {"best:0", "scores:0"}
    half = version(2, saved_model=False, top=forms.onnx)
    variant = Variant(name="onnx", format="onnx", path="model.onnx")
    declare(half, variant)
    whole = (half / "model.onnx").read_bytes()
    (half / "model.onnx").write_bytes(whole[: len(whole) // 2])
    shutil.copytree(forms.saved, path.parent / ".3", dirs_exist_ok=True)
    (path.parent / ".3").rename(path.parent / "3")
    wait_for(lambda: [s.version for s in server._manager.statuses("default") if s.state.name == "AVAILABLE"] == [3],
             "version 3 to serve alone")  # fmt: skip
    assert predict(server, {"x": X})["best"].tolist() == forms.scores(X).argmax(1).tolist()
    # Half a file is no version, though it lies beside others and is older than the newest.
    assert 2 not in {status.version for status in server._manager.statuses("default")}
    (half / "model.onnx").write_bytes(whole)
    shutil.rmtree(path.parent / "3")
    wait_for(lambda: server._manager.available("default") == {2}, "version 2 to serve")
    assert set(predict(server, {"x:0": X})) == {"best:0", "scores:0"}


def test_warmup_loads_what_the_variant_does_not_serve(
    version: Make, forms: Any, serve: Serve, monkeypatch: pytest.MonkeyPatch
) -> None:
    from moxserve.protocol import messages
    from moxserve.protocol.tensors import to_proto
    from moxserve.protocol.tfrecord import write_records
    from moxserve.serving.backends import choose, loading

    monkeypatch.setattr(choose, "runs_per_second", lambda backend, *_: 1.0 if backend.variant == "saved_model" else 9.0)
    seen: list[str] = []
    load = loading._load_saved_model
    monkeypatch.setattr(loading, "_load_saved_model", lambda *a: seen.append("saved_model") or load(*a))
    path = version(variants={"o": forms.onnx})
    serve(path.parent).stop()
    seen.clear()
    serve(path.parent)
    assert seen == []
    log = messages.PredictionLog()
    log.predict_log.request.model_spec.signature_name = "text"
    log.predict_log.request.inputs["text"].CopyFrom(to_proto(np.array([b"a"], object)))
    (path / "assets.extra").mkdir()
    write_records(path / "assets.extra" / "tf_serving_warmup_requests", [log.SerializeToString()])
    serve(path.parent).stop()
    seen.clear()
    server = serve(path.parent)
    assert seen == ["saved_model"]
    with Client(f"127.0.0.1:{server.grpc_port}") as client:
        assert client.predict("default", {"text": [b"q"]}, signature="text")["upper"].tolist() == [b"Q"]
    assert seen == ["saved_model"]


def test_the_local_transport(version: Make, forms: Any, tmp_path: Path) -> None:
    path = version(7, saved_model=False, top=forms.onnx)
    (tmp_path / "cache").mkdir()
    for place in (path, path.parent, path.parent.parent):
        with Client(f"local:{place}") as client:
            np.testing.assert_allclose(client.predict("model", {"x:0": X})["scores:0"], forms.scores(X), rtol=1e-5)
            assert client.metadata("model").version == 7
    with (
        Client(f"local:{tmp_path / 'cache'}") as client,
        pytest.raises(RequestError, match=r"expected saved_model\.pb"),
    ):
        client.predict("model", {"x": X})


SERVE = """
import sys
from moxserve.cli.main import main
told = sys.argv[1]
sys.argv = ["moxserve", "serve", *sys.argv[2:]]
try:
    main()
finally:
    heavy = [m for m in ("tensorflow", "onnxruntime", "openvino") if m in sys.modules]
    with open(told, "w") as f:
        f.write(" ".join(heavy))
"""


@pytest.mark.slow
@pytest.mark.parametrize("name", ["onnx", "openvino"])
def test_a_server_of_these_formats_never_loads_tensorflow(
    name: str, version: Make, forms: Any, free_port: int, wait_for: Any
) -> None:
    path = version(saved_model=False, top={"onnx": forms.onnx, "openvino": forms.xml}[name])
    told = path.parent.parent / "told"
    command = [
        sys.executable, "-c", SERVE, str(told), f"--model_base_path={path.parent}", "--host=127.0.0.1",
        f"--port={free_port}",
    ]  # fmt: skip
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
    try:
        with Client(f"127.0.0.1:{free_port}") as client:
            client.wait_ready("default", 240)
            (alias,) = client.metadata("default").signatures["serving_default"].inputs
            outputs = client.predict("default", {alias: X})
        assert any(np.allclose(v, forms.scores(X), rtol=1e-5) for v in outputs.values() if v.shape == (2, 3))
    finally:
        process.terminate()
        log = process.communicate(timeout=60)[1]
    assert process.returncode == 0, log
    assert told.read_text() == {"onnx": "onnxruntime", "openvino": "openvino"}[name]
