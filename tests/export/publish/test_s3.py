"""Versions in a bucket: complete or not there, whatever goes wrong."""

from __future__ import annotations

import base64
import hashlib
import os
import signal
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import pytest

from moxserve.errors import DataError, ExportError, MoxserveError, UsageError, VersionExistsError
from moxserve.export.publish import (
    check_version,
    list_versions,
    next_version,
    open_publication,
    version_path,
)
from moxserve.file.atomic import TEMP_PREFIX, temp_name

_FAILED = (
    "500 Internal Server Error",
    [("Content-Type", "application/xml")],
    b"<Error><Code>InternalError</Code></Error>",
)
_DENIED = ("403 Forbidden", [("Content-Type", "application/xml")], b"<Error><Code>AccessDenied</Code></Error>")


def publish(base: str, fill: Any, version: int | str = -1) -> Any:
    with open_publication(base, version) as staged:
        fill(staged.staging)
    return staged


@pytest.mark.slow
def test_a_version_is_uploaded_whole_and_leaves_nothing_else(store: Any, fill: Any, scratch: Path) -> None:
    with open_publication(store.base) as staged:
        files = fill(staged.staging)
        assert store.listed() == []
    assert (staged.version, staged.path) == (1, f"{store.base}/1")
    assert staged.size_bytes == sum(map(len, files.values()))
    assert {key.removeprefix("team/digits/1/"): store.read(key) for key in store.listed()} == files
    assert os.listdir(scratch) == []
    assert list_versions(store.base) == [1]
    assert next_version(store.base + "/") == 2
    assert version_path(store.base, 1) == staged.path


def test_the_marker_comes_last(store: Any, fill: Any) -> None:
    """A server that polls the bucket sees `saved_model.pb` only when all else is there."""
    seen: list[set[str]] = []

    def look(method: str, path: str, query: str) -> None:
        if method == "PUT" and path.endswith("/1/saved_model.pb"):
            store.before = None
            seen.append({key for key in store.listed() if key.startswith("team/digits/1/")})

    store.before = look
    publish(store.base, fill)
    assert seen == [
        {
            "team/digits/1/assets.extra/moxserve.json",
            "team/digits/1/variables/variables.data-00000-of-00001",
            "team/digits/1/variables/variables.index",
            "team/digits/1/variants/frozen/saved_model.pb",
        }
    ]


@pytest.mark.slow
def test_the_root_of_a_bucket_can_hold_versions(store: Any, fill: Any) -> None:
    assert publish(f"s3://{store.bucket}", fill).path == f"s3://{store.bucket}/1"
    assert publish(f"s3://{store.bucket}/", fill).version == 2
    assert "2/saved_model.pb" in store.listed()


@pytest.mark.slow
def test_numbers_are_read_as_tensorflow_serving_does(store: Any) -> None:
    for key in ("003/saved_model.pb", "12/saved_model.pb", "v7/saved_model.pb", "99", "1.0/x"):
        store.write(f"team/digits/{key}")
    assert list_versions(store.base) == [3, 12]
    assert next_version(store.base) == 13
    for version in (3, 12, "v7", "99"):
        with pytest.raises(VersionExistsError, match=f"different export directory: {store.base}/"):
            check_version(store.base, version)
    check_version(store.base, 4)


@pytest.mark.slow
def test_a_number_that_is_there_is_refused_before_any_work(store: Any, fill: Any) -> None:
    publish(store.base, fill, 7)
    with pytest.raises(VersionExistsError), open_publication(store.base, 7):
        pytest.fail("the block must not run")


def test_a_number_that_appears_meanwhile_is_not_overwritten(store: Any, fill: Any, scratch: Path) -> None:
    def late() -> None:
        with open_publication(store.base, 5) as staged:
            fill(staged.staging)
            store.write("team/digits/5/saved_model.pb", b"theirs")

    with pytest.raises(VersionExistsError, match="already exists"):
        late()
    assert store.listed() == ["team/digits/5/saved_model.pb"]
    assert store.read("team/digits/5/saved_model.pb") == b"theirs"
    assert os.listdir(scratch) == []


@pytest.mark.slow
def test_the_next_number_is_taken_when_another_was_faster(store: Any, fill: Any) -> None:
    with open_publication(store.base) as slow:
        fill(slow.staging)
        fast = publish(store.base, fill)
    assert (fast.version, slow.version) == (1, 2)


