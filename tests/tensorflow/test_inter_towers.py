"""Hooks and evaluations in the middle of training on several devices: epochs in the rows of all, means over all."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import moxserve.tensorflow as mox
from moxserve.tensorflow.executor.env import tf, tf1

Train = Callable[..., mox.RunResult]

TRAIN_ROWS, EVAL_ROWS, BATCH = 96, 35, 8
_random = np.random.default_rng(2)
X = _random.normal(size=(TRAIN_ROWS + EVAL_ROWS, 3)).astype(np.float32)
Y = (X @ np.array([1.0, -2.0, 0.5]) + 0.1 * _random.normal(size=len(X))).astype(np.float32)


def input_fn(mode: str, **kwargs: Any) -> Any:
    part = slice(0, TRAIN_ROWS) if mode == mox.ModeKeys.TRAIN else slice(TRAIN_ROWS, None)
    dataset = tf1.data.Dataset.from_tensor_slices((X[part], Y[part]))
    return dataset.repeat() if mode == mox.ModeKeys.TRAIN else dataset


def weights_after(steps: int, rows: int, rates: list[float]) -> np.ndarray:
    w = np.zeros(3)
    for step, rate in zip(range(steps), rates, strict=True):
        index = np.arange(step * rows, (step + 1) * rows) % TRAIN_ROWS
        x, y = X[index].astype(np.float64), Y[index].astype(np.float64)
        w -= rate * 2 * x.T @ (x @ w - y) / rows
    return w


def eval_loss(w: np.ndarray) -> float:
    return float(np.mean((X[TRAIN_ROWS:] @ w - Y[TRAIN_ROWS:]) ** 2))


def model_with(*kinds: Any) -> Callable[..., mox.ModelSpec]:
    def model_fn(inputs: list[Any], mode: str) -> mox.ModelSpec:
        x, y = inputs
        w = tf1.get_variable("w", [3], initializer=tf1.zeros_initializer())
        loss = tf.reduce_mean(tf.square(tf.linalg.matvec(x, w) - y))
        sizes = {"batch_size": BATCH, "samples_in_train": TRAIN_ROWS, "samples_in_eval": EVAL_ROWS}
        return mox.ModelSpec(loss=loss, hooks=[kind({"loss": loss}, **sizes) for kind in kinds])

    return model_fn


@pytest.mark.slow
@pytest.mark.parametrize("update", ["parameter_server", "replicated"])
@pytest.mark.parametrize("towers", [2, 4])
def test_evaluations_are_over_all_towers(
    towers: int, update: str, train: Train, console: Any, tmp_path: Path, variable: Any
) -> None:
    mox.set_flag("num_gpus", towers)
    mox.set_flag("variable_update", update)
    made: list[Any] = []

    def plateau(info: Any, **sizes: Any) -> Any:  # 100: nothing is ever better, every evaluation is a plateau
        made.append(mox.PlateauLREarlyStoppingHook(info, "loss", min_delta=100.0, factor=0.5, **sizes))
        return made[-1]

    def best(info: Any, **sizes: Any) -> Any:
        return mox.BestCheckpointHook(info, "loss", **sizes)

    result = train(
        input_fn=input_fn, model_fn=model_with(mox.LogEvaluationMetricHook, plateau, best), batch_size=BATCH,
        inter_mode="EVAL", log_dir=str(tmp_path), max_number_of_steps=1000,
    )  # fmt: skip
    epoch = TRAIN_ROWS // (BATCH * towers)
    assert (result.stop_reason, result.global_step) == ("request_stop", 4 * epoch)
    rates = [0.1] * 2 * epoch + [0.05] * epoch + [0.025] * epoch
    losses = []
    for n in range(1, 5):
        w = weights_after(n * epoch, BATCH * towers, rates[: n * epoch])
        losses.append(eval_loss(w))
        line = f"step: {n * epoch - 1} loss: {losses[-1]:.3f}"
        assert sum(f"[VALIDATION METRICS] {line}" in printed for printed in console.lines) == 1  # once, not per tower
    np.testing.assert_allclose(variable(result.checkpoint, "w"), w, rtol=1e-4)
    lowest = (int(np.argmin(losses)) + 1) * epoch
    assert result.best == str(tmp_path / f"best/model.ckpt-{lowest}")
    kept = weights_after(lowest, BATCH * towers, rates[:lowest])
    np.testing.assert_allclose(variable(result.best, "w"), kept, rtol=1e-4)
