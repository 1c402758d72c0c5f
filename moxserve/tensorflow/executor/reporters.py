"""The built-in participants: console lines, summaries, checkpoints, outputs, evaluation means, sample rows.

Each tells the loop when it wants to be asked (`Every`), so that the steps between cost nothing.
"""

from __future__ import annotations

import itertools
import math
import os
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from moxserve.talk import Event
from moxserve.tensorflow.executor.checkpoint import Checkpointer
from moxserve.tensorflow.executor.env import tf1
from moxserve.tensorflow.executor.inputs import first_rows
from moxserve.tensorflow.executor.participants import NEVER, Clock, Every, Participant, StepContext
from moxserve.tensorflow.executor.tower_values import TowerValues
from moxserve.tensorflow.executor.whole import over_rows_of

__all__ = [
    "CheckpointWriter",
    "ConsoleLog",
    "EvalMeans",
    "OutputCollector",
    "SampleRows",
    "SummaryWriter",
    "add_scalars",
    "log_line",
    "own_suffix",
    "write_scalars",
]


def log_line(step: int, global_step: int, samples_per_s: float, values: Mapping[str, float]) -> Event:
    """Format a console line: `step: 10(global step: 10)\\tsample/sec: 42.184\\tloss: 3.977`."""
    parts = [f"step: {step}(global step: {global_step})", f"sample/sec: {samples_per_s:.3f}"]
    text = "\t".join([*parts, *(f"{name}: {value:.3f}" for name, value in values.items())])
    facts = {"event": "step", "step": step, "global_step": global_step, "samples_per_s": samples_per_s}
    return Event(text, {**facts, "values": dict(values)})


class ConsoleLog(Participant):
    """Prints `log_info` every so many steps, with the rows a second since the last line.

    Args:
        info: name: scalar tensor.
        every: in steps; None when `wanted` decides.
        rows_per_step: rows that one step takes from the input.
        wanted: asked with the index of a step, decides instead of `every` when given.
    """

    def __init__(
        self,
        info: Mapping[str, Any],
        every: Every | None,
        rows_per_step: int,
        wanted: Callable[[int], bool] | None = None,
    ) -> None:
        self._args = tf1.train.SessionRunArgs(fetches=dict(info))
        self._every = every or Every(steps=NEVER)
        self._rows_per_step = rows_per_step
        self._wanted = wanted
        self._last_time = 0.0
        self._last_step = 0
        self.values: dict[str, float] = {}

    def train_start(self, clock: Clock) -> None:
        """Start the stopwatch of the first line."""
        self._last_time, self._last_step = clock.stopwatch()[0], clock.run_step

    def next_step(self, clock: Clock) -> int:
        """The next line's step; every step where a function of the user's decides."""
        return clock.run_step if self._wanted is not None else self._every.next_step(clock.run_step)

    def step_args(self, context: StepContext) -> Any:
        """Ask for the values, along with the step."""
        if self._wanted is not None and not self._wanted(context.clock.run_step):
            return None
        return self._args

    def step_values(self, context: StepContext, values: Any) -> None:
        """Print the line; steps are numbered as they were before the clock counted this one."""
        if values.results is None:
            return
        clock = context.clock
        now = clock.stopwatch()[0]
        rate = (clock.run_step - self._last_step) * self._rows_per_step / max(now - self._last_time, 1e-9)
        self._last_time, self._last_step = now, clock.run_step
        self.values = {name: float(value) for name, value in values.results.items()}
        global_step = clock.global_step - 1 if clock.counts_globally else clock.global_step
        tf1.logging.info("%s", log_line(clock.run_step - 1, global_step, rate, self.values))


class SummaryWriter(Participant):
    """Writes TensorBoard event files: the graph once, then merged summaries and `log_info` every so many steps.

    Args:
        folder: of the event files.
        every: in steps.
        info: name: scalar tensor.
    """

    def __init__(self, folder: str, every: Every, info: Mapping[str, Any]) -> None:
        self._folder = folder
        self._every = every
        self._info = dict(info)
        self._args: Any = None
        self._writer: Any = None

    def begin(self) -> None:
        """Merge the summaries that `model_fn` and `optimizer_fn` made."""
        self._args = tf1.train.SessionRunArgs(fetches=[tf1.summary.merge_all(), self._info])

    def session_ready(self, session: Any, coordinator: Any) -> None:
        """Open the event file and write the graph."""
        self._writer = tf1.summary.FileWriter(self._folder, graph=session.graph, filename_suffix=own_suffix())

    def next_step(self, clock: Clock) -> int:
        """The next summary's step."""
        return self._every.next_step(clock.run_step)

    def step_args(self, context: StepContext) -> Any:
        """Ask for the summaries, along with the step."""
        return self._args

    def step_values(self, context: StepContext, values: Any) -> None:
        """Write them under the step count after this step."""
        merged, info = values.results
        if merged is not None:
            self._writer.add_summary(merged, context.clock.global_step)
        self.scalars({name: float(value) for name, value in info.items()}, context.clock.global_step)

    def scalars(self, values: Mapping[str, float], global_step: int) -> None:
        """Write plain numbers."""
        add_scalars(self._writer, values, global_step)

    def finish(self, ok: bool) -> None:
        """Flush and close the event file."""
        if self._writer is not None:
            self._writer.close()


