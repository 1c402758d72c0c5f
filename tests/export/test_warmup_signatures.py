"""Warmup records of every kind of signature, made of the rows of one, and of the requests that servers logged."""

from __future__ import annotations

import gzip
import os
import shutil
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from moxserve.errors import DataError, ExportError, UsageError
from moxserve.export.job import SavedModelJob
from moxserve.export.manifest import WARMUP_PATH, read_manifest
from moxserve.protocol import messages
from moxserve.protocol.examples import make_example
from moxserve.protocol.prediction_log import examples_log, predict_log, requests_of
from moxserve.protocol.tfrecord import encode_record, read_records, write_records

_ROWS = np.arange(80, dtype=np.float32).reshape(40, 2)


@pytest.fixture(scope="session")
def many_ways(tmp_path_factory: pytest.TempPathFactory) -> str:
    """y = x · [2, 3], to be asked in seven ways; made with TensorFlow's own builder."""
    from moxserve.tensorflow.executor.env import tf, tf1

    path = str(tmp_path_factory.mktemp("ways") / "model")
    with tf.Graph().as_default(), tf1.Session() as session:
        x = tf1.placeholder(tf.float32, [None, 2], "x")
        serialized = tf1.placeholder(tf.string, [None], "serialized")
        word = tf1.placeholder(tf.string, [None], "word")
        parsed = tf.io.parse_example(serialized, {"x": tf.io.FixedLenFeature([2], tf.float32)})["x"]
        strange = tf.io.parse_example(word, {"z": tf.io.FixedLenFeature([2], tf.float32)})["z"]
        weights = tf.constant([[2.0], [3.0]])

        def dot(values: Any) -> Any:
            return tf.matmul(values, weights)

        y, of_example = dot(x), dot(parsed)
        pairs = tf.reshape(tf.cumsum(tf.reshape(x, [-1, 8]), 1), [-1, 2])
        info = tf1.saved_model.build_tensor_info

        def definition(method: str, inputs: dict[str, Any], outputs: dict[str, Any]) -> Any:
            infos = [{alias: info(t) for alias, t in side.items()} for side in (inputs, outputs)]
            return tf1.saved_model.build_signature_def(*infos, f"tensorflow/serving/{method}")

        builder = tf1.saved_model.Builder(path)
        builder.add_meta_graph_and_variables(
            session,
            ["serve"],
            {
                "serving_default": definition("predict", {"x": x}, {"y": y}),
                "same_tensor": definition("predict", {"features": x}, {"y": y}),
                "examples": definition("predict", {"examples": serialized}, {"y": of_example}),
                "classify": definition("classify", {"inputs": serialized}, {"scores": of_example}),
                "regress": definition("regress", {"inputs": serialized}, {"outputs": tf.squeeze(of_example, [1])}),
                "other_features": definition("predict", {"words": word}, {"y": dot(strange)}),
                "by_fours": definition("predict", {"x": x}, {"y": dot(pairs)}),
                "unknown": definition("predict", {"q": tf1.placeholder(tf.int32, [None])}, {"y": y}),
            },
        )
        builder.save()
    return path


@pytest.fixture
def job(many_ways: str, tmp_path: Path) -> SavedModelJob:
    return SavedModelJob(
        many_ways, base_dir=str(tmp_path / "base"), samples={"x": _ROWS}, model_name="dots", warmup_batches=(1, 4, 6)
    )


def records(path: str) -> list[Any]:
    """The records of a version, read with TensorFlow Serving's own messages."""
    from tensorflow_serving.apis import prediction_log_pb2

    file = os.path.join(path, WARMUP_PATH)
    return [prediction_log_pb2.PredictionLog.FromString(r) for r in read_records(file)] if os.path.exists(file) else []


def asked(log: Any) -> tuple[str, str, int]:
    """Kind, signature and number of rows of a record."""
    kind = log.WhichOneof("log_type")
    request = getattr(log, kind).request
    if kind == "predict_log":
        rows = next(iter(request.inputs.values())).tensor_shape.dim[0].size
    else:
        rows = len(request.input.example_list.examples)
    return kind, request.model_spec.signature_name, rows


