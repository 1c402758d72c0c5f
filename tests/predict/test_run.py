"""The batch run over a mock and over a real server: order, halving, errors, output."""

from __future__ import annotations

import json
import threading
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from moxserve import file
from moxserve.client import Client, MockTransport, PredictCall, Retry
from moxserve.errors import DataError, MoxserveError, RequestError, ServerUnreachableError, UsageError
from moxserve.predict import PredictJob, run_predict
from moxserve.types import Signature, TensorSpec, dtype_by_name


def lines_of(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def numbers(tmp_path: Path, count: int) -> Path:
    np.save(tmp_path / "n.npy", np.arange(count, dtype=np.float32))
    return tmp_path / "n.npy"


def mock(answer, **examples: Any) -> tuple[MockTransport, Client]:
    transport = MockTransport(answer, **(examples or {"x": np.zeros(1, np.float32)}))
    return transport, Client(transport, retry=Retry(0))


def test_order_is_kept_when_answers_come_out_of_order(tmp_path) -> None:
    lock, seen, later = threading.Lock(), [], {8.0 * i: threading.Event() for i in range(13)}

    def answer(inputs: Mapping[str, np.ndarray]) -> Mapping[str, Any]:
        first = float(inputs["x"][0])
        if armed and first in later:
            assert later[first].wait(60), "nothing came after it"
        with lock:
            seen.append(first)
        if first - 4 in later:
            later[first - 4].set()
        return {"y": inputs["x"] + 0.5}

    armed: list[bool] = []

    _, client = mock(answer)
    seen.clear()
    armed.append(True)
    job = PredictJob("m", numbers(tmp_path, 101), tmp_path / "o.jsonl", batch_size=4, concurrency=4)
    progress = []
    summary = run_predict(client, job, lambda done, failed, total: progress.append((done, failed, total)))
    records = lines_of(tmp_path / "o.jsonl")
    assert [r["input"] for r in records] == [f"n.npy[{i}]" for i in range(101)]
    assert [r["predictions"]["y"] for r in records] == [i + 0.5 for i in range(101)]
    assert seen.index(4.0) < seen.index(0.0)
    assert (summary.rows, summary.errors, summary.requests) == (101, 0, 26)
    assert progress[-1] == (101, 0, 101)
    assert summary.p95_ms >= summary.p50_ms > 0


def test_several_requests_are_in_flight(tmp_path) -> None:
    barrier = threading.Barrier(3, timeout=60)
    armed = []

    def answer(inputs: Mapping[str, np.ndarray]) -> Mapping[str, Any]:
        if armed:
            barrier.wait()
        return {"y": inputs["x"]}

    _, client = mock(answer)
    armed.append(True)
    run_predict(client, PredictJob("m", numbers(tmp_path, 9), tmp_path / "o.jsonl", batch_size=1, concurrency=3))
    assert len(lines_of(tmp_path / "o.jsonl")) == 9


def refuse_13(inputs: Mapping[str, np.ndarray]) -> Mapping[str, Any]:
    if 13.0 in inputs["x"]:
        raise RequestError("m answered INVALID_ARGUMENT: unlucky", status="INVALID_ARGUMENT")
    return {"y": inputs["x"]}


def test_a_bad_row_costs_only_itself(tmp_path) -> None:
    transport, client = mock(refuse_13)
    job = PredictJob("m", numbers(tmp_path, 40), tmp_path / "o.jsonl", batch_size=16, skip_errors=True)
    summary = run_predict(client, job)
    assert (summary.rows, summary.errors) == (39, 1)
    assert "unlucky" in (summary.first_error or "")
    record = lines_of(tmp_path / "o.jsonl")[13]
    assert record == {
        "input": "n.npy[13]",
        "error": {"status": "INVALID_ARGUMENT", "message": "m answered INVALID_ARGUMENT: unlucky"},
    }
    # 3 batches; the bad one is halved four times, each half sent once.
    assert len([c for c in transport.calls if isinstance(c, PredictCall)]) == 3 + 2 * 4


def test_stop_is_the_default_and_leaves_nothing(tmp_path) -> None:
    _, client = mock(refuse_13)
    (tmp_path / "o.jsonl").write_text("old\n")
    with pytest.raises(RequestError, match="unlucky"):
        run_predict(client, PredictJob("m", numbers(tmp_path, 40), tmp_path / "o.jsonl"))
    assert (tmp_path / "o.jsonl").read_text() == "old\n"
    assert sorted(p.name for p in tmp_path.iterdir()) == ["n.npy", "o.jsonl"]


def test_a_batch_that_is_too_large_is_halved(tmp_path) -> None:
    sizes = []

    def answer(inputs: Mapping[str, np.ndarray]) -> Mapping[str, Any]:
        sizes.append(len(inputs["x"]))
        if len(inputs["x"]) > 5:
            raise RequestError("larger than max", status="RESOURCE_EXHAUSTED")
        return {"y": inputs["x"]}

    _, client = mock(answer)
    sizes.clear()
    summary = run_predict(client, PredictJob("m", numbers(tmp_path, 16), tmp_path / "o.jsonl", batch_size=16))
    assert summary.rows == 16
    assert sizes == [16, 8, 4, 4, 8, 4, 4]


def test_a_server_that_goes_away_ends_the_run_even_when_skipping(tmp_path) -> None:
    def answer(inputs: Mapping[str, np.ndarray]) -> Mapping[str, Any]:
        if 20.0 in inputs["x"]:
            raise ServerUnreachableError("gone")
        return {"y": inputs["x"]}

    _, client = mock(answer)
    job = PredictJob("m", numbers(tmp_path, 40), tmp_path / "o.jsonl", batch_size=4, skip_errors=True)
    with pytest.raises(ServerUnreachableError):
        run_predict(client, job)
    assert not (tmp_path / "o.jsonl").exists()


def test_unreadable_rows(tmp_path, shades) -> None:
    (shades / "mid" / "3.png").write_bytes(b"?")
    _, client = mock(
        lambda inputs: {"classes": np.zeros(len(inputs["images"]), np.int64)}, images=np.zeros((1, 8, 8, 1), np.uint8)
    )
    with pytest.raises(DataError, match=r"mid/3\.png: cannot be read"):
        run_predict(client, PredictJob("m", shades, tmp_path / "o.jsonl"))
    _, client = mock(
        lambda inputs: {"classes": np.zeros(len(inputs["images"]), np.int64)}, images=np.zeros((1, 8, 8, 1), np.uint8)
    )
    summary = run_predict(client, PredictJob("m", shades, tmp_path / "o.jsonl", skip_errors=True))
    assert (summary.rows, summary.errors) == (20, 1)
    assert [r["error"]["status"] for r in lines_of(tmp_path / "o.jsonl") if "error" in r] == ["UNREADABLE_INPUT"]
    assert summary.accuracy == 7 / 20


def test_rows_of_unequal_shape(tmp_path) -> None:
    spec = TensorSpec("x", dtype_by_name("float32"), (None, None))
    out = TensorSpec("n", dtype_by_name("int64"), (None,))
    signature = Signature("serving_default", "", {"x": spec}, {"n": out})
    client = Client(MockTransport(lambda i: {"n": np.full(len(i["x"]), i["x"].shape[1])}, signature=signature))
    (tmp_path / "r.jsonl").write_text("[1]\n[1,2]\n[1]\n[1,2,3]\n")
    run_predict(client, PredictJob("m", tmp_path / "r.jsonl", tmp_path / "o.jsonl"))
    assert [r["predictions"]["n"] for r in lines_of(tmp_path / "o.jsonl")] == [1, 2, 1, 3]


def test_output_that_does_not_follow_the_rows(tmp_path) -> None:
    _, client = mock(lambda inputs: {"y": inputs["x"], "all": np.float32(1)})
    with pytest.raises(DataError, match=r"output 'all' has shape \[\]; expected one entry for each of 5 rows"):
        run_predict(client, PredictJob("m", numbers(tmp_path, 5), tmp_path / "o.jsonl"))
    _, client = mock(lambda inputs: {"y": inputs["x"], "all": np.float32(1)})
    run_predict(client, PredictJob("m", numbers(tmp_path, 5), tmp_path / "o.jsonl", outputs=["y"]))
    assert list(lines_of(tmp_path / "o.jsonl")[0]["predictions"]) == ["y"]


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (np.array([0.1], np.float32), "0.1"),
        (np.array([[0.1, 2]], np.float32), "[0.1,2.0]"),
        (np.array([[np.nan, np.inf]], np.float32), "[NaN, Infinity]"),
        (np.array([0.1], np.float16), "0.099975586"),
        (np.array([2**62]), str(2**62)),
        (np.array([True]), "true"),
        (np.array([b"gr\xc3\xbcn"], object), '"grün"'),
        (np.array([b"\xff"], object), '{"b64":"/w=="}'),
    ],
)
def test_values_in_the_output_file(tmp_path, value, text) -> None:
    _, client = mock(lambda inputs: {"y": value})
    run_predict(client, PredictJob("m", numbers(tmp_path, 1), tmp_path / "o.jsonl"))
    line = (tmp_path / "o.jsonl").read_text()
    assert text in line
    json.loads(line)


