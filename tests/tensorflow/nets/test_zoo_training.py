"""Networks in use: layouts and number formats that give the same answers, and losses that fall on real images."""

from __future__ import annotations

import os
from collections.abc import Callable
from functools import cache
from typing import Any

import numpy as np
import pytest

import moxserve.tensorflow as mox
from moxserve.tensorflow.executor.env import tf, tf1
from moxserve.tensorflow.layers.images import onednn_enabled

pytestmark = pytest.mark.slow

EVERYTHING = os.environ.get("MOXSERVE_ZOO") == "all"


@cache
def _digits() -> tuple[np.ndarray, np.ndarray]:
    """48 real handwritten digits of three classes, 8x8 gray, enlarged to 32x32 colour, raw pixels."""
    pytest.importorskip("sklearn")
    from sklearn.datasets import load_digits

    data = load_digits(n_class=3)
    images = np.kron(data.images[:48], np.ones((4, 4)))[..., None] * 15.9
    return np.repeat(images, 3, axis=-1).astype(np.uint8), data.target[:48].astype(np.int64)


# Network, options that make it small, side of the images, learning rate.
LEARNERS: list[Any] = [
    ("lenet", {}, 32, 0.01),
    ("cifarnet", {}, 32, 0.05),
    ("resnet_v1_20", {}, 32, 0.1),
    ("mobilenet_v1_025", {}, 64, 0.05),
    ("inception_v1", {}, 64, 0.02),
]
if EVERYTHING:
    LEARNERS += [
        ("nasnet_cifar", {"num_cells": 3, "num_conv_filters": 8, "use_aux_head": False}, 32, 0.05),
        ("alexnet_v2", {}, 224, 0.002),
        ("vgg_a_bn", {"fc_conv_padding": "SAME"}, 32, 0.002),
        ("mobilenet_v2_035", {}, 64, 0.05),
        ("resnet_v2_50", {}, 64, 0.01),
        ("resnext_c_50", {}, 64, 0.003),
        ("inception_v2", {}, 64, 0.02),
        ("inception_v3", {}, 139, 0.02),
        ("pnasnet_mobile", {}, 96, 0.02),
        ("pvanet", {}, 224, 0.001),
    ]


STEPS = {"resnext_c_50": 24}  # 12 are enough for the others


@pytest.mark.parametrize(("name", "options", "side", "rate"), LEARNERS, ids=[one[0] for one in LEARNERS])
def test_the_loss_falls_on_real_images(name: str, options: dict[str, Any], side: int, rate: float):
    images, labels = _digits()
    with tf.Graph().as_default(), tf1.Session() as session:
        tf1.set_random_seed(3)
        batch = tf.constant(images[..., :1] if name == "lenet" else images)
        if side != 32:
            batch = tf.cast(tf1.image.resize(batch, [side, side]), tf.uint8)
        network_fn = mox.get_model_fn(name, "TRAIN", 3, 1e-5, batch_norm_fused=True, **options)
        logits, _ = network_fn(batch)
        loss = tf.reduce_mean(tf.nn.sparse_softmax_cross_entropy_with_logits(labels=labels, logits=logits))
        step = mox.get_optimizer_fn("momentum", learning_rate=rate, momentum=0.9)().minimize(loss)
        session.run(tf1.global_variables_initializer())
        losses = [session.run([loss, step])[0] for _ in range(STEPS.get(name, 12))]
    assert np.isfinite(losses).all()
    assert np.mean(losses[-3:]) < 0.7 * np.mean(losses[:2])


def _answers(name: str, data_format: str, dtype: Any = None, mode: str = "EVAL") -> tuple[np.ndarray, Any]:
    images = tf.random.stateless_uniform([2, 64, 64, 3], [5, 6], -1, 1)
    with mox.var_scope(force_dtype=tf.float32):
        if dtype is not None:
            images = tf.cast(images, dtype)
        network_fn = mox.get_model_fn(name, mode, 5, 1e-4, data_format, batch_norm_fused=True)
        logits, end_points = network_fn(images)
    return logits, end_points


SMALL = ["resnet_v1_20", "mobilenet_v1_025", "inception_v1"]


@pytest.mark.parametrize("name", SMALL)
def test_both_layouts_and_all_formats_give_the_same_answers_of_the_same_variables(
    name: str, computed: Callable[[Any], Any]
):
    if not onednn_enabled():
        pytest.skip("this TensorFlow runs NCHW on GPUs only")
    with tf.Graph().as_default():
        wanted, end_points = _answers(name, "NHWC")
        count = len(tf1.global_variables())
        with tf1.variable_scope(tf1.get_variable_scope(), reuse=True):
            swapped, swapped_points = _answers(name, "NCHW")
            halves = [_answers(name, "NHWC", dtype)[0] for dtype in (tf.bfloat16, tf.float16)]
        assert len(tf1.global_variables()) == count
        assert {v.dtype.base_dtype for v in tf1.global_variables()} == {tf.float32}
        assert [half.dtype for half in halves] == [tf.bfloat16, tf.float16]
        assert list(end_points) == list(swapped_points)
        for key, value in end_points.items():
            if value.shape.rank == 4 and swapped_points[key].shape.rank == 4:
                batch, height, width, channels = value.shape.as_list()
                assert swapped_points[key].shape.as_list() in ([batch, channels, height, width], value.shape.as_list())
        expected, other, *small = computed([wanted, swapped, *(tf.cast(half, tf.float32) for half in halves)])
    spread = expected.std()
    np.testing.assert_allclose(other, expected, atol=1e-4 * spread)
    np.testing.assert_allclose(small[0], expected, atol=0.3 * spread)  # 8 bits of mantissa
    np.testing.assert_allclose(small[1], expected, atol=0.05 * spread)  # 11 bits


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_a_step_in_half_precision_trains_float32_variables(dtype: str):
    with tf.Graph().as_default(), tf1.Session() as session:
        tf1.set_random_seed(1)
        logits, _ = _answers("resnet_v1_20", "NHWC", tf.as_dtype(dtype), "TRAIN")
        loss = tf1.losses.softmax_cross_entropy(tf.one_hot([0, 3], 5), logits)
        loss += tf.add_n(mox.get_collection(tf1.GraphKeys.REGULARIZATION_LOSSES))
        variables = tf1.trainable_variables()
        gradients = tf.gradients(loss, variables)
        assert all(gradient.dtype == tf.float32 for gradient in gradients)
        session.run(tf1.global_variables_initializer())
        found = session.run([loss, *gradients])
    assert all(np.isfinite(value).all() for value in found)
