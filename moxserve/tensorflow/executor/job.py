"""What a job remembers of its trainings, for a process that is started again when one is over already.

The processes of a job end at different times: the chief may still export when the others are gone. If it dies there,
the one in its place finds the training done, and nobody to train with. So the chief notes in `log_dir` which trainings
of the job have ended: the job by the name that `moxserve launch` gives it in MOXSERVE_JOB, the training by its number
among those of the script. Without that name nothing is noted.
"""

from __future__ import annotations

import json
import os
from dataclasses import replace

from moxserve.file import atomic_write
from moxserve.tensorflow.executor import checkpoint as checkpoints
from moxserve.tensorflow.executor.cluster import Topology
from moxserve.tensorflow.executor.env import tf1
from moxserve.tensorflow.executor.located import step_in_name
from moxserve.tensorflow.executor.mirror import JOB_FILE
from moxserve.tensorflow.executor.settings import Settings
from moxserve.tensorflow.executor.spec import RunResult
from moxserve.tensorflow.executor.workers import Part
from moxserve.tensorflow.executor.workers.serving import serve

__all__ = ["JOB_VARIABLE", "has_ended", "note_end", "what_is_left", "without_training"]

JOB_VARIABLE = "MOXSERVE_JOB"


def note_end(settings: Settings, run: int) -> None:
    """Note that a training of this job has ended, its last checkpoint being there.

    Args:
        settings: of the training.
        run: its number; 0 for one that no other process takes part in.
    """
    job = os.environ.get(JOB_VARIABLE)
    mirror = settings.mirror
    if not job or not run or settings.log_dir is None or (mirror is not None and mirror.stale):
        return
    runs = sorted({*_ended(settings.log_dir, job), run})
    atomic_write(os.path.join(settings.log_dir, JOB_FILE), json.dumps({"job": job, "ended": runs}) + "\n")
    if mirror is not None:
        mirror.tell(JOB_FILE)


def has_ended(settings: Settings, run: int) -> bool:
    """Tell whether a training of this job has ended before this process was started."""
    job = os.environ.get(JOB_VARIABLE)
    return bool(job) and run > 0 and settings.log_dir is not None and run in _ended(settings.log_dir, str(job))


def _ended(log_dir: str, job: str) -> list[int]:
    try:
        with open(os.path.join(log_dir, JOB_FILE), encoding="utf-8") as file:
            known = json.load(file)
        return [int(run) for run in known["ended"]] if known["job"] == job else []
    except (FileNotFoundError, NotADirectoryError, ValueError, KeyError, TypeError):
        return []


def without_training(settings: Settings, part: Part) -> RunResult | None:
    """Do what a process does in a run that it has nothing to train in: serve, or learn that it is over.

    Returns:
        What it came to; None for a process that is to train.
    """
    if has_ended(settings, part.run) and not part.topology.is_chief:
        step, prefix = _last(settings)
        tf1.logging.info("the job's training has ended already, at step %d", step)
        return RunResult(settings.mode, step, step, 0, "already_trained", checkpoint=prefix)
    return serve(part, settings.mode) if part.topology.job == "ps" else None


def what_is_left(settings: Settings, part: Part) -> tuple[Settings, Topology]:
    """Return the settings and the topology of the run: where the training is over, those of a chief by itself who finds
    nothing to train, and does what follows.
    """
    if not has_ended(settings, part.run):
        return settings, part.topology
    return replace(settings, max_steps=_last(settings)[0] or settings.max_steps), part.topology.alone()


def _last(settings: Settings) -> tuple[int, str | None]:
    """Return the step of the last checkpoint, and its prefix."""
    here = checkpoints.latest_checkpoint(settings.log_dir)
    if here is not None:
        return checkpoints.global_step_of(here), settings.shown(here)
    known = settings.resume  # by its name alone
    return (max(0, step_in_name(known)), settings.shown(known)) if known is not None else (0, None)
