"""A small model in several formats, staged as an export does, and real rows for it."""

from __future__ import annotations

import shutil
import textwrap
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from moxserve.export.variants.work import Rows

WEIGHTS = np.random.default_rng(3).normal(size=(6, 10)).astype(np.float32)


@pytest.fixture(scope="session")
def logits() -> Callable[[np.ndarray], np.ndarray]:
    """The model in NumPy."""
    return lambda x: np.maximum(x @ WEIGHTS, 0.0) + 0.25 * (x @ WEIGHTS)


@pytest.fixture(scope="session")
def staged(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A version without a manifest: x [?, 6] -> logits [?, 10], best int64 [?]; frozen, onnx, tflite, one broken."""
    import tensorflow as tf
    import tf2onnx

    folder = tmp_path_factory.mktemp("staged") / "1"
    tf1 = tf.compat.v1
    define = tf1.saved_model.predict_signature_def
    with tf.Graph().as_default() as graph, tf1.Session() as session:
        x = tf1.placeholder("float32", [None, 6], "x")
        product = x @ tf1.get_variable("weights", initializer=WEIGHTS)
        logits = tf.identity(tf.nn.relu(product) + 0.25 * product, "logits")
        best = tf.identity(tf.argmax(logits, 1), "best")
        text = tf1.placeholder("string", [None], "text")
        pair = tf1.placeholder("float32", [4, 3], "pair")
        half = tf1.placeholder("bfloat16", [None, 2], "half")
        few = tf1.placeholder("float32", [None, 1], "few")
        with tf.control_dependencies([tf.debugging.assert_less(tf.shape(few)[0], 20, "only a few")]):
            few_roots = tf.sqrt(few)
        session.run(tf1.global_variables_initializer())
        signatures = {
            "serving_default": define({"x": x}, {"logits": logits, "best": best}),
            "text": define({"text": text}, {"upper": tf.strings.upper(text)}),
            "pairs": define({"pair": pair}, {"total": tf.reduce_sum(pair, 1)}),
            "halves": define({"h": half}, {"y": half + half, "scale": tf.constant(2.0)}),
            "few": define({"some": few}, {"root": few_roots}),
        }
        builder = tf1.saved_model.Builder(str(folder))
        builder.add_meta_graph_and_variables(session, ["serve"], signatures)
        builder.save()
        frozen = tf1.graph_util.convert_variables_to_constants(session, graph.as_graph_def(), ["logits", "best"])
        made = tf1.lite.TFLiteConverter(frozen, [x], [logits, best]).convert()
    with tf.Graph().as_default() as graph, tf1.Session() as session:
        tf1.import_graph_def(frozen, name="")
        x, logits, best = (graph.get_tensor_by_name(f"{name}:0") for name in ("x", "logits", "best"))
        tf1.saved_model.simple_save(
            session, str(folder / "variants" / "frozen"), {"x": x}, {"logits": logits, "best": best}
        )
    for name in ("onnx", "tflite", "broken"):
        (folder / "variants" / name).mkdir()
    tf2onnx.convert.from_graph_def(
        frozen, input_names=["x:0"], output_names=["logits:0", "best:0"], opset=17,
        output_path=str(folder / "variants" / "onnx" / "model.onnx"),
    )  # fmt: skip
    (folder / "variants" / "tflite" / "model.tflite").write_bytes(made)
    (folder / "variants" / "broken" / "model.onnx").write_bytes(b"no model")
    return folder


@pytest.fixture
def make_rows(tmp_path: Path) -> Callable[..., Rows]:
    """`make_rows(x=array)` saves rows as an export does."""

    def make(**inputs: Any) -> Rows:
        folder = tmp_path / "rows"
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir()
        for alias, array in inputs.items():
            np.save(folder / f"{alias}.npy", array)
        count = len(next(iter(inputs.values()))) if inputs else 0
        return Rows(str(folder), count, {alias: f"{alias}.npy" for alias in inputs})

    return make


@pytest.fixture
def fake_onnxruntime(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], Path]:
    """`fake_onnxruntime(body)`: what a probe imports as onnxruntime from now on; returns the folder that has it."""

    def fake(body: str) -> Path:
        folder = tmp_path / "fake"
        folder.mkdir()
        (folder / "onnxruntime.py").write_text(textwrap.dedent(body))
        monkeypatch.syspath_prepend(str(folder))
        return folder

    return fake
