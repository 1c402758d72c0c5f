"""labels.txt: which index a class has.

    0: cat
    1: dog

One line a class, in any order, the indices 0, 1, 2, ... each once; blank lines are skipped. UTF-8, with or without a
byte order mark. Read where the caller asks for it: all on one line (`0: cat 1: dog`), as MoXing's page on multi-label
data has them; names alone, a line each, numbered as they come.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence

from moxserve.errors import DataError, did_you_mean
from moxserve.file.handle import File

__all__ = ["LABELS_FILE", "check_folders", "format_labels", "parse_labels", "read_labels"]

LABELS_FILE = "labels.txt"
_LINE = re.compile(r"(\d+)\s*:\s*(.*\S)\s*")
_ENTRY = re.compile(r"(?:^|\s)(\d+)\s*:\s")


def read_labels(file: str, bare: bool = False) -> tuple[str, ...]:
    """Read a labels.txt.

    Args:
        file: its path.
        bare: whether it may hold names alone.

    Returns:
        Class names by index.

    Raises:
        DataError: a line has another form, an index or a label is given twice, or an index is missing; with the line.
    """
    with File(file, "rb") as f:
        return parse_labels(f.read(), file, bare=bare)


def parse_labels(data: bytes, file: str, one_line: bool = False, bare: bool = False) -> tuple[str, ...]:
    """Parse the content of a labels.txt.

    Args:
        data: the content.
        file: its name, for messages.
        one_line: whether several classes may share a line.
        bare: whether all lines may be names alone.

    Returns:
        Class names by index.

    Raises:
        DataError: as `read_labels`, or it is not UTF-8.
    """
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise DataError(f"{file} is not UTF-8 text: byte {data[error.start]:#04x} at {error.start}") from None
    labels: dict[int, str] = {}
    lines: dict[str, int] = {}
    found = list(_lines(text, one_line))
    bare = bare and not any(_LINE.fullmatch(line) for _, line in found)
    for number, line in found:
        index, label = (len(labels), line) if bare else _entry(line, f"{file}:{number}")
        if index in labels:
            raise DataError(f"{file}:{number}: index {index} is given twice, first for {labels[index]!r}")
        if label in lines:
            raise DataError(f"{file}:{number}: label {label!r} is given twice, first on line {lines[label]}")
        labels[index], lines[label] = label, number
    return _by_index(labels, file)


def _entry(line: str, place: str) -> tuple[int, str]:
    match = _LINE.fullmatch(line)
    if match is None:
        raise DataError(f"{place}: expected `index: label`, such as `0: cat`, got {line!r}")
    return int(match[1]), match[2]


def _lines(text: str, one_line: bool) -> Iterator[tuple[int, str]]:
    lines = [(number, line.strip()) for number, line in enumerate(text.split("\n"), 1) if line.strip()]
    if not one_line or len(lines) != 1:
        return iter(lines)
    number, line = lines[0]
    entries = list(_ENTRY.finditer(line))
    if len(entries) < 2 or entries[0].start() or [int(e[1]) for e in entries] != list(range(len(entries))):
        return iter(lines)
    ends = [entry.start() for entry in entries[1:]] + [len(line)]
    return iter([(number, line[e.start() : end].strip()) for e, end in zip(entries, ends, strict=True)])


def _by_index(labels: dict[int, str], file: str) -> tuple[str, ...]:
    if not labels:
        raise DataError(f"{file} is empty; expected `index: label`, one line a class")
    gaps = sorted(set(range(len(labels))) - set(labels))
    if gaps:
        raise DataError(
            f"{file}: index {gaps[0]} is missing; {len(labels)} labels need the indices 0 to {len(labels) - 1}"
        )
    return tuple(labels[index] for index in range(len(labels)))


def format_labels(labels: Sequence[str]) -> str:
    """Return the content of a labels.txt that `read_labels` reads back."""
    return "".join(f"{index}: {label}\n" for index, label in enumerate(labels))


def check_folders(labels: Sequence[str], folders: Sequence[str], base: str, file: str) -> None:
    """Hold a labels.txt against the class folders that are there: each must name the other.

    Args:
        labels: what the file names.
        folders: names of the class folders.
        base: the folder that they are in.
        file: the labels.txt, for messages.

    Raises:
        DataError: a label has no folder, or a folder no label.
    """
    missing = sorted(set(folders) - set(labels))
    absent = sorted(set(labels) - set(folders))
    if absent:
        raise DataError(
            f"{file} names the class {absent[0]!r}, which has no folder; {did_you_mean(absent[0], missing)}"
        )
    if missing:
        raise DataError(f"class folder {base.rstrip('/') + '/' + missing[0]!r} is missing in {file}")
