"""What TensorFlow Serving's own end-to-end test asks of its binary, asked of `moxserve serve` under that name.

The scenarios, flags and expectations are those of that test; `docs/compatibility.md` lists them. Clients are the
official stubs of tensorflow-serving-api and urllib. As there, a server is started once for each set of arguments and
lives until the end, and all of them are given the same UNIX socket.
"""

from __future__ import annotations

import json
import os
import shlex
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from moxserve.ports import free_port

grpc = pytest.importorskip("grpc")

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]

RPC_TIMEOUT_S = 60.0
READY_TRIES = 3000
CLASSIFY, REGRESS = "tensorflow/serving/classify", "tensorflow/serving/regress"

# Models that TensorFlow itself saves. In a process of their own: virtual CPUs must be set before TensorFlow is used,
# and these Keras models are what Keras 2 makes of them.
MAKE_MODELS = """
import sys
import tensorflow.compat.v1 as tf

tf.enable_eager_execution()
base = sys.argv[1]
cpus = [tf.config.LogicalDeviceConfiguration()] * 2
tf.config.set_logical_device_configuration(tf.config.list_physical_devices("CPU")[0], cpus)
spec = tf.TensorSpec(None, tf.float32, name="x")

product = tf.train.Checkpoint()
product.a, product.b = tf.Variable(3.0), tf.Variable(2.0)
product.f = tf.function(lambda x: {"y": product.a * product.b * x})
tf.saved_model.experimental.save(product, base + "/product/00000123", product.f.get_concrete_function(spec))

two = tf.train.Checkpoint()
two.f = tf.function(lambda x: {"y": 1.0}, input_signature=[spec])
two.g = tf.function(lambda x: {"y": 2.0}, input_signature=[spec])
signatures = {"serving_default": two.f, "custom_signature_key": two.g}
tf.saved_model.experimental.save(two, base + "/two_signatures/00000123", signatures=signatures)

layers = tf.keras.layers
plain = tf.keras.Sequential([layers.Input(dtype="float32", shape=(1,), name="x"), layers.Lambda(lambda x: x, name="y")])
tf.saved_model.save(plain, base + "/keras/00000123")

with tf.distribute.MirroredStrategy(devices=("/cpu:0", "/cpu:1")).scope():
    dense = layers.Dense(1, kernel_initializer="ones", bias_initializer="zeros")
    mirrored = tf.keras.Sequential(
        [layers.Input(dtype="float32", shape=(1,), name="x"), dense, layers.Lambda(lambda x: x, name="y")]
    )
tf.saved_model.save(mirrored, base + "/mirrored/00000123")
"""

CONFIG = 'model_config_list: {{ config: {{ name: "{name}", base_path: "{path}", model_platform: "tensorflow" }} }}\n'


@dataclass(frozen=True)
class Running:
    """A server, and where it is: `localhost:port`."""

    process: subprocess.Popen[bytes]
    grpc: str
    rest: str


