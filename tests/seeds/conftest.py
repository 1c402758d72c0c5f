"""Real handwritten digits as MNIST-format IDX files, for the documents' scripts."""

from __future__ import annotations

import gzip
from pathlib import Path

import numpy as np
import pytest


def _write_idx(path: Path, array: np.ndarray) -> None:
    header = bytes((0, 0, 8, array.ndim)) + np.asarray(array.shape, ">u4").tobytes()
    with gzip.open(path, "wb") as f:
        f.write(header + array.astype(np.uint8).tobytes())


@pytest.fixture(scope="session")
def idx_digits(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the four IDX files: scikit-learn's digits, enlarged to 28x28."""
    digits = pytest.importorskip("sklearn.datasets").load_digits()
    images = np.kron(digits.images * (255 / 16), np.ones((3, 3)))
    images = np.pad(images, ((0, 0), (2, 2), (2, 2))).round()
    order = np.random.default_rng(7).permutation(len(images))
    folder = tmp_path_factory.mktemp("idx")
    for name, part in (("train", order[:1500]), ("t10k", order[1500:])):
        _write_idx(folder / f"{name}-images-idx3-ubyte.gz", images[part])
        _write_idx(folder / f"{name}-labels-idx1-ubyte.gz", digits.target[part])
    return folder
