"""`mox.run`: modes, resuming, console lines, summaries, outputs, and what it says when something is wrong."""

from __future__ import annotations

import math
import os
import re
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import moxserve.tensorflow as mox
from moxserve.errors import CheckpointError, DataError, InterruptedRunError, ModelSpecError, UsageError
from moxserve.tensorflow.executor.env import tf, tf1

Train = Callable[..., mox.RunResult]
SGD = mox.get_optimizer_fn("sgd", learning_rate=0.1)


def checkpoints(folder: Path) -> list[int]:
    return sorted(
        int(p.name.removeprefix("model.ckpt-").removesuffix(".index")) for p in folder.glob("model.ckpt-*.index")
    )


def sgd_in_numpy(linear: Any, steps: int, rows: int = 10, rate: float = 0.1) -> np.ndarray:
    w = np.zeros(3)
    for step in range(steps):
        w -= rate * linear.gradient(w, step * rows, rows)
    return w


def test_train_computes_what_numpy_computes(train: Train, linear: Any, variable: Any, tmp_path: Path) -> None:
    result = train(log_dir=str(tmp_path), max_number_of_steps=12)
    assert (result.mode, result.start_step, result.global_step, result.local_steps) == ("TRAIN", 0, 12, 12)
    assert result.stop_reason == "max_steps"
    assert result.checkpoint == str(tmp_path / "model.ckpt-12")
    np.testing.assert_allclose(variable(result.checkpoint, "w"), sgd_in_numpy(linear, 12), rtol=1e-4, atol=1e-6)


def test_resumed_training_equals_uninterrupted(train: Train, variable: Any, tmp_path: Path) -> None:
    whole = train(log_dir=str(tmp_path / "whole"), max_number_of_steps=20, save_model_steps=5)
    first = train(log_dir=str(tmp_path / "parts"), max_number_of_steps=10, save_model_steps=5)
    second = train(log_dir=str(tmp_path / "parts"), max_number_of_steps=20, save_model_steps=5)
    assert (first.global_step, second.start_step, second.local_steps, second.global_step) == (10, 10, 10, 20)
    assert checkpoints(tmp_path / "whole") == checkpoints(tmp_path / "parts") == [5, 10, 15, 20]
    # The rows start anew after the resumption; 50 rows are five steps, so both saw the same ones.
    np.testing.assert_array_equal(variable(whole.checkpoint, "w"), variable(second.checkpoint, "w"))


def test_already_trained_says_so_and_writes_nothing(train: Train, tmp_path: Path, console: Any) -> None:
    train(log_dir=str(tmp_path))
    before = {p: p.stat().st_mtime_ns for p in tmp_path.glob("model.ckpt*")}
    result = train(log_dir=str(tmp_path))
    assert (result.stop_reason, result.local_steps, result.global_step) == ("already_trained", 0, 5)
    assert result.checkpoint == str(tmp_path / "model.ckpt-5")
    assert "Nothing to train" in console.text
    assert "raise max_number_of_steps" in console.text
    assert {p: p.stat().st_mtime_ns for p in tmp_path.glob("model.ckpt*")} == before


def test_already_trained_by_checkpoint_path_names_the_flag(train: Train, tmp_path: Path, console: Any) -> None:
    train(log_dir=str(tmp_path / "a"))
    result = train(log_dir=str(tmp_path / "b"), checkpoint_path=str(tmp_path / "a"), export_model=True)
    assert result.stop_reason == "already_trained"
    assert result.checkpoint == str(tmp_path / "a" / "model.ckpt-5")
    assert result.export.path == str(tmp_path / "b" / "1")
    assert "checkpoint_exclude_patterns" in console.text


