"""The process that TensorFlow's graph tools run in, so that a crash of theirs takes nothing else down.

Run as a file, not as a module: the Graph Transform Tool alone needs a quarter of a second to load, the package
TensorFlow several. Requests and answers are sequences of byte strings, each after its length in eight bytes:

    request   "transform", graph, inputs, outputs, transform        names with commas between
              "grappler", graph, kept nodes, passes
    answer    "ok", graph    or    "error", message

Arguments: path of the binding, then custom operation libraries.
"""

from __future__ import annotations

import contextlib
import ctypes
import importlib.machinery
import importlib.util
import os
import signal
import struct
import sys
from typing import IO, Any

LENGTH = struct.Struct("<Q")
COUNTS = {b"transform": 4, b"grappler": 3}


def main() -> None:
    """Answer requests until the standard input ends."""
    _die_with_parent()
    answers = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # nothing else may write between the answers
    requests = sys.stdin.buffer
    while (kind := receive(requests)) is not None:
        arguments = [receive(requests) or b"" for _ in range(COUNTS[kind])]
        try:
            answer = (b"ok", _transform(*arguments) if kind == b"transform" else _grappler(*arguments))
        except Exception as error:  # noqa: BLE001 - whatever it is goes to the process that asked
            answer = (b"error", (str(error) or type(error).__name__).encode("utf-8", "replace"))
        send(answers, *answer)


def send(pipe: IO[bytes], *parts: bytes) -> None:
    """Write byte strings with their lengths."""
    for part in parts:
        pipe.write(LENGTH.pack(len(part)))
        pipe.write(part)
    pipe.flush()


def receive(pipe: IO[bytes]) -> bytes | None:
    """Read one byte string; None at the end."""
    head = pipe.read(LENGTH.size)
    if len(head) < LENGTH.size:
        return None
    (length,) = LENGTH.unpack(head)
    body = pipe.read(length)
    return body if len(body) == length else None


def _transform(graph: bytes, inputs: bytes, outputs: bytes, transform: bytes) -> bytes:
    run = _binding().TransformGraphWithStringInputs
    result: bytes = run(graph, inputs.decode(), outputs.decode(), transform.decode())
    return result


def _binding() -> Any:
    name, path = "_pywrap_transform_graph", sys.argv[1]
    if name not in sys.modules:
        loader = importlib.machinery.ExtensionFileLoader(name, path)
        spec = importlib.machinery.ModuleSpec(name, loader, origin=path)
        module = importlib.util.module_from_spec(spec)
        loader.exec_module(module)
        sys.modules[name] = module
        for library in sys.argv[2:]:
            ctypes.CDLL(library, ctypes.RTLD_GLOBAL)
    return sys.modules[name]


def _grappler(graph: bytes, kept: bytes, passes: bytes) -> bytes:
    import tensorflow as tf
    from tensorflow.core.protobuf import rewriter_config_pb2
    from tensorflow.python.grappler import tf_optimizer

    tf1 = tf.compat.v1
    for library in sys.argv[2:]:
        tf.load_op_library(library)
    with tf.Graph().as_default() as made:
        tf1.import_graph_def(tf1.GraphDef.FromString(graph), name="")
        meta = tf1.train.export_meta_graph(graph=made)
    meta.collection_def["train_op"].node_list.value.extend(kept.decode().split(","))
    config = tf1.ConfigProto()
    options = config.graph_options.rewrite_options
    options.min_graph_nodes = -1
    options.fail_on_optimizer_errors = True
    options.meta_optimizer_iterations = rewriter_config_pb2.RewriterConfig.TWO
    options.optimizers.extend(passes.decode().split(","))
    result: bytes = tf_optimizer.OptimizeGraph(config, meta).SerializeToString()
    return result


def _die_with_parent() -> None:
    """Ask Linux to end this process when its parent is killed; elsewhere the end of the input does, later."""
    set_parent_death_signal = 1  # PR_SET_PDEATHSIG of <sys/prctl.h>
    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL(None).prctl(set_parent_death_signal, signal.SIGKILL)


if __name__ == "__main__":
    main()
