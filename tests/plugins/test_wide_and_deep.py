"""Wide & deep on the survey: trained, evaluated, exported, served from columns and from serialized tf.Examples."""

from __future__ import annotations

import json
import os
import urllib.error
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pytest
from sklearn.metrics import roc_auc_score

from moxserve.client import Client
from moxserve.data.table import write_table
from moxserve.protocol.examples import make_example, read_examples
from moxserve.protocol.tfrecord import read_records

pytestmark = pytest.mark.slow

NUMBERS = ("age", "yrs_married", "children", "educ")
LEVELS = ("rate_marriage", "religious")
JOBS = ("occupation", "occupation_husb")


@dataclass(frozen=True)
class Trained:
    """A run of the shipped pipeline, its evaluation rows, and what the PREDICT graph says about them."""

    base: Path
    result: Any
    rows: list[dict[str, Any]]
    answers: list[dict[str, Any]]

    @property
    def scores(self) -> np.ndarray:
        return np.array([answer["probabilities"] for answer in self.answers])

    def columns(self, count: int) -> dict[str, np.ndarray]:
        found = {n: np.array([row[n][0] for row in self.rows[:count]], np.float32) for n in NUMBERS}
        found |= {n: np.array([row[n][0] for row in self.rows[:count]], np.int64) for n in LEVELS}
        return found | {n: np.array([row[n][0] for row in self.rows[:count]], object) for n in JOBS}


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory, repo_root: Path) -> Trained:
    from moxserve.pipeline.prepared import load_run
    from moxserve.pipeline.runner import run_pipeline
    from moxserve.pipeline.steps import find_checkpoint, predict

    base = tmp_path_factory.mktemp("survey")
    write_table(base / "data" / "table")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(base)
        pipeline = repo_root / "pipelines" / "wide_and_deep.yaml"
        result = run_pipeline(pipeline, ["export.warmup=[1]", "export.measure=false"])
    # From the run directory alone, and from elsewhere: vocabulary files are found again.
    run = load_run(base / "runs" / "wide_and_deep")
    output = base / "predictions.jsonl"
    predict(run.data, run.model_fn, find_checkpoint(run.log_dir), str(output), str(base / "again"))
    answers = [json.loads(line) for line in output.read_text().splitlines()]
    return Trained(base, result, list(read_examples(base / "data" / "table" / "eval.tfrecord")), answers)


@pytest.fixture(scope="module")
def server(trained: Trained) -> Iterator[Any]:
    from moxserve.serving.main import Server, ServerOptions

    options = ServerOptions(
        model_name="survey", model_base_path=str(trained.base / "models" / "wide_and_deep"),
        grpc_address="127.0.0.1:0", rest_address="127.0.0.1:0",
    )  # fmt: skip
    with Server(options) as running:
        yield running


def post(server: Any, method: str, body: Any) -> Any:
    url = f"http://127.0.0.1:{server.rest_port}/v1/models/survey:{method}"
    request = urllib.request.Request(url, json.dumps(body).encode(), {"Content-Type": "application/json"})
    try:
        with urllib.request.urlopen(request, timeout=120) as answer:
            return json.loads(answer.read())
    except urllib.error.HTTPError as error:
        return json.loads(error.read())


def as_json(row: dict[str, Any]) -> dict[str, Any]:
    return {n: float(row[n][0]) for n in NUMBERS} | {n: int(row[n][0]) for n in LEVELS} | {
        n: row[n][0].decode() for n in JOBS
    }  # fmt: skip


def test_it_learns_and_evaluates_exactly(trained: Trained):
    metrics = trained.result.evaluate
    assert metrics["accuracy"] >= 0.72
    labels = np.array([answer["labels"] for answer in trained.answers])
    assert labels.mean() == pytest.approx(0.3225, abs=0.001)
    # 1,366 rows in two batches: the area is that of all of them, not a mean of two.
    assert metrics["auc"] == pytest.approx(roc_auc_score(labels, trained.scores[:, 1]), abs=1e-6)
    assert metrics["accuracy"] == pytest.approx((trained.scores.argmax(1) == labels).mean(), abs=1e-6)


def test_predictions_name_their_rows(trained: Trained):
    first = trained.answers[0]
    assert first["input"].endswith(f"table{os.sep}eval.csv:2")
    assert first["class"] in ("no", "yes")
    assert (first["label"], first["labels"]) == ("no", 0) or (first["label"], first["labels"]) == ("yes", 1)


def test_the_export_takes_columns_and_examples_and_brings_its_files(trained: Trained):
    export = trained.result.export
    assert export.max_abs_error <= 1e-5
    told = {name: str(signature) for name, signature in export.signatures.items()}
    assert set(told) == {"serving_default", "predict", "classify", "regress"}
    assert "age: float32[?]" in told["serving_default"]
    assert "rate_marriage: int64[?]" in told["serving_default"]
    assert told["classify"] == "classify(inputs: string[?]) -> (classes: string[?, 2], scores: float32[?, 2])"
    assert told["regress"] == "regress(inputs: string[?]) -> (outputs: float32[?])"
    assert told["predict"].startswith("predict(examples: string[?])")
    version = trained.base / export.path
    assets = version / "assets"
    assert sorted(path.name for path in assets.iterdir()) == ["labels.txt", "occupations.txt"]
    # A served model does not look for the files of its training.
    assert str(trained.base).encode() not in (version / "saved_model.pb").read_bytes()


