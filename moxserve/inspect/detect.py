"""What a path is: found out from what lies there, not from what the caller says. Reads the first bytes at most.

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
import glob
import os
import re
import struct
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Literal

from moxserve import file
from moxserve.errors import DataError, UsageError
from moxserve.export.manifest import MANIFEST_PATH, WARMUP_PATH
from moxserve.export.publish import list_versions
from moxserve.file.filesystem import is_remote
from moxserve.inspect.protos import form_of
from moxserve.serving.backends.contents import GRAPH_FILES, holds_model

__all__ = ["MODELS", "Kind", "Subject", "detect", "need"]

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
    """Find out what a path is.

    Raises:
        UsageError: there is nothing, or nothing that can be inspected; says what there is.
        DataError: a file begins as one thing and is none of it.
    """
    given = os.fspath(path)
    if is_remote(given):
        name = os.path.basename(given.rstrip("/"))
        raise UsageError(
            f"{given!r} is in a store; what is inspected must be on this machine",
            hint=f"copy it here first: mox.file.copy_parallel({given!r}, {name!r}), or copy for a file",
        )
    if file.is_directory(given):
        return _directory(given)
    if os.path.isfile(given):
        return _file(given)
    if glob.glob(f"{glob.escape(given)}.index"):
        return Subject("checkpoint", given, given)
    folder, name = os.path.split(os.path.abspath(given))
    near = difflib.get_close_matches(name, os.listdir(folder), n=1) if os.path.isdir(folder) else []
    more = f"; did you mean {os.path.join(os.path.dirname(given), near[0])!r}?" if near else ""
    raise UsageError(f"{given!r}: no such file, directory or checkpoint{more}")


def _directory(path: str) -> Subject:
    if holds_model(path):
        return Subject("version", path, path)
    from moxserve.pipeline.runner import RESOLVED  # with all of the configuration: only where it is needed

    if os.path.isfile(os.path.join(path, RESOLVED)):
        return Subject("run", path, path)
    versions = [v for v in list_versions(path) if _version_folder(path, v)]
    if versions:
        told = ", ".join(str(v) for v in versions[-5:])
        more = f"the newest of {len(versions)}: " + ("… " if len(versions) > 5 else "") + told
        note = f"version {versions[-1]}, {more if len(versions) > 1 else 'the only one'}"
        return Subject("version", _version_folder(path, versions[-1]), path, [note])
    if glob.glob(os.path.join(glob.escape(path), "*.index")):
        return Subject("checkpoint", path, path)
    names = sorted(os.listdir(path))
    held = f"it holds {', '.join(names[:6])}{' …' if len(names) > 6 else ''}" if names else "it is empty"
    raise UsageError(f"{path!r} is no directory that can be inspected: {held}; expected {_KNOWN}")


def _version_folder(base: str, version: int) -> str:
    """Return the folder of a version, which may have zeros in front (`00000123`); empty when it holds no model."""
    for name in file.list_directory(base, skip_file=True):
        if name.lstrip("+0") == str(version) or name == str(version) or (version == 0 and not name.strip("+0")):
            folder = os.path.join(base, name)
            if holds_model(folder):
                return folder
    return ""


def _file(path: str) -> Subject:
    name = os.path.basename(path)
    shard = _SHARD.match(path)
    if shard:
        return Subject("checkpoint", shard.group(1), path)
    folder = os.path.dirname(path) or "."
    if name == "checkpoint":
        return Subject("checkpoint", folder, path)
    if os.path.abspath(path).endswith(os.sep + MANIFEST_PATH):
        return Subject("version", os.path.dirname(os.path.dirname(os.path.abspath(path))), path)
    if name == next((n for n in GRAPH_FILES if os.path.isfile(os.path.join(folder, n))), ""):
        return Subject("version", folder, path)
    size = os.path.getsize(path)
    if not size:
        raise UsageError(f"{path!r} is empty; expected {_KNOWN}")
    with open(path, "rb") as f:
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
