"""A network and a store that fail: what is asked for succeeds after some attempts, or says why not; never short."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from moxserve import file
from moxserve.errors import DataError
from moxserve.file import s3 as s3_module

MIB = 1 << 20
RESET = ("reset",)
LOSE = ("lose",)
HANG = ("hang", 3)
BURSTS = [("status", code) for code in (429, 500, 502, 503, 504)]
PATIENCE = 4  # attempts, by the fixture


def _name(fault: Any) -> str:
    return "-".join(map(str, fault))


def _impatient() -> None:
    """What hangs is given up soon; and there are attempts left where a busy machine is late with what does not."""
    file.set_auth(client_timeout=1, retry=30)


# Each operation, what it sends, and whether it did what it should

Operation = tuple[str, str, Callable[[str, Any], None]]


def _check_read(s3: str, raw: Any) -> None:
    assert file.read(f"{s3}/old") == "old" * 1000


def _check_write(s3: str, raw: Any) -> None:
    file.write(f"{s3}/new", "new")
    assert raw.get("new") == b"new"


def _check_append(s3: str, raw: Any) -> None:
    file.append(f"{s3}/old", "tail")
    assert raw.get("old") == b"old" * 1000 + b"tail"


def _check_new_log(s3: str, raw: Any) -> None:
    file.append(f"{s3}/log", "first")
    assert raw.get("log") == b"first"


def _check_change(s3: str, raw: Any) -> None:
    with file.File(f"{s3}/old", "r+") as f:
        f.write("OLD")
    assert raw.get("old") == b"OLD" + b"old" * 999


def _check_list(s3: str, raw: Any) -> None:
    assert file.list_directory(s3) == ["dir", "old"]


def _check_exists(s3: str, raw: Any) -> None:
    assert file.exists(f"{s3}/old")


def _check_copy(s3: str, raw: Any) -> None:
    file.copy(f"{s3}/old", f"{s3}/new")
    assert raw.get("new") == b"old" * 1000


def _check_rename(s3: str, raw: Any) -> None:
    file.rename(f"{s3}/dir", f"{s3}/moved")
    assert raw.keys() == ["moved/x", "old"]


def _check_remove(s3: str, raw: Any) -> None:
    file.remove(f"{s3}/dir", recursive=True)
    assert raw.keys() == ["old"]


def _check_remove_several(s3: str, raw: Any) -> None:
    raw.put("dir/y")
    _check_remove(s3, raw)


OPERATIONS = [
    ("GET", "/old", _check_read),
    ("PUT", "/new", _check_write),
    ("PUT", "/old", _check_append),
    ("PUT", "/log", _check_new_log),
    ("PUT", "/old", _check_change),
    ("GET", "list-type", _check_list),
    ("HEAD", "/old", _check_exists),
    ("PUT", "/new", _check_copy),
    ("PUT", "/moved", _check_rename),
    ("DELETE", "/dir", _check_remove),
    ("POST", "delete", _check_remove_several),
]
_IDS = [check.__name__.removeprefix("_check_") for _, _, check in OPERATIONS]


@pytest.fixture
def some(raw: Any) -> Any:
    raw.put("old", b"old" * 1000)
    raw.put("dir/x")
    return raw


@pytest.mark.parametrize("fault", [LOSE, pytest.param(("status", 503), marks=pytest.mark.slow)], ids=_name)
@pytest.mark.parametrize("operation", OPERATIONS, ids=_IDS)
def test_two_failures_are_survived(operation: Operation, fault: Any, proxy: Any, s3: str, some: Any) -> None:
    method, path, check = operation
    proxy.first(2, fault, method, path)
    check(s3, some)
    assert proxy.count(method, path) >= 3


@pytest.mark.slow
@pytest.mark.parametrize("fault", [*BURSTS, RESET, HANG, ("end", 0), ("end", 60), ("cut", 0)], ids=_name)
@pytest.mark.parametrize("operation", OPERATIONS, ids=_IDS)
def test_more_failures_are_survived(operation: Operation, fault: Any, proxy: Any, s3: str, some: Any) -> None:
    method, path, check = operation
    if method in ("HEAD", "DELETE") and fault[0] in ("cut", "end"):
        pytest.skip(f"an answer to {method} has no body")
    if fault == HANG:
        _impatient()
    proxy.first(2, fault, method, path)
    check(s3, some)
    assert proxy.count(method, path) >= (1 if method == "PUT" and fault[0] in ("cut", "end") else 3)


@pytest.mark.slow
def test_a_429_is_tried_again_after_the_time_it_asks_for(proxy: Any, s3: str, some: Any) -> None:
    proxy.first(1, ("status", 429, "Retry-After: 1\r\n"), "GET", "/old")
    started = time.monotonic()
    _check_read(s3, some)
    assert time.monotonic() - started >= 1


@pytest.mark.parametrize("fault", [RESET, ("status", 429), ("status", 503)], ids=_name)
@pytest.mark.parametrize("operation", [OPERATIONS[0], OPERATIONS[1], OPERATIONS[5]], ids=["read", "write", "list"])
def test_a_store_that_fails_for_good_is_told(operation: Operation, fault: Any, proxy: Any, s3: str, some: Any) -> None:
    method, path, check = operation
    proxy.first(1000, fault, method, path)
    with pytest.raises(file.MoxFileRespException, match=r"s3://.*") as raised:
        check(s3, some)
    assert raised.value.resp.status == (0 if fault == RESET else fault[1])
    assert isinstance(raised.value, OSError)
    assert proxy.count(method, path) == PATIENCE
    assert some.keys() == ["dir/x", "old"]


@pytest.mark.slow
def test_the_number_of_attempts_is_what_set_auth_says(proxy: Any, s3: str, some: Any) -> None:
    file.set_auth(retry=2)
    proxy.first(1000, ("status", 500), "GET", "/old")
    with pytest.raises(file.MoxFileRespException):
        file.read(f"{s3}/old")
    assert proxy.count("GET", "/old") == 2


# Bodies


@pytest.mark.parametrize(
    "fault",
    [("end", 70_000), *(pytest.param(x, marks=pytest.mark.slow) for x in [("cut", 70_000), ("cut", 0), ("end", 1)])],
    ids=_name,
)
def test_a_body_that_breaks_midway_is_gone_on_with(fault: Any, proxy: Any, s3: str, raw: Any, tmp_path: Path) -> None:
    data = os.urandom(300_000)
    raw.put("f", data)
    proxy.first(3, fault, "GET", "/f")
    assert file.read(f"{s3}/f", binary=True) == data
    ranges = [headers.get("range") for (method, path), headers in zip(proxy.calls, proxy.headers, strict=True)]
    assert ranges[0] is None
    assert all(asked and asked.startswith("bytes=") for asked in ranges[1:])
    assert all(headers.get("if-match") == raw.head("f")["ETag"] for headers in proxy.headers[1:])
    if fault[0] == "end":
        assert ranges[1:] == [f"bytes={fault[1] * n}-299999" for n in (1, 2, 3)]
    proxy.first(3, fault, "GET", "/f")
    file.copy(f"{s3}/f", str(tmp_path / "f"))
    assert (tmp_path / "f").read_bytes() == data
    proxy.first(2, fault, "GET", "/f")
    with file.File(f"{s3}/f", "rb") as f:
        f.seek(100_000)
        assert f.read(10) == data[100_000:100_010]
        assert f.read() == data[100_010:]


@pytest.mark.parametrize("fault", [pytest.param(("cut", 0), marks=pytest.mark.slow), ("end", 0)], ids=_name)
def test_a_body_that_never_comes_is_told_and_leaves_nothing(
    fault: Any, proxy: Any, s3: str, raw: Any, tmp_path: Path
) -> None:
    raw.put("d/f", bytes(1000))
    (tmp_path / "old").write_text("old")
    proxy.first(1000, fault, "GET", "/f")
    for call in (
        lambda: file.read(f"{s3}/d/f"),
        lambda: file.copy(f"{s3}/d/f", str(tmp_path / "old")),
        lambda: file.copy_parallel(f"{s3}/d", str(tmp_path / "d")),
    ):
        proxy.calls.clear()
        with pytest.raises(file.MoxFileReadException, match="only 0 of 1000 bytes came") as raised:
            call()
        assert raised.value.resp.status == 200
        assert PATIENCE <= proxy.count("GET", "/f") <= PATIENCE + 1
    assert (tmp_path / "old").read_text() == "old"
    assert os.listdir(tmp_path / "d") == []


@pytest.mark.slow
def test_a_slow_body_is_waited_for(proxy: Any, s3: str, raw: Any) -> None:
    file.set_auth(client_timeout=4)  # all of it takes longer, no piece does
    raw.put("f", bytes(1000))
    proxy.first(1, ("slow", 0.45), "GET", "/f")
    assert file.read(f"{s3}/f", binary=True) == bytes(1000)
    assert proxy.count("GET", "/f") == 1


@pytest.mark.slow
def test_a_store_that_hangs_is_given_up(proxy: Any, s3: str, raw: Any) -> None:
    file.set_auth(client_timeout=0.4)
    raw.put("f")
    proxy.first(1000, ("hang", 1000))  # who waits for it, waits longer than a test may
    with pytest.raises(file.MoxFileRespException, match="cannot be reached"):
        file.read(f"{s3}/f")
    with pytest.raises(file.MoxFileRespException, match="cannot be reached"):
        file.write(f"{s3}/f", "new")
    assert raw.get("f") == b"x"


def test_a_broken_listing_is_asked_for_again(proxy: Any, s3: str, raw: Any) -> None:
    for n in range(5):
        raw.put(f"{n}")
    proxy.first(2, ("cut", 100), "GET", "list-type")
    assert file.list_directory(s3) == ["0", "1", "2", "3", "4"]


# Lost answers, parts


@pytest.mark.parametrize("mode", ["append", "a", "r+", "w"])
def test_what_was_written_before_the_answer_got_lost_is_not_written_twice(
    mode: str, proxy: Any, s3: str, raw: Any
) -> None:
    raw.put("f", b"1")
    proxy.first(1, LOSE, "PUT", "/f")
    if mode == "append":
        file.append(f"{s3}/f", "2")
    else:
        with file.File(f"{s3}/f", mode) as f:
            f.seek(0, 2)
            f.write("2")
            f.flush()
            f.write("3")
    assert raw.get("f") == {"append": b"12", "w": b"23"}.get(mode, b"123")


# Stores that lack something


def _without(*names: str) -> Callable[[str, str, dict[str, str]], Any]:
    """A store that does not know some headers of a PUT."""

    def fault(method: str, path: str, headers: dict[str, str]) -> Any:
        return ("status", 501, "", "NotImplemented") if method == "PUT" and set(names) & set(headers) else None

    return fault


def test_a_store_without_conditions(proxy: Any, s3: str, raw: Any) -> None:
    proxy.fault = _without("if-match", "if-none-match")
    file.append(f"{s3}/f", "1")
    file.append(f"{s3}/f", "2")
    with file.File(f"{s3}/f", "r+") as f:
        f.write("0")
    assert raw.get("f") == b"02"
    file.append(f"{s3}/f", bytes(2 * MIB))  # read from a file, and sent twice
    assert raw.get("f") == b"02" + bytes(2 * MIB)
    f = file.File(f"{s3}/f", "r+")
    f.write("mine")
    raw.put("f", b"theirs")
    with pytest.raises(file.MoxFileRespException, match="has changed since it was read") as raised:
        f.close()
    assert raised.value.resp.status == 412
    assert raw.get("f") == b"theirs"


APPENDS = """
import sys
from moxserve import file
for n in range(8):
    file.append(sys.argv[1], f"{sys.argv[2]}{n} ")
