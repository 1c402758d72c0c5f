"""Slim-named layers: their numbers, and the variables, collections and end points that slim's have."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

import moxserve.tensorflow as mox
from moxserve.errors import UsageError
from moxserve.tensorflow.executor.env import tf, tf1
from moxserve.tensorflow.layers import Layers, Normalization
from moxserve.tensorflow.layers import images as image_functions

KEYS = tf1.GraphKeys
IMAGES = np.random.default_rng(0).normal(size=(2, 9, 8, 4)).astype(np.float32)


def names(key: str = KEYS.GLOBAL_VARIABLES) -> list[str]:
    return [v.op.name for v in tf1.get_collection(key)]


def value_of(tensors: Any) -> Any:
    """Compute tensors, with all variables as they begin."""
    with tf1.Session() as session:
        session.run(tf1.global_variables_initializer())
        return session.run(tensors)


def test_a_convolution_has_slims_variables_and_collections() -> None:
    layers = Layers(training=True, weight_decay=0.5, norm=Normalization(scale=True))
    with layers.scope("net"):
        x = layers.conv2d(tf.constant(IMAGES), 6, 3, "conv1")
        layers.conv2d(x, 5, [1, 3], "logits", norm=None, activation=None)
    assert [(v.op.name, v.shape.as_list()) for v in tf1.global_variables()] == [
        ("net/conv1/weights", [3, 3, 4, 6]),
        ("net/conv1/BatchNorm/gamma", [6]),
        ("net/conv1/BatchNorm/beta", [6]),
        ("net/conv1/BatchNorm/moving_mean", [6]),
        ("net/conv1/BatchNorm/moving_variance", [6]),
        ("net/logits/weights", [1, 3, 6, 5]),
        ("net/logits/biases", [5]),
    ]
    assert names(KEYS.MODEL_VARIABLES) == names()
    assert [n for n in names() if n not in names(KEYS.TRAINABLE_VARIABLES)] == [n for n in names() if "moving" in n]
    assert len(tf1.get_collection(KEYS.UPDATE_OPS)) == 2
    weights, losses = value_of([[v for v in tf1.trainable_variables() if "weights" in v.name],
                                tf1.get_collection(KEYS.REGULARIZATION_LOSSES)])  # fmt: skip
    np.testing.assert_allclose(losses, [0.25 * np.sum(w**2) for w in weights], rtol=1e-5)


def test_nothing_is_penalised_or_updated_that_should_not_be() -> None:
    layers = Layers(training=False, norm=Normalization())
    layers.conv2d(tf.constant(IMAGES), 6, 3, "conv1")
    assert not tf1.get_collection(KEYS.REGULARIZATION_LOSSES)
    assert not tf1.get_collection(KEYS.UPDATE_OPS)


def test_reuse_shares_variables_and_end_points_keep_their_names() -> None:
    def build(training: bool) -> tuple[Any, dict[str, Any]]:
        layers = Layers(training, weight_decay=0.1, end_points={}, collect=frozenset({"conv2d", "max_pool"}))
        with layers.scope("net"):
            x = layers.conv2d(tf.constant(IMAGES), 3, 3, "conv1")
            x = layers.max_pool(x, 2, "pool1")
            return layers.dense(layers.flatten(x), 2, "fc"), layers.end_points

    first, ends = build(True)
    with tf1.variable_scope("", reuse=True):
        second, again = build(False)
    assert list(ends) == list(again) == ["net/conv1", "net/pool1"]
    assert ends["net/conv1"] is not again["net/conv1"]
    assert names() == ["net/conv1/weights", "net/conv1/biases", "net/fc/weights", "net/fc/biases"]
    assert len(tf1.get_collection(KEYS.REGULARIZATION_LOSSES)) == 2
    one, two = value_of([first, second])
    np.testing.assert_array_equal(one, two)
    with pytest.raises(ValueError, match="conv1/weights already exists"):
        build(True)


def convolved(x: np.ndarray, kernel: np.ndarray) -> np.ndarray:
    """Convolve `[H, W, in]` with `[kh, kw, in, out]` without padding, by the definition."""
    kh, kw = kernel.shape[:2]
    rows, columns = x.shape[0] - kh + 1, x.shape[1] - kw + 1
    windows = [[np.tensordot(x[i : i + kh, j : j + kw], kernel, 3) for j in range(columns)] for i in range(rows)]
    return np.array(windows)


def test_convolutions_compute_what_they_say() -> None:
    layers = Layers(training=False, padding="VALID", activation=None)
    x = tf.constant(IMAGES)
    plain = layers.conv2d(x, 6, 3, "plain")
    grouped = layers.conv2d(x, 6, 3, "grouped", groups=2)
    wide = layers.conv2d(x, 6, 3, "wide", rate=2)
    separable = layers.separable_conv2d(x, 6, 3, "separable", depth_multiplier=2)
    depthwise = layers.separable_conv2d(x, None, 3, "depthwise")
    dense = layers.dense(x, 6, "dense")
    variables = {v.op.name: v for v in tf1.global_variables()}
    got, w = value_of([[plain, grouped, wide, separable, depthwise, dense], variables])
    image = IMAGES[0]
    np.testing.assert_allclose(got[0][0], convolved(image, w["plain/weights"]), rtol=1e-4, atol=1e-5)
    halves = [convolved(image[..., 2 * g : 2 * g + 2], w["grouped/weights"][..., 3 * g : 3 * g + 3]) for g in (0, 1)]
    np.testing.assert_allclose(got[1][0], np.concatenate(halves, -1), rtol=1e-4, atol=1e-5)
    spread = np.zeros((5, 5, 4, 6), np.float32)
    spread[::2, ::2] = w["wide/weights"]
    np.testing.assert_allclose(got[2][0], convolved(image, spread), rtol=1e-4, atol=1e-5)
    assert w["separable/depthwise_weights"].shape == (3, 3, 4, 2)
    assert w["separable/pointwise_weights"].shape == (1, 1, 8, 6)
    single = [convolved(image[..., c : c + 1], w["separable/depthwise_weights"][:, :, c : c + 1]) for c in range(4)]
    both = np.concatenate(single, -1) @ w["separable/pointwise_weights"][0, 0]
    np.testing.assert_allclose(got[3][0], both, rtol=1e-4, atol=1e-5)
    single = [convolved(image[..., c : c + 1], w["depthwise/depthwise_weights"][:, :, c : c + 1]) for c in range(4)]
    np.testing.assert_allclose(got[4][0], np.concatenate(single, -1), rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(got[5], IMAGES @ w["dense/weights"], rtol=1e-4, atol=1e-5)


def test_penalties_of_separable_convolutions_are_two() -> None:
    layers = Layers(training=False, weight_decay=0.5)
    layers.separable_conv2d(tf.constant(IMAGES), 6, 3, "a")
    layers.separable_conv2d(tf.constant(IMAGES), 6, 3, "b", weight_decay=0.0, depthwise_weight_decay=0.25)
    penalised = [loss.op.name for loss in tf1.get_collection(KEYS.REGULARIZATION_LOSSES)]
    assert [name.split("/Regularizer")[0] for name in penalised] == ["a/pointwise_weights", "b/depthwise_weights"]


def test_penalties_are_of_the_dtype_that_is_computed_in() -> None:
    """As slim's, so that scripts add them to a loss of half precision; summed up in float32, which overflows later."""
    with mox.var_scope(force_dtype=tf.float32):
        layers = Layers(training=True, weight_decay=1e-3, initializer=tf1.ones_initializer())
        layers.dense(tf.ones([1, 400], tf.float16), 400, "wide")
    (penalty,) = tf1.get_collection(KEYS.REGULARIZATION_LOSSES)
    (gradient,) = tf1.gradients(penalty, tf1.trainable_variables("wide/weights"))
    assert (penalty.dtype, gradient.dtype) == (tf.float16, tf.float32)
    value, slope = value_of([penalty, gradient])
    assert value == pytest.approx(80, rel=1e-3)
    np.testing.assert_allclose(slope, 1e-3, rtol=1e-3)


