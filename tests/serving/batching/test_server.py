"""Batching as clients meet it: real models over gRPC and REST, in one server and from the command line."""

from __future__ import annotations

import shutil
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import grpc
import httpx2
import numpy as np
import pytest

from moxserve.errors import UnknownError
from moxserve.protocol import messages
from moxserve.protocol.examples import make_example
from moxserve.protocol.tensors import from_proto, to_proto
from moxserve.serving.batching import BatchingOptions, BatchingParameters
from moxserve.serving.batching.params import PARAMETERS_FILE, read_parameters
from moxserve.serving.batching.queues import BatchQueue
from moxserve.serving.main import Server

Serve = Callable[..., Server]
Ask = Callable[[Server, str, Any], Any]

# Batches of this server wait until they are full: what meets is up to the test, not to the clock.
PATIENT_MICROS = 100_000_000


def full_batches(rows: int, **more: Any) -> BatchingOptions:
    return BatchingOptions(True, BatchingParameters(rows, PATIENT_MICROS, **more))


@pytest.fixture
def ask() -> Iterator[Ask]:
    """`ask(server, method, request)` over gRPC; returns the bytes, or the status and its text."""
    channels: dict[int, grpc.Channel] = {}

    def call(server: Server, method: str, request: Any) -> Any:
        channel = channels.setdefault(server.grpc_port, grpc.insecure_channel(f"127.0.0.1:{server.grpc_port}"))
        stub = channel.unary_unary(f"/tensorflow.serving.PredictionService/{method}")
        try:
            return stub(request.SerializeToString(), timeout=120)
        except grpc.RpcError as error:
            return error.code().name, error.details()

    yield call
    for channel in channels.values():
        channel.close()


def predict(values: Any, signature: str = "", alias: str = "x") -> Any:
    request = messages.PredictRequest()
    request.model_spec.name = "default"
    request.model_spec.signature_name = signature
    request.inputs[alias].CopyFrom(to_proto(np.asarray(values, np.float32)))
    return request


def y(reply: bytes, alias: str = "y") -> list[Any]:
    assert isinstance(reply, bytes), reply
    return from_proto(messages.PredictResponse.FromString(reply).outputs[alias]).tolist()


def rest(server: Server, verb: str, body: Any) -> httpx2.Response:
    return httpx2.post(f"http://127.0.0.1:{server.rest_port}/v1/models/default:{verb}", json=body, timeout=120)


def examples(kind: str, *values: float, signature: str) -> Any:
    request = getattr(messages, kind)()
    request.model_spec.name = "default"
    request.model_spec.signature_name = signature
    for value in values:
        request.input.example_list.examples.add().CopyFrom(make_example({"x": [value]}))
    return request


@pytest.fixture(scope="session")
def half(testdata: Path) -> Path:
    return testdata / "saved_model_half_plus_two_cpu"


def test_requests_of_both_transports_meet(half: Path, serve: Serve, ask: Ask) -> None:
    server = serve(half, batching=full_batches(4))
    with ThreadPoolExecutor(3) as pool:
        one = pool.submit(ask, server, "Predict", predict([[1.0]]))
        two = pool.submit(rest, server, "predict", {"instances": [[2.0], [3.0]]})
        three = pool.submit(ask, server, "Predict", predict([[5.0]]))
        assert y(one.result()) == [[2.5]]
        assert two.result().json() == {"predictions": [[3.0], [3.5]]}
        assert y(three.result()) == [[4.5]]
    assert server.metrics.wrapped_runs.value(()) == 1


def test_examples_meet(half: Path, serve: Serve, ask: Ask) -> None:
    server = serve(half, batching=full_batches(4))
    regression = examples("RegressionRequest", 2.0, 4.0, signature="regress_x_to_y")
    with ThreadPoolExecutor(2) as pool:
        one = pool.submit(ask, server, "Regress", regression)
        body = {"signature_name": "regress_x_to_y", "examples": [{"x": 6.0}, {"x": 8.0}]}
        two = pool.submit(rest, server, "regress", body)
        found = messages.RegressionResponse.FromString(one.result())
        assert [r.value for r in found.result.regressions] == [3.0, 4.0]
        assert two.result().json() == {"results": [5.0, 6.0]}
    assert server.metrics.wrapped_runs.value(()) == 1


