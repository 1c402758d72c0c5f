"""What a TFLite file tells besides its graph: signatures, custom operations. Read from the flatbuffer, no runtime.

Fields are taken by their place in TensorFlow Lite's schema, of which only these tables matter here:

    Model         1 operator_codes, 2 subgraphs, 4 buffers, 6 metadata, 7 signature_defs
    SubGraph      0 tensors
    Tensor        3 name
    OperatorCode  1 custom_code
    Buffer        0 data
    Metadata      0 name, 1 buffer
    SignatureDef  0 inputs, 1 outputs, 2 signature_key, 4 subgraph_index
    TensorMap     0 name, 1 tensor_index

TensorFlow Serving's own signatures are in the metadata entry `signature_defs_metadata`: a flexbuffer map of signature
key to the bytes of a SignatureDef. The converter's `signature_defs` came later.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from google.protobuf.message import DecodeError

from moxserve.errors import InvalidArgument, MissingExtraError
from moxserve.export.manifest import TensorNames
from moxserve.protocol import messages

__all__ = ["TfliteFile", "read_tflite"]

_METADATA = b"signature_defs_metadata"


@dataclass(frozen=True, slots=True)
class TfliteFile:
    """What a file tells.

    Attributes:
        signature_map: SignatureDefMap of TensorFlow Serving's metadata; None when there is none.
        names: of the converter's signatures: alias -> name of the tensor.
        custom_ops: names of the operations that are not built in.
    """

    signature_map: Any
    names: dict[str, TensorNames]
    custom_ops: tuple[str, ...]


def read_tflite(data: bytes) -> TfliteFile:
    """Read a `.tflite` file.

    Raises:
        InvalidArgument: it is none, or its signatures cannot be read.
        MissingExtraError: the flatbuffers package is not installed.
    """
    try:
        model = _root(data)
        custom = [_text(code, 1) for code in _tables(model, 1)]
        return TfliteFile(_serving_signatures(model), _converter_signatures(model), tuple(filter(None, custom)))
    except ImportError:
        raise MissingExtraError("flatbuffers", "tflite", "serving a TFLite model") from None
    except (struct.error, IndexError, ValueError, TypeError, OverflowError, DecodeError) as error:
        raise InvalidArgument(f"Cannot build FlatBufferModel from buffer: {error}") from None


def _root(data: bytes) -> Any:
    from flatbuffers import encode, packer
    from flatbuffers.table import Table

    if data[4:8] != b"TFL3":
        raise ValueError("the file does not begin as a TFLite model does")
    return Table(data, encode.Get(packer.uoffset, data, 0))


def _field(table: Any, number: int) -> int:
    """Return where a field begins; 0 when it is not there."""
    offset: int = table.Offset(4 + 2 * number)
    return offset


def _tables(table: Any, number: int) -> Iterator[Any]:
    from flatbuffers.table import Table

    offset = _field(table, number)
    if offset:
        start = table.Vector(offset)
        for i in range(table.VectorLen(offset)):
            yield Table(table.Bytes, table.Indirect(start + 4 * i))


def _bytes(table: Any, number: int) -> bytes:
    offset = _field(table, number)
    if not offset:
        return b""
    start = table.Vector(offset)
    return bytes(table.Bytes[start : start + table.VectorLen(offset)])


def _text(table: Any, number: int) -> str:
    return _bytes(table, number).decode()


def _uint32(table: Any, number: int) -> int:
    from flatbuffers import number_types

    offset = _field(table, number)
    value: int = table.Get(number_types.Uint32Flags, offset + table.Pos) if offset else 0
    return value


def _serving_signatures(model: Any) -> Any:
    from flatbuffers import flexbuffers

    for entry in _tables(model, 6):
        if _bytes(entry, 0) == _METADATA:
            stored = flexbuffers.GetRoot(_bytes(list(_tables(model, 4))[_uint32(entry, 1)], 0)).AsMap
            signature_map = messages.SignatureDefMap()
            for key, value in zip(stored.Keys, stored.Values, strict=True):
                signature_map.signature_def[key.AsKey].ParseFromString(bytes(value.AsStringBytes))
            return signature_map if signature_map.signature_def else None
    return None


def _converter_signatures(model: Any) -> dict[str, TensorNames]:
    found = {}
    subgraphs = list(_tables(model, 2))
    for definition in _tables(model, 7):
        if _uint32(definition, 4) != 0:
            continue  # of another subgraph: the interpreter runs the first
        names = [_text(tensor, 3) for tensor in _tables(subgraphs[0], 0)]
        inputs, outputs = (
            {_text(entry, 0): names[_uint32(entry, 1)] for entry in _tables(definition, side)} for side in (0, 1)
        )
        found[_text(definition, 2)] = TensorNames(inputs=inputs, outputs=outputs)
    return found
