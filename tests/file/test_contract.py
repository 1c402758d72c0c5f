"""What every function of the file API does, on local paths and in a store alike, by the rules of MoXing's documents."""

from __future__ import annotations

import io
import os
import stat
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from moxserve import file
from moxserve.errors import MoxserveError, UsageError

MODES = ["r", "w", "a", "r+", "w+", "a+", "br", "bw", "ba", "br+", "bw+", "ba+"]


def fill(base: str, **files: str) -> None:
    """Write files; `__` in a name stands for a slash."""
    for name, text in files.items():
        path = f"{base}/{name.replace('__', '/')}"
        if "://" not in base:
            os.makedirs(os.path.dirname(path), exist_ok=True)
        file.write(path, text)


@pytest.fixture
def tree(base: str) -> str:
    """a, d/b, d/e/c and an empty directory."""
    fill(base, a="aa", d__b="bbb", d__e__c="c")
    file.make_dirs(f"{base}/empty")
    return base


# Reading and writing


def test_text_and_bytes_come_back(base: str) -> None:
    url = f"{base}/f"
    file.write(url, "grün\n")
    assert file.read(url) == "grün\n"
    assert file.read(url, client_id="any", binary=True) == "grün\n".encode()
    file.write(url, b"new\xff", binary=True)
    assert file.read(os.fsencode(url), binary=True) == b"new\xff"
    file.write(url, b"bytes without saying so")
    assert file.read(url) == "bytes without saying so"
    file.write(url, "")
    assert (file.read(url), file.get_size(url)) == ("", 0)


def test_memory_of_any_kind_is_written_and_nothing_else(base: str) -> None:
    url = f"{base}/f"
    for data in (bytearray(b"ab"), memoryview(b"ab"), np.frombuffer(b"ab", np.uint8)):
        file.write(url, data, binary=True)
        file.append(url, data, True)
        assert file.read(url) == "abab"
    for data in (5, None, ["ab"]):
        for call in (file.write, file.append):
            with pytest.raises(UsageError, match=rf"/f': expected text or bytes to write, not {type(data).__name__}"):
                call(url, data)
    assert file.read(url) == "abab"


def test_appending_makes_and_extends(base: str) -> None:
    url = f"{base}/f"
    file.append(url, "one")
    file.append(url, b"\xff", binary=True)
    file.append(url, "")
    assert file.read(url, binary=True) == b"one\xff"


@pytest.mark.parametrize("mode", MODES)
def test_every_mode_of_a_new_and_an_old_file(mode: str, base: str) -> None:
    new, old = f"{base}/new", f"{base}/old"
    data: Any = b"XY" if "b" in mode else "XY"
    file.write(old, "abcd")
    if "r" in mode:
        with pytest.raises(file.MoxFileNotExistsException):
            file.File(new, mode)
        assert not file.exists(new)
    else:
        with file.File(new, mode) as f:
            assert (f.write(data), f.size(), f.tell()) == (2, 2, 2)
        assert file.read(new) == "XY"
    with file.File(old, mode) as f:
        assert (f.name, f.mode, f.isatty(), f.closed) == (old, mode, False, False)
        assert f.readable() == ("r" in mode or "+" in mode)
        assert f.writable() == (mode not in ("r", "br"))
        if f.readable() and "r" in mode:
            assert f.read(2) == (b"ab" if "b" in mode else "ab")
        if f.writable():
            f.seek(f.tell())  # text that was read ahead would make it write at the end
            f.write(data)
        else:
            with pytest.raises(io.UnsupportedOperation):
                f.write(data)
        if not f.readable():
            with pytest.raises(io.UnsupportedOperation):
                f.read()
    assert f.closed
    f.close()
    expected = {"r": "abcd", "w": "XY", "a": "abcdXY"}
    changed = "abXY" if "r" in mode and "+" in mode else expected[next(c for c in mode if c in "rwa")]
    assert file.read(old) == changed


@pytest.mark.parametrize("mode", ["w", "a", "r+", "w+", "a+"])
def test_a_file_that_is_opened_and_closed(mode: str, base: str) -> None:
    url = f"{base}/f"
    if mode != "r+":
        file.File(url, mode).close()
        assert file.read(url) == ""
    file.write(url, "abc")
    file.File(url, mode).close()
    assert file.read(url) == ("" if "w" in mode else "abc")


