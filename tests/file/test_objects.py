"""What only a store of objects has: keys of any form, no directories, parts, other writers, settings and secrets."""

from __future__ import annotations

import io
import json
import os
import pickle
import subprocess
import sys
import threading
import uuid
import zipfile
from pathlib import Path
from typing import Any

import pytest

from moxserve import file
from moxserve.errors import DataError, UsageError
from moxserve.file import client, turns, writer
from moxserve.file import s3 as s3_module
from moxserve.file.filesystem import join

MIB = 1 << 20


# Keys


def test_directories_are_there_by_what_is_below(s3: str, raw: Any) -> None:
    raw.put("d/e/f")
    assert file.is_directory(f"{s3}/d")
    assert file.list_directory(s3, recursive=True) == ["d", "d/e", "d/e/f"]
    file.remove(f"{s3}/d/e/f")
    assert not file.exists(f"{s3}/d")
    file.make_dirs(f"{s3}/m/n")
    assert raw.keys() == ["m/n/"]
    assert file.list_directory(s3, recursive=True) == ["m", "m/n"]
    assert file.list_directory(f"{s3}/m/n") == []
    assert file.stat(f"{s3}/m/n").mtime_nsec > 0
    assert file.stat(f"{s3}/m").mtime_nsec == 0


def test_a_file_and_a_directory_of_one_name(s3: str, raw: Any, tmp_path: Path) -> None:
    for key in ("p", "p/x", "p/y/z"):
        raw.put(key, b"123")
    assert file.is_directory(f"{s3}/p")
    assert file.read(f"{s3}/p") == "123"
    assert not file.stat(f"{s3}/p").is_directory
    assert file.stat(f"{s3}/p/").is_directory
    assert (file.get_size(f"{s3}/p"), file.get_size(f"{s3}/p/"), file.get_size(f"{s3}/p/", recursive=True)) == (3, 3, 6)
    assert file.list_directory(s3) == ["p"]
    assert file.list_directory(s3, remove_sep=False) == ["p", "p/"]
    assert file.list_directory(s3, skip_dir=True) == file.list_directory(s3, skip_file=True) == ["p"]
    assert [(e.name, e.is_dir()) for e in file.scan_dir(s3)] == [("p", False), ("p", True)]
    assert next(file.walk(s3)) == (s3, ["p"], ["p"])
    with pytest.raises(file.MoxFileNameDuplicateException, match=r"one name below .*: p$"):
        file.copy_parallel(s3, str(tmp_path / "x"))
    assert not (tmp_path / "x").exists()
    file.copy_parallel(s3, f"{s3}-copy")
    assert file.list_directory(f"{s3}-copy", recursive=True, remove_sep=False) == ["p", "p/", "p/x", "p/y/", "p/y/z"]
    file.remove(f"{s3}/p", recursive=True)
    assert raw.keys() == ["p/x", "p/y/z"]
    raw.put("p")
    file.remove(f"{s3}/p/", recursive=True)
    assert raw.keys() == ["p"]


def test_what_is_in_the_way_of_a_download(s3: str, raw: Any, tmp_path: Path) -> None:
    for key in ("a", "b/c", "new"):
        raw.put(key)
    (tmp_path / "a").mkdir()
    (tmp_path / "b").write_text("here")
    with pytest.raises(file.MoxFileNameDuplicateException, match=r": a, b$"):
        file.copy_parallel(s3, str(tmp_path))
    with pytest.raises(file.MoxFileNameDuplicateException, match="is a file"):
        file.copy_parallel(s3, str(tmp_path / "b"))
    assert sorted(os.listdir(tmp_path)) == ["a", "b"]
    assert (tmp_path / "b").read_text() == "here"


