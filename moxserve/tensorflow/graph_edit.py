"""Changing a graph that `model_fn` has built, before gradients are taken: edges, kernels, what depends on the input.

Both quantization-aware training and pruning start from here. Nothing is removed from a graph: operations that an edit
leaves behind have no way to the loss any more, and do not run.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from moxserve.tensorflow.executor.env import tf1
from moxserve.tensorflow.executor.spec import ModelSpec

__all__ = ["KERNEL_INPUTS", "GraphEdit", "Kernel", "find_kernels", "in_gradient", "variables_behind"]

# Operation -> its inputs that may be a kernel. The other input of a product may as well hold the weights.
KERNEL_INPUTS: Mapping[str, tuple[int, ...]] = {
    "Conv2D": (1,),
    "DepthwiseConv2dNative": (1,),
    "Conv2DBackpropInput": (1,),
    "Conv3D": (1,),
    "Conv3DBackpropInputV2": (1,),
    "MatMul": (1, 0),
    "BatchMatMul": (1, 0),
    "BatchMatMulV2": (1, 0),
}
# What may lie between a variable and the operation that uses it as its kernel.
# Tell about a value without passing it on.
_FACTS = frozenset(["Shape", "ShapeN", "Size", "Rank"])
_TRANSPARENT = frozenset(
    (
        *("Identity", "ReadVariableOp", "Cast", "Reshape", "Transpose", "Squeeze", "ExpandDims", "Mul"),
        *("FakeQuantWithMinMaxVars", "FakeQuantWithMinMaxVarsPerChannel"),
    )
)


@dataclass(frozen=True)
class Kernel:
    """An operation that computes with a kernel.

    Attributes:
        operation: a convolution or a matrix product.
        index: which of its inputs the kernel is.
        variables: where the kernel is stored; several where it is put together from parts.
    """

    operation: Any
    index: int
    variables: tuple[Any, ...]

    @property
    def variable(self) -> Any:
        """The variable, or the first of several; the kernel goes by its name."""
        return self.variables[0]


def in_gradient(operation: Any) -> bool:
    """Whether an operation belongs to a gradient that `model_fn` took itself."""
    return any(part.startswith("gradients") for part in operation.name.split("/")[:-1])


def variables_behind(tensor: Any) -> tuple[Any, ...]:
    """Return the variable of at least two dimensions that a tensor is a view of, or those that it is put together from;
    none when there is none.
    """
    known = {v.handle.op.name: v for v in tf1.global_variables() if hasattr(v, "handle")}
    pending, seen = [tensor], set()
    while pending:
        current = pending.pop()
        if current.op.name in seen:
            continue
        seen.add(current.op.name)
        found = known.get(current.op.name)
        if found is not None and found.shape.rank is not None and found.shape.rank >= 2:
            return (found,)
        if current.op.type == "ConcatV2":
            parts = [variables_behind(part) for part in current.op.inputs[:-1]]
            if all(parts):
                return tuple(variable for part in parts for variable in part)
        if current.op.type in _TRANSPARENT:
            pending += list(current.op.inputs)
        elif current.op.type == "AddV2" and current.op.inputs[1].op.type == "StopGradient":
            pending.append(current.op.inputs[0])  # rounded, with the gradient of what was rounded
    return ()


def find_kernels(operations: Iterable[Any]) -> list[Kernel]:
    """Return the convolutions and matrix products that have a kernel of their own, in the order they were made in."""
    found = []
    for operation in operations:
        if operation.type not in KERNEL_INPUTS or in_gradient(operation):
            continue
        for index in KERNEL_INPUTS[operation.type]:
            variables = variables_behind(operation.inputs[index])
            if variables:
                found.append(Kernel(operation, index, variables))
                break
    return found


class GraphEdit:
    """The operations of one call of `model_fn`, whose edges can be moved.

    Args:
        operations: what the call made, in order.
        inputs: the tensors that it was given.
    """

    def __init__(self, operations: Sequence[Any], inputs: Iterable[Any]) -> None:
        self.operations = list(operations)
        self._names = {op.name for op in self.operations}
        self._replaced: dict[str, Any] = {}
        self._fed = self.reached_from([*inputs, *self._sources()])

    def _sources(self) -> Iterator[Any]:
        """What `model_fn` gets its data from besides its arguments."""
        for op in self.operations:
            if op.type.startswith(("Placeholder", "IteratorGetNext", "Random", "StatelessRandom", "PyFunc")):
                yield from op.outputs

    def consumers(self, tensor: Any) -> list[tuple[Any, int]]:
        """Return the operations of the call that use a tensor, each with the index of the input."""
        unique = {op.name: op for op in tensor.consumers() if op.name in self._names}
        return [(op, i) for op in unique.values() for i, given in enumerate(op.inputs) if given.name == tensor.name]

    def replace(self, tensor: Any, new: Any) -> None:
        """Let everything in the call that uses a tensor use another one."""
        for operation, index in self.consumers(tensor):
            self.connect(operation, index, new)
        self._replaced[tensor.name] = new

    def adopt(self, operation: Any) -> None:
        """Take an operation that was made later for one of the call's own."""
        self._names.add(operation.name)
        self.operations.append(operation)
        if any(self.depends_on_data(t) for t in operation.inputs):
            self._fed |= {t.name for t in operation.outputs}

    def connect(self, operation: Any, index: int, tensor: Any) -> None:
        """Give an operation another input."""
        operation._update_input(index, tensor)

    def current(self, value: Any) -> Any:
        """Return what has come in place of a tensor, or the tensor itself."""
        while tf1.is_tensor(value) and getattr(value, "name", None) in self._replaced:
            value = self._replaced[value.name]
        return value

    def depends_on_data(self, tensor: Any) -> bool:
        """Whether a tensor changes with the input."""
        return tensor.name in self._fed

    def reached_from(self, tensors: Iterable[Any]) -> set[str]:
        """Return the names of the tensors of the call that are computed from the values of some tensors, those
        included. What depends on their shape alone is not.
        """
        found: set[str] = set()
        pending = list(tensors)
        while pending:
            tensor = pending.pop()
            if tensor.name in found:
                continue
            found.add(tensor.name)
            for operation, _ in self.consumers(tensor):
                if operation.type not in _FACTS:
                    pending += operation.outputs
        return found

    def needed_for(self, tensors: Iterable[Any]) -> set[str]:
        """Return the names of the tensors of the call that some tensors are computed from, those included."""
        found: set[str] = set()
        pending = list(tensors)
        while pending:
            tensor = pending.pop()
            if tensor.name not in found:
                found.add(tensor.name)
                if tensor.op.name in self._names:
                    pending += tensor.op.inputs
        return found

    def update_spec(self, spec: ModelSpec) -> None:
        """Put what has come in place of a tensor into the ModelSpec that names the tensor."""
        spec.losses = [self.current(loss) for loss in spec.losses]
        for values in (spec.log_info, spec.output_info):
            values.update({name: self.current(value) for name, value in values.items()})
        if spec.export_spec is not None:
            outputs = spec.export_spec.outputs_dict
            if isinstance(outputs, dict):
                outputs.update({name: self.current(value) for name, value in outputs.items()})
        for hook in spec.hooks:
            if isinstance(getattr(hook, "monitor_info", None), dict):
                hook.monitor_info.update({name: self.current(value) for name, value in hook.monitor_info.items()})
