"""Users' hooks in a run: what is called when, feeds, stop requests, and what a hook must answer."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

import moxserve.tensorflow as mox
from moxserve.errors import ModelSpecError
from moxserve.tensorflow.executor.env import tf, tf1
from moxserve.tensorflow.executor.hooks import FeedSessionRunHook

Train = Callable[..., mox.RunResult]


class Hook(mox.AggregativeSessionRunHook):
    """Writes down its life."""

    def __init__(self, stop_at: int | None = None) -> None:
        self.life: list[Any] = []
        self.stop_at = stop_at

    def support_aggregation(self) -> bool:
        return False

    def support_sync_workers(self) -> bool:
        return False

    def run_inter_mode(self) -> bool:
        return False

    def begin(self) -> None:
        assert not tf1.get_default_graph().finalized
        self.extra = tf1.get_variable("made_in_begin", initializer=7.0, trainable=False)
        self.life.append("begin")

    def after_create_session(self, session: Any, coord: Any) -> None:
        assert session.graph.finalized
        assert not coord.should_stop()
        self.life.append(("session", float(session.run(self.extra))))

    def before_run(self, run_context: Any) -> Any:
        assert run_context.original_args.fetches.name == "train_op"
        assert not run_context.stop_requested
        return tf1.train.SessionRunArgs({"extra": self.extra, "step": tf1.train.get_global_step()})

    def after_run(self, run_context: Any, run_values: Any) -> None:
        self.life.append(float(run_values.results["extra"]))
        if len(self.life) - 2 == self.stop_at:
            run_context.request_stop()

    def end(self, session: Any) -> None:
        self.life.append(("end", int(session.run(tf1.train.get_global_step(session.graph)))))


@pytest.fixture
def with_hooks(linear: Any) -> Callable[..., Any]:
    def make(*hooks: Any) -> Any:
        def model_fn(inputs: list[Any], mode: str) -> mox.ModelSpec:
            spec = linear.model_fn(inputs, mode)
            return mox.ModelSpec(loss=spec.loss, log_info=spec.log_info, hooks=list(hooks))

        return model_fn

    return make


def test_a_hook_lives_as_documented(train: Train, with_hooks: Any) -> None:
    hook = Hook()
    result = train(model_fn=with_hooks(hook), max_number_of_steps=3)
    assert hook.life == ["begin", ("session", 7.0), 7.0, 7.0, 7.0, ("end", 3)]
    assert result.stop_reason == "max_steps"


def test_request_stop_ends_the_run_and_saves(train: Train, with_hooks: Any, tmp_path: Any) -> None:
    hook = Hook(stop_at=2)
    result = train(model_fn=with_hooks(hook), max_number_of_steps=100, log_dir=str(tmp_path))
    assert (result.stop_reason, result.local_steps) == ("request_stop", 2)
    assert result.checkpoint == str(tmp_path / "model.ckpt-2")
    assert hook.life[-1] == ("end", 2)


def test_an_error_in_a_hook_leaves_no_checkpoint_and_calls_no_end(train: Train, with_hooks: Any, tmp_path: Any) -> None:
    class Failing(Hook):
        def after_run(self, run_context: Any, run_values: Any) -> None:
            raise RuntimeError("own mistake")

    hook = Failing()
    with pytest.raises(RuntimeError, match="own mistake"):
        train(model_fn=with_hooks(hook), log_dir=str(tmp_path))
    assert hook.life == ["begin", ("session", 7.0)]
    assert list(tmp_path.glob("model.ckpt*")) == []


def test_feeds_reach_placeholders_in_their_dtype(train: Train, tmp_path: Any, variable: Any) -> None:
    def model_fn(inputs: list[Any], mode: str) -> mox.ModelSpec:
        target = tf1.placeholder(tf.float32, [3])
        w = tf1.get_variable("w", [3], initializer=tf1.zeros_initializer())
        hook = FeedSessionRunHook({target: [1, 2, 3]})
        return mox.ModelSpec(loss=tf.reduce_sum(tf.square(w - target)) / 2, hooks=[hook])

    result = train(
        input_fn=lambda mode: [tf.constant(0.0)], model_fn=model_fn, auto_batch=False, max_number_of_steps=1,
        optimizer_fn=mox.get_optimizer_fn("sgd", learning_rate=1.0), log_dir=str(tmp_path),
    )  # fmt: skip
    np.testing.assert_allclose(variable(result.checkpoint, "w"), [1, 2, 3])


def feeding(*feeds: Callable[[Any], dict[Any, Any]]) -> Any:
    def model_fn(inputs: list[Any], mode: str) -> mox.ModelSpec:
        target = tf1.placeholder(tf.float32, [3], "target")
        w = tf1.get_variable("w", [3])
        return mox.ModelSpec(loss=tf.reduce_sum(w * target), hooks=[FeedSessionRunHook(f(target)) for f in feeds])

    return model_fn


@pytest.mark.parametrize(
    ("feeds", "message"),
    [
        ([lambda t: {t: [1, 2]}], r"cannot feed target:0 of shape \(3,\) with an array of shape \(2,\)"),
        ([lambda t: {t: "text"}], r"cannot feed target:0 \(float32\) with str"),
        ([lambda t: {t: [1, 2, 3]}, lambda t: {t: [1, 2, 4]}], "two hooks feed target:0"),
        ([lambda t: {"nowhere:0": 1}], "'nowhere:0', which is no tensor"),
    ],
)
def test_feeds_that_do_not_fit(feeds: Any, message: str, train: Train) -> None:
    with pytest.raises(ModelSpecError, match=message):
        train(model_fn=feeding(*feeds))


def test_a_hook_must_answer_three_questions(train: Train, with_hooks: Any) -> None:
    class Silent(mox.AggregativeSessionRunHook):
        def support_aggregation(self) -> bool:
            return False

    class Vague(Hook):
        def run_inter_mode(self) -> Any:
            return None

    with pytest.raises(ModelSpecError, match=r"Silent does not implement support_sync_workers\(\)"):
        train(model_fn=with_hooks(Silent()))
    with pytest.raises(ModelSpecError, match=r"Vague.run_inter_mode\(\) returned None"):
        train(model_fn=with_hooks(Vague()))


@pytest.mark.parametrize(
    ("method", "answer", "message"),
    [
        ("before_run", ["loss"], r"before_run\(\) of Wrong returned a list"),
        ("next_active_step", None, "not 'NoneType'"),
        ("save_state", [1], r"save_state\(\) of Wrong returned a list"),
    ],
)
def test_what_a_hook_cannot_answer(
    method: str, answer: Any, message: str, train: Train, with_hooks: Any, console: Any, tmp_path: Any
) -> None:
    wrong = type("Wrong", (Hook,), {method: lambda *given: answer})()
    with pytest.raises((ModelSpecError, TypeError), match=message):
        train(model_fn=with_hooks(wrong), log_dir=str(tmp_path), max_number_of_steps=1)
    assert method == "save_state" or f"hook Wrong failed in {method}()" in console.text


def test_a_plain_session_run_hook_is_taken_too(train: Train, with_hooks: Any) -> None:
    counter = tf1.train.StopAtStepHook(num_steps=2)
    result = train(model_fn=with_hooks(counter), max_number_of_steps=50)
    assert (result.stop_reason, result.global_step) == ("request_stop", 2)


def test_hooks_work_in_evaluation(train: Train, linear: Any, tmp_path: Any) -> None:
    train(log_dir=str(tmp_path))
    seen: list[Any] = []

    class Watch(Hook):
        def begin(self) -> None:
            self.life.append("begin")

        def after_create_session(self, session: Any, coord: Any) -> None:
            pass

        def before_run(self, run_context: Any) -> Any:
            return tf1.train.SessionRunArgs(self.fetch)

        def after_run(self, run_context: Any, run_values: Any) -> None:
            seen.append(run_values.results)

        def end(self, session: Any) -> None:
            self.life.append("end")

    def model_fn(inputs: list[Any], mode: str) -> mox.ModelSpec:
        spec = linear.model_fn(inputs, mode)
        hook = Watch()
        hook.fetch = inputs[1]
        return mox.ModelSpec(log_info=spec.log_info, hooks=[hook])

    mox.run(linear.input_fn, None, model_fn, run_mode="EVAL", batch_size=25, log_dir=str(tmp_path))
    np.testing.assert_array_equal(np.concatenate(seen), linear.y)
