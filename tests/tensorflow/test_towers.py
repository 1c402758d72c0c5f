"""Training on several devices: the numbers of one device with the large batch, wherever the variables live."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import moxserve.tensorflow as mox
from moxserve.errors import ModelSpecError, UsageError
from moxserve.tensorflow.executor.env import tf, tf1

GK = tf1.GraphKeys
MODES = {"parameter_server": 4, "replicated": 4, "distributed_replicated": 2, "all_reduce": 2}  # on how many devices
OPTIMIZERS: dict[str, dict[str, float]] = {
    "sgd": {"learning_rate": 0.1},
    "momentum": {"learning_rate": 0.1, "momentum": 0.9},
    "adam": {"learning_rate": 0.01},
}

Run = Callable[..., dict[str, np.ndarray]]

_RANDOM = np.random.default_rng(0)
X = _RANDOM.normal(size=(64, 5)).astype(np.float32)
IDS = _RANDOM.integers(0, 30, (64, 4))
Y = _RANDOM.integers(0, 3, 64)


def endless(mode: str, **kwargs: Any) -> Any:
    dataset = tf.data.Dataset.from_tensor_slices((X, IDS, Y))
    return dataset.repeat() if mode == mox.ModeKeys.TRAIN else dataset


def uniform(seed: int) -> Any:
    return tf1.glorot_uniform_initializer(seed=seed)


def cross_entropy(labels: Any, logits: Any) -> Any:
    return tf.reduce_mean(tf.nn.sparse_softmax_cross_entropy_with_logits(labels=labels, logits=logits))


def penalty(weight: Any) -> Any:
    return 0.01 * tf.nn.l2_loss(weight)


def network(inputs: list[Any], mode: str, **kwargs: Any) -> mox.ModelSpec:
    """Layers and `get_variable`, a regularizer, and a look at what a tower finds in its collections."""
    x, _, y = inputs
    with tf1.variable_scope("hidden"):
        hidden = tf1.layers.dense(x, 8, tf.nn.relu, kernel_initializer=uniform(1), kernel_regularizer=penalty)
    logits = tf.matmul(hidden, tf1.get_variable("w", [8, 3], initializer=uniform(2)))
    penalties = mox.get_collection(GK.REGULARIZATION_LOSSES)
    assert len(penalties) == 1
    assert len(mox.get_collection(GK.TRAINABLE_VARIABLES)) == 3
    loss = cross_entropy(y, logits)
    return mox.ModelSpec(
        loss=loss + tf.add_n(penalties),
        log_info={"loss": loss},
        output_info={"x": x},
        export_spec=mox.ExportSpec({"x": x}, {"logits": logits}),
    )


@pytest.fixture
def run(tmp_path: Path) -> Run:
    """Train 20 steps of 8 rows on some devices; returns the checkpoint's variables."""
    count = 0

    def call(
        devices: int, update: str = "", optimizer: str = "sgd", model_fn: Any = network, **kwargs: Any
    ) -> dict[str, np.ndarray]:
        nonlocal count
        count += 1
        mox.set_flag("num_gpus", devices)
        if update:
            mox.set_flag("variable_update", update)
        defaults: dict[str, Any] = {
            "input_fn": endless,
            "model_fn": model_fn,
            "optimizer_fn": mox.get_optimizer_fn(optimizer, **OPTIMIZERS[optimizer]),
            "run_mode": mox.ModeKeys.TRAIN,
            "batch_size": 8 // devices,
            "max_number_of_steps": 20,
            "log_dir": str(tmp_path / str(count)),
            "save_summary_steps": 0,
        }
        result = mox.run(**{**defaults, **kwargs})
        reader = tf1.train.NewCheckpointReader(result.checkpoint)
        return {name: reader.get_tensor(name) for name in reader.get_variable_to_shape_map()}

    return call


def assert_same(found: dict[str, np.ndarray], expected: dict[str, np.ndarray], atol: float = 2e-6) -> None:
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        np.testing.assert_allclose(found[name], value, rtol=0, atol=atol, err_msg=name)


@pytest.mark.slow
@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_several_devices_train_as_one_does_with_the_large_batch(optimizer: str, run: Run) -> None:
    expected = run(1, optimizer=optimizer)
    assert_same(run(2, optimizer=optimizer), expected)
    for update, devices in MODES.items():
        assert_same(run(devices, update, optimizer), expected)


@pytest.mark.slow
def test_optimizer_wrappers_see_the_mean_over_the_devices(run: Run) -> None:
    def wrapped() -> Any:
        inner = mox.get_optimizer_fn("momentum", **OPTIMIZERS["momentum"])()
        return mox.get_optimizer_wrapper_fn("batch_gradients", inner, num_batches=4)()

    mox.set_flag("gradient_clip", 0.5)
    expected = run(1, optimizer_fn=wrapped)
    assert_same(run(2, "replicated", optimizer_fn=wrapped), expected)


