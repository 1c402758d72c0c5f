"""The native decoder: the same images with it and without, whatever the file; built and removed by the command line."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from moxserve.cli.main import cli
from moxserve.images.batch import BatchDecoder
from moxserve.images.decode import WindowDecoder
from moxserve.images.geometry import Window
from moxserve.images.header import BadImageError, read_header
from moxserve.images.native import build, library
from moxserve.images.native.check import compare, samples
from moxserve.images.native.library import NativeDecoder


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A native decoder in a cache of its own."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MOXSERVE_CACHE", str(tmp_path_factory.mktemp("cache")))
        try:
            return build.build().path
        except build.NativeBuildError as error:
            if "no C compiler" in str(error) or "libjpeg" in str(error):
                pytest.skip(f"the native decoder cannot be built here: {error}")
            raise


@pytest.fixture(scope="module")
def native(built: str) -> NativeDecoder:
    return NativeDecoder(built)


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """An empty cache; what the process knows of native decoders is forgotten before and after."""
    monkeypatch.setenv("MOXSERVE_CACHE", str(tmp_path / "cache"))
    for name in ("CC", "CFLAGS", "LDFLAGS", library.SWITCH):
        monkeypatch.delenv(name, raising=False)
    library._decided.clear()
    yield tmp_path / "cache" / "native"
    library._decided.clear()


@pytest.fixture
def placed(built: str, cache: Path) -> Path:
    """The native decoder where it is looked for."""
    cache.mkdir(parents=True, mode=0o700)
    return Path(shutil.copy(built, library.library_path()))


@dataclass
class Fixed:
    """Always the same window."""

    wanted: Window

    def window(self, height: int, width: int, rng: np.random.Generator) -> Window:
        return self.wanted


def both(data: bytes, window: Window, native: NativeDecoder | None, channels: int = 3) -> np.ndarray | str:
    """Decode with a native decoder or with none; errors as text."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(library, "installed", lambda: native)
        try:
            return WindowDecoder(Fixed(window), channels)(data, np.random.default_rng(0))
        except BadImageError as error:
            return str(error)


def same(one: np.ndarray | str, other: np.ndarray | str) -> bool:
    if isinstance(one, str) or isinstance(other, str):
        return isinstance(one, str) and isinstance(other, str) and one == other
    return np.array_equal(one, other)


def test_pixels_are_those_of_the_decoders_in_python(native: NativeDecoder):
    assert compare(native) is None


@pytest.mark.slow
def test_results_do_not_depend_on_it(native: NativeDecoder, files: dict[str, bytes]):
    rng = np.random.default_rng(3)
    taken = 0
    for name, data in files.items():
        header = read_header(data)
        for number in range(12):
            # Also beyond the image, on all sides.
            height, width = int(rng.integers(1, 120)), int(rng.integers(1, 150))
            top, left = int(rng.integers(-20, header.height)), int(rng.integers(-20, header.width))
            window = Window(top, left, height, width, 24, 32, bool(number % 2))
            for channels in (1, 3, 4):
                if name.startswith("jpeg"):
                    taken += native.part(data, header, min(channels, 3), window) is not None
                assert same(both(data, window, native, channels), both(data, window, None, channels)), (name, window)
    assert taken > 300


@pytest.mark.parametrize("name", ["jpeg.444.progressive.90", "jpeg.cmyk", "jpeg.rgb"])
def test_others_are_left_to_python(name: str, native: NativeDecoder, files: dict[str, bytes]):
    header = read_header(files[name])
    assert native.part(files[name], header, 3, Window(2, 2, 20, 20, 20, 20)) is None


def test_damage_is_left_to_python(native: NativeDecoder):
    data = dict(samples())["420, restart interval 0"]
    header = read_header(data)
    low, high = Window(0, 0, 8, 117, 8, 117), Window(60, 0, 8, 117, 8, 117)
    cut_off = data[: header.scan_at + 300]
    damaged = bytearray(data)
    damaged[header.scan_at + 300 : header.scan_at + 302] = b"\xff\xd9"
    table = bytearray(data)
    table[-400:-396] = b"\xff\xc4\x00\x02"
    assert native.part(data, header, 3, low) is not None
    assert native.part(cut_off, header, 3, high) is None
    assert native.part(bytes(damaged), header, 3, high) is None
    # A marker below the window: the decoders in Python may stumble over it.
    assert native.part(bytes(table), header, 3, low) is None
    assert native.part(data, header, 3, low) is not None


