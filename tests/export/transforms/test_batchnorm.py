"""Folding of batch norms: every way in which they are written, and where it must not be done."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

NORMS = ("FusedBatchNorm", "FusedBatchNormV2", "FusedBatchNormV3", "BatchNormWithGlobalNormalization")
LIMIT = 1e-5


class Layers:
    """Layers with constant weights; each call has numbers of its own."""

    def __init__(self, weights: Callable[..., np.ndarray], statistics: Callable[..., Any]) -> None:
        self._weights, self._statistics, self._seed = weights, statistics, 0

    def weights(self, *shape: int) -> Any:
        import tensorflow as tf

        self._seed += 1
        # Behind an Identity, as freezing leaves what was a variable.
        return tf.identity(tf.constant(self._weights(*shape, seed=self._seed)))

    def conv(self, x: Any, channels: int = 8, **options: Any) -> Any:
        import tensorflow as tf

        options = {"strides": 1, "padding": "SAME", **options}
        return tf.nn.conv2d(x, self.weights(3, 3, x.shape[-1], channels), **options)

    def statistics(self, channels: int) -> Any:
        import tensorflow as tf

        self._seed += 1
        return [tf.identity(tf.constant(v)) for v in self._statistics(channels, seed=self._seed)]

    def norm(self, x: Any, op: str = "FusedBatchNormV3", data_format: str = "NHWC") -> Any:
        import tensorflow as tf

        channels = x.shape[1 if data_format.startswith("NC") else -1]
        gamma, beta, mean, variance = self.statistics(channels)
        run = getattr(tf.raw_ops, op)
        return run(
            x=x, scale=gamma, offset=beta, mean=mean, variance=variance, epsilon=1e-3, data_format=data_format,
            is_training=False,
        ).y  # fmt: skip

    def plain_norm(self, x: Any) -> Any:
        import tensorflow as tf

        gamma, beta, mean, variance = self.statistics(x.shape[-1])
        return tf.nn.batch_normalization(x, mean, variance, beta, gamma, 1e-3)

    def bias(self, x: Any, data_format: str = "NHWC") -> Any:
        import tensorflow as tf

        channels = x.shape[1 if data_format.startswith("NC") else -1]
        return tf.nn.bias_add(x, self.weights(1, channels)[0], data_format)


@pytest.fixture
def layers(weights: Callable[..., np.ndarray], statistics: Callable[..., Any]) -> Layers:
    return Layers(weights, statistics)


def mean(x: Any) -> Any:
    import tensorflow as tf

    return tf.reduce_mean(x, [1, 2])


def shared_weights(n: Layers, x: Any) -> Any:
    import tensorflow as tf

    kernel = n.weights(3, 3, 3, 8)
    a, b = tf.nn.conv2d(x, kernel, 1, "SAME"), tf.nn.conv2d(x * 2.0, kernel, 2, "SAME")
    return mean(tf.nn.relu(n.norm(a))) + mean(tf.nn.relu(n.norm(b)))


def convolution_used_twice(n: Layers, x: Any) -> Any:
    y = n.conv(x)
    return mean(n.norm(y)) + mean(y)


def norm_in_a_branch(n: Layers, x: Any) -> Any:
    import tensorflow as tf

    y = n.conv(x)
    training = tf.compat.v1.placeholder_with_default(False, [], "training")
    return mean(tf.cond(training, lambda: y * 2.0, lambda: n.norm(y)))


def transposed(n: Layers, x: Any) -> Any:
    import tensorflow as tf

    y = tf.nn.conv2d_transpose(x, n.weights(3, 3, 8, 3), tf.stack([tf.shape(x)[0], 32, 32, 8]), 2)
    y.set_shape([None, 32, 32, 8])
    return mean(n.norm(y))


def padded(n: Layers, x: Any) -> Any:
    import tensorflow as tf

    return mean(n.norm(n.conv(tf.pad(x, [[0, 0], [1, 1], [1, 1], [0, 0]]), strides=2, padding="VALID")))


def depthwise(n: Layers, x: Any, multiplier: int) -> Any:
    import tensorflow as tf

    return mean(n.norm(tf.nn.depthwise_conv2d(x, n.weights(3, 3, 3, multiplier), [1, 1, 1, 1], "SAME")))


def before_activation(n: Layers, x: Any) -> Any:
    import tensorflow as tf

    return mean(n.conv(tf.nn.relu(n.norm(x))))


def concatenated(n: Layers, x: Any) -> Any:
    import tensorflow as tf

    return mean(tf.nn.relu(n.norm(tf.concat([n.conv(x), n.conv(x)], 3))))


def with_dropout(n: Layers, x: Any) -> Any:
    import tensorflow as tf

    return tf.nn.dropout(mean(n.norm(n.conv(x))), rate=0.0)


def dense(n: Layers, x: Any) -> Any:
    import tensorflow as tf

    return n.plain_norm(tf.matmul(mean(x), n.weights(3, 8)))


# How many batch norms are left, of how many: where one cannot be folded, leaving it alone is right.
PATTERNS: dict[str, tuple[Callable[[Layers, Any], Any], int]] = {
    "convolution": (lambda n, x: mean(n.norm(n.conv(x))), 0),
    "bias between": (lambda n, x: mean(n.norm(n.bias(n.conv(x)))), 0),
    "single operations": (lambda n, x: mean(n.plain_norm(n.conv(x))), 0),
    "bias and single operations": (lambda n, x: mean(n.plain_norm(n.bias(n.conv(x)))), 0),
    "dense": (dense, 0),
    "depthwise": (lambda n, x: depthwise(n, x, 1), 0),
    "depthwise with multiplier": (lambda n, x: depthwise(n, x, 4), 0),
    "before the activation": (before_activation, 1),
    "shared weights": (shared_weights, 0),
    "convolution used twice": (convolution_used_twice, 1),
    "in a branch": (norm_in_a_branch, 0),
    "transposed": (transposed, 0),
    "concatenation between": (concatenated, 1),
    "padded": (padded, 0),
    "dilated": (lambda n, x: mean(n.norm(n.conv(x, dilations=2))), 0),
    "dropout": (with_dropout, 0),
}


@pytest.mark.slow
@pytest.mark.parametrize("pattern", PATTERNS)
def test_patterns(pattern: str, net: Any, layers: Layers, images: np.ndarray, operations: Any) -> None:
    build, left = PATTERNS[pattern]
    case = net(lambda x: build(layers, x), images)
    result = case.checked("fold_constants fold_batch_norms strip_unused_nodes")
    assert [step.outcome for step in result.steps if step.outcome == "rolled back"] == []
    assert case.error(result.graph_def) < LIMIT
    counted = operations(result.graph_def)
    assert sum(counted[op] for op in NORMS) == left
    assert counted["Mul"] <= operations(case.graph_def)["Mul"]


def test_every_version_of_the_kernel(net: Any, layers: Layers, images: np.ndarray, operations: Any) -> None:
    for op in NORMS[:3]:
        case = net(lambda x, op=op: layers.norm(layers.conv(x), op), images)
        result = case.checked("fold_batch_norms")
        assert operations(result.graph_def) == Counter(Placeholder=1, Const=2, Conv2D=1, BiasAdd=1, Identity=1)
        assert case.error(result.graph_def) < LIMIT


def test_the_monolithic_operation_of_old(net: Any, images: np.ndarray, weights: Any, statistics: Any) -> None:
    """TensorFlow refuses to make it, and still runs it in graphs of its time; the reference is NumPy's."""
    import tensorflow as tf

    kernel, (gamma, beta, mean_, variance) = weights(3, 3, 3, 8), statistics(8)
    for scaled in (True, False):
        case = net(lambda x: tf.nn.conv2d(x, kernel, 1, "SAME"), images)
        convolved = case.answers()[0]
        output = next(node for node in case.graph_def.node if node.name == "y")
        output.op = "BatchNormWithGlobalNormalization"
        output.attr["variance_epsilon"].f, output.attr["scale_after_normalization"].b = 1e-3, scaled
        for name, value in (("m", mean_), ("v", variance), ("beta", beta), ("gamma", gamma)):
            node = case.graph_def.node.add(name=name, op="Const")
            node.attr["dtype"].type = 1
            node.attr["value"].tensor.CopyFrom(tf.make_tensor_proto(value))
            output.input.append(name)
        case.graph_def.versions.producer = 8
        result = case.apply("fold_old_batch_norms")
        assert [node.op for node in result.graph_def.node if node.name == "y"] == ["BiasAdd"]
        wanted = (convolved - mean_) / np.sqrt(variance + 1e-3) * (gamma if scaled else 1) + beta
        np.testing.assert_allclose(case.answers(result.graph_def)[0], wanted, rtol=1e-4, atol=1e-5)


