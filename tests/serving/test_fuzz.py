"""Damaged requests get a reason, never a crash, a hang, a 5xx or memory."""

from __future__ import annotations

import gzip
import json
import os
import random
import re
import subprocess
import sys
import time
from base64 import b64encode
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import grpc
import httpx2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from moxserve.ports import free_port
from moxserve.protocol import messages
from moxserve.protocol.examples import make_example
from moxserve.protocol.tensors import to_proto
from moxserve.serving.main import Server

QUICK_ROUNDS = 150
ROUNDS = 700
WARM_ROUNDS = 300
# A refusal that tells the caller what was wrong; INTERNAL, UNKNOWN, UNAVAILABLE and DEADLINE_EXCEEDED would not.
REFUSALS = {
    "INVALID_ARGUMENT", "NOT_FOUND", "FAILED_PRECONDITION", "UNIMPLEMENTED", "RESOURCE_EXHAUSTED", "OUT_OF_RANGE",
}  # fmt: skip
PREDICTION, MODELS, V2 = (
    "tensorflow.serving.PredictionService",
    "tensorflow.serving.ModelService",
    "inference.GRPCInferenceService",
)


# Valid requests

EXAMPLE = make_example({"x": [2.0]}).SerializeToString()


def predict_requests() -> list[bytes]:
    requests = [
        predict_request("default", "", {"x": np.float32([1, 2])}),
        predict_request("default", "classify_x_to_y", {"inputs": np.array([EXAMPLE], object)}),
    ]
    for dtype in ("float32", "int8", "int64", "bool", "string", "complex64", "bfloat16", "uint64", "float16"):
        for typed in (False, True):
            value = np.array([b"a", b""], object) if dtype == "string" else np.ones((2, 1), dtype)
            requests.append(predict_request("echo", dtype, {"x": value}, typed))
    requests.append(predict_request("echo", "", {"a": np.ones((2, 2), "f4"), "b": np.int64([1, 2])}))
    return requests


def predict_request(model: str, signature: str, inputs: dict[str, np.ndarray], typed: bool = False) -> bytes:
    request = messages.PredictRequest()
    request.model_spec.name, request.model_spec.signature_name = model, signature
    for alias, value in inputs.items():
        request.inputs[alias].CopyFrom(to_proto(value, typed=typed))
    data: bytes = request.SerializeToString()
    return data


def example_requests(kind: str) -> list[bytes]:
    """Requests of classify, regress or multi-inference, with and without a context."""
    requests = []
    for context in (False, True):
        request = getattr(messages, kind)()
        if kind == "MultiInferenceRequest":
            for signature, method in (("classify_x_to_y", "classify"), ("regress_x_to_y2", "regress")):
                task = request.tasks.add(method_name=f"tensorflow/serving/{method}")
                task.model_spec.name, task.model_spec.signature_name = "default", signature
        else:
            request.model_spec.name = "default"
            request.model_spec.signature_name = "classify_x_to_y" if kind.startswith("Class") else "regress_x_to_y"
        listed = request.input.example_list_with_context if context else request.input.example_list
        listed.examples.add().CopyFrom(make_example({"x": [2.0]}))
        listed.examples.add().CopyFrom(make_example({"x": [3.0], "y": ["a"], "z": [1]}))
        if context:
            listed.context.CopyFrom(make_example({"x": [5.0]}))
        requests.append(request.SerializeToString())
    return requests


def spec_requests(kind: str, **fields: Any) -> list[bytes]:
    requests = []
    for version in (None, 123):
        request = getattr(messages, kind)(**fields)
        request.model_spec.name = "default"
        if version:
            request.model_spec.version.value = version
        requests.append(request.SerializeToString())
    return requests


