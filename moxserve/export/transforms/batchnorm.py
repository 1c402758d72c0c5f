"""Folding of batch normalization, and of all other arithmetic by channel, into the weights before it.

What follows a convolution or a matrix product and treats each channel alone is `y * scale + shift`: a bias, a
multiplication, a batch norm of any kind. A chain of them is multiplied out and becomes new weights and one bias. Done
only where nobody else reads what lies between, and with copies of weights that others read, too. The last node of a
chain keeps its name.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np

from moxserve.export.transforms.graph import (
    GraphIndex,
    Request,
    attribute,
    constant,
    replaced,
    split_input,
)

__all__ = ["fold_batch_norms"]

_FUSED = ("FusedBatchNorm", "FusedBatchNormV2", "FusedBatchNormV3")
_MONOLITHIC = "BatchNormWithGlobalNormalization"
_ADD = ("Add", "AddV2", "BiasAdd", "BiasAddV1")
_DIVIDE = ("RealDiv", "Div")
_NORMS = (*_FUSED, _MONOLITHIC)
_DEFAULT_EPSILON = 1e-4
_FLOATS = (np.float32, np.float64)


@dataclass(frozen=True)
class _Affine:
    """`y * scale + shift`, an entry a channel each, float64."""

    scale: np.ndarray
    shift: np.ndarray

    def then(self, scale: np.ndarray | float, shift: np.ndarray | float) -> _Affine:
        return _Affine(self.scale * scale, self.shift * scale + shift)


@dataclass
class _Chain:
    """A product with weights and what follows it.

    Attributes:
        product: the node.
        weights: its constant.
        nodes: what follows, in order.
        total: all of them together.
        scaled: whether there is more to it than one bias.
    """

    product: Any
    weights: np.ndarray
    total: _Affine
    nodes: list[Any] = field(default_factory=list)
    scaled: bool = False

    @property
    def channels_first(self) -> bool:
        return attribute(self.product, "data_format").s.startswith(b"NC")

    @property
    def rank(self) -> int:
        return {"MatMul": 2, "Conv3D": 5, "Conv3DBackpropInputV2": 5}.get(self.product.op, 4)


def fold_batch_norms(graph_def: Any, request: Request) -> Any:
    """Multiply batch norms and the like into the weights before them.

    Args:
        graph_def: frozen.
        request: names what must stay.

    Returns:
        The new graph.
    """
    index = GraphIndex(graph_def)
    chains = [chain for node in graph_def.node if (chain := _chain(index, node, request.kept))]
    made = {chain.nodes[-1].name: _fold(chain, index.nodes) for chain in chains}
    gone = {node.name for chain in chains for node in (chain.product, *chain.nodes[:-1])}
    return replaced(graph_def, index, made, gone, request)


def _chain(index: GraphIndex, product: Any, kept: frozenset[str]) -> _Chain | None:
    """Find the longest chain after a product; None when there is nothing to fold."""
    channels = _channels(index, product)
    if channels is None:
        return None
    weights, count = channels
    chain = _Chain(product, weights, _Affine(np.ones(count), np.zeros(count)))
    node = product
    while node.name not in kept:
        user = index.only_user(node.name)
        total = _next(index, chain, user, node) if user is not None else None
        if user is None or total is None:
            break
        # A shift after a shift is worth it, too: one operation less.
        chain.scaled = chain.scaled or bool(chain.nodes) or user.op not in _ADD
        chain.nodes.append(user)
        chain.total = total
        node = user
    return chain if chain.scaled and np.isfinite([chain.total.scale, chain.total.shift]).all() else None


def _channels(index: GraphIndex, node: Any) -> tuple[np.ndarray, int] | None:
    """Return the constant weights of a product and how many channels come out; None for other nodes."""
    if node.op not in _SHAPES or any(text.startswith("^") for text in node.input):
        return None
    weights = index.constant(node.input[1])
    if weights is None or weights.dtype not in _FLOATS:
        return None
    shape = _scale_shape(node, weights)
    return (weights, int(np.prod(shape))) if shape else None


# Where the output channels lie among the dimensions of the weights.
_SHAPES = {
    "Conv2D": (-1,),
    "Conv3D": (-1,),
    "DepthwiseConv2dNative": (-2, -1),
    "Conv2DBackpropInput": (-2,),
    "Conv3DBackpropInputV2": (-2,),
    "MatMul": (-1,),
}


def _scale_shape(node: Any, weights: np.ndarray) -> tuple[int, ...]:
    """Return the shape in which a scale by channel is multiplied into weights, such as `[1, 1, 1, channels]`."""
    axes = _SHAPES[node.op]
    if node.op == "MatMul" and attribute(node, "transpose_b").b:
        axes = (-2,)
    rank = weights.ndim
    if rank < 2:
        return ()
    places = {axis % rank for axis in axes}
    return tuple(size if i in places else 1 for i, size in enumerate(weights.shape))


def _next(index: GraphIndex, chain: _Chain, node: Any, source: Any) -> _Affine | None:
    """Return the chain's arithmetic with one more node; None when the node is none of by-channel arithmetic."""
    if any(text.startswith("^") for text in node.input):
        return None
    if node.op in _NORMS:
        return _normalized(index, chain, node, source)
    if node.op not in (*_ADD, "Sub", "Mul", *_DIVIDE) or len(node.input) != 2:
        return None
    first = split_input(node.input[0])[0] == source.name
    value = index.constant(node.input[1] if first else node.input[0])
    bias = node.op.startswith("BiasAdd")
    operand = None if value is None else _by_channel(chain, value, bias=bias)
    if operand is None or (bias and not _same_layout(chain, node)):
        return None
    total = chain.total
    if node.op in _ADD:
        return total.then(1.0, operand)
    if node.op == "Sub":
        return total.then(1.0, -operand) if first else total.then(-1.0, operand)
    if node.op == "Mul":
        return total.then(operand, 0.0)
    with np.errstate(divide="ignore", over="ignore"):
        return total.then(1.0 / operand, 0.0) if first else None


