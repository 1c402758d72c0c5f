"""`run(inter_mode=...)`: evaluations in the middle of training, what they print, and that training does not notice."""

from __future__ import annotations

import itertools
import os
import re
import signal
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import moxserve.tensorflow as mox
from moxserve.errors import DataError, InterruptedRunError, ModelSpecError, UsageError
from moxserve.tensorflow.executor.env import tf, tf1

Train = Callable[..., mox.RunResult]

TRAIN_ROWS, EVAL_ROWS, BATCH = 1000, 100, 32
_random = np.random.default_rng(11)
X = _random.normal(size=(TRAIN_ROWS + EVAL_ROWS, 3)).astype(np.float32)
Y = (X @ np.array([1.0, -2.0, 0.5]) + 0.1 * _random.normal(size=len(X))).astype(np.float32)


def input_fn(mode: str, **kwargs: Any) -> Any:
    """The first rows for training, for ever; the rest, once, for everything else."""
    part = slice(0, TRAIN_ROWS) if mode == mox.ModeKeys.TRAIN else slice(TRAIN_ROWS, None)
    dataset = tf1.data.Dataset.from_tensor_slices((X[part], Y[part]))
    return (dataset.repeat() if mode == mox.ModeKeys.TRAIN else dataset).make_one_shot_iterator().get_next()


def loss_of(inputs: list[Any]) -> Any:
    x, y = inputs
    w = tf1.get_variable("w", [3], initializer=tf1.zeros_initializer())
    return tf.reduce_mean(tf.square(tf.linalg.matvec(x, w) - y))


def log_hook(monitor_info: Any, **kwargs: Any) -> mox.LogEvaluationMetricHook:
    sizes = {"batch_size": BATCH, "samples_in_train": TRAIN_ROWS, "samples_in_eval": EVAL_ROWS}
    return mox.LogEvaluationMetricHook(monitor_info=monitor_info, **{**sizes, **kwargs})


def model_with(make_hook: Callable[[Any], Any] = lambda loss: log_hook({"loss": loss})) -> Callable[..., Any]:
    def model_fn(inputs: list[Any], mode: str, **kwargs: Any) -> mox.ModelSpec:
        loss = loss_of(inputs)
        return mox.ModelSpec(loss=loss, log_info={"loss": loss}, hooks=[make_hook(loss)])

    return model_fn


class InterHook(mox.AggregativeSessionRunHook):
    """A user's own: evaluates after given steps and keeps what it got."""

    def __init__(self, monitor_info: Any = None, at: tuple[int, ...] = (), n_steps: int = 0) -> None:
        self.monitor_info = monitor_info
        self.at, self.n_steps = at, n_steps
        self.got: list[dict[str, float]] = []
        self.steps = 0
        self.began = 0

    def support_aggregation(self) -> bool:
        return False

    def support_sync_workers(self) -> bool:
        return False

    def run_inter_mode(self) -> bool:
        return True

    def begin(self) -> None:
        self.began += 1

    def after_run(self, run_context: Any, run_values: Any) -> None:
        if self.steps in self.at:
            self.got.append(self.run_inter(self.n_steps))
        self.steps += 1


@pytest.fixture
def run_inter(train: Train) -> Train:
    """TRAIN with evaluations on the problem of this file."""

    def call(**kwargs: Any) -> mox.RunResult:
        defaults = {"input_fn": input_fn, "model_fn": model_with(), "batch_size": BATCH, "inter_mode": "EVAL"}
        return train(**{**defaults, **kwargs})

    return call


def weights_after(steps: int, rate: float = 0.1) -> np.ndarray:
    w = np.zeros(3)
    for step in range(steps):
        index = np.arange(step * BATCH, (step + 1) * BATCH) % TRAIN_ROWS
        x, y = X[index].astype(np.float64), Y[index].astype(np.float64)
        w -= rate * 2 * x.T @ (x @ w - y) / BATCH
    return w


def eval_loss(w: np.ndarray, rows: int = EVAL_ROWS) -> float:
    x, y = X[TRAIN_ROWS : TRAIN_ROWS + rows], Y[TRAIN_ROWS : TRAIN_ROWS + rows]
    return float(np.mean((x @ w - y) ** 2))


def printed(console: Any, prefix: str = "[VALIDATION METRICS]") -> list[tuple[int, str]]:
    """The steps and the rest of the lines with this prefix."""
    pattern = re.compile(rf"INFO:tensorflow:{re.escape(prefix)} step: (\d+) (.*)")
    return [(int(m.group(1)), m.group(2)) for line in console.lines if (m := pattern.fullmatch(line))]