@pytest.mark.parametrize("mode", ["br+", "rb+", "+rb", "r+b", "b+r", "+br"])
def test_letters_of_a_mode_come_in_any_order(mode: str, base: str) -> None:
    url = f"{base}/f"
    file.write(url, "abcdef")
    with file.File(url, mode) as f:
        assert f.read(2) == b"ab"
        f.write(b"XY")
        assert f.tell() == 4
        f.seek(-1, 2)
        assert f.read() == b"f"
        f.seek(0)
        assert (f.read(), f.size()) == (b"abXYef", 6)
        f.seek(3)
        f.truncate()
    assert file.read(url) == "abX"


@pytest.mark.parametrize("mode", ["rw", "x", "", "rr", "rt", "U", "r++"])
def test_other_modes_are_refused(mode: str, base: str) -> None:
    with pytest.raises(UsageError, match="is none of r, w, a"):
        file.File(f"{base}/f", mode)


def test_reading_line_by_line(base: str) -> None:
    url = f"{base}/f"
    file.write(url, "one\ntwö\r\nthree\nfour")
    with file.File(url) as f:
        assert f.next() == "one\n"
        assert f.readline() == "twö\n"
        assert f.readline(2) == "th"
        assert f.readlines() == ["ree\n", "four"]
        assert f.readlines() == []
        with pytest.raises(StopIteration):
            f.next()
    with file.File(url, "rb") as f:
        assert f.readline() == b"one\n"
        place = f.tell()
        assert list(f) == ["twö\r\n".encode(), b"three\n", b"four"]
        f.seek(place)
        assert f.readlines(sizeint=3) == ["twö\r\n".encode()]
        assert f.seekable()
        assert f.seek(-4, 2) == 16
        assert f.read() == b"four"
        assert f.seek(3) == 3
        assert f.seek(1, 1) == 4
        assert f.read(None)[:2] == b"tw"
        assert f.seek(100) == 100
        assert f.read() == b""
        with pytest.raises((OSError, ValueError)):
            f.seek(-1)


def test_text_goes_back_to_a_place_that_tell_gave(base: str) -> None:
    url = f"{base}/f"
    with file.File(url, "w+") as f:
        f.writelines(["grün\n", "rot\n"])
        f.seek(0)
        assert f.readline() == "grün\n"
        place = f.tell()
        assert f.read() == "rot\n"
        f.seek(place)
        assert f.read() == "rot\n"
    assert file.read(url) == "grün\nrot\n"


@pytest.mark.parametrize("mode", ["w", "w+"])
def test_what_is_written_can_be_gone_back_to(mode: str, base: str) -> None:
    """As zipfile and image writers do, which mend the beginning at the end."""
    url = f"{base}/f"
    with file.File(url, mode + "b") as f:
        f.write(b"????body")
        f.seek(0)
        f.write(b"HEAD")
        f.seek(0, 2)
        f.write(b"tail")
        f.seek(20)
        f.write(b"!")
    assert file.read(url, binary=True) == b"HEADbodytail" + bytes(8) + b"!"


def test_appending_ignores_where_one_goes(base: str) -> None:
    url = f"{base}/f"
    file.write(url, "abc")
    for mode in ("ab", "ab+"):
        with file.File(url, mode) as f:
            assert f.tell() == file.get_size(url)
            f.seek(0)
            f.write(b"X")
            if "+" in mode:
                f.seek(1)
                assert f.read() == b"bcXX"
    assert file.read(url) == "abcXX"


def test_flush_shows_what_is_written_and_writing_goes_on(base: str) -> None:
    url = f"{base}/log"
    for mode in ("w", "a", "wb+", "ab"):
        data: Any = b"line\n" if "b" in mode else "line\n"
        file.write(url, "")
        with file.File(url, mode) as f:
            for count in (1, 2):
                f.write(data)
                f.flush()
                assert file.read(url) == "line\n" * count
            f.write(data)
            assert f.size() == 15
        assert file.read(url) == "line\n" * 3


def test_an_error_in_the_block_keeps_what_was_written(base: str) -> None:
    def fail() -> None:
        with file.File(f"{base}/f", "w") as f:
            f.write("half")
            raise RuntimeError("stop")

    with pytest.raises(RuntimeError):
        fail()
    assert file.read(f"{base}/f") == "half"


