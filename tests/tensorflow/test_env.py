"""What importing the package does to the process."""

from __future__ import annotations

import importlib
import os
import subprocess
import sys
from pathlib import Path

import pytest

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


KERAS_LATER = """
import sys
HOW
found = lambda: [name for name in ("keras", "tf_keras", "pandas", "sklearn") if name in sys.modules]
assert "tensorflow" in sys.modules and not found(), found()
import tensorflow as tf
print(tf.keras.layers.Dense.__module__)
from tensorflow.keras import layers
import tensorflow.keras.models
assert layers.Dense is tf.keras.layers.Dense and tf.optimizers.Adam is tf.keras.optimizers.Adam
assert isinstance(tf.losses.MeanSquaredError(), tf.keras.losses.Loss) and tensorflow.keras.models.Model
"""


@pytest.mark.slow
@pytest.mark.parametrize(
    ("how", "package"),
    [
        ("import moxserve.tensorflow", "tf_keras"),
        ("from moxserve.serving import backends; backends.load(sys.argv[1])", "keras"),
    ],
    ids=["training", "serving"],
)
def test_keras_is_imported_when_it_is_used(how: str, package: str, toy_base: Path) -> None:
    script = KERAS_LATER.replace("HOW", how)
    command = [sys.executable, "-c", script, str(toy_base / "1")]
    # Graph mode's choice of Keras, which this process has made, is none for a server.
    environment = {name: value for name, value in os.environ.items() if name != "TF_USE_LEGACY_KERAS"}
    done = subprocess.run(command, capture_output=True, text=True, timeout=240, check=False, env=environment)
    assert done.returncode == 0, done.stderr[-2000:]
    assert done.stdout.startswith(f"{package}.src.layers")
