"""TFLite's ParseExample operation, done here: the runtimes' Python packages do not have it.

A model that takes serialized tf.Examples begins with that operation. It is cut out of the model: what it would give
becomes inputs of the rest, and is parsed here. Dense and sparse features, in both versions of the operation; not
ragged ones.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from google.protobuf.message import DecodeError

from moxserve.errors import InvalidArgument, MissingExtraError, Unimplemented
from moxserve.protocol import messages

__all__ = ["CUSTOM_OPS", "ExampleParser", "cut_examples"]

CUSTOM_OPS = ("ParseExample", "ParseExampleV2")
_DTYPES: dict[int, Any] = {0: np.float32, 4: np.int64, 5: object}
_LISTS = {np.dtype(np.float32): "float_list", np.dtype(np.int64): "int64_list", np.dtype(object): "bytes_list"}
_KINDS = {"float_list": "float", "int64_list": "int64", "bytes_list": "string"}


@dataclass(frozen=True)
class _Feature:
    """A feature that the model takes.

    Attributes:
        key: in the tf.Example.
        dtype: of its values.
        shape: of its values in one example; None for a sparse one.
        default: values for an example that lacks it; None when it must be there.
        tensors: names of the tensors that it becomes: the values, or indices, values and shape of a sparse one.
    """

    key: str
    dtype: np.dtype[Any]
    shape: tuple[int, ...] | None
    default: np.ndarray | None
    tensors: tuple[str, ...]


class ExampleParser:
    """Parses what the operation would parse.

    Args:
        source: name of the tensor with the serialized tf.Examples.
        features: what it takes of them.

    Attributes:
        source: as given.
        tensors: names of the tensors that it gives.
    """

    def __init__(self, source: str, features: Sequence[_Feature]) -> None:
        self.source = source
        self.tensors = tuple(name for feature in features for name in feature.tensors)
        self._features = features

    def parse(self, serialized: np.ndarray) -> dict[str, np.ndarray]:
        """Parse `[batch] string` into the model's tensors, by name.

        Raises:
            InvalidArgument: an element is no tf.Example, or its features are not those that the model takes.
        """
        if serialized.ndim != 1:
            raise InvalidArgument(f"Expected serialized to be a vector, got shape: {list(serialized.shape)}")
        examples = [_example(data, i) for i, data in enumerate(serialized)]
        found: dict[str, np.ndarray] = {}
        for feature in self._features:
            rows = [_values(example, feature, i) for i, example in enumerate(examples)]
            parsed = [_dense(rows, feature)] if feature.shape is not None else _sparse(rows, feature)
            found.update(zip(feature.tensors, parsed, strict=True))
        return found


def _example(data: Any, index: int) -> Any:
    try:
        return messages.Example.FromString(data if isinstance(data, bytes) else str(data).encode())
    except DecodeError:
        raise InvalidArgument(f"Could not parse example input, element {index}") from None


def _values(example: Any, feature: _Feature, index: int) -> Sequence[Any] | None:
    """Return the values of a feature in one example; None when it has none."""
    stored = example.features.feature
    kind = stored[feature.key].WhichOneof("kind") if feature.key in stored else None
    if kind is None:
        return None
    wanted = _LISTS[feature.dtype]
    if kind != wanted:
        raise InvalidArgument(
            f"Name: <unknown>, Key: {feature.key}, Index: {index}.  Data types don't match. "
            f"Data type: {_KINDS[kind]} but expected type: {_KINDS[wanted]}"
        )
    values: Sequence[Any] = getattr(stored[feature.key], kind).value
    return values


def _dense(rows: Sequence[Sequence[Any] | None], feature: _Feature) -> np.ndarray:
    shape = feature.shape or ()
    size = int(np.prod(shape, dtype=np.int64))
    result = np.empty((len(rows), size), feature.dtype)
    for i, values in enumerate(rows):
        if values is None and feature.default is None:
            raise InvalidArgument(
                f"Name: <unknown>, Feature: {feature.key} (data type: {_KINDS[_LISTS[feature.dtype]]}) is required but "
                "could not be found."
            )
        if values is not None and len(values) != size:
            raise InvalidArgument(
                f"Name: <unknown>, Key: {feature.key}, Index: {i}.  Number of {_KINDS[_LISTS[feature.dtype]]} values "
                f"!= expected.  Values size: {len(values)} but output shape: {list(shape)}"
            )
        result[i] = feature.default if values is None else values
    return result.reshape(len(rows), *shape)


def _sparse(rows: Sequence[Sequence[Any] | None], feature: _Feature) -> list[np.ndarray]:
    lists = [values or () for values in rows]
    indices = [(i, j) for i, values in enumerate(lists) for j in range(len(values))]
    flat = np.empty(len(indices), feature.dtype)
    flat[:] = [value for values in lists for value in values]
    longest = max((len(values) for values in lists), default=0)
    return [np.array(indices, np.int64).reshape(-1, 2), flat, np.array([len(rows), longest], np.int64)]


def cut_examples(data: bytes) -> tuple[bytes, ExampleParser]:
    """Cut the operation out of a model.

    Args:
        data: a TFLite file with one of the custom operations.

    Returns:
        The rest of the model, which takes parsed features, and what parses them.

    Raises:
        Unimplemented: the operation is used in a way that is not known here.
    """
    import flatbuffers

    schema = _schema()
    model = schema.ModelT.InitFromObj(schema.Model.GetRootAs(data, 0))
    graph = model.subgraphs[0]
    codes = [_text(code.customCode) for code in model.operatorCodes]
    places = [op for op in graph.operators if codes[op.opcodeIndex] in CUSTOM_OPS]
    if len(places) != 1 or len(model.subgraphs) != 1:
        raise Unimplemented("a TFLite model with ParseExample in several places is not served")
    op = places[0]
    tensors = _Tensors(model, graph)
    features = _features(op, codes[op.opcodeIndex], tensors)
    parser = ExampleParser(tensors.name(op.inputs[0]), features)
    graph.operators = [other for other in graph.operators if other is not op]
    used = {int(i) for other in graph.operators for i in other.inputs} | {int(i) for i in graph.outputs}
    kept = [int(i) for i in graph.inputs if int(i) != int(op.inputs[0])]
    graph.inputs = np.array([*kept, *(int(i) for i in op.outputs if int(i) in used)], np.int32)
    builder = flatbuffers.Builder(len(data) + 1024)
    builder.Finish(model.Pack(builder), b"TFL3")
    return bytes(builder.Output()), parser


def _schema() -> Any:
    try:
        from ai_edge_litert import schema_py_generated
    except ImportError:
        pass
    else:
        return schema_py_generated
    try:
        from tensorflow.lite.python import schema_py_generated as own
    except ImportError:
        raise MissingExtraError("ai-edge-litert or tensorflow", "tflite", "a TFLite model with ParseExample") from None
    return own


class _Tensors:
    """Names, shapes and constants of a graph's tensors, by index."""

    def __init__(self, model: Any, graph: Any) -> None:
        self._buffers, self._all = model.buffers, graph.tensors

    def name(self, index: int) -> str:
        return _text(self._all[index].name)

    def dtype(self, index: int) -> np.dtype[Any]:
        kind = self._all[index].type
        if kind not in _DTYPES:
            raise Unimplemented(
                f"ParseExample gives a tensor of TFLite type {kind}; float32, int64 and string are known"
            )
        return np.dtype(_DTYPES[kind])

    def row_shape(self, index: int) -> tuple[int, ...]:
        tensor = self._all[index]
        dims = tensor.shapeSignature if tensor.shapeSignature is not None else tensor.shape
        shape = tuple(int(n) for n in dims)[1:]
        if any(n < 0 for n in shape):
            raise Unimplemented(f"ParseExample with features of varying length ({self.name(index)!r}) is not served")
        return shape

    def constant(self, index: int) -> np.ndarray:
        """Return the values of a constant, flat; empty when it has none."""
        stored = self._buffers[self._all[index].buffer].data
        data = b"" if stored is None else bytes(bytearray(stored))
        dtype = self.dtype(index)
        return _strings(data) if dtype.kind == "O" else np.frombuffer(data, dtype)


