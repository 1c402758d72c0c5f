"""Running ONNX models on rows while they are made: sessions, batches, answers by alias. Not the server's backend."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from moxserve.errors import DataError, ExportError, first_line
from moxserve.export.variants.work import Rows
from moxserve.types import Signature

__all__ = ["QUIET", "Feeder", "answers", "open_session"]

_BATCH = 8
QUIET = 3  # errors only


@dataclass(frozen=True)
class Feeder:
    """Rows as batches that a model takes: of a fixed size where it has one, the last one filled up with first rows.

    Attributes:
        inputs: alias -> `[count, ...]`.
        count: of the rows.
        fixed: rows of each batch when the model takes no others; 0 when it takes any number.
    """

    inputs: Mapping[str, np.ndarray]
    count: int
    fixed: int = 0

    @classmethod
    def of(cls, rows: Rows, signature: Signature) -> Feeder:
        """Read rows for a signature.

        Raises:
            DataError: the rows lack an input.
        """
        inputs = rows.load_inputs() if rows.count else {}
        missing = sorted(set(signature.inputs) - set(inputs)) if rows.count else []
        if missing:
            raise DataError(f"the rows have no {', '.join(map(repr, missing))}; they have {', '.join(sorted(inputs))}")
        sizes = {spec.shape[0] for spec in signature.inputs.values() if spec.shape}
        fixed = next(iter(sizes)) if len(sizes) == 1 else None
        # Text, which is what ONNX's strings are; TensorFlow's are bytes.
        texts = {name for name, spec in signature.inputs.items() if spec.dtype.name == "string"}
        arrays = {name: _text(array) if name in texts else array for name, array in inputs.items()}
        return cls({name: arrays[name] for name in signature.inputs} if arrays else {}, rows.count, fixed or 0)

    def head(self, count: int) -> Feeder:
        """Return the first rows."""
        count = min(count, self.count)
        return Feeder({name: array[:count] for name, array in self.inputs.items()}, count, self.fixed)

    def batches(self, size: int = _BATCH) -> Iterator[dict[str, np.ndarray]]:
        """Give the rows in batches.

        Args:
            size: of a batch, where the model leaves it open; the last one is shorter.
        """
        step = self.fixed or size
        for first in range(0, self.count, step):
            index = np.arange(first, first + step)
            index = index % self.count if self.fixed else index[index < self.count]
            yield {name: array[index] for name, array in self.inputs.items()}


def _text(array: np.ndarray) -> np.ndarray:
    flat = [item.decode("utf-8", "replace") if isinstance(item, bytes) else str(item) for item in array.reshape(-1)]
    return np.array(flat, object).reshape(array.shape)


def open_session(model: Any, *, optimize: bool = True) -> Any:
    """Load a model into ONNX Runtime.

    Args:
        model: a ModelProto, or the path of a file.
        optimize: False runs the operations as they are.

    Raises:
        ExportError: ONNX Runtime refuses it.
    """
    import onnxruntime as ort

    options = ort.SessionOptions()
    options.log_severity_level = QUIET
    for pool in ("intra", "inter"):
        options.add_session_config_entry(f"session.{pool}_op.allow_spinning", "0")
    if not optimize:
        options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    source = model if isinstance(model, str) else model.SerializeToString()
    try:
        return ort.InferenceSession(source, options, providers=["CPUExecutionProvider"])
    except Exception as error:
        raise ExportError(
            f"ONNX Runtime {ort.__version__} does not take the model: {first_line(error)}",
            hint="a lower --opset may do; otherwise leave --onnx out for this signature",
        ) from error


def answers(model: Any, feeder: Feeder, outputs: Mapping[str, str], size: int = _BATCH) -> dict[str, np.ndarray]:
    """Run all rows.

    Args:
        model: a ModelProto, or the path of a file.
        feeder: the rows; at least one.
        outputs: alias -> name in the model.
        size: rows at a time.

    Returns:
        alias -> `[feeder.count, ...]`.

    Raises:
        ExportError: ONNX Runtime refuses the model or a batch.
    """
    session = open_session(model)
    parts: dict[str, list[np.ndarray]] = {alias: [] for alias in outputs}
    for batch in feeder.batches(size):
        try:
            values = session.run(list(outputs.values()), batch)
        except Exception as error:
            raise ExportError(f"ONNX Runtime cannot run the model on real rows: {first_line(error)}") from error
        for alias, value in zip(outputs, values, strict=True):
            parts[alias].append(np.asarray(value))
    return {alias: np.concatenate(values)[: feeder.count] for alias, values in parts.items()}