def _same_layout(chain: _Chain, node: Any) -> bool:
    return bool(attribute(node, "data_format").s.startswith(b"NC") == chain.channels_first)


def _by_channel(chain: _Chain, value: np.ndarray, *, bias: bool) -> np.ndarray | None:
    """Return an operand as one entry a channel, float64; None when it differs within a channel or makes more of it."""
    count = len(chain.total.scale)
    if value.dtype != chain.weights.dtype or value.ndim > chain.rank:
        return None
    if bias:
        return value.astype(np.float64) if value.shape == (count,) else None
    shape = (1,) * (chain.rank - value.ndim) + value.shape
    channel = 1 if chain.channels_first else chain.rank - 1
    if any(size != 1 for i, size in enumerate(shape) if i != channel) or shape[channel] not in (1, count):
        return None
    return np.broadcast_to(value.astype(np.float64).reshape(-1), (count,))


def _normalized(index: GraphIndex, chain: _Chain, node: Any, source: Any) -> _Affine | None:
    """Return the chain with a batch norm on top; None when its statistics are not constant, or more is read of it."""
    values = [index.constant(text) for text in node.input[1:]]
    if split_input(node.input[0])[0] != source.name or len(values) != 4:
        return None
    if any(port > 0 for _, port in index.users.get(node.name, [])):
        return None
    count = len(chain.total.scale)
    parameters = [v.astype(np.float64) for v in values if v is not None and v.shape == (count,)]
    if len(parameters) != 4:
        return None
    if node.op == _MONOLITHIC:
        mean, variance, shift, gamma = parameters
        epsilon = attribute(node, "variance_epsilon").f
        if not attribute(node, "scale_after_normalization").b:
            gamma = np.ones(count)
    else:
        training = node.attr["is_training"].b if "is_training" in node.attr else True
        if training or not _same_layout(chain, node):
            return None
        gamma, shift, mean, variance = parameters
        epsilon = node.attr["epsilon"].f if "epsilon" in node.attr else _DEFAULT_EPSILON
    with np.errstate(divide="ignore", invalid="ignore"):
        scale = gamma / np.sqrt(variance + epsilon)
    return chain.total.then(scale, shift - mean * scale)


def _fold(chain: _Chain, taken: dict[str, Any]) -> list[Any]:
    """Return the nodes in the place of a chain: new weights, the product, and a bias if there is any."""
    last, total, dtype = chain.nodes[-1], chain.total, chain.weights.dtype
    scale = total.scale.reshape(_scale_shape(chain.product, chain.weights))
    new = type(last)
    weights, product = new(), new()
    constant(weights, _free(f"{last.name}/folded_weights", taken), (chain.weights * scale).astype(dtype))
    product.CopyFrom(chain.product)
    product.input[1] = weights.name
    if not total.shift.any():
        product.name = last.name
        return [weights, product]
    bias, added = new(), new()
    constant(bias, _free(f"{last.name}/folded_bias", taken), total.shift.astype(dtype))
    added.name, added.op, added.device = last.name, "BiasAdd", last.device
    added.input.extend([product.name, bias.name])
    added.attr["T"].type = weights.attr["dtype"].type
    added.attr["data_format"].s = b"NCHW" if chain.channels_first else b"NHWC"
    return [weights, product, bias, added]


def _free(name: str, taken: dict[str, Any]) -> str:
    """Return a name that no node has, and keep it."""
    free, number = name, 0
    while free in taken:
        number += 1
        free = f"{name}_{number}"
    taken[free] = None
    return free
