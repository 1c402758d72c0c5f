"""Checkpoints: found, restored with a check of names and shapes, and written so that a crash never leaves a broken one.

A checkpoint is `PREFIX.index` and `PREFIX.data-*-of-*`. It counts once the file `checkpoint` names it, and that file is
replaced last, after the data reached the disk. Whoever dies earlier leaves `*.tempstate*` files, swept at the next
start.
"""

from __future__ import annotations

import contextlib
import glob
import os
import re
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from moxserve.errors import CheckpointError, UsageError, first_line
from moxserve.file import atomic_write, fsync_directory, fsync_path, sweep
from moxserve.tensorflow.executor.env import tf, tf1
from moxserve.tensorflow.executor.train_op import matches

__all__ = [
    "Checkpointer",
    "RestoreRules",
    "global_step_of",
    "latest_checkpoint",
    "restore",
    "restore_matching",
    "variable_names",
]

_STATE = "checkpoint"
_BASENAME = "model.ckpt"
_INDEX = re.compile(r"(.+)\.index\Z")
_STEP = re.compile(r"-(\d+)\Z")


def local_path(path: Any, argument: str) -> str:
    """Check that a path is one of this machine's file system.

    Raises:
        UsageError: it has a scheme, such as `s3://`.
    """
    text = os.fspath(path)
    if "://" in text:
        raise UsageError(
            f"{argument}={text!r}: checkpoints and summaries are written to local folders",
            hint="train into a local folder and copy it with mox.file.copy_parallel",
        )
    return str(text)


def is_complete(prefix: str) -> bool:
    """Whether all files of a checkpoint are there: its index, and every shard that a shard's name announces."""
    if not os.path.isfile(f"{prefix}.index"):
        return False
    shards = glob.glob(f"{glob.escape(prefix)}.data-*-of-*")
    announced = {int(m.group(1)) for s in shards if (m := re.search(r"-of-(\d+)\Z", s))}
    return len(announced) == 1 and len([s for s in shards if re.search(r"\.data-\d+-of-\d+\Z", s)]) == announced.pop()


def step_in_name(prefix: str) -> int:
    """The step that a checkpoint's name ends with, -1 when it has none."""
    match = _STEP.search(prefix)
    return int(match.group(1)) if match else -1


def latest_checkpoint(path: str | os.PathLike[str] | None) -> str | None:
    """Find the newest complete checkpoint.

    Args:
        path: a folder; or a prefix such as `runs/digits/model.ckpt-1000`, with or without `.index` or `.meta`.

    Returns:
        The prefix, or None when there is no complete checkpoint. In a folder the one that the file `checkpoint` names;
        if that one is not complete, the newest complete one.
    """
    if path is None:
        return None
    text = local_path(path, "checkpoint_path")
    if os.path.isdir(text):
        return _latest_in(text)
    for suffix in (".index", ".meta"):
        text = text.removesuffix(suffix)
    return text if is_complete(text) else None


def _latest_in(folder: str) -> str | None:
    named = _named_in_state(folder)
    if named and is_complete(named[-1]):
        return named[-1]
    candidates = {
        *named,
        *(m.group(1) for f in glob.glob(os.path.join(glob.escape(folder), "*.index")) if (m := _INDEX.match(f))),
    }
    complete = sorted((c for c in candidates if is_complete(c)), key=lambda c: (step_in_name(c), c))
    if named and complete:
        tf1.logging.warning("checkpoint %s is named in %s, but not complete: using %s", named[-1], folder, complete[-1])
    return complete[-1] if complete else None


def _named_in_state(folder: str) -> list[str]:
    """The checkpoints that the state file names, oldest first, the current one last."""
    try:
        state = tf1.train.get_checkpoint_state(folder)
    except (tf.errors.OpError, ValueError, OSError):
        return []
    if state is None:
        return []
    named = [p for p in state.all_model_checkpoint_paths if p != state.model_checkpoint_path]
    named.append(state.model_checkpoint_path)
    # A folder that was moved: the name counts, not where it was.
    return [p if is_complete(p) else os.path.join(folder, os.path.basename(p)) for p in named]


