"""Arrays and databases: npz, IDX and LMDB."""

from __future__ import annotations

import math
import os
import zipfile
import zlib
from collections import Counter
from typing import TYPE_CHECKING, Any

import numpy as np

from moxserve.data.inspection.detect import Found
from moxserve.data.inspection.images import ImageFacts, check_image
from moxserve.errors import DataError
from moxserve.file.idx import read_idx
from moxserve.images.header import BadImageError, image_format
from moxserve.inspect.report import Report, Table, columns

if TYPE_CHECKING:
    from moxserve.data.inspection.describe import Depth

__all__ = ["describe_idx", "describe_lmdb", "describe_npz"]

_MOST_CLASSES = 1000


def describe_npz(found: Found, depth: Depth) -> Report:
    """Look into a file of NumPy arrays: their headers and checksums; nothing is unpickled."""
    report = Report(found.path, found.kind, {"size_bytes": os.path.getsize(found.path)})
    rows: list[tuple[Any, ...]] = []
    try:
        with zipfile.ZipFile(found.path) as archive:
            names = archive.namelist()
            for number, name in enumerate(names):
                depth.progress(number, len(names))
                rows.append(_member(archive, name, report))
    except (zipfile.BadZipFile, OSError) as error:
        report.problems.append(str(error))
    report.facts = {"arrays": len(rows), **report.facts}
    report.tables.append(Table("array_list", columns("array:long dtype shape:shape size:bytes"), rows, title="arrays"))
    return report


def _member(archive: zipfile.ZipFile, name: str, report: Report) -> tuple[Any, ...]:
    """Read the header of an array, and all of its bytes for the checksum."""
    shown = name.removesuffix(".npy")
    try:
        with archive.open(name) as file:
            version = np.lib.format.read_magic(file)
            read = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
            shape, _, dtype = read(file)
            size = 0
            while block := file.read(1 << 20):
                size += len(block)
    except (ValueError, zipfile.BadZipFile, zlib.error, EOFError, OSError) as error:
        report.problems.append(f"{shown}: {error}")
        return shown, None, (), None
    expected = math.prod(shape) * dtype.itemsize
    if dtype.hasobject:
        report.notes.append(f"{shown} holds Python objects, which are pickled: our readers refuse it")
    elif size != expected:
        report.problems.append(f"{shown}: {size} bytes of data; its header announces {expected}")
    return shown, str(dtype), shape, size


def describe_idx(found: Found, _depth: Depth) -> Report:
    """Look into a file in MNIST's format."""
    report = Report(found.path, found.kind, {"size_bytes": os.path.getsize(found.path)})
    try:
        array = read_idx(found.path)
    except DataError as error:
        report.problems.append(error.message)
        return report
    report.facts = {"shape": list(array.shape), "dtype": str(array.dtype), **report.facts}
    if array.ndim == 1:
        values, counts = np.unique(array, return_counts=True)
        rows = list(zip(values.tolist(), counts.tolist(), strict=True))
        report.tables.append(Table("classes", columns("index:count labels:count"), rows))
    return report


# How a pickle of protocol 2 to 5 begins.
_PICKLE = tuple(bytes((0x80, protocol)) for protocol in range(2, 6))


def _value_kind(value: bytes) -> str:
    if image_format(value[:16]) is not None:
        return "image"
    return "pickle" if value.startswith(_PICKLE) else "bytes"


def describe_lmdb(found: Found, depth: Depth) -> Report:
    """Look into a database: keys, values by size and kind; nothing is unpickled."""
    from moxserve.dataflow.lmdb_file import LmdbFile

    report = Report(found.path, found.kind)
    try:
        file = LmdbFile.open(found.path)
        report.facts["entries"] = file.entries
        kinds: Counter[str] = Counter()
        sizes: list[int] = []
        images = ImageFacts()
        first = last = b""
        for number, key in enumerate(file.all_keys()):
            first, last = first or key, key
            if number >= depth.rows and not depth.decode:
                continue
            if not number % 1000:
                depth.progress(number, file.entries)
            value = file.get(key) or b""
            sizes.append(len(value))
            kinds[_value_kind(value)] += 1
            _image(value, f"key {key!r}", images, depth)
    except DataError as error:
        report.problems.append(error.message)
        return report
    report.facts["keys"] = f"{first!r} to {last!r}" if sizes else "none"
    if sizes:
        report.facts["size_of_values"] = f"{min(sizes)} to {max(sizes)} bytes, median {int(np.median(sizes))}"
        report.tables.append(Table("values", columns("value entries:count"), list(kinds.most_common())))
    if len(sizes) < file.entries:
        report.notes.append(f"values are the first {len(sizes)} of {file.entries}; --rows looks at more")
    report.problems += images.broken
    return report


def _image(value: bytes, name: str, images: ImageFacts, depth: Depth) -> None:
    if image_format(value[:16]) is None:
        return
    try:
        images.add("", len(value), check_image(value, name, depth.decode))
    except BadImageError as error:
        images.broken.append(error.message)
