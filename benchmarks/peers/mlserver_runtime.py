"""MLServer with a runtime of one's own, as its documentation shows; `python mlserver_runtime.py FOLDER` serves it.

FOLDER gets MLServer's settings files. The Open Inference Protocol over REST and gRPC.
"""

import json
import os
import sys
from pathlib import Path

from mlserver import MLModel
from mlserver.codecs import NumpyCodec
from mlserver.types import InferenceRequest, InferenceResponse
from onnx_model import GRPC_PORT, NAME, PORT, THIRD_PORT, WORKERS, OnnxModel


class Runtime(MLModel):
    """The model in MLServer's terms."""

    async def load(self) -> bool:
        """Load the model in the worker."""
        self._model = OnnxModel()
        return True

    async def predict(self, payload: InferenceRequest) -> InferenceResponse:
        """Run the first input."""
        output = self._model(NumpyCodec.decode_input(payload.inputs[0]))
        encoded = NumpyCodec.encode_output(self._model.output_name, output)
        return InferenceResponse(model_name=self.name, outputs=[encoded])


def main(folder: str) -> None:
    """Write the settings and become the server. One worker means in the server's own process: MLServer's cheapest."""
    settings = {
        "host": "127.0.0.1", "http_port": PORT, "grpc_port": GRPC_PORT, "metrics_port": THIRD_PORT, "debug": False,
        "parallel_workers": WORKERS if WORKERS > 1 else 0,
    }  # fmt: skip
    Path(folder, "settings.json").write_text(json.dumps(settings))
    Path(folder, "model-settings.json").write_text(
        json.dumps({"name": NAME, "implementation": "mlserver_runtime.Runtime"})
    )
    os.environ["PYTHONPATH"] = os.path.dirname(os.path.abspath(__file__))
    os.execv(sys.executable, [sys.executable, "-m", "mlserver.cli.main", "start", folder])


if __name__ == "__main__":
    main(sys.argv[1])
