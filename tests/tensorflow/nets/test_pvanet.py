"""PVANET against NumPy, layer by layer as the authors' files list them, and its sizes, variants and heads."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest

from moxserve.errors import UsageError
from moxserve.tensorflow.executor.env import tf, tf1
from moxserve.tensorflow.nets.base import Build
from moxserve.tensorflow.nets.pvanet import pvanet

EVAL = Build(num_classes=7, training=False)
Array = np.ndarray


def images(height: int, width: int | None = None, batch: int = 1) -> Any:
    values = np.random.RandomState(7).uniform(-1, 1, (batch, height, width or height, 3))
    return tf.constant(values.astype(np.float32))


def randomised(session: Any) -> dict[str, Array]:
    """Give all variables values that tell them apart, and return these."""
    random, values, feeds = np.random.RandomState(11), {}, {}
    for variable in tf1.global_variables():
        shape, name = variable.shape.as_list(), variable.op.name
        if name.endswith("weights"):
            value = random.normal(0, np.sqrt(2 / np.prod(shape[:-1])), shape)
        elif name.endswith("variance"):
            value = random.uniform(0.5, 1.5, shape)
        else:
            value = random.normal(name.endswith("gamma"), 0.2, shape)
        values[name] = feeds[variable.initializer.inputs[1]] = value
    session.run([variable.initializer for variable in tf1.global_variables()], feeds)
    return values


@dataclass
class Reference:
    """PVANET in NumPy, float64.

    Attributes:
        values: of the variables.
    """

    values: dict[str, Array]

    def conv(self, x: Array, scope: str, stride: int = 1) -> Array:
        """Pad as Caffe does: half the kernel on each side."""
        weights = self.values[f"pvanet/{scope}/weights"]
        side = weights.shape[0]
        x = np.pad(x, [(0, 0), (side // 2, side // 2), (side // 2, side // 2), (0, 0)])
        windows = np.lib.stride_tricks.sliding_window_view(x, (side, side), axis=(1, 2))[:, ::stride, ::stride]
        return np.tensordot(windows, weights, ([4, 5, 3], [0, 1, 2])) + self.values.get(f"pvanet/{scope}/biases", 0)

    def norm(self, x: Array, scope: str, negated: bool = False, relu: bool = True) -> Array:
        get = lambda name: self.values[f"pvanet/{scope}/{name}"]  # noqa: E731
        x = (x - get("bn/moving_mean")) / np.sqrt(get("bn/moving_variance") + 1e-5)
        x = np.concatenate([x, -x], axis=-1) if negated else x
        x = x * get("scale/gamma") + get("scale/beta")
        return np.maximum(x, 0) if relu else x

    def conv_norm(self, x: Array, scope: str, stride: int = 1, **options: bool) -> Array:
        return self.norm(self.conv(x, f"{scope}/conv", stride), scope, **options)

    def pool(self, x: Array) -> Array:
        """Largest of 3x3, stride 2, of sides that are even: padding is below and at the right."""
        x = np.pad(x, [(0, 0), (0, 1), (0, 1), (0, 0)], constant_values=-np.inf)
        return np.lib.stride_tricks.sliding_window_view(x, (3, 3), axis=(1, 2))[:, ::2, ::2].max((-2, -1))

    def branches(self, x: Array, name: str, stride: int) -> Array:
        made = [
            self.conv_norm(x, f"{name}/0", stride),
            self.conv_norm(self.conv_norm(x, f"{name}/1_reduce", stride), f"{name}/1_0"),
            self.conv_norm(self.conv_norm(self.conv_norm(x, f"{name}/2_reduce", stride), f"{name}/2_0"), f"{name}/2_1"),
        ]
        return np.concatenate([*made, *([self.conv_norm(self.pool(x), f"{name}/poolproj")] if stride > 1 else [])], -1)

    def unit_before(self, x: Array, name: str) -> Array:
        """9.1."""
        block, first = int(name[4]), name.endswith("_1")
        stride = 2 if first and block > 2 else 1
        if block < 4:
            ready = x if name == "conv2_1" else self.norm(x, f"{name}/1")
            y = self.norm(self.conv(ready, f"{name}/1/conv", stride), f"{name}/2")
            y = self.conv(self.norm(self.conv(y, f"{name}/2/conv"), f"{name}/3", negated=True), f"{name}/3/conv")
            source = ready if name == "conv3_1" else x
        else:
            source = x
            y = self.conv(self.branches(self.norm(x, f"{name}/incep"), f"{name}/incep", stride), f"{name}/out/conv")
        if name == "conv5_4":
            return self.norm(self.norm(y, f"{name}/out", relu=False) + x, f"{name}/last")
        return y + (self.conv(source, f"{name}/proj", stride) if first else x)

    def unit_after(self, x: Array, name: str) -> Array:
        """9.0."""
        block, first = int(name[4]), name.endswith("_1")
        stride = 2 if first and block > 2 else 1
        if block < 4:
            y = self.conv_norm(self.conv_norm(x, f"{name}/1", stride), f"{name}/2", negated=True)
            y = self.conv_norm(y, f"{name}/3", relu=False)
        else:
            y = self.conv_norm(self.branches(x, f"{name}/incep", stride), f"{name}/out", relu=False)
        return y + (self.norm(self.conv(x, f"{name}/proj", stride), f"{name}/proj", relu=False) if first else x)

    def network(self, x: Array, unit: Callable[[Array, str], Array]) -> tuple[Array, dict[str, Array]]:
        """Logits of the light head, and the outputs of the units."""
        ends = {"conv1_1": self.conv_norm(x, "conv1_1", 2, negated=True)}
        net = ends["pool1"] = self.pool(ends["conv1_1"])
        for block, units in ((2, 3), (3, 4), (4, 4), (5, 4)):
            for number in range(1, units + 1):
                net = ends[f"conv{block}_{number}"] = unit(net, f"conv{block}_{number}")
        return self.conv(net.mean((1, 2), keepdims=True), "fc8")[:, 0, 0], ends


@pytest.mark.slow
@pytest.mark.parametrize(("variant", "data_format"), [("9.1", "NHWC"), ("9.0", "NHWC"), ("9.1", "NCHW")])
def test_every_layer_is_that_of_numpy(variant: str, data_format: str) -> None:
    batch, swap = images(64, 96, batch=2), data_format == "NCHW"
    build = Build(num_classes=7, training=False, data_format=data_format)
    given = tf.transpose(batch, [0, 3, 1, 2]) if swap else batch
    logits, ends = pvanet(given, build, variant=variant, head="global_pool")
    with tf1.Session() as session:
        reference = Reference(randomised(session))
        found, layers, x = session.run([logits, ends, batch])
    unit = reference.unit_before if variant == "9.1" else reference.unit_after
    expected, outputs = reference.network(x.astype(np.float64), unit)
    for name, value in outputs.items():
        layer = layers[f"pvanet/{name}"]
        layer = layer.transpose(0, 2, 3, 1) if swap else layer
        np.testing.assert_allclose(layer, value, atol=1e-4 * value.std(), err_msg=name)
    np.testing.assert_allclose(found, expected, atol=1e-4 * expected.std())


@pytest.mark.slow
@pytest.mark.parametrize(
    ("variant", "head", "side", "trainable", "averages"),
    [
        ("9.1", "dense", 224, 100_874_232, 32_352),
        ("9.0", "dense", 224, 100_871_720, 33_248),
        ("9.1", "global_pool", 224, 3_290_104, 32_352 - 4 * 4096),
    ],
)
def test_parameters(variant: str, head: str, side: int, trainable: int, averages: int) -> None:
    logits, _ = pvanet(images(side), Build(num_classes=1000, training=False), variant=variant, head=head)
    counts = [sum(int(np.prod(v.shape)) for v in vs) for vs in (tf1.trainable_variables(), tf1.global_variables())]
    assert counts == [trainable, trainable + averages]
    assert logits.shape == [1, 1000]


@pytest.mark.slow
def test_images_of_any_size() -> None:
    """The dense head spans the whole map; the light one has the same weights for each size."""
    logits, ends = pvanet(images(1, 45), EVAL, head="global_pool")
    assert logits.shape == ends["pvanet/fc8"].shape == [1, 7]
    tf1.reset_default_graph()
    _, ends = pvanet(images(70, 40), EVAL, head="dense")
    assert ends["pvanet/conv5_4"].shape == [1, 3, 2, 384]
    [weights] = [v for v in tf1.global_variables() if v.op.name == "pvanet/fc6/weights"]
    assert weights.shape == [3, 2, 384, 4096]


@pytest.mark.slow
def test_in_training_units_are_dropped_before_the_activation_and_averages_move() -> None:
    net, ends = pvanet(images(8, batch=4), Build(None, training=True), dropout_keep_prob=0.5)
    assert net is ends["pvanet/fc7"]
    updates = tf1.get_collection(tf1.GraphKeys.UPDATE_OPS)
    averages = [v for v in tf1.global_variables() if "moving_" in v.op.name]
    assert len(updates) == len(averages) == 166
    # Of a normalised value half are below 0; of the others half are dropped.
    with tf1.Session() as session:
        session.run(tf1.global_variables_initializer())
        values, _ = session.run([net, updates])
        moved = [not np.array_equal(v, np.round(v)) for v in session.run(averages)]
    assert (values == 0).mean() == pytest.approx(0.75, abs=0.05)
    assert all(moved)


def test_variants_and_heads_that_do_not_exist() -> None:
    with pytest.raises(UsageError, match=r"^variant is '9'; expected '9\.1' or '9\.0'$"):
        pvanet(images(32), EVAL, variant="9")
    with pytest.raises(UsageError, match=r"^head is 'light'; expected 'dense' or 'global_pool'$"):
        pvanet(images(32), EVAL, head="light")
    with pytest.raises(UsageError, match=r"^pvanet expects a batch of images of known height and width, got shape"):
        pvanet(tf1.placeholder(tf.float32, [1, 32, None, 3]), EVAL)
