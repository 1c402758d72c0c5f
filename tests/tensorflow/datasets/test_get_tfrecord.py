"""`get_tfrecord`: the two examples of the guide, batches, sparse items, lookups."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

import moxserve.tensorflow as mox
from moxserve.errors import DataError, UsageError
from moxserve.protocol.examples import make_example
from moxserve.protocol.tfrecord import write_records
from moxserve.tensorflow.contrib import slim
from moxserve.tensorflow.executor.env import tf, tf1


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for part in range(2):
        features = [
            {"image": [b"pixels %d" % n], "label": [b"%d" % n], "words": [f"w{n}"] * (n % 3 + 1)} for n in range(5)
        ]
        numbered = [{**f, "number": [part * 5 + n]} for n, f in enumerate(features)]
        write_records(tmp_path / f"{part}.tfrecord", [make_example(f).SerializeToString() for f in numbered])
    return tmp_path


def read(dataset: Any, items: list[str]) -> list[Any]:
    found: list[Any] = []
    tensors = dataset.get(items)
    with tf1.Session() as session:
        session.run(tf1.tables_initializer())
        try:
            while True:
                found.append(session.run(tensors))
        except tf.errors.OutOfRangeError:
            return found


def test_the_first_example_of_the_guide(folder: Path) -> None:
    keys_to_features = {
        "image": tf1.FixedLenFeature(shape=(), dtype=tf.string, default_value=None),
        "label": tf1.FixedLenFeature(shape=(), dtype=tf.string, default_value=None),
    }
    items_to_handlers = {
        "image": slim.tfexample_decoder.Tensor("image"),
        "label": slim.tfexample_decoder.Tensor("label"),
    }
    dataset = mox.get_tfrecord(
        dataset_dir=str(folder),
        file_pattern="*.tfrecord",
        keys_to_features=keys_to_features,
        items_to_handlers=items_to_handlers,
    )
    image, label = dataset.get(["image", "label"])
    assert (image.dtype, image.shape.as_list(), dataset.num_samples) == (tf.string, [], 10)
    with tf1.Session() as session:
        pairs = [session.run([image, label]) for _ in range(10)]
    assert sorted(pairs) == sorted([b"pixels %d" % n, b"%d" % n] for n in [*range(5), *range(5)])


@pytest.mark.slow
def test_the_second_example_of_the_guide(digits_dir: Path) -> None:
    keys_to_features = {
        "image/encoded": tf1.FixedLenFeature((), tf.string, default_value=""),
        "image/format": tf1.FixedLenFeature((), tf.string, default_value=""),
        "image/class/label": tf1.FixedLenFeature([1], tf.int64, default_value=tf.zeros([1], dtype=tf.int64)),
    }
    items_to_handlers = {
        "image": slim.tfexample_decoder.Image(shape=[28, 28, 1], channels=1),
        "label": slim.tfexample_decoder.Tensor("image/class/label", shape=[]),
    }
    dataset = mox.get_tfrecord(
        dataset_dir=str(digits_dir / "tfrecord"),
        file_pattern="train-*.tfrecord",
        keys_to_features=keys_to_features,
        items_to_handlers=items_to_handlers,
        num_epochs=1,
    )
    assert dataset.total_num_samples == 1437
    image, label = dataset.get(["image", "label"])
    assert (image.shape.as_list(), image.dtype, label.shape.as_list()) == ([28, 28, 1], tf.uint8, [])
    sums: dict[int, list[int]] = {}
    with tf1.Session() as session:
        for _ in range(1437):
            pixels, number = session.run([image, label])
            sums.setdefault(int(number), []).append(int(pixels.sum()))
        with pytest.raises(tf.errors.OutOfRangeError):
            session.run(image)
    assert sorted(sums) == list(range(10))
    from moxserve.data.digits import load_digits

    train = load_digits().train
    for number, found in sums.items():
        assert sorted(found) == sorted(int(image.sum()) for image in train.images[train.labels == number])


def test_the_second_example_in_a_run(digits_dir: Path) -> None:
    """Samples are batched by the run; the default that is a tensor comes along."""

    def input_fn(mode: str, **kwargs: Any) -> Any:
        features = {
            "image/encoded": tf1.FixedLenFeature((), tf.string, default_value=""),
            "image/format": tf1.FixedLenFeature((), tf.string, default_value=""),
            "absent": tf1.FixedLenFeature([1], tf.int64, default_value=tf.ones([1], dtype=tf.int64)),
        }
        handlers = {
            "image": slim.tfexample_decoder.Image(shape=[28, 28, 1], channels=1),
            "absent": slim.tfexample_decoder.Tensor("absent", shape=[]),
        }
        dataset = mox.get_tfrecord(
            str(digits_dir / "tfrecord"), "eval-*", features, handlers, num_samples=360, shuffle=False, num_epochs=1
        )
        return dataset.get(["image", "absent"])

    def model_fn(inputs: list[Any], mode: str, **kwargs: Any) -> mox.ModelSpec:
        image, absent = inputs
        w = tf1.get_variable("w", [], initializer=tf1.zeros_initializer())
        ones, mean = (tf.reduce_mean(tf.cast(value, tf.float32)) for value in (absent, image))
        return mox.ModelSpec(loss=w * mean, log_info={"ones": ones})

    result = mox.run(
        input_fn=input_fn,
        model_fn=model_fn,
        optimizer_fn=mox.get_optimizer_fn("sgd", learning_rate=0.1),
        run_mode=mox.ModeKeys.TRAIN,
        batch_size=36,
        max_number_of_steps=10**6,
    )
    assert (result.local_steps, result.stop_reason) == (10, "end_of_input")
    assert result.metrics["ones"] == 1


NUMBER = {"number": tf.io.FixedLenFeature([], tf.int64), "words": tf.io.VarLenFeature(tf.string)}


@pytest.mark.slow
def test_batches_shards_and_order(folder: Path) -> None:
    handlers = {"number": slim.tfexample_decoder.Tensor("number")}

    def numbers(**options: Any) -> list[Any]:
        with tf1.Graph().as_default():
            dataset = mox.get_tfrecord(folder, ["0.*", "1.*"], NUMBER, handlers, num_epochs=1, seed=2, **options)
            return [row[0].tolist() for row in read(dataset, ["number"])]

    assert numbers(shuffle=False) == list(range(10))
    whole = numbers()
    assert (sorted(whole), numbers(num_readers=1)) == (list(range(10)), whole)
    assert numbers(batch_size=4) == [whole[:4], whole[4:8], whole[8:]]
    assert numbers(batch_size=4, drop_remainder=True) == [whole[:4], whole[4:8]]
    assert sorted(numbers(shard=(0, 2)) + numbers(shard=(1, 2))) == list(range(10))
    assert numbers(position=7) == whole[7:]
    assert sorted(numbers(exact_shuffle=False, shuffle_buffer_size=2)) == list(range(10))
    assert numbers(private_num_threads=2) == whole


def test_sparse_and_looked_up_items(folder: Path) -> None:
    handlers = {
        "words": slim.tfexample_decoder.Tensor("words", default_value=""),
        "sparse": slim.tfexample_decoder.ItemHandlerCallback("words", lambda tensors: tensors["words"]),
    }
    dataset = mox.get_tfrecord(folder, "0.tfrecord", NUMBER, handlers, num_epochs=1, shuffle=False)
    rows = read(dataset, ["words", "sparse"])
    assert [words.tolist() for words, _ in rows][:3] == [[b"w0"], [b"w1"] * 2, [b"w2"] * 3]
    assert all(isinstance(sparse, tf1.SparseTensorValue) for _, sparse in rows)


def test_a_lookup_in_a_table(folder: Path) -> None:
    table = tf.lookup.StaticHashTable(
        tf.lookup.KeyValueTensorInitializer(tf.constant(["w0", "w1"]), tf.constant([7, 8], tf.int64)), -1
    )
    handlers = {"first": slim.tfexample_decoder.LookupTensor("words", table)}
    dataset = mox.get_tfrecord(folder, "0.tfrecord", NUMBER, handlers, num_epochs=1, shuffle=False)
    assert [row[0].tolist() for row in read(dataset, ["first"])][:3] == [[7], [8, 8], [-1] * 3]


def test_what_is_wrong_is_told_at_once(folder: Path) -> None:
    tensor = slim.tfexample_decoder.Tensor
    with pytest.raises(UsageError, match="needs the feature 'numbr'"):
        mox.get_tfrecord(folder, "*", NUMBER, {"n": tensor("numbr")})
    with pytest.raises(DataError, match="no file"):
        mox.get_tfrecord(folder, "*.record", NUMBER, {"n": tensor("number")})
    with pytest.raises(UsageError, match="num_parallel=0"):
        mox.get_tfrecord(folder, "*", NUMBER, {"n": tensor("number")}, num_readers=0)
    with pytest.raises(UsageError, match="no item 'm'"):
        mox.get_tfrecord(folder, "*.tfrecord", NUMBER, {"n": tensor("number")}).get(["m"])


def test_eagerly(folder: Path, eager: None) -> None:
    handlers = {"number": slim.tfexample_decoder.Tensor("number")}
    dataset = mox.get_tfrecord(folder, "*.tfrecord", NUMBER, handlers, num_epochs=1, batch_size=10)
    (batch,) = dataset.to_tf_data(["number"])
    np.testing.assert_array_equal(np.sort(batch[0].numpy()), np.arange(10))
