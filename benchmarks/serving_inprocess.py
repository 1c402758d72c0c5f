"""What a model costs without any server: one runtime in one process, driven over its stdin by `serving.py`.

    python benchmarks/serving_inprocess.py onnx MODEL_FILE INPUTS.npy

It prints `ready`, then answers each line of JSON (`{"seconds": 2, "threads": 1, "batch": 1}`) with a line of JSON:
CPU milliseconds an item of the whole process, items a second, and the median time of a call. `{"save": "FILE.npy"}`
writes what the model answers to every input instead.

Runtimes: `tensorflow` is a SavedModel in a session, called in the cheapest way (`_make_callable_from_options`): the
same graph executor that the C++ server runs, without its transport, so what that server could reach at most;
`tensorflow_bf16` the same with grappler's bfloat16 rewrite; `onnx` has a session with one thread for each caller, which
costs the least CPU for single images; `openvino` (`openvino_bf16`) has a stream for each core; `moxserve` is our
own backend, without a server around it.
"""

from __future__ import annotations

import json
import statistics
import sys
import threading
import time
from collections.abc import Callable
from typing import Any

import numpy as np

Call = Callable[[np.ndarray], Any]
THREADS = 2


def tensorflow(path: str, *, bf16: bool = False) -> Call:
    """Return the session callable of `serving_default`, as an array to an array."""
    import tensorflow as tf
    from tensorflow.core.protobuf import config_pb2

    config = tf.compat.v1.ConfigProto()
    if bf16:
        config.graph_options.rewrite_options.auto_mixed_precision_onednn_bfloat16 = 1
    graph = tf.Graph()
    with graph.as_default():
        session = tf.compat.v1.Session(graph=graph, config=config)
        meta = tf.compat.v1.saved_model.load(session, ["serve"], path)
        signature = meta.signature_def["serving_default"]
        (given,), (output,) = signature.inputs.values(), signature.outputs.values()
        options = config_pb2.CallableOptions()
        options.feed.append(given.name)
        options.fetch.append(output.name)
        callable_ = session._make_callable_from_options(options)
    return lambda array: callable_(array)[0]


def onnx(path: str) -> Call:
    """Return a call that finds, for each thread, a session of its own with one thread that does not spin."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    options.inter_op_num_threads = 1
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    sessions = [onnxruntime.InferenceSession(path, options, ["CPUExecutionProvider"]) for _ in range(THREADS)]
    name = sessions[0].get_inputs()[0].name
    mine = threading.local()
    free = list(range(THREADS))

    def call(array: np.ndarray) -> Any:
        if not hasattr(mine, "session"):
            mine.session = sessions[free.pop() if free else 0]
        return mine.session.run(None, {name: array})[0]

    return call


def openvino(path: str, *, precision: str) -> Call:
    """Return a call that gives each thread an inference request of its own."""
    import openvino as ov

    config = {"NUM_STREAMS": THREADS, "INFERENCE_NUM_THREADS": THREADS, "INFERENCE_PRECISION_HINT": precision}
    compiled = ov.Core().compile_model(path, "CPU", config)
    mine = threading.local()

    def call(array: np.ndarray) -> Any:
        if not hasattr(mine, "request"):
            mine.request = compiled.create_infer_request()
        return mine.request.infer([array], share_inputs=True, share_outputs=True)[0]

    return call


def moxserve(path: str) -> Call:
    """Return a call of our own backend for a version directory: what stands between a runtime and our server."""
    from moxserve.serving import backends

    backend = backends.load(path)
    (alias,) = backend.signatures["serving_default"].inputs
    return lambda array: backend.run("serving_default", {alias: array}, None)


RUNTIMES: dict[str, Callable[[str], Call]] = {
    "tensorflow": tensorflow,
    "tensorflow_bf16": lambda path: tensorflow(path, bf16=True),
    "onnx": onnx,
    "openvino": lambda path: openvino(path, precision="f32"),
    "openvino_bf16": lambda path: openvino(path, precision="bf16"),
    "moxserve": moxserve,
}


def measure(call: Call, array: np.ndarray, seconds: float, threads: int) -> dict[str, float]:
    """Call from some threads for some time."""
    times: list[list[float]] = [[] for _ in range(threads)]

    def caller(taken: list[float]) -> None:
        end = time.monotonic() + seconds
        while (now := time.monotonic()) < end:
            call(array)
            taken.append(time.monotonic() - now)

    workers = [threading.Thread(target=caller, args=(taken,)) for taken in times]
    cpu, wall = time.process_time(), time.monotonic()
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    cpu, wall = time.process_time() - cpu, time.monotonic() - wall
    every = [taken for one in times for taken in one]
    items = len(every) * len(array)
    return {"cpu_ms": cpu / items * 1e3, "per_s": items / wall, "p50_ms": statistics.median(every) * 1e3}


def main(runtime: str, path: str, inputs_file: str) -> None:
    call = RUNTIMES[runtime](path)
    inputs = np.load(inputs_file)
    one = np.ascontiguousarray(inputs[0])
    call(one)
    print("ready", flush=True)
    for line in sys.stdin:
        wanted = json.loads(line)
        if "save" in wanted:
            np.save(wanted["save"], np.stack([np.array(call(np.ascontiguousarray(each))) for each in inputs]))
            print("{}", flush=True)
            continue
        batch = np.ascontiguousarray(np.repeat(one, wanted.get("batch", 1), axis=0))
        call(batch)
        print(json.dumps(measure(call, batch, wanted["seconds"], wanted.get("threads", 1))), flush=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