@pytest.mark.slow
def test_exporters_at_once_take_different_numbers(store: Any, fill: Any) -> None:
    results: list[Any] = []
    threads = [threading.Thread(target=lambda: results.append(publish(store.base, fill))) for _ in range(5)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(r.version for r in results) == [1, 2, 3, 4, 5]
    assert len(store.listed()) == 5 * 5
    assert not [key for key in store.listed() if "/.moxserve" in key]


def test_a_store_that_lets_two_reserve_at_once_is_found_out(store: Any, fill: Any) -> None:
    """Swift, for one, looks for the object first and writes it then."""
    theirs = temp_name().encode()

    def overtake(method: str, path: str, query: str) -> None:
        if method == "GET" and path.endswith("/.moxserve-reserved/1"):
            store.before = None
            store.write("team/digits/.moxserve-reserved/1", theirs)

    store.before = overtake
    assert publish(store.base, fill).version == 2
    assert store.read("team/digits/.moxserve-reserved/1") == theirs


@pytest.mark.slow
def test_one_of_two_that_want_the_same_number_is_refused(store: Any, fill: Any) -> None:
    outcomes: list[str] = []

    def work() -> None:
        try:
            publish(store.base, fill, 4)
            outcomes.append("published")
        except VersionExistsError:
            outcomes.append("refused")

    threads = [threading.Thread(target=work) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(outcomes) == ["published", "refused", "refused"]
    assert len(store.listed()) == 5


def test_a_failure_of_the_exporter_uploads_nothing(store: Any, fill: Any, scratch: Path) -> None:
    def fail() -> None:
        with open_publication(store.base) as staged:
            fill(staged.staging)
            raise RuntimeError("model broke")

    with pytest.raises(RuntimeError):
        fail()
    assert store.listed() == []
    assert os.listdir(scratch) == []


@pytest.mark.slow
@pytest.mark.parametrize("nth", range(1, 12))
def test_a_store_that_fails_at_any_write_publishes_nothing_and_leaves_nothing(
    nth: int, store: Any, fill: Any, monkeypatch: pytest.MonkeyPatch, scratch: Path
) -> None:
    """5 uploads, 1 reservation, 5 copies: each of them fails for good once."""
    monkeypatch.setenv("AWS_MAX_ATTEMPTS", "1")
    lock, count = threading.Lock(), [0]

    def fail_nth(method: str, path: str, query: str) -> Any:
        if method != "PUT":
            return None
        with lock:
            count[0] += 1
            return _FAILED if count[0] == nth else None

    store.before = fail_nth
    with pytest.raises(DataError, match=r"s3://.*InternalError"):
        publish(store.base, fill)
    store.before = None
    assert count[0] >= nth
    assert store.listed() == []
    assert os.listdir(scratch) == []
    assert publish(store.base, fill).version == 1


@pytest.mark.slow
def test_a_store_that_fails_now_and_then_is_asked_again(store: Any, fill: Any) -> None:
    lock, failed = threading.Lock(), set()

    def fail_once(method: str, path: str, query: str) -> Any:
        with lock:
            if (method, path) in failed or len(failed) >= 4 or method != "PUT":
                return None
            failed.add((method, path))
        return _FAILED

    store.before = fail_once
    assert publish(store.base, fill).version == 1
    assert len(failed) == 4
    assert len(store.listed()) == 5


def test_the_store_is_told_the_md5_of_each_file(store: Any, fill: Any) -> None:
    with open_publication(store.base) as staged:
        files = fill(staged.staging)
    sent = {
        path.split("/", 5)[5]: md5
        for (method, path), md5 in zip(store.calls, store.md5, strict=True)
        if method == "PUT" and md5
    }
    assert {name: sent.get(name) for name in files} == {
        name: base64.b64encode(hashlib.md5(data).digest()).decode() for name, data in files.items()
    }


@pytest.mark.slow
def test_a_file_that_arrives_damaged_is_told(store: Any, fill: Any) -> None:
    refusal = b"<Error><Code>BadDigest</Code><Message>The Content-MD5 you specified did not match.</Message></Error>"

    def refuse(method: str, path: str, query: str) -> Any:
        bad = method == "PUT" and path.endswith("variables.index")
        return ("400 Bad Request", [("Content-Type", "application/xml")], refusal) if bad else None

    store.before = refuse
    with pytest.raises(DataError, match=r"variables.index: PutObject was refused: BadDigest: The Content-MD5"):
        publish(store.base, fill)
    assert store.listed() == []


@pytest.mark.slow
def test_copies_that_do_not_arrive_are_noticed(store: Any, fill: Any) -> None:
    """A store that says it has copied and has not: there is no marker then."""

    def lose(method: str, path: str, query: str) -> Any:
        if method == "PUT" and path.endswith("/1/variables/variables.index"):
            body = b"<CopyObjectResult><ETag>x</ETag></CopyObjectResult>"
            return ("200 OK", [("Content-Type", "application/xml")], body)
        return None

    store.before = lose
    with pytest.raises(ExportError, match=r"1/variables/variables.index is not what was uploaded; nothing"):
        publish(store.base, fill)
    assert store.listed() == []


def test_large_files_go_in_parts(store: Any, fill: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("moxserve.file.s3._PART_BYTES", 5 << 20)
    with open_publication(store.base) as staged:
        files = fill(staged.staging, size=12 << 20)
    assert {key.removeprefix("team/digits/1/"): store.read(key) for key in store.listed()} == files
    assert [path for method, path in store.calls if method == "POST" and "variables.data" in path]


KILLED = """
import os, signal, sys, threading
from moxserve.export.publish import open_publication
from moxserve.file import s3

step, number, base = sys.argv[1], int(sys.argv[2]), sys.argv[3]
lock, count = threading.Lock(), [0]

def count_down(real):
    def call(self, *args, **kwargs):
        with lock:
            count[0] += 1
            if count[0] == number:
                os.kill(os.getpid(), signal.SIGKILL)
            return real(self, *args, **kwargs)
    return call

setattr(s3.Bucket, step, count_down(getattr(s3.Bucket, step)))
with open_publication(base) as staged:
    for name in ("saved_model.pb", "variables/variables.index", "variables/variables.data-00000-of-00001", "a", "b"):
        path = os.path.join(staged.staging, name)
        os.makedirs(os.path.dirname(path), exist_ok=True)
        open(path, "wb").write(name.encode() * 100)
"""


@pytest.mark.slow
@pytest.mark.parametrize(
    ("step", "number"), [("upload", 3), ("put", 1), ("copy", 1), ("copy", 4), ("copy", 5), ("delete", 1), ("delete", 2)]
)
def test_kill_9_leaves_no_half_version_and_the_next_export_sweeps(
    step: str, number: int, store: Any, fill: Any, scratch: Path
) -> None:
    killed = subprocess.run([sys.executable, "-c", KILLED, step, str(number), store.base], check=False)
    assert killed.returncode == -signal.SIGKILL
    left = store.listed()
    assert left
    published = "team/digits/1/saved_model.pb" in left
    assert published == (step == "delete")
    assert [name for name in os.listdir(scratch) if name.startswith(TEMP_PREFIX)]
    if published:
        assert len([key for key in left if key.startswith("team/digits/1/")]) == 5
    staged = publish(store.base, fill)
    assert staged.version == (2 if published else 1)
    expected = [f"team/digits/{v}/" for v in range(1, staged.version + 1)]
    assert {key for key in store.listed() if not key.startswith(tuple(expected))} == set()
    assert len([key for key in store.listed() if key.startswith(f"team/digits/{staged.version}/")]) == 5
    assert os.listdir(scratch) == []


def test_what_a_dead_exporter_uploaded_in_parts_is_given_up(store: Any, fill: Any) -> None:
    dead = f"{TEMP_PREFIX}999999999-1-{temp_name().split('-')[4]}-abc"
    client, mine = store.client, temp_name()
    for owner in (dead, mine):
        client.create_multipart_upload(Bucket=store.bucket, Key=f"team/digits/{owner}/variables/big")
    publish(store.base, fill)
    left = client.list_multipart_uploads(Bucket=store.bucket).get("Uploads", [])
    assert [upload["Key"] for upload in left] == [f"team/digits/{mine}/variables/big"]


def test_a_reservation_that_is_given_back_meanwhile_keeps_nobody_from_sweeping(store: Any, fill: Any) -> None:
    dead = f"{TEMP_PREFIX}999999999-1-{temp_name().split('-')[4]}-abc".encode()
    for number in (1, 2):
        store.write(f"team/digits/.moxserve-reserved/{number}", dead)
        store.write(f"team/digits/{number}/variables/half")

    def give_back(method: str, path: str, query: str) -> None:
        if method == "GET" and path.endswith("/.moxserve-reserved/1"):
            store.before = None
            store.client.delete_object(Bucket=store.bucket, Key="team/digits/.moxserve-reserved/1")

    store.before = give_back
    publish(store.base, fill, 7)
    assert [key for key in store.listed() if "reserved" in key or "/2/" in key] == []


def test_work_in_progress_and_other_peoples_files_stay(store: Any, fill: Any) -> None:
    elsewhere = temp_name().split("-")
    elsewhere[4] = "feedbeef"  # another machine, whose processes cannot be seen from here
    mine, theirs = temp_name(), "-".join(elsewhere)
    keep = [f"team/digits/{mine}/a", f"team/digits/{theirs}/a", "team/digits/notes/readme.txt", "team/digitsx/3/x"]
    for key in keep:
        store.write(key)
    store.write("team/digits/.moxserve-reserved/1", mine.encode())
    assert publish(store.base, fill).version == 2
    assert set(keep) <= set(store.listed())
    assert "team/digits/.moxserve-reserved/1" in store.listed()
    with pytest.raises(VersionExistsError):
        check_version(store.base, 1)


def test_a_missing_bucket_is_told_before_any_work(store: Any) -> None:
    with pytest.raises(DataError, match="NoSuchBucket") as raised, open_publication("s3://no-such-bucket/digits"):
        pytest.fail("the block must not run")
    assert "make the bucket first" in str(raised.value.hint)


def test_missing_credentials_are_told_before_any_work(store: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.delenv(name)
    with pytest.raises(UsageError, match="Unable to locate credentials") as raised, open_publication(store.base):
        pytest.fail("the block must not run")
    assert "AWS_ACCESS_KEY_ID" in str(raised.value.hint)


def test_a_refusal_says_what_is_not_allowed(store: Any, fill: Any) -> None:
    store.before = lambda method, path, query: _DENIED if method == "PUT" else None
    with pytest.raises(DataError, match=r"s3://.*PutObject was refused: AccessDenied") as raised:
        publish(store.base, fill)
    assert "may not do that" in str(raised.value.hint)


def test_a_store_that_cannot_be_reached_is_told(store: Any, monkeypatch: pytest.MonkeyPatch, free_port: int) -> None:
    monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{free_port}")
    monkeypatch.setenv("AWS_MAX_ATTEMPTS", "1")
    with pytest.raises(DataError, match="the store cannot be reached") as raised:
        check_version(store.base, 1)
    assert "AWS_ENDPOINT_URL" in str(raised.value.hint)


@pytest.mark.parametrize("url", ["s3://", "s3:///x"])
def test_a_url_without_a_bucket_is_refused(url: str) -> None:
    with pytest.raises(UsageError, match=r"expected s3://BUCKET/"):
        list_versions(url)


@pytest.mark.parametrize(
    ("settings", "told"),
    [
        ({"AWS_ENDPOINT_URL": "not a url"}, "Invalid endpoint"),
        ({"AWS_PROFILE": "nobody"}, "nobody"),
    ],
)
def test_settings_that_cannot_be_right_are_told(
    settings: dict[str, str], told: str, store: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in settings.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(UsageError, match=told):
        check_version(store.base, 1)


def test_a_bucket_name_that_cannot_be_is_told(store: Any) -> None:
    with pytest.raises(UsageError, match="Invalid bucket name"):
        check_version("s3://Not_A_Bucket!/x", 1)


def test_without_boto3_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "boto3", None)
    with pytest.raises(MoxserveError, match="s3://bucket needs boto3") as raised:
        list_versions("s3://bucket/x")
    assert raised.value.hint == 'pip install "moxserve[s3]"'


@pytest.mark.slow
def test_every_error_is_one_of_ours(store: Any, fill: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever a broken store or proxy answers."""
    monkeypatch.setenv("AWS_MAX_ATTEMPTS", "1")
    answers = [
        ("200 OK", [("Content-Type", "text/html")], b"<html>log in here</html>"),
        (
            "301 Moved Permanently",
            [("Content-Type", "application/xml")],
            b"<Error><Code>PermanentRedirect</Code></Error>",
        ),
        ("501 Not Implemented", [], b""),
        ("429 Too Many Requests", [], b""),
    ]
    for answer in answers:
        store.before = lambda method, path, query, answer=answer: answer
        with pytest.raises(MoxserveError):
            publish(store.base, fill)
    store.before = None
    assert store.listed() == []
