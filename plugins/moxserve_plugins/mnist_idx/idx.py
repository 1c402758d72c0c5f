"""A folder of MNIST's four files: images and labels of `train` and `t10k`, gzip-compressed IDX."""

from __future__ import annotations

import os
from typing import Any

import numpy as np

from moxserve.errors import DataError
from moxserve.file import exists
from moxserve.file.idx import idx_shape, read_idx

__all__ = ["file_name", "read_array", "read_headers"]

_RANK = {"images": 3, "labels": 1}


def file_name(part: str, kind: str) -> str:
    """Return a file's name.

    Args:
        part: `train` or `t10k`.
        kind: `images` or `labels`.
    """
    return f"{part}-{kind}-idx{_RANK[kind]}-ubyte.gz"


def read_array(folder: str, part: str, kind: str) -> np.ndarray[Any, np.dtype[np.uint8]]:
    """Read one file: images `[n, height, width] uint8` or labels `[n] uint8`.

    Raises:
        DataError: it is not there, not IDX, or cut off.
    """
    return read_idx(os.path.join(folder, file_name(part, kind)), _RANK[kind])


def read_headers(folder: str) -> dict[str, tuple[int, int, int]]:
    """Return rows, height and width of `train` and `t10k`, reading only the files' first bytes.

    Raises:
        DataError: a file is missing or of another kind, or a pair differs in number.
    """
    missing = [
        name
        for name in (file_name(part, kind) for part in ("train", "t10k") for kind in _RANK)
        if not exists(os.path.join(folder, name))
    ]
    if missing:
        raise DataError(f"{folder!r} lacks {', '.join(missing)}")
    shapes = {}
    for part in ("train", "t10k"):
        images, labels = (idx_shape(os.path.join(folder, file_name(part, k)), _RANK[k]) for k in ("images", "labels"))
        if images[0] != labels[0]:
            raise DataError(f"{folder!r}: {part} has {images[0]} images and {labels[0]} labels")
        shapes[part] = (images[0], images[1], images[2])
    return shapes
