"""Sources and data flows as what `input_fn` returns."""

from __future__ import annotations

import threading
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import moxserve.tensorflow as mox
from moxserve.errors import DataError, ModelSpecError, UsageError
from moxserve.tensorflow.executor.env import tf, tf1
from moxserve.tensorflow.executor.inputs import collect_samples
from moxserve.tensorflow.executor.participants import Clock
from moxserve.tensorflow.input_source import (
    BatchQueueInput,
    DummyConstantInput,
    FeedInput,
    InputSource,
    PlaceholderInput,
    QueueInput,
    StagingInput,
    TensorInput,
    TFDatasetInput,
)

SOURCES: dict[str, Callable[[Any], Any]] = {
    "DataFlow": lambda flow: flow,
    "FeedInput": FeedInput,
    "QueueInput": QueueInput,
    "TFDatasetInput": TFDatasetInput,
    "StagingInput": lambda flow: StagingInput(QueueInput(flow)),
    "StagingInput of 3": lambda flow: StagingInput(TFDatasetInput(flow), nr_stage=3),
}
FINITE: dict[str, Callable[[Any], Any]] = {
    "FeedInput": lambda flow: FeedInput(flow, infinite=False),
    "QueueInput": lambda flow: QueueInput(flow, infinite=False),
    "StagingInput": lambda flow: StagingInput(QueueInput(flow, infinite=False)),
}
every_source = pytest.mark.parametrize("make", SOURCES.values(), ids=SOURCES.keys())
every_finite = pytest.mark.parametrize("make", FINITE.values(), ids=FINITE.keys())


def count(n: int, start: int = 0, modulo: int = 10) -> list[float]:
    return [float((start + i) % modulo) for i in range(n)]


@pytest.mark.slow
@every_source
def test_training_reads_samples_again_and_again(make: Any, model: Any, numbers: Any) -> None:
    flow = numbers(10)
    result = model.run(lambda mode: make(flow), max_number_of_steps=7)
    assert result.stop_reason == "max_steps"
    assert model.seen["TRAIN"] == [count(4, 4 * i) for i in range(7)]  # batches run on across the ends of the flow
    assert model.shapes["TRAIN"] == [[4]]
    assert flow.resets == 1
    assert flow.closed


@pytest.mark.slow
@every_source
@pytest.mark.parametrize("mode", ["EVAL", "PREDICT"])
def test_evaluation_and_prediction_read_once(make: Any, mode: str, model: Any, numbers: Any, tmp_path: Path) -> None:
    model.run(lambda mode: numbers(4), max_number_of_steps=1, log_dir=str(tmp_path))
    result = model.run(lambda mode: make(numbers(10)), mode, log_dir=str(tmp_path))
    assert result.stop_reason == "end_of_input"
    assert [len(batch) for batch in model.seen[mode]] == [4, 4, 2]
    assert model.flat(mode) == count(10)
    assert model.shapes[mode] == [[None]]
    if mode == "EVAL":
        assert result.metrics["mean"] == pytest.approx(4.5)


@every_finite
def test_the_end_of_the_data_ends_training_cleanly(make: Any, model: Any, numbers: Any) -> None:
    result = model.run(lambda mode: make(numbers(11)))
    assert (result.stop_reason, result.global_step) == ("end_of_input", 2)
    assert model.flat() == count(8, modulo=99)  # a smaller last batch is left out in TRAIN


@every_source
def test_datapoints_may_be_batches(make: Any, model: Any, numbers: Any) -> None:
    def rows(i: int) -> list[Any]:
        return [np.full([3 - i % 2, 2], i, np.float32), np.arange(3 - i % 2)]

    model.run(lambda mode: make(numbers(4, make=rows)), max_number_of_steps=5, auto_batch=False)
    assert [batch[0] for batch in model.seen["TRAIN"]] == [0, 1, 2, 3, 0]
    assert [len(batch) for batch in model.seen["TRAIN"]] == [6, 4, 6, 4, 6]
    assert model.shapes["TRAIN"] == [[None, 2], [None]]


