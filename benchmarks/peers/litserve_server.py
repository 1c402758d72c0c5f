"""LitServe as its documentation has it: decode, predict, encode. Images come as base64, small inputs as JSON lists."""

import base64

import litserve
import numpy as np
from onnx_model import PORT, SHAPE, WORKERS, OnnxModel


class Api(litserve.LitAPI):
    """One request at a time for each worker."""

    def setup(self, device: str) -> None:
        """Load the model in the worker."""
        self.model = OnnxModel()

    def decode_request(self, request: dict) -> np.ndarray:
        """Return `[1, *SHAPE] float32`."""
        if "b64" in request:
            return np.frombuffer(base64.b64decode(request["b64"]), np.float32).reshape(1, *SHAPE)
        return np.asarray(request["x"], np.float32).reshape(1, *SHAPE)

    def predict(self, x: np.ndarray) -> np.ndarray:
        """Run the model."""
        return self.model(x)

    def encode_response(self, output: np.ndarray) -> dict:
        """Return the values as a list."""
        return {"y": output.ravel().tolist()}


if __name__ == "__main__":
    server = litserve.LitServer(Api(), accelerator="cpu", workers_per_device=WORKERS, timeout=120)
    server.run(host="127.0.0.1", port=PORT, log_level="warning", generate_client_file=False)
