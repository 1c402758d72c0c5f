"""A small model in every format: made by the runtimes' own converters, held against NumPy."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from moxserve.export.manifest import (
    Manifest,
    Source,
    Variant,
    Verification,
    write_manifest,
)

W = np.float32([[1.0, -2.0, 0.5], [0.25, 1.0, -1.0], [2.0, 0.5, 1.5], [-1.0, 1.0, 1.0]])


def numpy_scores(x: np.ndarray) -> np.ndarray:
    return np.maximum(x.astype(np.float32) @ W, 0.0) + 1.0


@dataclass(frozen=True)
class Forms:
    """One model: `saved` is a version directory with the SavedModel, `frozen` a folder of one, the others are files."""

    saved: Path
    frozen: Path
    onnx: Path
    xml: Path
    tflite: Path
    scores: Callable[[np.ndarray], np.ndarray]


@pytest.fixture(scope="session")
def forms(tmp_path_factory: pytest.TempPathFactory) -> Forms:
    """serving_default: x [?, 4] -> scores [?, 3], best int64 [?]; twice: also x, but another function; and text."""
    import openvino as ov
    import tensorflow as tf
    import tf2onnx

    folder = tmp_path_factory.mktemp("forms")
    tf1 = tf.compat.v1
    saved = folder / "saved"
    with tf.Graph().as_default() as graph, tf1.Session() as session:
        x = tf1.placeholder("float32", [None, 4], "x")
        weights = tf1.get_variable("weights", initializer=W)
        scores = tf.identity(tf.nn.relu(x @ weights) + 1.0, "scores")
        best = tf.identity(tf.argmax(scores, 1), "best")
        other = tf1.placeholder("float32", [None, 4], "other")
        text = tf1.placeholder("string", [None], "text")
        define = tf1.saved_model.predict_signature_def
        signatures = {
            "serving_default": define({"x": x}, {"scores": scores, "best": best}),
            "just_scores": define({"input": x}, {"y": scores}),
            "twice": define({"x": other}, {"scores": other * 2.0}),
            "text": define({"text": text}, {"upper": tf.strings.upper(text)}),
        }
        session.run(tf1.global_variables_initializer())
        builder = tf1.saved_model.Builder(str(saved))
        builder.add_meta_graph_and_variables(session, ["serve"], signatures)
        builder.save()
        frozen = tf1.graph_util.convert_variables_to_constants(session, graph.as_graph_def(), ["scores", "best"])
        made = tf1.lite.TFLiteConverter(frozen, [x], [scores, best]).convert()
    with tf.Graph().as_default() as graph, tf1.Session() as session:
        tf1.import_graph_def(frozen, name="cut")
        x, scores, best = (graph.get_tensor_by_name(f"cut/{name}:0") for name in ("x", "scores", "best"))
        tf1.saved_model.simple_save(session, str(folder / "frozen"), {"x": x}, {"scores": scores, "best": best})
    onnx, xml, tflite = folder / "model.onnx", folder / "model.xml", folder / "model.tflite"
    tf2onnx.convert.from_graph_def(
        frozen, input_names=["x:0"], output_names=["scores:0", "best:0"], opset=17, output_path=str(onnx)
    )
    ov.save_model(ov.convert_model(str(onnx)), str(xml), compress_to_fp16=False)
    tflite.write_bytes(made)
    return Forms(saved, folder / "frozen", onnx, xml, tflite, numpy_scores)


@pytest.fixture
def version(tmp_path: Path, forms: Forms) -> Callable[..., Path]:
    """`version(saved_model=True, variants={"onnx": path})` makes a version directory with some of the forms."""

    def make(
        number: int = 1, saved_model: bool = True, variants: dict[str, Path] | None = None, top: Path | None = None
    ) -> Path:
        path = tmp_path / "model" / str(number)
        if saved_model:
            shutil.copytree(forms.saved, path)
        path.mkdir(parents=True, exist_ok=True)
        for name, file in (variants or {}).items():
            folder = path / "variants" / name
            folder.mkdir(parents=True)
            copy_model(file, folder)
        if top is not None:
            copy_model(top, path)
        return path

    return make


def copy_model(file: Path, folder: Path) -> None:
    if file.is_dir():
        shutil.copytree(file, folder, dirs_exist_ok=True)
        return
    shutil.copy(file, folder / f"model{file.suffix}")
    if file.suffix == ".xml":
        shutil.copy(file.with_suffix(".bin"), folder / "model.bin")


@pytest.fixture
def declare() -> Callable[..., None]:
    """`declare(version_dir, Variant(...), ...)` writes a manifest."""

    def write(path: Path, *variants: Variant, **extra: Any) -> None:
        made: dict[str, Any] = {"model_name": "m", "signatures": {}, "source": Source(checkpoint="c"), **extra}
        write_manifest(str(path), Manifest(variants=variants, **made))

    return write


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """No decision of one test is remembered in another, or in the home directory."""
    cache = tmp_path / "cache"
    monkeypatch.setenv("MOXSERVE_CACHE", str(cache))
    return cache


VERIFIED = Verification(mode="samples", rows=8, atol=1e-4, rtol=1e-4)
