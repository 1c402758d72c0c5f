"""Where values of variables lie: checkpoints, SavedModels, frozen graphs, npz files. Each is a `Store`.

Names are those that people gave the variables. A checkpoint of TensorFlow 2 files values under paths through objects,
such as `layer/kernel/.ATTRIBUTES/VARIABLE_VALUE`, and keeps a map to the names; without a name the path is taken.
"""

from __future__ import annotations

import contextlib
import glob
import math
import os
import re
import struct
import zipfile
import zlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from functools import cached_property
from typing import Any, Protocol

import numpy as np

from moxserve.errors import CheckpointError, DataError, InvalidArgument, MissingExtraError, UsageError, first_line
from moxserve.inspect.detect import Kind, Subject, is_there, need
from moxserve.inspect.graphs import dtype_name, shape_of
from moxserve.inspect.protos import read_graph_file
from moxserve.protocol import messages
from moxserve.protocol.tensors import from_proto
from moxserve.serving.backends.contents import GRAPH_FILES
from moxserve.types import DTYPES, dtype_of

__all__ = [
    "VALUES",
    "CheckpointStore",
    "Entry",
    "Statistics",
    "Store",
    "checkpoint_prefix",
    "graph_path",
    "needs_tensorflow",
    "newest_note",
    "open_store",
    "picked",
    "statistics",
]

VALUES: tuple[Kind, ...] = ("version", "checkpoint", "run", "npz", "graphdef")
_OBJECT_GRAPH = "_CHECKPOINTABLE_OBJECT_GRAPH"
_ITEM_BYTES = {dtype.name: 0 if dtype.name == "string" else dtype.numpy.itemsize for dtype in DTYPES}


@dataclass(frozen=True, slots=True)
class Entry:
    """One variable.

    Attributes:
        name: as people know it.
        key: as it is stored under.
        dtype: TensorFlow's name.
        shape: of the whole, for a partitioned variable too.
    """

    name: str
    key: str
    dtype: str
    shape: tuple[int, ...]

    @property
    def parameters(self) -> int:
        """How many elements it has."""
        return math.prod(self.shape)

    @property
    def size_bytes(self) -> int:
        """What they take; 0 for strings."""
        return self.parameters * _ITEM_BYTES.get(self.dtype, 0)


class Store(Protocol):
    """Values by name."""

    path: str

    @property
    def entries(self) -> Sequence[Entry]:
        """All variables, by name."""
        ...

    def read(self, entry: Entry) -> np.ndarray:
        """Return a value.

        Raises:
            DataError: the file is damaged.
        """
        ...


def picked(entries: Sequence[Entry], patterns: Sequence[str]) -> list[Entry]:
    """Return the entries whose name or key fits one of some shell patterns; all of them without patterns.

    Raises:
        UsageError: a pattern without wildcards is the name of nothing; says what is near.
    """
    from moxserve.errors import did_you_mean

    if not patterns:
        return list(entries)
    known = {name for e in entries for name in (e.name, e.key)}
    for pattern in patterns:
        if not re.search(r"[*?\[]", pattern) and pattern not in known:
            near = did_you_mean(pattern, (e.name for e in entries))
            raise UsageError(f"no variable is called {pattern!r}; {near}")
    return [e for e in entries if any(fnmatchcase(n, p) for n in (e.name, e.key) for p in patterns)]


def open_store(subject: Subject) -> Store:
    """Open what holds the values of a subject.

    Raises:
        UsageError: it holds none.
        CheckpointError: there is no complete checkpoint.
        DataError: it is damaged.
    """
    need(subject, VALUES, "variables")
    if subject.kind == "npz":
        return NpzStore(subject.path)
    if subject.kind == "graphdef":
        return ConstantStore(subject.path)
    return CheckpointStore(checkpoint_prefix(subject))


def needs_tensorflow(subject: Subject) -> bool:
    """Tell whether TensorFlow reads the values of a subject, without importing it."""
    if subject.kind == "version":
        return is_there(os.path.join(subject.path, "variables", "variables.index"))
    return subject.kind in ("checkpoint", "run", "metagraph")


def graph_path(version_dir: str) -> str:
    """Return the graph file of a SavedModel.

    Raises:
        UsageError: the version holds no SavedModel.
    """
    for name in GRAPH_FILES:
        if os.path.isfile(path := os.path.join(version_dir, name)):
            return path
    raise UsageError(f"{version_dir} holds no SavedModel (saved_model.pb), only models in other formats")