def test_a_wrong_header_is_not_believed(native: NativeDecoder, files: dict[str, bytes]):
    small, large = files["jpeg.one"], files["jpeg.420.baseline.90"]
    assert native.part(small, read_header(large), 3, Window(0, 0, 101, 133, 8, 8)) is None


FUZZ = """
import sys
import numpy as np
from hypothesis import HealthCheck, given, settings, strategies as st
from moxserve.images.geometry import Window
from moxserve.images.header import read_header
from moxserve.images.native.check import samples
from moxserve.images.native.library import NativeDecoder

native = NativeDecoder(sys.argv[1])
files = [(data, read_header(data)) for _, data in samples()]

@settings(max_examples=int(sys.argv[2]), deadline=None, derandomize=True, database=None,
          suppress_health_check=list(HealthCheck))
@given(st.data())
def fuzz(draw):
    data, header = draw.draw(st.sampled_from(files))
    data = bytearray(data)
    edits = st.lists(st.tuples(st.integers(2, len(data) - 1), st.integers(0, 255)), max_size=12)
    for at, value in draw.draw(edits):
        data[at] = value
    cut = draw.draw(st.integers(0, len(data)))
    data = bytes(data[:cut]) if draw.draw(st.booleans()) else bytes(data)
    top, left = draw.draw(st.integers(-9, 82)), draw.draw(st.integers(-9, 116))
    window = Window(top, left, draw.draw(st.integers(1, 99)), draw.draw(st.integers(1, 130)), 9, 9)
    found = native.part(data, header, draw.draw(st.sampled_from([1, 3])), window)
    assert found is None or found[0].size > 0

fuzz()
print("survived")
"""


@pytest.mark.slow
def test_hostile_files_do_no_harm(built: str, tmp_path: Path):
    script = tmp_path / "fuzz.py"
    script.write_text(FUZZ)
    done = subprocess.run([sys.executable, str(script), built, "600"], capture_output=True, text=True, timeout=280)
    assert done.returncode == 0, done.stderr[-2000:]
    assert done.stdout.strip() == "survived"
    assert done.stderr == ""


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    st.sampled_from([data for _, data in samples()]),
    st.lists(st.tuples(st.floats(0, 0.999), st.integers(0, 255)), min_size=1, max_size=4),
    st.integers(0, 60), st.integers(0, 90), st.booleans(),
)  # fmt: skip
def test_damaged_files_give_what_they_gave(
    native: NativeDecoder, data: bytes, edits: list[tuple[float, int]], top: int, left: int, in_scan: bool
):
    start = read_header(data).scan_at if in_scan else 2
    damaged = bytearray(data)
    for at, value in edits:
        damaged[start + int(at * (len(data) - start))] = value
    window = Window(top, left, 20, 25, 10, 10)
    assert same(both(bytes(damaged), window, native), both(bytes(damaged), window, None))