def multi(*values: float) -> Any:
    request = messages.MultiInferenceRequest()
    for value in values:
        request.input.example_list.examples.add().CopyFrom(make_example({"x": [value]}))
    for signature, method in (("classify_x_to_y", "classify"), ("regress_x_to_y", "regress")):
        task = request.tasks.add(method_name=f"tensorflow/serving/{method}")
        task.model_spec.name, task.model_spec.signature_name = "default", signature
    return request


def test_multi_inferences_meet_in_any_order_of_their_tasks(half: Path, serve: Serve, ask: Ask) -> None:
    server = serve(half, batching=full_batches(3))
    backwards = multi(4.0)
    backwards.tasks.sort(key=lambda task: task.method_name, reverse=True)
    with ThreadPoolExecutor(2) as pool:
        one = pool.submit(ask, server, "MultiInference", multi(2.0, 6.0))
        two = pool.submit(ask, server, "MultiInference", backwards)
        first = messages.MultiInferenceResponse.FromString(one.result())
        second = messages.MultiInferenceResponse.FromString(two.result())
    classified, regressed = first.results
    assert [c.classes[0].score for c in classified.classification_result.classifications] == [3.0, 5.0]
    assert [r.value for r in regressed.regression_result.regressions] == [3.0, 5.0]
    regressed, classified = second.results
    assert [r.value for r in regressed.regression_result.regressions] == [4.0]
    assert [c.classes[0].score for c in classified.classification_result.classifications] == [4.0]
    assert server.metrics.wrapped_runs.value(()) == 1


@pytest.mark.slow
@pytest.mark.parametrize("batching", ["sample", "adaptive"])
def test_many_clients_get_their_own_answers(batching: str, half: Path, testdata: Path, serve: Serve, ask: Ask) -> None:
    """With the sample parameters of the original, and without any."""
    parameters = read_parameters(str(testdata / "batching_config.txt")) if batching == "sample" else None
    server = serve(half, batching=BatchingOptions(True, parameters))

    def client(seed: int) -> None:
        random = np.random.default_rng(seed)
        for i in range(30):
            x = random.integers(0, 1000, (int(random.integers(1, 5)), 1)).astype(np.float32)
            if i % 3 == 2:
                found = rest(server, "predict", {"instances": x.tolist()}).json()["predictions"]
            else:
                found = y(ask(server, "Predict", predict(x)))
            assert found == (x / 2 + 2).tolist()

    with ThreadPoolExecutor(8) as pool:
        for done in [pool.submit(client, seed) for seed in range(8)]:
            done.result()
    page = server.metrics.page().decode()
    count = next(line for line in page.splitlines() if "batching_session:processed_batch_size_count" in line)
    assert int(count.split()[-1]) == server.metrics.wrapped_runs.value(()) > 0


def test_errors_have_the_texts_of_the_original(half: Path, echo_base: Path, serve: Serve, ask: Ask) -> None:
    server = serve(half, batching=BatchingOptions(True, BatchingParameters(max_batch_size=2)))
    too_large = "Task size 3 is larger than maximum input batch size 2"
    assert ask(server, "Predict", predict([[1.0]] * 3)) == ("INVALID_ARGUMENT", too_large)
    reply = rest(server, "predict", {"instances": [[1.0]] * 3})
    assert (reply.status_code, reply.json()) == (400, {"error": too_large})
    scalar = "Batching Run() input tensors must have at least one dimension"
    assert ask(server, "Predict", predict(1.0)) == ("INVALID_ARGUMENT", scalar)
    echo = serve(echo_base, batching=BatchingOptions(True, BatchingParameters()))
    no_rows = ("FAILED_PRECONDITION", "Batched output tensor has 0 dimensions")
    assert ask(echo, "Predict", predict([[1.0, 2.0]], "total")) == no_rows


