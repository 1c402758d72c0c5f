"""Slim's decoders: on the same records the same items as tf_slim 1.1, whose answers are in slim_items.json.

Where tf_slim is installed it is asked itself; `python tests/tensorflow/test_tfexample_decoder.py` writes the file anew.
"""

from __future__ import annotations

import io
import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from moxserve.errors import UsageError
from moxserve.tensorflow.contrib import slim
from moxserve.tensorflow.executor.env import tf, tf1

GOLDEN = Path(__file__).with_name("slim_items.json")
PIXELS = np.arange(4 * 6 * 3, dtype=np.uint8).reshape(4, 6, 3)
GRAY = np.arange(12, dtype=np.uint8).reshape(3, 4, 1) * 20
fixed, var = tf.io.FixedLenFeature, tf.io.VarLenFeature


def encoded(pixels: np.ndarray, kind: str) -> bytes:
    from PIL import Image

    buffer = io.BytesIO()
    Image.fromarray(pixels.squeeze()).save(buffer, format=kind, **({"quality": 95} if kind == "JPEG" else {}))
    return buffer.getvalue()


def feature(values: list[Any]) -> Any:
    if isinstance(values[0], (bytes, str)):
        data = [v.encode() if isinstance(v, str) else v for v in values]
        return tf.train.Feature(bytes_list=tf.train.BytesList(value=data))
    if isinstance(values[0], float):
        return tf.train.Feature(float_list=tf.train.FloatList(value=values))
    return tf.train.Feature(int64_list=tf.train.Int64List(value=values))


def example(**values: list[Any]) -> bytes:
    features = tf.train.Features(feature={key.replace("__", "/"): feature(v) for key, v in values.items()})
    return tf.train.Example(features=features).SerializeToString()


def sequence(context: dict[str, list[Any]], **lists: list[list[Any]]) -> bytes:
    def of(frames: list[list[Any]]) -> Any:
        empty = tf.train.Feature(float_list=tf.train.FloatList())
        return tf.train.FeatureList(feature=[feature(values) if values else empty for values in frames])

    return tf.train.SequenceExample(
        context=tf.train.Features(feature={key: feature(v) for key, v in context.items()}),
        feature_lists=tf.train.FeatureLists(feature_list={key: of(frames) for key, frames in lists.items()}),
    ).SerializeToString()


IMAGE_KEYS = {"image/encoded": fixed([], tf.string, ""), "image/format": fixed([], tf.string, "jpeg")}
BOX_KEYS = {f"box/{side}": var(tf.float32) for side in ("ymin", "xmin", "ymax", "xmax")}
BOXES: dict[str, list[Any]] = {
    "box__ymin": [0.0, 0.25],
    "box__xmin": [0.5, 0.125],
    "box__ymax": [0.75, 1.0],
    "box__xmax": [1.0, 0.5],
}
NUMBERS = example(x=[1, 2, 3, 4, 5, 6], shape=[2, 3], rows=[3], columns=[2], f=[0.5, 1.5])
X = {
    "x": fixed([6], tf.int64),
    "shape": fixed([2], tf.int64),
    "rows": fixed([1], tf.int64),
    "columns": fixed([1], tf.int64),
}
X_SPARSE = {key: var(tf.int64) for key in X}


def table(names: list[str]) -> Any:
    values = tf.lookup.KeyValueTensorInitializer(tf.constant(names), tf.range(len(names), dtype=tf.int64))
    return tf.lookup.StaticHashTable(values, -1)


def picture(**options: Any) -> Callable[[Any], Any]:
    return lambda d: d.Image(**options)