@pytest.mark.parametrize("size", [8, 9])
@pytest.mark.parametrize("rate", [1, 2])
def test_conv2d_same_is_the_dense_result_subsampled(size: int, rate: int) -> None:
    x = tf.constant(np.random.default_rng(1).normal(size=(1, size, size, 2)).astype(np.float32))
    layers = Layers(training=False, activation=None)
    if rate > 1:
        with pytest.raises(UsageError, match="one of them must be 1"):
            layers.conv2d_same(x, 3, 3, "c", stride=2, rate=rate)
        return
    with tf1.variable_scope("", reuse=tf1.AUTO_REUSE):
        dense, strided = (layers.conv2d_same(x, 3, 3, "c", stride=stride) for stride in (1, 2))
    dense, strided = value_of([dense, strided])
    np.testing.assert_allclose(strided, dense[:, ::2, ::2], rtol=1e-4, atol=1e-5)


GROWN = [(2, "SAME", (18, 16)), (2, "VALID", (19, 17)), (4, "VALID", (36, 32))]


@pytest.mark.parametrize(("stride", "padding", "shape"), GROWN)
def test_transposed_convolutions_grow_images(stride: int, padding: str, shape: tuple[int, int]) -> None:
    layers = Layers(training=False, activation=None)
    static = layers.conv2d_transpose(tf.constant(IMAGES), 5, 3, "t", stride=stride, padding=padding)
    assert static.shape.as_list() == [2, *shape, 5]
    assert tf1.global_variables()[0].shape.as_list() == [3, 3, 5, 4]
    x = tf1.placeholder(tf.float32, [None, None, None, 4])
    with tf1.variable_scope("", reuse=True):
        dynamic = layers.conv2d_transpose(x, 5, 3, "t", stride=stride, padding=padding)
    assert dynamic.shape.as_list() == [None, None, None, 5]
    with tf1.Session() as session:
        session.run(tf1.global_variables_initializer())
        one, two = session.run([static, dynamic], {x: IMAGES})
    np.testing.assert_array_equal(one, two)


