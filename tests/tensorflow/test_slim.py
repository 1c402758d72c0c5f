"""The few functions of slim."""

from __future__ import annotations

import numpy as np

from moxserve.tensorflow.contrib import slim
from moxserve.tensorflow.executor.env import tf, tf1


def test_layers_have_slims_names_and_defaults() -> None:
    with tf1.Graph().as_default(), tf1.Session() as session:
        x = np.random.default_rng(0).normal(size=(4, 2, 3)).astype(np.float32)
        flat = slim.flatten(tf.constant(x))
        first = slim.fully_connected(flat, 5)
        second = slim.fully_connected(first, 2, activation_fn=None, scope="logits")
        slim.fully_connected(first, 2)
        names = [v.op.name for v in tf1.trainable_variables()]
        assert names == [
            f"{scope}/{part}"
            for scope in ("fully_connected", "logits", "fully_connected_1")
            for part in ("weights", "biases")
        ]
        session.run(tf1.global_variables_initializer())
        values = dict(zip(names, session.run(tf1.trainable_variables()), strict=True))
        hidden = np.maximum(x.reshape(4, 6) @ values["fully_connected/weights"], 0)
        np.testing.assert_allclose(session.run(first), hidden, rtol=1e-5, atol=1e-6)
        np.testing.assert_allclose(session.run(second), hidden @ values["logits/weights"], rtol=1e-5, atol=1e-6)


def test_flatten_keeps_an_unknown_batch() -> None:
    with tf1.Graph().as_default():
        assert slim.flatten(tf1.placeholder(tf.float32, [None, 2, 3])).shape.as_list() == [None, 6]


def test_one_hot_encoding() -> None:
    with tf1.Graph().as_default(), tf1.Session() as session:
        encoded = session.run(slim.one_hot_encoding(tf.constant([1, 3], tf.int32), 3))
    np.testing.assert_array_equal(encoded, [[0, 1, 0], [0, 0, 0]])