def test_every_signature_that_takes_the_rows_gets_records(job: SavedModelJob, export: Any) -> None:
    result = export(job)
    found = Counter(asked(log) for log in records(result.path))
    for kind, signature in (
        ("predict_log", "serving_default"),
        ("predict_log", "same_tensor"),
        ("predict_log", "examples"),
        ("classify_log", "classify"),
        ("regress_log", "regress"),
    ):
        assert [found[kind, signature, size] for size in (1, 4, 6)] == [1, 1, 1], signature
    assert {signature for _, signature, _ in found} == {
        "serving_default", "same_tensor", "examples", "classify", "regress", "by_fours",
    }  # fmt: skip
    manifest = read_manifest(result.path)
    assert manifest is not None
    assert manifest.warmup.records == result.warmup_records == len(records(result.path))
    assert manifest.warmup.logged == 0


def test_what_a_signature_does_not_answer_is_left_out_and_told(job: SavedModelJob, export: Any) -> None:
    """The rows are those of another signature: features may have other names, sizes may not fit."""
    result = export(job)
    by_fours = [size for _, signature, size in map(asked, records(result.path)) if signature == "by_fours"]
    assert by_fours == [4]
    notes = "\n".join(result.notes)
    assert "no warmup records of 1, 6 rows for signature 'by_fours': " in notes
    assert "no warmup records of 1, 4, 6 rows for signature 'other_features': " in notes


def test_records_hold_the_rows(job: SavedModelJob, export: Any) -> None:
    for log in records(export(job, warmup_batches=[4]).path):
        kind, signature, _ = asked(log)
        request = getattr(log, kind).request
        assert request.model_spec.name == "dots"
        if kind == "predict_log" and signature != "examples":
            (tensor,) = request.inputs.values()
            np.testing.assert_array_equal(np.frombuffer(tensor.tensor_content, "<f4").reshape(-1, 2), _ROWS[:4])
        elif kind != "predict_log":
            values = [e.features.feature["x"].float_list.value[:] for e in request.input.example_list.examples]
            np.testing.assert_array_equal(values, _ROWS[:4])


def test_a_server_replays_all_of_them(job: SavedModelJob, export: Any, caplog: Any) -> None:
    from moxserve.client import Client
    from moxserve.serving.main import Server, ServerOptions

    result = export(job)
    caplog.set_level("INFO")
    options = ServerOptions(model_name="dots", model_base_path=job.base_dir, grpc_address="127.0.0.1:0")
    with Server(options) as server, Client(f"127.0.0.1:{server.grpc_port}") as client:
        assert [v.state for v in client.status("dots")] == ["AVAILABLE"]
    assert f"Number of warmup records read: {result.warmup_records}." in caplog.text


