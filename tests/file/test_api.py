"""The file API on local paths, by the rules of MoXing's documents."""

from __future__ import annotations

import errno
import os
import subprocess
import sys
from pathlib import Path

import pytest

from moxserve import file
from moxserve.errors import MoxserveError, UsageError


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    """a, d/b, d/e/c and an empty folder."""
    (tmp_path / "d" / "e").mkdir(parents=True)
    (tmp_path / "empty").mkdir()
    (tmp_path / "a").write_text("aa")
    (tmp_path / "d" / "b").write_text("bbb")
    (tmp_path / "d" / "e" / "c").write_text("c")
    return tmp_path


def test_text_and_bytes_come_back(tmp_path: Path) -> None:
    url = str(tmp_path / "f")
    file.write(url, "grün\n")
    assert file.read(url) == "grün\n"
    assert file.read(url, binary=True) == "grün\n".encode()
    file.append(url, b"\xff")
    assert file.read(url, binary=True)[-1:] == b"\xff"
    file.write(url.encode(), b"new", binary=True)
    assert file.read(Path(url), binary=True) == b"new"
    assert file.read(f"file://{url}") == "new"


def test_text_is_utf_8_whatever_the_locale_says(tmp_path: Path) -> None:
    path = tmp_path / "f"
    file.write(path, "grün")
    code = f"from moxserve import file; print(ascii(file.read({str(path)!r})))"
    env = {**os.environ, "LC_ALL": "C", "PYTHONCOERCECLOCALE": "0", "PYTHONUTF8": "0"}
    run = subprocess.run([sys.executable, "-c", code], env=env, capture_output=True, text=True, check=False)
    assert run.stdout.strip() == ascii("grün"), run.stderr


def test_what_is_missing_is_our_error_and_pythons(tmp_path: Path) -> None:
    missing = str(tmp_path / "no")
    calls = [file.read, file.get_size, file.stat, file.list_directory, file.remove, lambda u: list(file.scan_dir(u))]
    for call in calls:
        with pytest.raises(file.MoxFileNotExistsException, match="no such file or directory") as raised:
            call(missing)
        assert isinstance(raised.value, (FileNotFoundError, MoxserveError))
    assert not file.exists(missing)
    assert not file.is_directory(missing)
    assert list(file.walk(missing)) == []


def test_a_scheme_without_an_engine_is_told(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="no file engine for gopher://"):
        file.exists("gopher://bucket/key")


@pytest.mark.parametrize("mode", ["br+", "rb+", "+rb"])
def test_letters_of_a_mode_come_in_any_order(mode: str, tmp_path: Path) -> None:
    path = tmp_path / "f"
    path.write_bytes(b"abc")
    with file.File(str(path), mode) as f:
        f.write(b"X")
        f.seek(0)
        assert f.read() == b"Xbc"
        assert f.size() == 3


@pytest.mark.parametrize("mode", ["rw", "x", "", "rr"])
def test_other_modes_are_refused(mode: str, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="is none of r, w, a"):
        file.File(str(tmp_path / "f"), mode)


def test_a_file_is_read_line_by_line_and_counts_what_is_not_flushed(tmp_path: Path) -> None:
    path = str(tmp_path / "f")
    with file.File(path, "w") as f:
        f.write("one\ntwo\n")
        assert f.size() == 8
    with file.File(path) as f:
        assert f.next() == "one\n"
        assert list(f) == ["two\n"]


def test_listing(tree: Path) -> None:
    assert file.list_directory(tree) == ["a", "d", "empty"]
    assert file.list_directory(tree, recursive=True) == ["a", "d", "d/b", "d/e", "d/e/c", "empty"]
    assert file.list_directory(tree, remove_sep=False) == ["a", "d/", "empty/"]
    assert file.list_directory(tree, recursive=True, skip_dir=True) == ["a", "d/b", "d/e/c"]
    assert file.list_directory(tree, skip_file=True) == ["d", "empty"]
    assert file.glob(str(tree / "**" / "c")) == [str(tree / "d" / "e" / "c")]
    assert sorted(e.name for e in file.scan_dir(tree)) == ["a", "d", "empty"]


def test_sizes(tree: Path) -> None:
    assert file.get_size(tree / "a") == 2
    assert file.get_size(tree) == 6
    stat = file.stat(tree / "d" / "b")
    assert (stat.length, stat.is_directory, stat.st_size) == (3, False, 3)
    assert stat.mtime_nsec == os.stat(tree / "d" / "b").st_mtime_ns
    assert file.stat(tree / "d").is_directory