def test_without_parameters_the_same_models_are_served(half: Path, echo_base: Path, serve: Serve, ask: Ask) -> None:
    server = serve(half, batching=BatchingOptions(True))
    assert y(ask(server, "Predict", predict([[1.0]] * 3))) == [[2.5]] * 3
    assert y(ask(server, "Predict", predict(1.0))) == 2.5
    echo = serve(echo_base, batching=BatchingOptions(True))
    assert y(ask(echo, "Predict", predict([[1.0, 2.0]], "total")), "total") == 3.0


def test_a_bad_request_does_not_harm_those_it_meets(echo_base: Path, serve: Serve, ask: Ask) -> None:
    server = serve(echo_base, batching=full_batches(4))
    values = [[1.0, 2.0], [np.nan, 1.0], [3.0, 4.0], [5.0, 6.0]]
    with ThreadPoolExecutor(4) as pool:
        replies = list(pool.map(lambda v: ask(server, "Predict", predict([v], "failing")), values))
    assert replies[1][0] == "INVALID_ARGUMENT"
    assert "bad number" in replies[1][1]
    assert [y(reply) for i, reply in enumerate(replies) if i != 1] == [[values[i]] for i in (0, 2, 3)]


def test_a_cancelled_call_is_not_run(half: Path, serve: Serve, ask: Ask, monkeypatch: pytest.MonkeyPatch) -> None:
    offered, dropped = threading.Semaphore(0), threading.Semaphore(0)
    offer, drop = BatchQueue.offer, BatchQueue.drop

    def noted(done: threading.Semaphore, method: Callable[..., None]) -> Callable[..., None]:
        def call(*arguments: Any) -> None:
            method(*arguments)
            done.release()

        return call

    monkeypatch.setattr(BatchQueue, "offer", noted(offered, offer))
    monkeypatch.setattr(BatchQueue, "drop", noted(dropped, drop))
    server = serve(half, batching=full_batches(2))
    with grpc.insecure_channel(f"127.0.0.1:{server.grpc_port}") as channel:
        call = channel.unary_unary("/tensorflow.serving.PredictionService/Predict")
        first = call.future(predict([[1.0]]).SerializeToString())
        assert offered.acquire(timeout=60)
        first.cancel()
        assert dropped.acquire(timeout=60)
    # Two that come later fill a batch by themselves.
    with ThreadPoolExecutor(2) as pool:
        replies = list(pool.map(lambda v: y(ask(server, "Predict", predict([[v]]))), (3.0, 4.0)))
    assert replies == [[[3.5]], [[4.0]]]
    page = server.metrics.page().decode().splitlines()
    assert ":tensorflow:serving:batching_session:processed_batch_size_sum{} 2.0" in page
    assert server.metrics.wrapped_runs.value(()) == 1


def test_a_deadline_passes_in_the_queue(half: Path, serve: Serve) -> None:
    from moxserve.serving.rest.options import RestOptions

    server = serve(
        half, batching=BatchingOptions(True, BatchingParameters(8, PATIENT_MICROS)), rest=RestOptions(timeout_s=1.0)
    )
    reply = rest(server, "predict", {"instances": [[1.0]]})
    assert (reply.status_code, reply.json()["error"]) == (504, "Timed out waiting for notification")
    with grpc.insecure_channel(f"127.0.0.1:{server.grpc_port}") as channel:
        with pytest.raises(grpc.RpcError) as caught:
            channel.unary_unary("/tensorflow.serving.PredictionService/Predict")(
                predict([[1.0]]).SerializeToString(), timeout=0.2
            )
        assert caught.value.code() is grpc.StatusCode.DEADLINE_EXCEEDED
    assert server.metrics.wrapped_runs.value(()) == 0