def test_easgd_beside_other_copies_is_refused(run: Run) -> None:
    def wrapped() -> Any:
        return mox.get_optimizer_wrapper_fn("easgd", mox.get_optimizer_fn("sgd", learning_rate=0.1)())()

    with pytest.raises(UsageError, match="easgd keeps copies of the variables, and so does --variable_update=repl"):
        run(2, "replicated", optimizer_fn=wrapped)


# -- models


def keras_network(inputs: list[Any], mode: str, **kwargs: Any) -> mox.ModelSpec:
    import tf_keras as keras

    x, _, y = inputs
    uniform_of = keras.initializers.GlorotUniform
    regularizer = keras.regularizers.l2(0.01)
    hidden = keras.layers.Dense(6, "relu", kernel_initializer=uniform_of(3), kernel_regularizer=regularizer)(x)
    logits = keras.layers.Dense(3, kernel_initializer=uniform_of(4))(hidden)
    logits *= tf.Variable(np.ones(3, np.float32), name="scale")
    assert len(mox.get_collection(GK.TRAINABLE_VARIABLES)) == 5
    loss = cross_entropy(y, logits) + tf.add_n(mox.get_collection(GK.REGULARIZATION_LOSSES))
    return mox.ModelSpec(loss=loss, log_info={"loss": loss})


def sparse_network(inputs: list[Any], mode: str, **kwargs: Any) -> mox.ModelSpec:
    _, ids, y = inputs
    table = tf1.get_variable("table", [30, 6], initializer=uniform(5))
    hidden = tf.reduce_mean(tf.nn.embedding_lookup(table, ids), axis=1)
    loss = cross_entropy(y, tf1.layers.dense(hidden, 3, kernel_initializer=uniform(6)))
    return mox.ModelSpec(loss=loss, log_info={"loss": loss})


def two_losses(inputs: list[Any], mode: str, **kwargs: Any) -> mox.ModelSpec:
    x, _, y = inputs
    with tf1.variable_scope("first"):
        hidden = tf1.layers.dense(x, 6, kernel_initializer=uniform(6))
    with tf1.variable_scope("second"):
        logits = tf1.layers.dense(hidden, 3, kernel_initializer=uniform(6))
    return mox.ModelSpec(
        loss=[cross_entropy(y, logits), tf.reduce_mean(hidden * hidden)], var_scopes=[["second"], ["first"]]
    )


def partitioned(inputs: list[Any], mode: str, **kwargs: Any) -> mox.ModelSpec:
    x, _, y = inputs
    parts = tf1.get_variable("w", [5, 3], initializer=uniform(6), partitioner=tf1.fixed_size_partitioner(2))
    return mox.ModelSpec(loss=cross_entropy(y, tf.matmul(x, tf.convert_to_tensor(parts))))


def input_penalty(inputs: list[Any], mode: str, **kwargs: Any) -> mox.ModelSpec:
    """A penalty of what a layer gives, beside one of what it holds."""
    x, _, y = inputs
    w = tf1.get_variable("w", [5, 3], initializer=uniform(6), regularizer=penalty)
    logits = tf.matmul(x, w)
    tf1.add_to_collection(GK.REGULARIZATION_LOSSES, 0.1 * tf.reduce_mean(logits * logits))
    penalties = mox.get_collection(GK.REGULARIZATION_LOSSES)
    assert len(penalties) == 2
    return mox.ModelSpec(loss=cross_entropy(y, logits) + tf.add_n(penalties))


def one_layer_for_all(layers: dict[Any, Any]) -> Any:
    def model_fn(inputs: list[Any], mode: str, **kwargs: Any) -> mox.ModelSpec:
        import tf_keras as keras

        x, _, y = inputs
        graph = tf1.get_default_graph()
        if graph not in layers:
            layers[graph] = keras.layers.Dense(3, kernel_initializer=keras.initializers.GlorotUniform(3))
        return mox.ModelSpec(loss=cross_entropy(y, layers[graph](x)))

    return model_fn


MODELS: dict[str, Any] = {
    "Keras layers and tf.Variable": keras_network,
    "sparse gradients": sparse_network,
    "two losses": two_losses,
    "a partitioned variable": partitioned,
    "a penalty of the activities": input_penalty,
    "a layer that is made once": one_layer_for_all({}),
}


@pytest.mark.slow
@pytest.mark.parametrize("model", MODELS)
def test_models(model: str, run: Run) -> None:
    expected = run(1, optimizer="momentum", model_fn=MODELS[model])
    for update in ("parameter_server", "replicated"):
        assert_same(run(2, update, "momentum", MODELS[model]), expected)


