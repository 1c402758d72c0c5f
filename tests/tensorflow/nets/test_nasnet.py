"""NASNet and PNASNet beyond what all networks are tested for: options, drop path, the second classifier, training."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import moxserve.tensorflow as mox
from moxserve.errors import UsageError
from moxserve.tensorflow.executor.env import tf, tf1
from moxserve.tensorflow.nets.base import Build
from moxserve.tensorflow.nets.nasnet import nasnet_cifar, nasnet_large, nasnet_mobile
from moxserve.tensorflow.nets.nasnet_cells import NASNET_NORMAL, NASNET_REDUCTION, PNASNET, DropPath
from moxserve.tensorflow.nets.pnasnet import pnasnet_large, pnasnet_mobile

Computed = Callable[[Any], Any]
Image = Callable[[int, int], np.ndarray]
SMALL = {"num_cells": 3, "num_conv_filters": 4}
AUX = "aux_1/aux_logits/"


# -- against slim


@pytest.mark.slow
@pytest.mark.parametrize(
    ("network", "size", "options", "expected"),
    [
        (
            nasnet_cifar,
            (24, 24),
            {
                "num_cells": 4,
                "num_conv_filters": 6,
                "use_bounded_activation": True,
                "skip_reduction_layer_input": True,
                "stem_multiplier": 2.0,
            },
            (-3.35576, -1.19911, 6.36602, 3.80131),
        ),
        (
            nasnet_cifar,
            (20, 28),
            {"num_cells": 3, "num_conv_filters": 5, "num_reduction_layers": 1, "filter_scaling_rate": 1.5},
            (-0.59864, 0.50686, -0.28441, 0.62653),
        ),
        (nasnet_mobile, (65, 97), {"num_cells": 3, "num_conv_filters": 12}, (-0.88304, 0.06215, 5.34726, 3.12321)),
        (
            pnasnet_mobile,
            (65, 97),
            {"num_cells": 6, "num_conv_filters": 12, "skip_reduction_layer_input": False},
            (3.30395, 11.72738, 6.16257, 5.49472),
        ),
    ],
    ids=["cifar-bounded", "cifar-one-reduction", "mobile", "pnasnet"],
)
def test_options_give_what_slim_gives(
    network: Callable[..., Any],
    size: tuple[int, int],
    options: dict[str, Any],
    expected: tuple[float, ...],
    computed: Computed,
    image: Image,
) -> None:
    """The first logits of seven, and the spread of all, as slim's network of the same options computes them.

    Sides that are odd, or not equal, show where a reduction pads on the wrong side.
    """
    logits, _ = network(tf.constant(image(*size)), Build(7, training=False), **options)
    found = computed(logits)[0]
    np.testing.assert_allclose([*found[:3], found.std()], expected, atol=1e-3 * expected[-1])


# -- drop path


def dropped(keep_prob: float, cell: int, step: int, count: int = 3, batch: int = 2000) -> np.ndarray:
    """Factors of some operations in a network of 4 cells and 100 steps, `[count, batch]`."""
    tf1.set_random_seed(1)
    masks = DropPath(keep_prob, 4, 100, tf.constant(step, tf.int64)).masks(count, cell, tf.zeros([batch, 2, 2, 1]))
    with tf1.Session() as session:
        values = np.stack(session.run(list(masks)))
    assert values.shape == (count, batch, 1, 1, 1)
    return values[:, :, 0, 0, 0]


@pytest.mark.parametrize(
    ("cell", "step", "keep_prob"),
    [(3, 100, 0.6), (3, 1000, 0.6), (3, 50, 0.8), (0, 100, 0.9), (1, 25, 0.95)],
)
def test_operations_are_dropped_more_often_in_later_cells_and_steps(cell: int, step: int, keep_prob: float) -> None:
    values = dropped(0.6, cell, step)
    kept = values > 0
    np.testing.assert_allclose(values[kept], 1 / keep_prob, rtol=1e-5)  # so that the mean stays
    assert kept.mean() == pytest.approx(keep_prob, abs=0.02)
    assert (kept[0] != kept[1]).any()  # of each operation
    assert (kept[0, 1:] != kept[0, :-1]).any()  # and of each example by itself


def test_nothing_is_dropped_at_first() -> None:
    np.testing.assert_array_equal(dropped(0.6, 3, 0), 1.0)


@pytest.mark.parametrize(("plan", "operations"), [(NASNET_NORMAL, 8), (NASNET_REDUCTION, 9), (PNASNET, 9)])
def test_states_as_they_are_are_never_dropped(plan: Any, operations: int) -> None:
    assert plan.operations == operations


@pytest.mark.slow
def test_training_makes_a_step_outside_of_cells() -> None:
    options = {**SMALL, "use_aux_head": False, "drop_path_keep_prob": 0.5}
    nasnet_cifar(tf.zeros([2, 16, 16, 3]), Build(3, training=True), **options)
    assert [v.op.name for v in tf1.global_variables() if "global_step" in v.op.name] == ["global_step"]


# -- the second classifier


@pytest.mark.slow
def test_the_second_classifier_is_for_training_only() -> None:
    with tf.Graph().as_default():
        images = tf.zeros([2, 32, 32, 3])
        names = {}
        for training in (True, False):  # as the executor builds an evaluation: with the variables of training
            with tf1.variable_scope(tf1.get_variable_scope(), reuse=not training):
                before = len(tf1.global_variables())
                _, end_points = nasnet_cifar(images, Build(3, training=training), **SMALL)
                names[training] = list(end_points)
                made = [v.op.name for v in tf1.global_variables()[before:]]
            assert (len(made) > 300) == training
            assert sum(name.startswith(AUX) for name in made) == 12 * training
        assert [name for name in names[True] if name != "AuxLogits"] == names[False]
        assert names[True].index("AuxLogits") == names[True].index("Cell_1") + 1


@pytest.mark.slow
def test_images_too_small_for_the_second_classifier() -> None:
    with pytest.raises(UsageError, match=r"a map of 2 x 2; .* use_aux_head=False"):
        pnasnet_mobile(tf.zeros([2, 32, 32, 3]), Build(3, training=True), **SMALL)
    with tf.Graph().as_default():
        logits, end_points = pnasnet_mobile(
            tf.zeros([2, 32, 32, 3]), Build(3, training=True), use_aux_head=False, **SMALL
        )
        assert logits.shape.as_list() == [2, 3]
        assert "AuxLogits" not in end_points


# -- in runs


SAMPLES = 8


def input_fn(mode: str, **kwargs: Any) -> Any:
    """Images that are dark or bright."""
    labels = np.arange(SAMPLES) % 2
    images = np.random.RandomState(3).uniform(-0.5, 0.5, (SAMPLES, 16, 16, 3)) + (labels - 0.5)[:, None, None, None]
    dataset = tf1.data.Dataset.from_tensor_slices((images.astype(np.float32), labels))
    dataset = dataset.repeat() if mode == mox.ModeKeys.TRAIN else dataset
    return dataset.make_one_shot_iterator().get_next()


def model_fn(inputs: list[Any], mode: str) -> mox.ModelSpec:
    images, labels = inputs
    logits, end_points = mox.get_model_fn("nasnet_cifar", mode, 2, **SMALL)(images)
    loss = tf1.losses.sparse_softmax_cross_entropy(labels, logits)
    if mode == mox.ModeKeys.TRAIN:
        total = loss + 0.4 * tf1.losses.sparse_softmax_cross_entropy(labels, end_points["AuxLogits"])
        return mox.ModelSpec(loss=total, log_info={"loss": loss})
    hook = mox.LogEvaluationMetricHook({"loss": loss}, batch_size=4, samples_in_train=SAMPLES, samples_in_eval=SAMPLES)
    return mox.ModelSpec(loss=loss, log_info={"loss": loss}, hooks=[hook])


def run(mode: str, log_dir: Path, **kwargs: Any) -> mox.RunResult:
    with tf.Graph().as_default():
        return mox.run(
            input_fn=input_fn,
            model_fn=model_fn,
            optimizer_fn=mox.get_optimizer_fn("sgd", learning_rate=0.01),
            run_mode=mode,
            batch_size=4,
            log_dir=str(log_dir),
            max_number_of_steps=2,
            **kwargs,
        )


@pytest.mark.slow
def test_checkpoints_fit_with_the_second_classifier_and_without_it(tmp_path: Path, console: Any) -> None:
    """A published one may lack it; EVAL lacks it, and reads checkpoints that hold it."""
    with tf.Graph().as_default(), tf1.Session() as session:
        tf1.train.get_or_create_global_step()
        nasnet_cifar(tf.zeros([1, 16, 16, 3]), Build(2, training=False), **SMALL)
        session.run(tf1.global_variables_initializer())
        published = tf1.train.Saver().save(session, str(tmp_path / "published.ckpt"))

    trained = run(mox.ModeKeys.TRAIN, tmp_path / "run", checkpoint_path=published)
    missing = [line for line in console.lines if "missing in it" in line]
    assert len(missing) == 12
    assert all(AUX in line for line in missing)
    held = tf1.train.NewCheckpointReader(trained.checkpoint).get_variable_to_shape_map()
    assert sum(name.startswith(AUX) for name in held) == 12
    assert np.isfinite(run(mox.ModeKeys.EVAL, tmp_path / "run").metrics["loss"])


# -- errors


@pytest.mark.parametrize("network", [nasnet_cifar, nasnet_mobile, nasnet_large, pnasnet_mobile, pnasnet_large])
@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"num_cels": 3}, "no option 'num_cels' .*'num_cells'"),
        ({"num_cells": 0}, "num_cells must be 1 or more, got 0"),
        ({"num_cells": 2}, "num_reduction_layers must be from 0 to 1, .* got 2"),
        ({"stem_multiplier": 0}, "stem_multiplier must be above 0, got 0"),
        ({"drop_path_keep_prob": 0.0}, "drop_path_keep_prob must be above 0 and at most 1, got 0.0"),
        ({"dense_dropout_keep_prob": 1.5}, "dense_dropout_keep_prob must be above 0 and at most 1, got 1.5"),
    ],
)
def test_values_that_make_no_sense(network: Callable[..., Any], options: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        network(tf.zeros([1, 32, 32, 3]), Build(7, training=True), **options)
    assert not tf1.global_variables()


def test_cells_that_halve_need_another_between_them_to_read_past_it() -> None:
    options = {"num_cells": 3, "skip_reduction_layer_input": False}
    with pytest.raises(UsageError, match=r"^3 cells, of which 2 halve the map, have no cell between"):
        pnasnet_mobile(tf.zeros([1, 32, 32, 3]), Build(7, training=False), **options)
