"""SavedModels as other programs write them, run in this process."""

from __future__ import annotations

import itertools
import shutil
import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from moxserve.errors import DataLoss, FailedPrecondition, InvalidArgument, NotFound, Unimplemented
from moxserve.serving import backends
from moxserve.serving.backends import Backend, LoadOptions

X = np.float32([[1], [2]])


def test_tf1(testdata: Path) -> None:
    backend = backends.load(testdata / "saved_model_half_plus_two_cpu" / "00000123")
    assert isinstance(backend, Backend)
    assert backend.platform == "tensorflow"
    assert str(backend.signatures["serving_default"]) == "serving_default(x: float32[?, 1]) -> (y: float32[?, 1])"
    assert backend.signatures["classify_x_to_y"].method == "tensorflow/serving/classify"
    (y,) = backend.run("serving_default", {"x": X}).values()
    assert (y.dtype, y.tolist()) == (np.float32, [[2.5], [3.0]])
    backend.close()


def test_tf2_with_an_input_that_has_a_default(testdata: Path) -> None:
    backend = backends.load(testdata / "saved_model_half_plus_two_tf2_cpu" / "00000123")
    assert "__saved_model_init_op" not in backend.signatures
    assert "__saved_model_init_op" in backend.signature_defs.signature_def
    assert backend.run("serving_default", {"x": np.float32([5])})["y"].tolist() == [4.5]
    assert backend.run("serving_default", {})["y"].tolist() == [2.0]
    with pytest.raises(InvalidArgument, match="Inputs contains invalid name"):
        backend.run("serving_default", {"z": X})


def test_state_without_inputs(testdata: Path) -> None:
    backend = backends.load(testdata / "saved_model_counter" / "00000123")
    assert backend.run("reset_counter", {})["output"] == 0
    assert backend.run("incr_counter", {})["output"] == 1
    backend.run("incr_counter_by", {"delta": np.float32(6)})
    assert backend.run("get_counter", {})["output"] == 7
    other = backends.load(testdata / "saved_model_counter" / "00000123")
    assert other.run("get_counter", {})["output"] == 0


KERAS = """
import sys
import numpy as np
import {package} as keras

model = keras.Sequential([keras.layers.Input((3,), name="features"), keras.layers.Dense(2, name="scores")])
model.export(sys.argv[1] + "/1")
np.save(sys.argv[1] + "/y.npy", np.asarray(model(np.float32([[1, 2, 3], [4, 5, 6]]))))
"""


@pytest.mark.slow
@pytest.mark.parametrize("package", ["keras", "tf_keras"])
def test_keras(tmp_path: Path, package: str, run_tensorflow_script: Any) -> None:
    # In a process of its own: Keras exports eagerly, and graph mode, once chosen by another test, stays.
    run_tensorflow_script(KERAS.format(package=package), tmp_path).check_returncode()
    backend = backends.load(tmp_path / "1")
    (name,) = backend.signatures["serving_default"].inputs
    x = np.float32([[1, 2, 3], [4, 5, 6]])
    (y,) = backend.run("serving_default", {name: x}).values()
    np.testing.assert_allclose(y, np.load(tmp_path / "y.npy"), rtol=1e-5)


def test_a_tf2_module_with_a_table_and_an_asset(tmp_path: Path) -> None:
    import tensorflow as tf

    labels = tmp_path / "labels.txt"
    labels.write_text("zero\none\n")

    class Namer(tf.Module):
        def __init__(self) -> None:
            super().__init__()
            self.table = tf.lookup.StaticHashTable(
                tf.lookup.TextFileInitializer(
                    str(labels), tf.int64, tf.lookup.TextFileIndex.LINE_NUMBER, tf.string,
                    tf.lookup.TextFileIndex.WHOLE_LINE,
                ), "?",
            )  # fmt: skip

        @tf.function(input_signature=[tf.TensorSpec([None], tf.int64, name="index")])
        def name_of(self, index: Any) -> Any:
            return {"name": self.table.lookup(index)}

    module = Namer()
    tf.saved_model.save(module, str(tmp_path / "1"), signatures={"serving_default": module.name_of})
    labels.unlink()
    backend = backends.load(tmp_path / "1")
    assert backend.run("serving_default", {"index": np.int64([1, 0, 9])})["name"].tolist() == [b"one", b"zero", b"?"]


def test_string_scalars_keep_their_zero_bytes(echo_base: Path) -> None:
    backend = backends.load(echo_base / "1")
    scalar = np.empty((), object)
    scalar[()] = b"a\x00"
    y = backend.run("string", {"x": scalar})["y"]
    assert (y.shape, y.dtype, y.item()) == ((), object, b"a\x00")
    assert backend.run("string", {"x": np.array(["text", "b"])})["y"].tolist() == [b"text", b"b"]


