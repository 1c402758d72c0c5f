"""CSV, Parquet and tf.Examples as columns: against Python's csv module, pyarrow and TensorFlow's parser."""

from __future__ import annotations

import csv
import gzip
import io
import math
from datetime import datetime
from decimal import Decimal
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from moxserve.errors import DataError, MissingExtraError
from moxserve.protocol.examples import write_examples
from moxserve.tabular.cells import Field, from_text
from moxserve.tabular.files import CsvFormat, column_names, csv_rows
from moxserve.tabular.table import class_indices, moments, read_table, split_table

AGE, JOB, LEVEL = Field("age"), Field("job", "string"), Field("level", "int64")
_ALIKE = settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])


def table_of(path: Path, text: str | bytes, *fields: Field, **style: Any) -> Any:
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return read_table([str(path)], fields, CsvFormat(**style))


# ---- CSV

CELLS = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\x00"), max_size=6)


@settings(_ALIKE, max_examples=100)
@given(
    rows=st.lists(st.lists(CELLS, min_size=2, max_size=2).filter(any), min_size=1, max_size=6),
    delimiter=st.sampled_from([",", ";", "\t", "|"]),
    ending=st.sampled_from(["\n", "\r\n"]),
    quoting=st.sampled_from([csv.QUOTE_MINIMAL, csv.QUOTE_ALL]),
)
def test_csv_is_read_as_python_writes_it(
    tmp_path: Path, rows: list[list[str]], delimiter: str, ending: str, quoting: Any
):
    if quoting == csv.QUOTE_MINIMAL:  # Python does not quote a carriage return then, and cannot read it back itself
        rows = [[cell.replace("\r", "") for cell in row] for row in rows]
    text = io.StringIO(newline="")
    writer = csv.writer(text, delimiter=delimiter, lineterminator=ending, quoting=quoting)
    writer.writerow(["job", "other"])
    writer.writerows(rows)
    fields = (Field("other", "string"), JOB)
    table = table_of(tmp_path / "t.csv", text.getvalue(), *fields, delimiter=delimiter)
    assert [value.decode() for value in table.columns["job"]] == [row[0] for row in rows]
    assert [value.decode() for value in table.columns["other"]] == [row[1] for row in rows]
    # The place is the line that a row begins in, whatever breaks its cells hold.
    lines = [int(place.rpartition(":")[2]) for place in table.places]
    whole = [index for index, _ in csv_rows(str(tmp_path / "t.csv"), CsvFormat(delimiter=delimiter))]
    assert lines == whole[1:]
    assert lines[0] == 2


@_ALIKE
@given(data=st.binary(max_size=60))
def test_hostile_csv_is_read_or_refused_with_its_place(tmp_path: Path, data: bytes):
    path = tmp_path / "t.csv"
    told = str(path)
    try:
        table_of(path, b"age,job\n" + data, AGE, JOB)
    except DataError as error:
        told = str(error)
    assert str(path) in told


@settings(max_examples=60)
@given(st.floats(width=32, allow_nan=False, allow_infinity=False), st.integers(-(2**63), 2**63 - 1))
def test_numbers_are_read_exactly(real: float, whole: int):
    assert np.float32(from_text(repr(real), AGE)) == np.float32(real)
    assert from_text(str(whole), LEVEL) == whole


@_ALIKE
@given(values=st.lists(st.one_of(st.integers(-999, 999), st.floats(-1e6, 1e6)), min_size=1, max_size=8))
def test_numbers_are_those_of_pyarrow(tmp_path: Path, values: list[float]):
    import pyarrow.csv as pacsv

    text = "age\n" + "".join(f"{value!r}\n" for value in values)
    table = table_of(tmp_path / "t.csv", text, AGE)
    options = pacsv.ConvertOptions(column_types={"age": pa.float32()})
    expected = pacsv.read_csv(io.BytesIO(text.encode()), convert_options=options)["age"].to_numpy()
    np.testing.assert_array_equal(table.columns["age"], expected)


