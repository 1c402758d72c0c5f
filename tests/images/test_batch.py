"""Batches: the same whatever the threads, bad rows, forks."""

from __future__ import annotations

import gc
import logging
import os
import subprocess
import sys
import threading
import weakref
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest

from moxserve.errors import DataError, UsageError
from moxserve.images import pool
from moxserve.images.batch import BatchDecoder
from moxserve.images.geometry import Window
from moxserve.images.header import BadImageError


class RandomCrop:
    """A random window of 40 x 50, flipped at random."""

    def window(self, height: int, width: int, rng: np.random.Generator) -> Window:
        top, left = int(rng.integers(0, height - 39)), int(rng.integers(0, width - 49))
        return Window(top, left, 40, 50, 24, 32, bool(rng.integers(2)))


NAMES = ("jpeg.420.baseline.90", "jpeg.444.progressive.40", "png.RGB", "webp.lossy", "jpeg.gray", "jpeg.cmyk")


@pytest.fixture
def paths(tmp_path: Path, files: dict[str, bytes]) -> list[str]:
    """Twelve files."""
    made = []
    for number, name in enumerate(NAMES * 2):
        path = tmp_path / f"{number}.jpg"
        path.write_bytes(files[name])
        made.append(str(path))
    return made


def test_rows_and_seeds_decide_and_nothing_else(paths: list[str], monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(pool, "available_cores", lambda: 4)
    seeds = [(7, 1, number) for number in range(len(paths))]
    results = [
        BatchDecoder(RandomCrop(), (24, 32), threads=threads).decode(paths, paths, seeds) for threads in (1, 2, 4, None)
    ]
    sources = [Path(path).read_bytes() for path in paths]
    results.append(BatchDecoder(RandomCrop(), (24, 32)).decode(paths, sources, np.array(seeds)))
    assert results[0].images.shape == (12, 24, 32, 3)
    assert not results[0].bad.any()
    for other in results[1:]:
        np.testing.assert_array_equal(other.images, results[0].images)
    again = BatchDecoder(RandomCrop(), (24, 32)).decode(paths[::-1], paths[::-1], seeds[::-1])
    np.testing.assert_array_equal(again.images, results[0].images[::-1])
    moved = BatchDecoder(RandomCrop(), (24, 32)).decode(paths, paths, [(7, 2, number) for number in range(12)])
    assert (moved.images != results[0].images).any()
    # The same file at two places of a batch has two windows.
    assert (results[0].images[0] != results[0].images[6]).any()


def test_without_a_geometry_images_are_whole_or_stretched(paths: list[str], photo: np.ndarray):
    whole = BatchDecoder().decode(paths, paths, range(12))
    assert whole.images.shape == (12, 101, 133, 3)
    np.testing.assert_array_equal(whole.images[2], photo)
    small = BatchDecoder(size=(20, 30), channels=1).decode(paths[2:3], paths[2:3], [0])
    gray = cv2.imdecode(np.frombuffer(Path(paths[2]).read_bytes(), np.uint8), cv2.IMREAD_GRAYSCALE)
    np.testing.assert_array_equal(small.images[0, ..., 0], cv2.resize(gray, (30, 20), interpolation=cv2.INTER_LINEAR))


def test_images_of_different_sizes_make_no_batch(paths: list[str], files: dict[str, bytes]):
    with pytest.raises(DataError, match=r"b is 1x1x3, a is 101x133x3"):
        BatchDecoder().decode(["a", "b"], [files["png.RGB"], files["jpeg.one"]], [0, 1])


def test_bad_rows_are_skipped_and_told_of(
    paths: list[str], tmp_path: Path, caplog: pytest.LogCaptureFixture, files: dict[str, bytes]
):
    Path(paths[3]).write_bytes(b"")
    Path(paths[5]).write_bytes(files["jpeg.420.baseline.90"][:2000])
    paths[8] = str(tmp_path / "absent.jpg")
    for size in ((24, 32), None):
        decoder = BatchDecoder(RandomCrop(), size)
        with caplog.at_level(logging.WARNING, "moxserve.images"):
            images, bad = decoder.decode(paths, paths, range(12))
        assert np.flatnonzero(bad).tolist() == [3, 5, 8]
        assert not images[bad].any()
        assert images[~bad].any(axis=(1, 2, 3)).all()
        assert decoder.log.count == 3
        assert decoder.log.names == (paths[3], paths[5], paths[8])
        lines = [record.getMessage() for record in caplog.records]
        assert lines == [
            f"bad image 1 skipped: {paths[3]}: is empty (0 bytes)",
            f"bad image 2 skipped: {paths[5]}: cut off after 2000 bytes: the JPEG file has no end",
            f"bad image 3 skipped: {paths[8]}: cannot be read: No such file or directory",
        ]
        caplog.clear()
        decoder.log.close()
        assert caplog.messages == ["images: 3 bad images were skipped (3 different ones)"]
        decoder.log.close()
        assert len(caplog.messages) == 1
        caplog.clear()


def test_a_batch_of_nothing_good(caplog: pytest.LogCaptureFixture):
    images, bad = BatchDecoder().decode(["a", "b"], [b"x", b"y"], [0, 1])
    assert bad.all()
    assert images.shape[0] == 2
    images, bad = BatchDecoder(size=(4, 5)).decode([], [], [])
    assert images.shape[0] == 0
    assert bad.shape == (0,)


@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize("size", [None, (4, 5)])
def test_the_sum_of_bad_images_is_said_when_the_decoder_is_given_up(
    threads: int, size: Any, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(pool, "available_cores", lambda: threads)
    # Not when garbage is looked for, which is in the middle of something else.
    gc.disable()
    try:
        BatchDecoder(size=size).decode(["a", "b"], [b"x", "absent"], [0, 1])
        assert caplog.messages[-1] == "images: 2 bad images were skipped (2 different ones)"
        decoder = BatchDecoder(size=size, on_bad="raise")
        kept = weakref.ref(decoder.log)
        with pytest.raises(BadImageError, match="b: cannot be read: No such file"):
            decoder.decode(["b"], ["absent"], [1])
        del decoder
        assert kept() is None
    finally:
        gc.enable()


def test_many_bad_images_do_not_flood_the_log(caplog: pytest.LogCaptureFixture):
    decoder = BatchDecoder(size=(2, 2))
    names = [f"n{number}" for number in range(250)]
    decoder.decode(names, [b"x"] * 250, range(250))
    # Logs of other tests may say their sum just now.
    lines = [line for line in caplog.messages if line.startswith("bad image ")]
    assert [line.split()[2] for line in lines] == [*map(str, range(1, 11)), "100", "200"]
    assert "n199" in lines[-1]
    assert lines[9].endswith("further ones are told of by the hundred")


def test_raise_names_the_first_bad_row(paths: list[str]):
    Path(paths[3]).write_bytes(b"")
    Path(paths[7]).write_bytes(b"")
    with pytest.raises(BadImageError) as caught:
        BatchDecoder(RandomCrop(), (24, 32), on_bad="raise").decode(paths, paths, range(12))
    assert caught.value.name == paths[3]


def test_an_error_in_a_geometry_is_the_caller_s(paths: list[str]):
    class Broken:
        def window(self, height: int, width: int, rng: np.random.Generator) -> Window:
            raise ZeroDivisionError("no window")

    with pytest.raises(ZeroDivisionError, match="no window"):
        BatchDecoder(Broken(), (24, 32)).decode(paths, paths, range(12))
    with pytest.raises(UsageError, match="does not fit into"):
        BatchDecoder(RandomCrop(), (10, 10)).decode(paths, paths, range(12))


def test_arguments_are_checked(paths: list[str]):
    with pytest.raises(UsageError, match="12 names, 12 sources, 3 seeds"):
        BatchDecoder().decode(paths, paths, [1, 2, 3])
    with pytest.raises(UsageError, match="on_bad='drop'"):
        BatchDecoder(on_bad="drop")  # type: ignore[arg-type]
    with pytest.raises(UsageError, match="threads=0"):
        BatchDecoder(threads=0)
    with pytest.raises(UsageError, match="size"):
        BatchDecoder(size=(0, 4))


def test_never_more_threads_than_cores(monkeypatch: pytest.MonkeyPatch):
    lock, running, most, seen = threading.Lock(), 0, 0, set()
    barrier_passed = threading.Event()

    def work(number: int) -> None:
        nonlocal running, most
        with lock:
            running += 1
            most = max(most, running)
            seen.add(number)
        barrier_passed.wait(0.01)
        with lock:
            running -= 1

    pool.each(40, work, threads=64)
    assert seen == set(range(40))
    assert 1 <= most <= pool.available_cores()
    most = 0
    pool.each(10, work, threads=1)
    assert most == 1


def test_opencv_keeps_its_threads(paths: list[str]):
    before = cv2.getNumThreads()
    BatchDecoder(RandomCrop(), (24, 32)).decode(paths, paths, range(12))
    assert cv2.getNumThreads() == before


@pytest.mark.skipif(not hasattr(os, "fork"), reason="there is no fork")
def test_a_forked_child_has_a_pool_of_its_own(paths: list[str]):
    # In a process of its own: a fork of this one would take TensorFlow's threads' locks with it.
    program = """
import os, sys
import numpy as np
from moxserve.images import pool
pool.available_cores = lambda: 2
from moxserve.images.batch import BatchDecoder
paths = sys.argv[1:]
decoder = BatchDecoder(size=(9, 9))
before = decoder.decode(paths, paths, range(len(paths))).images
child = os.fork()
if child == 0:
    same = np.array_equal(decoder.decode(paths, paths, range(len(paths))).images, before)
    os._exit(0 if same else 3)
assert np.array_equal(decoder.decode(paths, paths, range(len(paths))).images, before)
sys.exit(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
"""
    subprocess.run([sys.executable, "-c", program, *paths], check=True, timeout=120)


def test_no_tensorflow_is_loaded():
    program = "import sys, moxserve.images.batch; sys.exit(bool({'tensorflow', 'cv2'} & set(sys.modules)))"
    subprocess.run([sys.executable, "-c", program], check=True, timeout=120)


LIVE = """
import atexit, sys, threading, cv2, numpy as np

@atexit.register  # the first that is registered is the last that is called
def wait():
    for thread in threads:
        thread.join()

from moxserve.images import pool
pool.available_cores = lambda: 2
from moxserve.images.batch import BatchDecoder
from moxserve.images.ending import ProgramEndsError

image = cv2.imencode(".jpg", np.zeros((1500, 1500, 3), np.uint8))[1].tobytes()
decoder = BatchDecoder(size=(900, 900), threads=int(sys.argv[1]))
begun = threading.Barrier(3)

def forever():
    try:
        decoder.decode(["a"] * 3, [image] * 3, [0] * 3)
        begun.wait()
        while True:
            decoder.decode(["a"] * 3, [image] * 3, [0] * 3)
    except ProgramEndsError:
        sys.stdout.write("refused ")

threads = [threading.Thread(target=forever, daemon=True) for _ in range(2)]
for thread in threads:
    thread.start()
begun.wait()
"""


@pytest.mark.slow
@pytest.mark.parametrize("threads", [1, 2])
def test_a_program_ends_well_while_threads_of_others_decode(threads: int):
    ended = subprocess.run(
        [sys.executable, "-c", LIVE, str(threads)], capture_output=True, text=True, timeout=120, check=False
    )
    assert (ended.returncode, ended.stdout, ended.stderr) == (0, "refused refused ", "")