def test_a_closed_file_is_closed(base: str) -> None:
    with file.File(f"{base}/f", "w") as f:
        f.write("x")
    for call in (f.read, f.tell, lambda: f.write("x"), lambda: f.seek(0), f.flush):
        with pytest.raises(ValueError, match="closed file"):
            call()


def test_encodings_and_newlines(base: str) -> None:
    url = f"{base}/f"
    with file.File(url, "w", encoding="latin-1", newline="\r\n") as f:
        f.write("grün\n")
    assert file.read(url, binary=True) == b"gr\xfcn\r\n"
    with pytest.raises(UnicodeDecodeError):
        file.read(url)
    with file.File(url, encoding="latin-1", newline="") as f:
        assert f.read() == "grün\r\n"


def test_a_directory_is_no_file(tree: str) -> None:
    for call in (
        lambda: file.read(f"{tree}/d"),
        lambda: file.File(f"{tree}/d", "rb"),
        lambda: file.File(f"{tree}/empty/", "w"),
        lambda: file.copy(f"{tree}/d", f"{tree}/x"),
    ):
        with pytest.raises(IsADirectoryError) as raised:
            call()
        assert isinstance(raised.value, MoxserveError)


# What is not there


MISSING: list[Callable[[str], Any]] = [
    file.read,
    file.get_size,
    file.stat,
    file.list_directory,
    file.remove,
    file.scan_dir,
    lambda u: file.remove(u, recursive=True),
    lambda u: file.list_directory(u, recursive=True),
    lambda u: file.copy(u, f"{u}2"),
    lambda u: file.copy_parallel(u, f"{u}2"),
    lambda u: file.rename(u, f"{u}2"),
    lambda u: file.append_remote(u, f"{u}2"),
    lambda u: file.mk_dir(f"{u}/below"),
]


def test_what_is_missing_is_our_error_and_pythons(base: str) -> None:
    missing = f"{base}/no"
    for number, call in enumerate(MISSING):
        with pytest.raises(file.MoxFileNotExistsException) as raised:
            pytest.fail(f"call {number} gave {call(missing)}")
        assert isinstance(raised.value, FileNotFoundError)
        assert isinstance(raised.value, MoxserveError)
        assert raised.value.errno == 2
        assert "/no" in str(raised.value)
    assert file.list_directory(base) == []


def test_looking_for_what_is_missing(base: str) -> None:
    missing = f"{base}/no"
    assert not file.exists(missing)
    assert not file.exists(f"{missing}/")
    assert not file.is_directory(missing)
    assert list(file.walk(missing)) == []
    assert file.glob(f"{missing}/*") == []
    assert file.glob(missing) == []


def test_a_file_is_no_directory(tree: str) -> None:
    assert file.exists(f"{tree}/a")
    assert not file.exists(f"{tree}/a/")
    assert not file.is_directory(f"{tree}/a")
    assert not file.is_directory(f"{tree}/a/")
    for call in (file.list_directory, file.scan_dir, lambda u: file.stat(f"{u}/"), lambda u: file.get_size(f"{u}/")):
        with pytest.raises(file.MoxFileNotExistsException):
            call(f"{tree}/a")


# Looking


def test_existing_and_being_a_directory(tree: str) -> None:
    for name in ("d", "d/", "d/e", "empty", "empty/", ""):
        assert file.exists(f"{tree}/{name}")
        assert file.is_directory(f"{tree}/{name}")
    assert file.exists(f"{tree}/d/b")
    # A name that others begin with is not there by that.
    fill(tree, **{"model.ckpt-1.index": "x"})
    assert not file.exists(f"{tree}/model.ckpt-1")
    assert not file.exists(f"{tree}/em")
    assert not file.is_directory(f"{tree}/em")


def test_listing(tree: str) -> None:
    assert file.list_directory(tree) == file.list_directory(f"{tree}/") == ["a", "d", "empty"]
    assert file.list_directory(tree, recursive=True) == ["a", "d", "d/b", "d/e", "d/e/c", "empty"]
    assert file.list_directory(tree, remove_sep=False) == ["a", "d/", "empty/"]
    assert file.list_directory(tree, recursive=True, remove_sep=False) == [
        "a", "d/", "d/b", "d/e/", "d/e/c", "empty/",
    ]  # fmt: skip
    assert file.list_directory(tree, recursive=True, skip_dir=True) == ["a", "d/b", "d/e/c"]
    assert file.list_directory(tree, recursive=True, skip_file=True) == ["d", "d/e", "empty"]
    assert file.list_directory(tree, skip_file=True) == ["d", "empty"]
    assert file.list_directory(tree, skip_file=True, skip_dir=True) == []
    assert file.list_directory(f"{tree}/empty") == []