def test_records_that_are_too_large_are_left_out_and_told(
    job: SavedModelJob, export: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("moxserve.export.warmup.MAX_RECORD_BYTES", 250)
    result = export(job, warmup_batches=[1, 16])
    found = [asked(log) for log in records(result.path)]
    assert ("predict_log", "serving_default", 16) in found
    assert ("classify_log", "classify", 16) not in found
    assert ("classify_log", "classify", 1) in found
    assert any("for signature 'classify' was left out: it has" in note for note in result.notes)
    assert os.path.getsize(os.path.join(result.path, WARMUP_PATH)) <= 12 * (250 + 16)


def test_the_file_has_a_limit_too(job: SavedModelJob, export: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("moxserve.export.warmup.MAX_FILE_BYTES", 600)
    result = export(job)
    assert 0 < os.path.getsize(os.path.join(result.path, WARMUP_PATH)) <= 600
    assert any("and all of them may have 600" in note for note in result.notes)


# ---- request logs


@pytest.fixture
def log_of(tmp_path: Path) -> Callable[..., str]:
    """Write a request log; gives its path."""

    def write(*logs: Any, name: str = "requests.tfrecord") -> str:
        path = str(tmp_path / name)
        write_records(path, [log if isinstance(log, bytes) else log.SerializeToString() for log in logs])
        return path

    return write


def logged(rows: int, signature: str = "serving_default", start: int = 0, **extra: Any) -> Any:
    """A Predict request as a server logs it: with an answer, metadata and a version."""
    values = _ROWS[:rows] + start
    log = predict_log("old_name", signature, {"x": values})
    spec = log.predict_log.request.model_spec
    spec.version.value = 3
    log.predict_log.response.outputs["y"].CopyFrom(log.predict_log.request.inputs["x"])
    log.log_metadata.model_spec.CopyFrom(spec)
    log.log_metadata.sampling_config.sampling_rate = 0.5
    return log


def first_value(log: Any) -> float:
    return float(np.frombuffer(log.predict_log.request.inputs["x"].tensor_content, "<f4")[0])


def test_logged_requests_become_records(job: SavedModelJob, export: Any, log_of: Any) -> None:
    path = log_of(logged(3), logged(5, start=7))
    result = export(job, warmup_batches=[1], warmup_logs=[path])
    taken = [log for log in records(result.path) if asked(log)[2] != 1]
    assert [(asked(log)[2], first_value(log)) for log in taken] == [(3, 0.0), (5, 7.0)]
    for log in taken:
        spec = log.predict_log.request.model_spec
        assert (spec.name, spec.signature_name, spec.WhichOneof("version_choice")) == ("dots", "serving_default", None)
        assert not log.HasField("log_metadata")
        assert not log.predict_log.HasField("response")
    manifest = read_manifest(result.path)
    assert manifest is not None
    assert (manifest.warmup.logged, manifest.warmup.records) == (2, result.warmup_records)
    assert "2 of 2 logged requests became warmup records" in result.notes


def test_logs_alone_make_a_warmup_file(job: SavedModelJob, export: Any, log_of: Any) -> None:
    result = export(job, warmup_batches=[], warmup_logs=[log_of(logged(3))])
    assert [asked(log) for log in records(result.path)] == [("predict_log", "serving_default", 3)]


def test_what_does_not_fit_is_left_out_and_counted(job: SavedModelJob, export: Any, log_of: Any) -> None:
    other_type = predict_log("m", "serving_default", {"x": np.ones([2, 2])})
    other_shape = predict_log("m", "serving_default", {"x": np.ones([2, 3], np.float32)})
    other_input = predict_log("m", "serving_default", {"X": np.ones([2, 2], np.float32)})
    other_output = logged(2)
    other_output.predict_log.request.output_filter.append("gone")
    no_examples = messages.PredictionLog()
    no_examples.classify_log.request.model_spec.signature_name = "classify"
    wrong_method = examples_log("tensorflow/serving/regress", "m", "classify", np.array([b""], object))
    fails = examples_log("tensorflow/serving/classify", "m", "classify", np.array([b""], object))
    session_run = messages.PredictionLog()
    session_run.session_run_log.request.feed.add(name="x:0")
    path = log_of(
        logged(2), logged(2, "gone"), other_type, other_shape, other_input, other_output, no_examples, wrong_method,
        fails, session_run, b"\xff\xff no message", b"", logged(4),
    )  # fmt: skip
    result = export(job, warmup_batches=[], warmup_logs=[path])
    assert [asked(log)[2] for log in records(result.path)] == [2, 4]
    (note,) = [note for note in result.notes if "logged requests" in note]
    assert note.startswith("2 of 13 logged requests became warmup records; left out: ")
    for reason in (
        "1 were for signature 'gone', which the model does not have",
        "2 had another type or shape than signature 'serving_default'",
        "1 had other inputs than signature 'serving_default'",
        "1 asked for outputs that signature 'serving_default' does not have",
        "1 held no examples",
        "1 were not of the method of signature 'classify'",
        "1 failed on the new version (",
        "1 were of kind session_run_log, which servers do not replay",
        "2 held no request",
    ):
        assert reason in note


def test_every_kind_of_request_is_taken(job: SavedModelJob, export: Any, log_of: Any) -> None:
    serialized = np.array([make_example({"x": row}).SerializeToString() for row in _ROWS[:3]], object)
    multi = messages.PredictionLog()
    request = multi.multi_inference_log.request
    for key in ("classify", "regress"):
        task = request.tasks.add(method_name=f"tensorflow/serving/{key}")
        task.model_spec.name, task.model_spec.signature_name = "m", key
        task.model_spec.version_label = "stable"
    request.input.example_list_with_context.context.CopyFrom(make_example({"x": _ROWS[0]}))
    request.input.example_list_with_context.examples.add()
    unnamed = logged(2, "")
    on_classify = predict_log("m", "classify", {"inputs": serialized})
    path = log_of(
        examples_log("tensorflow/serving/classify", "m", "classify", serialized),
        examples_log("tensorflow/serving/regress", "m", "regress", serialized),
        multi, unnamed, on_classify,
    )  # fmt: skip
    result = export(job, warmup_batches=[], warmup_logs=[path])
    found = records(result.path)
    assert [log.WhichOneof("log_type") for log in found] == [
        "classify_log", "regress_log", "multi_inference_log", "predict_log", "predict_log",
    ]  # fmt: skip
    specs = [task.model_spec for task in found[2].multi_inference_log.request.tasks]
    assert [(s.name, s.signature_name, s.version_label) for s in specs] == [
        ("dots", "classify", ""), ("dots", "regress", ""),
    ]  # fmt: skip


def test_a_thousand_are_chosen_evenly_and_rare_ones_stay(job: SavedModelJob, export: Any, log_of: Any) -> None:
    logs = [logged(1, start=i) for i in range(2500)]
    logs[1777] = logged(17, start=1777)
    result = export(job, warmup_batches=[], warmup_logs=[log_of(*logs)])
    found = [first_value(log) for log in records(result.path)]
    assert len(found) == 1000
    assert found == sorted(found)
    assert 1777 in found
    gaps = np.diff(found)
    assert gaps.max() <= 3
    assert any("1500 beyond the 1000 for which there is room" in note for note in result.notes)


def test_rows_come_first_and_logs_take_the_rest(
    job: SavedModelJob, export: Any, log_of: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("moxserve.export.warmup.MAX_RECORDS", 24)
    path = log_of(*(logged(2, start=i) for i in range(30)))
    result = export(job, warmup_logs=[path])
    assert result.warmup_records == 24
    manifest = read_manifest(result.path)
    assert manifest is not None
    assert 0 < manifest.warmup.logged < 24


def test_compressed_and_rotated_logs_are_read(job: SavedModelJob, export: Any, log_of: Any, tmp_path: Path) -> None:
    prefix = str(tmp_path / "logs" / "requests")
    os.mkdir(os.path.dirname(prefix))
    for number, suffix in enumerate(("dots.20260101T000000Z-1-1.tfrecord", "dots.20260102T000000Z-1-2.tfrecord.gz")):
        data = Path(log_of(logged(2, start=number))).read_bytes()
        Path(f"{prefix}.{suffix}").write_bytes(gzip.compress(data) if suffix.endswith("gz") else data)
    half = Path(log_of(logged(2, start=2), logged(2, start=3))).read_bytes()[:-5]
    Path(f"{prefix}.dots.20260103T000000Z-1-3.tfrecord.partial").write_bytes(half)
    Path(os.path.dirname(prefix), "notes.txt").write_text("not a log")
    first = f"{prefix}.dots.20260101T000000Z-1-1.tfrecord"
    for given_name in (prefix, os.path.dirname(prefix), f"{prefix}.*"):
        result = export(job, warmup_batches=[], warmup_logs=[given_name, first])
        assert [first_value(log) for log in records(result.path)] == [0, 1, 2]
        assert "3 of 4 logged requests became warmup records; left out: 1 damaged or cut off" in result.notes


def test_a_server_s_log_is_read_as_it_writes_it(job: SavedModelJob, export: Any, tmp_path: Path) -> None:
    from moxserve.client import Client
    from moxserve.serving.main import Server, ServerOptions
    from moxserve.serving.reload import ReloadOptions

    export(job, warmup_batches=[])
    prefix = str(tmp_path / "log" / "requests")
    os.mkdir(tmp_path / "log")
    (tmp_path / "models.txt").write_text(
        f'model_config_list {{ config {{ name: "dots" base_path: "{job.base_dir}" model_platform: "tensorflow" '
        f'logging_config {{ log_collector_config {{ filename_prefix: "{prefix}" }} '
        "sampling_config { sampling_rate: 1 } } } }"
    )
    options = ServerOptions(config=ReloadOptions(file=str(tmp_path / "models.txt")), grpc_address="127.0.0.1:0")
    with Server(options) as server, Client(f"127.0.0.1:{server.grpc_port}") as client:
        for rows in (1, 2, 3):
            client.predict("dots", {"x": _ROWS[:rows]})
    result = export(job, warmup_batches=[], warmup_logs=[prefix])
    assert [asked(log)[2] for log in records(result.path)] == [1, 2, 3]


def test_a_file_that_is_no_log_is_refused(job: SavedModelJob, export: Any, tmp_path: Path) -> None:
    (tmp_path / "not.tfrecord").write_text("hello, this is no log at all")
    with pytest.raises(DataError, match=r"not.tfrecord: record 0 has a damaged header; is this a TFRecord file\?"):
        export(job, warmup_logs=[str(tmp_path / "not.tfrecord")])
    assert os.listdir(job.base_dir) == []


def test_a_log_that_is_not_there_is_told_before_any_work(job: SavedModelJob, export: Any, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"there is no request log '.*nothing'"):
        export(job, warmup_logs=[str(tmp_path / "nothing")])
    assert not os.path.exists(job.base_dir)


def test_a_request_that_the_main_signature_refuses_does_not_publish_a_broken_version(
    many_ways: str, tmp_path: Path, export: Any
) -> None:
    """Unlike guessed ones, its own rows must be answered: a server would refuse the version."""
    copy = str(tmp_path / "copy")
    shutil.copytree(many_ways, copy)
    job = SavedModelJob(
        copy, base_dir=str(tmp_path / "base"), samples={"x": _ROWS}, warmup_batches=[4, 6],
        signatures={"serving_default": "by_fours"},
    )  # fmt: skip
    with pytest.raises(ExportError, match="writing warmup records: InvalidArgumentError"):
        export(job)
    assert os.listdir(tmp_path / "base") == []


@settings(max_examples=60)
@given(st.lists(st.tuples(st.integers(0, 400), st.integers(0, 255)), max_size=4), st.integers(0, 60))
def test_damage_anywhere_loses_no_more_than_it_must(flips: list[tuple[int, int]], cut: int) -> None:
    """What is yielded from a damaged file was in the whole one, in that order; nothing else is raised."""
    payloads = [bytes([i]) * (10 + i) for i in range(12)]
    data = bytearray(b"".join(map(encode_record, payloads)))
    for position, value in flips:
        data[position % len(data)] = value
    data = data[: len(data) - cut]
    import tempfile

    for content in (bytes(data), gzip.compress(bytes(data))):
        with tempfile.NamedTemporaryFile() as file:
            file.write(content)
            file.flush()
            told: list[str] = []
            found = list(read_records(file.name, told.append))
        remaining: Iterator[bytes] = iter(payloads)
        assert all(payload in remaining for payload in found)
        if len(found) < len(payloads):
            assert told or cut
        assert len(found) + len(told) <= len(payloads) + 1


@settings(max_examples=60)
@given(st.binary(max_size=200))
def test_no_record_makes_the_reader_of_logs_fail(payload: bytes) -> None:
    from moxserve.errors import MoxserveError
    from moxserve.protocol.prediction_log import parse_log

    try:
        log = parse_log(payload)
        list(requests_of(log))
    except MoxserveError:
        pass
