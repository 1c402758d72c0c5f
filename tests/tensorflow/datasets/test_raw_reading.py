"""How the files of raw data sets get here: readers, caches, bad images."""

from __future__ import annotations

import fcntl
import gc
import io
import os
import shutil
import signal
import subprocess
import sys
import textwrap
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

import moxserve.tensorflow as mox
from moxserve.errors import DataError, UsageError
from moxserve.tensorflow.datasets import ImageClassificationRawDataset, ImageClassificationRawMetadata, in_use
from moxserve.tensorflow.datasets.raw import caching
from moxserve.tensorflow.datasets.reader.raw_reader import AsyncRawGenerator, ParallelReader, iterator_of
from moxserve.tensorflow.executor.env import tf, tf1

Read = Callable[..., list[list[Any]]]
Names = Callable[..., list[str]]


def _dataset(folder: Path, **kwargs: Any) -> ImageClassificationRawDataset:
    return ImageClassificationRawDataset(
        ImageClassificationRawMetadata(str(folder)), **{"num_epochs": 1, "shuffle": False, **kwargs}
    )


# ---- readers


@pytest.mark.parametrize("reader", [ParallelReader, AsyncRawGenerator])
def test_a_reader_gives_contents_in_order_and_tells_what_it_cannot_read(reader: Any, folder: Path):
    paths = sorted(map(str, folder.glob("*/*.jpg")))
    paths.insert(3, str(folder / "nowhere.jpg"))
    found = list(reader(paths, num_readers=3, capacity=4))
    assert [path for path, _ in found] == paths
    for path, content in found:
        if path.endswith("nowhere.jpg"):
            assert isinstance(content, OSError)
        else:
            assert content == Path(path).read_bytes()


def readers() -> set[threading.Thread]:
    return {thread for thread in threading.enumerate() if thread.name.startswith("moxserve-reader")}


def test_a_reader_reads_ahead_as_far_as_its_capacity_and_ends_its_threads(folder: Path):
    asked: list[str] = []
    before = readers()  # of what another test has not read to its end

    def endless() -> Iterator[str]:
        while True:
            for path in sorted(map(str, folder.glob("*/*.jpg"))):
                asked.append(path)
                yield path

    contents = iter(AsyncRawGenerator(endless(), num_readers=2, capacity=6))
    for given in range(1, 20):
        next(contents)
        assert len(asked) <= given + 6
    assert len(asked) >= 20
    assert readers() - before
    contents.close()  # type: ignore[attr-defined]
    assert not readers() - before


class Upside:
    """A reader of a user: paints a file upside down, and notes what it was given."""

    made: list[dict[str, Any]] = []  # noqa: RUF012
    closed = 0

    def __init__(self, paths: Iterable[str], **kwargs: Any) -> None:
        self.paths = paths
        Upside.made.append(kwargs)

    def __iter__(self) -> Iterator[tuple[str, bytes]]:
        for path in self.paths:
            out = io.BytesIO()
            Image.open(path).transpose(Image.Transpose.FLIP_TOP_BOTTOM).save(out, "PNG")
            yield path, out.getvalue()

    def close(self) -> None:
        Upside.closed += 1


def test_a_readers_class_of_the_user(folder: Path, read: Read):
    Upside.made, Upside.closed = [], 0
    plain = read(_dataset(folder), ["image", "image_name"])
    dataset = _dataset(folder, reader_class=Upside, reader_kwargs={"colour": "blue", "capacity": 9}, num_readers=3)
    turned = read(dataset, ["image", "image_name"])
    assert Upside.made == [{"num_readers": 3, "capacity": 9, "colour": "blue"}]
    assert Upside.closed == 1
    for (image, name), (other, other_name) in zip(plain, turned, strict=True):
        assert name == other_name
        np.testing.assert_array_equal(image[::-1], other)