def scalars(folder: Path) -> list[tuple[int, dict[str, float]]]:
    """What a folder's event files hold, by step."""
    files = [str(file) for file in folder.glob("events.out.tfevents.*")]
    events = [event for file in files for event in tf1.train.summary_iterator(file) if event.summary.value]
    return sorted(((e.step, {v.tag: v.simple_value for v in e.summary.value}) for e in events), key=lambda e: e[0])


# -- what is evaluated, and when


def test_every_epoch_is_evaluated_as_documented(run_inter: Train, console: Any) -> None:
    run_inter(max_number_of_steps=100)
    expected = [(step, f"loss: {eval_loss(weights_after(step + 1)):.3f}") for step in (31, 63, 95)]
    assert printed(console) == expected
    lines = [line for line in console.lines if " step: 31 " in line or "step: 30(" in line or "step: 40(" in line]
    assert ["step: 30(" in lines[0], "step: 31 " in lines[1], "step: 40(" in lines[2]] == [True] * 3


@pytest.mark.slow
@pytest.mark.parametrize(
    ("samples", "epochs", "steps"), [(640, 1, [19, 39, 59]), (1000, 2, [63]), (20, 1, list(range(64))), (4096, 1, [])]
)
def test_epochs_are_counted_in_whole_steps(
    samples: int, epochs: int, steps: list[int], run_inter: Train, console: Any
) -> None:
    def make(loss: Any) -> Any:
        return log_hook({"loss": loss}, samples_in_train=samples, evaluate_every_n_epochs=epochs, samples_in_eval=1)

    run_inter(model_fn=model_with(make), max_number_of_steps=64)
    assert [step for step, _ in printed(console)] == steps


def test_samples_in_eval_bounds_the_evaluation_and_the_end_of_the_input_does_too(run_inter: Train) -> None:
    hooks: list[InterHook] = []

    def model_fn(inputs: list[Any], mode: str) -> mox.ModelSpec:
        loss = loss_of(inputs)
        rows = tf.cast(tf.shape(inputs[0])[0], tf.float32)
        made = [InterHook({"loss": loss, "rows": rows}, at=(1, 3), n_steps=n) for n in (2, 50, 0)]
        hooks.extend(made)
        return mox.ModelSpec(loss=loss, hooks=made)

    run_inter(model_fn=model_fn)
    two, fifty, all_rows = hooks[:3]  # those of TRAIN; the other three only lent their tensors
    for position, step in enumerate((1, 3)):
        w = weights_after(step + 1)
        assert two.got[position]["loss"] == pytest.approx(eval_loss(w, 64), rel=1e-4)
        assert two.got[position]["rows"] == 32
        # 32 + 32 + 32 + 4 rows: the last, small batch counts for less
        assert fifty.got[position]["loss"] == pytest.approx(eval_loss(w), rel=1e-4)
        assert fifty.got[position]["rows"] == pytest.approx((3 * 32 * 32 + 4 * 4) / 100)
    assert all_rows.got == fifty.got
    assert [hook.began for hook in hooks] == [1, 1, 1, 0, 0, 0]


def test_a_hook_may_evaluate_before_and_after_training(run_inter: Train, tmp_path: Path) -> None:
    class Around(InterHook):
        def after_create_session(self, session: Any, coord: Any) -> None:
            self.got.append(self.run_inter())

        def end(self, session: Any) -> None:
            self.got.append(self.run_inter())

    hooks: list[InterHook] = []

    def make(loss: Any) -> Any:
        hooks.append(Around({"loss": loss}))
        return hooks[-1]

    run_inter(model_fn=model_with(make), max_number_of_steps=3, log_dir=str(tmp_path))
    expected = [{"loss": pytest.approx(eval_loss(weights_after(steps)), rel=1e-4)} for steps in (0, 3)]
    assert hooks[0].got == expected
    assert scalars(tmp_path / "eval") == [(0, expected[0]), (3, expected[1])]


def test_epochs_go_on_with_the_run_and_the_printed_step_is_that_of_this_run(
    run_inter: Train, console: Any, tmp_path: Path
) -> None:
    run_inter(max_number_of_steps=40, log_dir=str(tmp_path))
    run_inter(max_number_of_steps=80, log_dir=str(tmp_path))
    assert [step for step, _ in printed(console)] == [31, 23]  # global steps 32 and 64