def test_strange_keys(s3: str, raw: Any, tmp_path: Path) -> None:
    for key in ("a//b", "/c", "d/./e", "f/../g"):
        raw.put(key, key.encode())
    assert file.read(f"{s3}/a//b") == "a//b"
    assert file.read(f"{s3}//c") == "/c"
    assert file.list_directory(f"{s3}/a") == ["/"]
    names = file.list_directory(s3, recursive=True, skip_dir=True)
    assert names == ["/c", "a//b", "d/./e", "f/../g"]
    walked = [join(top, name) for top, _, files in file.walk(s3) for name in files]
    assert sorted(walked) == sorted(f"{s3}/{name}" for name in names)
    for url, error in ((f"{s3}/f", UsageError), (f"{s3}/a", file.MoxFileNameDuplicateException)):
        with pytest.raises(error):
            file.copy_parallel(url, str(tmp_path / "x" / "y"))
    assert not (tmp_path / "x").exists()
    file.copy_parallel(s3, f"{s3}-copy")
    assert file.list_directory(f"{s3}-copy", recursive=True, skip_dir=True) == names


def test_keys_that_no_request_to_remove_several_can_name(s3: str, raw: Any) -> None:
    for key in ("d/\x01", "d/a\x1fb", "d/plain", "d/tab\t"):
        raw.put(key)
    file.remove(f"{s3}/d", recursive=True)
    assert raw.keys() == []


def test_a_slash_more_is_another_directory(s3: str, raw: Any) -> None:
    raw.put("d//x", b"1")
    file.copy_parallel(f"{s3}/d//", f"{s3}/d")
    assert raw.keys() == ["d//x", "d/x"]
    with pytest.raises(UsageError, match="one is inside the other"):
        file.rename(f"{s3}/d//", f"{s3}/d")


def test_directories_one_in_another_by_the_hundred(s3: str, raw: Any) -> None:
    deep = "d/" * 500
    raw.put(f"{deep}f")
    assert file.glob(f"{s3}/**/f") == [f"{s3}/{deep}f"]
    assert len(file.glob(f"{s3}/**")) == 502
    assert len(list(file.walk(s3))) == 501
    assert len(file.list_directory(s3, recursive=True)) == 501


@pytest.mark.slow
def test_obs_is_the_same_store_with_its_own_settings(s3: str, raw: Any) -> None:
    obs = s3.replace("s3://", "obs://")
    file.write(f"{obs}/d/f", "x")
    assert file.read(f"{s3}/d/f") == "x"
    assert file.glob(f"{obs}/*/f") == [f"{obs}/d/f"]
    assert [top for top, _, _ in file.walk(obs)] == [obs, f"{obs}/d"]
    file.copy(f"{obs}/d/f", f"{s3}/g")
    file.rename(f"{obs}/d", f"{s3}/e")
    assert raw.keys() == ["e/f", "g"]


def test_what_pathlib_makes_of_a_url(s3: str) -> None:
    path = Path(s3) / "f"
    file.write(path, "x")
    assert file.read(path) == file.read(f"{s3}/f") == "x"


def test_the_root_of_a_bucket(own_bucket: str, tmp_path: Path) -> None:
    root = f"s3://{own_bucket}"
    assert file.exists(root)
    assert file.is_directory(f"{root}/")
    assert file.list_directory(root) == []
    assert file.get_size(root, recursive=True) == 0
    file.mk_dir(root)
    file.write(f"{root}/d/f", "abc")
    file.mk_dir(f"{root}/e")
    assert file.list_directory(f"{root}/", recursive=True) == ["d", "d/f", "e"]
    assert file.get_size(root, recursive=True) == 3
    assert file.glob(f"{root}/*") == [f"{root}/d", f"{root}/e"]
    assert file.glob(f"{root}/**/f") == [f"{root}/d/f"]
    assert [top for top, _, _ in file.walk(root)] == [root, f"{root}/d", f"{root}/e"]
    assert file.stat(root).is_directory
    file.copy_parallel(root, str(tmp_path / "x"))
    assert (tmp_path / "x/d/f").read_text() == "abc"
    file.remove(root)
    file.remove(root, recursive=True)
    assert file.list_directory(root) == []
    with pytest.raises(IsADirectoryError):
        file.write(root, "x")


def test_a_bucket_that_is_not_there(signed: Any, tmp_path: Path) -> None:
    root = f"s3://moxserve-{uuid.uuid4().hex}"
    assert not file.exists(root)
    assert not file.is_directory(f"{root}/d")
    assert file.glob(f"{root}/*") == []
    assert list(file.walk(root)) == []
    for call in (
        lambda: file.exists(f"{root}/k"),
        lambda: file.read(f"{root}/k"),
        lambda: file.write(f"{root}/k", "x"),
        lambda: file.list_directory(root),
        lambda: file.make_dirs(f"{root}/d"),
        lambda: file.copy_parallel(root, str(tmp_path)),
    ):
        with pytest.raises(file.MoxFileNotExistsException):
            call()


