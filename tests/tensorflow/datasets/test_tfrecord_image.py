"""Images in TFRecord files: every argument, bad images, windows, the two directions between TensorFlow and us."""

from __future__ import annotations

import io
import logging
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import moxserve.tensorflow as mox
from moxserve.errors import UsageError
from moxserve.protocol.examples import make_example
from moxserve.protocol.tfrecord import write_records
from moxserve.tensorflow.datasets.tfrecord_common import ImageClassificationTFRecordMetadata
from moxserve.tensorflow.datasets.tfrecord_image import ImageClassificationTFRecordDataset
from moxserve.tensorflow.executor.env import tf, tf1

COUNT, CLASSES = 20, 5
NAMES = ["ant", "bee", "cat", "dog", "eel"]


def picture(number: int, kind: str = "PNG", height: int = 12, width: int = 10) -> bytes:
    """An image whose pixels say which one it is: red is its number."""
    from PIL import Image

    pixels = np.random.default_rng(number).integers(0, 255, (height, width, 3), np.uint8)
    pixels[..., 0] = number * 10
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, format=kind)
    return buffer.getvalue()


def record(number: int, data: bytes | None = None, **more: Any) -> bytes:
    features = {
        "image/encoded": [picture(number) if data is None else data],
        "image/format": [b"png"],
        "image/class/label": [number % CLASSES],
        "image/filename": [f"{number}.png".encode()],
        **more,
    }
    return make_example(features).SerializeToString()


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for part in range(2):
        numbers = range(part * COUNT // 2, (part + 1) * COUNT // 2)
        write_records(tmp_path / f"a-{part}.tfrecord", [record(n, count=[n]) for n in numbers])
    (tmp_path / "labels.txt").write_text("".join(f"{i}: {name}\n" for i, name in enumerate(NAMES)))
    return tmp_path


def dataset(where: Path, **options: Any) -> ImageClassificationTFRecordDataset:
    metadata = ImageClassificationTFRecordMetadata(where, "*.tfrecord")
    return ImageClassificationTFRecordDataset(metadata, **{"seed": 1, "num_epochs": 1, **options})


def read(where: Path, items: list[str], count: int | None = None, **options: Any) -> list[Any]:
    """The items of each element, to the end or `count` times."""
    found: list[Any] = []
    with tf1.Graph().as_default():
        tensors = dataset(where, **options).get(items)
        with tf1.Session() as session:
            try:
                while count is None or len(found) < count:
                    found.append(session.run(tensors))
            except tf.errors.OutOfRangeError:
                pass
    return found


def test_the_items(folder: Path) -> None:
    rows = read(folder, ["image", "label", "label_desc", "image_name"])
    assert len(rows) == COUNT
    assert sorted(int(name[:-4]) for *_, name in rows) == list(range(COUNT))
    for image, label, text, name in rows:
        number = int(name[:-4])
        assert (image.shape, image.dtype, label.dtype) == ((12, 10, 3), np.uint8, np.int64)
        assert (image[..., 0] == number * 10).all()
        assert (int(label), text.decode()) == (number % CLASSES, NAMES[number % CLASSES])
    with tf1.Graph().as_default():
        made = dataset(folder)
        assert (made.num_samples, made.total_num_samples, made.num_bad_images) == (COUNT, COUNT, 0)
        with pytest.raises(UsageError, match="no item 'lable'"):
            made.get(["lable"])
        image, label = made.get(["image", "label"])
        assert (image.shape.as_list(), label.shape.as_list()) == ([None, None, 3], [])


def test_the_example_of_the_document(folder: Path) -> None:
    meta = mox.ImageClassificationTFRecordMetadata(base_dir=str(folder), file_patterns="*a*.tfrecord")
    assert meta.labels_to_names == dict(enumerate(NAMES))
    with tf1.Graph().as_default(), tf1.Session() as sess:
        image, label = mox.ImageClassificationTFRecordDataset(meta=meta).get(["image", "label"])
        sess.run(tf1.global_variables_initializer())
        sess.run(tf1.local_variables_initializer())
        coord = tf1.train.Coordinator()
        threads = tf1.train.start_queue_runners(coord=coord)
        for _ in range(10):
            image_eval, label_eval = sess.run([image, label])
            assert image_eval[0, 0, 0] // 10 % CLASSES == label_eval
        coord.request_stop()
        coord.join(threads)


def test_the_text_of_the_record_comes_before_the_file_of_labels(tmp_path: Path) -> None:
    write_records(tmp_path / "a.tfrecord", [record(1, **{"image/class/text": ["wasp"]}), record(1), record(9)])
    (tmp_path / "labels.txt").write_text("0: ant\n1: bee\n")
    texts = [row[0] for row in read(tmp_path, ["label_desc"], shuffle=False)]
    assert texts == [b"wasp", b"bee", b""], "the last label is in no file"


@pytest.mark.slow
def test_sizes_and_channels(folder: Path) -> None:
    for size, shape in ((6, (6, 6)), ([6, 8], (6, 8))):
        (images, names), *_ = read(folder, ["image", "image_name"], batch_size=COUNT, image_size=size)
        whole = {name: image for image, name in read(folder, ["image", "image_name"])}
        assert images.shape == (COUNT, *shape, 3)
        rows = np.floor(np.arange(shape[0], dtype=np.float32) * np.float32(12 / shape[0])).astype(int)
        columns = np.floor(np.arange(shape[1], dtype=np.float32) * np.float32(10 / shape[1])).astype(int)
        for image, name in zip(images, names, strict=True):
            np.testing.assert_array_equal(image, whole[name][rows][:, columns])
    for channels in (1, 4):
        ((image,), *_) = read(folder, ["image"], channels=channels)
        assert image.shape == (12, 10, channels)


def test_decoding_is_tensorflows(tmp_path: Path) -> None:
    kinds = ["PNG", "JPEG", "BMP", "GIF"]
    pictures = [picture(n, kind, 33, 41) for n, kind in enumerate(kinds)]
    write_records(tmp_path / "a.tfrecord", [record(n, data) for n, data in enumerate(pictures)])
    ours = [row[0] for row in read(tmp_path, ["image"], shuffle=False)]
    with tf1.Graph().as_default(), tf1.Session() as session:
        for kind, image, data in zip(kinds, ours, pictures, strict=True):
            theirs = session.run(tf.io.decode_image(data, 3, expand_animations=False))
            # Noise in JPEG's halved colours: two decoders may round in different places.
            np.testing.assert_allclose(image.astype(int), theirs, atol=4 if kind == "JPEG" else 0)


def test_batches(folder: Path) -> None:
    sizes = [len(labels) for (labels,) in read(folder, ["label"], batch_size=8, image_size=4)]
    assert sizes == [8, 8, 4]
    kept = read(folder, ["label"], batch_size=8, image_size=4, drop_remainder=True)
    assert [len(labels) for (labels,) in kept] == [8, 8]
    with tf1.Graph().as_default():
        image, label = dataset(folder, batch_size=8, image_size=4, num_epochs=None).get(["image", "label"])
        assert (image.shape.as_list(), label.shape.as_list()) == ([8, 4, 4, 3], [8])
    with pytest.raises(UsageError, match="batch_size=8 without image_size"), tf1.Graph().as_default():
        dataset(folder, batch_size=8)


def test_one_hot_labels(folder: Path, tmp_path: Path) -> None:
    for options in ({}, {"batch_size": COUNT, "image_size": 4}):
        ((hot, names), *_) = read(folder, ["label", "image_name"], label_one_hot=True, **options)
        hot, names = np.atleast_2d(hot), np.atleast_1d(names)
        expected = np.eye(CLASSES, dtype=np.float32)[[int(name[:-4]) % CLASSES for name in names]]
        np.testing.assert_array_equal(hot, expected)
        assert hot.dtype == np.float32
    (folder / "labels.txt").write_text("0: ant\n1: bee\n")
    with pytest.raises(tf.errors.InvalidArgumentError, match="out of range"):
        read(folder, ["label"], label_one_hot=True)
    (folder / "labels.txt").unlink()
    with pytest.raises(UsageError, match="number of classes is not known"), tf1.Graph().as_default():
        dataset(folder, label_one_hot=True)


@pytest.mark.slow
def test_custom_features(folder: Path) -> None:
    specs = [
        tf1.FixedLenFeature([], tf.int64),
        tf1.FixedLenFeature([2], tf.float32, [0.5, 1.5]),
        tf1.VarLenFeature(tf.int64),
    ]
    keys = ["count", "absent", "image/class/label"]
    with tf1.Graph().as_default():
        made = dataset(folder, custom_feature_keys=keys[:2], custom_feature_values=specs[:2])
        assert set(made.items) >= {"image", "label", "count", "absent"}
    for options in ({}, {"batch_size": COUNT, "image_size": 4}):
        ((number, absent, name), *_) = read(
            folder,
            ["count", "absent", "image_name"],
            custom_feature_keys=keys[:2],
            custom_feature_values=specs[:2],
            **options,
        )
        assert [int(n[:-4]) for n in np.atleast_1d(name)] == np.atleast_1d(number).tolist()
        assert np.atleast_2d(absent)[0].tolist() == [0.5, 1.5]
    ((label,), *_) = read(folder, ["label"], custom_feature_keys=keys[2:], custom_feature_values=specs[2:])
    assert isinstance(label, tf1.SparseTensorValue), "a standard key gets another form"
    with pytest.raises(UsageError, match="1 feature keys and 2"), tf1.Graph().as_default():
        dataset(folder, custom_feature_keys=keys[:1], custom_feature_values=specs[:2])


def decode_batch(image_name: Any, image_buf: Any, label: Any, label_desc: Any) -> Any:
    def one(data: Any) -> Any:
        image = tf.image.decode_image(data, channels=3, expand_animations=False)
        image.set_shape([None, None, 3])
        return tf.image.resize(image, [7, 7])

    return image_name, tf.map_fn(one, image_buf, fn_output_signature=tf.float32), label * 2, label_desc


@pytest.mark.slow
def test_preprocess_fn(folder: Path) -> None:
    rows = read(folder, ["image", "label", "image_name"], batch_size=8, preprocess_fn=decode_batch)
    assert [image.shape for image, *_ in rows] == [(8, 7, 7, 3), (8, 7, 7, 3), (4, 7, 7, 3)]
    for image, label, name in rows:
        numbers = np.array([int(n[:-4]) for n in name])
        np.testing.assert_array_equal(label, numbers % CLASSES * 2)
        np.testing.assert_allclose(image[:, 0, 0, 0], numbers * 10, atol=1e-3)

    def single(image_name: Any, image_buf: Any, label: Any, label_desc: Any) -> Any:
        return image_name, tf.io.decode_png(image_buf), label, tf.strings.upper(label_desc)

    ((image, text), *_) = read(folder, ["image", "label_desc"], preprocess_fn=single)
    assert image.shape == (12, 10, 3)
    assert text.decode() in {name.upper() for name in NAMES}
    with pytest.raises(UsageError, match="preprocess_fn returned"), tf1.Graph().as_default():
        dataset(folder, preprocess_fn=lambda name, data, label, text: (data, label))
    with pytest.raises(UsageError, match="cannot be called"), tf1.Graph().as_default():
        dataset(folder, preprocess_fn="decode")


@pytest.mark.slow
def test_augmentation_fn(folder: Path) -> None:
    def halve(image: Any) -> Any:
        assert image.shape.rank == 3
        return tf.cast(image[:4, :4], tf.float32) / 2

    def fixed(image: Any) -> Any:
        image = halve(image)
        image.set_shape([4, 4, 3])
        return image

    (image, name), *_ = read(folder, ["image", "image_name"], augmentation_fn=halve)
    assert (image[..., 0] == int(name[:-4]) * 5).all()
    for options in (
        {"image_size": 6, "augmentation_fn": halve},
        {"preprocess_fn": decode_batch, "augmentation_fn": fixed},
    ):
        (images, names), *_ = read(folder, ["image", "image_name"], batch_size=5, **options)
        assert images.shape == (5, 4, 4, 3)
        np.testing.assert_allclose(images[:, 0, 0, 0], [int(n[:-4]) * 5 for n in names], atol=1e-3)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["cifarnet", "resnet_v1_50", "inception_v3"])