# name -> serialized example, features, what makes the handler out of a decoder module
CASES: dict[str, tuple[bytes, Any, Callable[[Any], Any]]] = {
    "tensor as it is": (NUMBERS, X, lambda d: d.Tensor("x")),
    "tensor, fixed shape": (NUMBERS, X, lambda d: d.Tensor("x", shape=[3, 2])),
    "tensor, scalar": (NUMBERS, X, lambda d: d.Tensor("rows", shape=[])),
    "tensor, shape of a feature": (NUMBERS, X, lambda d: d.Tensor("x", shape_keys="shape")),
    "tensor, shape of features": (NUMBERS, X, lambda d: d.Tensor("x", shape_keys=["rows", "columns"])),
    "sparse tensor": (NUMBERS, X_SPARSE, lambda d: d.Tensor("x")),
    "sparse tensor, fixed shape": (NUMBERS, X_SPARSE, lambda d: d.Tensor("x", shape=[2, 3])),
    "sparse tensor, shape of a feature": (NUMBERS, X_SPARSE, lambda d: d.Tensor("x", shape_keys="shape")),
    "sparse tensor, shape of features": (NUMBERS, X_SPARSE, lambda d: d.Tensor("x", shape_keys=["rows", "columns"])),
    "missing tensor": (NUMBERS, {"y": var(tf.float32)}, lambda d: d.Tensor("y", default_value=3.0)),
    "missing tensor with default": (NUMBERS, {"y": fixed([2], tf.float32, [7.0, 8.0])}, lambda d: d.Tensor("y")),
    "default is a tensor": (
        NUMBERS,
        lambda: {"y": fixed([1], tf.int64, tf.zeros([1], tf.int64))},
        lambda d: d.Tensor("y", shape=[]),
    ),
    "text": (example(t=["a", "bc"]), {"t": var(tf.string)}, lambda d: d.Tensor("t", default_value="")),
    "fixed length sequence": (
        example(s=[1, 2, 3, 4]),
        {"s": tf.io.FixedLenSequenceFeature([2], tf.int64, allow_missing=True)},
        lambda d: d.Tensor("s"),
    ),
    "lookup": (example(t=["b", "a", "?"]), {"t": var(tf.string)}, lambda d: d.LookupTensor("t", table(["a", "b"]))),
    "lookup of a scalar": (
        example(t=["b"]),
        {"t": fixed([1], tf.string)},
        lambda d: d.LookupTensor("t", table(["a", "b"]), shape=[]),
    ),
    "backup is used": (
        example(b=[5]),
        {"a": var(tf.int64), "b": var(tf.int64)},
        lambda d: d.BackupHandler(d.Tensor("a"), d.Tensor("b")),
    ),
    "backup is not used": (
        example(a=[4], b=[5]),
        {"a": var(tf.int64), "b": var(tf.int64)},
        lambda d: d.BackupHandler(d.Tensor("a"), d.Tensor("b")),
    ),
    "sparse": (
        example(indices=[1, 4], values=[0.5, 2.5]),
        {"indices": var(tf.int64), "values": var(tf.float32)},
        lambda d: d.SparseTensor(shape=[6]),
    ),
    "sparse, densified": (
        example(i=[1, 4], v=[0.5, 2.5]),
        {"i": var(tf.int64), "v": var(tf.float32)},
        lambda d: d.SparseTensor("i", "v", shape=[6], densify=True, default_value=-1),
    ),
    "sparse, shape of a feature": (
        example(i=[1, 4], v=[0.5, 2.5], n=[5]),
        {"i": var(tf.int64), "v": var(tf.float32), "n": var(tf.int64)},
        lambda d: d.SparseTensor("i", "v", shape_key="n", densify=True),
    ),
    "callback": (
        NUMBERS,
        X,
        lambda d: d.ItemHandlerCallback(["x", "rows"], lambda tensors: tensors["x"] * tensors["rows"]),
    ),
    "boxes": (example(**BOXES), BOX_KEYS, lambda d: d.BoundingBox(prefix="box/")),
    "boxes, dense": (
        example(**BOXES),
        {key: fixed([2], tf.float32) for key in BOX_KEYS},
        lambda d: d.BoundingBox(["xmin", "ymin", "xmax", "ymax"], "box/"),
    ),
    "no boxes": (example(x=[1]), BOX_KEYS, lambda d: d.BoundingBox(prefix="box/")),
    "png": (example(image__encoded=[encoded(PIXELS, "PNG")], image__format=["png"]), IMAGE_KEYS, picture()),
    "jpeg": (example(image__encoded=[encoded(PIXELS, "JPEG")], image__format=["jpeg"]), IMAGE_KEYS, picture()),
    "jpeg, fast": (
        example(image__encoded=[encoded(PIXELS, "JPEG")]),
        IMAGE_KEYS,
        picture(dct_method="INTEGER_FAST"),
    ),
    "bmp": (example(image__encoded=[encoded(PIXELS, "BMP")], image__format=["bmp"]), IMAGE_KEYS, picture()),
    "png that is called jpeg": (
        example(image__encoded=[encoded(PIXELS, "PNG")], image__format=["jpeg"]),
        IMAGE_KEYS,
        picture(),
    ),
    "gray with a shape": (
        example(image__encoded=[encoded(GRAY, "PNG")], image__format=["PNG"]),
        IMAGE_KEYS,
        picture(shape=[3, 4, 1], channels=1),
    ),
    "gray as colour": (example(image__encoded=[encoded(GRAY, "PNG")]), IMAGE_KEYS, picture(channels=3)),
    "colour as gray": (example(image__encoded=[encoded(PIXELS, "JPEG")]), IMAGE_KEYS, picture(channels=1)),
    "as float32": (example(image__encoded=[encoded(PIXELS, "PNG")]), IMAGE_KEYS, picture(dtype=tf.float32)),
    "raw": (
        example(image__encoded=[PIXELS.tobytes()], image__format=["raw"]),
        IMAGE_KEYS,
        picture(shape=PIXELS.shape),
    ),
    "RAW float32": (
        example(image__encoded=[(PIXELS / 7).astype("<f4").tobytes()], image__format=["RAW"]),
        IMAGE_KEYS,
        picture(shape=PIXELS.shape, dtype=tf.float32),
    ),
    "other keys": (
        example(img=[encoded(PIXELS, "PNG")], fmt=["png"]),
        {"img": fixed([], tf.string), "fmt": fixed([], tf.string)},
        picture(image_key="img", format_key="fmt"),
    ),
    "repeated": (
        example(image__encoded=[encoded(PIXELS, "PNG"), encoded(255 - PIXELS, "PNG")], image__format=["png"]),
        {"image/encoded": fixed([2], tf.string), "image/format": fixed([], tf.string)},
        picture(repeated=True),
    ),
    "repeated, any number": (
        example(image__encoded=[encoded(PIXELS, "PNG"), encoded(255 - PIXELS, "JPEG")], image__format=["png"]),
        {
            "image/encoded": tf.io.FixedLenSequenceFeature([], tf.string, allow_missing=True),
            "image/format": fixed([], tf.string),
        },
        picture(repeated=True),
    ),
}

