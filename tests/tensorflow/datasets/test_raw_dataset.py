"""ImageClassificationRawDataset: what each argument does, and in which order the images come."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import moxserve.tensorflow as mox
from moxserve.errors import DataError, UsageError
from moxserve.tensorflow.datasets import ImageClassificationRawDataset, ImageClassificationRawMetadata
from moxserve.tensorflow.executor.env import tf, tf1

Read = Callable[..., list[list[Any]]]
Names = Callable[..., list[str]]


@pytest.fixture
def metadata(folder: Path) -> ImageClassificationRawMetadata:
    return ImageClassificationRawMetadata(str(folder))


def _all(folder: Path) -> list[str]:
    return sorted(f"{path.parent.name}/{path.name}" for path in folder.glob("*/*.jpg"))


def _equal(a: list[list[Any]], b: list[list[Any]]) -> bool:
    return len(a) == len(b) and all(
        np.array_equal(x, y) for p, q in zip(a, b, strict=True) for x, y in zip(p, q, strict=True)
    )


# ---- items


def test_the_items_of_one_image(metadata: ImageClassificationRawMetadata, folder: Path, read: Read):
    dataset = mox.ImageClassificationRawDataset(metadata, num_epochs=1, shuffle=False)
    image, label, label_desc = dataset.get(["image", "label", "label_desc"])
    assert image.shape.as_list() == [None, None, 3]
    assert (image.dtype, label.dtype, label_desc.dtype) == (tf.uint8, tf.int64, tf.string)
    assert label.shape.rank == label_desc.shape.rank == 0
    rows = read(dataset, ["image_name", "image", "label", "label_desc"])
    assert [row[0].decode() for row in rows] == _all(folder)
    for name, pixels, index, text in rows:
        path = folder / name.decode()
        with tf1.Session() as session:
            exact = session.run(tf.io.decode_jpeg(path.read_bytes(), dct_method="INTEGER_ACCURATE"))
        np.testing.assert_array_equal(pixels, exact)
        assert text.decode() == path.parent.name == metadata.labels_list[index]
    with pytest.raises(UsageError, match="no item 'imge' in this data set; did you mean 'image'"):
        dataset.get(["imge"])


def test_a_batch_is_resized_to_the_nearest_pixel_as_tensorflow_does(
    metadata: ImageClassificationRawMetadata, read: Read
):
    single = read(ImageClassificationRawDataset(metadata, num_epochs=1, shuffle=False), ["image", "label"])
    dataset = ImageClassificationRawDataset(metadata, batch_size=4, image_size=[33, 47], num_epochs=1, shuffle=False)
    batches = read(dataset, ["image", "label"])
    assert [len(labels) for _, labels in batches] == [4, 4, 4, 2]
    pixels = np.concatenate([images for images, _ in batches])
    with tf1.Session() as session:
        for (image, _), resized in zip(single, pixels, strict=True):
            expected = session.run(tf1.image.resize_nearest_neighbor(image[np.newaxis], [33, 47]))[0]
            np.testing.assert_array_equal(resized, expected)


def test_sizes_and_channels(metadata: ImageClassificationRawMetadata, read: Read):
    for size, shape in ((20, (20, 20)), ((10, 12), (10, 12)), (tf.constant([5, 6]), (5, 6)), (np.int64(7), (7, 7))):
        dataset = ImageClassificationRawDataset(metadata, image_size=size, channels=1)
        assert dataset.get(["image"])[0].shape.as_list() == [*shape, 1]
    gray = read(ImageClassificationRawDataset(metadata, channels=1, shuffle=False), ["image"], 1)[0][0]
    assert gray.shape[2] == 1
    alpha = read(ImageClassificationRawDataset(metadata, channels=4, shuffle=False), ["image"], 1)[0][0]
    assert (alpha[..., 3] == 255).all()


def test_one_hot_labels(metadata: ImageClassificationRawMetadata, read: Read):
    dataset = ImageClassificationRawDataset(metadata, 7, image_size=8, num_epochs=1, shuffle=False, label_one_hot=True)
    first, second = read(dataset, ["label"])
    assert first[0].dtype == np.float32
    np.testing.assert_array_equal(np.concatenate([first[0], second[0]]), np.repeat(np.eye(2), 7, axis=0))
    assert dataset.get(["label"])[0].shape.as_list() == [None, 2]


@pytest.mark.slow
def test_the_last_batch(metadata: ImageClassificationRawMetadata, read: Read):
    def sizes(**kwargs: Any) -> list[int]:
        dataset = ImageClassificationRawDataset(metadata, batch_size=4, image_size=8, **kwargs)
        return [len(labels) for (labels,) in read(dataset, ["label"], 8)]

    assert sizes(num_epochs=1) == [4, 4, 4, 2]
    assert sizes(num_epochs=2) == [4] * 7  # batches run on from epoch to epoch
    assert sizes(num_epochs=1, drop_remainder=True) == [4, 4, 4]
    assert sizes(num_epochs=1, drop_remainder=tf.constant(True)) == [4, 4, 4]
    assert sizes() == [4] * 8
    endless = ImageClassificationRawDataset(metadata, batch_size=4, image_size=8)
    assert endless.get(["image"])[0].shape.as_list() == [4, 8, 8, 3]
    assert tf.get_static_value(tf.data.experimental.cardinality(endless.to_tf_data())) in (None, -1)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"batch_size": 4}, "batch_size=4 without image_size"),
        ({"batch_size": 0}, "batch_size=0: expected an integer of at least 1"),
        ({"batch_size": 4, "augmentation_fn": lambda image: image}, r"gives images of shape \(None, None, 3\)"),
        ({"num_readers": 0}, "num_readers=0"),
        ({"num_epochs": 0}, "num_epochs=0"),
        ({"capacity": 0}, "capacity=0"),
        ({"preprocess_threads": 0}, "preprocess_threads=0"),
        ({"private_num_threads": -1}, "private_num_threads=-1"),
        ({"image_size": [3]}, "expected .height, width. in pixels"),
        ({"image_size": [0, 4]}, "expected .height, width. in pixels"),
        ({"image_size": None, "batch_size": 2}, "without image_size"),
        ({"image_size": "224"}, "expected .height, width. in pixels"),
        ({"image_size": 1.5}, "expected .height, width. in pixels"),
        ({"on_bad_image": "ignore"}, "expected 'skip' or 'raise'"),
        ({"channels": 2}, "channels=2"),
        ({"preprocess_fn": 3}, "preprocess_fn=3 cannot be called"),
        ({"cache_decoded": True}, "cache_decoded=True needs a cache_dir"),
        ({"cache_dir": ""}, "cache_dir='': expected a local folder"),
        ({"cache_dir": 5}, "cache_dir=5: expected a local folder"),
        ({"reader_kwargs": ["num_threads"]}, "expected a dict of keyword arguments"),
        ({"augmentation_fn": lambda image: None}, "augmentation_fn returned a NoneType; expected the image"),
        ({"preprocess_fn": lambda *items: items[:2]}, "preprocess_fn returned 2 values"),
    ],
)
def test_arguments_that_make_no_sense(
    metadata: ImageClassificationRawMetadata, arguments: dict[str, Any], message: str
):
    with pytest.raises(UsageError, match=message):
        ImageClassificationRawDataset(metadata, **arguments)


# ---- order


def test_each_epoch_is_another_exact_permutation_of_all_images(
    metadata: ImageClassificationRawMetadata, folder: Path, names: Names
):
    found = names(ImageClassificationRawDataset(metadata, num_epochs=3, seed=5, shuffle_buffer_size=1))
    epochs = [found[i : i + 14] for i in (0, 14, 28)]
    assert all(sorted(epoch) == _all(folder) for epoch in epochs)
    assert epochs[0] != epochs[1] != epochs[2]
    assert found == names(ImageClassificationRawDataset(metadata, num_epochs=3, seed=5))
    assert found != names(ImageClassificationRawDataset(metadata, num_epochs=3, seed=6))
    assert names(ImageClassificationRawDataset(metadata, num_epochs=2, shuffle=False)) == _all(folder) * 2


def _vgg(size: int = 24) -> Any:
    return mox.get_data_augmentation_fn("resnet_v1_50", mox.ModeKeys.TRAIN, output_height=size, output_width=size)


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["resized", "windows", "preprocessed"])
def test_any_number_of_readers_and_threads_gives_the_same_batches(
    metadata: ImageClassificationRawMetadata, read: Read, kind: str
):
    def batches(**kwargs: Any) -> list[list[Any]]:
        how: dict[str, Any] = {
            "resized": {"image_size": 16},
            "windows": {"augmentation_fn": _vgg()},
            "preprocessed": {"preprocess_fn": _decode_batch},
        }[kind]
        dataset = ImageClassificationRawDataset(metadata, batch_size=5, num_epochs=2, seed=3, **how, **kwargs)
        return read(dataset, ["image", "label", "image_name"])

    expected = batches()
    assert len(expected) == 6
    for variant in (
        {"num_readers": 1},
        {"num_readers": 64, "preprocess_threads": 64},
        {"preprocess_threads": 1, "capacity": 1},
        {"reader_class": mox.AsyncRawGenerator},
        {"reader_class": mox.ParallelReader, "reader_kwargs": {"num_readers": 3}},
        {"private_num_threads": 2},
    ):
        assert _equal(batches(**variant), expected), variant


def _decode_batch(image_name: Any, image_buf: Any, label: Any, label_desc: Any) -> tuple[Any, ...]:
    def decode(data: Any) -> Any:
        image = tf.io.decode_jpeg(data, channels=3)
        return tf.ensure_shape(tf.image.resize(image, [9, 9]), [9, 9, 3])

    return image_name, tf.map_fn(decode, image_buf, fn_output_signature=tf.float32), label, label_desc


def test_windows_differ_from_epoch_to_epoch(metadata: ImageClassificationRawMetadata, read: Read):
    rows = read(
        ImageClassificationRawDataset(metadata, 7, num_epochs=2, seed=1, shuffle=False, augmentation_fn=_vgg()),
        ["image"],
    )
    images = [image for (image,) in rows]
    assert images[0].dtype == np.float32
    assert images[0].shape == (7, 24, 24, 3)
    assert not np.array_equal(np.concatenate(images[:2]), np.concatenate(images[2:]))


@pytest.mark.slow
@settings(max_examples=4, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(workers=st.integers(1, 3), seed=st.integers(0, 99), position=st.integers(0, 30))
def test_shards_are_disjoint_and_complete_and_reading_goes_on_anywhere(
    metadata: ImageClassificationRawMetadata,
    folder: Path,
    names: Names,
    workers: int,
    seed: int,
    position: int,
):
    parts = []
    for worker in range(workers):
        tf1.reset_default_graph()
        shard = {"seed": seed, "shard": (worker, workers), "num_epochs": 3, "image_size": 2}
        whole = names(ImageClassificationRawDataset(metadata, **shard))
        parts.append(whole[: len(whole) // 3])
        tf1.reset_default_graph()
        assert names(ImageClassificationRawDataset(metadata, position=position, **shard)) == whole[position:]
    assert sorted(name for part in parts for name in part) == _all(folder)


def test_windows_are_the_same_after_going_on(metadata: ImageClassificationRawMetadata, read: Read):
    def batches(**kwargs: Any) -> list[list[Any]]:
        dataset = ImageClassificationRawDataset(metadata, 7, num_epochs=3, seed=1, augmentation_fn=_vgg(), **kwargs)
        return read(dataset, ["image", "image_name"])

    assert _equal(batches(position=21), batches()[3:])
    assert _equal(batches(position=21, reader_class=mox.AsyncRawGenerator), batches()[3:])


@pytest.mark.slow
def test_colours_of_windows_follow_the_seed_after_going_on(metadata: ImageClassificationRawMetadata, read: Read):
    inception = mox.get_data_augmentation_fn("inception_v3", mox.ModeKeys.TRAIN, output_height=16, output_width=16)
    assert inception.geometry is not None

    def batches(**kwargs: Any) -> list[list[Any]]:
        tf1.reset_default_graph()
        dataset = ImageClassificationRawDataset(metadata, 7, num_epochs=3, augmentation_fn=inception, **kwargs)
        assert "seed" not in dataset.items
        return read(dataset, ["image"])

    assert _equal(batches(seed=1, position=21), batches(seed=1)[3:])
    assert not _equal(batches(seed=1), batches(seed=2))


def test_a_shard_needs_a_seed_and_an_image(metadata: ImageClassificationRawMetadata):
    with pytest.raises(DataError, match="shuffles without a seed"):
        ImageClassificationRawDataset(metadata, shard=(0, 2))
    with pytest.raises(DataError, match="shard 14 of 15 has no image"):
        ImageClassificationRawDataset(metadata, shard=(14, 15), seed=1)


# ---- functions of the user


def test_preprocess_fn_is_given_batches_iff_there_is_a_batch_size(
    metadata: ImageClassificationRawMetadata, folder: Path, read: Read
):
    shapes: list[list[Any]] = []

    def preprocess(image_name: Any, image_buf: Any, label: Any, label_desc: Any) -> Any:
        shapes.append([tensor.shape.rank for tensor in (image_name, image_buf, label, label_desc)])
        return image_name, tf.strings.length(image_buf), label + 10, tf.strings.upper(label_desc)

    single = ImageClassificationRawDataset(metadata, num_epochs=1, shuffle=False, preprocess_fn=preprocess)
    assert set(single.items) == {"image", "image_buf", "image_name", "label", "label_desc"}
    rows = read(single, ["image", "image_buf", "image_name", "label", "label_desc"])
    assert shapes == [[0, 0, 0, 0]]
    first = (folder / "china/0.jpg").read_bytes()
    assert rows[0] == [len(first), first, b"china/0.jpg", 10, b"CHINA"]
    batched = ImageClassificationRawDataset(metadata, 4, num_epochs=1, shuffle=False, preprocess_fn=preprocess)
    batches = read(batched, ["image", "label"])
    assert shapes[-1] == [1, 1, 1, 1]
    assert [length for images, _ in batches for length in images] == [row[0] for row in rows]


@pytest.mark.slow
def test_preprocess_fn_with_image_size_and_augmentation(metadata: ImageClassificationRawMetadata, read: Read):
    plain = ImageClassificationRawDataset(metadata, 7, num_epochs=1, shuffle=False, preprocess_fn=_decode_batch)
    both = ImageClassificationRawDataset(
        metadata, 7, 1, 1, False, preprocess_fn=_decode_batch, image_size=3, augmentation_fn=lambda image: image + 1
    )
    images = np.concatenate([image for (image,) in read(plain, ["image"])])
    np.testing.assert_array_equal(
        np.concatenate([image for (image,) in read(both, ["image"])]), images[:, ::3, ::3] + 1
    )


def test_augmentation_fn_is_given_one_image(metadata: ImageClassificationRawMetadata, read: Read):
    def augment(image: Any) -> Any:
        assert image.shape.as_list() == [6, 6, 3]
        return tf.image.flip_left_right(image)

    plain = read(ImageClassificationRawDataset(metadata, 7, image_size=6, num_epochs=1, shuffle=False), ["image"])
    flipped = ImageClassificationRawDataset(
        metadata, 7, image_size=6, num_epochs=1, shuffle=False, augmentation_fn=augment
    )
    for (a,), (b,) in zip(plain, read(flipped, ["image"]), strict=True):
        np.testing.assert_array_equal(a[:, :, ::-1], b)


@pytest.mark.slow
def test_random_operations_of_the_user_follow_the_seed(metadata: ImageClassificationRawMetadata, read: Read):
    def noisy(image: Any) -> Any:
        return tf.cast(tf.image.resize(image, [2, 2]), tf.float32) + tf.random.uniform([2, 2, 3])

    def seeded(image: Any, seed: Any) -> Any:
        assert seed.shape.as_list() == [2]
        return tf.random.stateless_uniform([2, 2, 3], seed)

    def batches(function: Any, **kwargs: Any) -> list[list[Any]]:
        tf1.reset_default_graph()
        dataset = ImageClassificationRawDataset(metadata, 7, num_epochs=2, augmentation_fn=function, **kwargs)
        return read(dataset, ["image"])

    assert _equal(batches(noisy, seed=1), batches(noisy, seed=1, preprocess_threads=1))
    assert not _equal(batches(noisy, seed=1), batches(noisy, seed=2))
    assert not _equal(batches(noisy), batches(noisy))
    whole = batches(seeded, seed=1)
    assert _equal(whole[2:], batches(seeded, seed=1, position=14))
    assert len(np.unique(np.concatenate([image for (image,) in whole]), axis=0)) == 28


@pytest.mark.slow
def test_augmentation_of_evaluation_is_exact(metadata: ImageClassificationRawMetadata, read: Read):
    function = mox.get_data_augmentation_fn("resnet_v1_50", mox.ModeKeys.EVAL, output_height=24, output_width=24)
    dataset = ImageClassificationRawDataset(metadata, 7, num_epochs=1, shuffle=False, augmentation_fn=function)
    batches = np.concatenate([image for (image,) in read(dataset, ["image"])])
    plain = read(ImageClassificationRawDataset(metadata, num_epochs=1, shuffle=False), ["image"])
    with tf1.Session() as session:
        for (image,), augmented in zip(plain, batches, strict=True):
            np.testing.assert_allclose(augmented, session.run(function(tf.constant(image))), atol=1e-4)


# ---- for users of tf.data


@pytest.mark.usefixtures("eager")
def test_as_a_tf_data_dataset_under_eager_execution(metadata: ImageClassificationRawMetadata, folder: Path):
    dataset = ImageClassificationRawDataset(metadata, 5, image_size=8, num_epochs=1, seed=1)
    batches = list(dataset.to_tf_data(["image_name", "label"]).as_numpy_iterator())
    assert sorted(name.decode() for names, _ in batches for name in names) == _all(folder)
    again = [element["image_name"].tolist() for element in dataset.to_tf_data().as_numpy_iterator()]
    assert again == [names.tolist() for names, _ in batches]
    windows = ImageClassificationRawDataset(metadata, 7, num_epochs=1, augmentation_fn=_vgg(8)).to_tf_data(["image"])
    shapes = [image.shape for (image,) in windows]
    assert shapes == [(7, 8, 8, 3)] * 2
    fetched = ImageClassificationRawDataset(metadata, num_epochs=1, reader_class=mox.AsyncRawGenerator, seed=1)
    assert len(list(fetched.to_tf_data(["label"]))) == 14


@pytest.mark.usefixtures("eager")
def test_each_get_is_the_next_element_under_eager_execution(metadata: ImageClassificationRawMetadata):
    dataset = ImageClassificationRawDataset(metadata, num_epochs=1, shuffle=False)
    assert [int(dataset.get(["label"])[0]) for _ in range(14)] == [0] * 7 + [1] * 7
    with pytest.raises(tf.errors.OutOfRangeError):
        dataset.get(["label"])


def test_a_data_set_belongs_to_the_graph_that_it_was_made_in(metadata: ImageClassificationRawMetadata):
    dataset = ImageClassificationRawDataset(metadata)
    dataset.get(["label"])
    with tf1.Graph().as_default(), pytest.raises(UsageError, match="another graph"):
        dataset.get(["label"])
