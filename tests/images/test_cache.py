"""Caches: filled by whoever reads, found again, never half written, never stale."""

from __future__ import annotations

import errno
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from moxserve.errors import UsageError
from moxserve.file import TEMP_PREFIX
from moxserve.images import pack
from moxserve.images.batch import BatchDecoder
from moxserve.images.cache import BytesCache, DecodedCache, FileKey
from moxserve.images.geometry import Window
from moxserve.images.pack import PackStore


@pytest.fixture(autouse=True)
def always_look(monkeypatch: pytest.MonkeyPatch) -> None:
    """Other processes' packs are seen at once, not after seconds."""
    monkeypatch.setattr(pack, "_LOOK_AGAIN_S", 0.0)


@pytest.fixture
def paths(tmp_path: Path, files: dict[str, bytes]) -> list[str]:
    """Six files."""
    made = []
    for number, name in enumerate(("jpeg.420.baseline.90", "png.RGB", "webp.lossy") * 2):
        path = tmp_path / f"{number}.jpg"
        path.write_bytes(files[name])
        made.append(str(path))
    return made


class Crop:
    """A random window."""

    def window(self, height: int, width: int, rng: np.random.Generator) -> Window:
        return Window(int(rng.integers(0, 60)), int(rng.integers(0, 70)), 40, 50, 24, 32, bool(rng.integers(2)))


def _packs(folder: Path) -> list[str]:
    return sorted(path.name.partition(".")[2] for path in folder.rglob("*") if path.suffix in (".pack", ".index"))


@pytest.mark.parametrize("kind", [BytesCache, DecodedCache])
def test_what_comes_from_a_cache_is_the_same(tmp_path: Path, paths: list[str], kind: type):
    expected = BatchDecoder(Crop(), (24, 32)).decode(paths, paths, range(6)).images
    cache = kind(tmp_path / "cache")
    first = BatchDecoder(Crop(), (24, 32), cache=cache).decode(paths, paths, range(6)).images
    again = BatchDecoder(Crop(), (24, 32), cache=cache).decode(paths, paths, range(6)).images
    assert len(cache.store) == 6
    cache.close()
    assert _packs(tmp_path / "cache") == ["index", "pack"]
    found = kind(tmp_path / "cache")
    assert len(found.store) == 6
    later = BatchDecoder(Crop(), (24, 32), cache=found).decode(paths, paths, range(6)).images
    for images in (first, again, later):
        np.testing.assert_array_equal(images, expected)


def test_bytes_are_fetched_once(tmp_path: Path, paths: list[str]):
    fetched = []

    def fetch(path: str) -> bytes:
        fetched.append(path)
        return Path(path).read_bytes()

    cache = BytesCache(tmp_path / "cache", fetch=fetch)
    for _ in range(3):
        for path in paths:
            assert cache.read(path) == Path(path).read_bytes()
    assert fetched == paths
    cache.close()
    assert BytesCache(tmp_path / "cache", fetch=fetch).read(paths[0]) == Path(paths[0]).read_bytes()
    assert fetched == paths
    # A path that no local file system knows, with a key from elsewhere.
    remote = BytesCache(tmp_path / "remote", fetch=lambda path: path.encode())
    key = FileKey("obs://bucket/a.jpg", 17, 1)
    assert remote.read("obs://bucket/a.jpg", key) == b"obs://bucket/a.jpg"


def test_pixels_are_decoded_once(tmp_path: Path, paths: list[str]):
    cache = DecodedCache(tmp_path / "cache")
    decoder = BatchDecoder(Crop(), (24, 32), cache=cache)
    before = decoder.decode(paths, paths, range(6)).images
    for path in paths:  # same size, same time, other content: only a cache gives the old pixels
        stat = os.stat(path)
        Path(path).write_bytes(bytes(stat.st_size))
        os.utime(path, ns=(stat.st_atime_ns, stat.st_mtime_ns))
    np.testing.assert_array_equal(decoder.decode(paths, paths, range(6)).images, before)