def test_an_idle_evaluation_hook_is_not_called(run_inter: Train) -> None:
    calls: list[int] = []

    class Counting(mox.LogEvaluationMetricHook):
        def before_run(self, run_context: Any) -> None:
            calls.append(run_context.clock.run_step)

    def make(loss: Any) -> Any:
        return Counting({"loss": loss}, BATCH, TRAIN_ROWS, EVAL_ROWS)

    run_inter(model_fn=model_with(make), max_number_of_steps=70)
    assert calls == [31, 63]


@pytest.mark.parametrize(("own", "steps"), [(None, 5), (False, 9), (True, 13)])
def test_hooks_that_evaluate_after_the_same_step_share_the_pass(
    own: bool | None, steps: int, run_inter: Train, console: Any, tmp_path: Path
) -> None:
    """Unless a hook between them evaluates for itself, or might do so and change variables."""
    made: list[int] = []

    def model_fn(inputs: list[Any], mode: str) -> mox.ModelSpec:
        y, loss = inputs[1], loss_of(inputs)
        if mode == "EVAL":
            (loss,) = tf1.py_func(lambda value: (made.append(1), value)[1:], [loss], [tf.float32])
            loss.set_shape([])
        largest = mox.over_all_rows(tf.reduce_max(y), [y], np.max)
        hooks: list[Any] = [log_hook({"loss": loss, "a/max": largest})]
        if own is not None:
            hooks.append(InterHook({"loss": loss}, at=(31, 63) if own else ()))
        hooks.append(log_hook({"double": 2 * loss, "loss": loss, "max": largest}, prefix="[2]"))
        hooks.append(log_hook({"loss": loss}, samples_in_eval=32, prefix="[3]"))
        return mox.ModelSpec(loss=loss, hooks=hooks)

    run_inter(model_fn=model_fn, max_number_of_steps=64, log_dir=str(tmp_path))
    assert len(made) == 2 * steps
    largest = np.max(Y[TRAIN_ROWS:])
    for step in (31, 63):
        loss, part = (eval_loss(weights_after(step + 1), rows) for rows in (EVAL_ROWS, 32))
        assert (step, f"loss: {loss:.3f} a/max: {largest:.3f}") in printed(console)
        assert (step, f"double: {2 * loss:.3f} loss: {loss:.3f} max: {largest:.3f}") in printed(console, "[2]")
        assert (step, f"loss: {part:.3f}") in printed(console, "[3]")
    if own is None:
        written = [set(values) for _, values in scalars(tmp_path / "eval")]
        assert {"a/max", "double", "loss", "max"} in written


@pytest.mark.parametrize("mode", ["EVAL", "PREDICT", "TRAIN"])
def test_the_functions_are_called_in_both_modes(mode: str, run_inter: Train) -> None:
    calls: list[tuple[str, str]] = []
    model_fn = model_with()

    def watched_input_fn(run_mode: str) -> Any:
        calls.append(("input", run_mode))
        return input_fn(run_mode)

    def watched_model_fn(inputs: list[Any], run_mode: str) -> Any:
        calls.append(("model", run_mode))
        return model_fn(inputs, run_mode)

    run_inter(input_fn=watched_input_fn, model_fn=watched_model_fn, inter_mode=mode, max_number_of_steps=33)
    assert calls == [("input", "TRAIN"), ("model", "TRAIN"), ("input", mode), ("model", mode)]


def test_ready_batches_and_inputs_that_start_with_the_tables_start_again(run_inter: Train) -> None:
    hooks: list[InterHook] = []

    def own_iterator(mode: str) -> Any:
        dataset = tf1.data.Dataset.from_tensor_slices((X[TRAIN_ROWS:], Y[TRAIN_ROWS:])).batch(BATCH)
        iterator = tf1.data.make_initializable_iterator(dataset.repeat() if mode == "TRAIN" else dataset)
        tf1.add_to_collection(tf1.GraphKeys.TABLE_INITIALIZERS, iterator.initializer)
        return iterator.get_next()

    def make(loss: Any) -> Any:
        hooks.append(InterHook({"loss": loss}, at=(0, 1, 2)))
        return hooks[-1]

    def frozen() -> Any:
        return tf1.train.GradientDescentOptimizer(0.0)

    run_inter(input_fn=own_iterator, auto_batch=False, model_fn=model_with(make), optimizer_fn=frozen)
    got = [values["loss"] for values in hooks[0].got]
    assert got == [got[0]] * 3
    assert got[0] == pytest.approx(eval_loss(np.zeros(3)), rel=1e-4)


# -- training does not notice


