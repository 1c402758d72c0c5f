"""What a load test sends."""

from __future__ import annotations

import json
import subprocess
import sys

import numpy as np
import pytest
from moxserve_loadtests.plan import MAX_PAYLOADS, LoadSpec, prepare, random_inputs

from moxserve.errors import DataError, RequestError, ServerUnreachableError, UsageError
from moxserve.protocol import messages
from moxserve.protocol.tensors import from_proto
from moxserve.types import DTYPES, Signature, TensorSpec


def images_of(payload: bytes) -> np.ndarray:
    return from_proto(messages.PredictRequest.FromString(payload).inputs["images"])


def test_random_payloads_fit_the_model(toy_server) -> None:
    plan = prepare(LoadSpec(f"grpc://{toy_server.grpc}", "toy", batch_size=3))
    assert plan.source == "random data (images: uint8[3, 8, 8, 1])"
    assert plan.path == "/tensorflow.serving.PredictionService/Predict"
    assert len(plan.payloads) == MAX_PAYLOADS
    assert images_of(plan.payloads[0]).shape == (3, 8, 8, 1)
    assert not np.array_equal(images_of(plan.payloads[0]), images_of(plan.payloads[1]))


def test_payloads_from_a_data_set(toy_server, tmp_path) -> None:
    np.save(tmp_path / "x.npy", np.arange(5, dtype=np.uint8)[:, None, None, None] * np.ones((1, 8, 8, 1), np.uint8))
    plan = prepare(LoadSpec(toy_server.rest, "toy:1", batch_size=2, input=str(tmp_path / "x.npy")))
    assert (plan.kind, plan.path) == ("rest", "/v1/models/toy/versions/1:predict")
    assert plan.source == f"2 requests from {tmp_path / 'x.npy'}"
    bodies = [json.loads(p)["inputs"]["images"] for p in plan.payloads]
    assert [[row[0][0][0] for row in body] for body in bodies] == [[0, 1], [2, 3]]


def test_fewer_rows_than_a_request_takes(toy_server, tmp_path) -> None:
    np.save(tmp_path / "x.npy", np.full((2, 8, 8, 1), 9, np.uint8))
    plan = prepare(LoadSpec(f"grpc://{toy_server.grpc}", "toy", batch_size=8, input=str(tmp_path / "x.npy")))
    assert [images_of(p).shape for p in plan.payloads] == [(8, 8, 8, 1)]


def test_every_dtype_has_random_data() -> None:
    inputs = {d.name: TensorSpec(d.name, d, (None, 2)) for d in DTYPES}
    made = random_inputs(Signature("s", "", inputs, {}), 4, np.random.default_rng(0))
    for name, array in made.items():
        assert array.shape == (4, 2)
        assert array.dtype == inputs[name].dtype.numpy
    assert all(isinstance(word, bytes) for word in made["string"].reshape(-1))


def test_what_cannot_be_prepared(toy_server, free_port, tmp_path) -> None:
    grpc = f"grpc://{toy_server.grpc}"
    with pytest.raises(UsageError, match="expected the address of a server"):
        LoadSpec(str(tmp_path), "m")
    with pytest.raises(UsageError, match="batch_size=0"):
        LoadSpec("h:1", "m", batch_size=0)
    with pytest.raises(ServerUnreachableError):
        prepare(LoadSpec(f"grpc://127.0.0.1:{free_port}", "m"))
    with pytest.raises(RequestError, match="NOT_FOUND"):
        prepare(LoadSpec(grpc, "other"))
    with pytest.raises(UsageError, match="takes 4 rows a request; got --batch-size 1"):
        prepare(LoadSpec(grpc, "toy", signature="fixed"))
    with pytest.raises(DataError, match="no such file"):
        prepare(LoadSpec(grpc, "toy", input=str(tmp_path / "none.npy")))


def test_preparing_loads_neither_locust_nor_tensorflow() -> None:
    imports = "import sys, moxserve_loadtests.plan, moxserve_loadtests.limits, moxserve_loadtests.report"
    code = f"{imports}; print(sorted(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=240, check=True)
    for name in ("locust", "gevent", "tensorflow", "grpc", "pandas"):
        assert f"'{name}'" not in done.stdout