@pytest.mark.parametrize("url", ["s3://", "s3:///key", "obs://"])
def test_a_url_without_a_bucket(url: str, signed: Any) -> None:
    with pytest.raises(UsageError, match="BUCKET/KEY"):
        file.exists(url)


def test_a_key_that_is_no_utf_8(signed: Any) -> None:
    with pytest.raises(UsageError, match="keys are UTF-8"):
        file.exists(b"s3://bucket/\xff")


def test_pages_of_a_listing(s3: str, raw: Any) -> None:
    names = sorted(f"{letter}/{number}" for letter in "abc" for number in range(3))
    for name in names:
        raw.put(name)
    file.set_auth(list_max_keys=2)
    assert file.list_directory(s3, recursive=True, skip_dir=True) == names
    assert file.list_directory(s3) == ["a", "b", "c"]
    file.remove(s3, recursive=True)
    assert raw.keys() == []


# Streams


class _Watch:
    """Counts the requests of this process's clients."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.calls: list[tuple[str, dict[str, Any]]] = []
        self._store = client.store_of("s3", "s3://x").client
        events = self._store.meta.events
        events.register("provide-client-params.s3", self._note, unique_id="watch")
        self.stop = lambda: events.unregister("provide-client-params.s3", unique_id="watch")

    def _note(self, params: dict[str, Any], model: Any, **_: Any) -> None:
        self.calls.append((model.name, params))

    def names(self) -> list[str]:
        found = [name for name, _ in self.calls]
        self.calls.clear()
        return found


@pytest.fixture
def watch(signed: Any, monkeypatch: pytest.MonkeyPatch) -> Any:
    watching = _Watch(monkeypatch)
    yield watching
    watching.stop()


def test_without_a_buffer(s3: str, raw: Any) -> None:
    with file.File(f"{s3}/f", "wb", buffering=0) as f:
        f.write(b"one")
        f.flush()
        assert raw.get("f") == b"one"
        f.write(b"two")
    assert raw.get("f") == b"onetwo"
    with pytest.raises(UsageError, match="text needs a buffer"):
        file.File(f"{s3}/f", "w", buffering=0)
    with pytest.raises(UsageError, match="is binary and takes no encoding"):
        file.File(f"{s3}/f", "rb", encoding="utf-8")


def test_requests_are_few(s3: str, raw: Any, watch: Any) -> None:
    raw.put("d/f", b"abc")
    file.read(f"{s3}/d/f")
    assert watch.names() == ["GetObject"]
    file.write(f"{s3}/d/f", "x")
    assert watch.names() == ["PutObject"]
    assert file.exists(f"{s3}/d/f")
    assert watch.names() == ["HeadObject"]
    assert file.is_directory(f"{s3}/d")
    file.list_directory(s3, recursive=True)
    list(file.walk(s3))
    assert watch.names() == ["ListObjectsV2"] * 3
    file.copy(f"{s3}/d/f", f"{s3}/g")
    assert watch.names() == ["ListObjectsV2", "HeadObject", "CopyObject"]
    with file.File(f"{s3}/g", "rb+") as f:
        f.read()
    assert "PutObject" not in watch.names()


def test_reading_here_and_there_sends_few_and_short_requests(s3: str, raw: Any, watch: Any) -> None:
    data = os.urandom(6 * MIB)
    raw.put("big", data)
    with file.File(f"{s3}/big", "rb") as f:
        assert f.read(10) == data[:10]
        f.seek(700_000)  # near: reads on
        assert f.read(10) == data[700_000:700_010]
        assert watch.names() == ["GetObject"]
        f.seek(-10, 2)
        assert f.read() == data[-10:]
        f.seek(3 * MIB)
        assert f.read(5) == data[3 * MIB : 3 * MIB + 5]
        ranges = [params.get("Range") for _, params in watch.calls]
        assert ranges == [f"bytes={6 * MIB - 10}-{6 * MIB - 1}", f"bytes={3 * MIB}-{4 * MIB - 1}"]
        f.seek(0)
        assert f.read() == data
        assert f.size() == len(data)


MEMORY = """
import sys
from moxserve import file