def add_scalars(writer: Any, values: Mapping[str, float], global_step: int) -> None:
    """Write plain numbers to an open event file."""
    entries = [tf1.Summary.Value(tag=name, simple_value=value) for name, value in values.items()]
    if entries:
        writer.add_summary(tf1.Summary(value=entries), global_step)


_files = itertools.count()


def own_suffix() -> str:
    """Return an end for an event file's name: TensorFlow's own is the same for all of a second, and the last file of
    that name would be all that is left.
    """
    return f".{os.getpid()}.{next(_files)}"


def write_scalars(folder: str, values: Mapping[str, float], global_step: int) -> None:
    """Write plain numbers as an event file of their own."""
    with tf1.Graph().as_default():  # FileWriter refuses a default graph that somebody left in eager mode
        writer = tf1.summary.FileWriter(folder, filename_suffix=own_suffix())
    add_scalars(writer, values, global_step)
    writer.close()


class CheckpointWriter(Participant):
    """Saves every so many steps or seconds, and at the end of a run that did not fail.

    Args:
        checkpointer: writes them.
        every: in steps (multiples of the global step) or seconds; None for the end only.

    Attributes:
        prefix: of the newest checkpoint; None before the first.
        before_save: called with the global step before each checkpoint, to keep what belongs to it.
    """

    def __init__(self, checkpointer: Checkpointer, every: Every | None) -> None:
        self._checkpointer = checkpointer
        self._every = every or Every(steps=NEVER)
        self._session: Any = None
        self._clock: Clock | None = None
        self._last_time = 0.0
        self._saved_step = self._seen_step = -1
        self.prefix: str | None = None
        self.before_save: Callable[[int], None] = lambda global_step: None

    def restored(self, prefix: str, global_step: int) -> None:
        """What this folder holds already, so that an idle run writes nothing."""
        self.prefix, self._saved_step = prefix, global_step

    def session_ready(self, session: Any, coordinator: Any) -> None:
        """Remember what to save."""
        self._session = session

    def train_start(self, clock: Clock) -> None:
        """Start the stopwatch."""
        self._clock, self._last_time = clock, time.monotonic()
        self._seen_step = clock.global_step

    def next_step(self, clock: Clock) -> int:
        """The step that makes the global step a multiple of the period."""
        period = self._every.steps
        if period and clock.global_step // period > self._seen_step // period:
            return clock.run_step  # other workers' steps have carried the count past a multiple
        before_first = clock.global_step - clock.run_step
        return self._every.next_step(clock.run_step, phase=-(before_first + 1))

    def next_time(self) -> float:
        """When the period in seconds is over."""
        return self._every.next_time(self._last_time)

    def step_done(self, context: StepContext) -> None:
        """Save; the schedule has been asked before the step."""
        self._save(context.clock.global_step)

    def _save(self, global_step: int) -> None:
        if global_step != self._saved_step:
            self.before_save(global_step)
            self.prefix = self._checkpointer.save(self._session, global_step)
            self._saved_step = global_step
        self._seen_step = global_step
        self._last_time = time.monotonic()

    def finish(self, ok: bool) -> None:
        """Save the end state; not after an error, whose variables nobody should resume from."""
        if ok and self._clock is not None:
            self._save(self._clock.global_step)


