"""Declarations of columns: what is wrong is told with its key, its place and the nearest name."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from moxserve.errors import ConfigError, UsageError
from moxserve.tabular.columns import KINDS, Numeric
from moxserve.tabular.declared import input_keys, read_columns

AGE = {"kind": "numeric"}
JOB = {"kind": "vocabulary", "values": ["a", "b"]}


def test_a_file_is_read_and_every_problem_has_its_place(tmp_path: Path):
    path = tmp_path / "columns.yaml"
    path.write_text("age: {kind: numeric, fit: true}\nages: {kind: bucketized, of: age, boundaries: [20, 30]}\n")
    columns = read_columns(path)
    assert [column.kind for column in columns.values()] == ["numeric", "bucketized"]
    path.write_text(
        "age: {kind: numric}\n"
        "job: {kind: vocabulary, values: [a], oov_bucket: 1}\n"
        "both:\n  of: [age, job]\n"
        "e: {kind: embedding, of: job}\n"
    )
    with pytest.raises(ConfigError) as caught:
        read_columns(path)
    told = [str(problem).splitlines()[0] for problem in caught.value.problems]
    assert told == [
        f"{path}:1:13: age.kind: no kind 'numric'; did you mean 'numeric'?",
        f"{path}:2:38: job.oov_bucket: unknown key 'oov_bucket'; did you mean 'oov_buckets'?",
        f"{path}:3:1: both: expected a mapping with the key 'kind'",
        f"{path}:5:1: e: missing key 'dimension': Numbers of a vector.",
    ]
    path.write_text("- age\n")
    with pytest.raises(ConfigError, match="expected a mapping of names to columns"):
        read_columns(path)


def test_between_columns_the_place_is_told_too(tmp_path: Path):
    path = tmp_path / "columns.yaml"
    path.write_text("age: {kind: numeric}\nages: {kind: bucketized, of: agee, boundaries: [1]}\n")
    with pytest.raises(ConfigError, match=r":2:30: ages\.of: no column 'agee'; did you mean 'age'\?"):
        read_columns(path)


@pytest.mark.parametrize(
    ("columns", "told"),
    [
        (
            {"i": {"kind": "indicator", "of": "age"}, "age": AGE},
            "i.of: 'age' is a column of kind numeric; expected one of kind bucketized, ",
        ),
        ({"age": {**AGE, "std": 0}}, "age.std: expected numbers greater than 0, got 0"),
        ({"age": {**AGE, "std": [1, 2]}}, "age: std has 2 numbers; expected one, or 1 as shape says"),
        ({"age": {**AGE, "fit": True, "mean": 1}}, "age: expected either fit or mean and std"),
        ({"age": {**AGE, "shape": True}}, "age.shape: expected a number, got true"),
        (
            {"b": {"kind": "bucketized", "of": "age", "boundaries": [3, 2]}, "age": AGE},
            "b.boundaries: expected ascending numbers: 2 follows 3",
        ),
        (
            {"b": {"kind": "bucketized", "of": "age", "boundaries": []}, "age": AGE},
            "b.boundaries: expected at least 1 entries",
        ),
        ({"job": {"kind": "vocabulary"}}, "job: expected either values or file"),
        ({"job": {**JOB, "file": "x"}}, "job: expected either values or file"),
        ({"job": {**JOB, "values": ["a", "a"]}}, "job.values: 'a' is there twice"),
        ({"job": {**JOB, "values": ["a", ""]}}, "job.values: '' stands for a missing value"),
        ({"job": {**JOB, "size": 1}}, "job: size goes with file"),
        ({"job": {**JOB, "dtype": "int64"}}, "job: dtype is int64, and the values are string"),
        ({"job": {**JOB, "default_value": 2}}, "job: default_value is 2; expected a place in the list, 0 to 1"),
        ({"job": {**JOB, "default_value": 1, "oov_buckets": 1}}, "job: expected either oov_buckets or default_value"),
        ({"job": {**JOB, "missing": 3}}, "job: missing is 3, and the values are string"),
        ({"c": {"kind": "identity", "buckets": 3, "default_value": 3}}, "c: default_value is 3; expected 0 to 2"),
        (
            {"h": {"kind": "hash", "buckets": 3, "missing": ""}},
            "h: missing is '', which stands for a missing value itself",
        ),
        ({"x": {"kind": "crossed", "of": ["job"], "buckets": 9}, "job": JOB}, "x.of: expected at least 2 entries"),
        ({"job": JOB, "job2": {**AGE, "key": "job"}}, "job2: reads 'job' as float32; column 'job' reads it as string"),
        ({"a/b": AGE}, "a/b: the name 'a/b' is empty, or has a dot or slash in it"),
        (
            {"e": {"kind": "embedding", "of": "job", "dimension": 2, "tensor": "x"}, "job": JOB},
            "e: expected both checkpoint and tensor",
        ),
        (
            {
                "s": {"kind": "shared_embedding", "of": ["job", "c"], "dimension": 2},
                "job": JOB,
                "c": {"kind": "identity", "buckets": 2},
            },
            "s.of: expected columns of one kind, got identity, vocabulary",
        ),
        ({"age": "numeric"}, "age: expected a mapping with the key 'kind', got 'numeric'"),
    ],
)
def test_wrong_declarations(columns: dict[str, Any], told: str):
    with pytest.raises(UsageError) as caught:
        read_columns(columns)
    assert any(line.startswith(told) for line in str(caught.value).splitlines()), str(caught.value)


def test_declarations_may_be_objects():
    columns = read_columns({"age": Numeric(kind="numeric", missing=3), "job": JOB})
    assert columns["age"] == Numeric(kind="numeric", missing=3)
    assert input_keys(columns) == {"age": "float32", "job": "string"}


def test_inputs_follow_what_a_column_is_made_of():
    columns = read_columns(
        {
            "years": {**AGE, "key": "age"},
            "ages": {"kind": "bucketized", "of": "years", "boundaries": [1]},
            "job": JOB,
            "x": {"kind": "crossed", "of": ["ages", "job"], "buckets": 9},
            "i": {"kind": "indicator", "of": "x"},
            "heavy": {"kind": "weighted", "of": "job", "weight": "w"},
            "age_class": {"kind": "identity", "key": "age", "buckets": 9},
        }
    )
    assert input_keys(columns, ["i"]) == {"age": "float32", "job": "string"}
    assert input_keys(columns, ["heavy"]) == {"job": "string", "w": "float32"}
    assert input_keys(columns)["age"] == "int64"  # a category is read from it
    assert len(KINDS) == 10


def test_no_tensorflow_is_loaded():
    code = "import sys, moxserve.tabular.declared; sys.exit('tensorflow' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
