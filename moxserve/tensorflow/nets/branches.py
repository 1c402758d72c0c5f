"""Parallel branches of the same layers, computed as one: the channels of all branches side by side.

A branch each of a few channels would be thousands of operations that have next to nothing to do. Here the layers are
built once, as wide as all branches together; only the variables are those of the branches. A custom getter gives the
layers, for each variable that they ask for, the branches' variables put together on the last axis, where both weights
and the vectors of batch norms have their output channels.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from moxserve.errors import UsageError
from moxserve.tensorflow.executor.env import tf, tf1
from moxserve.tensorflow.layers import Layers
from moxserve.tensorflow.layers.normalization import stored_variable

__all__ = ["Together", "build_branches"]

_VARIABLE_ARGUMENTS = ("dtype", "initializer", "regularizer", "trainable", "collections", "constraint")


def build_branches(layers: Layers, names: Sequence[str], body: Callable[[Layers, Any], Any], net: Any) -> Any:
    """Build layers as if once a branch.

    Args:
        layers: what `body` builds with.
        names: scope of each branch's variables.
        body: builds the layers of all branches at once, from images. A layer between branches must not mix their
            channels: it has as many groups as there are branches.
        net: what `body` is called with.

    Returns:
        What `body` returned.

    Raises:
        UsageError: a layer's channels do not fall into as many parts.
    """
    base = tf1.get_variable_scope().name
    made: dict[str, Any] = {}
    wanted = _rehearsed(layers, body, net)
    parts: dict[str, list[Any]] = {name: [] for name, _ in wanted}
    for branch in names:
        with tf1.variable_scope(branch):
            for name, arguments in wanted:
                parts[name].append(tf1.get_variable(name, **_of_one(name, arguments, len(names))))
    for name, arguments in wanted:
        together = Together(parts[name])
        made[f"{base}/{name}"] = together.value() if arguments["trainable"] else together

    def give(getter: Callable[..., Any], name: str, *args: Any, **kwargs: Any) -> Any:
        return made[name]

    with tf1.variable_scope(tf1.get_variable_scope(), custom_getter=give, auxiliary_name_scope=False):
        return body(layers, net)


def _rehearsed(layers: Layers, body: Callable[[Layers, Any], Any], net: Any) -> list[tuple[str, dict[str, Any]]]:
    """Build the layers in a graph of their own, and return which variables they ask for, in order.

    Only so all variables of the first branch can be made before those of the second.
    """
    wanted: list[tuple[str, dict[str, Any]]] = []

    def note(getter: Callable[..., Any], name: str, *args: Any, **kwargs: Any) -> Any:
        wanted.append((name, {"shape": kwargs["shape"], **{k: kwargs.get(k) for k in _VARIABLE_ARGUMENTS}}))
        return getter(name, *args, **kwargs)

    with tf.Graph().as_default(), tf1.variable_scope("", custom_getter=note):
        body(layers.replace(end_points=None), tf1.placeholder(net.dtype, net.shape))
    return wanted


def _of_one(name: str, arguments: dict[str, Any], branches: int) -> dict[str, Any]:
    *others, channels = tf.TensorShape(arguments["shape"]).as_list()
    if channels % branches:
        raise UsageError(f"{name}: {channels} channels do not fall into {branches} branches")
    return {**arguments, "shape": [*others, channels // branches]}


class Together:
    """Variables put together on their last axis; stands for one variable that is not trained, but assigned.

    Attributes:
        parts: the variables, all of one shape, or tensors that a custom getter made of them.
        shape: of all together.
        dtype: of each.
    """

    def __init__(self, parts: Sequence[Any]) -> None:
        self.parts = list(parts)
        *others, channels = parts[0].shape.as_list()
        self.shape = tf.TensorShape([*others, channels * len(parts)])
        self.dtype = parts[0].dtype.base_dtype

    @property
    def name(self) -> str:
        """Name of the first."""
        return str(self.parts[0].name)

    @property
    def handle(self) -> Any:
        """Handle of the first, which others are placed beside."""
        return stored_variable(self.parts[0]).handle

    def value(self) -> Any:
        """Return one tensor of all values."""
        return tf.concat(self.parts, axis=-1)

    def __add__(self, other: Any) -> Any:
        return self.value() + other

    def __sub__(self, other: Any) -> Any:
        return self.value() - other

    def read_value(self) -> Any:
        """Return one tensor of all values, read after what this operation depends on."""
        return tf.concat([stored_variable(part).read_value() for part in self.parts], axis=-1)

    def assign(self, value: Any, read_value: bool = False) -> Any:
        """Return the operation that gives each variable its part of a value."""
        return self._each("assign", value)

    def assign_sub(self, delta: Any, read_value: bool = False) -> Any:
        """Return the operation that takes its part of a value from each variable."""
        return self._each("assign_sub", delta)

    def _each(self, method: str, value: Any) -> Any:
        values = tf.split(value, len(self.parts), axis=-1)
        stored = [stored_variable(part) for part in self.parts]
        return tf.group(
            *(getattr(variable, method)(own, read_value=False) for variable, own in zip(stored, values, strict=True))
        )


def _to_tensor(together: Together, dtype: Any = None, name: str | None = None, as_ref: bool = False) -> Any:
    if dtype is not None and not tf.as_dtype(dtype).base_dtype.is_compatible_with(together.dtype):
        return NotImplemented
    return together.value()


tf.register_tensor_conversion_function(Together, _to_tensor)
