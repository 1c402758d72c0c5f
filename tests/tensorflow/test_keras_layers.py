"""Keras models inside of model_fn: training phase, moving averages, penalties, initial weights, seeds."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import moxserve.tensorflow as mox
from moxserve.errors import ModelSpecError
from moxserve.tensorflow.executor.branch import build_branch
from moxserve.tensorflow.executor.devices import Place
from moxserve.tensorflow.executor.env import tf, tf1

ROWS = np.random.default_rng(5).normal(size=(64, 3)).astype("f")
PENALTIES = tf1.GraphKeys.REGULARIZATION_LOSSES
Model = Callable[[Any], Any]


def layers() -> list[Any]:
    keras = tf.keras
    return [
        keras.layers.Dense(4, kernel_initializer="ones", kernel_regularizer=keras.regularizers.l2(0.5), name="a"),
        keras.layers.BatchNormalization(momentum=0.5, name="norm"),
        keras.layers.Dropout(0.5),
        keras.layers.Dense(1, kernel_initializer="ones", name="b"),
    ]


def one_by_one(x: Any) -> Any:
    for layer in layers():
        x = layer(x)
    return x


def sequential(x: Any) -> Any:
    return tf.keras.Sequential(layers())(x)


def sequential_of_known_shape(x: Any) -> Any:
    return tf.keras.Sequential([tf.keras.Input((3,)), *layers()])(x)


def functional(x: Any) -> Any:
    inputs = tf.keras.Input((3,))
    return tf.keras.Model(inputs, one_by_one(inputs))(x)


def through_json(x: Any) -> Any:
    with tf1.Graph().as_default():
        inputs = tf.keras.Input((3,))
        json = tf.keras.Model(inputs, one_by_one(inputs)).to_json()
    return tf.keras.models.model_from_json(json)(x)


class Watch:
    """A model_fn around a Keras model, and the values of its steps."""

    def __init__(self, model: Model, penalized: bool = False) -> None:
        self.model, self.penalized, self.seen = model, penalized, []

    def input_fn(self, mode: str) -> Any:
        dataset = tf1.data.Dataset.from_tensor_slices(ROWS)
        return (dataset.repeat() if mode == "TRAIN" else dataset).make_one_shot_iterator().get_next()

    def model_fn(self, inputs: list[Any], mode: str) -> mox.ModelSpec:
        output = self.model(inputs[0])
        loss = tf.reduce_mean(tf.square(output))
        penalties = mox.get_collection(PENALTIES)
        if self.penalized:
            loss += tf.add_n(penalties)
        spread = tf.math.reduce_std(output - tf.reduce_sum(inputs[0], 1, keepdims=True))
        return mox.ModelSpec(
            loss=loss,
            log_info={"loss": loss, "penalties": tf.add_n([0.0, *penalties]), "spread": spread},
            output_info={"output": output},
            export_spec=mox.ExportSpec({"x": inputs[0]}, {"output": output}),
        )

    def run(self, mode: str = "TRAIN", steps: int = 1, **kwargs: Any) -> mox.RunResult:
        given = {"log_every_n_steps": 1, "save_summary_steps": 0, "batch_size": 16, **kwargs}
        if mode == "TRAIN":
            given.setdefault("optimizer_fn", mox.get_optimizer_fn("sgd", learning_rate=0.0))
        return mox.run(
            input_fn=self.input_fn, model_fn=self.model_fn, run_mode=mode, max_number_of_steps=steps, **given
        )


@pytest.mark.slow
@pytest.mark.parametrize("model", [one_by_one, sequential, sequential_of_known_shape, functional, through_json])
def test_a_model_trains_as_keras_would_train_it(model: Model, tmp_path: Path, variable: Callable[..., Any]) -> None:
    watch = Watch(model)
    trained = watch.run(log_dir=str(tmp_path), export_model=mox.ExportKeys.TF_SERVING)
    assert trained.metrics["penalties"] == pytest.approx(0.5 * 12)  # twelve weights of 1
    assert trained.metrics["spread"] > 0.5  # units are dropped
    summed = ROWS[:16].sum(1)
    mean, variance = 0.5 * summed.mean(), 0.5 + 0.5 * summed.var()
    scope = "sequential/" if model is sequential else ""
    averages = [variable(trained.checkpoint, f"{scope}norm/moving_{name}") for name in ("mean", "variance")]
    assert averages[0] == pytest.approx(np.full(4, mean), rel=1e-4)
    assert averages[1] == pytest.approx(np.full(4, variance), rel=1e-4)
    assert (tmp_path / "1" / "saved_model.pb").exists()
    # An evaluation drops nothing, and takes the averages.
    evaluated = watch.run("EVAL", steps=0, log_dir=str(tmp_path))
    expected = 4 * (ROWS.sum(1) - mean) / np.sqrt(variance + 1e-3)
    assert evaluated.metrics["loss"] == pytest.approx(np.square(expected).mean(), rel=1e-4)


@pytest.mark.slow
def test_an_evaluation_in_the_middle_of_training_drops_nothing(console: Any, tmp_path: Path) -> None:
    watch = Watch(functional)
    model_fn = watch.model_fn

    def hooked(inputs: list[Any], mode: str) -> mox.ModelSpec:
        spec = model_fn(inputs, mode)
        hook = mox.LogEvaluationMetricHook(
            monitor_info=dict(spec.log_info), batch_size=16, samples_in_train=64, samples_in_eval=64, prefix="[EVAL]"
        )
        spec.hooks.append(hook)
        return spec

    watch.model_fn = hooked  # type: ignore[method-assign]
    mox.set_flag("num_gpus", 2)
    optimizer = mox.get_optimizer_fn("sgd", learning_rate=0.1)
    watch.run(steps=2, inter_mode=mox.ModeKeys.EVAL, log_dir=str(tmp_path), optimizer_fn=optimizer)
    [line] = [line for line in console.lines if "[EVAL]" in line]
    evaluated = watch.run("EVAL", steps=0, log_dir=str(tmp_path))
    for name, value in evaluated.metrics.items():
        assert f"{name}: {value:.3f}" in line


@pytest.mark.slow
def test_a_policy_of_mixed_precision_is_keras_business(tmp_path: Path, variable: Callable[..., Any]) -> None:
    weights = np.arange(3, dtype="f").reshape(3, 1)

    def model(x: Any) -> Any:
        dense = tf.keras.layers.Dense(1, name="d", dtype="mixed_float16")
        dense.build([None, 3])
        dense.set_weights([weights, np.zeros(1)])
        output = dense(x)
        assert output.dtype == tf.float16
        return tf.cast(output, tf.float32)

    result = Watch(model).run(log_dir=str(tmp_path))
    kept = variable(result.checkpoint, "kernel")  # `build` opens no scope
    assert kept.dtype == np.float32
    assert kept == pytest.approx(weights)


@pytest.mark.slow
@pytest.mark.parametrize("update", ["parameter_server", "replicated"])
def test_towers_share_a_keras_model_and_its_penalties(
    update: str, tmp_path: Path, variable: Callable[..., Any]
) -> None:
    def model(x: Any) -> Any:
        dense = tf.keras.layers.Dense(
            2, kernel_initializer="ones", kernel_regularizer="l2", activity_regularizer="l2", name="d"
        )
        return dense(x)

    def weights(folder: str, **kwargs: Any) -> np.ndarray:
        optimizer = mox.get_optimizer_fn("sgd", learning_rate=0.1)
        result = Watch(model, penalized=True).run(
            steps=3, optimizer_fn=optimizer, log_dir=str(tmp_path / folder), **kwargs
        )
        return np.asarray(variable(result.checkpoint, "d/kernel"))

    alone = weights("one", batch_size=16)
    mox.set_flag("num_gpus", 2)
    mox.set_flag("variable_update", update)
    assert weights("two", batch_size=8) == pytest.approx(alone, rel=1e-5)


@pytest.mark.slow
def test_who_says_whether_a_layer_trains_is_believed() -> None:
    kept = Watch(lambda x: tf.keras.layers.Dropout(0.5)(tf.reduce_sum(x, 1, keepdims=True), training=False))
    kept.model_fn = _with_a_variable(kept.model_fn)  # type: ignore[method-assign]
    assert kept.run().metrics["spread"] == 0.0
    dropped = Watch(lambda x: tf.keras.layers.Dropout(0.5)(tf.reduce_sum(x, 1, keepdims=True)))
    dropped.model_fn = _with_a_variable(dropped.model_fn)  # type: ignore[method-assign]
    assert dropped.run().metrics["spread"] > 0.1


def _with_a_variable(model_fn: Callable[..., mox.ModelSpec]) -> Callable[..., mox.ModelSpec]:
    def wrapped(inputs: list[Any], mode: str) -> mox.ModelSpec:
        spec = model_fn(inputs, mode)
        spec.losses[0] += tf1.get_variable("w", [], initializer=tf1.zeros_initializer())
        return spec

    return wrapped


@pytest.mark.slow
def test_weights_that_are_loaded_in_model_fn_are_what_training_starts_from(
    tmp_path: Path, variable: Callable[..., Any]
) -> None:
    weights = np.arange(3, dtype="f").reshape(3, 1)
    with tf1.Graph().as_default(), tf1.Session().as_default():
        source = tf.keras.Sequential([tf.keras.Input((3,)), tf.keras.layers.Dense(1, name="d")])
        source.layers[0].set_weights([weights, np.array([7.0])])
        source.save_weights(str(tmp_path / "weights.h5"))

    def model(x: Any) -> Any:
        keras_model = tf.keras.Sequential([tf.keras.Input((3,)), tf.keras.layers.Dense(1, name="d")])
        keras_model.load_weights(str(tmp_path / "weights.h5"))
        return keras_model(x)

    log_dir = str(tmp_path / "log")
    first = Watch(model).run(log_dir=log_dir)
    assert variable(first.checkpoint, "d/kernel") == pytest.approx(weights)
    assert variable(first.checkpoint, "d/bias") == pytest.approx(np.array([7.0]))
    # What was trained counts more, once there is a checkpoint.
    sgd = mox.get_optimizer_fn("sgd", learning_rate=0.1)
    trained = Watch(model).run(log_dir=log_dir, steps=2, optimizer_fn=sgd)
    again = Watch(model).run(log_dir=log_dir, steps=3)
    assert variable(again.checkpoint, "d/kernel") == pytest.approx(variable(trained.checkpoint, "d/kernel"))
    assert np.abs(variable(again.checkpoint, "d/kernel") - weights).max() > 0.1


def test_an_embedding_begins_with_its_pretrained_weights() -> None:
    table = np.arange(8, dtype="f").reshape(4, 2)

    def model_fn(inputs: list[Any], mode: str) -> mox.ModelSpec:
        found = tf.keras.layers.Embedding(4, 2, weights=[table])(inputs[0])
        loss = tf.reduce_mean(found)
        return mox.ModelSpec(loss=loss, log_info={"loss": loss})

    result = mox.run(
        input_fn=lambda mode: tf.constant([3, 1]),
        model_fn=model_fn,
        optimizer_fn=mox.get_optimizer_fn("sgd", learning_rate=0.0),
        run_mode=mox.ModeKeys.TRAIN,
        auto_batch=False,
        batch_size=2,
        max_number_of_steps=1,
        log_every_n_steps=1,
    )
    assert result.metrics["loss"] == pytest.approx(table[[3, 1]].mean())


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["tf.keras.layers", "tf.layers"])
def test_seeds_of_layers_follow_from_that_of_the_graph(kind: str, tmp_path: Path, variable: Callable[..., Any]) -> None:
    def model(x: Any) -> Any:
        dense = tf.keras.layers.Dense if kind == "tf.keras.layers" else tf1.layers.Dense
        return dense(1, name="b")(dense(3, name="a")(x))

    def weights(folder: str, seed: int) -> np.ndarray:
        tf1.reset_default_graph()
        tf1.set_random_seed(seed)
        result = Watch(model).run(log_dir=str(tmp_path / folder))
        first = np.asarray(variable(result.checkpoint, "a/kernel"))
        assert not np.allclose(first[:, :1], variable(result.checkpoint, "b/kernel"))
        return first

    once = weights("one", 3)
    assert (weights("two", 3) == once).all()
    assert not (weights("three", 4) == once).any()


def test_a_layer_of_keras_3_is_refused_with_its_cure() -> None:
    keras = pytest.importorskip("keras", minversion="3")

    def model_fn(inputs: list[Any], mode: str) -> mox.ModelSpec:
        return mox.ModelSpec(loss=tf.reduce_mean(keras.layers.Dense(1)(inputs[0])))

    with tf.Graph().as_default(), pytest.raises(ModelSpecError, match="the layer Dense of Keras 3") as caught:
        build_branch(model_fn, "TRAIN", [[tf.zeros([2, 3])]], [Place()])
    assert "tf.keras.layers" in str(caught.value.hint)
    with tf.Graph().as_default():
        assert keras.layers.Dense(1).name.startswith("dense")  # outside of a model_fn it is nobody's business
