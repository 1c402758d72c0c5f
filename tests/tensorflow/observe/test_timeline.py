"""Timelines of steps: the flag, the hook, signals, TensorFlow's own ProfilerHook; what is in the files."""

from __future__ import annotations

import itertools
import json
import os
import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import moxserve.tensorflow as mox
from moxserve.errors import UsageError
from moxserve.inspect.timeline import costs, events_of, read_trace
from moxserve.tensorflow.executor.env import tf1

Train = Callable[..., mox.RunResult]


def operations(path: Path) -> set[str]:
    """Names in the graph of the operations in a trace; each an X event with times."""
    events = json.loads(path.read_text())["traceEvents"]
    ran = [e for e in events if e["ph"] == "X" and e["cat"] == "Op"]
    assert all(e["dur"] >= 0 and e["ts"] > 0 for e in ran)
    return {e["args"]["name"] for e in ran}


def files(folder: Path) -> list[str]:
    return sorted(path.name for path in (folder / "timeline").iterdir())


def with_hook(linear: Any, hook: Any) -> Callable[..., mox.ModelSpec]:
    """The linear model with a hook."""

    def model_fn(inputs: list[Any], mode: str, **kwargs: Any) -> mox.ModelSpec:
        spec: mox.ModelSpec = linear.model_fn(inputs, mode)
        spec.hooks = [hook() if callable(hook) else hook]
        return spec

    return model_fn


def test_chosen_steps_are_traced(train: Train, console: Any, tmp_path: Path) -> None:
    mox.set_flag("timeline_steps", "2,4-5")
    result = train(log_dir=str(tmp_path), max_number_of_steps=8, log_every_n_steps=2)
    assert files(tmp_path) == ["timeline-2.json", "timeline-4.json", "timeline-5.json"]
    assert [os.path.basename(path) for path in result.traces] == files(tmp_path)
    for name in files(tmp_path):
        assert any("ApplyGradientDescent" in op for op in operations(tmp_path / "timeline" / name))
    (table,) = [line for line in console.lines if "timeline of step 2: " in line]
    head, columns, *rows = table.split("\n")
    assert head.endswith(f"; {tmp_path}/timeline/timeline-2.json")
    assert columns.split("  ")[-1] == "OPERATION"
    assert 4 <= len(rows) <= 11
    assert rows[0].split()[4] == "CPU:0"  # time, share, %, calls, device
    # The lines of the run are as without.
    steps = [line.partition("\t")[0] for line in console.lines if "sample/sec" in line]
    assert steps == [f"INFO:tensorflow:step: {n}(global step: {n})" for n in (0, 2, 4, 6)]


def test_a_row_for_each_tower(train: Train, tmp_path: Path) -> None:
    mox.set_flag("num_gpus", 2)
    mox.set_flag("timeline_steps", "2")
    (path,) = train(log_dir=str(tmp_path)).traces
    assert {"CPU:0", "CPU:1"} <= {cost.name for cost in costs(events_of(read_trace(path)), "device")}


def test_steps_are_those_of_the_console(train: Train, linear: Any, tmp_path: Path) -> None:
    train(log_dir=str(tmp_path), max_number_of_steps=4)
    mox.set_flag("timeline_steps", "2,6")
    train(log_dir=str(tmp_path), max_number_of_steps=8)  # goes on at step 4
    assert files(tmp_path) == ["timeline-6.json"]
    mox.set_flag("timeline_steps", "0,1")
    train(
        log_dir=str(tmp_path), run_mode=mox.ModeKeys.EVAL, input_fn=linear.finite_input_fn, max_number_of_steps=3
    )  # the global step stays, so steps are counted by the run
    assert files(tmp_path) == ["timeline-6.json", "timeline-eval-0.json", "timeline-eval-1.json"]


