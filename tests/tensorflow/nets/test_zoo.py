"""All 44 networks at once: variables, collections, end points, and the numbers that slim's own networks give.

golden.json holds what TF-Slim's 32 networks compute in eval mode, under TensorFlow 2.15, at their default sizes: the
first 20 logits, the spread (standard deviation) of all, and mean and standard deviation of each end point. Weights and
image follow rules, so that only results are stored:

    variable   standard normal numbers n of RandomState(crc32 of its name): weights n * sqrt(2 / fan in), gamma
               1 + 0.1 n, moving_variance 1 + 0.5 |n|, anything else (biases, beta, moving_mean) 0.1 n
    image      uniform in [-1, 1) of RandomState(7), batch 1, NHWC

Logits must agree to 1e-3 of their spread. slim's copy that computed them names an end point more in inception_v2
(PreLogits). The networks are built once each here, in EXPORT, which is EVAL; numbers and gradients are of some of each
family, and of all (with resnext_b_101) where MOXSERVE_ZOO=all asks for it: that takes eight minutes on two cores.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import moxserve.tensorflow as mox
from moxserve.tensorflow.executor.env import tf, tf1
from moxserve.tensorflow.nets.catalog import NETWORKS
from moxserve.tensorflow.nets.summary import figures, summarize_graph

GOLDEN = json.loads(Path(__file__).with_name("golden.json").read_text())
WEIGHT_DECAY = 1e-4
EVERYTHING = os.environ.get("MOXSERVE_ZOO") == "all"
# Built quickly.
QUICK = {"lenet", "cifarnet", "resnet_v1_20"}
# Whose numbers are compared, and which are trained, unless all are asked for.
NUMBERS = {
    "lenet", "cifarnet", "alexnet_v2", "inception_v1", "inception_v2", "inception_v3", "resnet_v1_50", "resnet_v2_50",
    "mobilenet_v1_025", "mobilenet_v2_035", "pnasnet_mobile",
}  # fmt: skip
TRAINED = {
    "lenet", "cifarnet", "inception_v1", "resnet_v1_20", "resnet_v2_50", "mobilenet_v1_025", "mobilenet_v2_035",
}  # fmt: skip
# Sides of the images of training steps, where the default is larger than a test of the code needs.
SIDES = {"lenet": 28, "cifarnet": 32, "nasnet_cifar": 32, "resnet_v1_20": 32, "resnet_v1_110": 32}
LEAST = {
    "alexnet_v2": 224, "overfeat": 231, "pvanet": 224, "vgg": 224, "inception_v3": 299, "inception_v4": 299,
    "inception_resnet_v2": 299, "nasnet": 96, "pnasnet": 96,
}  # fmt: skip


# 10,752 variables in half a minute; resnext_b_50 is the same in less.
SLOWEST = {"resnext_b_101"}


def _networks(names: Any) -> list[Any]:
    chosen = [name for name in names if EVERYTHING or name not in SLOWEST]
    marks = (pytest.mark.slow, pytest.mark.timeout(900))
    return [pytest.param(name, marks=() if name in QUICK else marks) for name in chosen]


def _reference(name: str, shared_dir: Path) -> dict[str, Any]:
    zoo = shared_dir / "reference" / "zoo"
    path = zoo / "variables" / f"{name}.json"
    found: dict[str, Any] = json.loads(
        (path if path.exists() else zoo / "nonslim_variables" / f"{name}.json").read_text()
    )
    return found


@pytest.mark.parametrize("name", _networks(NETWORKS))
def test_variables_end_points_and_numbers_are_slims(name: str, shared_dir: Path, computed: Callable[[Any], Any]):
    row, reference = NETWORKS[name], _reference(name, shared_dir)
    side = row.image_size
    with tf.Graph().as_default():
        image = np.random.RandomState(7).uniform(-1, 1, (1, side, side, row.channels)).astype(np.float32)
        images = tf1.placeholder_with_default(image, image.shape)
        network_fn = mox.get_model_fn(
            name, "EXPORT", row.num_classes, weight_decay=WEIGHT_DECAY, image_height=side, image_width=side
        )
        logits, end_points = network_fn(images)
        _check_variables(reference)
        assert logits.shape.as_list() == [1, row.num_classes]
        if "end_points" in reference:  # those of slim's networks
            shapes = [[key, value.shape.as_list()] for key, value in end_points.items()]
            assert shapes == [list(one) for one in reference["end_points"]]
        assert summarize_graph(row, images, logits, end_points).figures == figures(name)
        if name in (GOLDEN if EVERYTHING else NUMBERS):
            _check_numbers(GOLDEN[name], *computed([logits, end_points]))


def _check_variables(reference: dict[str, Any]) -> None:
    """Names, shapes and collections, in the order in which they are made."""
    keys = tf1.GraphKeys
    trained = {v.name for v in tf1.trainable_variables()}
    model = {v.name for v in tf1.get_collection(keys.MODEL_VARIABLES)}
    made = [[v.op.name, v.shape.as_list(), v.name in trained, v.name in model] for v in tf1.global_variables()]
    assert made == [[name, shape, "T" in flags, "M" in flags] for name, shape, flags in reference["variables"]]
    sizes = [v.shape.num_elements() for v in tf1.trainable_variables()]
    assert sum(sizes) == reference["trainable_params"]
    decayed = sum("R" in flags for _, _, flags in reference["variables"])
    assert len(tf1.get_collection(keys.REGULARIZATION_LOSSES)) == decayed
    assert not tf1.get_collection(keys.UPDATE_OPS)


def _check_numbers(golden: dict[str, Any], logits: np.ndarray, end_points: dict[str, np.ndarray]) -> None:
    first = golden["logits"]
    np.testing.assert_allclose(logits.ravel()[: len(first)], first, rtol=0, atol=1e-3 * golden["spread"])
    assert [key for key in golden["end_points"] if key in end_points] == list(end_points)
    for key, value in end_points.items():
        mean, spread = golden["end_points"][key]
        assert float(value.mean()) == pytest.approx(mean, abs=2e-3 * spread + 1e-6), key
        assert float(value.std()) == pytest.approx(spread, rel=2e-3, abs=1e-6), key


def _side(name: str) -> int:
    family = next((key for key in sorted(LEAST, key=len, reverse=True) if name.startswith(key)), "")
    return SIDES.get(name) or LEAST.get(family, 64)


@pytest.mark.slow
@pytest.mark.parametrize("name", _networks(NETWORKS if EVERYTHING else sorted(TRAINED)))
def test_training_adds_what_slims_does_and_reaches_every_variable(name: str, shared_dir: Path):
    row, reference, side = NETWORKS[name], _reference(name, shared_dir), _side(name)
    with tf.Graph().as_default(), tf1.Session() as session:
        tf1.set_random_seed(1)
        images = tf.random.stateless_uniform([2, side, side, row.channels], [1, 2], -1, 1)
        logits, end_points = mox.get_model_fn(name, "TRAIN", 5, WEIGHT_DECAY, batch_norm_fused=True)(images)
        loss = tf.reduce_mean(tf.nn.sparse_softmax_cross_entropy_with_logits(labels=[1, 3], logits=logits))
        if "AuxLogits" in end_points:
            loss += 0.4 * tf.reduce_mean(tf.square(end_points["AuxLogits"] - 1))
        loss += tf1.losses.get_regularization_loss()
        variables = tf1.trainable_variables()
        gradients = tf.gradients(loss, variables)
        assert [v.op.name for v, gradient in zip(variables, gradients, strict=True) if gradient is None] == []
        _check_training(reference)
        session.run(tf1.global_variables_initializer())
        values, *norms = session.run([loss, *(tf.norm(gradient) for gradient in gradients)])
        session.run(tf1.get_collection(tf1.GraphKeys.UPDATE_OPS))
    assert np.isfinite([values, *norms]).all()
    assert values > 0


def _check_training(reference: dict[str, Any]) -> None:
    """What slim says that training adds to the graph."""
    train = reference.get("train")
    if train is None:
        return
    made = [v.op.name for v in tf1.global_variables()]
    more = [name for name in made if name not in {row[0] for row in reference["variables"]} and name != "global_step"]
    assert more == [row[0] for row in train["variables_only_in_training"]]
    assert len(tf1.get_collection(tf1.GraphKeys.UPDATE_OPS)) == train["update_ops"]
    assert len(tf1.get_collection(tf1.GraphKeys.REGULARIZATION_LOSSES)) == train["regularization_losses"]
    assert ("global_step" in made) == train["uses_global_step"]
