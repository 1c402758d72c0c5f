"""PyTriton as its documentation has it: functions bound to a Triton server that it starts itself. No GPU needed."""

import numpy as np
from onnx_model import GRPC_PORT, NAME, PORT, SHAPE, THIRD_PORT, WORKERS, OnnxModel
from pytriton.decorators import batch
from pytriton.model_config import ModelConfig, Tensor
from pytriton.triton import Triton, TritonConfig


def main() -> None:
    """Bind the model, one function for each worker, and serve."""
    models = [OnnxModel() for _ in range(WORKERS)]
    first = models[0]

    def runner(model: OnnxModel):
        @batch
        def infer(**inputs: np.ndarray) -> list[np.ndarray]:
            return [model(inputs[first.input_name])]

        return infer

    config = TritonConfig(
        http_address="127.0.0.1", http_port=PORT, grpc_address="127.0.0.1", grpc_port=GRPC_PORT,
        metrics_address="127.0.0.1", metrics_port=THIRD_PORT, log_verbose=0,
    )  # fmt: skip
    with Triton(config=config) as triton:
        triton.bind(
            model_name=NAME,
            infer_func=[runner(model) for model in models],
            inputs=[Tensor(name=first.input_name, dtype=np.float32, shape=SHAPE)],
            outputs=[Tensor(name=first.output_name, dtype=np.float32, shape=first.output_shape)],
            config=ModelConfig(max_batch_size=32),
        )
        triton.serve()


if __name__ == "__main__":
    main()