class Graph(tf1.train.SessionRunHook):
    """Looks at the graph when it is built, and at the copies of variables when training ends."""

    def __init__(self) -> None:
        self.copies: dict[str, np.ndarray] = {}
        self.originals: dict[str, np.ndarray] = {}

    def begin(self) -> None:
        graph = tf1.get_default_graph()
        handles = {op.name: op for op in graph.get_operations() if op.type == "VarHandleOp"}
        self.reads = {
            name: tf.raw_ops.ReadVariableOp(resource=op.outputs[0], dtype=op.get_attr("dtype"))
            for name, op in handles.items()
        }
        self.devices = {name: op.device for name, op in handles.items()}
        listed = (item for key in graph.get_all_collection_keys() for item in graph.get_collection(key))
        self.collected = {getattr(item, "name", "") for item in listed}
        self.summaries = [tensor.op.name for tensor in tf1.get_collection(GK.SUMMARIES)]

    def end(self, session: Any) -> None:
        for name, value in session.run(self.reads).items():
            (self.copies if name.startswith("replica_") else self.originals)[name] = value


def batch_norm(graph: Graph) -> Any:
    def model_fn(inputs: list[Any], mode: str, **kwargs: Any) -> mox.ModelSpec:
        import tf_keras as keras

        x, _, y = inputs
        hidden = tf1.layers.batch_normalization(x, training=True)
        assert len(mox.get_collection(GK.UPDATE_OPS)) == 2
        assert len(mox.get_collection(GK.GLOBAL_VARIABLES)) == 4
        hidden = keras.layers.BatchNormalization(momentum=0.9)(hidden)
        tf1.summary.scalar("norm", tf.reduce_mean(hidden))
        w = tf1.get_variable("w", [5, 3], initializer=uniform(6))
        return mox.ModelSpec(loss=cross_entropy(y, tf.matmul(hidden, w)), hooks=[graph])

    return model_fn


@pytest.mark.slow
def test_copies_follow_the_first_device_and_batch_norms_look_at_its_batches(run: Run) -> None:
    graph = Graph()
    found = run(4, "replicated", model_fn=batch_norm(graph), batch_size=4, save_summary_steps=10)

    mean, average = np.zeros(5), np.zeros(5)
    for step in range(20):
        mean = X[np.arange(step * 16, step * 16 + 4) % len(X)].mean(axis=0)
        average = 0.99 * average + 0.01 * mean
    np.testing.assert_allclose(found["batch_normalization/moving_mean"], average, atol=1e-6)
    # Every variable has a copy on each other device, which nobody else knows.
    names = sorted(name for name in graph.originals if "Momentum" not in name and name != "global_step")
    for index in (1, 2, 3):
        copies = sorted(name for name in graph.copies if name.startswith(f"replica_{index}/"))
        assert len(copies) == len(names)
        assert {graph.devices[name] for name in copies} == {f"/device:CPU:{index}"}
        values = [graph.copies[name].tobytes() for name in copies]
        assert sorted(values) == sorted(graph.originals[name].tobytes() for name in names)
    assert not [name for name in graph.collected if "replica_" in str(name)]
    assert graph.summaries.count("norm") == 1
    assert not [name for name in found if "replica" in name]


@pytest.mark.slow
def test_shared_variables_are_updated_by_the_first_device_alone(run: Run) -> None:
    copied = run(2, "replicated", model_fn=batch_norm(Graph()))
    assert_same(run(2, model_fn=batch_norm(Graph())), copied, atol=0)


@pytest.mark.slow
def test_a_last_round_that_not_all_devices_get_rows_of_is_weighted_by_rows(run: Run) -> None:
    def finite(mode: str, **kwargs: Any) -> Any:
        return tf.data.Dataset.from_tensor_slices((X[:45], IDS[:45], Y[:45]))

    # 45 rows: 5 steps of 8, and one of 5, of which the devices get 2, 2, 1 and none.
    expected = run(1, input_fn=finite, max_number_of_steps=0)
    assert expected["global_step"] == 6
    for update in ("parameter_server", "replicated"):
        assert_same(run(4, update, input_fn=finite, max_number_of_steps=0), expected)


@pytest.mark.slow
def test_checkpoints_do_not_depend_on_the_number_of_devices(run: Run, tmp_path: Path) -> None:
    expected = run(1, optimizer="adam")
    run(4, "replicated", "adam", max_number_of_steps=7, log_dir=str(tmp_path / "log"))
    run(1, "", "adam", max_number_of_steps=13, log_dir=str(tmp_path / "log"), input_fn=later(7))
    again = run(2, "", "adam", log_dir=str(tmp_path / "log"), input_fn=later(13))
    assert_same(again, expected)


