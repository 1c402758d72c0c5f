"""Batch norms against NumPy and the layers of tf_keras, whose numbers slim's are."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from moxserve.errors import UsageError
from moxserve.tensorflow.executor.env import tf, tf1
from moxserve.tensorflow.layers import Layers, Normalization
from moxserve.tensorflow.layers.images import Format
from moxserve.tensorflow.layers.normalization import batch_norm

KEYS = tf1.GraphKeys
DRAW = np.random.default_rng(0)
BATCHES = [DRAW.normal(2.0, 3.0, size=(4, 5, 6, 3)).astype(np.float32) for _ in range(4)]
LAST = DRAW.normal(1.0, 2.0, size=(4, 5, 6, 3)).astype(np.float32)


def trained(norm: Normalization, batches: list[np.ndarray] = BATCHES) -> dict[str, np.ndarray]:
    """Run the updates of some batches; return the variables, the last training output and an evaluation of LAST."""
    with tf1.Graph().as_default():
        x = tf1.placeholder(tf.float32, [None, *batches[0].shape[1:]])
        y = Layers(training=True, norm=norm).batch_norm(x)
        with tf1.variable_scope("", reuse=True):
            evaluated = Layers(training=False, norm=norm).batch_norm(x)
        updates = tf1.get_collection(KEYS.UPDATE_OPS)
        assert len(updates) == 2
        with tf1.Session() as session:
            session.run(tf1.global_variables_initializer())
            for batch in batches:
                out, _ = session.run([y, updates], {x: batch})
            values = {v.op.name.split("/")[-1]: session.run(v) for v in tf1.global_variables()}
            return {**values, "out": out, "evaluated": session.run(evaluated, {x: LAST.reshape(-1, *batch.shape[1:])})}


@pytest.mark.parametrize("fused", [False, True])
@pytest.mark.parametrize("rows", [False, True])
def test_outputs_and_averages(fused: bool, rows: bool) -> None:
    batches = [b.reshape(-1, 3) for b in BATCHES] if rows else BATCHES
    got = trained(Normalization(decay=0.9, epsilon=0.01, scale=True, fused=fused), batches)
    mean, variance = np.zeros(3), np.ones(3)
    for batch in batches:
        flat = batch.reshape(-1, 3)
        mean = 0.9 * mean + 0.1 * flat.mean(0)
        variance = 0.9 * variance + 0.1 * flat.var(0, ddof=1 if fused else 0)
    flat = batches[-1].reshape(-1, 3)
    np.testing.assert_allclose(got["moving_mean"], mean, rtol=1e-4)
    np.testing.assert_allclose(got["moving_variance"], variance, rtol=1e-4)
    expected = (batches[-1] - flat.mean(0)) / np.sqrt(flat.var(0) + 0.01)
    np.testing.assert_allclose(got["out"], expected, rtol=1e-3, atol=1e-4)
    expected = (LAST.reshape(-1, *batches[0].shape[1:]) - mean) / np.sqrt(variance + 0.01)
    np.testing.assert_allclose(got["evaluated"], expected, rtol=1e-3, atol=1e-4)


def reference(renorm: bool, fused: bool) -> dict[str, np.ndarray]:
    """What tf_keras' layer, which slim calls, makes of the batches."""
    with tf1.Graph().as_default():
        x = tf1.placeholder(tf.float32, [None, 5, 6, 3])
        arguments = {"momentum": 0.9, "epsilon": 0.01, "fused": fused, "name": "bn"}
        if renorm:
            arguments |= {
                "renorm": True,
                "renorm_momentum": 0.8,
                "renorm_clipping": {"rmin": 0.5, "rmax": 2.0, "dmax": 0.5},
            }
        y = tf1.layers.batch_normalization(x, training=True, **arguments)
        evaluated = tf1.layers.batch_normalization(x, training=False, reuse=True, **arguments)
        with tf1.Session() as session:
            session.run(tf1.global_variables_initializer())
            for batch in BATCHES:
                out, _ = session.run([y, tf1.get_collection(KEYS.UPDATE_OPS)], {x: batch})
            values = {v.op.name.split("/")[-1]: session.run(v) for v in tf1.global_variables()}
            return {**values, "out": out, "evaluated": session.run(evaluated, {x: LAST})}


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["fused", "spelled out", "renorm"])
def test_the_numbers_are_those_of_the_layer_that_slim_calls(kind: str) -> None:
    bounds: dict[str, Any] = (
        {"renorm": True, "renorm_decay": 0.8, "r_max": 2.0, "d_max": 0.5} if kind == "renorm" else {}
    )
    got = trained(Normalization(decay=0.9, epsilon=0.01, scale=True, fused=kind == "fused", **bounds))
    expected = reference(kind == "renorm", kind == "fused")
    assert list(got) == list(expected)  # the same variables, in the same order
    for name, value in expected.items():
        np.testing.assert_allclose(got[name], value, rtol=1e-3, atol=1e-4, err_msg=name)


