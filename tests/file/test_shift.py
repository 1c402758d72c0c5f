"""Python's own functions for files under `shift('os', 'mox')`: one contract for local paths and a store."""

# ruff: noqa: SIM115 - as the scripts do that this is for

from __future__ import annotations

import bz2
import glob
import gzip
import io
import json
import logging
import os
import pickle
import shutil
import subprocess
import sys
import tarfile
import threading
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from moxserve import file
from moxserve.errors import UsageError
from moxserve.file import shift


@pytest.fixture(autouse=True)
def shifted() -> Iterator[None]:
    """Every test runs shifted."""
    file.shift("os", "mox")
    yield
    file.shift("mox", "os")


def write(path: str, text: str = "x") -> None:
    """Write a file with `open`."""
    with open(path, "w") as f:
        f.write(text)


@pytest.fixture
def tree(base: str) -> str:
    """a, d/b, d/e/c."""
    for name in ("a", "d/b", "d/e/c"):
        os.makedirs(os.path.dirname(f"{base}/{name}"), exist_ok=True)
        write(f"{base}/{name}", name)
    return base


# Opening


def test_open_in_every_mode(base: str) -> None:
    path = f"{base}/f"
    write(path, "one\n")
    with open(path, "a") as f:
        f.write("zwölf\n")
    with open(path, encoding="utf-8") as f:
        assert f.read() == "one\nzwölf\n"
    with open(path, "r+b") as f:
        f.seek(1)
        f.write(b"X")
    assert open(file=path, mode="rb").read() == "oXe\nzwölf\n".encode()
    with open(path, newline="\n") as f:
        assert list(f) == ["oXe\n", "zwölf\n"]
    with pytest.raises(FileExistsError):
        open(path, "x")
    with open(f"{base}/new", "xb") as f:
        f.write(b"made")
    assert open(f"{base}/new").read() == "made"
    with pytest.raises(FileNotFoundError):
        open(f"{base}/missing")
    with pytest.raises(ValueError, match="binary mode"):
        open(path, "rb", encoding="utf-8")
    assert io.open is open


def test_open_takes_bytes_and_numbers_as_before(tmp_path: Path) -> None:
    descriptor = os.open(tmp_path / "f", os.O_CREAT | os.O_RDWR)
    with open(descriptor, "w") as f:
        f.write("by number")
    assert open(os.fsencode(tmp_path / "f")).read() == "by number"
    assert (tmp_path / "f").read_text() == "by number"
    assert os.stat(os.open(tmp_path, os.O_RDONLY)).st_size > 0


# os, os.path, glob


def test_directories(base: str) -> None:
    os.mkdir(f"{base}/d")
    for make in (os.mkdir, os.makedirs):
        with pytest.raises(FileExistsError):
            make(f"{base}/d")
    os.makedirs(f"{base}/d", exist_ok=True)
    os.makedirs(name=f"{base}/d/e")
    os.mkdir(f"{base}/d/e/f")
    with pytest.raises(FileNotFoundError):
        os.mkdir(f"{base}/missing/d")
    with pytest.raises(OSError, match="not empty"):
        os.rmdir(f"{base}/d")
    os.rmdir(f"{base}/d/e/f")
    assert os.listdir(f"{base}/d/e") == []
    with pytest.raises(FileNotFoundError):
        os.rmdir(f"{base}/d/e/f")
    with pytest.raises(FileNotFoundError):
        os.listdir(f"{base}/missing")
    write(f"{base}/f")
    with pytest.raises(NotADirectoryError):
        os.rmdir(f"{base}/f")
    with pytest.raises(FileExistsError):
        os.makedirs(f"{base}/f", exist_ok=True)
    for look in (os.listdir, os.scandir):
        with pytest.raises(NotADirectoryError):
            look(f"{base}/f")
    assert sorted(os.listdir(os.fsencode(base))) == [b"d", b"f"]


