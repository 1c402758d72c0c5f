"""Damaged requests get a reason, never a crash or a 5xx."""

from __future__ import annotations

import json
import random
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import grpc
import httpx2
import numpy as np
import pytest

from moxserve.protocol import messages
from moxserve.protocol.examples import make_example
from moxserve.protocol.tensors import to_proto
from moxserve.serving.main import Server

ROUNDS = 600
REFUSALS = {"INVALID_ARGUMENT", "NOT_FOUND", "FAILED_PRECONDITION", "UNIMPLEMENTED"}


@pytest.fixture(scope="module")
def server(testdata: Path, options: Callable[..., Any]) -> Iterator[Server]:
    with Server(options(testdata / "saved_model_half_plus_two_cpu")) as server:
        yield server


def mutate(rng: random.Random, data: bytes) -> bytes:
    """Change, remove, insert or repeat a few bytes."""
    damaged = bytearray(data)
    for _ in range(rng.randint(1, 4)):
        at = rng.randrange(len(damaged)) if damaged else 0
        kind = rng.choice(["change", "remove", "insert", "repeat"])
        if kind == "change":
            damaged[at : at + 1] = bytes([rng.randrange(256)])
        elif kind == "remove":
            del damaged[at : at + rng.randint(1, 5)]
        elif kind == "insert":
            damaged[at:at] = rng.randbytes(rng.randint(1, 5))
        else:
            damaged[at : at + 1] *= rng.randint(2, 9)
    return bytes(damaged)


def predict_requests() -> list[bytes]:
    requests = []
    values = {"": np.float32([1, 2]), "classify_x_to_y": np.array([b"a"], object), "regress_x2_to_y3": np.int64([[1]])}
    for signature, value in values.items():
        request = messages.PredictRequest()
        request.model_spec.name = "default"
        request.model_spec.signature_name = signature
        request.inputs["inputs" if signature else "x"].CopyFrom(to_proto(value))
        requests.append(request.SerializeToString())
    return requests


def example_requests(kind: str) -> list[bytes]:
    """Requests of classify, regress or multi-inference, with and without a context."""
    requests = []
    for context in (False, True):
        request = getattr(messages, kind)()
        if kind == "MultiInferenceRequest":
            for signature, method in (("classify_x_to_y", "classify"), ("regress_x_to_y2", "regress")):
                task = request.tasks.add(method_name=f"tensorflow/serving/{method}")
                task.model_spec.name = "default"
                task.model_spec.signature_name = signature
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


SEEDS: dict[str, Callable[[], list[bytes]]] = {
    "Classify": partial(example_requests, "ClassificationRequest"),
    "Regress": partial(example_requests, "RegressionRequest"),
    "MultiInference": partial(example_requests, "MultiInferenceRequest"),
}


@pytest.mark.parametrize(
    "method",
    [
        "PredictionService/Predict",
        "PredictionService/GetModelMetadata",
        "ModelService/GetModelStatus",
        "PredictionService/Classify",
        "PredictionService/Regress",
        "PredictionService/MultiInference",
    ],
)
def test_grpc(server: Server, method: str) -> None:
    rng = random.Random(method)
    seeds = SEEDS.get(method.partition("/")[2], predict_requests)()
    with grpc.insecure_channel(f"127.0.0.1:{server.grpc_port}") as channel:
        call = channel.unary_unary(f"/tensorflow.serving.{method}")
        for _ in range(ROUNDS):
            damaged = mutate(rng, rng.choice(seeds))
            refusal = None
            try:
                call(damaged, timeout=30)
            except grpc.RpcError as error:
                refusal = error
            if refusal is not None:
                assert refusal.code().name in REFUSALS, (damaged, refusal.details())
                assert refusal.details()


def test_rest_examples(server: Server) -> None:
    rng = random.Random(2)
    seeds = [
        b'{"signature_name": "classify_x_to_y", "examples": [{"x": 2.0}, {"x": [3.5], "y": [1, true]}]}',
        b'{"signature_name": "classify_x_to_y", "context": {"x": 1.5, "z": {"b64": "AA=="}}, "examples": [{}]}',
    ]
    with httpx2.Client(base_url=f"http://127.0.0.1:{server.rest_port}") as http:
        for _ in range(ROUNDS):
            damaged = mutate(rng, rng.choice(seeds))
            reply = http.post("/v1/models/default:classify", content=damaged)
            assert reply.status_code in (200, 400), (damaged, reply.text)
            answer = json.loads(reply.content)
            assert answer["error"] if reply.status_code != 200 else answer["results"]


def test_rest(server: Server) -> None:
    rng = random.Random(1)
    seeds = [
        b'{"instances": [1.0, 2.0, {"b64": "AA=="}]}',
        b'{"signature_name": "classify_x_to_y", "inputs": {"inputs": ["a"]}}',
        b'{"inputs": [[1, 2], [3, -4e5]]}',
    ]
    with httpx2.Client(base_url=f"http://127.0.0.1:{server.rest_port}") as http:
        for _ in range(ROUNDS):
            damaged = mutate(rng, rng.choice(seeds))
            reply = http.post("/v1/models/default:predict", content=damaged)
            assert reply.status_code in (200, 400, 501), (damaged, reply.text)
            answer = json.loads(reply.content)
            assert answer["error"] if reply.status_code != 200 else answer