def infer_requests() -> list[bytes]:
    """Requests of the Open Inference Protocol: typed contents and raw ones."""
    requests = []
    for raw in (False, True):
        request = messages.by_full_name("inference.ModelInferRequest")(model_name="default", id="1")
        tensor = request.inputs.add(name="x", datatype="FP32", shape=[2])
        if raw:
            request.raw_input_contents.append(np.float32([1, 2]).tobytes())
        else:
            tensor.contents.fp32_contents.extend([1, 2])
        request.outputs.add(name="y")
        requests.append(request.SerializeToString())
    return requests


GRPC_SEEDS: dict[str, Callable[[], list[bytes]]] = {
    f"/{PREDICTION}/Predict": predict_requests,
    f"/{PREDICTION}/Classify": lambda: example_requests("ClassificationRequest"),
    f"/{PREDICTION}/Regress": lambda: example_requests("RegressionRequest"),
    f"/{PREDICTION}/MultiInference": lambda: example_requests("MultiInferenceRequest"),
    f"/{PREDICTION}/GetModelMetadata": lambda: spec_requests(
        "GetModelMetadataRequest", metadata_field=["signature_def"]
    ),
    f"/{MODELS}/GetModelStatus": lambda: spec_requests("GetModelStatusRequest"),
    f"/{V2}/ModelInfer": infer_requests,
}
REST_SEEDS: dict[str, list[bytes]] = {
    "/v1/models/default:predict": [
        b'{"instances": [1.0, 2.0, 5]}',
        b'{"instances": [{"x": 1.0}, {"x": -2e-3}]}',
        b'{"signature_name": "classify_x_to_y", "inputs": {"inputs": [{"b64": "%s"}]}}' % b64encode(EXAMPLE),
        b'{"inputs": {"x": [[1, 2], [3, -4e5]]}}',
        b'{"instances": ' + json.dumps(np.arange(1500).reshape(50, 30).tolist()).encode() + b"}",
    ],
    "/v1/models/echo:predict": [
        b'{"instances": [{"a": [1, 2], "b": 3}]}',
        b'{"signature_name": "int8", "inputs": [[1], [-2]]}',
        b'{"signature_name": "string", "instances": ["a", {"b64": "AA=="}]}',
        b'{"signature_name": "uint64", "instances": [18446744073709551615, 0]}',
        b'{"signature_name": "float64", "instances": [NaN, Infinity, 1e300]}',
    ],
    "/v1/models/default:classify": [
        b'{"signature_name": "classify_x_to_y", "examples": [{"x": 2.0}, {"x": [3.5], "y": [1, true]}]}',
        b'{"signature_name": "classify_x_to_y", "context": {"x": 1.5, "z": {"b64": "AA=="}}, "examples": [{}]}',
    ],
    "/v1/models/default:regress": [b'{"signature_name": "regress_x_to_y", "examples": [{"x": 2.0}]}'],
    "/v2/models/default/infer": [
        b'{"id": "1", "inputs": [{"name": "x", "shape": [2], "datatype": "FP32", "data": [1.5, 2]}]}',
        b'{"inputs": [{"name": "x", "shape": [2, 1], "datatype": "FP32", "data": [[1], [2]]}], '
        b'"outputs": [{"name": "y", "parameters": {"binary_data": true}}]}',
    ],
}  # fmt: skip


# Damage

SNIPPETS = [
    b"\xff" * 9 + b"\x01", b"\x80\x80\x80\x80\x08", b"\x12\x00", b"\x08\x07", b"[", b"]", b"{", b"}", b'"', b",", b":",
    b"null", b"true", b"NaN", b"-", b"1e999", b"9" * 25, b"0.1", b'{"b64":"', b"\\ud800", b"\x00", b"[" * 2000,
]  # fmt: skip


