"""Checkpoints: found, restored with a check of names and shapes, and written so that a crash never leaves a broken one.

A checkpoint is `PREFIX.index` and `PREFIX.data-*-of-*`. It counts once the file `checkpoint` names it, and that file is
replaced last, after the data reached the disk. Whoever dies earlier leaves `*.tempstate*` files, swept at the next
start.
"""

from __future__ import annotations

import contextlib
import glob
import os
import shutil
from collections.abc import Callable, Sequence
from typing import Any

from moxserve.errors import CheckpointError, first_line
from moxserve.file import atomic_write, fsync_directory, fsync_path, sweep
from moxserve.file.standins import known_as
from moxserve.tensorflow.executor.env import tf, tf1
from moxserve.tensorflow.executor.located import (
    find_checkpoint,
    is_complete,
    latest_checkpoint,
    local_path,
    named_in_state,
    open_checkpoint,
    step_in_name,
    without_part,
)
from moxserve.tensorflow.executor.matching import CheckpointReport, Match, RestoreRules, listed, match, name_of
from moxserve.tensorflow.executor.train_op import matches, split_patterns

__all__ = [
    "Checkpointer",
    "RestoreRules",
    "find_checkpoint",
    "global_step_of",
    "latest_checkpoint",
    "load_checkpoint",
    "local_path",
    "name_of",
    "restore",
    "restore_matching",
    "variable_names",
]

_STATE = "checkpoint"
_BASENAME = "model.ckpt"


def _forgotten(folder: str, named: Sequence[str]) -> list[str]:
    """Checkpoints of ours beside those that the state file names: their writer died before it named or removed them.

    First in line to be dropped. A folder without a state file is not ours, and nothing in it is.
    """
    if not named:
        return []
    found = glob.glob(os.path.join(glob.escape(folder), f"{_BASENAME}-*.index"))
    prefixes = {f.removesuffix(".index") for f in found} - set(named)
    return sorted((p for p in prefixes if is_complete(p)), key=step_in_name)


def global_step_of(prefix: str) -> int:
    """The global step that a checkpoint was made at: as stored, else as in its name, else 0.

    Raises:
        CheckpointError: it cannot be read.
    """
    reader = open_checkpoint(prefix)
    if reader.has_tensor("global_step"):
        return int(reader.get_tensor("global_step"))
    return max(0, step_in_name(prefix))


def variable_names(prefix: str) -> list[str]:
    """The names of what a checkpoint holds.

    Raises:
        CheckpointError: it cannot be read.
    """
    return sorted(open_checkpoint(prefix).get_variable_to_shape_map())


def restore(session: Any, prefix: str, variables: Sequence[Any], *, moving_averages: bool = False) -> None:
    """Give every one of these variables its value from a checkpoint.

    Args:
        session: a session of the variables' graph, which may be finalised.
        prefix: the checkpoint.
        variables: what to restore.
        moving_averages: take the moving averages of variables where the checkpoint has them.

    Raises:
        CheckpointError: the checkpoint cannot be read, lacks a variable, or has one of another shape or dtype.
    """
    restore_matching(session, prefix, variables, RestoreRules(moving_averages=moving_averages))


def restore_matching(session: Any, prefix: str, variables: Sequence[Any], rules: RestoreRules) -> list[Any]:
    """Restore variables under rules, and log what was left out and why.

    Returns:
        The variables that were restored.

    Raises:
        CheckpointError: it cannot be read; without `partial` a variable is missing or does not fit; with `partial` none
            fits.
    """
    return [variable for variable, _, _ in _restore(session, prefix, variables, rules).values]


def _restore(session: Any, prefix: str, variables: Sequence[Any], rules: RestoreRules) -> Match:
    found = match(prefix, variables, rules)
    report = found.report
    if not rules.partial:
        found.require()
    if report.excluded:
        tf1.logging.info(
            "not restored: %s (left out by the patterns)",
            listed(report.excluded),
        )
    names = [name_of(variable) for variable in variables]
    for pattern in (*rules.include, *rules.exclude):
        if not any(matches(name, (pattern,)) for name in names) and pattern != "global_step":
            tf1.logging.warning("the pattern %r matches none of the model's %d variables", pattern, len(names))
    for problem in report.problems:
        tf1.logging.warning("not restored from %s: %s", prefix, problem)
    if report.advice:
        tf1.logging.warning("%s", report.advice)
    if not found.values and not report.fits:
        raise CheckpointError(
            f"checkpoint {prefix!r} holds none of the model's {len(variables)} variables",
            hint=f"it holds {listed(report.unused)}",
        )
    found.restore(session)
    tf1.logging.info("Restoring parameters from %s: %s", known_as(prefix), report.summary)
    return found