def peak():
    return int(next(line for line in open("/proc/self/status") if line.startswith("VmHWM")).split()[1]) >> 10

url, local = sys.argv[1:]
file.write(url, "warm")
file.copy(url, local)
before = peak()
with file.File(url, "wb") as f:
    for _ in range(96):
        f.write(bytes(1 << 20))
assert file.get_size(url) == 96 << 20
with file.File(url, "rb") as f:
    while f.read(1 << 16):
        pass
file.copy(url, local)
file.copy(local, url)
file.append(url, "tail")
with file.File(url, "rb+") as f:
    f.write(b"head")
print(peak() - before)
"""


@pytest.mark.slow
@pytest.mark.skipif(not os.path.exists("/proc/self/status"), reason="needs /proc to measure memory")
def test_large_objects_need_little_memory(s3: str, raw: Any, tmp_path: Path) -> None:
    command = [sys.executable, "-c", MEMORY, f"{s3}/big", str(tmp_path / "big")]
    run = subprocess.run(command, capture_output=True, text=True, timeout=280, check=True)
    assert int(run.stdout) < 80  # who holds the object needs 96, and who does not 40, by the allocator
    assert raw.head("big")["ContentLength"] == (96 << 20) + 4


def test_an_object_that_is_replaced_while_it_is_read(s3: str, raw: Any) -> None:
    raw.put("f", bytes(4 * MIB))
    with file.File(f"{s3}/f", "rb") as f:
        f.read(1)
        raw.put("f", b"other" * MIB)
        f.seek(-1, 2)
        with pytest.raises(file.MoxFileReadException, match="was replaced while it was read") as raised:
            f.read()
    assert raised.value.resp.status == 412


@pytest.mark.slow
def test_parts_of_large_objects(s3: str, raw: Any, monkeypatch: pytest.MonkeyPatch, watch: Any, tmp_path: Path) -> None:
    monkeypatch.setattr(s3_module, "_PART_BYTES", 5 * MIB)
    data = os.urandom(11 * MIB)
    with file.File(f"{s3}/big", "wb") as f:
        for first in range(0, len(data), MIB):
            f.write(data[first : first + MIB])
        assert raw.keys() == []
        f.seek(0)
        f.write(b"HEAD")
    data = b"HEAD" + data[4:]
    assert raw.get("big") == data
    assert watch.names().count("UploadPart") == 3
    # Appending sends what is new; the store copies the rest.
    file.append(f"{s3}/big", b"tail")
    sent = [params for name, params in watch.calls if name == "UploadPart"]
    assert len(sent) == 1
    assert "UploadPartCopy" in watch.names()
    assert raw.get("big") == data + b"tail"
    with file.File(f"{s3}/big", "ab+") as f:
        f.write(b"!")
        f.flush()
        f.write(b"?")
    assert raw.get("big") == data + b"tail!?"
    file.copy(f"{s3}/big", str(tmp_path / "big"))
    file.copy(str(tmp_path / "big"), f"{s3}/again")
    assert raw.get("again") == data + b"tail!?"
    assert raw.uploads() == []


@pytest.mark.slow
def test_appending_large_objects_to_each_other(s3: str, raw: Any, monkeypatch: pytest.MonkeyPatch, watch: Any) -> None:
    monkeypatch.setattr(s3_module, "_COPY_BYTES", 8 * MIB)
    big, small = os.urandom(9 * MIB), b"small"
    raw.put("big", big)
    raw.put("small", small)
    file.append_remote(f"{s3}/big", f"{s3}/small")
    assert raw.get("small") == small + big
    file.append_remote(f"{s3}/big", f"{s3}/small")
    assert raw.get("small") == small + big + big
    watch.names()
    file.copy(f"{s3}/big", f"{s3}/copy")
    assert "CopyObject" not in watch.names()
    assert raw.get("copy") == big


def test_what_an_object_is_stays_when_it_is_extended(s3: str, raw: Any) -> None:
    raw.put("f", b"1", ContentType="text/csv", Metadata={"owner": "me"})
    file.append(f"{s3}/f", "2")
    with file.File(f"{s3}/f", "r+") as f:
        f.seek(0, 2)
        f.write("3")
    found = raw.head("f")
    assert (found["ContentType"], found["Metadata"]["owner"]) == ("text/csv", "me")
    assert raw.get("f") == b"123"


@pytest.mark.slow
def test_those_who_append_at_once_lose_nothing(s3: str, raw: Any) -> None:
    file.set_auth(retry_wait=0.01)
    threads = [threading.Thread(target=file.append, args=(f"{s3}/f", f"{n}\n")) for n in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(raw.get("f").split()) == [b"%d" % n for n in range(6)]


FORKED = """
import os, sys, threading, time
from moxserve import file

