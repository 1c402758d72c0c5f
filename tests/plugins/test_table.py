"""The input plugin `table`: tensors, classes, weights, order, and mistakes told before anything runs."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from moxserve_plugins.table.config import Table
from pydantic import ValidationError

from moxserve.data.table import write_table
from moxserve.errors import DataError
from moxserve.pipeline.slots import ParameterError

Read = Callable[..., list[list[np.ndarray]]]
COLUMNS = {"age": "float32", "religious": "int64", "occupation": "string"}


@pytest.fixture(scope="module")
def survey(tmp_path_factory: pytest.TempPathFactory) -> Path:
    base = tmp_path_factory.mktemp("data") / "table"
    write_table(base)
    return base


def whole(batches: list[list[np.ndarray]]) -> list[np.ndarray]:
    return [np.concatenate(parts) for parts in zip(*batches, strict=True)]


def config(survey: Path, kind: str = "csv", **more: Any) -> Table:
    files = {"train": str(survey / f"train.{kind}"), "eval": str(survey / f"eval.{kind}")}
    return Table(**{**files, "columns": COLUMNS, "label": "affair", "batch_size": 500, **more})


def test_every_format_gives_the_same(survey: Path, read_batches: Read):
    found = {}
    for kind in ("csv", "parquet", "tfrecord"):
        bundle = config(survey, kind, eval_batch_size=1000).build()
        assert bundle.names == ("age", "religious", "occupation", "label")
        assert bundle.labels == ("no", "yes")
        assert bundle.num_samples == {"TRAIN": 5000, "EVAL": 1366, "PREDICT": 1366}
        batches = read_batches(bundle, "EVAL")
        assert [len(batch[0]) for batch in batches] == [1000, 366]
        found[kind] = whole(batches)
        assert [a.dtype for a in found[kind]] == [np.float32, np.int64, object, np.int64]
        assert bundle.row_names["PREDICT"][0].endswith(":2" if kind == "csv" else ":1")
    for kind in ("parquet", "tfrecord"):
        for array, expected in zip(found[kind], found["csv"], strict=True):
            np.testing.assert_array_equal(array, expected)
    assert found["csv"][3].mean() == pytest.approx(0.3225, abs=0.001)


def test_an_epoch_of_training_has_every_row_once(survey: Path, read_batches: Read):
    small = survey / "small.csv"
    small.write_text("n,affair\n" + "".join(f"{n},{'yes' if n % 3 else 'no'}\n" for n in range(100)))
    table = Table(train=str(small), columns={"n": "int64"}, label="affair", batch_size=25, seed=4)
    numbers = [batch[0] for batch in read_batches(table.build(), "TRAIN", 8)]
    first, second = np.concatenate(numbers[:4]).tolist(), np.concatenate(numbers[4:]).tolist()
    assert sorted(first) == sorted(second) == list(range(100))
    assert first != second
    assert first != list(range(100))
    again = [batch[0] for batch in read_batches(table.build(), "TRAIN", 4)]
    assert np.concatenate(again).tolist() == first
    with pytest.raises(DataError, match="no rows for EVAL"):
        read_batches(table.build(), "EVAL")


def test_split_sets_rows_apart(survey: Path, read_batches: Read):
    table = config(survey, split=0.2, eval=None, split_seed=5, columns={"age": "float32"})
    bundle = table.build()
    assert bundle.num_samples == {"TRAIN": 4000, "EVAL": 1000, "PREDICT": 1000}
    places = bundle.row_names
    assert not set(places["TRAIN"]) & set(places["EVAL"])
    assert table.build().row_names["EVAL"] == places["EVAL"]


def test_labels_and_weights(tmp_path: Path, read_batches: Read):
    path = tmp_path / "t.csv"
    path.write_text("x,c,n,w,y\n1,b,1,0.5,2.5\n2,a,0,2,-1\n")

    def read(**more: Any) -> Any:
        bundle = Table(eval=str(path), columns={"x": "float32"}, batch_size=9, **more).build()
        return bundle, whole(read_batches(bundle, "EVAL"))

    bundle, (_, label) = read(label="c")
    assert (bundle.labels, label.tolist()) == (("a", "b"), [1, 0])
    bundle, (_, label) = read(label="c", labels=["b", "a"])
    assert (bundle.labels, label.tolist()) == (("b", "a"), [0, 1])
    (tmp_path / "labels.txt").write_text("1: b\n0: a\n")
    bundle, (_, label) = read(label="c", labels_file=str(tmp_path / "labels.txt"))
    assert (bundle.labels, label.tolist()) == (("a", "b"), [1, 0])
    bundle, (_, label) = read(label="n", label_dtype="int64")
    assert (bundle.labels, label.tolist()) == (("0", "1"), [1, 0])
    bundle, (_, label, weight) = read(label="y", label_dtype="float32", weight="w")
    assert bundle.names == ("x", "label", "sample_weight")
    assert (bundle.labels, label.tolist(), weight.tolist()) == (None, [2.5, -1], [0.5, 2])
    with pytest.raises(DataError, match=r"t\.csv:2: column 'c' is 'b', no class"):
        read(label="c", labels=["a", "c"])
    with pytest.raises(DataError, match=r"t\.csv:3: column 'y' is a weight and below 0: -1"):
        read(weight="y")
    path.write_text("x,n\n1,7\n")
    with pytest.raises(DataError, match=r"t\.csv:2: column 'n' is 7; expected a class, 0 to 1"):
        read(label="n", label_dtype="int64", labels=["a", "b"])
    path.write_text("x,n\n1,1\n2,4000000000\n")
    with pytest.raises(DataError, match=r"t\.csv:3: column 'n' is 4000000000; expected the number of a class"):
        read(label="n", label_dtype="int64")


def test_several_values_have_an_open_width(tmp_path: Path, read_batches: Read):
    path = tmp_path / "t.csv"
    path.write_text("tags,c\na|b,x\na,y\n")
    bundle = Table(
        eval=str(path), columns={"tags": {"dtype": "string", "several": True}}, label="c", batch_size=2
    ).build()
    tags, _ = whole(read_batches(bundle, "EVAL"))
    assert tags.tolist() == [[b"a", b"b"], [b"a", b""]]


def test_moments_are_of_the_training_rows(survey: Path):
    bundle = config(survey).build()
    mean, std = bundle.moments("age")
    ages = np.loadtxt(survey / "train.csv", delimiter=",", skiprows=1, usecols=1)
    assert (float(mean), float(std)) == (pytest.approx(ages.mean()), pytest.approx(ages.std()))
    with pytest.raises(ParameterError, match=r"input\.train: is needed"):
        config(survey, train=None).build().moments("age")


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"train": None, "eval": None}, "expected train, eval or both"),
        ({"split": 0.5}, "split goes with train alone"),
        ({"labels": ["a", "b"], "labels_file": "x"}, "expected either labels or labels_file"),
        ({"labels": ["a", "a"]}, "'a' is there twice"),
        ({"labels": ["a", "b"], "label_dtype": "float32"}, "labels are names of classes"),
        ({"columns": {"label": "string"}}, "'label' is the name of another tensor"),
        ({"csv": {"delimiter": ";;"}}, "expected one character"),
        ({"csv": {"header": False}}, "expected names with header: false"),
    ],
)
def test_wrong_parameters(survey: Path, change: dict[str, Any], told: str):
    with pytest.raises(ValidationError, match=told):
        config(survey, **change)


def test_check_names_columns_that_are_not_there(survey: Path):
    assert list(config(survey).check()) == []
    wrong = config(survey, columns={"agee": "float32"}, label="afair", weight="wait")
    told = dict(wrong.check())
    assert set(told) == {"columns.agee", "label", "weight"}
    assert told["columns.agee"].endswith("has no column 'agee'; did you mean 'age'?")
    assert told["label"].endswith("did you mean 'affair' or 'affairs'?")
    leaks = config(survey, columns={"affair": "string"})
    assert "a model must not get what it is to predict" in dict(leaks.check())["label"]
    (survey / "broken.csv").write_bytes(b"\xff\n")
    assert "is not UTF-8" in dict(config(survey, train=str(survey / "broken.csv")).check())["train"]


def test_describe(survey: Path):
    told = config(survey, eval=None, split=0.1).describe()
    assert told.startswith(f"train: {survey}/train.csv; 10% of it to evaluate; age float32, religious int64, ")
    assert told.endswith("occupation string to affair")