def test_our_augmentations_decode_windows(folder: Path, name: str) -> None:
    def augmented(**options: Any) -> list[Any]:
        fn = mox.get_data_augmentation_fn(name=name, run_mode=mox.ModeKeys.TRAIN, output_height=8, output_width=8)
        return read(folder, ["image", "label", "image_name"], augmentation_fn=fn, **options)

    batches = augmented(batch_size=8)
    assert [image.shape for image, *_ in batches] == [(8, 8, 8, 3), (8, 8, 8, 3), (4, 8, 8, 3)]
    assert sorted(int(n[:-4]) for *_, names in batches for n in names) == list(range(COUNT))
    for image, label, names in batches:
        assert image.dtype == np.float32
        np.testing.assert_array_equal(label, [int(n[:-4]) % CLASSES for n in names])
    # The same images in the same order as the exact path; the same windows with any number of threads.
    assert [n for *_, names in batches for n in names] == [n for *_, n in augmented()]
    with tf1.Graph().as_default():
        fn = mox.get_data_augmentation_fn(name=name, run_mode=mox.ModeKeys.TRAIN, output_height=8, output_width=8)
        made = dataset(folder, augmentation_fn=fn, batch_size=8)
        assert made.to_tf_data().element_spec["image"].dtype == tf.float32
        assert made._dataset.element_spec["image"].dtype == tf.uint8, "what is fed to the device is bytes"


