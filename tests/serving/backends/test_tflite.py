"""TFLite files: their signatures, ParseExample, interpreters, and files that are none."""

from __future__ import annotations

import contextlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from moxserve.errors import Internal, InvalidArgument
from moxserve.protocol.examples import make_example
from moxserve.serving import backends
from moxserve.serving.backends import LoadOptions, TfliteOptions
from moxserve.serving.backends.tflite_file import read_tflite


def test_signatures_of_the_test_models(testdata: Path) -> None:
    def load(name: str) -> Any:
        return backends.load(testdata / name / "00000123")

    named = load("saved_model_half_plus_two_tflite_with_sigdef")
    assert str(named.signatures["serving_default"]) == "serving_default(x: float32[1, 1]) -> (y: float32[1, 1])"
    assert named.signature_defs.signature_def["serving_default"].inputs["x"].name.startswith("tflite_input")
    bare = load("saved_model_half_plus_two_tflite")
    assert set(bare.signatures) == {"serving_default"}
    parsing = load("parse_example_tflite")
    assert set(parsing.signatures["serving_default"].outputs) == {
        "ParseExample/ParseExampleV2", "ParseExample/ParseExampleV2:1",
    }  # fmt: skip


def serialized(*examples: dict[str, Any]) -> np.ndarray:
    return np.array([make_example(example).SerializeToString() for example in examples], object)


def test_parse_example_of_the_test_models(testdata: Path) -> None:
    backend = backends.load(testdata / "parse_example_tflite" / "00000123")
    numbers, texts = "ParseExample/ParseExampleV2", "ParseExample/ParseExampleV2:1"
    outputs = backend.run("serving_default", {"input": serialized({"x": np.float32(1.5), "y": b"a\x00"}, {})})
    assert outputs[numbers].tolist() == [[1.5], [0.0]]
    assert outputs[texts].tolist() == [[b"a\x00"], [b"missing"]]
    assert list(backend.run("serving_default", {"input": serialized({})}, [texts])) == [texts]
    for bad, reason in (
        (np.array([b"\xff"], object), "Could not parse example input"),
        (serialized({"x": np.int64(1)}), "Data type: int64 but expected type: float"),
        (serialized({"x": np.float32([1, 2])}), r"Values size: 2 but output shape: \[1\]"),
        (serialized({})[None], "Expected serialized to be a vector"),
    ):
        with pytest.raises(InvalidArgument, match=reason):
            backend.run("serving_default", {"input": bad})


@pytest.fixture(scope="module")
def parsing(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A graph that parses dense and sparse features and computes with them: as a SavedModel and as TFLite."""
    import tensorflow as tf

    tf1 = tf.compat.v1
    path = tmp_path_factory.mktemp("parsing") / "1"
    with tf.Graph().as_default() as graph, tf1.Session() as session:
        examples = tf1.placeholder("string", [None], "examples")
        features = {
            "a": tf.io.FixedLenFeature([2], tf.float32),
            "n": tf.io.FixedLenFeature([1], tf.int64, [7]),
            "v": tf.io.VarLenFeature(tf.float32),
        }
        parsed = tf.io.parse_example(examples, features)
        total = tf.reduce_sum(parsed["a"], 1, keepdims=True) * 2.0 + tf.cast(parsed["n"], tf.float32)
        outputs = {
            "total": total, "n": parsed["n"], "values": parsed["v"].values, "indices": parsed["v"].indices,
            "shape": parsed["v"].dense_shape,
        }  # fmt: skip
        outputs = {name: tf.identity(tensor, name) for name, tensor in outputs.items()}
        tf1.saved_model.simple_save(session, str(path), {"examples": examples}, outputs)
        converter = tf1.lite.TFLiteConverter(graph.as_graph_def(), [examples], list(outputs.values()))
        converter.allow_custom_ops = True
        (path / "model.tflite").write_bytes(converter.convert())
    return path


def test_parse_example_does_what_tensorflow_does(parsing: Path) -> None:
    here = backends.load(parsing, LoadOptions(prefer_tflite=True))
    there = backends.load(parsing, LoadOptions(backend="tensorflow"))
    assert (here.platform, there.platform) == ("tflite", "tensorflow")
    a = np.float32([1, 2])
    for rows in (
        serialized(
            {"a": a}, {"a": a * 3, "n": np.int64(5), "v": np.float32([1, 2, 3])}, {"a": -a, "v": np.float32([4])}
        ),
        serialized({"a": a, "n": np.int64(-1)}),
    ):
        want, got = (b.run("serving_default", {"examples": rows}) for b in (there, here))
        assert {k: (v.dtype, v.tolist()) for k, v in got.items()} == {k: (v.dtype, v.tolist()) for k, v in want.items()}
    for wrong in (
        serialized({"n": np.int64(1)}),
        serialized({"a": np.float32([1])}),
        serialized({"a": np.int64([1, 2])}),
    ):
        messages = []
        for backend in (there, here):
            with pytest.raises(InvalidArgument) as caught:
                backend.run("serving_default", {"examples": wrong})
            messages.append(caught.value.message.partition("\n")[0].strip())
        assert messages[0].startswith(messages[1][:60]), messages


@pytest.mark.parametrize(("pools", "each"), [(1, 1), (2, 4), (0, 3)])
@pytest.mark.parametrize("rows", [1, 125, 126, 500, 1003])
def test_large_batches_in_pieces(pools: int, each: int, rows: int, testdata: Path) -> None:
    options = LoadOptions(tflite=TfliteOptions(pools, each))
    backend = backends.load(testdata / "saved_model_half_plus_two_tflite" / "00000123", options)
    x = np.arange(rows, dtype=np.float32)[:, None]
    np.testing.assert_array_equal(backend.run("serving_default", {"x": x})["y"], x / 2 + 2)
    backend.close()


def test_operations_that_are_not_built_in(parsing: Path, tmp_path: Path) -> None:
    data = (parsing / "model.tflite").read_bytes()
    (tmp_path / "1").mkdir()
    (tmp_path / "1" / "model.tflite").write_bytes(data.replace(b"ParseExampleV2\0", b"ParseSomethin_\0"))
    with pytest.raises(Internal, match=r"operations that are not built in: ParseSomethin_"):
        backends.load(tmp_path / "1")


@settings(max_examples=300, deadline=None)
@given(st.data())
def test_damaged_files_are_refused(testdata: Path, data: st.DataObject) -> None:
    name = data.draw(st.sampled_from(["saved_model_half_plus_two_tflite_with_sigdef", "parse_example_tflite"]))
    content = bytearray((testdata / name / "00000123" / "model.tflite").read_bytes())
    for _ in range(data.draw(st.integers(1, 8))):
        content[data.draw(st.integers(0, len(content) - 1))] = data.draw(st.integers(0, 255))
    content = content[: data.draw(st.integers(8, len(content)))]
    with contextlib.suppress(InvalidArgument):
        read_tflite(bytes(content))
