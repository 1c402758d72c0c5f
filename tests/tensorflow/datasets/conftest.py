"""Folders of real photographs: crops of scikit-learn's two sample images, of many sizes."""

from __future__ import annotations

import io
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from sklearn.datasets import load_sample_images

from moxserve.tensorflow.executor.env import tf, tf1

PER_CLASS = 7


def jpeg(pixels: np.ndarray, format: str = "JPEG") -> bytes:
    data = io.BytesIO()
    Image.fromarray(pixels).save(data, format, quality=90)
    return data.getvalue()


@pytest.fixture(scope="session")
def crops() -> dict[str, list[np.ndarray]]:
    """Seven crops of each photograph: `[height, width, 3] uint8`, no two of one size."""
    bunch = load_sample_images()
    photos = dict(zip(("china", "flower"), bunch.images, strict=True))
    random = np.random.default_rng(0)
    found: dict[str, list[np.ndarray]] = {}
    for name, photo in photos.items():
        corners = random.integers(0, [300, 500], (PER_CLASS, 2))
        found[name] = [photo[y : y + 40 + i, x : x + 60 - 2 * i].copy() for i, (y, x) in enumerate(corners)]
    return found


@pytest.fixture
def folder(tmp_path: Path, crops: dict[str, list[np.ndarray]]) -> Path:
    """`photos/china/0.jpg` ... `photos/flower/6.jpg`; a test may change it."""
    base = tmp_path / "photos"
    for label, images in crops.items():
        (base / label).mkdir(parents=True)
        for i, pixels in enumerate(images):
            (base / label / f"{i}.jpg").write_bytes(jpeg(pixels))
    return base


Rows = list[list[Any]]


def read_rows(dataset: Any, items: Sequence[str] = ("image_name",), count: int | None = None) -> Rows:
    """Elements of a data set as `session.run` gives them: all, or the first few."""
    tensors = dataset.get(list(items))
    rows: Rows = []
    with tf1.Session() as session:
        while count is None or len(rows) < count:
            try:
                rows.append(session.run(tensors))
            except tf.errors.OutOfRangeError:
                break
    return rows


@pytest.fixture
def read() -> Callable[..., Rows]:
    """Read elements: `read(dataset, ["image", "label"], count=3)`."""
    return read_rows


@pytest.fixture
def names() -> Callable[..., list[str]]:
    """The names of the images in the order in which a data set gives them, batched or not."""

    def call(dataset: Any, count: int | None = None) -> list[str]:
        found: list[str] = []
        for (name,) in read_rows(dataset, ["image_name"], count):
            found += [one.decode() for one in np.atleast_1d(np.asarray(name, object))]
        return found

    return call
