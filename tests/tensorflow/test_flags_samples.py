"""samples_per_epoch and samples_per_epoch_eval: instead of what was counted, wherever samples of an epoch count."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import moxserve.tensorflow as mox
from moxserve.tensorflow.executor.env import tf1
from moxserve.tensorflow.executor.epochs import is_held_out, samples_in_epoch


@pytest.mark.parametrize(
    ("folder", "patterns", "expected"),
    [
        ("data", [], False),
        ("data/eval", [], True),
        ("data/Validation/", [], True),
        ("data/val/x", [], False),
        ("data/evaluate", [], False),
        ("data", ["validation-*"], True),
        ("data", ["/other/flowers_test_*.tfrecord"], True),
        ("data/test", ["train-*"], False),
        ("data/test", ["*.tfrecord"], True),
        ("s3://bucket/test_images", [], True),
    ],
)
def test_names_say_what_files_are_for(folder: str, patterns: list[str], expected: bool) -> None:
    assert is_held_out(folder, patterns) is expected


def test_nothing_is_counted_where_a_flag_says_how_many_there_are() -> None:
    counted = []
    assert samples_in_epoch(lambda: counted.append(1) or 7) == 7  # type: ignore[func-returns-value]
    mox.set_flag("samples_per_epoch", 100)
    assert samples_in_epoch(lambda: counted.append(1) or 7) == 100  # type: ignore[func-returns-value]
    assert samples_in_epoch(7, training=False) == 7
    assert counted == [1]


def test_metadata_of_records(tmp_path: Path) -> None:
    for name in ("train-0", "eval-0"):
        with tf1.io.TFRecordWriter(str(tmp_path / name)) as writer:
            writer.write(b"x")
    train, held_out = (mox.BaseTFRecordMetadata(str(tmp_path), pattern) for pattern in ("train-*", "eval-*"))
    told = mox.BaseTFRecordMetadata(str(tmp_path), "train-*", num_samples=5)
    assert [m.total_num_samples for m in (train, held_out, told)] == [1, 1, 5]
    mox.set_flag("samples_per_epoch", 100)
    mox.set_flag("samples_per_epoch_eval", 30)
    assert [m.num_samples for m in (train, held_out, told)] == [100, 30, 5]  # what the script says wins


def test_metadata_and_data_sets_of_images(tmp_path: Path) -> None:
    for name in ("train/a/1.png", "train/b/2.png", "eval/a/3.png"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(b"not looked at")
    train, held_out = (mox.ImageClassificationRawMetadata(str(tmp_path / name)) for name in ("train", "eval"))
    dataset = mox.ImageClassificationRawDataset(train, num_epochs=1)
    assert (train.total_num_samples, held_out.total_num_samples, dataset.num_samples) == (2, 1, 2)
    mox.set_flag("samples_per_epoch", 100)
    mox.set_flag("samples_per_epoch_eval", 30)
    assert (train.total_num_samples, held_out.total_num_samples, dataset.num_samples) == (100, 30, 100)


def test_data_sets_by_name(tmp_path: Path) -> None:
    for name, rows in (("data_batch_1", 3), ("test_batch", 2)):
        (tmp_path / f"{name}.bin").write_bytes(bytes(3073 * rows))
    train, held_out = (mox.get_dataset("cifar10", split, str(tmp_path)) for split in ("train", "test"))
    assert (train.num_samples, held_out.num_samples) == (3, 2)
    mox.set_flag("samples_per_epoch_eval", 30)
    assert (train.num_samples, held_out.total_num_samples) == (3, 30)
    mox.set_flag("samples_per_epoch", 100)
    assert train.total_num_samples == 100


def test_hooks_that_count_epochs(train: Callable[..., mox.RunResult], linear: Any, console: Any) -> None:
    def model_fn(inputs: Any, mode: str) -> mox.ModelSpec:
        spec = linear.model_fn(inputs, mode)
        hook = mox.LogEvaluationMetricHook(
            monitor_info=spec.log_info, batch_size=10, samples_in_train=10, samples_in_eval=10
        )
        return mox.ModelSpec(loss=spec.loss, log_info=spec.log_info, hooks=[hook])

    def evaluated() -> list[int]:
        console.lines.clear()
        train(model_fn=model_fn, inter_mode=mox.ModeKeys.EVAL, max_number_of_steps=6)
        return [int(n) for n in re.findall(r"\[VALIDATION METRICS\] step: (\d+)", console.text)]

    assert evaluated() == [0, 1, 2, 3, 4, 5]
    mox.set_flag("samples_per_epoch", 25)
    assert evaluated() == [2, 5]