FRAMES = sequence(
    {"label": [3], "name": ["clip"]},
    **{
        "box/ymin": [[0.0, 0.25], [], [0.5]],
        "box/xmin": [[0.5, 0.125], [], [0.25]],
        "box/ymax": [[0.75, 1.0], [], [1.0]],
        "box/xmax": [[1.0, 0.5], [], [0.75]],
        "speed": [[1.0], [2.0], [3.0]],
    },
)
CONTEXT = {"label": fixed([1], tf.int64), "name": var(tf.string)}
LISTS = {**BOX_KEYS, "speed": tf.io.FixedLenSequenceFeature([1], tf.float32)}
POINTS = {"keys": ["ymin", "xmin"], "prefix": "box/"}
SEQUENCE_CASES: dict[str, Callable[[Any], Any]] = {
    "context": lambda d: d.Tensor("label", shape=[]),
    "context text": lambda d: d.Tensor("name", default_value=""),
    "frames": lambda d: d.Tensor("speed"),
    "boxes of frames": lambda d: d.BoundingBoxSequence(prefix="box/"),
    "boxes of frames, filled": lambda d: d.BoundingBoxSequence(prefix="box/", default_value=9.0),
    "boxes of frames, sparse": lambda d: d.BoundingBoxSequence(prefix="box/", return_dense=False),
    "points of frames": lambda d: d.KeypointsSequence(**POINTS),
    "number of boxes": lambda d: d.NumBoxesSequence(list(BOX_KEYS)),
}


def installed_slim() -> Any:
    """tf_slim's decoders. Release 1.1 looks for these functions where TensorFlow had them until 2.12."""
    from tensorflow.python.ops import array_ops, control_flow_ops, map_fn, math_ops

    moved = {array_ops: {"stack": tf.stack}, control_flow_ops: {"cond": tf1.cond, "case": tf1.case}}
    moved |= {math_ops: {"to_int64": tf1.to_int64}, map_fn: {"map_fn": tf1.map_fn}}
    for module, functions in moved.items():
        for name, function in functions.items():
            if not hasattr(module, name):
                setattr(module, name, function)
    return pytest.importorskip("tf_slim.data.tfexample_decoder", reason="tf_slim is not installed")


def answer(decoder_module: Any, case: str) -> Any:
    """Decode a case in a graph of its own; nested lists, with the static shape of the item."""
    with tf1.Graph().as_default(), tf1.Session() as session:
        if case in SEQUENCE_CASES:
            handlers = {"item": SEQUENCE_CASES[case](decoder_module)}
            serialized, decoder = FRAMES, decoder_module.TFSequenceExampleDecoder(CONTEXT, LISTS, handlers)
        else:
            serialized, keys, make = CASES[case]
            features = keys() if callable(keys) else keys
            decoder = decoder_module.TFExampleDecoder(features, {"item": make(decoder_module)})
        assert list(decoder.list_items()) == ["item"]
        (item,) = decoder.decode(tf.constant(serialized), ["item"])
        session.run(tf1.tables_initializer())
        value = session.run(item)
    static = None if item.shape.rank is None else item.shape.as_list()
    if isinstance(value, tf1.SparseTensorValue):
        return {"indices": value.indices.tolist(), "values": value.values.tolist(), "shape": value.dense_shape.tolist()}
    value = np.asarray(value)
    data = np.char.decode(value.astype("S")) if value.dtype == object else value
    return {"dtype": item.dtype.name, "static": static, "shape": list(value.shape), "data": data.tolist()}


