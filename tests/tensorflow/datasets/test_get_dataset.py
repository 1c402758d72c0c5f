"""Data sets by name, each in the layouts that it is found in."""

from __future__ import annotations

import gzip
import io
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import moxserve.tensorflow as mox
from moxserve.errors import DataError, UsageError
from moxserve.protocol.examples import make_example
from moxserve.protocol.tfrecord import write_records
from moxserve.tensorflow.executor.env import tf, tf1


def read(dataset: Any, items: list[str], count: int | None = None) -> list[Any]:
    found: list[Any] = []
    tensors = dataset.get(items)
    with tf1.Session() as session:
        try:
            while count is None or len(found) < count:
                found.append(session.run(tensors))
        except tf.errors.OutOfRangeError:
            pass
    return found


def png(number: int, side: int = 4) -> bytes:
    from PIL import Image

    buffer = io.BytesIO()
    Image.fromarray(np.full((side, side, 3), number, np.uint8)).save(buffer, format="PNG")
    return buffer.getvalue()


def records(labels: list[int]) -> list[bytes]:
    made = [{"image/encoded": [png(label)], "image/class/label": [label]} for label in labels]
    return [make_example(features).SerializeToString() for features in made]


def test_metas() -> None:
    meta = mox.get_dataset_meta("mnist")
    train, test = meta.splits_to_sizes.keys()
    assert (train, test, dict(meta.splits_to_sizes), meta.num_classes) == (
        "train",
        "test",
        {"train": 60000, "test": 10000},
        10,
    )
    assert mox.get_dataset_meta("imagenet").num_classes == 1001
    assert list(mox.get_dataset_meta("flowers").splits_to_sizes.values()) == [3320, 350]
    assert mox.get_dataset_meta("cifar10").labels_to_names[3] == "cat"
    with pytest.raises(UsageError, match=r"no data set 'minst'; did you mean 'mnist'\?"):
        mox.get_dataset_meta("minst")


@pytest.mark.slow
@pytest.mark.usefixtures("drawn_alike")
def test_the_example_of_the_document(digits_dir: Path) -> None:
    """Example 1 of mox.run, with a small net in place of a model that is built in."""
    batch_size = 50
    dataset_meta = mox.get_dataset_meta("mnist")
    split_name_train, split_name_eval = dataset_meta.splits_to_sizes.keys()
    image_size, labels_offset = 28, 0
    num_classes = dataset_meta.num_classes - labels_offset

    def input_fn(run_mode: str, **kwargs: Any) -> Any:
        training = run_mode == mox.ModeKeys.TRAIN
        dataset = mox.get_dataset(
            name="mnist",
            split_name=split_name_train if training else split_name_eval,
            dataset_dir=str(digits_dir / "idx"),
            capacity=4000,
            **({} if training else {"num_epochs": 1, "shuffle": False}),
        )
        image, label = dataset.get(["image", "label"])
        data_augmentation_fn = mox.get_data_augmentation_fn(
            name="lenet", run_mode=mox.ModeKeys.TRAIN, output_height=image_size, output_width=image_size
        )
        image = data_augmentation_fn(image)
        label -= labels_offset
        return image, label

    def model_fn(inputs: list[Any], run_mode: str, **kwargs: Any) -> mox.ModelSpec:
        images, labels = inputs
        logits = tf1.layers.dense(tf1.layers.flatten(images), num_classes)
        loss = tf1.losses.sparse_softmax_cross_entropy(labels, logits)
        top_1 = tf.reduce_mean(tf.cast(tf.math.in_top_k(labels, logits, 1), tf.float32))
        return mox.ModelSpec(loss=loss, log_info={"loss": loss, "top1": top_1})

    common: dict[str, Any] = {"input_fn": input_fn, "model_fn": model_fn, "batch_size": batch_size}
    trained = mox.run(
        **common,
        optimizer_fn=mox.get_optimizer_fn("sgd", learning_rate=0.05),
        run_mode=mox.ModeKeys.TRAIN,
        max_number_of_steps=100,
    )
    assert trained.metrics["top1"] > 0.7
    dataset = mox.get_dataset("mnist", "test", str(digits_dir / "idx"))
    assert (dataset.num_samples, dataset.total_num_samples) == (360, 360), "the files' counts rule"


