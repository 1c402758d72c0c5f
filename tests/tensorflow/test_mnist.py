"""The MNIST-format reader: the original's semantics, and files that are not what they should be."""

from __future__ import annotations

import gzip
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from moxserve.errors import DataError
from moxserve.tensorflow.datasets.mnist import DataSet, read_data_sets

NAMES = {
    "train-images-idx3-ubyte.gz": (24, 2, 3),
    "train-labels-idx1-ubyte.gz": (24,),
    "t10k-images-idx3-ubyte.gz": (5, 2, 3),
    "t10k-labels-idx1-ubyte.gz": (5,),
}


def idx(array: np.ndarray) -> bytes:
    return bytes((0, 0, 8, array.ndim)) + np.asarray(array.shape, ">u4").tobytes() + array.tobytes()


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for name, shape in NAMES.items():
        values = np.arange(np.prod(shape)).reshape(shape) % (256 if len(shape) > 1 else 10)
        (tmp_path / name).write_bytes(gzip.compress(idx(values.astype(np.uint8))))
    return tmp_path


def test_the_three_parts_and_their_shapes(folder: Path) -> None:
    data = read_data_sets(str(folder), one_hot=True)
    assert [part.num_examples for part in data] == [22, 2, 5]
    assert data.train.images.shape == (22, 6)
    assert data.train.images.dtype == np.float32
    np.testing.assert_allclose(data.validation.images[1], np.arange(6, 12) / 255, rtol=1e-6)
    np.testing.assert_array_equal(data.train.labels[0], np.eye(10)[2])
    plain = read_data_sets(str(folder), reshape=False, validation_size=0)
    assert plain.train.images.shape == (24, 2, 3, 1)
    assert plain.test.labels.tolist() == [0, 1, 2, 3, 4]


def test_an_epoch_gives_every_row_once_and_batches_reach_over_its_end(folder: Path) -> None:
    train = read_data_sets(str(folder), validation_size=4, seed=1).train
    batches = [train.next_batch(8) for _ in range(5)]
    assert all(len(images) == len(labels) == 8 for images, labels in batches)
    rows = np.concatenate([images[:, 0] for images, _ in batches])
    for epoch in (rows[:20], rows[20:40]):
        np.testing.assert_array_equal(np.sort(epoch), np.sort(train.images[:, 0]))
    assert not np.array_equal(rows[:20], rows[20:40])
    assert train.epochs_completed == 2


def test_the_seed_decides_the_order(folder: Path) -> None:
    orders = [read_data_sets(str(folder), seed=seed).train.next_batch(20)[0] for seed in (1, 1, 2)]
    np.testing.assert_array_equal(orders[0], orders[1])
    assert not np.array_equal(orders[0], orders[2])


def test_unshuffled_rows_come_in_order_with_their_labels(folder: Path) -> None:
    train = read_data_sets(str(folder), validation_size=0).train
    images, labels = train.next_batch(30, shuffle=False)
    np.testing.assert_array_equal(images[:24], train.images)
    assert labels.tolist() == [i % 10 for i in range(24)] + [0, 1, 2, 3, 4, 5]


BROKEN: dict[str, tuple[Callable[[bytes], bytes], str]] = {
    "not gzip": (lambda raw: raw, "cannot be read"),
    "cut off": (lambda raw: gzip.compress(raw)[:-20], "cannot be read"),
    "no IDX": (lambda raw: gzip.compress(b"PNG" + raw), "begin with 00 00 08, got .50 4e 47"),
    "floats": (lambda raw: gzip.compress(b"\0\0\x0d" + raw[3:]), "no IDX file of unsigned bytes"),
    "too short": (lambda raw: gzip.compress(raw[:-1]), r"has 23 bytes of data; its header \[24\] announces 24"),
}


@pytest.mark.parametrize("case", BROKEN)
def test_broken_files(folder: Path, case: str) -> None:
    change, message = BROKEN[case]
    path = folder / "train-labels-idx1-ubyte.gz"
    path.write_bytes(change(gzip.decompress(path.read_bytes())))
    with pytest.raises(DataError, match=message):
        read_data_sets(str(folder))


def test_a_missing_file_names_what_is_needed(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"t10k-labels-idx1-ubyte\.gz"):
        read_data_sets(str(tmp_path))


def test_other_mistakes(folder: Path) -> None:
    with pytest.raises(DataError, match="validation_size=99: expected 0 to 24"):
        read_data_sets(str(folder), validation_size=99)
    with pytest.raises(DataError, match=r"label 9 .* num_classes=3"):
        read_data_sets(str(folder), one_hot=True, num_classes=3)
    with pytest.raises(DataError, match="2 images, but 3 labels"):
        DataSet(np.zeros((2, 2, 2), np.uint8), np.zeros(3))
    with pytest.raises(DataError, match="empty"):
        DataSet(np.zeros((0, 2, 2), np.uint8), np.zeros(0)).next_batch(1)
