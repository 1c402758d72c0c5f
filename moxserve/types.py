"""Shapes, dtypes, signatures and model references, shared by training, export, serving and client. NumPy only.

The dtype table is the one place that says how a NumPy dtype, TensorFlow's DataType enum, the field of a TensorProto and
the name in the Open Inference Protocol belong together.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import ml_dtypes
import numpy as np

from moxserve.errors import InvalidArgument

__all__ = [
    "CLASSIFY_METHOD",
    "DEFAULT_SIGNATURE",
    "DTYPES",
    "INIT_SIGNATURE",
    "INIT_SIGNATURES",
    "PREDICT_METHOD",
    "REGRESS_METHOD",
    "DType",
    "ModelRef",
    "Signature",
    "TensorSpec",
    "dtype_by_enum",
    "dtype_by_name",
    "dtype_of",
    "node_name",
]

# The key of the signature that a request means which names none, and the methods that a SavedModel's signatures have.
DEFAULT_SIGNATURE = "serving_default"
PREDICT_METHOD = "tensorflow/serving/predict"
CLASSIFY_METHOD = "tensorflow/serving/classify"
REGRESS_METHOD = "tensorflow/serving/regress"
# TensorFlow's own: they hold the operation that initializes the model, and the one that trains it.
INIT_SIGNATURE = "__saved_model_init_op"
INIT_SIGNATURES = frozenset((INIT_SIGNATURE, "__saved_model_train_op"))


@dataclass(frozen=True, slots=True)
class DType:
    """One tensor element type.

    Attributes:
        name: TensorFlow's name, such as `float32`.
        enum: number in TensorFlow's DataType enum.
        numpy: NumPy dtype; `object` for strings (elements are bytes).
        proto_field: the typed repeated field of TensorProto that carries values of this type.
        v2_name: name in the Open Inference Protocol.
    """

    name: str
    enum: int
    numpy: np.dtype[np.generic]
    proto_field: str
    v2_name: str

    @property
    def enum_name(self) -> str:
        """Name in TensorFlow's DataType enum, such as `DT_FLOAT`."""
        return _ENUM_NAMES[self.enum]


def _d(name: str, enum: int, numpy: object, proto_field: str, v2_name: str) -> DType:
    return DType(name, enum, np.dtype(numpy), proto_field, v2_name)  # type: ignore[call-overload]


DTYPES: tuple[DType, ...] = (
    _d("float32", 1, np.float32, "float_val", "FP32"),
    _d("float64", 2, np.float64, "double_val", "FP64"),
    _d("int32", 3, np.int32, "int_val", "INT32"),
    _d("uint8", 4, np.uint8, "int_val", "UINT8"),
    _d("int16", 5, np.int16, "int_val", "INT16"),
    _d("int8", 6, np.int8, "int_val", "INT8"),
    _d("string", 7, object, "string_val", "BYTES"),
    _d("complex64", 8, np.complex64, "scomplex_val", ""),
    _d("int64", 9, np.int64, "int64_val", "INT64"),
    _d("bool", 10, np.bool_, "bool_val", "BOOL"),
    _d("bfloat16", 14, ml_dtypes.bfloat16, "half_val", "BF16"),
    _d("uint16", 17, np.uint16, "int_val", "UINT16"),
    _d("complex128", 18, np.complex128, "dcomplex_val", ""),
    _d("float16", 19, np.float16, "half_val", "FP16"),
    _d("uint32", 22, np.uint32, "uint32_val", "UINT32"),
    _d("uint64", 23, np.uint64, "uint64_val", "UINT64"),
)

_ENUM_NAMES = {
    1: "DT_FLOAT", 2: "DT_DOUBLE", 3: "DT_INT32", 4: "DT_UINT8", 5: "DT_INT16", 6: "DT_INT8", 7: "DT_STRING",
    8: "DT_COMPLEX64", 9: "DT_INT64", 10: "DT_BOOL", 14: "DT_BFLOAT16", 17: "DT_UINT16", 18: "DT_COMPLEX128",
    19: "DT_HALF", 22: "DT_UINT32", 23: "DT_UINT64",
}  # fmt: skip

