"""Variables: storage dtypes, sharing between builds, collections of one build, and moving averages."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import moxserve.tensorflow as mox
from moxserve.errors import ModelSpecError
from moxserve.tensorflow.executor.branch import build_branch, build_export_branch
from moxserve.tensorflow.executor.devices import Place
from moxserve.tensorflow.executor.env import tf, tf1

Train = Callable[..., mox.RunResult]


def test_var_scope_stores_in_one_dtype_and_gives_another() -> None:
    with tf1.Graph().as_default():
        with mox.var_scope(force_dtype=tf.float32):
            a = tf1.get_variable("a", shape=[2], dtype=tf.float16, initializer=tf1.ones_initializer())
            n = tf1.get_variable("n", initializer=3)
            with tf1.variable_scope("inner"):
                b = tf1.get_variable("b", initializer=tf.constant(0.5, tf.bfloat16))
        assert a.name == "Cast:0"
        assert (a.dtype, b.dtype, n.dtype) == (tf.float16, tf.bfloat16, tf.int32)
        assert [(v.op.name, v.dtype) for v in tf1.global_variables()] == [
            ("a", tf.float32), ("n", tf.int32), ("inner/b", tf.float32),
        ]  # fmt: skip
        with tf1.Session() as session:
            session.run(tf1.global_variables_initializer())
            assert session.run([a, b])[1] == 0.5
    with tf1.Graph().as_default(), mox.var_scope():
        assert tf1.get_variable("a", [], tf.float16).dtype == tf.float16


def keras_and_get_variable(inputs: list[Any], mode: str) -> mox.ModelSpec:
    """A model of four sources of variables, with a penalty and batch normalisation."""
    (x,) = inputs
    h = tf.keras.layers.Dense(4)(x)
    h = tf.keras.layers.BatchNormalization(momentum=0.5)(h, training=mode == "TRAIN")
    h = tf1.layers.dense(h, 3, kernel_regularizer=lambda w: tf.reduce_sum(tf.square(w)))
    h = tf1.layers.batch_normalization(h, training=mode == "TRAIN", momentum=0.5)
    w = tf1.get_variable("w", [3])
    plain = tf1.Variable([1.0, 2.0, 3.0], name="plain")
    penalties = mox.get_collection(tf1.GraphKeys.REGULARIZATION_LOSSES)
    loss = tf.reduce_mean(h * w * plain) + tf.add_n(penalties)
    assert len(penalties) == 1
    assert len(mox.get_collection(tf1.GraphKeys.TRAINABLE_VARIABLES)) == 10
    return mox.ModelSpec(
        loss=loss, log_info={"loss": loss}, export_spec=mox.ExportSpec({"x": x}, {"h": h}), output_info={"h": h}
    )


def test_a_second_build_shares_every_variable_whoever_made_it() -> None:
    with tf1.Graph().as_default():
        x = tf.constant(np.random.default_rng(0).normal(size=(6, 5)).astype(np.float32))
        first = build_branch(keras_and_get_variable, "TRAIN", [[x]], [Place()])
        names = [v.op.name for v in tf1.global_variables()]
        second = build_branch(keras_and_get_variable, "EVAL", [[x]], [Place()], after=first)
        assert [v.op.name for v in tf1.global_variables()] == names
        assert "dense/kernel" in names
        assert "plain" in names
        assert len(first.towers[0].updates) == 4  # two batch normalisations, a mean and a variance each
        assert second.towers[0].updates == []


def test_towers_of_one_branch_share_variables_and_have_their_own_collections() -> None:
    with tf1.Graph().as_default():
        x = tf.ones([6, 5])
        branch = build_branch(keras_and_get_variable, "TRAIN", [[x], [x]], [Place(), Place(1)])
        assert len(branch.towers) == 2
        assert len(tf1.trainable_variables()) == 10
        assert branch.towers[1].updates == []


def test_a_build_that_makes_other_variables_is_explained() -> None:
    def model_fn(inputs: list[Any], mode: str) -> mox.ModelSpec:
        width = 4 if mode == "TRAIN" else 5
        h = tf.keras.layers.Dense(width)(inputs[0])
        if mode == "PREDICT":
            tf.keras.layers.Dense(1)(h)
        return mox.ModelSpec(loss=tf.reduce_sum(h), log_info={"a": tf.reduce_sum(h)}, output_info={"h": h})

    with tf1.Graph().as_default():
        x = tf.ones([6, 5])
        first = build_branch(model_fn, "TRAIN", [[x]], [Place()])
        with pytest.raises(
            ModelSpecError, match=r"of shape .*5, 5.* in EVAL, where the first build made 'dense/kernel:0'"
        ):
            build_branch(model_fn, "EVAL", [[x]], [Place()], after=first)


def test_build_export_branch_uses_the_same_rules() -> None:
    with tf1.Graph().as_default():
        x = tf1.placeholder(tf.float32, [None, 5])
        branch = build_export_branch(keras_and_get_variable, [x])
        assert branch.mode == "EXPORT"
        assert branch.spec.export_spec is not None
        assert branch.inputs == [x]
        assert all(op.device == "" for op in tf1.get_default_graph().get_operations())
    with tf1.Graph().as_default(), pytest.raises(ModelSpecError, match="without export_spec, which EXPORT needs"):
        build_export_branch(lambda inputs, mode: mox.ModelSpec(loss=inputs[0]), [tf.constant(1.0)])


@pytest.mark.parametrize("library", ["tf1.layers", "tf.keras"])
def test_moving_averages_move_exactly_once_a_step(
    library: str, linear: Any, train: Train, variable: Any, tmp_path: Path
) -> None:
    def model_fn(inputs: list[Any], mode: str) -> mox.ModelSpec:
        x, y = inputs
        if library == "tf1.layers":
            h = tf1.layers.batch_normalization(x, training=True, momentum=0.9, name="bn", fused=False)
        else:
            h = tf.keras.layers.BatchNormalization(momentum=0.9, name="bn")(x, training=True)
        w = tf1.get_variable("w", [3])
        return mox.ModelSpec(loss=tf.reduce_mean(tf.square(tf.linalg.matvec(h, w) - y)))

    result = train(model_fn=model_fn, log_dir=str(tmp_path), max_number_of_steps=3)
    expected = np.zeros(3)
    for step in range(3):
        expected = 0.9 * expected + 0.1 * linear.x[10 * step : 10 * step + 10].mean(0)
    np.testing.assert_allclose(variable(result.checkpoint, "bn/moving_mean"), expected, rtol=1e-4, atol=1e-6)


def test_an_assignment_of_the_users_is_not_run_for_him(train: Train, variable: Any, tmp_path: Path) -> None:
    def model_fn(inputs: list[Any], mode: str) -> mox.ModelSpec:
        w = tf1.get_variable("w", [3])
        counter = tf1.get_variable("counter", initializer=1.0, trainable=False)
        counter.assign(99.0)
        return mox.ModelSpec(loss=tf.reduce_sum(w))

    result = train(model_fn=model_fn, log_dir=str(tmp_path))
    assert variable(result.checkpoint, "counter") == 1.0