@every_source
@pytest.mark.parametrize("at", [0, 1, 6])
def test_an_error_in_the_flow_ends_the_run_with_that_error(make: Any, at: int, model: Any, numbers: Any) -> None:
    with pytest.raises(RuntimeError, match=f"the camera is unplugged at {at}") as caught:
        model.run(lambda mode: make(numbers(10, fail_at=at)), max_number_of_steps=1000, batch_size=2)
    frames = [frame.name for frame in traceback.extract_tb(caught.value.__traceback__)]
    assert frames[-1] == "__iter__"  # where it was raised
    assert len(model.seen["TRAIN"]) <= at // 2


@every_source
def test_a_flow_without_data_is_an_error(make: Any, model: Any, numbers: Any) -> None:
    with pytest.raises(DataError, match="gave no data"):
        model.run(lambda mode: make(numbers(0)), max_number_of_steps=3)


@pytest.mark.slow
@every_source
def test_evaluations_in_the_middle_of_training_start_again(make: Any, model: Any, numbers: Any) -> None:
    means: list[dict[str, float]] = []

    class Evaluate(mox.LogEvaluationMetricHook):
        def __init__(self, value: Any) -> None:
            super().__init__(
                monitor_info={"mean": tf.reduce_mean(value)},
                batch_size=4,
                samples_in_train=8,
                samples_in_eval=40,
                evaluate_every_n_epochs=1,
            )

        def bind_inter(self, run_inter: Any) -> None:
            def noted(n_steps: int) -> dict[str, float]:
                means.append(run_inter(n_steps))
                return means[-1]

            super().bind_inter(noted)

    def model_fn(inputs: list[Any], mode: str) -> mox.ModelSpec:
        spec = model.model_fn(inputs, mode)
        spec.hooks.append(Evaluate(inputs[0]))
        return spec

    flows: dict[str, Any] = {}

    def input_fn(mode: str) -> Any:
        flows[mode] = numbers(10 if mode == "TRAIN" else 7)
        return make(flows[mode])

    mox.run(
        input_fn=input_fn,
        model_fn=model_fn,
        optimizer_fn=mox.get_optimizer_fn("sgd", learning_rate=0.0),
        run_mode="TRAIN",
        inter_mode="EVAL",
        batch_size=4,
        max_number_of_steps=6,
        log_every_n_steps=0,
    )
    assert [m["mean"] for m in means] == [3.0] * 3  # 0..6 each time, to the last row
    assert flows["EVAL"].passes == 3
    assert model.flat() == count(24)
    assert flows["EVAL"].closed


@pytest.mark.slow
@every_source
def test_nothing_of_the_run_is_left(make: Any, model: Any, numbers: Any) -> None:
    before = set(threading.enumerate())
    flow = numbers(None)
    model.run(lambda mode: make(flow), max_number_of_steps=3)
    time.sleep(0.05)
    given = flow.given
    time.sleep(0.1)
    assert flow.given == given
    left = set(threading.enumerate()) - before
    # Threads of TensorFlow's own pools, which live as long as the process, show themselves as dummies.
    assert not [t for t in left if t.is_alive() and not isinstance(t, threading._DummyThread)]


def test_the_first_datapoint_tells_dtypes_and_shapes(model: Any, numbers: Any) -> None:
    def datapoint(i: int) -> dict[str, Any]:
        return {"b": 1.5, "a": np.zeros([2, 3], np.uint8), "c": i, "d": b"x\0", "e": "text", "f": True}

    model.run(lambda mode: numbers(9, make=datapoint), max_number_of_steps=1)
    assert model.names == ["uint8", "float32", "int32", "string", "string", "bool"]
    assert model.shapes["TRAIN"] == [[4, 2, 3], [4], [4], [4], [4], [4]]


