"""Convolutions and what moves pixels around them: flatten_atrous_conv and the fuse_* transforms.

All rewrites here are exact: they change which operation does the padding, the dilation or the resizing, and in which
order, not what is computed.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
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

__all__ = ["flatten_atrous_conv", "fuse_convolutions", "fuse_pad_and_conv", "fuse_resize_and_conv"]

_CONVOLUTIONS = ("Conv2D", "DepthwiseConv2dNative")
_Pads = list[list[int]]


def flatten_atrous_conv(graph_def: Any, request: Request) -> Any:
    """Replace SpaceToBatchND, convolution, BatchToSpaceND by one dilated convolution.

    Args:
        graph_def: frozen.
        request: names what must stay.

    Returns:
        The new graph.
    """
    index = GraphIndex(graph_def)
    made: dict[str, list[Any]] = {}
    gone: set[str] = set()
    for last in graph_def.node:
        parts = _atrous(index, last, request.kept)
        if parts is not None:
            first, convolution, block, pads = parts
            made[last.name] = _dilated(index, convolution, last.name, first.input[0], (block, pads))
            gone |= {first.name, convolution.name}
    return replaced(graph_def, index, made, gone, request)


def _atrous(index: GraphIndex, last: Any, kept: frozenset[str]) -> tuple[Any, Any, list[int], _Pads] | None:
    """Find the nodes of a dilated convolution by its last one, its block sizes, and how far it pads on each side."""
    ends = {"BatchToSpaceND": "SpaceToBatchND", "BatchToSpace": "SpaceToBatch"}
    if last.op not in ends:
        return None
    convolution = index.nodes.get(split_input(last.input[0])[0])
    if convolution is None or convolution.op not in _CONVOLUTIONS or not _plain(convolution, "VALID"):
        return None
    first = index.nodes.get(split_input(convolution.input[0])[0])
    if first is None or first.op != ends[last.op]:
        return None
    if any(node.name in kept or not _single(index, node) for node in (convolution, first)):
        return None
    block, inverse = _block(index, first), _block(index, last)
    pads, crops = (index.constant(node.input[-1]) for node in (first, last))
    if not block or block != inverse or pads is None or crops is None:
        return None
    rest = pads.astype(np.int64) - crops.astype(np.int64)
    if (rest < 0).any() or index.constant(convolution.input[1]) is None:
        return None
    return first, convolution, block, rest.tolist()


def _block(index: GraphIndex, node: Any) -> list[int]:
    """Return the block sizes of SpaceToBatch and the like; empty when they are not two constants."""
    if not node.op.endswith("ND"):
        return [int(attribute(node, "block_size").i)] * 2
    sizes = index.constant(node.input[1])
    return [int(size) for size in sizes] if sizes is not None and sizes.shape == (2,) else []


def _plain(node: Any, *paddings: str) -> bool:
    """Tell whether a convolution is NHWC, of stride and dilation one, padded in one of some ways."""
    ones = all(size == 1 for name in ("strides", "dilations") for size in attribute(node, name).list.i)
    nhwc = attribute(node, "data_format").s in (b"", b"NHWC")
    waits = any(text.startswith("^") for text in node.input)
    return ones and nhwc and not waits and attribute(node, "padding").s.decode() in paddings


def _single(index: GraphIndex, node: Any) -> bool:
    return index.only_user(node.name) is not None and not any(text.startswith("^") for text in node.input)


def _dilated(index: GraphIndex, old: Any, name: str, source: str, geometry: tuple[list[int], _Pads]) -> list[Any]:
    """Return a convolution with dilation in the place of an old one."""
    block, pads = geometry
    node = type(old)()
    node.CopyFrom(old)
    node.name, node.input[0] = name, source
    weights = index.constant(old.input[1])
    if weights is None:
        raise TypeError("the weights of a dilated convolution were a constant, and are none now")
    if old.op == "Conv2D":
        node.attr["dilations"].list.i[:] = [1, *block, 1]
        _set_padding(node, pads, weights.shape[:2])
        return [node]
    # On a CPU the depthwise kernel does not dilate: its weights have zeros between instead.
    height, width = ((size - 1) * b + 1 for size, b in zip(weights.shape[:2], block, strict=True))
    spread = np.zeros((height, width, *weights.shape[2:]), weights.dtype)
    spread[:: block[0], :: block[1]] = weights
    new_weights = type(old)()
    constant(new_weights, f"{name}/dilated_weights", spread)
    node.input[1] = new_weights.name
    _set_padding(node, pads, spread.shape[:2])
    return [new_weights, node]


def _set_padding(node: Any, pads: Sequence[Sequence[int]], kernel: Sequence[int]) -> None:
    """Make a convolution pad so many pixels, by the simplest of the ways that it knows."""
    dilations = list(attribute(node, "dilations").list.i) or [1, 1, 1, 1]
    first = 2 if attribute(node, "data_format").s == b"NCHW" else 1
    node.attr.pop("explicit_paddings", None)
    sides = [list(side) for side in pads]
    if not np.any(sides):
        node.attr["padding"].s = b"VALID"
    elif _strides(node) == [1, 1] and sides == _same(kernel, dilations[first : first + 2]):
        node.attr["padding"].s = b"SAME"
    else:
        node.attr["padding"].s = b"EXPLICIT"
        around = [[0, 0]] * 4
        around[first : first + 2] = sides
        node.attr["explicit_paddings"].list.i.extend(size for side in around for size in side)


def _strides(node: Any) -> list[int]:
    first = 2 if attribute(node, "data_format").s == b"NCHW" else 1
    return list(attribute(node, "strides").list.i)[first : first + 2]


def _same(kernel: Sequence[int], dilations: Sequence[int]) -> _Pads:
    """Return what SAME pads at stride one, whatever the size."""
    totals = [(size - 1) * dilation for size, dilation in zip(kernel, dilations, strict=True)]
    return [[total // 2, total - total // 2] for total in totals]


def fuse_pad_and_conv(graph_def: Any, request: Request) -> Any:
    """Let a convolution do the zero padding before it.

    Args:
        graph_def: frozen.
        request: names what must stay.

    Returns:
        The new graph.
    """
    index = GraphIndex(graph_def)
    made: dict[str, list[Any]] = {}
    gone: set[str] = set()
    for node in graph_def.node:
        if node.op not in _CONVOLUTIONS:
            continue
        pad = index.nodes.get(split_input(node.input[0])[0])
        pads = None if pad is None or pad.name in request.kept else _padded(index, node, pad)
        weights = index.constant(node.input[1])
        if pad is None or pads is None or weights is None:
            continue
        new = type(node)()
        new.CopyFrom(node)
        new.input[0] = pad.input[0]
        _set_padding(new, pads, weights.shape[:2])
        made[node.name] = [new]
        gone.add(pad.name)
    return replaced(graph_def, index, made, gone, request)


def _padded(index: GraphIndex, node: Any, pad: Any) -> _Pads | None:
    """Return what a zero padding and the convolution behind it pad together; None when they cannot be one."""
    if pad.op not in ("Pad", "PadV2") or not _single(index, pad):
        return None
    sizes = index.constant(pad.input[1])
    value = index.constant(pad.input[2]) if pad.op == "PadV2" else np.zeros(())
    if sizes is None or sizes.shape != (4, 2) or value is None or np.any(value) or (sizes < 0).any():
        return None
    first = 2 if attribute(node, "data_format").s == b"NCHW" else 1
    if np.delete(sizes, [first, first + 1], axis=0).any():
        return None
    own = _own_padding(index, node, first)
    return None if own is None else (sizes[first : first + 2] + np.asarray(own)).astype(int).tolist()


def _own_padding(index: GraphIndex, node: Any, first: int) -> _Pads | None:
    kind = attribute(node, "padding").s
    if kind == b"VALID":
        return [[0, 0], [0, 0]]
    if kind == b"EXPLICIT":
        values = list(attribute(node, "explicit_paddings").list.i)
        return [values[2 * i : 2 * i + 2] for i in (first, first + 1)]
    weights = index.constant(node.input[1])
    if weights is None or _strides(node) != [1, 1]:
        return None  # SAME depends on the size of the picture
    dilations = list(attribute(node, "dilations").list.i) or [1, 1, 1, 1]
    return _same(weights.shape[:2], dilations[first : first + 2])


def fuse_resize_and_conv(graph_def: Any, request: Request, *, padded: bool = False) -> Any:
    """Do a pointwise convolution before the bilinear resize that it follows, where that is less work.

    Args:
        graph_def: frozen.
        request: names what must stay.
        padded: there is mirrored padding between the two.

    Returns:
        The new graph.
    """
    index = GraphIndex(graph_def)
    found = [chain for node in graph_def.node if (chain := _resized(index, node, request.kept, padded=padded))]
    shapes = _shapes(graph_def, {chain[-1].input[0] for chain in found}) if found else {}
    made: dict[str, list[Any]] = {}
    gone: set[str] = set()
    for chain in found:
        if _grows(index, chain[-1], shapes[chain[-1].input[0]]):
            made[chain[0].name] = _swapped(chain)
            gone |= {node.name for node in chain[1:]}
    return replaced(graph_def, index, made, gone, request)


def _resized(index: GraphIndex, node: Any, kept: frozenset[str], *, padded: bool) -> list[Any] | None:
    """Return a pointwise convolution, the padding before it and the resize before that; None when it is not so."""
    if node.op != "Conv2D" or not _plain(node, "SAME", "VALID"):
        return None
    weights = index.constant(node.input[1])
    if weights is None or weights.dtype != np.float32 or weights.shape[:2] != (1, 1):
        return None
    if weights.shape[3] > weights.shape[2]:
        return None
    chain = [node]
    for op in (["MirrorPad"] if padded else []) + ["ResizeBilinear"]:
        before = index.nodes.get(split_input(chain[-1].input[0])[0])
        if before is None or before.op != op or before.name in kept or not _single(index, before):
            return None
        chain.append(before)
    channels = index.constant(chain[1].input[1]) if padded else None
    if padded and (channels is None or channels.shape != (4, 2) or channels[3].any()):
        return None
    return chain if attribute(chain[-1], "T").type == attribute(node, "T").type else None


def _shapes(graph_def: Any, tensors: set[str]) -> dict[str, list[int | None] | None]:
    import tensorflow as tf

    with tf.Graph().as_default() as graph:
        tf.import_graph_def(graph_def, name="")
        found = {}
        for text in tensors:
            name, port = split_input(text)
            shape = graph.get_tensor_by_name(f"{name}:{port}").shape
            found[text] = None if shape.rank is None else shape.as_list()
    return found


def _grows(index: GraphIndex, resize: Any, shape: list[int | None] | None) -> bool:
    size = index.constant(resize.input[1])
    if size is None or shape is None or len(shape) != 4 or None in shape[1:3]:
        return False
    return bool(size[0] * size[1] > (shape[1] or 0) * (shape[2] or 0))


def _swapped(chain: list[Any]) -> list[Any]:
    """Return the nodes of a chain in the other order: the convolution first; the last one has the chain's name."""
    convolution, *movers = chain
    new = [type(node)() for node in chain]
    for made, node in zip(new, [convolution, *reversed(movers)], strict=True):
        made.CopyFrom(node)
    new[0].name = f"{convolution.name}/before_resize"
    new[0].input[0] = movers[-1].input[0]
    for before, made in itertools.pairwise(new):
        made.input[0] = before.name
        made.attr.pop("_output_shapes", None)
    new[0].attr.pop("_output_shapes", None)
    new[-1].name = convolution.name
    return new


def fuse_convolutions(graph_def: Any, request: Request) -> Any:
    """Do all three: padding, resizing, and resizing with mirrored padding.

    Args:
        graph_def: frozen.
        request: names what must stay.

    Returns:
        The new graph.
    """
    graph_def = fuse_resize_and_conv(graph_def, request, padded=True)
    graph_def = fuse_resize_and_conv(graph_def, request)
    return fuse_pad_and_conv(graph_def, request)
