"""A trained model as a checkpoint with its graph, as a SavedModel of TensorFlow 1 and of 2, and a frozen graph."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest


@dataclass(frozen=True)
class Trained:
    """A checkpoint of a training: prefix, values by name, and the graph beside it."""

    prefix: str
    values: dict[str, np.ndarray]


def _classifier(tf: Any, training: bool) -> tuple[Any, Any]:
    """A partitioned embedding and a dense layer; dropout in training."""
    tf1 = tf.compat.v1
    x = tf1.placeholder(tf.float32, [None, 6], "x")
    with tf1.variable_scope("net", partitioner=tf1.fixed_size_partitioner(2)):
        wide = tf1.get_variable("wide", [6, 4], initializer=tf1.random_normal_initializer(seed=1))
    with tf1.variable_scope("net"):
        bias = tf1.get_variable("bias", [4], initializer=tf1.ones_initializer())
        dense = tf1.get_variable("dense", [4, 3], initializer=tf1.random_normal_initializer(seed=2))
    with tf1.device("/device:CPU:0"):
        hidden = tf.nn.relu(tf.matmul(x, tf.concat(list(wide), 0)) + bias, name="hidden")
    if training:
        hidden = tf.nn.dropout(hidden, rate=0.5, seed=1)
    return x, tf.identity(tf.matmul(hidden, dense), "logits")


@pytest.fixture(scope="session")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Trained:
    """Momentum slots, a step, text, a partitioned variable; saved with its graph, after one step."""
    import tensorflow as tf

    tf1 = tf.compat.v1
    folder = tmp_path_factory.mktemp("trained")
    with tf.Graph().as_default(), tf1.Session() as session:
        x, logits = _classifier(tf, training=True)
        labels = tf1.placeholder(tf.int64, [None], "labels")
        loss = tf1.losses.sparse_softmax_cross_entropy(labels, logits)
        step = tf1.train.get_or_create_global_step()
        train = tf1.train.MomentumOptimizer(0.1, 0.9).minimize(loss, step)
        tf1.get_variable("words", initializer=tf.constant([b"cat", b"d\xc3\xb6g\x00"]), trainable=False)
        session.run(tf1.global_variables_initializer())
        session.run(train, {x: np.ones((2, 6)), labels: [0, 1]})
        prefix = tf1.train.Saver().save(session, str(folder / "model.ckpt"), step)
        values = {v.op.name: session.run(v) for v in tf1.global_variables() if "part_" not in v.op.name}
        parts = {v.op.name: v for v in tf1.global_variables() if "part_" in v.op.name}
        values["net/wide"] = np.concatenate([session.run(parts[f"net/wide/part_{i}"]) for i in range(2)])
    return Trained(prefix, values)


@pytest.fixture(scope="session")
def saved_v1(tmp_path_factory: pytest.TempPathFactory, trained: Trained) -> Path:
    """A version directory of the same model as TensorFlow 1 writes it, with an optimizer's slot beside its weights."""
    import tensorflow as tf

    tf1 = tf.compat.v1
    base = tmp_path_factory.mktemp("saved_v1")
    labels = base / "labels.txt"
    labels.write_text("cat\ndog\neel\n")
    with tf.Graph().as_default(), tf1.Session() as session:
        x, logits = _classifier(tf, training=False)
        spare = tf1.get_variable("spare", [5], initializer=tf1.zeros_initializer())
        asset = tf.constant(str(labels))
        names = tf.lookup.StaticHashTable(
            tf.lookup.TextFileInitializer(
                asset, tf.int64, tf.lookup.TextFileIndex.LINE_NUMBER, tf.string, tf.lookup.TextFileIndex.WHOLE_LINE
            ),
            "?",
        )
        classes = names.lookup(tf.argmax(logits, 1))
        session.run([spare.initializer, tf1.tables_initializer()])
        tf1.train.Saver([v for v in tf1.global_variables() if v is not spare]).restore(session, trained.prefix)
        builder = tf1.saved_model.Builder(str(base / "00000007"))
        predict = tf1.saved_model.predict_signature_def({"x": x}, {"logits": logits, "classes": classes})
        builder.add_meta_graph_and_variables(
            session,
            ["serve"],
            {"serving_default": predict},
            assets_collection=tf1.get_collection(tf1.GraphKeys.ASSET_FILEPATHS),
            main_op=tf1.tables_initializer(),
        )
        builder.save()
    return base / "00000007"


@pytest.fixture(scope="session")
def saved_v2(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A SavedModel of TensorFlow 2: two variables in use, one that no signature needs."""
    import tensorflow as tf
    from tensorflow.python.eager import context

    with context.eager_mode():

        class Scale(tf.Module):
            def __init__(self) -> None:
                super().__init__()
                self.factor = tf.Variable([[2.0, 3.0]], name="factor")
                self.shift = tf.Variable(1.5, name="shift")
                self.idle = tf.Variable(tf.zeros([7]), name="idle")

            @tf.function(input_signature=[tf.TensorSpec([None, 2], tf.float32, name="x")])
            def scale(self, x: Any) -> Any:
                return {"y": x * self.factor + self.shift}

        model = Scale()
        path = tmp_path_factory.mktemp("saved_v2") / "model"
        tf.saved_model.save(model, str(path), signatures={"serving_default": model.scale})
    return path


@pytest.fixture(scope="session")
def frozen(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A frozen GraphDef with one weight matrix."""
    import tensorflow as tf

    path = tmp_path_factory.mktemp("frozen") / "frozen.pb"
    with tf.Graph().as_default() as graph:
        x = tf.compat.v1.placeholder(tf.float32, [None, 40], "x")
        weights = tf.constant(np.arange(1600, dtype=np.float32).reshape(40, 40), name="weights")
        tf.identity(tf.matmul(x, weights), "y")
    path.write_bytes(graph.as_graph_def().SerializeToString())
    return path


@pytest.fixture(scope="session")
def tfserving(shared_dir: Path) -> Path:
    """The models of TensorFlow Serving's own tests."""
    path = shared_dir / "testdata" / "tfserving"
    if not os.path.isdir(path):
        pytest.skip(f"TensorFlow Serving's test models are not at {path}")
    return path