@pytest.mark.slow
def test_chains_of_arithmetic(net: Any, layers: Layers, images: np.ndarray, operations: Any) -> None:
    import tensorflow as tf

    def build(x: Any) -> Any:
        y = layers.norm(layers.bias(layers.conv(x)))
        y = (y - tf.constant(0.5)) / tf.constant([[2.0]]) * tf.constant(np.linspace(1, 2, 8, dtype=np.float32))
        return tf.constant(1.0) - layers.plain_norm(y)

    case = net(build, images)
    result = case.checked("fold_constants fold_batch_norms")
    assert operations(result.graph_def) == Counter(Placeholder=1, Const=2, Conv2D=1, BiasAdd=1, Identity=1)
    assert case.error(result.graph_def) < LIMIT


def test_a_scale_alone_leaves_no_bias(net: Any, layers: Layers, images: np.ndarray, operations: Any) -> None:
    case = net(lambda x: layers.conv(x) * layers.weights(8), images)
    result = case.checked("fold_batch_norms")
    assert operations(result.graph_def) == Counter(Placeholder=1, Const=1, Conv2D=1, Identity=1)
    assert case.error(result.graph_def) < LIMIT


def test_three_dimensions_and_double(net: Any, weights: Any, statistics: Any, operations: Any) -> None:
    import tensorflow as tf

    rows = np.random.default_rng(0).standard_normal((2, 4, 5, 6, 3))
    gamma, beta, mean_, variance = (v.astype(np.float64) for v in statistics(7))

    def build(x: Any) -> Any:
        y = tf.nn.conv3d(x, weights(2, 2, 2, 3, 7).astype(np.float64), [1] * 5, "SAME")
        return tf.nn.batch_normalization(y, mean_, variance, beta, gamma, 1e-3)

    case = net(build, rows)
    result = case.checked("fold_constants fold_batch_norms")
    assert operations(result.graph_def) == Counter(Placeholder=1, Const=2, Conv3D=1, BiasAdd=1, Identity=1)
    assert case.error(result.graph_def) < 1e-12