"""


@pytest.mark.slow
def test_processes_that_append_to_a_store_without_conditions_take_turns(
    proxy: Any, s3: str, raw: Any, tmp_path: Path, monkeypatch: Any
) -> None:
    monkeypatch.setenv("MOXSERVE_CACHE", str(tmp_path))
    proxy.fault = _without("if-match", "if-none-match")
    raw.put("f", b"")
    started = [subprocess.Popen([sys.executable, "-c", APPENDS, f"{s3}/f", name]) for name in "ab"]
    try:
        assert [process.wait(120) for process in started] == [0, 0]
    finally:
        for process in started:
            process.kill()
    assert sorted(raw.get("f").decode().split()) == [f"{name}{n}" for name in "ab" for n in range(8)]


def test_appending_needs_no_place_to_write(s3: str, raw: Any, tmp_path: Path, monkeypatch: Any) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setenv("MOXSERVE_CACHE", str(tmp_path / "file"))
    file.append(f"{s3}/f", "1")
    file.append(f"{s3}/f", "2")
    assert raw.get("f") == b"12"


@pytest.mark.slow
def test_a_store_that_copies_nothing(proxy: Any, s3: str, raw: Any) -> None:
    proxy.fault = _without("x-amz-copy-source")
    data = os.urandom(6 * MIB)
    raw.put("big", data, Metadata={"owner": "me"})
    file.copy(f"{s3}/big", f"{s3}/copy")
    assert (raw.get("copy"), raw.head("copy")["Metadata"]["owner"]) == (data, "me")
    file.append(f"{s3}/copy", "tail")
    assert raw.get("copy") == data + b"tail"
    file.append_remote(f"{s3}/copy", f"{s3}/big")
    assert raw.get("big") == data + data + b"tail"
    assert raw.uploads() == []


def test_a_store_that_knows_no_ranges(proxy: Any, s3: str, raw: Any) -> None:
    data = os.urandom(3 * MIB)
    raw.put("f", data)
    etag = raw.head("f")["ETag"]

    def fault(method: str, path: str, headers: dict[str, str]) -> Any:
        return ("all", data, etag) if "range" in headers else ("end", MIB)

    proxy.fault = fault
    assert file.read(f"{s3}/f", binary=True) == data
    with file.File(f"{s3}/f", "rb") as f:
        f.seek(-5, 2)
        assert f.read() == data[-5:]


PARTS = [("POST", "uploads"), ("PUT", "partNumber"), ("POST", "uploadId")]


@pytest.mark.slow
@pytest.mark.parametrize("fault", [RESET, LOSE, ("status", 503), ("status", 429)], ids=_name)
@pytest.mark.parametrize(("method", "path"), PARTS, ids=["create", "part", "complete"])
def test_uploads_in_parts_survive(
    method: str, path: str, fault: Any, proxy: Any, s3: str, raw: Any, monkeypatch: Any
) -> None:
    monkeypatch.setattr(s3_module, "_PART_BYTES", 5 * MIB)
    data = os.urandom(6 * MIB)
    proxy.first(2, fault, method, path)
    file.write(f"{s3}/big", data)
    proxy.first(1, fault, method, path)
    file.append(f"{s3}/big", "tail")
    assert raw.get("big") == data + b"tail"


@pytest.mark.slow
def test_an_upload_that_fails_leaves_nothing(proxy: Any, s3: str, raw: Any, monkeypatch: Any, tmp_path: Path) -> None:
    monkeypatch.setattr(s3_module, "_PART_BYTES", 5 * MIB)
    raw.put("big", b"old")
    (tmp_path / "big").write_bytes(bytes(11 * MIB))
    proxy.first(1000, ("status", 500), "PUT", "partNumber=2")
    with pytest.raises(file.MoxFileRespException):
        file.copy(str(tmp_path / "big"), f"{s3}/big")
    assert raw.get("big") == b"old"
    assert raw.uploads() == []


KILLED = """
import os, signal, sys
from moxserve import file
from moxserve.file import multipart, s3