def normalised_model(library: str, hook: Callable[[Any], Any]) -> Callable[..., Any]:
    def model_fn(inputs: list[Any], mode: str) -> mox.ModelSpec:
        x, y = inputs
        training = mode == mox.ModeKeys.TRAIN
        if library == "tf1.layers":
            h = tf1.layers.batch_normalization(x, training=training, momentum=0.9, name="bn", fused=False)
        else:
            h = tf.keras.layers.BatchNormalization(momentum=0.9, name="bn")(x, training=training)
        w = tf1.get_variable("w", [3], initializer=tf1.random_normal_initializer())
        h = tf1.layers.dropout(h, 0.2, training=training)
        loss = tf.reduce_mean(tf.square(tf.linalg.matvec(h, w) - y))
        return mox.ModelSpec(loss=loss, log_info={"loss": loss}, hooks=[hook(loss)] if hook else [])

    return model_fn


@pytest.mark.slow
@pytest.mark.parametrize("library", ["tf1.layers", "tf.keras"])
def test_training_is_bit_identical_with_and_without_evaluations(
    library: str, run_inter: Train, tmp_path: Path, console: Any
) -> None:
    def shuffled(mode: str) -> Any:
        dataset = tf1.data.Dataset.from_tensor_slices((X, Y)).shuffle(200)
        x, y = (dataset.repeat() if mode == "TRAIN" else dataset).make_one_shot_iterator().get_next()
        return x + tf1.random_normal([3], stddev=0.1), y

    checkpoints = []
    for name, hook, mode in (("with", lambda loss: log_hook({"loss": loss}), "EVAL"), ("without", None, None)):
        with tf1.Graph().as_default():
            tf1.set_random_seed(5)
            result = run_inter(
                input_fn=shuffled, model_fn=normalised_model(library, hook), inter_mode=mode, max_number_of_steps=70,
                optimizer_fn=mox.get_optimizer_fn("momentum", learning_rate=0.05), log_dir=str(tmp_path / name),
            )  # fmt: skip
        checkpoints.append(tf1.train.NewCheckpointReader(result.checkpoint))
    shapes = checkpoints[0].get_variable_to_shape_map()
    assert shapes == checkpoints[1].get_variable_to_shape_map()
    assert len(shapes) >= 8  # four of the normalisation, w, three momenta, the step
    for name in shapes:
        np.testing.assert_array_equal(checkpoints[0].get_tensor(name), checkpoints[1].get_tensor(name), err_msg=name)
    assert len(printed(console)) == 2


@pytest.mark.slow
@pytest.mark.parametrize("library", ["tf1.layers", "tf.keras"])
def test_an_evaluation_uses_the_moving_averages_and_changes_nothing(library: str, run_inter: Train) -> None:
    states: list[tuple[dict[str, Any], dict[str, Any], float]] = []

    class Comparing(InterHook):
        def begin(self) -> None:
            self.variables = {v.op.name: v for v in tf1.global_variables()}

        def after_run(self, run_context: Any, run_values: Any) -> None:
            before = run_context.session.run(self.variables)
            loss = self.run_inter()["loss"]
            states.append((before, run_context.session.run(self.variables), loss))

    run_inter(model_fn=normalised_model(library, lambda loss: Comparing({"loss": loss})), max_number_of_steps=4)
    for before, after, loss in states:
        for name, value in before.items():
            np.testing.assert_array_equal(value, after[name], err_msg=name)
        x, y = X[TRAIN_ROWS:].astype(np.float64), Y[TRAIN_ROWS:]
        scaled = (x - before["bn/moving_mean"]) / np.sqrt(before["bn/moving_variance"] + 1e-3)
        h = scaled * before["bn/gamma"] + before["bn/beta"]
        assert loss == pytest.approx(float(np.mean((h @ before["w"] - y) ** 2)), rel=1e-4)
    means = [before["bn/moving_mean"] for before, _, _ in states]
    assert all(not np.array_equal(a, b) for a, b in itertools.pairwise(means))  # training moves them


