"""Ranges that quantization-aware training has left in a TensorFlow graph, as fake-quantization operations.

Those of weights (nothing but constants goes in) are computed here, so that what is left are weights on their grid.
Those of activations become either operations in float32 that compute the same (`simulate`: a float32 variant answers as
the source does), or the one form that tf2onnx turns into QuantizeLinear and DequantizeLinear (`mark`), for int8.

The grid of a range is TensorFlow's: both ends are moved so that zero is on it ("nudged", see
`tf.quantization.fake_quant_with_min_max_vars`).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from moxserve.errors import ExportError

__all__ = ["Grid", "LearnedWeights", "has_ranges", "mark", "simulate"]

_OPS = ("FakeQuantWithMinMaxVars", "FakeQuantWithMinMaxVarsPerChannel", "FakeQuantWithMinMaxArgs")
_INPUTS = ("Placeholder", "PlaceholderWithDefault", "PlaceholderV2")
_BITS = 8


@dataclass(frozen=True)
class Grid:
    """The numbers that a fake quantization leaves: `scale * (q - zero)` for whole `q` from `least` to `most`.

    Attributes:
        scale: `[] or [channels] float32`; the channels are the last axis.
        zero: of the same shape; whole numbers.
        least: smallest `q`, 0 or 1.
        most: largest `q`, 255 for 8 bits.
    """

    scale: np.ndarray
    zero: np.ndarray
    least: int
    most: int

    @classmethod
    def of(cls, node: Any, low: np.ndarray, high: np.ndarray) -> Grid:
        """Nudge a range as TensorFlow does.

        Args:
            node: the NodeDef.
            low: lower end of the range, or ends.
            high: upper end.

        Raises:
            ExportError: a range that is empty or no number.
        """
        bits = node.attr["num_bits"].i or _BITS
        least, most = int(node.attr["narrow_range"].b), 2**bits - 1
        # In float32 as there: at -1 to 1, rounding decides on which side of the middle zero comes to lie.
        low, high = np.asarray(low, np.float32), np.asarray(high, np.float32)
        if not (np.isfinite(low).all() and np.isfinite(high).all() and (low < high).all()):
            raise ExportError(
                f"the learned range of {node.name!r} is {low.min():g} to {high.max():g}: it was never trained",
                hint="train some steps with quantization before the export",
            )
        scale = (high - low) / np.float32(most - least)
        zero = np.clip(np.floor(np.float32(least) - low / scale + np.float32(0.5)), least, most)
        return cls(np.asarray(scale, np.float32), np.asarray(zero, np.float32), least, most)

    @property
    def low(self) -> np.ndarray:
        """Smallest number."""
        return np.asarray((np.float32(self.least) - self.zero) * self.scale)

    @property
    def high(self) -> np.ndarray:
        """Largest number."""
        return np.asarray((np.float32(self.most) - self.zero) * self.scale)

    @property
    def has_kernels(self) -> bool:
        """Whether it is uint8 with one scale, which is what activations of integer kernels are."""
        return self.scale.ndim == 0 and self.least == 0 and self.most == 2**_BITS - 1


@dataclass(frozen=True)
class LearnedWeights:
    """Weights on their grid.

    Attributes:
        name: of the fake quantization.
        values: float32, as the graph computes them.
        grid: the channels are the last axis of the values.
    """

    name: str
    values: np.ndarray
    grid: Grid


def has_ranges(graph_def: Any) -> bool:
    """Whether there are fake-quantization operations."""
    return any(node.op in _OPS for node in graph_def.node)


def simulate(graph_def: Any) -> Any:
    """Return a graph without fake quantization that computes the same, in float32."""
    return _rewritten(graph_def, marking=False)[0]


def mark(graph_def: Any) -> tuple[Any, list[LearnedWeights]]:
    """Return a graph in which activations that integer kernels can take have `FakeQuantWithMinMaxArgs`.

    Returns:
        The graph, and the weights, which are constants in it. Other fake quantizations are simulated.
    """
    return _rewritten(graph_def, marking=True)


def _rewritten(graph_def: Any, *, marking: bool) -> tuple[Any, list[LearnedWeights]]:
    import tensorflow as tf

    fakes = {node.name: node for node in graph_def.node if node.op in _OPS}
    varying = _varying(graph_def)
    values = _evaluate(graph_def, fakes, varying)
    out = tf.compat.v1.GraphDef(versions=graph_def.versions, library=graph_def.library)
    weights = []
    for node in graph_def.node:
        if node.name not in fakes:
            out.node.add().CopyFrom(node)
            continue
        grid = Grid.of(node, *_range(node, values))
        if node.name not in varying:
            weights.append(LearnedWeights(node.name, values[f"{node.name}:0"], grid))
            _add_constant(out, node.name, values[f"{node.name}:0"])
        elif marking and grid.has_kernels:
            _add_mark(out, node, grid)
        else:
            _add_simulation(out, node, grid)
    return out, weights


def _varying(graph_def: Any) -> set[str]:
    """Return the nodes that depend on an input."""
    readers: dict[str, list[str]] = {}
    for node in graph_def.node:
        for source in node.input:
            readers.setdefault(source.lstrip("^").split(":")[0], []).append(node.name)
    todo = [node.name for node in graph_def.node if node.op in _INPUTS]
    seen = set(todo)
    while todo:
        fresh = [name for name in readers.get(todo.pop(), ()) if name not in seen]
        seen.update(fresh)
        todo.extend(fresh)
    return seen


def _evaluate(graph_def: Any, fakes: Mapping[str, Any], varying: set[str]) -> dict[str, np.ndarray]:
    """Compute the ranges, and the weights on their grid."""
    import tensorflow as tf

    wanted = {f"{name}:0" for name in fakes if name not in varying}
    for node in fakes.values():
        for source in node.input[1:3]:
            if source.split(":")[0] in varying:
                raise ExportError(f"the range of {node.name!r} depends on the model's inputs, so nothing was learned")
            wanted.add(_tensor(source))
    names = sorted(wanted)
    with tf.Graph().as_default(), tf.compat.v1.Session() as session:
        tf.compat.v1.import_graph_def(graph_def, name="")
        return dict(zip(names, session.run(names), strict=True))


def _range(node: Any, values: Mapping[str, np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
    if node.op == "FakeQuantWithMinMaxArgs":
        return np.asarray(node.attr["min"].f), np.asarray(node.attr["max"].f)
    return values[_tensor(node.input[1])], values[_tensor(node.input[2])]


def _tensor(source: str) -> str:
    return source if ":" in source else f"{source}:0"


def _add_constant(out: Any, name: str, value: np.ndarray) -> None:
    import tensorflow as tf

    node = out.node.add(name=name, op="Const")
    node.attr["dtype"].type = tf.as_dtype(value.dtype).as_datatype_enum
    node.attr["value"].tensor.CopyFrom(tf.make_tensor_proto(value))


def _add_mark(out: Any, node: Any, grid: Grid) -> None:
    marked = out.node.add(name=node.name, op="FakeQuantWithMinMaxArgs", input=[node.input[0]])
    marked.attr["min"].f, marked.attr["max"].f = float(grid.low), float(grid.high)
    marked.attr["num_bits"].i = _BITS


def _add_simulation(out: Any, node: Any, grid: Grid) -> None:
    """Add `floor((clip(x) - low) / scale + 0.5) * scale + low`, whose last operation has the node's name."""
    last = node.input[0]
    steps = [
        ("Minimum", grid.high),
        ("Maximum", grid.low),
        ("Sub", grid.low),
        ("Mul", np.float32(1.0) / grid.scale),
        ("AddV2", np.float32(0.5)),
        ("Floor", None),
        ("Mul", grid.scale),
        ("AddV2", grid.low),
    ]
    for i, (op, operand) in enumerate(steps):
        name = node.name if i == len(steps) - 1 else f"{node.name}/simulated_{i}"
        made = out.node.add(name=name, op=op, input=[last])
        made.attr["T"].type = 1  # DT_FLOAT
        if operand is not None:
            _add_constant(out, f"{node.name}/operand_{i}", np.asarray(operand))
            made.input.append(f"{node.name}/operand_{i}")
        last = name
