"""The survey: complete, split as promised, the same in every format and each time."""

from __future__ import annotations

import csv
import hashlib
import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner

from moxserve.cli.data_table import table
from moxserve.data.table import COLUMNS, EVAL_SAMPLES, LABELS, OCCUPATIONS, load_survey, write_table
from moxserve.errors import DataError, MissingExtraError, UsageError
from moxserve.protocol.examples import read_examples

Run = Callable[..., Any]


def _hashes(folder: Path) -> dict[str, str]:
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in folder.iterdir()}


def test_rows_are_those_of_the_source():
    from statsmodels.datasets import fair

    frame = fair.load_pandas().data
    survey = load_survey()
    assert (len(survey.train["age"]), len(survey.eval["age"])) == (5000, EVAL_SAMPLES)
    for name in ("age", "affairs", "educ"):
        both = np.concatenate([survey.train[name], survey.eval[name]])
        assert sorted(both.tolist()) == sorted(frame[name].tolist())
    for part in survey.parts().values():
        yes = part["affair"] == "yes"
        assert yes.mean() == pytest.approx(0.3225, abs=0.0005)
        np.testing.assert_array_equal(yes, part["affairs"] > 0)
    numbers = [OCCUPATIONS.index(name) + 1 for part in survey.parts().values() for name in part["occupation"]]
    assert sorted(numbers) == sorted(frame["occupation"].astype(int).tolist())


def test_split_never_changes():
    # Published figures refer to this very split.
    digest = hashlib.sha256(load_survey().eval["affairs"].astype("<f8").tobytes()).hexdigest()
    assert digest[:16] == "a2cba9ad8230dc30"


@pytest.mark.slow
def test_formats_hold_the_same_rows_and_are_written_alike_each_time(tmp_path: Path):
    import pyarrow.parquet as pq

    manifest = write_table(tmp_path / "a")
    write_table(tmp_path / "b")
    assert _hashes(tmp_path / "a") == _hashes(tmp_path / "b")
    assert json.loads((tmp_path / "a" / "dataset.json").read_text()) == manifest
    assert manifest["samples"] == {"train": 5000, "eval": 1366}
    assert (tmp_path / "a" / "labels.txt").read_text() == "0: no\n1: yes\n"
    assert (tmp_path / "a" / "occupations.txt").read_text().splitlines() == list(OCCUPATIONS)
    for part, columns in load_survey().parts().items():
        with open(tmp_path / "a" / f"{part}.csv", newline="") as f:
            header, *rows = csv.reader(f)
        assert header == list(COLUMNS)
        parquet = pq.read_table(tmp_path / "a" / f"{part}.parquet")
        examples = list(read_examples(tmp_path / "a" / f"{part}.tfrecord"))
        assert len(rows) == parquet.num_rows == len(examples) == len(columns["affair"])
        for position, (name, values) in enumerate(columns.items()):
            assert [type(values.tolist()[0])(row[position]) for row in rows] == values.tolist()
            assert parquet[name].to_pylist() == values.tolist()
            told = [example[name][0] for example in examples]
            if values.dtype == object:
                assert [value.decode() for value in told] == values.tolist()
            else:
                np.testing.assert_allclose(told, values, rtol=1e-7)


def test_only_the_wanted_formats_and_nothing_of_others_replaced(tmp_path: Path):
    out = tmp_path / "d"
    write_table(out, ["csv"])
    assert sorted(p.name for p in out.iterdir()) == [
        "dataset.json", "eval.csv", "labels.txt", "occupations.txt", "train.csv",
    ]  # fmt: skip
    with pytest.raises(DataError, match="exists and is not empty"):
        write_table(out, ["csv"])
    write_table(out, ["tfrecord"], force=True)
    assert not (out / "train.csv").exists()
    (out / "dataset.json").unlink()
    with pytest.raises(DataError, match=r"holds no dataset\.json"):
        write_table(out, ["csv"], force=True)
    with pytest.raises(UsageError, match="unknown format 'parket'; did you mean 'parquet'"):
        write_table(tmp_path / "e", ["parket"])
    assert [p.name for p in tmp_path.iterdir()] == ["d"]


def test_a_missing_package_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setitem(sys.modules, "pyarrow.parquet", None)
    with pytest.raises(MissingExtraError, match=r"Parquet needs pyarrow[\s\S]*moxserve\[table\]"):
        write_table(tmp_path / "d")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.slow
def test_command(run_moxserve: Run, tmp_path: Path):
    done = run_moxserve("data", "table", "--out", "d", "--formats", "csv", cwd=tmp_path)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout == "wrote 5000 training and 1366 evaluation rows to d\n  d/train.csv, d/eval.csv\n"
    args = ["--out", str(tmp_path / "d"), "--formats", "csv", "--force", "--json"]
    done = CliRunner().invoke(table, args, catch_exceptions=False)
    assert json.loads(done.stdout)["labels"] == list(LABELS)
