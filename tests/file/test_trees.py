"""Copies of many files: broken off and gone on with, by processes, with a bar."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from moxserve import file
from moxserve.errors import DataError, UsageError
from moxserve.file import copiers, journal, trees
from moxserve.file.copying import Place

COPY = """
import os, signal, sys
from moxserve import file
from moxserve.file import journal

journal._BEGIN_AFTER_S = 0
real, left = journal.Journal.done, [int(sys.argv[3])]

def done(self, name):
    real(self, name)
    left[0] -= 1
    if not left[0]:
        os.kill(os.getpid(), signal.SIGKILL)

journal.Journal.done = done
file.copy_parallel(sys.argv[1], sys.argv[2], threads=2)
"""


@pytest.fixture(autouse=True)
def cache(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """Where journals go."""
    monkeypatch.setenv("MOXSERVE_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture
def many(tmp_path: Path) -> Path:
    """Two hundred files, old enough to be known by their times."""
    folder = tmp_path / "many"
    for number in range(200):
        path = folder / f"{number % 7}" / f"{number}"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(f"text {number}")
        os.utime(path, (1e9, 1e9))
    return folder


@pytest.fixture
def copied(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The paths that are copied in this process."""
    told: list[str] = []
    original = trees.copier

    def copier(source: Place, target: Place, files: int, streams: int) -> Callable[[Place, Place], None]:
        copy = original(source, target, files, streams)

        def one(source: Place, target: Place) -> None:
            told.append(source.path)
            copy(source, target)

        return one

    monkeypatch.setattr(trees, "copier", copier)
    return told


def contents(folder: str) -> dict[str, str]:
    """Everything below a directory."""
    return {name: file.read(f"{folder}/{name}") for name in file.list_directory(folder, True, skip_dir=True)}


def broken_off(source: str, target: str, cache: Path, after: int) -> list[str]:
    """Copy in a process that is killed after some files; tells which its journal has."""
    run = subprocess.run([sys.executable, "-c", COPY, source, target, str(after)], check=False, timeout=200)
    assert run.returncode == -signal.SIGKILL
    (written,) = cache.glob("copies/*")
    written.write_text(written.read_text() + '["0/0", "cut o')  # as a crash in the middle of a line leaves it
    return [json.loads(line)[0] for line in written.read_text().splitlines()[:-1]]


@pytest.mark.slow
def test_a_killed_copy_goes_on_where_it_was(s3: str, many: Path, cache: Path, copied: list[str]) -> None:
    done = broken_off(str(many), s3, cache, 40)
    assert len(done) == 40
    changed, grown = done[3], done[4]
    (many / changed).write_text("text new")
    file.write(f"{s3}/{grown}", "of another size")
    file.copy_parallel(many, s3)
    again = {os.path.relpath(path, many) for path in copied}
    assert again.isdisjoint(set(done) - {changed, grown})
    assert {changed, grown} <= again
    assert contents(s3) == {os.path.relpath(p, many): p.read_text() for p in many.rglob("*") if p.is_file()}
    assert list(cache.glob("copies/*")) == []
    copied.clear()
    file.copy_parallel(many, s3)  # complete: the next one is a new one
    assert len(copied) == 200


@pytest.mark.slow
def test_a_download_goes_on_too(s3: str, many: Path, cache: Path, tmp_path: Path, copied: list[str]) -> None:
    file.copy_parallel(many, s3)
    target = str(tmp_path / "down")
    done = broken_off(s3, target, cache, 40)
    file.write(f"{s3}/{done[0]}", "text new")
    copied.clear()
    file.copy_parallel(s3, target)
    assert len(copied) <= 200 - len(done) + 1
    assert contents(target) == contents(s3)


def test_a_journal_that_cannot_be_written_does_no_harm(
    many: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "no folder").write_text("")
    monkeypatch.setenv("MOXSERVE_CACHE", str(tmp_path / "no folder"))
    monkeypatch.setattr(journal, "_BEGIN_AFTER_S", 0)
    file.copy_parallel(many, tmp_path / "copy")
    assert contents(str(tmp_path / "copy")) == contents(str(many))


