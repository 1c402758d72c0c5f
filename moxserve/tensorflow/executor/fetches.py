"""What a hook asks to be fetched and fed, compiled to flat lists of names, and the way back into its structure."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from moxserve.errors import ModelSpecError
from moxserve.tensorflow.executor.env import tf1

__all__ = ["FetchPlan", "compile_feed", "compile_fetches"]

_Rebuild = Callable[[Sequence[Any]], Any]


class FetchPlan:
    """A fetch structure, compiled.

    Attributes:
        names: tensors to fetch, in the order that `rebuild` expects.
        targets: operations to run.
        rebuild: turns the fetched values back into the structure; None where the structure held an operation.
    """

    __slots__ = ("names", "rebuild", "targets")

    def __init__(self) -> None:
        self.names: list[str] = []
        self.targets: list[str] = []
        self.rebuild: _Rebuild = lambda values: None

    def visit(self, graph: Any, item: Any) -> _Rebuild:
        """Add one node of the structure."""
        if item is None:
            return lambda values: None
        if isinstance(item, Mapping):
            return self._mapping(graph, item)
        if isinstance(item, (list, tuple)):
            return self._sequence(graph, item)
        if isinstance(item, tf1.SparseTensor):
            return self._parts(graph, tf1.SparseTensorValue, (item.indices, item.values, item.dense_shape))
        return self._leaf(graph, item)

    def _leaf(self, graph: Any, item: Any) -> _Rebuild:
        try:
            element = graph.as_graph_element(item, allow_tensor=True, allow_operation=True)
        except (KeyError, TypeError, ValueError) as error:
            raise ModelSpecError(f"a hook asked to fetch {item!r}, which is not in this graph: {error}") from error
        if isinstance(element, tf1.Operation):
            self.targets.append(element.name)
            return lambda values: None
        position = len(self.names)
        self.names.append(element.name)
        return lambda values: values[position]

    def _parts(self, graph: Any, kind: Callable[..., Any], items: Sequence[Any]) -> _Rebuild:
        parts = [self.visit(graph, item) for item in items]
        return lambda values: kind(*(part(values) for part in parts))

    def _sequence(self, graph: Any, items: Sequence[Any]) -> _Rebuild:
        if hasattr(items, "_fields"):  # a namedtuple
            return self._parts(graph, type(items), items)
        parts = [self.visit(graph, item) for item in items]
        kind = tuple if isinstance(items, tuple) else list
        return lambda values: kind(part(values) for part in parts)

    def _mapping(self, graph: Any, items: Mapping[Any, Any]) -> _Rebuild:
        parts = [(key, self.visit(graph, item)) for key, item in items.items()]
        kind: Any = type(items) if isinstance(items, dict) else dict
        return lambda values: kind((key, part(values)) for key, part in parts)


def compile_fetches(graph: Any, fetches: Any) -> FetchPlan:
    """Compile a fetch structure: a tensor, operation, variable, name, or dicts, lists and tuples of them.

    Raises:
        ModelSpecError: a leaf is not in the graph.
    """
    plan = FetchPlan()
    plan.rebuild = plan.visit(graph, fetches)
    return plan


def compile_feed(graph: Any, key: Any, value: Any) -> tuple[str, np.ndarray]:
    """Turn one entry of a feed_dict into a tensor name and an array of that tensor's dtype.

    Raises:
        ModelSpecError: the key is no tensor of the graph, or the value does not fit it.
    """
    try:
        tensor = graph.as_graph_element(key, allow_tensor=True, allow_operation=False)
    except (KeyError, TypeError, ValueError) as error:
        raise ModelSpecError(f"a feed_dict has the key {key!r}, which is no tensor of this graph: {error}") from error
    try:
        array = np.asarray(value, dtype=tensor.dtype.as_numpy_dtype)
    except (TypeError, ValueError) as error:
        raise ModelSpecError(
            f"cannot feed {tensor.name} ({tensor.dtype.name}) with {type(value).__name__}: {error}"
        ) from error
    if not tensor.shape.is_compatible_with(array.shape):
        raise ModelSpecError(f"cannot feed {tensor.name} of shape {tensor.shape} with an array of shape {array.shape}")
    return tensor.name, array
