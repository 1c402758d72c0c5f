"""Optimizer wrappers through `mox.run`, against NumPy and against larger batches."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import moxserve.tensorflow as mox
from moxserve.tensorflow.executor.env import tf, tf1

Train = Callable[..., mox.RunResult]
Weights = Callable[..., np.ndarray]
BASES: dict[str, Callable[[], Any]] = {
    "sgd": lambda: tf1.train.GradientDescentOptimizer(0.05),
    "momentum": lambda: tf1.train.MomentumOptimizer(0.02, 0.9),
    "adam": lambda: tf1.train.AdamOptimizer(0.05),
}


def wrapped(*layers: tuple[str, dict[str, Any]], base: str = "momentum") -> Callable[[], Any]:
    """Make an optimizer_fn: the first layer is the outermost."""

    def optimizer_fn() -> Any:
        optimizer = BASES[base]()
        for name, options in reversed(layers):
            optimizer = mox.get_optimizer_wrapper_fn(name, optimizer, **options)()
        return optimizer

    return optimizer_fn


@pytest.fixture
def trained(train: Train, variable: Any, tmp_path: Path) -> Weights:
    """Train, and give the weights; an own folder for each call."""

    def call(optimizer_fn: Any, steps: int, batch: int, **kwargs: Any) -> np.ndarray:
        folder = tmp_path / str(len(list(tmp_path.iterdir())))
        result = train(
            optimizer_fn=optimizer_fn, max_number_of_steps=steps, batch_size=batch, log_dir=str(folder), **kwargs
        )
        weights: np.ndarray = variable(result.checkpoint, "w")
        return weights

    return call


@pytest.mark.slow
@pytest.mark.parametrize("base", BASES)
def test_four_batches_equal_one_of_their_size(base: str, trained: Weights) -> None:
    large = trained(BASES[base], 20, 20)
    gathered = trained(wrapped(("batch_gradients", {"num_batches": 4}), base=base), 80, 5)
    np.testing.assert_allclose(gathered, large, rtol=1e-5, atol=1e-6)


@pytest.mark.slow
def test_batch_gradients_of_lars_of_momentum(trained: Weights, linear: Any) -> None:
    def model_fn(inputs: list[Any], mode: str) -> mox.ModelSpec:
        x, y = inputs
        w = tf1.get_variable("w", initializer=np.full((3, 1), 0.5, np.float32))
        b = tf1.get_variable("b", initializer=[0.0])
        return mox.ModelSpec(loss=tf.reduce_mean(tf.square((x @ w)[:, 0] + b[0] - y)))

    got = trained(
        wrapped(("batch_gradients", {"num_batches": 2}), ("lars", {"ratio": 0.5, "weight_decay": 0.01})),
        20,
        5,
        model_fn=model_fn,
    )
    w, b, velocity, velocity_b = np.full(3, 0.5), 0.0, np.zeros(3), 0.0
    for update in range(10):
        index = np.arange(10 * update, 10 * update + 10) % len(linear.x)
        x, y = linear.x[index].astype(np.float64), linear.y[index].astype(np.float64)
        error = 2 * (x @ w + b - y) / 10
        g, g_b = x.T @ error, error.sum()
        norm = np.linalg.norm(w)
        g = 0.5 * norm / (np.linalg.norm(g) + 0.01 * norm + 1e-9) * (g + 0.01 * w)
        velocity, velocity_b = 0.9 * velocity + g, 0.9 * velocity_b + g_b  # biases are left alone
        w, b = w - 0.02 * velocity, b - 0.02 * velocity_b
    np.testing.assert_allclose(got[:, 0], w, rtol=1e-4)
