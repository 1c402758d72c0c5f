"""BentoML as its documentation has it: a service class with an API method; `bentoml serve bento_service:Service`."""

import base64

import bentoml
import numpy as np
from onnx_model import SHAPE, WORKERS, OnnxModel


@bentoml.service(workers=WORKERS, traffic={"timeout": 120, "max_concurrency": 64})
class Service:
    """A copy of the model for each worker process."""

    def __init__(self) -> None:
        self.model = OnnxModel()

    @bentoml.api
    def predict(self, x: np.ndarray) -> np.ndarray:
        """Run the model on a JSON list."""
        return self.model(x.astype(np.float32, copy=False).reshape(-1, *SHAPE))

    @bentoml.api
    def predict_b64(self, b64: str) -> dict:
        """Run the model on an image in base64."""
        return {"y": self.model(np.frombuffer(base64.b64decode(b64), np.float32).reshape(1, *SHAPE)).ravel().tolist()}
