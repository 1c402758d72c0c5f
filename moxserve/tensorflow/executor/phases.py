"""A training in phases: another model_fn up to some step, then the one that was given. One run to its caller.

A model_fn may be an object with a method `phases()`, which tells what is trained before it; quantization-aware training
starts from a float phase this way. Each phase is a run of its own (a graph, a session), and goes on from the checkpoint
of the one before, in `log_dir`.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, replace
from typing import Any

from moxserve.errors import UsageError
from moxserve.tensorflow.executor import checkpoint as checkpoints
from moxserve.tensorflow.executor.best import BEST_FOLDER
from moxserve.tensorflow.executor.cluster import Topology
from moxserve.tensorflow.executor.env import tf1
from moxserve.tensorflow.executor.hooks.states import HOOK_STATES
from moxserve.tensorflow.executor.settings import Functions, Settings
from moxserve.tensorflow.executor.spec import ModeKeys, RunResult

__all__ = ["Phase", "phases_of", "run_phases"]


@dataclass(frozen=True)
class Phase:
    """What is trained before the model_fn that a run was given.

    Attributes:
        model_fn: what is trained.
        until: global step that it ends at; where workers step apart, the number of steps of each.
        successor: name scope of variables that only what comes after it makes: a checkpoint with such is past it.
    """

    model_fn: Callable[..., Any]
    until: int
    successor: str

    def is_over(self, checkpoint: str | None, workers: int = 1) -> bool:
        """Whether training from a checkpoint (None for the start) has this phase behind it; the steps of so many
        workers are in the global step.
        """
        if checkpoint is None:
            return False
        if checkpoints.global_step_of(checkpoint) >= self.until * workers:
            return True
        return any(name.startswith(f"{self.successor}/") for name in checkpoints.variable_names(checkpoint))


def phases_of(model_fn: Any) -> list[Phase]:
    """Return what is to be trained before a model_fn; nothing for a plain function."""
    method = getattr(model_fn, "phases", None)
    return list(method()) if callable(method) else []


def run_phases(
    settings: Settings,
    functions: Functions,
    execute: Callable[[Settings, Functions, int], RunResult],
    topology: Topology,
) -> RunResult:
    """Run what a model_fn wants trained before it, then the run itself.

    Args:
        settings: of the whole run.
        functions: the user's.
        execute: makes one run, given its settings, its functions and the number of the phase, from 0.
        topology: whose chief keeps order in `log_dir`; workers that step apart each make the steps of a phase.

    Returns:
        The last run's result, with the first one's start and the steps of all.

    Raises:
        UsageError: there is nowhere to keep the state between phases, or the run ends before its last phase begins.
    """
    phases = phases_of(functions.model_fn) if settings.mode == ModeKeys.TRAIN else []
    done: list[RunResult] = []
    for number, phase in enumerate(phases):
        start = checkpoints.latest_checkpoint(settings.log_dir) or checkpoints.latest_checkpoint(
            settings.checkpoint_path
        )
        if phase.is_over(start, topology.counters):
            continue
        _check(phase, settings)
        until = replace(settings, max_steps=phase.until, export=())
        done.append(execute(until, replace(functions, model_fn=phase.model_fn), number))
        if topology.is_chief:
            _set_aside(str(settings.log_dir), phase)
        tf1.logging.info("%s begins at step %d", phase.successor, done[-1].global_step)
    last = execute(settings, functions, len(phases))
    if not done:
        return last
    return replace(last, start_step=done[0].start_step, local_steps=sum(r.local_steps for r in (*done, last)))


def _set_aside(log_dir: str, phase: Phase) -> None:
    """Let the hooks of what comes after a phase begin anew: they judge another model."""
    with suppress(FileNotFoundError):
        os.remove(os.path.join(log_dir, HOOK_STATES))
    best, kept = os.path.join(log_dir, BEST_FOLDER), os.path.join(log_dir, f"{BEST_FOLDER}-before-{phase.successor}")
    if os.path.isdir(best) and not os.path.exists(kept):
        os.rename(best, kept)


def _check(phase: Phase, settings: Settings) -> None:
    if settings.log_dir is None:
        raise UsageError(
            f"{phase.successor} that begins at step {phase.until} needs log_dir, where the training before it is kept",
            hint="give log_dir, or start_step=0",
        )
    if settings.max_steps and settings.max_steps <= phase.until:
        raise UsageError(
            f"{phase.successor} begins at step {phase.until}, and the run ends at step {settings.max_steps}",
            hint="give a smaller start_step, or a larger max_number_of_steps",
        )
