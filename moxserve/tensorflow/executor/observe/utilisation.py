"""What a run uses: cores, memory, GPUs, and how long its steps wait for input.

CPU and memory are read from the operating system where summaries are made, GPUs through nvidia-ml (`pip install
nvidia-ml-py`) where that is installed, too, and every ten seconds besides.

Waiting for input has two parts. Steps that take from a data flow begin when an element is there; that wait is measured
at every step, by who waits. What TensorFlow's own input makes is waited for inside of the step. There it is sampled:
two clocks in the graph, one read when the step begins, one when all input tensors are there. They run only in the steps
whose summaries are written (or, without summaries, whose line is printed); no other step knows of them. The share is
that of the sampled steps' own time.
"""

from __future__ import annotations

import math
import os
import resource
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from moxserve.cores import available_cores
from moxserve.talk import Event
from moxserve.tensorflow.executor.env import tf, tf1
from moxserve.tensorflow.executor.observe.gpus import GpuMeter, GpuUse
from moxserve.tensorflow.executor.participants import NEVER, Clock, Every, Participant, StepContext

__all__ = ["Utilisation", "UtilisationMeter"]

_GPU_PERIOD_S = 10.0

Write = Callable[[Mapping[str, float], int], None]


@dataclass(frozen=True)
class Utilisation:
    """What a run used, from the end of its first step on.

    Attributes:
        cores: how many the process may run on.
        busy_cores: how many it kept busy on average, all threads.
        memory_bytes: of the process, at the end.
        peak_memory_bytes: of the process, since it was started.
        input_wait: share of the time that steps waited for input, 0 to 1; None where it was not measured.
        gpus: each GPU that the run could use; empty where nvidia-ml is not installed.
    """

    cores: int
    busy_cores: float
    memory_bytes: int
    peak_memory_bytes: int
    input_wait: float | None = None
    gpus: tuple[GpuUse, ...] = ()

    def event(self) -> Event:
        """Write the line at the end of a run."""
        parts = [
            f"{self.busy_cores:.2f} of {self.cores} cores",
            f"{self.memory_bytes / 1e6:.0f} MB (peak {self.peak_memory_bytes / 1e6:.0f} MB)",
        ]
        if self.input_wait is not None:
            parts.append(f"{100 * self.input_wait:.1f} % of the time waiting for input")
        parts += [
            f"GPU {gpu.index} {100 * gpu.busy:.0f} % busy, {gpu.memory_bytes / 1e6:.0f} of "
            f"{gpu.total_bytes / 1e6:.0f} MB"
            for gpu in self.gpus
        ]
        return Event(f"used: {', '.join(parts)}", {"event": "used", **self.facts()})

    def facts(self) -> dict[str, Any]:
        """Return it as JSON values."""
        return {
            "cores": self.cores,
            "busy_cores": self.busy_cores,
            "memory_bytes": self.memory_bytes,
            "peak_memory_bytes": self.peak_memory_bytes,
            "input_wait": self.input_wait,
            "gpus": [gpu.facts() for gpu in self.gpus],
        }