url, done = sys.argv[1], threading.Event()
file.append(url, "first\\n")

def work():
    while True:
        file.append(url, "parent\\n")
        if done.wait(0.01):
            return

thread = threading.Thread(target=work, daemon=True)
thread.start()
for number in range(3):
    child = os.fork()
    if not child:
        file.append(url, f"child {number}\\n")
        os._exit(0)
    end = time.monotonic() + 80
    while not os.waitpid(child, os.WNOHANG)[0]:
        if time.monotonic() > end:
            os.kill(child, 9)
            sys.exit("a child waits for a thread that it does not have")
        time.sleep(0.01)
done.set()
thread.join()
print(file.read(url))
"""


@pytest.mark.parametrize("name", ["f", "g"])
def test_who_appends_in_the_middle_of_an_append_does_not_wait_for_himself(
    name: str, s3: str, raw: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(turns, "_COUNT", 1)
    once = writer._append_once
    left = [1]

    def interrupted(*args: Any) -> int:
        if left:  # as a signal's handler, or one of a log, does
            left.clear()
            file.append(f"{s3}/{name}", "handler ")
        return once(*args)

    monkeypatch.setattr(writer, "_append_once", interrupted)
    thread = threading.Thread(target=file.append, args=(f"{s3}/f", "all"), daemon=True)
    thread.start()
    thread.join(100)
    assert not thread.is_alive()
    assert raw.get("f") == (b"handler all" if name == "f" else b"all")


@pytest.mark.slow
def test_a_process_that_is_forked_while_others_append(s3: str, raw: Any) -> None:
    command = [sys.executable, "-W", "ignore", "-c", FORKED, f"{s3}/log"]
    run = subprocess.run(command, capture_output=True, text=True, timeout=280, check=False)
    assert run.returncode == 0, run.stderr
    assert {"first", "parent", "child 0", "child 1", "child 2"} == set(run.stdout.split("\n")) - {""}


@pytest.mark.parametrize("mode", ["r+", "a+"])
def test_a_change_by_somebody_else_is_not_written_over(mode: str, s3: str, raw: Any) -> None:
    raw.put("f", b"mine")
    f = file.File(f"{s3}/f", mode)
    f.write("changed")
    raw.put("f", b"theirs")
    with pytest.raises(file.MoxFileRespException) as raised:
        f.close()
    assert raised.value.resp.status == 412
    assert f.closed
    assert raw.get("f") == b"theirs"


def test_libraries_write_and_read_through_it(s3: str) -> None:
    import gzip

    import numpy as np

    with file.File(f"{s3}/z", "wb") as f, zipfile.ZipFile(f, "w") as archive:
        archive.writestr("a", "content")
    with file.File(f"{s3}/z", "rb") as f, zipfile.ZipFile(f) as archive:
        assert archive.read("a") == b"content"
    with file.File(f"{s3}/p", "wb") as f:
        pickle.dump({"a": 1}, f)
    with file.File(f"{s3}/p", "rb") as f:
        assert pickle.load(f) == {"a": 1}
    with file.File(f"{s3}/j", "w") as f:
        json.dump([1], f)
    with file.File(f"{s3}/j") as f:
        assert json.load(f) == [1]
    with file.File(f"{s3}/n", "wb") as f:
        np.save(f, np.arange(5))
    with file.File(f"{s3}/n", "rb") as f:
        assert np.load(f).tolist() == [0, 1, 2, 3, 4]
    with file.File(f"{s3}/g", "wb") as f, gzip.open(f, "wt") as text:
        text.write("packed")
    with file.File(f"{s3}/g", "rb") as f, gzip.open(f, "rt") as text:
        assert text.read() == "packed"
    with io.TextIOWrapper(file.File(f"{s3}/j", "rb")) as text:  # type: ignore[arg-type]
        assert text.read() == "[1]"


@pytest.mark.slow
def test_pandas_by_the_document(s3: str) -> None:
    pd = pytest.importorskip("pandas")
    with file.File(f"{s3}/b.txt", "w") as f:
        pd.DataFrame({"col1": [1, 2], "col2": [3, 4]}).to_csv(f)
    with file.File(f"{s3}/b.txt", "r") as f:
        assert pd.read_csv(f)["col2"].tolist() == [3, 4]


LOGGING = """
import logging, sys
from moxserve import file

