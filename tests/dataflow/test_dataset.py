"""Well-known data sets from local files."""

from __future__ import annotations

import gzip
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest

from moxserve.dataflow import BatchData, dataset
from moxserve.errors import DataError, UsageError
from moxserve.file import MoxFileNotExistsException
from moxserve.file.idx import encode_idx


@pytest.fixture
def mnist(tmp_path: Path) -> Path:
    for prefix, n in (("train", 30), ("t10k", 10)):
        images = np.arange(n * 28 * 28, dtype=np.uint32).astype(np.uint8).reshape(n, 28, 28)
        (tmp_path / f"{prefix}-images-idx3-ubyte.gz").write_bytes(encode_idx(images))
        (tmp_path / f"{prefix}-labels-idx1-ubyte").write_bytes(encode_idx(np.arange(n) % 10, compressed=False))
    return tmp_path


@pytest.mark.parametrize("kind", [dataset.Mnist, dataset.FashionMnist])
def test_mnist(kind: Any, mnist: Path) -> None:
    flow = kind("test", shuffle=False, dir=str(mnist))
    image, label = list(flow)[3]
    assert (len(flow), label, image.shape, image.dtype) == (10, 3, (28, 28), np.float32)
    assert image.max() == 1.0
    np.testing.assert_allclose(image.ravel()[:3] * 255, [(3 * 784 + i) % 256 for i in range(3)], rtol=1e-6)
    images, labels = next(iter(BatchData(kind("train", dir=str(mnist)), 30)))
    assert images.shape == (30, 28, 28)
    assert labels.dtype == np.int32
    assert labels.tolist() != sorted(labels.tolist())


def test_mnist_errors(mnist: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(UsageError, match=r"no part 'trian'; did you mean 'train'"):
        dataset.Mnist("trian")
    monkeypatch.setenv("TENSORPACK_DATASET", str(mnist / "none"))
    expected = (
        r"expected train-images-idx3-ubyte.gz or train-images-idx3-ubyte in '.*none/mnist_data', which is no folder"
    )
    with pytest.raises(MoxFileNotExistsException, match=expected):
        dataset.Mnist("train")
    (mnist / "train-labels-idx1-ubyte").write_bytes(encode_idx(np.zeros(3, np.uint8), compressed=False))
    with pytest.raises(DataError, match=r"has 30 images, .* 3 labels"):
        dataset.Mnist("train", dir=str(mnist))
    whole = gzip.compress(b"nothing")
    (mnist / "train-images-idx3-ubyte.gz").write_bytes(whole[:-3])
    with pytest.raises(DataError, match=r"train-images-idx3-ubyte\.gz"):
        dataset.Mnist("train", dir=str(mnist))


def write_cifar(path: Path, n: int, label_bytes: int) -> np.ndarray:
    path.parent.mkdir(parents=True, exist_ok=True)
    rows = np.random.default_rng(n).integers(0, 10, (n, label_bytes + 3072), np.uint8)
    path.write_bytes(rows.tobytes())
    return rows


def test_cifar10(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TENSORPACK_DATASET", str(tmp_path))
    folder = tmp_path / "cifar10_data" / "cifar-10-batches-bin"
    rows = [write_cifar(folder / f"data_batch_{i}.bin", i, 1) for i in range(1, 6)]
    test = write_cifar(folder / "test_batch.bin", 4, 1)
    flow = dataset.Cifar10("train", shuffle=False)
    dps = list(flow)
    assert len(flow) == len(dps) == 15
    everything = np.concatenate(rows)
    for (image, label), row in zip(dps, everything, strict=True):
        assert label == row[0]
        assert (image.shape, image.dtype) == ((32, 32, 3), np.uint8)
        np.testing.assert_array_equal(image[5, 7], row[1:].reshape(3, 32, 32)[:, 5, 7])
    # Test data comes in order unless told otherwise.
    assert [dp[1] for dp in dataset.Cifar10("test")] == test[:, 0].tolist()
    pixels = np.concatenate([everything, test])[:, 1:].reshape(-1, 3, 32, 32)
    np.testing.assert_allclose(flow.get_per_pixel_mean(), pixels.mean(0).transpose(1, 2, 0), rtol=1e-5)
    np.testing.assert_allclose(flow.get_per_channel_mean(["test"]), pixels[-4:].mean((0, 2, 3)), rtol=1e-5)


def test_cifar100(tmp_path: Path) -> None:
    rows = write_cifar(tmp_path / "test.bin", 4, 2)
    assert [dp[1] for dp in dataset.Cifar100("test", dir=str(tmp_path))] == rows[:, 1].tolist()
    with pytest.raises(
        MoxFileNotExistsException, match=r"expected train.bin or cifar-100-binary/train.bin in .* has none"
    ):
        dataset.Cifar100("train", dir=str(tmp_path))
    (tmp_path / "test.bin").write_bytes(rows.tobytes()[:-1])
    with pytest.raises(DataError, match="12295 bytes, not a multiple of 3074"):
        dataset.Cifar100("test", dir=str(tmp_path))


@pytest.fixture
def imagenet(tmp_path: Path) -> Path:
    for folder, label in (("train/n02", 2), ("train/n01", 1), ("val", 3)):
        (tmp_path / folder).mkdir(parents=True)
        for i in range(2):
            cv2.imwrite(str(tmp_path / folder / f"{i}.png"), np.full((3, 4, 3), (label, 0, 10 * i), np.uint8))
    (tmp_path / "val.txt").write_text("1.png 7\n\n0.png 5\n")
    (tmp_path / "train" / "notes.txt").write_text("no image")
    return tmp_path


def test_ilsvrc(imagenet: Path) -> None:
    flow = dataset.ILSVRC12(str(imagenet), "train", shuffle=False)
    # BGR: the first channel is what cv2 wrote as blue.
    assert [(dp[0][0, 0].tolist(), dp[1]) for dp in flow] == [
        ([1, 0, 0], 0),
        ([1, 0, 10], 0),
        ([2, 0, 0], 1),
        ([2, 0, 10], 1),
    ]
    files = dataset.ILSVRC12Files(str(imagenet), "val")
    assert list(files) == [[str(imagenet / "val/1.png"), 7], [str(imagenet / "val/0.png"), 5]]
    assert len(dataset.ILSVRC12Files(str(imagenet), "train")) == 4


def test_ilsvrc_errors(imagenet: Path) -> None:
    with pytest.raises(MoxFileNotExistsException, match=r"'test' in .* which is no folder"):
        dataset.ILSVRC12(str(imagenet), "test")
    with pytest.raises(DataError, match=r"no folders of classes(.|\n)*val\.txt"):
        dataset.ILSVRC12(str(imagenet), "val", dir_structure="train")
    with pytest.raises(MoxFileNotExistsException, match=r"expected the list '.*meta/val\.txt'"):
        dataset.ILSVRC12(str(imagenet), "val", meta_dir=str(imagenet / "meta"), dir_structure="original")
    with pytest.raises(UsageError, match="dir_structure='flat'"):
        dataset.ILSVRC12(str(imagenet), "val", dir_structure="flat")
    (imagenet / "val.txt").write_text("1.png 7\n0.png five\n")
    with pytest.raises(DataError, match=r"val\.txt:2: expected a file name, a blank and a label, got '0\.png five'"):
        dataset.ILSVRC12(str(imagenet), "val")
    (imagenet / "train/n01/0.png").write_bytes(b"")
    with pytest.raises(DataError, match=r"n01/0\.png"):
        list(dataset.ILSVRC12(str(imagenet), "train"))
