"""What a path or URL is: found out from what lies there, not from what the caller says. Reads the first bytes at most.

version     a directory that a server would take: a SavedModel, or a model in another format, or both
graphdef    a `.pb` or `.pbtxt` file: frozen graph, SavedModel without its folder
metagraph   a checkpoint's `.meta` file
checkpoint  a checkpoint's prefix, or one of its files, or a folder of checkpoints
run         the directory of a pipeline's run
records     a TFRecord file: warmup records, a request log
npz, onnx, tflite, openvino     files of these formats
"""

from __future__ import annotations

import difflib
import os
import re
import struct
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Literal

from moxserve import file
from moxserve.errors import DataError, UsageError
from moxserve.export.manifest import MANIFEST_PATH, WARMUP_PATH
from moxserve.export.versions import parse_version
from moxserve.file.filesystem import is_remote, join, locate, text_of
from moxserve.inspect.protos import form_of
from moxserve.serving.backends.contents import GRAPH_FILES, holds_model

__all__ = ["MODELS", "Kind", "Subject", "detect", "is_there", "named", "need"]

Kind = Literal[
    "version", "graphdef", "metagraph", "checkpoint", "run", "records", "npz", "onnx", "tflite", "openvino"
]  # fmt: skip

# What has inputs and outputs.
MODELS: tuple[Kind, ...] = ("version", "graphdef", "metagraph", "onnx", "tflite", "openvino")

_WORDS: dict[str, str] = {
    "version": "a version directory",
    "graphdef": "a graph file",
    "metagraph": "a checkpoint's .meta file",
    "checkpoint": "a checkpoint",
    "run": "the directory of a run",
    "records": "a TFRecord file",
    "npz": "an npz file",
    "onnx": "an ONNX model",
    "tflite": "a TFLite model",
    "openvino": "an OpenVINO model",
}
_KNOWN = (
    "a version directory or a folder of them, a SavedModel, a GraphDef (.pb, .pbtxt), a checkpoint or a folder of "
    "them, the directory of a run, .onnx, .tflite, .xml, .npz, or a TFRecord of requests"
)
_SHARD = re.compile(r"(.+)\.(?:index|data-\d+-of-\d+)\Z")
# The last bytes of a file of sorted strings, which a checkpoint's index is, and TensorFlow 0.x's whole checkpoint.
_TABLE_END = struct.pack("<Q", 0xDB4775248B80FB57)


@dataclass(frozen=True)
class Subject:
    """What is to be inspected.

    Attributes:
        kind: what it is.
        path: a version directory, a file, a checkpoint's prefix or folder, a run's directory.
        given: what the user gave.
        notes: how one led to the other, where that is not plain.
    """

    kind: Kind
    path: str
    given: str
    notes: list[str] = field(default_factory=list)

    def __str__(self) -> str:
        return f"{self.path} is {_WORDS[self.kind]}"


def need(subject: Subject, kinds: tuple[Kind, ...], what: str) -> Subject:
    """Return the subject if it is of one of these kinds.

    Args:
        subject: what was found.
        kinds: what will do.
        what: what is asked of it, such as `variables`.

    Raises:
        UsageError: it is of another kind.
    """
    if subject.kind not in kinds:
        wanted = ", ".join(_WORDS[kind] for kind in kinds)
        raise UsageError(
            f"{subject}, which has no {what}; expected {wanted}", hint=f"moxserve inspect show {subject.given}"
        )
    return subject


def detect(path: str | os.PathLike[str]) -> Subject:
    """Find out what is at a path, or at a URL of a store.

    Raises:
        UsageError: there is nothing, or nothing that can be inspected; says what there is.
        DataError: a file begins as one thing and is none of it.
    """
    return named(path) or _by_content(text_of(path))


def named(path: str | os.PathLike[str]) -> Subject | None:
    """Find out what is at a path as far as names tell it; None for a file that has to be looked into.

    Raises:
        UsageError: there is nothing, or a directory that cannot be inspected; says what it holds.
    """
    given = text_of(path)
    if is_there(given):
        return _by_name(given)
    if file.is_directory(given):
        return _directory(given)
    if is_there(f"{given}.index"):
        return Subject("checkpoint", given, given)
    raise UsageError(f"{given!r}: no such file, directory or checkpoint{_near(given)}")


def is_there(path: str) -> bool:
    """Tell whether there is a file, here or in a store."""
    fs, path = locate(path)
    return fs.is_file(path)