@pytest.mark.slow
@pytest.mark.parametrize("layout", ["idx", "raw idx", "tfrecord", "slim", "images"])
def test_mnist(digits_dir: Path, tmp_path: Path, layout: str) -> None:
    from moxserve.data.digits import load_digits

    where = digits_dir / {"idx": "idx", "tfrecord": "tfrecord", "images": "images"}.get(layout, "")
    if layout == "raw idx":
        where = tmp_path
        for path in (digits_dir / "idx").glob("*.gz"):
            (tmp_path / path.stem).write_bytes(gzip.decompress(path.read_bytes()))
    elif layout == "slim":
        where = tmp_path
        for ours, slims in (("train", "train"), ("eval", "test")):
            shutil.copy(
                digits_dir / "tfrecord" / f"{ours}-00000-of-00001.tfrecord", tmp_path / f"mnist_{slims}.tfrecord"
            )
    expected = load_digits().eval
    dataset = (
        mox.get_dataset("mnist", "test", str(where), shuffle=False, num_epochs=1, batch_size=360, image_size=28)
        if (layout not in ("idx", "raw idx"))
        else mox.get_dataset("mnist", "test", str(where), shuffle=False, num_epochs=1, batch_size=360)
    )
    ((image, label, text),) = read(dataset, ["image", "label", "label_desc"])
    assert (image.shape, image.dtype, label.dtype) == ((360, 28, 28, 1), np.uint8, np.int64)
    order = np.argsort(label, kind="stable") if layout != "images" else np.arange(360)
    theirs = np.argsort(expected.labels, kind="stable")
    np.testing.assert_array_equal(label[order], expected.labels[theirs])
    np.testing.assert_array_equal(image[order, ..., 0], expected.images[theirs])
    assert [name.decode() for name in text] == [str(number) for number in label]


def cifar(path: Path, labels: list[int]) -> None:
    planes = [np.stack([np.full((32, 32), value + plane, np.uint8) for plane in range(3)]) for value in labels]
    path.write_bytes(b"".join(bytes([label]) + plane.tobytes() for label, plane in zip(labels, planes, strict=True)))


@pytest.mark.parametrize("inner", ["", "cifar-10-batches-bin"])
def test_cifar10(tmp_path: Path, inner: str) -> None:
    (tmp_path / inner).mkdir(exist_ok=True)
    cifar(tmp_path / inner / "data_batch_1.bin", [0, 1, 2])
    cifar(tmp_path / inner / "data_batch_2.bin", [3, 9])
    cifar(tmp_path / inner / "test_batch.bin", [5])
    dataset = mox.get_dataset("cifar10", "train", str(tmp_path), num_epochs=1, shuffle=False)
    rows = read(dataset, ["image", "label", "label_desc"])
    assert [(int(label), text.decode()) for _, label, text in rows] == [
        (0, "airplane"), (1, "automobile"), (2, "bird"), (3, "cat"), (9, "truck"),
    ]  # fmt: skip
    for image, label, _ in rows:
        assert (image.shape, image.dtype) == ((32, 32, 3), np.uint8)
        assert (image == label + np.arange(3)).all(), "planes become channels"
    (tmp_path / inner / "data_batch_2.bin").write_bytes(b"cut off")
    with pytest.raises(DataError, match=r"data_batch_2.bin' has 7 bytes"):
        mox.get_dataset("cifar10", "train", str(tmp_path))
    cifar(tmp_path / inner / "data_batch_2.bin", [10])
    with pytest.raises(DataError, match="label 10"):
        mox.get_dataset("cifar10", "train", str(tmp_path))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "split", "files"),
    [
        ("cifar10", "test", ["cifar10_test.tfrecord"]),
        ("flowers", "train", ["flowers_train_00000-of-00002.tfrecord", "flowers_train_00001-of-00002.tfrecord"]),
        ("flowers", "validation", ["flowers_validation_00000-of-00001.tfrecord"]),
        ("imagenet", "train", ["train-00000-of-01024", "train-00001-of-01024"]),
        ("imagenet", "validation", ["validation-00000-of-00128"]),
        ("flowers", "validation", ["eval-00000-of-00001.tfrecord"]),
    ],
)
def test_tfrecords(tmp_path: Path, name: str, split: str, files: list[str]) -> None:
    for file in files:
        write_records(tmp_path / file, records([1, 2, 4]))
    for other in ("flowers_other_00000-of-00001.tfrecord", "other-00000-of-01024"):
        write_records(tmp_path / other, records([3]))
    dataset = mox.get_dataset(name, split, str(tmp_path), num_epochs=1)
    assert dataset.num_samples == 3 * len(files)
    rows = read(dataset, ["image", "label", "label_desc"])
    assert sorted(int(label) for _, label, _ in rows) == sorted([1, 2, 4] * len(files))
    for image, label, text in rows:
        assert (image == label).all()
        names = mox.get_dataset_meta(name).labels_to_names
        assert text.decode() == names.get(int(label), "")
    with tf1.Graph().as_default():
        hot = mox.get_dataset(name, split, str(tmp_path), label_one_hot=True).get(["label"])[0]
        assert hot.shape.as_list() == [mox.get_dataset_meta(name).num_classes]


