"""Optimizers in the middle of a run: workers, hooks, summaries."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import moxserve.tensorflow as mox
from moxserve.errors import UsageError
from moxserve.tensorflow.executor.cluster import Topology
from moxserve.tensorflow.executor.devices import Devices
from moxserve.tensorflow.executor.env import tf1
from moxserve.tensorflow.executor.workers import Workers
from moxserve.tensorflow.optimizer.learning_rate_scheduler import piecewise_lr

Train = Callable[..., mox.RunResult]
WARNING = "Using OptimizerWrapper when sync_replicas is True may cause performance loss."


@contextmanager
def building(**options: Any) -> Iterator[None]:
    """The graph of a run with two workers is being built."""
    topology = Topology(job="worker", workers=("a:1", "b:1"), ps=("c:1",), **options)
    with tf1.Graph().as_default(), Workers(topology, Devices(topology)).placing():
        yield


@pytest.mark.parametrize(
    ("name", "options", "warned"),
    [
        ("batch_gradients", {"num_batches": 2, "sync_on_apply": True}, True),
        ("batch_gradients", {"num_batches": 2}, True),
        ("dgc", {"sparsity": 0.9}, True),
        ("simple_sync", {"num_workers": 2, "task_index": 0}, True),
        ("lars", {}, False),
        ("clip", {"limit": 1.0}, False),
    ],
)
def test_warning_5_2_1(name: str, options: dict[str, Any], warned: bool, console: Any) -> None:
    sgd = tf1.train.GradientDescentOptimizer(0.1)
    for synchronous in (False, True):
        console.lines.clear()
        with building(synchronous=synchronous):
            mox.get_optimizer_wrapper_fn(name, sgd, **options)()
        assert console.lines == [f"WARNING:tensorflow:{WARNING}"] * (warned and synchronous)
    console.lines.clear()
    with tf1.Graph().as_default():
        mox.get_optimizer_wrapper_fn(name, sgd, **({} if name == "simple_sync" else options))()
    assert console.lines == []


def test_what_goes_with_no_kind_of_workers() -> None:
    sgd = tf1.train.GradientDescentOptimizer(0.1)
    with building(), pytest.raises(UsageError, match="easgd is for workers that step apart"):
        mox.get_optimizer_wrapper_fn("easgd", sgd)()
    with (
        building(synchronous=False, variable_update="distributed_replicated"),
        pytest.raises(UsageError, match="copies"),
    ):
        mox.get_optimizer_wrapper_fn("easgd", sgd)()
    with building(synchronous=False):
        meeting = mox.get_optimizer_wrapper_fn("batch_gradients", sgd, num_batches=2, sync_on_apply=True)()
        mox.get_optimizer_wrapper_fn("loss_scale", meeting)()
        with pytest.raises(UsageError, match="would let one worker leave out a step"):
            mox.get_optimizer_wrapper_fn("loss_scale", meeting, dynamic=True)()


class Halve(mox.AggregativeSessionRunHook):
    """Halves the learning rates at step 3."""

    scales_learning_rate = True

    def begin(self) -> None:
        (scale,) = (v for v in tf1.global_variables() if v.op.name == "mox/lr_scale")
        self._halve = scale.assign(scale * 0.5)
        self._step = 0

    def after_run(self, context: Any, values: Any) -> None:
        self._step += 1
        if self._step == 3:
            context.session.run(self._halve)

    def support_aggregation(self) -> bool:
        return True

    def support_sync_workers(self) -> bool:
        return False

    def run_inter_mode(self) -> bool:
        return False


def rates_shown(folder: Path) -> dict[int, float]:
    return {
        event.step: value.simple_value
        for path in sorted(folder.glob("events*"))
        for event in tf1.train.summary_iterator(str(path))
        for value in event.summary.value
        if value.tag == "learning_rate"
    }


@pytest.mark.slow
def test_hooks_scale_learning_rates_and_checkpoints_remember(
    train: Train, linear: Any, variable: Any, tmp_path: Path
) -> None:
    def model_fn(inputs: list[Any], mode: str) -> mox.ModelSpec:
        spec = linear.model_fn(inputs, mode)
        spec.hooks.append(Halve())
        return spec

    def optimizer_fn() -> Any:
        rate = piecewise_lr("1:0.1,2:0.05", num_samples=50, global_batch_size=10)
        sgd = mox.get_optimizer_fn("sgd", learning_rate=rate)()
        return mox.get_optimizer_wrapper_fn("clip", sgd, limit=100.0)()

    shown: dict[int, float] = {}
    for steps in (5, 10):
        result = train(model_fn=model_fn, optimizer_fn=optimizer_fn, max_number_of_steps=steps, log_dir=str(tmp_path),
                       save_summary_steps=1)  # fmt: skip
        shown |= rates_shown(tmp_path)
    w, rates = np.zeros(3), []
    for step in range(10):
        rates.append((0.1 if step < 5 else 0.05) * (1.0 if step < 3 else 0.5 if step < 8 else 0.25))
        w = w - rates[-1] * linear.gradient(w, 10 * step, 10)
    np.testing.assert_allclose(variable(result.checkpoint, "w"), w, rtol=1e-4, atol=1e-5)
    assert variable(result.checkpoint, "mox/lr_scale") == 0.25
    assert shown == {step + 1: pytest.approx(rate) for step, rate in enumerate(rates)}


@pytest.mark.slow
def test_several_losses_have_wrappers_of_their_own(train: Train, variable: Any, tmp_path: Path) -> None:
    def model_fn(inputs: list[Any], mode: str) -> mox.ModelSpec:
        a, b = tf1.get_variable("a", initializer=2.0), tf1.get_variable("b", initializer=2.0)
        return mox.ModelSpec(loss=[a * a, b * b], var_scopes=[["a"], ["b"]])

    def gathering(count: int) -> Callable[[], Any]:
        sgd = tf1.train.GradientDescentOptimizer
        return lambda: mox.get_optimizer_wrapper_fn("batch_gradients", sgd(0.25), num_batches=count)()

    result = train(model_fn=model_fn, optimizer_fn=[gathering(2), gathering(3)], max_number_of_steps=6,
                   log_dir=str(tmp_path))  # fmt: skip
    assert (variable(result.checkpoint, "a"), variable(result.checkpoint, "b")) == (0.25, 0.5)
    assert variable(result.checkpoint, "batch_gradients_1/count") == 0


def test_negative_scales_are_refused(train: Train) -> None:
    mox.set_flag("loss_scale", -2)
    with pytest.raises(UsageError, match="1 is off, 0 is dynamic"):
        train()