def test_a_changed_file_is_read_anew(tmp_path: Path, paths: list[str], encode):
    for kind in (BytesCache, DecodedCache):
        decoder = BatchDecoder(cache=kind(tmp_path / kind.__name__))
        old = decoder.decode(paths[1:2], paths[1:2], [0]).images
        stat = os.stat(paths[1])
        changed = encode("PNG", image=255 - old[0])
        Path(paths[1]).write_bytes(changed)
        os.utime(paths[1], ns=(stat.st_atime_ns, stat.st_mtime_ns + 1))
        np.testing.assert_array_equal(decoder.decode(paths[1:2], paths[1:2], [0]).images, 255 - old)
        Path(paths[1]).write_bytes(encode("PNG", image=old[0]))


def test_bytes_that_are_no_file_are_known_by_content(tmp_path: Path, files: dict[str, bytes]):
    cache = DecodedCache(tmp_path / "cache")
    decoder = BatchDecoder(cache=cache)
    for name in ("png.RGB", "png.L"):
        found = decoder.decode(["same name"], [files[name]], [0]).images
        np.testing.assert_array_equal(found[0], BatchDecoder().decode(["x"], [files[name]], [0]).images[0])
    assert len(cache.store) == 2


def test_channels_are_kept_apart(tmp_path: Path, paths: list[str]):
    cache = DecodedCache(tmp_path / "cache")
    for channels in (1, 3, 4, 1):
        assert BatchDecoder(channels=channels, cache=cache).decode(paths, paths, range(6)).images.shape[3] == channels


def test_a_cache_has_a_limit(tmp_path: Path, caplog: pytest.LogCaptureFixture):
    store = PackStore(tmp_path, max_bytes=2500)
    stored = [store.put((number, 0), bytes(1000)) for number in range(5)]
    assert stored == [True, True, False, False, False]
    assert store.stored_bytes == 2000
    assert [store.get((number, 0)) is not None for number in range(5)] == stored
    assert len(caplog.messages) == 1
    assert "is full: it holds 2000 of 2500 bytes" in caplog.text
    store.close()
    assert PackStore(tmp_path, max_bytes=2500).put((9, 0), bytes(1000)) is False
    with pytest.raises(UsageError, match="max_bytes=-1"):
        PackStore(tmp_path, max_bytes=-1)


def test_remove_leaves_nothing(tmp_path: Path, paths: list[str]):
    cache = BytesCache(tmp_path / "cache")
    cache.read(paths[0])
    cache.commit()
    cache.read(paths[1])
    cache.remove()
    assert not (tmp_path / "cache" / "bytes").exists()
    assert cache.read(paths[0]) == Path(paths[0]).read_bytes()
    cache.close()
    assert len(BytesCache(tmp_path / "cache").store) == 1


def test_a_folder_that_somebody_removed_is_no_error(tmp_path: Path, paths: list[str]):
    mine, other = BytesCache(tmp_path / "c"), BytesCache(tmp_path / "c")
    mine.read(paths[0])
    other.remove()
    mine.read(paths[1])
    mine.close()
    assert mine.read(paths[1]) == Path(paths[1]).read_bytes()


@pytest.mark.parametrize("code", [errno.EACCES, errno.EROFS, errno.ENOSPC, errno.EIO])
def test_a_cache_that_cannot_be_written_costs_no_image(
    tmp_path: Path, paths: list[str], code: int, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
):
    def denied(*_: object) -> None:
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr("moxserve.images.pack.temp_name", denied)
    decoder = BatchDecoder(size=(8, 8), cache=DecodedCache(tmp_path / "cache"))
    assert not decoder.decode(paths[:2], paths[:2], [0, 1]).bad.any()
    assert decoder.log.count == 0
    assert caplog.messages == [f"{tmp_path / 'cache' / 'decoded'} takes no more: {os.strerror(code)}"]