def test_looking(tree: str) -> None:
    assert sorted(os.listdir(tree)) == ["a", "d"]
    assert [os.path.exists(f"{tree}/{n}") for n in ("a", "d", "x")] == [True, True, False]
    assert [os.path.isdir(f"{tree}/{n}") for n in ("a", "d", "x")] == [False, True, False]
    assert [os.path.isfile(f"{tree}/{n}") for n in ("a", "d", "x")] == [True, False, False]
    assert [os.path.islink(f"{tree}/a"), os.path.lexists(f"{tree}/a"), os.access(f"{tree}/x", os.R_OK)] == [0, 1, 0]
    assert os.path.getsize(filename=f"{tree}/d/b") == 3
    assert os.path.getmtime(f"{tree}/a") == pytest.approx(os.stat(f"{tree}/a").st_mtime)
    assert isinstance(os.stat(path=f"{tree}/a"), os.stat_result)
    assert (os.lstat(f"{tree}/a").st_size, os.stat(f"{tree}/a").st_size) == (1, 1)
    assert os.path.abspath(f"{tree}/a") == os.path.realpath(f"{tree}/a") == os.path.normpath(f"{tree}/a") == f"{tree}/a"
    assert os.path.relpath(f"{tree}/d/b", tree) == "d/b"
    assert os.path.samefile(f"{tree}/a", f"{tree}/a")
    with pytest.raises(FileNotFoundError):
        os.stat(f"{tree}/x")
    with os.scandir(tree) as entries:
        assert {(e.name, e.is_dir()) for e in entries} == {("a", False), ("d", True)}


def test_walking_and_patterns(tree: str) -> None:
    walked = {path[len(tree) :]: (sorted(dirs), sorted(files)) for path, dirs, files in os.walk(tree)}
    assert walked == {"": (["d"], ["a"]), "/d": (["e"], ["b"]), "/d/e": ([], ["c"])}
    assert sorted(glob.glob(f"{tree}/*")) == [f"{tree}/a", f"{tree}/d"]
    assert glob.glob(f"{tree}/**/c") == []
    assert glob.glob(f"{tree}/**/c", recursive=True) == [f"{tree}/d/e/c"]
    assert sorted(glob.iglob("d/?", root_dir=tree)) == ["d/b", "d/e"]
    assert glob.glob(os.fsencode(f"{tree}/[a]")) == [os.fsencode(f"{tree}/a")]


def test_directories_are_emptied_from_the_bottom(base: str) -> None:
    for name in ("d", "d/e", "d/e/f", "d/g"):
        os.mkdir(f"{base}/{name}")
    write(f"{base}/d/e/h")
    for path, dirs, files in os.walk(f"{base}/d", topdown=False):
        for name in files:
            os.remove(f"{path}/{name}")
        for name in dirs:
            os.rmdir(os.path.join(path, name))
    assert os.listdir(base) == ["d"]


def test_nothing_is_in_a_bucket_that_is_not_there(own_bucket: str) -> None:
    missing = f"s3://{own_bucket}-missing/a"
    looks = (os.path.exists, os.path.lexists, os.path.isfile, os.path.isdir, lambda p: os.access(p, os.R_OK))
    assert [look(missing) for look in looks] == [False] * 5


def test_removing_and_renaming(tree: str) -> None:
    os.rename(f"{tree}/a", f"{tree}/z")
    os.replace(src=f"{tree}/z", dst=f"{tree}/d/b")
    assert open(f"{tree}/d/b").read() == "a"
    with pytest.raises(IsADirectoryError):
        os.remove(f"{tree}/d")
    os.unlink(f"{tree}/d/b")
    with pytest.raises(FileNotFoundError):
        os.remove(f"{tree}/d/b")
    shutil.rmtree(f"{tree}/d")
    assert os.listdir(tree) == []
    with pytest.raises(FileNotFoundError):
        shutil.rmtree(f"{tree}/d")
    shutil.rmtree(f"{tree}/d", ignore_errors=True)


# shutil, also between the two


