"""The Inception networks beyond what all networks are tested for: options, sizes of images, slim's names of modules."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

import moxserve.tensorflow as mox
from moxserve.errors import UsageError
from moxserve.tensorflow.executor.env import tf, tf1
from moxserve.tensorflow.layers import Layers
from moxserve.tensorflow.nets.base import Build
from moxserve.tensorflow.nets.inception_heads import Finish, HeadOptions, classify
from moxserve.tensorflow.nets.inception_parts import Tower, avg_pool, conv, fork, he_normal, inception_layers, max_pool
from moxserve.tensorflow.nets.inception_resnet_v2 import inception_resnet_v2
from moxserve.tensorflow.nets.inception_v1 import inception_v1
from moxserve.tensorflow.nets.inception_v2 import inception_v2
from moxserve.tensorflow.nets.inception_v3 import inception_v3
from moxserve.tensorflow.nets.inception_v4 import inception_v4

BUILDERS: dict[str, Callable[..., Any]] = {
    "inception_v1": inception_v1,
    "inception_v2": inception_v2,
    "inception_v3": inception_v3,
    "inception_v4": inception_v4,
    "inception_resnet_v2": inception_resnet_v2,
}
UNPADDED = ("inception_v3", "inception_v4", "inception_resnet_v2")
THIN = {"depth_multiplier": 0.05, "min_depth": 4}
IMAGES = np.random.RandomState(7)


def images(height: int, width: int | None = None, batch: int = 1) -> Any:
    return tf.constant(IMAGES.uniform(-1, 1, (batch, height, width or height, 3)).astype(np.float32))


def evaluated(num_classes: int | None = 7, **kwargs: Any) -> Build:
    return Build(num_classes=num_classes, training=False, **kwargs)


def values(*fetches: Any) -> list[np.ndarray]:
    """Values of tensors, with the variables' initial values."""
    with tf1.Session() as session:
        session.run(tf1.global_variables_initializer())
        return session.run(list(fetches))


def shapes(ends: dict[str, Any]) -> dict[str, list[int]]:
    return {name: tensor.shape.as_list() for name, tensor in ends.items()}


def names() -> list[str]:
    return [variable.op.name for variable in tf1.global_variables()]


class TestTower:
    """Modules from tables."""

    def test_layers_are_named_by_their_place(self) -> None:
        tower = Tower(Layers(training=False))
        tower.stages(
            images(9),
            {
                "First": conv(2, 3, stride=2),
                "Mixed": (
                    (conv(1),),
                    (conv(1), conv(2, 1, 7), conv(3, 7, 1)),
                    (avg_pool(3), conv(1), fork(conv(1, 1, 3), conv(2, 3, 1))),
                ),
                "Smaller": (
                    (conv(1), conv(1, 3, stride=2), conv(1, 3, padding="SAME", name="Slip")),
                    (max_pool(3, stride=2),),
                ),
            },
        )
        assert [name for name in names() if name.endswith("weights")] == [
            "First/weights",
            "Mixed/Branch_0/Conv2d_0a_1x1/weights",
            "Mixed/Branch_1/Conv2d_0a_1x1/weights",
            "Mixed/Branch_1/Conv2d_0b_1x7/weights",
            "Mixed/Branch_1/Conv2d_0c_7x1/weights",
            "Mixed/Branch_2/Conv2d_0b_1x1/weights",
            "Mixed/Branch_2/Conv2d_0c_1x3/weights",
            "Mixed/Branch_2/Conv2d_0d_3x1/weights",
            "Smaller/Branch_0/Conv2d_0a_1x1/weights",
            "Smaller/Branch_0/Conv2d_1a_3x3/weights",
            "Smaller/Branch_0/Slip/weights",
        ]
        assert shapes(tower.end_points) == {"First": [1, 5, 5, 2], "Mixed": [1, 5, 5, 7], "Smaller": [1, 3, 3, 8]}

    def test_branches_are_concatenated_in_order(self) -> None:
        tower = Tower(Layers(training=False, initializer=tf1.constant_initializer(0.5), activation=None))
        x = images(4)
        (given, mixed) = values(x, tower.module(x, ((max_pool(3),), (conv(1),), (avg_pool(3),)), "Mixed"))
        np.testing.assert_allclose(mixed[0, 1, 1, :3], given[0, :3, :3].max((0, 1)), rtol=1e-6)
        np.testing.assert_allclose(mixed[0, 1, 1, 3], given[0, 1, 1].sum() / 2, rtol=1e-6)
        np.testing.assert_allclose(mixed[0, 0, 0, 4:], given[0, :2, :2].mean((0, 1)), rtol=1e-5)


