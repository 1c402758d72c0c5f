"""ONNX variants in floating point, and with dynamically quantized weights: nets of all kinds against TensorFlow."""

from __future__ import annotations

import dataclasses
import logging
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
import pytest

from moxserve.errors import ExportError, MissingExtraError, UsageError
from moxserve.export.targets import Calibration, Target
from moxserve.export.variants.onnx import convert
from moxserve.export.variants.onnx.model import save
from moxserve.export.variants.onnx.running import reason

FLOAT = Target("onnx")
Net = Callable[..., Any]


def _tf() -> tuple[Any, Any]:
    from moxserve.tensorflow.executor.env import tf, tf1

    return tf, tf1


def _variable(name: str, *shape: int, **options: Any) -> Any:
    _, tf1 = _tf()
    return tf1.get_variable(name, shape, **options)


def _norm(x: Any, name: str) -> Any:
    """A batch normalization that has seen data."""
    _, tf1 = _tf()
    channels = x.shape[-1]
    ranges = {"gamma": (0.7, 1.3), "beta": (-0.3, 0.3), "mean": (-0.3, 0.3), "variance": (0.5, 1.5)}
    values = [
        _variable(f"{name}/{key}", channels, initializer=tf1.random_uniform_initializer(*ends))
        for key, ends in ranges.items()
    ]
    return tf1.nn.fused_batch_norm(x, *values[:2], mean=values[2], variance=values[3], is_training=False, name=name)[0]


def _conv(x: Any, name: str, channels: int, size: int = 3, stride: int = 1) -> Any:
    tf, _ = _tf()
    weights = _variable(f"{name}/w", size, size, x.shape[-1], channels)
    return tf.nn.conv2d(x, weights, stride, "SAME", name=f"{name}/Conv2D")


def lenet() -> Any:
    """uint8 in; probabilities and whole numbers out."""
    tf, tf1 = _tf()
    images = tf1.placeholder(tf.uint8, [None, 12, 12, 1], "images")
    x = tf.cast(images, tf.float32) / 255.0
    for i, channels in enumerate((8, 16)):
        x = tf.nn.bias_add(_conv(x, f"conv{i}", channels, 5), _variable(f"b{i}", channels))
        x = tf.nn.max_pool2d(tf.nn.relu(x), 2, 2, "SAME")
    x = tf.matmul(tf.reshape(x, [-1, 144]), _variable("w", 144, 10)) + _variable("b", 10)
    return {"images": images}, {"probabilities": tf.nn.softmax(x), "classes": tf.argmax(x, 1)}


def residual() -> Any:
    """Batch norms, a shortcut, a depthwise convolution with dilation, global pooling."""
    tf, tf1 = _tf()
    images = tf1.placeholder(tf.float32, [None, 16, 16, 3], "images")
    x = tf.nn.relu(_norm(_conv(images, "c1", 8), "n1"))
    y = _norm(_conv(tf.nn.relu(_norm(_conv(x, "c2", 16, stride=2), "n2")), "c3", 16), "n3")
    x = tf.nn.relu(y + _norm(_conv(x, "shortcut", 16, 1, 2), "ns"))
    x = tf.nn.depthwise_conv2d(x, _variable("dw", 3, 3, 16, 2), [1, 1, 1, 1], "SAME", dilations=[2, 2])
    x = tf.reduce_mean(tf.nn.relu6(_norm(x, "nd")), [1, 2])
    return {"x": images}, {"logits": tf.matmul(x, _variable("fc", 32, 5))}


def several() -> Any:
    """Inputs of different types, two heads, aliases that are names of other tensors, an input that nothing needs."""
    tf, tf1 = _tf()
    a = tf1.placeholder(tf.float32, [None, 4], "first")
    b = tf1.placeholder(tf.int32, [None, 4], "second")
    mask = tf1.placeholder(tf.bool, [None], "mask")
    unused = tf1.placeholder(tf.float32, [None, 2], "unused")
    both = tf.concat([a, tf.cast(b, tf.float32)], 1, name="b")  # `b` is an alias, too
    shared = tf.tanh(tf.matmul(both, _variable("w", 8, 6)))
    left = tf.where(mask, tf.reduce_sum(shared, 1), tf.zeros_like(shared[:, 0]))
    right = tf.nn.sigmoid(tf.matmul(shared, _variable("v", 6, 3)), name="a")
    return {"a": a, "b": b, "mask": mask, "second": unused}, {"left": left, "first": right}


