"""CSV and TFRecord files as rows to predict."""

from __future__ import annotations

import gzip
from pathlib import Path

import numpy as np
import pytest

from moxserve.errors import DataError, UsageError
from moxserve.predict import open_rows
from moxserve.predict.readers import Label
from moxserve.protocol.examples import make_example, write_examples


def test_csv_columns_become_inputs(tmp_path: Path, signature) -> None:
    path = tmp_path / "rows.csv"
    path.write_text('job,age,label,level,tags,more\n"x, y",27,yes,3,a|b,1\n,,,,,\n')
    wanted = signature(
        age=("float32", [None]), level=("int64", [None]), job=("string", [None]), tags=("string", [None, None])
    )
    first, second = open_rows(path, wanted).items
    assert (first.name, first.label, second.name, second.label) == ("rows.csv:2", Label("yes"), "rows.csv:3", None)
    values = first.load()
    assert (values["age"], values["age"].dtype, values["level"], values["level"].dtype) == (
        27.0,
        np.float32,
        3,
        np.int64,
    )
    assert values["job"].item() == b"x, y"
    assert values["tags"].tolist() == [b"a", b"b"]
    values = second.load()
    assert np.isnan(values["age"])
    assert (values["level"], values["job"].item(), values["tags"].tolist()) == (-1, b"", [])
    zipped = tmp_path / "rows.csv.gz"
    zipped.write_bytes(gzip.compress(path.read_bytes()))
    assert [row.load()["level"] for row in open_rows(zipped, wanted).items] == [3, -1]


def test_a_wrong_cell_is_the_failure_of_its_row_only(tmp_path: Path, signature) -> None:
    path = tmp_path / "rows.csv"
    path.write_text("age\nold\n5\n5,6\n")
    rows = list(open_rows(path, signature(age=("float32", [None]))).items)
    with pytest.raises(DataError, match=r"rows\.csv:2:1: column 'age': expected a number, got 'old'"):
        rows[0].load()
    assert rows[1].load()["age"] == 5
    with pytest.raises(DataError, match=r"rows\.csv:4: has 2 cells; expected 1"):
        rows[2].load()


def test_what_does_not_fit_is_told(tmp_path: Path, signature) -> None:
    path = tmp_path / "rows.csv"
    path.write_text("agge\n1\n")
    with pytest.raises(DataError, match="has no column 'age'; did you mean 'agge'"):
        open_rows(path, signature(age=("float32", [None])))
    with pytest.raises(UsageError, match="is no number or text a row"):
        open_rows(path, signature(agge=("float32", [None, 2, 2])))


def test_the_column_of_the_labels_is_told(tmp_path: Path, signature) -> None:
    wanted = signature(age=("float32", [None]))
    for name, text in (
        ("r.csv", "age,y\n1,no\n2,\n"), ("r.tsv", "age\ty\n1\tno\n2\t\n"),
        ("r.jsonl", '{"age": 1, "y": "no"}\n{"age": 2}\n'),
    ):  # fmt: skip
        (tmp_path / name).write_text(text)
        rows = list(open_rows(tmp_path / name, wanted, label="y").items)
        assert [row.label for row in rows] == [Label("no"), None], name
        assert [row.load()["age"] for row in rows] == [1, 2]
        with pytest.raises(UsageError, match="the label 'age' is an input"):
            open_rows(tmp_path / name, wanted, label="age")
    np.savez(tmp_path / "r.npz", age=np.zeros(2, np.float32), y=np.array([3, 4]))
    assert [row.label for row in open_rows(tmp_path / "r.npz", wanted, label="y").items] == [
        Label(None, 3),
        Label(None, 4),
    ]
    records = tmp_path / "r.tfrecord"
    write_examples(records, [{"age": 1.0, "y": "no"}, {"age": 2.0}])
    takes = signature(examples=("string", [None]))
    assert [row.label for row in open_rows(records, takes, label="y").items] == [Label("no"), None]
    for path, fits in ((tmp_path / "r.csv", wanted), (tmp_path / "r.npz", wanted), (records, takes)):
        with pytest.raises(DataError, match="has no label 'yy'; did you mean 'y'"):
            open_rows(path, fits, label="yy")
    np.save(tmp_path / "r.npy", np.zeros(2, np.float32))
    with pytest.raises(UsageError, match="the label 'y' is looked for in"):
        open_rows(tmp_path / "r.npy", wanted, label="y")


def test_examples_go_to_a_signature_that_takes_them(tmp_path: Path, signature) -> None:
    path = tmp_path / "rows.tfrecord"
    write_examples(path, [{"x": 1.0}, {"x": 2.0}])
    rows = list(open_rows(path, signature(examples=("string", [None]))).items)
    assert [row.name for row in rows] == ["rows.tfrecord[0]", "rows.tfrecord[1]"]
    assert rows[1].load()["examples"].item() == make_example({"x": 2.0}).SerializeToString(deterministic=True)
    with pytest.raises(UsageError, match=r"holds tf\.Examples; signature 'serving_default' takes x: float32"):
        open_rows(path, signature(x=("float32", [None])))