def test_what_does_not_load(testdata: Path, tmp_path: Path) -> None:
    half = testdata / "saved_model_half_plus_two_cpu" / "00000123"
    with pytest.raises(NotFound, match=r"does not appear to contain a SavedModel bundle[^\n]*\nSpecified file path"):
        backends.load(tmp_path)
    with pytest.raises(Unimplemented, match="Session Bundle is deprecated and removed"):
        backends.load(testdata / "bad_half_plus_two" / "00000123")
    with pytest.raises(NotFound, match=r"Could not find meta graph def matching supplied tags: \{ serve gpu \}"):
        backends.load(half, LoadOptions(tags=("serve", "gpu")))
    broken = tmp_path / "1"
    shutil.copytree(half, broken)
    (broken / "saved_model.pb").write_bytes(b"\xff\xff")
    with pytest.raises(DataLoss, match=r"saved_model\.pb cannot be read"):
        backends.load(broken)


@pytest.mark.slow
def test_a_rank_that_would_end_the_process(tmp_path: Path, run_tensorflow_script: Any) -> None:
    """Convolutions of TensorFlow (oneDNN) abort when the input has not their rank: any client could stop the server."""
    import tensorflow as tf

    tf1 = tf.compat.v1
    with tf.Graph().as_default(), tf1.Session() as session:
        images = tf1.placeholder("float32", [None, 8, 8, 1], "images")
        y = tf.reduce_mean(tf.nn.conv2d(images, tf.ones([3, 3, 1, 2]), 1, "VALID"), [1, 2])
        tf1.saved_model.simple_save(session, str(tmp_path / "1"), {"images": images}, {"y": y})
    code = """
import sys, numpy as np
from moxserve.errors import InvalidArgument
from moxserve.serving import backends
backend = backends.load(sys.argv[1])
print(backend.run("serving_default", {"images": np.ones((2, 8, 8, 1), "float32")})["y"].tolist())
for shape in ((), (3,), (8, 8), (8, 8, 1), (1, 8, 8, 1, 1)):
    try:
        backend.run("serving_default", {"images": np.ones(shape, "float32")})
    except InvalidArgument as error:
        print(error.message)
"""
    done = run_tensorflow_script(code, tmp_path / "1")
    assert done.returncode == 0, done.stderr[-2000:]
    first, *refused = done.stdout.splitlines()
    assert first == "[[9.0, 9.0], [9.0, 9.0]]"
    assert refused[3] == "input 'images' has shape [8,8,1]; expected images: float32[?, 8, 8, 1]"
    assert len(refused) == 5


def test_unknown_names(echo_base: Path) -> None:
    backend = backends.load(echo_base / "1")
    with pytest.raises(FailedPrecondition, match='Serving signature key "zz" not found'):
        backend.run("zz", {})
    with pytest.raises(InvalidArgument, match="output tensor alias not found in signature: zz"):
        backend.run("float32", {"x": X}, ["zz"])


@pytest.mark.slow
def test_many_sets_of_outputs_do_not_pile_up(tmp_path: Path) -> None:
    import tensorflow as tf

    from moxserve.serving.backends import savedmodel

    tf1 = tf.compat.v1
    with tf.Graph().as_default(), tf1.Session() as session:
        x = tf1.placeholder("float32", [], "x")
        outputs = {f"o{i}": x + float(i) for i in range(10)}
        tf1.saved_model.simple_save(session, str(tmp_path / "1"), {"x": x}, outputs)
    backend = savedmodel.SavedModelBackend(str(tmp_path / "1"), LoadOptions())
    for size in (1, 2, 3, 4):
        for names in itertools.combinations(outputs, size):
            found = backend.run("serving_default", {"x": np.float32(1)}, names)
            assert {k: float(v) for k, v in found.items()} == {k: 1.0 + int(k[1:]) for k in names}
    assert len(backend._programs) <= savedmodel._MAX_PROGRAMS


def test_runs_from_many_threads(testdata: Path) -> None:
    backend = backends.load(testdata / "saved_model_half_plus_two_cpu" / "00000123")
    wrong: list[Any] = []

    def run(i: int) -> None:
        for _ in range(200):
            if backend.run("serving_default", {"x": np.float32([i])})["y"].item() != i / 2 + 2:
                wrong.append(i)

    threads = [threading.Thread(target=run, args=(i,)) for i in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []


def test_threads_and_memory_fraction_reach_the_session(testdata: Path) -> None:
    path = testdata / "saved_model_half_plus_two_cpu" / "00000123"
    backend: Any = backends.load(path, LoadOptions(intra_op_threads=1, inter_op_threads=2, gpu_memory_fraction=0.5))
    config = backend._session._config
    assert (config.intra_op_parallelism_threads, config.inter_op_parallelism_threads) == (1, 2)
    assert config.gpu_options.per_process_gpu_memory_fraction == 0.5
