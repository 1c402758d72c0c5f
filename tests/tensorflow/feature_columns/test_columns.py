"""Every kind of column against NumPy, against TensorFlow's own columns, and from tf.Examples."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tensorflow as tf
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

import moxserve.tensorflow as mox
from moxserve.errors import DataError, UsageError

tf1 = tf.compat.v1
NAN = math.nan


def text(*rows: Any) -> np.ndarray:
    return np.array(rows, dtype=object)


def run(
    config: Mapping[str, Any],
    inputs: Mapping[str, Any],
    build: Callable[[mox.Features], Any] | None = None,
    names: list[str] | None = None,
    weights: Mapping[str, Any] | None = None,
    moments: Any = None,
) -> Any:
    """Build the dense part (or what `build` says) on a batch, with variables set by the end of their names."""
    with tf.Graph().as_default(), tf1.Session() as session:
        columns = mox.feature_columns(config)
        tensors = {key: tf.constant(value) for key, value in inputs.items()}
        features = columns.prepare(tensors, moments)
        result = features.dense(names) if build is None else build(features)
        session.run([tf1.global_variables_initializer(), tf1.tables_initializer()])
        for end, value in (weights or {}).items():
            (variable,) = [v for v in tf1.global_variables() if v.op.name.endswith(end)]
            variable.load(np.asarray(value, np.float32).reshape(variable.shape.as_list()), session)
        return session.run(result)


def close(found: Any, expected: Any) -> None:
    np.testing.assert_allclose(found, expected, rtol=1e-6, atol=1e-6)


# ---- numbers


def test_numbers_are_normalized_and_missing_ones_filled_in():
    ages = np.array([20.0, NAN, 40.0], np.float32)
    close(run({"age": {"kind": "numeric", "missing": 30}}, {"age": ages}), [[20], [30], [40]])
    normal = {"age": {"kind": "numeric", "missing": 30, "mean": 20, "std": 5}}
    close(run(normal, {"age": ages}), [[0], [2], [4]])
    fitted = {"years": {"kind": "numeric", "key": "age", "fit": True, "missing": 25}}
    close(run(fitted, {"age": ages}, moments={"years": (25.0, 10.0)}), [[-0.5], [0], [1.5]])
    # A column that never changes has the deviation 0.
    close(run(fitted, {"age": ages}, moments={"years": (20.0, 0.0)}), [[0], [5], [20]])


def test_whole_numbers_are_numbers_too_and_minus_one_is_missing():
    config = {"n": {"kind": "numeric", "missing": 7}, "c": {"kind": "identity", "key": "n", "buckets": 9}}
    close(run(config, {"n": np.array([3, -1], np.int64)}, names=["n"]), [[3], [7]])


def test_several_numbers_a_row():
    config = {"xy": {"kind": "numeric", "shape": 2, "mean": [1, 2], "std": [2, 4], "missing": [9, 10]}}
    close(run(config, {"xy": np.array([[3, 6], [NAN, NAN]], np.float32)}), [[1, 1], [4, 2]])
    with pytest.raises(UsageError, match="column 'xy' has shape 2"):
        run(config, {"xy": np.zeros([3, 4], np.float32)})


@settings(max_examples=15)
@given(
    hnp.arrays(np.float32, st.integers(1, 20), elements=st.floats(-100, 100, width=32)),
    st.lists(st.integers(-100, 100), min_size=1, max_size=8, unique=True).map(sorted),
)
def test_buckets_are_numpys_digitize(values: np.ndarray, boundaries: list[int]):
    values[0] = boundaries[0]  # a number equal to a boundary is in the range above it
    config = {
        "x": {"kind": "numeric", "fit": True},
        "range": {"kind": "bucketized", "of": "x", "boundaries": boundaries},
    }
    found = run(config, {"x": values}, names=["range"], moments={"x": (3.0, 4.0)})
    np.testing.assert_array_equal(found, np.eye(len(boundaries) + 1)[np.digitize(values, boundaries)])


def test_two_bucketized_columns_of_one_numeric_column():
    config = {
        "x": {"kind": "numeric"},
        "fine": {"kind": "bucketized", "of": "x", "boundaries": [1, 2]},
        "coarse": {"kind": "bucketized", "of": "x", "boundaries": [5]},
    }
    weights = {"fine_bucketized/weights": [1, 2, 3], "coarse_bucketized/weights": [10, 20]}
    found = run(config, {"x": np.array([0, 7], np.float32)}, lambda f: f.linear(["fine", "coarse"]), weights=weights)
    close(found, [[11], [23]])


# ---- categories


def indicator(column: Mapping[str, Any], values: Any, **more: Any) -> Any:
    return run({"c": column, "i": {"kind": "indicator", "of": "c"}}, {"c": values, **more}, names=["i"])


def test_vocabulary_list_of_text():
    jobs = text("b", "a", "other", "")
    base = {"kind": "vocabulary", "values": ["a", "b"]}
    close(indicator(base, jobs), [[0, 1], [1, 0], [0, 0], [0, 0]])
    close(indicator({**base, "default_value": 1}, jobs), [[0, 1], [1, 0], [0, 1], [0, 0]])
    close(indicator({**base, "missing": "a"}, jobs), [[0, 1], [1, 0], [0, 0], [1, 0]])
    found = indicator({**base, "oov_buckets": 3}, jobs)
    place = 2 + int(hash_of("other", 3))
    close(found, [[0, 1, 0, 0, 0], [1, 0, 0, 0, 0], np.eye(5)[place], [0] * 5])


def test_vocabulary_of_numbers():
    found = indicator({"kind": "vocabulary", "values": [30, 10]}, np.array([10, 30, 20, -1], np.int64))
    close(found, [[0, 1], [1, 0], [0, 0], [0, 0]])


def test_vocabulary_file(tmp_path: Path):
    path = tmp_path / "jobs.txt"
    path.write_bytes(b"farmer\r\nteacher\nclerk\n")
    base = {"kind": "vocabulary", "file": str(path)}
    jobs = text("teacher", "farmer", "king")
    close(indicator(base, jobs), [[0, 1, 0], [1, 0, 0], [0, 0, 0]])
    close(indicator({**base, "size": 1, "oov_buckets": 1}, jobs), [[0, 1], [1, 0], [0, 1]])
    close(indicator({**base, "default_value": 2}, jobs), [[0, 1, 0], [1, 0, 0], [0, 0, 1]])
    with pytest.raises(UsageError, match="default_value is 3"):
        indicator({**base, "default_value": 3}, jobs)
    path.write_text("5\n7\n")
    close(indicator({**base, "dtype": "int64"}, np.array([7, 5, 6], np.int64)), [[0, 1], [1, 0], [0, 0]])


@pytest.mark.parametrize(
    ("content", "told"),
    [
        (b"", "is empty; expected one value a line"),
        (b"a\n\nb\n", ":2: is empty"),
        (b"a\nb\na\n", ":3: 'a' is in line 1, too"),
        (b"\xff\xfe", "is not UTF-8 text"),
    ],
)
def test_broken_vocabulary_files(tmp_path: Path, content: bytes, told: str):
    path = tmp_path / "v.txt"
    path.write_bytes(content)
    with pytest.raises(DataError, match=told):
        indicator({"kind": "vocabulary", "file": str(path)}, text("a"))


def test_identity():
    numbers = np.array([2, 0, -1], np.int64)
    close(indicator({"kind": "identity", "buckets": 3}, numbers), [[0, 0, 1], [1, 0, 0], [0, 0, 0]])
    close(indicator({"kind": "identity", "buckets": 3, "missing": 1}, numbers), [[0, 0, 1], [1, 0, 0], [0, 1, 0]])
    wild = np.array([7, -2, 1], np.int64)
    close(indicator({"kind": "identity", "buckets": 3, "default_value": 0}, wild), [[1, 0, 0], [1, 0, 0], [0, 1, 0]])
    close(indicator({"kind": "identity", "buckets": 3}, wild), [[0, 0, 0], [0, 0, 0], [0, 1, 0]])


def hash_of(values: Any, buckets: int) -> Any:
    with tf.Graph().as_default(), tf1.Session() as session:
        return session.run(tf.strings.to_hash_bucket_fast(tf.constant(values), buckets))


@settings(max_examples=15)
@given(st.lists(st.text(min_size=1, max_size=8), min_size=1, max_size=8), st.integers(2, 50))
def test_hash_is_tensorflows(words: list[str], buckets: int):
    found = indicator({"kind": "hash", "buckets": buckets}, text(*words))
    np.testing.assert_array_equal(found, np.eye(buckets)[hash_of(words, buckets)])


def test_hash_of_numbers_is_that_of_their_text():
    found = indicator({"kind": "hash", "buckets": 9, "dtype": "int64"}, np.array([12, -1, 7], np.int64))
    expected = np.eye(9)[hash_of(["12", "?", "7"], 9)]
    expected[1] = 0
    np.testing.assert_array_equal(found, expected)


@pytest.mark.parametrize("hash_key", [None, 3])
def test_crosses_are_tensorflows(hash_key: int | None):
    ages, jobs, towns = np.array([15, 25, 35], np.float32), text("a", "b", "zz"), text("x", "", "y")
    config = {
        "age": {"kind": "numeric", "fit": True},
        "ages": {"kind": "bucketized", "of": "age", "boundaries": [20, 30]},
        "job": {"kind": "vocabulary", "values": ["a", "b"], "oov_buckets": 2},
        "town": {"kind": "hash", "buckets": 7},
        "x": {"kind": "crossed", "of": ["ages", "job", "town"], "buckets": 40, "hash_key": hash_key},
        "i": {"kind": "indicator", "of": "x"},
    }
    found = run(config, {"age": ages, "job": jobs, "town": towns}, names=["i"])
    fc = tf.feature_column
    with tf.Graph().as_default(), tf1.Session() as session:
        range_of = fc.bucketized_column(fc.numeric_column("age"), [20, 30])
        job = fc.categorical_column_with_vocabulary_list("job", ["a", "b"], num_oov_buckets=2)
        cross = fc.crossed_column([range_of, job, "town"], 40, hash_key=hash_key)
        raw = {
            "age": tf.constant(ages),
            "job": tf.constant(jobs[:, None]),
            "town": tf.sparse.from_dense(towns[:, None]),
        }
        layer = tf1.feature_column.input_layer(raw, [fc.indicator_column(cross)])
        session.run(tf1.tables_initializer())
        expected = session.run(layer)
    np.testing.assert_array_equal(found, expected)
    assert found.sum(axis=1).tolist() == [1, 0, 1]  # without a town there is no combination


# ---- several values a row

TAGS = text(["a", "b", "a"], ["b", "", ""], ["", "", ""])
TABLE = np.array([[1.0, 2.0], [3.0, 5.0]], np.float32)
TAG = {"kind": "vocabulary", "values": ["a", "b"]}


def test_several_values_are_counted():
    close(indicator(TAG, TAGS), [[2, 1], [0, 1], [0, 0]])
    close(indicator({**TAG, "missing": "b"}, TAGS), [[2, 1], [0, 1], [0, 1]])


@pytest.mark.slow
@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("combiner", ["mean", "sum", "sqrtn"])
def test_embeddings_combine_by_hand(combiner: str, weighted: bool):
    given_weights = np.array([[1, 2, 4], [3, 0, 0], [0, 0, 0]], np.float32)
    config: dict[str, Any] = {
        "tags": TAG,
        "heavy": {"kind": "weighted", "of": "tags", "weight": "w"},
        "e": {"kind": "embedding", "of": "heavy" if weighted else "tags", "dimension": 2, "combiner": combiner},
    }
    found = run(config, {"tags": TAGS, "w": given_weights}, names=["e"], weights={"embedding_weights": TABLE})
    rows = [[0, 1, 0], [1], []]
    expected = []
    for row, ids in enumerate(rows):
        w = given_weights[row, : len(ids)] if weighted else np.ones(len(ids))
        total = (TABLE[ids] * w[:, None]).sum(axis=0) if ids else np.zeros(2)
        divisor = {"sum": 1, "mean": w.sum(), "sqrtn": np.sqrt((w**2).sum())}[combiner] if ids else 1
        expected.append(total / divisor)
    close(found, expected)


def test_weights_of_zero_count_and_must_match_their_values():
    config = {"tags": TAG, "heavy": {"kind": "weighted", "of": "tags", "weight": "w"}}
    tags, weights = text(["a", "b"], ["b", "a"]), np.array([[0, 2], [0.5, 0]], np.float32)
    set_to = {"tags_weighted_by_heavy_weights/weights": [10, 100], "bias_weights": [1]}
    found = run(config, {"tags": tags, "w": weights}, lambda f: f.linear(["heavy"]), weights=set_to)
    close(found, [[201], [51]])
    with pytest.raises(tf.errors.InvalidArgumentError, match="w has not one weight for each value of tags"):
        run(config, {"tags": tags, "w": weights[:, :1]}, lambda f: f.linear(["heavy"]))


def test_shared_embeddings_have_one_table():
    config = {
        "wife": TAG,
        "husband": TAG,
        "both": {"kind": "shared_embedding", "of": ["wife", "husband"], "dimension": 2},
    }
    inputs = {"wife": text("a", "b"), "husband": text("b", "")}
    found = run(config, inputs, names=["both"], weights={"embedding_weights": TABLE})
    # TensorFlow sorts by the columns' names: husband, wife.
    close(found, [[3, 5, 1, 2], [0, 0, 3, 5]])


def test_linear_sums_weights_bias_and_combiner():
    config = {"tags": TAG, "x": {"kind": "numeric", "mean": 1, "std": 2}}
    inputs = {"tags": TAGS, "x": np.array([1, 3, 5], np.float32)}
    weights = {"tags/weights": [10, 100], "x/weights": [1000], "bias_weights": [1]}
    close(run(config, inputs, lambda f: f.linear(), weights=weights), [[121], [1101], [2001]])
    means = run(config, inputs, lambda f: f.linear(combiner="mean"), weights=weights)
    close(means, [[41], [1101], [2001]])


def test_embedding_begins_with_a_checkpoint_in_training_only(tmp_path: Path):
    with tf.Graph().as_default(), tf1.Session() as session:
        table = tf1.get_variable("words", initializer=TABLE)
        session.run(table.initializer)
        prefix = tf1.train.Saver([table]).save(session, str(tmp_path / "model.ckpt"))
    column = {"kind": "embedding", "of": "tags", "dimension": 2, "checkpoint": prefix, "tensor": "words"}
    columns = mox.feature_columns({"tags": TAG, "e": {**column, "trainable": False}})
    for training in (True, False):
        with tf.Graph().as_default(), tf1.Session() as session:
            features = columns.prepare({"tags": tf.constant(text("b"))}, training=training)
            dense = features.dense(["e"])
            session.run([tf1.global_variables_initializer(), tf1.tables_initializer()])
            found = session.run(dense)
            assert not tf1.trainable_variables()
            files = [op.name for op in tf1.get_default_graph().get_operations() if op.type == "RestoreV2"]
        assert (np.allclose(found, [[3, 5]]), bool(files)) == (training, training)


@pytest.mark.parametrize(
    ("initializer", "scale", "low", "high"),
    [
        ("zeros", None, 0.0, 0.0),
        ("uniform", 0.5, 0.2, 0.35),
        ("normal", 2.0, 1.7, 2.3),
        ("truncated_normal", None, 0.2, 0.6),
    ],
)
def test_initializers(initializer: str, scale: float | None, low: float, high: float):
    column = {"kind": "embedding", "of": "h", "dimension": 4, "initializer": initializer, "scale": scale}
    with tf.Graph().as_default(), tf1.Session() as session:
        tf1.set_random_seed(1)
        columns = mox.feature_columns({"h": {"kind": "hash", "buckets": 500}, "e": column})
        columns.prepare({"h": tf.constant(text("a"))}).dense()
        session.run(tf1.global_variables_initializer())
        (table,) = session.run(tf1.trainable_variables())
    assert low <= table.std() <= high
    assert table.shape == (500, 4)


# ---- tf.Examples


def test_examples_are_parsed_into_what_prepare_takes(tmp_path: Path):
    config = {
        "age": {"kind": "numeric", "missing": 5},
        "xy": {"kind": "numeric", "shape": 2},
        "level": {"kind": "identity", "buckets": 4},
        "level_number": {"kind": "numeric", "key": "level"},
        "job": {"kind": "vocabulary", "values": ["a", "b"]},
        "tags": TAG,
        "heavy": {"kind": "weighted", "of": "tags", "weight": "w"},
        **{f"{n}_i": {"kind": "indicator", "of": n} for n in ("level", "job", "heavy")},
    }
    columns = mox.feature_columns(config)
    assert columns.inputs() == {
        "age": "float32", "xy": "float32", "level": "int64", "job": "string", "tags": "string", "w": "float32",
    }  # fmt: skip
    assert columns.inputs(["job_i", "age"]) == {"age": "float32", "job": "string"}
    rows = [
        {"age": 1.5, "xy": [1.0, 2.0], "level": 3, "job": "b", "tags": ["a", "b"], "w": [0.5, 2.0]},
        {"xy": [3.0, 4.0]},
    ]
    path = tmp_path / "rows.tfrecord"
    assert mox.write_examples(path, rows) == 2
    records = [record.numpy() for record in eager_records(path)]
    with tf.Graph().as_default(), tf1.Session() as session:
        parsed = tf.io.parse_example(tf.constant(records), columns.example_spec(several={"tags", "w"}))
        dense = columns.prepare(parsed).dense(["age", "xy", "level_i", "job_i", "heavy_i"])
        session.run([tf1.global_variables_initializer(), tf1.tables_initializer()])
        found = session.run(dense)
    # Sorted: age, job_indicator, level_indicator, tags_weighted_by_…, xy.
    close(found, [[1.5, 0, 1, 0, 0, 0, 1, 0.5, 2, 1, 2], [5, 0, 0, 0, 0, 0, 0, 0, 0, 3, 4]])
    back = list(mox.read_examples(path))
    assert back[0]["tags"].tolist() == [b"a", b"b"]
    assert set(back[1]) == {"xy"}


def eager_records(path: Path) -> Any:
    from tensorflow.python.eager import context

    with context.eager_mode():
        return list(tf.data.TFRecordDataset(str(path)))


def test_a_number_without_missing_is_required_in_examples():
    columns = mox.feature_columns({"age": {"kind": "numeric"}})
    with tf.Graph().as_default(), tf1.Session() as session:
        parsed = tf.io.parse_example(tf.constant([b""]), columns.example_spec())
        with pytest.raises(tf.errors.InvalidArgumentError, match=r"age .*is required"):
            session.run(parsed)


# ---- wrong use


def test_wrong_use_is_told():
    columns = mox.feature_columns({"job": TAG, "age": {"kind": "numeric"}, "j": {"kind": "indicator", "of": "job"}})
    with tf.Graph().as_default():
        jobs, ages = tf.constant(text("a")), tf.constant([1.0])
        with pytest.raises(UsageError, match="column 'job' reads the input 'job'; did you mean 'jobs'"):
            columns.prepare({"jobs": jobs, "age": ages})
        with pytest.raises(UsageError, match="input 'job' is float32; its column reads string"):
            columns.prepare({"job": ages, "age": ages})
        features = columns.prepare({"job": jobs, "age": ages})
        with pytest.raises(
            UsageError, match=r"'job' is of kind vocabulary, which is nothing for the dense part[\s\S]*embedding"
        ):
            features.dense(["job"])
        with pytest.raises(UsageError, match="'j' is of kind indicator, which is nothing for the linear part"):
            features.linear(["j"])
        with pytest.raises(UsageError, match="no column 'agge'; did you mean 'age'"):
            features.dense(["agge"])
        with pytest.raises(UsageError, match="the dense part has no columns"):
            features.dense([])
    twins = {"kind": "crossed", "of": ["job", "age2"]}
    with pytest.raises(UsageError, match="the linear part cannot be made: Duplicate feature column"):
        run(
            {
                "job": TAG,
                "age2": {"kind": "identity", "buckets": 3},
                "x": {**twins, "buckets": 5},
                "y": {**twins, "buckets": 6},
            },
            {"job": text("a"), "age2": np.array([1], np.int64)},
            lambda f: f.linear(),
        )
    with pytest.raises(UsageError, match="both"):
        run(
            {
                "a": TAG,
                "b": {**TAG, "values": ["a", "b", "c"]},
                "both": {"kind": "shared_embedding", "of": ["a", "b"], "dimension": 2},
            },
            {"a": text("a"), "b": text("a")},
        )


def test_names_may_have_any_letters():
    config = {
        "Alter (in Jahren)": {"kind": "numeric", "fit": True},
        "年龄": {"kind": "bucketized", "of": "Alter (in Jahren)", "boundaries": [2]},
        "职业": {"kind": "vocabulary", "values": ["农民", "Lehrer"]},
        "x & y": {"kind": "crossed", "of": ["年龄", "职业"], "buckets": 9},
        "向量": {"kind": "embedding", "of": "x & y", "dimension": 2},
        "beide zusammen": {"kind": "shared_embedding", "of": ["职业", "2"], "dimension": 2},
        "2": {"kind": "vocabulary", "key": "职业", "values": ["a", "b"]},
        "schwer": {"kind": "weighted", "of": "职业", "weight": "Gewicht in kg"},
    }
    inputs = {
        "Alter (in Jahren)": np.array([1, 3], np.float32),
        "职业": np.array(["农民", "x"], object),
        "Gewicht in kg": np.array([2, 3], np.float32),
    }
    dense, linear = run(config, inputs, lambda f: (f.dense(), f.linear()), moments={"Alter (in Jahren)": (2.0, 1.0)})
    assert (dense.shape, linear.shape) == ((2, 9), (2, 1))