class UtilisationMeter(Participant):
    """Writes what the run uses beside its summaries, and sums it up at the end.

    Args:
        inputs: input tensors of the first tower; waiting for them is sampled.
        every: when to sample; None: never.
        rows_per_step: rows that one step takes from the input.
        write: takes name: value and the global step; None writes nothing.
        gpus: GPUs to read; None for none.
    """

    def __init__(
        self,
        inputs: Sequence[Any],
        every: Every | None,
        rows_per_step: int,
        write: Write | None = None,
        gpus: GpuMeter | None = None,
    ) -> None:
        self._inputs = list(inputs)
        self._every = every
        self._rows_per_step = rows_per_step
        self._write = write
        self._gpus = gpus
        self._gpus_due = math.inf if gpus is None else time.monotonic() + _GPU_PERIOD_S
        self._args: Any = None
        self._mark: _Mark | None = None
        self._is_sample = False
        self._began_s = 0.0
        # Seconds of the steps that were sampled: of waiting in them, and of all of each.
        self._sampled_s = (0.0, 0.0)

    def begin(self) -> None:
        """Put the two clocks into the graph."""
        from tensorflow.python.framework.config import is_op_determinism_enabled

        if self._every is None or is_op_determinism_enabled():  # which refuses clocks
            return
        # TensorFlow runs them only in steps that fetch their difference.
        with tf1.name_scope("mox_input_wait"), tf.device("/cpu:0"):
            begun = tf.timestamp()
            with tf.control_dependencies(self._inputs):
                there = tf.timestamp()
            self._args = tf1.train.SessionRunArgs(fetches=there - begun)

    def next_step(self, clock: Clock) -> int:
        """The next sample's step, one of those at which others fetch something, too."""
        return NEVER if self._every is None else self._every.next_step(clock.run_step)

    def next_time(self) -> float:
        """When the GPUs are to be read."""
        return self._gpus_due

    def step_args(self, context: StepContext) -> Any:
        """Ask for the wait of a step that is sampled."""
        self._is_sample = self.next_step(context.clock) == context.clock.run_step
        self._began_s = time.perf_counter()
        return self._args if self._is_sample else None

    def step_values(self, context: StepContext, values: Any) -> None:
        """Read everything; the first step is none to learn from."""
        step_s = time.perf_counter() - self._began_s
        if self._gpus is not None and (self._is_sample or time.monotonic() >= self._gpus_due):
            self._gpus_due = time.monotonic() + _GPU_PERIOD_S
            self._gpus.read()
        if not self._is_sample:
            return
        now, before = _Mark.read(context.clock), self._mark
        self._mark = now
        if before is None:
            return
        wait_s = 0.0 if values.results is None else min(max(0.0, float(values.results)), step_s)
        self._sampled_s = (self._sampled_s[0] + wait_s, self._sampled_s[1] + step_s)
        if self._write is not None:
            self._write(self._since(before, now, wait_s / step_s), context.clock.global_step)

    def _since(self, before: _Mark, now: _Mark, wait: float) -> dict[str, float]:
        """What was used between two samples, as summaries; `wait` is the share of waiting in the last step."""
        steps, wall_s = now.step - before.step, max(now.wall_s - before.wall_s, 1e-9)
        waited = (now.waited_s - before.waited_s) / wall_s + wait
        values = {
            "mox/steps_per_s": steps / wall_s,
            "mox/samples_per_s": steps * self._rows_per_step / wall_s,
            "mox/cpu_percent": 100 * (now.cpu_s - before.cpu_s) / wall_s / available_cores(),
            "mox/memory_mb": memory_bytes()[0] / 1e6,
        }
        if self._args is not None or waited:
            values["mox/input_wait_percent"] = 100 * min(1.0, waited)
        for gpu in self._gpus.last if self._gpus is not None else ():
            values[f"mox/gpu{gpu.index}_percent"] = 100 * gpu.busy
            values[f"mox/gpu{gpu.index}_memory_mb"] = gpu.memory_bytes / 1e6
        return values

    def result(self, steps: int, wall_s: float, cpu_s: float, waited_s: float) -> Utilisation | None:
        """Sum up.

        Args:
            steps: how many followed the first.
            wall_s: seconds of these.
            cpu_s: CPU seconds of the process in this time.
            waited_s: seconds that steps waited before they began.

        Returns:
            None where there are too few steps to tell.
        """
        if not steps or wall_s <= 0:
            return None
        if self._gpus is not None:
            self._gpus.read()
        in_steps_s, sampled_s = self._sampled_s
        known = (self._args is not None and sampled_s > 0) or waited_s > 0
        waited = waited_s / wall_s + (in_steps_s / sampled_s if sampled_s else 0.0)
        memory, peak = memory_bytes()
        return Utilisation(
            cores=available_cores(),
            busy_cores=cpu_s / wall_s,
            memory_bytes=memory,
            peak_memory_bytes=peak,
            input_wait=min(1.0, waited) if known else None,
            gpus=() if self._gpus is None else self._gpus.use(),
        )


@dataclass(frozen=True)
class _Mark:
    """Where the clocks stood."""

    step: int
    wall_s: float
    cpu_s: float
    waited_s: float

    @classmethod
    def read(cls, clock: Clock) -> _Mark:
        """Read them now."""
        wall_s, cpu_s = clock.stopwatch()
        return cls(clock.run_step, wall_s, cpu_s, clock.waited_s)


def memory_bytes() -> tuple[int, int]:
    """Memory of this process that is in RAM: now, and the most since it was started."""
    unit = 1 if sys.platform == "darwin" else 1024
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit
    try:
        with open("/proc/self/statm", "rb") as f:
            now = int(f.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    except OSError:  # no Linux
        now = peak
    return now, max(now, peak)