def test_copies_and_moves_in_every_direction(tree: str, tmp_path: Path) -> None:
    here = str(tmp_path / "here")
    os.mkdir(here)
    assert shutil.copy(f"{tree}/a", here) == f"{here}/a"
    assert shutil.copyfile(f"{here}/a", f"{tree}/n") == f"{tree}/n"
    assert shutil.copy2(f"{tree}/n", f"{tree}/d") == f"{tree}/d/n"
    assert open(f"{tree}/d/n").read() == "a"
    assert shutil.move(f"{here}/a", f"{tree}/d") == f"{tree}/d/a"
    assert os.listdir(here) == []
    with pytest.raises(shutil.Error, match="already exists"):
        shutil.move(f"{tree}/a", f"{tree}/d")
    shutil.copytree(f"{tree}/d", f"{here}/tree", ignore=shutil.ignore_patterns("e", "n"))
    assert sorted(os.listdir(f"{here}/tree")) == ["a", "b"]
    with pytest.raises(FileExistsError):
        shutil.copytree(f"{tree}/d", f"{here}/tree")
    shutil.copytree(f"{here}/tree", f"{tree}/d", dirs_exist_ok=True)
    assert sorted(os.listdir(f"{tree}/d")) == ["a", "b", "e", "n"]
    shutil.move(f"{tree}/d", f"{here}/moved")
    assert open(f"{here}/moved/e/c").read() == "d/e/c"


# Libraries


def test_formats_of_the_standard_library(base: str) -> None:
    with open(f"{base}/j", "w") as f:
        json.dump({"a": [1]}, f)
    assert json.load(open(f"{base}/j")) == {"a": [1]}
    with open(f"{base}/p", "wb") as f:
        pickle.dump(range(3), f)
    assert pickle.load(open(f"{base}/p", "rb")) == range(3)
    for kind in (gzip, bz2):
        with kind.open(f"{base}/z", "wt") as f:
            f.write("packed")
        with kind.open(f"{base}/z", "rt") as f:
            assert f.read() == "packed"
    with zipfile.ZipFile(f"{base}/zip", "w") as archive:
        archive.writestr("a", "zipped")
    with zipfile.ZipFile(f"{base}/zip") as archive:
        assert archive.read("a") == b"zipped"
    with tarfile.open(f"{base}/t.tar.gz", "w:gz") as tar:
        info = tarfile.TarInfo("a")
        info.size = 3
        tar.addfile(info, io.BytesIO(b"abc"))
    with tarfile.open(f"{base}/t.tar.gz") as tar:
        assert tar.extractfile("a").read() == b"abc"  # type: ignore[union-attr]


def test_logging(base: str) -> None:
    handler = logging.FileHandler(f"{base}/log")
    logger = logging.Logger("shifted")
    logger.addHandler(handler)
    logger.warning("one")
    assert open(f"{base}/log").read() == "one\n"
    logger.warning("two")
    handler.close()
    assert open(f"{base}/log").read() == "one\ntwo\n"


def test_numpy_pandas_and_images(base: str) -> None:
    array = np.arange(6).reshape(2, 3)
    np.save(f"{base}/a.npy", array)
    np.testing.assert_array_equal(np.load(f"{base}/a.npy"), array)
    np.savez(f"{base}/a.npz", array=array)
    np.testing.assert_array_equal(np.load(f"{base}/a.npz")["array"], array)
    pandas = pytest.importorskip("pandas")
    with open(f"{base}/t.csv", "w") as f:
        pandas.DataFrame({"col1": [1, 2], "col2": [3, 4]}).to_csv(f, index=False)
    with open(f"{base}/t.csv") as f:
        assert pandas.read_csv(f)["col2"].tolist() == [3, 4]
    image = pytest.importorskip("PIL.Image")
    image.fromarray(np.full((4, 5, 3), 7, np.uint8)).save(f"{base}/i.png")
    assert image.open(f"{base}/i.png").size == (5, 4)


# On and off