def test_missing_cells_and_options(tmp_path: Path):
    text = "# no\n1;'a;''b';3.0\n?;;NA\n"
    fields = (Field("x", optional=True), Field("y", "string"), Field("z", "int64", optional=True))
    table = table_of(
        tmp_path / "t.csv", text.split("\n", 1)[1], *fields,
        delimiter=";", quote="'", header=False, names=["x", "y", "z"], missing=["", "?", "NA"],
    )  # fmt: skip
    assert table.columns["x"].tolist()[0] == 1
    assert math.isnan(table.columns["x"][1])
    assert table.columns["y"].tolist() == [b"a;'b", b""]
    assert table.columns["z"].tolist() == [3, -1]
    assert (table.columns["x"].dtype, table.columns["z"].dtype) == (np.float32, np.int64)


def test_columns_are_chosen_by_name_with_a_byte_order_mark_and_blank_lines(tmp_path: Path):
    table = table_of(tmp_path / "t.csv", "\ufeffage,more,job\r\n1,x,a\r\n\r\n2,y,b\r\n", JOB, AGE)
    assert list(table.columns) == ["job", "age"]
    assert table.columns["age"].tolist() == [1, 2]
    assert [place.rpartition(":")[2] for place in table.places] == ["2", "4"]
    packed = tmp_path / "t.csv.gz"
    packed.write_bytes(gzip.compress(b"age\n5\n"))
    assert read_table([str(packed)], [AGE]).columns["age"].tolist() == [5]
    both = read_table([str(tmp_path / "t.csv"), str(packed)], [AGE])
    assert both.columns["age"].tolist() == [1, 2, 5]


def test_several_values(tmp_path: Path):
    tags = Field("tags", "string", several=True)
    scores = Field("scores", several=True)
    table = table_of(tmp_path / "t.csv", "tags,scores\na|b|a,1|2.5\n,\n", tags, scores)
    assert table.columns["tags"].tolist() == [[b"a", b"b", b"a"], [b"", b"", b""]]
    np.testing.assert_array_equal(table.columns["scores"], np.array([[1, 2.5], [np.nan, np.nan]], np.float32))
    longer = tmp_path / "u.csv"
    longer.write_text("tags,scores\na|b|c|d,7\n")
    both = read_table([str(tmp_path / "t.csv"), str(longer)], [tags])
    assert both.columns["tags"].shape == (3, 4)


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("age,job\nold,a\n", ":2:1: column 'age' is wrong: expected a number, got 'old'"),
        ("job,age\na,1\nb,\n", ":3:2: column 'age' is missing\nhint: fill it in, or set `optional: true`"),
        ("job,age\na,nan\n", ":2:2: column 'age' is missing"),
        ("job,age\na,inf\n", ":2:2: column 'age' is wrong: expected a finite float32 number, got 'inf'"),
        ("job,age\na,1e39\n", "expected a finite float32 number"),
        ("job,age\na,1_0\n", "expected a number, got '1_0'"),
        ("job,age\na\n", ":2: has 1 cells; expected 2: job, age"),
        ("job,age\na,1,2\n", ":2: has 3 cells; expected 2"),
        ('job,age\n"a\nb",1\n"c,2\n', ":4: unexpected end of data"),
        ('job,age\n"a"b,1\n', ":2: ',' expected after '\"'"),
        ("job,age,age\n", ":1:3: the column 'age' is there twice"),
        ("job,agge\n", "has no column 'age'; did you mean 'agge'?"),
        ("", "is empty; expected a line with the names of the columns"),
        ("job,age\n", "no rows in"),
        (b"job,age\n" + b"a,1\n" * 50 + b"\xff,1\n", ":52: is not UTF-8 text: byte 0xff"),
    ],
)
def test_wrong_csv(tmp_path: Path, text: str | bytes, told: str):
    path = tmp_path / "t.csv"
    with pytest.raises(DataError) as caught:
        table_of(path, text, AGE, JOB)
    assert told in str(caught.value)
    assert str(path) in str(caught.value)


