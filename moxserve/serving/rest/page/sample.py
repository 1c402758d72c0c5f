"""A request that fits a signature, as the text that a person edits and sends.

Row format where it can be, since that is what people write: `{"instances": [0.5]}`. A tensor of many elements is
written as `{"$fill": 0.5, "shape": [224, 224, 3]}`, which the page's script turns into the numbers when it is sent.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from moxserve.types import DEFAULT_SIGNATURE, Signature, TensorSpec

__all__ = ["Sample", "sample_request"]

_MAX_WRITTEN = 64
_FILL = "$fill"
# What the REST API carries; float16, bfloat16, complex and so on are for gRPC alone.
_VALUES: dict[str, Any] = {
    "float32": 0.5, "float64": 0.5, "int8": 1, "uint8": 1, "int16": 1, "int32": 1, "uint32": 1, "int64": 1,
    "uint64": 1, "bool": True, "string": "text",
}  # fmt: skip


@dataclass(frozen=True, slots=True)
class Sample:
    """A request for one signature.

    Attributes:
        text: JSON to send; empty when there is none.
        note: why there is none, or what to know about it; empty when it speaks for itself.
    """

    text: str
    note: str = ""


def sample_request(signature: Signature) -> Sample:
    """Make a predict request that fits a signature."""
    inputs = signature.inputs.values()
    strange = sorted({spec.dtype.name for spec in inputs if spec.dtype.name not in _VALUES})
    if strange:
        return Sample("", f"JSON cannot carry {', '.join(strange)}: ask this signature over gRPC.")
    if not inputs:
        return Sample("", "This signature has no inputs: ask it over gRPC.")
    shapes = {spec.name: _shape(spec) for spec in inputs}
    rows = {shape[0] if shape else None for shape in shapes.values()}
    body: dict[str, Any] = {} if signature.name == DEFAULT_SIGNATURE else {"signature_name": signature.name}
    if len(rows) == 1 and None not in rows:
        row: Any = {spec.name: _value(spec, shapes[spec.name][1:]) for spec in inputs}
        if len(row) == 1:
            (row,) = row.values()
        body["instances"] = [row] * (rows.pop() or 1)
    else:
        body["inputs"] = {spec.name: _value(spec, shapes[spec.name]) for spec in inputs}
    note = f"Each {_FILL} is sent as numbers of that shape." if _FILL in json.dumps(body) else ""
    return Sample(_written(body), note)


def _shape(spec: TensorSpec) -> tuple[int, ...]:
    """Return a shape that fits, with 1 for what is open; a tensor of any rank is taken for a batch of numbers."""
    return (1,) if spec.shape is None else tuple(1 if size is None else size for size in spec.shape)


def _value(spec: TensorSpec, shape: Sequence[int]) -> Any:
    value = _VALUES[spec.dtype.name]
    elements = 1
    for size in shape:
        elements *= size
    if elements > _MAX_WRITTEN:
        return {_FILL: value, "shape": list(shape)}
    for size in reversed(shape):
        value = [value] * size
    return value


def _written(body: dict[str, Any]) -> str:
    """Write JSON with one row a line, numbers of a row side by side."""
    parts = []
    for key, value in body.items():
        text = json.dumps(value, ensure_ascii=False)
        if key == "instances":
            text = "[\n" + ",\n".join(f"    {json.dumps(row, ensure_ascii=False)}" for row in value) + "\n  ]"
        parts.append(f"  {json.dumps(key)}: {text}")
    return "{\n" + ",\n".join(parts) + "\n}"
