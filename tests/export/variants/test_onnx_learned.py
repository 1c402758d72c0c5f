"""ONNX of graphs that quantization-aware training has left its ranges in."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
import pytest

from moxserve.errors import ExportError
from moxserve.export.targets import Calibration, Target
from moxserve.export.variants.onnx import convert
from moxserve.export.variants.onnx.learned import Grid, mark, simulate

INT8 = Target("onnx", "int8")


class _Net:
    """Layers with fake quantization, as the exporter sees them after training: everything is a variable's value."""

    def __init__(self) -> None:
        self.random = np.random.default_rng(0)
        self.count = 0

    def value(self, array: Any) -> Any:
        from moxserve.tensorflow.executor.env import tf1

        self.count += 1
        return tf1.get_variable(f"v{self.count}", initializer=np.asarray(array, np.float32))

    def activation(self, x: Any, low: float, high: float) -> Any:
        from moxserve.tensorflow.executor.env import tf

        return tf.quantization.fake_quant_with_min_max_vars(x, self.value(low), self.value(high))

    def weights(self, *shape: int) -> tuple[np.ndarray, Any]:
        """Weights of per-channel ranges that are wider than they are, so that the ranges cannot be guessed."""
        from moxserve.tensorflow.executor.env import tf

        array = self.random.normal(0, (2 / np.prod(shape[:-1])) ** 0.5, shape).astype(np.float32)
        ends = 1.3 * np.abs(array).reshape(-1, shape[-1]).max(0)
        fake = tf.quantization.fake_quant_with_min_max_vars_per_channel
        return ends, fake(self.value(array), self.value(-ends), self.value(ends), narrow_range=True)

    def conv(self, x: Any, name: str, channels: int, size: int = 3, stride: int = 1) -> Any:
        from moxserve.tensorflow.executor.env import tf

        _, weights = self.weights(size, size, int(x.shape[-1]), channels)
        bias = self.value(self.random.normal(0, 0.1, channels))
        return tf.nn.bias_add(tf.nn.conv2d(x, weights, stride, "SAME", name=f"{name}/Conv2D"), bias, name=f"{name}/b")

    def depthwise(self, x: Any, name: str) -> Any:
        from moxserve.tensorflow.executor.env import tf

        channels = int(x.shape[-1])
        _, flat = self.weights(3, 3, channels * 2)
        weights = tf.reshape(flat, [3, 3, channels, 2])
        y = tf.nn.depthwise_conv2d(x, weights, [1, 1, 1, 1], "SAME", name=f"{name}/depthwise")
        return tf.nn.bias_add(y, self.value(self.random.normal(0, 0.1, channels * 2)))

    def dense(self, x: Any, name: str, units: int) -> Any:
        """One range for all weights, not symmetric."""
        from moxserve.tensorflow.executor.env import tf

        array = self.random.normal(0, 0.2, (int(x.shape[-1]), units)).astype(np.float32)
        low, high = self.value(array.min()), self.value(array.max() * 1.2)
        weights = tf.quantization.fake_quant_with_min_max_vars(self.value(array), low, high)
        return tf.nn.bias_add(tf.matmul(x, weights, name=f"{name}/MatMul"), self.value(self.random.normal(size=units)))


def _build() -> Any:
    from moxserve.tensorflow.executor.env import tf, tf1

    net = _Net()
    images = tf1.placeholder(tf.float32, [None, 16, 16, 3], "images")
    x = net.activation(images, -0.02, 1.0)
    x = net.activation(tf.nn.relu(net.conv(x, "c1", 8)), 0.0, 3.0)
    x = tf.nn.max_pool2d(x, 2, 2, "SAME")
    short = net.activation(net.conv(x, "c2", 16, 1, 2), -4.0, 4.0)
    y = net.activation(tf.nn.relu(net.conv(x, "c3", 16, 3, 2)), 0.0, 4.0)
    y = net.activation(net.conv(y, "c4", 16), -4.0, 4.5)
    x = net.activation(tf.nn.relu(short + y), 0.0, 5.0)
    x = net.activation(tf.nn.relu6(net.depthwise(x, "dw")), 0.0, 6.0)
    x = net.activation(tf.reduce_mean(x, [1, 2]), 0.0, 2.0)
    logits = net.activation(net.dense(x, "fc", 5), -4.0, 4.0)
    return {"images": images}, {"logits": logits, "probabilities": tf.nn.softmax(logits)}


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory, freeze_net: Any) -> Any:
    return freeze_net(tmp_path_factory.mktemp("learned") / "model", _build)


@pytest.fixture(scope="module")
def images() -> np.ndarray:
    return np.random.default_rng(7).random((64, 16, 16, 3), np.float32)


def _run(directory: Path, images: np.ndarray) -> np.ndarray:
    return ort.InferenceSession(str(directory / "model.onnx")).run(["logits"], {"images": images})[0]


