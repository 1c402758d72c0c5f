"""Classify, regress and multi-inference, through official gRPC stubs and through raw HTTP."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import grpc
import httpx2
import numpy as np
import pytest

from moxserve.serving.main import Server

CLASSIFY = "tensorflow/serving/classify"
REGRESS = "tensorflow/serving/regress"
PREDICT = "tensorflow/serving/predict"
INVALID = "INVALID_ARGUMENT"

Rows = Sequence[dict[str, Any]]


def fill_input(message: Any, rows: Rows, context: dict[str, Any] | None = None) -> None:
    """Fill an Input message of any pool."""
    from moxserve.protocol.examples import make_example

    listed = message.example_list if context is None else message.example_list_with_context
    for row in rows:
        listed.examples.add().ParseFromString(make_example(row).SerializeToString())
    if context is not None:
        listed.context.ParseFromString(make_example(context).SerializeToString())


class Grpc:
    """The tensorflow-serving-api package as a client."""

    name = "grpc"

    def __init__(self, server: Server) -> None:
        from tensorflow_serving.apis import prediction_service_pb2_grpc

        self._channel = grpc.insecure_channel(f"127.0.0.1:{server.grpc_port}")
        self.stub = prediction_service_pb2_grpc.PredictionServiceStub(self._channel)

    def _request(self, kind: str, rows: Rows, signature: str, model: str, version: int | None, context: Any) -> Any:
        from tensorflow_serving.apis import classification_pb2, regression_pb2

        request = (
            classification_pb2.ClassificationRequest() if kind == "classify" else regression_pb2.RegressionRequest()
        )
        request.model_spec.name = model
        request.model_spec.signature_name = signature
        if version is not None:
            request.model_spec.version.value = version
        fill_input(request.input, rows, context)
        return request

    def ask(
        self, kind: str, rows: Rows, signature: str = "", *, model: str = "default", version: int | None = None,
        context: Any = None,
    ) -> tuple[str, Any]:  # fmt: skip
        """Return `OK` and the results as REST writes them, or the name of the status and its text."""
        request = self._request(kind, rows, signature, model, version, context)
        method = self.stub.Classify if kind == "classify" else self.stub.Regress
        try:
            response = method(request, timeout=60)
        except grpc.RpcError as error:
            return error.code().name, error.details()
        if kind == "regress":
            return "OK", [r.value for r in response.result.regressions]
        return "OK", [[[c.label, c.score] for c in row.classes] for row in response.result.classifications]

    def close(self) -> None:
        self._channel.close()


class Rest:
    """Plain HTTP."""

    name = "rest"

    def __init__(self, server: Server) -> None:
        self.http = httpx2.Client(base_url=f"http://127.0.0.1:{server.rest_port}", timeout=60)

    def ask(
        self, kind: str, rows: Rows, signature: str = "", *, model: str = "default", version: int | None = None,
        context: Any = None,
    ) -> tuple[str, Any]:  # fmt: skip
        body: dict[str, Any] = {"examples": list(rows)}
        if signature:
            body["signature_name"] = signature
        if context is not None:
            body["context"] = context
        which = "" if version is None else f"/versions/{version}"
        reply = self.http.post(f"/v1/models/{model}{which}:{kind}", json=body)
        assert reply.headers["content-type"] == "application/json"
        answer = reply.json()
        if reply.status_code == 200:
            return "OK", answer["results"]
        return {400: INVALID, 404: "NOT_FOUND"}[reply.status_code], answer["error"]

    def close(self) -> None:
        self.http.close()


@pytest.fixture(scope="module")
def half(testdata: Path, options: Callable[..., Any]) -> Iterator[Server]:
    with Server(options(testdata / "saved_model_half_plus_two_cpu")) as server:
        yield server


def classify_signatures(tf: Any, examples: Any, x: Any) -> dict[str, Any]:
    """Signatures of every shape that a classify may meet: name -> outputs."""
    ones = tf.ones_like(x)
    labels = tf.tile([["low", "high"]], [tf.shape(x)[0], 1])
    scores = tf.concat([1.0 - x, x], 1)
    return {
        "both": {"classes": labels, "scores": scores},
        "labels": {"classes": labels},
        "three": {"classes": labels, "scores": scores, "more": ones},
        "named_otherwise": {"probabilities": scores},
        "flat": {"scores": x[:, 0]},
        "doubles": {"scores": tf.cast(scores, tf.float64)},
        "numbers": {"classes": tf.cast(scores, tf.int64), "scores": scores},
        "fewer": {"scores": scores[1:]},
        "fewer_labels": {"classes": labels[1:]},
        "uneven": {"classes": labels, "scores": x},
        "values": {"outputs": x[:, 0]},
        "column": {"outputs": x},
        "wide": {"outputs": scores},
        "whole": {"outputs": tf.cast(x, tf.int32)},
        "short": {"outputs": x[1:]},
        "strings": {"outputs": examples},
    }


@pytest.fixture(scope="module")
def shapes(tmp_path_factory: pytest.TempPathFactory, options: Callable[..., Any]) -> Iterator[Server]:
    """A model whose signatures all say that they are of predict, as those of TF2 do."""
    import tensorflow as tf

    tf1 = tf.compat.v1
    base = tmp_path_factory.mktemp("shapes")
    with tf.Graph().as_default(), tf1.Session() as session:
        examples = tf1.placeholder(tf.string, [None], "examples")
        x = tf.io.parse_example(examples, {"x": tf.io.FixedLenFeature([1], tf.float32)})["x"]
        other = tf1.placeholder(tf.float32, [None], "other")
        define = tf1.saved_model.predict_signature_def
        outputs = classify_signatures(tf, examples, x)
        signatures = {name: define({"inputs": examples}, found) for name, found in outputs.items()}
        signatures["two_inputs"] = define({"inputs": examples, "other": other}, {"scores": x})
        signatures["input_named_otherwise"] = define({"examples": examples}, {"scores": x})
        signatures["serving_default"] = signatures["both"]
        builder = tf1.saved_model.Builder(str(base / "1"))
        builder.add_meta_graph_and_variables(session, ["serve"], signatures)
        builder.save()
    with Server(options(base)) as server:
        yield server


@pytest.fixture(params=[Grpc, Rest], ids=lambda t: t.name)
def half_client(request: pytest.FixtureRequest, half: Server) -> Iterator[Any]:
    client = request.param(half)
    yield client
    client.close()


@pytest.fixture(params=[Grpc, Rest], ids=lambda t: t.name)
def shapes_client(request: pytest.FixtureRequest, shapes: Server) -> Iterator[Any]:
    client = request.param(shapes)
    yield client
    client.close()


# Answers


def test_classify(half_client) -> None:
    answer = half_client.ask("classify", [{"x": 2.0}, {"x": [10.0]}], "classify_x_to_y")
    assert answer == ("OK", [[["", 3.0]], [["", 7.0]]])


def test_regress(half_client) -> None:
    for signature, offset in (("regress_x_to_y", 2), ("regress_x_to_y2", 3)):
        answer = half_client.ask("regress", [{"x": 2.0}, {"x": 10.0}], signature, version=123)
        assert answer == ("OK", [1.0 + offset, 5.0 + offset])


def test_a_context_fills_in_what_an_example_lacks(half_client) -> None:
    answer = half_client.ask("regress", [{}, {"x": 10.0}], "regress_x_to_y", context={"x": 2.0})
    assert answer == ("OK", [3.0, 7.0])


def test_labels_and_scores(shapes_client) -> None:
    both = [[["low", 0.75], ["high", 0.25]], [["low", 0.5], ["high", 0.5]]]
    rows = [{"x": 0.25}, {"x": 0.5}]
    assert shapes_client.ask("classify", rows) == ("OK", both)
    assert shapes_client.ask("classify", rows, "both") == ("OK", both)
    assert shapes_client.ask("classify", rows, "labels") == ("OK", [[["low", 0.0], ["high", 0.0]]] * 2)


@pytest.mark.parametrize("signature", ["values", "column"])
def test_a_value_an_example(shapes_client, signature) -> None:
    assert shapes_client.ask("regress", [{"x": 0.25}, {"x": 0.5}], signature) == ("OK", [0.25, 0.5])


def test_half_plus_two_of_tf2(testdata, serve) -> None:
    server = serve(testdata / "saved_model_half_plus_two_tf2_cpu")
    for client in (Grpc(server), Rest(server)):
        assert client.ask("regress", [{"x": 4.0}], "regress_x_to_y") == ("OK", [4.0])
        assert client.ask("classify", [{"x": 4.0}], "classify_x_to_y") == ("OK", [[["", 4.0]]])
        client.close()


def test_the_spec_of_an_answer(half) -> None:
    client = Grpc(half)
    for kind, signature in (("classify", "classify_x_to_y"), ("regress", "regress_x_to_y")):
        request = client._request(kind, [{"x": 1.0}], signature, "default", None, None)
        response = (client.stub.Classify if kind == "classify" else client.stub.Regress)(request, timeout=60)
        spec = response.model_spec
        assert (spec.name, spec.version.value, spec.signature_name) == ("default", 123, signature)
        assert spec.WhichOneof("version_choice") == "version"
    client.close()


# Refusals


@pytest.mark.parametrize("kind", ["classify", "regress"])
def test_a_model_that_is_not_there(half_client, kind) -> None:
    rows = [{"x": 1.0}]
    assert half_client.ask(kind, rows, model="nope") == (
        "NOT_FOUND", "Servable not found for request: Latest(nope)",
    )  # fmt: skip
    assert half_client.ask(kind, rows, version=7) == (
        "NOT_FOUND", "Servable not found for request: Specific(default, 7)",
    )  # fmt: skip
    assert half_client.ask(kind, rows, "zz") == (INVALID, "No signature was found with the name: zz")


SIGNATURES = [
    ("classify", "two_inputs", "Expected one input Tensor."),
    ("regress", "two_inputs", "Expected one input Tensor."),
    ("classify", "three", "Expected one or two output Tensors, found 3"),
    ("regress", "both", "Expected one output Tensor."),
]
NAMES = [
    ("classify", "input_named_otherwise", "No classification inputs found in SignatureDef: inputs {"),
    ("regress", "input_named_otherwise", "No regression inputs found in SignatureDef: inputs {"),
    ("regress", "labels", "No regression outputs found in SignatureDef: inputs {"),
    ("classify", "named_otherwise",
     'Expected classification signature outputs to contain at least one of "classes" or "scores". '
     "Signature was: inputs {"),
]  # fmt: skip
RESULTS = [
    ("classify", "flat", "Expected Tensor shape: [batch_size num_classes] but got [2]"),
    ("classify", "doubles", "Expected scores Tensor of DT_FLOAT. Got: DT_DOUBLE"),
    ("classify", "numbers", "Expected classes Tensor of DT_STRING. Got: DT_INT64"),
    ("classify", "fewer", "Expected scores output batch size of 2. Got: 1"),
    ("classify", "fewer_labels", "Expected classes output batch size of 2. Got: 1"),
    ("classify", "uneven", "Tensors class and score should match in dim_size(1). Got 2 vs. 1"),
    ("regress", "wide", "Expected output Tensor shape to be either [batch_size] or [batch_size, 1] but got [2,2]"),
    ("regress", "short", "Input batch size did not match output batch size: 2 vs. 1"),
    ("regress", "whole", "Expected output Tensor of DT_FLOAT.  Got: DT_INT32"),
    ("regress", "strings", "Expected output Tensor of DT_FLOAT.  Got: DT_STRING"),
]


@pytest.mark.parametrize(("kind", "signature", "message"), SIGNATURES + RESULTS)
def test_signatures_and_results_that_do_not_fit(shapes_client, kind, signature, message) -> None:
    assert shapes_client.ask(kind, [{"x": 0.5}, {"x": 0.25}], signature) == (INVALID, message)


@pytest.mark.parametrize(("kind", "signature", "message"), NAMES)
def test_names_of_tensors(shapes_client, kind, signature, message) -> None:
    status, text = shapes_client.ask(kind, [{"x": 0.5}], signature)
    assert status == INVALID
    assert text.startswith(message)
    assert 'method_name: "tensorflow/serving/predict"' in text


def test_examples_that_the_model_cannot_parse(half_client) -> None:
    # A whole number is an int64 feature, whatever the model wants: that is how the format guesses.
    for row in ({"x": 2}, {"x": "two"}, {}):
        status, message = half_client.ask("regress", [row], "regress_x_to_y")
        assert status == INVALID
        assert "x" in message


def test_a_signature_that_takes_no_examples(half_client) -> None:
    status, message = half_client.ask("regress", [{"x": 2.0}], "regress_x2_to_y3")
    assert status == INVALID
    assert message.startswith("Expects arg[0] to be float but string is provided")


def test_messages_without_model_or_examples(half) -> None:
    from tensorflow_serving.apis import classification_pb2, regression_pb2

    client = Grpc(half)
    messages = ((client.stub.Classify, classification_pb2.ClassificationRequest, "classify_x_to_y"),
                (client.stub.Regress, regression_pb2.RegressionRequest, "regress_x_to_y"))  # fmt: skip
    for call, message, signature in messages:
        request = message()
        assert code(call, request) == (INVALID, "Missing ModelSpec")
        request.model_spec.signature_name = signature
        assert code(call, request) == (INVALID, "ModelSpec has no name specified.")
        request.model_spec.name = "default"
        assert code(call, request) == (INVALID, "Input is empty.")
        request.input.example_list_with_context.context.SetInParent()
        assert code(call, request) == (INVALID, "Input is empty.")
        request.model_spec.signature_name = "serving_default"
        _, text = code(call, request)
        assert text.startswith("No ")
        assert "inputs found in SignatureDef" in text
    client.close()


def code(call: Callable[..., Any], request: Any) -> tuple[str, str]:
    with pytest.raises(grpc.RpcError) as caught:
        call(request, timeout=60)
    return caught.value.code().name, caught.value.details()


# Multi-inference


def tasks(*parts: tuple[str, str], model: str = "default", rows: Rows = ({"x": 2.0}, {"x": 4.0})) -> Any:
    from tensorflow_serving.apis import inference_pb2

    request = inference_pb2.MultiInferenceRequest()
    for signature, method in parts:
        task = request.tasks.add(method_name=method)
        task.model_spec.name = model
        task.model_spec.signature_name = signature
    fill_input(request.input, rows)
    return request


@pytest.fixture
def multi(half: Server) -> Iterator[Any]:
    client = Grpc(half)
    yield client.stub.MultiInference
    client.close()


@pytest.fixture
def multi_shapes(shapes: Server) -> Iterator[Any]:
    client = Grpc(shapes)
    yield client.stub.MultiInference
    client.close()


def test_several_signatures_at_once(multi) -> None:
    request = tasks(("regress_x_to_y2", REGRESS), ("classify_x_to_y", CLASSIFY), ("regress_x_to_y", REGRESS))
    request.tasks[0].model_spec.version.value = 123
    results = multi(request, timeout=60).results
    specs = [(r.model_spec.name, r.model_spec.version.value, r.model_spec.signature_name) for r in results]
    assert specs == [("default", 123, s) for s in ("regress_x_to_y2", "classify_x_to_y", "regress_x_to_y")]
    assert [r.WhichOneof("result") for r in results] == [
        "regression_result", "classification_result", "regression_result",
    ]  # fmt: skip
    assert [r.value for r in results[0].regression_result.regressions] == [4.0, 5.0]
    assert [c.classes[0].score for c in results[1].classification_result.classifications] == [3.0, 4.0]
    assert [r.value for r in results[2].regression_result.regressions] == [3.0, 4.0]


def test_the_model_runs_once(half: Server) -> None:
    from moxserve.types import ModelRef

    with half._manager.borrow(ModelRef("default")) as servable:
        backend = servable.backend
        example = np.array([b""], object)
        keys = ["regress_x_to_y", "regress_x_to_y2"]
        before = len(backend._programs)
        with pytest.raises(Exception, match="x"):
            backend.run_together(keys, example)
        assert len(backend._programs) == before + 1


@pytest.mark.parametrize(
    ("parts", "status", "message"),
    [
        ([], INVALID, "ModelSpec has no name specified."),
        ([("regress_x_to_y", REGRESS), ("regress_x_to_y", REGRESS)], INVALID,
         "Duplicate evaluation of signature: regress_x_to_y"),
        ([("regress_x_to_y", REGRESS), ("zz", REGRESS)], INVALID,
         "Requested signature not found in model graph: zz"),
        ([("regress_x_to_y", PREDICT)], "UNIMPLEMENTED", f"Unsupported signature method_name: {PREDICT}"),
        ([("regress_x_to_y", "")], "UNIMPLEMENTED", "Unsupported signature method_name: "),
        ([("", PREDICT)], "UNIMPLEMENTED", f"Unsupported signature method_name: {PREDICT}"),
    ],
)  # fmt: skip
def test_tasks_that_cannot_be_run(multi, parts, status, message) -> None:
    assert code(multi, tasks(*parts)) == (status, message)


def test_tasks_for_several_models(multi) -> None:
    request = tasks(("regress_x_to_y", REGRESS), ("classify_x_to_y", CLASSIFY))
    request.tasks[1].model_spec.name = "other"
    assert code(multi, request) == (
        INVALID, "All ModelSpecs in a MultiInferenceRequest must access the same model name.",
    )  # fmt: skip
    request.tasks[1].model_spec.name = ""
    assert code(multi, request) == (INVALID, "Found ModelSpec with an empty model name.")
    assert code(multi, tasks(("regress_x_to_y", REGRESS), model="nope")) == (
        "NOT_FOUND", "Servable not found for request: Latest(nope)",
    )  # fmt: skip
    assert code(multi, tasks(("regress_x_to_y", REGRESS), rows=[])) == (INVALID, "Input is empty.")


def test_tasks_are_checked_as_single_requests_are(multi_shapes) -> None:
    for kind, signature, message in SIGNATURES + RESULTS:
        request = tasks(("both", CLASSIFY) if signature != "both" else ("labels", CLASSIFY),
                        (signature, CLASSIFY if kind == "classify" else REGRESS))  # fmt: skip
        assert code(multi_shapes, request) == (INVALID, message)


# --enable_signature_method_name_check


def test_methods_may_be_checked(testdata, serve, shapes) -> None:
    server = serve(testdata / "saved_model_half_plus_two_cpu", check_methods=True)
    for client in (Grpc(server), Rest(server)):
        rows = [{"x": 2.0}]
        assert client.ask("classify", rows, "classify_x_to_y") == ("OK", [[["", 3.0]]])
        assert client.ask("regress", rows, "regress_x_to_y") == ("OK", [3.0])
        assert client.ask("classify", rows, "regress_x_to_y") == (
            INVALID, f"Expected classification signature method_name to be {CLASSIFY}. Was: {REGRESS}",
        )  # fmt: skip
        assert client.ask("regress", rows) == (
            INVALID, f"Expected regression signature method_name to be {REGRESS}. Was: {PREDICT}",
        )  # fmt: skip
        client.close()
    reply = httpx2.post(f"http://127.0.0.1:{server.rest_port}/v1/models/default:predict", json={"instances": [1.0]})
    assert reply.json() == {"predictions": [2.5]}


def test_a_method_that_nobody_knows(tmp_path, serve) -> None:
    import tensorflow as tf

    tf1 = tf.compat.v1
    with tf.Graph().as_default(), tf1.Session() as session:
        x = tf1.placeholder(tf.float32, [None], "x")
        signature = tf1.saved_model.predict_signature_def({"x": x}, {"y": x + 1.0})
        signature.method_name = "mine/own"
        builder = tf1.saved_model.Builder(str(tmp_path / "1"))
        builder.add_meta_graph_and_variables(session, ["serve"], {"serving_default": signature})
        builder.save()
    checked, plain = serve(tmp_path, check_methods=True), serve(tmp_path)
    body = {"instances": [1.0]}
    reply = httpx2.post(f"http://127.0.0.1:{checked.rest_port}/v1/models/default:predict", json=body)
    assert (reply.status_code, reply.json()["error"]) == (
        500,
        f"Expected prediction signature method_name to be one of {{{PREDICT}, {CLASSIFY}, {REGRESS}}}. Was: mine/own",
    )
    reply = httpx2.post(f"http://127.0.0.1:{plain.rest_port}/v1/models/default:predict", json=body)
    assert reply.json() == {"predictions": [2.0]}


# What our exporter makes

TRAIN = """
import sys
import numpy as np
import moxserve.tensorflow as mox
import tensorflow as tf

