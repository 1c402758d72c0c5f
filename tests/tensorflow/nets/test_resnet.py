"""The residual networks beyond what all networks are tested for: options, strides, the papers' definitions."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
import pytest

from moxserve.errors import UsageError
from moxserve.tensorflow.executor.env import tf, tf1
from moxserve.tensorflow.nets.base import Build
from moxserve.tensorflow.nets.residual import Unit, plan
from moxserve.tensorflow.nets.resnet_small import resnet_small
from moxserve.tensorflow.nets.resnet_v1 import LiteBottleneck, resnet_v1
from moxserve.tensorflow.nets.resnet_v2 import resnet_v2
from moxserve.tensorflow.nets.resnext import resnext

THIN = {"scope": "net", "units": (1, 2, 1, 1), "depth_multiplier": 0.125}
V1 = partial(resnet_v1, **THIN, bottleneck=True, zero_gamma=False)
LITE = partial(resnet_v1, **THIN, bottleneck=False, zero_gamma=False)
V2 = partial(resnet_v2, **THIN)
NEXT = partial(resnext, scope="net", units=(1, 2, 1, 1), split=False, cardinality=2, base_width=2)
SMALL = partial(resnet_small, scope="net", units=1)
BUILDERS: dict[str, Callable[..., Any]] = {"v1": V1, "lite": LITE, "v2": V2, "next": NEXT, "small": SMALL}
IMAGES = np.random.RandomState(7)


def images(height: int, width: int | None = None, batch: int = 1) -> Any:
    return tf.constant(IMAGES.uniform(-1, 1, (batch, height, width or height, 3)).astype(np.float32))


def evaluated(num_classes: int | None = 5, **kwargs: Any) -> Build:
    return Build(num_classes=num_classes, training=False, **kwargs)


def values(*fetches: Any) -> list[np.ndarray]:
    """Values of tensors, with variables of small random values."""
    rng = np.random.default_rng(3)
    feeds = {}
    for variable in tf1.global_variables():
        fan = max(np.prod(variable.shape[:-1].as_list()), 2)
        value = rng.standard_normal(variable.shape.as_list()) * np.sqrt(2 / fan)
        positive = variable.op.name.endswith(("variance", "gamma"))
        feeds[variable.initializer.inputs[1]] = np.abs(value) + 1 if positive else value
    with tf1.Session() as session:
        session.run([v.initializer for v in tf1.global_variables()], feeds)
        return session.run(list(fetches))


def shapes(ends: dict[str, Any]) -> dict[str, list[int]]:
    return {name: tensor.shape.as_list() for name, tensor in ends.items()}


def trained() -> int:
    return sum(int(np.prod(v.shape)) for v in tf1.trainable_variables())


class TestOutputStride:
    """Dense maps: dilation in place of strides gives what the strides skip."""

    @pytest.mark.slow
    @pytest.mark.parametrize(
        ("name", "official"), [("v1", False), ("v1", True), ("lite", True), ("v2", False), ("next", False)]
    )
    def test_dense_map_holds_the_coarse_one(self, name: str, official: bool) -> None:
        build = partial(BUILDERS[name], images(70, 97), evaluated(None), global_pool=False, official=official)
        nominal, _ = build()
        with tf1.variable_scope(tf1.get_variable_scope(), reuse=True):
            dense = {stride: build(output_stride=stride)[0] for stride in (4, 16)}
        coarse, *maps = values(nominal, *dense.values())
        assert coarse.shape[1:3] == (3, 4)
        for stride, found in zip(dense, maps, strict=True):
            skipped = 32 // stride
            assert found.shape[1:3] == (-(-70 // stride), -(-97 // stride))
            np.testing.assert_allclose(found[:, ::skipped, ::skipped], coarse, rtol=0, atol=1e-5 * coarse.std())

    @pytest.mark.parametrize("shortcut", ["A", "B"])
    def test_networks_for_small_images(self, shortcut: str) -> None:
        build = partial(SMALL, images(10, 7), evaluated(None), global_pool=False, shortcut=shortcut)
        nominal, _ = build()
        with tf1.variable_scope(tf1.get_variable_scope(), reuse=True):
            dense, _ = build(output_stride=1)
        coarse, found = values(nominal, dense)
        assert (coarse.shape, found.shape) == ((1, 3, 2, 64), (1, 10, 7, 64))
        np.testing.assert_allclose(found[:, ::4, ::4], coarse, rtol=0, atol=1e-5 * coarse.std())

    @pytest.mark.parametrize(("name", "reachable"), [("v1", "4, 8, 16, 32"), ("small", "1, 2, 4")])
    def test_strides_that_a_network_does_not_have(self, name: str, reachable: str) -> None:
        with pytest.raises(UsageError, match=f"^output_stride: expected one of {reachable}, got 12$"):
            BUILDERS[name](images(33), evaluated(), output_stride=12)


class TestOptions:
    """What the options of slim's functions and arg scope do."""

    @pytest.mark.parametrize("data_format", ["NHWC", pytest.param("NCHW", marks=pytest.mark.slow)])
    def test_map_of_logits(self, data_format: str) -> None:
        x = images(64, 96)
        x = tf.transpose(x, [0, 3, 1, 2]) if data_format == "NCHW" else x
        build = evaluated(data_format=data_format)
        logits, ends = V1(x, build, global_pool=False, spatial_squeeze=False)
        found, predictions = values(logits, ends["predictions"])
        axis = 1 if data_format == "NCHW" else 3
        assert found.shape == ((1, 5, 2, 3) if data_format == "NCHW" else (1, 2, 3, 5))
        np.testing.assert_allclose(predictions.sum(axis), 1, rtol=1e-5)
        assert list(ends)[-3:] == ["net/block4", "net/logits", "predictions"]

    def test_map_cannot_be_squeezed(self) -> None:
        with pytest.raises(UsageError, match="a map of 2x3, which cannot be squeezed") as caught:
            V1(images(64, 96), evaluated(), global_pool=False)
        assert "spatial_squeeze=False" in str(caught.value.hint)

    def test_no_classes(self) -> None:
        features, ends = V1(images(40), evaluated(None))
        assert features.shape.as_list() == [1, 1, 1, 4 * 64]
        assert list(ends)[-1] == "global_pool"
        assert not [v for v in tf1.global_variables() if "logits" in v.op.name]

    @pytest.mark.slow
    def test_batch_norms(self) -> None:
        build = Build(5, training=True)
        V2(images(32, batch=2), build, batch_norm_decay=0.75, batch_norm_epsilon=0.5, batch_norm_scale=False)
        assert not [v for v in tf1.global_variables() if "gamma" in v.op.name]
        [mean] = [
            v for v in tf1.global_variables() if v.op.name == "net/block1/unit_1/bottleneck_v2/preact/moving_mean"
        ]
        graph = tf1.get_default_graph()
        pooled = graph.get_tensor_by_name("net/pool1/MaxPool:0")
        with tf1.Session() as session:
            session.run(tf1.global_variables_initializer())
            batch, _ = session.run([pooled, *tf1.get_collection(tf1.GraphKeys.UPDATE_OPS)])[:2]
            np.testing.assert_allclose(session.run(mean), batch.mean((0, 1, 2)) / 4, rtol=1e-4, atol=1e-6)
        epsilons = {
            float(tf.get_static_value(op.inputs[1]))
            for op in graph.get_operations()
            if op.type == "AddV2" and op.name.endswith("batchnorm/add")
        }
        assert epsilons == {0.5}

    @pytest.mark.parametrize(
        ("parameters", "variance"),
        [
            (None, 2 / (9 * 64)),
            ({"factor": 1.0}, 1 / (9 * 64)),
            ({"mode": "FAN_OUT"}, 2 / (9 * 32)),
            ({"mode": "FAN_AVG", "uniform": True}, 2 / (9 * 48)),
        ],
    )
    def test_initializer_of_weights(self, parameters: dict[str, Any] | None, variance: float) -> None:
        from moxserve.tensorflow.nets.residual import Options, residual_layers

        layers = residual_layers(evaluated(), Options(weights_initializer_params=parameters))
        layers.conv2d(tf.zeros([1, 4, 4, 64]), 32, 3, "conv")
        [weights] = tf1.trainable_variables("conv/weights")
        with tf1.Session() as session:
            tf1.set_random_seed(1)
            session.run(weights.initializer)
            found = session.run(weights)
        assert found.var() == pytest.approx(variance, rel=0.05)
        highest = np.sqrt(3 * variance) if parameters and parameters.get("uniform") else 2.3 * np.sqrt(variance)
        assert 0.95 * highest < np.abs(found).max() <= highest

    @pytest.mark.parametrize(
        ("options", "message"),
        [
            ({"weights_initializer_params": {"fan": 1}}, "weights_initializer_params: no parameter 'fan'; "),
            (
                {"weights_initializer_params": {"mode": "in"}},
                "mode: expected one of FAN_IN, FAN_OUT, FAN_AVG, got 'in'",
            ),
            ({"weights_initializer_params": {"factor": 0}}, "factor: expected a number above 0, got 0"),
            ({"depth_multiplier": 0}, "depth_multiplier: expected a number above 0, got 0"),
            ({"min_base_depth": 0}, "min_base_depth: expected at least 1, got 0"),
        ],
    )
    def test_values_that_make_no_sense(self, options: dict[str, Any], message: str) -> None:
        with pytest.raises(UsageError, match=message):
            resnet_v1(images(32), evaluated(), **{**THIN, "bottleneck": True, "zero_gamma": False, **options})
        assert tf1.global_variables() == []