def _error(got: np.ndarray, want: np.ndarray) -> float:
    return float(np.linalg.norm(got - want) / np.linalg.norm(want))


def test_int8_takes_the_learned_ranges_and_is_integer_all_through(
    trained: Any, images: np.ndarray, tmp_path: Path
) -> None:
    rows = trained.rows(tmp_path / "rows", {"images": images}, None, "probabilities")
    built = convert(trained.work(tmp_path / "1", INT8, learned=True, evaluation=rows))
    assert built.details["calibration"] == {"method": "learned", "per_channel": True}
    assert set(built.details["quantized"]) == {f"c{i}/Conv2D" for i in range(1, 5)} | {"dw/depthwise", "fc/MatMul"}
    assert built.details["float"] == []
    assert built.details["search"]["loss"] <= 0.05
    # A step of the logits is 8 / 255: what is rounded the other way is off by it.
    got, want = _run(tmp_path / "1", images), trained.run({"images": images})["logits"]
    assert np.abs(got - want).max() < 3.1 * 8 / 255
    assert _error(got, want) < 0.02
    options = ort.SessionOptions()
    options.optimized_model_filepath = str(tmp_path / "optimized.onnx")
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_ENABLE_EXTENDED
    ort.InferenceSession(str(tmp_path / "1" / "model.onnx"), options, providers=["CPUExecutionProvider"])
    kernels = Counter(node.op_type for node in onnx.load(tmp_path / "optimized.onnx").graph.node)
    assert kernels["QLinearConv"] == 5
    assert kernels["QGemm"] == kernels["QLinearAdd"] == kernels["QLinearGlobalAveragePool"] == 1
    assert not {"Conv", "Gemm", "MatMul", "Add", "Relu", "Clip", "FusedConv"} & kernels.keys()


def test_the_integers_are_those_of_the_trained_grid(trained: Any, tmp_path: Path) -> None:
    """Weights times their scale are exactly what TensorFlow multiplies by, although the ranges are wider than they."""
    convert(trained.work(tmp_path / "1", INT8, learned=True))
    _, weights = mark(trained.graph_def)
    graph = onnx.load(tmp_path / "1" / "model.onnx").graph
    constants = {t.name: onnx.numpy_helper.to_array(t) for t in graph.initializer}
    written = []
    for node in graph.node:
        if node.op_type == "DequantizeLinear" and constants.get(node.input[0], np.zeros(0)).dtype == np.int8:
            values, scale, zero = (constants[name].astype(np.float64) for name in node.input)
            axis = next((a.i for a in node.attribute if a.name == "axis"), 0)
            shape = [-1 if i == axis else 1 for i in range(values.ndim)] if scale.ndim else []
            written.append((values - zero.reshape(shape)) * scale.reshape(shape))
    assert len(written) == len(weights) == 6
    for learned in weights:
        wanted = np.sort(learned.values, axis=None)
        assert any(
            array.size == wanted.size and np.allclose(np.sort(array, axis=None), wanted, rtol=1e-6, atol=1e-8)
            for array in written
        )


def test_excluded_operations_stay_in_float32(trained: Any, images: np.ndarray, tmp_path: Path) -> None:
    settings = Calibration(exclude=("c3/*", "fc/MatMul"))
    built = convert(trained.work(tmp_path / "1", INT8, learned=True, settings=settings))
    assert built.details["float"] == [
        {"operation": "c3/Conv2D", "reason": "excluded by 'c3/*'"},
        {"operation": "fc/MatMul", "reason": "excluded by 'fc/MatMul'"},
    ]
    assert len(built.details["quantized"]) == 4
    assert _error(_run(tmp_path / "1", images), trained.run({"images": images})["logits"]) < 0.02


def test_simulation_computes_what_fake_quantization_does(trained: Any, images: np.ndarray) -> None:
    """But for the last bit of a number, which decides where one lies on the edge between two steps."""
    import dataclasses

    graph_def = simulate(trained.graph_def)
    assert not [node.op for node in graph_def.node if node.op.startswith("FakeQuant")]
    got = dataclasses.replace(trained, graph_def=graph_def).run({"images": images})["logits"]
    want = trained.run({"images": images})["logits"]
    assert (np.abs(got - want) > 1e-5).mean() < 0.05
    assert np.abs(got - want).max() < 1.1 * 8 / 255
    assert _error(got, want) < 0.01


@pytest.mark.slow
@pytest.mark.parametrize("precision", ["float32", "float16", "dynamic"])
def test_other_precisions_simulate(trained: Any, images: np.ndarray, tmp_path: Path, precision: Any) -> None:
    built = convert(trained.work(tmp_path / "1", Target("onnx", precision), learned=True))
    assert any("simulated" in note for note in built.notes)
    assert _error(_run(tmp_path / "1", images), trained.run({"images": images})["logits"]) < 0.02