def checkpoint_prefix(subject: Subject) -> str:
    """Return the prefix of the checkpoint that a subject is, or holds: of a folder the newest.

    Raises:
        UsageError: a version without a SavedModel, or with one that has no variables.
        CheckpointError: there is no complete checkpoint.
    """
    if subject.kind == "version":
        graph_path(subject.path)
        prefix = os.path.join(subject.path, "variables", "variables")
        if not os.path.isfile(f"{prefix}.index"):
            raise UsageError(f"{subject.path}: this SavedModel has no variables; it is frozen, or keeps constants only")
        return prefix
    need(subject, ("checkpoint", "run", "metagraph"), "checkpoint")
    if os.path.isdir(subject.path):
        from moxserve.tensorflow.executor.checkpoint import latest_checkpoint

        found = latest_checkpoint(subject.path)
        if found is None:
            raise CheckpointError(f"{subject.path} holds no complete checkpoint (PREFIX.index and all PREFIX.data-*)")
        subject.notes.append(newest_note(found))
        return found
    return subject.path.removesuffix(".meta")


def newest_note(prefix: str) -> str:
    """Say which checkpoint of a folder was taken."""
    return f"{os.path.basename(prefix)}, the newest checkpoint there"


class CheckpointStore:
    """A checkpoint, of TensorFlow 1 or 2. Needs TensorFlow.

    Args:
        prefix: path without `.index`.

    Attributes:
        path: the prefix.

    Raises:
        CheckpointError: it cannot be read.
        MissingExtraError: TensorFlow is not installed.
    """

    def __init__(self, prefix: str) -> None:
        try:
            from tensorflow.python.training import py_checkpoint_reader
        except ImportError:
            raise MissingExtraError("tensorflow", "tensorflow", "reading the values of a checkpoint") from None
        self.path = prefix
        try:
            self._reader = py_checkpoint_reader.NewCheckpointReader(prefix)
        except Exception as error:
            raise _unreadable(prefix, error) from error

    @property
    def shards(self) -> list[str]:
        """Paths of the data files."""
        return sorted(glob.glob(f"{glob.escape(self.path)}.data-*-of-*"))

    @cached_property
    def entries(self) -> Sequence[Entry]:
        """All variables, by name, without what TensorFlow keeps for itself."""
        return [e for e in self.raw if e.key != _OBJECT_GRAPH]

    @cached_property
    def raw(self) -> Sequence[Entry]:
        """Everything that is stored, by name."""
        shapes: Mapping[str, list[int]] = self._reader.get_variable_to_shape_map()
        dtypes: Mapping[str, Any] = self._reader.get_variable_to_dtype_map()
        names = self._names()
        found = [
            Entry(names.get(key, key), key, dtype_name(dtypes[key].as_datatype_enum), tuple(shape))
            for key, shape in shapes.items()
        ]
        return sorted(found, key=lambda entry: (entry.name, entry.key))

    def _names(self) -> dict[str, str]:
        """Return the names of what a checkpoint of TensorFlow 2 holds, by key; a name that two have is none."""
        if not self._reader.has_tensor(_OBJECT_GRAPH):
            return {}
        graph = messages.TrackableObjectGraph.FromString(self._get(_OBJECT_GRAPH).item())
        found = {a.checkpoint_key: a.full_name for node in graph.nodes for a in node.attributes if a.full_name}
        used = list(found.values())
        return {key: name for key, name in found.items() if used.count(name) == 1}

    def read(self, entry: Entry) -> np.ndarray:
        """Return a value, of a partitioned variable the whole."""
        return self._get(entry.key)

    def _get(self, key: str) -> np.ndarray:
        try:
            value = self._reader.get_tensor(key)
        except Exception as error:
            raise _unreadable(self.path, error, f"the value of {key!r}") from error
        return np.array(value, dtype=object) if isinstance(value, bytes) else np.asarray(value)

    def problems(self) -> list[str]:
        """Return what can be told to be wrong without reading any value."""
        if not glob.glob(f"{glob.escape(self.path)}.index"):
            return []  # TensorFlow 0.x: one file, read through by now
        if not self.shards:
            return [f"there is no {os.path.basename(self.path)}.data-*: the values are missing"]
        held = sum(os.path.getsize(path) for path in self.shards)
        needed = sum(entry.size_bytes for entry in self.raw)
        if held < needed:
            return [f"the data files hold {held} bytes; the index tells of {needed}: they are cut off"]
        return []


def _unreadable(prefix: str, error: Exception, what: str = "") -> CheckpointError:
    shards = glob.glob(f"{glob.escape(prefix)}.*")
    beside = ", ".join(sorted(os.path.basename(s) for s in shards)) or "nothing"
    place = f"{prefix}{': ' + what if what else ''}"
    return CheckpointError(
        f"checkpoint {place} cannot be read: {first_line(error)}",
        hint=f"a checkpoint is PREFIX.index and all of PREFIX.data-*; there is {beside}",
    )