def mutate(rng: random.Random, data: bytes, others: list[bytes]) -> bytes:
    """Change, remove, insert, repeat or cut off a few bytes, or put in a piece of another request."""
    damaged = bytearray(data)
    for _ in range(rng.choice([1, 1, 1, 2, 4])):
        at = rng.randrange(len(damaged)) if damaged else 0
        kind = rng.choice(["change", "flip", "remove", "insert", "repeat", "snippet", "splice", "cut"])
        if kind == "change":
            damaged[at : at + 1] = bytes([rng.randrange(256)])
        elif kind == "flip" and damaged:
            damaged[at] ^= 1 << rng.randrange(8)
        elif kind == "remove":
            del damaged[at : at + rng.randint(1, 5)]
        elif kind == "insert":
            damaged[at:at] = rng.randbytes(rng.randint(1, 5))
        elif kind == "repeat":
            damaged[at : at + 1] *= rng.randint(2, 9)
        elif kind == "snippet":
            damaged[at : at + rng.randint(0, 3)] = rng.choice(SNIPPETS)
        elif kind == "splice":
            other = rng.choice(others)
            begin = rng.randrange(len(other))
            damaged[at : at + rng.randint(0, 8)] = other[begin : begin + rng.randint(1, 20)]
        elif kind == "cut" and rng.random() < 0.3:
            del damaged[at:]
    return bytes(damaged)


ODD_VALUES: list[Any] = [
    None, True, 0, -1, 2**31, 2**63, 2**64, 2**70, 0.5, 1e39, float("nan"), float("inf"), "", "\ud800", [], {},
    [[]], [1, [2]], {"b64": "AA=="}, {"b64": "A"}, {"b64": 1}, {"x": 1}, [1.0] * 300, "x" * 5000,
]  # fmt: skip


def change_json(rng: random.Random, data: bytes) -> bytes:
    """Replace, remove or double a value somewhere in a document: what is still JSON gets further."""
    document = json.loads(data)
    place = document
    while True:
        keys = list(place) if isinstance(place, dict) else list(range(len(place)))
        if not keys:
            break
        key = rng.choice(keys)
        if isinstance(place[key], dict | list) and rng.random() < 0.7:
            place = place[key]
            continue
        kind = rng.choice(["replace", "replace", "remove", "double"])
        if kind == "replace":
            place[key] = rng.choice(ODD_VALUES)
        elif kind == "remove":
            del place[key]
        elif isinstance(place, list):
            place.append(place[key])
        else:
            place[f"{key}2"] = place[key]
        break
    return json.dumps(document).encode()


# The server and what it may answer


class Target:
    """A server to be asked; each answer is checked."""

    def __init__(self, grpc_port: int, rest_port: int) -> None:
        self._channel = grpc.insecure_channel(f"127.0.0.1:{grpc_port}")
        self._http = httpx2.Client(base_url=f"http://127.0.0.1:{rest_port}", timeout=120)
        self.asked = 0

    def close(self) -> None:
        self._http.close()
        self._channel.close()

    def grpc(self, method: str, data: bytes) -> str:
        self.asked += 1
        call = self._channel.unary_unary(method).future(data, timeout=120)
        refusal = call.exception()
        if refusal is None:
            return "OK"
        status: str = call.code().name
        assert status in REFUSALS, (method, data, refusal)
        assert call.details(), (method, data, status)
        return status

    def rest(self, path: str, body: bytes, headers: dict[str, str] | None = None) -> int:
        self.asked += 1
        reply = self._http.post(path, content=body, headers=headers)
        assert reply.status_code in (200, 400, 404, 405, 413, 415, 429, 501), (path, body, headers, reply.text)
        if path.startswith(("/v1/", "/v2/")):
            answer = reply.content[: int(reply.headers.get("inference-header-content-length", len(reply.content)))]
            document = json.loads(answer)
            assert reply.status_code == 200 or document["error"], (path, body, reply.text)
        return int(reply.status_code)


def damage_grpc(target: Target, method: str, rounds: int, seed: int = 0) -> None:
    rng = random.Random(f"{method} {seed}")
    seeds = GRPC_SEEDS[method]()
    for _ in range(rounds):
        target.grpc(method, mutate(rng, rng.choice(seeds), seeds))