class TestStrides:
    """Which units stride."""

    def test_slim_strides_at_the_end_of_blocks_and_others_at_the_start(self) -> None:
        def strides(**kwargs: Any) -> list[list[int]]:
            return [[unit.stride for unit in block] for block in plan((2, 1, 2, 2), **kwargs)]

        assert strides() == [[1, 2], [2], [1, 2], [1, 1]]
        assert strides(first_strides=True) == [[1, 1], [2], [2, 1], [2, 1]]

    def test_official_strides_on_the_3x3_of_first_units(self) -> None:
        _, ends = V1(images(64), evaluated(), official=True)
        unit = "net/block2/unit_1/bottleneck_v1"
        sides = {name: shape[1] for name, shape in shapes(ends).items() if len(shape) == 4}
        assert [sides[f"{unit}/{layer}"] for layer in ("conv1", "conv2", "conv3", "shortcut")] == [16, 8, 8, 8]
        assert [sides[f"net/block{n}"] for n in (1, 2, 3, 4)] == [16, 8, 4, 2]

    @pytest.mark.slow
    @pytest.mark.parametrize("bottleneck", [True, False])
    def test_official_is_the_usual_network(self, bottleneck: bool) -> None:
        """A definition of its own: padding of half the kernel, strides as ResNet 1.5's and as ResNet-18's."""
        x = images(65)  # with an odd side the pool's padding is symmetric too
        logits, _ = (V1 if bottleneck else LITE)(x, evaluated(), official=True)
        variables = {v.op.name: v for v in tf1.global_variables()}

        def conv(x: Any, name: str, stride: int = 1) -> Any:
            weights = variables[f"net/{name}/weights"]
            half = weights.shape[0] // 2
            x = tf.nn.conv2d(tf.pad(x, [[0, 0], [half, half], [half, half], [0, 0]]), weights, stride, "VALID")
            parts = [
                variables[f"net/{name}/BatchNorm/{n}"] for n in ("moving_mean", "moving_variance", "beta", "gamma")
            ]
            return tf.nn.batch_normalization(x, *parts, 1e-5)

        net = tf.nn.relu(conv(x, "conv1", 2))
        net = tf.pad(net, [[0, 0], [1, 1], [1, 1], [0, 0]], constant_values=-np.inf)
        net = tf.nn.max_pool2d(net, 3, 2, "VALID")
        for block, units in enumerate((1, 2, 1, 1), 1):
            for unit in range(1, units + 1):
                stride = 2 if block > 1 and unit == 1 else 1
                scope = f"block{block}/unit_{unit}/{'bottleneck_v1' if bottleneck else 'lite_bottleneck_v1'}"
                short = conv(net, f"{scope}/shortcut", stride) if f"net/{scope}/shortcut/weights" in variables else net
                if bottleneck:
                    inner = tf.nn.relu(conv(net, f"{scope}/conv1"))
                    inner = tf.nn.relu(conv(inner, f"{scope}/conv2", stride))
                    net = tf.nn.relu(short + conv(inner, f"{scope}/conv3"))
                else:
                    inner = tf.nn.relu(conv(net, f"{scope}/conv1", stride))
                    net = tf.nn.relu(short + conv(inner, f"{scope}/conv2"))
        mean = tf.reduce_mean(net, [1, 2])
        expected = tf.matmul(mean, variables["net/logits/weights"][0, 0]) + variables["net/logits/biases"]
        found, reference = values(logits, expected)
        np.testing.assert_allclose(found, reference, rtol=0, atol=1e-5 * reference.std())