class TestErrors:
    """What is refused, before anything is built."""

    @pytest.mark.parametrize("name", UNPADDED)
    def test_images_too_small(self, name: str) -> None:
        with pytest.raises(UsageError, match=f"^{name} with its auxiliary.* at least 107x107 .* got 120x106") as caught:
            BUILDERS[name](images(120, 106), evaluated())
        assert "create_aux_logits=False takes 75x75" in str(caught.value.hint)
        for build, options in ((evaluated(), {"create_aux_logits": False}), (evaluated(num_classes=None), {})):
            with pytest.raises(UsageError, match=f"^{name} needs images of at least 75x75 pixels, got 74x80"):
                BUILDERS[name](images(74, 80), build, **options)
        assert names() == []

    @pytest.mark.parametrize("name", ["inception_v2", "inception_v3"])
    def test_depth_out_of_range(self, name: str) -> None:
        with pytest.raises(UsageError, match="depth_multiplier must be above 0, got 0"):
            BUILDERS[name](images(107), evaluated(), depth_multiplier=0)
        with pytest.raises(UsageError, match="min_depth must be at least 1, got 0"):
            BUILDERS[name](images(107), evaluated(), min_depth=0)


class TestOptions:
    """Options, on thin networks."""

    @pytest.mark.slow
    def test_depth_of_v2(self) -> None:
        logits, ends = inception_v2(images(32), evaluated(), depth_multiplier=0.25, min_depth=20)
        assert logits.shape.as_list() == [1, 7]
        assert ends["Conv2d_2b_1x1"].shape[3] == 20  # a quarter of 64 is less
        assert ends["Conv2d_2c_3x3"].shape[3] == 48
        assert ends["Mixed_5c"].shape[3] == 88 + 80 + 56 + 32
        shape = {v.op.name: v.shape.as_list() for v in tf1.global_variables()}
        assert shape["InceptionV2/Conv2d_1a_7x7/depthwise_weights"] == [
            7,
            7,
            3,
            6,
        ]  # outputs are not fewer: 3 * 6 <= 20
        assert shape["InceptionV2/Conv2d_1a_7x7/pointwise_weights"] == [1, 1, 18, 20]

    @pytest.mark.slow
    def test_plain_first_convolution_of_v2(self) -> None:
        inception_v2(images(32), evaluated(), use_separable_conv=False, **THIN)
        assert names()[:2] == ["InceptionV2/Conv2d_1a_7x7/weights", "InceptionV2/Conv2d_1a_7x7/BatchNorm/beta"]

    @pytest.mark.slow
    def test_logits_as_images(self) -> None:
        def twice(logits: Any) -> Any:
            return 2 * logits

        build = evaluated()
        logits, ends = inception_v2(images(448), build, spatial_squeeze=False, prediction_fn=twice, **THIN)
        assert logits.shape.as_list() == [1, 4, 4, 7]  # windows of 7x7 of 14x14, 2 apart
        one, two = values(ends["Logits"], ends["Predictions"])
        np.testing.assert_array_equal(two, 2 * one)

    @pytest.mark.slow
    def test_without_classes(self) -> None:
        features, ends = inception_v2(images(32), evaluated(num_classes=None), global_pool=True, **THIN)
        assert features is ends["global_pool"]
        assert list(ends)[-2:] == ["Mixed_5c", "global_pool"]
        assert not [name for name in names() if "Logits" in name]