class Binary:
    """An executable called tensorflow_model_server, started once for each set of arguments."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.socket = folder / "tf-serving.sock"
        self._path = folder / "tensorflow_model_server"
        command = f"{shlex.quote(sys.executable)} -m moxserve serve"
        self._path.write_text(f'#!/bin/sh\nexec {command} "$@"\n')
        self._path.chmod(0o755)
        self._running: dict[tuple[str, ...], Running] = {}

    def start(self, *flags: str, stderr: Any = None, ready: bool = True, cwd: Path | None = None) -> Running:
        """Start it with the flags that every scenario has and these; the same ones again give the same server."""
        if flags in self._running:
            return self._running[flags]
        port, rest_port = free_port(), free_port()
        command = f"{self._path} --port={port} --rest_api_port={rest_port} --rest_api_timeout_in_ms=60000"
        command += f" --grpc_socket_path={self.socket} {' '.join(flags)}"
        process = subprocess.Popen(shlex.split(command), stderr=stderr, cwd=cwd)
        server = self._running[flags] = Running(process, f"localhost:{port}", f"localhost:{rest_port}")
        if ready:
            wait_until_ready(server)
        return server

    def serve(self, base_path: Path, *flags: str) -> Running:
        return self.start("--model_name=default", f"--model_base_path={base_path}", *flags)

    def kill(self) -> None:
        for server in self._running.values():
            server.process.kill()
            server.process.wait(100)


def wait_until_ready(server: Running) -> None:
    """Ask for a model that is not there again and again, until the answer says that no such servable is there."""
    from tensorflow_serving.apis import predict_pb2

    for _ in range(READY_TRIES):
        time.sleep(0.1)
        assert server.process.poll() is None, "the server ended"
        request = predict_pb2.PredictRequest()
        request.model_spec.name = "intentionally_missing_model"
        try:
            prediction_stub(server.grpc).Predict(request, RPC_TIMEOUT_S)
        except grpc.RpcError as error:
            if "Servable" in error.details():
                return
    pytest.fail(f"not ready after {READY_TRIES} tries")


def prediction_stub(address: str) -> Any:
    from tensorflow_serving.apis import prediction_service_pb2_grpc

    return prediction_service_pb2_grpc.PredictionServiceStub(grpc.insecure_channel(address))


def model_stub(address: str) -> Any:
    from tensorflow_serving.apis import model_service_pb2_grpc

    return model_service_pb2_grpc.ModelServiceStub(grpc.insecure_channel(address))


def call_rest(url: str, body: Any = None) -> bytes:
    data = None if body is None else json.dumps(body).encode()
    with urllib.request.urlopen(urllib.request.Request(url, data=data), timeout=RPC_TIMEOUT_S) as answer:
        return bytes(answer.read())


def version_of(base_path: Path) -> int:
    (name,) = os.listdir(base_path)
    return int(name)


def check_spec(actual: Any, name: str, signature: str, version: int) -> None:
    assert (actual.name, actual.signature_name, actual.version.value) == (name, signature, version)


def check_predict(
    address: str,
    expected: float,
    version: int,
    *,
    model: str = "default",
    signature: str = "serving_default",
    only_y: bool = True,
    batch: bool = False,
) -> None:
    """Ask for x = 2 in shape [1], or [1, 1] for a batch; the models declare [None, 1], which shape [1] is not."""
    from tensorflow.core.framework import types_pb2
    from tensorflow_serving.apis import predict_pb2

    request = predict_pb2.PredictRequest()
    request.model_spec.name = model
    request.model_spec.signature_name = signature
    request.inputs["x"].dtype = types_pb2.DT_FLOAT
    request.inputs["x"].float_val.append(2.0)
    for _ in range(1 + batch):
        request.inputs["x"].tensor_shape.dim.add().size = 1
    if only_y:
        request.output_filter.append("y")

    result = prediction_stub(address).Predict(request, RPC_TIMEOUT_S)

    assert result.outputs["y"].dtype == types_pb2.DT_FLOAT
    assert list(result.outputs["y"].float_val) == [expected]
    check_spec(result.model_spec, model, signature, version)


def eventually(check: Callable[[], None], within_s: float = 200.0) -> None:
    """Repeat a check until no RPC of it fails."""
    deadline = time.monotonic() + within_s
    while True:
        try:
            return check()
        except grpc.RpcError:
            if time.monotonic() > deadline:
                raise
            time.sleep(0.1)


@pytest.fixture(scope="module")
def binary(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Binary]:
    binary = Binary(tmp_path_factory.mktemp("model_servers"))
    yield binary
    binary.kill()


@pytest.fixture(scope="module")
def testdata(shared_dir: Path) -> Path:
    pytest.importorskip("tensorflow_serving.apis")
    return shared_dir / "testdata" / "tfserving"


@pytest.fixture(scope="module")
def half(testdata: Path) -> Path:
    return testdata / "saved_model_half_plus_two_cpu"


@pytest.fixture(scope="module")
def half_tf2(testdata: Path) -> Path:
    return testdata / "saved_model_half_plus_two_tf2_cpu"


@pytest.fixture(scope="module")
def half_plus_three(testdata: Path) -> Path:
    return testdata / "saved_model_half_plus_three"


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder of models that TensorFlow saves on the spot."""
    folder = tmp_path_factory.mktemp("made")
    environment = {**os.environ, "TF_USE_LEGACY_KERAS": "1"}
    subprocess.run([sys.executable, "-c", MAKE_MODELS, str(folder)], check=True, timeout=500, env=environment)
    return folder


