"""Quantization-aware training: what is rounded and how, held against NumPy; batch norms; what stays; checkpoints."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import moxserve.tensorflow as mox
from moxserve.errors import CheckpointError, ModelSpecError, UsageError
from moxserve.tensorflow.executor.branch import build_branch, build_export_branch
from moxserve.tensorflow.executor.devices import Place
from moxserve.tensorflow.executor.env import tf, tf1
from moxserve.tensorflow.quantization import ranges, rewrite

FAKE = "FakeQuantWithMinMaxVars"
PER_CHANNEL = "FakeQuantWithMinMaxVarsPerChannel"


def fake_quant(values: np.ndarray, low: float, high: float) -> np.ndarray:
    """An asymmetric grid of 256 steps that has 0 on it."""
    scale = (high - low) / 255
    zero = np.clip(np.round(-low / scale), 0, 255)
    return (np.clip(np.round(values / scale) + zero, 0, 255) - zero) * scale


def fake_kernel(values: np.ndarray) -> np.ndarray:
    """A symmetric grid of 255 steps."""
    scale = np.abs(values).max() / 127
    return np.round(values / scale) * scale


@dataclass
class Images:
    """Random images and targets, the same in every mode; TRAIN never ends."""

    x: np.ndarray
    y: np.ndarray

    def input_fn(self, mode: str, **_: Any) -> Any:
        dataset = tf1.data.Dataset.from_tensor_slices((self.x, self.y))
        return dataset.repeat() if mode == "TRAIN" else dataset

    def train(self, model_fn: Any, folder: Path, steps: int, rate: float = 1e-12, **kwargs: Any) -> mox.RunResult:
        defaults: dict[str, Any] = {
            "optimizer_fn": mox.get_optimizer_fn("sgd", learning_rate=rate),
            "batch_size": 64,
            "log_every_n_steps": 0,
            "save_summary_steps": 0,
        }
        return mox.run(
            input_fn=self.input_fn,
            model_fn=model_fn,
            run_mode="TRAIN",
            log_dir=str(folder),
            max_number_of_steps=steps,
            **{**defaults, **kwargs},
        )

    def predict(self, model_fn: Any, checkpoint: str | None) -> np.ndarray:
        rows: list[Any] = []
        mox.run(
            input_fn=self.input_fn,
            model_fn=model_fn,
            output_fn=lambda outputs: rows.extend(o["out"] for o in outputs),
            run_mode="PREDICT",
            batch_size=16,
            checkpoint_path=checkpoint,
            log_every_n_steps=0,
        )
        return np.concatenate(rows)


@pytest.fixture
def images(drawn_alike: None) -> Images:
    random = np.random.default_rng(0)
    x = random.normal(0.3, 1.0, (64, 8, 8, 3)).astype(np.float32)
    return Images(x, random.integers(0, 4, 64))


def classifier(network: Callable[..., Any]) -> Callable[..., mox.ModelSpec]:
    """A model_fn around images -> logits."""

    def model_fn(inputs: list[Any], mode: str) -> mox.ModelSpec:
        x, y = inputs
        logits = network(x, mode == "TRAIN")
        loss = tf1.losses.sparse_softmax_cross_entropy(y, logits)
        return mox.ModelSpec(
            loss=loss,
            log_info={"loss": loss},
            output_info={"out": logits},
            export_spec=mox.ExportSpec({"x": x}, {"out": logits}),
        )

    return model_fn


def kernel(name: str, *shape: int) -> Any:
    return tf1.get_variable(name, shape, initializer=tf1.variance_scaling_initializer(2.0))


def flat(x: Any) -> Any:
    return tf.reduce_mean(x, [1, 2])


def plain(x: Any, training: bool) -> Any:
    return tf.nn.bias_add(tf.matmul(flat(x), kernel("w", 3, 4)), tf1.get_variable("b", [4]))


def layers_fused(x: Any, training: bool) -> Any:
    x = tf1.layers.conv2d(x, 8, 3, use_bias=False, name="a")
    x = tf.nn.relu(tf1.layers.batch_normalization(x, training=training, momentum=0.5, name="an"))
    return tf1.layers.dense(flat(x), 4, name="d")


def layers_spelled_out(x: Any, training: bool) -> Any:
    x = tf1.layers.conv2d(x, 8, 3, name="a")  # with a bias before the norm
    x = tf.nn.relu6(tf1.layers.batch_normalization(x, training=training, momentum=0.5, fused=False, name="an"))
    x = tf1.layers.dense(flat(x), 8, name="b")
    x = tf.nn.relu(tf1.layers.batch_normalization(x, training=training, momentum=0.5, name="bn"))  # of 2 dimensions
    return tf1.layers.dense(x, 4, name="d")


def keras_layers(x: Any, training: bool) -> Any:
    x = tf.keras.layers.Conv2D(8, 3, name="a")(x)
    x = tf.keras.layers.ReLU(name="r")(
        tf.keras.layers.BatchNormalization(momentum=0.5, name="an")(x, training=training)
    )
    x = tf.keras.layers.DepthwiseConv2D(3, depth_multiplier=2, use_bias=False, name="dw")(x)
    x = tf.keras.layers.BatchNormalization(momentum=0.5, name="bn")(x, training=training)
    return tf.keras.layers.Dense(4, name="d")(flat(tf.nn.relu(x)))


def transposed(x: Any, training: bool) -> Any:
    x = tf1.layers.conv2d_transpose(x, 6, 3, 2, use_bias=False, name="a")
    x = tf.nn.relu(tf1.layers.batch_normalization(x, training=training, momentum=0.5, name="an"))
    return tf.matmul(flat(x), kernel("w", 4, 6), transpose_b=True)


def residual(x: Any, training: bool) -> Any:
    a = tf.nn.relu(tf1.layers.conv2d(x, 8, 3, padding="same", name="a"))
    b = tf1.layers.conv2d(a, 8, 3, padding="same", name="b")
    x = tf.nn.relu(a + b)
    x = tf1.layers.batch_normalization(x, training=training, momentum=0.5, name="pre")  # no kernel to fold it into
    c = tf1.layers.conv2d(tf.nn.relu(x), 8, 1, name="c")
    x = tf.concat([x, c, tf.nn.max_pool2d(a, 3, 1, "SAME")], 3)
    x = tf.nn.avg_pool2d(tf.nn.sigmoid(x) * x, 2, 2, "VALID")
    return tf1.layers.dense(tf1.layers.flatten(x), 4, name="d")


NETWORKS = {
    # network: kernels, fake quantizations of activations and constants, batch norms folded
    plain: (1, 2, 0),
    layers_fused: (2, 4, 1),
    layers_spelled_out: (3, 5, 2),
    keras_layers: (3, 5, 2),
    transposed: (2, 4, 1),
    # input, a, b, a+b, pre*, pre+ (with relu), c, concat, sigmoid, product, pool, d; the two vectors of pre
    residual: (4, 15, 0),
}


@pytest.mark.slow
@pytest.mark.parametrize("network", NETWORKS, ids=lambda network: network.__name__)
def test_a_model_is_rounded_and_hardly_another(network: Any, images: Images, tmp_path: Path, console: Any) -> None:
    kernels, grids, folded = NETWORKS[network]
    model_fn = classifier(network)
    quantized_fn = mox.quantize_model_fn(model_fn)
    trained = images.train(model_fn, tmp_path / "float", 12, rate=0.05)
    result = images.train(quantized_fn, tmp_path / "int8", 40, checkpoint_path=trained.checkpoint)
    assert f"{kernels} kernels and" in console.text
    assert f"{folded} batch norms folded" in console.text

    # Every variable of the float model is there, and (the steps being tiny) has its value: averages stand still.
    before, after = (tf1.train.NewCheckpointReader(r.checkpoint) for r in (trained, result))
    for name in before.get_variable_to_shape_map():
        if name != "global_step":
            np.testing.assert_allclose(after.get_tensor(name), before.get_tensor(name), atol=1e-6, err_msg=name)
    assert all(n.startswith("quantization/") for n in after.get_variable_to_shape_map() if not before.has_tensor(n))

    expected, found = images.predict(model_fn, trained.checkpoint), images.predict(quantized_fn, result.checkpoint)
    # Two vectors in 8 bits in the middle of it, where the batch norm could not be folded, cost more.
    assert 1e-4 < _error(found, expected) < (0.5 if network is residual else 0.06)

    with tf1.Graph().as_default() as graph:
        x = tf1.placeholder(tf.float32, [None, 8, 8, 3])
        spec = build_export_branch(quantized_fn, [x, tf1.placeholder(tf.int64, [None])]).spec
        needed = tf1.graph_util.extract_sub_graph(
            graph.as_graph_def(), [spec.export_spec.outputs_dict["out"].op.name]
        ).node
    kinds = Counter(node.op for node in needed)
    products = kinds["MatMul"]
    assert kinds[PER_CHANNEL] == kernels - products
    assert kinds[FAKE] + kinds["FakeQuantWithMinMaxArgs"] == grids + products
    assert not any("FusedBatchNorm" in kind for kind in kinds)


def _error(found: np.ndarray, expected: np.ndarray) -> float:
    return float(np.linalg.norm(found - expected) / np.linalg.norm(expected))


@pytest.mark.slow
@pytest.mark.parametrize("network", [layers_spelled_out, transposed, residual], ids=lambda network: network.__name__)
def test_but_for_the_rounding_it_is_the_same_model(
    network: Any, images: Images, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ranges, "_fake_quant", lambda tensor, low, high: tf.identity(tensor))
    monkeypatch.setattr(ranges, "_symmetric", lambda kernel, largest, training: tf.identity(kernel))
    monkeypatch.setattr(rewrite, "quantize_constant", tf.identity)
    model_fn = classifier(network)
    trained = images.train(model_fn, tmp_path / "float", 8, rate=0.05)
    quantized_fn = mox.quantize_model_fn(model_fn)
    result = images.train(quantized_fn, tmp_path / "int8", 9, checkpoint_path=trained.checkpoint)
    expected, found = images.predict(model_fn, trained.checkpoint), images.predict(quantized_fn, result.checkpoint)
    np.testing.assert_allclose(found, expected, atol=1e-5)


def test_a_range_holds_zero_whatever_the_sign_of_the_values(images: Images, tmp_path: Path) -> None:
    for sign in (1, -1):
        shifted = Images(sign * np.abs(images.x) + sign, images.y)
        checkpoint = shifted.train(mox.quantize_model_fn(classifier(plain)), tmp_path / str(sign), 2).checkpoint
        low, high = _ranges(checkpoint)["w/input"]
        assert (low, high)[sign < 0] == 0
        assert low <= 0 <= high


def test_the_numbers_are_those_of_the_grids(images: Images, tmp_path: Path, variable: Any) -> None:
    quantized_fn = mox.quantize_model_fn(classifier(plain))
    checkpoint = images.train(quantized_fn, tmp_path, 30, rate=0.1).checkpoint
    pooled = images.x.mean((1, 2))

    def learned(name: str) -> tuple[float, float]:
        return tuple(float(variable(checkpoint, f"quantization/w/{name}/{end}")) for end in ("min", "max"))  # type: ignore[return-value]

    assert learned("input")[0] == pytest.approx(pooled.min(), abs=0.2)
    x = fake_quant(pooled, *learned("input"))
    y = x @ fake_kernel(variable(checkpoint, "w")) + variable(checkpoint, "b")
    found = images.predict(quantized_fn, checkpoint)
    expected = fake_quant(y, *learned("output"))
    step = np.subtract(*learned("output")[::-1]) / 255
    # Where a value lies between two steps, one more or less is right.
    assert np.abs(found - expected).max() < 1.01 * step
    assert np.mean(np.abs(found - expected) < 1e-5) > 0.97


def test_a_range_is_a_mean_of_the_first_batches_and_then_decays(images: Images, tmp_path: Path, variable: Any) -> None:
    quantized_fn = mox.quantize_model_fn(classifier(plain), mox.Quantization(range_decay=0.5))
    for steps in (1, 2, 3):
        checkpoint = images.train(quantized_fn, tmp_path / str(steps), steps, batch_size=16).checkpoint
        highest = [images.x[16 * i : 16 * i + 16].mean((1, 2)).max() for i in range(3)]
        expected = [highest[0], np.mean(highest[:2]), 0.5 * np.mean(highest[:2]) + 0.5 * highest[2]][steps - 1]
        assert float(variable(checkpoint, "quantization/w/input/max")) == pytest.approx(expected, rel=1e-5)


def _ranges(checkpoint: str | None) -> dict[str, tuple[float, ...]]:
    reader = tf1.train.NewCheckpointReader(checkpoint)
    names = [n.removesuffix("/min") for n in reader.get_variable_to_shape_map() if n.endswith("/min")]
    return {
        name.removeprefix("quantization/"): tuple(float(reader.get_tensor(f"{name}/{end}")) for end in ("min", "max"))
        for name in names
    }


@pytest.mark.slow
def test_ranges_start_at_zero_behind_a_relu_and_are_shared_where_runtimes_demand_it(
    images: Images, tmp_path: Path
) -> None:
    found = _ranges(images.train(mox.quantize_model_fn(classifier(residual)), tmp_path, 5).checkpoint)
    assert found["b/kernel/output"][0] < 0 == found["c/kernel/input"][0] == found["a/kernel/output/addv2"][0]
    assert found["a/kernel/output/addv2/mul/addv2"][0] < 0
    assert sorted(found) == [
        "a/kernel/input",
        "a/kernel/output/addv2",  # after its relu
        "a/kernel/output/addv2/mul",  # the batch norm's product
        "a/kernel/output/addv2/mul/addv2",  # its sum, shared with all that is concatenated: c, and a behind a pool
        "a/kernel/output/concatv2/mul",  # shared with the average pool behind it; the sigmoid's is given
        "b/kernel/output",
        "c/kernel/input",
        "d/kernel/output",
    ]


@pytest.mark.slow
def test_layers_that_depend_on_each_other_may_share_a_range(images: Images, tmp_path: Path) -> None:
    def dense_block(x: Any, training: bool) -> Any:
        for i in range(3):
            x = tf.concat([x, tf1.layers.conv2d(x, 2, 3, padding="same", name=f"c{i}")], 3)
        return tf1.layers.dense(flat(x), 4, name="d")

    found = _ranges(images.train(mox.quantize_model_fn(classifier(dense_block)), tmp_path, 3).checkpoint)
    assert len(found) == 3  # all that is concatenated, the mean, the logits


def test_dropout_needs_no_range_of_its_own_and_modes_have_the_same_variables(images: Images, tmp_path: Path) -> None:
    def network(x: Any, training: bool) -> Any:
        x = tf.nn.relu(tf1.layers.dense(flat(x), 8, name="a"))
        x = tf1.layers.dropout(x, 0.4, training=training)
        x = tf.nn.dropout(x, rate=0.3) if training else x
        return tf1.layers.dense(x, 4, name="b")

    quantized_fn = mox.quantize_model_fn(classifier(network))
    checkpoint = images.train(quantized_fn, tmp_path, 3).checkpoint
    assert sorted(_ranges(checkpoint)) == ["a/kernel/input", "a/kernel/output", "b/kernel/output"]
    assert images.predict(quantized_fn, checkpoint).shape == (64, 4)


@pytest.mark.slow
def test_norms_of_single_rows_are_left_alone(images: Images, tmp_path: Path, variable: Any) -> None:
    def network(x: Any, training: bool) -> Any:
        x = tf.keras.layers.LayerNormalization(name="ln")(tf1.layers.dense(flat(x), 8, name="a"))
        mean, variance = tf.nn.moments(x, [1], keepdims=True)
        x = tf.nn.batch_normalization(x, mean, variance, None, None, 1e-3)
        return tf1.layers.dense(x, 4, name="b")

    quantized_fn = mox.quantize_model_fn(classifier(network))
    checkpoint = images.train(quantized_fn, tmp_path, 3, rate=0.1).checkpoint
    assert {"a/kernel/output", "b/kernel/input"} <= set(_ranges(checkpoint))
    assert images.predict(quantized_fn, checkpoint).shape == (64, 4)


def test_left_out_layers_stay_as_they_are(images: Images, tmp_path: Path, variable: Any, console: Any) -> None:
    options = mox.Quantization(exclude=["^a/", "dw"])
    checkpoint = images.train(mox.quantize_model_fn(classifier(keras_layers), options), tmp_path, 3).checkpoint
    assert "1 kernels and 2 ranges" in console.text
    assert "in floating point: a/kernel, dw/depthwise_kernel" in console.text
    assert np.abs(variable(checkpoint, "an/moving_mean")).max() > 0  # and their batch norms go on learning
    with pytest.raises(ModelSpecError, match=r"exclude leaves out 'w'"):
        images.train(mox.quantize_model_fn(classifier(plain), mox.Quantization(exclude=["w"])), tmp_path / "x", 1)
    with pytest.raises(ModelSpecError, match="no float32 convolution or matrix product"):
        images.train(mox.quantize_model_fn(classifier(lambda x, t: flat(x) * tf1.get_variable("w", [3]))), tmp_path, 1)


def test_one_range_for_a_whole_kernel(images: Images) -> None:
    with tf1.Graph().as_default() as graph:
        x = tf1.placeholder(tf.float32, [None, 8, 8, 3])
        options = mox.Quantization(per_channel=False)
        build_export_branch(mox.quantize_model_fn(classifier(keras_layers), options), [x, tf.constant([1])])
        kinds = Counter(op.type for op in graph.get_operations())
    assert kinds[PER_CHANNEL] == 0
    assert kinds[FAKE] == 3 + 5


def test_a_batch_norm_without_averages_is_told_of(images: Images, tmp_path: Path) -> None:
    def network(x: Any, training: bool) -> Any:
        y = tf.nn.conv2d(x, kernel("w", 3, 3, 3, 4), 1, "SAME")
        return flat(tf1.nn.fused_batch_norm(y, kernel("gamma", 4), tf.zeros([4]))[0])

    with pytest.raises(ModelSpecError, match=r"moving mean of the batch norm 'FusedBatchNormV3' was not found"):
        images.train(mox.quantize_model_fn(classifier(network)), tmp_path, 1)


def test_channels_first_are_folded_the_same_way() -> None:
    def network(x: Any, training: bool) -> Any:
        x = tf.transpose(x, [0, 3, 1, 2])
        x = tf.nn.conv2d(x, kernel("w", 3, 3, 3, 4), 1, "SAME", data_format="NCHW")
        args = [tf.constant(v, tf.float32) for v in ([1, 2, 3, 4], [4, 3, 2, 1], [0, 1, 0, 1], [1, 2, 1, 2])]
        return tf1.nn.fused_batch_norm(x, *args, data_format="NCHW", is_training=False)[0]

    with tf1.Graph().as_default() as graph:
        x = tf1.placeholder(tf.float32, [None, 8, 8, 3])

        def model_fn(inputs: list[Any], mode: str) -> mox.ModelSpec:
            out = network(inputs[0], False)
            return mox.ModelSpec(export_spec=mox.ExportSpec({"x": inputs[0]}, {"out": out}), log_info={})

        spec = build_export_branch(mox.quantize_model_fn(model_fn), [x]).spec
        nodes = tf1.graph_util.extract_sub_graph(graph.as_graph_def(), [spec.export_spec.outputs_dict["out"].op.name])
        [bias] = [node for node in nodes.node if node.op == "BiasAdd"]
    assert bias.attr["data_format"].s == b"NCHW"


# -- a run


def test_evaluations_in_the_middle_of_training_are_those_of_the_rounded_model(
    images: Images, tmp_path: Path, console: Any
) -> None:
    inner = classifier(layers_fused)

    def model_fn(inputs: list[Any], mode: str) -> mox.ModelSpec:
        spec = inner(inputs, mode)
        hook = mox.LogEvaluationMetricHook(
            monitor_info=dict(spec.log_info), batch_size=64, samples_in_train=64, samples_in_eval=64,
            evaluate_every_n_epochs=1,
        )  # fmt: skip
        return mox.ModelSpec(loss=spec.loss, log_info=spec.log_info, output_info=spec.output_info, hooks=[hook])

    quantized_fn = mox.quantize_model_fn(model_fn)
    result = images.train(quantized_fn, tmp_path, 4, inter_mode="EVAL")
    evaluated = mox.run(
        input_fn=images.input_fn, model_fn=quantized_fn, run_mode="EVAL", batch_size=64,
        checkpoint_path=result.checkpoint, log_every_n_steps=0,
    )  # fmt: skip
    assert f"step: 3 loss: {evaluated.metrics['loss']:.3f}" in console.text


@pytest.mark.slow
def test_a_float_phase_comes_first_and_the_run_is_one(images: Images, tmp_path: Path, console: Any) -> None:
    quantized_fn = mox.quantize_model_fn(classifier(layers_fused), mox.Quantization(start_step=6))
    result = images.train(quantized_fn, tmp_path, 10)
    assert (result.start_step, result.global_step, result.local_steps) == (0, 10, 10)
    assert "quantization begins at step 6" in console.text
    reader = tf1.train.NewCheckpointReader(str(tmp_path / "model.ckpt-6"))
    assert not any(name.startswith("quantization/") for name in reader.get_variable_to_shape_map())
    with pytest.raises(CheckpointError, match="missing in it: quantization/a/kernel/input/max"):
        images.predict(quantized_fn, str(tmp_path / "model.ckpt-6"))
    assert images.train(quantized_fn, tmp_path, 12).local_steps == 2  # goes on in the phase that it was in


@pytest.mark.slow
def test_a_run_that_was_stopped_in_its_float_phase_goes_on_there(images: Images, tmp_path: Path) -> None:
    model_fn = classifier(layers_fused)
    images.train(model_fn, tmp_path, 3)
    result = images.train(mox.quantize_model_fn(model_fn, mox.Quantization(start_step=5)), tmp_path, 7)
    assert (result.start_step, result.local_steps) == (3, 4)


def test_what_cannot_be_meant(images: Images, tmp_path: Path) -> None:
    quantized_fn = mox.quantize_model_fn(classifier(plain), mox.Quantization(start_step=5))
    with pytest.raises(UsageError, match="quantization begins at step 5, and the run ends at step 5"):
        images.train(quantized_fn, tmp_path, 5)
    with pytest.raises(UsageError, match="needs log_dir"):
        mox.run(
            images.input_fn, None, quantized_fn, mox.get_optimizer_fn("sgd", learning_rate=1), "TRAIN",
            batch_size=4, max_number_of_steps=9,
        )  # fmt: skip
    for wrong, told in (
        ({"start_step": -1}, "start_step=-1"),
        ({"start_step": True}, "start_step=True"),
        ({"range_decay": 1.0}, r"range_decay=1\.0"),
        ({"learning_rate_scale": 0}, "learning_rate_scale=0"),
        ({"exclude": ["("]}, r"'\(' is not a regular expression"),
    ):
        with pytest.raises(UsageError, match=told):
            mox.Quantization(**wrong)
    with pytest.raises(UsageError, match=r"takes a mox\.Quantization, not dict"):
        mox.quantize_model_fn(classifier(plain), {"start_step": 3})
    with pytest.raises(ModelSpecError, match="model_fn must be a function, not int"):
        mox.quantize_model_fn(3)


@pytest.mark.slow
@pytest.mark.parametrize("optimizer", ["adam", "momentum", "a function"])
def test_a_smaller_learning_rate_for_the_rounded_model(
    optimizer: str, images: Images, tmp_path: Path, variable: Any
) -> None:
    def one() -> Any:
        if optimizer == "a function":
            return tf1.train.GradientDescentOptimizer(lambda: tf.constant(0.1))
        return mox.get_optimizer_fn(optimizer, learning_rate=0.1)()

    moved = {}
    first = images.train(classifier(plain), tmp_path / "start", 1)
    for scale in (1.0, 0.25):
        quantized_fn = mox.quantize_model_fn(classifier(plain), mox.Quantization(learning_rate_scale=scale))
        result = images.train(
            quantized_fn, tmp_path / str(scale), 2, optimizer_fn=one, checkpoint_path=first.checkpoint
        )
        moved[scale] = variable(result.checkpoint, "b") - variable(first.checkpoint, "b")
    np.testing.assert_allclose(moved[0.25], moved[1.0] / 4, rtol=1e-3, atol=1e-6)  # differences of larger numbers


def test_an_optimizer_without_a_learning_rate_is_told_of(images: Images, tmp_path: Path) -> None:
    class Odd(tf1.train.Optimizer):
        def __init__(self) -> None:
            super().__init__(False, "Odd")

    quantized_fn = mox.quantize_model_fn(classifier(plain), mox.Quantization(learning_rate_scale=0.5))
    with pytest.raises(
        ModelSpecError, match="a learning rate that is scaled needs an optimizer with one; Odd has none"
    ):
        images.train(quantized_fn, tmp_path, 1, optimizer_fn=Odd)


def test_towers_of_one_graph_are_all_rounded(images: Images) -> None:
    with tf1.Graph().as_default():
        inputs = [[tf.constant(images.x[:4]), tf.constant(images.y[:4])] for _ in range(2)]
        branch = build_branch(mox.quantize_model_fn(classifier(layers_fused)), "TRAIN", inputs, [Place(), Place(1)])
        first, second = (tower.spec.output_info["out"] for tower in branch.towers)
        with tf1.Session() as session:
            session.run(tf1.global_variables_initializer())
            np.testing.assert_allclose(*session.run([first, second]), atol=1e-6)
        assert len(branch.towers[1].updates) == 0 < len(branch.towers[0].updates)