def test_renorm_follows_the_papers_schedule() -> None:
    x = tf.constant(BATCHES[0])
    step = tf1.train.get_or_create_global_step()
    y = Layers(training=True, norm=Normalization(epsilon=0.01, renorm=True)).batch_norm(x)
    flat = BATCHES[0].reshape(-1, 3)
    mean, stddev = flat.mean(0), np.sqrt(flat.var(0) + 0.01)
    plain = (BATCHES[0] - mean) / stddev
    with tf1.Session() as session:
        session.run(tf1.global_variables_initializer())
        for at, r_max, d_max in ((0, 1.0, 0.0), (5_000, 1.0, 0.0), (15_000, 1.5714, 2.5), (10**6, 3.0, 5.0)):
            session.run(step.assign(at))
            expected = plain * np.clip(stddev, 1 / r_max, r_max) + np.clip(mean, -d_max, d_max)
            np.testing.assert_allclose(session.run(y), expected, rtol=1e-3, atol=1e-3)


def test_gradients_of_both_forms_are_the_same() -> None:
    gradients = []
    for fused in (True, False):
        with tf1.Graph().as_default():
            x = tf.constant(BATCHES[0])
            y = Layers(training=True, norm=Normalization(epsilon=0.01, scale=True, fused=fused)).batch_norm(x)
            wanted = tf.gradients(tf.reduce_sum(y * LAST), [x, *tf1.trainable_variables()])
            with tf1.Session() as session:
                session.run(tf1.global_variables_initializer())
                gradients.append(session.run(wanted))
    for one, two in zip(*gradients, strict=True):
        np.testing.assert_allclose(two, one, rtol=1e-3, atol=1e-3)


def test_virtual_batches_have_statistics_of_their_own() -> None:
    got = trained(Normalization(decay=0.5, epsilon=0.01, fused=True, virtual_batch_size=2), BATCHES[:1])
    parts = [BATCHES[0][i : i + 2] for i in (0, 2)]
    means = [p.reshape(-1, 3).mean(0) for p in parts]
    variances = [p.reshape(-1, 3).var(0) for p in parts]
    expected = [(p - m) / np.sqrt(v + 0.01) for p, m, v in zip(parts, means, variances, strict=True)]
    np.testing.assert_allclose(got["out"], np.concatenate(expected), rtol=1e-3, atol=1e-4)
    np.testing.assert_allclose(got["moving_mean"], 0.5 * np.mean(means, 0), rtol=1e-4)
    np.testing.assert_allclose(got["moving_variance"], 0.5 + 0.5 * np.mean(variances, 0), rtol=1e-4)


def test_variables_follow_center_and_scale() -> None:
    x = tf.constant(BATCHES[0])
    for center in (True, False):
        for scale in (True, False):
            with tf1.variable_scope(f"{center}_{scale}"):
                batch_norm(x, Normalization(center=center, scale=scale), False, Format())
    made = [v.op.name for v in tf1.trainable_variables()]
    assert made == ["True_True/gamma", "True_True/beta", "True_False/beta", "False_True/gamma"]


def test_wrong_numbers_are_refused() -> None:
    with pytest.raises(UsageError, match="decay of a batch norm is 9"):
        Normalization(decay=9)
    with pytest.raises(UsageError, match="epsilon"):
        Normalization(epsilon=-1)
    with pytest.raises(UsageError, match="virtual_batch_size"):
        Normalization(renorm=True, virtual_batch_size=2)
