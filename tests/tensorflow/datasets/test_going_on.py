"""A run that goes on is given the rows that come next, also where rows before were bad and left out."""

from __future__ import annotations

import io
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

import moxserve.tensorflow as mox
from moxserve.dataflow.order import EpochOrder
from moxserve.protocol.tfrecord import write_records
from moxserve.tensorflow.executor.env import tf, tf1
from moxserve.tensorflow.executor.skipped import SkippedRows

BATCH = 4
BAD = (1, 2, 7)


def _model_fn(inputs: list[Any], mode: str) -> mox.ModelSpec:
    weight = tf1.get_variable("weight", initializer=0.0)
    return mox.ModelSpec(loss=weight * tf.reduce_mean(tf.cast(inputs[0], tf.float32)), log_info={"loss": weight})


def _labels_given(dataset: Callable[[], Any], log_dir: Path, goals: Sequence[int]) -> list[list[int]]:
    """The labels of each step, of runs to these steps one after the other."""
    seen: list[list[int]] = []

    def input_fn(mode: str, **kwargs: Any) -> Any:
        image, label = dataset().get(["image", "label"])
        label = tf.numpy_function(lambda labels: (seen.append(labels.tolist()), labels)[1], [label], tf.int64)
        with tf.control_dependencies([label]):
            return tf.identity(image)

    for goal in goals:
        mox.run(
            input_fn=input_fn,
            model_fn=_model_fn,
            optimizer_fn=mox.get_optimizer_fn("sgd", learning_rate=0.1),
            run_mode=mox.ModeKeys.TRAIN,
            batch_size=BATCH,
            auto_batch=False,
            max_number_of_steps=goal,
            log_dir=str(log_dir),
        )
    return seen


def _png(number: int) -> bytes:
    if number in BAD:
        return b"no image"
    data = io.BytesIO()
    Image.fromarray(np.full((8, 8, 3), number, np.uint8)).save(data, "PNG")
    return data.getvalue()


@pytest.fixture
def raw(tmp_path: Path) -> Path:
    """13 images, each of a class of its own."""
    for number in range(13):
        path = tmp_path / f"raw/{number:02d}/image.png"
        path.parent.mkdir(parents=True)
        path.write_bytes(_png(number))
    return tmp_path / "raw"


@pytest.fixture
def records(tmp_path: Path) -> Path:
    """The same as records, of which one more has a wrong checksum."""
    (tmp_path / "records").mkdir()
    path = tmp_path / "records/a.tfrecord"
    examples = []
    for number in range(13):
        feature = {
            "image/encoded": tf.train.Feature(bytes_list=tf.train.BytesList(value=[_png(number)])),
            "image/class/label": tf.train.Feature(int64_list=tf.train.Int64List(value=[number])),
        }
        examples.append(tf.train.Example(features=tf.train.Features(feature=feature)).SerializeToString())
    write_records(path, examples)
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)
    return tmp_path / "records"


def _check(dataset: Callable[[], Any], tmp_path: Path, good: int) -> None:
    whole = _labels_given(dataset, tmp_path / "whole", [9])
    parts = _labels_given(dataset, tmp_path / "parts", [4, 9])
    # Each run may take a batch before its first step, to find out the shapes.
    assert parts[-5:] == whole[-5:]
    given_labels = [label for labels in whole[-9:] for label in labels]
    assert sorted(given_labels[:good]) == sorted(set(given_labels)), "an epoch has every good row once"
    names = [json.loads(line) for line in (tmp_path / "parts/input-0-skipped.jsonl").read_text().splitlines()]
    assert len(names) == len(set(names)) == 13 - good


@pytest.mark.slow
@pytest.mark.parametrize("reader_class", [None, mox.AsyncRawGenerator])
def test_bad_images_in_folders(raw: Path, tmp_path: Path, reader_class: Any) -> None:
    metadata = mox.ImageClassificationRawMetadata(str(raw))

    def dataset() -> Any:
        return mox.ImageClassificationRawDataset(
            metadata, batch_size=BATCH, image_size=8, seed=9, reader_class=reader_class
        )

    _check(dataset, tmp_path, 10)


@pytest.mark.slow
def test_bad_images_and_records_in_tfrecords(records: Path, tmp_path: Path) -> None:
    metadata = mox.ImageClassificationTFRecordMetadata(str(records), "*.tfrecord")

    def dataset() -> Any:
        return mox.ImageClassificationTFRecordDataset(
            metadata, batch_size=BATCH, image_size=8, seed=9, on_bad_record="skip"
        )

    _check(dataset, tmp_path, 9)


@settings(deadline=None)
@given(
    st.integers(1, 9),
    st.integers(1, 3),
    st.booleans(),
    st.sets(st.integers(0, 8)),
    st.integers(0, 25),
)
def test_the_row_to_go_on_at(count: int, workers: int, shuffle: bool, bad: set[int], rows_given: int) -> None:
    for worker in range(min(workers, count)):
        order = EpochOrder(count, shuffle, 3, (worker, workers))
        skipped = SkippedRows()
        skipped.of_rows(order, lambda: [str(row) for row in range(count)])
        for row in bad:
            skipped.note(str(row))
        good = [row not in bad for row in order.iterate(0, 200)]
        if sum(good) <= rows_given:
            continue
        position = skipped.row_position(rows_given)
        assert sum(good[:position]) == rows_given
        assert not rows_given or good[position] or not bad


def test_names_outlive_a_process_that_is_killed_while_it_writes(tmp_path: Path) -> None:
    path = tmp_path / "skipped.jsonl"
    first = SkippedRows()
    first.note("a\n")
    first.keep(str(path))
    first.note("b\udcff")
    with open(path, "a") as file:
        file.write('"half')
    order = EpochOrder(4, False)
    later = SkippedRows()
    later.of_rows(order, lambda: ["a\n", "b\udcff", "half", "c"])
    later.keep(str(path))
    assert later.row_position(1) == 3
    later.note("c")
    again = SkippedRows()
    again.of_rows(order, lambda: ["a\n", "b\udcff", "half", "c"])
    again.keep(str(path))
    assert again.row_position(1) == 6
