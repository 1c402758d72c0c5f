"""A report of each data set at a path."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from dataclasses import dataclass

from moxserve.data.inspection.detect import Found, detect
from moxserve.inspect.report import Report

__all__ = ["Depth", "Progress", "describe"]

# Told how much is done, and how much there is in all.
Progress = Callable[[int, int], None]
_DESCRIBERS = {
    "image folder": "images:describe_classes",
    "multilabel": "images:describe_multilabel",
    "images": "images:describe_images",
    "tfrecord": "records:describe_records",
    "csv": "tables:describe_csv",
    "parquet": "tables:describe_parquet",
    "npz": "arrays:describe_npz",
    "idx": "arrays:describe_idx",
    "lmdb": "arrays:describe_lmdb",
}


@dataclass(frozen=True)
class Depth:
    """How closely to look.

    Attributes:
        decode: decode each image, and read each value of Parquet and LMDB; otherwise headers, lengths and checksums
            are checked.
        rows: how many records, rows or values are looked at for dtypes and lengths; all are counted.
        progress: told of each file or record.
    """

    decode: bool = False
    rows: int = 10_000
    progress: Progress = lambda _done, _total: None


def describe(path: str, depth: Depth | None = None) -> list[Report]:
    """Look into the data sets at a path.

    Args:
        path: a file or folder.
        depth: how closely.

    Returns:
        A report each; what is broken is in its `problems`.

    Raises:
        DataError: there is no data set.
        MissingExtraError: a package that reads it is not installed.
    """
    return [_describe(found, depth or Depth()) for found in detect(path)]


def _describe(found: Found, depth: Depth) -> Report:
    module, _, name = _DESCRIBERS[found.kind].partition(":")
    describer = getattr(importlib.import_module(f"moxserve.data.inspection.{module}"), name)
    try:
        report: Report = describer(found, depth)
    except OSError as error:
        return Report(found.path, found.kind, problems=[f"cannot be read: {error}"])
    return report