@pytest.mark.parametrize("signature", ["fixed", "inverse"])
def test_over_a_real_server(toy_server, tmp_path, signature) -> None:
    """`fixed` is exported with 4 rows: the last batch is filled up, and the surplus answers dropped."""
    rows = (
        np.arange(20, dtype=np.float32).reshape(10, 2) if signature == "fixed" else np.arange(1, 11, dtype=np.float32)
    )
    np.save(tmp_path / "x.npy", rows)
    for target in (f"grpc://{toy_server.grpc}", toy_server.rest, f"local:{toy_server.base}"):
        with Client(target) as client:
            summary = run_predict(
                client, PredictJob("toy", tmp_path / "x.npy", tmp_path / "o.jsonl", signature=signature, batch_size=3)
            )
        (name,) = lines_of(tmp_path / "o.jsonl")[0]["predictions"]
        values = [r["predictions"][name] for r in lines_of(tmp_path / "o.jsonl")]
        assert values == pytest.approx(rows.sum(1) if signature == "fixed" else 1 / rows)
        assert summary.version == 1
        assert summary.requests == (3 if signature == "fixed" else 4)


def test_accuracy_over_every_transport(toy_server, tmp_path, shades) -> None:
    for target in (f"grpc://{toy_server.grpc}", toy_server.rest, f"local:{toy_server.base}"):
        with Client(target) as client:
            summary = run_predict(client, PredictJob("toy", shades, tmp_path / "o.jsonl"))
        assert (summary.accuracy, summary.accuracy_rows) == (1.0, 21)
        assert lines_of(tmp_path / "o.jsonl")[0]["label"] == "bright"


