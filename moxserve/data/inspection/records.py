"""Files of TFRecords: how many records, what features the tf.Examples have, which records are damaged."""

from __future__ import annotations

import os
from collections import Counter
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

from moxserve.data.inspection.detect import Found
from moxserve.data.inspection.images import ImageFacts, check_image
from moxserve.errors import MoxserveError
from moxserve.images.header import BadImageError, image_format
from moxserve.inspect.report import Report, Table, columns
from moxserve.protocol.examples import parse_example
from moxserve.protocol.tfrecord import compression_of, read_records

if TYPE_CHECKING:
    from moxserve.data.inspection.describe import Depth

__all__ = ["describe_records"]

_LABEL, _TEXT = "image/class/label", "image/class/text"
_EXAMPLE_CHARACTERS = 40
_MOST_CLASSES = 1000
_DTYPES = {"O": "bytes", "i": "int64", "f": "float"}


@dataclass
class _Feature:
    """What is learned of one feature."""

    dtypes: set[str] = field(default_factory=set)
    present: int = 0
    shortest: int = 1 << 62
    longest: int = 0
    example: str = ""

    def add(self, value: np.ndarray) -> None:
        self.present += 1
        # A feature without values has no kind of its own.
        if len(value):
            self.dtypes.add(_DTYPES.get(value.dtype.kind, value.dtype.name))
        self.shortest, self.longest = min(self.shortest, len(value)), max(self.longest, len(value))
        if not self.example and len(value):
            self.example = _shown(value)


def _shown(value: np.ndarray) -> str:
    if value.dtype != object:
        text = ", ".join(f"{number:.6g}" for number in value[:4].tolist()) + (", ..." if len(value) > 4 else "")
        return text[:_EXAMPLE_CHARACTERS]
    data: bytes = value[0]
    kind = image_format(data[:16])
    if kind is not None:
        return f"{kind}, {len(data)} bytes"
    try:
        text = data.decode()
    except UnicodeDecodeError:
        return f"{len(data)} bytes"
    if not text.isprintable():
        return f"{len(data)} bytes"
    return text if len(text) <= _EXAMPLE_CHARACTERS else f"{text[:_EXAMPLE_CHARACTERS]}..."


class _Records:
    """Collects what is learned, record by record."""

    def __init__(self, report: Report, depth: Depth) -> None:
        self._report, self._depth = report, depth
        self.count = self.looked_at = 0
        self.features: dict[str, _Feature] = {}
        self.images = ImageFacts()
        self.classes: Counter[int] = Counter()
        self.texts: dict[int, str] = {}

    def file(self, path: str) -> int:
        """Read a file to its end; returns the number of its records."""
        count, name = 0, os.path.basename(path)
        problems = self._report.problems
        try:
            for payload in read_records(path, problems.append):
                if self.looked_at < self._depth.rows:
                    self.looked_at += 1
                    self._look(payload, f"{name}, record {count}")
                count += 1
        except (MoxserveError, OSError, EOFError) as error:
            problems.append(str(error))
        self.count += count
        return count

    def _look(self, payload: bytes, where: str) -> None:
        try:
            example = parse_example(payload)
        except MoxserveError as error:
            self._report.problems.append(f"{where}: no tf.Example: {error}")
            return
        for name, value in example.items():
            self.features.setdefault(name, _Feature()).add(value)
            self._image(name, value, where)
        self._label(example)

    def _image(self, name: str, value: np.ndarray, where: str) -> None:
        if value.dtype != object or len(value) != 1 or not (name.endswith("encoded") or image_format(value[0][:16])):
            return
        try:
            self.images.add("", len(value[0]), check_image(value[0], f"{where}, {name}", self._depth.decode))
        except BadImageError as error:
            self._report.problems.append(error.message)

    def _label(self, example: dict[str, Any]) -> None:
        label = example.get(_LABEL)
        if label is None or label.dtype.kind != "i" or len(label) != 1:
            return
        self.classes[int(label[0])] += 1
        text = example.get(_TEXT)
        if text is not None and text.dtype == object and len(text) == 1:
            self.texts.setdefault(int(label[0]), text[0].decode(errors="replace"))


def describe_records(found: Found, depth: Depth) -> Report:
    """Look into files of records."""
    report = Report(found.path, found.kind)
    files = found.files or (found.path,)
    records = _Records(report, depth)
    rows = []
    for number, path in enumerate(files):
        depth.progress(number, len(files))
        with open(path, "rb") as file:
            compression = compression_of(file.read(12))
        rows.append((os.path.basename(path), records.file(path), os.path.getsize(path), compression or None))
    depth.progress(len(files), len(files))
    report.facts = {"records": records.count, "files": len(files), "size_bytes": sum(row[2] for row in rows)}
    if records.images.count:
        images = Report("", "")
        records.images.tell(images)
        report.facts |= {key: value for key, value in images.facts.items() if key != "size_bytes"}
    if records.count > records.looked_at:
        report.notes.append(
            f"features are those of the first {records.looked_at} of {records.count} records; --rows looks at more"
        )
    if len(files) > 1:
        report.tables.append(Table("file_list", columns("file:long records:count size:bytes compression"), rows))
    report.tables += _tables(records)
    return report


def _tables(records: _Records) -> list[Table]:
    rows = [
        (
            name,
            " or ".join(sorted(feature.dtypes)) or "empty",
            str(feature.longest) if feature.shortest == feature.longest else f"{feature.shortest} to {feature.longest}",
            feature.present,
            feature.example,
        )
        for name, feature in sorted(records.features.items())
    ]
    tables = [Table("features", columns("feature dtype length records:count example:long"), rows)] if rows else []
    if 0 < len(records.classes) <= _MOST_CLASSES:
        classes = [(label, records.texts.get(label), count) for label, count in sorted(records.classes.items())]
        tables.append(Table("classes", columns("index:count label:long records:count"), classes))
    return tables
