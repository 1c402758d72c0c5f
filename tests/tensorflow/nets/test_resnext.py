"""ResNeXt: its two forms are one function, of one variable a layer or of one a group."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import moxserve.tensorflow as mox
from moxserve.errors import UsageError
from moxserve.tensorflow.executor.env import tf, tf1
from moxserve.tensorflow.layers import Layers, Normalization
from moxserve.tensorflow.nets.base import Build
from moxserve.tensorflow.nets.branches import build_branches
from moxserve.tensorflow.nets.resnext import resnext

GROUPS = 2
THIN = partial(resnext, units=(1, 1, 1, 1), cardinality=GROUPS, base_width=4)
IMAGES = np.random.RandomState(7).uniform(-1, 1, (2, 40, 33, 3)).astype(np.float32)
KEYS = tf1.GraphKeys


def loss(logits: Any) -> Any:
    return tf.reduce_mean(tf.nn.sparse_softmax_cross_entropy_with_logits(labels=[0, 2], logits=logits))


def gathered(found: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Put what belongs to groups together, under the names of form C."""
    together: dict[str, list[np.ndarray]] = {}
    for name, value in found.items():  # variables are made group by group
        scope, _, rest = name.replace("/resnext_b/", "/resnext_c/").replace("b/", "c/", 1).partition("/split_")
        together.setdefault(f"{scope}/{rest.partition('/')[2]}" if rest else scope, []).append(value)
    return {name: np.concatenate(parts, -1) for name, parts in together.items()}


def start(session: Any) -> None:
    """Give form C random values, and form B the same ones, cut along the last axis."""
    rng = np.random.default_rng(5)
    feeds, counts = {}, {}
    whole = {}
    for variable in tf1.global_variables("c/"):
        shape = variable.shape.as_list()
        value = rng.standard_normal(shape) * np.sqrt(2 / max(np.prod(shape[:-1]), 2))
        value = np.abs(value) + 1 if variable.op.name.endswith(("variance", "gamma", "stddev")) else value
        whole[variable.op.name] = feeds[variable.initializer.inputs[1]] = value
    for variable in tf1.global_variables("b/"):
        [name] = gathered({variable.op.name: np.zeros(variable.shape.as_list())})
        value = whole[name]
        if "/split_" in variable.op.name:
            counts[name] = counts.get(name, -1) + 1
            value = np.split(value, GROUPS, -1)[counts[name]]
        feeds[variable.initializer.inputs[1]] = value
    session.run([v.initializer for v in tf1.global_variables()], feeds)


@pytest.mark.slow
@pytest.mark.parametrize(
    "kwargs",
    [{"fused": True}, {"renorm": True}, {"data_format": "NCHW"}],
    ids=["fused", "renorm", "NCHW"],
)
def test_both_forms_are_one_function_in_training(kwargs: dict[str, Any]) -> None:
    """Logits, gradients, penalties, and averages after a step."""
    build = Build(5, training=True, weight_decay=0.1, **kwargs)
    x = tf.constant(IMAGES.transpose(0, 3, 1, 2) if build.data_format == "NCHW" else IMAGES)
    logits, updates, penalties, gradients = {}, {}, {}, {}
    for form in "cb":
        seen = len(tf1.get_collection(KEYS.UPDATE_OPS)), len(tf1.get_collection(KEYS.REGULARIZATION_LOSSES))
        logits[form], ends = THIN(x, build, scope=form, split=form == "b")
        assert list(ends) == [
            name.replace("resnext_c", f"resnext_{form}").replace("c/", f"{form}/", 1) for name in ends
        ]
        updates[form] = tf1.get_collection(KEYS.UPDATE_OPS)[seen[0] :]
        penalties[form] = tf.add_n(tf1.get_collection(KEYS.REGULARIZATION_LOSSES)[seen[1] :])
        variables = tf1.trainable_variables(f"{form}/")
        slopes = tf.gradients(loss(logits[form]), variables)
        gradients[form] = {v.op.name: slope for v, slope in zip(variables, slopes, strict=True)}
    assert len(updates["b"]) == len(updates["c"])
    with tf1.Session() as session:
        start(session)
        outputs = session.run([logits, penalties, gradients, updates])
        np.testing.assert_allclose(outputs[0]["b"], outputs[0]["c"], rtol=0, atol=1e-4 * outputs[0]["c"].std())
        assert outputs[1]["b"] == pytest.approx(outputs[1]["c"], rel=1e-5)
        slopes = gathered(outputs[2]["b"])
        assert set(slopes) == set(outputs[2]["c"])
        for name, slope in outputs[2]["c"].items():
            np.testing.assert_allclose(
                slopes[name], slope, rtol=0, atol=1e-3 * np.abs(slope).max() + 1e-6, err_msg=name
            )
        averages = {form: {v.op.name: v for v in tf1.global_variables(f"{form}/") if not v.trainable} for form in "bc"}
        found = session.run(averages)
    moved = gathered(found["b"])
    assert set(moved) == set(found["c"])
    for name, value in found["c"].items():
        np.testing.assert_allclose(moved[name], value, rtol=1e-4, atol=1e-4, err_msg=name)


@pytest.mark.slow
def test_both_forms_are_one_function_in_evaluation() -> None:
    options: dict[str, Any] = {"official": True, "output_stride": 16}
    build = Build(5, training=False)
    logits = [THIN(tf.constant(IMAGES), build, scope=form, split=form == "b", **options)[0] for form in "cb"]
    with tf1.Session() as session:
        start(session)
        whole, split = session.run(logits)
    np.testing.assert_allclose(split, whole, rtol=0, atol=1e-4 * whole.std())


