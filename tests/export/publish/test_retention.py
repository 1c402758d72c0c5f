"""`--keep N`: which versions go, and that no reader ever sees half of one."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from moxserve.errors import ExportError, UsageError
from moxserve.export.publish import list_versions, open_publication
from moxserve.export.publish.retention import apply_retention
from moxserve.file.atomic import TEMP_PREFIX


@pytest.fixture
def base(tmp_path: Path) -> Path:
    """Versions 1 to 5, and what must be left alone."""
    base = tmp_path / "base"
    for name in ("1", "2", "003", "4", "5", "best", "notes"):
        (base / name / "variables").mkdir(parents=True)
        if name != "notes":
            (base / name / "saved_model.pb").write_bytes(b"graph")
            (base / name / "variables" / "variables.index").write_bytes(b"index")
    (base / "20240101").mkdir()
    (base / "20240101" / "report.csv").write_text("no model")
    (base / "0").symlink_to(base / "best")
    (base / "6").write_text("a file")
    return base


_UNTOUCHED = {"best", "notes", "20240101", "0", "6"}


def left(base: Path) -> set[str]:
    return set(os.listdir(base)) - _UNTOUCHED


@pytest.mark.parametrize(
    ("keep", "removed", "stay"),
    [
        (1, [1, 2, 3, 4], {"5"}),
        (2, [1, 2, 3], {"4", "5"}),
        (4, [1], {"2", "003", "4", "5"}),
        (5, [], {"1", "2", "003", "4", "5"}),
        (99, [], {"1", "2", "003", "4", "5"}),
    ],
)
def test_the_newest_stay(keep: int, removed: list[int], stay: set[str], base: Path) -> None:
    assert apply_retention(str(base), keep, 5) == removed
    assert left(base) == stay
    assert set(os.listdir(base)) >= _UNTOUCHED
    assert (base / "best" / "saved_model.pb").exists()


def test_what_was_just_published_stays_even_if_it_is_old(base: Path) -> None:
    assert apply_retention(str(base), 2, 2) == [1, 3]
    assert left(base) == {"2", "4", "5"}


def test_a_named_version_does_not_count(base: Path) -> None:
    assert apply_retention(str(base), 1, "best") == [1, 2, 3, 4]
    assert (base / "best" / "saved_model.pb").exists()


@pytest.mark.parametrize("keep", [0, -1, True, 1.5])
def test_at_least_one_stays(keep: Any, base: Path) -> None:
    with pytest.raises(UsageError, match="expected a whole number of at least 1"):
        apply_retention(str(base), keep)
    assert left(base) == {"1", "2", "003", "4", "5"}


def test_another_spelling_of_a_kept_number_stays(base: Path) -> None:
    (base / "05").mkdir()
    (base / "05" / "saved_model.pb").write_bytes(b"graph")
    assert apply_retention(str(base), 1, 5) == [1, 2, 3, 4]
    assert left(base) == {"5", "05"}


def test_a_base_that_is_gone_has_nothing_to_remove(tmp_path: Path) -> None:
    assert apply_retention(str(tmp_path / "gone"), 3) == []


def test_a_version_that_cannot_be_removed_is_told(base: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(source: str, target: str) -> None:
        raise PermissionError(13, "Permission denied", source)

    monkeypatch.setattr("moxserve.export.publish.local.os.rename", refuse)
    with pytest.raises(ExportError, match=r"the new version is published, but the old one .*1 could not be removed"):
        apply_retention(str(base), 1, 5)
    assert left(base) == {"1", "2", "003", "4", "5"}


KILLED = """
import os, shutil, signal, sys
from moxserve.export.publish.retention import apply_retention
real, count = os.unlink, [0]
def unlink(*args, **kwargs):
    count[0] += 1
    if count[0] == int(sys.argv[2]):
        os.kill(os.getpid(), signal.SIGKILL)
    return real(*args, **kwargs)