tf1 = tf.compat.v1
rows = np.random.default_rng(1).integers(0, 255, (40, 3), np.uint8)


def input_fn(mode, **kwargs):
    return tf.data.Dataset.from_tensor_slices((rows, (rows[:, 0] > 127).astype(np.int64))).repeat()


def model_fn(inputs, mode, **kwargs):
    images, labels = inputs
    weights = tf1.get_variable("w", [3, 2], initializer=tf1.random_normal_initializer(seed=1))
    logits = tf.matmul(tf.cast(images, tf.float32) / 255.0, weights)
    loss = tf1.losses.sparse_softmax_cross_entropy(labels, logits)
    scores = tf.nn.softmax(logits)
    spec = mox.ExportSpec({"images": images}, {"scores": scores}, scores="scores", labels=["dark", "bright"])
    return mox.ModelSpec(loss=loss, log_info={"loss": loss}, export_spec=spec)


mox.run(
    input_fn=input_fn,
    model_fn=model_fn,
    optimizer_fn=lambda: tf1.train.GradientDescentOptimizer(0.1),
    run_mode=mox.ModeKeys.TRAIN,
    batch_size=8,
    log_dir=sys.argv[1],
    max_number_of_steps=2,
    export_model=mox.ExportKeys.TF_SERVING,
)
"""


@pytest.mark.slow
def test_an_export_with_scores_is_classified(tmp_path, serve, run_tensorflow_script) -> None:
    # A process of its own: training turns eager execution off for the whole process.
    done = run_tensorflow_script(TRAIN, tmp_path)
    assert done.returncode == 0, done.stderr
    server = serve(tmp_path)
    rows = [[10, 200, 30], [255, 0, 0]]
    url = f"http://127.0.0.1:{server.rest_port}/v1/models/default:predict"
    predicted = httpx2.post(url, json={"instances": [{"images": row} for row in rows]}).json()["predictions"]
    for client in (Grpc(server), Rest(server)):
        status, answer = client.ask("classify", [{"images": row} for row in rows], "classify")
        assert status == "OK", answer
        for scored, plain in zip(answer, predicted, strict=True):
            assert [label for label, _ in scored] == ["dark", "bright"]
            np.testing.assert_allclose([score for _, score in scored], plain, rtol=1e-5)
        client.close()