def _features(op: Any, name: str, tensors: _Tensors) -> list[_Feature]:
    from flatbuffers import flexbuffers

    options = flexbuffers.GetRoot(bytes(bytearray(op.customOptions))).AsMap
    sparse = options["num_sparse"].AsInt
    inputs, outputs = [int(i) for i in op.inputs], [int(i) for i in op.outputs]
    if name == "ParseExampleV2":
        sparse_keys, dense_keys, ragged_keys = (tensors.constant(i).tolist() for i in inputs[2:5])
        defaults = inputs[5:]
        if ragged_keys:
            raise Unimplemented("a TFLite model whose ParseExample gives ragged features is not served")
    else:
        keys = inputs[2 : 2 + sparse + len(outputs) - 3 * sparse]
        names = [tensors.constant(i).tolist()[0] for i in keys]
        sparse_keys, dense_keys, defaults = names[:sparse], names[sparse:], inputs[2 + len(keys) :]
    dense = outputs[3 * sparse :]
    if not len(dense_keys) == len(dense) == len(defaults) or len(sparse_keys) != sparse:
        raise Unimplemented("a TFLite model with a ParseExample of unknown form is not served")
    found = [
        _Feature(
            key.decode(), tensors.dtype(outputs[sparse + i]), None, None,
            tuple(tensors.name(outputs[i + k * sparse]) for k in range(3)),
        )
        for i, key in enumerate(sparse_keys)
    ]  # fmt: skip
    for key, place, default in zip(dense_keys, dense, defaults, strict=True):
        values = tensors.constant(default)
        shape = tensors.row_shape(place)
        found.append(
            _Feature(key.decode(), tensors.dtype(place), shape, values if values.size else None, (tensors.name(place),))
        )
    return found


def _strings(data: bytes) -> np.ndarray:
    """Read a tensor of strings: their count, where each begins and the last ends, then their bytes."""
    if not data:
        return np.empty(0, object)
    (count,) = np.frombuffer(data, "<i4", 1)
    offsets = np.frombuffer(data, "<i4", int(count) + 1, 4)
    result = np.empty(int(count), object)
    result[:] = [data[a:b] for a, b in itertools.pairwise(offsets.tolist())]
    return result


def _text(value: bytes | str | None) -> str:
    return value.decode() if isinstance(value, bytes) else value or ""
