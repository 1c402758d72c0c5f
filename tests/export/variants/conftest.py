"""Frozen graphs with real rows, as converters get them; one of them is trained on the digits."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from moxserve.export.targets import Target
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
        fields = {"signature": self.signature, "calibration": calibration or none, "evaluation": none, **changes}
        return Work(target, self.folder, directory=str(directory), **fields)


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
            library = graph_def.library
            graph_def = tf1.graph_util.remove_training_nodes(graph_def, ends)
            graph_def.library.CopyFrom(library)  # the bodies of loops and branches
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


@dataclasses.dataclass(frozen=True)
class Net:
    """A net with random weights, and rows for it."""

    frozen: Frozen
    rows: Rows

    def work(self, directory: Path, target: Target, **changes: Any) -> Work:
        """A variant to make in a folder that is not there yet."""
        return self.frozen.work(directory, target, **{"calibration": self.rows, "evaluation": self.rows, **changes})


@pytest.fixture(scope="session")
def nets(tmp_path_factory: pytest.TempPathFactory, freeze_net: Callable[..., Frozen]) -> Callable[[str], Net]:
    """Nets by name, each made once.

    `residual`: batch norms, a sum, a depthwise convolution, `[?, 16, 16, 3]`; `fixed`: the same for batches of 4;
    `heads`: three inputs and outputs; `pixels`: convolutions down to a single pixel; `twins`: one tensor under two
    names, and an input that is an output; `outlier`: one channel a thousand times as large as the others; `learned`:
    with learned ranges.
    """
    made: dict[str, Net] = {}

    def net(name: str) -> Net:
        if name not in made:
            weights = np.random.default_rng(len(name))
            folder = tmp_path_factory.mktemp(name)
            frozen = freeze_net(folder / "model", lambda: _BUILDERS[name](weights))
            rows = _random_rows(frozen.signature, np.random.default_rng(7))
            scores = next((a for a in ("probabilities", "logits") if a in frozen.signature.outputs), "")
            made[name] = Net(frozen, frozen.rows(folder / "rows", rows, scores=scores))
        return made[name]

    return net


def _random_rows(signature: Signature, random: np.random.Generator) -> dict[str, np.ndarray]:
    rows = {}
    for alias, spec in signature.inputs.items():
        shape = [spec.shape[0] or 32, *spec.shape[1:]]
        whole = spec.dtype.numpy.kind == "i"
        rows[alias] = (random.integers(0, 5, shape) if whole else random.random(shape)).astype(spec.dtype.numpy)
    return rows


def _conv(x: Any, weights: np.random.Generator, name: str, size: int, channels: int, stride: int = 1) -> Any:
    """Convolution, depthwise for no channels, then batch normalization and ReLU."""
    from moxserve.tensorflow.executor.env import tf, tf1

    last = int(x.shape[-1])
    shape = [size, size, last, channels or 1]
    values = weights.normal(0, (2 / (size * size * (last if channels else 1))) ** 0.5, shape).astype(np.float32)
    with tf1.name_scope(name):
        if channels:
            x = tf.nn.conv2d(x, values, stride, "SAME", name="Conv2D")
        else:
            x = tf.nn.depthwise_conv2d(x, values, [1, stride, stride, 1], "SAME", name="depthwise")
        low, high = [0.5, -0.1, -0.1, 0.5], [1.5, 0.1, 0.1, 1.5]
        norm = [weights.uniform(a, b, channels or last).astype(np.float32) for a, b in zip(low, high, strict=True)]
        return tf.nn.relu(tf1.nn.fused_batch_norm(x, *norm, is_training=False)[0])


def _dense(x: Any, weights: np.random.Generator, size: int, name: str) -> Any:
    from moxserve.tensorflow.executor.env import tf

    values = weights.normal(0, int(x.shape[-1]) ** -0.5, [int(x.shape[-1]), size]).astype(np.float32)
    return tf.matmul(x, values, name=name)


def _residual(weights: np.random.Generator, batch: int | None = None) -> tuple[dict[str, Any], dict[str, Any]]:
    from moxserve.tensorflow.executor.env import tf, tf1

    images = tf1.placeholder(tf.float32, [batch, 16, 16, 3], "images")
    x = tf.nn.max_pool2d(_conv(images, weights, "first", 3, 16), 2, 2, "SAME")
    x = _conv(x, weights, "block/a", 3, 16) + x
    x = _conv(x, weights, "block/depthwise", 3, 0, 2)
    x = tf.reduce_mean(_conv(x, weights, "block/last", 1, 32), [1, 2])
    logits = _dense(x, weights, 10, "dense/MatMul")
    outputs = {"logits": logits, "probabilities": tf.nn.softmax(logits)}
    return {"images": images}, {alias: tf.identity(tensor, f"{alias}_out") for alias, tensor in outputs.items()}


def _heads(weights: np.random.Generator) -> tuple[dict[str, Any], dict[str, Any]]:
    from moxserve.tensorflow.executor.env import tf, tf1

    image = tf1.placeholder(tf.float32, [None, 8, 8, 3], "x_image")
    vector = tf1.placeholder(tf.float32, [None, 5], "x_vector")
    place = tf1.placeholder(tf.int64, [None], "x_place")
    seen = tf.reduce_mean(_conv(image, weights, "conv", 3, 8, 2), [1, 2])
    known = tf.gather(weights.normal(0, 1, [5, 4]).astype(np.float32), place)
    x = tf.nn.relu(_dense(tf.concat([seen, vector, known], 1), weights, 12, "hidden"))
    kinds = _dense(x, weights, 3, "kinds")
    outputs = {
        "kind": tf.nn.softmax(kinds), "best": tf.argmax(kinds, 1), "size": tf.squeeze(_dense(x, weights, 1, "size"), 1)
    }  # fmt: skip
    inputs = {"image": image, "vector": vector, "place": place}
    return inputs, {alias: tf.identity(tensor, f"{alias}_out") for alias, tensor in outputs.items()}


def _pixels(weights: np.random.Generator) -> tuple[dict[str, Any], dict[str, Any]]:
    from moxserve.tensorflow.executor.env import tf, tf1

    images = tf1.placeholder(tf.float32, [None, 8, 8, 3], "images")
    x = images
    for i in range(4):
        x = _conv(x, weights, f"block{i}/full", 3, 16, 2 if i < 3 else 1)
        x = _conv(x, weights, f"block{i}/depthwise", 3, 0)
        x = _conv(x, weights, f"block{i}/point", 1, 32)
    logits = _dense(tf.reduce_mean(x, [1, 2]), weights, 10, "dense/MatMul")
    return {"images": images}, {"logits": tf.identity(logits, "logits_out")}


def _twins(weights: np.random.Generator) -> tuple[dict[str, Any], dict[str, Any]]:
    from moxserve.tensorflow.executor.env import tf, tf1

    x = tf1.placeholder(tf.float32, [None, 4], "x")
    y = tf.nn.relu(_dense(x, weights, 3, "dense"))
    return {"x": x}, {alias: tf.identity(t, f"{alias}_out") for alias, t in {"a": y, "b": y, "same": x}.items()}


def _outlier(weights: np.random.Generator) -> tuple[dict[str, Any], dict[str, Any]]:
    from moxserve.tensorflow.executor.env import tf, tf1

    x = tf1.placeholder(tf.float32, [None, 8], "x")
    y = tf.nn.relu(_dense(x, weights, 16, "before"))
    scale = np.ones(16, np.float32)
    scale[3] = 1000.0
    first, second = (weights.normal(0, 0.3, shape).astype(np.float32) for shape in ([16, 16], [16, 10]))
    first[:, 3] = np.abs(first[:, 3])  # never cut off
    y = tf.nn.relu(tf.matmul(y, first * scale, name="large"))
    y = tf.matmul(y, second / scale[:, None], name="small")
    logits = tf.matmul(tf.nn.relu(y), weights.normal(0, 1, [10, 10]).astype(np.float32), name="after")
    return {"x": x}, {"logits": tf.identity(logits, "logits_out")}


def _learned(weights: np.random.Generator) -> tuple[dict[str, Any], dict[str, Any]]:
    from moxserve.tensorflow.executor.env import tf, tf1

    def ranged(x: Any, low: float, high: float) -> Any:
        return tf.quantization.fake_quant_with_min_max_vars(x, tf.constant(low), tf.constant(high))

    def conv(x: Any, name: str, channels: int, stride: int = 1) -> Any:
        last = int(x.shape[-1])
        size = [3, 3, last, channels or 1]
        values = weights.normal(0, (2 / (9 * (last if channels else 1))) ** 0.5, size).astype(np.float32)
        flat = values if channels else values.reshape(3, 3, last)
        most = np.abs(flat).max((0, 1, 2) if channels else (0, 1))
        per_channel = tf.quantization.fake_quant_with_min_max_vars_per_channel
        with tf1.name_scope(name):
            kernel = tf.reshape(per_channel(tf.constant(flat), -most, most, narrow_range=True), size)
            if channels:
                x = tf.nn.conv2d(x, kernel, stride, "SAME", name="Conv2D")
            else:
                x = tf.nn.depthwise_conv2d(x, kernel, [1, stride, stride, 1], "SAME", name="depthwise")
            biases = weights.normal(0, 0.1, channels or last).astype(np.float32)
            return ranged(tf.nn.relu(tf.nn.bias_add(x, biases)), 0.0, 6.0)

    images = tf1.placeholder(tf.float32, [None, 16, 16, 3], "images")
    x = conv(ranged(images, 0.0, 1.0), "first", 16)
    x = ranged(conv(x, "inner", 16) + x, 0.0, 10.0)
    x = conv(conv(x, "depthwise", 0, 2), "last", 32, 2)
    x = ranged(tf.reduce_mean(x, [1, 2]), 0.0, 4.0)
    dense = weights.normal(0, 0.3, [32, 10]).astype(np.float32)
    most = float(np.abs(dense).max())
    dense = tf.quantization.fake_quant_with_min_max_vars(tf.constant(dense), -most, most, narrow_range=True)
    logits = ranged(tf.nn.bias_add(tf.matmul(x, dense, name="dense/MatMul"), np.zeros(10, np.float32)), -4.0, 4.0)
    outputs = {"logits": logits, "probabilities": tf.nn.softmax(logits)}
    return {"images": images}, {alias: tf.identity(tensor, f"{alias}_out") for alias, tensor in outputs.items()}


_BUILDERS: dict[str, Callable[..., tuple[dict[str, Any], dict[str, Any]]]] = {
    "residual": _residual,
    "fixed": lambda weights: _residual(weights, 4),
    "heads": _heads,
    "pixels": _pixels,
    "twins": _twins,
    "outlier": _outlier,
    "learned": _learned,
}


@pytest.fixture
def served() -> Callable[..., dict[str, np.ndarray]]:
    """`served(directory, inputs, size=0)`: what the server's backend answers, in batches of a size, by alias."""

    def answer(directory: str, inputs: Mapping[str, np.ndarray], size: int = 0) -> dict[str, np.ndarray]:
        from moxserve.serving import backends

        backend = backends.load(directory)
        count = len(next(iter(inputs.values())))
        parts: dict[str, list[np.ndarray]] = {}
        for start in range(0, count, size or count):
            batch = {alias: array[start : start + (size or count)] for alias, array in inputs.items()}
            for alias, value in backend.run("serving_default", batch).items():
                parts.setdefault(alias, []).append(value)
        backend.close()
        return {alias: np.concatenate(values) for alias, values in parts.items()}

    return answer


@pytest.fixture
def apart() -> Callable[..., float]:
    """`apart(got, rows)`: largest relative error of an output; of those that are no real numbers, 1 for any other."""

    def error(got: Mapping[str, np.ndarray], rows: Rows) -> float:
        worst = 0.0
        for alias, want in rows.load_outputs().items():
            have = got[alias]
            assert (have.shape, have.dtype) == (want.shape, want.dtype)
            if want.dtype.kind == "f":
                worst = max(worst, float(np.linalg.norm(have - want) / np.linalg.norm(want)))
            else:
                worst = max(worst, float((have != want).mean()))
        return worst

    return error