@pytest.mark.skipif(os.environ.get("TF_ENABLE_ONEDNN_OPTS") == "0", reason="NCHW runs on a CPU through oneDNN only")
def test_channels_first(net: Any, layers: Layers, images: np.ndarray, operations: Any) -> None:
    import tensorflow as tf

    def build(x: Any) -> Any:
        y = tf.nn.conv2d(x, layers.weights(3, 3, 3, 8), 1, "SAME", data_format="NCHW")
        y = layers.norm(layers.bias(y, "NCHW"), data_format="NCHW") * layers.weights(8, 1, 1)
        return y * layers.weights(16)  # along the width: not by channel

    case = net(build, images.transpose(0, 3, 1, 2).copy())
    result = case.checked("fold_constants fold_batch_norms")
    counted = operations(result.graph_def)
    assert [counted["FusedBatchNormV3"], counted["Mul"], counted["BiasAdd"]] == [0, 1, 1]
    assert case.error(result.graph_def) < LIMIT


def _training(n: Layers, x: Any) -> Any:
    import tensorflow as tf

    gamma, beta, *_ = n.statistics(8)
    return tf.raw_ops.FusedBatchNormV3(
        x=n.conv(x), scale=gamma, offset=beta, mean=np.zeros(0, np.float32), variance=np.zeros(0, np.float32)
    ).y


