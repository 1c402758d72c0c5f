"""LeNet, CifarNet, AlexNet and OverFeat beyond what all networks are tested for: sizes of images, options, layouts."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

import moxserve.tensorflow as mox
from moxserve.errors import UsageError
from moxserve.tensorflow.executor.env import tf, tf1
from moxserve.tensorflow.nets.alexnet import alexnet_v2
from moxserve.tensorflow.nets.base import Build
from moxserve.tensorflow.nets.cifarnet import cifarnet
from moxserve.tensorflow.nets.lenet import lenet
from moxserve.tensorflow.nets.overfeat import overfeat

SMALL: dict[str, Callable[..., Any]] = {"lenet": lenet, "cifarnet": cifarnet}
LARGE: dict[str, Callable[..., Any]] = {"alexnet_v2": alexnet_v2, "overfeat": overfeat}
EVAL = Build(num_classes=7, training=False)


def images(height: int, width: int | None = None, channels: int = 3, batch: int = 2) -> Any:
    values = np.random.RandomState(7).uniform(-1, 1, (batch, height, width or height, channels))
    return tf.constant(values.astype(np.float32))


def values(*fetches: Any) -> list[np.ndarray]:
    """Values of tensors, with the variables' initial values."""
    with tf1.Session() as session:
        session.run(tf1.global_variables_initializer())
        return session.run(list(fetches))


def shapes() -> dict[str, list[int]]:
    return {variable.op.name: variable.shape.as_list() for variable in tf1.global_variables()}


