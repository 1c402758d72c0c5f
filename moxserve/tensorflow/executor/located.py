"""Checkpoints found and opened: TensorFlow's of today, and the single files that it wrote before 2017.

A checkpoint of today (V2) is `PREFIX.index` and `PREFIX.data-*-of-*`. One of before (V1) is the file `PREFIX` itself;
most of the checkpoints that TF-Slim published are such.
"""

from __future__ import annotations

import glob
import os
import re
import tarfile
from collections.abc import Sequence
from typing import Any

from moxserve.errors import CheckpointError, UsageError, first_line
from moxserve.tensorflow.executor.env import tf, tf1

__all__ = [
    "find_checkpoint",
    "is_complete",
    "is_single_file",
    "latest_checkpoint",
    "local_path",
    "named_in_state",
    "open_checkpoint",
    "step_in_name",
    "without_part",
]

_INDEX = re.compile(r"(.+)\.index\Z")
_STEP = re.compile(r"-(\d+)\Z")
_PART = re.compile(r"\.(index|meta|data-\d+-of-\d+)\Z")
# What TensorFlow writes and then renames: an index in it is a whole table already.
_UNFINISHED = re.compile(r"\.tempstate\d*\Z")
# The end of every table file of TensorFlow, which V1 checkpoints are, and the index of V2 ones.
_TABLE_MAGIC = bytes.fromhex("57fb808b247547db")
_OBJECT_GRAPH = "_CHECKPOINTABLE_OBJECT_GRAPH"
_HDF5_MAGIC = b"\x89HDF\r\n\x1a\n"


def local_path(path: Any, argument: str) -> str:
    """Check that a path is one of this machine's file system.

    Raises:
        UsageError: it has a scheme, such as `s3://`.
    """
    text = os.fspath(path)
    if "://" in text:
        raise UsageError(
            f"{argument}={text!r}: expected a path of this machine",
            hint="run() takes s3:// and obs:// for checkpoints; elsewhere copy them with mox.file first",
        )
    return str(text)


def without_part(path: str) -> str:
    """The prefix of a checkpoint, of whose files one is named."""
    return _PART.sub("", path)


def is_complete(prefix: str) -> bool:
    """Whether all files of a V2 checkpoint are there: its index, and every shard that a shard's name announces."""
    if not os.path.isfile(f"{prefix}.index"):
        return False
    shards = glob.glob(f"{glob.escape(prefix)}.data-*-of-*")
    announced = {int(m.group(1)) for s in shards if (m := re.search(r"-of-(\d+)\Z", s))}
    return len(announced) == 1 and len([s for s in shards if re.search(r"\.data-\d+-of-\d+\Z", s)]) == announced.pop()


def is_single_file(path: str) -> bool:
    """Whether a path is a V1 checkpoint: one file that is a table."""
    if _PART.search(path) or _UNFINISHED.search(path) or not os.path.isfile(path):
        return False
    try:
        with open(path, "rb") as f:
            f.seek(-min(os.path.getsize(path), len(_TABLE_MAGIC)), os.SEEK_END)
            return f.read() == _TABLE_MAGIC
    except FileNotFoundError:  # whoever trains there has removed it just now
        return False


def step_in_name(prefix: str) -> int:
    """The step that a checkpoint's name ends with, -1 when it has none."""
    match = _STEP.search(prefix)
    return int(match.group(1)) if match else -1


def latest_checkpoint(path: str | os.PathLike[str] | None) -> str | None:
    """Find the newest complete checkpoint.

    Args:
        path: a folder; or a prefix such as `runs/digits/model.ckpt-1000`, with or without `.index`, `.meta` or
            `.data-00000-of-00001`; or a single file, such as TF-Slim's `resnet_v1_50.ckpt`.

    Returns:
        The prefix, or None when there is no complete checkpoint. In a folder the one that the file `checkpoint` names;
        if that one is not complete, the newest complete one; without any, the one single file that is a checkpoint.
    """
    if path is None:
        return None
    text = local_path(path, "checkpoint_path")
    if os.path.isdir(text):
        return _latest_in(text)
    prefix = without_part(text)
    return prefix if is_complete(prefix) or is_single_file(prefix) else None


def find_checkpoint(path: str | os.PathLike[str] | None) -> str | None:
    """Find the checkpoint at a path that somebody gave: as `latest_checkpoint`, also the variables of a SavedModel;
    what is there and is none is told.

    Raises:
        CheckpointError: a file that is no checkpoint, such as a downloaded archive, a folder of several single files,
            or a SavedModel without variables; the message tells what it is and what to do.
    """
    found = latest_checkpoint(path)
    if found is not None or path is None:
        return found
    text = os.fspath(path)
    if os.path.isdir(text) and (model := _saved_model(text)) is not None:
        return _variables_of(model)
    if os.path.isfile(text):
        raise _not_a_checkpoint(text)
    several = _single_files(text) if os.path.isdir(text) else []
    if several:
        names = ", ".join(os.path.basename(f) for f in several[:8])
        raise CheckpointError(f"folder {text!r} holds {len(several)} checkpoints: {names}", hint="name one of them")
    return None


def _saved_model(folder: str) -> str | None:
    """The SavedModel that a folder is, or the newest of the versions in it."""
    if os.path.isfile(os.path.join(folder, "saved_model.pb")):
        return folder
    versions = sorted((int(name) for name in os.listdir(folder) if name.isdecimal()), reverse=True)
    models = (os.path.join(folder, str(version)) for version in versions)
    return next((model for model in models if os.path.isfile(os.path.join(model, "saved_model.pb"))), None)