def test_get_model_status(binary, half) -> None:
    from tensorflow_serving.apis import get_model_status_pb2

    request = get_model_status_pb2.GetModelStatusRequest()
    request.model_spec.name = "default"
    (status,) = model_stub(binary.serve(half).grpc).GetModelStatus(request, RPC_TIMEOUT_S).model_version_status
    assert (status.version, status.status.error_code) == (123, 0)


def test_get_model_metadata(binary, half) -> None:
    from tensorflow_serving.apis import get_model_metadata_pb2

    request = get_model_metadata_pb2.GetModelMetadataRequest()
    request.model_spec.name = "default"
    request.metadata_field.append("signature_def")
    result = prediction_stub(binary.serve(half).grpc).GetModelMetadata(request, RPC_TIMEOUT_S)
    check_spec(result.model_spec, "default", "", version_of(half))
    assert list(result.metadata) == ["signature_def"]


@pytest.mark.parametrize("model", ["half", "half_tf2"])
def test_classify(binary, model, request) -> None:
    from tensorflow_serving.apis import classification_pb2

    base_path = request.getfixturevalue(model)
    question = classification_pb2.ClassificationRequest()
    question.model_spec.name = "default"
    question.model_spec.signature_name = "classify_x_to_y"
    add_example(question)
    answer = prediction_stub(binary.serve(base_path).grpc).Classify(question, RPC_TIMEOUT_S)
    (classification,) = answer.result.classifications
    assert [c.score for c in classification.classes] == [3.0]
    check_spec(answer.model_spec, "default", "classify_x_to_y", version_of(base_path))


@pytest.mark.parametrize("model", ["half", "half_tf2"])
def test_regress(binary, model, request) -> None:
    from tensorflow_serving.apis import regression_pb2

    base_path = request.getfixturevalue(model)
    question = regression_pb2.RegressionRequest()
    question.model_spec.name = "default"
    question.model_spec.signature_name = "regress_x_to_y"
    add_example(question)
    answer = prediction_stub(binary.serve(base_path).grpc).Regress(question, RPC_TIMEOUT_S)
    assert [r.value for r in answer.result.regressions] == [3.0]
    check_spec(answer.model_spec, "default", "regress_x_to_y", version_of(base_path))


@pytest.mark.parametrize("model", ["half", "half_tf2"])
def test_multi_inference(binary, model, request) -> None:
    from tensorflow_serving.apis import inference_pb2

    base_path = request.getfixturevalue(model)
    question = inference_pb2.MultiInferenceRequest()
    for signature, method in (("regress_x_to_y", REGRESS), ("classify_x_to_y", CLASSIFY)):
        task = question.tasks.add(method_name=method)
        task.model_spec.name, task.model_spec.signature_name = "default", signature
    add_example(question)
    regressed, classified = (
        prediction_stub(binary.serve(base_path).grpc).MultiInference(question, RPC_TIMEOUT_S).results
    )
    assert regressed.regression_result.regressions[0].value == 3.0
    assert classified.classification_result.classifications[0].classes[0].score == 3.0
    check_spec(regressed.model_spec, "default", "regress_x_to_y", version_of(base_path))
    check_spec(classified.model_spec, "default", "classify_x_to_y", version_of(base_path))


def add_example(request: Any) -> None:
    request.input.example_list.examples.add().features.feature["x"].float_list.value.append(2.0)


