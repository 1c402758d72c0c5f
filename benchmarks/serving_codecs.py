"""CPU of the codecs, without sockets: our wire code beside what the official packages and plain Python need.

    python benchmarks/serving_codecs.py

One image, `[1, 224, 224, 3] float32`: 602 KB as a tensor, about 3.1 MB as a JSON body. Prints one line of JSON with CPU
microseconds a call. A process of its own, since it imports TensorFlow for comparison.
"""

from __future__ import annotations

import json
from collections.abc import Callable

import numpy as np
from serving_extras import cpu_us

from moxserve.protocol import messages

Pieces = dict[str, Callable[[], object]]


def ours(image: np.ndarray) -> Pieces:
    """Return our codecs, on what a server and a client meet."""
    from moxserve.protocol.predict_wire import read_predict, write_predict_request, write_predict_response
    from moxserve.types import ModelRef

    ref, tensors = ModelRef("resnet50"), {"images": image}
    request = write_predict_request(ref, "serving_default", tensors)
    values = messages.PredictRequest.FromString(request)
    values.inputs["images"].ClearField("tensor_content")
    values.inputs["images"].float_val.extend(image.ravel())
    typed = values.SerializeToString()

    def decode(data: bytes) -> np.ndarray:
        return read_predict(data).tensors()["images"]

    assert np.array_equal(decode(request), image)
    assert np.array_equal(decode(typed), image)
    return {
        "client: array to request": lambda: write_predict_request(ref, "serving_default", tensors),
        "server: request to array": lambda: decode(request),
        "server: request with float_val to array": lambda: decode(typed),
        "server: array to response": lambda: write_predict_response("resnet50", 1, "serving_default", tensors),
    }


def json_bodies(image: np.ndarray) -> Pieces:
    """Return how long a JSON body takes to become an array, by us and by the standard library."""
    from moxserve.protocol.rest import parse_predict
    from moxserve.types import Signature, TensorSpec, dtype_of

    body = json.dumps({"instances": image.tolist()}).encode()
    specs = {"images": TensorSpec("images", dtype_of(image), (None, *image.shape[1:]))}
    signature = Signature("serving_default", "tensorflow/serving/predict", specs)

    def decode() -> np.ndarray:
        return parse_predict(body).tensors(signature)["images"]

    assert np.allclose(decode(), image)
    return {
        "server: JSON to array": decode,
        "json + NumPy: JSON to array": lambda: np.array(json.loads(body)["instances"]),
    }


def official(image: np.ndarray) -> Pieces:
    """Return the same with tensorflow-serving-api; empty where it is not installed."""
    try:
        import tensorflow as tf
        from tensorflow_serving.apis import predict_pb2
    except ImportError:
        return {}
    request = predict_pb2.PredictRequest()
    request.inputs["images"].CopyFrom(tf.make_tensor_proto(image))
    data = request.SerializeToString()

    def encode() -> bytes:
        message = predict_pb2.PredictRequest()
        message.inputs["images"].CopyFrom(tf.make_tensor_proto(image))
        return bytes(message.SerializeToString())

    return {
        "tensorflow-serving-api: array to request": encode,
        "tensorflow-serving-api: request to array": lambda: tf.make_ndarray(
            predict_pb2.PredictRequest.FromString(data).inputs["images"]
        ),
    }


def main() -> None:
    image = np.random.default_rng(0).random((1, 224, 224, 3), np.float32)
    pieces = {**ours(image), **json_bodies(image), **official(image)}
    print(json.dumps({name: cpu_us(function) for name, function in pieces.items()}))


if __name__ == "__main__":
    main()