@pytest.mark.parametrize("text", ["1.5", "x", "9223372036854775808", "1e30", "0x10", "1e999999999"])
def test_wrong_whole_numbers(tmp_path: Path, text: str):
    with pytest.raises(DataError, match=r"t\.csv:2:1: column 'level' is wrong: expected a whole number"):
        table_of(tmp_path / "t.csv", f"level\n{text}\n", LEVEL)


def test_damaged_gzip_and_unknown_suffix(tmp_path: Path):
    path = tmp_path / "t.csv.gz"
    with pytest.raises(DataError, match=r"t\.csv\.gz:"):
        table_of(path, gzip.compress(b"age\n" + b"1\n" * 9999)[:-20], AGE)
    damaged = bytearray(gzip.compress(b"age\n" + np.random.default_rng(0).bytes(4000).hex().encode()))
    damaged[900:1000] = b"\xff" * 100
    with pytest.raises(DataError, match=r"t\.csv\.gz:"):
        list(csv_rows(str(_written(path, bytes(damaged))), CsvFormat()))
    with pytest.raises(DataError, match=r"t\.cvs: no known suffix; did you mean '\.csv'"):
        table_of(tmp_path / "t.cvs", "age\n1\n", AGE)


def _written(path: Path, data: bytes) -> Path:
    path.write_bytes(data)
    return path


def test_whole_numbers_keep_their_digits_and_tsv_its_tabs(tmp_path: Path):
    text = "level\tjob\n9007199254740993.0\ta,b\n1e3\tc\n"
    packed = _written(tmp_path / "t.tsv.gz", gzip.compress(text.encode()))
    table = read_table([str(packed)], [LEVEL, JOB])
    assert table.columns["level"].tolist() == [9007199254740993, 1000]
    assert table.columns["job"].tolist() == [b"a,b", b"c"]
    # Columns without names, as spreadsheets leave them behind the others, are of no matter.
    assert table_of(tmp_path / "t.csv", "level,,\n1,,\n", LEVEL).columns["level"].tolist() == [1]


# ---- Parquet


def test_parquet_of_other_kinds(tmp_path: Path):
    path = str(tmp_path / "t.parquet")
    pq.write_table(pa.table({"a": pa.array([Decimal("1.50"), Decimal("3")])}), path)
    assert read_table([path], [Field("a")]).columns["a"].tolist() == [1.5, 3]
    with pytest.raises(DataError, match=r"t\.parquet:1: column 'a' is wrong: expected a whole number"):
        read_table([path], [Field("a", "int64")])
    for value, dtype in ((math.inf, "int64"), ({"x": 1}, "float32"), (datetime(2020, 1, 1), "string")):
        pq.write_table(pa.table({"a": [value]}), path)
        with pytest.raises(DataError, match=r"t\.parquet:1: column 'a' is wrong: expected"):
            read_table([path], [Field("a", dtype)])
    pq.write_table(pa.Table.from_arrays([pa.array([1]), pa.array([2])], names=["a", "a"]), path)
    with pytest.raises(DataError, match="the column 'a' is there twice"):
        read_table([path], [Field("a")])


def test_parquet(tmp_path: Path):
    path = tmp_path / "t.parquet"
    columns = {
        "age": pa.array([1.5, None], pa.float64()),
        "level": pa.array([3, None], pa.int8()),
        "job": pa.array(["a", None]).dictionary_encode(),
        "tags": pa.array([["x", "y"], None]),
        "more": pa.array([1, 2]),
    }
    pq.write_table(pa.table(columns), path, row_group_size=1)
    fields = (
        Field("tags", "string", several=True), JOB, Field("age", optional=True), Field("level", "int64", optional=True),
    )  # fmt: skip
    table = read_table([str(path)], fields)
    assert table.columns["tags"].tolist() == [[b"x", b"y"], [b"", b""]]
    assert table.columns["job"].tolist() == [b"a", b""]
    assert table.columns["level"].tolist() == [3, -1]
    np.testing.assert_array_equal(table.columns["age"], np.array([1.5, np.nan], np.float32))
    assert table.places[1] == f"{path}:2"
    assert column_names(str(path)) == list(columns)
    with pytest.raises(DataError, match=r"t\.parquet:2: column 'age' is missing"):
        read_table([str(path)], [AGE])
    with pytest.raises(DataError, match="column 'job' is wrong: expected a number, got 'a'"):
        read_table([str(path)], [Field("job")])
    with pytest.raises(DataError, match=r"column 'tags' has 2 values\nhint: set `several: true`"):
        read_table([str(path)], [Field("tags", "string")])
    with pytest.raises(DataError, match="has no column 'agee'; did you mean 'age'"):
        read_table([str(path)], [Field("agee")])