def _variables_of(model: str) -> str:
    prefix = os.path.join(model, "variables", "variables")
    if is_complete(prefix):
        return prefix
    raise CheckpointError(
        f"the SavedModel {model!r} has no variables: its weights are constants of the graph",
        hint="give the checkpoint that it was exported from, or export it without freezing",
    )


def _latest_in(folder: str) -> str | None:
    named = named_in_state(folder)
    if named and (is_complete(named[-1]) or is_single_file(named[-1])):
        return named[-1]
    candidates = {
        *named,
        *(m.group(1) for f in glob.glob(os.path.join(glob.escape(folder), "*.index")) if (m := _INDEX.match(f))),
    }
    complete = sorted((c for c in candidates if is_complete(c)), key=lambda c: (step_in_name(c), c))
    if named and complete:
        tf1.logging.warning("checkpoint %s is named in %s, but not complete: using %s", named[-1], folder, complete[-1])
    if complete:
        return complete[-1]
    files = _single_files(folder)
    return files[0] if len(files) == 1 else None


def _single_files(folder: str) -> list[str]:
    return sorted(f for f in glob.glob(os.path.join(glob.escape(folder), "*.ckpt*")) if is_single_file(f))


def named_in_state(folder: str) -> list[str]:
    """The checkpoints that the state file names, oldest first, the current one last."""
    try:
        state = tf1.train.get_checkpoint_state(folder)
    except (tf.errors.OpError, ValueError, OSError):
        return []
    if state is None:
        return []
    named = [p for p in state.all_model_checkpoint_paths if p != state.model_checkpoint_path]
    named.append(state.model_checkpoint_path)
    # A folder that was moved, or copied: the name counts, not where it was.
    here = [os.path.join(folder, os.path.basename(p)) for p in named]
    return [p if is_complete(p) and not is_complete(own) else own for p, own in zip(named, here, strict=True)]


def open_checkpoint(prefix: str) -> Any:
    """Open a checkpoint of any kind: TensorFlow's CheckpointReader, or what answers as it does.

    Raises:
        CheckpointError: it cannot be read.
    """
    try:
        reader = tf1.train.NewCheckpointReader(prefix)
        return _NamedReader(reader) if reader.has_tensor(_OBJECT_GRAPH) else reader
    except (tf.errors.OpError, ValueError) as error:
        raise CheckpointError(
            f"checkpoint {prefix!r} cannot be read: {first_line(error)}",
            hint="is it complete? it needs PREFIX.index and PREFIX.data-*",
        ) from error


class _NamedReader:
    """The variables of an object-based checkpoint (`tf.train.Checkpoint`, SavedModels of TensorFlow 2) by their names.

    Such checkpoints keep them by their places among the objects, and the names beside. A name that several have is left
    out: those keep their places for names.
    """

    def __init__(self, reader: Any) -> None:
        from tensorflow.core.protobuf.trackable_object_graph_pb2 import TrackableObjectGraph

        self._reader = reader
        graph = TrackableObjectGraph.FromString(reader.get_tensor(_OBJECT_GRAPH))
        shapes = reader.get_variable_to_shape_map()
        keys: dict[str, set[str]] = {}
        for attribute in (attribute for node in graph.nodes for attribute in node.attributes):
            if attribute.full_name and attribute.checkpoint_key in shapes:
                keys.setdefault(attribute.full_name, set()).add(attribute.checkpoint_key)
        names = {key: name for name, (key, *more) in keys.items() if not more and name not in shapes}
        self._keys = {names.get(key, key): key for key in shapes if key != _OBJECT_GRAPH}

    def get_variable_to_shape_map(self) -> dict[str, Any]:
        """Shape by name."""
        shapes = self._reader.get_variable_to_shape_map()
        return {name: shapes[key] for name, key in self._keys.items()}

    def get_variable_to_dtype_map(self) -> dict[str, Any]:
        """Type by name."""
        dtypes = self._reader.get_variable_to_dtype_map()
        return {name: dtypes[key] for name, key in self._keys.items()}

    def has_tensor(self, name: str) -> bool:
        """Whether there is a variable of that name."""
        return name in self._keys

    def get_tensor(self, name: str) -> Any:
        """The value of a variable."""
        return self._reader.get_tensor(self._keys.get(name, name))


def _not_a_checkpoint(path: str) -> CheckpointError:
    """Tell what a file is that was given for a checkpoint."""
    with open(path, "rb") as f:
        start = f.read(len(_HDF5_MAGIC))
    if start == _HDF5_MAGIC or path.endswith((".keras", ".h5")):
        return CheckpointError(
            f"{path!r} is a file of Keras, no checkpoint of TensorFlow",
            hint="moxserve models convert NETWORK FILE --output PREFIX makes a checkpoint of a Keras application",
        )
    names = _archived(path)
    if names:
        member = _PART.sub("", next((n for n in names if _PART.search(n) or ".ckpt" in n), names[0]))
        folder = os.path.dirname(os.path.abspath(path))
        held = "one file" if len(names) == 1 else f"{len(names)} files"
        return CheckpointError(
            f"{path!r} is an archive of {held}, not the checkpoint in it",
            hint=f"unpack it: tar -xf {path} -C {folder}; then give {os.path.join(folder, member)}",
        )
    return CheckpointError(
        f"{path!r} is no checkpoint: neither a single file of before 2017, nor is {os.path.basename(path)}.index there",
        hint="a download that was cut off? a checkpoint is one file, or PREFIX.index with all of PREFIX.data-*",
    )


def _archived(path: str) -> Sequence[str]:
    """The names of the files in a tar archive; none where a file is no archive, or is cut off before the first."""
    names: list[str] = []
    try:
        with tarfile.open(path) as archive:
            names.extend(os.path.normpath(member.name) for member in archive if member.isfile())
    except (tarfile.TarError, OSError, EOFError):
        return names
    return names