def _forgotten(folder: str, named: Sequence[str]) -> list[str]:
    """Checkpoints of ours beside those that the state file names: their writer died before it named or removed them.

    First in line to be dropped. A folder without a state file is not ours, and nothing in it is.
    """
    if not named:
        return []
    found = glob.glob(os.path.join(glob.escape(folder), f"{_BASENAME}-*.index"))
    prefixes = {f.removesuffix(".index") for f in found} - set(named)
    return sorted((p for p in prefixes if is_complete(p)), key=step_in_name)


def _open(prefix: str) -> Any:
    try:
        return tf1.train.NewCheckpointReader(prefix)
    except (tf.errors.OpError, ValueError) as error:
        raise CheckpointError(
            f"checkpoint {prefix!r} cannot be read: {error}",
            hint="is it complete? it needs PREFIX.index and PREFIX.data-*",
        ) from error


def global_step_of(prefix: str) -> int:
    """The global step that a checkpoint was made at: as stored, else as in its name, else 0.

    Raises:
        CheckpointError: it cannot be read.
    """
    reader = _open(prefix)
    if reader.has_tensor("global_step"):
        return int(reader.get_tensor("global_step"))
    return max(0, step_in_name(prefix))


def variable_names(prefix: str) -> list[str]:
    """The names of what a checkpoint holds.

    Raises:
        CheckpointError: it cannot be read.
    """
    return sorted(_open(prefix).get_variable_to_shape_map())


@dataclass(frozen=True)
class RestoreRules:
    """Which variables are taken from a checkpoint.

    Attributes:
        include: patterns; empty for all.
        exclude: patterns, applied after `include`.
        partial: True: variables that are missing or of another shape keep their initial values. False: they are an
            error.
        optional: names that keep their initial values where they are missing, and nobody need be told.
    """

    include: tuple[str, ...] = ()
    exclude: tuple[str, ...] = ()
    partial: bool = False
    optional: frozenset[str] = frozenset()


@dataclass
class RestorePlan:
    """Each variable of a model held against a checkpoint.

    Attributes:
        values: variables to restore, with the name and slice to read.
        excluded: names left out by pattern.
        missing: names that the checkpoint lacks.
        misfits: name and what differs.
    """

    values: list[tuple[Any, str, tuple[slice, ...] | None]] = field(default_factory=list)
    excluded: list[str] = field(default_factory=list)
    missing: list[str] = field(default_factory=list)
    misfits: list[str] = field(default_factory=list)


def _source_of(variable: Any) -> tuple[str, list[int], tuple[slice, ...] | None]:
    """Name in the checkpoint, full shape there, and this part of it (for a partitioned variable)."""
    part = getattr(variable, "_save_slice_info", None) or (
        variable._get_save_slice_info() if hasattr(variable, "_get_save_slice_info") else None
    )
    if part is None:
        return variable.op.name, variable.shape.as_list(), None
    slices = tuple(slice(o, o + n) for o, n in zip(part.var_offset, part.var_shape, strict=True))
    return part.full_name, list(part.full_shape), slices


def _plan(reader: Any, variables: Sequence[Any], rules: RestoreRules) -> RestorePlan:
    shapes: Mapping[str, list[int]] = reader.get_variable_to_shape_map()
    dtypes: Mapping[str, Any] = reader.get_variable_to_dtype_map()
    plan = RestorePlan()
    for variable in variables:
        name, shape, part = _source_of(variable)
        if (rules.include and not matches(name, rules.include)) or matches(name, rules.exclude):
            plan.excluded.append(name)
        elif name not in shapes:
            if name not in rules.optional:
                plan.missing.append(name)
        elif shapes[name] != shape:
            plan.misfits.append(f"{name} (shape {shapes[name]} in the checkpoint, {shape} in the model)")
        elif dtypes[name] != variable.dtype.base_dtype:
            plan.misfits.append(
                f"{name} ({dtypes[name].name} in the checkpoint, {variable.dtype.base_dtype.name} in the model)"
            )
        else:
            plan.values.append((variable, name, part))
    return plan


def _assign(session: Any, reader: Any, plan: RestorePlan) -> None:
    """Give variables their values by running their initialisers with other input: works in a frozen graph."""
    for variable, name, part in plan.values:
        value: np.ndarray = reader.get_tensor(name)
        session.run(variable.initializer, {variable.initializer.inputs[1]: value if part is None else value[part]})


