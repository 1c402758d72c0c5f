"""The model that every peer serves: one ONNX Runtime session for each worker, told by the environment.

The same session settings as for our own server: one thread, no spinning. Runs in the peers' environments: NumPy and
onnxruntime only.
"""

import os

import numpy as np
import onnxruntime

MODEL_FILE = os.environ["BENCH_MODEL"]
NAME = os.environ["BENCH_NAME"]
# Shape of one item, without the batch.
SHAPE = tuple(int(size) for size in os.environ["BENCH_SHAPE"].split(","))
WORKERS = int(os.environ["BENCH_WORKERS"])
PORT = int(os.environ["BENCH_PORT"])
GRPC_PORT = int(os.environ["BENCH_GRPC_PORT"])
THIRD_PORT = int(os.environ["BENCH_THIRD_PORT"])


class OnnxModel:
    """A loaded model; `[batch, *SHAPE] float32` in, `[batch, ...] float32` out."""

    def __init__(self) -> None:
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = 1
        options.inter_op_num_threads = 1
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        self._session = onnxruntime.InferenceSession(MODEL_FILE, options, ["CPUExecutionProvider"])
        self.input_name = self._session.get_inputs()[0].name
        self.output_name = self._session.get_outputs()[0].name
        self.output_shape = tuple(self._session.get_outputs()[0].shape[1:])

    def __call__(self, array: np.ndarray) -> np.ndarray:
        """Run the model."""
        return self._session.run(None, {self.input_name: array})[0]
