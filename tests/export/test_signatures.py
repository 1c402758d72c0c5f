"""The signatures that an ExportSpec gives: predict, classify and regress, on tensors and on tf.Examples."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from moxserve.errors import ExportError, ModelSpecError
from moxserve.export.job import ExportJob

ROWS = np.random.default_rng(0).normal(size=(70, 3)).astype(np.float32)
WEIGHTS = np.arange(12, dtype=np.float32).reshape(3, 4) / 10


@pytest.fixture
def stage(tmp_path: Path, save_checkpoint: Any, spec: Any) -> Callable[..., tuple[Any, str]]:
    """`stage(build, [spec, …], [samples, …], …)`: the staged model of `build(tf, tf1, *inputs) -> ExportSpec`."""

    def run(build: Any, inputs: list[Any], samples: list[np.ndarray], **fields: Any) -> tuple[Any, str]:
        from moxserve.export.sources import stage_model

        def model_fn(tensors: Any, mode: str) -> Any:
            from moxserve.tensorflow.executor.env import tf, tf1
            from moxserve.tensorflow.executor.spec import ModelSpec

            return ModelSpec(export_spec=build(tf, tf1, *tensors))

        checkpoint = save_checkpoint(tmp_path / "run", model_fn, inputs, values={"w": WEIGHTS})
        directory = tmp_path / "staged"
        directory.mkdir()
        job = ExportJob(model_fn, inputs, checkpoint, base_dir=str(tmp_path / "base"), samples=samples, **fields)
        return stage_model(job, str(directory)), str(directory)

    return run


def _net(change: Callable[..., dict[str, Any]]) -> Callable[..., Any]:
    """A model of `x [n, 3]`: logits, their softmax, and the sum of the logits; `change` gives more for ExportSpec."""

    def build(tf: Any, tf1: Any, x: Any) -> Any:
        from moxserve.tensorflow.executor.spec import ExportSpec

        logits = tf.matmul(x, tf1.get_variable("w", [3, 4]))
        outputs = {"logits": logits, "p": tf.nn.softmax(logits), "sum": tf.reduce_sum(logits, 1)}
        return ExportSpec({"x": x}, outputs, **change(tf, x, outputs))

    return build


def _examples(**columns: Any) -> list[bytes]:
    """Serialized examples, by TensorFlow's own messages."""
    from moxserve.tensorflow.executor.env import tf

    def feature(value: Any) -> Any:
        values = np.atleast_1d(value).ravel()
        if values.dtype.kind in "SO":
            return tf.train.Feature(bytes_list=tf.train.BytesList(value=list(values)))
        if values.dtype.kind in "iub":
            return tf.train.Feature(int64_list=tf.train.Int64List(value=values))
        return tf.train.Feature(float_list=tf.train.FloatList(value=values))

    rows = zip(*columns.values(), strict=True)
    built = [tf.train.Features(feature=dict(zip(columns, map(feature, row), strict=True))) for row in rows]
    return [tf.train.Example(features=features).SerializeToString() for features in built]


def test_classify_and_regress_share_one_parser(stage: Any, spec: Any, load_model: Any) -> None:
    build = _net(lambda tf, x, outputs: {"scores": "p", "regression": "sum", "labels": ["a", "b", "c", "d"]})
    model, directory = stage(build, [spec("x", "float32", None, 3)], [ROWS])
    assert sorted(model.signatures) == ["classify", "regress", "serving_default"]
    methods = {key: s.method.rpartition("/")[2] for key, s in model.signatures.items()}
    assert methods == {"serving_default": "predict", "classify": "classify", "regress": "regress"}
    # TensorFlow Serving answers a MultiInference request only when all signatures are fed the same tensor.
    assert model.signatures["classify"].inputs["inputs"].tensor == model.signatures["regress"].inputs["inputs"].tensor
    loaded = load_model(directory)
    assert sum(n.op == "ParseExampleV2" for n in loaded.meta.graph_def.node) == 1
    assert sum(n.op == "MatMul" for n in loaded.meta.graph_def.node) == 2
    examples = _examples(x=ROWS[:5])
    expected = ROWS[:5] @ WEIGHTS
    np.testing.assert_allclose(loaded("regress", inputs=examples)["outputs"], expected.sum(1), rtol=1e-5)
    answer = loaded("classify", inputs=examples)
    assert answer["classes"].tolist() == [[b"a", b"b", b"c", b"d"]] * 5
    assert answer["scores"].argmax(1).tolist() == expected.argmax(1).tolist()
    checked = {(c.signature, c.output) for c in model.verification.outputs}
    assert {("regress", "outputs"), ("classify", "scores"), ("classify", "classes")} <= checked


