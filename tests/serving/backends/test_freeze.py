"""A SavedModel whose variables become constants answers as before; one that changes its variables stays as it is."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from moxserve.serving.backends import LoadOptions
from moxserve.serving.backends.savedmodel import SavedModelBackend

FREEZE = LoadOptions(freeze=True)
X = np.float32([[1], [2], [5]])


@pytest.mark.parametrize(
    "name", ["saved_model_half_plus_two_cpu", "saved_model_half_plus_two_tf2_cpu", "saved_model_half_plus_three"]
)
def test_what_can_be_frozen(name: str, testdata: Path) -> None:
    path = str(testdata / name / "00000123")
    plain, frozen = SavedModelBackend(path, LoadOptions()), SavedModelBackend(path, FREEZE)
    assert (plain.frozen, frozen.frozen) == (False, True)
    assert frozen.signature_defs == plain.signature_defs
    compared = 0
    for key, signature in plain.signatures.items():
        if set(signature.inputs) != {"x"}:
            continue  # one that takes tf.Examples
        inputs = dict.fromkeys(signature.inputs, X)
        want, got = plain.run(key, inputs), frozen.run(key, inputs)
        for alias, value in want.items():
            np.testing.assert_allclose(got[alias], value, rtol=1e-6)
            compared += 1
    assert compared


def test_examples_still_parse(testdata: Path, save_linear: Callable[..., Path]) -> None:
    from moxserve.protocol.examples import make_example

    path = str(testdata / "saved_model_half_plus_two_cpu" / "00000123")
    example = np.array([make_example({"x": np.float32(2)}).SerializeToString()], object)
    for options in (LoadOptions(), FREEZE):
        backend = SavedModelBackend(path, options)
        assert backend.run("regress_x_to_y", {"inputs": example})["outputs"].item() == 3.0


def test_a_model_that_writes_to_a_variable(testdata: Path) -> None:
    backend = SavedModelBackend(str(testdata / "saved_model_counter" / "00000123"), FREEZE)
    assert not backend.frozen
    for count in (1.0, 2.0):
        assert backend.run("incr_counter", {})["output"] == count
    assert backend.run("get_counter", {})["output"] == 2.0


@pytest.mark.slow
def test_other_state(tmp_path: Path, eager: None) -> None:
    import tensorflow as tf

    class Model(tf.Module):
        def __init__(self) -> None:
            super().__init__()
            self.calls = tf.Variable(0)
            self.scale = tf.Variable(2.0)
            keys = tf.constant(["a"])
            self.table = tf.lookup.StaticHashTable(tf.lookup.KeyValueTensorInitializer(keys, tf.constant([7])), -1)

        @tf.function(input_signature=[tf.TensorSpec([None], tf.float32, name="x")])
        def count(self, x: Any) -> Any:
            return {"y": x * self.scale, "calls": self.calls.assign_add(1)}

        @tf.function(input_signature=[tf.TensorSpec([None], tf.string, name="x")])
        def look(self, x: Any) -> Any:
            return {"y": self.table.lookup(x)}

        @tf.function(input_signature=[tf.TensorSpec([None], tf.float32, name="x")])
        def branch(self, x: Any) -> Any:
            return {"y": tf.cond(tf.reduce_sum(x) > 0, lambda: x * self.scale, lambda: x - self.scale)}

    model = Model()
    for number, (signature, inputs, frozen) in enumerate(
        (
            (model.count, np.float32([1]), False),
            (model.look, np.array([b"a", b"b"], object), False),
            (model.branch, np.float32([3]), True),
            (model.branch, np.float32([-3]), True),
        )
    ):
        path = str(tmp_path / str(number))
        tf.saved_model.save(model, path, signatures={"serving_default": signature})
        plain, other = SavedModelBackend(path, LoadOptions()), SavedModelBackend(path, FREEZE)
        assert other.frozen is frozen
        for _ in range(2):
            want, got = (b.run("serving_default", {"x": inputs}) for b in (plain, other))
            assert {k: v.tolist() for k, v in got.items()} == {k: v.tolist() for k, v in want.items()}


KERAS = """
import sys
import numpy as np
import {package} as keras

layers = keras.layers
model = keras.Sequential([
    layers.Input((8, 8, 3)), layers.Conv2D(4, 3), layers.BatchNormalization(), layers.ReLU(), layers.DepthwiseConv2D(3),
    layers.GlobalAveragePooling2D(), layers.Dropout(0.5), layers.Dense(2),
])
for weight in model.weights:
    weight.assign(np.random.default_rng(1).random(weight.shape).astype("float32") + 0.1)
model.export(sys.argv[1])
"""


@pytest.mark.slow
@pytest.mark.parametrize("package", ["keras", "tf_keras"])
def test_keras(package: str, tmp_path: Path, run_tensorflow_script: Any) -> None:
    path = str(tmp_path / "1")
    # In a process of its own: Keras exports eagerly, and graph mode, once chosen by another test, stays.
    run_tensorflow_script(KERAS.format(package=package), path).check_returncode()
    plain, frozen = SavedModelBackend(path, LoadOptions()), SavedModelBackend(path, FREEZE)
    assert frozen.frozen
    (alias,) = plain.signatures["serving_default"].inputs
    for rows in (1, 5):
        x = np.random.default_rng(rows).random((rows, 8, 8, 3), np.float32)
        want, got = (b.run("serving_default", {alias: x}) for b in (plain, frozen))
        np.testing.assert_allclose(*map(np.concatenate, (list(got.values()), list(want.values()))), rtol=1e-5)
