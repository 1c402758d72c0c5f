"""A graph as TensorBoard shows it: one event file. No TensorFlow; the messages are TensorBoard's own."""

from __future__ import annotations

import os
import socket
import time
from collections.abc import Collection
from typing import Any

from moxserve import file
from moxserve.errors import MissingExtraError
from moxserve.inspect.detect import Subject
from moxserve.inspect.operations import graph_file_of
from moxserve.inspect.protos import read_graph_file, tensors_in
from moxserve.protocol.tfrecord import write_records

__all__ = ["write_graph"]

_LARGE_BYTES = 1024


def write_graph(subject: Subject, out: str, tags: Collection[str] = ()) -> tuple[str, int]:
    """Write the graph of a subject for TensorBoard.

    The values of large constants are left out: TensorBoard shows none of them, and a frozen graph is as large as its
    weights.

    Args:
        subject: a version, a graph file or a checkpoint's `.meta`.
        out: folder; made if missing.
        tags: of the MetaGraph.

    Returns:
        Path of the event file, and how many constants are without their values.

    Raises:
        UsageError: the subject has no TensorFlow graph.
        DataError: it is damaged.
        MissingExtraError: TensorBoard is not installed.
    """
    try:
        from tensorboard.compat.proto.event_pb2 import Event
    except ImportError:
        raise MissingExtraError("tensorboard", "tensorflow", "writing a graph for TensorBoard") from None
    graph_def = read_graph_file(graph_file_of(subject)).graph_def(tags)
    emptied = sum(_empty(tensor) for tensor in tensors_in(graph_def))
    now = time.time()
    first = Event(wall_time=now, file_version="brain.Event:2")
    second = Event(wall_time=now, graph_def=graph_def.SerializeToString())
    file.make_dirs(out)
    path = os.path.join(out, f"events.out.tfevents.{int(now)}.{socket.gethostname()}.graph")
    write_records(path, [first.SerializeToString(), second.SerializeToString()])
    return path, emptied


def _empty(tensor: Any) -> bool:
    if tensor.ByteSize() <= _LARGE_BYTES:
        return False
    for field, _ in tensor.ListFields():
        if field.name not in ("dtype", "tensor_shape", "version_number"):
            tensor.ClearField(field.name)
    return True
