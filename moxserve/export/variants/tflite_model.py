"""What a TFLite file holds, read and changed through TensorFlow's own classes for it. No interpreter.

`moxserve.serving.backends.tflite_file` reads what a server needs of it, without TensorFlow.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass, replace
from typing import Any

from moxserve.errors import ExportError
from moxserve.export.manifest import TensorNames
from moxserve.types import Signature, TensorSpec

__all__ = ["Operation", "final_operations", "read_operations", "with_signature"]

_SERVING_METADATA = b"signature_defs_metadata"
_INT8 = 9  # TensorType.INT8
_PASSING = frozenset(("RESHAPE", "SQUEEZE", "EXPAND_DIMS", "TRANSPOSE"))


@dataclass(frozen=True)
class Operation:
    """One operation of a model's graph.

    Attributes:
        kind: such as `CONV_2D`.
        name: of its first result: what the quantizer knows it by.
        inputs: indices of tensors.
        outputs: likewise.
        int8: whether it reads a tensor of int8, such as quantized weights.
    """

    kind: str
    name: str
    inputs: tuple[int, ...]
    outputs: tuple[int, ...]
    int8: bool = False

    @property
    def parts(self) -> list[str]:
        """Names of the original graph's operations that were fused into it.

        Also without the digits at the end: the converter adds some to make a name unique.
        """
        names = [part.removesuffix(":0") for part in self.name.split(";") if part]
        return [*names, *(name.rstrip("0123456789") for name in names)]


def read_operations(model: bytes) -> list[Operation]:
    """Return the operations of a model's main graph, in the order in which they run."""
    tree = _tree(model)
    return [_operation(tree, operator) for operator in tree.subgraphs[0].operators]


def final_operations(model: bytes, kinds: Collection[str]) -> list[str]:
    """Return the names of the operations of some kinds that give a model's outputs, perhaps in another shape."""
    graph = _tree(model).subgraphs[0]
    made_by = {place: operation for operation in read_operations(model) for place in operation.outputs}
    found = []
    for place in map(int, graph.outputs):
        operation = made_by.get(place)
        while operation is not None and operation.kind in _PASSING:
            operation = made_by.get(operation.inputs[0])
        if operation is not None and operation.kind in kinds:
            found.append(operation.name)
    return list(dict.fromkeys(found))


def with_signature(model: bytes, signature: Signature) -> tuple[bytes, TensorNames]:
    """Add the signature in the form that servers read, and list no output twice.

    Args:
        model: with the converter's own signature of the same name.
        signature: as the source has it.

    Returns:
        The model, and the names of its tensors by alias.

    Raises:
        ExportError: the converter has lost an input or an output.
    """
    from tensorflow.lite.python import schema_py_generated as schema
    from tensorflow.lite.tools import flatbuffer_utils

    tree = _tree(model)
    names = _names(tree, signature)
    buffer, entry = schema.BufferT(), schema.MetadataT()
    buffer.data = _flexbuffer(signature.name, _definition(signature, names))
    entry.name, entry.buffer = _SERVING_METADATA, len(tree.buffers)
    tree.buffers.append(buffer)
    tree.metadata = [*(tree.metadata or ()), entry]
    graph = tree.subgraphs[0]
    # One tensor behind two aliases: runtimes would call it two outputs of one name.
    graph.outputs = list(dict.fromkeys(map(int, graph.outputs)))
    return bytes(flatbuffer_utils.convert_object_to_bytearray(tree)), names


def _tree(model: bytes) -> Any:
    from tensorflow.lite.tools import flatbuffer_utils

    return flatbuffer_utils.convert_bytearray_to_object(bytearray(model))


def _operation(tree: Any, operator: Any) -> Operation:
    from tensorflow.lite.tools import flatbuffer_utils

    inputs, outputs = (tuple(map(int, places)) for places in (operator.inputs, operator.outputs))
    code = tree.operatorCodes[operator.opcodeIndex]
    custom = code.customCode
    kind = _text(custom) if custom else flatbuffer_utils.opcode_to_name(tree, operator.opcodeIndex)
    tensors = tree.subgraphs[0].tensors
    int8 = any(tensors[place].type == _INT8 for place in inputs if place >= 0)  # -1 is an input that was left out
    return Operation(kind, _text(tensors[outputs[0]].name) if outputs else "", inputs, outputs, int8)


def _text(value: bytes | str) -> str:
    return value.decode() if isinstance(value, bytes) else value


def _names(tree: Any, signature: Signature) -> TensorNames:
    definition = next((d for d in tree.signatureDefs or () if _text(d.signatureKey) == signature.name), None)
    if definition is None:
        raise ExportError(f"TensorFlow's converter left the signature {signature.name!r} out of the TFLite file")
    tensors = tree.subgraphs[0].tensors
    inputs, outputs = (
        {_text(entry.name): _text(tensors[entry.tensorIndex].name) for entry in side}
        for side in (definition.inputs, definition.outputs)
    )
    for kind, found, specs in (("input", inputs, signature.inputs), ("output", outputs, signature.outputs)):
        lost = sorted(set(specs) - set(found))
        if lost:
            raise ExportError(
                f"TensorFlow's converter left the {kind} {lost[0]!r} out of the TFLite file: nothing depends on it"
            )
    return TensorNames(inputs=inputs, outputs=outputs)


def _definition(signature: Signature, names: TensorNames) -> bytes:
    from moxserve.serving.backends.graph import signature_map_of

    def renamed(specs: Mapping[str, TensorSpec], known: Mapping[str, str]) -> dict[str, TensorSpec]:
        return {alias: replace(spec, tensor=known[alias]) for alias, spec in specs.items()}

    here = replace(
        signature,
        inputs=renamed(signature.inputs, names.inputs),
        outputs=renamed(signature.outputs, names.outputs),
    )
    definition = signature_map_of({signature.name: here}).signature_def[signature.name]
    return bytes(definition.SerializeToString(deterministic=True))


class _Encoded(bytes):
    """Bytes that flatbuffers takes for text: TensorFlow Serving keeps messages in strings."""

    def encode(self, *_: str) -> bytes:
        return bytes(self)


def _flexbuffer(key: str, definition: bytes) -> bytearray:
    from flatbuffers import flexbuffers

    builder = flexbuffers.Builder()
    with builder.Map():
        builder.Key(key)
        builder.String(_Encoded(definition))
    return bytearray(builder.Finish())