def test_old_journals_are_forgotten(many: Path, cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    old = cache / "copies" / "old.jsonl"
    old.parent.mkdir(parents=True)
    old.write_text("[]\n")
    os.utime(old, (1e9, 1e9))
    monkeypatch.setattr(journal, "_BEGIN_AFTER_S", 0)
    file.copy_parallel(many, tmp_path / "copy")
    assert list(cache.glob("copies/*")) == []


# Processes


@pytest.fixture
def by_processes(monkeypatch: pytest.MonkeyPatch) -> None:
    """Even a few files are worth processes."""
    monkeypatch.setattr(copiers, "_WORTH_FILES", 1)
    monkeypatch.setattr(copiers, "_WORTH_QUICK_FILES", 1)
    monkeypatch.setattr(copiers, "available_cores", lambda: 2)


@pytest.mark.slow
def test_processes_copy_the_same(s3: str, many: Path, tmp_path: Path, by_processes: None, copied: list[str]) -> None:
    file.copy_parallel(many, s3)
    assert copied == []  # not in this process
    file.copy_parallel(s3, tmp_path / "down", threads=3)
    assert contents(s3) == contents(str(many)) == contents(str(tmp_path / "down"))


@pytest.mark.slow
def test_an_error_in_a_process_is_raised_here(s3: str, many: Path, by_processes: None) -> None:
    with pytest.raises(FileNotFoundError, match="missing"):
        file.copy_parallel(many, s3, file_list=["0/0", "missing", "1/1"])


@pytest.mark.slow
def test_processes_that_are_ended_leave_no_temporary_files(
    proxy: Any, s3: str, raw: Any, tmp_path: Path, by_processes: None
) -> None:
    raw.put("a")
    raw.put("b", bytes(3 << 20))
    begun = threading.Event()

    def fault(method: str, path: str, headers: dict[str, str]) -> Any:
        if path.endswith("/b"):
            begun.set()  # and its temporary file is there
            return ("slow", 2)
        if path.endswith("/a"):
            begun.wait(90)
            return ("status", 403)
        return None

    proxy.fault = fault
    with pytest.raises(file.MoxFilePermissionException):
        file.copy_parallel(s3, tmp_path / "down", threads=2)
    assert begun.is_set()
    assert os.listdir(tmp_path / "down") == []


def test_a_process_that_dies_is_told(s3: str, many: Path, by_processes: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYTHONPYCACHEPREFIX", "")
    start = copiers._start

    def dying() -> Any:
        child = start()
        child.kill()
        return child

    monkeypatch.setattr(copiers, "_start", dying)
    with pytest.raises(DataError, match="ended with code -9"):
        file.copy_parallel(many, s3)


def test_a_process_that_dies_in_the_middle_of_a_line_is_told(
    s3: str, many: Path, by_processes: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    def half() -> Any:
        line = ["sh", "-c", 'printf \'["done", "0/\'; exit 3']
        return subprocess.Popen(line, stdin=subprocess.PIPE, stdout=subprocess.PIPE)

    monkeypatch.setattr(copiers, "_start", half)
    with pytest.raises(DataError, match="ended with code 3"):
        file.copy_parallel(many, s3)


def test_a_directory_that_cannot_be_read_is_not_left_out(
    s3: str, many: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    scan = os.scandir

    def refusing(path: Any = ".") -> Any:
        if os.fspath(path) == str(many / "3"):
            raise PermissionError(13, "Permission denied", str(path))
        return scan(path)

    monkeypatch.setattr(os, "scandir", refusing)
    for target in (s3, tmp_path / "copy"):
        with pytest.raises(PermissionError):
            file.copy_parallel(many, target)
        assert not file.exists(f"{target}/0/0")
    for look in (
        file.get_size,
        lambda p: file.list_directory(p, recursive=True),
        lambda p: file.list_directory(p / "3"),
    ):
        with pytest.raises(PermissionError):
            look(many)


# The bar, and what is refused


def test_the_bar_shows_when_asked_for(
    many: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(trees.Bar, "_AFTER_S", -1.0)
    file.copy_parallel(many, tmp_path / "quiet")
    assert capfd.readouterr().err == ""  # no terminal
    monkeypatch.setenv("FORCE_COLOR", "1")
    file.copy_parallel(many, tmp_path / "shown", progress=True)
    assert "200/200" in capfd.readouterr().err
    file.copy_parallel(many, tmp_path / "silent", progress=False)
    assert capfd.readouterr().err == ""


@pytest.mark.parametrize("threads", [0, -1, 1.5, "4", None])
def test_other_numbers_of_threads_are_refused(threads: Any, many: Path, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=f"threads={threads!r}"):
        file.copy_parallel(many, tmp_path / "copy", threads=threads)