def test_listing_is_in_the_order_of_code_points(base: str) -> None:
    names = ["B", "a", "a-b", "a.b", "ab", "ä", "文", "🎈"]
    for name in names:
        file.write(f"{base}/{name}", "x")
    fill(base, a_dir__x="x")
    assert file.list_directory(base) == sorted([*names, "a_dir"])
    assert [e.name for e in file.scan_dir(base)] == file.list_directory(base) or "://" not in base


@pytest.mark.slow
@pytest.mark.parametrize(
    "name", ["with space", "100%", "a+b", "q?x", "hash#tag", "ünïcode/文字", "'\"&<>", "a%2Fb", "~", "*"]
)
def test_names_are_taken_as_they_are(name: str, base: str) -> None:
    url = f"{base}/{name}"
    if "/" in name:
        file.make_dirs(url.rpartition("/")[0])
    file.write(url, name)
    assert file.read(url) == name
    assert file.exists(url)
    assert file.list_directory(base, recursive=True, skip_dir=True) == [name]
    file.rename(url, f"{base}/moved {name[:1]}")
    assert file.list_directory(base, skip_dir=True) == [f"moved {name[:1]}"]
    file.copy(f"{base}/moved {name[:1]}", url)
    file.remove(url)
    assert file.list_directory(base, skip_dir=True) == [f"moved {name[:1]}"]


def test_sizes(tree: str, remote: bool) -> None:
    assert file.get_size(f"{tree}/a") == 2
    assert file.get_size(tree, recursive=True) == 6
    # By the document local directories are always counted with all that is below.
    assert file.get_size(tree) == (2 if remote else 6)
    assert file.get_size(f"{tree}/d/", recursive=True) == 4
    assert file.get_size(f"{tree}/empty") == 0


def test_stat(tree: str) -> None:
    found = file.stat(f"{tree}/d/b")
    assert file.stat(src_url=f"{tree}/d/b").length == found.length
    with pytest.raises(UsageError, match="expected one path"):
        file.stat()
    assert (found.length, found.is_directory, found.st_size) == (3, False, 3)
    assert stat.S_ISREG(found.st_mode)
    assert abs(found.mtime_nsec / 1e9 - time.time()) < 3600
    assert found.mtime_nsec == found.st_mtime_ns
    assert found.st_mtime == pytest.approx(found.mtime_nsec / 1e9)
    assert found[stat.ST_SIZE] == 3
    for name in ("d", "d/", "empty", ""):
        found = file.stat(f"{tree}/{name}")
        assert found.is_directory
        assert stat.S_ISDIR(found.st_mode)


def test_scanning(tree: str) -> None:
    with file.scan_dir(tree) as entries:
        found = {entry.name: entry for entry in entries}
    assert {name: (e.is_dir(), e.is_file(), e.is_symlink()) for name, e in found.items()} == {
        "a": (False, True, False),
        "d": (True, False, False),
        "empty": (True, False, False),
    }
    assert found["a"].path == os.fspath(found["a"]) == f"{tree}/a"
    assert found["a"].stat().st_size == 2
    assert stat.S_ISDIR(found["d"].stat().st_mode)
    entries = file.scan_dir(tree)
    next(entries)
    entries.close()
    assert list(entries) == []


def test_walking(tree: str) -> None:
    found = [(top, sorted(dirs), files) for top, dirs, files in file.walk(tree)]
    assert sorted(found) == [
        (tree, ["d", "empty"], ["a"]),
        (f"{tree}/d", ["e"], ["b"]),
        (f"{tree}/d/e", [], ["c"]),
        (f"{tree}/empty", [], []),
    ]
    assert found[0][0] == tree
    # Names that are taken out are left out.
    seen = []
    for top, dirs, _ in file.walk(f"{tree}/"):
        seen.append(top)
        dirs[:] = [name for name in dirs if name != "d"]
    assert seen == [f"{tree}/", f"{tree}/empty"]