os.unlink = unlink
apply_retention(sys.argv[1], 1, 5)
"""


@pytest.mark.parametrize("number", [1, 2, 4])
def test_kill_9_leaves_whole_versions_only(number: int, base: Path) -> None:
    killed = subprocess.run([sys.executable, "-c", KILLED, base, str(number)], check=False)
    assert killed.returncode == -signal.SIGKILL
    names = left(base)
    for name in names:
        if not name.startswith(TEMP_PREFIX):
            assert sorted(os.listdir(base / name)) == ["saved_model.pb", "variables"]
            assert os.listdir(base / name / "variables") == ["variables.index"]
    assert any(name.startswith(TEMP_PREFIX) for name in names)
    with open_publication(str(base), 7) as staged:
        Path(staged.staging, "saved_model.pb").touch()
    assert not [name for name in os.listdir(base) if name.startswith(TEMP_PREFIX)]


# ---- in a bucket


def publish(store: Any, fill: Any, count: int) -> None:
    for _ in range(count):
        with open_publication(store.base) as staged:
            fill(staged.staging)


@pytest.mark.slow
def test_old_versions_of_a_bucket_go_marker_first(store: Any, fill: Any) -> None:
    publish(store, fill, 4)
    for key in ("best/saved_model.pb", "20240101/report.csv", "notes.txt"):
        store.write(f"team/digits/{key}")
    store.calls.clear()
    first_left: list[list[str]] = []

    def look(method: str, path: str, query: str) -> None:
        if method == "POST" and "delete" in query and not first_left:
            first_left.append([])
        elif method == "GET" and first_left == [[]]:
            first_left[0] = ["looking"]
            first_left[0] = [key for key in store.listed() if key.startswith("team/digits/1/")]

    store.before = look
    assert apply_retention(store.base, 2, 4) == [1, 2]
    store.before = None
    assert first_left[0]
    assert "team/digits/1/saved_model.pb" not in first_left[0]
    assert list_versions(store.base) == [3, 4, 20240101]
    left_over = [key for key in store.listed() if not key.startswith(("team/digits/3/", "team/digits/4/"))]
    assert left_over == [f"team/digits/{key}" for key in ("20240101/report.csv", "best/saved_model.pb", "notes.txt")]


@pytest.mark.slow
def test_what_another_exporter_is_about_to_remove_is_left_to_it(store: Any, fill: Any) -> None:
    publish(store, fill, 3)
    from moxserve.file.atomic import temp_name

    store.write("team/digits/.moxserve-reserved/1", temp_name().encode())
    assert apply_retention(store.base, 1, 3) == [2]
    assert list_versions(store.base) == [1, 3]


KILLED_S3 = """
import os, signal, sys
from moxserve.export.publish.retention import apply_retention
from moxserve.file import s3
real, count = s3.Bucket.delete, [0]
def delete(self, keys):
    count[0] += 1
    if count[0] == int(sys.argv[2]):
        os.kill(os.getpid(), signal.SIGKILL)
    return real(self, keys)
s3.Bucket.delete = delete
apply_retention(sys.argv[1], 1, 2)
"""


@pytest.mark.slow
@pytest.mark.parametrize(("number", "stays"), [(1, True), (2, False), (3, False)])
def test_kill_9_in_a_bucket_is_finished_by_the_next_export(number: int, stays: bool, store: Any, fill: Any) -> None:
    publish(store, fill, 2)
    killed = subprocess.run([sys.executable, "-c", KILLED_S3, store.base, str(number)], check=False)
    assert killed.returncode == -signal.SIGKILL
    assert ("team/digits/1/saved_model.pb" in store.listed()) == stays
    publish(store, fill, 1)
    assert list_versions(store.base) == ([1, 2, 3] if stays else [2, 3])
    assert not [key for key in store.listed() if "/.moxserve" in key]


@pytest.mark.slow
def test_a_store_that_refuses_to_delete_is_told(store: Any, fill: Any) -> None:
    publish(store, fill, 2)
    denied = ("403 Forbidden", [("Content-Type", "application/xml")], b"<Error><Code>AccessDenied</Code></Error>")
    store.before = lambda method, path, query: denied if method == "POST" else None
    with pytest.raises(ExportError, match=r"the old one s3://.*/team/digits/1 could not be removed: .*AccessDenied"):
        apply_retention(store.base, 1, 2)
    store.before = None
    assert list_versions(store.base) == [1, 2]