def test_threads_do_not_disturb_each_other(native: NativeDecoder):
    files = [(data, read_header(data)) for _, data in samples()]
    window = Window(11, 30, 40, 50, 40, 50)
    expected = [np.array(native.part(data, header, 3, window)[0]) for data, header in files]
    wrong: list[int] = []

    def work(offset: int) -> None:
        for number in range(300):
            which = (number + offset) % len(files)
            found = native.part(*files[which], 3, window)
            if found is None or not np.array_equal(found[0], expected[which]):
                wrong.append(which)

    threads = [threading.Thread(target=work, args=(offset,)) for offset in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []


def test_it_is_used_when_it_is_there(placed: Path, monkeypatch: pytest.MonkeyPatch):
    data = dict(samples())["420, restart interval 0"]
    header = read_header(data)
    decoder = BatchDecoder(Fixed(Window(20, 30, 40, 50, 24, 32, True)), (24, 32))
    without = both(data, Window(20, 30, 40, 50, 24, 32, True), None)
    calls = []
    part = NativeDecoder.part
    monkeypatch.setattr(NativeDecoder, "part", lambda self, *given: calls.append(given) or part(self, *given))
    np.testing.assert_array_equal(decoder.decode(["a"] * 3, [data] * 3, [0, 1, 2]).images, np.stack([without] * 3))
    assert len(calls) == 3
    assert calls[0][1] == header


def test_it_can_be_switched_off(placed: Path, monkeypatch: pytest.MonkeyPatch):
    assert library.installed() is not None
    library._decided.clear()
    monkeypatch.setenv(library.SWITCH, "0")
    assert library.installed() is None


def test_without_one_nothing_is_said(cache: Path, caplog: pytest.LogCaptureFixture):
    assert library.installed() is None
    assert not caplog.records
    assert not cache.exists()


def test_what_others_could_have_written_is_not_loaded(placed: Path, caplog: pytest.LogCaptureFixture):
    placed.chmod(0o622)
    assert library.installed() is None
    assert "can be written to by others (mode 622)" in caplog.text
    placed.chmod(0o600)
    placed.parent.chmod(0o777)
    library._decided.clear()
    assert library.installed() is None
    assert "can be written to by others (mode 777)" in caplog.text
    placed.parent.chmod(0o700)
    real = placed.rename(placed.with_name("elsewhere.so"))
    placed.symlink_to(real)
    library._decided.clear()
    assert library.installed() is None
    assert "is not a file" in caplog.text


def test_what_belongs_to_others_is_not_loaded(placed: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(os, "geteuid", lambda: 12345)
    assert "not to this one (12345)" in (library.trusted(str(placed)) or "")


def test_a_library_that_cannot_be_loaded_is_told(cache: Path, caplog: pytest.LogCaptureFixture):
    cache.mkdir(parents=True, mode=0o700)
    path = Path(library.library_path())
    path.write_bytes(b"no library")
    path.chmod(0o600)
    assert library.installed() is None
    assert "the native decoder is not used" in caplog.text
    assert "moxserve data native-decoder" in caplog.text


def test_threads_that_ask_at_once_are_told_once(
    cache: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
):
    asked = []

    def slowly(path: str) -> str:
        asked.append(path)
        time.sleep(0.2)
        return "nobody knows it"

    monkeypatch.setattr(library, "trusted", slowly)
    threads = [threading.Thread(target=library.installed) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(asked) == 1
    assert caplog.text.count("nobody knows it") == 1


def run(*arguments: str) -> tuple[int, str]:
    done = CliRunner().invoke(cli, ["data", "native-decoder", *arguments])
    return done.exit_code, done.output + (str(done.exception) if done.exception else "")


def test_command_builds_and_removes(built: str, cache: Path):
    status, said = run()
    assert status == 0, said
    (path,) = cache.iterdir()
    assert f"installed {path}" in said
    assert path.stat().st_mode & 0o077 == 0
    assert library.installed() is not None
    assert run("--remove") == (0, f"removed {path}\n")
    assert list(cache.iterdir()) == []
    assert run("--remove") == (0, f"there is no native decoder in {cache}\n")


def fake_compiler(folder: Path, script: str) -> str:
    path = folder / "fake-cc"
    path.write_text(f"#!/bin/sh\n{script}\n")
    path.chmod(0o755)
    return str(path)


@pytest.mark.parametrize(
    ("script", "expected"),
    [
        ("echo 'windows.c:16:10: fatal error: jpeglib.h: No such file or directory' >&2; exit 1", "(jpeglib.h)"),
        ("echo \"windows.c:16:10: fatal error: 'jpeglib.h' file not found\" >&2; exit 1", "(jpeglib.h)"),
        ("echo '/usr/bin/ld: cannot find -ljpeg: No such file or directory' >&2; exit 1", "(-ljpeg)"),
        ("echo '#error \"moxserve-needs-libjpeg-turbo-2\"' >&2; exit 1", "that is not libjpeg-turbo 2"),
        ("echo 'windows.c:1: internal compiler error' >&2; exit 4", "internal compiler error"),
        ("while [ \"$1\" != -o ]; do shift; done; echo nothing > \"$2\"", "does not work here"),
    ],
)  # fmt: skip
def test_command_says_what_is_missing(
    script: str, expected: str, cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setenv("CC", fake_compiler(tmp_path, script))
    status, said = run()
    assert status == 1
    assert expected in said
    assert list(cache.iterdir()) == []


def test_command_needs_a_compiler(cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("PATH", str(tmp_path))
    status, said = run()
    assert status == 1
    assert "none of cc, gcc, clang is found" in said
    monkeypatch.setenv("CC", "absent-cc -m64")
    assert "CC='absent-cc -m64' is not found" in run()[1]


def test_a_decoder_of_other_pixels_is_not_installed(built: str, cache: Path, monkeypatch: pytest.MonkeyPatch):
    wrong = library.source().replace(b"JDCT_ISLOW", b"JDCT_IFAST")
    monkeypatch.setattr(build, "source", lambda: wrong)
    status, said = run()
    assert status == 1
    assert "other pixels than the decoders in Python give" in said
    assert list(cache.iterdir()) == []


def test_command_does_not_build_where_others_write(built: str, cache: Path):
    cache.mkdir(parents=True)
    cache.chmod(0o770)
    status, said = run()
    assert status == 1
    assert "can be written to by others (mode 770)" in said