@pytest.mark.parametrize("batching", [False, True], ids=["direct", "batching"])
def test_predict(binary, half, testdata, batching) -> None:
    flags = ("--enable_batching", f"--batching_parameters_file={testdata / 'batching_config.txt'}") if batching else ()
    server = binary.serve(half, *flags)
    check_predict(server.grpc, 3.0, version_of(half))
    check_predict(server.grpc, 3.0, version_of(half), only_y=False)


@pytest.fixture(scope="module")
def with_arguments(binary, half, testdata) -> Running:
    """A server with a page of metrics and gRPC's own arguments; an earlier one was given the same UNIX socket."""
    binary.serve(half)
    arguments = "--grpc_channel_arguments=grpc.max_connection_age_ms=2000,grpc.lb_policy_name=grpclb"
    return binary.serve(half, arguments, f"--monitoring_config_file={testdata / 'monitoring_config.txt'}")


def test_predict_over_a_unix_socket_that_several_servers_were_given(binary, half, with_arguments) -> None:
    # The one that started last has it: neither an earlier one nor nobody.
    check_predict(f"unix:{binary.socket}", 3.0, version_of(half), only_y=False)


def test_grpc_channel_arguments(half, with_arguments) -> None:
    check_predict(with_arguments.grpc, 3.0, version_of(half), only_y=False)


def test_a_page_for_prometheus(with_arguments) -> None:
    assert "# TYPE" in call_rest(f"http://{with_arguments.rest}/monitoring/prometheus/metrics").decode()


def test_a_good_model_config(binary, half, half_plus_three, testdata) -> None:
    text = (testdata / "good_model_config.txt").read_text()
    text = text.replace("${TEST_HALF_PLUS_TWO_DIR}", str(half))
    config = binary.folder / "good_model_config.conf"
    config.write_text(text.replace("${TEST_HALF_PLUS_THREE_DIR}", str(half_plus_three)))
    server = binary.start(f"--model_config_file={config}")
    for model, expected in (("half_plus_two", 3.0), ("half_plus_three", 4.0)):
        for only_y in (True, False):
            check_predict(server.grpc, expected, 123, model=model, only_y=only_y)


def test_a_bad_model_config(binary, testdata) -> None:
    config = testdata / "bad_model_config.txt"
    server = binary.start(f"--model_config_file={config}", stderr=subprocess.PIPE, ready=False)
    # Reading to the end: the server must end by itself.
    assert (
        b"Error parsing text-format tensorflow.serving.ModelServerConfig" in server.process.communicate(timeout=300)[1]
    )
    assert server.process.returncode != 0


@pytest.mark.parametrize("poll_s", [1, 0])
def test_the_model_config_is_read_again(binary, half, half_plus_three, poll_s) -> None:
    config = binary.folder / f"model_config_{poll_s}.txt"
    config.write_text(CONFIG.format(name="half_plus_two", path=half))
    server = binary.start(f"--model_config_file={config}", f"--model_config_file_poll_wait_seconds={poll_s}")
    check_predict(server.grpc, 3.0, 123, model="half_plus_two", only_y=False)

    # In place, not by renaming: that is how the original's test does it.
    config.write_text(CONFIG.format(name="half_plus_three", path=half_plus_three))

    if poll_s:
        eventually(lambda: check_predict(server.grpc, 4.0, 123, model="half_plus_three", only_y=False))
    else:
        time.sleep(1)
        check_predict(server.grpc, 3.0, 123, model="half_plus_two", only_y=False)


@pytest.mark.parametrize(
    ("verb", "question", "answer"),
    [
        (":classify", {"signature_name": "classify_x_to_y", "examples": [{"x": 2.0}]}, {"results": [[["", 3.0]]]}),
        (":regress", {"signature_name": "regress_x_to_y", "examples": [{"x": 2.0}]}, {"results": [3.0]}),
        (":predict", {"instances": [2.0, 3.0, 4.0]}, {"predictions": [3.0, 3.5, 4.0]}),
        (":predict", {"inputs": [2.0, 3.0, 4.0]}, {"outputs": [3.0, 3.5, 4.0]}),
    ],
    ids=["classify", "regress", "predict", "columnar"],
)
def test_inference_over_rest(binary, half, verb, question, answer) -> None:
    url = f"http://{binary.serve(half).rest}/v1/models/default{verb}"
    assert json.loads(call_rest(url, question)) == answer


