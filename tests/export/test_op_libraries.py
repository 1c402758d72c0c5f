"""Custom operations: loaded for an export, carried by the version, loaded by a server that is allowed to."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from moxserve.errors import ExportError, UsageError
from moxserve.export.job import SavedModelJob

pytestmark = pytest.mark.timeout(900)

# y = 2 * x in the C interface of TensorFlow, which compiles in a second.
SOURCE = """
#include <stdint.h>
#include <string.h>
#include "tensorflow/c/kernels.h"
#include "tensorflow/c/ops.h"
#include "tensorflow/c/tf_tensor.h"

static void compute(void*, TF_OpKernelContext* context) {
  TF_Status* status = TF_NewStatus();
  TF_Tensor* x = nullptr;
  TF_GetInput(context, 0, &x, status);
  int64_t dims[8];
  int rank = TF_NumDims(x);
  for (int i = 0; i < rank; i++) dims[i] = TF_Dim(x, i);
  TF_Tensor* y = TF_AllocateOutput(context, 0, TF_FLOAT, dims, rank, TF_TensorByteSize(x), status);
  const float* from = static_cast<const float*>(TF_TensorData(x));
  float* to = static_cast<float*>(TF_TensorData(y));
  for (int64_t i = 0; i < TF_TensorElementCount(x); i++) to[i] = 2 * from[i];
  TF_DeleteTensor(x);
  TF_DeleteTensor(y);
  TF_DeleteStatus(status);
}

static void same_shape(TF_ShapeInferenceContext* context, TF_Status* status) {
  TF_ShapeHandle* shape = TF_NewShapeHandle();
  TF_ShapeInferenceContextGetInput(context, 0, shape, status);
  TF_ShapeInferenceContextSetOutput(context, 0, shape, status);
  TF_DeleteShapeHandle(shape);
}

__attribute__((constructor)) static void register_op(void) {
  TF_Status* status = TF_NewStatus();
  TF_OpDefinitionBuilder* op = TF_NewOpDefinitionBuilder("MoxserveTwice");
  TF_OpDefinitionBuilderAddInput(op, "x: float");
  TF_OpDefinitionBuilderAddOutput(op, "y: float");
  TF_OpDefinitionBuilderSetShapeInferenceFunction(op, &same_shape);
  TF_RegisterOpDefinition(op, status);
  TF_KernelBuilder* kernel = TF_NewKernelBuilder("MoxserveTwice", "CPU", nullptr, &compute, nullptr);
  TF_RegisterKernelBuilder("MoxserveTwice", kernel, status);
  TF_DeleteStatus(status);
}
"""


def _include() -> str:
    import tensorflow as tf

    return str(tf.sysconfig.get_include())


@pytest.fixture(scope="session")
def library(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A shared object with the operation MoxserveTwice."""
    compiler = shutil.which("g++") or shutil.which("c++")
    if compiler is None:
        pytest.skip("no C++ compiler to build an operation with")
    import tensorflow as tf

    folder = tmp_path_factory.mktemp("ops")
    (folder / "twice.cc").write_text(SOURCE)
    target = folder / "twice.so"
    command = [compiler, "-shared", "-fPIC", "-I", _include(), str(folder / "twice.cc"), "-o", str(target)]
    subprocess.run([*command, *tf.sysconfig.get_link_flags()], check=True, timeout=400)
    return target


TRAIN = """
import sys
import numpy as np
import moxserve.tensorflow as mox
from moxserve.tensorflow.executor.env import tf, tf1

library, folder, kinds = sys.argv[1], sys.argv[2], sys.argv[3].split(",")
ops = mox.load_op_library(library)

def input_fn(mode, **kwargs):
    rows = np.arange(40, dtype=np.float32).reshape(10, 4)
    return tf1.data.make_one_shot_iterator(tf.data.Dataset.from_tensor_slices(rows).repeat()).get_next()

def model_fn(inputs, mode, **kwargs):
    x = inputs[0]
    w = tf1.get_variable("w", [4], initializer=tf1.ones_initializer())
    y = ops.moxserve_twice(x * tf.stop_gradient(w))
    loss = tf.reduce_mean(w * w)
    return mox.ModelSpec(loss=loss, log_info={"loss": loss}, export_spec=mox.ExportSpec({"x": x}, {"y": y}))

result = mox.run(input_fn=input_fn, model_fn=model_fn, optimizer_fn=mox.get_optimizer_fn("sgd", learning_rate=0.0),
                 run_mode="TRAIN", batch_size=5, log_dir=folder, max_number_of_steps=2, export_model=kinds)
print("published", result.export.path)
"""


@pytest.fixture(scope="session")
def version(library: Path, tmp_path_factory: pytest.TempPathFactory, run_tensorflow_script: Any) -> Path:
    """A version whose model needs MoxserveTwice, of a training script that loaded it."""
    folder = tmp_path_factory.mktemp("trained")
    run = run_tensorflow_script(TRAIN, library, folder, "TF_SERVING", timeout=400)
    assert run.returncode == 0, run.stderr[-3000:]
    return folder / "1"


@pytest.mark.slow
def test_a_version_carries_its_library(version: Path, library: Path) -> None:
    from moxserve.export.manifest import check_files, read_manifest

    manifest = read_manifest(str(version))
    assert manifest is not None
    assert manifest.op_libraries == ("assets.extra/op_libraries/twice.so",)
    assert (version / manifest.op_libraries[0]).read_bytes() == library.read_bytes()
    assert check_files(str(version)) == []