def restore(session: Any, prefix: str, variables: Sequence[Any]) -> None:
    """Give every one of these variables its value from a checkpoint.

    Args:
        session: a session of the variables' graph, which may be finalised.
        prefix: the checkpoint.
        variables: what to restore.

    Raises:
        CheckpointError: the checkpoint cannot be read, lacks a variable, or has one of another shape or dtype.
    """
    restore_matching(session, prefix, variables, RestoreRules())


def restore_matching(session: Any, prefix: str, variables: Sequence[Any], rules: RestoreRules) -> list[Any]:
    """Restore variables under rules, and log what was left out and why.

    Returns:
        The variables that were restored.

    Raises:
        CheckpointError: it cannot be read; without `partial` a variable is missing or does not fit; with `partial` none
        fits.
    """
    reader = _open(prefix)
    plan = _plan(reader, variables, rules)
    problems = [f"missing in it: {name}" for name in plan.missing] + [f"does not fit: {text}" for text in plan.misfits]
    if problems and not rules.partial:
        raise CheckpointError(
            f"checkpoint {prefix!r} does not fit the model:\n  " + "\n  ".join(problems),
            hint="did another model write it? checkpoint_path with an empty log_dir takes over what fits",
        )
    for name in plan.excluded:
        tf1.logging.info("not restored: %s (left out by checkpoint_include_patterns/checkpoint_exclude_patterns)", name)
    for problem in problems:
        tf1.logging.warning("not restored from %s: %s", prefix, problem)
    if not plan.values and (plan.missing or plan.misfits):
        raise CheckpointError(
            f"checkpoint {prefix!r} holds none of the model's {len(variables)} variables",
            hint=f"it holds {', '.join(sorted(reader.get_variable_to_shape_map())[:8])}",
        )
    _assign(session, reader, plan)
    tf1.logging.info("Restoring parameters from %s", prefix)
    return [variable for variable, _, _ in plan.values]


class Checkpointer:
    """Writes the checkpoints of one run into a folder, and keeps the newest few.

    Made while the graph is open, because saving needs operations of its own.

    Args:
        folder: made if missing; leavings of writers that died are removed.
        keep: how many checkpoints stay.
    """

    def __init__(self, folder: str, keep: int = 5) -> None:
        os.makedirs(folder, exist_ok=True)
        self._folder = folder
        self._keep = keep
        self._saver = tf1.train.Saver(max_to_keep=None, save_relative_paths=True)
        named = [p for p in _named_in_state(folder) if is_complete(p)]
        self._kept = _forgotten(folder, named) + named
        _sweep(folder)

    def save(self, session: Any, global_step: int) -> str:
        """Write a checkpoint, flush it to disk, then name it in the state file.

        Returns:
            Its prefix.

        Raises:
            CheckpointError: it cannot be written (disk full, say); the former checkpoint stays the current one.
        """
        prefix = os.path.join(self._folder, f"{_BASENAME}-{global_step}")
        tf1.logging.info("Saving checkpoints for %d into %s", global_step, self._folder)
        try:
            self._saver.save(session, prefix, write_meta_graph=False, write_state=False)
            for path in (f"{prefix}.index", *glob.glob(f"{glob.escape(prefix)}.data-*-of-*")):
                fsync_path(path)
            fsync_directory(self._folder)
            self._kept = [p for p in self._kept if p != prefix] + [prefix]
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

        atomic_write(os.path.join(self._folder, _STATE), text_format.MessageToString(state))


def _remove(prefix: str) -> None:
    """Remove a checkpoint, index first: without an index nobody takes the rest for one."""
    for path in (f"{prefix}.index", f"{prefix}.meta", *glob.glob(f"{glob.escape(prefix)}.data-*-of-*")):
        with contextlib.suppress(FileNotFoundError):
            os.remove(path)


def _sweep(folder: str) -> None:
    """Remove what writers that died in the middle of a checkpoint left behind."""
    sweep(folder)
    for path in glob.glob(os.path.join(glob.escape(folder), f"{_BASENAME}-*")):
        if ".tempstate" in os.path.basename(path):
            with contextlib.suppress(FileNotFoundError):
                os.remove(path)
        elif os.path.isdir(path) and path.endswith("_temp"):
            shutil.rmtree(path, ignore_errors=True)
