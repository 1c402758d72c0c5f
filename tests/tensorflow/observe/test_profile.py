"""Profiles for TensorBoard: what is in the files, ranges, signals, a profiler that is in use."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import moxserve.tensorflow as mox
from moxserve.tensorflow.executor.env import tf, tf1

Train = Callable[..., mox.RunResult]


def events_of(path: str) -> set[str]:
    """Names of all events in the host's plane of a profile."""
    from tensorflow.tsl.profiler.protobuf import xplane_pb2

    space = xplane_pb2.XSpace()
    space.ParseFromString(Path(path).read_bytes())
    (host,) = [plane for plane in space.planes if plane.name == "/host:CPU"]
    return {host.event_metadata[event.metadata_id].name for line in host.lines for event in line.events}


def test_range_of_steps(train: Train, console: Any, tmp_path: Path) -> None:
    mox.set_flag("profile_steps", "3-6")
    result = train(log_dir=str(tmp_path), max_number_of_steps=10)
    (path,) = result.traces
    assert Path(path).parent == tmp_path / "plugins" / "profile" / "steps-3-6"
    names = events_of(path)
    assert any("ApplyGradientDescent" in name for name in names), names
    assert any("IteratorGetNext" in name for name in names)
    assert f"profile of step 3 to step 6: {path}; tensorboard --logdir {tmp_path}" in console.text
    assert result.local_steps == 10


def test_a_run_that_ends_in_the_range(train: Train, tmp_path: Path) -> None:
    mox.set_flag("profile_steps", "8-100")
    result = train(log_dir=str(tmp_path), max_number_of_steps=10)
    assert [Path(path).parent.name for path in result.traces] == ["steps-8-end"]
    assert events_of(result.traces[0])


def test_a_run_that_fails_in_the_range_frees_the_profiler(train: Train, tmp_path: Path) -> None:
    def failing(step: int) -> bool:
        if step == 5:
            raise RuntimeError("the user's")
        return False

    mox.set_flag("profile_steps", "3-100")
    with pytest.raises(RuntimeError, match="the user's"):
        train(log_dir=str(tmp_path / "failed"), fetch_strategy_fn=failing, max_number_of_steps=10)
    assert len(train(log_dir=str(tmp_path / "next"), max_number_of_steps=10).traces) == 1


def test_a_profiler_in_use_is_left_alone(train: Train, console: Any, tmp_path: Path) -> None:
    mox.set_flag("profile_steps", "3-4,7")
    tf.profiler.experimental.start(str(tmp_path / "own"))
    try:
        result = train(log_dir=str(tmp_path / "run"), max_number_of_steps=6)
    finally:
        tf.profiler.experimental.stop()
    assert result.traces == ()
    assert "no profile of steps 3 to 4: the profiler of this process is in use" in console.text
    assert result.local_steps == 6


def test_signal(train: Train, linear: Any, tmp_path: Path) -> None:
    class Kill(tf1.train.SessionRunHook):  # type: ignore[misc]
        def next_active_step(self, step: int) -> int:
            return 20 if step <= 20 else 1000

        def after_run(self, context: Any, values: Any) -> None:
            os.kill(os.getpid(), signal.SIGUSR2)

    def model_fn(inputs: list[Any], mode: str, **kwargs: Any) -> mox.ModelSpec:
        spec: mox.ModelSpec = linear.model_fn(inputs, mode)
        spec.hooks = [Kill()]
        return spec

    result = train(model_fn=model_fn, log_dir=str(tmp_path), max_number_of_steps=50, log_every_n_steps=50)
    assert [Path(path).parent.name for path in result.traces] == ["steps-21-30"]


def test_signal_without_a_place(train: Train, console: Any) -> None:
    def asking(step: int) -> bool:
        if step == 2:
            os.kill(os.getpid(), signal.SIGUSR2)
        return False

    assert train(fetch_strategy_fn=asking).traces == ()
    assert "no profile from step 3 on: the run has no log_dir to write it to" in console.text