def test_quiet_steps_stay_quiet(train: Train, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    from moxserve.tensorflow.executor.stepper import Stepper

    active: list[int] = []
    step = Stepper.step

    def counted(self: Stepper, participants: Any) -> bool:
        active.append(self.clock.run_step)
        return step(self, participants)

    monkeypatch.setattr(Stepper, "step", counted)
    mox.set_flag("timeline_steps", "30")
    mox.set_flag("profile_steps", "50-70")
    train(log_dir=str(tmp_path), max_number_of_steps=100, log_every_n_steps=0, save_summary_steps=0)
    assert active == [30, 50, 70]


def test_hook(train: Train, linear: Any, tmp_path: Path, console: Any) -> None:
    hook = mox.TimelineHook(steps=[1, 3], log_dir=tmp_path, label="mine", memory=True)
    train(model_fn=with_hook(linear, hook), max_number_of_steps=5)
    assert files(tmp_path) == ["timeline-mine-1.json", "timeline-mine-3.json"]
    assert hook.paths == [f"{tmp_path}/timeline/{name}" for name in files(tmp_path)]
    events = events_of(read_trace(hook.paths[0]))
    by_type = costs(events)
    assert sum(cost.share for cost in by_type) == pytest.approx(1)
    assert sum(cost.calls for cost in by_type) == len(events) == sum(c.calls for c in costs(events, "operation"))
    asked = mox.TimelineHook()  # no steps, no folder: a table for whoever asks
    asked.request()
    train(model_fn=with_hook(linear, asked), max_number_of_steps=5)
    assert asked.paths == []
    assert any("timeline of step 0: " in line for line in console.lines)


def test_tensorflows_own_profiler_hook(train: Train, linear: Any, tmp_path: Path) -> None:
    hook = lambda: tf1.train.ProfilerHook(save_steps=2, output_dir=str(tmp_path))  # noqa: E731
    train(model_fn=with_hook(linear, hook), max_number_of_steps=6)
    traces = sorted(tmp_path.glob("timeline-*.json"))
    assert len(traces) == 3
    assert all(any("ApplyGradientDescent" in op for op in operations(path)) for path in traces)


def test_signal_asks_for_the_next_step(train: Train, linear: Any, tmp_path: Path) -> None:
    class Kill(tf1.train.SessionRunHook):  # type: ignore[misc]
        def next_active_step(self, step: int) -> int:
            return 20 if step <= 20 else 1000

        def after_run(self, context: Any, values: Any) -> None:
            os.kill(os.getpid(), signal.SIGUSR1)

    handler = signal.getsignal(signal.SIGUSR1)
    result = train(
        model_fn=with_hook(linear, Kill), log_dir=str(tmp_path), max_number_of_steps=100, log_every_n_steps=50
    )
    assert [os.path.basename(path) for path in result.traces] == ["timeline-21.json"]
    assert signal.getsignal(signal.SIGUSR1) is handler
    assert result.local_steps == 100


def test_signal_in_a_quiet_stretch(train: Train, tmp_path: Path) -> None:
    def rows() -> Iterator[tuple[np.ndarray, np.float32]]:
        for number in itertools.count():
            if number == 500:
                os.kill(os.getpid(), signal.SIGUSR1)
            yield np.ones(3, np.float32), np.float32(1)

    def input_fn(mode: str, **kwargs: Any) -> Any:
        return tf1.data.Dataset.from_generator(rows, (tf1.float32, tf1.float32), ((3,), ()))

    quiet = {"log_every_n_steps": 0, "save_summary_steps": 0, "save_model_secs": 0}
    result = train(input_fn=input_fn, log_dir=str(tmp_path), max_number_of_steps=300, **quiet)
    assert len(result.traces) == 1
    assert 0 < int(result.traces[0].removesuffix(".json").rpartition("-")[2]) < 300


def test_others_keep_their_signals(train: Train) -> None:
    seen: list[int] = []
    before = signal.signal(signal.SIGUSR1, lambda number, frame: seen.append(number))
    try:

        def fetch(step: int) -> bool:
            if step == 2:
                os.kill(os.getpid(), signal.SIGUSR1)
            return False

        result = train(fetch_strategy_fn=fetch)
    finally:
        signal.signal(signal.SIGUSR1, before)
    assert seen == [signal.SIGUSR1]
    assert result.traces == ()


@pytest.mark.parametrize("flag", ["timeline_steps", "profile_steps"])
def test_wrong_flags(train: Train, flag: str, tmp_path: Path) -> None:
    mox.set_flag(flag, "100,x")
    with pytest.raises(UsageError, match=rf"flag --{flag}='100,x': 'x' is no step; expected numbers, such as 100,200"):
        train(log_dir=str(tmp_path))
    mox.set_flag(flag, "9-3")
    with pytest.raises(UsageError, match="'9-3' is no step"):
        train(log_dir=str(tmp_path))
    mox.set_flag(flag, "3")
    with pytest.raises(UsageError, match=f"--{flag} needs log_dir"):
        train()
    with pytest.raises(UsageError, match=r"TimelineHook\(steps\): -1 is no step"):
        mox.TimelineHook(steps=[-1])