s3._PART_BYTES = 5 << 20
real = multipart.Upload._send

def send(self, number, part):
    if number == 2:
        os.kill(os.getpid(), signal.SIGKILL)
    return real(self, number, part)

multipart.Upload._send = send
with file.File(sys.argv[1], "wb") as f:
    f.write(bytes(11 << 20))
"""


@pytest.mark.slow
def test_a_killed_upload_shows_nothing(s3: str, raw: Any) -> None:
    raw.put("big", b"old")
    run = subprocess.run([sys.executable, "-c", KILLED, f"{s3}/big"], check=False, timeout=200)
    assert run.returncode == -signal.SIGKILL
    assert raw.get("big") == b"old"
    assert raw.keys() == ["big"]


def test_a_file_that_becomes_shorter_while_it_is_uploaded(
    proxy: Any, s3: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "f"
    path.write_bytes(bytes(2 << 20))
    size = os.path.getsize

    def shorter(name: str) -> int:
        found = size(name)
        os.truncate(name, 1000)
        return found

    with monkeypatch.context() as patched:
        patched.setattr(os.path, "getsize", shorter)
        with pytest.raises(DataError, match=rf"{s3}/f: the file became shorter"):
            file.copy(path, f"{s3}/f")
    assert proxy.count("PUT") == 0
    assert not file.exists(f"{s3}/f")


def test_a_copy_that_fails_does_not_wait_for_what_is_in_hand(proxy: Any, s3: str, raw: Any, tmp_path: Path) -> None:
    raw.put("bad")
    raw.put("slow", bytes(3 << 20))

    def fault(method: str, path: str, headers: dict[str, str]) -> Any:
        if path.endswith("/slow"):
            return ("slow", 0.6)  # six seconds in all, of which it gets two or three pieces
        return ("status", 403) if path.endswith("/bad") else None

    proxy.fault = fault
    with pytest.raises(file.MoxFilePermissionException):
        file.copy_parallel(s3, tmp_path / "down", threads=2)
    assert os.listdir(tmp_path / "down") == []