def test_console_lines_have_the_documented_format(train: Train, console: Any) -> None:
    result = train(max_number_of_steps=25, log_every_n_steps=10)
    pattern = re.compile(
        r"INFO:tensorflow:step: (\d+)\(global step: (\d+)\)\tsample/sec: \d+\.\d{3}"
        r"\tloss: (\d+\.\d{3})\tmean: -?\d+\.\d{3}"
    )
    lines = [m for line in console.lines if (m := pattern.fullmatch(line))]
    assert [(m.group(1), m.group(2)) for m in lines] == [("0", "0"), ("10", "10"), ("20", "20")]
    assert result.metrics["loss"] == pytest.approx(float(lines[-1].group(3)), abs=5e-4)
    assert result.samples_per_s == pytest.approx(10 / result.step_s)


def test_global_step_goes_on_where_the_local_step_starts_anew(train: Train, tmp_path: Path, console: Any) -> None:
    train(log_dir=str(tmp_path), max_number_of_steps=7)
    train(log_dir=str(tmp_path), max_number_of_steps=18, log_every_n_steps=10)
    assert "step: 0(global step: 7)\t" in console.text
    assert "step: 10(global step: 17)\t" in console.text


def test_fetch_strategy_fn_decides_about_console_lines(train: Train, console: Any) -> None:
    train(max_number_of_steps=9, fetch_strategy_fn=lambda step: step in (2, 3, 7))
    assert re.findall(r"step: (\d+)\(global", console.text) == ["2", "3", "7"]


def test_eval_averages_over_all_rows(train: Train, linear: Any, variable: Any, tmp_path: Path, console: Any) -> None:
    trained = train(log_dir=str(tmp_path))
    result = mox.run(
        input_fn=linear.input_fn,
        model_fn=linear.model_fn,
        run_mode=mox.ModeKeys.EVAL,
        batch_size=16,  # 50 rows: 16 + 16 + 16 + 2
        log_dir=str(tmp_path),
    )
    w = variable(trained.checkpoint, "w")
    assert (result.local_steps, result.global_step, result.stop_reason) == (4, 5, "end_of_input")
    assert result.metrics["loss"] == pytest.approx(float(np.mean((linear.x @ w - linear.y) ** 2)), rel=1e-5)
    assert "evaluated 4 steps (global step: 5)\tloss: " in console.text
    assert checkpoints(tmp_path) == [5]


def test_eval_stops_at_the_step_limit(train: Train, linear: Any, tmp_path: Path) -> None:
    train(log_dir=str(tmp_path))
    result = mox.run(linear.input_fn, None, linear.model_fn, None, "EVAL", None, 10, True, str(tmp_path), 2)
    assert (result.local_steps, result.stop_reason) == (2, "max_steps")


def test_an_evaluation_that_is_stopped_does_not_ask_for_the_log_dir_that_it_has(
    train: Train, linear: Any, tmp_path: Path
) -> None:
    train(log_dir=str(tmp_path))

    def stop(step: int) -> bool:
        if step == 1:
            os.kill(os.getpid(), signal.SIGINT)
        return False

    with pytest.raises(InterruptedRunError, match="SIGINT after step 2; nothing was saved") as caught:
        mox.run(
            linear.input_fn, None, linear.model_fn, run_mode="EVAL", batch_size=10, log_dir=str(tmp_path),
            fetch_strategy_fn=stop,
        )  # fmt: skip
    assert caught.value.hint == "run it again"


def test_predict_hands_over_every_row_in_order(train: Train, linear: Any, variable: Any, tmp_path: Path) -> None:
    trained = train(log_dir=str(tmp_path))
    calls: list[list[dict[str, np.ndarray]]] = []
    result = mox.run(
        input_fn=linear.input_fn,
        model_fn=linear.model_fn,
        output_fn=lambda outputs, **kwargs: calls.append(outputs),
        run_mode=mox.ModeKeys.PREDICT,
        batch_size=8,
        output_every_n_steps=3,
        checkpoint_path=trained.checkpoint,
    )
    assert [len(call) for call in calls] == [3, 3, 1]  # seven batches: the rest comes at the end
    steps = [step for call in calls for step in call]
    np.testing.assert_array_equal(np.concatenate([s["x"] for s in steps]), linear.x)
    predicted = np.concatenate([s["predicted"] for s in steps])
    np.testing.assert_allclose(predicted, linear.x @ variable(trained.checkpoint, "w"), rtol=1e-5, atol=1e-6)
    assert (result.stop_reason, result.checkpoint) == ("end_of_input", trained.checkpoint)