@pytest.mark.parametrize("step", ["fsync_path", "fsync_directory", "atomic_write"])
def test_a_pack_that_a_full_disk_does_not_take_is_told_of_and_removed(
    tmp_path: Path, step: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
):
    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    store = PackStore(tmp_path)
    assert store.put((1, 2), b"first")
    with monkeypatch.context() as patch:
        patch.setattr(f"moxserve.images.pack.{step}", full)
        store.commit()
    assert caplog.messages == [f"{tmp_path}: 1 entries were not kept: No space left on device"]
    assert (store.get((1, 2)), os.listdir(tmp_path)) == (None, ["lock"])
    assert store.put((1, 2), b"again")
    store.close()
    found = PackStore(tmp_path).get((1, 2))
    assert found is not None
    assert found.data.tobytes() == b"again"


def test_one_writes_and_others_read_through(tmp_path: Path):
    first, second = PackStore(tmp_path), PackStore(tmp_path)
    assert first.put((1, 1), b"one")
    assert not second.put((2, 2), b"two")
    assert second.get((1, 1)) is None
    first.commit()
    assert bytes(second.get((1, 1)).data) == b"one"
    assert not second.put((2, 2), b"two")
    first.close()
    assert second.put((2, 2), b"two")
    assert bytes(second.get((2, 2)).data) == b"two"
    second.close()
    assert bytes(first.get((2, 2)).data) == b"two"


def test_what_another_thread_commits_meanwhile_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    store = PackStore(tmp_path)
    assert store.put((1, 1), b"one")
    look, looked = pack._find, []

    def look_before(*args: object) -> object:
        found = look(*args)  # type: ignore[arg-type]
        looked.append(found)
        if len(looked) == 1:
            store.commit()
        return found

    monkeypatch.setattr(pack, "_find", look_before)
    found = store.get((1, 1))
    assert looked[0] is None
    assert found is not None
    assert bytes(found.data) == b"one"
    # Nor is it stored twice by a thread that looked before.
    assert store.put((1, 1), b"one")
    store.close()
    assert len(PackStore(tmp_path)) == 1


def test_many_packs_are_one_table(tmp_path: Path):
    store = PackStore(tmp_path)
    for number in range(30):
        store.put((number * 7919 % 31, number), np.full(number + 1, number, np.uint8), (1, number + 1, 1))
        store.commit()
    assert len(store) == 30
    assert len(store._tables) <= 8
    for reader in (store, PackStore(tmp_path)):
        for number in range(30):
            entry = reader.get((number * 7919 % 31, number))
            assert (entry.data == number).all()
            assert entry.shape == (1, number + 1, 1)
        assert reader.get((5, 999)) is None


def test_damaged_entries_and_indices_are_never_used(tmp_path: Path):
    store = PackStore(tmp_path)
    store.put((1, 1), b"x" * 100)
    store.put((2, 2), b"y" * 100)
    store.close()
    data = next(tmp_path.glob("*.pack"))
    content = bytearray(data.read_bytes())
    content[50] ^= 1
    data.write_bytes(content)
    reader = PackStore(tmp_path)
    assert reader.get((1, 1)) is None
    assert bytes(reader.get((2, 2)).data) == b"y" * 100
    data.write_bytes(content[:150])
    assert PackStore(tmp_path).get((2, 2)) is None
    data.write_bytes(b"x" * 100 + b"y" * 100)
    assert PackStore(tmp_path).get((1, 1)) is not None
    index = next(tmp_path.glob("*.index"))
    whole = index.read_bytes()
    for broken in (b"", whole[:20], whole[:-1], whole[:30] + b"\xff" + whole[31:]):
        index.write_bytes(broken)
        assert len(PackStore(tmp_path)) == 0


@given(st.binary(max_size=200))
def test_any_index_is_opened_or_refused(tmp_path_factory: pytest.TempPathFactory, content: bytes):
    folder = tmp_path_factory.mktemp("index")
    (folder / "a.pack").write_bytes(b"abc")
    (folder / "a.index").write_bytes(b"moxpack1" + pack._checksum(content).to_bytes(4, "little") + content)
    PackStore(folder).get((0, 0))


