"""What is told of a run on several devices: console lines, rates, evaluations during training, hooks."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import moxserve.tensorflow as mox
from moxserve.errors import ModelSpecError
from moxserve.tensorflow.executor.env import tf, tf1
from moxserve.tensorflow.executor.hooks import FeedSessionRunHook

X = np.random.default_rng(7).normal(size=(40, 3)).astype(np.float32)


def endless(mode: str, **kwargs: Any) -> Any:
    dataset = tf.data.Dataset.from_tensor_slices(X)
    return dataset.repeat() if mode == mox.ModeKeys.TRAIN else dataset


def ten_rows(mode: str, **kwargs: Any) -> Any:
    return tf.data.Dataset.from_tensor_slices(X[:10])


def model_fn(inputs: list[Any], mode: str, **kwargs: Any) -> mox.ModelSpec:
    w = tf1.get_variable("w", [3], initializer=tf1.ones_initializer())
    mean = tf.reduce_mean(tf.linalg.matvec(inputs[0], w))
    return mox.ModelSpec(loss=mean, log_info={"mean": mean, "first": inputs[0][0, 0]})


def train(devices: int, **kwargs: Any) -> mox.RunResult:
    mox.set_flag("num_gpus", devices)
    defaults: dict[str, Any] = {
        "input_fn": endless,
        "model_fn": model_fn,
        "optimizer_fn": mox.get_optimizer_fn("sgd", learning_rate=0.1),
        "run_mode": mox.ModeKeys.TRAIN,
        "batch_size": 2,
        "max_number_of_steps": 1,
        "log_every_n_steps": 1,
    }
    return mox.run(**{**defaults, **kwargs})


def test_console_lines_show_the_first_device_or_the_mean_of_all(console: Any) -> None:
    first = train(2)
    assert first.metrics["mean"] == pytest.approx(X[:2].sum(axis=1).mean(), abs=1e-6)
    mox.set_flag("log_first_clone", False)
    both = train(2)
    assert both.metrics["mean"] == pytest.approx(X[:4].sum(axis=1).mean(), abs=1e-6)
    assert both.metrics["first"] == pytest.approx((X[0, 0] + X[2, 0]) / 2, abs=1e-6)
    lines = re.findall(r"step: 0\(global step: 0\)\tsample/sec: [\d.]+\tmean: (-?[\d.]+)", console.text)
    assert lines == [f"{X[:2].sum(axis=1).mean():.3f}", f"{X[:4].sum(axis=1).mean():.3f}"]


def test_rates_count_the_rows_of_all_devices() -> None:
    result = train(4, max_number_of_steps=5)
    assert result.samples_per_s == pytest.approx(8 / result.step_s)


@pytest.mark.slow
@pytest.mark.parametrize("update", ["parameter_server", "replicated"])
def test_evaluations_during_training_are_over_all_devices(update: str, tmp_path: Path, console: Any) -> None:
    def with_hook(inputs: list[Any], mode: str) -> mox.ModelSpec:
        spec = model_fn(inputs, mode)
        spec.hooks = [mox.LogEvaluationMetricHook(spec.log_info, 2, 8, 10)]
        return spec

    mox.set_flag("variable_update", update)
    fixed = mox.get_optimizer_fn("sgd", learning_rate=0.0)
    common: dict[str, Any] = {
        "model_fn": with_hook,
        "inter_mode": mox.ModeKeys.EVAL,
        "optimizer_fn": fixed,
        "input_fn": lambda mode: endless(mode) if mode == mox.ModeKeys.TRAIN else ten_rows(mode),
    }
    train(4, **common)
    told = re.findall(r"\[VALIDATION METRICS\] step: 0 mean: (-?[\d.]+)", console.text)
    assert told == [f"{X[:10].sum(axis=1).mean():.3f}"]


# -- hooks


class Values(mox.AggregativeSessionRunHook):
    """Keeps what it gets."""

    log: list[tuple[int, Any]]

    def __init__(self, tensor: Any, device: int, log: list[tuple[int, Any]], together: bool) -> None:
        self.tensors = {"given": tensor}
        self.device = device
        self.log = log
        self.together = together

    def begin(self) -> None:
        self.doubled = 2 * self.tensors["given"]

    def before_run(self, run_context: Any) -> Any:
        return tf1.train.SessionRunArgs([self.tensors["given"], {"doubled": self.doubled}])

    def after_run(self, run_context: Any, run_values: Any) -> None:
        given, more = run_values.results
        np.testing.assert_allclose(more["doubled"], 2 * given, rtol=1e-6)
        self.log.append((self.device, given))

    def support_aggregation(self) -> bool:
        return self.together

    def support_sync_workers(self) -> bool:
        return False

    def run_inter_mode(self) -> bool:
        return False


def hooked(together: bool, log: list[tuple[int, Any]], scalar: bool) -> Any:
    count = 0

    def with_hook(inputs: list[Any], mode: str) -> mox.ModelSpec:
        nonlocal count
        spec = model_fn(inputs, mode)
        spec.hooks = [Values(spec.log_info["mean"] if scalar else inputs[0], count, log, together)]
        count += 1
        return spec

    return with_hook


@pytest.mark.parametrize("scalar", [True, False])
def test_a_hook_gets_the_values_of_all_devices(scalar: bool) -> None:
    log: list[tuple[int, Any]] = []
    fixed = mox.get_optimizer_fn("sgd", learning_rate=0.0)
    train(4, model_fn=hooked(True, log, scalar), input_fn=ten_rows, max_number_of_steps=0, optimizer_fn=fixed)
    assert [device for device, _ in log] == [0, 0]  # 10 rows: 2 on each device, and 2 on the first
    for (_, value), rows in zip(log, (X[:8], X[8:10]), strict=True):
        np.testing.assert_allclose(value, rows.sum(axis=1).mean() if scalar else rows, rtol=1e-5)


def test_the_hook_of_each_device_gets_its_own_values() -> None:
    log: list[tuple[int, Any]] = []
    train(3, model_fn=hooked(False, log, scalar=False))
    assert [device for device, _ in log] == [0, 1, 2]
    for device, value in log:
        np.testing.assert_array_equal(value, X[2 * device : 2 * device + 2])


def test_each_device_has_placeholders_that_its_hook_feeds() -> None:
    def fed(inputs: list[Any], mode: str) -> mox.ModelSpec:
        factor = tf1.placeholder(tf.float32, [])
        spec = model_fn(inputs, mode)
        spec.log_info = {"fed": factor}
        spec.hooks = [FeedSessionRunHook({factor: len(tf1.get_default_graph().get_operations())})]
        return spec

    mox.set_flag("log_first_clone", False)
    first = train(1, model_fn=fed).metrics["fed"]
    assert train(2, model_fn=fed).metrics["fed"] > first


def test_one_hook_for_all_devices_runs_once() -> None:
    log: list[tuple[int, Any]] = []
    made: list[Values] = []

    def same(inputs: list[Any], mode: str) -> mox.ModelSpec:
        spec = model_fn(inputs, mode)
        made[:] = made or [Values(inputs[0], 0, log, together=False)]
        spec.hooks = list(made)
        return spec

    train(3, model_fn=same)
    assert len(log) == 1


def test_a_value_that_is_found_on_the_first_device_only_is_told_of(console: Any) -> None:
    class Hidden(Values):
        def before_run(self, run_context: Any) -> Any:
            return tf1.train.SessionRunArgs(tf1.get_default_graph().get_tensor_by_name(hidden[0]))

        def after_run(self, run_context: Any, run_values: Any) -> None:
            self.log.append((0, run_values.results))

    hidden: list[str] = []

    def with_hook(inputs: list[Any], mode: str) -> mox.ModelSpec:
        spec = model_fn(inputs, mode)
        hidden.append((inputs[0] * 3).name)
        spec.hooks = [Hidden(inputs[0], 0, log, together=True)]
        return spec

    log: list[tuple[int, Any]] = []
    train(2, model_fn=with_hook, max_number_of_steps=2)
    np.testing.assert_allclose(log[0][1], 3 * X[:2], rtol=1e-6)
    assert console.text.count("gets its value on the first device only") == 1


def test_devices_with_different_hooks() -> None:
    count = 0

    def differing(inputs: list[Any], mode: str) -> mox.ModelSpec:
        nonlocal count
        spec = model_fn(inputs, mode)
        spec.hooks = [Values(inputs[0], 0, [], True)] if count else [FeedSessionRunHook({})]
        count += 1
        return spec

    with pytest.raises(ModelSpecError, match=r"the hooks \['FeedSessionRunHook'\] for the first device"):
        train(2, model_fn=differing)