def later(steps: int) -> Any:
    return lambda mode: endless(mode).skip(steps * 8)


@pytest.mark.slow
def test_export_has_one_tower(run: Run, tmp_path: Path) -> None:
    run(2, "replicated", log_dir=str(tmp_path), export_model=mox.ExportKeys.TF_SERVING)
    with tf1.Graph().as_default(), tf1.Session() as session:
        meta = tf1.saved_model.load(session, ["serve"], str(tmp_path / "1"))
        signature = meta.signature_def["serving_default"]
        logits = session.run(signature.outputs["logits"].name, {signature.inputs["x"].name: X[:2]})
        assert logits.shape == (2, 3)
        assert not [op.name for op in session.graph.get_operations() if "replica" in op.name or "CPU:1" in op.device]


@pytest.mark.slow
def test_quantized_and_pruned(run: Run) -> None:
    def wrapped(_: int) -> Any:
        pruned = mox.prune_model_fn(network_without_asserts, mox.Pruning(sparsity=0.5, end_step=10, exclude=()))
        return mox.quantize_model_fn(pruned, mox.Quantization())

    expected = run(1, model_fn=wrapped(1))
    for update in ("parameter_server", "replicated"):
        found = run(2, update, model_fn=wrapped(2))
        assert found.keys() == expected.keys()
        kernel = found["hidden/dense/kernel"]
        assert (kernel == 0).mean() == pytest.approx(0.5, abs=0.05)


def network_without_asserts(inputs: list[Any], mode: str, **kwargs: Any) -> mox.ModelSpec:
    x, _, y = inputs
    with tf1.variable_scope("hidden"):
        hidden = tf1.layers.dense(x, 8, tf.nn.relu, kernel_initializer=uniform(1))
    loss = cross_entropy(y, tf1.layers.dense(hidden, 3, kernel_initializer=uniform(2)))
    return mox.ModelSpec(loss=loss, log_info={"loss": loss})


# -- calls of model_fn that differ


def dense(x: Any) -> Any:
    return tf1.layers.dense(x, 3, kernel_initializer=uniform(6), name="d")


def differing(make: Callable[[int, Any], Any]) -> Any:
    """A model_fn whose calls are counted in each run."""
    calls: dict[Any, int] = {}

    def model_fn(inputs: list[Any], mode: str, **kwargs: Any) -> mox.ModelSpec:
        x, _, y = inputs
        graph = tf1.get_default_graph()
        calls[graph] = calls.get(graph, -1) + 1
        return mox.ModelSpec(loss=cross_entropy(y, make(calls[graph], dense(x))))

    return model_fn


@pytest.mark.parametrize("update", ["parameter_server", "replicated"])
def test_a_variable_that_only_the_first_device_uses_gets_the_mean_gradient(update: str, run: Run) -> None:
    def make(call: int, logits: Any) -> Any:
        return logits + tf1.get_variable("bias", [3], initializer=tf1.zeros_initializer()) if call == 0 else logits

    found = run(2, update, model_fn=differing(make), max_number_of_steps=1)
    # Both biases begin alike; that of all devices gets the gradients of two batches, this one of the first only.
    first = run(1, model_fn=differing(lambda call, logits: logits), max_number_of_steps=1, batch_size=4)
    np.testing.assert_allclose(found["bias"], first["d/bias"] / 2, atol=1e-6)


@pytest.mark.parametrize("kind", ["get_variable", "Variable"])
@pytest.mark.parametrize("update", ["parameter_server", "replicated"])
def test_a_variable_that_only_a_later_device_makes_is_refused(update: str, kind: str, run: Run) -> None:
    def make(call: int, logits: Any) -> Any:
        if call == 0:
            return logits
        return logits + (tf1.get_variable("extra", [3]) if kind == "get_variable" else tf.Variable([1.0, 2.0, 3.0]))

    with pytest.raises(ModelSpecError, match=r"make the same variables in every") as raised:
        run(2, update, model_fn=differing(make))
    assert "extra" in str(raised.value) or kind == "Variable"


# -- devices


def test_no_gpu_makes_logical_devices_of_the_cpu(run: Run, console: Any) -> None:
    run(4, max_number_of_steps=1)
    assert console.text.count("this machine has no GPU: the towers run on 4 logical devices of the CPU") == 1


def test_too_few_gpus(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    real = tf.config.list_physical_devices
    monkeypatch.setattr(tf.config, "list_physical_devices", lambda kind=None: ["a", "b"] if kind == "GPU" else real())
    with pytest.raises(UsageError, match=r"--num_gpus=4: this machine has 2 GPU\(s\)") as raised:
        run(4)
    assert "--clone_on_cpu" in str(raised.value)
    mox.set_flag("clone_on_cpu", True)
    run(4, max_number_of_steps=1)