def test_pools_dropout_and_the_rest() -> None:
    layers = Layers(training=True)
    x = tf.constant(IMAGES)
    made = {
        (2, 4, 3, 4): layers.max_pool(x, 3, "a"),
        (2, 8, 5, 4): layers.avg_pool(x, [2, 4], "b", stride=1),
        (2, 5, 4, 4): layers.max_pool(x, 3, "c", padding="SAME"),
        (2, 1, 1, 4): layers.global_pool(x),
        (2, 4): layers.global_pool(x, keep=False),
        (2, 288): layers.flatten(x),
        (2, 9, 8, 8): layers.concat([x, x]),
        (2, 12, 15, 4): layers.pad(x, 1, 2, 3, 4),
    }
    assert [tuple(tensor.shape) for tensor in made.values()] == list(made)
    ones = tf.ones([100, 100])
    dropped, kept, largest, soft = value_of([
        layers.dropout(ones, 0.8), layers.replace(training=False).dropout(ones, 0.8), layers.max_pool(x, [9, 8], "d"),
        layers.softmax(tf.constant([[0.0, np.log(3.0)]])),
    ])  # fmt: skip
    assert set(np.unique(dropped)) == {0.0, np.float32(1.25)}
    assert 0.77 < np.mean(dropped > 0) < 0.83
    assert (kept == 1).all()
    np.testing.assert_array_equal(largest[:, 0, 0], IMAGES.max((1, 2)))
    np.testing.assert_allclose(soft, [[0.25, 0.75]], rtol=1e-6)


