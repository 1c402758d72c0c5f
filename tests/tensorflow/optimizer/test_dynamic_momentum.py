"""Dynamic momentum through `mox.run`, against NumPy."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import moxserve.tensorflow as mox
from moxserve.errors import UsageError
from moxserve.tensorflow.executor.env import tf, tf1
from moxserve.tensorflow.optimizer.dynamic_momentum import DyMomentumOptimizer
from moxserve.tensorflow.optimizer.dynamic_momentumw import DyMomentumWOptimizer
from moxserve.tensorflow.optimizer.learning_rate_scheduler import linear_cosine_decay

STEPS, MAX_LR, MIN_LR = 40, 0.2, 0.01
TARGET = np.linspace(-1, 2, 6)


def rates() -> np.ndarray:
    p = np.clip((np.arange(STEPS) / STEPS - 0.1) / 0.8, 0, 1)
    up = np.arange(STEPS) / STEPS / 0.1
    fall = (1 - p) * 0.5 * (1 + np.cos(np.pi * p))
    return np.asarray(MIN_LR + (MAX_LR - MIN_LR) * np.where(np.arange(STEPS) < 0.1 * STEPS, up, fall))


def momenta(lr: np.ndarray) -> np.ndarray:
    return np.asarray(0.95 - (0.95 - 0.6) * (lr - MIN_LR) / (MAX_LR - MIN_LR))


def trained(make: Callable[[Any, Any], Any], folder: Path) -> tuple[str, list[float]]:
    """Train a bowl; give the checkpoint, and what `get_momentum` was at each step."""
    seen: list[float] = []

    class Watch(tf1.train.SessionRunHook):
        def before_run(self, context: Any) -> Any:
            return tf1.train.SessionRunArgs("DyMomentum/momentum:0")

        def after_run(self, context: Any, values: Any) -> None:
            seen.append(float(values.results))

    def model_fn(inputs: list[Any], mode: str) -> mox.ModelSpec:
        w = tf1.get_variable("w", initializer=np.full((2, 3), 0.5, np.float32))
        b = tf1.get_variable("b", initializer=[1.0])
        loss = 0.5 * tf.reduce_sum(tf.square(tf.reshape(w, [-1]) - TARGET.astype(np.float32))) + tf.reduce_sum(b * b)
        return mox.ModelSpec(loss=loss + 0.0 * tf.reduce_sum(inputs[0]), hooks=[Watch()])

    def optimizer_fn() -> Any:
        step = tf1.train.get_or_create_global_step()
        optimizer = make(linear_cosine_decay(MAX_LR, MIN_LR, step, STEPS, 0.1, 0.9), step)
        tf1.summary.scalar("momentum", optimizer.get_momentum())
        return optimizer

    def input_fn(mode: str) -> Any:
        return tf1.data.Dataset.from_tensors(tf.constant(0.0)).repeat()

    result = mox.run(
        input_fn,
        model_fn=model_fn,
        optimizer_fn=optimizer_fn,
        run_mode=mox.ModeKeys.TRAIN,
        batch_size=1,
        max_number_of_steps=STEPS,
        log_dir=str(folder),
        save_summary_steps=10,
        log_every_n_steps=0,
    )
    return str(result.checkpoint), seen


@pytest.mark.slow
@pytest.mark.parametrize("nesterov", [False, True])
@pytest.mark.parametrize("decoupled", [False, True])
def test_momentum_goes_against_the_learning_rate(
    decoupled: bool, nesterov: bool, variable: Any, tmp_path: Path
) -> None:
    def make(rate: Any, step: Any) -> Any:
        kind = DyMomentumWOptimizer if decoupled else DyMomentumOptimizer
        return kind(
            rate,
            MAX_LR,
            MIN_LR,
            max_mom=0.95,
            min_mom=0.6,
            global_step=step,
            max_iteration=STEPS,
            use_nesterov=nesterov,
            cooldown=0.1,
            use_lars=False,
            weight_decay=0.05,
            name="DyMomentum",
        )

    checkpoint, seen = trained(make, tmp_path)
    lr = rates()
    momentum = momenta(lr)
    np.testing.assert_allclose(seen, momentum, rtol=1e-5)
    assert momentum[4] == pytest.approx(0.6)
    w, b, velocity, velocity_b = np.full(6, 0.5), 1.0, np.zeros(6), 0.0
    for rate, factor in zip(lr, momentum, strict=True):
        g, g_b = w - TARGET, 2 * b
        velocity, velocity_b = factor * velocity + g, factor * velocity_b + g_b
        decay = rate * 0.05 * w if decoupled else 0.0
        w = w - decay - rate * (factor * velocity + g if nesterov else velocity)
        b = b - rate * (factor * velocity_b + g_b if nesterov else velocity_b)  # biases do not decay
    np.testing.assert_allclose(variable(checkpoint, "w").ravel(), w, rtol=1e-4)
    np.testing.assert_allclose(variable(checkpoint, "b"), [b], rtol=1e-3, atol=1e-5)


@pytest.mark.slow
def test_layer_wise_rates_and_other_wrappers_go_with_it(variable: Any, tmp_path: Path) -> None:
    def make(rate: Any, step: Any) -> Any:
        inner = DyMomentumOptimizer(rate, MAX_LR, MIN_LR, 0.95, 0.6, use_lars=True, weight_decay=0.01)
        wrapper = mox.get_optimizer_wrapper_fn("dgc", inner, sparsity=0.5)()
        wrapper.get_momentum = inner.get_momentum
        return wrapper

    checkpoint, seen = trained(make, tmp_path)
    np.testing.assert_allclose(seen, momenta(rates()), rtol=1e-5)  # dgc has taken it over, and it still moves
    assert np.abs(variable(checkpoint, "w") - 0.5).max() > 1e-4


def test_wrong_numbers() -> None:
    for arguments, message in (
        ((0.1, 0.1, 0.2), "expected max_lr >= min_lr"),
        ((0.1, 0.2, 0.1, 1.0, 0.5), "expected 1 > max_mom"),
        ((0.1, 0.2, 0.1, 0.9, 0.5, None, None, False, 0.1), "max_iteration=None"),
        ((0.1, 0.2, 0.1, 0.9, 0.5, None, 10, False, 0.0, False, -1), "weight_decay=-1"),
    ):
        with pytest.raises(UsageError, match=message):
            DyMomentumWOptimizer(*arguments)