def test_summaries_and_collections_of_the_evaluation_stay_out_of_training(run_inter: Train, tmp_path: Path) -> None:
    seen: dict[str, int] = {}

    class Looking(InterHook):
        def begin(self) -> None:
            for key in (tf1.GraphKeys.SUMMARIES, tf1.GraphKeys.UPDATE_OPS, tf1.GraphKeys.LOSSES, "own"):
                seen[key] = len(tf1.get_collection(key))

    def model_fn(inputs: list[Any], mode: str) -> mox.ModelSpec:
        x, y = inputs
        h = tf1.layers.batch_normalization(x, training=True, name="bn")
        tf1.add_to_collection("own", h)
        w = tf1.get_variable("w", [3], initializer=tf1.zeros_initializer())
        loss = tf1.losses.mean_squared_error(y, tf.linalg.matvec(h, w))
        tf1.summary.scalar(f"own_{mode}", loss)
        return mox.ModelSpec(loss=loss, hooks=[Looking({"loss": loss})])

    run_inter(model_fn=model_fn, log_dir=str(tmp_path), save_summary_steps=1)
    assert list(seen.values()) == [1, 2, 1, 1]
    (file,) = tmp_path.glob("events.out.tfevents.*")
    tags = {value.tag for event in tf1.train.summary_iterator(str(file)) for value in event.summary.value}
    assert {tag for tag in tags if not tag.startswith("mox/")} == {"own_TRAIN"}  # those are of the machine


@pytest.mark.parametrize("every", [100, 0])
def test_the_means_are_written_for_tensorboard(every: int, run_inter: Train, tmp_path: Path) -> None:
    run_inter(max_number_of_steps=64, log_dir=str(tmp_path), save_summary_steps=every)
    expected = [(n, {"loss": pytest.approx(eval_loss(weights_after(n)), rel=1e-4)}) for n in (32, 64)]
    assert scalars(tmp_path / "eval") == (expected if every else [])


@pytest.mark.slow
def test_evaluations_are_left_out_of_the_speed_of_training(run_inter: Train, console: Any) -> None:
    def slow_input_fn(mode: str) -> Any:
        x, y = input_fn(mode)
        if mode == mox.ModeKeys.EVAL:
            (y,) = tf1.py_func(_wait, [y], [tf.float32])
            y.set_shape([])
        return x, y

    def model_fn(inputs: list[Any], mode: str, **kwargs: Any) -> mox.ModelSpec:
        loss = loss_of(inputs)
        hook = log_hook({"loss": loss}, samples_in_train=BATCH * 5, samples_in_eval=BATCH)
        return mox.ModelSpec(loss=loss, log_info={"loss": loss}, hooks=[hook, stopwatch])

    stopwatch = Stopwatch()
    result = run_inter(input_fn=slow_input_fn, model_fn=model_fn, max_number_of_steps=11, log_every_n_steps=10)
    assert len(printed(console)) == 2
    waited = 2 * 32 * WAIT_S / 8  # at least: two evaluations of 32 rows, on eight threads at most
    assert result.step_s * 10 <= stopwatch.wall_s - waited
    rates = re.findall(r"step: 10\(.*sample/sec: (\d+\.\d+)", console.text)
    assert 10 * BATCH / float(rates[0]) <= stopwatch.wall_s - waited + 0.01  # it is rounded


class Stopwatch(tf1.train.SessionRunHook):  # type: ignore[misc]
    """How long training and evaluations took, from the first step on."""

    def begin(self) -> None:
        self.began = 0.0

    def before_run(self, run_context: Any) -> None:
        self.began = self.began or time.perf_counter()

    def end(self, session: Any) -> None:
        self.wall_s = time.perf_counter() - self.began


WAIT_S = 0.03


def _wait(value: np.ndarray) -> np.ndarray:
    time.sleep(WAIT_S)
    return value


# -- early stopping


def scripted(values: list[float], **kwargs: Any) -> Callable[..., Any]:
    """A model whose evaluations give these values, one each, whatever was learnt."""
    remaining = iter(values)

    def model_fn(inputs: list[Any], mode: str) -> mox.ModelSpec:
        loss = loss_of(inputs)

        class Scripted(mox.EarlyStoppingHook):
            def run_inter(self, n_steps: int = 0) -> dict[str, float]:
                assert super().run_inter(n_steps).keys() == {"accuracy"}
                return {"accuracy": next(remaining)}

        arguments = {"batch_size": BATCH, "samples_in_train": 64, "samples_in_eval": 32, **kwargs}
        return mox.ModelSpec(loss=loss, hooks=[Scripted({"accuracy": loss}, "accuracy", **arguments)])

    return model_fn


NAN = float("nan")