class TestZeroGamma:
    """`resnet_v1_50_8k` is `resnet_v1_50` but for what its variables start as."""

    def test_units_start_as_identities(self) -> None:
        resnet_v1(images(32), evaluated(), **THIN, bottleneck=True, zero_gamma=True)
        gammas = {v.op.name: v for v in tf1.global_variables() if v.op.name.endswith("gamma")}
        with tf1.Session() as session:
            session.run(tf1.global_variables_initializer())
            found = session.run(gammas)
        zero = {name for name, value in found.items() if (value == 0).all()}
        assert zero == {name for name in found if "/conv3/" in name}
        assert len(zero) == 5
        assert all((value == 1).all() for name, value in found.items() if name not in zero)

    @pytest.mark.slow
    def test_same_function_of_the_same_variables(self) -> None:
        from moxserve.tensorflow.nets.catalog import network

        x = images(40)
        logits = {}
        for name in ("resnet_v1_50", "resnet_v1_50_8k"):
            logits[name], _ = resnet_v1(x, evaluated(), **network(name).arguments, depth_multiplier=0.125)
        ours, theirs = (tf1.global_variables(f"{name}/") for name in logits)
        assert [v.op.name.replace("_8k/", "/") for v in theirs] == [v.op.name for v in ours]
        with tf1.Session() as session:
            session.run(tf1.global_variables_initializer())
            session.run([to.assign(value) for to, value in zip(theirs, ours, strict=True)])
            found = session.run(list(logits.values()))
        assert found[0].std() > 0
        np.testing.assert_array_equal(*found)


