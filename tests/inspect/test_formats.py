"""Models of other runtimes, read from the file alone and held against what made them."""

from __future__ import annotations

import contextlib
import tempfile
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from moxserve.errors import DataError
from moxserve.inspect.formats import TensorFact, read_model


@pytest.fixture
def onnx_file(tmp_path: Path) -> Path:
    onnx = pytest.importorskip("onnx")
    helper = onnx.helper
    weights = onnx.numpy_helper.from_array(np.ones((4, 3), np.float32), "w")
    nodes = [
        helper.make_node("MatMul", ["x", "w"], ["h"]),
        helper.make_node("Relu", ["h"], ["r"]),
        helper.make_node("Fuse", ["r"], ["y"], domain="acme"),
    ]
    graph = helper.make_graph(
        nodes,
        "g",
        [helper.make_tensor_value_info("x", onnx.TensorProto.FLOAT, ["batch", 4])],
        [helper.make_tensor_value_info("y", onnx.TensorProto.FLOAT, None)],
        [weights],
    )
    opsets = [helper.make_opsetid("", 17), helper.make_opsetid("acme", 1)]
    path = tmp_path / "model.onnx"
    onnx.save(helper.make_model(graph, opset_imports=opsets, producer_name="us"), str(path))
    return path


def test_onnx(onnx_file: Path) -> None:
    facts = read_model(str(onnx_file), "onnx")
    assert facts.inputs == [TensorFact("x", "float32", (None, 4))]
    assert facts.outputs == [TensorFact("y", "float32", None)]
    assert facts.ops == {"MatMul": 1, "Relu": 1, "acme.Fuse": 1}
    assert facts.unknown == ["acme.Fuse"]
    assert (facts.weights, facts.producer, facts.versions["opset ai.onnx"]) == (1, "us", 17)
    assert facts.weight_bytes >= 48


def test_tflite(tmp_path: Path, eager: None) -> None:
    import tensorflow as tf

    weights = np.arange(12, dtype=np.float32).reshape(4, 3)

    @tf.function(input_signature=[tf.TensorSpec([None, 4], tf.float32, name="x")])
    def model(x):
        return {"y": tf.nn.relu(tf.matmul(x, weights))}

    path = tmp_path / "model.tflite"
    converter = tf.lite.TFLiteConverter.from_concrete_functions([model.get_concrete_function()], tf.Module())
    path.write_bytes(converter.convert())
    facts = read_model(str(path), "tflite")
    assert [(f.dtype, f.shape) for f in facts.inputs] == [("float32", (None, 4))]
    assert [(f.dtype, f.shape) for f in facts.outputs] == [("float32", (None, 3))]
    assert facts.ops["FULLY_CONNECTED"] == 1
    assert facts.unknown == []
    assert facts.weight_bytes >= weights.nbytes


def test_tflite_of_tensorflow_serving(tfserving: Path) -> None:
    pytest.importorskip("flatbuffers")
    facts = read_model(str(tfserving / "parse_example_tflite" / "00000123" / "model.tflite"), "tflite")
    assert facts.unknown == ["ParseExampleV2"]
    assert [f.dtype for f in facts.inputs] == ["string"]
    half = read_model(str(tfserving / "saved_model_half_plus_two_tflite" / "00000123" / "model.tflite"), "tflite")
    assert set(half.ops) == {"MUL", "ADD"}


def test_openvino(tmp_path: Path) -> None:
    ov = pytest.importorskip("openvino")
    ops = ov.opset13
    x = ops.parameter([-1, 4], np.float32, name="x")
    y = ops.relu(ops.matmul(x, ops.constant(np.ones((4, 3), np.float32)), False, False), name="y")
    y.output(0).set_names({"scores"})
    x.output(0).set_names({"x"})
    ov.save_model(ov.Model([y], [x], "m"), str(tmp_path / "model.xml"), compress_to_fp16=False)
    facts = read_model(str(tmp_path / "model.xml"), "openvino")
    assert facts.inputs == [TensorFact("x", "float32", (None, 4))]
    assert [(f.dtype, f.shape) for f in facts.outputs] == [("float32", (None, 3))]
    assert facts.ops == {"MatMul": 1, "ReLU": 1}
    assert (facts.weights, facts.weight_bytes) == (1, 48)
    (tmp_path / "model.bin").unlink()
    with pytest.raises(DataError, match=r"its weights are missing: model\.bin"):
        read_model(str(tmp_path / "model.xml"), "openvino")


@pytest.mark.parametrize("kind", ["onnx", "tflite", "openvino"])
@pytest.mark.parametrize("content", [b"", b"\0" * 64, b"hello", b"\x1c\0\0\0TFL3" + b"\xff" * 60, b"<net><a/></net>"])
def test_what_is_no_model_is_refused_by_name(tmp_path: Path, kind: str, content: bytes) -> None:
    path = tmp_path / "model.bin"
    path.write_bytes(content)
    with pytest.raises(DataError, match=r"model\.bin is no .* model"):
        read_model(str(path), kind)


def test_a_truncated_model_is_refused(onnx_file: Path, tfserving: Path, tmp_path: Path) -> None:
    for path, kind in [(onnx_file, "onnx"), (tfserving / "parse_example_tflite/00000123/model.tflite", "tflite")]:
        (tmp_path / "cut").write_bytes(path.read_bytes()[:-30] if kind == "onnx" else path.read_bytes()[:300])
        with pytest.raises(DataError, match=r"cut is no .* model, or damaged"):
            read_model(str(tmp_path / "cut"), kind)


@pytest.fixture
def whole_models(onnx_file: Path, tfserving: Path) -> dict[str, bytes]:
    """A model of each binary format, as bytes."""
    tflite = tfserving / "saved_model_half_plus_two_tflite_with_sigdef" / "00000123" / "model.tflite"
    return {"onnx": onnx_file.read_bytes(), "tflite": tflite.read_bytes()}


@settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(st.tuples(st.integers(0, 2000), st.integers(0, 255)), min_size=1, max_size=12), st.integers(0, 300))
def test_damaged_models_never_end_in_another_error(
    whole_models: dict[str, bytes], damage: list[tuple[int, int]], cut: int
) -> None:
    for kind, whole in whole_models.items():
        data = bytearray(whole[: max(12, len(whole) - cut)])
        for place, value in damage:
            data[place % len(data)] = value
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "model"
            path.write_bytes(data)
            with contextlib.suppress(DataError):
                read_model(str(path), kind)
