"""The index of TFRecord files: counted without reading, read in any order, kept beside the files."""

from __future__ import annotations

import gzip
import os
import struct
import threading
import time
import zlib
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from moxserve.errors import DataError
from moxserve.file import MoxFileNotExistsException
from moxserve.protocol import tfrecord_index
from moxserve.protocol.tfrecord import compression_of, encode_record, read_records, write_records
from moxserve.protocol.tfrecord_index import SIDECAR, RecordIndex, scan_file, scan_files

PAYLOADS = [b"", b"a", b"\x00\xff" * 1000, "dög".encode(), b"x" * 70_000]
fresh = settings(max_examples=40, suppress_health_check=[HealthCheck.function_scoped_fixture])


def written(folder: Path, *files: list[bytes]) -> list[str]:
    paths = [str(folder / f"part-{number}.tfrecord") for number in range(len(files))]
    for path, payloads in zip(paths, files, strict=True):
        write_records(path, payloads)
    return paths


@pytest.mark.slow
@fresh
@given(files=st.lists(st.lists(st.binary(max_size=300), max_size=6), min_size=1, max_size=4), data=st.data())
def test_any_record_of_any_file_in_any_order(tmp_path: Path, files: list[list[bytes]], data: st.DataObject) -> None:
    index = RecordIndex(scan_files(written(tmp_path, *files)))
    flat = [payload for payloads in files for payload in payloads]
    assert len(index) == len(flat)
    rows = data.draw(st.permutations(range(len(flat))))
    assert index.read(rows) == [flat[row] for row in rows]


@fresh
@given(garbage=st.binary(max_size=200), at=st.integers(0, 400))
def test_no_garbage_breaks_the_scan(tmp_path: Path, garbage: bytes, at: int) -> None:
    whole = b"".join(encode_record(payload) for payload in (b"one" * 30, b"two" * 50))
    path = tmp_path / "records"
    path.write_bytes(whole[:at] + garbage)
    told: list[str] = []
    index = RecordIndex([file]) if not (file := scan_file(str(path), told.append)).compression else None
    if index is not None:
        payloads = index.read(range(len(index)), told.append)
        assert [p for p in payloads if p is not None] == list(read_records(path, told.append))