_BY_ENUM = {d.enum: d for d in DTYPES}
_BY_NAME = {d.name: d for d in DTYPES}
_BY_NUMPY = {d.numpy: d for d in DTYPES}
_STRING = _BY_NAME["string"]


def dtype_by_enum(enum: int) -> DType:
    """Look a dtype up by its number in TensorFlow's DataType enum.

    Raises:
        InvalidArgument: the number is none of a servable tensor type.
    """
    try:
        return _BY_ENUM[enum]
    except KeyError:
        raise InvalidArgument(f"DataType {enum} cannot be carried in a tensor; known: {sorted(_BY_ENUM)}") from None


def dtype_by_name(name: str) -> DType:
    """Look a dtype up by TensorFlow's name, such as `float32`.

    Raises:
        InvalidArgument: there is no such name.
    """
    try:
        return _BY_NAME[name]
    except KeyError:
        raise InvalidArgument(f"unknown dtype {name!r}; known: {', '.join(sorted(_BY_NAME))}") from None


def dtype_of(array: np.ndarray) -> DType:
    """Look up the dtype of an array; text, bytes and object arrays are `string`.

    Raises:
        InvalidArgument: TensorFlow has no such element type.
    """
    if array.dtype.kind in "SUO":
        return _STRING
    try:
        return _BY_NUMPY[array.dtype.newbyteorder("=")]
    except KeyError:
        raise InvalidArgument(
            f"an array of {array.dtype} cannot be sent; expected one of {', '.join(sorted(_BY_NAME))}"
        ) from None


@dataclass(frozen=True, slots=True)
class TensorSpec:
    """Name, element type and shape of one input or output.

    Attributes:
        name: alias in the signature, such as `images`.
        dtype: element type.
        shape: one entry a dimension, None where it may vary; None as a whole when the rank may vary.
        tensor: name of the graph tensor behind the alias, such as `images:0`; empty when there is none.
    """

    name: str
    dtype: DType
    shape: tuple[int | None, ...] | None
    tensor: str = ""

    def __str__(self) -> str:
        dims = "?" if self.shape is None else ", ".join("?" if d is None else str(d) for d in self.shape)
        return f"{self.name}: {self.dtype.name}[{dims}]"


@dataclass(frozen=True, slots=True)
class Signature:
    """A named way to call a model.

    Attributes:
        name: key in the SavedModel, such as `serving_default`.
        method: method name, such as `tensorflow/serving/predict`.
        inputs: by alias.
        outputs: by alias.
    """

    name: str
    method: str
    inputs: Mapping[str, TensorSpec] = field(default_factory=dict)
    outputs: Mapping[str, TensorSpec] = field(default_factory=dict)

    def __str__(self) -> str:
        ins = ", ".join(str(s) for s in self.inputs.values())
        outs = ", ".join(str(s) for s in self.outputs.values())
        return f"{self.name}({ins}) -> ({outs})"


@dataclass(frozen=True, slots=True)
class ModelRef:
    """Which model a request means: `name`, `name:7` (version) or `name@stable` (label)."""

    name: str
    version: int | None = None
    label: str | None = None

    @classmethod
    def parse(cls, text: str) -> ModelRef:
        """Read `name`, `name:version` or `name@label`.

        Raises:
            InvalidArgument: a part is empty, or the version is no number.
        """
        name, separator, rest = text.partition("@" if "@" in text else ":")
        if not name or (separator and not rest) or (separator == ":" and not rest.isdecimal()):
            raise InvalidArgument(
                f"model {text!r}: expected NAME, NAME:VERSION or NAME@LABEL, version a whole number, nothing empty"
            )
        if separator == "@":
            return cls(name, label=rest)
        return cls(name, int(rest) if rest else None)

    def __str__(self) -> str:
        if self.version is not None:
            return f"{self.name}:{self.version}"
        return f"{self.name}@{self.label}" if self.label else self.name


def node_name(tensor: str) -> str:
    """Return the node of a graph's tensor, or of a control input: `conv/Relu` of `conv/Relu:0` and of `^conv/Relu`."""
    return tensor.partition(":")[0].lstrip("^")