def _swapped(paths: Iterable[str], **_: Any) -> Iterator[tuple[str, bytes]]:
    first, second, *_rest = paths
    yield second, b""
    yield first, b""


def _short(paths: Iterable[str], **_: Any) -> Iterator[tuple[str, bytes]]:
    for _path in paths:
        pass
    yield from ()


def _text(paths: Iterable[str], **_: Any) -> Iterator[tuple[str, Any]]:
    for path in paths:
        yield path, "text"


@pytest.mark.parametrize(
    ("reader", "message"),
    [
        (_swapped, "reader _swapped gave 'b' where 'a' was next"),
        (_short, "reader _short ended before it gave 'a'"),
        (_text, "reader _text gave str for 'a'; expected bytes"),
    ],
)
def test_readers_that_break_the_protocol(reader: Any, message: str):
    with pytest.raises(DataError, match=message):
        list(iterator_of(reader, {}, ["a", "b"]))


def test_a_reader_that_takes_other_arguments(folder: Path):
    with pytest.raises(UsageError, match=r"reader_class AsyncRawGenerator:.*'speed'"):
        list(iterator_of(AsyncRawGenerator, {"speed": 3}, []))
    with pytest.raises(UsageError, match="at least 1, got 0 and 256"):
        list(iterator_of(ParallelReader, {"num_readers": 0}, []))


# ---- bad images


