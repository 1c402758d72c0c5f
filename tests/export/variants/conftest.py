"""Frozen graphs with real rows, as converters get them; one of them is trained on the digits."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from moxserve.export.targets import Calibration, Target
from moxserve.export.variants.work import Rows, Work
from moxserve.types import Signature, TensorSpec, dtype_by_enum

# One TensorFlow in the process, and no search for a GPU that nobody asked for.
os.environ.setdefault("CUDA_VISIBLE_DEVICES", "")


@dataclasses.dataclass(frozen=True)
class Frozen:
    """A frozen graph in a folder, as `Work.model` names it."""

    folder: str
    signature: Signature
    graph_def: Any

    def run(self, inputs: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        """What TensorFlow answers, by alias."""
        from moxserve.tensorflow.executor.env import tf, tf1

        with tf.Graph().as_default(), tf1.Session() as session:
            tf1.import_graph_def(self.graph_def, name="")
            feeds = {self.signature.inputs[alias].tensor: value for alias, value in inputs.items()}
            return session.run({alias: spec.tensor for alias, spec in self.signature.outputs.items()}, feeds)

    def rows(
        self, folder: Path, inputs: Mapping[str, np.ndarray], labels: np.ndarray | None = None, scores: str = ""
    ) -> Rows:
        """Rows with this graph's answers."""
        folder.mkdir(parents=True, exist_ok=True)
        sides: list[dict[str, str]] = []
        for side, arrays in (("in", inputs), ("out", self.run(inputs))):
            for alias, array in arrays.items():
                np.save(folder / f"{side}_{alias}.npy", array)
            sides.append({alias: f"{side}_{alias}.npy" for alias in arrays})
        if labels is not None:
            np.save(folder / "labels.npy", np.asarray(labels, np.int64))
        count = len(next(iter(inputs.values())))
        return Rows(str(folder), count, *sides, labels="labels.npy" if labels is not None else "", scores=scores)

    def work(self, directory: Path, target: Target, calibration: Rows | None = None, **changes: Any) -> Work:
        """A variant to make in a folder that is not there yet."""
        directory.mkdir(parents=True)
        none = Rows(self.folder)
        fields = {"calibration": calibration or none, "evaluation": none, "settings": Calibration(), **changes}
        return Work(target, self.folder, self.signature, str(directory), **fields)


@pytest.fixture(scope="session")
def freeze_net() -> Callable[..., Frozen]:
    """`freeze_net(folder, build)`: build gives the inputs and outputs by alias; variables get their initial values."""

    def freeze(folder: Path, build: Callable[[], tuple[dict[str, Any], dict[str, Any]]], train: Any = None) -> Frozen:
        from moxserve.export.frozen import FrozenGraph
        from moxserve.tensorflow.executor.env import tf, tf1

        with tf.Graph().as_default() as graph, tf1.Session() as session:
            tf1.set_random_seed(5)
            inputs, outputs = build()
            session.run(tf1.global_variables_initializer())
            if train is not None:
                train(session, inputs, outputs)
            ends = [tensor.op.name for tensor in (*inputs.values(), *outputs.values())]
            graph_def = tf1.graph_util.convert_variables_to_constants(session, graph.as_graph_def(), ends)
            graph_def = tf1.graph_util.remove_training_nodes(graph_def, ends)
        sides = [{alias: _spec(alias, tensor) for alias, tensor in side.items()} for side in (inputs, outputs)]
        signature = Signature("serving_default", "tensorflow/serving/predict", *sides)
        FrozenGraph(graph_def, signature).write(str(folder))
        return Frozen(str(folder), signature, graph_def)

    return freeze


def _spec(alias: str, tensor: Any) -> TensorSpec:
    shape = None if tensor.shape.rank is None else tuple(tensor.shape.as_list())
    return TensorSpec(alias, dtype_by_enum(tensor.dtype.as_datatype_enum), shape, tensor.name)


@dataclasses.dataclass(frozen=True)
class Digits:
    """A net trained on scikit-learn's digits, and rows that it has not seen."""

    frozen: Frozen
    calibration: Rows
    evaluation: Rows
    images: np.ndarray
    labels: np.ndarray

    def accuracy(self, scores: np.ndarray) -> float:
        """Share of the unseen rows that scores choose right."""
        return float((scores.argmax(1) == self.labels).mean())

    def work(self, directory: Path, target: Target, **changes: Any) -> Work:
        """A variant to make in a folder that is not there yet."""
        rows = {"calibration": self.calibration, "evaluation": self.evaluation}
        return self.frozen.work(directory, target, **{**rows, **changes})


@pytest.fixture(scope="session")
def digits(tmp_path_factory: pytest.TempPathFactory, freeze_net: Callable[..., Frozen]) -> Digits:
    """Two convolutions and a dense layer: `images` `[?, 8, 8, 1]` of 0 to 16; `logits`, `probabilities`, `classes`."""
    from sklearn.datasets import load_digits

    folder = tmp_path_factory.mktemp("digits")
    data = load_digits()
    order = np.random.default_rng(0).permutation(len(data.target))
    images, labels = data.images[order, ..., None].astype(np.float32), data.target[order].astype(np.int64)

    def build() -> tuple[dict[str, Any], dict[str, Any]]:
        from moxserve.tensorflow.executor.env import tf, tf1

        x = tf1.placeholder(tf.float32, [None, 8, 8, 1], "images")
        y = x / 16.0
        for i, (size, channels) in enumerate([(1, 16), (16, 32)]):
            weights = tf1.get_variable(f"conv{i}/w", [3, 3, size, channels])
            biases = tf1.get_variable(f"conv{i}/b", [channels], initializer=tf1.zeros_initializer())
            y = tf.nn.relu(tf.nn.bias_add(tf.nn.conv2d(y, weights, 1, "SAME", name=f"conv{i}/Conv2D"), biases))
            y = tf.nn.max_pool2d(y, 2, 2, "SAME")
        y = tf.reshape(y, [-1, 128])
        biases = tf1.get_variable("dense/b", [10], initializer=tf1.zeros_initializer())
        y = tf.nn.bias_add(tf.matmul(y, tf1.get_variable("dense/w", [128, 10]), name="dense/MatMul"), biases)
        outputs = {"logits": y, "probabilities": tf.nn.softmax(y), "classes": tf.argmax(y, 1)}
        return {"images": x}, {alias: tf.identity(tensor, f"{alias}_out") for alias, tensor in outputs.items()}

    def train(session: Any, inputs: dict[str, Any], outputs: dict[str, Any]) -> None:
        from moxserve.tensorflow.executor.env import tf, tf1

        target = tf1.placeholder(tf.int64, [None])
        loss = tf1.losses.sparse_softmax_cross_entropy(target, outputs["logits"])
        step = tf1.train.AdamOptimizer(3e-3).minimize(loss)
        session.run([v.initializer for v in tf1.global_variables() if "Adam" in v.name or "beta" in v.name])
        random = np.random.default_rng(1)
        for _ in range(400):
            rows = random.integers(0, 1000, 64)
            session.run(step, {inputs["images"]: images[rows], target: labels[rows]})

    frozen = freeze_net(folder / "model", build, train)
    unseen = {"images": images[1000:]}
    return Digits(
        frozen,
        frozen.rows(folder / "calibration", {"images": images[:200]}, labels[:200], "probabilities"),
        frozen.rows(folder / "evaluation", unseen, labels[1000:], "probabilities"),
        images[1000:],
        labels[1000:],
    )
