"""Files and directories come to be all at once, and what dead writers left is found."""

from __future__ import annotations

import os
import signal
import stat
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

import pytest

from moxserve.errors import VersionExistsError
from moxserve.file import atomic_open, atomic_write, publish_directory, scratch_directory, staging_directory, sweep
from moxserve.file.atomic import TEMP_PREFIX


def _litter(folder: Path) -> list[str]:
    return [name for name in os.listdir(folder) if name.startswith(TEMP_PREFIX)]


def test_text_and_bytes_replace_the_old_content(tmp_path: Path) -> None:
    path = tmp_path / "f"
    atomic_write(path, "grün")
    assert path.read_bytes() == "grün".encode()
    atomic_write(str(path), b"\x00\xff")
    assert path.read_bytes() == b"\x00\xff"
    assert os.listdir(tmp_path) == ["f"]


def test_a_failure_while_writing_keeps_the_old_content(tmp_path: Path) -> None:
    path = tmp_path / "f"
    path.write_text("old")

    def write() -> None:
        with atomic_open(path) as f:
            f.write(b"half of the n")
            raise RuntimeError("stop")

    with pytest.raises(RuntimeError):
        write()
    assert path.read_text() == "old"
    assert os.listdir(tmp_path) == ["f"]


def test_a_missing_folder_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        atomic_write(tmp_path / "no" / "f", "x")


def test_a_symbolic_link_is_written_through(tmp_path: Path) -> None:
    real, link = tmp_path / "real", tmp_path / "sub" / "link"
    link.parent.mkdir()
    real.write_text("old")
    link.symlink_to(real)
    atomic_write(link, "new")
    assert link.is_symlink()
    assert real.read_text() == "new"


def test_a_reader_never_sees_a_mixture(tmp_path: Path) -> None:
    path = tmp_path / "f"
    atomic_write(path, b"0" * 200_000)
    seen, begun, stop = set(), threading.Event(), threading.Event()

    def read() -> None:
        while not stop.is_set():
            seen.add(path.read_bytes())
            begun.set()

    reader = threading.Thread(target=read)
    reader.start()
    assert begun.wait(100)
    for digit in b"123456789":
        atomic_write(path, bytes([digit]) * 200_000)
    stop.set()
    reader.join()
    assert {(len(content), len(set(content))) for content in seen} == {(200_000, 1)}


def test_kill_9_while_writing_keeps_the_old_content(tmp_path: Path) -> None:
    path = tmp_path / "f"
    path.write_text("old")
    code = (
        "import os, signal\nfrom moxserve.file import atomic_open\n"
        f"with atomic_open({str(path)!r}) as f:\n"
        "    f.write(b'new'); f.flush()\n    os.kill(os.getpid(), signal.SIGKILL)\n"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == -signal.SIGKILL
    assert path.read_text() == "old"
    (name,) = _litter(tmp_path)
    assert sweep(tmp_path) == [name]
    assert os.listdir(tmp_path) == ["f"]


def test_a_staged_directory_is_published_in_one_step(tmp_path: Path) -> None:
    with staging_directory(tmp_path / "base") as staging:
        Path(staging, "sub").mkdir()
        Path(staging, "sub", "f").write_text("x")
        publish_directory(staging, str(tmp_path / "base" / "1"))
    assert os.listdir(tmp_path / "base") == ["1"]
    assert (tmp_path / "base" / "1" / "sub" / "f").read_text() == "x"


def test_a_staged_directory_that_is_not_published_goes_away(tmp_path: Path) -> None:
    with staging_directory(tmp_path) as staging:
        Path(staging, "f").touch()
        assert _litter(tmp_path) == [os.path.basename(staging)]
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize("taken", ["directory", "file", "dangling link"])
def test_what_is_there_is_never_replaced(tmp_path: Path, taken: str) -> None:
    final = tmp_path / "1"
    if taken == "directory":
        final.mkdir()
        (final / "theirs").touch()
    elif taken == "file":
        final.write_text("theirs")
    else:
        final.symlink_to(tmp_path / "nowhere")
    with staging_directory(tmp_path) as staging, pytest.raises(VersionExistsError, match="exists already"):
        publish_directory(staging, str(final))
    assert os.path.lexists(final)


def test_the_work_of_living_writers_is_not_swept(tmp_path: Path) -> None:
    with staging_directory(tmp_path) as staging:
        assert sweep(tmp_path) == []
        assert os.path.isdir(staging)


def test_a_process_id_that_was_used_again_does_not_protect_litter(tmp_path: Path) -> None:
    """In a container every run may have the same process id: the start of the process tells them apart."""
    with staging_directory(tmp_path) as staging:
        pid, started, host, unique = os.path.basename(staging)[len(TEMP_PREFIX) :].split("-")
        earlier = f"{TEMP_PREFIX}{pid}-{int(started) - 1}-{host}-{unique}"
        (tmp_path / earlier).mkdir()
        assert sweep(tmp_path) == [earlier]


def test_a_process_that_nobody_waited_for_protects_nothing(tmp_path: Path) -> None:
    code = (
        "import os, signal, sys\nfrom moxserve.file import staging_directory\n"
        "with staging_directory(sys.argv[1]):\n    os.kill(os.getpid(), signal.SIGKILL)\n"
    )
    with subprocess.Popen([sys.executable, "-c", code, str(tmp_path)]) as process:
        os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOWAIT)  # it stays in the table of processes
        left = _litter(tmp_path)
        assert len(left) == 1
        assert sweep(tmp_path) == left


def test_the_work_of_other_machines_is_left_alone_for_a_day(tmp_path: Path) -> None:
    fresh, old = (tmp_path / f"{TEMP_PREFIX}999999999-1-0badcafe-{n}" for n in ("fresh", "old"))
    fresh.mkdir()
    old.write_text("x")
    day_ago = time.time() - 25 * 3600
    os.utime(old, (day_ago, day_ago))
    assert sweep(tmp_path) == [old.name]
    assert fresh.is_dir()


def test_sweeping_touches_nothing_else(tmp_path: Path) -> None:
    (tmp_path / ".moxserve").touch()
    (tmp_path / "1").mkdir()
    (tmp_path / f"{TEMP_PREFIX}junk").touch()
    assert sweep(tmp_path) == [f"{TEMP_PREFIX}junk"]
    assert sorted(os.listdir(tmp_path)) == [".moxserve", "1"]
    assert sweep(tmp_path / "no") == []


def test_a_scratch_directory_is_private_and_goes_away(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    monkeypatch.setattr(tempfile, "tempdir", None)
    with scratch_directory() as folder:
        assert os.path.dirname(folder) == str(tmp_path)
        assert stat.S_IMODE(os.stat(folder).st_mode) == 0o700
        Path(folder, "big").write_text("x")
    assert os.listdir(tmp_path) == []


def test_what_a_killed_process_left_in_a_scratch_directory_goes_with_the_next(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    monkeypatch.setattr(tempfile, "tempdir", None)
    code = (
        "import os, signal\n"
        "from moxserve.file import scratch_directory\n"
        "with scratch_directory() as folder:\n"
        "    open(folder + '/big', 'w').close()\n"
        "    os.kill(os.getpid(), signal.SIGKILL)\n"
    )
    subprocess.run([sys.executable, "-c", code], check=False)
    (left,) = os.listdir(tmp_path)
    with scratch_directory() as folder:
        assert os.listdir(tmp_path) == [os.path.basename(folder)] != [left]
