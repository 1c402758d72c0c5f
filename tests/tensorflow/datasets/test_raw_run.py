"""The documented input functions inside of `mox.run`, with real training on a few photographs."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import moxserve.tensorflow as mox
from moxserve.errors import DataError
from moxserve.tensorflow.executor.env import tf, tf1

pytestmark = pytest.mark.usefixtures("drawn_alike")


def _model_fn(inputs: Any, mode: str, **kwargs: Any) -> mox.ModelSpec:
    """Logistic regression on the mean colours, which tells nearly all crops apart."""
    images, labels = inputs
    colours = tf.reduce_mean(tf.cast(images, tf.float32), [1, 2]) / 255.0
    logits = tf1.layers.dense(colours, 2, name="logits")
    loss = tf1.losses.sparse_softmax_cross_entropy(labels, logits)
    accuracy = tf.reduce_mean(tf.cast(tf.equal(tf.argmax(logits, 1), labels), tf.float32))
    return mox.ModelSpec(
        loss=loss, log_info={"loss": loss, "accuracy": accuracy}, output_info={"labels": labels, "logits": logits}
    )


def _run(input_fn: Callable[..., Any], log_dir: Path | None, steps: int = 60, **kwargs: Any) -> mox.RunResult:
    return mox.run(
        **{
            "input_fn": input_fn,
            "model_fn": _model_fn,
            "optimizer_fn": mox.get_optimizer_fn("momentum", learning_rate=1.0, momentum=0.9),
            "run_mode": mox.ModeKeys.TRAIN,
            "batch_size": 7,
            "max_number_of_steps": steps,
            "log_dir": None if log_dir is None else str(log_dir),
            **kwargs,
        }
    )


def _evaluated(folder: Path, log_dir: Path) -> float:
    """Accuracy on all images, decoded exactly."""

    def input_fn(mode: str, **kwargs: Any) -> Any:
        dataset = mox.ImageClassificationRawDataset(
            mox.ImageClassificationRawMetadata(str(folder)), batch_size=14, image_size=32, num_epochs=1
        )
        return dataset.get(["image", "label"])

    found: list[float] = []

    def output_fn(outputs: list[dict[str, np.ndarray]]) -> None:
        found.extend(float((out["logits"].argmax(1) == out["labels"]).mean()) for out in outputs)

    mox.run(
        input_fn=input_fn,
        model_fn=_model_fn,
        output_fn=output_fn,
        output_every_n_steps=1,
        run_mode=mox.ModeKeys.PREDICT,
        batch_size=14,
        auto_batch=False,
        checkpoint_path=str(log_dir),
        max_number_of_steps=1,
    )
    return found[0]


@pytest.mark.slow
def test_the_guides_input_fn_resizes_one_image_and_batches_are_made_by_run(folder: Path, tmp_path: Path):
    def input_fn(mode: str, **kwargs: Any) -> Any:  # MoXing guide 3.1 and 3.4
        meta = mox.ImageClassificationRawMetadata(base_dir=str(folder))
        dataset = mox.ImageClassificationRawDataset(meta)
        image, label = dataset.get(["image", "label"])
        image = tf.expand_dims(image, 0)
        image = tf1.image.resize_bilinear(image, [24, 24])
        image = tf.squeeze(image)
        image.set_shape([24, 24, 3])
        image = tf.image.flip_left_right(image)
        return image, label

    _run(input_fn, tmp_path / "log")
    assert _evaluated(folder, tmp_path / "log") > 0.85


@pytest.mark.slow
@pytest.mark.parametrize("reader_class", [None, mox.AsyncRawGenerator])
def test_the_guides_input_fn_with_batches_and_augmentation(folder: Path, tmp_path: Path, reader_class: Any):
    def input_fn(mode: str, **kwargs: Any) -> Any:  # MoXing API document 1.2.2
        data_meta = mox.ImageClassificationRawMetadata(base_dir=str(folder))
        data_augmentation_fn = mox.get_data_augmentation_fn(
            name="inception_v3", run_mode=mode, output_height=24, output_width=24
        )
        dataset = mox.ImageClassificationRawDataset(
            data_meta, batch_size=7, augmentation_fn=data_augmentation_fn, reader_class=reader_class
        )
        images, labels = dataset.get(["image", "label"])
        assert images.shape.as_list() == [7, 24, 24, 3]
        return (images + 1.0) * 127.5, labels

    _run(input_fn, tmp_path / "log", steps=80, auto_batch=False)
    assert _evaluated(folder, tmp_path / "log") > 0.85


@pytest.mark.slow
def test_augmentation_of_one_image_by_the_name_of_a_network(folder: Path, tmp_path: Path):
    def input_fn(mode: str, **kwargs: Any) -> Any:  # MoXing guide 1
        meta = mox.ImageClassificationRawMetadata(base_dir=str(folder))
        dataset = mox.ImageClassificationRawDataset(meta)
        image, label = dataset.get(["image", "label"])
        image = mox.get_data_augmentation_fn(name="resnet_v1_50", run_mode=mode, output_height=24, output_width=24)(
            image
        )
        return image + 120.0, label

    result = _run(input_fn, tmp_path / "log", steps=40)
    assert result.global_step == 40
    assert _evaluated(folder, tmp_path / "log") > 0.85


@pytest.mark.slow
def test_preprocess_fn_of_the_api_document(folder: Path, tmp_path: Path):
    def _decode_and_resize(buf: Any) -> Any:
        img = tf.image.decode_image(buf, channels=3)
        img.set_shape([None, None, 3])
        img = tf1.image.resize_images(img, size=[24, 24])
        img.set_shape([24, 24, 3])
        return img

    def preprocess_fn(image_name: Any, image_buf: Any, label: Any, label_desc: Any) -> Any:
        image = tf1.map_fn(_decode_and_resize, image_buf, dtype=tf.float32, back_prop=False)
        return image_name, image, label, label_desc

    def input_fn(mode: str, **kwargs: Any) -> Any:
        metadata = mox.ImageClassificationRawMetadata(base_dir=str(folder))
        dataset = mox.ImageClassificationRawDataset(metadata, batch_size=7, preprocess_fn=preprocess_fn)
        return dataset.get(["image", "label"])

    _run(input_fn, tmp_path / "log", auto_batch=False)
    assert _evaluated(folder, tmp_path / "log") > 0.85


@pytest.mark.slow
def test_a_run_that_goes_on_is_given_the_images_that_come_next(folder: Path, tmp_path: Path):
    def names_of(log_dir: Path, *steps: int) -> list[list[bytes]]:
        seen: list[list[bytes]] = []

        def input_fn(mode: str, **kwargs: Any) -> Any:
            dataset = mox.ImageClassificationRawDataset(
                mox.ImageClassificationRawMetadata(str(folder)), batch_size=4, image_size=8, seed=9
            )
            image, label, name = dataset.get(["image", "label", "image_name"])
            name = tf.numpy_function(lambda names: (seen.append(names.tolist()), names)[1], [name], tf.string)
            with tf.control_dependencies([name]):
                return tf.identity(image), label

        for goal in steps:
            _run(input_fn, log_dir, goal, batch_size=4, auto_batch=False)
        return seen

    whole = names_of(tmp_path / "whole", 9)
    parts = names_of(tmp_path / "parts", 4, 9)
    assert len(whole) >= 9
    # Each run may take a batch before its first step, to find out the shapes.
    assert parts[-5:] == whole[-5:]


def test_a_bad_image_ends_the_run_with_its_name(folder: Path, tmp_path: Path):
    (folder / "china/3.jpg").write_bytes(b"nothing")

    def input_fn(mode: str, **kwargs: Any) -> Any:
        dataset = mox.ImageClassificationRawDataset(
            mox.ImageClassificationRawMetadata(str(folder)), batch_size=7, image_size=8, on_bad_image="raise"
        )
        return dataset.get(["image", "label"])

    with pytest.raises(DataError, match=r"/china/3\.jpg: ") as caught:
        _run(input_fn, None, auto_batch=False)
    assert "\n" not in caught.value.message


def test_images_of_unequal_sizes_are_explained(folder: Path):
    def input_fn(mode: str, **kwargs: Any) -> Any:
        dataset = mox.ImageClassificationRawDataset(mox.ImageClassificationRawMetadata(str(folder)))
        return dataset.get(["image", "label"])

    with pytest.raises(DataError, match="cannot be made a batch"):
        _run(input_fn, None)