PATTERNS = [
    ("*", ["a1.jpg", "a2.png", "d", "x[1]"]),
    ("*.jpg", ["a1.jpg"]),
    ("a?.*", ["a1.jpg", "a2.png"]),
    ("a[0-1].jpg", ["a1.jpg"]),
    ("a[!1].*", ["a2.png"]),
    ("x[[]1]", ["x[1]"]),
    ("a1.jpg", ["a1.jpg"]),
    ("d", ["d"]),
    ("d/", ["d/"]),
    ("d/*", ["d/b.jpg", "d/e", "d/f"]),
    ("d/*/", ["d/e/", "d/f/"]),
    ("*/*.jpg", ["d/b.jpg"]),
    ("d/*/c.jpg", ["d/e/c.jpg", "d/f/c.jpg"]),
    ("d/*/d.jpg", []),
    ("**/c.jpg", ["d/e/c.jpg", "d/f/c.jpg"]),
    ("**/*.jpg", ["a1.jpg", "d/b.jpg", "d/e/c.jpg", "d/f/c.jpg"]),
    ("d/**", ["d/", "d/b.jpg", "d/e", "d/e/c.jpg", "d/f", "d/f/c.jpg"]),
    ("d/**/", ["d/", "d/e/", "d/f/"]),
    (".*", [".hidden"]),
    ("no/*", []),
    ("no", []),
]


def test_patterns(base: str) -> None:
    names = ["a1.jpg", "a2.png", "x[1]", ".hidden", "d__b.jpg", "d__e__c.jpg", "d__f__c.jpg"]
    fill(base, **dict.fromkeys(names, ""))
    found = {pattern: file.glob(f"{base}/{pattern}") for pattern, _ in PATTERNS}
    assert found == {pattern: [f"{base}/{name}" for name in sorted(expected)] for pattern, expected in PATTERNS}


# Directories


def test_directories_are_made(base: str) -> None:
    file.make_dirs(f"{base}/x/y")
    file.make_dirs(f"{base}/x/y/")
    file.mk_dir(f"{base}/z")
    file.mk_dir(f"{base}/z")
    file.mk_dir(f"{base}/z/w/")
    with pytest.raises(OSError, match="no such file or directory"):
        file.mk_dir(f"{base}/no/w")
    assert file.list_directory(base, recursive=True) == ["x", "x/y", "z", "z/w"]
    fill(base, x__y__f="1")
    file.make_dirs(f"{base}/x/y")
    file.remove(f"{base}/x/y/f")
    assert file.is_directory(f"{base}/x/y")


@pytest.mark.parametrize(
    ("name", "recursive", "left"),
    [
        ("a", False, ["d", "empty"]),
        ("a", True, ["d", "empty"]),
        ("a/", False, ["a", "d", "empty"]),
        ("a/", True, ["a", "d", "empty"]),
        ("d", False, ["a", "d", "empty"]),
        ("d/", False, ["a", "d", "empty"]),
        ("d", True, ["a", "empty"]),
        ("d/", True, ["a", "empty"]),
        ("empty", False, ["a", "d", "empty"]),
        ("empty", True, ["a", "d"]),
        ("no/", False, ["a", "d", "empty"]),
        ("no/", True, ["a", "d", "empty"]),
    ],
)
def test_remove_by_moxings_table(name: str, recursive: bool, left: list[str], tree: str) -> None:
    file.remove(f"{tree}/{name}", recursive=recursive)
    assert file.list_directory(tree) == left


# Renaming, copying, appending


def test_renaming(tree: str) -> None:
    file.rename(f"{tree}/d", f"{tree}/f")
    file.rename(f"{tree}/a", f"{tree}/b")
    file.rename(f"{tree}/b", f"{tree}/b")
    assert file.list_directory(tree, recursive=True) == ["b", "empty", "f", "f/b", "f/e", "f/e/c"]
    file.write(f"{tree}/old", "old")
    file.rename(f"{tree}/b", f"{tree}/old")
    assert file.read(f"{tree}/old") == "aa"
    assert not file.exists(f"{tree}/b")