def test_rows_of_every_signature_are_at_hand(stage: Any, spec: Any, load_model: Any) -> None:
    build = _net(lambda tf, x, outputs: {"scores": "p"})
    model, directory = stage(build, [spec("x", "float32", None, 3)], [ROWS])
    np.testing.assert_array_equal(model.requests["serving_default"]["x"], ROWS)
    answer = load_model(directory)("classify", **model.requests["classify"])
    assert answer["scores"].shape == (70, 4)


def test_a_feature_spec_parses_what_it_says(stage: Any, spec: Any, load_model: Any) -> None:
    def build(tf: Any, tf1: Any, words: Any, age: Any, weights: Any) -> Any:
        from moxserve.tensorflow.executor.spec import ExportSpec

        count = tf.reduce_sum(tf.cast(tf.not_equal(words, ""), tf.float32), 1)
        total = tf.reduce_sum(tf.cast(weights, tf.float32), 1)
        outputs = {"count": count, "total": total, "sum": count + tf.cast(age, tf.float32) + total}
        features = {
            "words": tf.io.VarLenFeature(tf.string),
            "age": tf.io.FixedLenFeature([], tf.int64, default_value=40),
            "weights": tf.io.FixedLenSequenceFeature([], tf.float32, allow_missing=True),
        }
        inputs = {"words": words, "age": age, "weights": weights}
        return ExportSpec(inputs, outputs, example_spec=features, regression="sum")

    inputs = [spec("words", "string", None, None), spec("age", "int32", None), spec("weights", "float64", None, None)]
    words = np.array([[b"a", b"b"], [b"c", b""]], dtype=object)
    samples = [words, np.array([3, 5], np.int32), np.array([[1.0, 2.0], [3.0, 4.0]])]
    model, directory = stage(build, inputs, samples)
    assert sorted(model.signatures) == ["predict", "regress", "serving_default"]
    assert str(model.signatures["predict"].inputs["examples"]) == "examples: string[?]"
    assert model.verification.rows == 2
    loaded = load_model(directory)
    # Lists of other lengths, and features that are missing: padded, and the default.
    examples = [*_examples(words=[np.array([b"x", b"y", b"z"])], weights=[[0.5, 1.5]]), *_examples(age=[7])]
    answer = loaded("predict", examples=examples)
    assert answer["count"].tolist() == [3.0, 0.0]
    assert answer["total"].tolist() == [2.0, 0.0]
    assert loaded("regress", inputs=examples)["outputs"].tolist() == [45.0, 7.0]


def test_numbers_are_stored_as_the_feature_spec_says(stage: Any, spec: Any, load_model: Any) -> None:
    def build(tf: Any, tf1: Any, pixels: Any) -> Any:
        from moxserve.tensorflow.executor.spec import ExportSpec

        feature = tf.io.FixedLenFeature([2, 2], tf.float32)
        return ExportSpec({"pixels": pixels}, {"y": tf.cast(pixels, tf.int32) + 1}, example_spec={"pixels": feature})

    pixels = np.arange(12, dtype=np.uint8).reshape(3, 2, 2)
    model, directory = stage(build, [spec("pixels", "uint8", None, 2, 2)], [pixels])
    assert model.verification.rows == 3
    examples = _examples(pixels=pixels.astype(np.float32))
    np.testing.assert_array_equal(load_model(directory)("predict", examples=examples)["y"], pixels + 1)


