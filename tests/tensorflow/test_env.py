"""What importing the package does to the process."""

from __future__ import annotations

import importlib
import sys

import moxserve.tensorflow as mox
from moxserve.tensorflow.executor.env import setup, tf, tf1


def test_the_process_is_in_graph_mode_with_resource_variables_and_keras_2() -> None:
    assert not tf.executing_eagerly()
    assert tf1.resource_variables_enabled()
    assert tf.keras.layers.Dense.__module__.startswith("tf_keras")
    setup()  # again changes nothing
    assert not tf.executing_eagerly()


def test_a_verbosity_that_somebody_chose_stays() -> None:
    before = tf1.logging.get_verbosity()
    try:
        tf1.logging.set_verbosity(tf1.logging.ERROR)
        setup()
        assert tf1.logging.get_verbosity() == tf1.logging.ERROR
        tf1.logging.set_verbosity(tf1.logging.WARN)  # TensorFlow's default
        setup()
        assert tf1.logging.get_verbosity() == tf1.logging.INFO
    finally:
        tf1.logging.set_verbosity(before)


def test_legacy_layers_have_their_old_name_back() -> None:
    old = importlib.import_module("tf_keras.legacy_tf_layers.normalization")
    assert old is sys.modules["tf_keras.src.legacy_tf_layers.normalization"]
    assert old.__spec__ is not None
    assert old.__spec__.name == "tf_keras.src.legacy_tf_layers.normalization"


def test_public_names_are_there() -> None:
    assert [name for name in mox.__all__ if not hasattr(mox, name)] == []
    assert mox.file.exists(__file__)
    from moxserve.tensorflow.executor.hooks import FeedSessionRunHook

    assert FeedSessionRunHook is mox.FeedSessionRunHook