@pytest.mark.parametrize("scheme", ["grpc", "rest"])
def test_columns_are_served(trained: Trained, server: Any, scheme: str):
    port = server.grpc_port if scheme == "grpc" else server.rest_port
    address = f"grpc://127.0.0.1:{port}" if scheme == "grpc" else f"http://127.0.0.1:{port}"
    with Client(address) as client:
        answer = client.predict("survey", trained.columns(64))
    np.testing.assert_allclose(answer["probabilities"], trained.scores[:64], atol=1e-6)
    np.testing.assert_array_equal(answer["classes"], trained.scores[:64].argmax(1))


def test_classify_and_regress_over_grpc(trained: Trained, server: Any):
    from tensorflow_serving.apis import classification_pb2, prediction_service_pb2_grpc, regression_pb2

    payloads = list(read_records(trained.base / "data" / "table" / "eval.tfrecord"))[:32]
    with grpc.insecure_channel(f"127.0.0.1:{server.grpc_port}") as channel:
        stub = prediction_service_pb2_grpc.PredictionServiceStub(channel)
        classify, regress = classification_pb2.ClassificationRequest(), regression_pb2.RegressionRequest()
        for request, signature in ((classify, "classify"), (regress, "regress")):
            request.model_spec.name, request.model_spec.signature_name = "survey", signature
            for payload in payloads:
                request.input.example_list.examples.add().ParseFromString(payload)
        classes = stub.Classify(classify, timeout=120).result.classifications
        values = stub.Regress(regress, timeout=120).result.regressions
    assert [[c.label for c in row.classes] for row in classes] == [["no", "yes"]] * 32
    found = np.array([[c.score for c in row.classes] for row in classes])
    np.testing.assert_allclose(found, trained.scores[:32], atol=1e-6)
    np.testing.assert_allclose([v.value for v in values], trained.scores[:32, 1], atol=1e-6)


def test_classify_over_rest(trained: Trained, server: Any):
    examples = [as_json(row) for row in trained.rows[:5]]
    answer = post(server, "classify", {"signature_name": "classify", "examples": examples})
    expected = [[["no", no], ["yes", yes]] for no, yes in trained.scores[:5]]
    for row, wanted in zip(answer["results"], expected, strict=True):
        assert [name for name, _ in row] == ["no", "yes"]
        np.testing.assert_allclose([score for _, score in row], [score for _, score in wanted], atol=1e-6)
    values = post(server, "regress", {"signature_name": "regress", "examples": examples})["results"]
    np.testing.assert_allclose(values, trained.scores[:5, 1], atol=1e-6)


def test_what_an_example_lacks(trained: Trained, server: Any):
    whole = as_json(trained.rows[0])
    # A category that is missing or was never seen is no error: it says nothing.
    for change in ({"occupation": "astronaut"}, {"occupation": None, "rate_marriage": None}):
        example = {n: v for n, v in {**whole, **change}.items() if v is not None}
        (row,) = post(server, "classify", {"signature_name": "classify", "examples": [example]})["results"]
        assert sum(score for _, score in row) == pytest.approx(1)
        assert row[1][1] != pytest.approx(trained.scores[0, 1], abs=1e-6)
    # A number must be there, as no value for a missing one was declared.
    del whole["age"]
    told = post(server, "classify", {"signature_name": "classify", "examples": [whole]})["error"]
    assert "Feature: age" in told
    assert "is required but could not be found" in told


def test_predict_takes_serialized_examples(trained: Trained, server: Any):
    row = {name: trained.rows[3][name].tolist() for name in (*NUMBERS, *LEVELS, *JOBS)}
    serialized = np.array([make_example(row).SerializeToString()], object)
    with Client(f"grpc://127.0.0.1:{server.grpc_port}") as client:
        answer = client.predict("survey", {"examples": serialized}, signature="predict")
    np.testing.assert_allclose(answer["probabilities"][0], trained.scores[3], atol=1e-6)


def test_a_csv_file_is_predicted_as_it_was_evaluated(trained: Trained):
    from moxserve.predict import PredictJob, run_predict

    output = trained.base / "served.jsonl"
    with Client(f"local:{trained.base / 'models' / 'wide_and_deep'}") as client:
        summary = run_predict(
            client, PredictJob("wide_and_deep", str(trained.base / "data/table/eval.csv"), str(output))
        )
    found = [json.loads(line) for line in output.read_text().splitlines()]
    assert summary.rows == len(found) == 1366
    np.testing.assert_allclose([f["predictions"]["probabilities"] for f in found], trained.scores, atol=1e-6)