def damage_rest(target: Target, path: str, rounds: int, seed: int = 0) -> None:
    rng = random.Random(f"{path} {seed}")
    seeds = REST_SEEDS[path]
    for i in range(rounds):
        body, headers = rng.choice(seeds), {}
        body = change_json(rng, body) if i % 2 else mutate(rng, body, seeds)
        if i % 10 == 0:
            body, headers = gzip.compress(body), {"content-encoding": "gzip"}
            body = mutate(rng, body, [body]) if i % 20 else body
        elif i % 10 == 1 and path.startswith("/v2/"):
            headers = {"inference-header-content-length": str(rng.randrange(len(body) + 20))}
        target.rest(path, body, headers)


def check_that_seeds_are_answered(target: Target) -> None:
    for method, seeds in GRPC_SEEDS.items():
        assert [target.grpc(method, data) for data in seeds()] == ["OK"] * len(seeds())
    for path, bodies in REST_SEEDS.items():
        assert [target.rest(path, body) for body in bodies] == [200] * len(bodies)


# In this process, a share of it each time


@pytest.fixture(scope="module")
def target(testdata: Path, echo_base: Path, options: Callable[..., Any]) -> Iterator[Target]:
    with Server(options(testdata / "saved_model_half_plus_two_cpu", more_models={"echo": str(echo_base)})) as server:
        target = Target(server.grpc_port, server.rest_port)
        yield target
        target.close()


def test_the_requests_to_be_damaged_are_answered(target: Target) -> None:
    check_that_seeds_are_answered(target)


@pytest.mark.slow
@pytest.mark.parametrize("method", GRPC_SEEDS)
def test_grpc(target: Target, method: str) -> None:
    damage_grpc(target, method, QUICK_ROUNDS)


@pytest.mark.parametrize("path", REST_SEEDS)
def test_rest(target: Target, path: str) -> None:
    damage_rest(target, path, QUICK_ROUNDS)


def test_paths(target: Target) -> None:
    rng = random.Random(5)
    seeds = [path.encode() for path in REST_SEEDS]
    for _ in range(QUICK_ROUNDS):
        damaged = mutate(rng, rng.choice(seeds), seeds).decode("latin-1")
        target.rest("/v1/" + re.sub(r"[^!-~]|[#\\]", "%", damaged)[4:], b"{}")


# In a process of its own, ten thousand in one run


