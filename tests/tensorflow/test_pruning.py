"""Magnitude pruning: the schedule, which weights become zero and stay so, checkpoints, and what is exported."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import moxserve.tensorflow as mox
from moxserve.errors import ModelSpecError, UsageError
from moxserve.tensorflow.executor.branch import build_export_branch
from moxserve.tensorflow.executor.env import tf, tf1


def network(x: Any) -> Any:
    hidden = tf.nn.relu(tf1.layers.dense(x, 20, name="a"))
    table = tf1.get_variable("table", [7, 2])  # no kernel: it is looked up in
    hidden = tf.concat([hidden, tf.gather(table, tf.cast(tf.abs(x[:, 0]), tf.int32))], 1)
    hidden = tf.reshape(hidden, [-1, 1, 1, 22])
    return tf.reshape(tf1.layers.conv2d(hidden, 5, 1, name="b"), [-1, 5])


def model_fn(inputs: list[Any], mode: str) -> mox.ModelSpec:
    x, y = inputs
    out = network(x)
    loss = tf.reduce_mean(tf.square(tf.reduce_sum(out, 1) - y)) + 1e-3 * tf.nn.l2_loss(out)
    return mox.ModelSpec(
        loss=loss, log_info={"loss": loss}, output_info={"out": out}, export_spec=mox.ExportSpec({"x": x}, {"out": out})
    )


KERNELS = ("a/kernel", "b/kernel")


def _read(checkpoint: str | None) -> dict[str, np.ndarray]:
    reader = tf1.train.NewCheckpointReader(checkpoint)
    return {name: reader.get_tensor(name) for name in reader.get_variable_to_shape_map()}


def _zeros(checkpoint: str | None) -> dict[str, float]:
    values = _read(checkpoint)
    return {name: float((values[name] == 0).mean()) for name in (*KERNELS, "table", "a/bias")}


@given(begin=st.integers(0, 50), length=st.integers(1, 100), every=st.integers(1, 30), sparsity=st.floats(0.01, 0.99))
def test_the_schedule_is_cubic_and_never_falls(begin: int, length: int, every: int, sparsity: float) -> None:
    options = mox.Pruning(begin + length, sparsity, begin, every)
    shares = [options.sparsity_at(step) for step in range(begin + length + 5)]
    assert shares == sorted(shares)
    assert shares[:begin] == [0.0] * begin
    assert shares[begin + length :] == [pytest.approx(sparsity)] * 5
    for step in range(begin, begin + length, every):
        wanted = sparsity + (0 - sparsity) * (1 - (step - begin) / length) ** 3  # formula (1) of the paper
        assert shares[step] == pytest.approx(wanted)
        assert set(shares[step : min(step + every, begin + length)]) == {shares[step]}


@pytest.mark.slow
@pytest.mark.parametrize("optimizer", ["momentum", "adam"])
def test_the_smallest_weights_become_zero_and_stay_so(optimizer: str, train: Any, tmp_path: Path, console: Any) -> None:
    def run(steps: int) -> mox.RunResult:
        return train(
            model_fn=mox.prune_model_fn(model_fn, mox.Pruning(end_step=12, begin_step=4, every_steps=4, sparsity=0.75)),
            optimizer_fn=mox.get_optimizer_fn(optimizer, learning_rate=0.01),
            log_dir=str(tmp_path),
            max_number_of_steps=steps,
            save_model_steps=4,
            log_every_n_steps=1,
        )

    result = run(16)
    counts = {name: _read(result.checkpoint)[name].size for name in KERNELS}
    before: dict[str, Any] = {}
    for step, share in ((4, 0.0), (8, 0.75 * (1 - 0.5**3)), (12, 0.75), (16, 0.75)):
        values = _read(str(tmp_path / f"model.ckpt-{step}"))
        for name in KERNELS:
            gone = values[name] == 0
            assert gone.sum() == round(share * counts[name])
            np.testing.assert_array_equal(values[f"pruning/{name}/mask"], ~gone)
            assert gone[before.get(name, np.zeros_like(gone))].all()  # what was gone is gone
            before[name] = gone
    assert _zeros(result.checkpoint)["table"] == _zeros(result.checkpoint)["a/bias"] == 0
    assert result.metrics["sparsity"] == pytest.approx(0.75, abs=0.01)
    assert "pruning: a/kernel: 75.0 % of 60 weights are zero" in console.text
    assert "pruning: together 74.7 % of 170 weights are zero" in console.text
    again = run(20)  # from the checkpoint, with the masks that it holds
    assert all((_read(again.checkpoint)[name] == 0).tolist() == before[name].tolist() for name in KERNELS)


@pytest.mark.slow
def test_the_smallest_are_chosen(train: Any, tmp_path: Path) -> None:
    first = train(model_fn=model_fn, log_dir=str(tmp_path / "float"), max_number_of_steps=1)
    frozen = mox.prune_model_fn(model_fn, mox.Pruning(end_step=2, begin_step=2, sparsity=0.4))
    second = train(
        model_fn=frozen,
        optimizer_fn=mox.get_optimizer_fn("sgd", learning_rate=1e-12),
        log_dir=str(tmp_path / "pruned"),
        checkpoint_path=first.checkpoint,
        max_number_of_steps=2,
    )
    old, new = _read(first.checkpoint), _read(second.checkpoint)
    for name in KERNELS:
        smallest = np.argsort(np.abs(old[name]), axis=None)[: round(0.4 * old[name].size)]
        expected = old[name].ravel().copy()
        expected[smallest] = 0
        np.testing.assert_allclose(new[name].ravel(), expected, atol=1e-9)


@pytest.mark.slow
def test_a_schedule_that_is_over_is_caught_up_with(train: Any, tmp_path: Path) -> None:
    first = train(model_fn=model_fn, log_dir=str(tmp_path / "float"), max_number_of_steps=30)
    pruned = mox.prune_model_fn(model_fn, mox.Pruning(end_step=20))
    second = train(
        model_fn=pruned, log_dir=str(tmp_path / "x"), checkpoint_path=first.checkpoint, max_number_of_steps=31
    )
    assert _zeros(second.checkpoint)["a/kernel"] == pytest.approx(0.8)


def test_an_end_before_the_goal_is_told_of(train: Any, console: Any) -> None:
    train(model_fn=mox.prune_model_fn(model_fn, mox.Pruning(end_step=20)), max_number_of_steps=5)
    assert "training ended at step 5, the schedule goes on to step 20: 80.0 % is its goal" in console.text


@pytest.mark.slow
def test_left_out_kernels_and_models_without_one(train: Any, tmp_path: Path) -> None:
    options = mox.Pruning(end_step=2, exclude=["^b/"])
    result = train(model_fn=mox.prune_model_fn(model_fn, options), log_dir=str(tmp_path), max_number_of_steps=3)
    assert (_zeros(result.checkpoint)["a/kernel"], _zeros(result.checkpoint)["b/kernel"]) == (0.8, 0)
    with pytest.raises(ModelSpecError, match="exclude leaves out all of a/kernel, b/kernel"):
        train(model_fn=mox.prune_model_fn(model_fn, mox.Pruning(end_step=2, exclude=["kernel"])))
    with pytest.raises(ModelSpecError, match="no kernel of a convolution or matrix product to prune"):
        train(
            model_fn=mox.prune_model_fn(
                lambda inputs, mode: mox.ModelSpec(loss=tf.reduce_sum(inputs[0] * tf1.get_variable("v", [3]))),
                mox.Pruning(end_step=2),
            )
        )


def test_the_exported_graph_knows_nothing_of_masks() -> None:
    with tf1.Graph().as_default() as graph:
        inputs = [tf1.placeholder(tf.float32, [None, 3]), tf1.placeholder(tf.float32, [None])]
        build_export_branch(mox.prune_model_fn(model_fn, mox.Pruning(end_step=2)), inputs)
        assert not [op.name for op in graph.get_operations() if "pruning" in op.name]


@pytest.mark.slow
def test_evaluations_tell_the_sparsity(linear: Any, train: Any, tmp_path: Path) -> None:
    pruned = mox.prune_model_fn(model_fn, mox.Pruning(end_step=2))
    result = train(model_fn=pruned, log_dir=str(tmp_path), max_number_of_steps=3)
    evaluated = mox.run(
        linear.finite_input_fn, None, pruned, run_mode="EVAL", batch_size=10, checkpoint_path=result.checkpoint
    )
    assert evaluated.metrics["sparsity"] == pytest.approx(0.8, abs=0.005)


@pytest.mark.slow
@pytest.mark.parametrize("inside", ["quantization", "pruning"])
def test_pruned_and_quantized_at_once(inside: str, linear: Any, train: Any, tmp_path: Path) -> None:
    pruning, quantization = mox.Pruning(end_step=6), mox.Quantization(start_step=4)
    if inside == "quantization":
        both: Any = mox.prune_model_fn(mox.quantize_model_fn(model_fn, quantization), pruning)
    else:
        both = mox.quantize_model_fn(mox.prune_model_fn(model_fn, pruning), quantization)
    result = train(model_fn=both, log_dir=str(tmp_path), max_number_of_steps=8, save_model_steps=4)
    assert result.local_steps == 8
    first = _read(str(tmp_path / "model.ckpt-4"))
    assert "pruning/a/kernel/mask" in first
    assert not any(name.startswith("quantization/") for name in first)
    assert _zeros(result.checkpoint)["a/kernel"] == _zeros(result.checkpoint)["b/kernel"] == 0.8
    with tf1.Graph().as_default() as graph, tf1.Session() as session:
        inputs = [tf1.placeholder(tf.float32, [None, 3]), tf1.placeholder(tf.float32, [None])]
        build_export_branch(both, inputs)
        for variable in tf1.global_variables():
            variable.load(_read(result.checkpoint)[variable.op.name], session)
        users = [op for op in graph.get_operations() if op.type in ("MatMul", "Conv2D")]
        fakes = [op.inputs[1] for op in users]
        assert all("FakeQuant" in t.op.type for t in fakes)
        assert all((value == 0).mean() >= 0.8 for value in session.run(fakes))  # zeros are zeros in int8, too


def test_what_cannot_be_meant() -> None:
    for wrong, told in (
        ({"sparsity": 1.0}, r"sparsity=1\.0: expected a share between 0 and 1"),
        ({"sparsity": 80}, "sparsity=80"),
        ({"begin_step": 20}, "end_step=10 is before begin_step=20"),
        ({"every_steps": 0}, "every_steps=0: expected a whole number of at least 1"),
        ({"begin_step": -1}, "begin_step=-1"),
        ({"exclude": ["["]}, r"'\[' is not a regular expression"),
    ):
        with pytest.raises(UsageError, match=told):
            mox.Pruning(**{"end_step": 10, **wrong})
    with pytest.raises(UsageError, match=r"takes a mox\.Pruning, not float"):
        mox.prune_model_fn(model_fn, 0.8)  # type: ignore[arg-type]
