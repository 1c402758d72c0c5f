"""Running ONNX models while they are made, in ONNX Runtime on the CPU. The server has its own backend."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

import numpy as np

from moxserve.errors import ExportError, first_line
from moxserve.export.variants.feeds import Call
from moxserve.export.variants.onnx.model import output_names
from moxserve.types import Signature

__all__ = ["QUIET", "as_feeds", "open_session", "opened", "reason"]

QUIET = 3  # errors only
# `[ONNXRuntimeError] : 1 : FAIL : Load model from model.onnx failed:/file.cc:46 void function(types) `
_PREFIX = re.compile(
    r"^\[ONNXRuntimeError\] : \d+ : \w+ : (?:Load model from .*? failed:)?(?:/\S+:\d+ [^(]*\(.*?\) (?=[A-Z]))?"
)


def open_session(model: Any) -> Any:
    """Load a model into ONNX Runtime.

    Args:
        model: a ModelProto, or the path of a file.

    Raises:
        ExportError: ONNX Runtime refuses it.
    """
    import onnxruntime as ort

    options = ort.SessionOptions()
    options.log_severity_level = QUIET
    for pool in ("intra", "inter"):
        options.add_session_config_entry(f"session.{pool}_op.allow_spinning", "0")
    source = model if isinstance(model, str) else model.SerializeToString()
    try:
        return ort.InferenceSession(source, options, providers=["CPUExecutionProvider"])
    except Exception as error:
        raise ExportError(
            f"ONNX Runtime {ort.__version__} does not take the model: {reason(error)}",
            hint="a lower --opset may do; otherwise leave --onnx out for this signature",
        ) from error


def reason(error: Exception) -> str:
    """Return what an error of ONNX Runtime says, its code and source file left out."""
    return _PREFIX.sub("", first_line(error), count=1)


def opened(model: Any, signature: Signature) -> Call:
    """Make a model ready to be asked by alias.

    Raises:
        ExportError: ONNX Runtime refuses it, or, when it is called, a batch.
    """
    session = open_session(model)
    names = output_names(signature)

    def call(inputs: Mapping[str, np.ndarray]) -> Mapping[str, np.ndarray]:
        try:
            values = session.run(list(names.values()), as_feeds(inputs, signature))
        except Exception as error:
            raise ExportError(f"ONNX Runtime cannot run the model on real rows: {reason(error)}") from error
        return dict(zip(names, values, strict=True))

    return call


def as_feeds(inputs: Mapping[str, np.ndarray], signature: Signature) -> dict[str, np.ndarray]:
    """Return rows as ONNX Runtime takes them: its strings are text, TensorFlow's are bytes."""
    return {
        alias: _text(inputs[alias]) if spec.dtype.name == "string" else inputs[alias]
        for alias, spec in signature.inputs.items()
    }


def _text(array: np.ndarray) -> np.ndarray:
    flat = [item.decode("utf-8", "replace") if isinstance(item, bytes) else str(item) for item in array.reshape(-1)]
    return np.array(flat, object).reshape(array.shape)