CASES: dict[str, Callable[[Layers, Any], Any]] = {
    "conv2d": lambda layers, x: layers.conv2d(x, 6, 3, "l", norm=None),
    "strided": lambda layers, x: layers.conv2d_same(x, 6, 3, "l", stride=2),
    "grouped": lambda layers, x: layers.conv2d(x, 6, 3, "l", groups=2),
    "separable": lambda layers, x: layers.separable_conv2d(x, 6, 3, "l", stride=2),
    "transpose": lambda layers, x: layers.conv2d_transpose(x, 6, 3, "l", stride=2),
    "pools": lambda layers, x: layers.avg_pool(layers.max_pool(x, 3, "m", stride=1), 2, "l"),
    "norm": lambda layers, x: layers.batch_norm(x),
    "pad": lambda layers, x: layers.concat([layers.pad(x, 1, 2, 3, 4)] * 2),
}


SLOW_CASES = [pytest.param(case, marks=pytest.mark.slow) for case in sorted(CASES) if case != "grouped"]


@pytest.mark.skipif(not image_functions.onednn_enabled(), reason="only oneDNN computes NCHW on a CPU")
@pytest.mark.parametrize("case", ["grouped", *SLOW_CASES])
def test_nchw_is_nhwc_with_other_axes(case: str) -> None:
    results = []
    for data_format, images in (("NHWC", IMAGES), ("NCHW", IMAGES.transpose(0, 3, 1, 2))):
        with tf1.Graph().as_default():
            tf1.set_random_seed(1)
            layers = Layers(training=True, data_format=data_format, norm=Normalization(scale=True))
            y = CASES[case](layers, tf.constant(images))
            assert layers.channels(y) == y.shape[layers.channel_axis]
            loss = tf.reduce_sum(tf.square(y + 1))
            gradients = tf.gradients(loss, tf1.trainable_variables())
            results.append([*value_of([y, gradients]), y.shape.as_list()])
    (a, da, shape), (b, db, turned) = results
    np.testing.assert_allclose(b.transpose(0, 2, 3, 1), a, rtol=1e-4, atol=1e-4)
    assert [turned[0], turned[2], turned[3], turned[1]] == shape
    for one, two in zip(da, db, strict=True):
        np.testing.assert_allclose(two, one, rtol=1e-3, atol=1e-3 * np.abs(one).max())


@pytest.mark.skipif(not image_functions.onednn_enabled(), reason="only oneDNN has the gradients to compare with")
@pytest.mark.parametrize("case", ["grouped", "dilated"])
def test_without_onednn_there_are_gradients_too(case: str, monkeypatch: pytest.MonkeyPatch) -> None:
    arguments = {"groups": 2} if case == "grouped" else {"rate": 2}
    results = []
    for native in (True, False):
        monkeypatch.setattr(image_functions, "_all_gradients", lambda native=native: native)
        with tf1.Graph().as_default() as graph:
            tf1.set_random_seed(1)
            x = tf.constant(IMAGES)
            y = Layers(training=True).conv2d(x, 6, 3, "l", **arguments)
            assert y.shape.as_list() == [2, 9, 8, 6]
            gradients = tf.gradients(tf.reduce_sum(tf.square(y)), [x, *tf1.trainable_variables()])
            results.append(value_of([y, *gradients]))
            kernels = [op for op in graph.get_operations() if op.type == "Conv2D"]
            plain = all(
                op.get_attr("dilations") == [1] * 4 and op.inputs[0].shape[-1] == op.inputs[1].shape[2]
                for op in kernels
            )
            assert plain is not native  # what any build of TensorFlow has a gradient of
    for one, two in zip(*results, strict=True):
        np.testing.assert_allclose(two, one, rtol=1e-3, atol=1e-3 * np.abs(one).max())