def _near(given: str) -> str:
    """Suggest a name that is like the one that was given."""
    folder, _, name = (given if is_remote(given) else os.path.abspath(given)).rstrip("/").rpartition("/")
    is_bucket = folder.endswith(":/")  # above it there are no names
    known = file.list_directory(folder or "/") if not is_bucket and file.is_directory(folder or "/") else []
    near = difflib.get_close_matches(name, known, n=1)
    return f"; did you mean {os.path.join(os.path.dirname(given.rstrip('/')), near[0])!r}?" if near else ""


def _directory(path: str) -> Subject:
    names = file.list_directory(path, remove_sep=False)
    if holds_model(path):
        return Subject("version", path, path)
    from moxserve.pipeline.prepared import RESOLVED  # with all of the configuration: only where it is needed

    if RESOLVED in names:
        return Subject("run", path, path)
    # By name, not by number: `00000123` is a version, too.
    numbers = {name: parse_version(name[:-1]) for name in names if name.endswith("/")}
    folders = sorted((number, join(path, name[:-1])) for name, number in numbers.items() if number is not None)
    versions = {number: folder for number, folder in folders if holds_model(folder)}
    if versions:
        newest = max(versions)
        told = ", ".join(map(str, list(versions)[-5:]))
        more = f"the newest of {len(versions)}: " + ("… " if len(versions) > 5 else "") + told
        note = f"version {newest}, {more if len(versions) > 1 else 'the only one'}"
        return Subject("version", versions[newest], path, [note])
    if any(name.endswith(".index") for name in names):
        return Subject("checkpoint", path, path)
    names = [name.rstrip("/") for name in names]
    held = f"it holds {', '.join(names[:6])}{' …' if len(names) > 6 else ''}" if names else "it is empty"
    raise UsageError(f"{path!r} is no directory that can be inspected: {held}; expected {_KNOWN}")


def _by_name(path: str) -> Subject | None:
    name = os.path.basename(path)
    shard = _SHARD.match(path)
    if shard:
        return Subject("checkpoint", shard.group(1), path)
    folder = os.path.dirname(path) or "."
    if name == "checkpoint":
        return Subject("checkpoint", folder, path)
    whole = path if is_remote(path) else os.path.abspath(path)
    if whole.endswith(os.sep + MANIFEST_PATH):
        return Subject("version", os.path.dirname(os.path.dirname(whole)), path)
    if name in GRAPH_FILES and name == next(n for n in GRAPH_FILES if n == name or is_there(join(folder, n))):
        return Subject("version", folder, path)
    return None


def _by_content(path: str) -> Subject:
    size = file.get_size(path)
    if not size:
        raise UsageError(f"{path!r} is empty; expected {_KNOWN}")
    with file.File(path, "rb") as f:
        head = f.read(4096)
        f.seek(max(0, size - 8))
        tail = f.read(8)
    for kind, fits in _FILE_KINDS.items():
        if fits(path, head, tail):
            return Subject(kind, path, path)
    return _graph_file(path)


def _graph_file(path: str) -> Subject:
    """Tell a GraphDef from a MetaGraphDef, which takes all of it."""
    try:
        form = form_of(file.read(path, binary=True), path)
    except DataError:
        if path.endswith((".pb", ".pbtxt", ".meta")):
            raise
        raise UsageError(f"{path!r} is no file that can be inspected; expected {_KNOWN}") from None
    return Subject("metagraph" if form == "MetaGraphDef" else "graphdef", path, path)


def _is_records(path: str, head: bytes, _tail: bytes) -> bool:
    from moxserve.protocol.tfrecord import header_fits

    return path.endswith((".tfrecord", ".tfrecords")) or path.endswith(WARMUP_PATH) or header_fits(head)


_FILE_KINDS: dict[Kind, Callable[[str, bytes, bytes], bool]] = {
    "npz": lambda path, head, _: path.endswith(".npz") or (head[:2] == b"PK" and not path.endswith(".keras")),
    "tflite": lambda path, head, _: head[4:8] == b"TFL3" or path.endswith(".tflite"),
    "onnx": lambda path, *_: path.endswith(".onnx"),
    "openvino": lambda path, head, _: path.endswith(".xml") or head.lstrip().startswith((b"<?xml", b"<net")),
    "checkpoint": lambda _path, _head, tail: tail == _TABLE_END,
    "records": _is_records,
}
