"""Quantization-aware training: `model` is the way in, `rewrite` changes the graph, `layers` and `batch_norm` find what
to change in it, `ranges` rounds.
"""

from moxserve.tensorflow.quantization.model import QuantizedModelFn, quantize_model_fn
from moxserve.tensorflow.quantization.options import Quantization

__all__ = ["Quantization", "QuantizedModelFn", "quantize_model_fn"]