def test_a_signature_says_what_the_data_are_to_be(model: Any, numbers: Any) -> None:
    signature = [tf.TensorSpec([None], tf.float32, "x"), tf.TensorSpec([], tf.int64, "y")]
    flow = numbers(None, make=lambda i: [np.zeros([2], np.float64), i])
    model.run(lambda mode: QueueInput(flow, signature=signature), max_number_of_steps=2)
    assert model.names == ["float32", "int64"]
    assert model.shapes["TRAIN"] == [[4, None], [4]]
    wrong = numbers(None, make=lambda i: [np.zeros([2], np.float64), 0.5])
    with pytest.raises(DataError, match=r"float.* for 'y', which is int64"):
        model.run(lambda mode: QueueInput(wrong, signature=signature), max_number_of_steps=2)
    few = numbers(None, make=lambda i: [np.zeros([2], np.float64)])
    with pytest.raises(DataError, match=r"1 components .*; the signature has 2: x, y"):
        model.run(lambda mode: FeedInput(few, signature=signature), max_number_of_steps=2)


def test_datapoints_that_change_their_shape_are_explained(model: Any, numbers: Any) -> None:
    flow = numbers(None, make=lambda i: [np.zeros([4, 2 + i])])
    with pytest.raises(DataError, match=r"gave the shape \[4, 3\] for 'input_0', which is \(None, 2\)"):
        model.run(lambda mode: flow, max_number_of_steps=5, auto_batch=False)
    with pytest.raises(DataError, match="need one shape"):
        model.run(lambda mode: numbers(None, make=lambda i: [np.zeros([2 + i])]), max_number_of_steps=5)


def test_an_input_that_never_ends_needs_a_number_of_steps(model: Any, numbers: Any) -> None:
    with pytest.raises(UsageError, match="never ends") as caught:
        model.run(lambda mode: QueueInput(numbers(10)))
    assert "infinite=False" in str(caught.value.hint)


def test_flows_are_reset_before_the_session_exists(model: Any, numbers: Any, monkeypatch: Any) -> None:
    order: list[str] = []

    class Noting(numbers):  # type: ignore[misc]
        def reset_state(self) -> None:
            order.append("reset")

    original = tf1.Session.__init__

    def noting(self: Any, *args: Any, **kwargs: Any) -> None:
        order.append("session")
        original(self, *args, **kwargs)

    monkeypatch.setattr(tf1.Session, "__init__", noting)
    model.run(lambda mode: Noting(10), max_number_of_steps=1)
    assert order == ["reset", "session"]


def test_the_flow_is_read_in_a_thread_of_its_own(model: Any, numbers: Any) -> None:
    queued, fed = numbers(10), numbers(10)
    signature = [tf.TensorSpec([], tf.float32)]
    model.run(lambda mode: QueueInput(queued, signature=signature), max_number_of_steps=1)
    model.run(lambda mode: FeedInput(fed, signature=signature), max_number_of_steps=1)
    assert queued.threads == {"QueueInput"}
    assert fed.threads == {"MainThread"}


def test_the_size_of_the_queue_is_a_summary(model: Any, numbers: Any, tmp_path: Path) -> None:
    model.run(lambda mode: numbers(None), max_number_of_steps=4, log_dir=str(tmp_path), save_summary_steps=2)
    (path,) = tmp_path.glob("events.*")
    values = {
        (event.step, value.tag): value.simple_value
        for event in tf1.train.summary_iterator(str(path))
        for value in event.summary.value
    }
    sizes = [values[step, "QueueInput/queue_size"] for step in (1, 3)]
    assert all(0 < size <= 50 for size in sizes)


def test_a_queue_of_the_users_own(model: Any, numbers: Any) -> None:
    def input_fn(mode: str) -> Any:
        return QueueInput(numbers(None), tf1.RandomShuffleQueue(20, 5, [tf.float32], seed=3))

    model.run(input_fn, max_number_of_steps=10, batch_size=1)
    assert model.flat() != sorted(model.flat())
    with pytest.raises(ModelSpecError, match=r"the queue has the dtypes \['int64'\], the data \['float32'\]"):
        model.run(lambda mode: QueueInput(numbers(5), tf1.FIFOQueue(3, [tf.int64])), max_number_of_steps=1)