WRITER = """
import sys
from moxserve.images.cache import BytesCache, DecodedCache
from moxserve.images.batch import BatchDecoder
folder, paths = sys.argv[1], sys.argv[2:]
bytes_cache, decoded = BytesCache(folder), DecodedCache(folder)
one, two = BatchDecoder(cache=bytes_cache), BatchDecoder(cache=decoded)
half = len(paths) // 2
for decoder in (one, two):
    decoder.decode(paths[:half], paths[:half], range(half))
bytes_cache.commit(); decoded.commit()
for decoder in (one, two):
    decoder.decode(paths[half:], paths[half:], range(half))
print("written", flush=True)
for number in range(2000):  # less than a pack, so that one is open whenever this is killed
    decoded.store.put((1, number), b"z" * 100_000)
sys.stdin.read()
"""


def test_a_killed_writer_leaves_nothing_wrong(tmp_path: Path, paths: list[str]):
    folder = tmp_path / "cache"
    command = [sys.executable, "-c", WRITER, str(folder), *paths]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        try:
            assert process.stdout is not None
            assert process.stdout.readline() == b"written\n"
            reader = BytesCache(folder)
            assert len(reader.store) == 3
            assert reader.read(paths[5]) == Path(paths[5]).read_bytes()
            assert not reader.store.put((0, 0), b"x")  # the other one lives, and writes
            time.sleep(0.05)
        finally:
            process.send_signal(signal.SIGKILL)
    # Also a pack whose writer died before its index.
    (folder / "bytes" / "dead.pack").write_bytes(b"half")
    assert any(name.startswith(TEMP_PREFIX) for name in os.listdir(folder / "decoded"))
    expected = BatchDecoder().decode(paths, paths, range(6)).images
    for kind in (BytesCache, DecodedCache):
        cache = kind(folder)
        assert len(cache.store) == 3
        np.testing.assert_array_equal(BatchDecoder(cache=cache).decode(paths, paths, range(6)).images, expected)
        assert len(cache.store) == 6
        cache.close()
        assert _packs(folder / ("bytes" if kind is BytesCache else "decoded")) == ["index", "index", "pack", "pack"]
    assert not [path for path in folder.rglob("*") if path.name.startswith(TEMP_PREFIX)]


def test_the_end_of_a_program_commits(tmp_path: Path, paths: list[str]):
    program = "import sys; from moxserve.images.cache import *; c = BytesCache(sys.argv[1]); c.read(sys.argv[2])"
    subprocess.run([sys.executable, "-c", program, str(tmp_path / "c"), paths[0]], check=True, timeout=120)
    assert len(BytesCache(tmp_path / "c").store) == 1


@pytest.mark.skipif(not hasattr(os, "fork"), reason="there is no fork")
def test_a_forked_child_reads_and_does_not_finish_the_parents_pack(tmp_path: Path):
    program = """
import os, sys
from moxserve.images.pack import PackStore
store = PackStore(sys.argv[1])
store.put((1, 1), b"finished"); store.commit(); store.put((2, 2), b"open")
child = os.fork()
if child == 0:
    ok = bytes(store.get((1, 1)).data) == b"finished" and store.get((2, 2)) is None and not store.put((3, 3), b"x")
    store.close()
    sys.exit(0 if ok else 3)
status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
assert bytes(store.get((2, 2)).data) == b"open"
assert store.put((4, 4), b"more")
store.close()
assert len(PackStore(sys.argv[1])) == 3
sys.exit(status)
"""
    subprocess.run([sys.executable, "-c", program, str(tmp_path)], check=True, timeout=120)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="there is no fork")
def test_threads_of_a_forked_child_that_come_at_once_leave_the_parents_pack_alone(tmp_path: Path):
    program = """
import os, sys, threading
from moxserve.images import pack
store = pack.PackStore(sys.argv[1])
store.put((1, 1), b"one")
child = os.fork()
if child == 0:
    begun, stored = threading.Event(), threading.Event()

    class Slow:
        @staticmethod
        def RLock():
            begun.set()
            stored.wait(60)
            return threading.RLock()

    pack.threading = Slow
    first = threading.Thread(target=store.get, args=((2, 2),))
    first.start()
    begun.wait(0.3)
    wrong = store.put((3, 3), b"x")
    stored.set()
    first.join()
    os._exit(3 if wrong else 0)
sys.exit(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
"""
    subprocess.run([sys.executable, "-c", program, str(tmp_path)], check=True, timeout=120)