def test_further_signatures(stage: Any, spec: Any, load_model: Any) -> None:
    def change(tf: Any, x: Any, outputs: Any) -> dict[str, Any]:
        from moxserve.tensorflow import SignatureSpec

        two = outputs["p"][:, :2]
        serialized = tf.compat.v1.placeholder_with_default(tf.constant([], tf.string), [None], "serialized")
        own = tf.io.parse_example(serialized, {"a": tf.io.FixedLenFeature([], tf.float32)})["a"]
        return {
            "labels": ["a", "b", "c", "d"],
            "signatures": {
                "hidden": SignatureSpec(inputs={"x": x}, outputs={"logits": outputs["logits"]}),
                "all": SignatureSpec(inputs={"x": x}, outputs={"scores": outputs["p"]}, method="classify"),
                "two": SignatureSpec(inputs={"x": x}, outputs={"scores": tf.cast(two, tf.float64)}, method="classify"),
                "own": SignatureSpec(inputs={"inputs": serialized}, outputs={"outputs": own * 2}, method="regress"),
                "column": SignatureSpec(
                    inputs={"x": x}, outputs={"outputs": outputs["sum"][:, None]}, method="regress"
                ),
            },
        }

    model, directory = stage(_net(change), [spec("x", "float32", None, 3)], [ROWS])
    assert sorted(model.signatures) == ["all", "column", "hidden", "own", "serving_default", "two"]
    loaded = load_model(directory)
    np.testing.assert_allclose(loaded("hidden", x=ROWS)["logits"], ROWS @ WEIGHTS, rtol=1e-4)
    examples = _examples(x=ROWS[:2])
    assert loaded("all", inputs=examples)["classes"][0].tolist() == [b"a", b"b", b"c", b"d"]
    answer = loaded("two", inputs=examples)
    assert answer["classes"].tolist() == [[b"0", b"1"]] * 2
    assert answer["scores"].dtype == np.float32
    assert loaded("column", inputs=examples)["outputs"].shape == (2, 1)
    assert loaded("own", inputs=_examples(a=[1.5, 4.0]))["outputs"].tolist() == [3.0, 8.0]
    assert model.main == "serving_default"


@pytest.mark.parametrize(
    ("default", "with_spec", "main"),
    [
        ("classify", False, "predict"),
        ("predict", True, "predict_tensors"),
        ("serving_default", False, "serving_default"),
    ],
)
def test_the_default_signature_is_chosen(
    default: str, with_spec: bool, main: str, stage: Any, spec: Any, load_model: Any
) -> None:
    def change(tf: Any, x: Any, outputs: Any) -> dict[str, Any]:
        features = {"example_spec": {"x": tf.io.FixedLenFeature([3], tf.float32)}} if with_spec else {}
        return {"scores": "p", "default_signature": default, **features}

    model, directory = stage(_net(change), [spec("x", "float32", None, 3)], [ROWS])
    assert model.main == main
    signatures = model.signatures
    assert (signatures["serving_default"].method, dict(signatures["serving_default"].inputs)) == (
        signatures[default].method,
        dict(signatures[default].inputs),
    )
    np.testing.assert_array_equal(model.rows["x"], ROWS)
    np.testing.assert_allclose(model.expected["logits"], ROWS @ WEIGHTS, rtol=1e-4)
    np.testing.assert_allclose(load_model(directory)(main, x=ROWS)["logits"], ROWS @ WEIGHTS, rtol=1e-4)


def test_variables_of_further_signatures_are_saved(stage: Any, spec: Any, load_model: Any) -> None:
    def change(tf: Any, x: Any, outputs: Any) -> dict[str, Any]:
        from moxserve.tensorflow import SignatureSpec

        scale = tf.compat.v1.get_variable("scale", [3], initializer=tf.compat.v1.constant_initializer(2.0))
        return {"signatures": {"scaled": SignatureSpec(inputs={"x": x}, outputs={"y": x * scale})}}

    _, directory = stage(_net(change), [spec("x", "float32", None, 3)], [ROWS])
    np.testing.assert_array_equal(load_model(directory)("scaled", x=ROWS)["y"], ROWS * 2)