class ConstantStore:
    """The constants of a frozen graph, which were its variables.

    Args:
        path: a GraphDef, or a SavedModel's file.
    """

    def __init__(self, path: str) -> None:
        self.path = path
        nodes = read_graph_file(path).graph_def().node
        self._tensors = {node.name: node.attr["value"].tensor for node in nodes if node.op == "Const"}

    @cached_property
    def entries(self) -> Sequence[Entry]:
        """All constants, by name."""
        return [
            Entry(name, name, dtype_name(tensor.dtype), tuple(d or 0 for d in shape_of(tensor.tensor_shape) or ()))
            for name, tensor in sorted(self._tensors.items())
        ]

    def read(self, entry: Entry) -> np.ndarray:
        """Return a constant's value."""
        try:
            return from_proto(self._tensors[entry.key])
        except InvalidArgument as error:
            raise DataError(f"{self.path}: constant {entry.name!r}: {error.message}") from None


class NpzStore:
    """An npz file: one array a variable.

    Args:
        path: of the file.

    Raises:
        DataError: it is no npz file, or damaged.
    """

    def __init__(self, path: str) -> None:
        self.path = path
        try:
            with zipfile.ZipFile(path) as archive:
                self.entries: Sequence[Entry] = sorted(self._look(archive), key=lambda entry: entry.name)
        except (zipfile.BadZipFile, OSError, ValueError, EOFError, struct.error, zlib.error) as error:
            raise DataError(f"{path} is no npz file, or damaged: {error}") from None

    def _look(self, archive: zipfile.ZipFile) -> Iterator[Entry]:
        for member in archive.namelist():
            if not member.endswith(".npy"):
                raise DataError(f"{self.path}: {member!r} is no array; expected a file that numpy.savez wrote")
            with archive.open(member) as f:
                version = np.lib.format.read_magic(f)
                read = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
                shape, _, dtype = read(f)
            if dtype.hasobject:
                raise DataError(
                    f"{self.path}: {member!r} holds Python objects, which are not read: they can run code",
                    hint="save text as an array of bytes (dtype S)",
                )
            key = member.removesuffix(".npy")
            yield Entry(key.removesuffix(":0"), key, _npz_dtype(dtype), tuple(shape))

    def read(self, entry: Entry) -> np.ndarray:
        """Return an array."""
        try:
            with np.load(self.path, allow_pickle=False) as arrays:
                value: np.ndarray = arrays[entry.key]
        except (zipfile.BadZipFile, OSError, ValueError, EOFError, zlib.error) as error:
            raise DataError(f"{self.path}: {entry.key!r} cannot be read: {error}") from None
        return value.view(_BFLOAT16) if value.dtype == np.dtype("V2") else value


def _npz_dtype(dtype: np.dtype[Any]) -> str:
    if dtype == np.dtype("V2"):
        return "bfloat16"  # NumPy has no such type of its own and writes its bytes
    with contextlib.suppress(InvalidArgument):
        return dtype_of(np.empty(0, dtype)).name
    return str(dtype)


_BFLOAT16 = next(dtype.numpy for dtype in DTYPES if dtype.name == "bfloat16")


@dataclass(frozen=True, slots=True)
class Statistics:
    """What the values of a variable are like, computed in float64; NaNs and infinities are counted and left out.

    Attributes:
        minimum: None when no finite value is left, and for text.
        maximum: the same.
        mean: the same.
        std: of the whole, not of a sample.
        zeros: share of the elements that are exactly 0, between 0 and 1.
        not_finite: how many are NaN or infinite.
    """

    minimum: float | None
    maximum: float | None
    mean: float | None
    std: float | None
    zeros: float
    not_finite: int


def statistics(value: np.ndarray) -> Statistics:
    """Tell what a variable's values are like; of complex ones, their absolute values."""
    if value.dtype.kind in "OSU" or not value.size:
        return Statistics(None, None, None, None, 0.0, 0)
    if value.dtype.kind == "c":
        value = np.abs(value)
    zeros = float(np.mean(value == 0))
    wide = value.astype(np.float64)
    finite = wide[np.isfinite(wide)]
    lost = int(wide.size - finite.size)
    if not finite.size:
        return Statistics(None, None, None, None, zeros, lost)
    with np.errstate(over="ignore"):  # float64's own largest values have no finite spread
        return Statistics(
            float(finite.min()), float(finite.max()), float(finite.mean()), float(finite.std()), zeros, lost
        )