SERVE = """
import sys
import numpy as np
from moxserve.errors import ServingError
from moxserve.serving.backends import load
from moxserve.serving.backends.base import LoadOptions

path, allowed, own = sys.argv[1], sys.argv[2] == "allowed", sys.argv[3:]
try:
    backend = load(path, LoadOptions(load_op_libraries=allowed, op_libraries=tuple(own)))
except ServingError as error:
    print(error.status, error.message)
else:
    print("answer", backend.run("serving_default", {"x": np.ones((1, 4), np.float32)})["y"].tolist())
"""


@pytest.fixture
def serve(run_tensorflow_script: Any) -> Callable[..., str]:
    """`serve(version, "allowed" or "not", *own)`: what a server with these options answers, in a process of its own."""

    def run(path: Path, *args: str) -> str:
        done = run_tensorflow_script(SERVE, path, *args, timeout=400)
        assert done.returncode == 0, done.stderr
        return str(done.stdout)

    return run


@pytest.mark.slow
def test_a_server_loads_it_only_when_it_may(version: Path, library: Path, serve: Any, tmp_path: Path) -> None:
    answer = "answer [[2.0, 2.0, 2.0, 2.0]]\n"
    assert serve(version, "allowed") == answer
    assert serve(version, "not", str(library)) == answer
    refused = serve(version, "not")
    assert refused.startswith("FAILED_PRECONDITION")
    assert "MoxserveTwice" in refused
    assert "--load_op_libraries lets it" in refused
    shutil.copytree(version, tmp_path / "1")
    changed = tmp_path / "1" / "assets.extra" / "op_libraries" / "twice.so"
    changed.write_bytes(changed.read_bytes()[:-1] + b"!")
    assert "DATA_LOSS" in (said := serve(tmp_path / "1", "allowed"))
    assert "another content than the manifest says" in said
    assert serve(version, "not", str(tmp_path / "nothing.so")).startswith("FAILED_PRECONDITION there is no op library")


EXPORT = """
import sys
from moxserve.errors import MoxserveError
from moxserve.export.exporter import export_version
from moxserve.export.job import SavedModelJob

path, base, libraries = sys.argv[1], sys.argv[2], sys.argv[3:]
try:
    print("published", export_version(SavedModelJob(path, base_dir=base, op_libraries=libraries)).path)
except MoxserveError as error:
    print(type(error).__name__, error.message, "| hint:", error.hint)
"""


@pytest.mark.slow
def test_a_version_is_exported_again_with_the_library_named(
    version: Path, library: Path, serve: Any, tmp_path: Path, run_tensorflow_script: Any
) -> None:
    def export(*libraries: str) -> str:
        done = run_tensorflow_script(EXPORT, version, tmp_path / "base", *libraries, timeout=400)
        assert done.returncode == 0, done.stderr
        return str(done.stdout)

    refused = export()
    assert "needs operations that TensorFlow does not have: MoxserveTwice" in refused
    assert f"--op-library {version}/assets.extra/op_libraries/twice.so" in refused
    # The same library under another name is not carried twice.
    copy = tmp_path / "other.so"
    shutil.copy(library, copy)
    assert export(str(copy)).startswith("published")
    again = tmp_path / "base" / "1"
    assert os.listdir(again / "assets.extra" / "op_libraries") == ["twice.so"]
    assert serve(again, "allowed").startswith("answer")


@pytest.mark.slow
def test_variants_are_made_with_the_library(library: Path, tmp_path: Path, run_tensorflow_script: Any) -> None:
    from moxserve.export.manifest import read_manifest

    run = run_tensorflow_script(TRAIN, library, tmp_path, "FROZEN,ONNX", timeout=400)
    assert run.returncode == 0, run.stderr[-3000:]
    manifest = read_manifest(str(tmp_path / "1"))
    assert manifest is not None
    assert [v.name for v in manifest.variants] == ["saved_model", "frozen"]


def test_what_is_no_library(tmp_path: Path) -> None:
    import moxserve.tensorflow as mox

    with pytest.raises(UsageError, match="there is no op library"):
        mox.load_op_library(tmp_path / "x.so")
    (tmp_path / "x.so").write_text("nonsense")
    with pytest.raises(UsageError, match=r"TensorFlow 2\.\d+.* cannot load the op library .*x\.so: ") as raised:
        mox.load_op_library(tmp_path / "x.so")
    assert "tf.sysconfig.get_compile_flags" in str(raised.value.hint)


def test_an_export_with_a_library_that_is_not_there(tmp_path: Path) -> None:
    from moxserve.export.sources import stage_model

    with pytest.raises((UsageError, ExportError), match="there is no op library"):
        stage_model(SavedModelJob("m", base_dir="b", op_libraries=[str(tmp_path / "x.so")]), str(tmp_path))


def test_two_libraries_of_one_name_are_both_carried(tmp_path: Path) -> None:
    from moxserve.export.op_libraries import copy_op_libraries

    paths = []
    for folder, content in (("a", b"1"), ("b", b"2"), ("c", b"1")):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "ops.so").write_bytes(content)
        paths.append(str(tmp_path / folder / "ops.so"))
    (tmp_path / "version").mkdir()
    names = copy_op_libraries(paths, str(tmp_path / "version"))
    assert names == ("assets.extra/op_libraries/ops.so", "assets.extra/op_libraries/ops_1.so")
    assert [(tmp_path / "version" / name).read_bytes() for name in names] == [b"1", b"2"]
    assert np.all([os.path.isabs(p) for p in paths])