@pytest.mark.slow
@pytest.mark.parametrize("dtype", [tf.float16, tf.bfloat16])
@pytest.mark.parametrize("fused", [True, False])
def test_half_precision_stores_and_averages_float32(dtype: Any, fused: bool) -> None:
    layers = Layers(training=True, weight_decay=1e-4, norm=Normalization(fused=fused, scale=True))
    with mox.var_scope(force_dtype=tf.float32), layers.scope("net"):
        x = layers.conv2d(tf.constant(IMAGES, dtype), 6, 3, "conv1")
        y = layers.dense(layers.flatten(x), 3, "fc", norm=None)
    assert y.dtype == dtype
    assert {v.dtype.base_dtype for v in tf1.global_variables()} == {tf.float32}
    gradients = tf.gradients(y, tf1.trainable_variables())
    with tf1.Session() as session:
        session.run(tf1.global_variables_initializer())
        session.run(tf1.get_collection(KEYS.UPDATE_OPS))
        moved, loss, values = session.run([tf1.global_variables()[3], tf1.losses.get_regularization_loss(), gradients])
    assert np.abs(moved).max() > 0
    assert loss > 0
    assert all(np.isfinite(v).all() for v in values)


def test_partitioned_variables_and_unknown_sizes() -> None:
    x = tf1.placeholder(tf.float32, [None, None, None, 4])
    layers = Layers(training=True, weight_decay=0.5, norm=Normalization(scale=True))
    with tf1.variable_scope("net", partitioner=tf1.fixed_size_partitioner(2)):
        y = layers.flatten(layers.conv2d(x, 6, 4, "conv1"))
    assert "net/conv1/weights/part_1" in names()
    assert "net/conv1/BatchNorm/moving_mean" in names()
    assert y.shape.as_list() == [None, None]
    with tf1.Session() as session:
        session.run(tf1.global_variables_initializer())
        values, *_ = session.run([y, tf1.get_collection(KEYS.UPDATE_OPS)], {x: IMAGES})
    assert values.shape == (2, 9 * 8 * 6)


def test_wrong_arguments_are_told_with_the_layer() -> None:
    layers, x = Layers(training=True), tf.constant(IMAGES)
    with pytest.raises(UsageError, match="'NHCW'; did you mean 'NHWC'"):
        Layers(training=True, data_format="NHCW").channels(x)
    with pytest.raises(UsageError, match="conv1: 4 channels to 6 do not fall into 3 groups"):
        layers.conv2d(x, 6, 3, "conv1", groups=3)
    with pytest.raises(UsageError, match="groups is 0; expected a positive integer"):
        layers.conv2d(x, 6, 3, "conv6", groups=0)
    with pytest.raises(UsageError, match="filters is 0; expected a positive integer"):
        layers.conv2d(x, 0, 3, "conv7")
    with pytest.raises(UsageError, match=r"units is 2\.5; expected a positive integer"):
        layers.dense(x, 2.5, "fc")  # type: ignore[arg-type]
    with pytest.raises(UsageError, match="a layer has no argument 'strides'; did you mean 'stride'"):
        layers.conv2d(x, 6, 3, "conv8", strides=2)  # type: ignore[call-arg]
    with pytest.raises(UsageError, match="padding is 'same'; expected 'SAME' or 'VALID'"):
        layers.conv2d(x, 6, 3, "conv2", padding="same")
    with pytest.raises(UsageError, match="kernel is 0"):
        layers.conv2d(x, 6, 0, "conv3")
    with pytest.raises(UsageError, match=r"channels of .* are unknown"):
        layers.conv2d(tf1.placeholder(tf.float32, [None, 9, 8, None]), 6, 3, "conv4")
    with pytest.raises(UsageError, match=r"rank of .* is unknown"):
        layers.conv2d(tf1.placeholder(tf.float32), 6, 3, "conv5")
    with pytest.raises(UsageError, match="keep_prob is 0"):
        layers.dropout(x, 0)
    with pytest.raises(UsageError, match="batch_norm 'bn' of layers without a norm"):
        layers.batch_norm(x, "bn")
