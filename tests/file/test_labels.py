"""labels.txt: what is read, and what is refused."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from moxserve.errors import DataError
from moxserve.file.labels import format_labels, parse_labels, read_labels

LABELS = st.lists(
    st.text(st.characters(exclude_categories=("Cs", "Cc", "Zl", "Zp", "Zs")), min_size=1, max_size=8),
    min_size=1,
    max_size=12,
    unique=True,
)


@given(LABELS, st.randoms())
def test_what_is_written_is_read_in_any_order_of_lines(labels: list[str], random: object):
    lines = format_labels(labels).splitlines(keepends=True)
    random.shuffle(lines)  # type: ignore[attr-defined]
    assert parse_labels("".join(lines).encode(), "labels.txt") == tuple(labels)


@given(st.binary(max_size=60))
def test_any_bytes_are_labels_or_a_data_error(data: bytes):
    try:
        labels = parse_labels(data, "labels.txt", one_line=True)
    except DataError:
        return
    assert labels
    assert len(set(labels)) == len(labels)


def test_a_byte_order_mark_and_windows_line_ends_do_not_count(tmp_path: Path):
    (tmp_path / "labels.txt").write_bytes("\ufeff0: Äpfel\r\n1: pears and plums\r\n".encode())
    assert read_labels(str(tmp_path / "labels.txt")) == ("Äpfel", "pears and plums")


def test_several_entries_on_one_line_only_where_asked_for():
    line = b"0: label_i 1: label j 2: label_k"
    assert parse_labels(line, "f", one_line=True) == ("label_i", "label j", "label_k")
    assert parse_labels(line, "f") == ("label_i 1: label j 2: label_k",)
    # Numbers that do not count up belong to the label.
    assert parse_labels(b"0: scale 7: big", "f", one_line=True) == ("scale 7: big",)


def test_names_alone_only_where_asked_for():
    assert parse_labels(b"a\n\n b c\n", "f", bare=True) == ("a", "b c")
    assert parse_labels(b"1 : b\n\n0:a\n", "f", bare=True) == ("a", "b")
    for text, message in ((b"0: a\nb\n", "f:2: expected `index: label`"), (b"a\na\n", "f:2: label 'a' is given twice")):
        with pytest.raises(DataError, match=message):
            parse_labels(text, "f", bare=True)
    with pytest.raises(DataError, match="f:1: expected `index: label`"):
        parse_labels(b"a\nb\n", "f")


def test_text_that_is_not_utf8_is_told(tmp_path: Path):
    (tmp_path / "labels.txt").write_bytes(b"0: caf\xe9\n")
    with pytest.raises(DataError, match=r"labels\.txt is not UTF-8 text: byte 0xe9 at 6"):
        read_labels(str(tmp_path / "labels.txt"))