def embedding() -> Any:
    """int64 identifiers of any length."""
    tf, tf1 = _tf()
    ids = tf1.placeholder(tf.int64, [None, None], "ids")
    words = tf.gather(_variable("table", 50, 8), ids)
    x = tf.reduce_mean(words, 1)
    return {"ids": ids}, {"logits": tf.matmul(x, _variable("w", 8, 4)), "longest": tf.reduce_max(ids, 1)}


def upsampling() -> Any:
    """Transposed convolution, resizing, padding, slices."""
    tf, tf1 = _tf()
    x = tf1.placeholder(tf.float32, [None, 5, 5, 2], "x")
    shape = tf.stack([tf.shape(x)[0], 10, 10, 3])
    y = tf.nn.conv2d_transpose(x, _variable("up", 3, 3, 3, 2), shape, 2, "SAME")
    y = tf1.image.resize_bilinear(tf.pad(y, [[0, 0], [1, 1], [2, 2], [0, 0]]), [9, 7])
    return {"x": x}, {"y": tf.nn.leaky_relu(y[:, 1:-1])}


def strings() -> Any:
    """Text that is passed through."""
    tf, tf1 = _tf()
    names = tf1.placeholder(tf.string, [None], "names")
    x = tf1.placeholder(tf.float32, [None, 2], "x")
    return {"names": names, "x": x}, {"names": tf.identity(names, "out"), "y": x * _variable("w", 2)}


def _sample(frozen: Any, rows: int) -> dict[str, np.ndarray]:
    random = np.random.default_rng(rows)
    made: dict[str, np.ndarray] = {}
    for alias, spec in frozen.signature.inputs.items():
        shape = [rows, *(3 if size is None else size for size in spec.shape[1:])]
        kind = spec.dtype.numpy
        if kind.kind == "O":
            made[alias] = np.array([f"n{i}ü".encode() for i in range(rows)], object)
        elif kind.kind == "f":
            made[alias] = random.normal(size=shape).astype(kind)
        else:
            made[alias] = random.integers(0, 2 if kind.kind == "b" else 50, shape).astype(kind)
    return made


