"""Half precision: what is computed in it, what stays float32, and what is said where a machine has none."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest

import moxserve.tensorflow as mox
from moxserve.errors import UsageError
from moxserve.tensorflow.executor import precision
from moxserve.tensorflow.executor.env import tf, tf1

HALVES = {"float16": np.float16, "bfloat16": ml_dtypes.bfloat16}


@pytest.fixture(params=list(HALVES))
def half(request: pytest.FixtureRequest) -> str:
    """A half precision that this machine computes in."""
    if not precision.rewrites(request.param):
        pytest.skip(f"nothing here computes in {request.param}")
    return str(request.param)


def products(mode: str = "TRAIN", **kwargs: Any) -> tuple[mox.RunResult, np.ndarray, np.ndarray]:
    """A run of `w @ x` with numbers that no half precision can hold; also gives them."""
    random = np.random.default_rng(0)
    x, w = random.normal(size=(2, 64, 64)).astype("f")

    def model_fn(inputs: list[Any], mode: str) -> mox.ModelSpec:
        weights = tf1.get_variable("w", initializer=tf.constant(w))
        product = tf.matmul(inputs[0], weights)
        return mox.ModelSpec(
            loss=tf.reduce_mean(tf.square(product)) / 2,
            log_info={"first": product[0, 0]},
            output_info={"product": product},
            export_spec=mox.ExportSpec({"x": inputs[0]}, {"product": product}),
        )

    result = mox.run(
        input_fn=lambda mode: tf.constant(x),
        model_fn=model_fn,
        optimizer_fn=mox.get_optimizer_fn("sgd", learning_rate=1.0),
        run_mode=mode,
        auto_batch=False,
        batch_size=64,
        log_every_n_steps=1,
        max_number_of_steps=1,
        **kwargs,
    )
    return result, x, w


@pytest.mark.slow
def test_products_are_computed_in_half_precision_and_variables_kept_whole(
    half: str, tmp_path: Path, variable: Callable[..., np.ndarray], console: Any
) -> None:
    mox.set_flag("compute_dtype", half)
    mox.set_flag("loss_scale", 1024.0)
    result, x, w = products(log_dir=str(tmp_path), export_model=mox.ExportKeys.TF_SERVING)
    narrow = [array.astype(HALVES[half]).astype("f") for array in (x, w)]
    unit = float(np.finfo(HALVES[half]).eps) if half == "float16" else 2.0**-7
    rounded, exact = narrow[0] @ narrow[1], x @ w
    assert abs(result.metrics["first"] - exact[0, 0]) > 1e-5
    assert result.metrics["first"] == pytest.approx(rounded[0, 0], abs=unit * float(np.abs(rounded).max()))
    kept = variable(result.checkpoint, "w")
    assert kept.dtype == np.float32
    # The update is float32, too: no weight is a number of the half precision.
    change = x.T @ exact / 64**2
    assert w - kept == pytest.approx(change, abs=4 * unit * float(np.abs(change).max()))
    assert (kept != kept.astype(HALVES[half]).astype("f")).mean() > 0.9
    assert f"Computing in {half} where it is safe" in console.text
    # What is served computes in float32.
    with tf1.Graph().as_default(), tf1.Session() as session:
        tf1.saved_model.load(session, ["serve"], result.export.path)
        assert {op.outputs[0].dtype for op in session.graph.get_operations() if op.type == "MatMul"} == {tf.float32}


@pytest.mark.slow
def test_digits_are_learnt_as_well_in_half_precision(half: str, tmp_path: Path) -> None:
    digits = pytest.importorskip("sklearn.datasets").load_digits()
    order = np.random.default_rng(0).permutation(len(digits.data))
    images, labels = (digits.data[order] / 16).astype("f"), digits.target[order].astype("i8")

    def input_fn(mode: str) -> Any:
        dataset = tf1.data.Dataset.from_tensor_slices((images, labels))
        if mode == mox.ModeKeys.TRAIN:
            dataset = dataset.shuffle(2000, 1).repeat()
        return dataset.make_one_shot_iterator().get_next()

    def model_fn(inputs: list[Any], mode: str) -> mox.ModelSpec:
        x, y = inputs
        hidden = tf.keras.layers.Dense(64, activation="relu")(x)
        logits = tf1.layers.dense(hidden, 10)
        loss = tf1.losses.sparse_softmax_cross_entropy(y, logits)
        accuracy = tf.reduce_mean(tf.cast(tf.nn.in_top_k(y, logits, 1), tf.float32))
        return mox.ModelSpec(loss=loss, log_info={"accuracy": accuracy})

    def accuracy(dtype: str) -> float:
        mox.set_flag("compute_dtype", dtype)
        log_dir = str(tmp_path / dtype)
        tf1.set_random_seed(1)
        mox.run(
            input_fn=input_fn,
            model_fn=model_fn,
            optimizer_fn=mox.get_optimizer_fn("momentum", learning_rate=0.05),
            run_mode=mox.ModeKeys.TRAIN,
            batch_size=32,
            max_number_of_steps=300,
            log_dir=log_dir,
            log_every_n_steps=0,
        )
        evaluated = mox.run(
            input_fn=input_fn, model_fn=model_fn, run_mode=mox.ModeKeys.EVAL, batch_size=599, log_dir=log_dir
        )
        return evaluated.metrics["accuracy"]

    mox.set_flag("loss_scale", 1024.0)
    whole = accuracy("float32")
    assert whole > 0.95
    assert accuracy(half) == pytest.approx(whole, abs=0.01)


def test_losses_of_a_model_that_computes_in_half_precision_itself_are_float32(console: Any) -> None:
    def model_fn(inputs: list[Any], mode: str) -> mox.ModelSpec:
        with mox.var_scope(force_dtype=tf.float32):
            weights = tf1.get_variable("w", [4], tf.float16, tf1.ones_initializer())
        loss = tf.reduce_sum(weights * tf.cast(inputs[0], tf.float16))
        assert loss.dtype == tf.float16
        return mox.ModelSpec(loss=loss, log_info={"loss": loss, "steps": tf.constant(3)})

    mox.set_flag("loss_scale", 16384.0)  # times the loss, 4 * 3, this is beyond float16
    result = mox.run(
        input_fn=lambda mode: tf.fill([4], 3.0),
        model_fn=model_fn,
        optimizer_fn=mox.get_optimizer_fn("sgd", learning_rate=0.0),
        run_mode=mox.ModeKeys.TRAIN,
        auto_batch=False,
        batch_size=4,
        max_number_of_steps=1,
        log_every_n_steps=1,
    )
    assert result.metrics == {"loss": 12.0, "steps": 3}


def test_use_fp16_is_float16_and_no_other(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.argv", ["script.py", "--use_fp16"])
    store = mox.executor.flags.store
    assert precision.Precision.from_flags(store, training=False).dtype == "float16"
    mox.set_flag("compute_dtype", "bfloat16")
    with pytest.raises(UsageError, match="--use_fp16 and --compute_dtype=bfloat16"):
        products()
    with pytest.raises(UsageError, match="--compute_dtype: 'half' is not one of float32, float16, bfloat16"):
        mox.set_flag("compute_dtype", "half")


@pytest.mark.parametrize(("scale", "advised"), [(1.0, True), (1024.0, False), (0.0, False)])
def test_float16_asks_for_a_loss_scale(
    scale: float, advised: bool, monkeypatch: pytest.MonkeyPatch, console: Any
) -> None:
    monkeypatch.setattr(precision, "rewrites", lambda dtype: True)
    mox.set_flag("compute_dtype", "float16")
    mox.set_flag("loss_scale", scale)
    precision.Precision.from_flags(mox.executor.flags.store, training=True)
    assert ("float16 without a loss scale" in console.text) is advised
    console.lines.clear()
    precision.Precision.from_flags(mox.executor.flags.store, training=False)  # an evaluation has no gradients
    assert "loss scale" not in console.text


def test_a_machine_without_it_says_so_and_computes_in_float32(monkeypatch: pytest.MonkeyPatch, console: Any) -> None:
    monkeypatch.setattr(precision, "_PASS", {"bfloat16": "auto_mixed_precision_mkl"})  # for GPUs that are not here
    monkeypatch.setattr(precision, "rewrites", lambda dtype: False)
    mox.set_flag("compute_dtype", "bfloat16")
    precision.Precision.from_flags(mox.executor.flags.store, training=True)
    assert "half precision has no effect here" in console.text
    assert "AVX512-BF16 or AMX" in console.text


def test_the_document_s_snippet_keeps_its_two_dtypes() -> None:
    with tf1.Graph().as_default():
        with mox.var_scope(force_dtype=tf.float32):
            a = tf1.get_variable("a", shape=[], dtype=tf.float16)
        assert str(a) == 'Tensor("Cast:0", shape=(), dtype=float16)'
        assert str(tf1.global_variables()[0]) == "<tf.Variable 'a:0' shape=() dtype=float32>"
