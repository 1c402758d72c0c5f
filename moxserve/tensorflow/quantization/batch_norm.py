"""Batch norms in a graph: found in either of their forms, fused or spelled out, with the variables of their averages.

In a TRAIN graph a batch norm takes the statistics of the batch, and operations beside it move the averages. Folding
needs the averages, so they are looked for where the batch's statistics are assigned to.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from moxserve.errors import ModelSpecError
from moxserve.tensorflow.executor.env import tf, tf1
from moxserve.tensorflow.graph_edit import GraphEdit

__all__ = ["BatchNorm", "find_batch_norms", "is_frozen_update"]

_FUSED = ("FusedBatchNorm", "FusedBatchNormV2", "FusedBatchNormV3")
_ADD = ("Add", "AddV2")
_VIEWS = ("Identity", "Reshape", "Squeeze", "Cast", "StopGradient")
_ASSIGN = ("AssignVariableOp", "AssignSubVariableOp", "AssignAddVariableOp")
# What lies between the statistics of a batch and the assignment to their moving average.
_TO_AVERAGE = (*_VIEWS, *_ADD, "Sub", "Mul", "RealDiv", "Select", "SelectV2")


@dataclass(frozen=True)
class BatchNorm:
    """A batch norm.

    Attributes:
        data: what is normalised, channels last or as `data_format` says.
        output: the result.
        gamma: scale, or None.
        beta: offset, or None.
        mean: that it uses: of the batch, or the moving average.
        variance: likewise.
        epsilon: added to the variance.
        data_format: `NHWC` or `NCHW`.
        inner: names of the operations that it consists of.
    """

    data: Any
    output: Any
    gamma: Any
    beta: Any
    mean: Any
    variance: Any
    epsilon: Any
    data_format: str
    inner: frozenset[str]

    @property
    def channels(self) -> int | None:
        """Length of the vectors."""
        return self.data.shape[1 if self.data_format == "NCHW" else -1]

    def moving_variables(self, edit: GraphEdit) -> tuple[list[Any], list[Any]]:
        """Return the variables of the moving mean and variance, where the batch norm uses the statistics of its batch;
        several each where they are put together from parts.

        Raises:
            ModelSpecError: there are none, or they could not be found.
        """
        found = []
        for statistic, name in ((self.mean, "mean"), (self.variance, "variance")):
            parts = _average_of(statistic, self.channels, edit)
            if not parts:
                raise ModelSpecError(
                    f"quantization: the moving {name} of the batch norm {self.output.op.name!r} was not found",
                    hint="keep moving averages with update operations, or leave the layer out with `exclude`",
                )
            found.append(parts)
        return found[0], found[1]

    def uses_batch(self, edit: GraphEdit) -> bool:
        """Whether the statistics are those of the batch."""
        return edit.depends_on_data(self.mean)

    def scale_and_shift(self, edit: GraphEdit) -> tuple[Any, Any]:
        """Return the two vectors of `y = x * scale + shift`, from the moving averages."""
        pair = [_read(parts) for parts in self.moving_variables(edit)] if self.uses_batch(edit) else None
        # A fine-tuning with batches' own statistics would train a model that is not the one that is exported.
        mean, variance = (tf.stop_gradient(tf.reshape(t, [-1])) for t in pair or (self.mean, self.variance))
        scale = tf1.rsqrt(variance + self.epsilon)
        if self.gamma is not None:
            scale *= tf.reshape(self.gamma, [-1])
        shift = -mean * scale
        return scale, shift if self.beta is None else shift + tf.reshape(self.beta, [-1])


def _read(parts: list[Any]) -> Any:
    values = [variable.read_value() for variable in parts]
    return values[0] if len(values) == 1 else tf.concat(values, axis=-1)


def _average_of(statistic: Any, channels: int | None, edit: GraphEdit) -> list[Any]:
    """Follow the statistics of a batch to the variable that they are averaged in, or to those of their parts."""
    variables = {v.handle.op.name: v for v in tf1.global_variables() if hasattr(v, "handle")}
    pending, seen = [statistic], set()
    while pending:
        tensor = pending.pop(0)
        for op, _ in edit.consumers(tensor):
            if op.name in seen:
                continue
            seen.add(op.name)
            if op.type in _ASSIGN and op.inputs[0].op.name in variables:
                return [variables[op.inputs[0].op.name]]
            if op.type == "Split" and channels is not None:
                parts = [_average_of(part, channels // len(op.outputs), edit) for part in op.outputs]
                if all(len(part) == 1 for part in parts):
                    return [part[0] for part in parts]
            if op.type in _TO_AVERAGE and op.outputs[0].shape.num_elements() == channels:
                pending += op.outputs
    return []


def find_batch_norms(edit: GraphEdit) -> list[BatchNorm]:
    """Return the batch norms of a graph, in order."""
    found = []
    for op in edit.operations:
        norm = _fused(op) if op.type in _FUSED else _spelled_out(op, edit) if op.type in _ADD else None
        if norm is not None and _is_per_channel(norm, edit):
            found.append(norm)
    return found


def _is_per_channel(norm: BatchNorm, edit: GraphEdit) -> bool:
    """Tell a batch norm from norms of single rows, which are built of the same operations."""
    if norm.data.dtype != tf.float32 or norm.channels is None or not edit.depends_on_data(norm.data):
        return False
    if norm.mean.shape.num_elements() != norm.channels or norm.mean.shape[-1] != norm.channels:
        return False
    vectors = [t for t in (norm.gamma, norm.beta) if t is not None]
    if any(edit.depends_on_data(t) for t in vectors):
        return False
    if norm.uses_batch(edit) and all(t.op.type in ("Const", "Fill") for t in vectors):
        # Keras builds its layer norm of a fused batch norm, whose channels are the rows.
        return bool(_average_of(norm.mean, norm.channels, edit))
    return True


def _fused(op: Any) -> BatchNorm:
    data, gamma, beta, mean, variance = op.inputs[:5]
    trains = op.get_attr("is_training")
    return BatchNorm(
        data,
        op.outputs[0],
        gamma,
        beta,
        op.outputs[1] if trains else mean,
        op.outputs[2] if trains else variance,
        op.get_attr("epsilon"),
        op.get_attr("data_format").decode(),
        frozenset([op.name]),
    )


def _spelled_out(op: Any, edit: GraphEdit) -> BatchNorm | None:
    """Match `x * inv + (beta - mean * inv)` with `inv = rsqrt(variance + epsilon) * gamma`; gamma, beta may be absent.

    That is what tf.nn.batch_normalization builds.
    """
    for product, offset in ((op.inputs[0], op.inputs[1]), (op.inputs[1], op.inputs[0])):
        if product.op.type != "Mul" or offset.op.type not in ("Sub", "Mul"):
            continue
        data, inverse = product.op.inputs
        parts = _inverse(inverse)
        shift = _offset(offset, inverse)
        if parts is None or shift is None or data.shape.rank not in (2, 3, 4):
            continue
        (variance, epsilon, gamma), (mean, beta) = parts, shift
        between = edit.needed_for([op.outputs[0]]) & edit.reached_from([data])
        inner = {name.rpartition(":")[0] for name in between - {data.name}}
        return BatchNorm(data, op.outputs[0], gamma, beta, mean, variance, epsilon, "NHWC", frozenset(inner))
    return None


def _unwrapped(tensor: Any, *types: str) -> Any:
    """Look through views; give the operation if it is one of some types."""
    while tensor.op.type in ("Identity", "Cast"):
        tensor = tensor.op.inputs[0]
    return tensor.op if tensor.op.type in types else None


def _inverse(tensor: Any) -> tuple[Any, Any, Any] | None:
    """Take `rsqrt(variance + epsilon) * gamma` apart into variance, epsilon and gamma."""
    root, gamma = _unwrapped(tensor, "Rsqrt"), None
    product = _unwrapped(tensor, "Mul")
    if root is None and product is not None:
        for first, second in (product.inputs, reversed(product.inputs)):
            root = root or _unwrapped(first, "Rsqrt")
            if root is not None and gamma is None:
                gamma = second
    added = None if root is None else _unwrapped(root.inputs[0], *_ADD)
    if added is None:
        return None
    variance, epsilon = added.inputs
    if epsilon.shape.rank != 0:
        variance, epsilon = epsilon, variance
    return (variance, epsilon, gamma) if epsilon.shape.rank == 0 else None


def _offset(tensor: Any, inverse: Any) -> tuple[Any, Any] | None:
    """Take `beta - mean * inverse` or `-mean * inverse` apart into mean and beta."""
    op, beta = tensor.op, None
    if op.type == "Sub":
        beta, tensor = op.inputs
        op = tensor.op
    if op.type != "Mul":
        return None
    left, right = op.inputs
    if inverse.name not in (left.name, right.name):
        return None
    mean = left if right.name == inverse.name else right
    if beta is None:
        if mean.op.type != "Neg":
            return None
        mean = mean.op.inputs[0]
    return mean, beta


def is_frozen_update(item: Any, frozen: Iterable[str], edit: GraphEdit) -> bool:
    """Whether an update operation moves one of these variables.

    Args:
        item: an operation or tensor out of UPDATE_OPS.
        frozen: names of the variables' handles.
        edit: the graph.
    """
    names, handles = {op.name for op in edit.operations}, set(frozen)
    pending, seen = [item if isinstance(item, tf1.Operation) else item.op], set()
    while pending:
        op = pending.pop()
        if op.name in seen or op.name not in names:
            continue
        seen.add(op.name)
        if op.type in _ASSIGN and op.inputs[0].op.name in handles:
            return True
        if op.type not in _ASSIGN:
            pending += [*op.control_inputs, *(t.op for t in op.inputs)]
    return False