class Process:
    """`moxserve serve` with the two models."""

    def __init__(self, bases: dict[str, Path], log: Path) -> None:
        self.ports = free_port(), free_port()
        command = [
            *(sys.executable, "-m", "moxserve", "serve", "--host=127.0.0.1", "--model_config_reload_wait_seconds=0.1"),
            *(f"--port={self.ports[0]}", f"--rest_api_port={self.ports[1]}"),
            *(f"--model={name}={base}" for name, base in bases.items()),
        ]
        self._log = log
        with log.open("wb") as out:
            self.popen = subprocess.Popen(command, stdout=out, stderr=out)

    def wait(self) -> None:
        deadline = time.monotonic() + 240
        while b"Exporting HTTP/REST API" not in self._log.read_bytes():
            assert self.popen.poll() is None, self._log.read_text()
            assert time.monotonic() < deadline, self._log.read_text()
            time.sleep(0.05)

    def resident_bytes(self) -> int:
        with open(f"/proc/{self.popen.pid}/statm") as f:
            return int(f.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")


@pytest.fixture
def process(testdata: Path, echo_base: Path, tmp_path: Path) -> Iterator[Process]:
    started = Process({"default": testdata / "saved_model_half_plus_two_cpu", "echo": echo_base}, tmp_path / "log")
    try:
        started.wait()
        yield started
    finally:
        started.popen.kill()
        started.popen.wait(10)


def damage_all(target: Target, rounds: int, seed: int) -> None:
    for method in GRPC_SEEDS:
        damage_grpc(target, method, rounds, seed)
    for path in REST_SEEDS:
        damage_rest(target, path, rounds, seed)


def reload_request(bases: dict[str, Path]) -> bytes:
    request = messages.ReloadConfigRequest()
    for name, base in bases.items():
        request.config.model_config_list.config.add(name=name, base_path=str(base), model_platform="tensorflow")
    data: bytes = request.SerializeToString()
    return data


def damage_reloads(target: Target, bases: dict[str, Path], rounds: int) -> None:
    method, valid = f"/{MODELS}/HandleReloadConfigRequest", reload_request(bases)
    rng = random.Random(method)
    for _ in range(rounds):
        if target.grpc(method, mutate(rng, valid, [valid])) == "OK":
            assert target.grpc(method, valid) == "OK"
    assert target.grpc(method, valid) == "OK"


tensors = st.fixed_dictionaries(
    {"dtype": st.integers(0, 25)},
    optional={
        "tensor_content": st.binary(max_size=20),
        "float_val": st.lists(st.floats(width=32), max_size=3),
        "int_val": st.lists(st.integers(-5, 300), max_size=3),
        "string_val": st.lists(st.binary(max_size=3), max_size=3),
    },
)
dims = st.lists(st.one_of(st.integers(0, 3), st.sampled_from([-1, 2**20, 2**40, 2**62])), max_size=5)
values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=4) | st.just({"b64": "AA"}),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.sampled_from(["x", "a", "b64", "data"]), inner),
    max_leaves=12,
)
keys = ["instances", "inputs", "examples", "context", "signature_name", "outputs", "id"]
signatures = st.sampled_from(["", "float32", "string", "int8", "float16", "text", "failing", "uneven", "total", "none"])


def ask_made_up_requests(target: Target, count: int) -> None:
    """Requests that hypothesis makes up: well-formed messages and JSON without much sense."""

    @given(signatures, st.dictionaries(st.sampled_from(["x", "a", "b", "text"]), st.tuples(tensors, dims), max_size=3))
    @settings(max_examples=count, deadline=None, database=None)
    def ask_grpc(signature: str, inputs: dict[str, Any]) -> None:
        request = messages.PredictRequest()
        request.model_spec.name, request.model_spec.signature_name = "echo", signature
        for alias, (fields, shape) in inputs.items():
            request.inputs[alias].MergeFrom(messages.TensorProto(**fields))
            for size in shape:
                request.inputs[alias].tensor_shape.dim.add().size = size
        target.grpc(f"/{PREDICTION}/Predict", request.SerializeToString())

    @given(st.sampled_from(list(REST_SEEDS)), st.dictionaries(st.sampled_from(keys), values, max_size=3), signatures)
    @settings(max_examples=count, deadline=None, database=None)
    def ask_rest(path: str, document: dict[str, Any], signature: str) -> None:
        target.rest(path, json.dumps({"signature_name": signature, **document}).encode())

    ask_grpc()
    ask_rest()


@pytest.mark.slow
def test_ten_thousand_requests_leave_the_server_as_it_was(process: Process, testdata: Path, echo_base: Path) -> None:
    target = Target(*process.ports)
    check_that_seeds_are_answered(target)
    damage_all(target, WARM_ROUNDS, 1)
    ask_made_up_requests(target, 300)
    warm = process.resident_bytes()
    damage_all(target, ROUNDS, 2)
    ask_made_up_requests(target, 500)
    grown = process.resident_bytes() / warm - 1
    bases = {"default": testdata / "saved_model_half_plus_two_cpu", "echo": echo_base}
    damage_reloads(target, bases, 60)
    check_that_seeds_are_answered(target)
    assert target.asked >= 10_000
    assert process.popen.poll() is None
    target.close()
    assert grown <= 0.05, f"{target.asked} requests made the server grow by {grown:.1%}"