def _more_outputs(n: Layers, x: Any) -> Any:
    import tensorflow as tf

    gamma, beta, mean_, variance = n.statistics(8)
    norm = tf.raw_ops.FusedBatchNormV3(
        x=n.conv(x), scale=gamma, offset=beta, mean=mean_, variance=variance, is_training=False
    )
    return norm.y + norm.batch_mean


def _fake_quantized(n: Layers, x: Any) -> Any:
    import tensorflow as tf

    kernel = tf.quantization.fake_quant_with_min_max_vars(n.weights(3, 3, 3, 8), -1.0, 1.0)
    return n.norm(tf.nn.conv2d(x, kernel, 1, "SAME"))


def _one_channel_becomes_many(n: Layers, x: Any) -> Any:
    return n.conv(x, 1) * n.weights(1, 1, 1, 8)


def _by_row(n: Layers, x: Any) -> Any:
    return n.conv(x) * n.weights(16, 1, 1)


def _waits(n: Layers, x: Any) -> Any:
    import tensorflow as tf

    y = n.conv(x)
    with tf.control_dependencies([tf.debugging.assert_less(x, 100.0)]):
        return n.norm(y)


@pytest.mark.parametrize(
    "build", [_training, _more_outputs, _fake_quantized, _one_channel_becomes_many, _by_row, _waits]
)
def test_leaves_alone(build: Any, net: Any, layers: Layers, images: np.ndarray) -> None:
    case = net(lambda x: build(layers, x), images)
    result = case.checked("fold_batch_norms")
    assert [step.outcome for step in result.steps] == ["nothing to do"]
    assert result.graph_def == case.graph_def


def test_an_output_in_the_middle_stays(net: Any, layers: Layers, images: np.ndarray) -> None:
    """The convolution is an output itself: what comes after must not be folded into it."""

    def build(x: Any) -> Any:
        y = layers.conv(x)
        return {"middle": y, "y": layers.norm(y)}

    case = net(build, images)
    convolution = next(node.name for node in case.graph_def.node if node.op == "Conv2D")
    case.outputs = [convolution, "y"]
    # Only the norm reads the convolution now.
    result = case.checked("remove_nodes(op=Identity) strip_unused_nodes fold_batch_norms")
    assert result.steps[-1].outcome == "nothing to do"
    assert case.error(result.graph_def) == 0


@pytest.mark.slow
def test_the_graph_that_was_given_stays(net: Any, layers: Layers, images: np.ndarray) -> None:
    case = net(lambda x: mean(layers.norm(layers.conv(x))), images)
    before = case.graph_def.SerializeToString(deterministic=True)
    case.checked("fold_constants fold_batch_norms remove_nodes(op=Identity) fuse_convolutions flatten_atrous_conv")
    assert case.graph_def.SerializeToString(deterministic=True) == before


def test_names_in_the_way(net: Any, layers: Layers, images: np.ndarray) -> None:
    """A graph that was folded once, and has batch norms again."""
    import tensorflow as tf

    case = net(lambda x: layers.norm(layers.conv(x)), images)
    norm = next(node.name for node in case.graph_def.node if node.op == "FusedBatchNormV3")
    for name in (f"{norm}/folded_weights", f"{norm}/folded_bias"):
        node = case.graph_def.node.add(name=name, op="Const")
        node.attr["dtype"].type = 1
        node.attr["value"].tensor.CopyFrom(tf.make_tensor_proto(1.0))
    result = case.checked("fold_batch_norms")
    assert result.steps[0].outcome == "applied"
    assert case.error(result.graph_def) < LIMIT
