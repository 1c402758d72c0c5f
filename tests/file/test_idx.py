"""IDX files, written and read."""

from __future__ import annotations

import gzip
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from moxserve.errors import DataError
from moxserve.file import MoxFileNotExistsException
from moxserve.file.idx import encode_idx, idx_shape, read_idx


@given(hnp.arrays(np.uint8, hnp.array_shapes(min_dims=1, max_dims=4, min_side=0)), st.booleans())
def test_round_trip(tmp_path_factory, array, compressed) -> None:
    path = tmp_path_factory.mktemp("idx") / ("x.gz" if compressed else "x")
    path.write_bytes(encode_idx(array, compressed=compressed))
    assert idx_shape(str(path)) == array.shape
    np.testing.assert_array_equal(read_idx(str(path), array.ndim), array)


def test_bytes_are_those_of_mnist_and_always_the_same() -> None:
    images = np.arange(12, dtype=np.uint8).reshape(3, 2, 2)
    assert encode_idx(images, compressed=False)[:16] == bytes.fromhex("00000803 00000003 00000002 00000002")
    assert encode_idx(images) == encode_idx(images.copy())


GOOD = encode_idx(np.zeros((2, 3), np.uint8), compressed=False)


@pytest.mark.parametrize(
    ("name", "data", "rank", "message"),
    [
        ("x", GOOD[:-1], None, r"has 5 bytes of data; its header \[2, 3\] announces 6"),
        ("x", GOOD[:6], None, "is cut off in its header"),
        ("x", b"\x89PNG", None, "expected it to begin with 00 00 08, got '89 50 4e'"),
        ("x", b"", None, "is no IDX file"),
        ("x", GOOD, 1, r"has 2 dimensions; expected 1 \(labels\)"),
        ("x.gz", GOOD, None, "cannot be read, or is cut off"),
        ("x.gz", gzip.compress(GOOD, mtime=0)[:-9], None, "cannot be read, or is cut off"),
    ],
)
def test_what_is_no_idx_file(tmp_path: Path, name, data, rank, message) -> None:
    (tmp_path / name).write_bytes(data)
    with pytest.raises(DataError, match=message):
        read_idx(str(tmp_path / name), rank)


def test_missing(tmp_path: Path) -> None:
    with pytest.raises(MoxFileNotExistsException, match="no such file"):
        read_idx(str(tmp_path / "x"))