def test_a_queue_that_makes_batches(model: Any, numbers: Any) -> None:
    model.run(lambda mode: BatchQueueInput(numbers(10), 4), max_number_of_steps=4)
    assert model.seen["TRAIN"] == [count(4, 4 * i) for i in range(4)]
    result = model.run(lambda mode: BatchQueueInput(numbers(10), 4, infinite=False), auto_batch=False)
    assert (result.stop_reason, result.local_steps) == ("end_of_input", 2)
    with pytest.raises(ModelSpecError, match="makes batches of 5, and the run has batch_size=4"):
        model.run(lambda mode: BatchQueueInput(numbers(10), 5), max_number_of_steps=1)


@pytest.mark.parametrize("rows", [0, 1, 3])
@pytest.mark.parametrize("mode", ["TRAIN", "EVAL", "PREDICT"])
@pytest.mark.parametrize("wrap", [lambda source: source, StagingInput], ids=["queue", "staged"])
def test_less_than_a_batch_is_no_result(rows: int, mode: str, wrap: Any, numbers: Any) -> None:
    signature = [tf.TensorSpec([None], tf.float32, "x")]
    source = wrap(BatchQueueInput(numbers(rows), 4, infinite=False))
    with tf1.Graph().as_default():
        (participant,) = source.setup(signature, mode)
        source.get_input_tensors()
        with tf1.Session() as session:
            session.run(tf1.local_variables_initializer())
            source.reset_state()
            with pytest.raises(DataError, match=f"gave {rows or 'no'} data"):
                participant.ready(Clock())
            source.close()


def test_an_evaluation_is_told_what_fills_no_batch(model: Any, numbers: Any, tmp_path: Path, console: Any) -> None:
    model.run(lambda mode: numbers(4), max_number_of_steps=1, log_dir=str(tmp_path))
    model.run(lambda mode: BatchQueueInput(numbers(9), 4), "EVAL", log_dir=str(tmp_path))
    assert model.seen["EVAL"] == [count(4), count(4, 4)]
    assert "the last 1 datapoint(s) fill no batch of 4 and are left out of EVAL" in console.text


@pytest.mark.parametrize("make", [FeedInput, QueueInput])
def test_an_evaluation_without_data_is_an_error_where_the_signature_is_known(
    make: Any, model: Any, numbers: Any, tmp_path: Path
) -> None:
    model.run(lambda mode: numbers(4), max_number_of_steps=1, log_dir=str(tmp_path))
    given = [tf.TensorSpec([], tf.float32, "x")]
    with pytest.raises(DataError, match="gave no data"):
        model.run(lambda mode: make(numbers(0), signature=given), "EVAL", log_dir=str(tmp_path))


def test_datasets_as_sources(model: Any, tmp_path: Path) -> None:
    def input_fn(mode: str) -> Any:
        dataset = tf.data.Dataset.range(10).map(lambda i: tf.cast(i, tf.float32))
        return TFDatasetInput(dataset.repeat() if mode == "TRAIN" else dataset)

    model.run(input_fn, max_number_of_steps=6, log_dir=str(tmp_path))
    assert model.flat() == count(24)
    assert model.shapes["TRAIN"] == [[4]]
    assert model.run(input_fn, "EVAL", log_dir=str(tmp_path)).metrics["mean"] == pytest.approx(4.5)
    with pytest.raises(UsageError, match="never ends"):
        model.run(lambda mode: TFDatasetInput(tf.data.Dataset.range(3).repeat()))


def test_a_dataset_that_does_not_fit_the_signature_is_told_all_at_once(model: Any) -> None:
    def input_fn(mode: str) -> Any:
        dataset = tf.data.Dataset.from_tensors((tf.zeros([2, 3]), tf.constant(1)))
        return TFDatasetInput(
            dataset, signature=[tf.TensorSpec([2, 4], tf.float32, "x"), tf.TensorSpec([], tf.int64, "y")]
        )

    with pytest.raises(ModelSpecError) as caught:
        model.run(input_fn, max_number_of_steps=1)
    assert "x: float32(2, 3) in the dataset, float32(2, 4) in the signature" in caught.value.message
    assert "y: int32() in the dataset, int64() in the signature" in caught.value.message