def test_folders(tmp_path: Path) -> None:
    for split in ("train", "validation"):
        for number, label in enumerate(("daisy", "roses")):
            (tmp_path / split / label).mkdir(parents=True)
            (tmp_path / split / label / "a.png").write_bytes(png(number))
    rows = read(mox.get_dataset("flowers", "validation", str(tmp_path), num_epochs=1), ["image", "label_desc"])
    assert sorted((int(image[0, 0, 0]), text.decode()) for image, text in rows) == [(0, "daisy"), (1, "roses")]


@pytest.mark.slow
def test_orders_of_arrays(digits_dir: Path) -> None:
    def labels(**options: Any) -> list[int]:
        with tf1.Graph().as_default():
            dataset = mox.get_dataset(
                "mnist", "test", str(digits_dir / "idx"), **{"seed": 3, "num_epochs": 2, **options}
            )
            return [int(label) for (label,) in read(dataset, ["label"])]

    whole = labels()
    assert len(whole) == 720
    assert sorted(whole[:360]) == sorted(whole[360:])
    assert whole[:360] != whole[360:]
    assert labels(position=400) == whole[400:]
    assert labels(capacity=1) == whole
    parts = [labels(shard=(worker, 3), num_epochs=1) for worker in range(3)]
    assert sorted(label for part in parts for label in part) == sorted(whole[:360])
    with tf1.Graph().as_default():
        made = mox.get_dataset("mnist", "test", str(digits_dir / "idx"), label_one_hot=True, batch_size=7)
        image, label = made.get(["image", "label"])
        assert (image.shape.as_list(), label.shape.as_list()) == ([7, 28, 28, 1], [7, 10])
        fn = mox.get_data_augmentation_fn(name="lenet", run_mode=mox.ModeKeys.TRAIN, output_height=20, output_width=20)
        made = mox.get_dataset("mnist", "test", str(digits_dir / "idx"), augmentation_fn=fn, batch_size=7)
        assert made.get(["image"])[0].shape.as_list() == [7, 20, 20, 1]


def test_what_is_wrong_is_told(digits_dir: Path, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="mnist has no split 'trian'; did you mean 'train'"):
        mox.get_dataset("mnist", "trian", str(tmp_path))
    with pytest.raises(UsageError, match="no argument 'batchsize'; did you mean 'batch_size'"):
        mox.get_dataset("mnist", "train", str(digits_dir / "idx"), batchsize=3)
    with pytest.raises(DataError, match="no files of the split 'train'"):
        mox.get_dataset("mnist", "train", str(tmp_path))
    with pytest.raises(DataError, match="there is no such folder"):
        mox.get_dataset("flowers", "train", str(tmp_path / "absent"))
    shutil.copy(digits_dir / "idx" / "train-images-idx3-ubyte.gz", tmp_path)
    with pytest.raises(DataError, match="but not its labels"):
        mox.get_dataset("mnist", "train", str(tmp_path))
    shutil.copy(digits_dir / "idx" / "t10k-labels-idx1-ubyte.gz", tmp_path / "train-labels-idx1-ubyte.gz")
    with pytest.raises(DataError, match="1437 images, but 360 labels"):
        mox.get_dataset("mnist", "train", str(tmp_path))