stream = file.File(sys.argv[1], "w")
logging.basicConfig(level=logging.DEBUG, stream=stream)
for n in range(3):
    logging.info("hello world %d", n)
stream.flush()
assert file.read(sys.argv[1]).count("hello world") == 3
logging.info("bye")
stream.close()
logging.getLogger().handlers.clear()
print(file.read(sys.argv[1]), end="")
"""


@pytest.mark.slow
def test_logging_by_the_document(s3: str, signed: Any) -> None:
    """With the level of the whole program at DEBUG: the log of an upload must not be written to what is uploaded."""
    command = [sys.executable, "-c", LOGGING, f"{s3}/sub_dir_0/log.txt"]
    run = subprocess.run(command, capture_output=True, text=True, timeout=200, check=True)
    assert run.stdout.splitlines() == [*(f"INFO:root:hello world {n}" for n in range(3)), "INFO:root:bye"]


# Moving


def test_a_directory_is_not_moved_into_itself(s3: str, raw: Any) -> None:
    raw.put("d/e/f")
    for source, target in (("d", "d/x"), ("d/e", "d"), ("d", "")):
        with pytest.raises(UsageError, match="one is inside the other"):
            file.rename(f"{s3}/{source}", f"{s3}/{target}".rstrip("/"))
    assert raw.keys() == ["d/e/f"]


def test_a_move_that_fails_keeps_the_source(s3: str, raw: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    for key in ("d/a", "d/b", "d/c"):
        raw.put(key)
    real = s3_module.Bucket.copy_from

    def fail(self: Any, other: Any, source: str, target: str) -> None:
        if source.endswith("/b"):
            raise DataError("no")
        real(self, other, source, target)

    monkeypatch.setattr(s3_module.Bucket, "copy_from", fail)
    with pytest.raises(DataError):
        file.rename(f"{s3}/d", f"{s3}/e")
    assert sorted(key for key in set(raw.keys()) if key.startswith("d/")) == ["d/a", "d/b", "d/c"]


def test_a_move_up_removes_what_was_copied(s3: str, raw: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    source, elsewhere = tmp_path / "d", tmp_path / "elsewhere"
    (source / "sub").mkdir(parents=True)
    elsewhere.mkdir()
    for path in (source / "a", source / "sub/b", elsewhere / "c"):
        path.write_text(path.name)
    (source / "link").symlink_to(elsewhere)
    (source / "file-link").symlink_to(elsewhere / "c")
    real = s3_module.Bucket.upload

    def upload(self: Any, path: str, key: str) -> None:
        (source / "sub" / "late").write_text("late")
        real(self, path, key)

    monkeypatch.setattr(s3_module.Bucket, "upload", upload)
    file.rename(str(source), f"{s3}/d")
    assert raw.keys() == ["d/a", "d/file-link", "d/link/c", "d/sub/b"]
    assert file.list_directory(str(tmp_path), recursive=True) == [
        "d",
        "d/sub",
        "d/sub/late",
        "elsewhere",
        "elsewhere/c",
    ]
    file.rename(f"{source}/", f"{s3}/e")
    assert not source.exists()


def test_a_file_is_not_put_beside_a_directory(s3: str, raw: Any, tmp_path: Path) -> None:
    """Who names a directory as the target means what is in it; a download of both would clash."""
    for key in ("f", "d/x", "both", "both/x"):
        raw.put(key, key.encode())
    (tmp_path / "here").write_text("here")
    for call in (file.copy, file.rename):
        for source in (f"{s3}/f", str(tmp_path / "here")):
            with pytest.raises(IsADirectoryError, match="expected the name of the new file"):
                call(source, f"{s3}/d")
            with pytest.raises(FileNotFoundError):
                call(f"{source}-missing", f"{s3}/d")
    file.copy(f"{s3}/f", f"{s3}/both")
    assert raw.get("both") == b"f"
    file.rename(f"{s3}/d", f"{s3}/both")
    assert raw.keys() == ["both", "both/x", "f"]


def test_a_move_removes_what_is_there_and_asks_for_no_more(store: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("d/a", "d/x/b", "d/y/", "d/", "f", "e//f"):
        store.write(f"team/digits/{name}")
    asked: list[str] = []
    store.before = lambda method, path, _query: asked.append(f"{method} {path.rpartition('/')[2]}")
    file.rename(f"{store.base}/f", f"{store.base}/g")
    assert asked[1:] == ["HEAD f", "HEAD f", "PUT g", "DELETE f"]  # after a look whether g is a directory
    file.rename(f"{store.base}/e//f", f"{store.base}/h")
    gone: list[list[str]] = []
    delete = s3_module.Bucket.delete
    monkeypatch.setattr(s3_module.Bucket, "delete", lambda self, keys: (gone.append(keys), delete(self, keys)))
    file.rename(f"{store.base}/d", f"{store.base}/moved")
    assert gone == [[f"team/digits/{name}" for name in ("d/", "d/a", "d/x/b", "d/y/")]]
    assert store.listed() == [f"team/digits/{name}" for name in ("g", "h", "moved/a", "moved/x/b", "moved/y/")]


def test_a_move_takes_file_or_directory(s3: str, raw: Any) -> None:
    raw.put("p", b"file")
    raw.put("p/x", b"below")
    file.rename(f"{s3}/p", f"{s3}/q")
    assert raw.keys() == ["p/x", "q"]
    file.rename(f"{s3}/p/", f"{s3}/r")
    assert raw.keys() == ["q", "r/x"]


@pytest.mark.slow
def test_copies_between_two_stores_go_through_here(s3: str, raw: Any, proxy: Any, monkeypatch: Any) -> None:
    """obs:// and s3:// with endpoints of their own are different stores, as far as one can know."""
    raw.put("d/f", b"x" * 100)
    monkeypatch.setenv("OBS_ENDPOINT", os.environ["AWS_ENDPOINT_URL"].replace("127.0.0.1", "localhost"))
    file.copy_parallel(f"{s3}/d", s3.replace("s3://", "obs://") + "/e")
    assert raw.get("e/f") == b"x" * 100
    assert proxy.count("GET", "/d/f") == proxy.count("PUT", "/e/f") == 1