def _answers(directory: str, names: Any, inputs: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """What the server's backend answers from a folder with one model, by the signature's aliases."""
    from moxserve.serving.backends import LoadOptions, load

    backend = load(directory, LoadOptions(backend="onnx"))
    got = backend.run("serving_default", {names.inputs[alias]: array for alias, array in inputs.items()})
    backend.close()
    return {alias: got[name] for alias, name in names.outputs.items()}


@pytest.fixture(scope="session")
def net(tmp_path_factory: pytest.TempPathFactory, freeze_net: Any) -> Net:
    """`net(build)`: the frozen graph of one of the nets above, made once."""
    made: dict[Any, Any] = {}

    def get(build: Any) -> Any:
        if build not in made:
            made[build] = freeze_net(tmp_path_factory.mktemp(build.__name__) / "model", build)
        return made[build]

    return get


@pytest.mark.slow
@pytest.mark.parametrize("build", [lenet, residual, several, embedding, upsampling, strings])
def test_float32_answers_as_tensorflow_does_for_any_batch(net: Net, build: Any, tmp_path: Path) -> None:
    frozen = net(build)
    built = convert(frozen.work(tmp_path / "1", FLOAT))
    assert built.file == "model.onnx"
    assert built.details["opset"] == 17
    assert built.details["size_bytes"] == os.path.getsize(tmp_path / "1" / "model.onnx")
    model = onnx.load(tmp_path / "1" / "model.onnx")
    assert {v.name for v in model.graph.input} == set(frozen.signature.inputs) == set(built.names.inputs)
    both = set(frozen.signature.inputs) & set(frozen.signature.outputs)
    assert built.names.outputs == {a: f"{a}_out" if a in both else a for a in frozen.signature.outputs}
    for rows in (1, 3, 32):
        inputs = _sample(frozen, rows)
        got = _answers(str(tmp_path / "1"), built.names, inputs)
        for alias, want in frozen.run(inputs).items():
            if want.dtype == object or want.dtype.kind in "iub":
                assert got[alias].tolist() == want.tolist()
            else:
                np.testing.assert_allclose(got[alias], want, rtol=1e-4, atol=1e-5)


def test_shapes_are_those_of_the_signature_with_a_batch_that_is_called_so(net: Net, tmp_path: Path) -> None:
    convert(net(embedding).work(tmp_path / "e", FLOAT))
    graph = onnx.load(tmp_path / "e" / "model.onnx").graph

    def dims(value: Any) -> list[Any]:
        return [d.dim_param or d.dim_value for d in value.type.tensor_type.shape.dim]

    assert {v.name: dims(v) for v in (*graph.input, *graph.output)} == {
        "ids": ["batch", "ids_1"], "logits": ["batch", 4], "longest": ["batch"],
    }  # fmt: skip
    convert(net(lenet).work(tmp_path / "l", FLOAT))
    assert dims(onnx.load(tmp_path / "l" / "model.onnx").graph.input[0]) == ["batch", 12, 12, 1]


def test_a_fixed_batch_stays_fixed(freeze_net: Any, tmp_path: Path) -> None:
    def build() -> Any:
        tf, tf1 = _tf()
        x = tf1.placeholder(tf.float32, [4, 3], "x")
        return {"x": x}, {"y": tf.matmul(x, _variable("w", 3, 2))}

    frozen = freeze_net(tmp_path / "model", build)
    convert(frozen.work(tmp_path / "1", FLOAT))
    session = ort.InferenceSession(str(tmp_path / "1" / "model.onnx"))
    assert session.get_inputs()[0].shape == [4, 3]
    assert session.get_outputs()[0].shape == [4, 2]
    inputs = _sample(frozen, 4)
    np.testing.assert_allclose(session.run(["y"], inputs)[0], frozen.run(inputs)["y"], rtol=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("opset", [9, 13, 18, 19, 21, 23])
def test_opsets_of_tf2onnx_and_beyond(net: Net, tmp_path: Path, opset: int) -> None:
    frozen = net(residual)
    built = convert(frozen.work(tmp_path / "1", FLOAT, opset=opset))
    assert built.details["opset"] == opset
    session = ort.InferenceSession(str(tmp_path / "1" / "model.onnx"))
    inputs = _sample(frozen, 3)
    np.testing.assert_allclose(session.run(["logits"], inputs)[0], frozen.run(inputs)["logits"], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("opset", [0, 6, 999])
def test_an_opset_that_nobody_writes_is_refused(net: Net, tmp_path: Path, opset: int) -> None:
    with pytest.raises(ExportError, match=rf"opset {opset}: expected 7 to \d+"):
        convert(net(lenet).work(tmp_path / "1", FLOAT, opset=opset))


@pytest.mark.parametrize(
    ("told", "shown"),
    [
        ("[ONNXRuntimeError] : 2 : INVALID_ARGUMENT : Invalid rank for input: x", "Invalid rank for input: x"),
        ("[ONNXRuntimeError] : 1 : FAIL : /a/b.h:46 void f(const c<d>&, int) Opset 27 is new.", "Opset 27 is new."),
        ("[ONNXRuntimeError] : 1 : FAIL : Load model from /m.onnx failed:/a.cc:2 x::Y(z&&) Unsupported", "Unsupported"),
        ("Required inputs (['x']) are missing", "Required inputs (['x']) are missing"),
    ],
)
def test_errors_of_the_runtime_are_told_without_its_source_files(told: str, shown: str) -> None:
    assert reason(RuntimeError(told)) == shown


def test_operations_without_a_form_in_onnx_are_listed(freeze_net: Any, tmp_path: Path, capfd: Any) -> None:
    def build() -> Any:
        tf, tf1 = _tf()
        text = tf1.placeholder(tf.string, [None], "text")
        x = tf.strings.to_number(tf.strings.regex_replace(text, "a", "1", name="clean"), name="digits")
        length = tf.cast(tf.strings.length(text, name="count"), tf.float32)
        return {"text": text}, {"y": tf.math.lgamma(x, name="gamma") + length}

    frozen = freeze_net(tmp_path / "model", build)
    logged = logging.getLogger("tf2onnx").handlers[:]
    capfd.readouterr()
    with pytest.raises(ExportError) as caught:
        convert(frozen.work(tmp_path / "1", FLOAT))
    message = caught.value.message
    assert "Lgamma (1, such as 'gamma')" in message
    assert "StaticRegexReplace (1, such as 'clean')" in message
    assert "StringLength (1, such as 'count')" in message
    assert "--signature" in str(caught.value.hint)
    assert "Lgamma" not in capfd.readouterr().err
    assert logging.getLogger("tf2onnx").handlers == logged


def test_float16_halves_the_weights_and_keeps_float32_outside(net: Net, tmp_path: Path) -> None:
    frozen = net(residual)
    wide = convert(frozen.work(tmp_path / "wide", FLOAT)).details["size_bytes"]
    built = convert(frozen.work(tmp_path / "1", Target("onnx", "float16")))
    assert built.details["size_bytes"] < 0.75 * wide
    assert any("space, not time" in note for note in built.notes)
    session = ort.InferenceSession(str(tmp_path / "1" / "model.onnx"))
    assert session.get_inputs()[0].type == session.get_outputs()[0].type == "tensor(float)"
    inputs = _sample(frozen, 9)
    want = frozen.run(inputs)["logits"]
    got = session.run(["logits"], inputs)[0]
    assert 0 < np.linalg.norm(got - want) / np.linalg.norm(want) < 1e-2


def test_dynamic_stores_weights_in_8_bits_and_leaves_convolutions_alone(net: Net, tmp_path: Path) -> None:
    frozen = net(embedding)
    built = convert(frozen.work(tmp_path / "1", Target("onnx", "dynamic")))
    assert set(built.details["quantized"]) == {"Gather", "MatMul"}
    assert built.details["operations"]["MatMulInteger"] == 1
    model = onnx.load(tmp_path / "1" / "model.onnx")
    types = {t.data_type for t in model.graph.initializer if len(t.dims) == 2}
    assert types <= {onnx.TensorProto.INT8, onnx.TensorProto.UINT8}
    inputs = _sample(frozen, 32)
    want = frozen.run(inputs)
    got = ort.InferenceSession(str(tmp_path / "1" / "model.onnx")).run(["logits", "longest"], inputs)
    assert np.linalg.norm(got[0] - want["logits"]) / np.linalg.norm(want["logits"]) < 0.05
    np.testing.assert_array_equal(got[1], want["longest"])
    built = convert(net(lenet).work(tmp_path / "2", Target("onnx", "dynamic")))
    assert built.details["quantized"] == ["MatMul"]
    assert built.details["float"] == [
        {"operation": name, "reason": "it would be slower"} for name in ("conv0/Conv2D", "conv1/Conv2D")
    ]
    assert any("2 convolutions stay in float32" in note for note in built.notes)


def test_dynamic_takes_exclusions_and_says_when_nothing_is_left(net: Net, tmp_path: Path) -> None:
    frozen, dynamic = net(embedding), Target("onnx", "dynamic")
    built = convert(frozen.work(tmp_path / "1", dynamic, settings=Calibration(exclude=("Gather*",))))
    assert built.details["quantized"] == ["MatMul"]
    assert built.details["float"] == [{"operation": "Gather", "reason": "excluded by 'Gather*'"}]
    with pytest.raises(ExportError, match="leaves nothing to quantize"):
        convert(frozen.work(tmp_path / "2", dynamic, settings=Calibration(exclude=("*",))))
    with pytest.raises(UsageError, match=r"'Matmul' matches no operation .* did you mean 'MatMul'"):
        convert(frozen.work(tmp_path / "3", dynamic, settings=Calibration(exclude=("Matmul",))))
    with pytest.raises(ExportError, match="dynamic quantization has nothing to do"):
        convert(net(upsampling).work(tmp_path / "4", dynamic))


def test_a_huge_model_has_its_weights_beside_it(net: Net, tmp_path: Path) -> None:
    frozen = net(residual)
    names = convert(frozen.work(tmp_path / "one", FLOAT)).names
    (tmp_path / "two").mkdir()
    save(onnx.load(tmp_path / "one" / "model.onnx"), str(tmp_path / "two"), max_bytes=1000)
    sizes = {p.name: p.stat().st_size for p in (tmp_path / "two").iterdir()}
    assert set(sizes) == {"model.onnx", "model.onnx.data"}
    assert sizes["model.onnx.data"] > 5000
    inputs = _sample(frozen, 2)
    got = _answers(str(tmp_path / "two"), names, inputs)["logits"]
    np.testing.assert_allclose(got, frozen.run(inputs)["logits"], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("package", ["onnx", "onnxruntime", "tf2onnx"])
def test_a_package_that_is_not_installed_is_named(
    net: Net, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, package: str
) -> None:
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(MissingExtraError, match=f"an ONNX variant needs {package}") as caught:
        convert(net(lenet).work(tmp_path / "1", FLOAT))
    assert "moxserve[onnx]" in str(caught.value.hint)


def test_importing_the_converter_loads_no_framework() -> None:
    code = (
        "import sys, moxserve.export.variants.onnx\n"
        "print([n for n in ('tensorflow', 'onnx', 'onnxruntime', 'tf2onnx') if n in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_a_graph_that_the_signature_does_not_fit_is_refused(net: Net, tmp_path: Path) -> None:
    frozen = net(lenet)
    outputs = {"other": dataclasses.replace(frozen.signature.outputs["classes"], name="other", tensor="gone:0")}
    signature = dataclasses.replace(frozen.signature, outputs=outputs)
    with pytest.raises(ExportError, match="the graph has no 'gone', which signature 'serving_default' names"):
        convert(frozen.work(tmp_path / "1", FLOAT, signature=signature))


@pytest.mark.slow
def test_gelu_and_attention(freeze_net: Any, tmp_path: Path) -> None:
    def build() -> Any:
        tf, tf1 = _tf()
        x = tf1.placeholder(tf.float32, [None, 6, 16], "x")
        q, k, v = (tf.tensordot(x, _variable(name, 16, 16), 1) for name in "qkv")
        y = tf.matmul(tf.nn.softmax(tf.matmul(q, k, transpose_b=True) / 4.0), v) + x
        mean, variance = tf.nn.moments(y, [-1], keepdims=True)
        y = tf.nn.gelu(tf.tensordot((y - mean) * tf.math.rsqrt(variance + 1e-5), _variable("f", 16, 8), 1))
        return {"x": x}, {"y": y}

    frozen = freeze_net(tmp_path / "model", build)
    inputs = _sample(frozen, 20)
    want = frozen.run(inputs)["y"]
    rows = frozen.rows(tmp_path / "rows", inputs)
    for precision, limit in (("float32", 1e-5), ("float16", 5e-3), ("dynamic", 0.1), ("int8", 0.1)):
        built = convert(
            frozen.work(tmp_path / precision, Target("onnx", precision), rows, settings=Calibration(max_drop=1.0))
        )
        got = _answers(str(tmp_path / precision), built.names, inputs)["y"]
        assert np.linalg.norm(got - want) / np.linalg.norm(want) < limit


def test_loops_and_branches(freeze_net: Any, tmp_path: Path) -> None:
    def build() -> Any:
        tf, tf1 = _tf()
        x = tf1.placeholder(tf.float32, [None, 4], "x")
        w = _variable("w", 4, 4)
        y = tf.while_loop(lambda i, y: i < 3, lambda i, y: (i + 1, tf.tanh(tf.matmul(y, w))), [0, x])[1]
        return {"x": x}, {"y": y, "z": tf.cond(tf.reduce_sum(x) > 0, lambda: x * 2.0, lambda: x - 1.0)}

    frozen = freeze_net(tmp_path / "model", build)
    built = convert(frozen.work(tmp_path / "1", FLOAT))
    for rows in (1, 7):
        inputs = _sample(frozen, rows)
        got = _answers(str(tmp_path / "1"), built.names, inputs)
        for alias, want in frozen.run(inputs).items():
            np.testing.assert_allclose(got[alias], want, rtol=1e-5, atol=1e-6)


def test_rows_of_inputs_need_not_be_as_many_where_tensorflow_does_not_mind(freeze_net: Any, tmp_path: Path) -> None:
    def build() -> Any:
        tf, tf1 = _tf()
        a, b = tf1.placeholder(tf.float32, [None, 3], "a"), tf1.placeholder(tf.float32, [None], "b")
        return {"a": a, "b": b}, {"twice": a * 2.0, "more": b + 1.0}

    frozen = freeze_net(tmp_path / "model", build)
    built = convert(frozen.work(tmp_path / "1", FLOAT))
    inputs = {"a": np.ones((5, 3), np.float32), "b": np.ones(2, np.float32)}
    got = _answers(str(tmp_path / "1"), built.names, inputs)
    assert got["twice"].shape == (5, 3)
    assert got["more"].tolist() == [2.0, 2.0]