@pytest.mark.parametrize("wbits", [zlib.MAX_WBITS, zlib.MAX_WBITS | 16])
def test_compressed_files_are_known_counted_and_read(tmp_path: Path, wbits: int) -> None:
    tf = pytest.importorskip("tensorflow")
    kind = "GZIP" if wbits > 16 else "ZLIB"
    path = str(tmp_path / "records")
    with tf.io.TFRecordWriter(path, tf.io.TFRecordOptions(compression_type=kind)) as writer:
        for payload in PAYLOADS:
            writer.write(payload)
    assert compression_of(Path(path).read_bytes()[:12]) == kind
    (file,) = scan_files([path])
    assert (file.compression, file.lengths.tolist()) == (kind, [len(p) for p in PAYLOADS])
    assert list(read_records(path)) == PAYLOADS
    with pytest.raises(DataError, match=kind):
        RecordIndex([file])
    whole = Path(path).read_bytes()
    Path(path).write_bytes(whole[: len(whole) // 2])
    with pytest.raises(DataError, match="cut off"):
        scan_file(path)


def test_zlib_and_gzip_by_other_hands(tmp_path: Path) -> None:
    whole = b"".join(map(encode_record, PAYLOADS))
    for level in (1, 6, 9):
        (tmp_path / "zlib").write_bytes(zlib.compress(whole, level))
        assert list(read_records(tmp_path / "zlib")) == PAYLOADS
    (tmp_path / "gzip").write_bytes(gzip.compress(whole[:100_000]) + gzip.compress(whole[100_000:]))
    assert list(read_records(tmp_path / "gzip")) == PAYLOADS


def test_a_damaged_payload_is_named_or_left_out(tmp_path: Path) -> None:
    path, other = written(tmp_path, [b"first", b"second", b"third"], [b"fourth"])
    data = bytearray(Path(path).read_bytes())
    data[21 + 12] ^= 1  # a byte of `second`
    Path(path).write_bytes(data)
    index = RecordIndex(scan_files([path, other]))
    with pytest.raises(DataError, match=r"part-0\.tfrecord: record 1 at byte 21 is damaged: its checksum differs"):
        index.read([3, 1])
    told: list[str] = []
    assert index.read([3, 1, 2], told.append) == [b"fourth", None, b"third"]
    assert len(told) == 1


def test_a_damaged_header_or_a_cut_ends_the_file(tmp_path: Path) -> None:
    (path,) = written(tmp_path, [b"first", b"second", b"third"])
    whole = Path(path).read_bytes()
    Path(path).write_bytes(whole[:21] + b"?" + whole[22:])
    with pytest.raises(DataError, match="record 1 at byte 21 has a damaged header"):
        scan_files([path])
    told: list[str] = []
    assert len(scan_files([path], told.append)[0].lengths) == 1
    assert len(told) == 1
    assert len(scan_files([path], told.append)[0].lengths) == 1
    assert len(told) == 2, "what is damaged is told each time, and never kept as if it were whole"
    for cut in (len(whole) - 1, 50, 25):
        Path(path).write_bytes(whole[:cut])
        with pytest.raises(DataError, match=r"record \d at byte \d+ is cut off"):
            scan_file(path)
    Path(path).write_bytes(struct.pack("<Q", 2**63) + b"\0" * 40)
    with pytest.raises(DataError, match="record 0"):
        scan_file(path)


def test_damage_is_told_in_the_order_of_the_files_and_by_one_thread(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    paths = written(tmp_path, [b"first"], [b"second"], [b"third"])
    for path in paths:
        Path(path).write_bytes(Path(path).read_bytes()[:-1])
    scan = scan_file

    def slow_at_first(path: str, damaged: Callable[[str], None] | None) -> tfrecord_index.RecordFile:
        if path == paths[0]:
            time.sleep(0.2)
        return scan(path, damaged)

    monkeypatch.setattr(tfrecord_index, "scan_file", slow_at_first)
    told: list[tuple[str, int]] = []
    scan_files(paths, lambda message: told.append((message.partition(":")[0], threading.get_ident())))
    assert told == [(path, threading.get_ident()) for path in paths]


def test_a_file_that_changes_under_the_index_is_noticed(tmp_path: Path) -> None:
    (path,) = written(tmp_path, [b"first", b"second"])
    index = RecordIndex(scan_files([path]))
    Path(path).write_bytes(b"short")
    with pytest.raises(DataError, match="has changed since it was scanned"):
        index.read([1])
    os.remove(path)
    with pytest.raises(MoxFileNotExistsException):
        RecordIndex([tfrecord_index.RecordFile(path, 21, 0, "", np.array([5]))]).read([0])


def test_the_second_scan_reads_no_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    paths = written(tmp_path, [b"a"], [b"bb", b"ccc"])
    calls: list[str] = []
    first = scan_files(paths[:1], before_scan=lambda: calls.append("scan"))
    assert scan_files(paths, before_scan=lambda: calls.append("scan"))[0].path == first[0].path
    assert (tmp_path / SIDECAR).exists()
    assert calls == ["scan", "scan"]
    monkeypatch.setattr(tfrecord_index, "scan_file", None)
    again = scan_files(paths, before_scan=lambda: calls.append("again"))
    assert [file.lengths.tolist() for file in again] == [[1], [2, 3]]
    assert calls == ["scan", "scan"]


def test_a_changed_file_is_scanned_again(tmp_path: Path) -> None:
    paths = written(tmp_path, [b"a"], [b"bb"])
    scan_files(paths)
    write_records(paths[0], [b"a", b"b", b"c"])
    assert [len(file.lengths) for file in scan_files(paths)] == [3, 1]


@pytest.mark.parametrize("content", [b"", b"not a zip", b"PK\x03\x04" + b"\0" * 50])
def test_a_broken_sidecar_counts_for_nothing(tmp_path: Path, content: bytes) -> None:
    paths = written(tmp_path, [b"a", b"b"])
    (tmp_path / SIDECAR).write_bytes(content)
    assert [len(file.lengths) for file in scan_files(paths)] == [2]


def test_a_half_written_or_lying_sidecar_counts_for_nothing(tmp_path: Path) -> None:
    paths = written(tmp_path, [b"a", b"b"])
    scan_files(paths)
    sidecar = tmp_path / SIDECAR
    whole = sidecar.read_bytes()
    for cut in range(0, len(whole), 97):
        sidecar.write_bytes(whole[:cut])
        assert [len(file.lengths) for file in scan_files(paths)] == [2]
    status = os.stat(paths[0])
    numbers = np.array([[status.st_size, status.st_mtime_ns, 1]])
    names = np.array([os.path.basename(paths[0])])
    for lengths in ([1], [-5], [1, 1]):
        with open(sidecar, "wb") as out:
            np.savez(out, names=names, compressions=np.array([""]), numbers=numbers, lengths=np.array(lengths))
        assert [len(file.lengths) for file in scan_files(paths)] == [2]


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_a_folder_that_cannot_be_written_to(tmp_path: Path) -> None:
    paths = written(tmp_path, [b"a", b"b"])
    tmp_path.chmod(0o500)
    try:
        assert [len(file.lengths) for file in scan_files(paths)] == [2]
    finally:
        tmp_path.chmod(0o700)


def test_a_sidecar_that_cannot_be_written_is_done_without(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(path: str) -> None:
        raise PermissionError(path)

    paths = written(tmp_path, [b"a", b"b"])
    monkeypatch.setattr(tfrecord_index, "atomic_open", refuse)
    assert [len(file.lengths) for file in scan_files(paths)] == [2]
    assert not (tmp_path / SIDECAR).exists()


def test_more_files_than_may_be_open_and_many_threads(tmp_path: Path) -> None:
    index = RecordIndex(scan_files(written(tmp_path, *[[b"%d" % number] for number in range(40)])))
    index._may_open = 5
    with ThreadPoolExecutor(8) as pool:
        read = list(pool.map(lambda row: index.read([row])[0], list(range(40)) * 20))
    assert read == [b"%d" % number for number in range(40)] * 20
    assert len(index._open) == 5
    index.close()
    assert index.read([7]) == [b"7"]
