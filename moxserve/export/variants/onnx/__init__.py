"""ONNX variants of a model, made of its frozen graph.

`floating` converts the graph to float32, `reduced` takes that to float16 or dynamically quantized weights, `static` to
int8 with ranges that `calibration` finds on real rows, or that the graph has learned (`learned`).
"""

from __future__ import annotations

import importlib

from moxserve.errors import MissingExtraError
from moxserve.export.manifest import TensorNames
from moxserve.export.variants.work import Built, Work

__all__ = ["convert"]


def convert(work: Work) -> Built:
    """Write `model.onnx` into the work's directory; see `Converter`.

    Raises:
        MissingExtraError: onnx, onnxruntime or tf2onnx is not installed.
        ExportError: an operation has no form in ONNX, or int8 cannot be made good enough.
        UsageError: a pattern of operations to exclude matches none.
    """
    for package in ("onnx", "onnxruntime", "tf2onnx"):
        try:
            importlib.import_module(package)
        except ModuleNotFoundError as error:
            if error.name != package:
                raise
            raise MissingExtraError(package, "onnx", "an ONNX variant") from None
    from moxserve.export.variants.onnx.making import make
    from moxserve.export.variants.onnx.model import output_names

    made = make(work)
    names = TensorNames(inputs={alias: alias for alias in work.signature.inputs}, outputs=output_names(work.signature))
    return Built(made.file, names, made.notes, made.details)