def test_versions_bring_their_parameters(
    half: Path, serve: Serve, ask: Ask, tmp_path: Path, wait_for: Callable[..., None]
) -> None:
    base = tmp_path / "half"
    shutil.copytree(half / "00000123", base / "1")
    shutil.copytree(half / "00000123", base / "2")
    (base / "1" / PARAMETERS_FILE).write_text("max_batch_size { value: 2 }")
    batching = BatchingOptions(True, BatchingParameters(max_batch_size=1, num_batch_threads=3), per_model=True)
    server = serve(base, batching=batching)
    assert y(ask(server, "Predict", predict([[1.0]] * 3))) == [[2.5]] * 3  # version 2: unbatched
    assert server.metrics.wrapped_runs.value(()) == 0
    shutil.rmtree(base / "2")
    wait_for(lambda: not isinstance(ask(server, "Predict", predict([[1.0]] * 3)), bytes), "version 1")
    refused = ask(server, "Predict", predict([[1.0]] * 3))
    assert refused == ("INVALID_ARGUMENT", "Task size 3 is larger than maximum input batch size 2")
    assert y(ask(server, "Predict", predict([[1.0]] * 2))) == [[2.5]] * 2
    assert server.metrics.wrapped_runs.value(()) == 1


def test_a_version_with_wrong_parameters_does_not_load(half: Path, options: Callable[..., Any], tmp_path: Path) -> None:
    shutil.copytree(half / "00000123", tmp_path / "1")
    (tmp_path / "1" / PARAMETERS_FILE).write_text("max_batch_size { value: 2 }\nwhat: 3\n")
    server = Server(options(tmp_path, batching=BatchingOptions(True, per_model=True)))
    with pytest.raises(UnknownError, match=r"INVALID_ARGUMENT.*Invalid protobuf file.*2:1") as caught:
        server.start()
    assert PARAMETERS_FILE in caught.value.message


@pytest.mark.slow
def test_a_new_version_takes_over_under_load(
    serve: Serve, save_linear: Callable[..., Path], ask: Ask, tmp_path: Path, wait_for: Callable[..., None]
) -> None:
    save_linear(tmp_path / "1", 1.0)
    server = serve(tmp_path, batching=BatchingOptions(True))
    failures: list[Any] = []
    seen: set[Any] = set()
    done = threading.Event()

    def client() -> None:
        while not done.is_set():
            reply = ask(server, "Predict", predict([10.0]))
            if not isinstance(reply, bytes):
                failures.append(reply)
                break
            response = messages.PredictResponse.FromString(reply)
            seen.add((response.model_spec.version.value, from_proto(response.outputs["y"]).item()))

    with ThreadPoolExecutor(4) as pool:
        clients = [pool.submit(client) for _ in range(4)]
        try:
            wait_for(lambda: seen, "an answer of version 1")
            staged = save_linear(tmp_path.parent / "staged-2", 2.0)
            staged.rename(tmp_path / "2")
            wait_for(lambda: len(seen) == 2 or failures, "an answer of version 2")
            time.sleep(0.3)  # while version 1 is unloaded
        finally:
            done.set()
        for one in clients:
            one.result()
    assert failures == []
    assert seen == {(1, 10.0), (2, 20.0)}


@pytest.mark.slow
def test_the_command_line_tells_what_is_wrong(run_moxserve: Callable[..., Any], half: Path, tmp_path: Path) -> None:
    path = tmp_path / "batching.txt"
    path.write_text("max_batch_size { value: 8 }\nbatch_timeout: 3\n")
    common = ("serve", f"--model_base_path={half}", "--port=0", "--grpc_socket_path=unused")
    result = run_moxserve(*common, f"--batching_parameters_file={path}")
    assert result.returncode == 2
    assert "batching_parameters_file is set without setting server_options.enable_batching to true." in result.stderr
    result = run_moxserve(*common, "--enable_batching", f"--batching_parameters_file={path}")
    assert result.returncode == 2
    assert f"Invalid protobuf file: '{path}'" in result.stderr
    assert "Error parsing text-format tensorflow.serving.BatchingParameters: 2:1" in result.stderr
    path.write_text("num_batch_threads { value: 0 }")
    result = run_moxserve(*common, "--enable_batching", f"--batching_parameters_file={path}")
    assert result.returncode == 2
    assert "num_batch_threads must be positive; was 0" in result.stderr