ALL = [*CASES, *SEQUENCE_CASES]


@pytest.mark.slow
@pytest.mark.parametrize("case", ALL)
def test_the_item_is_slims(case: str) -> None:
    golden = json.loads(GOLDEN.read_text())[case]
    assert json.loads(json.dumps(answer(slim.tfexample_decoder, case))) == golden


def test_the_goldens_are_complete() -> None:
    assert sorted(json.loads(GOLDEN.read_text())) == sorted(ALL)


@pytest.mark.slow
@pytest.mark.parametrize("case", ALL)
def test_the_item_is_that_of_an_installed_slim(case: str) -> None:
    assert answer(slim.tfexample_decoder, case) == answer(installed_slim(), case)


def test_all_items_in_order_and_unknown_ones_refused() -> None:
    d = slim.tfexample_decoder
    with tf1.Graph().as_default(), tf1.Session() as session:
        decoder = d.TFExampleDecoder(X, {"b": d.Tensor("rows"), "a": d.Tensor("x")})
        assert decoder.list_items() == ["b", "a"]
        b, a = session.run(decoder.decode(tf.constant(NUMBERS)))
        assert (b.tolist(), a.tolist()) == ([3], [1, 2, 3, 4, 5, 6])
        with pytest.raises(UsageError, match="no item 'c'"):
            decoder.decode(tf.constant(NUMBERS), ["c"])


def test_text_that_is_missing_is_empty() -> None:
    d = slim.tfexample_decoder
    with tf1.Graph().as_default(), tf1.Session() as session:
        decoder = d.TFExampleDecoder({"t": var(tf.string)}, {"t": d.Tensor("t", shape=[-1])})
        assert session.run(decoder.decode(tf.constant(example(t=["a"]))))[0].tolist() == [b"a"]


def test_what_slim_leaves_to_the_runtime_is_told_at_once() -> None:
    d = slim.tfexample_decoder
    with pytest.raises(UsageError, match=r"'image' needs the feature 'image/encoded'.*did you mean 'image/encodd'"):
        d.TFExampleDecoder(
            {"image/encodd": fixed([], tf.string), "image/format": fixed([], tf.string)}, {"image": d.Image()}
        )
    with pytest.raises(UsageError, match="not both"):
        d.Tensor("x", shape_keys="shape", shape=[1])
    with pytest.raises(UsageError, match=r"4 keys \(ymin, xmin, ymax, xmax\), got 3"):
        d.BoundingBox(["a", "b", "c"])
    with pytest.raises(UsageError, match="2 keys"):
        d.KeypointsSequence(["a"])
    with pytest.raises(UsageError, match="backup is a str"):
        d.BackupHandler(d.Tensor("x"), "y")
    with pytest.raises(UsageError, match="needs keys"):
        d.NumBoxesSequence([])
    with pytest.raises(UsageError, match="cannot share a name"):
        d.TFSequenceExampleDecoder({"a": var(tf.int64)}, {"a": var(tf.int64)}, {})


def test_frames_with_different_numbers_of_boxes_fail() -> None:
    d = slim.tfexample_decoder
    uneven = sequence({}, a=[[1.0, 2.0], [3.0]], b=[[1.0], [3.0]])
    for checked in (True, False):
        with tf1.Graph().as_default(), tf1.Session() as session:
            keys = {"a": var(tf.float32), "b": var(tf.float32)}
            decoder = d.TFSequenceExampleDecoder({}, keys, {"n": d.NumBoxesSequence(["a", "b"], checked)})
            (count,) = decoder.decode(tf.constant(uneven))
            if not checked:
                assert session.run(count).tolist() == [2, 1]
                continue
            with pytest.raises(tf.errors.InvalidArgumentError):
                session.run(count)


if __name__ == "__main__":
    GOLDEN.write_text(json.dumps({case: answer(installed_slim(), case) for case in ALL}, sort_keys=True) + "\n")
    sys.stdout.write(f"wrote {len(ALL)} cases\n")
