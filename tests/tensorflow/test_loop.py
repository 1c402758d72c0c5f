"""The loop: order of the points, schedules, and what ends it."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from moxserve.errors import UsageError
from moxserve.tensorflow.executor import loop
from moxserve.tensorflow.executor.env import tf, tf1
from moxserve.tensorflow.executor.loop import Loop
from moxserve.tensorflow.executor.participants import NEVER, Clock, Every, HookParticipant, Participant
from moxserve.tensorflow.executor.stepper import Stepper


class Rig:
    """A graph with a counter for a step, and a session over it."""

    def __init__(self, length: int = 1000) -> None:
        self.graph = tf1.Graph()
        with self.graph.as_default():
            iterator = tf1.data.make_initializable_iterator(tf.data.Dataset.range(length))
            self.element = iterator.get_next()
            self.counter = tf1.get_variable("counter", initializer=0, dtype=tf.int32, trainable=False)
            with tf1.control_dependencies([self.element]):
                self.step_op = self.counter.assign_add(1).op
            self.fed = tf1.placeholder_with_default(0.0, [], "fed")
            self.session = tf1.Session()
            self.session.run([self.counter.initializer, iterator.initializer])

    def loop(self, participants: list[Participant], clock: Clock, stopped: Any = lambda: False) -> Loop:
        self.stepper = Stepper(self.session, self.step_op, clock)
        return Loop(self.stepper, participants, clock, stopped)

    @property
    def steps_made(self) -> int:
        return int(self.session.run(self.counter))


@pytest.fixture
def rig() -> Iterator[Rig]:
    rig = Rig()
    yield rig
    rig.session.close()


class Recorder(Participant):
    """Writes down each point with (global_step, epoch_num, local_step)."""

    def __init__(self, name: str, seen: list[Any], clock: Clock) -> None:
        self.name, self.seen, self.clock = name, seen, clock

    def note(self, point: str) -> None:
        self.seen.append((self.name, point, (self.clock.global_step, self.clock.epoch_num, self.clock.local_step)))

    def train_start(self, clock: Clock) -> None:
        self.note("train_start")

    def epoch_start(self, clock: Clock) -> None:
        self.note("epoch_start")

    def step_args(self, context: Any) -> Any:
        self.note("step_args")

    def step_values(self, context: Any, values: Any) -> None:
        self.note("step_values")

    def step_done(self, context: Any) -> None:
        self.note("step_done")

    def epoch_end(self, clock: Clock) -> None:
        self.note("epoch_end")

    def epoch_trigger(self, clock: Clock) -> None:
        self.note("epoch_trigger")

    def finish(self, ok: bool) -> None:
        self.note(f"finish({ok})")


class RecordingHook(tf1.train.SessionRunHook):
    def __init__(self, name: str, seen: list[Any], clock: Clock) -> None:
        self.recorder = Recorder(name, seen, clock)

    def before_run(self, run_context: Any) -> None:
        self.recorder.note("step_args")

    def after_run(self, run_context: Any, run_values: Any) -> None:
        self.recorder.note("step_values")

    def end(self, session: Any) -> None:
        self.recorder.note("end")


def test_points_come_in_the_documented_order_with_the_documented_clock(rig: Rig) -> None:
    clock = Clock(steps_per_epoch=2)
    seen: list[Any] = []
    hook = HookParticipant(RecordingHook("hook", seen, clock))
    hook.session_ready = lambda session, coordinator: setattr(hook, "_session", session)  # type: ignore[method-assign]
    hook.session_ready(rig.session, None)
    participants: list[Participant] = [Recorder("a", seen, clock), hook, Recorder("b", seen, clock)]
    assert rig.loop(participants, clock).run() == "max_steps"
    both = ["a", "b"]
    all_three = ["a", "hook", "b"]
    expected = [(n, "train_start", (0, 0, -1)) for n in both] + [(n, "epoch_start", (0, 1, -1)) for n in both]
    for step in (0, 1):
        expected += [(n, "step_args", (step, 1, step)) for n in all_three]
        expected += [(n, "step_values", (step + 1, 1, step)) for n in all_three]
        expected += [(n, "step_done", (step + 1, 1, step)) for n in both]
    expected += [(n, "epoch_end", (2, 1, 1)) for n in both] + [(n, "epoch_trigger", (2, 1, 1)) for n in both]
    expected += [("a", "finish(True)", (2, 1, 1)), ("hook", "end", (2, 1, 1)), ("b", "finish(True)", (2, 1, 1))]
    assert seen == expected


def test_epochs_are_counted_and_a_stop_request_skips_their_end(rig: Rig) -> None:
    clock = Clock(steps_per_epoch=3, max_epoch=3)
    seen: list[Any] = []

    class StopAtFive(Participant):
        def step_values(self, context: Any, values: Any) -> None:
            if context.clock.global_step == 5:
                context.request_stop()

    assert rig.loop([Recorder("a", seen, clock), StopAtFive()], clock).run() == "request_stop"
    assert rig.steps_made == 5
    points = [point for _, point, _ in seen]
    assert points.count("epoch_start") == 2
    assert points.count("epoch_end") == points.count("epoch_trigger") == 1
    assert points[-2:] == ["step_done", "finish(True)"]


def test_idle_participants_cost_no_callable_and_no_call(rig: Rig) -> None:
    clock = Clock(steps_per_epoch=500)

    class Idle(Participant):
        calls = 0

        def next_step(self, clock: Clock) -> int:
            return NEVER

        def step_args(self, context: Any) -> Any:
            Idle.calls += 1

    rig.loop([Idle(), Idle()], clock).run()
    assert (rig.steps_made, clock.global_step, clock.local_step) == (500, 500, 499)
    assert rig.stepper.fetcher.built == 1
    assert Idle.calls == 0


def test_scheduled_participants_are_asked_at_their_steps_only(rig: Rig) -> None:
    clock = Clock(steps_per_epoch=25)

    class EveryTen(Participant):
        def __init__(self) -> None:
            self.asked: list[int] = []

        def next_step(self, clock: Clock) -> int:
            return Every(steps=10).next_step(clock.run_step)

        def step_args(self, context: Any) -> Any:
            self.asked.append(context.clock.run_step)
            return tf1.train.SessionRunArgs(rig.element)

    every_ten = EveryTen()
    rig.loop([every_ten], clock).run()
    assert every_ten.asked == [0, 10, 20]
    assert rig.stepper.fetcher.built == 2


def test_participant_by_time_gets_its_turn_between_quiet_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    looks = itertools.count()
    monkeypatch.setattr(loop, "time", SimpleNamespace(monotonic=lambda: next(looks) / 1000))  # at each look later
    rig = Rig(length=10**9)
    clock = Clock(steps_per_epoch=NEVER)

    class ByTime(Participant):
        def __init__(self) -> None:
            self.turns, self.due = 0, 0.0

        def train_start(self, clock: Clock) -> None:
            self.due = loop.time.monotonic() + 0.02

        def next_step(self, clock: Clock) -> int:
            return NEVER

        def next_time(self) -> float:
            return self.due

        def step_done(self, context: Any) -> None:
            self.turns += 1
            self.due += 0.02
            if self.turns == 3:
                context.request_stop()

    by_time = ByTime()
    rig.loop([by_time], clock).run()
    assert by_time.turns == 3
    assert rig.steps_made == clock.run_step > 3


def test_end_of_input_is_a_clean_end_also_between_quiet_steps() -> None:
    rig = Rig(length=7)
    clock = Clock(steps_per_epoch=100)
    seen: list[Any] = []
    recorder = Recorder("a", seen, clock)
    recorder.next_step = lambda clock: NEVER  # type: ignore[method-assign]
    assert rig.loop([recorder], clock).run() == "end_of_input"
    assert rig.steps_made == clock.global_step == 7
    assert seen[-1][1] == "finish(True)"
    assert "epoch_end" not in [point for _, point, _ in seen]


def test_an_error_reaches_everybody_as_not_ok_and_hooks_get_no_end(rig: Rig) -> None:
    clock = Clock(steps_per_epoch=5)
    seen: list[Any] = []

    class Failing(Participant):
        def step_values(self, context: Any, values: Any) -> None:
            raise RuntimeError("from a hook")

        def finish(self, ok: bool) -> None:
            raise ValueError("from the clean-up")

    hook = HookParticipant(RecordingHook("hook", seen, clock))
    hook._session = rig.session
    with pytest.raises(RuntimeError, match="from a hook"):
        rig.loop([Failing(), hook, Recorder("b", seen, clock)], clock).run()
    assert seen[-1][:2] == ("b", "finish(False)")
    assert "end" not in [point for _, point, _ in seen]


def test_out_of_range_that_is_not_the_input_is_an_error(rig: Rig) -> None:
    clock = Clock(steps_per_epoch=5)

    class OutOfRange(Participant):
        def step_values(self, context: Any, values: Any) -> None:
            raise tf.errors.OutOfRangeError(None, None, "index 7 is out of range")

    with pytest.raises(tf.errors.OutOfRangeError):
        rig.loop([OutOfRange()], clock).run()


def test_a_stop_between_steps_is_reported_as_a_signal(rig: Rig) -> None:
    clock = Clock(steps_per_epoch=NEVER)
    calls = iter([False] * 9)
    assert rig.loop([], clock, stopped=lambda: next(calls, True)).run() == "signal"
    assert 0 < rig.steps_made < 10


@given(position=st.integers(0, 10**6), steps=st.integers(1, 5000), phase=st.integers(-(10**6), 10**6))
def test_next_step_is_the_smallest_multiple_in_phase(position: int, steps: int, phase: int) -> None:
    found = Every(steps=steps).next_step(position, phase)
    assert position <= found < position + steps
    assert (found - phase) % steps == 0


@pytest.mark.parametrize("bad", [{"steps": 0}, {"steps": -1}, {"secs": 0.0}, {"secs": float("nan")}])
def test_a_schedule_refuses_a_period_that_is_not_positive(bad: dict[str, Any]) -> None:
    with pytest.raises(UsageError, match="positive"):
        Every(**bad)


def test_requests_are_merged_and_results_keep_their_structure(rig: Rig) -> None:
    clock = Clock(steps_per_epoch=1)
    got: dict[str, Any] = {}

    class Asking(Participant):
        def __init__(self, name: str, fetches: Any, feed: Any = None) -> None:
            self.name, self.args = name, tf1.train.SessionRunArgs(fetches, feed)

        def step_args(self, context: Any) -> Any:
            return self.args

        def step_values(self, context: Any, values: Any) -> None:
            got[self.name] = values.results

    nested = {"a": [rig.element, (rig.fed, rig.step_op)], "b": "fed:0", "c": rig.counter, "d": None}
    rig.loop([Asking("nested", nested), Asking("one", rig.element), Asking("feed", rig.fed, {rig.fed: 2})], clock).run()
    assert got["nested"]["a"][0] == got["one"] == 0
    assert got["nested"]["a"][1] == (2.0, None)
    assert (got["nested"]["b"], got["nested"]["d"]) == (2.0, None)
    assert got["feed"] == np.float32(2.0)
    assert rig.steps_made == 1  # asking for the step itself does not run it twice


def test_run_options_of_a_hook_are_honoured(rig: Rig) -> None:
    clock = Clock(steps_per_epoch=1)
    got: list[Any] = []

    class Profiling(Participant):
        def step_args(self, context: Any) -> Any:
            options = tf1.RunOptions(trace_level=tf1.RunOptions.FULL_TRACE)
            return tf1.train.SessionRunArgs({"e": rig.element}, {rig.fed: 1.0}, options=options)

        def step_values(self, context: Any, values: Any) -> None:
            got.append(values)

    rig.loop([Profiling()], clock).run()
    assert got[0].results == {"e": 0}
    assert len(got[0].run_metadata.step_stats.dev_stats) > 0