@pytest.mark.slow
@pytest.mark.parametrize(
    ("values", "arguments", "evaluations"),
    [
        ([0.0] * 9, {"min_delta": 0.01, "patience": 3}, 4),  # as documented: the first cannot be judged
        ([0.5, 0.6, 0.7, 0.7, 0.7, 0.8], {"patience": 2}, 5),
        ([0.5, 0.4, 0.6, 0.5, 0.5, 0.5], {"patience": 3}, 6),  # better than the best starts the count anew
        ([0.5, 0.505, 0.509, 0.9], {"min_delta": 0.01, "patience": 2}, 3),  # small steps are none
        ([0.5, 0.4, 0.9], {"patience": 0}, 2),
        ([0.9, 0.5, 0.4, 0.4, 0.4], {"patience": 2, "mode": "min"}, 5),
        ([0.5, NAN, NAN, 0.9], {"patience": 2}, 3),
        ([NAN, 0.5, 0.6, 0.6, 0.6], {"patience": 2}, 5),
    ],
)
def test_early_stopping(
    values: list[float], arguments: dict[str, Any], evaluations: int, run_inter: Train, console: Any, tmp_path: Path
) -> None:
    result = run_inter(model_fn=scripted(values, **arguments), max_number_of_steps=100, log_dir=str(tmp_path))
    assert [step for step, _ in printed(console, "[EarlyStopping]")] == [2 * n + 1 for n in range(evaluations)]
    assert (result.stop_reason, result.global_step) == ("request_stop", 2 * evaluations)
    assert result.checkpoint == str(tmp_path / f"model.ckpt-{2 * evaluations}")
    assert f"in {max(1, arguments['patience'])} evaluation(s): training ends" in console.text


def test_early_stopping_on_a_real_loss_that_has_arrived(run_inter: Train, console: Any) -> None:
    def make(loss: Any) -> Any:
        return mox.EarlyStoppingHook({"loss": loss}, "loss", BATCH, 640, EVAL_ROWS, min_delta=0.01, patience=3)

    result = run_inter(model_fn=model_with(make), max_number_of_steps=10000)
    assert printed(console, "[EarlyStopping]") == [
        (step, f"loss: {eval_loss(weights_after(step + 1)):.3f}") for step in (19, 39, 59, 79)
    ]
    assert (result.stop_reason, result.local_steps) == ("request_stop", 80)


def test_the_best_value_is_kept_by_a_run_that_goes_on(run_inter: Train, console: Any) -> None:
    values = [float(v) for v in range(100)]
    result = run_inter(model_fn=scripted(values, patience=1), max_number_of_steps=12)
    assert (result.stop_reason, len(printed(console, "[EarlyStopping]"))) == ("max_steps", 6)


# -- interplay


def test_the_same_model_is_evaluated_alone_and_exported(run_inter: Train, tmp_path: Path, console: Any) -> None:
    def model_fn(inputs: list[Any], mode: str) -> mox.ModelSpec:
        x, y = inputs
        w = tf1.get_variable("w", [3], initializer=tf1.zeros_initializer())
        predicted = tf.linalg.matvec(x, w)
        loss = tf.reduce_mean(tf.square(predicted - y))
        return mox.ModelSpec(
            loss=loss, log_info={"loss": loss}, hooks=[log_hook({"loss": loss})],
            export_spec=mox.ExportSpec({"x": x}, {"predicted": predicted}),
        )  # fmt: skip

    trained = run_inter(model_fn=model_fn, max_number_of_steps=32, log_dir=str(tmp_path), export_model=True)
    assert trained.export.version == 1
    before = len(printed(console))
    common = {"input_fn": input_fn, "model_fn": model_fn, "batch_size": BATCH, "log_dir": str(tmp_path)}
    result = mox.run(run_mode="EVAL", inter_mode="EVAL", **common)
    assert result.metrics["loss"] == pytest.approx(eval_loss(weights_after(32)), rel=1e-4)
    assert "inter_mode='EVAL' has no effect in EVAL" in console.text
    assert mox.run(run_mode="EVAL", **common).metrics == result.metrics
    assert len(printed(console)) == before == 1


def test_a_signal_breaks_an_evaluation_off_and_the_checkpoint_is_written(
    run_inter: Train, tmp_path: Path, console: Any
) -> None:
    after: list[Any] = []
    sent = threading.Lock()

    def interrupt() -> int:
        if sent.acquire(blocking=False):  # a second signal would end the process
            os.kill(os.getpid(), signal.SIGTERM)
        return 0

    class Endless(InterHook):
        def after_run(self, run_context: Any, run_values: Any) -> None:
            after.append(self.run_inter(1 << 40))

        def end(self, session: Any) -> None:
            after.append(self.run_inter(1 << 40))

    def interrupting_input_fn(mode: str) -> Any:
        x, y = input_fn("TRAIN")
        if mode == "EVAL":
            with tf1.control_dependencies([tf1.py_func(interrupt, [], tf.int64)]):
                y = tf.identity(y)
        return x, y

    def make(loss: Any) -> Any:
        return Endless({"loss": loss})

    old = signal.getsignal(signal.SIGTERM)
    with pytest.raises(
        InterruptedRunError, match=r"stopped by SIGTERM after step 1; checkpoint .*model\.ckpt-1 is written"
    ):
        run_inter(input_fn=interrupting_input_fn, model_fn=model_with(make), log_dir=str(tmp_path))
    assert after == []
    assert "a signal came: the evaluation is broken off after" in console.text
    assert signal.getsignal(signal.SIGTERM) is old