@pytest.mark.parametrize(
    ("name", "recursive", "left"),
    [
        ("a", False, ["d", "empty"]),
        ("a", True, ["d", "empty"]),
        ("a/", False, ["a", "d", "empty"]),
        ("d", False, ["a", "d", "empty"]),
        ("d/", False, ["a", "d", "empty"]),
        ("d", True, ["a", "empty"]),
        ("d/", True, ["a", "empty"]),
    ],
)
def test_remove_by_moxings_table(name: str, recursive: bool, left: list[str], tree: Path) -> None:
    file.remove(f"{tree}/{name}", recursive=recursive)
    assert file.list_directory(tree) == left


def test_directories_are_made(tmp_path: Path) -> None:
    file.make_dirs(tmp_path / "x" / "y")
    file.make_dirs(tmp_path / "x" / "y")
    file.mk_dir(tmp_path / "z")
    file.mk_dir(tmp_path / "z")
    with pytest.raises(OSError, match="no such file"):
        file.mk_dir(tmp_path / "no" / "w")
    assert file.list_directory(tmp_path, recursive=True) == ["x", "x/y", "z"]


def test_rename_is_os_rename(tmp_path: Path) -> None:
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "x").touch()
    (tmp_path / "empty").mkdir()
    (tmp_path / "f").write_text("new")
    (tmp_path / "g").write_text("old")
    with pytest.raises(IsADirectoryError):
        file.rename(tmp_path / "f", tmp_path / "full")
    with pytest.raises(OSError, match="not empty"):
        file.rename(tmp_path / "empty", tmp_path / "full")
    file.rename(tmp_path / "f", tmp_path / "g")
    file.rename(tmp_path / "full", tmp_path / "empty")
    assert sorted(os.listdir(tmp_path)) == ["empty", "g"]
    assert (tmp_path / "g").read_text() == "new"
    assert os.listdir(tmp_path / "empty") == ["x"]


def test_rename_to_another_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refused(source: str, target: str) -> None:
        raise OSError(errno.EXDEV, os.strerror(errno.EXDEV), source)

    (tmp_path / "d").mkdir()
    (tmp_path / "d" / "x").touch()
    (tmp_path / "taken").mkdir()
    monkeypatch.setattr(os, "rename", refused)
    with pytest.raises(FileExistsError, match="taken"):
        file.rename(tmp_path / "d", tmp_path / "taken")
    file.rename(tmp_path / "d", tmp_path / "e")
    assert os.listdir(tmp_path / "e") == ["x"]
    assert not (tmp_path / "d").exists()


def test_rename_and_copy(tree: Path) -> None:
    file.rename(tree / "d", tree / "f")
    file.copy(tree / "a", tree / "f" / "a")
    assert file.list_directory(tree, recursive=True, skip_dir=True) == ["a", "f/a", "f/b", "f/e/c"]
    with pytest.raises(IsADirectoryError, match="copy_parallel copies directories"):
        file.copy(tree / "f", tree / "g")
    with pytest.raises(file.MoxFileNotExistsException):
        file.rename(tree / "no", tree / "x")
    with pytest.raises(file.MoxFileNotExistsException, match=r"no such file or directory: .*/no'"):
        file.copy(tree / "no", tree / "x")


def test_copy_parallel_merges(tree: Path, tmp_path: Path) -> None:
    target = tmp_path / "target"
    (target / "d").mkdir(parents=True)
    (target / "d" / "kept").write_text("k")
    source = tmp_path / "source"
    source.mkdir()
    for name in ("a", "d", "empty"):
        file.rename(tree / name, source / name)
    file.copy_parallel(source, target, threads=4)
    assert file.list_directory(target, recursive=True) == ["a", "d", "d/b", "d/e", "d/e/c", "d/kept", "empty"]
    file.copy_parallel(source, tmp_path / "some", file_list=["d/e/c"])
    assert file.list_directory(tmp_path / "some", recursive=True) == ["d", "d/e", "d/e/c"]


def test_copy_parallel_writes_nothing_when_names_clash(tree: Path, tmp_path_factory: pytest.TempPathFactory) -> None:
    target = tmp_path_factory.mktemp("target")
    (target / "a").mkdir()  # a file in the source
    (target / "d").write_text("x")  # a folder in the source
    with pytest.raises(file.MoxFileNameDuplicateException, match=r"file and directory of one name .*: a, d$"):
        file.copy_parallel(tree, target)
    assert file.list_directory(target, recursive=True) == ["a", "d"]