def test_status_over_rest(binary, half) -> None:
    status = {"version": "123", "state": "AVAILABLE", "status": {"error_code": "OK", "error_message": ""}}
    answer = call_rest(f"http://{binary.serve(half).rest}/v1/models/default")
    assert json.loads(answer) == {"model_version_status": [status]}


def test_metadata_over_rest(binary, half, testdata) -> None:
    answer = call_rest(f"http://{binary.serve(half).rest}/v1/models/default/metadata")
    assert json.loads(answer) == json.loads((testdata / "half_plus_two_model_metadata.json").read_text())


@pytest.mark.parametrize("name", ["saved_model_half_plus_two_tflite", "saved_model_half_plus_two_tflite_with_sigdef"])
def test_tflite(binary, testdata, name) -> None:
    server = binary.serve(testdata / name, "--prefer_tflite_model=true")
    check_predict(server.grpc, 3.0, version_of(testdata / name), only_y=False)


def test_a_function_that_tensorflow_saved(binary, made) -> None:
    check_predict(binary.serve(made / "product").grpc, 12.0, 123, only_y=False)


def test_two_signatures_that_tensorflow_saved(binary, made) -> None:
    server = binary.serve(made / "two_signatures")
    check_predict(server.grpc, 2.0, 123, signature="custom_signature_key")
    check_predict(server.grpc, 1.0, 123)


@pytest.mark.parametrize("name", ["keras", "mirrored"])
def test_a_keras_model(binary, made, name) -> None:
    check_predict(binary.serve(made / name).grpc, 2.0, 123, batch=True, only_y=False)


def test_the_profiler(binary, half, tmp_path) -> None:
    from tensorflow.python.profiler import profiler_client

    server = binary.serve(half)
    url = f"http://{server.rest}/v1/models/default:predict"
    curl = f"curl -s -d '{json.dumps({'instances': [2.0, 3.0, 4.0]})}' {url}"
    traced = tmp_path / "traced"
    # To the end of the trace: a client that finds no request in it gives up after some tries.
    asking = f"while [ ! -e {traced} ]; do {curl} || exit; sleep 0.2; done"
    with subprocess.Popen(["sh", "-c", asking], stdout=subprocess.PIPE) as requests:
        try:
            profiler_client.trace(server.grpc, str(tmp_path), 1000, "", 10)
        finally:
            traced.touch()
        assert b"predictions" in requests.communicate(timeout=200)[0]
    assert list(tmp_path.rglob("*.xplane.pb"))


# What that test relies on without asserting it: how scripts start and stop the binary.


def test_a_configuration_at_a_relative_path_and_a_base_path_with_a_slash(binary, half) -> None:
    (binary.folder / "relative.txt").write_text(CONFIG.format(name="half_plus_two", path=f"{half}/"))
    server = binary.start("--model_config_file=relative.txt", cwd=binary.folder)
    check_predict(server.grpc, 3.0, 123, model="half_plus_two")


def test_old_flags_do_not_stop_it_and_terminate_does(binary, half, tmp_path) -> None:
    out, err = tmp_path / "out", tmp_path / "err"
    port = free_port()
    with out.open("wb") as stdout, err.open("wb") as stderr:
        process = subprocess.Popen(
            [binary.folder / "tensorflow_model_server", f"--port={port}", "--model_name=default",
             f"--model_base_path={half}", "--use_saved_model=true", "--enable_batching=false"],
            stdout=stdout, stderr=stderr,
        )  # fmt: skip
    server = Running(process, f"localhost:{port}", "")
    wait_until_ready(server)
    check_predict(server.grpc, 3.0, 123)
    process.terminate()
    assert process.wait(200) == 0
    assert "use_saved_model" in err.read_text()
    assert f"Running gRPC ModelServer at 0.0.0.0:{port} ..." in err.read_text()
    assert out.read_text() == ""