@pytest.mark.slow
def test_windows_do_not_depend_on_threads_and_repeat_with_the_seed(folder: Path) -> None:
    fn = mox.get_data_augmentation_fn(name="resnet_v1_50", run_mode=mox.ModeKeys.TRAIN, output_height=8, output_width=8)
    runs = [
        np.concatenate([image for (image,) in read(folder, ["image"], augmentation_fn=fn, batch_size=7, **options)])
        for options in ({}, {"num_parallel": 1}, {"private_num_threads": 3}, {"seed": 2})
    ]
    np.testing.assert_array_equal(runs[0], runs[1])
    np.testing.assert_array_equal(runs[0], runs[2])
    assert not np.array_equal(runs[0], runs[3])
    later = read(folder, ["image"], augmentation_fn=fn, batch_size=7, position=7)
    np.testing.assert_array_equal(np.concatenate([image for (image,) in later]), runs[0][7:])
    twice = read(folder, ["image"], augmentation_fn=fn, batch_size=COUNT, num_epochs=2, shuffle=False)
    assert not np.array_equal(twice[0][0], twice[1][0]), "another window each epoch"


@pytest.mark.slow
def test_an_augmentation_that_takes_a_seed(folder: Path) -> None:
    def crop(image: Any, seed: Any) -> Any:
        return tf.image.stateless_random_crop(image, [4, 4, 3], seed)

    runs = [
        [image for (image,) in read(folder, ["image"], augmentation_fn=crop, **options)]
        for options in ({}, {"num_parallel": 1}, {"seed": 9, "shuffle": False}, {"shuffle": False})
    ]
    np.testing.assert_array_equal(runs[0], runs[1])
    assert not np.array_equal(runs[2], runs[3])