def load_checkpoint(
    session: Any,
    path: str | os.PathLike[str],
    variables: Sequence[Any] | None = None,
    *,
    include: str = "",
    exclude: str = "",
    moving_averages: bool = False,
) -> CheckpointReport:
    """Give variables of a session's graph their values from a checkpoint, as far as it has them.

    What is not taken keeps its value, and is logged; run their initialisers before.

    Args:
        session: of the variables' graph.
        path: a prefix, a single file such as TF-Slim's `resnet_v1_50.ckpt`, or a folder, whose newest is taken.
        variables: None for all global ones of the graph.
        include: comma-separated regular expressions: only variables whose names contain a match.
        exclude: the same: but none of these.
        moving_averages: take `NAME/ExponentialMovingAverage` for the variable NAME where the checkpoint has it.

    Returns:
        What was restored, what was not, and why.

    Raises:
        CheckpointError: there is none, it cannot be read, or it has none of the variables.
        UsageError: a pattern is no regular expression.
    """
    prefix = find_checkpoint(path)
    if prefix is None:
        raise CheckpointError(f"no checkpoint at {os.fspath(path)!r}", hint="give a prefix, a file or a folder")
    if variables is None:
        with session.graph.as_default():
            variables = tf1.global_variables()
    rules = RestoreRules(
        split_patterns(include), split_patterns(exclude), partial=True, moving_averages=moving_averages
    )
    return _restore(session, prefix, variables, rules).report


class Checkpointer:
    """Writes the checkpoints of one run into a folder, and keeps the newest few.

    Made while the graph is open, because saving needs operations of its own.

    Args:
        folder: made if missing; leavings of writers that died are removed.
        keep: how many checkpoints stay.
        rank: orders prefixes: those with the lowest rank go first, the one with the highest is the current one. None:
            the order in which they were written.
        saver: of another Checkpointer of the same graph, whose operations do for both.
    """

    def __init__(
        self, folder: str, keep: int = 5, rank: Callable[[str], float] | None = None, saver: Any = None
    ) -> None:
        os.makedirs(folder, exist_ok=True)
        self.folder = folder
        self._keep = keep
        self._rank = rank
        self.saver = saver or tf1.train.Saver(max_to_keep=None, save_relative_paths=True)
        stated = named_in_state(folder)
        named = [p for p in stated if is_complete(p)]
        self._kept = self._ranked(_forgotten(folder, named) + named)
        _sweep(folder, stated)

    def _ranked(self, prefixes: list[str]) -> list[str]:
        return prefixes if self._rank is None else sorted(prefixes, key=self._rank)

    def prefix(self, global_step: int) -> str:
        """The prefix of the checkpoint of a step."""
        return os.path.join(self.folder, f"{_BASENAME}-{global_step}")

    def save(self, session: Any, global_step: int) -> str:
        """Write a checkpoint, flush it to disk, then name it in the state file.

        Returns:
            Its prefix.

        Raises:
            CheckpointError: it cannot be written (disk full, say); the former checkpoint stays the current one.
        """
        prefix = self.prefix(global_step)
        tf1.logging.info("Saving checkpoints for %d into %s", global_step, known_as(self.folder))
        try:
            self.saver.save(session, prefix, write_meta_graph=False, write_state=False)
            for path in (f"{prefix}.index", *glob.glob(f"{glob.escape(prefix)}.data-*-of-*")):
                fsync_path(path)
            fsync_directory(self.folder)
            self._kept = self._ranked([p for p in self._kept if p != prefix] + [prefix])
            dropped, self._kept = self._kept[: -self._keep], self._kept[-self._keep :]
            self._write_state()
        except (tf.errors.OpError, OSError) as error:
            raise CheckpointError(f"cannot write checkpoint {prefix!r}: {first_line(error)}") from error
        for old in dropped:
            _remove(old)
        return prefix

    def _write_state(self) -> None:
        from google.protobuf import text_format
        from tensorflow.python.training.checkpoint_state_pb2 import CheckpointState

        # Names relative to the folder, which may be moved. TensorFlow's own function for this takes a relative path for
        # one from the current directory.
        state = CheckpointState(
            model_checkpoint_path=os.path.basename(self._kept[-1]),
            all_model_checkpoint_paths=[os.path.basename(p) for p in self._kept],
        )

        atomic_write(os.path.join(self.folder, _STATE), text_format.MessageToString(state))


def _remove(prefix: str) -> None:
    """Remove a checkpoint, index first: without an index nobody takes the rest for one."""
    for path in (f"{prefix}.index", f"{prefix}.meta", *glob.glob(f"{glob.escape(prefix)}.data-*-of-*")):
        with contextlib.suppress(FileNotFoundError):
            os.remove(path)


def _sweep(folder: str, named: Sequence[str]) -> None:
    """Remove what writers that died in the middle of a checkpoint, of its removal or of its upload left behind."""
    sweep(folder)
    found = glob.glob(os.path.join(glob.escape(folder), f"{_BASENAME}-*")) if named else []
    for prefix in {p for path in found if (p := without_part(path)) != path} - set(named):
        if not is_complete(prefix):
            _remove(prefix)
    for path in glob.glob(os.path.join(glob.escape(folder), f"{_BASENAME}-*")):
        if ".tempstate" in os.path.basename(path):
            with contextlib.suppress(FileNotFoundError):
                os.remove(path)
        elif os.path.isdir(path) and path.endswith("_temp"):
            shutil.rmtree(path, ignore_errors=True)
