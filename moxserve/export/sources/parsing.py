"""Which features a graph parses out of tf.Examples, and examples that hold them.

A signature that takes serialized tf.Examples says nothing about what must be in them; its graph does.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from moxserve.errors import InvalidArgument
from moxserve.export.sources.samples import Samples
from moxserve.protocol.examples import make_example
from moxserve.types import DType, Signature, dtype_by_enum, node_name

__all__ = ["Feature", "example_requests", "parsed_features"]

_MAX_ROWS = 64
_MAX_PARSERS = 4


@dataclass(frozen=True)
class Feature:
    """One feature of a tf.Example.

    Attributes:
        dtype: int64, float32 or string.
        shape: of one row; empty lists of lists of any length.
    """

    dtype: DType
    shape: tuple[int, ...]


def parsed_features(graph_def: Any, tensor: str) -> Iterator[dict[str, Feature]]:
    """Yield what the parsers of a graph look for: the one that reads `tensor` first, if that can be told.

    Args:
        graph_def: a GraphDef; the functions that it calls count, too.
        tensor: name of the tensor with the serialized examples.
    """
    bodies = [graph_def.node, *(function.node_def for function in graph_def.library.function)]
    wanted = node_name(tensor)
    found = [
        (_source(node.input[0], nodes) != wanted, node, nodes)
        for body, nodes in ((body, {node.name: node for node in body}) for body in bodies)
        for node in body
        if node.op in ("ParseExample", "ParseExampleV2")
    ]
    for _, node, nodes in sorted(found, key=lambda item: item[0])[:_MAX_PARSERS]:
        features = _features(node, nodes)
        if features:
            yield features


def _source(name: str, nodes: Mapping[str, Any]) -> str:
    """Follow identities back to where a tensor comes from."""
    node = nodes.get(node_name(name))
    while node is not None and node.op == "Identity" and node.input:
        node = nodes.get(node_name(node.input[0]))
    return node.name if node is not None else name


def _features(node: Any, nodes: Mapping[str, Any]) -> dict[str, Feature]:
    """Read a parser's attributes and constant inputs; empty when a key is no constant."""
    attributes = node.attr
    if node.op == "ParseExample":
        sparse, dense = int(attributes["Nsparse"].i), int(attributes["Ndense"].i)
        sparse_keys = [key for name in node.input[2 : 2 + sparse] for key in _strings(name, nodes)]
        dense_keys = [key for name in node.input[2 + sparse : 2 + sparse + dense] for key in _strings(name, nodes)]
    else:
        sparse_keys, dense_keys = (_strings(name, nodes) for name in node.input[2:4])
    shapes = attributes["dense_shapes"].list.shape
    lists = [(key, enum, ()) for key, enum in zip(sparse_keys, attributes["sparse_types"].list.type, strict=False)]
    arrays = [
        (key, enum, tuple(max(1, d.size) for d in shape.dim))
        for key, enum, shape in zip(dense_keys, attributes["Tdense"].list.type, shapes, strict=False)
    ]
    try:
        return {key: Feature(dtype_by_enum(enum), shape) for key, enum, shape in [*lists, *arrays]}
    except InvalidArgument:
        return {}


def _strings(name: str, nodes: Mapping[str, Any]) -> list[str]:
    node = nodes.get(_source(name, nodes))
    if node is None or node.op != "Const":
        return []
    import tensorflow as tf

    values = np.ravel(tf.make_ndarray(node.attr["value"].tensor))
    return [value.decode("utf-8", "replace") for value in values]


def example_requests(
    graph_def: Any, signature: Signature, samples: Samples
) -> Iterator[tuple[dict[str, np.ndarray], bool]]:
    """Make requests for a signature that takes serialized tf.Examples.

    Args:
        graph_def: of the model.
        signature: any; nothing is made for one that takes something else.
        samples: rows by name; features of these names are taken from them, others are zeros.

    Yields:
        Inputs by alias, and whether they come from real rows.
    """
    ((alias, spec),) = signature.inputs.items() if len(signature.inputs) == 1 else (("", None),)
    if spec is None or spec.dtype.name != "string" or (spec.shape is not None and len(spec.shape) != 1):
        return
    for features in parsed_features(graph_def, spec.tensor):
        real = {key: values for key, values in samples.inputs.items() if _holds(features.get(key), values)}
        count = min(len(samples), _MAX_ROWS) if real else 1
        examples = np.empty(count, dtype=object)
        examples[:] = list(_examples(features, real, count))
        yield {alias: examples}, bool(real)


def _holds(feature: Feature | None, values: np.ndarray) -> bool:
    if feature is None:
        return False
    if (feature.dtype.name == "string") != (values.dtype == object):
        return False
    return not feature.shape or int(np.prod(feature.shape)) == int(np.prod(values.shape[1:]))


def _examples(features: Mapping[str, Feature], real: Mapping[str, np.ndarray], count: int) -> Iterable[bytes]:
    for i in range(count):
        row = {
            key: real[key][i].astype(feature.dtype.numpy) if key in real else _zeros(feature)
            for key, feature in features.items()
        }
        yield make_example(row).SerializeToString()


def _zeros(feature: Feature) -> np.ndarray:
    empty: Any = b"" if feature.dtype.name == "string" else 0
    return np.full(feature.shape or (1,), empty, dtype=feature.dtype.numpy)
