"""`obs://` through fsspec: pandas, pyarrow, and fsspec's own functions."""

from __future__ import annotations

from typing import Any

import pytest

from moxserve import file
from moxserve.errors import UsageError

fsspec = pytest.importorskip("fsspec", reason="needs the extra s3")


@pytest.fixture
def obs(s3: str) -> str:
    """URL of a fresh directory."""
    return s3.replace("s3://", "obs://")


@pytest.fixture
def filesystem(obs: str) -> Any:
    """fsspec's way to it."""
    return fsspec.filesystem("obs")


@pytest.mark.slow
def test_pandas_reads_and_writes(obs: str) -> None:
    pandas = pytest.importorskip("pandas")
    frame = pandas.DataFrame({"a": [1, 2], "b": ["x", "y"]})
    frame.to_csv(f"{obs}/t.csv", index=False)
    assert file.read(f"{obs}/t.csv") == "a,b\n1,x\n2,y\n"
    assert pandas.read_csv(f"{obs}/t.csv").equals(frame)
    frame.to_csv(f"{obs}/t.csv.gz", index=False)
    assert pandas.read_csv(f"{obs}/t.csv.gz").equals(frame)
    pytest.importorskip("pyarrow")
    frame.to_parquet(f"{obs}/t.parquet")
    assert pandas.read_parquet(f"{obs}/t.parquet").equals(frame)


def test_pyarrow_reads_a_folder(obs: str, filesystem: Any) -> None:
    pyarrow = pytest.importorskip("pyarrow")
    dataset = pytest.importorskip("pyarrow.dataset")
    table = pyarrow.table({"a": [1, 2, 3]})
    dataset.write_dataset(table, f"{obs}/folder".removeprefix("obs://"), format="parquet", filesystem=filesystem)
    found = dataset.dataset(f"{obs}/folder".removeprefix("obs://"), filesystem=filesystem, format="parquet")
    assert found.to_table().column("a").to_pylist() == [1, 2, 3]


def test_looking_and_listing(obs: str, filesystem: Any) -> None:
    base = obs.removeprefix("obs://")
    file.write(f"{obs}/d/a", "aa")
    file.write(f"{obs}/d/e/b", "b")
    assert filesystem.exists(f"{obs}/d")
    assert filesystem.isdir(f"{obs}/d")
    assert not filesystem.isfile(f"{obs}/d")
    assert filesystem.info(f"{obs}/d/a")["size"] == 2
    assert sorted(filesystem.ls(f"{obs}/d", detail=False)) == [f"{base}/d/a", f"{base}/d/e"]
    assert filesystem.ls(f"{obs}/d/a", detail=False) == [f"{base}/d/a"]
    assert filesystem.find(f"{obs}/d") == [f"{base}/d/a", f"{base}/d/e/b"]
    assert filesystem.find(f"{obs}/d", maxdepth=1) == [f"{base}/d/a"]
    assert filesystem.find(f"{obs}/d/a") == [f"{base}/d/a"]
    assert filesystem.find(f"{obs}/missing") == []
    assert filesystem.glob(f"{obs}/d/*/b") == [f"{base}/d/e/b"]
    assert filesystem.du(f"{obs}/d") == 3
    assert filesystem.modified(f"{obs}/d/a").tzinfo is not None
    with pytest.raises(FileNotFoundError):
        filesystem.info(f"{obs}/missing")


def test_reading_and_writing(obs: str, filesystem: Any) -> None:
    with filesystem.open(f"{obs}/a", "w") as f:
        f.write("one\n")
    with filesystem.open(f"{obs}/a", "ab") as f:
        f.write(b"two\n")
    assert filesystem.cat_file(f"{obs}/a", 2, 6) == b"e\ntw"
    with fsspec.open(f"{obs}/a", "rt") as f:
        assert f.read() == "one\ntwo\n"
    with pytest.raises(FileExistsError):
        filesystem.open(f"{obs}/a", "xb")
    filesystem.pipe_file(f"{obs}/b", b"piped")
    assert filesystem.cat(f"{obs}/b") == b"piped"
    assert [filesystem.cat_file(f"{obs}/b", *range_) for range_ in ((-2,), (1, -1), (3, 1), (-9, 9))] == [
        b"ed",
        b"ipe",
        b"",
        b"piped",
    ]


def test_changing(obs: str, filesystem: Any) -> None:
    file.write(f"{obs}/d/a", "aa")
    filesystem.cp_file(f"{obs}/d/a", f"{obs}/d/b")
    filesystem.mv(f"{obs}/d/b", f"{obs}/c")
    filesystem.makedirs(f"{obs}/e")
    with pytest.raises(FileExistsError):
        filesystem.makedirs(f"{obs}/e")
    filesystem.mkdir(f"{obs}/e/f")
    with pytest.raises(OSError, match="not empty"):
        filesystem.rmdir(f"{obs}/e")
    filesystem.rmdir(f"{obs}/e/f")
    filesystem.rm_file(f"{obs}/c")
    filesystem.rm(f"{obs}/d", recursive=True)
    assert file.list_directory(obs) == ["e"]


def test_trees_and_patterns(obs: str, filesystem: Any) -> None:
    for name in ("d/a", "d/e/b", "d/e/c", "d/x[1]"):
        file.write(f"{obs}/{name}", name)
    filesystem.copy(f"{obs}/d", f"{obs}/copy", recursive=True)
    assert file.list_directory(f"{obs}/copy", recursive=True) == ["a", "e", "e/b", "e/c", "x[1]"]
    filesystem.rm(f"{obs}/copy/e/*")
    filesystem.rm([f"{obs}/copy/a", f"{obs}/copy/x[1]"])
    filesystem.mv(f"{obs}/d/a", f"{obs}/d/e/")
    assert file.list_directory(f"{obs}/d", recursive=True) == ["e", "e/a", "e/b", "e/c", "x[1]"]
    with pytest.raises(IsADirectoryError, match="recursive=True"):
        filesystem.rm(f"{obs}/d")
    for missing in ("missing", "d/*.jpg"):
        with pytest.raises(FileNotFoundError):
            filesystem.rm(f"{obs}/{missing}", recursive=True)
    assert file.exists(f"{obs}/d/x[1]")


def test_options_have_another_place() -> None:
    with pytest.raises(UsageError, match="no storage option 'key'"):
        fsspec.filesystem("obs", key="secret")
