"""The MobileNets beyond what all networks are tested for: multipliers, strides, padding, sizes of images."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from moxserve.errors import UsageError
from moxserve.tensorflow.executor.env import tf, tf1
from moxserve.tensorflow.nets.base import Build
from moxserve.tensorflow.nets.mobilenet import divisible, strides_and_rates
from moxserve.tensorflow.nets.mobilenet_v1 import mobilenet_v1
from moxserve.tensorflow.nets.mobilenet_v2 import mobilenet_v2

Computed = Callable[[Any], Any]
Image = Callable[[int, int], np.ndarray]


def build(network: Callable[..., Any], images: Any, num_classes: int | None = 7, **options: Any) -> Any:
    return network(tf.constant(images), Build(num_classes, training=False), **options)


def shape(end_points: dict[str, Any], name: str) -> list[int]:
    found: list[int] = end_points[name].shape.as_list()
    return found


# -- against slim


@pytest.mark.slow
@pytest.mark.parametrize(
    ("size", "options", "expected"),
    [
        ((65, 97), {"output_stride": 8, "use_explicit_padding": True}, (0.03569, 0.04674, 0.05246, 0.14224)),
        ((64, 96), {"output_stride": 16, "min_depth": 12}, (0.04556, 0.05294, 0.07171, 0.14025)),
        ((64, 96), {"use_explicit_padding": True}, (0.0448, 0.05063, 0.06921, 0.14117)),
    ],
)
def test_version_1_with_options_gives_what_slim_gives(
    size: tuple[int, int], options: dict[str, Any], expected: tuple[float, ...], computed: Computed, image: Image
) -> None:
    """The first values of the last map, and the spread of all, as slim's network of the same options computes them."""
    _, end_points = build(mobilenet_v1, image(*size), None, depth_multiplier=0.25, global_pool=True, **options)
    found = computed(end_points["Conv2d_13_pointwise"])
    np.testing.assert_allclose([*found.ravel()[:3], found.std()], expected, atol=1e-3 * expected[-1])


@pytest.mark.slow
@pytest.mark.parametrize(
    ("size", "options", "expected"),
    [
        (
            (65, 97),
            {"depth_multiplier": 0.35, "output_stride": 8, "use_explicit_padding": True},
            (0.28074, -0.03274, 0.2859, 1.16225),
        ),
        (
            (64, 96),
            {"depth_multiplier": 0.5, "use_explicit_padding": True, "min_depth": 20, "divisible_by": 4},
            (0.34983, -0.87171, 0.11433, 0.69549),
        ),
        ((63, 95), {"depth_multiplier": 1.3, "divisible_by": 16}, (1.61384, -0.52348, 1.82832, 0.89367)),
    ],
)
def test_version_2_with_options_gives_what_slim_gives(
    size: tuple[int, int], options: dict[str, Any], expected: tuple[float, ...], computed: Computed, image: Image
) -> None:
    """The first logits of seven, and the spread of all, as slim's network of the same options computes them."""
    logits, _ = build(mobilenet_v2, image(*size), **options)
    found = computed(logits)[0]
    np.testing.assert_allclose([*found[:3], found.std()], expected, atol=1e-3 * expected[-1])


# -- widths, strides


@pytest.mark.parametrize(
    ("width", "divisor", "minimum", "expected"),
    [
        (32 * 0.35, 8, 8, 16),  # 8 would be more than a tenth below 11.2
        (24 * 0.35, 8, 8, 8),
        (96 * 1.4, 8, 8, 136),
        (160 * 1.4, 8, 8, 224),
        (1280 * 0.35, 8, 8, 448),
        (4, 8, 8, 8),
        (4, 8, 24, 24),
        (31, 1, 1, 31),
    ],
)
def test_widths_are_rounded(width: float, divisor: int, minimum: int, expected: int) -> None:
    assert divisible(width, divisor, minimum) == expected