def test_an_inter_mode_that_nobody_runs_is_warned_about(run_inter: Train, linear: Any, console: Any) -> None:
    calls: list[str] = []

    def model_fn(inputs: list[Any], mode: str) -> mox.ModelSpec:
        calls.append(mode)
        return linear.model_fn(inputs, mode)

    run_inter(model_fn=model_fn)
    assert "inter_mode='EVAL' has no effect: no hook of model_fn runs it" in console.text
    assert calls == ["TRAIN"]


# -- what goes wrong


def test_a_hook_without_inter_mode_names_the_cure(run_inter: Train) -> None:
    with pytest.raises(ModelSpecError, match="LogEvaluationMetricHook runs an intermediate mode") as caught:
        run_inter(inter_mode=None)
    assert "run(inter_mode=mox.ModeKeys.EVAL)" in str(caught.value)


def test_a_hook_that_does_not_run_the_mode_cannot_call_it(run_inter: Train) -> None:
    class Undeclared(InterHook):
        def run_inter_mode(self) -> bool:
            return False

    def model_fn(inputs: list[Any], mode: str) -> mox.ModelSpec:
        loss = loss_of(inputs)
        return mox.ModelSpec(loss=loss, hooks=[log_hook({"loss": loss}), Undeclared({"loss": loss}, at=(0,))])

    with pytest.raises(ModelSpecError, match="Undeclared cannot run an intermediate mode here"):
        run_inter(model_fn=model_fn)


def by_mode(train: Callable[[Any], list[Any]], inter: Callable[[Any], list[Any]], info: bool = False) -> Any:
    def model_fn(inputs: list[Any], mode: str) -> mox.ModelSpec:
        loss = loss_of(inputs)
        hooks = (train if mode == "TRAIN" else inter)(loss)
        return mox.ModelSpec(loss=loss, log_info={"loss": loss} if info else None, hooks=hooks)

    return model_fn


ONE = lambda loss: [log_hook({"loss": loss})]  # noqa: E731
MISMATCHES: dict[str, tuple[Any, str]] = {
    "none": (by_mode(ONE, lambda loss: []), r"are \['LogEvaluationMetricHook'\] in TRAIN and \[\] in EVAL"),
    "another": (by_mode(ONE, lambda loss: [InterHook({"loss": loss})]), r"TRAIN and \['InterHook'\] in EVAL"),
    "one more": (by_mode(ONE, lambda loss: ONE(loss) * 2), "matched in order"),
    "other names": (by_mode(ONE, lambda loss: [log_hook({"a": loss})]), r"\['loss'\] in TRAIN and \['a'\] in EVAL"),
    "nothing": (by_mode(lambda loss: [InterHook()], lambda loss: [InterHook()]), "returned no log_info in EVAL"),
    "a vector": (
        by_mode(ONE, lambda loss: [log_hook({"loss": tf.stack([loss, loss])})]),
        r"LogEvaluationMetricHook.monitor_info\['loss'\] has the shape \(2,\)",
    ),
    "a number": (by_mode(ONE, lambda loss: [log_hook({"loss": 0.5})]), "is a float, not a tensor"),
}


@pytest.mark.parametrize("case", MISMATCHES)
def test_hooks_of_the_two_branches_must_match(case: str, run_inter: Train) -> None:
    model_fn, message = MISMATCHES[case]
    with pytest.raises(ModelSpecError, match=message):
        run_inter(model_fn=model_fn)


def test_other_hooks_need_no_counterpart_and_log_info_is_the_default(run_inter: Train) -> None:
    hooks: list[InterHook] = []

    def training(loss: Any) -> list[Any]:
        hooks.append(InterHook(at=(0,)))
        return [mox.FeedSessionRunHook({}), *hooks]

    run_inter(model_fn=by_mode(training, lambda loss: [InterHook()], info=True))
    assert hooks[0].got == [{"loss": pytest.approx(eval_loss(weights_after(1)), rel=1e-4)}]