def test_copying_one_file(tree: str) -> None:
    file.copy(f"{tree}/a", f"{tree}/d/a", client_id="any")
    file.copy(f"{tree}/a", f"{tree}/d/b")
    file.copy(f"{tree}/a", f"{tree}/a")
    assert [file.read(f"{tree}/{name}") for name in ("a", "d/a", "d/b")] == ["aa"] * 3
    with pytest.raises(IsADirectoryError, match="copy_parallel copies directories"):
        file.copy(f"{tree}/d", f"{tree}/g")
    for target in ("d/", "d", "empty"):
        with pytest.raises(IsADirectoryError):
            file.copy(f"{tree}/a", f"{tree}/{target}")
    assert file.list_directory(tree, recursive=True, skip_dir=True) == ["a", "d/a", "d/b", "d/e/c"]


def test_appending_a_file_to_another(base: str) -> None:
    fill(base, one="1", two="2", nothing="")
    file.append_remote(f"{base}/one", f"{base}/two")
    assert (file.read(f"{base}/one"), file.read(f"{base}/two")) == ("1", "21")
    file.append_remote(f"{base}/two", f"{base}/new")
    file.append_remote(f"{base}/nothing", f"{base}/new")
    file.append_remote(f"{base}/new", f"{base}/new")
    assert file.read(f"{base}/new") == "2121"


def test_copying_a_tree_merges(tree: str) -> None:
    fill(tree, target__d__kept="k", target__d__b="old")
    file.copy_parallel(f"{tree}/d", f"{tree}/target/d", threads=4)
    assert file.list_directory(f"{tree}/target", recursive=True) == ["d", "d/b", "d/e", "d/e/c", "d/kept"]
    assert file.read(f"{tree}/target/d/b") == "bbb"
    file.copy_parallel(f"{tree}/empty", f"{tree}/empty2", is_processing=False, use_queue=False)
    assert file.is_directory(f"{tree}/empty2")
    file.copy_parallel(f"{tree}/d", f"{tree}/d")
    assert file.read(f"{tree}/d/e/c") == "c"


def test_copying_files_of_a_list(tree: str) -> None:
    file.copy_parallel(tree, f"{tree}-some", file_list=["d/e/c", "a"])
    assert file.list_directory(f"{tree}-some", recursive=True) == ["a", "d", "d/e", "d/e/c"]
    with pytest.raises(file.MoxFileNotExistsException, match="no"):
        file.copy_parallel(tree, f"{tree}-none", file_list=["no"])
    for names in (["../x"], ["/etc/passwd"], [""], "a"):
        with pytest.raises(UsageError, match="file_list"):
            file.copy_parallel(tree, f"{tree}-none", file_list=names)  # type: ignore[arg-type]
    for names in (None, ["x"]):
        with pytest.raises(file.MoxFileNotExistsException, match=r"/a' is a file; expected a directory"):
            file.copy_parallel(f"{tree}/a", f"{tree}-none", names)


def test_a_directory_can_be_copied_into_itself_but_not_over_itself(base: str) -> None:
    fill(base, d__b="1", d__d__b="2", d__d__d__b="3")
    file.copy_parallel(f"{base}/d", f"{base}/d/sub")
    assert file.read(f"{base}/d/sub/d/b") == "2"
    with pytest.raises(UsageError, match="would write over what is copied"):
        file.copy_parallel(f"{base}/d/d", f"{base}/d")
    assert file.read(f"{base}/d/b") == "1"


@pytest.mark.parametrize("direction", ["up", "down"])
def test_between_a_folder_and_the_store(direction: str, s3: str, tmp_path: Path) -> None:
    here, there = (str(tmp_path / "x"), f"{s3}/x") if direction == "up" else (f"{s3}/x", str(tmp_path / "x"))
    fill(here, a="aa", d__b="bbb")
    file.make_dirs(f"{here}/empty/e")
    file.copy_parallel(here, there)
    assert file.list_directory(there, recursive=True) == ["a", "d", "d/b", "empty", "empty/e"]
    file.copy(f"{here}/d/b", f"{there}/copy")
    file.append_remote(f"{here}/a", f"{there}/copy")
    assert file.read(f"{there}/copy") == "bbbaa"
    file.rename(f"{here}/a", f"{there}/moved")
    assert not file.exists(f"{here}/a")
    file.rename(f"{here}/d", f"{there}/moved.d")
    assert file.list_directory(here) == ["empty"]
    assert file.read(f"{there}/moved") + file.read(f"{there}/moved.d/b") == "aabbb"
