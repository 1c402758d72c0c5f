"""Sizes that change during the training."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import moxserve.tensorflow as mox
from moxserve.errors import DataError, UsageError
from moxserve.protocol.examples import make_example
from moxserve.protocol.tfrecord import write_records
from moxserve.tensorflow.datasets.tfrecord_image import ProgressiveImagenetDataset
from moxserve.tensorflow.executor.env import tf, tf1


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """12 images in two sizes of files, labels 1 to 12. Read only."""
    from PIL import Image

    base = tmp_path_factory.mktemp("progressive")
    for name, side in (("small", 10), ("large", 20)):
        (base / name).mkdir()
        records = []
        for number in range(1, 13):
            buffer = io.BytesIO()
            Image.fromarray(np.full((side, side, 3), number * 20, np.uint8)).save(buffer, format="PNG")
            records.append(make_example({"image/encoded": [buffer.getvalue()], "image/class/label": [number]}))
        for part in range(2):
            chosen = (record.SerializeToString() for record in records[part::2])
            write_records(base / name / f"train-{part:05}-of-00002", chosen)
    return base


def spec(folder: Path) -> list[tuple[str, int, int, float]]:
    return [
        (f"{folder}/small/train-*", 6, 8, 0.08),
        (f"{folder}/large/train-*", 4, 16, 0.25),
        (f"{folder}/large/train-*", 3, 20, 1.0),
    ]


def trained(
    folder: Path, steps: int, log_dir: Path | None = None
) -> list[tuple[tuple[int, ...], list[int], list[int]]]:
    """Shape, labels and brightness of the batch of each step of a run."""
    seen: list[Any] = []

    class Watch(tf1.train.SessionRunHook):
        def before_run(self, context: Any) -> Any:
            graph = tf1.get_default_graph()
            return tf1.train.SessionRunArgs([graph.get_tensor_by_name(name) for name in ("image:0", "label:0")])

        def after_run(self, context: Any, values: Any) -> None:
            image, label = values.results
            seen.append((image.shape, label.tolist(), image[:, 2, 2, 0].tolist()))

    def input_fn(mode: str, **kwargs: Any) -> Any:
        dataset = ProgressiveImagenetDataset(
            num_samples=12, strategy_spec=spec(folder), ds_switch_steps=[3, 5], labels_offset=1, num_parallel=2, seed=4,
        )  # fmt: skip
        assert dataset.num_samples == 12
        return dataset.get(["image", "label"])

    def model_fn(inputs: list[Any], mode: str, **kwargs: Any) -> mox.ModelSpec:
        image, label = tf.identity(inputs[0], "image"), tf.identity(inputs[1], "label")
        w = tf1.get_variable("w", [], initializer=tf1.zeros_initializer())
        loss = w * (tf.reduce_mean(tf.cast(image, tf.float32)) + tf.reduce_mean(tf.cast(label, tf.float32)))
        return mox.ModelSpec(loss=loss, hooks=[Watch()])

    mox.run(
        input_fn=input_fn,
        model_fn=model_fn,
        optimizer_fn=mox.get_optimizer_fn("sgd", learning_rate=0.0),
        run_mode=mox.ModeKeys.TRAIN,
        auto_batch=False,
        batch_size=6,
        max_number_of_steps=steps,
        log_dir=None if log_dir is None else str(log_dir),
    )
    return seen


SHAPES = [(6, 8, 8, 3)] * 3 + [(4, 16, 16, 3)] * 2 + [(3, 20, 20, 3)] * 3


@pytest.fixture(scope="module")
def whole(folder: Path) -> list[tuple[tuple[int, ...], list[int], list[int]]]:
    """What a run through all stages is given."""
    return trained(folder, 8)


def test_sizes_switch_at_their_steps(whole: list[Any]) -> None:
    assert [shape for shape, *_ in whole] == SHAPES
    for _, labels, brightness in whole:
        assert brightness == [(label + 1) * 20 for label in labels], "each image has its own label, less the offset"
    first = [label for _, labels, _ in whole[:2] for label in labels]
    assert sorted(first) == list(range(12)), "an epoch is a permutation"


@pytest.mark.slow
def test_a_run_that_goes_on_is_where_it_was(folder: Path, whole: list[Any], tmp_path: Path) -> None:
    # Stopped twice, in the middle of a stage each time.
    assert [step for stop in (4, 6, 8) for step in trained(folder, stop, tmp_path)] == whole


@pytest.mark.slow
def test_one_stage(folder: Path) -> None:
    with tf1.Graph().as_default(), tf1.Session() as session:
        dataset = ProgressiveImagenetDataset(None, spec(folder)[:1])
        assert dataset.total_num_samples == 12
        image, label = dataset.get(["image", "label"])
        assert session.run(image).shape == (6, 8, 8, 3)
        assert session.run(label).min() >= 1


def test_what_does_not_go_together(folder: Path) -> None:
    stages = spec(folder)
    for given, steps, message in (
        (stages, [3], "3 stages and 1 ds_switch_steps"),
        ([], [], "0 stages"),
        (stages, [5, 5], "ascending"),
        (stages[:2], [0], "ascending"),
        ([(*stages[0][:1], 0, 8, 0.1)], [], "batch_size=0"),
        ([(*stages[0][:2], 8.5, 0.1)], [], "image_size=8.5"),
        ([(*stages[0][:3], 0.0)], [], "min_area=0.0"),
    ):
        with pytest.raises(UsageError, match=message), tf1.Graph().as_default():
            ProgressiveImagenetDataset(12, given, steps)
    with pytest.raises(DataError, match="no file"), tf1.Graph().as_default():
        ProgressiveImagenetDataset(12, [(f"{folder}/absent/train-*", 2, 8, 0.1)])