def test_what_two_schemes_lead_to_is_one_object(
    s3: str, raw: Any, signed: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OBS_ENDPOINT", signed.endpoint)
    monkeypatch.setenv("OBS_REGION", "other")  # other settings, the same store
    obs = s3.replace("s3://", "obs://")
    raw.put("f", b"1")
    raw.put("d/g", b"2")
    file.rename(f"{s3}/f", f"{obs}/f")
    file.copy(f"{s3}/f", f"{obs}/f")
    file.rename(f"{s3}/d", f"{obs}/d")
    with pytest.raises(UsageError, match="inside the other"):
        file.rename(f"{s3}/d", f"{obs}/d/e")
    keys = raw.keys()
    assert [raw.get(key) for key in keys] == [b"2", b"1"]


def test_nothing_is_moved_between_two_addresses_of_one_bucket(
    s3: str, raw: Any, signed: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OBS_ENDPOINT", signed.endpoint.replace("127.0.0.1", "localhost"))
    obs = s3.replace("s3://", "obs://")
    raw.put("f", b"1")
    raw.put("d/g", b"2")
    for name in ("f", "d", "none"):
        with pytest.raises(UsageError, match="one bucket under two addresses"):
            file.rename(f"{s3}/{name}", f"{obs}/{name}")
    assert raw.keys() == ["d/g", "f"]
    file.copy(f"{s3}/f", f"{obs}/f")
    assert raw.get("f") == b"1"