BAD = {"cut off": picture(3)[:60], "empty": b"", "text": b"this is no image at all"}


@pytest.fixture
def damaged(tmp_path: Path) -> Path:
    data = [picture(0), BAD["cut off"], picture(2), BAD["empty"], picture(4, "JPEG"), BAD["text"], picture(6)]
    records = [record(n, one, **({"words": [n] * (n % 3)} if n % 3 else {})) for n, one in enumerate(data)]
    write_records(tmp_path / "a.tfrecord", records)
    return tmp_path


def augmentation() -> Any:
    return mox.get_data_augmentation_fn(name="lenet", run_mode=mox.ModeKeys.TRAIN, output_height=8, output_width=8)


PATHS: dict[str, dict[str, Any]] = {
    "single": {},
    "batch": {"batch_size": 3, "image_size": 4},
    "windows": {"batch_size": 3, "augmentation_fn": None},
    "preprocess": {"batch_size": 3, "preprocess_fn": decode_batch},
}


def options_of(path: str) -> dict[str, Any]:
    chosen = dict(PATHS[path])
    return {**chosen, "augmentation_fn": augmentation()} if "augmentation_fn" in chosen else chosen


@pytest.mark.slow
@pytest.mark.parametrize("path", list(PATHS))
def test_bad_images_are_skipped_and_named(damaged: Path, path: str, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        rows = read(damaged, ["image_name"], shuffle=False, **options_of(path))
    names = [name for (names,) in rows for name in np.atleast_1d(names)]
    assert names == [b"0.png", b"2.png", b"4.png", b"6.png"]
    if path != "single":
        assert [len(np.atleast_1d(names)) for (names,) in rows] == [3, 1], "batches are full"
    told = [r.getMessage() for r in caplog.records if "bad image" in r.getMessage()]
    for number in (1, 3, 5):
        assert any(f"a.tfrecord: record {number} at byte" in line for line in told), told


@pytest.mark.slow
@pytest.mark.parametrize("path", list(PATHS))
def test_or_raise(damaged: Path, path: str) -> None:
    with pytest.raises(tf.errors.OpError, match=r"a\.tfrecord: record 1 at byte \d+"):
        read(damaged, ["image_name"], shuffle=False, on_bad_image="raise", **options_of(path))
    with pytest.raises(UsageError, match="on_bad_image='ignore'"), tf1.Graph().as_default():
        dataset(damaged, on_bad_image="ignore")


@pytest.mark.slow
def test_sparse_features_of_bad_images_go_with_them(damaged: Path) -> None:
    custom = {"custom_feature_keys": ["words"], "custom_feature_values": [tf1.VarLenFeature(tf.int64)]}
    ((words,), *_) = read(damaged, ["words"], shuffle=False, batch_size=4, augmentation_fn=augmentation(), **custom)
    assert words.values.tolist() == [2, 2, 4]
    assert words.indices[:, 0].tolist() == [1, 1, 2]
    assert words.dense_shape.tolist()[0] == 4


@pytest.mark.slow
def test_nobody_waits_for_an_image_that_never_comes(tmp_path: Path) -> None:
    write_records(tmp_path / "a.tfrecord", [record(n, b"no image") for n in range(4)])
    for path in PATHS:
        with pytest.raises(tf.errors.OpError, match="can be decoded, such as"):
            read(tmp_path, ["image_name"], num_epochs=None, **options_of(path))


@pytest.mark.slow
def test_records_of_tensorflow(tmp_path: Path, folder: Path) -> None:
    """Written by TensorFlow and read by us, and the other way round."""
    path = str(tmp_path / "tf.tfrecord")
    options = tf.io.TFRecordOptions(compression_type="GZIP")
    for number, chosen in enumerate((None, options)):
        with tf.io.TFRecordWriter(path, chosen) as writer:
            features = {
                "image/encoded": tf.train.Feature(bytes_list=tf.train.BytesList(value=[picture(number)])),
                "image/class/label": tf.train.Feature(int64_list=tf.train.Int64List(value=[3])),
            }
            writer.write(tf.train.Example(features=tf.train.Features(feature=features)).SerializeToString())
        with tf1.Graph().as_default(), tf1.Session() as session:
            metadata = ImageClassificationTFRecordMetadata(tmp_path, "tf.tfrecord")
            image, label = ImageClassificationTFRecordDataset(metadata).get(["image", "label"])
            values = session.run([image, label])
        assert (values[0][..., 0] == number * 10).all()
        assert values[1] == 3
    ours = [tf.train.Example.FromString(r) for r in tf1.io.tf_record_iterator(str(folder / "a-0.tfrecord"))]
    assert [e.features.feature["image/filename"].bytes_list.value[0] for e in ours] == [
        b"%d.png" % n for n in range(10)
    ]
    assert ours[7].features.feature["image/class/label"].int64_list.value[0] == 2


@pytest.mark.slow
@pytest.mark.usefixtures("drawn_alike")
def test_a_run_on_the_digits(digits_dir: Path, tmp_path: Path) -> None:
    """The documented way: single samples, batches made by the run."""

    def input_fn(mode: str, **kwargs: Any) -> Any:
        pattern = "train-*" if mode == mox.ModeKeys.TRAIN else "eval-*"
        metadata = ImageClassificationTFRecordMetadata(digits_dir / "tfrecord", pattern)
        training = mode == mox.ModeKeys.TRAIN
        made = ImageClassificationTFRecordDataset(
            metadata, channels=1, shuffle=training, num_epochs=None if training else 1, seed=0
        )
        image, label = made.get(["image", "label"])
        fn = mox.get_data_augmentation_fn(name="lenet", run_mode=mode, output_height=28, output_width=28)
        return fn(image), label

    def model_fn(inputs: list[Any], mode: str, **kwargs: Any) -> mox.ModelSpec:
        images, labels = inputs
        logits = tf1.layers.dense(tf1.layers.flatten(images), 10, name="logits")
        loss = tf1.losses.sparse_softmax_cross_entropy(labels, logits)
        right = tf.reduce_mean(tf.cast(tf.equal(tf.argmax(logits, 1), labels), tf.float32))
        return mox.ModelSpec(loss=loss, log_info={"loss": loss, "accuracy": right})

    common: dict[str, Any] = {"input_fn": input_fn, "model_fn": model_fn, "batch_size": 32}
    mox.run(
        **common,
        optimizer_fn=mox.get_optimizer_fn("sgd", learning_rate=0.05),
        run_mode=mox.ModeKeys.TRAIN,
        max_number_of_steps=150,
        log_dir=str(tmp_path),
    )
    result = mox.run(**common, run_mode=mox.ModeKeys.EVAL, checkpoint_path=str(tmp_path))
    assert result.metrics["accuracy"] > 0.85
