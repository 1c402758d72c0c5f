"""Every row goes to one device, once, in the order of a single one; what is reported is over all devices."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import moxserve.tensorflow as mox
from moxserve.dataflow import BatchData, DataFlow, DataFromList
from moxserve.errors import DataError, ModelSpecError, UsageError
from moxserve.tensorflow.datasets.arrays import ArrayDataset, LabelledImages
from moxserve.tensorflow.executor.env import tf, tf1
from moxserve.tensorflow.input_source import (
    BatchQueueInput,
    FeedInput,
    QueueInput,
    StagingInput,
    TensorInput,
    TFDatasetInput,
)

ROWS = 23
_RANDOM = np.random.default_rng(5)
X = _RANDOM.normal(size=(ROWS, 3)).astype(np.float32)
Y = _RANDOM.normal(size=ROWS).astype(np.float32)


def dataset() -> Any:
    return tf1.data.Dataset.from_tensor_slices((X, Y))


def flow() -> DataFlow:
    return DataFromList([[x, y] for x, y in zip(X, Y, strict=True)], shuffle=False)


def computed(mode: str) -> Any:
    """Batches that the graph computes of two iterators, with a constant."""
    x = tf1.data.Dataset.from_tensor_slices(2 * X).batch(4).make_one_shot_iterator().get_next()
    y = tf1.data.Dataset.from_tensor_slices(Y).batch(4).make_one_shot_iterator().get_next()
    return x * tf.constant(0.5), tf.identity(y)


def own_iterator(mode: str) -> Any:
    iterator = tf1.data.make_initializable_iterator(dataset().batch(4))
    tf1.add_to_collection(tf1.GraphKeys.TABLE_INITIALIZERS, iterator.initializer)
    x, y = iterator.get_next()
    return x * 1.0, y


def queue_of_tf_train(mode: str) -> Any:
    (row,) = tf1.train.slice_input_producer([tf.range(ROWS)], num_epochs=1, shuffle=False)
    return tf1.train.batch([tf.gather(X, row), tf.gather(Y, row)], 4, allow_smaller_final_batch=True)


def endless_with_a_size(mode: str) -> Any:
    """Seven batches of rows that never end."""
    counted = tf1.data.Dataset.from_tensor_slices((X[:21], Y[:21])).repeat().batch(3)
    return TensorInput(lambda: counted.make_one_shot_iterator().get_next(), size=7)


INPUTS: dict[str, tuple[Callable[[str], Any], bool]] = {
    "samples": (lambda mode: dataset().make_one_shot_iterator().get_next(), True),
    "a dataset of batches": (lambda mode: dataset().batch(4), False),
    "computed batches": (computed, False),
    "an iterator of one's own": (own_iterator, False),
    "a queue of tf.train": (queue_of_tf_train, False),
    "a data flow": (lambda mode: flow(), True),
    "a data flow of batches": (lambda mode: BatchData(flow(), 4, remainder=True), False),
    "FeedInput": (lambda mode: FeedInput(flow()), True),
    "QueueInput behind a stage": (lambda mode: StagingInput(QueueInput(flow())), True),
    "TFDatasetInput of batches behind a stage": (lambda mode: StagingInput(TFDatasetInput(dataset().batch(4))), False),
    "TensorInput": (lambda mode: TensorInput(lambda: computed(mode)), False),
}


def model_fn(inputs: list[Any], mode: str, **kwargs: Any) -> mox.ModelSpec:
    x, y = inputs
    w = tf1.get_variable("w", [3], initializer=tf1.ones_initializer())
    errors = tf.abs(tf.linalg.matvec(x, w) - y)
    loss = tf.reduce_mean(errors)
    return mox.ModelSpec(
        loss=loss,
        log_info={"loss": loss, "auc": mox.auc(tf.cast(y > 0, tf.int32), tf.linalg.matvec(x, w))},
        output_info={"x": x, "rows": tf.shape(x)[0]},
    )


def go(input_fn: Any, mode: str, devices: int, folder: Path, **kwargs: Any) -> mox.RunResult:
    mox.set_flag("num_gpus", devices)
    defaults: dict[str, Any] = {
        "model_fn": model_fn,
        "optimizer_fn": mox.get_optimizer_fn("sgd", learning_rate=0.1),
        "batch_size": 4,
        "log_dir": str(folder),
        "log_every_n_steps": 0,
    }
    return mox.run(input_fn=input_fn, run_mode=mode, **{**defaults, **kwargs})


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("trained")
    go(lambda mode: dataset().repeat(), mox.ModeKeys.TRAIN, 1, folder, max_number_of_steps=1)
    return folder


@pytest.mark.slow
@pytest.mark.parametrize("kind", INPUTS)
def test_every_row_is_predicted_once_and_in_order(kind: str, trained: Path) -> None:
    input_fn, auto_batch = INPUTS[kind]
    outputs: list[dict[str, Any]] = []
    calls: list[int] = []

    def output_fn(listed: list[dict[str, Any]]) -> None:
        outputs.extend(listed)
        calls.append(len(listed))

    result = go(
        input_fn, mox.ModeKeys.PREDICT, 4, trained, auto_batch=auto_batch, output_fn=output_fn, output_every_n_steps=1
    )
    # Six batches, the last one of 3 rows: a whole round, and two devices of the next.
    assert result.local_steps == 2
    assert calls == [4, 2]
    assert [len(output["x"]) for output in outputs] == [4, 4, 4, 4, 4, 3]
    np.testing.assert_array_equal(np.concatenate([output["x"] for output in outputs]), X)


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["samples", "a data flow"])
def test_evaluations_on_several_devices_are_those_of_one(kind: str, trained: Path, console: Any) -> None:
    input_fn, auto_batch = INPUTS[kind]
    expected = go(input_fn, mox.ModeKeys.EVAL, 1, trained, auto_batch=auto_batch)
    for devices in (3,) if kind == "a data flow" else (3, 4):
        found = go(input_fn, mox.ModeKeys.EVAL, devices, trained, auto_batch=auto_batch)
        assert found.metrics == pytest.approx(expected.metrics, abs=1e-6)
    assert expected.metrics["auc"] != pytest.approx(0.5)


def test_an_evaluation_that_ends_with_the_size_of_its_input(trained: Path) -> None:
    expected = go(endless_with_a_size, mox.ModeKeys.EVAL, 1, trained, auto_batch=False, batch_size=3)
    found = go(endless_with_a_size, mox.ModeKeys.EVAL, 4, trained, auto_batch=False, batch_size=3)
    assert (expected.local_steps, found.local_steps) == (7, 2)
    assert found.metrics == pytest.approx(expected.metrics, abs=1e-6)


def test_batches_of_a_queue_that_leave_rows_over(trained: Path, console: Any) -> None:
    def input_fn(mode: str) -> Any:
        return BatchQueueInput(flow(), 4)

    expected = go(input_fn, mox.ModeKeys.EVAL, 1, trained)
    assert go(input_fn, mox.ModeKeys.EVAL, 3, trained).metrics == pytest.approx(expected.metrics, abs=1e-6)
    assert console.text.count("the last 3 datapoint(s) fill no batch of 4") == 2


def test_a_queue_that_holds_less_than_a_round(trained: Path) -> None:
    def input_fn(mode: str) -> Any:
        return QueueInput(flow(), queue=tf1.FIFOQueue(2, [tf.float32, tf.float32]))

    with pytest.raises(UsageError, match="a step on 3 devices takes 3 elements, and the queue holds 2"):
        go(input_fn, mox.ModeKeys.EVAL, 3, trained)


@pytest.mark.slow
@pytest.mark.parametrize("source", [lambda ds: ds, FeedInput, lambda ds: StagingInput(QueueInput(ds))])
def test_flows_that_are_read_again_and_again(source: Any, tmp_path: Path) -> None:
    train: dict[str, Any] = {"input_fn": lambda mode: source(flow()), "mode": mox.ModeKeys.TRAIN}
    one = go(devices=1, folder=tmp_path / "1", batch_size=8, max_number_of_steps=10, **train)
    four = go(devices=4, folder=tmp_path / "4", batch_size=2, max_number_of_steps=10, **train)
    np.testing.assert_allclose(weights(four), weights(one), atol=1e-6)


def test_constants_are_the_same_for_all_devices(trained: Path) -> None:
    outputs: list[dict[str, Any]] = []
    go(
        lambda mode: (tf.constant(X[:4]), tf.constant(Y[:4])),
        mox.ModeKeys.PREDICT,
        2,
        trained,
        auto_batch=False,
        max_number_of_steps=1,
        output_fn=outputs.extend,
    )
    assert len(outputs) == 2
    for output in outputs:
        np.testing.assert_array_equal(output["x"], X[:4])


def test_random_inputs_differ_between_devices(trained: Path) -> None:
    outputs: list[dict[str, Any]] = []

    def input_fn(mode: str) -> Any:
        return tf.random.uniform([4, 3], seed=3), tf.random.uniform([4])

    go(input_fn, mox.ModeKeys.PREDICT, 2, trained, auto_batch=False, max_number_of_steps=1, output_fn=outputs.extend)
    assert not np.array_equal(outputs[0]["x"], outputs[1]["x"])


# -- InputSpec


def groups(rows: int, split: bool = True) -> Any:
    def input_fn(mode: str) -> Any:
        x, y = dataset().repeat().batch(rows, drop_remainder=rows != 7).make_one_shot_iterator().get_next()
        return mox.InputSpec(split_to_device=split).new_input([x]).new_input(y)

    return input_fn


def grouped_model_fn(inputs: Any, mode: str, **kwargs: Any) -> mox.ModelSpec:
    (x,), (y,) = inputs.get_input(0), inputs.get_input(1)
    spec = model_fn([x, y], mode)
    if mode == mox.ModeKeys.EXPORT:
        spec.export_spec = mox.ExportSpec({"x": x, "y": y}, spec.log_info)
    return spec


def weights(result: mox.RunResult) -> np.ndarray:
    found: np.ndarray = tf1.train.load_variable(result.checkpoint, "w")
    return found


@pytest.mark.slow
def test_split_to_device_cuts_a_batch_into_slices(tmp_path: Path) -> None:
    train: dict[str, Any] = {
        "mode": mox.ModeKeys.TRAIN,
        "max_number_of_steps": 10,
        "model_fn": grouped_model_fn,
        "auto_batch": False,
    }
    one = go(groups(8), devices=1, folder=tmp_path / "1", **train)
    two = go(groups(8), devices=2, folder=tmp_path / "2", **train)
    own = go(groups(4, split=False), devices=2, folder=tmp_path / "3", **train)
    np.testing.assert_allclose(weights(two), weights(one), atol=1e-6)
    np.testing.assert_allclose(weights(own), weights(one), atol=1e-6)
    with pytest.raises(ModelSpecError, match="input 0 has 6 rows, which cannot be cut into equal slices for 4 devices"):
        go(groups(6), devices=4, folder=tmp_path / "4", **train)
    with pytest.raises(DataError, match="a batch of 7 rows cannot be cut into equal slices for 4 devices"):
        go(groups(7), devices=4, folder=tmp_path / "5", **train)


@pytest.mark.slow
def test_groups_are_exported(tmp_path: Path) -> None:
    result = go(
        groups(8),
        mox.ModeKeys.TRAIN,
        2,
        tmp_path,
        max_number_of_steps=2,
        model_fn=grouped_model_fn,
        auto_batch=False,
        export_model=mox.ExportKeys.TF_SERVING,
    )
    assert result.export.version == 1


@pytest.mark.parametrize(
    ("model", "make", "message"),
    [
        (lambda i, mode: i.get_input(2), lambda x: mox.InputSpec().new_input(x), r"get_input\(2\): input_fn made 1"),
        (model_fn, lambda x: mox.InputSpec(), "InputSpec without any input"),
        (model_fn, lambda x: mox.InputSpec().new_input([1, 2]), r"InputSpec.new_input returned int at position 0"),
    ],
)
def test_input_spec_errors(model: Any, make: Any, message: str, tmp_path: Path) -> None:
    with pytest.raises(ModelSpecError, match=message):
        go(lambda mode: make(tf.zeros([4, 3])), mox.ModeKeys.TRAIN, 2, tmp_path, model_fn=model, max_number_of_steps=1)


# -- resume


class Seen(tf1.train.SessionRunHook):
    """Keeps what a tensor was in each step."""

    def __init__(self, tensor: Any, values: list[list[float]]) -> None:
        self.tensor = tensor
        self.values = values

    def before_run(self, run_context: Any) -> Any:
        return tf1.train.SessionRunArgs(self.tensor)

    def after_run(self, run_context: Any, run_values: Any) -> None:
        self.values.append(run_values.results.ravel().tolist())


def test_a_resumed_run_reads_on_after_the_rows_of_all_devices(tmp_path: Path) -> None:
    images = np.arange(24, dtype=np.uint8).reshape(24, 1, 1, 1)
    seen: list[list[float]] = []

    def input_fn(mode: str) -> Any:
        data = LabelledImages(images, np.zeros(24, int), ("one",))
        return ArrayDataset(data, shuffle=False).get(["image"])

    def watched(inputs: list[Any], mode: str) -> mox.ModelSpec:
        values = tf.cast(inputs[0], tf.float32)
        w = tf1.get_variable("w", [])
        return mox.ModelSpec(loss=tf.reduce_mean(values * w), hooks=[Seen(values, seen)])

    for devices, steps in ((3, 1), (2, 2), (1, 3)):
        go(input_fn, mox.ModeKeys.TRAIN, devices, tmp_path, model_fn=watched, max_number_of_steps=steps, batch_size=2)
    # What the first device got: of the rows 0 to 5, of 6 to 9, and of 10 and 11.
    assert seen == [[0, 1], [6, 7], [10, 11]]
