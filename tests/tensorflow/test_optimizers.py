"""Optimizers by name, and what flags do to gradients, against NumPy."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import moxserve.tensorflow as mox
from moxserve.errors import UsageError
from moxserve.tensorflow.executor.env import tf, tf1

Train = Callable[..., mox.RunResult]
BUILTIN = ["adadelta", "adagrad", "adam", "ftrl", "momentum", "rmsprop", "sgd"]


@pytest.mark.slow
@pytest.mark.parametrize("name", BUILTIN)
def test_every_builtin_trains(name: str, train: Train, variable: Any, tmp_path: Path) -> None:
    result = train(
        optimizer_fn=mox.get_optimizer_fn(name, learning_rate=0.05), log_dir=str(tmp_path), max_number_of_steps=3
    )
    assert np.abs(variable(result.checkpoint, "w")).min() > 0


def test_arguments_are_handed_on() -> None:
    with tf1.Graph().as_default():
        adam = mox.get_optimizer_fn("adam", learning_rate=0.1, beta1=0.5)()
        assert (adam._lr, adam._beta1) == (0.1, 0.5)
        nesterov = mox.get_optimizer_fn("Momentum", 0.1, None, 0.7, use_nesterov=True)()
        assert (nesterov._momentum, nesterov._use_nesterov) == (0.7, True)
        assert mox.get_optimizer_fn("momentum", 0.1)()._momentum == 0.9
        assert isinstance(mox.get_optimizer_fn("sgd", 0.1, scope="s")(), tf1.train.GradientDescentOptimizer)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("adm", 0.1), "unknown optimizer 'adm'; did you mean 'adam'"),
        (("xyz", 0.1), "known: adadelta, adagrad"),
        ((None, 0.1), "unknown optimizer None"),
    ],
)
def test_unknown_names(arguments: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        mox.get_optimizer_fn(*arguments)


def test_unknown_arguments() -> None:
    with pytest.raises(UsageError, match="optimizer 'sgd' has no argument 'momentum'"):
        mox.get_optimizer_fn("sgd", learning_rate=0.1, momentum=0.9)


def test_momentum_computes_what_numpy_computes(train: Train, linear: Any, variable: Any, tmp_path: Path) -> None:
    factory = mox.get_optimizer_fn("momentum", learning_rate=0.05, momentum=0.9)
    result = train(optimizer_fn=factory, log_dir=str(tmp_path), max_number_of_steps=15)
    w, velocity = np.zeros(3), np.zeros(3)
    for step in range(15):
        velocity = 0.9 * velocity + linear.gradient(w, 10 * step, 10)
        w = w - 0.05 * velocity
    np.testing.assert_allclose(variable(result.checkpoint, "w"), w, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(variable(result.checkpoint, "w/Momentum"), velocity, rtol=1e-3, atol=1e-4)


@pytest.fixture
def one_step(train: Train, variable: Any, tmp_path: Path) -> Callable[..., dict[str, np.ndarray]]:
    """Train two variables for one step of size 1, and give the negative updates, that is the gradients applied."""

    def model_fn(inputs: list[Any], mode: str) -> mox.ModelSpec:
        a = tf1.get_variable("net/a", initializer=[0.0, 0.0])
        table = tf1.get_variable("net/table", initializer=np.zeros((3, 2), np.float32))
        return mox.ModelSpec(loss=tf.reduce_sum(a * [3.0, -4.0]) + tf.reduce_sum(tf.gather(table, [1, 1]) * 6.0))

    def call(**flags: Any) -> dict[str, np.ndarray]:
        for name, value in flags.items():
            mox.set_flag(name, value)
        folder = tmp_path / str(len(list(tmp_path.iterdir())))
        sgd = mox.get_optimizer_fn("sgd", learning_rate=1.0)
        result = train(model_fn=model_fn, optimizer_fn=sgd, max_number_of_steps=1, log_dir=str(folder))
        return {name: -variable(result.checkpoint, f"net/{name}") for name in ("a", "table")}

    return call


TABLE = np.array([[0, 0], [12, 12], [0, 0]], np.float32)


def test_plain_gradients(one_step: Any) -> None:
    got = one_step()
    np.testing.assert_allclose(got["a"], [3, -4])
    np.testing.assert_allclose(got["table"], TABLE)


def test_loss_scale_changes_nothing_but_the_way(one_step: Any) -> None:
    got = one_step(loss_scale=1024.0)
    np.testing.assert_allclose(got["a"], [3, -4])
    np.testing.assert_allclose(got["table"], TABLE)


def test_clip_by_global_norm(one_step: Any) -> None:
    got = one_step(gradient_clip=1.0)
    # What a sparse gradient has for one row is summed before: (12, 12), not two slices of (6, 6).
    norm = np.sqrt(25 + 2 * 144)
    np.testing.assert_allclose(got["a"], np.array([3, -4]) / norm, rtol=1e-5)
    np.testing.assert_allclose(got["table"], TABLE / norm, rtol=1e-5)


def test_clip_by_norm_and_by_value(one_step: Any) -> None:
    np.testing.assert_allclose(one_step(gradient_clip=2.5, gradient_clip_type="norm")["a"], [1.5, -2], rtol=1e-5)
    got = one_step(gradient_clip=3.5, gradient_clip_type="value")
    np.testing.assert_allclose(got["a"], [3, -3.5])
    np.testing.assert_allclose(got["table"][1], [3.5, 3.5])


def test_trainable_patterns(one_step: Any) -> None:
    got = one_step(trainable_include_patterns="net/", trainable_exclude_patterns="table,unlike")
    np.testing.assert_allclose(got["a"], [3, -4])
    np.testing.assert_allclose(got["table"], 0)


def test_trainable_patterns_that_match_nothing_are_told(one_step: Any, console: Any) -> None:
    one_step(trainable_include_patterns="net/,tabel", trainable_exclude_patterns="unlike")
    assert "flag --trainable_include_patterns: 'tabel' matches none of the model's" in console.text
    assert "flag --trainable_exclude_patterns: 'unlike' matches none" in console.text
    assert "'net/'" not in console.text


def test_a_variable_that_no_gradient_reaches_is_told(train: Train, console: Any) -> None:
    def model_fn(inputs: list[Any], mode: str) -> mox.ModelSpec:
        used, _ = tf1.get_variable("used", []), tf1.get_variable("idle", [])
        return mox.ModelSpec(loss=used * 2)

    train(model_fn=model_fn)
    assert "reaches idle: they are not trained" in console.text
