"""Keras files of both generations as sources."""

from __future__ import annotations

import os
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from moxserve.errors import DataError, ExportError, UsageError
from moxserve.export.job import KerasJob

MAKE = """
import os, sys
legacy, folder = sys.argv[1] == "2", sys.argv[2]
os.environ["TF_USE_LEGACY_KERAS"] = "1" if legacy else "0"
import numpy as np
if legacy:
    import tf_keras as keras
else:
    import keras
keras.utils.set_random_seed(3)
layers = keras.layers
image = keras.Input([6, 6, 1], name="image")
extra = keras.Input([2], name="extra")
x = layers.Dropout(0.5)(layers.BatchNormalization()(layers.Conv2D(4, 3)(image)))
x = layers.Concatenate()([layers.GlobalAveragePooling2D()(x), extra])
model = keras.Model([image, extra], [layers.Dense(3, activation="softmax", name="probabilities")(x),
                                     layers.Dense(1, name="age")(x)])
rng = np.random.default_rng(0)
images, extras = rng.normal(size=(70, 6, 6, 1)).astype("float32"), rng.normal(size=(70, 2)).astype("float32")
y, age = model([images, extras], training=False)
np.savez(os.path.join(folder, f"rows{sys.argv[1]}.npz"), image=images, extra=extras, labels=np.argmax(y, 1))
np.savez(os.path.join(folder, f"answers{sys.argv[1]}.npz"), probabilities=np.asarray(y), age=np.asarray(age))
model.save(os.path.join(folder, f"two{sys.argv[1]}.keras"))
model.save(os.path.join(folder, f"two{sys.argv[1]}.h5"))
model.save_weights(os.path.join(folder, f"two{sys.argv[1]}.weights.h5"))
class Own(layers.Layer):
    def call(self, x):
        return x * 2
own = keras.Sequential([keras.Input([2]), Own()])
own.save(os.path.join(folder, f"own{sys.argv[1]}.keras"))
"""


@pytest.fixture(scope="session")
def keras_files(tmp_path_factory: pytest.TempPathFactory, run_tensorflow_script: Any) -> Path:
    """Models of Keras 2 and 3 with two inputs and two outputs, rows for them, and what they answer."""
    folder = tmp_path_factory.mktemp("keras")
    for generation in "23":
        run_tensorflow_script(MAKE, generation, folder).check_returncode()
    return folder


@pytest.fixture
def stage(tmp_path: Path) -> Callable[..., tuple[Any, str]]:
    """`stage(path, **fields)`: the staged model and its directory."""

    def run(path: Path, **fields: Any) -> tuple[Any, str]:
        from moxserve.export.sources import stage_model

        directory = tmp_path / "staged"
        directory.mkdir()
        return stage_model(KerasJob(str(path), base_dir=str(tmp_path / "base"), **fields), str(directory)), str(
            directory
        )

    return run


@pytest.mark.slow
@pytest.mark.parametrize("name", ["two3.keras", "two2.h5", "two2.keras", "two3.h5"])
def test_a_keras_file_answers_as_keras_does(name: str, keras_files: Path, stage: Any, load_model: Any) -> None:
    generation = name[3]
    model, directory = stage(keras_files / name, samples_file=str(keras_files / f"rows{generation}.npz"))
    signature = model.signatures["serving_default"]
    assert {a: s.shape for a, s in signature.inputs.items()} == {"image": (None, 6, 6, 1), "extra": (None, 2)}
    assert sorted(signature.outputs) == ["age", "probabilities"]
    assert model.verification.references == ("Keras model",)
    assert model.verification.rows == 70
    assert (model.source.kind, model.scores) == ("keras", "probabilities")
    assert model.notes[0].startswith(f"loaded by Keras {generation}.")
    answers = np.load(keras_files / f"answers{generation}.npz")
    loaded = load_model(directory)("serving_default", image=model.rows["image"], extra=model.rows["extra"])
    for alias in ("probabilities", "age"):
        np.testing.assert_allclose(loaded[alias], answers[alias], atol=1e-5)
        np.testing.assert_allclose(model.expected[alias], answers[alias], atol=1e-5)
    np.testing.assert_array_equal(model.labels, answers["probabilities"].argmax(1))


@pytest.mark.slow
def test_without_samples_zeros_are_compared(keras_files: Path, stage: Any) -> None:
    model, _ = stage(keras_files / "two3.keras")
    assert model.verification.mode == "zeros"
    assert len(model.verification.outputs) == 2
    assert "no samples" in model.notes[1]


@pytest.mark.slow
def test_what_keras_cannot_load_is_told(keras_files: Path, stage: Any) -> None:
    with pytest.raises(ExportError, match=r"own3.keras: Keras 3\.\S+ cannot load it: .*Own") as raised:
        stage(keras_files / "own3.keras")
    assert "tf.saved_model.save(model, DIR)" in str(raised.value.hint)


@pytest.mark.slow
def test_rows_that_do_not_fit_are_told(keras_files: Path, stage: Any, tmp_path: Path) -> None:
    np.savez(tmp_path / "rows.npz", image=np.zeros((2, 5, 5, 1), np.float32), extra=np.zeros((2, 2), np.float32))
    with pytest.raises(DataError, match=r"rows.npz\[0\]"):
        stage(keras_files / "two3.keras", samples_file=str(tmp_path / "rows.npz"))


def test_what_is_no_keras_file(stage: Any, tmp_path: Path) -> None:
    import h5py

    (tmp_path / "x.keras").write_bytes(b"nothing")
    with pytest.raises(ExportError, match=r"neither a \.keras archive nor an HDF5 file"):
        stage(tmp_path / "x.keras")
    os.rmdir(tmp_path / "staged")
    with h5py.File(tmp_path / "w.h5", "w") as f:
        f["weights"] = np.zeros(3)
    with pytest.raises(ExportError, match="holds weights only"):
        stage(tmp_path / "w.h5")
    os.rmdir(tmp_path / "staged")
    with zipfile.ZipFile(tmp_path / "z.keras", "w") as archive:
        archive.writestr("a", "b")
    with pytest.raises(ExportError, match=r"no config\.json"):
        stage(tmp_path / "z.keras")
    os.rmdir(tmp_path / "staged")
    with pytest.raises(ExportError, match="there is no file"):
        stage(tmp_path / "y.keras")
    with pytest.raises(UsageError, match="path of the model is empty"):
        KerasJob("", base_dir="b")