def test_it_is_on_only_between_the_calls(s3: str) -> None:
    file.shift("os", "mox")  # twice is once
    write(f"{s3}/a")
    assert os.path.exists(f"{s3}/a")
    file.shift("mox", "os")
    originals = [os.path.exists, open, shutil.copytree, os.scandir]
    assert not os.path.exists(f"{s3}/a")
    with pytest.raises(FileNotFoundError):
        open(f"{s3}/a")
    file.shift("mox", "os")
    file.shift("os", "mox")
    assert os.path.exists(f"{s3}/a")
    file.shift("mox", "os")
    assert [os.path.exists, open, shutil.copytree, os.scandir] == originals


def test_somebody_elses_function_on_top_of_ours_stays(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, s3: str) -> None:
    ours, calls = os.listdir, []

    def theirs(path: Any = ".") -> list[str]:
        calls.append(path)
        return ours(path)

    monkeypatch.setattr(os, "listdir", theirs)
    file.shift("mox", "os")
    assert os.listdir is theirs
    assert (os.listdir(tmp_path), calls) == ([], [tmp_path])
    with pytest.raises(FileNotFoundError):  # ours below only passes through
        os.listdir(s3)


def test_threads_work_while_it_is_switched(tmp_path: Path) -> None:
    failed: list[BaseException] = []
    done = threading.Event()

    def work() -> None:
        path = str(tmp_path / threading.current_thread().name)
        try:
            while not done.is_set():
                write(path, "text")
                if open(path).read() != "text" or not os.path.exists(path) or not os.listdir(tmp_path):
                    raise ValueError(path)
        except BaseException as error:  # noqa: BLE001 - told by the test
            failed.append(error)

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for _ in range(200):
        file.shift("mox", "os")
        file.shift("os", "mox")
    done.set()
    for thread in threads:
        thread.join()
    assert failed == []


@pytest.mark.parametrize(("words", "told"), [(("os", "s3"), "known: mox, os"), (("mox", "mox"), "nothing")])
def test_other_words_are_refused(words: tuple[str, str], told: str) -> None:
    with pytest.raises(UsageError, match=told):
        shift(*words)


def test_removing_trees_stays_safe_for_what_is_imported_later() -> None:
    code = "import os, sys; sys.modules.pop('shutil', None); from moxserve import file; file.shift('os', 'mox'); "
    code += "sys.modules.pop('shutil', None); import shutil; print(shutil.rmtree.avoids_symlink_attacks)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=200, check=True)
    assert done.stdout == "True\n"


# Local copies


def test_a_local_copy_of_a_file_and_of_a_directory(tree: str) -> None:
    with file.local_copy(f"{tree}/d/b") as path:
        assert os.path.basename(path) == "b"
        assert Path(path).read_text() == "d/b"
    with file.local_copy(f"{tree}/d") as path:
        assert (Path(path) / "e" / "c").read_text() == "d/e/c"
    if "://" in tree:
        assert not Path(path).exists()


def test_what_is_made_locally_is_uploaded(base: str, change: Callable[[str], None]) -> None:
    with file.local_copy(f"{base}/t.h5", "w") as path:
        change(path)
    with file.local_copy(f"{base}/t.h5", "r+") as path:
        change(path)
    assert file.read(f"{base}/t.h5") == "changed changed "
    with file.local_copy(f"{base}/folder", "w") as path:
        os.makedirs(f"{path}/inner")
        change(f"{path}/inner/f")
    assert file.read(f"{base}/folder/inner/f") == "changed "
    with pytest.raises(FileNotFoundError), file.local_copy(f"{base}/t2", "w") as path:
        _change_and_fail(change, path)
    if "://" in base:
        assert not file.exists(f"{base}/t2")
    with pytest.raises(FileNotFoundError), file.local_copy(f"{base}/missing") as path:
        Path(path).read_bytes()
    with pytest.raises(UsageError, match="mode='a'"), file.local_copy(f"{base}/t.h5", "a"):
        pass


def _change_and_fail(change: Callable[[str], None], path: str) -> None:
    change(path)
    raise FileNotFoundError


@pytest.fixture
def change() -> Callable[[str], None]:
    def append(path: str) -> None:
        with Path(path).open("a") as f:
            f.write("changed ")

    return append