def test_parquet_that_is_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    path = tmp_path / "t.parquet"
    path.write_bytes(b"PAR1 but not really PAR1")
    with pytest.raises(DataError, match=r"t\.parquet cannot be read as Parquet"):
        read_table([str(path)], [AGE])
    monkeypatch.setitem(__import__("sys").modules, "pyarrow.parquet", None)
    with pytest.raises(MissingExtraError, match="needs pyarrow"):
        read_table([str(path)], [AGE])


# ---- tf.Examples


def test_examples(tmp_path: Path):
    path = tmp_path / "t.tfrecord"
    write_examples(path, [{"age": 2, "job": "a", "tags": ["x", "y"]}, {"age": 1.5, "job": b"\xff", "level": [3]}])
    fields = (AGE, JOB, Field("level", "int64", optional=True), Field("tags", "string", several=True))
    table = read_table([str(path)], fields)
    assert table.columns["age"].tolist() == [2, 1.5]
    assert table.columns["job"].tolist() == [b"a", b"\xff"]
    assert table.columns["level"].tolist() == [-1, 3]
    assert table.columns["tags"].tolist() == [[b"x", b"y"], [b"", b""]]
    with pytest.raises(DataError, match=r"t\.tfrecord:1: has no feature 'level'; known: age, job"):
        read_table([str(path)], [LEVEL])
    with pytest.raises(DataError, match="column 'tags' has 2 values"):
        read_table([str(path)], [Field("tags", "string")])
    with pytest.raises(DataError, match="no example has the feature 'jobb'; did you mean 'job'"):
        read_table([str(path)], [Field("jobb", "string")])
    path.write_bytes(path.read_bytes()[:-3])
    with pytest.raises(DataError, match="record 1 is cut off"):
        read_table([str(path)], [AGE])


# ---- what is done with tables


def test_a_split_is_disjoint_complete_and_the_same_each_time(tmp_path: Path):
    table = table_of(tmp_path / "t.csv", "age\n" + "".join(f"{i}\n" for i in range(100)), AGE)
    train, evaluation = split_table(table, 0.25, seed=3)
    ages = [part.columns["age"].tolist() for part in (train, evaluation)]
    assert (len(ages[0]), len(ages[1])) == (75, 25)
    assert sorted(ages[0] + ages[1]) == list(range(100))
    assert ages == [sorted(part) for part in ages]
    assert split_table(table, 0.25, seed=3)[1].places == evaluation.places
    assert split_table(table, 0.25, seed=4)[1].places != evaluation.places
    assert len(split_table(table.take(np.arange(2)), 0.01, seed=0)[1]) == 1
    with pytest.raises(DataError, match="cannot be split"):
        split_table(table.take(np.arange(1)), 0.5, seed=0)


def test_classes(tmp_path: Path):
    table = table_of(tmp_path / "t.csv", "job\nb\na\nb\n", JOB)
    assert class_indices(table, "job", ["a", "b"]).tolist() == [1, 0, 1]
    with pytest.raises(DataError, match=r"t\.csv:3: column 'job' is 'a', no class; known: b, c"):
        class_indices(table, "job", ["b", "c"])


def test_moments_leave_missing_values_out():
    values = np.array([1, np.nan, 3], np.float32)
    assert [float(m) for m in moments(values, "float32")] == [2.0, 1.0]
    assert [float(m) for m in moments(np.array([1, -1, 5]), "int64")] == [3.0, 2.0]
    mean, std = moments(np.array([[1, np.nan], [3, np.nan]], np.float32), "float32")
    assert (mean.tolist(), std.tolist()) == ([2.0, 0.0], [1.0, 1.0])