class OutputCollector(Participant):
    """Hands `output_info` of every step to `output_fn`, several steps at a time, the rest at the end.

    Args:
        towers: name: tensor of each tower, with a scalar bool tensor that says whether a step has them, or None.
        output_fn: called with a list of dicts, in the order of steps, and in each step of towers.
        every: how many steps make a call; 0 for one call at the end.
    """

    def __init__(
        self,
        towers: Sequence[tuple[Mapping[str, Any], Any]],
        output_fn: Callable[[list[dict[str, Any]]], Any],
        every: int,
    ) -> None:
        infos, presents = [dict(info) for info, _ in towers], [present for _, present in towers]
        self._args = tf1.train.SessionRunArgs(fetches=[infos, presents])
        self._output_fn = output_fn
        self._every = every
        self._pending: list[dict[str, Any]] = []
        self._steps = 0

    def step_args(self, context: StepContext) -> Any:
        """Ask for the outputs, along with the step."""
        return self._args

    def step_values(self, context: StepContext, values: Any) -> None:
        """Keep them; hand them over when there are enough."""
        self._pending += [info for info, present in zip(*values.results, strict=True) if present is None or present]
        self._steps += 1
        if self._steps == self._every:
            self._hand_over()

    def _hand_over(self) -> None:
        pending, self._pending, self._steps = self._pending, [], 0
        if pending:
            self._output_fn(pending)

    def finish(self, ok: bool) -> None:
        """Hand the rest over; not after an error."""
        if ok:
            self._hand_over()


class EvalMeans(Participant):
    """Averages `log_info` over all steps and towers, weighted by rows, so that a smaller last batch counts for less.

    What `over_all_rows` made is computed from all rows at the end.

    Args:
        towers: scalar tensors of each tower, with the same names.
    """

    def __init__(self, towers: Sequence[TowerValues]) -> None:
        self._names = list(towers[0].values)
        self._whole = {
            name: whole for name, value in towers[0].values.items() if (whole := over_rows_of(value)) is not None
        }
        self._args = tf1.train.SessionRunArgs(fetches=[self._fetches(tower) for tower in towers])
        self._sums = {name: 0.0 for name in self._names if name not in self._whole}
        self._kept: dict[str, list[list[np.ndarray]]] = {name: [] for name in self._whole}
        self.rows = 0.0

    def _fetches(self, tower: TowerValues) -> list[Any]:
        """Averaged values, the parts of those over all rows, and the number of rows."""
        averaged = {name: value for name, value in tower.values.items() if name not in self._whole}
        found = {name: over_rows_of(tower.values[name]) for name in self._whole}
        return [averaged, {name: list(whole.parts) for name, whole in found.items() if whole is not None}, tower.rows]

    def step_args(self, context: StepContext) -> Any:
        """Ask for the values, along with the step."""
        return self._args

    def step_values(self, context: StepContext, values: Any) -> None:
        """Add them up."""
        for tower in values.results:
            self._add(*tower)

    def _add(self, info: Mapping[str, Any], parts: Mapping[str, list[np.ndarray]], rows: Any) -> None:
        weight = 1.0 if rows is None else float(rows)
        if not weight:  # not 0 * value, which is NaN for a mean over no rows
            return
        self.rows += weight
        for name, value in info.items():
            self._sums[name] += float(value) * weight
        for name, arrays in parts.items():
            self._kept[name].append(arrays)

    @property
    def means(self) -> dict[str, float]:
        """The means so far; NaN before the first step."""
        return {name: self._value(name) for name in self._names}

    def _value(self, name: str) -> float:
        if not self.rows:
            return math.nan
        if name not in self._whole:
            return self._sums[name] / self.rows
        arrays = (np.concatenate(parts) for parts in zip(*self._kept[name], strict=True))
        return float(self._whole[name].compute(*arrays))


class SampleRows(Participant):
    """Keeps the first rows that the run saw, for the verification and warm-up of an exported model.

    Args:
        inputs: tensors.
        count: how many rows.
    """

    def __init__(self, inputs: list[Any], count: int) -> None:
        self._inputs = inputs
        self._count = count
        self._batches: list[list[np.ndarray]] = []
        self._rows = 0

    def next_step(self, clock: Clock) -> int:
        """The first steps, until there are enough rows."""
        return clock.run_step if self._rows < self._count else NEVER

    def step_args(self, context: StepContext) -> Any:
        """Ask for the inputs of this step."""
        return tf1.train.SessionRunArgs(fetches=self._inputs)

    def step_values(self, context: StepContext, values: Any) -> None:
        """Keep them."""
        self.add(values.results)

    def add(self, batch: list[np.ndarray]) -> None:
        """Keep one batch."""
        self._batches.append(batch)
        self._rows += len(batch[0]) if batch[0].ndim else self._count

    @property
    def samples(self) -> list[np.ndarray]:
        """One array per input with up to `count` rows; empty when an input has no batch dimension."""
        if not self._batches or any(array.ndim == 0 for array in self._batches[0]):
            return []
        return first_rows([np.concatenate(parts) for parts in zip(*self._batches, strict=True)], self._count)
