"""Batching is above the runtimes: the others get batches as TensorFlow does."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from moxserve.serving import backends
from moxserve.serving.backends import LoadOptions
from moxserve.serving.batching import BatchingParameters

FULL = BatchingParameters(max_batch_size=4, batch_timeout_micros=3_600_000_000)


def together(runner_of: Any, backend: Any, signature: str, values: list[float]) -> tuple[Any, list[Any]]:
    stage = runner_of(backend, FULL)

    async def scenario() -> list[Any]:
        asks = [stage.ask(np.float32([[value]]), signature) for value in values]
        return await asyncio.wait_for(asyncio.gather(*asks), 120)

    try:
        return stage, asyncio.run(scenario())
    finally:
        stage.close()


def test_onnx(tmp_path: Path, make_stage: Any) -> None:
    onnx = pytest.importorskip("onnx")
    pytest.importorskip("onnxruntime")
    from onnx import TensorProto, helper

    graph = helper.make_graph(
        [
            helper.make_node("Mul", ["x", "half"], ["scaled"]),
            helper.make_node("Add", ["scaled", "two"], ["y"]),
        ],
        "half_plus_two",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["batch", 1])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["batch", 1])],
        [
            helper.make_tensor("half", TensorProto.FLOAT, [], [0.5]),
            helper.make_tensor("two", TensorProto.FLOAT, [], [2.0]),
        ],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)
    onnx.save(model, tmp_path / "model.onnx")
    backend = backends.load(tmp_path)
    try:
        stage, answers = together(make_stage, backend, "serving_default", [1.0, 2.0, 3.0, 4.0])
    finally:
        backend.close()
    assert [a["y"].tolist() for a in answers] == [[[2.5]], [[3.0]], [[3.5]], [[4.0]]]
    assert stage.metrics.wrapped_runs.value(()) == 1


def test_tflite(testdata: Path, make_stage: Any) -> None:
    backend = backends.load(testdata / "saved_model_half_plus_two_tflite" / "00000123", LoadOptions(backend="tflite"))
    try:
        stage, answers = together(make_stage, backend, "serving_default", [1.0, 2.0, 3.0, 4.0])
    finally:
        backend.close()
    assert [a["y"].tolist() for a in answers] == [[[2.5]], [[3.0]], [[3.5]], [[4.0]]]
    assert stage.metrics.wrapped_runs.value(()) == 1
