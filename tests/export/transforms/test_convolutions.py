"""Convolutions and what is around them: dilation, padding, resizing, each done by one operation less or elsewhere."""

from __future__ import annotations

from collections import Counter
from typing import Any

import numpy as np
import pytest

IMAGES = np.random.default_rng(5).standard_normal((4, 16, 16, 3)).astype(np.float32)


def w(*shape: int) -> np.ndarray:
    size = max(1, int(np.prod(shape[:-1])))
    return (np.random.default_rng(shape).standard_normal(shape) / np.sqrt(size)).astype(np.float32)


def atrous(x: Any, op: str = "Conv2D", pads: Any = ((2, 2), (2, 2)), crops: Any = ((0, 0), (0, 0))) -> Any:
    import tensorflow as tf

    y = tf.raw_ops.SpaceToBatchND(input=x, block_shape=[2, 2], paddings=pads)
    y = getattr(tf.raw_ops, op)(input=y, filter=w(3, 3, 3, 2), strides=[1, 1, 1, 1], padding="VALID")
    return tf.raw_ops.BatchToSpaceND(input=y, block_shape=[2, 2], crops=crops)


def padded(x: Any, mode: str = "CONSTANT", **options: Any) -> Any:
    import tensorflow as tf

    options = {"strides": 2, "padding": "VALID", **options}
    return tf.nn.conv2d(tf.pad(x, [[0, 0], [1, 1], [0, 2], [0, 0]], mode), w(3, 3, 3, 4), **options)


def resized(x: Any, *, mirrored: bool = False, kernel: int = 1, size: int = 20) -> Any:
    import tensorflow as tf

    y = tf.raw_ops.ResizeBilinear(images=x, size=[size, size], half_pixel_centers=True)
    y = tf.pad(y, [[0, 0], [1, 1], [2, 2], [0, 0]], "REFLECT") if mirrored else y
    return tf.nn.conv2d(y, w(kernel, kernel, 3, 2), 1, "SAME")


@pytest.mark.parametrize(
    ("pads", "crops"),
    [
        (((0, 0), (0, 0)), ((0, 0), (0, 0))),
        (((2, 2), (2, 2)), ((0, 0), (0, 0))),
        (((2, 4), (2, 4)), ((0, 2), (0, 2))),
        (((4, 2), (0, 4)), ((1, 0), (0, 3))),
    ],
)
@pytest.mark.parametrize("op", ["Conv2D", "DepthwiseConv2dNative"])
def test_dilated_convolutions(op: str, pads: Any, crops: Any, net: Any, operations: Any) -> None:
    graph = net(lambda x: atrous(x, op, pads, crops), IMAGES)
    result = graph.checked("flatten_atrous_conv")
    assert operations(result.graph_def) == Counter({"Placeholder": 1, "Const": 1, op: 1, "Identity": 1})
    assert graph.error(result.graph_def) < 1e-5


def test_dilation_by_the_old_operations(net: Any, operations: Any) -> None:
    import tensorflow as tf

    def build(x: Any) -> Any:
        y = tf.raw_ops.SpaceToBatch(input=x, paddings=[[2, 2], [2, 2]], block_size=2)
        y = tf.nn.conv2d(y, w(3, 3, 3, 2), 1, "VALID")
        return tf.raw_ops.BatchToSpace(input=y, crops=[[0, 0], [0, 0]], block_size=2)

    graph = net(build, IMAGES)
    result = graph.checked("flatten_atrous_conv")
    assert operations(result.graph_def)["SpaceToBatch"] == 0
    assert graph.error(result.graph_def) < 1e-5


def test_dilation_that_cuts_more_than_it_pads_stays(net: Any) -> None:
    graph = net(lambda x: atrous(x, "Conv2D", ((0, 0), (0, 0)), ((1, 1), (0, 0))), IMAGES)
    assert graph.checked("flatten_atrous_conv").steps[0].outcome == "nothing to do"


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"strides": 1},
        {"strides": 1, "padding": "SAME"},
        {"strides": 1, "dilations": 2},
        {"padding": [[0, 0], [1, 2], [0, 1], [0, 0]]},
    ],
)
def test_zero_padding(options: Any, net: Any, operations: Any) -> None:
    graph = net(lambda x: padded(x, **options), IMAGES)
    result = graph.checked("fuse_pad_and_conv")
    assert operations(result.graph_def)["Pad"] == 0
    assert graph.error(result.graph_def) < 1e-5


def test_padding_that_is_as_same(net: Any) -> None:
    """What SAME does anyway is written as SAME, which other formats know."""
    import tensorflow as tf

    graph = net(lambda x: tf.nn.conv2d(tf.pad(x, [[0, 0], [1, 1], [1, 1], [0, 0]]), w(3, 3, 3, 4), 1, "VALID"), IMAGES)
    (convolution,) = [n for n in graph.checked("fuse_pad_and_conv").graph_def.node if n.op == "Conv2D"]
    assert convolution.attr["padding"].s == b"SAME"
    assert not convolution.attr["explicit_paddings"].list.i


def _padding_used_twice(x: Any) -> Any:
    import tensorflow as tf

    y = tf.pad(x, [[0, 0], [1, 1], [1, 1], [0, 0]])
    return tf.reduce_sum(tf.nn.conv2d(y, w(3, 3, 3, 4), 1, "VALID"), 3) + tf.reduce_sum(y, 3)[:, 1:-1, 1:-1]


@pytest.mark.parametrize(
    "build",
    [
        lambda x: padded(x, "REFLECT"),  # TensorFlow has a kernel for it, and it is wrong
        lambda x: padded(x, "SYMMETRIC"),
        lambda x: padded(x, padding="SAME"),  # depends on the size
        _padding_used_twice,
        lambda x: resized(x, kernel=3),
        lambda x: resized(x, size=10),  # smaller: the convolution has less to do behind it
    ],
)
def test_convolutions_that_stay(build: Any, net: Any) -> None:
    graph = net(build, IMAGES)
    result = graph.checked("fuse_convolutions")
    assert result.steps[0].outcome == "nothing to do"


@pytest.mark.parametrize(
    ("transform", "mirrored"),
    [
        ("fuse_convolutions", False),
        ("fuse_convolutions", True),
        ("fuse_resize_and_conv", False),
        ("fuse_resize_pad_and_conv", True),
    ],
)
def test_convolution_comes_before_the_resize(transform: str, mirrored: bool, net: Any) -> None:
    graph = net(lambda x: resized(x, mirrored=mirrored), IMAGES)
    result = graph.checked(transform)
    assert [step.outcome for step in result.steps] == ["applied"]
    nodes = {node.name: node for node in result.graph_def.node}
    (convolution,) = [n for n in nodes.values() if n.op == "Conv2D"]
    assert convolution.input[0] == "x"
    assert graph.error(result.graph_def) < 1e-5