def test_tensors_as_a_source(model: Any, tmp_path: Path) -> None:
    def tensors() -> Any:
        value = tf1.data.make_one_shot_iterator(tf.data.Dataset.range(10).repeat()).get_next()
        return [tf.cast(value, tf.float32)]

    model.run(lambda mode: TensorInput(tensors), max_number_of_steps=3, log_dir=str(tmp_path))
    assert model.flat() == count(12)
    result = model.run(lambda mode: TensorInput(tensors, size=10), "EVAL", log_dir=str(tmp_path))
    assert (result.stop_reason, result.metrics["mean"]) == ("end_of_input", pytest.approx(4.5))
    model.seen["TRAIN"].clear()
    model.run(lambda mode: StagingInput(TensorInput(tensors)), max_number_of_steps=3)
    assert model.flat() == count(12)


def test_a_size_bounds_an_evaluation_of_batches_that_never_end(model: Any, tmp_path: Path) -> None:
    model.run(lambda mode: TensorInput(lambda: tf.ones([4])), max_number_of_steps=1, log_dir=str(tmp_path))
    result = model.run(lambda mode: DummyConstantInput([[4, 2]]), "EVAL", log_dir=str(tmp_path), max_number_of_steps=5)
    assert (result.local_steps, result.metrics["mean"]) == (5, 0.0)
    with pytest.raises(UsageError, match="never ends"):
        model.run(lambda mode: DummyConstantInput([[4, 2]]), "EVAL", log_dir=str(tmp_path))


def test_placeholders_that_a_hook_feeds(model: Any) -> None:
    def model_fn(inputs: list[Any], mode: str) -> mox.ModelSpec:
        spec = model.model_fn(inputs, mode)

        class Feed(tf1.train.SessionRunHook):  # type: ignore[misc]
            def before_run(self, run_context: Any) -> Any:
                return tf1.train.SessionRunArgs(None, {inputs[0]: [1.0, 2.0]})

        spec.hooks.append(Feed())
        return spec

    source = [tf.TensorSpec([None], tf.float32, "x")]
    mox.run(
        input_fn=lambda mode: PlaceholderInput(source),
        model_fn=model_fn,
        optimizer_fn=mox.get_optimizer_fn("sgd", learning_rate=0.1),
        run_mode="TRAIN",
        batch_size=2,
        max_number_of_steps=3,
        log_every_n_steps=0,
    )
    assert model.seen["TRAIN"] == [[1.0, 2.0]] * 3


@every_source
def test_sample_rows_for_an_export(make: Any, numbers: Any) -> None:
    flow = numbers(10)
    (rows,) = collect_samples(lambda mode: make(flow), "EVAL", 4, True, 6)
    assert rows.tolist() == count(6)
    assert flow.closed


def test_sources_that_cannot_be_combined_say_so(model: Any, numbers: Any) -> None:
    with pytest.raises(UsageError, match="cannot stage FeedInput"):
        StagingInput(FeedInput(numbers()))
    with pytest.raises(UsageError, match="once is enough"):
        StagingInput(StagingInput(QueueInput(numbers())))
    with pytest.raises(UsageError, match="nr_stage=0"):
        StagingInput(QueueInput(numbers()), nr_stage=0)
    with pytest.raises(UsageError, match="expected a DataFlow, got list"):
        QueueInput([1, 2])  # type: ignore[arg-type]
    with pytest.raises(UsageError, match="got int"):
        TFDatasetInput(3)
    with pytest.raises(ModelSpecError, match="needs a signature"):
        model.run(lambda mode: PlaceholderInput(), max_number_of_steps=1)
    with pytest.raises(ModelSpecError, match="cannot make batches of 4"):
        model.run(lambda mode: Custom(), max_number_of_steps=1)
    source = QueueInput(numbers())
    model.run(lambda mode: source, max_number_of_steps=1)
    with pytest.raises(UsageError, match="was set up before"):
        model.run(lambda mode: source, max_number_of_steps=1)


