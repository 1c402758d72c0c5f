"""Small models with real checkpoints, and jobs that export them."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from moxserve.export.job import ExportJob
from moxserve.types import TensorSpec, dtype_by_name


@pytest.fixture(scope="session")
def spec() -> Callable[..., TensorSpec]:
    """`spec("images", "uint8", None, 8, 8, 1)`."""

    def make(name: str, dtype: str, *shape: int | None) -> TensorSpec:
        return TensorSpec(name, dtype_by_name(dtype), shape)

    return make


@pytest.fixture(scope="session")
def save_checkpoint() -> Callable[..., str]:
    """Build a model_fn in mode TRAIN, give its variables values, and save them."""

    def save(
        folder: Path,
        model_fn: Any,
        inputs: Sequence[TensorSpec],
        *,
        step: int = 7,
        values: dict[str, Any] | None = None,
    ) -> str:
        from moxserve.tensorflow.executor.env import tf, tf1

        folder.mkdir(parents=True, exist_ok=True)
        with tf.Graph().as_default(), tf1.Session() as session:
            tf1.set_random_seed(1)
            global_step = tf1.train.get_or_create_global_step()
            placeholders = [tf1.placeholder(tf.dtypes.as_dtype(s.dtype.enum), s.shape) for s in inputs]
            model_fn(placeholders, "TRAIN")
            session.run(tf1.global_variables_initializer())
            session.run(global_step.assign(step))
            for variable in tf1.global_variables():
                if variable.op.name in (values or {}):
                    variable.load(np.asarray(values[variable.op.name], variable.dtype.as_numpy_dtype), session)
            return tf1.train.Saver().save(session, str(folder / "model.ckpt"), step, write_meta_graph=False)

    return save


@pytest.fixture(scope="session")
def half_plus_two() -> Callable[..., Any]:
    """y = a * x + b; the checkpoints of the tests hold a = 0.5 and b = 2."""

    def model_fn(inputs: Sequence[Any], mode: str) -> Any:
        from moxserve.tensorflow.executor.env import tf1
        from moxserve.tensorflow.executor.spec import ExportSpec, ModelSpec

        (x,) = inputs
        a = tf1.get_variable("a", [], initializer=tf1.zeros_initializer())
        b = tf1.get_variable("b", [], initializer=tf1.zeros_initializer())
        return ModelSpec(export_spec=ExportSpec({"x": x}, {"y": a * x + b}))

    return model_fn


@pytest.fixture
def half_job(
    tmp_path: Path, half_plus_two: Any, save_checkpoint: Callable[..., str], spec: Callable[..., TensorSpec]
) -> ExportJob:
    """Export half_plus_two to `tmp_path/half`, with 40 real rows."""
    inputs = [spec("x", "float32", None)]
    checkpoint = save_checkpoint(tmp_path / "run", half_plus_two, inputs, values={"a": 0.5, "b": 2.0})
    rows = np.linspace(-10, 10, 40, dtype=np.float32)
    return ExportJob(
        half_plus_two, inputs, checkpoint, base_dir=str(tmp_path / "half"), samples=[rows], model_name="half"
    )


def conv_model_fn(inputs: Sequence[Any], mode: str) -> Any:
    """Batch-normalised convolution, global pooling and 3 classes; uint8 images and labels in."""
    from moxserve.tensorflow.executor.env import tf, tf1
    from moxserve.tensorflow.executor.spec import ExportSpec, ModelSpec

    images, labels = inputs
    x = tf.cast(images, tf.float32) / 255.0
    with tf1.variable_scope("conv"):
        x = tf.nn.conv2d(x, tf1.get_variable("weights", [3, 3, 1, 4]), 1, "SAME")
        mean = tf1.get_variable("moving_mean", [4], initializer=tf1.zeros_initializer(), trainable=False)
        variance = tf1.get_variable("moving_variance", [4], initializer=tf1.ones_initializer(), trainable=False)
        x = tf.nn.relu((x - mean) * tf.math.rsqrt(variance + 1e-3))
    logits = tf.matmul(tf.reduce_mean(x, [1, 2]), tf1.get_variable("dense", [4, 3]))
    loss = tf1.losses.sparse_softmax_cross_entropy(labels, logits)
    tf1.summary.scalar("loss", loss)
    outputs = {"logits": logits, "probabilities": tf.nn.softmax(logits), "classes": tf.argmax(logits, 1)}
    export_spec = ExportSpec({"images": images}, outputs, scores="probabilities")
    return ModelSpec(loss=loss, log_info={"loss": loss}, export_spec=export_spec)


def conv_reference(images: np.ndarray, variables: dict[str, np.ndarray]) -> np.ndarray:
    """The logits of `conv_model_fn`, in NumPy and float64."""
    x = np.pad(images.astype(np.float64) / 255.0, [(0, 0), (1, 1), (1, 1), (0, 0)])
    weights = variables["conv/weights"].astype(np.float64)
    height, width = images.shape[1:3]
    y = sum(
        np.einsum("nhwc,cd->nhwd", x[:, i : i + height, j : j + width], weights[i, j])
        for i in range(3)
        for j in range(3)
    )
    y = (y - variables["conv/moving_mean"]) / np.sqrt(variables["conv/moving_variance"] + 1e-3)
    return np.maximum(y, 0).mean((1, 2)) @ variables["dense"].astype(np.float64)


@dataclasses.dataclass
class ConvCase:
    """The conv model, what its checkpoint holds, and its outputs by NumPy."""

    job: ExportJob
    images: np.ndarray
    logits: np.ndarray


@pytest.fixture
def conv_case(tmp_path: Path, save_checkpoint: Callable[..., str], spec: Callable[..., TensorSpec]) -> ConvCase:
    """Export the conv model to `tmp_path/conv`, with 70 real rows and labels."""
    from moxserve.tensorflow.executor.env import tf

    random = np.random.default_rng(0)
    inputs = [spec("image", "uint8", None, 8, 8, 1), spec("label", "int64", None)]
    statistics = {"conv/moving_mean": [0.1, -0.1, 0.0, 0.2], "conv/moving_variance": [0.5, 1.0, 2.0, 0.3]}
    checkpoint = save_checkpoint(tmp_path / "run", conv_model_fn, inputs, values=statistics)
    reader = tf.train.load_checkpoint(checkpoint)
    variables = {name: reader.get_tensor(name) for name in reader.get_variable_to_shape_map()}
    images = random.integers(0, 256, (70, 8, 8, 1), dtype=np.uint8)
    job = ExportJob(
        conv_model_fn,
        inputs,
        checkpoint,
        base_dir=str(tmp_path / "conv"),
        samples=[images, random.integers(0, 3, 70)],
        model_name="conv",
        labels=["cat", "dög", "eel"],
    )
    return ConvCase(job, images, conv_reference(images, variables))


class LoadedModel:
    """A SavedModel in a session of its own, called by signature."""

    def __init__(self, directory: str) -> None:
        from moxserve.tensorflow.executor.env import tf, tf1

        self.graph = tf.Graph()
        self.session = tf1.Session(graph=self.graph)
        with self.graph.as_default():
            self.meta = tf1.saved_model.load(self.session, ["serve"], directory)
        self.signatures = self.meta.signature_def

    def __call__(self, signature: str, **inputs: Any) -> dict[str, np.ndarray]:
        definition = self.signatures[signature]
        feed = {definition.inputs[alias].name: value for alias, value in inputs.items()}
        return self.session.run({alias: info.name for alias, info in definition.outputs.items()}, feed)


@pytest.fixture
def load_model() -> Any:
    """Load a version directory with tf.compat.v1.saved_model.load."""
    loaded: list[LoadedModel] = []

    def load(directory: str) -> LoadedModel:
        loaded.append(LoadedModel(directory))
        return loaded[-1]

    yield load
    for model in loaded:
        model.session.close()


@pytest.fixture
def export() -> Callable[..., Any]:
    """`export(job, version="model")`: export_tf_serving with fields of the job replaced."""

    def run(job: ExportJob, **changes: Any) -> Any:
        from moxserve.export.exporter import export_tf_serving

        return export_tf_serving(dataclasses.replace(job, **changes))

    return run
