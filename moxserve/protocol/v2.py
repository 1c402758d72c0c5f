"""The Open Inference Protocol (KServe's v2, Triton's dialect): what its gRPC and REST forms have in common. No sockets.

A request names a model and perhaps a version, and carries named tensors that say their datatype and shape; so, unlike
in TensorFlow Serving's API, it can be read before the model is known. Names map like this:

* inputs and outputs: the aliases of the signature;
* version: empty for the highest that answers, a number for that version, any other text for a label;
* datatype: BOOL, UINT8 to UINT64, INT8 to INT64, FP16, BF16, FP32, FP64, BYTES; TensorFlow's complex types have none;
* parameter `signature_name`: another signature than `serving_default`;
* parameter `timeout`: microseconds that the caller waits. Other parameters change nothing.

Raw data, in `raw_input_contents` of gRPC and behind the JSON of HTTP's binary extension, is the elements in C order,
little endian; an element of BOOL is a byte, one of BYTES is four bytes of length and then so many bytes.
"""

from __future__ import annotations

import math
import struct
from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np

from moxserve.errors import InvalidArgument, Unimplemented, did_you_mean
from moxserve.types import DTYPES, DType, ModelRef, dtype_of

__all__ = [
    "InferAnswer",
    "InferRequest",
    "Parameter",
    "RequestedOutput",
    "checked_shape",
    "datatype_of",
    "dtype_by_datatype",
    "from_raw",
    "model_ref",
    "refuse_extensions",
    "shaped",
    "to_raw",
]

Parameter = bool | int | float | str

_BY_DATATYPE = {dtype.v2_name: dtype for dtype in DTYPES if dtype.v2_name}
_LENGTH = struct.Struct("<I")
_INT64_MAX = 2**63 - 1
_MAX_RANK = 64


@dataclass(frozen=True, slots=True)
class RequestedOutput:
    """An output that a request asks for.

    Attributes:
        name: alias in the signature.
        binary: whether REST shall send it as raw data; gRPC does not look at it.
    """

    name: str
    binary: bool = False


@dataclass(frozen=True, slots=True)
class InferRequest:
    """A request for inference.

    Attributes:
        model: which model and version.
        inputs: arrays by name, of the datatypes and shapes that the request declares; they may be read-only views of
            its bytes. BYTES are object arrays of bytes.
        outputs: what is asked for, in that order; empty for all.
        parameters: of the request.
        id: to be repeated in the answer.
        binary: whether outputs that are not named shall be sent as raw data.
    """

    model: ModelRef
    inputs: Mapping[str, np.ndarray]
    outputs: tuple[RequestedOutput, ...] = ()
    parameters: Mapping[str, Parameter] = field(default_factory=dict)
    id: str = ""
    binary: bool = False

    @property
    def signature_name(self) -> str:
        """Key of the signature to run; empty for the default one.

        Raises:
            InvalidArgument: the parameter is no text.
        """
        name = self.parameters.get("signature_name", "")
        if not isinstance(name, str):
            raise InvalidArgument(f"parameter 'signature_name' is {name!r}; expected text")
        return name

    @property
    def timeout_s(self) -> float | None:
        """How long the caller waits, in s; None for as long as it takes.

        Raises:
            InvalidArgument: the parameter is no number.
        """
        timeout = self.parameters.get("timeout", 0)
        try:
            micros = int(timeout)
        except (ValueError, OverflowError):
            raise InvalidArgument(f"parameter 'timeout' is {timeout!r}; expected a number of microseconds") from None
        return micros / 1e6 if micros > 0 else None


@dataclass(frozen=True, slots=True)
class InferAnswer:
    """The answer to a request for inference.

    Attributes:
        request: that is answered.
        model: name.
        version: that answered.
        outputs: arrays by name, in the order in which they are written.
    """

    request: InferRequest
    model: str
    version: int
    outputs: Mapping[str, np.ndarray]


def model_ref(name: str, version: str) -> ModelRef:
    """Tell which model and version a request means.

    Args:
        name: of the model.
        version: empty, a number or a label.

    Raises:
        InvalidArgument: the number is too large for any version.
    """
    if not version:
        return ModelRef(name)
    if not (version.isascii() and version.isdecimal()):
        return ModelRef(name, label=version)
    if len(version) > len(str(_INT64_MAX)) or int(version) > _INT64_MAX:
        raise InvalidArgument(f"version {version:.40} of model {name!r} is larger than any version can be")
    return ModelRef(name, int(version))


# Tensors


def dtype_by_datatype(datatype: str, what: str) -> DType:
    """Look a dtype up by its name in the protocol, such as `FP32`.

    Args:
        datatype: the name.
        what: whose datatype it is, for the error.

    Raises:
        InvalidArgument: there is no such datatype.
    """
    try:
        return _BY_DATATYPE[datatype]
    except KeyError:
        raise InvalidArgument(
            f"{what} has the datatype {datatype!r:.80}; {did_you_mean(datatype[:80], _BY_DATATYPE, limit=20)}"
        ) from None


