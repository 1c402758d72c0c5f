"""TFRecord files, held against TensorFlow's reader and writer."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from moxserve.errors import DataError
from moxserve.file import MoxFileNotExistsException
from moxserve.protocol.tfrecord import encode_record, read_records, write_records

PAYLOADS = [b"", b"a", b"\x00\xff" * 1000, "dög".encode()]


@given(st.lists(st.binary(max_size=500), max_size=10))
@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_what_is_written_is_read(tmp_path: Path, payloads: list[bytes]) -> None:
    path = tmp_path / "records"
    assert write_records(path, payloads) == len(payloads)
    assert list(read_records(path)) == payloads


def test_tensorflow_reads_what_we_write(tmp_path: Path) -> None:
    import tensorflow as tf

    path = str(tmp_path / "records")
    write_records(path, iter(PAYLOADS))
    assert list(tf.compat.v1.io.tf_record_iterator(path)) == PAYLOADS


def test_we_read_what_tensorflow_writes_and_write_the_same_bytes(tmp_path: Path) -> None:
    import tensorflow as tf

    path = tmp_path / "records"
    with tf.io.TFRecordWriter(str(path)) as writer:
        for payload in PAYLOADS:
            writer.write(payload)
    assert list(read_records(path)) == PAYLOADS
    assert path.read_bytes() == b"".join(encode_record(p) for p in PAYLOADS)


def test_a_failure_while_writing_leaves_no_file(tmp_path: Path) -> None:
    def payloads() -> object:
        yield b"one"
        raise RuntimeError("stop")

    with pytest.raises(RuntimeError):
        write_records(tmp_path / "records", payloads())
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda d: d[:-1], "record 1 is cut off: 3 of 4 bytes"),
        (lambda d: d[:-5], "record 1 is cut off: 2 of 3 bytes"),
        (lambda d: d[:22], "record 1 is cut off in its header"),
        (lambda d: d[:13] + b"X" + d[14:], "record 0 is damaged: its checksum differs"),
        (lambda d: b"\x7f" + d[1:], "record 0 has a damaged header; is this a TFRecord file?"),
        (lambda d: d[:8] + b"0000" + d[12:], "record 0 has a damaged header"),
        (lambda d: b"this is a text file, not records", "record 0 has a damaged header"),
    ],
    ids=["crc-cut", "payload-cut", "header-cut", "payload", "length", "length-crc", "text"],
)
def test_damage_is_found_and_placed(tmp_path: Path, damage: object, message: str) -> None:
    path = tmp_path / "records"
    path.write_bytes(damage(b"".join(encode_record(p) for p in (b"abcd", b"xyz"))))
    with pytest.raises(DataError, match=message.replace("?", r"\?")) as raised:
        list(read_records(path))
    assert str(path) in raised.value.message


@given(data=st.binary(max_size=300))
@settings(max_examples=100, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_arbitrary_bytes_are_no_records(tmp_path: Path, data: bytes) -> None:
    path = tmp_path / "records"
    path.write_bytes(data)
    if data:
        with pytest.raises(DataError):
            list(read_records(path))
    else:
        assert list(read_records(path)) == []


def test_records_before_the_damage_are_given(tmp_path: Path) -> None:
    path = tmp_path / "records"
    path.write_bytes(encode_record(b"good") + b"bad")
    records = read_records(path)
    assert next(records) == b"good"
    with pytest.raises(DataError):
        next(records)


def test_a_missing_file_is_told(tmp_path: Path) -> None:
    with pytest.raises(MoxFileNotExistsException):
        list(read_records(tmp_path / "no"))
