"""What a network is made of: parameters, floating point operations, layers, end points, variables.

Operations are counted from the graph: two (a multiplication and an addition) for each product that a convolution or a
dense layer sums, at batch 1. Batch norms, activations, pooling and biases are left out, as published figures leave them
out; those that count multiply-adds are half of ours.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, fields, replace
from functools import cache
from math import prod
from pathlib import Path
from typing import Any

from moxserve.errors import UsageError
from moxserve.file import atomic_write
from moxserve.tensorflow.executor.env import tf, tf1
from moxserve.tensorflow.executor.spec import ModeKeys
from moxserve.tensorflow.nets.catalog import NETWORKS, Network, network
from moxserve.tensorflow.nets.checkpoints.published import APPLICATIONS, SLIM
from moxserve.tensorflow.nets.factory import get_model_fn, network_options
from moxserve.tensorflow.preprocessing.keys import preprocessing_of

__all__ = [
    "EndPointSummary",
    "Figures",
    "LayerSummary",
    "NetworkSummary",
    "VariableSummary",
    "facts",
    "figures",
    "summarize",
    "summarize_graph",
    "write_figures",
]

_FIGURES = Path(__file__).with_name("figures.json")
# Operations that sum products, and what they are called in a table.
_KINDS = {
    "Conv2D": "convolution",
    "DepthwiseConv2dNative": "depthwise convolution",
    "Conv2DBackpropInput": "transposed convolution",
    "MatMul": "dense",
}
# What lies between a variable and the operation that uses it.
_PASSING = frozenset({"ReadVariableOp", "Identity", "Cast", "Reshape", "Split", "SplitV", "StridedSlice", "Transpose"})


@dataclass(frozen=True)
class VariableSummary:
    """A variable.

    Attributes:
        name: without `:0`.
        shape: of its value.
        trainable: whether gradients change it; moving averages are not.
    """

    name: str
    shape: tuple[int, ...]
    trainable: bool

    @property
    def size(self) -> int:
        """How many numbers it holds."""
        return prod(self.shape)


@dataclass(frozen=True)
class EndPointSummary:
    """An end point.

    Attributes:
        name: key in the dict of end points.
        shape: at batch 1, NHWC.
    """

    name: str
    shape: tuple[int | None, ...]


@dataclass(frozen=True)
class LayerSummary:
    """A convolution (a separable one is one layer) or a dense layer, with its biases and batch norm.

    Attributes:
        name: scope of its variables.
        kind: such as `convolution`.
        kernel: shape of its weights; of the first ones, where it is separable.
        shape: of its result, at batch 1, NHWC.
        parameters: trainable ones.
        flops: at batch 1.
    """

    name: str
    kind: str
    kernel: tuple[int, ...]
    shape: tuple[int, ...]
    parameters: int
    flops: int


@dataclass(frozen=True)
class NetworkSummary:
    """All that a table of a network shows; EVAL, at batch 1.

    Attributes:
        row: of the catalog: name, scope, paper, labels_offset, logits_pattern, …
        preprocessing: of its images, such as `vgg_preprocessing`.
        image_shape: height, width, channels.
        num_classes: length of the logits.
        variables: in the order in which they are made.
        layers: in the order in which they are computed.
        end_points: in their order.
    """

    row: Network
    preprocessing: str
    image_shape: tuple[int, ...]
    num_classes: int
    variables: tuple[VariableSummary, ...]
    layers: tuple[LayerSummary, ...]
    end_points: tuple[EndPointSummary, ...]

    @property
    def trainable_parameters(self) -> int:
        """Numbers that training changes."""
        return sum(variable.size for variable in self.variables if variable.trainable)

    @property
    def parameters(self) -> int:
        """All numbers in the variables, moving averages included."""
        return sum(variable.size for variable in self.variables)

    @property
    def flops(self) -> int:
        """Floating point operations of one image, two for a multiply-add."""
        return sum(layer.flops for layer in self.layers)

    @property
    def figures(self) -> Figures:
        """The sums."""
        return Figures(self.trainable_parameters, self.parameters, self.flops, len(self.layers))


@dataclass(frozen=True)
class Figures:
    """What `figures` knows of a network, at its own size and number of classes, without building it.

    Attributes:
        trainable_parameters: numbers that training changes.
        parameters: all numbers in the variables.
        flops: of one image, two for a multiply-add.
        layers: convolutions and dense layers.
    """

    trainable_parameters: int
    parameters: int
    flops: int
    layers: int


def figures(name: str) -> Figures:
    """Return the sums of a network at its own size and number of classes, from a table: nothing is built.

    Raises:
        UsageError: there is no such network.
    """
    return _table()[network(name).name]


@cache
def _table() -> dict[str, Figures]:
    known = [field.name for field in fields(Figures)]
    rows = json.loads(_FIGURES.read_text())
    return {name: Figures(**{key: row[key] for key in known}) for name, row in rows.items()}


def write_figures(path: Path = _FIGURES, names: Iterable[str] = tuple(NETWORKS)) -> None:
    """Build networks and write the table that `figures` and the command line read; this takes a minute for all.

    Args:
        path: of the JSON file.
        names: which networks; the rows of others stay.
    """
    rows = json.loads(path.read_text()) if path.exists() else {}
    rows |= {name: facts(summarize(name)) for name in names}
    lines = ",\n".join(f'  "{name}": {json.dumps(rows[name])}' for name in NETWORKS if name in rows)
    atomic_write(path, f"{{\n{lines}\n}}\n")


def facts(summary: NetworkSummary) -> dict[str, Any]:
    """Return what the table has of a network: its sums, its row of the catalog, its options.

    The command line tells them without TensorFlow.
    """
    row = summary.row
    archive, note = SLIM.get(row.name, (None, ""))
    return {
        **asdict(summary.figures),
        "image_size": row.image_size,
        "channels": row.channels,
        "num_classes": row.num_classes,
        "labels_offset": row.labels_offset,
        "scope": row.scope,
        "logits_pattern": row.logits_pattern,
        "preprocessing": summary.preprocessing,
        "paper": row.paper,
        "slim_checkpoint": archive,
        "slim_checkpoint_note": note,
        "keras_application": APPLICATIONS.get(row.name),
        "variables": len(summary.variables),
        "first_variable": [summary.variables[0].name, list(summary.variables[0].shape)],
        "last_variable": [summary.variables[-1].name, list(summary.variables[-1].shape)],
        "options": {key: _told(value) for key, value in network_options(row.name).items()},
    }


def _told(value: Any) -> str:
    """Write the default of an option as in Python, a function by its name."""
    return value.__name__ if callable(value) else repr(value)


def summarize(
    name: str,
    image_size: tuple[int, int] | None = None,
    num_classes: int | None = None,
    **options: Any,
) -> NetworkSummary:
    """Build a network for evaluation, in a graph of its own, and tell what it is made of.

    Args:
        name: of the network.
        image_size: height and width; None: those that it was made for.
        num_classes: length of the logits; None: that of published checkpoints.
        **options: of the network; see `get_model_fn`.

    Raises:
        UsageError: there is no such network or option, or the size does not suit it.
    """
    row = network(name)
    height, width = image_size or (row.image_size, row.image_size)
    classes = row.num_classes if num_classes is None else num_classes
    with tf.Graph().as_default():
        images = tf1.placeholder(tf.float32, [1, height, width, row.channels])
        network_fn = get_model_fn(name, ModeKeys.EVAL, classes, preprocess_fn=None, **options)
        try:
            logits, end_points = network_fn(images)
        except ValueError as error:
            if isinstance(error, UsageError):
                raise
            # TensorFlow's words for an image that is too small for a convolution or a pool.
            raise UsageError(f"{name} cannot be built for images of {height}x{width}: {error}") from error
        return summarize_graph(row, images, logits, end_points)


def summarize_graph(row: Network, images: Any, logits: Any, end_points: Mapping[str, Any]) -> NetworkSummary:
    """Tell what the network in a graph, alone there and built for evaluation at batch 1, is made of.

    Args:
        row: of the network.
        images: that it takes, `[1, height, width, channels]`.
        logits: `[1, num_classes]`.
        end_points: by name.
    """
    graph = logits.graph
    with graph.as_default():
        variables = _variables()
    return NetworkSummary(
        row=row,
        preprocessing=preprocessing_of(row.name),
        image_shape=tuple(images.shape.as_list()[1:]),
        num_classes=logits.shape.as_list()[-1],
        variables=variables,
        layers=_layers(graph, variables),
        end_points=tuple(EndPointSummary(key, tuple(value.shape.as_list())) for key, value in end_points.items()),
    )


def _variables() -> tuple[VariableSummary, ...]:
    trained = {id(variable) for variable in tf1.trainable_variables()}
    return tuple(VariableSummary(v.op.name, tuple(v.shape.as_list()), id(v) in trained) for v in tf1.global_variables())


def _layers(graph: Any, variables: tuple[VariableSummary, ...]) -> tuple[LayerSummary, ...]:
    """Find the operations that sum products, and put those of one layer together."""
    layers: dict[str, LayerSummary] = {}
    for op in graph.get_operations():
        if op.type not in _KINDS:
            continue
        layer = _layer(op)
        first = layers.get(layer.name)
        if first is not None:
            kind = first.kind if first.kind == layer.kind else "separable convolution"
            layer = replace(layer, kind=kind, kernel=first.kernel, flops=first.flops + layer.flops)
        layers[layer.name] = layer
    counts: dict[str, int] = {}
    for variable in variables:
        if variable.trainable:
            scope = _owner(variable.name, layers)
            counts[scope] = counts.get(scope, 0) + variable.size
    return tuple(replace(layer, parameters=counts.get(layer.name, 0)) for layer in layers.values())


def _owner(name: str, layers: dict[str, LayerSummary]) -> str:
    """Return the nearest scope around a variable that is a layer; "" where there is none."""
    while "/" in name:
        name = name.rpartition("/")[0]
        if name in layers:
            return name
    return ""


def _layer(op: Any) -> LayerSummary:
    kernel = op.inputs[1]
    weights, shape = kernel.shape.as_list(), op.outputs[0].shape.as_list()
    if op.type == "MatMul":
        products = prod(shape) * weights[1 if op.get_attr("transpose_b") else 0]
    elif op.type == "Conv2D":
        products = prod(shape) * prod(weights[:3])
    elif op.type == "DepthwiseConv2dNative":
        products = prod(shape) * prod(weights[:2])
    else:  # each input value meets each weight of its channel
        products = prod(op.inputs[2].shape.as_list()) * prod(weights[:3])
    return LayerSummary(_scope_of(kernel), _KINDS[op.type], tuple(weights), tuple(shape), 0, 2 * products)


def _scope_of(kernel: Any) -> str:
    """Return the scope of the variable that a kernel is read from, or of the kernel where it is no variable."""
    op = kernel.op
    while op.type in _PASSING and len(op.inputs):
        # Split has its axis first.
        op = op.inputs[1 if op.type == "Split" else 0].op
    return str(op.name).rpartition("/")[0]