def test_predict_without_a_period_calls_once(train: Train, linear: Any, tmp_path: Path) -> None:
    train(log_dir=str(tmp_path))
    calls: list[Any] = []
    mox.run(linear.input_fn, calls.append, linear.model_fn, run_mode="PREDICT", batch_size=8, log_dir=str(tmp_path))
    assert [len(call) for call in calls] == [7]


def test_output_fn_works_in_training_too(train: Train) -> None:
    calls: list[Any] = []
    train(output_fn=calls.append, output_every_n_steps=2, max_number_of_steps=5)
    assert [len(call) for call in calls] == [2, 2, 1]


def test_summaries_can_be_read_back(linear: Any, tmp_path: Path, train: Train) -> None:
    def model_fn(inputs: list[Any], mode: str) -> mox.ModelSpec:
        spec = linear.model_fn(inputs, mode)
        tf1.summary.scalar("own/double", spec.loss * 2)
        return spec

    def optimizer_fn() -> Any:
        rate = 0.1 / tf.cast(1 + tf1.train.get_or_create_global_step(), tf.float32)
        tf1.summary.scalar("rate", rate)
        return tf1.train.GradientDescentOptimizer(rate)

    train(
        model_fn=model_fn, optimizer_fn=optimizer_fn, log_dir=str(tmp_path), max_number_of_steps=5, save_summary_steps=2
    )
    (file,) = tmp_path.glob("events.out.tfevents.*")
    scalars: dict[str, dict[int, float]] = {}
    graphs = 0
    for event in tf1.train.summary_iterator(str(file)):
        graphs += event.HasField("graph_def")
        for value in event.summary.value:
            scalars.setdefault(value.tag, {})[event.step] = value.simple_value
    assert graphs == 1
    assert list(scalars["loss"]) == list(scalars["own/double"]) == list(scalars["rate"]) == [1, 3, 5]
    assert scalars["own/double"][1] == pytest.approx(2 * scalars["loss"][1])
    assert scalars["rate"][1] == pytest.approx(0.1)


def test_training_ends_with_the_input_and_keeps_the_last_rows(linear: Any, train: Train, tmp_path: Path) -> None:
    result = train(input_fn=linear.finite_input_fn, batch_size=20, log_dir=str(tmp_path), max_number_of_steps=10**9)
    assert (result.stop_reason, result.global_step) == ("end_of_input", 3)  # 20 + 20 + 10 rows
    assert checkpoints(tmp_path) == [3]


def test_training_to_the_end_of_the_input_needs_no_step_limit(linear: Any, train: Train) -> None:
    assert train(input_fn=linear.finite_input_fn, max_number_of_steps=0).global_step == 5


def test_an_endless_input_needs_a_step_limit(train: Train) -> None:
    with pytest.raises(UsageError, match="never ends"):
        train(max_number_of_steps=0)


def test_saving_by_seconds_wins_over_steps(train: Train, tmp_path: Path) -> None:
    train(log_dir=str(tmp_path), max_number_of_steps=10, save_model_steps=2, save_model_secs=1000)
    assert checkpoints(tmp_path) == [10]


def test_saving_by_seconds_saves_on_the_way(train: Train, tmp_path: Path, console: Any) -> None:
    train(log_dir=str(tmp_path), max_number_of_steps=400, save_model_secs=0.003)
    assert console.text.count("Saving checkpoints for") >= 2
    assert checkpoints(tmp_path)[-1] == 400


