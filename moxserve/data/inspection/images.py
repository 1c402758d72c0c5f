"""Folders of images: how many of which class, size and format; which are broken."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np

from moxserve.data.inspection.detect import Found, visible
from moxserve.errors import DataError
from moxserve.file.labels import LABELS_FILE, parse_labels
from moxserve.images.header import BadImageError, ImageHeader, check_complete, read_header
from moxserve.inspect.report import Report, Table, columns

if TYPE_CHECKING:
    from moxserve.data.inspection.describe import Depth

__all__ = ["ImageFacts", "check_image", "describe_classes", "describe_images", "describe_multilabel"]

_THREADS = 8
_CHUNK = 256
_EXTENSIONS = {
    ".jpg": "jpeg", ".jpeg": "jpeg", ".jpe": "jpeg", ".png": "png", ".bmp": "bmp", ".gif": "gif", ".webp": "webp",
}  # fmt: skip


def check_image(data: bytes, name: str, decode: bool) -> ImageHeader:
    """Check that an image can be decoded, by header and end mark, or in fact.

    Args:
        data: the image.
        name: for messages.
        decode: whether to decode it.

    Raises:
        BadImageError: it cannot.
    """
    header = read_header(data, name)
    check_complete(data, header, name)
    if decode:
        from moxserve.images.decode import decode as decode_image

        decode_image(data, header.channels, name)
    return header


@dataclass
class ImageFacts:
    """What is learned of images one by one."""

    count: int = 0
    size_bytes: int = 0
    formats: Counter[str] = field(default_factory=Counter)
    channels: Counter[str] = field(default_factory=Counter)
    heights: list[int] = field(default_factory=list)
    widths: list[int] = field(default_factory=list)
    misnamed: list[str] = field(default_factory=list)
    broken: list[str] = field(default_factory=list)

    def add(self, name: str, size: int, header: ImageHeader) -> None:
        """Count an image that is sound."""
        self.count += 1
        self.size_bytes += size
        self.formats[header.format] += 1
        self.channels[{1: "gray", 4: "CMYK"}.get(header.components, "RGB")] += 1
        self.heights.append(header.height)
        self.widths.append(header.width)
        expected = _EXTENSIONS.get(os.path.splitext(name)[1].lower())
        if expected is not None and expected != header.format:
            self.misnamed.append(name)

    def tell(self, report: Report) -> None:
        """Write what was learned into a report."""
        report.facts["images"] = self.count
        report.facts["size_bytes"] = self.size_bytes
        if self.count:
            report.facts["formats"] = _counts(self.formats)
            report.facts["colours"] = _counts(self.channels)
            report.facts["height"] = _range(self.heights)
            report.facts["width"] = _range(self.widths)
        if self.misnamed:
            report.notes.append(
                f"{len(self.misnamed)} file(s) are of another format than the name says, and are read all the same: "
                f"{_some(self.misnamed)}"
            )
        report.problems += self.broken


def _counts(counter: Counter[str]) -> str:
    if len(counter) == 1:
        return next(iter(counter))
    return ", ".join(f"{count} {name}" for name, count in counter.most_common())


def _range(values: Sequence[int]) -> str:
    low, high = min(values), max(values)
    return str(low) if low == high else f"{low} to {high}, median {int(np.median(values))}"


def _some(names: Sequence[str], limit: int = 5) -> str:
    return ", ".join(names[:limit]) + (f", ... ({len(names)} in all)" if len(names) > limit else "")


def _look(base: str, names: Sequence[str], depth: Depth) -> tuple[ImageFacts, set[str]]:
    """Look at images; returns what was learned, and which are broken."""
    facts, bad = ImageFacts(), set()

    def one(name: str) -> tuple[int, ImageHeader] | str:
        try:
            with open(os.path.join(base, name), "rb") as file:
                data = file.read()
            return len(data), check_image(data, name, depth.decode)
        except BadImageError as error:
            return error.message
        except OSError as error:
            return f"{name}: {error.strerror}"

    with ThreadPoolExecutor(_THREADS) as pool:
        for start in range(0, len(names), _CHUNK):
            chunk = names[start : start + _CHUNK]
            for name, found in zip(chunk, pool.map(one, chunk), strict=True):
                if isinstance(found, str):
                    bad.add(name)
                    facts.broken.append(found)
                else:
                    facts.add(name, *found)
            depth.progress(start + len(chunk), len(names))
    return facts, bad


def _files(base: str, folder: str, others: list[str]) -> Iterator[str]:
    """Yield the images of a folder by name, relative to the base; what is none goes to `others`."""
    for entry in visible(os.path.join(base, folder)):
        name = os.path.join(folder, entry.name) if folder else entry.name
        # A link that leads nowhere is an image that cannot be read.
        if not entry.is_dir() and os.path.splitext(entry.name)[1].lower() in _EXTENSIONS:
            yield name
        elif entry.name != LABELS_FILE and not (folder == "" and entry.is_dir()):
            others.append(name)


def _note_others(report: Report, others: Sequence[str]) -> None:
    if others:
        report.notes.append(
            f"{len(others)} file(s) or folder(s) are no images by name, and are left out: {_some(others)}"
        )


def _labels(report: Report, base: str, one_line: bool) -> tuple[str, ...]:
    """Read labels.txt; empty where there is none, or where it is broken."""
    path = os.path.join(base, LABELS_FILE)
    if not os.path.isfile(path):
        report.notes.append(f"there is no {LABELS_FILE}: the classes are sorted as text")
        return ()
    try:
        with open(path, "rb") as file:
            return parse_labels(file.read(), path, one_line)
    except (DataError, OSError) as error:
        report.problems.append(str(error))
        return ()


def _class_table(labels: Sequence[str], counts: Counter[str], broken: Iterable[str]) -> Table:
    bad = Counter(broken)
    names = [*labels, *sorted({*counts, *bad} - {*labels})]
    rows = [(labels.index(name) if name in labels else None, name, counts[name], bad[name] or None) for name in names]
    return Table("classes", columns("index:count label:long images:count broken:count"), rows)


def describe_images(found: Found, depth: Depth) -> Report:
    """Look into a folder of images without labels, or at one image."""
    report = Report(found.path, found.kind)
    others: list[str] = []
    if os.path.isfile(found.path):
        base, names = os.path.dirname(found.path), [os.path.basename(found.path)]
    else:
        base, names = found.path, list(_files(found.path, "", others))
    facts, _ = _look(base, names, depth)
    facts.tell(report)
    _note_others(report, others)
    return report


def describe_classes(found: Found, depth: Depth) -> Report:
    """Look into a folder with a folder for each class."""
    report, others = Report(found.path, found.kind), list[str]()
    folders = [entry.name for entry in visible(found.path) if entry.is_dir()]
    names = [name for folder in folders for name in _files(found.path, folder, others)]
    labels = _labels(report, found.path, False)
    facts, bad = _look(found.path, names, depth)
    counts = Counter(os.path.dirname(name) for name in names if name not in bad)
    report.facts["classes"] = len(labels or folders)
    facts.tell(report)
    if labels:
        report.problems += [
            f"{name}: a folder that {LABELS_FILE} does not name" for name in folders if name not in labels
        ]
        report.problems += [
            f"{LABELS_FILE} names {name!r}, which has no folder" for name in labels if name not in folders
        ]
    report.problems += [f"{name}: a class without images" for name in folders if not counts[name]]
    report.tables.append(_class_table(labels or folders, counts, map(os.path.dirname, bad)))
    _note_others(report, others)
    return report


def describe_multilabel(found: Found, depth: Depth) -> Report:
    """Look into `images/` and `labels/`."""
    report, others = Report(found.path, found.kind), list[str]()
    names = list(_files(found.path, "images", others))
    labels = _labels(report, found.path, True)
    facts, _ = _look(found.path, names, depth)
    per_image, counts, unknown = _label_files(found.path, names, labels, report.problems)
    report.facts["classes"] = len(labels or counts)
    facts.tell(report)
    if per_image:
        report.facts["labels_of_an_image"] = _range(per_image)
    report.problems += [f"{LABELS_FILE} lacks the label {name!r} of {where}" for name, where in unknown.items()]
    report.tables.append(_class_table(labels or sorted(counts), counts, ()))
    _note_others(report, others)
    return report


def _label_files(
    base: str, names: Sequence[str], labels: Sequence[str], problems: list[str]
) -> tuple[list[int], Counter[str], dict[str, str]]:
    """Read the label file of each image: how many labels each has, how many images each label, and unknown labels."""
    per_image: list[int] = []
    counts: Counter[str] = Counter()
    unknown: dict[str, str] = {}
    for name in names:
        path = os.path.join("labels", f"{os.path.basename(name)}.txt")
        try:
            with open(os.path.join(base, path), encoding="utf-8-sig") as file:
                own = {line.strip() for line in file if line.strip()}
        except FileNotFoundError:
            problems.append(f"{name}: there is no {path}")
            continue
        except (OSError, UnicodeDecodeError) as error:
            problems.append(f"{path}: {error}")
            continue
        per_image.append(len(own))
        counts.update(own)
        unknown.update({label: path for label in own if labels and label not in labels})
    return per_image, counts, unknown
