"""Hooks of `tf.train`, unchanged, each once; and what is said of a hook that fails."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import moxserve.tensorflow as mox
from moxserve.tensorflow.executor.env import tf, tf1

Train = Callable[..., mox.RunResult]


@pytest.fixture
def with_hooks(linear: Any) -> Callable[..., Any]:
    """A model_fn with hooks, made by a function of its ModelSpec inside of it."""

    def make(hooks: Callable[[mox.ModelSpec], list[Any]]) -> Any:
        def model_fn(inputs: list[Any], mode: str) -> mox.ModelSpec:
            spec = linear.model_fn(inputs, mode)
            spec.hooks.extend(hooks(spec))
            return spec

        return model_fn

    return make


@pytest.mark.parametrize(("arguments", "steps"), [({"num_steps": 2}, 5), ({"last_step": 4}, 4)])
def test_stop_at_step(arguments: Any, steps: int, train: Train, with_hooks: Any, tmp_path: Path) -> None:
    train(log_dir=str(tmp_path), max_number_of_steps=3)
    model_fn = with_hooks(lambda spec: [tf1.train.StopAtStepHook(**arguments)])
    result = train(model_fn=model_fn, log_dir=str(tmp_path), max_number_of_steps=50)
    assert (result.stop_reason, result.global_step) == ("request_stop", steps)


def test_a_loss_that_is_not_a_number(train: Train, with_hooks: Any, tmp_path: Path, console: Any) -> None:
    def model_fn(inputs: list[Any], mode: str) -> mox.ModelSpec:
        w = tf1.get_variable("w", [], initializer=tf1.ones_initializer())
        loss = w * tf.math.log(3.0 - tf.cast(tf1.train.get_global_step(), tf.float32))
        return mox.ModelSpec(loss=loss, log_info={"loss": loss}, hooks=[tf1.train.NanTensorHook(loss)])

    with pytest.raises(tf1.train.NanLossDuringTrainingError) as caught:
        train(model_fn=model_fn, log_dir=str(tmp_path), max_number_of_steps=50)
    where = "hook NanTensorHook failed in after_run() at step 5 (global step 5)"
    assert f"ERROR:tensorflow:{where}: NanLossDuringTrainingError: NaN loss during training." in console.lines
    assert where in getattr(caught.value, "__notes__", [where])  # Python 3.10 has no notes
    assert not list(tmp_path.glob("model.ckpt*"))

    def stopping(spec: mox.ModelSpec) -> list[Any]:
        return [tf1.train.NanTensorHook(spec.losses[0] / 0.0 * 0.0, fail_on_nan_loss=False)]

    assert train(model_fn=with_hooks(stopping)).stop_reason == "request_stop"


def test_logging_and_counting(train: Train, with_hooks: Any, tmp_path: Path, console: Any) -> None:
    def hooks(spec: mox.ModelSpec) -> list[Any]:
        return [
            tf1.train.LoggingTensorHook({"own": spec.log_info["loss"]}, every_n_iter=2, at_end=True),
            tf1.train.StepCounterHook(every_n_steps=2, output_dir=str(tmp_path / "counter")),
            tf1.train.SummarySaverHook(
                save_steps=2, output_dir=str(tmp_path / "own"), summary_op=tf1.summary.scalar("mine", spec.losses[0])
            ),
        ]

    train(model_fn=with_hooks(hooks), max_number_of_steps=5, log_every_n_steps=0)
    tf1.summary.FileWriterCache.clear()
    assert sum("INFO:tensorflow:own = " in line for line in console.lines) == 4  # steps 0, 2, 4 and the end
    events = [
        (event.step, value.tag)
        for name in ("counter", "own")
        for file in sorted((tmp_path / name).glob("events*"))
        for event in tf1.train.summary_iterator(str(file))
        for value in event.summary.value
    ]
    assert [step for step, tag in events if tag == "mine"] == [1, 3, 5]
    assert [step for step, tag in events if tag == "global_step/sec"] == [3, 5]


def test_checkpoints_and_their_listeners(train: Train, with_hooks: Any, tmp_path: Path, variable: Any) -> None:
    saved: list[tuple[str, int]] = []

    class Listener(tf1.train.CheckpointSaverListener):
        def before_save(self, session: Any, global_step: int) -> None:
            saved.append(("before", int(global_step)))

        def after_save(self, session: Any, global_step: int) -> None:
            saved.append(("after", int(global_step)))

    def hooks(spec: mox.ModelSpec) -> list[Any]:
        own = tf1.train.Saver([v for v in tf1.global_variables() if v.op.name in ("w", "global_step")])
        return [
            tf1.train.CheckpointSaverHook(str(tmp_path / "own"), save_steps=2, saver=own, listeners=[Listener()]),
            tf1.train.CheckpointSaverHook(str(tmp_path / "scaffold"), save_steps=3, scaffold=tf1.train.Scaffold()),
            tf1.train.CheckpointSaverHook(str(tmp_path / "found"), save_secs=600),
        ]

    result = train(model_fn=with_hooks(hooks), max_number_of_steps=4, log_dir=str(tmp_path / "run"))
    steps = [step for when, step in saved if when == "after"]
    assert steps == [0, 2, 4]
    assert saved == [(when, step) for step in steps for when in ("before", "after")]
    for folder in ("own", "scaffold", "found"):
        newest = tf1.train.latest_checkpoint(str(tmp_path / folder))
        np.testing.assert_array_equal(variable(newest, "w"), variable(result.checkpoint, "w"))


def test_profiles(train: Train, with_hooks: Any, tmp_path: Path) -> None:
    def hooks(spec: mox.ModelSpec) -> list[Any]:
        return [tf1.train.ProfilerHook(save_steps=2, output_dir=str(tmp_path))]

    train(model_fn=with_hooks(hooks), max_number_of_steps=5)
    traces = sorted(tmp_path.glob("timeline-*.json"))
    assert traces
    names = {event.get("args", {}).get("name") for event in json.loads(traces[0].read_text())["traceEvents"]}
    assert any("w" in str(name) for name in names)


def test_feeding_waiting_and_final_values(train: Train, with_hooks: Any, linear: Any) -> None:
    fed: list[float] = []
    final: list[Any] = []

    def model_fn(inputs: list[Any], mode: str) -> mox.ModelSpec:
        x = tf1.placeholder(tf.float32, [])
        w = tf1.get_variable("w", [], initializer=tf1.zeros_initializer())

        def feed() -> dict[Any, float]:
            fed.append(float(len(fed)))
            return {x: fed[-1]}

        final.append(tf1.train.FinalOpsHook(w.read_value()))
        hooks = [tf1.train.FeedFnHook(feed), tf1.train.GlobalStepWaiterHook(0), final[-1]]
        return mox.ModelSpec(loss=-w * x, hooks=hooks)

    train(input_fn=lambda mode: [tf.constant(0.0)], model_fn=model_fn, auto_batch=False, max_number_of_steps=3)
    assert fed == [0.0, 1.0, 2.0]
    assert final[0].final_ops_values == pytest.approx(0.3)


# -- what is said of a hook that fails


class Failing(tf1.train.SessionRunHook):
    """Fails in one of its methods, at a given call."""

    def __init__(self, method: str, call: int, error: Exception) -> None:
        self.left, self.error = call, error
        setattr(self, method, self.fail)

    def fail(self, *arguments: Any) -> None:
        self.left -= 1
        if not self.left:
            raise self.error


@pytest.mark.parametrize(
    ("method", "call", "when"),
    [
        ("begin", 1, ""),
        ("after_create_session", 1, ""),
        ("before_run", 3, " at step 2 (global step 2)"),
        ("after_run", 3, " at step 3 (global step 3)"),
        ("end", 1, " at step 5 (global step 5)"),
    ],
)
def test_an_error_says_which_hook_where_and_when(
    method: str, call: int, when: str, train: Train, with_hooks: Any, console: Any
) -> None:
    error = KeyError("own")
    with pytest.raises(KeyError) as caught:
        train(model_fn=with_hooks(lambda spec: [Failing(method, call, error)]))
    assert caught.value is error
    where = f"hook Failing failed in {method}(){when}"
    assert f"ERROR:tensorflow:{where}: KeyError: 'own'" in console.lines
    assert getattr(error, "__notes__", [where]) == [where]


def test_an_input_that_ends_in_a_hook_is_no_failure(train: Train, with_hooks: Any, linear: Any, console: Any) -> None:
    class Reading(tf1.train.SessionRunHook):
        def begin(self) -> None:
            dataset = tf1.data.Dataset.range(2)
            self.next = tf1.data.make_one_shot_iterator(dataset).get_next()

        def after_run(self, run_context: Any, run_values: Any) -> None:
            run_context.session.run(self.next)

    result = train(model_fn=with_hooks(lambda spec: [Reading()]))
    assert (result.stop_reason, result.local_steps) == ("end_of_input", 3)
    assert not [line for line in console.lines if line.startswith("ERROR")]


# -- fetch_strategy_fn


def test_a_strategy_decides_which_steps_are_printed(train: Train, console: Any) -> None:
    asked: list[int] = []

    def powers(step: int) -> bool:
        asked.append(step)
        return step & (step - 1) == 0

    train(fetch_strategy_fn=powers, log_every_n_steps=1, max_number_of_steps=10)
    assert asked == list(range(10))
    printed = [line.split("(")[0].rsplit(" ", 1)[1] for line in console.lines if "(global step:" in line]
    assert printed == ["0", "1", "2", "4", "8"]