def test_wrong_jobs(tmp_path) -> None:
    _, client = mock(lambda inputs: {"y": inputs["x"]})
    with pytest.raises(UsageError, match="batch_size=0: expected 1 or more"):
        PredictJob("m", "i", "o", batch_size=0)
    with pytest.raises(UsageError, match="is a directory; expected the name of a file"):
        run_predict(client, PredictJob("m", numbers(tmp_path, 2), tmp_path))
    with pytest.raises(UsageError, match="no signature 'other'"):
        run_predict(client, PredictJob("m", numbers(tmp_path, 2), tmp_path / "o", signature="other"))
    (tmp_path / "empty.jsonl").write_text("\n")
    with pytest.raises(DataError, match="holds no rows"):
        run_predict(client, PredictJob("m", tmp_path / "empty.jsonl", tmp_path / "o"))
    assert not (tmp_path / "o").exists()


def test_data_and_answers_in_a_store(store: Any, scratch: Path, tmp_path: Path) -> None:
    file.copy(numbers(tmp_path, 10), f"{store.base}/n.npy")
    _, client = mock(lambda inputs: {"y": inputs["x"] + 0.5})
    summary = run_predict(client, PredictJob("m", f"{store.base}/n.npy", f"{store.base}/out/o.jsonl"))
    records = [json.loads(line) for line in file.read(f"{store.base}/out/o.jsonl").splitlines()]
    assert [(r["input"], r["predictions"]["y"]) for r in records] == [(f"n.npy[{i}]", i + 0.5) for i in range(10)]
    assert (summary.rows, summary.output) == (10, f"{store.base}/out/o.jsonl")
    assert list(scratch.iterdir()) == []
    with pytest.raises(FileNotFoundError):
        run_predict(client, PredictJob("m", f"{store.base}/missing.npy", tmp_path / "o.jsonl"))
    _, short = mock(lambda inputs: {"y": inputs["x"][:1]})  # one answer for a batch of ten rows
    with pytest.raises(MoxserveError):
        run_predict(short, PredictJob("m", f"{store.base}/n.npy", f"{store.base}/none.jsonl"))
    assert not file.exists(f"{store.base}/none.jsonl")
    asked: list[Any] = []
    _, client = mock(lambda inputs: asked.append(inputs) or {"y": inputs["x"]})
    asked.clear()  # the example that told its signature
    with pytest.raises(MoxserveError, match=r"s3://mistyped/o\.jsonl.*NoSuchBucket"):
        run_predict(client, PredictJob("m", f"{store.base}/n.npy", "s3://mistyped/o.jsonl"))
    assert asked == []