def _signature(**fields: Any) -> Any:
    from moxserve.tensorflow import SignatureSpec

    return SignatureSpec(**fields)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda tf, x, o: {"regression": "sums"}, r"regression='sums'\) is no key of outputs_dict; did you mean 'sum'"),
        (lambda tf, x, o: {"regression": "logits"}, r"regression='logits'\) is .*; expected one float a row"),
        (lambda tf, x, o: {"default_signature": "clasify", "scores": "p"}, "'clasify'.*did you mean 'classify'"),
        (lambda tf, x, o: {"example_spec": {"z": tf.io.VarLenFeature(tf.int64)}}, "feature 'z', which is no input"),
        (
            lambda tf, x, o: {"example_spec": {"x": "float"}},
            r"example_spec\['x'\] is a str; expected one of tf.io",
        ),
        (
            lambda tf, x, o: {"example_spec": {"x": tf.io.FixedLenFeature([], tf.string)}},
            "is a list of string; .* strings are not decoded",
        ),
        (
            lambda tf, x, o: {"example_spec": {"x": tf.io.FixedLenFeature([5], tf.float32)}},
            r"example_spec gives it: float32\[\?, 5\]; the input is it: float32\[\?, 3\]",
        ),
        (
            lambda tf, x, o: {"signatures": {"a": {"x": x}}},
            r"signatures\['a'\] is a dict; expected a mox",
        ),
        (lambda tf, x, o: {"signatures": {"serving_default": _signature(inputs={"x": x}, outputs={"y": x})}}, "taken"),
        (
            lambda tf, x, o: {"scores": "p", "signatures": {"classify": _signature(inputs={"x": x}, outputs={"x": x})}},
            "the key 'classify' is taken; scores= adds it",
        ),
        (lambda tf, x, o: {"signatures": {"a": _signature(inputs={"x": x}, outputs={})}}, "outputs is empty"),
        (
            lambda tf, x, o: {"signatures": {"a": _signature(inputs={"x": x}, outputs={"y": x}, method="predikt")}},
            "did you mean 'predict'",
        ),
        (
            lambda tf, x, o: {"signatures": {"a": _signature(inputs={"x": x}, outputs={"y": x}, method="regress")}},
            "a regress signature gives outputs; SignatureSpec.outputs has 'y'",
        ),
        (
            lambda tf, x, o: {
                "signatures": {"a": _signature(inputs={"x": x}, outputs={"scores": o["sum"]}, method="classify")}
            },
            r"signatures\['a'\] is Sum: float32\[\?\]; expected \[batch, classes\] floats",
        ),
        (
            lambda tf, x, o: {"signatures": {"a": _signature(inputs={"s": o["sum"]}, outputs={"p": o["p"]})}},
            r"output 'p' needs model_fn's input 'x'; ExportSpec.signatures\['a'\].inputs has only 's'",
        ),
    ],
)
def test_what_cannot_be_a_signature(change: Any, message: str, stage: Any, spec: Any) -> None:
    with pytest.raises((ModelSpecError, ExportError), match=message):
        stage(_net(change), [spec("x", "float32", None, 3)], [ROWS])


def test_the_server_answers_all_of_them(stage: Any, spec: Any) -> None:
    from moxserve.serving.backends.base import LoadOptions
    from moxserve.serving.backends.savedmodel import SavedModelBackend

    def change(tf: Any, x: Any, outputs: Any) -> dict[str, Any]:
        features = {"x": tf.io.FixedLenFeature([3], tf.float32)}
        return {"scores": "p", "regression": "sum", "example_spec": features}

    _, directory = stage(_net(change), [spec("x", "float32", None, 3)], [ROWS])
    backend = SavedModelBackend(directory, LoadOptions())
    try:
        examples = np.array(_examples(x=ROWS[:4]), dtype=object)
        found = backend.run("predict", {"examples": examples})
        np.testing.assert_allclose(found["logits"], ROWS[:4] @ WEIGHTS, rtol=1e-4)
        np.testing.assert_array_equal(backend.run("regress", {"inputs": examples})["outputs"], found["sum"])
        np.testing.assert_array_equal(backend.run("classify", {"inputs": examples})["scores"], found["p"])
    finally:
        backend.close()