@pytest.mark.slow
def test_halved_precision_is_stored_whole() -> None:
    x = tf.constant(IMAGES.astype(np.float16))
    with mox.var_scope(force_dtype=tf.float32):
        logits, _ = THIN(x, Build(5, training=True), scope="b", split=True)
    assert logits.dtype == tf.float16
    assert {v.dtype for v in tf1.global_variables()} == {tf.float32}
    gradients = tf.gradients(loss(tf.cast(logits, tf.float32)), tf1.trainable_variables())
    with tf1.Session() as session:
        session.run(tf1.global_variables_initializer())
        found = session.run([gradients, tf1.get_collection(KEYS.UPDATE_OPS)])[0]
    assert all(np.isfinite(g).all() for g in found)
    assert sum(bool(g.any()) for g in found) > 0.9 * len(found)


@pytest.mark.parametrize(("option", "value"), [("cardinality", 0), ("base_width", 2.5), ("cardinality", True)])
def test_sizes_that_make_no_sense(option: str, value: Any) -> None:
    with pytest.raises(UsageError, match=f"^{option}: expected a whole number above 0, got {value}$"):
        resnext(tf.zeros([1, 32, 32, 3]), Build(5, False), scope="n", units=(1, 1, 1, 1), split=True, **{option: value})


class TestBranches:
    """Variables of branches, computed as one layer."""

    def test_variables_are_made_branch_by_branch(self) -> None:
        layers = Layers(training=False, weight_decay=0.5)

        def body(layers: Layers, x: Any) -> Any:
            return layers.conv2d(layers.conv2d(x, 4, 1, "one"), 6, 3, "two", groups=2)

        with tf1.variable_scope("net"):
            made = build_branches(layers, ["left", "right"], body, tf.zeros([1, 5, 5, 3]))
        assert made.shape.as_list() == [1, 5, 5, 6]
        assert [(v.op.name, v.shape.as_list()) for v in tf1.global_variables()] == [
            (f"net/{side}/{name}", shape)
            for side in ("left", "right")
            for name, shape in (
                ("one/weights", [1, 1, 3, 2]),
                ("one/biases", [2]),
                ("two/weights", [3, 3, 2, 3]),
                ("two/biases", [3]),
            )
        ]
        assert len(tf1.get_collection(KEYS.REGULARIZATION_LOSSES)) == 4
        assert tf1.get_collection(KEYS.MODEL_VARIABLES) == tf1.global_variables()

    def test_channels_that_do_not_fall_into_branches(self) -> None:
        with pytest.raises(UsageError, match=r"^one/weights: 5 channels do not fall into 2 branches$"):
            build_branches(
                Layers(training=False),
                ["a", "b"],
                lambda layers, x: layers.conv2d(x, 5, 1, "one"),
                tf.zeros([1, 3, 3, 2]),
            )

    @pytest.mark.slow
    def test_trained_for_int8_and_pruned_like_one_layer(self, tmp_path: Path) -> None:
        """Kernels and averages that are put together from parts are found as those of one variable are."""

        def model_fn(inputs: list[Any], mode: str, **kwargs: Any) -> mox.ModelSpec:
            layers = Layers(training=mode == mox.ModeKeys.TRAIN, norm=Normalization(0.5, fused=True))

            def body(layers: Layers, x: Any) -> Any:
                return layers.conv2d(layers.conv2d(x, 4, 1, "one"), 4, 3, "two", groups=2)

            with tf1.variable_scope("net"):
                made = build_branches(layers, ["left", "right"], body, inputs[0])
            return mox.ModelSpec(loss=tf.reduce_mean(tf.square(made - 1)), log_info={"size": tf.reduce_mean(made)})

        def input_fn(mode: str, **kwargs: Any) -> Any:
            return tf1.data.Dataset.from_tensor_slices(IMAGES).repeat().make_one_shot_iterator().get_next()

        def run(name: str, wrapped: Any) -> dict[str, np.ndarray]:
            mox.run(
                input_fn=input_fn,
                model_fn=wrapped,
                optimizer_fn=lambda **kwargs: tf1.train.GradientDescentOptimizer(0.01),
                run_mode=mox.ModeKeys.TRAIN,
                batch_size=2,
                max_number_of_steps=2,
                log_dir=str(tmp_path / name),
            )
            reader = tf.train.load_checkpoint(str(tmp_path / name))
            return {key: reader.get_tensor(key) for key in reader.get_variable_to_shape_map()}

        quantized = run("int8", mox.quantize_model_fn(model_fn, mox.Quantization()))
        assert {name for name in quantized if name.startswith("quantization/")}
        for side in ("left", "right"):  # the averages of folded batch norms stand still
            assert (quantized[f"net/{side}/one/BatchNorm/moving_mean"] == 0).all()
        pruned = run("pruned", mox.prune_model_fn(model_fn, mox.Pruning(end_step=1, sparsity=0.5, every_steps=1)))
        for side in ("left", "right"):
            assert np.mean(pruned[f"net/{side}/two/weights"] == 0) == pytest.approx(0.5)
            assert (pruned[f"net/{side}/one/BatchNorm/moving_mean"] != 0).any()