class TestSizes:
    """Images of other sizes than a network was made for."""

    @pytest.mark.slow
    def test_one_set_of_variables_for_all(self) -> None:
        found = {}
        for size in (32, 149, 200, 320):
            with tf1.variable_scope("", reuse=tf1.AUTO_REUSE):
                logits, ends = inception_v2(images(size), evaluated(), **THIN)
            assert logits.shape.as_list() == [1, 7]
            found[size] = ends["Mixed_5c"].shape[1], ends["AvgPool_1a"].shape[1]
        assert found == {32: (1, 1), 149: (5, 1), 200: (7, 1), 320: (10, 2)}
        assert len(names()) == len(set(names())) == 277

    @pytest.mark.slow
    def test_logits_of_several_places_are_averaged(self) -> None:
        x = images(320)
        with tf1.variable_scope("", reuse=tf1.AUTO_REUSE):
            squeezed, _ = inception_v2(x, evaluated(), **THIN)
            places, _ = inception_v2(x, evaluated(), spatial_squeeze=False, **THIN)
        mean, all_places = values(squeezed, places)
        assert all_places.shape == (1, 2, 2, 7)
        np.testing.assert_allclose(mean, all_places.mean((1, 2)), rtol=1e-4, atol=1e-6)

    @pytest.mark.slow
    def test_sides_may_differ(self) -> None:
        logits, ends = inception_v3(images(107, 203), evaluated(), **THIN)
        # The kernel is as large as what it sees, and its name says so.
        shape = {v.op.name: v.shape.as_list() for v in tf1.global_variables()}
        assert shape["InceptionV3/AuxLogits/Conv2d_2a_1x3/weights"] == [1, 3, 6, 38]
        for value in values(logits, ends["AuxLogits"]):
            assert value.shape == (1, 7)
            assert np.isfinite(value).all()

    @pytest.mark.slow
    def test_larger_images_have_more_places_in_the_auxiliary_classifier(self) -> None:
        _, ends = inception_v3(images(448), evaluated(), **THIN)
        assert ends["AuxLogits"].shape.as_list() == [1, 7]

    @pytest.mark.slow
    @pytest.mark.parametrize(("name", "stage"), [("inception_v3", "Mixed_7c"), ("inception_v4", "Mixed_7d")])
    def test_the_smallest(self, name: str, stage: str) -> None:
        logits, ends = BUILDERS[name](images(75), evaluated(), create_aux_logits=False)
        assert logits.shape.as_list() == [1, 7]
        assert ends[stage].shape.as_list()[1:3] == [1, 1]
        assert "AuxLogits" not in ends
        assert not [v for v in names() if "AuxLogits" in v]


@pytest.mark.slow
def test_relu6_of_residual_modules_bounds_what_is_added() -> None:
    _, ends = inception_resnet_v2(images(75), evaluated(num_classes=None), activation_fn=tf.nn.relu6)
    kinds = [op.type for op in tf1.get_default_graph().get_operations()]
    # Each module but the last, which has no activation; 6 from above and -6 from below.
    assert [kinds.count(kind) for kind in ("Relu6", "Minimum", "Maximum")] == [10 + 20 + 9] * 3
    assert ends["Conv2d_7b_1x1"].shape.as_list() == [1, 1, 1, 1536]


def stripes(rows: int) -> tuple[np.ndarray, np.ndarray]:
    """Noisy stripes, level (0) or upright (1)."""
    random = np.random.RandomState(rows)
    labels = np.arange(rows) % 2
    wave = np.sin(np.arange(32))[None, :] + np.zeros((32, 1))
    pictures = np.stack([wave if label else wave.T for label in labels])[..., None]
    return (pictures + 0.3 * random.standard_normal((rows, 32, 32, 3))).astype(np.float32), labels.astype(np.int32)