def datatype_of(array: np.ndarray, what: str) -> str:
    """Return the name that the protocol has for an array's element type.

    Args:
        array: any array.
        what: whose datatype it is, for the error.

    Raises:
        Unimplemented: the protocol has none.
    """
    dtype = dtype_of(array)
    if not dtype.v2_name:
        raise Unimplemented(f"{what} is {dtype.name}, for which the protocol has no datatype; ask for other outputs")
    return dtype.v2_name


def checked_shape(dims: object, what: str) -> tuple[int, ...]:
    """Check a declared shape.

    Args:
        dims: a sequence of whole numbers, none of them negative.
        what: whose shape it is, for the error.

    Raises:
        InvalidArgument: it is something else.
    """
    shape = tuple(dims) if isinstance(dims, (list, tuple)) else None
    if shape is None or len(shape) > _MAX_RANK or not all(type(d) is int and 0 <= d <= _INT64_MAX for d in shape):
        raise InvalidArgument(
            f"{what} has the shape {dims!r:.200}; expected at most {_MAX_RANK} whole numbers, none of them negative"
        )
    return shape


def shaped(flat: np.ndarray, shape: tuple[int, ...], what: str) -> np.ndarray:
    """Give a 1-D array its declared shape.

    Raises:
        InvalidArgument: it has another number of elements.
    """
    if flat.size != math.prod(shape):
        raise InvalidArgument(f"{what} has {flat.size} elements; its shape {list(shape)} needs {_count(shape)}")
    try:
        return flat.reshape(shape)
    except (ValueError, OverflowError) as error:
        # No elements, but dimensions that NumPy cannot multiply.
        raise InvalidArgument(f"{what} has the shape {list(shape)}: {error}") from None


def _count(shape: tuple[int, ...]) -> str:
    return f"{math.prod(shape)}" if math.prod(shape) <= _INT64_MAX else "more than can be counted"


def from_raw(data: bytes | memoryview, dtype: DType, shape: tuple[int, ...], what: str) -> np.ndarray:
    """Read raw data.

    Args:
        data: all of it.
        dtype: declared element type.
        shape: declared shape, checked.
        what: whose data it is, for the errors.

    Returns:
        A read-only view of the data where that is possible; BYTES as an object array of bytes.

    Raises:
        InvalidArgument: the data is too short or too long for the shape.
    """
    if dtype.name == "string":
        return shaped(_split_strings(bytes(data), math.prod(shape), what), shape, what)
    size = len(data)
    if size != math.prod(shape) * dtype.numpy.itemsize:
        raise InvalidArgument(
            f"{what} has {size} bytes of data; {dtype.v2_name}{list(shape)} needs "
            f"{math.prod(shape) * dtype.numpy.itemsize}"
        )
    if dtype.name == "bool":
        # Any bits but zero mean true; as a bool of NumPy's, bits other than 0 and 1 would be neither.
        flat = np.frombuffer(data, np.uint8) != 0
    else:
        flat = np.frombuffer(data, dtype.numpy.newbyteorder("<"))
    return shaped(flat if flat.flags.aligned else flat.copy(), shape, what)


def _split_strings(data: bytes, count: int, what: str) -> np.ndarray:
    size = len(data)
    if count * _LENGTH.size > size:
        raise InvalidArgument(
            f"{what} has {size} bytes of data, too few for {count} BYTES elements of at least {_LENGTH.size} bytes"
        )
    flat = np.empty(count, dtype=object)
    at = 0
    for i in range(count):
        start = at + _LENGTH.size
        if start > size:
            raise InvalidArgument(f"{what}: the data ends before the length of element {i} of {count}")
        at = start + _LENGTH.unpack_from(data, start - _LENGTH.size)[0]
        if at > size:
            raise InvalidArgument(
                f"{what}: element {i} of {count} has {at - start} bytes, but only {size - start} bytes follow"
            )
        flat[i] = data[start:at]
    if at != size:
        raise InvalidArgument(f"{what}: {size - at} bytes follow the last of its {count} elements")
    return flat


def to_raw(array: np.ndarray) -> bytes | memoryview:
    """Write raw data.

    Args:
        array: of any type that the protocol has; BYTES as an object array of bytes.

    Returns:
        Its elements; a view of the array where that is possible.
    """
    dtype = dtype_of(array)
    if dtype.name == "string":
        items = [item if isinstance(item, bytes) else str(item).encode() for item in array.reshape(-1)]
        return b"".join([part for item in items for part in (_LENGTH.pack(len(item)), item)])
    flat = np.ascontiguousarray(array, dtype.numpy.newbyteorder("<")).reshape(-1)
    return flat.view(np.uint8).data if flat.size else b""


def refuse_extensions(parameters: Mapping[str, Parameter], what: str) -> None:
    """Refuse what a tensor's parameters ask for, but is not offered here.

    Raises:
        Unimplemented: they ask for shared memory or for classification.
    """
    if "shared_memory_region" in parameters:
        raise Unimplemented(f"{what} is in shared memory, which is not offered here; send the data with the request")
    if parameters.get("classification"):
        raise Unimplemented(f"{what} is asked for as a classification, which is not offered here; ask for its values")