class TestSmall:
    """LeNet and CifarNet: dense layers over whatever the pools leave."""

    @pytest.mark.parametrize(("name", "fc3"), [("lenet", "LeNet/fc3"), ("cifarnet", "CifarNet/fc3")])
    @pytest.mark.parametrize(("height", "width"), [(4, 4), (29, 18), (5, 64)])
    def test_images_of_any_size_and_channels(self, name: str, fc3: str, height: int, width: int) -> None:
        logits, ends = SMALL[name](images(height, width, channels=2), EVAL)
        assert logits.shape == [2, 7]
        assert ends["pool2"].shape == [2, height // 4, width // 4, 64]
        assert shapes()[f"{fc3}/weights"][0] == height // 4 * (width // 4) * 64

    @pytest.mark.parametrize("name", SMALL)
    def test_too_small_and_unknown_sizes(self, name: str) -> None:
        with pytest.raises(UsageError, match=f"^{name} expects images of at least 4x4, got 28x3$"):
            SMALL[name](images(28, 3), EVAL)
        with pytest.raises(UsageError, match=f"^{name} expects a batch of images of known height and width, got shape"):
            SMALL[name](tf1.placeholder(tf.float32, [None, None, 28, 1]), EVAL)

    @pytest.mark.parametrize("name", SMALL)
    def test_layouts_share_weights_and_answer_alike(self, name: str) -> None:
        batch = images(12, 8)
        last, _ = SMALL[name](batch, EVAL)
        with tf1.variable_scope("", reuse=True):
            first, ends = SMALL[name](
                tf.transpose(batch, [0, 3, 1, 2]), Build(num_classes=7, training=False, data_format="NCHW")
            )
        assert ends["pool2"].shape == [2, 64, 3, 2]
        a, b = values(last, first)
        assert a.std() > 0
        np.testing.assert_allclose(b, a, atol=1e-5 * a.std())

    @pytest.mark.parametrize(("name", "features"), [("lenet", "fc3"), ("cifarnet", "fc4")])
    def test_without_classes_the_last_features_are_returned(self, name: str, features: str) -> None:
        net, ends = SMALL[name](images(8), Build(num_classes=None, training=False))
        assert net is ends[features]
        assert "Logits" not in ends
        assert not [variable for variable in shapes() if "fc4" in variable and name == "lenet"]

    @pytest.mark.parametrize("name", SMALL)
    def test_predictions(self, name: str) -> None:
        _, ends = SMALL[name](images(8), EVAL)
        with tf1.variable_scope("", reuse=True):
            _, own = SMALL[name](images(8), EVAL, prediction_fn=tf.nn.sigmoid)
        softmax, sigmoid, logits = values(ends["Predictions"], own["Predictions"], own["Logits"])
        np.testing.assert_allclose(softmax.sum(axis=1), 1, rtol=1e-5)
        np.testing.assert_allclose(sigmoid, 1 / (1 + np.exp(-logits)), rtol=1e-4)

    @pytest.mark.parametrize(("name", "losses"), [("lenet", 4), ("cifarnet", 2)])
    def test_weight_decay(self, name: str, losses: int) -> None:
        SMALL[name](images(8), Build(num_classes=7, training=True, weight_decay=0.25))
        added = tf1.get_collection(tf1.GraphKeys.REGULARIZATION_LOSSES)
        assert len(added) == losses
        weights = [v for v in tf1.global_variables() if v.op.name.endswith(("fc3/weights", "fc4/weights"))]
        *_, found, expected = values(*added[-2:], sum(added[-2:]), 0.25 / 2 * sum(tf.reduce_sum(w**2) for w in weights))
        assert found == pytest.approx(expected, rel=1e-5)

    @pytest.mark.slow
    def test_initial_weights_are_slims(self) -> None:
        lenet(images(28, channels=1), EVAL)
        cifarnet(images(32), EVAL)
        spread = {v.op.name: v for v in tf1.global_variables()}
        names = ["LeNet/fc3/weights", "CifarNet/conv2/weights", "CifarNet/fc3/weights", "CifarNet/logits/weights"]
        found = [w.std() / 0.8796 for w in values(*(spread[n] for n in names))]  # of a normal cut at 2 deviations
        assert found == pytest.approx([0.1, 0.05, 0.04, 1 / 192], rel=0.1)  # of 1,920 values at least: five sigmas
        biases = values(spread["CifarNet/fc4/biases"], spread["CifarNet/logits/biases"])
        assert [set(b.tolist()) for b in biases] == [{np.float32(0.1)}, {0.0}]

    def test_local_response_normalisation(self) -> None:
        """Krizhevsky et al. 2012, section 3.3, with slim's constants."""
        _, ends = cifarnet(images(8), EVAL)
        [norm] = [op for op in tf1.get_default_graph().get_operations() if op.type == "LRN" and "norm1" in op.name]
        pooled, normalised = values(ends["pool1"], norm.outputs[0])
        squares = np.pad(pooled.astype(np.float64) ** 2, [(0, 0)] * 3 + [(4, 4)])
        around = sum(squares[..., k : k + 64] for k in range(9))
        np.testing.assert_allclose(normalised, pooled / (1 + 0.001 / 9 * around) ** 0.75, rtol=1e-5, atol=1e-7)

    @pytest.mark.parametrize("dtype", [tf.float16, tf.bfloat16], ids=["float16", "bfloat16"])
    def test_half_precision(self, dtype: Any) -> None:
        """There is no kernel of the normalisation for each dtype, and squares of 300 are beyond float16."""
        wide, _ = cifarnet(images(8) * 300, EVAL)
        with tf1.variable_scope("", reuse=True), mox.var_scope(force_dtype=tf.float32):
            narrow, _ = cifarnet(tf.cast(images(8) * 300, dtype), EVAL)
        assert narrow.dtype == dtype
        a, b = values(wide, tf.cast(narrow, tf.float32))
        np.testing.assert_allclose(b, a, atol=0.05 * a.std())


class TestDropout:
    """Units are dropped in training only, and how many is an option."""

    @pytest.mark.parametrize("keep", [0.25, 0.5])
    def test_share_of_units(self, keep: float) -> None:
        tf1.set_random_seed(1)
        _, ends = lenet(images(8, channels=1, batch=4), Build(7, training=True), dropout_keep_prob=keep)
        before, after = values(ends["fc3"], ends["dropout3"])
        np.testing.assert_allclose(after[after != 0], before[after != 0] / keep, rtol=1e-5)
        assert (after != 0).sum() / (before != 0).sum() == pytest.approx(keep, abs=0.05)

    def test_none_in_evaluation_or_when_all_are_kept(self) -> None:
        _, kept = lenet(images(8), Build(7, training=True), dropout_keep_prob=1.0)
        with tf1.variable_scope("", reuse=True):
            _, evaluated = lenet(images(8), EVAL, dropout_keep_prob=0.1)
        a, b, c = values(kept["dropout3"], evaluated["dropout3"], evaluated["fc3"])
        np.testing.assert_array_equal(a, c)
        np.testing.assert_array_equal(b, c)

    @pytest.mark.parametrize("keep", [0, -0.5, 1.5])
    def test_shares_that_make_no_sense(self, keep: float) -> None:
        with pytest.raises(UsageError, match="keep_prob"):
            lenet(images(8), EVAL, dropout_keep_prob=keep)


class TestLarge:
    """AlexNet and OverFeat: dense layers as convolutions, so that larger images give maps."""

    @pytest.mark.parametrize(
        ("name", "smallest", "largest"), [("alexnet_v2", 195, 226), ("overfeat", 231, 262)], ids=["alexnet", "overfeat"]
    )
    def test_sizes_that_give_one_vector(self, name: str, smallest: int, largest: int) -> None:
        with pytest.raises(
            UsageError, match=f"^{name} expects images of at least {smallest}x{smallest}, got 400x{smallest - 1}$"
        ):
            LARGE[name](images(400, smallest - 1, batch=1), EVAL)
        for height, width in ((smallest, largest), (largest, smallest)):
            with tf1.variable_scope("", reuse=tf1.AUTO_REUSE):
                logits, ends = LARGE[name](images(height, width, batch=1), EVAL)
            assert logits.shape == ends[f"{name}/fc8"].shape == [1, 7]
            assert ends[f"{name}/fc7"].shape == [1, 1, 1, 4096]

    @pytest.mark.parametrize(("name", "size"), [("alexnet_v2", 227), ("overfeat", 263)])
    def test_larger_images_give_a_map(self, name: str, size: int) -> None:
        with pytest.raises(UsageError, match="give a map of 2x1 logits, which cannot be squeezed") as caught:
            LARGE[name](images(size, size - 1, batch=1), EVAL)
        assert "global_pool=True" in str(caught.value.hint)
        with tf1.variable_scope("", reuse=tf1.AUTO_REUSE):
            logits, ends = LARGE[name](images(size, size - 1, batch=1), EVAL, spatial_squeeze=False)
            assert logits.shape == ends[f"{name}/fc8"].shape == [1, 2, 1, 7]
            pooled, ends = LARGE[name](images(size, size - 1, batch=1), EVAL, global_pool=True)
        assert pooled.shape == [1, 7]
        assert ends["global_pool"].shape == [1, 1, 1, 4096]
        assert list(ends)[-2:] == ["global_pool", f"{name}/fc8"]

    @pytest.mark.parametrize("name", LARGE)
    def test_without_classes_fc7_is_returned(self, name: str) -> None:
        net, ends = LARGE[name](images(231, batch=1), Build(None, training=False), global_pool=True)
        assert net is ends["global_pool"]
        assert f"{name}/fc8/weights" not in shapes()
        with tf1.variable_scope("", reuse=True):
            net, ends = LARGE[name](images(231, batch=1), Build(None, training=False), global_pool=False)
        assert net is ends[f"{name}/fc7"]

    @pytest.mark.slow
    def test_logits_of_the_mean_are_the_mean_of_the_logits(self) -> None:
        """The classifier is linear: pooling before it and after it is the same."""
        batch = images(227, batch=1)
        pooled, _ = alexnet_v2(batch, EVAL, global_pool=True)
        with tf1.variable_scope("", reuse=True):
            mapped, _ = alexnet_v2(batch, EVAL, spatial_squeeze=False)
        a, b = values(pooled, mapped)
        assert b.shape == (1, 2, 2, 7)
        assert b[:, 0, 0].std() > 0
        np.testing.assert_allclose(a, b.mean(axis=(1, 2)), rtol=1e-4, atol=1e-6)

    def test_end_points_are_named_alike_in_a_second_build(self) -> None:
        _, one = alexnet_v2(images(224, batch=1), EVAL)
        with tf1.variable_scope("", reuse=True):
            _, two = alexnet_v2(images(224, batch=1), EVAL)
        assert list(one) == list(two)
        assert one["alexnet_v2/conv1"] is not two["alexnet_v2/conv1"]

    @pytest.mark.slow
    def test_biases_begin_as_slims_do(self) -> None:
        alexnet_v2(images(224, batch=1), EVAL)
        overfeat(images(231, batch=1), EVAL)
        biases = [v for v in tf1.global_variables() if v.op.name.endswith("biases")]
        with tf1.Session() as session:
            session.run([v.initializer for v in biases])
            begin = {v.op.name: float(session.run(v)[0]) for v in biases}
        tenth = {name for name, value in begin.items() if value == pytest.approx(0.1)}
        assert {name for name in begin if name not in tenth and begin[name] == 0} == set(begin) - tenth
        dense = {f"{net}/fc{k}/biases" for net in LARGE for k in (6, 7)}
        assert tenth == dense | {f"alexnet_v2/conv{k}/biases" for k in range(1, 6)}