def test_without_log_dir_nothing_is_written(train: Train, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert train().checkpoint is None
    assert list(tmp_path.iterdir()) == []


def test_the_scripts_random_seed_counts(train: Train, linear: Any, tmp_path: Path, variable: Any) -> None:
    def model_fn(inputs: list[Any], mode: str) -> mox.ModelSpec:
        x, y = inputs
        w = tf1.get_variable("w", [3], initializer=tf1.random_normal_initializer())
        return mox.ModelSpec(loss=tf.reduce_mean(tf.square(tf.linalg.matvec(x, w) - y)))

    values = []
    for name in ("a", "b"):
        with tf1.Graph().as_default():
            tf1.set_random_seed(42)
            result = train(model_fn=model_fn, log_dir=str(tmp_path / name))
        values.append(variable(result.checkpoint, "w"))
    np.testing.assert_array_equal(*values)


def test_several_losses_train_their_own_scopes_from_the_same_point(train: Train, variable: Any, tmp_path: Path) -> None:
    def model_fn(inputs: list[Any], mode: str) -> mox.ModelSpec:
        with tf1.variable_scope("one"):
            a = tf1.get_variable("a", initializer=1.0)
        with tf1.variable_scope("two"):
            b = tf1.get_variable("b", initializer=2.0)
        return mox.ModelSpec(loss=[a * b, a * a * b], var_scopes=[["one"], ["two"]])

    result = train(model_fn=model_fn, optimizer_fn=[SGD, SGD], max_number_of_steps=1, log_dir=str(tmp_path))
    assert result.global_step == 1
    assert variable(result.checkpoint, "one/a") == pytest.approx(1.0 - 0.1 * 2.0)
    assert variable(result.checkpoint, "two/b") == pytest.approx(2.0 - 0.1 * 1.0)  # a was still 1
    assert variable(result.checkpoint, "global_step") == 1


# -- export after the run


def served(path: str, rows: np.ndarray) -> np.ndarray:
    """Load an exported version and ask it."""
    with tf1.Graph().as_default(), tf1.Session() as session:
        signatures = tf1.saved_model.load(session, ["serve"], path).signature_def
        signature = signatures["serving_default"]
        feed = {signature.inputs["x"].name: rows}
        answer: np.ndarray = session.run(signature.outputs["predicted"].name, feed)
        return answer


def test_training_exports_what_it_trained(train: Train, linear: Any, variable: Any, tmp_path: Path) -> None:
    result = train(log_dir=str(tmp_path), export_model=mox.ExportKeys.TF_SERVING)
    assert result.export.path == str(tmp_path / "1")
    assert result.export.warmup_records > 0
    rows = linear.x[:7]  # any number of rows, because batches were made by the run
    np.testing.assert_allclose(served(result.export.path, rows), rows @ variable(result.checkpoint, "w"), rtol=1e-5)


def test_a_trained_model_is_exported_again_without_training(train: Train, tmp_path: Path) -> None:
    train(log_dir=str(tmp_path))
    result = train(log_dir=str(tmp_path), export_model=True)
    assert result.stop_reason == "already_trained"
    assert result.export.version == 1
    assert result.export.warmup_records > 0  # rows were read although no step was made


def test_evaluation_exports_too(train: Train, linear: Any, tmp_path: Path) -> None:
    train(log_dir=str(tmp_path))
    result = mox.run(
        linear.input_fn, None, linear.model_fn, run_mode="EVAL", batch_size=10, log_dir=str(tmp_path), export_model=True
    )
    assert result.export.version == 1


def test_ready_batches_keep_their_size_in_the_export(train: Train, linear: Any, tmp_path: Path) -> None:
    def batches(mode: str) -> Any:
        dataset = tf1.data.Dataset.from_tensor_slices((linear.x, linear.y)).repeat().batch(10, drop_remainder=True)
        return dataset.make_one_shot_iterator().get_next()

    result = train(input_fn=batches, auto_batch=False, log_dir=str(tmp_path), export_model=True)
    assert result.export.signatures["serving_default"].inputs["x"].shape == (10, 3)


# -- what goes wrong


def bad_input(value: Any) -> Callable[[str], Any]:
    return lambda mode: value() if callable(value) else value


INPUT_ERRORS = {
    "numpy": (bad_input(np.zeros(3)), "input_fn returned ndarray at position 0"),
    "python": (bad_input([1.0]), "input_fn returned float"),
    "none": (bad_input(None), "input_fn returned nothing"),
    "placeholder": (bad_input(lambda: tf1.placeholder(tf.float32, [3])), "placeholder"),
    "no mode": (lambda a, b, c, d: None, "input_fn.* cannot be called"),
    "missing": (None, "needs input_fn"),
    "tensor": (3, "input_fn must be a function"),
}


@pytest.mark.parametrize("case", INPUT_ERRORS)
def test_input_fn_errors(train: Train, case: str) -> None:
    function, message = INPUT_ERRORS[case]
    with pytest.raises(ModelSpecError, match=message):
        train(input_fn=function)


def test_a_tensor_made_outside_of_input_fn_is_explained(train: Train) -> None:
    outside = tf.constant([1.0, 2.0])
    with pytest.raises(ModelSpecError, match="made outside"):
        train(input_fn=lambda mode: outside)


def spec(**fields: Any) -> Callable[..., Any]:
    def model_fn(inputs: list[Any], mode: str) -> Any:
        w = tf1.get_variable("w", [3])
        return mox.ModelSpec(**{k: v(w) if callable(v) else v for k, v in fields.items()})

    return model_fn


MODEL_ERRORS: dict[str, tuple[Any, str]] = {
    "returns a tensor": (lambda inputs, mode: tf.constant(0.0), "model_fn returned (Eager)?Tensor|SymbolicTensor"),
    "no loss": (spec(log_info={}), "without loss, which TRAIN needs"),
    "vector loss": (spec(loss=lambda w: w), r"loss\['\[0\]'\] has the shape \(3,\)"),
    "python loss": (spec(loss=0.5), "is a float, not a tensor"),
    "vector log_info": (spec(loss=lambda w: w[0], log_info=lambda w: {"w": w}), r"log_info\['w'\] has the shape"),
    "constant loss": (spec(loss=lambda w: tf.constant(1.0)), "does not depend on any"),
    "log_info list": (spec(loss=lambda w: w[0], log_info=lambda w: [w]), "log_info must be a dict"),
    "hook class": (spec(loss=lambda w: w[0], hooks=[mox.FeedSessionRunHook]), "holds the class FeedSessionRunHook"),
    "no hook": (spec(loss=lambda w: w[0], hooks=["x"]), "holds a str, which is no hook"),
    "single hook": (spec(loss=lambda w: w[0], hooks=mox.FeedSessionRunHook({})), "must be a list of hooks"),
    "unknown scope": (spec(loss=lambda w: w[0], var_scopes=["ww"]), "'ww', which holds no trainable"),
    "export dict": (spec(loss=lambda w: w[0], export_spec={"a": 1}), "must be a mox.ExportSpec, not dict"),
    "losses without scopes": (spec(loss=lambda w: [w[0], w[1]], var_scopes=["w"]), "one list for each of the 2 losses"),
}


@pytest.mark.parametrize("case", MODEL_ERRORS)
def test_model_fn_errors(train: Train, case: str) -> None:
    function, message = MODEL_ERRORS[case]
    with pytest.raises(ModelSpecError, match=message):
        train(model_fn=function)


def test_inputs_used_as_a_tensor_are_explained(train: Train) -> None:
    def as_tensor(inputs: Any, mode: str) -> Any:
        return tf.matmul(inputs, tf.ones([3, 1]))

    def by_attribute(inputs: Any, mode: str) -> Any:
        return inputs.shape

    one = lambda mode: tf1.random_uniform([3])  # noqa: E731
    with pytest.raises(ValueError, match=r"inputs is a list of 1 tensor\(s\).*images = inputs\[0\]"):
        train(input_fn=one, model_fn=as_tensor)
    with pytest.raises(AttributeError, match=r"no attribute 'shape': inputs is a list of 1 tensor"):
        train(input_fn=one, model_fn=by_attribute)


def test_inputs_can_be_used_as_any_list(train: Train) -> None:
    def model_fn(inputs: list[Any], mode: str) -> mox.ModelSpec:
        stacked = tf.stack(inputs) + tf.stack(inputs, axis=0)
        total = tf.add_n(inputs) + tf.concat(inputs, 0)[:10]
        return mox.ModelSpec(loss=tf1.get_variable("w", []) * (tf.reduce_sum(stacked) + tf.reduce_sum(total)))

    assert train(input_fn=lambda mode: [tf1.random_uniform([2])] * 2, model_fn=model_fn).local_steps == 5


def test_samples_of_different_shapes_are_explained(train: Train) -> None:
    def input_fn(mode: str) -> Any:
        sizes = tf1.data.Dataset.from_tensor_slices([2, 2, 3]).repeat()
        return tf.zeros([sizes.make_one_shot_iterator().get_next()])

    def model_fn(inputs: list[Any], mode: str) -> mox.ModelSpec:
        return mox.ModelSpec(loss=tf1.get_variable("w", []) * tf.reduce_sum(inputs[0]))

    with pytest.raises(DataError, match=r"cannot be made a batch: .*\[[23]\].*\[[23]\]") as caught:
        train(input_fn=input_fn, model_fn=model_fn)
    assert "auto_batch=False" in str(caught.value)


def test_no_variables_is_explained(train: Train) -> None:
    with pytest.raises(ModelSpecError, match="no trainable variables"):
        train(model_fn=lambda inputs, mode: mox.ModelSpec(loss=tf.constant(1.0)))


OPTIMIZER_ERRORS: dict[str, tuple[Any, str]] = {
    "an optimizer": (
        lambda: tf1.train.MomentumOptimizer(0.1, 0.9),
        "put a lambda before it: optimizer_fn=lambda: tf.train.Mom",
    ),
    "a factory of factories": (lambda: lambda: SGD, "returned function; expected a tf.compat.v1.train.Optimizer"),
    "one too many": (lambda: [SGD, SGD], "list of 2, but model_fn returned 1 loss"),
    "none": (lambda: None, "needs optimizer_fn in TRAIN"),
    "Keras'": (lambda: tf.keras.optimizers.legacy.Adam, r"Adam, an optimizer of Keras.*get_optimizer_fn\('adam'"),
    "a number": (lambda: 0.1, "must be a function, not float"),
}


@pytest.mark.parametrize("case", OPTIMIZER_ERRORS)
def test_optimizer_fn_errors(train: Train, case: str) -> None:
    make, message = OPTIMIZER_ERRORS[case]
    with pytest.raises(ModelSpecError, match=message):
        train(optimizer_fn=make())


ARGUMENT_ERRORS: dict[str, tuple[dict[str, Any], str]] = {
    "mode missing": ({"run_mode": "invalid"}, "run_mode='invalid' is not a mode"),
    "mode misspelt": ({"run_mode": "train"}, "did you mean 'TRAIN'"),
    "mode EXPORT": ({"run_mode": "EXPORT"}, "export_model=mox.ExportKeys.TF_SERVING"),
    "inter_mode misspelt": ({"inter_mode": "eval"}, "inter_mode='eval' is not a mode; did you mean 'EVAL'"),
    "inter_mode EXPORT": ({"inter_mode": "EXPORT"}, "inter_mode='EXPORT' cannot be asked for"),
    "no batch_size": ({"batch_size": None}, "needs batch_size, also with auto_batch=False"),
    "batch_size 0": ({"batch_size": 0}, "batch_size=0"),
    "batch_size text": ({"batch_size": "32"}, "batch_size='32'"),
    "steps float": ({"max_number_of_steps": 10.5}, "max_number_of_steps=10.5"),
    "negative secs": ({"save_model_secs": -1}, "save_model_secs=-1"),
    "log every -1": ({"log_every_n_steps": -1}, "log_every_n_steps=-1"),
    "remote log_dir": ({"log_dir": "hdfs://name/log"}, "expected a path of this machine"),
    "export without log_dir": ({"export_model": "TF_SERVING"}, "needs log_dir"),
    "export kind": ({"export_model": "TF_SERVNG", "log_dir": "x"}, "did you mean 'TF_SERVING'"),
    "output_fn never called": ({"output_fn": print}, "output_every_n_steps, which is 0"),
}


@pytest.mark.parametrize("case", ARGUMENT_ERRORS)
def test_argument_errors(train: Train, case: str) -> None:
    arguments, message = ARGUMENT_ERRORS[case]
    with pytest.raises(UsageError, match=message):
        train(**arguments)


def test_a_mode_other_than_train_needs_a_checkpoint(linear: Any, tmp_path: Path) -> None:
    for kwargs in ({}, {"log_dir": str(tmp_path)}, {"checkpoint_path": str(tmp_path / "model.ckpt-9")}):
        with pytest.raises(CheckpointError, match="EVAL needs a checkpoint"):
            mox.run(linear.input_fn, None, linear.model_fn, run_mode="EVAL", batch_size=4, **kwargs)


def test_a_mode_that_lacks_its_field_says_which(train: Train, linear: Any, tmp_path: Path) -> None:
    train(log_dir=str(tmp_path))

    def model_fn(inputs: list[Any], mode: str) -> mox.ModelSpec:
        return mox.ModelSpec(loss=linear.model_fn(inputs, mode).loss)

    common: dict[str, Any] = {
        "input_fn": linear.input_fn,
        "model_fn": model_fn,
        "batch_size": 4,
        "log_dir": str(tmp_path),
    }
    with pytest.raises(ModelSpecError, match="without log_info, which EVAL needs"):
        mox.run(run_mode="EVAL", **common)
    with pytest.raises(ModelSpecError, match="without output_info, which PREDICT needs"):
        mox.run(run_mode="PREDICT", output_fn=print, **common)
    with pytest.raises(ModelSpecError, match="needs output_fn"):
        mox.run(run_mode="PREDICT", **common)


def test_metrics_of_an_empty_evaluation_are_nan(train: Train, linear: Any, tmp_path: Path) -> None:
    train(log_dir=str(tmp_path))

    def empty(mode: str) -> Any:
        return tf1.data.Dataset.from_tensor_slices((linear.x[:0], linear.y[:0])).make_one_shot_iterator().get_next()

    result = mox.run(empty, None, linear.model_fn, run_mode="EVAL", batch_size=4, log_dir=str(tmp_path))
    assert result.local_steps == 0
    assert math.isnan(result.metrics["loss"])


def test_evaluation_summaries_lie_beside_those_of_training(linear: Any, train: Any, tmp_path: Path) -> None:
    trained = train(log_dir=str(tmp_path / "run"), max_number_of_steps=2)
    common = {"input_fn": linear.input_fn, "model_fn": linear.model_fn, "run_mode": "EVAL", "batch_size": 10}
    mox.run(**common, log_dir=str(tmp_path / "run"), max_number_of_steps=1)
    mox.run(**common, log_dir=str(tmp_path / "apart"), checkpoint_path=trained.checkpoint, max_number_of_steps=1)
    assert list((tmp_path / "run" / "eval").glob("events.out.tfevents.*"))
    assert list((tmp_path / "apart").glob("events.out.tfevents.*"))
    assert not (tmp_path / "apart" / "eval").exists()