def small(pictures: Any, build: Build) -> tuple[Any, dict[str, Any]]:
    """A network of this family, with one module."""
    tower = Tower(inception_layers(build, initializer=he_normal()))
    with tower.layers.scope("Small"):
        x = tower.stages(
            pictures,
            {"First": conv(8, 3, stride=2), "Mixed": ((conv(4),), (conv(4), conv(8, 3)), (max_pool(3), conv(4)))},
        )
        finish = Finish(window=7, stride=2, end_point="AvgPool_1a", digit=1)
        logits = classify(tower, x, build.num_classes, finish, HeadOptions(1.0, None, True, False))
    return logits, tower.end_points


@pytest.mark.slow
def test_evaluation_in_the_middle_of_training_shares_the_variables(tmp_path: Any) -> None:
    """Two builds in one graph: the second, in EVAL, uses the averages that the first one moves."""
    built: dict[str, tuple[list[str], int]] = {}
    measured: list[dict[str, float]] = []

    class Evaluate(mox.AggregativeSessionRunHook):
        def __init__(self, monitor_info: Any) -> None:
            self.monitor_info = monitor_info

        def support_aggregation(self) -> bool:
            return False

        def support_sync_workers(self) -> bool:
            return False

        def run_inter_mode(self) -> bool:
            return True

        def end(self, session: Any) -> None:
            measured.append(self.run_inter())

    def input_fn(mode: str, **kwargs: Any) -> Any:
        rows = tf1.data.Dataset.from_tensor_slices(stripes(64 if mode == mox.ModeKeys.TRAIN else 24))
        return rows.repeat() if mode == mox.ModeKeys.TRAIN else rows

    def loss_of(pictures: Any, labels: Any, training: bool) -> tuple[Any, dict[str, Any]]:
        logits, ends = small(pictures, Build(num_classes=2, training=training))
        return tf.reduce_mean(tf.nn.sparse_softmax_cross_entropy_with_logits(labels=labels, logits=logits)), ends

    def model_fn(inputs: list[Any], mode: str, **kwargs: Any) -> mox.ModelSpec:
        loss, ends = loss_of(*inputs, training=mode == mox.ModeKeys.TRAIN)
        built[mode] = list(ends), len(tf1.model_variables())
        return mox.ModelSpec(loss=loss, log_info={"loss": loss}, hooks=[Evaluate({"loss": loss})])

    mox.run(
        input_fn=input_fn,
        model_fn=model_fn,
        optimizer_fn=mox.get_optimizer_fn("momentum", learning_rate=0.01),
        run_mode=mox.ModeKeys.TRAIN,
        inter_mode=mox.ModeKeys.EVAL,
        batch_size=8,
        max_number_of_steps=20,
        log_dir=str(tmp_path),
    )
    assert built[mox.ModeKeys.TRAIN] == built[mox.ModeKeys.EVAL]
    assert built[mox.ModeKeys.EVAL] == (["First", "Mixed", "AvgPool_1a", "Logits", "Predictions"], 5 * 4 + 2)
    reader = tf1.train.load_checkpoint(str(tmp_path))
    with tf.Graph().as_default(), tf1.Session() as session:
        loss, _ = loss_of(*map(tf.constant, stripes(24)), training=False)
        learned = {v: reader.get_tensor(v.op.name) for v in tf1.global_variables()}
        session.run([v.initializer for v in learned], {v.initializer.inputs[1]: a for v, a in learned.items()})
        assert measured == [{"loss": pytest.approx(session.run(loss), rel=1e-3)}]
    moved = reader.get_tensor("Small/Mixed/Branch_0/Conv2d_0a_1x1/BatchNorm/moving_mean")
    assert np.abs(moved).max() > 0
