"""A model that notes what it is given."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest

import moxserve.tensorflow as mox
from moxserve.dataflow.base import DataFlow
from moxserve.tensorflow.executor.env import tf, tf1


class Numbers(DataFlow):
    """0, 1, 2, ... as one component, a float32 scalar; what is asked of it can be counted.

    Args:
        count: how many; None for no end.
        fail_at: raises there.
        make: of a number, its datapoint.
    """

    def __init__(
        self, count: int | None = 10, fail_at: int | None = None, make: Callable[[int], Any] | None = None
    ) -> None:
        self.count = count
        self.fail_at = fail_at
        self.make = make or (lambda i: [np.float32(i)])
        self.resets = self.passes = self.closed = self.given = 0
        self.threads: set[str] = set()

    def __len__(self) -> int:
        if self.count is None:
            raise NotImplementedError
        return self.count

    def reset_state(self) -> None:
        self.resets += 1

    def close(self) -> None:
        self.closed += 1

    def __iter__(self) -> Iterator[Any]:
        self.passes += 1
        i = 0
        while self.count is None or i < self.count:
            if i == self.fail_at:
                raise RuntimeError(f"the camera is unplugged at {i}")
            self.threads.add(threading.current_thread().name)
            self.given += 1
            yield self.make(i)
            i += 1


class Model:
    """Notes the batches of each mode."""

    def __init__(self) -> None:
        self.seen: dict[str, list[list[float]]] = {"TRAIN": [], "EVAL": [], "PREDICT": []}
        self.shapes: dict[str, list[Any]] = {}
        self.names: list[str] = []

    def model_fn(self, inputs: list[Any], mode: str) -> mox.ModelSpec:
        seen, value = self.seen[mode], inputs[0]
        self.shapes[mode] = [tensor.shape.as_list() for tensor in inputs]
        self.names = [tensor.dtype.name for tensor in inputs]

        class Note(tf1.train.SessionRunHook):  # type: ignore[misc]
            def before_run(self, run_context: Any) -> Any:
                return tf1.train.SessionRunArgs(value)

            def after_run(self, run_context: Any, run_values: Any) -> None:
                seen.append(np.ravel(run_values.results).tolist())

        w = tf1.get_variable("w", [], initializer=tf1.ones_initializer())
        mean = tf.reduce_mean(tf.cast(value, tf.float32))
        return mox.ModelSpec(loss=mean * w, log_info={"mean": mean}, output_info={"value": value}, hooks=[Note()])

    def run(self, input_fn: Any, mode: str = "TRAIN", **kwargs: Any) -> mox.RunResult:
        given: dict[str, Any] = {
            "input_fn": input_fn,
            "model_fn": self.model_fn,
            "optimizer_fn": mox.get_optimizer_fn("sgd", learning_rate=0.0),
            "output_fn": (lambda outputs: None) if mode == "PREDICT" else None,
            "run_mode": mode,
            "batch_size": 4,
            "log_every_n_steps": 0,
            "save_summary_steps": 0,
        }
        return mox.run(**{**given, **kwargs})

    def flat(self, mode: str = "TRAIN") -> list[float]:
        return [value for batch in self.seen[mode] for value in batch]


@pytest.fixture
def model() -> Model:
    return Model()


@pytest.fixture
def numbers() -> type[Numbers]:
    return Numbers


@pytest.fixture(autouse=True)
def no_thread_left() -> Iterator[None]:
    """Whatever a test runs, its threads are gone afterwards."""
    before = set(threading.enumerate())
    yield
    left = [t for t in set(threading.enumerate()) - before if t.is_alive() and "Input" in t.name]
    assert not left
