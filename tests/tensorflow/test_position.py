"""A run that goes on reads on: the same rows in the same order as without the interruption."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import moxserve.tensorflow as mox
from moxserve.dataflow.order import EpochOrder
from moxserve.tensorflow.datasets.base import BaseDataset, ordered_rows
from moxserve.tensorflow.executor.env import tf, tf1
from moxserve.tensorflow.executor.position import PositionLog

ROWS = 23


def order(seed: int = 7) -> EpochOrder:
    return EpochOrder(ROWS, seed=seed)


def samples(mode: str) -> Any:
    """One sample, with code after it that is lifted."""
    numbers = ordered_rows(order(), None if mode == "TRAIN" else 1)
    row = tf1.data.make_one_shot_iterator(numbers).get_next()
    return tf.cast(row, tf.float32) * 1.0


def whole_samples(mode: str) -> Any:
    """One sample just as the data set gives it."""
    return BaseDataset(ordered_rows(order(), None).map(lambda row: {"row": tf.cast(row, tf.float32)})).get(["row"])


def dataset(mode: str) -> Any:
    return ordered_rows(order(), None).map(lambda row: tf.cast(row, tf.float32))


def started_with_tables(mode: str) -> Any:
    iterator = tf1.data.make_initializable_iterator(dataset(mode).batch(4, drop_remainder=True))
    tf1.add_to_collection(tf1.GraphKeys.TABLE_INITIALIZERS, iterator.initializer)
    return iterator.get_next()


def batches(size: int) -> Callable[[str], Any]:
    return lambda mode: dataset(mode).batch(size, drop_remainder=True)


class Rows:
    """Trains, and notes which rows each step got."""

    def __init__(self, log_dir: Path) -> None:
        self.log_dir = str(log_dir)
        self.seen: list[int] = []

    def model_fn(self, inputs: list[Any], mode: str) -> mox.ModelSpec:
        seen, (rows,) = self.seen, inputs

        class Note(tf1.train.SessionRunHook):  # type: ignore[misc]
            def before_run(self, run_context: Any) -> Any:
                return tf1.train.SessionRunArgs(rows)

            def after_run(self, run_context: Any, run_values: Any) -> None:
                seen.extend(int(row) for row in run_values.results)

        loss = tf.reduce_mean(rows) * tf1.get_variable("w", [], initializer=tf1.ones_initializer())
        return mox.ModelSpec(loss=loss, log_info={"loss": loss}, hooks=[Note()])

    def train(self, input_fn: Any, until: int, batch_size: int = 4, **kwargs: Any) -> None:
        mox.run(
            input_fn=input_fn,
            model_fn=self.model_fn,
            optimizer_fn=mox.get_optimizer_fn("sgd", learning_rate=0.0),
            run_mode=mox.ModeKeys.TRAIN,
            batch_size=batch_size,
            max_number_of_steps=until,
            log_dir=self.log_dir,
            log_every_n_steps=0,
            save_summary_steps=0,
            **kwargs,
        )


@pytest.mark.slow
@pytest.mark.parametrize("input_fn", [samples, whole_samples, dataset], ids=lambda f: f.__name__)
def test_an_interrupted_training_sees_the_rows_of_an_uninterrupted_one(input_fn: Any, tmp_path: Path) -> None:
    rows = Rows(tmp_path / "log")
    for until in (3, 4, 9, 20):
        rows.train(input_fn, until)
    assert rows.seen == [row for row, _ in zip(order().iterate(), range(80), strict=False)]


@pytest.mark.slow
@pytest.mark.parametrize("input_fn", [batches(4), started_with_tables], ids=["one_shot", "tables"])
def test_batches_of_the_users_own_go_on_too(input_fn: Any, tmp_path: Path) -> None:
    rows = Rows(tmp_path / "log")
    for until in (3, 9):
        rows.train(input_fn, until, auto_batch=False)
    assert rows.seen == [row for row, _ in zip(order().iterate(), range(36), strict=False)]


@pytest.mark.slow
def test_the_size_of_batches_may_change_from_run_to_run(tmp_path: Path) -> None:
    rows = Rows(tmp_path / "log")
    rows.train(samples, 5, batch_size=4)
    rows.train(samples, 8, batch_size=7)
    rows.train(batches(3), 12, batch_size=64, auto_batch=False)  # the tensors say how many rows there are
    rows.train(samples, 14, batch_size=1)
    assert rows.seen == [row for row, _ in zip(order().iterate(), range(20 + 21 + 12 + 2), strict=False)]


@pytest.mark.slow
def test_an_older_checkpoint_goes_on_from_where_it_was(tmp_path: Path) -> None:
    rows = Rows(tmp_path / "log")
    rows.train(samples, 4, save_model_steps=2)
    rows.train(samples, 6, batch_size=5)
    expected = list(rows.seen[:8])
    for path in (tmp_path / "log").glob("model.ckpt-[46].*"):
        path.unlink()
    rows.seen.clear()
    rows.train(samples, 3)
    assert rows.seen == [row for row, _ in zip(order().iterate(), range(12), strict=False)][8:]
    assert expected == list(order().epoch(0))[:8]


@pytest.mark.slow
def test_another_log_dir_starts_at_the_first_row(tmp_path: Path) -> None:
    rows = Rows(tmp_path / "first")
    rows.train(samples, 3)
    rows.seen.clear()
    rows.log_dir = str(tmp_path / "second")
    rows.train(samples, 5, checkpoint_path=str(tmp_path / "first"))
    rows.train(samples, 6)
    assert rows.seen == list(order().epoch(0))[:12]


@pytest.mark.slow
@pytest.mark.parametrize("text", [None, "", "{", '{"runs": [{"step": -1}]}', '{"runs": 3}', "[]"])
def test_without_a_readable_file_the_steps_tell(text: str | None, tmp_path: Path, console: Any) -> None:
    rows = Rows(tmp_path / "log")
    rows.train(samples, 3)
    path = tmp_path / "log" / "input-0.json"
    assert json.loads(path.read_text()) == {"runs": [{"step": 0, "rows": 0, "rows_per_step": 4}]}
    if text is None:
        path.unlink()
    else:
        path.write_text(text)
    rows.train(samples, 5)
    assert rows.seen == list(order().epoch(0))[:20]
    assert ("cannot be read" in console.text) == (text is not None)


@pytest.mark.slow
def test_evaluations_always_start_at_the_first_row(tmp_path: Path) -> None:
    Rows(tmp_path / "log").train(samples, 3)
    seen: list[Any] = []
    mox.run(
        input_fn=samples,
        model_fn=lambda inputs, mode: mox.ModelSpec(output_info={"row": inputs[0] + tf1.get_variable("w", []) * 0}),
        output_fn=seen.extend,
        run_mode=mox.ModeKeys.PREDICT,
        batch_size=4,
        log_dir=str(tmp_path / "log"),
    )
    assert [int(row) for output in seen for row in output["row"]] == list(order().epoch(0))


def test_the_log_of_runs(tmp_path: Path) -> None:
    log = PositionLog(str(tmp_path))
    assert log.resume(10, 32) == 320  # no file
    assert log.restart(10, 32) == 0
    assert log.resume(15, 64) == 160
    assert log.resume(15, 8) == 160  # the run before made no step
    assert log.resume(12, 1) == 64  # back to an older checkpoint
    assert log.resume(20, 1) == 72
