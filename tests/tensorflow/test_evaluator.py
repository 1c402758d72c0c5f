"""The evaluator of a job: each checkpoint of a training, beside it and after it."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tensorflow as tf

import moxserve.tensorflow as mox
from moxserve.errors import ModelSpecError, UsageError
from moxserve.tensorflow.executor import evaluator
from moxserve.tensorflow.executor.lock import LOCK_FILE, ended_at

Train = Callable[..., mox.RunResult]


@pytest.fixture
def train_here(train_into: Callable[[str], Train], tmp_path: Path) -> Train:
    return train_into(str(tmp_path))


@pytest.fixture
def evaluate_here(as_evaluator: Callable[[Train], Train], train_here: Train) -> Train:
    return as_evaluator(train_here)


def evaluations(folder: Path) -> dict[int, dict[str, float]]:
    path = folder / "eval" / "evaluations.json"
    found = json.loads(path.read_text()) if path.exists() else {"evaluations": []}
    return {evaluation["step"]: evaluation["metrics"] for evaluation in found["evaluations"]}


def curve(folder: Path, name: str) -> list[int]:
    events = [
        event
        for path in sorted((folder / "eval").glob("events.*"))
        for event in tf.compat.v1.train.summary_iterator(str(path))
    ]
    return sorted(event.step for event in events for value in event.summary.value if name in value.tag)


def test_every_checkpoint_of_a_finished_training_is_evaluated_once(
    train_here: Train, evaluate_here: Train, variable: Any, linear: Any, tmp_path: Path, console: Any
) -> None:
    train_here()
    result = evaluate_here()
    found = evaluations(tmp_path)
    assert list(found) == [2, 4, 5]
    for step, metrics in found.items():
        w = variable(str(tmp_path / f"model.ckpt-{step}"), "w")
        assert metrics["loss"] == pytest.approx(np.mean((linear.x @ w - linear.y) ** 2), rel=1e-5)
    assert (result.mode, result.global_step, result.stop_reason) == ("EVAL", 5, "training_ended")
    assert result.metrics == pytest.approx(found[5])
    assert curve(tmp_path, "loss") == [2, 4, 5]
    assert console.text.count("evaluated 5 steps") == 3
    again = evaluate_here()
    assert console.text.count("evaluated 5 steps") == 3
    assert (again.global_step, again.local_steps, dict(again.metrics)) == (5, 0, found[5])


def test_checkpoints_are_evaluated_beside_the_training(
    train_here: Train, linear: Any, tmp_path: Path, console: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(evaluator, "_POLL_S", 0.02)
    train_here(max_number_of_steps=2)  # its end is not the one that the evaluator waits for
    results: list[mox.RunResult] = []
    monkeypatch.setenv("MOXSERVE_FLAGS", "--job_name=evaluator")
    beside = threading.Thread(target=lambda: results.append(train_here(max_number_of_steps=6)), daemon=True)
    beside.start()
    until(lambda: "the evaluator watches" in console.text)
    monkeypatch.delenv("MOXSERVE_FLAGS")

    class Waits(tf.compat.v1.train.SessionRunHook):
        """Every checkpoint is evaluated before the next step."""

        def after_run(self, run_context: Any, run_values: Any) -> None:
            saved = {int(path.stem.partition("-")[2]) for path in tmp_path.glob("model.ckpt-*.index")}
            until(lambda: saved <= set(evaluations(tmp_path)))

    def model_fn(inputs: Any, mode: str) -> mox.ModelSpec:
        spec = linear.model_fn(inputs, mode)
        hooks = [Waits()] if mode == mox.ModeKeys.TRAIN else []
        return mox.ModelSpec(loss=spec.loss, log_info=spec.log_info, hooks=hooks)

    train_here(max_number_of_steps=6, model_fn=model_fn)
    beside.join(120)
    assert not beside.is_alive()
    assert (results[0].global_step, list(evaluations(tmp_path))) == (6, [2, 4, 6])


@pytest.mark.slow
def test_an_end_before_the_last_step_counts_when_no_other_training_begins(
    train_here: Train, evaluate_here: Train, linear: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    train_here(input_fn=linear.finite_input_fn, max_number_of_steps=100)
    assert ended_at(str(tmp_path)) == 5
    monkeypatch.setattr(evaluator, "_STALE_S", 0.3)
    started = time.monotonic()
    assert evaluate_here(max_number_of_steps=100).global_step == 5
    assert time.monotonic() - started >= 0.3


def test_who_trains_says_how_it_stands(train_here: Train, linear: Any, tmp_path: Path) -> None:
    seen = []

    def model_fn(inputs: Any, mode: str) -> mox.ModelSpec:
        seen.append(ended_at(str(tmp_path)))
        if len(seen) == 3:
            raise RuntimeError("a crash")
        return linear.model_fn(inputs, mode)

    assert ended_at(str(tmp_path)) is None
    train_here(model_fn=model_fn)
    assert ended_at(str(tmp_path)) == 5
    train_here(model_fn=model_fn, max_number_of_steps=9)
    assert ended_at(str(tmp_path)) == 9
    with pytest.raises(RuntimeError, match="a crash"):
        train_here(model_fn=model_fn, max_number_of_steps=12)
    assert (ended_at(str(tmp_path)), seen) == (None, [None, None, None])
    (tmp_path / LOCK_FILE).write_text("12\nended at step ")  # read in the middle of the writing
    assert ended_at(str(tmp_path)) is None


def test_an_evaluation_may_have_a_number_of_rows(
    train_here: Train, evaluate_here: Train, linear: Any, tmp_path: Path, console: Any
) -> None:
    train_here(max_number_of_steps=2)
    endless = {"input_fn": lambda mode: linear.input_fn(mox.ModeKeys.TRAIN), "max_number_of_steps": 2}
    with pytest.raises(UsageError, match="never ends") as refused:
        evaluate_here(**endless)
    assert "samples_per_epoch_eval" in str(refused.value.hint)
    mox.set_flag("samples_per_epoch_eval", 25)
    evaluate_here(**endless)
    assert "evaluated 3 steps (global step: 2)" in console.text


def test_a_checkpoint_that_is_dropped_is_left_out(
    train_here: Train, evaluate_here: Train, linear: Any, tmp_path: Path, console: Any
) -> None:
    train_here()

    def input_fn(mode: str) -> Any:
        for path in tmp_path.glob("model.ckpt-2.*"):
            path.unlink()
        return linear.finite_input_fn(mode)

    evaluate_here(input_fn=input_fn)
    assert list(evaluations(tmp_path)) == [4, 5]
    assert "model.ckpt-2 was dropped before it could be evaluated" in console.text


def test_a_list_that_cannot_be_read_is_made_anew(
    train_here: Train, evaluate_here: Train, tmp_path: Path, console: Any
) -> None:
    train_here(max_number_of_steps=2)
    (tmp_path / "eval").mkdir()
    (tmp_path / "eval" / "evaluations.json").write_text("{")
    evaluate_here(max_number_of_steps=2)
    assert list(evaluations(tmp_path)) == [2]
    assert "checkpoints are evaluated again" in console.text


def test_what_an_evaluator_needs(train_here: Train, evaluate_here: Train, linear: Any, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"run\(\) has no log_dir"):
        evaluate_here(log_dir=None)
    train_here()

    def model_fn(inputs: Any, mode: str) -> mox.ModelSpec:
        return mox.ModelSpec(loss=linear.model_fn(inputs, mode).loss)

    with pytest.raises(ModelSpecError, match="without log_info, which EVAL needs"):
        evaluate_here(model_fn=model_fn)


def test_other_runs_of_its_script_are_those_of_a_single_process(
    train_here: Train, evaluate_here: Train, tmp_path: Path
) -> None:
    train_here()
    result = evaluate_here(run_mode=mox.ModeKeys.EVAL, max_number_of_steps=2)
    assert (result.stop_reason, result.global_step, result.local_steps) == ("max_steps", 5, 2)


def until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 120
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.01)