@pytest.fixture
def with_bad(folder: Path) -> list[str]:
    """Makes some images bad; the names of those."""
    whole = (folder / "china/1.jpg").read_bytes()
    bad = {
        "china/a_cut.jpg": whole[: len(whole) // 2],
        "china/b_empty.jpg": b"",
        "flower/c_text.jpg": b"no image at all",
        "flower/d_html.png": b"<html>404</html>",
        "flower/e_zeros.jpg": b"\0" * 4000,
    }
    for name, data in bad.items():
        (folder / name).write_bytes(data)
    (folder / "flower/f_gone.jpg").symlink_to(folder / "nothing")
    return [*bad, "flower/f_gone.jpg"]


HOW: list[dict[str, Any]] = [
    {"image_size": 8},
    {"augmentation_fn": "vgg"},
    {"preprocess_fn": "lengths"},
    {"augmentation_fn": "vgg", "reader_class": AsyncRawGenerator},
    {"image_size": 8, "reader_class": AsyncRawGenerator},
]


def _how(how: dict[str, Any]) -> dict[str, Any]:
    functions = {
        "vgg": mox.get_data_augmentation_fn("vgg_16", mox.ModeKeys.TRAIN, output_height=16, output_width=16),
        "lengths": lambda name, data, label, text: (name, tf.strings.length(data), label, text),
    }
    return {key: functions.get(value, value) if isinstance(value, str) else value for key, value in how.items()}


@pytest.mark.parametrize("how", HOW)
def test_bad_images_are_left_out_named_and_counted_and_batches_stay_full(
    folder: Path, with_bad: list[str], read: Read, console: Any, how: dict[str, Any]
):
    dataset = _dataset(folder, batch_size=5, **_how(how))
    batches = read(dataset, ["image_name", "label", "image"])
    found = [name.decode() for names, _, _ in batches for name in names]
    assert [len(names) for names, _, _ in batches] == [5, 5, 4]
    assert all(len(images) == len(names) for names, _, images in batches)
    assert len(set(found)) == 14
    assert not set(found) & set(with_bad)
    assert dataset.num_samples == 20
    assert dataset.num_bad_images == 6
    for name in with_bad:
        assert f"{folder}/{name}" in console.text


@pytest.mark.parametrize("how", HOW)
def test_bad_images_are_errors_where_they_shall_be(folder: Path, with_bad: list[str], read: Read, how: dict[str, Any]):
    with pytest.raises(tf.errors.UnknownError, match=r"china/a_cut\.jpg: .*cut off"):
        read(_dataset(folder, batch_size=5, on_bad_image="raise", **_how(how)), ["image"])


@pytest.mark.slow
@pytest.mark.parametrize("how", HOW)
def test_a_data_set_without_a_good_image_ends_with_an_error(tmp_path: Path, read: Read, how: dict[str, Any]):
    for i in range(3):
        (tmp_path / "a").mkdir(exist_ok=True)
        (tmp_path / f"a/{i}.jpg").write_bytes(b"")
    with pytest.raises(tf.errors.UnknownError, match=r"none of the 3 images of .* can be decoded"):
        read(_dataset(tmp_path, batch_size=2, num_epochs=None, **_how(how)), ["image"])


@pytest.mark.parametrize("batch_size", [None, 2])
def test_a_shard_without_a_good_image_ends_with_an_error(folder: Path, read: Read, batch_size: int | None):
    for path in sorted(folder.glob("*/*.jpg"))[::2]:
        path.write_bytes(b"")
    with pytest.raises(tf.errors.UnknownError, match=r"none of the 7 images of shard 0 of 2 of .* can be decoded"):
        read(_dataset(folder, batch_size=batch_size, image_size=8, num_epochs=None, shard=(0, 2)), ["image"])


def test_odd_images_are_images(folder: Path, read: Read, crops: dict[str, list[np.ndarray]]):
    """A PNG that is called .jpg, CMYK, 16-bit and palette PNG, gray with alpha, GIF, BMP, WebP."""
    photo = Image.fromarray(crops["flower"][0])
    odd = folder / "odd"
    odd.mkdir()
    photo.save(odd / "0_png.jpg", "PNG")
    photo.convert("CMYK").save(odd / "1_cmyk.jpg", "JPEG")
    Image.fromarray(np.asarray(photo.convert("L")).astype(np.uint16) * 256).save(odd / "2_16bit.png")
    photo.quantize(16).save(odd / "3_palette.png")
    photo.convert("LA").save(odd / "4_alpha.png")
    for extension in ("gif", "bmp", "webp"):
        photo.save(odd / f"5.{extension}")
    images = [image for (image,) in read(_dataset(folder, on_bad_image="raise"), ["image"])][14:]
    assert len(images) == 8
    gray = np.repeat(np.asarray(photo.convert("L"))[..., np.newaxis], 3, 2).astype(int)
    for number, image in enumerate(images):
        assert image.shape == crops["flower"][0].shape
        expected = gray if number in (2, 4) else crops["flower"][0].astype(int)
        assert np.abs(image - expected).mean() < 16


# ---- caches


def _entries(cache: Path) -> list[str]:
    return sorted(str(path.relative_to(cache)) for path in cache.rglob("*") if path.is_file())


@pytest.mark.slow
@pytest.mark.parametrize("decoded", [False, True])
@pytest.mark.parametrize("how", HOW)
def test_a_cache_changes_nothing_and_is_removed(
    folder: Path, tmp_path: Path, with_bad: list[str], read: Read, how: dict[str, Any], decoded: bool
):
    if decoded and "preprocess_fn" in how:
        pytest.skip("preprocess_fn decodes itself")
    plain = read(_dataset(folder, batch_size=5, num_epochs=2, shuffle=True, seed=1, **_how(how)), ["image"])
    tf1.reset_default_graph()
    cache = tmp_path / "cache"
    dataset = _dataset(
        folder,
        batch_size=5,
        num_epochs=2,
        shuffle=True,
        seed=1,
        cache_dir=str(cache),
        cache_decoded=decoded,
        **_how(how),
    )
    cached = read(dataset, ["image"])
    assert len(plain) == len(cached) == 6
    for (a,), (b,) in zip(plain, cached, strict=True):
        np.testing.assert_array_equal(a, b)
    assert _entries(cache)
    del dataset
    tf1.reset_default_graph()
    gc.collect()
    assert _entries(cache) == []


@pytest.mark.slow
@pytest.mark.parametrize("decoded", [False, True])
def test_a_cache_that_is_kept_is_read_by_the_next_run(folder: Path, tmp_path: Path, read: Read, decoded: bool):
    def images() -> list[np.ndarray]:
        dataset = _dataset(
            folder,
            cache_dir=str(tmp_path / "cache"),
            cache_decoded=decoded,
            remove_cache_on_finish=False,
            on_bad_image="raise",
        )
        found = [image for (image,) in read(dataset, ["image"])]
        del dataset
        tf1.reset_default_graph()
        gc.collect()
        return found

    first = images()
    for path in folder.glob("*/*.jpg"):  # other content, of which the cache's key tells nothing
        found = path.stat()
        path.write_bytes(b"\0" * found.st_size)
        os.utime(path, ns=(found.st_atime_ns, found.st_mtime_ns))
    second = images()
    assert len(second) == 14
    assert all(np.array_equal(a, b) for a, b in zip(first, second, strict=True))
    changed = folder / "china/0.jpg"
    Image.fromarray(np.zeros((9, 9, 3), np.uint8)).save(changed)
    assert images()[0].shape == (9, 9, 3)


def test_a_reader_is_not_asked_for_what_is_cached(folder: Path, tmp_path: Path, read: Read):
    asked: list[str] = []

    class Counting(ParallelReader):
        def __iter__(self) -> Iterator[tuple[str, Any]]:
            for path, content in super().__iter__():
                asked.append(path)
                yield path, content

    dataset = _dataset(folder, num_epochs=6, cache_dir=str(tmp_path / "cache"), reader_class=Counting, capacity=4)
    assert len(read(dataset, ["image"])) == 84
    assert set(asked) == set(map(str, folder.glob("*/*.jpg")))
    # When the second epoch begins, files of the first may still be on their way through decoders that have no time.
    assert len(asked) <= 3 * 14


@pytest.mark.slow
def test_two_data_sets_share_a_cache_until_the_last_is_gone(folder: Path, tmp_path: Path, read: Read):
    cache = tmp_path / "cache"
    with tf1.Graph().as_default():
        first = _dataset(folder, cache_dir=str(cache), image_size=4)
        read(first, ["image"])
        with tf1.Graph().as_default():
            second = _dataset(folder, cache_dir=str(cache), image_size=4)
            assert len(read(second, ["image"])) == 14
        del second
        gc.collect()
        assert _entries(cache)
    del first
    gc.collect()
    assert _entries(cache) == []


@pytest.mark.slow
@pytest.mark.parametrize("decoded", [False, True])
def test_a_cache_that_another_process_uses_is_left_to_that(folder: Path, tmp_path: Path, read: Read, decoded: bool):
    cache = tmp_path / "cache"

    def packs(**how: Any) -> list[str]:
        with tf1.Graph().as_default():
            read(_dataset(folder, cache_dir=str(cache), image_size=4, cache_decoded=decoded, **how), ["image"])
        gc.collect()
        return [name for name in _entries(cache) if name.endswith(".pack")]

    kept = packs(remove_cache_on_finish=False)
    assert len(kept) == 1
    (lock,) = cache.glob("*/*-in-use.lock")
    with open(lock) as other:  # held as another process that uses the cache does
        fcntl.flock(other, fcntl.LOCK_SH)
        assert packs() == kept
    assert packs() == []
    assert _entries(cache) == []


@pytest.mark.timeout(60)
def test_a_cache_may_be_given_up_while_another_one_is_opened(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    """Garbage is collected at any moment."""
    with tf1.Graph().as_default():
        given_up = [_dataset(folder, cache_dir=str(tmp_path / "first"))]
    made = caching.BytesCache

    def collecting(*args: Any, **kwargs: Any) -> Any:
        given_up.clear()
        gc.collect()
        return made(*args, **kwargs)

    monkeypatch.setattr(caching, "BytesCache", collecting)
    with tf1.Graph().as_default():
        other = _dataset(folder, cache_dir=str(tmp_path / "second"))
    assert not given_up
    assert _entries(tmp_path / "first") == []
    assert _entries(tmp_path / "second")
    del other


def test_who_waits_for_a_cache_that_is_removed_begins_another_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    lock, flock = tmp_path / "cache" / "in-use.lock", fcntl.flock
    removed: list[bool] = []

    def waits(descriptor: int, how: int) -> None:
        if not removed:
            removed.append(True)
            shutil.rmtree(tmp_path / "cache")  # by who had the lock
        flock(descriptor, how)

    monkeypatch.setattr(fcntl, "flock", waits)
    descriptor = in_use.hold(str(lock))
    try:
        assert removed
        assert os.path.samestat(os.fstat(descriptor), os.stat(lock))
    finally:
        os.close(descriptor)


def test_env_names_the_cache(folder: Path, tmp_path: Path, read: Read, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.delenv("DLS_LOCAL_CACHE_PATH", raising=False)
    with pytest.raises(UsageError, match="DLS_LOCAL_CACHE_PATH is not set"):
        _dataset(folder, cache_dir="ENV")
    monkeypatch.setenv("DLS_LOCAL_CACHE_PATH", str(tmp_path / "ssd"))
    dataset = _dataset(folder, cache_dir="ENV")
    read(dataset, ["image"])
    assert _entries(tmp_path / "ssd")


def test_a_cache_folder_that_cannot_be(folder: Path, tmp_path: Path):
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(DataError, match=r"cache_dir '.*/file' cannot be used"):
        _dataset(folder, cache_dir=str(tmp_path / "file"))


_KILLED = """
    import os, sys, time
    import moxserve.tensorflow as mox
    from moxserve.tensorflow.executor.env import tf1
    meta = mox.ImageClassificationRawMetadata(sys.argv[1])
    dataset = mox.ImageClassificationRawDataset(
        meta, cache_dir=sys.argv[2], remove_cache_on_finish=sys.argv[3] == "remove", shuffle=False)
    image = dataset.get(["image"])
    with tf1.Session() as session:
        for _ in range(20):
            session.run(image)
        print("read", flush=True)
        if sys.argv[3] == "wait":
            time.sleep(600)
"""


@pytest.mark.slow
def test_a_killed_process_leaves_nothing_that_is_taken_for_data_and_an_end_removes_the_cache(
    folder: Path, tmp_path: Path, read: Read
):
    script, cache = tmp_path / "script.py", tmp_path / "cache"
    script.write_text(textwrap.dedent(_KILLED))
    killed = subprocess.Popen(
        [sys.executable, str(script), str(folder), str(cache), "wait"], stdout=subprocess.PIPE, text=True
    )
    assert killed.stdout is not None
    assert killed.stdout.readline() == "read\n"
    killed.send_signal(signal.SIGKILL)
    killed.wait()
    killed.stdout.close()
    assert _entries(cache)
    assert not list(cache.rglob("*.index"))
    assert len(read(_dataset(folder, cache_dir=str(cache), on_bad_image="raise"), ["image"])) == 14
    other = tmp_path / "other"
    ended = subprocess.run(
        [sys.executable, str(script), str(folder), str(other), "remove"], capture_output=True, text=True, timeout=240
    )
    assert ended.returncode == 0, ended.stderr
    assert _entries(other) == []


@pytest.mark.slow
def test_an_unfinished_data_set_can_be_left(folder: Path):
    before = readers()
    with tf1.Graph().as_default():
        (image,) = _dataset(folder, num_epochs=None, reader_class=AsyncRawGenerator).get(["image"])
        with tf1.Session() as session:
            session.run(image)
    del session, image
    gc.collect()
    limit = time.monotonic() + 120
    while readers() - before and time.monotonic() < limit:
        time.sleep(0.05)
    assert not readers() - before