def test_what_was_not_trained_stays_in_float32_and_is_told(freeze_net: Any, images: np.ndarray, tmp_path: Path) -> None:
    def build() -> Any:
        from moxserve.tensorflow.executor.env import tf, tf1

        net = _Net()
        x = tf1.placeholder(tf.float32, [None, 16, 16, 3], "images")
        y = net.activation(tf.nn.relu(net.conv(net.activation(x, 0, 1), "good", 8)), 0, 4)
        y = tf.nn.relu(tf.nn.conv2d(y, tf1.get_variable("w", [3, 3, 8, 8]), 2, "SAME", name="plain/Conv2D"))
        y = net.conv(y, "blind", 4)
        return {"images": x}, {"logits": tf.reduce_mean(y, [1, 2])}

    frozen = freeze_net(tmp_path / "model", build)
    built = convert(frozen.work(tmp_path / "1", INT8, learned=True))
    assert built.details["quantized"] == ["good/Conv2D"]
    assert built.details["float"] == [
        {"operation": "plain/Conv2D", "reason": "its weights were not fake-quantized in training"},
        {"operation": "blind/Conv2D", "reason": "its input was not fake-quantized in training"},
    ]
    assert any("2 operations stay in float32" in note for note in built.notes)
    assert _error(_run(tmp_path / "1", images), frozen.run({"images": images})["logits"]) < 0.02


def test_ranges_of_other_widths_are_simulated(freeze_net: Any, images: np.ndarray, tmp_path: Path) -> None:
    """4 bits, narrow ranges and ranges for each channel of an activation have no integer kernels."""

    def build() -> Any:
        from moxserve.tensorflow.executor.env import tf, tf1

        net = _Net()
        x = tf1.placeholder(tf.float32, [None, 16, 16, 3], "images")
        y = net.activation(tf.nn.relu(net.conv(net.activation(x, 0, 1), "good", 8)), 0, 4)
        y = tf.quantization.fake_quant_with_min_max_vars(net.conv(y, "c", 4), net.value(-3), net.value(3), num_bits=4)
        y = tf.quantization.fake_quant_with_min_max_args(y, -2.0, 2.5, narrow_range=True)
        ends = net.value([1.0, 2.0, 3.0, 1.5])
        y = tf.quantization.fake_quant_with_min_max_vars_per_channel(y, -ends, ends)
        return {"images": x}, {"logits": tf.reduce_mean(y, [1, 2])}

    frozen = freeze_net(tmp_path / "model", build)
    built = convert(frozen.work(tmp_path / "1", INT8, learned=True))
    assert built.details["quantized"] == ["good/Conv2D", "c/Conv2D"]
    assert _error(_run(tmp_path / "1", images), frozen.run({"images": images})["logits"]) < 0.02


def test_a_range_that_was_never_trained_is_refused(freeze_net: Any, tmp_path: Path) -> None:
    def build() -> Any:
        from moxserve.tensorflow.executor.env import tf, tf1

        net = _Net()
        x = tf1.placeholder(tf.float32, [None, 2], "x")
        fake = tf.quantization.fake_quant_with_min_max_vars
        return {"x": x}, {"y": fake(x, net.value(0.0), net.value(0.0), name="input_range")}

    frozen = freeze_net(tmp_path / "model", build)
    with pytest.raises(ExportError, match="the learned range of 'input_range' is 0 to 0: it was never trained"):
        convert(frozen.work(tmp_path / "1", INT8, learned=True))


@pytest.mark.parametrize(("low", "high"), [(-1.0, 1.0), (0.0, 6.0), (-0.1, 3.7), (0.5, 2.0), (-3.0, -1.0)])
@pytest.mark.parametrize("narrow", [False, True])
def test_a_grid_is_nudged_as_by_tensorflow(low: float, high: float, narrow: bool) -> None:
    from moxserve.tensorflow.executor.env import tf, tf1

    values = np.linspace(low - 1, high + 1, 4001, dtype=np.float32)
    with tf.Graph().as_default() as graph, tf1.Session() as session:
        fake = tf.quantization.fake_quant_with_min_max_vars(values, low, high, narrow_range=narrow, name="f")
        want = session.run(fake)
        grid = Grid.of(graph.get_operation_by_name("f").node_def, np.float32(low), np.float32(high))
    steps = np.floor((np.clip(values, grid.low, grid.high) - grid.low) / grid.scale + 0.5)
    got = steps * grid.scale + grid.low
    assert (np.abs(got - want) > 1e-5).mean() < 0.002
    assert grid.low == pytest.approx(want.min(), abs=1e-5)
    assert grid.high == pytest.approx(want.max(), abs=1e-5)
