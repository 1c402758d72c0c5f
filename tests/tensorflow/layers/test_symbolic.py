"""Tensorpack-named layers: variables, old names of arguments, what trains, numbers."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import moxserve.tensorflow as mox
from moxserve.errors import UsageError
from moxserve.tensorflow.executor.env import tf, tf1
from moxserve.tensorflow.layers import (
    AvgPooling,
    BatchNorm,
    BatchRenorm,
    BNReLU,
    ConcatWith,
    Conv2D,
    Conv2DTranspose,
    Deconv2D,
    DepthwiseConv2D,
    Dropout,
    FixedUnPooling,
    FullyConnected,
    GlobalAvgPooling,
    InstanceNorm,
    LayerNorm,
    MaxPooling,
    PReLU,
    SeparableConv2D,
    TowerContext,
    get_current_tower_context,
    l1_regularizer,
    l2_regularizer,
    regularize_cost,
    regularize_cost_from_collection,
)

KEYS = tf1.GraphKeys
IMAGES = np.random.default_rng(0).normal(1.0, 2.0, size=(4, 6, 5, 3)).astype(np.float32)


def value_of(tensors: Any) -> Any:
    with tf1.Session() as session:
        session.run(tf1.global_variables_initializer())
        return session.run(tensors)


def names(key: str = KEYS.GLOBAL_VARIABLES) -> list[str]:
    return [v.op.name for v in tf1.get_collection(key)]


@pytest.fixture
def training() -> Iterator[TowerContext]:
    with TowerContext("", is_training=True) as tower:
        yield tower


def test_names_of_variables_and_outputs(training: TowerContext) -> None:
    x = tf.constant(IMAGES)
    conv = Conv2D("conv0", x, 8, 3, activation=BNReLU)
    assert conv.name == "conv0/output:0"
    assert conv.variables.W is tf1.global_variables()[0]
    assert conv.variables.all() == tf1.global_variables()[:2]
    norm = BatchNorm("bn", conv)
    assert [v.op.name for v in (norm.variables.moving_mean, norm.variables.variance)] == [
        "bn/mean/EMA",
        "bn/variance/EMA",
    ]
    FullyConnected("fc", norm, 2, use_bias=False)
    assert names() == [
        "conv0/W", "conv0/b", "conv0/bn/gamma", "conv0/bn/beta", "conv0/bn/mean/EMA", "conv0/bn/variance/EMA",
        "bn/gamma", "bn/beta", "bn/mean/EMA", "bn/variance/EMA", "fc/W",
    ]  # fmt: skip
    assert [n for n in names(KEYS.MODEL_VARIABLES) if n not in names(KEYS.TRAINABLE_VARIABLES)] == [
        "conv0/bn/mean/EMA", "conv0/bn/variance/EMA", "bn/mean/EMA", "bn/variance/EMA",
    ]  # fmt: skip
    with pytest.raises(AttributeError, match="no variable 'w'"):
        _ = conv.variables.w


def test_old_names_of_arguments_make_the_same_layers(training: TowerContext) -> None:
    x = tf.constant(IMAGES)
    pairs = [
        (lambda: Conv2D("a", x, out_channel=6, kernel_shape=3, stride=2, nl=tf.nn.relu, W_init=tf1.ones_initializer()),
         lambda: Conv2D("a", x, filters=6, kernel_size=3, strides=2, activation=tf.nn.relu,
                        kernel_initializer=tf1.ones_initializer())),
        (lambda: FullyConnected("b", x, out_dim=3, b_init=tf1.ones_initializer()),
         lambda: FullyConnected("b", x, 3, bias_initializer=tf1.ones_initializer())),
        (lambda: MaxPooling("c", x, shape=3, stride=1), lambda: MaxPooling("c", x, 3, 1)),
        (lambda: BatchNorm("d", x, decay=0.5, use_bias=False, use_local_stat=False),
         lambda: BatchNorm("d", x, momentum=0.5, center=False, training=False)),
        (lambda: Deconv2D("e", x, 3, kernel_shape=3, stride=2), lambda: Conv2DTranspose("e", x, 3, 3, 2)),
    ]  # fmt: skip
    built = []
    for old, new in pairs:
        with tf1.variable_scope("", reuse=tf1.AUTO_REUSE):
            built.append((old(), new()))
    for one, two in value_of(built):
        np.testing.assert_array_equal(one, two)
    with pytest.raises(UsageError, match="Conv2D 'z': Conv2D got 'filters' twice"):
        Conv2D("z", x, filters=3, out_channel=3, kernel_size=3)


def test_layers_compute_what_tensorflow_computes(training: TowerContext) -> None:
    x = tf.constant(IMAGES)
    rows = x[:, 0, 0]

    def w(layer: Any) -> Any:
        return layer.variables.W

    conv = Conv2D("conv", x, 6, 3)
    split = Conv2D("split", conv, 4, 3, split=2, dilation_rate=2, padding="VALID")
    depth = DepthwiseConv2D("depth", x, 3, strides=2, depth_multiplier=2, activation=tf.nn.relu)
    separable = SeparableConv2D("separable", x, 7, 3)
    dense = FullyConnected("dense", x, 4)
    halves = zip(tf.split(conv, 2, 3), tf.split(w(split), 2, 3), strict=True)
    alpha = 0.25
    got = [
        (conv, tf.nn.conv2d(x, w(conv), 1, "SAME")),
        (split, tf.concat([tf.nn.conv2d(a, b, 1, "VALID", dilations=2) for a, b in halves], 3)),
        (depth, tf.nn.relu(tf.nn.depthwise_conv2d(x, w(depth), [1, 2, 2, 1], "SAME"))),
        (separable, tf.nn.separable_conv2d(
            x, separable.variables.depthwise_W, separable.variables.pointwise_W, [1] * 4, "SAME")),
        (dense, tf.reshape(x, [4, -1]) @ w(dense)),
        (MaxPooling("max", x, 2), tf.nn.max_pool2d(x, 2, 2, "VALID")),
        (AvgPooling("avg", x, 3, 2, padding="SAME"), tf.nn.avg_pool2d(x, 3, 2, "SAME")),
        (GlobalAvgPooling("gap", x), tf.reduce_mean(x, [1, 2])),
        (PReLU("prelu", x, init=alpha), tf.where(x > 0, x, alpha * x)),
        (ConcatWith(x, [x, x], 3), tf.concat([x, x, x], 3)),
        (FixedUnPooling("unpool", x, [2, 3]), np.kron(IMAGES, np.array([[1, 0, 0], [0, 0, 0]])[None, :, :, None])),
        (FixedUnPooling("unpool2", x, 2, np.array([[1.0, 2.0], [3.0, 4.0]])),
         np.kron(IMAGES, np.array([[1, 2], [3, 4]])[None, :, :, None])),
        (BatchNorm("rows", rows), (IMAGES[:, 0, 0] - IMAGES[:, 0, 0].mean(0)) / np.sqrt(IMAGES[:, 0, 0].var(0) + 1e-5)),
        (LayerNorm("ln", x), (IMAGES - IMAGES.mean((1, 2, 3), keepdims=True)) / IMAGES.std((1, 2, 3), keepdims=True)),
        (InstanceNorm("in", x), (IMAGES - IMAGES.mean((1, 2), keepdims=True)) / IMAGES.std((1, 2), keepdims=True)),
    ]  # fmt: skip
    for one, two in value_of([[one, tf.convert_to_tensor(two)] for one, two in got]):
        np.testing.assert_allclose(one, two, rtol=1e-4, atol=1e-4)
    assert conv.variables.W.shape.as_list() == [3, 3, 3, 6]
    assert split.variables.W.shape.as_list() == [3, 3, 3, 4]


@pytest.mark.slow
def test_channels_first_and_unknown_sizes(training: TowerContext) -> None:
    x = tf1.placeholder(tf.float32, [None, None, None, 3])
    first = tf.transpose(x, [0, 3, 1, 2])
    layers: list[Callable[[str, Any, str], Any]] = [
        lambda name, x, form: BatchNorm(name, x, data_format=form),
        lambda name, x, form: BatchRenorm(name, x, 3.0, 5.0, data_format=form),
        lambda name, x, form: LayerNorm(name, x, data_format=form),
        lambda name, x, form: InstanceNorm(name, x, data_format=form),
        lambda name, x, form: FixedUnPooling(name, x, (2, 3), data_format=form),
        lambda name, x, form: tf.identity(GlobalAvgPooling(name, x, data_format=form))[:, None, None],
    ]
    pairs = []
    for number, layer in enumerate(layers):
        with tf1.variable_scope("", reuse=tf1.AUTO_REUSE):
            last = layer(f"l{number}", x, "channels_last")
            turned = layer(f"l{number}", first, "NCHW")
            pairs.append((last, turned if number == 5 else tf.transpose(turned, [0, 2, 3, 1])))
    assert Deconv2D("d", x, 2, 3, 2).shape.as_list() == [None, None, None, 2]
    assert BatchNorm("axis", first, axis=1).shape.as_list() == [None, 3, None, None]
    with tf1.Session() as session:
        session.run(tf1.global_variables_initializer())
        for one, two in session.run(pairs, {x: IMAGES}):
            np.testing.assert_allclose(one, two, rtol=1e-4, atol=1e-4)


def test_batch_norm_follows_the_tower_and_where_its_updates_go() -> None:
    x = tf.constant(IMAGES)
    mean = IMAGES.mean((0, 1, 2))
    with TowerContext("", is_training=True):
        for how in ("collection", "internal", "skip"):
            BatchNorm(how, x, momentum=0.5, ema_update=how)
        fixed = BatchNorm("fixed", x, training=False)
        internal = BatchNorm("old", x, momentum=0.5, internal_update=True)
    updates = tf1.get_collection(KEYS.UPDATE_OPS)
    assert [op.name.split("/")[0] for op in updates] == ["collection"] * 2
    with TowerContext("tower1", is_training=True, index=1):
        BatchNorm("collection", x, ema_update="collection")
    with tf1.variable_scope("", reuse=True), TowerContext("eval", is_training=False) as tower:
        evaluated = BatchNorm("fixed", x)
        BatchNorm("collection", x, training=True)
        assert evaluated.name == "eval/fixed/output:0"
        assert get_current_tower_context() is tower
    assert get_current_tower_context() is None
    assert len(tf1.get_collection(KEYS.UPDATE_OPS)) == 2
    averages = {name.split("/")[0]: v for name, v in ((v.op.name, v) for v in tf1.global_variables()) if "mean" in name}
    with tf1.Session() as session:
        session.run(tf1.global_variables_initializer())
        one, two = session.run([fixed, evaluated])
        np.testing.assert_allclose(one, two)
        np.testing.assert_allclose(one, IMAGES / np.sqrt(1 + 1e-5), rtol=1e-4)
        session.run([updates, internal])
        moved = session.run(averages)
    np.testing.assert_allclose(moved["collection"], 0.5 * mean, rtol=1e-3)
    np.testing.assert_allclose(moved["old"], 0.5 * mean, rtol=1e-3)
    for name in ("skip", "fixed", "internal"):  # the last one was not computed
        np.testing.assert_array_equal(moved[name], 0)


def test_dropout_takes_a_rate_and_the_old_share_to_keep(training: TowerContext, console: Any) -> None:
    ones = tf.ones([200, 100])
    got = value_of(
        [Dropout(ones, rate=0.2), Dropout("name", ones, 0.8), Dropout(ones), Dropout(ones, is_training=False)]
    )
    for values, kept in zip(got, (0.8, 0.8, 0.5, 1.0), strict=True):
        assert abs(np.mean(values > 0) - kept) < 0.03
        assert abs(values.mean() - 1) < 0.05
    assert "Dropout(x, 0.8) keeps 0.8 of the values" in console.text
    with pytest.raises(UsageError, match=r"both keep_prob=0.5 and rate=0.5"):
        Dropout(ones, 0.5, rate=0.5)
    with pytest.raises(UsageError, match=r"a share of 1.5 is to be dropped"):
        Dropout(ones, rate=1.5)


def test_costs_of_weights(training: TowerContext) -> None:
    x = tf.constant(IMAGES)
    a = Conv2D("conv0", x, 2, 3, kernel_regularizer=l2_regularizer(0.5), activity_regularizer=tf.reduce_sum)
    b = FullyConnected("fc", a, 2)
    searched = regularize_cost("(conv.*|fc)/W", l1_regularizer(0.5))
    collected = regularize_cost_from_collection()
    nothing = regularize_cost("nothing", l2_regularizer(1.0))
    weights, activity, *got = value_of([[a.variables.W, b.variables.W], a, searched, collected, nothing])
    expected = [0.5 * sum(np.abs(w).sum() for w in weights), 0.25 * np.sum(weights[0] ** 2) + activity.sum(), 0.0]
    np.testing.assert_allclose(got, expected, rtol=1e-3)


def test_costs_are_zero_where_nothing_is_trained() -> None:
    with TowerContext("", is_training=False):
        FullyConnected("fc", tf.ones([2, 3]), 2, kernel_regularizer=l2_regularizer(1.0))
        zero = value_of([regularize_cost("fc/W", l2_regularizer(1.0)), regularize_cost_from_collection()])
    assert zero == [0.0, 0.0]


def test_outside_of_towers_layers_ask_what_this_is() -> None:
    x = tf.constant(IMAGES)
    Conv2D("conv", x, 2, 3)  # needs not know
    with pytest.raises(
        UsageError, match=r"BatchNorm behaves otherwise in training.*TowerContext\('', is_training=...\)"
    ):
        BatchNorm("bn", x)
    with pytest.raises(UsageError, match="Dropout behaves otherwise"):
        Dropout(x, rate=0.5)
    with TowerContext("a", is_training=False), pytest.raises(UsageError, match="inside TowerContext"):
        TowerContext("b", is_training=False).__enter__()


def test_a_tower_whose_name_is_refused_leaves_nothing_open() -> None:
    with pytest.raises(ValueError, match="not a valid"):
        TowerContext("a b", is_training=True, index=1).__enter__()
    assert not tf1.get_variable_scope().reuse


def test_wrong_calls_are_told_with_the_layer_and_its_name(training: TowerContext) -> None:
    x = tf.constant(IMAGES)
    with pytest.raises(UsageError, match=r"Conv2D: the first argument is .*expected a scope's name"):
        Conv2D(x, 3, 3)
    with pytest.raises(UsageError, match="Conv2D a: the input is NoneType"):
        Conv2D("a", None, 3, 3)
    with pytest.raises(UsageError, match="split is 0; expected a positive integer"):
        Conv2D("a", x, 4, 3, split=0)
    with pytest.raises(UsageError, match="Conv2D 'a': Conv2D has no argument 'filter'; did you mean 'filters'"):
        Conv2D("a", x, filter=3, kernel_size=3)
    with pytest.raises(UsageError, match="Conv2D 'a': missing a required argument: 'kernel_size'"):
        Conv2D("a", x, 3)
    with pytest.raises(UsageError, match="Conv2D 'a': 3 arguments by position, at most 2"):
        Conv2D("a", x, 3, 3, 2)
    with pytest.raises(UsageError, match="'b': 3 channels to 4 do not fall into split=2"):
        Conv2D("b", x, 4, 3, split=2)
    with pytest.raises(UsageError, match="data_format is 'NHCW'; did you mean"):
        Conv2D("c", x, 4, 3, data_format="NHCW")
    with pytest.raises(UsageError, match="ema_update='intern'; did you mean 'internal'"):
        BatchNorm("d", x, ema_update="intern")
    with pytest.raises(UsageError, match=r"BatchNorm 'e': shape \(4, 6, 5\)"):
        BatchNorm("e", x[..., 0])
    with pytest.raises(UsageError, match="axis=2"):
        BatchNorm("f", x, axis=2)
    with pytest.raises(UsageError, match="sync_statistics='nccl'"):
        BatchNorm("g", x, sync_statistics="nccl")
    with pytest.raises(UsageError, match="not static but for the batch"):
        FullyConnected("h", tf1.placeholder(tf.float32, [None, None]), 3)
    with pytest.raises(UsageError, match=r"unpool_mat is \(2, 2\)"):
        FixedUnPooling("i", x, 3, np.ones([2, 2]))


def test_half_precision_through_var_scope(training: TowerContext) -> None:
    with mox.var_scope(force_dtype=tf.float32):
        y = LayerNorm("ln", BatchNorm("bn", Conv2D("conv", tf.constant(IMAGES, tf.float16), 4, 3)))
    assert y.dtype == tf.float16
    assert {v.dtype.base_dtype for v in tf1.global_variables()} == {tf.float32}
    assert np.isfinite(value_of([y, tf1.get_collection(KEYS.UPDATE_OPS)])[0]).all()


@pytest.mark.slow
def test_in_the_executor_the_mode_says_what_trains(tmp_path: Path) -> None:
    seen: dict[str, Any] = {}

    def input_fn(mode: str, **kwargs: Any) -> Any:
        return tf.constant(IMAGES), tf.constant([0, 1, 1, 0])

    def model_fn(inputs: Any, mode: str, **kwargs: Any) -> mox.ModelSpec:
        images, labels = inputs
        x = Conv2D("conv", images, 4, 3, activation=BNReLU)
        logits = FullyConnected("fc", Dropout(GlobalAvgPooling("gap", x), rate=0.5), 2)
        tower = get_current_tower_context()
        assert tower is not None
        seen[mode] = (tower.is_training, len(mox.get_collection(KEYS.UPDATE_OPS)))
        loss = tf.reduce_mean(tf1.nn.sparse_softmax_cross_entropy_with_logits(labels=labels, logits=logits))
        return mox.ModelSpec(loss=loss, log_info={"loss": loss})

    result = mox.run(
        input_fn=input_fn,
        model_fn=model_fn,
        optimizer_fn=mox.get_optimizer_fn("sgd", learning_rate=0.1),
        batch_size=4,
        auto_batch=False,
        run_mode=mox.ModeKeys.TRAIN,
        max_number_of_steps=3,
        log_dir=str(tmp_path),
    )
    assert result is not None
    mox.run(
        input_fn=input_fn,
        model_fn=model_fn,
        batch_size=4,
        auto_batch=False,
        run_mode=mox.ModeKeys.EVAL,
        max_number_of_steps=1,
        checkpoint_path=str(tmp_path),
    )
    assert seen == {"TRAIN": (True, 2), "EVAL": (False, 0)}
    reader = tf1.train.NewCheckpointReader(tf1.train.latest_checkpoint(str(tmp_path)))
    assert np.abs(reader.get_tensor("conv/bn/mean/EMA")).min() > 0