def test_what_is_monitored_must_not_touch_training(run_inter: Train) -> None:
    kept: list[Any] = []

    def from_training(loss: Any) -> Any:
        kept.append(loss)
        return InterHook({"loss": kept[0]})

    def streaming(loss: Any) -> Any:
        return InterHook({"loss": tf1.metrics.mean(loss)[1]})

    def fed(loss: Any) -> Any:
        return InterHook({"loss": loss * tf1.placeholder(tf.float32, [], "scale")})

    for make, message in (
        (from_training, "computed from the input of TRAIN"),
        (streaming, "changes the variable '.*mean(_1)?/(total|count)'"),
        (fed, "depends on the placeholder 'eval_tower_0/scale'"),
    ):
        with pytest.raises(ModelSpecError, match=message):
            run_inter(model_fn=model_with(make))


@pytest.mark.parametrize("reuse", [None, "auto"])
def test_a_variable_of_the_evaluation_alone_is_refused(reuse: str | None, run_inter: Train) -> None:
    def model_fn(inputs: list[Any], mode: str) -> mox.ModelSpec:
        loss = loss_of(inputs)
        if mode == "EVAL":
            with tf1.variable_scope("head", reuse=tf1.AUTO_REUSE if reuse else None):
                loss = loss * tf1.get_variable("scale", [])
        return mox.ModelSpec(loss=loss, hooks=[log_hook({"loss": loss})])

    with pytest.raises(ModelSpecError, match="'head/scale'"):
        run_inter(model_fn=model_fn)


def test_inputs_that_cannot_be_evaluated(run_inter: Train) -> None:
    def empty(mode: str) -> Any:
        dataset = tf1.data.Dataset.from_tensor_slices((X, Y))
        return (dataset if mode == "TRAIN" else dataset.take(0)).make_one_shot_iterator().get_next()

    def unequal(mode: str) -> Any:
        sizes = tf1.data.Dataset.from_tensor_slices([3, 2] if mode == "EVAL" else [3])
        size = sizes.repeat(1 if mode == "EVAL" else None).make_one_shot_iterator().get_next()
        return tf.ones([size]), tf.constant(1.0)

    def whole(loss: Any) -> Any:
        return InterHook({"loss": loss}, at=(0,))

    with pytest.raises(DataError, match="input_fn gave no rows in EVAL"):
        run_inter(input_fn=empty, model_fn=model_with(whole))
    with pytest.raises(DataError, match=r"cannot be made a batch: .*\[[23]\].*\[[23]\]"):
        run_inter(input_fn=unequal, model_fn=model_with(whole))
    with pytest.raises(UsageError, match="an input that ends"):
        run_inter(input_fn=lambda mode: input_fn("TRAIN"), model_fn=model_with(whole))


def test_epochs_are_counted_in_the_batches_that_the_run_makes(run_inter: Train, console: Any) -> None:
    run_inter(batch_size=16, max_number_of_steps=64, optimizer_fn=mox.get_optimizer_fn("sgd", learning_rate=0.0))
    assert printed(console) == [(62, f"loss: {eval_loss(np.zeros(3)):.3f}")]  # of all 100 rows, after 63 x 16
    assert "LogEvaluationMetricHook(batch_size=32): the run makes steps of batch_size=16" in console.text


BAD_ARGUMENTS: dict[str, tuple[dict[str, Any], str]] = {
    "no info": ({"monitor_info": {}}, r"monitor_info=\{\}\): expected a dict"),
    "a list": ({"monitor_info": ["loss"]}, "expected a dict of name"),
    "batch": ({"batch_size": 0}, "batch_size=0"),
    "train": ({"samples_in_train": 10.5}, "samples_in_train=10.5"),
    "eval": ({"samples_in_eval": -1}, "samples_in_eval=-1"),
    "epochs": ({"evaluate_every_n_epochs": 0}, "evaluate_every_n_epochs=0"),
    "monitor": ({"monitor": "los"}, "did you mean 'loss'"),
    "delta": ({"min_delta": -0.1}, "min_delta=-0.1"),
    "patience": ({"patience": -1}, "patience=-1"),
    "mode": ({"mode": "maxx"}, "did you mean 'max'"),
}


@pytest.mark.parametrize("case", BAD_ARGUMENTS)
def test_arguments_of_the_hooks_are_checked(case: str) -> None:
    arguments, message = BAD_ARGUMENTS[case]
    good = {
        "monitor_info": {"loss": 1}, "monitor": "loss", "batch_size": 32, "samples_in_train": 64, "samples_in_eval": 32,
    }  # fmt: skip
    with pytest.raises(ModelSpecError, match=message):
        mox.EarlyStoppingHook(**{**good, **arguments})