class Custom(InputSource):
    """As tensorpack's users write them."""

    def __init__(self) -> None:
        self.steps: list[str] = []

    def _setup(self, signature: Any) -> None:
        self.steps.append("setup")

    def _get_callbacks(self) -> Any:
        steps = self.steps

        class Hook(tf1.train.SessionRunHook):  # type: ignore[misc]
            def before_run(self, run_context: Any) -> Any:
                steps.append("before_run")

        return [Hook()]

    def _get_input_tensors(self) -> Any:
        with self.cached_name_scope():
            return [tf.ones([4], name="a"), tf.ones([4], name="b")]

    def _reset_state(self) -> None:
        self.steps.append("reset")


def test_a_source_of_the_users_own(model: Any) -> None:
    source = Custom()
    model.run(lambda mode: source, max_number_of_steps=2, auto_batch=False)
    assert source.steps == ["setup", "reset", "before_run", "before_run"]


@pytest.mark.slow
def test_an_endless_wait_for_data_is_told(model: Any, numbers: Any, monkeypatch: Any, console: Any) -> None:
    monkeypatch.setattr("moxserve.tensorflow.input_source.pump._TELL_AFTER_S", 0.2)
    arrived = threading.Event()

    def slow(i: int) -> Any:
        arrived.wait(0.7)
        return [np.float32(i)]

    signature = [tf.TensorSpec([], tf.float32)]
    source = StagingInput(QueueInput(numbers(None, make=slow), signature=signature))
    model.run(lambda mode: source, max_number_of_steps=1, batch_size=1)
    assert "for input: QueueInput(Numbers) has given 0 batch(es) so far" in console.text


def square(datapoint: list[Any]) -> list[Any]:
    return [datapoint[0] ** 2]


@pytest.mark.slow
@pytest.mark.parametrize("make", [QueueInput, FeedInput, TFDatasetInput], ids=lambda m: m.__name__)
def test_processes_of_a_flow_end_with_the_run(make: Any, model: Any, numbers: Any) -> None:
    import multiprocessing

    from moxserve.dataflow import MapData, MultiProcessMapData, MultiProcessRunner

    running: set[int] = set()

    class Watch(numbers):  # type: ignore[misc]
        def __iter__(self) -> Any:
            for datapoint in super().__iter__():
                running.update(p.pid for p in multiprocessing.active_children())
                yield datapoint

    flow = MapData(MultiProcessMapData(Watch(40), 2, square, buffer_size=8), lambda dp: [dp[0] + 1])
    model.run(lambda mode: make(flow), max_number_of_steps=12)
    assert {value - 1 for value in model.flat()} <= {float(i * i) for i in range(40)}
    assert len(running) == 2
    assert not multiprocessing.active_children()

    runner = MapData(MultiProcessRunner(numbers(10, fail_at=7), 4, 1), lambda dp: dp)
    with pytest.raises(RuntimeError, match="unplugged at 7"):
        model.run(lambda mode: make(runner), max_number_of_steps=1000)
    assert not multiprocessing.active_children()


@pytest.mark.parametrize("fails_in", ["TRAIN", "EVAL"])
def test_processes_of_a_flow_end_with_a_model_that_cannot_be_built(fails_in: str, model: Any, numbers: Any) -> None:
    import multiprocessing

    from moxserve.dataflow import MultiProcessRunner

    def model_fn(inputs: list[Any], mode: str) -> mox.ModelSpec:
        assert multiprocessing.active_children()
        if mode == fails_in:
            raise ValueError("no such layer")
        spec = model.model_fn(inputs, mode)
        spec.hooks.append(mox.LogEvaluationMetricHook(spec.log_info, 4, 8, 8))
        return spec

    with pytest.raises(ValueError, match="no such layer"):
        mox.run(
            input_fn=lambda mode: MultiProcessRunner(numbers(10), 4, 1),
            model_fn=model_fn,
            optimizer_fn=mox.get_optimizer_fn("sgd", learning_rate=0.0),
            run_mode="TRAIN",
            inter_mode="EVAL",
            batch_size=4,
            max_number_of_steps=6,
        )
    assert not multiprocessing.active_children()