@pytest.mark.parametrize(
    ("output_stride", "expected"),
    [
        (None, [(2, 1), (1, 1), (2, 1), (1, 1), (2, 1)]),
        (8, [(2, 1), (1, 1), (2, 1), (1, 1), (2, 1)]),
        (4, [(2, 1), (1, 1), (2, 1), (1, 1), (1, 1)]),
        (2, [(2, 1), (1, 1), (1, 1), (1, 2), (1, 2)]),
        (1, [(1, 1), (1, 2), (1, 2), (1, 4), (1, 4)]),
    ],
)
def test_strides_become_rates_of_the_layers_after(output_stride: int | None, expected: list[tuple[int, int]]) -> None:
    assert strides_and_rates((2, 1, 2, 1, 2), output_stride, (1, 2, 4, 8)) == expected


# -- sizes, errors


@pytest.mark.slow
def test_larger_images_give_a_map_of_logits_if_it_is_asked_for(image: Image) -> None:
    images = image(288, 320)
    with pytest.raises(UsageError, match=r"a map of 2 x 2; pass global_pool=True .* or spatial_squeeze=False"):
        build(mobilenet_v1, images, depth_multiplier=0.25)
    with tf.Graph().as_default():
        logits, end_points = build(mobilenet_v1, images, depth_multiplier=0.25, spatial_squeeze=False)
        assert logits.shape.as_list() == shape(end_points, "Predictions") == [1, 2, 2, 7]


@pytest.mark.slow
def test_the_mean_of_the_whole_map_takes_images_of_any_size(image: Image, computed: Computed) -> None:
    logits, end_points = build(mobilenet_v1, image(257, 289), depth_multiplier=0.25, global_pool=True)
    assert logits.shape.as_list() == [1, 7]
    pooled, last = computed([end_points["global_pool"], end_points["Conv2d_13_pointwise"]])
    assert last.shape == (1, 9, 10, 256)
    np.testing.assert_allclose(pooled, last.mean((1, 2), keepdims=True), rtol=1e-5)


@pytest.mark.slow
def test_weights_of_depthwise_convolutions_decay_only_if_asked_to() -> None:
    losses = []
    for regularize in (False, True):
        with tf.Graph().as_default():
            images = tf.zeros([1, 32, 32, 3])
            mobilenet_v1(images, Build(7, False, weight_decay=0.1), regularize_depthwise=regularize)
            losses.append(len(tf1.get_collection(tf1.GraphKeys.REGULARIZATION_LOSSES)))
    assert losses == [15, 28]


@pytest.mark.slow
def test_predictions_and_activations_may_be_others(image: Image, computed: Computed) -> None:
    logits, end_points = build(
        mobilenet_v2, image(32, 32), depth_multiplier=0.35, activation_fn=tf.nn.tanh, prediction_fn=tf.sigmoid
    )
    values = computed({"logits": logits, **{key: end_points[key] for key in ("layer_1", "layer_2", "Predictions")}})
    np.testing.assert_allclose(values["Predictions"], 1 / (1 + np.exp(-values["logits"])), rtol=1e-5)
    assert -1 <= values["layer_1"].min() < -0.5 < 0.5 < values["layer_1"].max() <= 1
    assert np.abs(values["layer_2"]).max() > 1  # what narrows has no activation


def test_widths_are_multiples_of_something() -> None:
    with pytest.raises(UsageError, match="divisible_by must be at least 1, got 0"):
        mobilenet_v2(tf.zeros([1, 32, 32, 3]), Build(7, training=False), divisible_by=0)


@pytest.mark.parametrize("network", [mobilenet_v1, mobilenet_v2])
@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"depth_multiplier": 0.0}, "depth_multiplier must be above 0, got 0.0"),
        ({"output_stride": 12}, r"output_stride must be one of .*8, 16, 32 or None, got 12"),
    ],
)
def test_values_that_make_no_sense(network: Callable[..., Any], options: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        network(tf.zeros([1, 32, 32, 3]), Build(7, training=False), **options)
    assert not tf1.global_variables()