class TestSmall:
    """The networks of section 4.2."""

    @pytest.mark.parametrize(
        ("units", "shortcut", "count", "variables"), [(3, "B", 272_474, 107), (3, "A", 269_722, 97)]
    )
    def test_size_of_20_layers(self, units: int, shortcut: str, count: int, variables: int) -> None:
        resnet_small(images(32), evaluated(10), scope="net", units=units, shortcut=shortcut)
        assert (trained(), len(tf1.global_variables())) == (count, variables)

    @pytest.mark.slow
    def test_size_of_110_layers(self) -> None:
        _, ends = resnet_small(images(32), evaluated(10), scope="net", units=18, shortcut="A")
        assert (trained(), len(tf1.global_variables())) == (1_727_962, 547)
        assert [ends[f"net/block{n}"].shape.as_list() for n in (1, 2, 3)] == [
            [1, 32, 32, 16], [1, 16, 16, 32], [1, 8, 8, 64],
        ]  # fmt: skip

    @pytest.mark.parametrize("data_format", ["NHWC", "NCHW"])
    def test_shortcut_a_adds_channels_of_zeros(self, data_format: str) -> None:
        from moxserve.tensorflow.nets.residual import Options, residual_layers

        layers = residual_layers(evaluated(data_format=data_format), Options())
        x = images(6, 5)
        given = tf.transpose(x, [0, 3, 1, 2]) if data_format == "NCHW" else x
        unit = LiteBottleneck(zero_gamma=True, first_strides=True, zero_padded=True)
        net = unit(layers, given, Unit(depth=7, width=7, stride=2))
        net = tf.transpose(net, [0, 2, 3, 1]) if data_format == "NCHW" else net
        with tf1.Session() as session:
            session.run(tf1.global_variables_initializer())
            given, found = session.run([x, net])
        np.testing.assert_allclose(found[..., :3], np.maximum(given[:, ::2, ::2], 0))
        assert found.shape == (1, 3, 3, 7)
        assert not found[..., 3:].any()

    def test_unknown_shortcut(self) -> None:
        with pytest.raises(UsageError, match=r"^shortcut: expected 'A' \(zeros\) or 'B' \(a convolution\), got 'C'$"):
            SMALL(images(32), evaluated(), shortcut="C")


@pytest.mark.slow
@pytest.mark.parametrize("name", list(BUILDERS))
def test_second_build_shares_variables_and_names_end_points_alike(name: str) -> None:
    build = BUILDERS[name]
    x = images(33)
    first, ends = build(x, evaluated())
    count = len(tf1.global_variables())
    with tf1.variable_scope(tf1.get_variable_scope(), reuse=True):
        second, again = build(x, Build(5, training=True))
        third, _ = build(x, evaluated())
    assert len(tf1.global_variables()) == count
    assert list(ends) == list(again)
    assert ends["predictions"] is not again["predictions"]
    found = values(first, second, third)
    np.testing.assert_array_equal(found[0], found[2])
    assert np.abs(found[0] - found[1]).max() > 1e-3
