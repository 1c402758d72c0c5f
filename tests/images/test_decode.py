"""Pixels against TensorFlow and Pillow; windows against whole images."""

from __future__ import annotations

import io
import struct
import subprocess
import sys
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from moxserve.errors import UsageError
from moxserve.images import decode as module
from moxserve.images.decode import WindowDecoder, cut, decode
from moxserve.images.geometry import Stretch, Window
from moxserve.images.header import BadImageError


@pytest.fixture(params=["simplejpeg", "opencv"])
def decoder(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Each of the two JPEG decoders."""
    if request.param == "opencv":
        monkeypatch.setattr(module, "simplejpeg", None)
    elif module.simplejpeg is None:
        pytest.skip("simplejpeg is not installed")
    return str(request.param)


def _tensorflow(data: bytes, name: str, channels: int) -> np.ndarray | None:
    import tensorflow as tf

    try:
        if name.startswith("jpeg"):
            return tf.io.decode_jpeg(data, channels, dct_method="INTEGER_ACCURATE").numpy()
        return tf.io.decode_image(data, channels, expand_animations=False).numpy()
    except (tf.errors.InvalidArgumentError, ValueError):
        return None


# What TensorFlow does otherwise, as the module says.
_ALPHA_OF_ITS_OWN = {"png.1"}


@pytest.mark.usefixtures("eager")
def test_pixels_are_those_of_tensorflow(files: dict[str, bytes], decoder: str):
    compared = 0
    for name, data in files.items():
        for channels in (1, 3, 4):
            expected = _tensorflow(data, name, channels)
            if expected is None or (channels == 4 and name in _ALPHA_OF_ITS_OWN):
                continue
            found = decode(data, channels, name)
            assert (found.dtype, found.shape) == (np.uint8, expected.shape), (name, channels)
            # OpenCV's formula for CMYK may be 1 lower.
            tolerance = 1 if name == "jpeg.cmyk" and decoder == "opencv" else 0
            np.testing.assert_allclose(
                found.astype(int), expected, atol=tolerance, rtol=0, err_msg=f"{name}/{channels}"
            )
            compared += 1
    assert compared > 60


@pytest.mark.usefixtures("eager")
def test_cmyk_without_adobe_is_not_inverted(files: dict[str, bytes], photo: np.ndarray):
    pytest.importorskip("simplejpeg")
    inverted = files["jpeg.cmyk"]
    at = inverted.index(b"\xff\xee")
    plain = inverted[:at] + inverted[at + 2 + struct.unpack(">H", inverted[at + 2 : at + 4])[0] :]
    expected = _tensorflow(plain, "jpeg", 3)
    np.testing.assert_array_equal(decode(plain), expected)
    assert np.abs(decode(inverted).astype(int) - photo).mean() < 3


def test_cmyk_that_opencv_would_invert_is_refused(files: dict[str, bytes], monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(module, "simplejpeg", None)
    data = files["jpeg.cmyk"].replace(b"Adobe", b"Other")
    with pytest.raises(BadImageError, match="CMYK file without Adobe's marker"):
        decode(data)


def test_every_format_can_be_gray_and_can_have_alpha(files: dict[str, bytes], decoder: str):
    for name, data in files.items():
        colour = decode(data, 3, name)
        assert decode(data, 1, name).shape == (*colour.shape[:2], 1)
        alpha = decode(data, 4, name)
        np.testing.assert_array_equal(alpha[..., :3], colour, err_msg=name)


def test_pillow_agrees(files: dict[str, bytes], decoder: str):
    for name in ("jpeg.420.baseline.90", "jpeg.444.progressive.40", "png.P", "webp.lossy", "gif.moving", "bmp.gray"):
        expected = np.asarray(Image.open(io.BytesIO(files[name])).convert("RGB"))
        np.testing.assert_array_equal(decode(files[name]), expected, err_msg=name)


def test_the_orientation_is_not_applied(files: dict[str, bytes], decoder: str):
    assert decode(files["jpeg.exif"]).shape == (101, 133, 3)
    assert decode(files["jpeg.exif"], 1).shape == (101, 133, 1)


def test_channels_are_checked(files: dict[str, bytes]):
    with pytest.raises(UsageError, match="channels=2: expected 1"):
        decode(files["png.L"], 2)


def test_files_that_are_cut_off_are_bad(files: dict[str, bytes], decoder: str):
    for name, data in files.items():
        if name == "jpeg.trailing":
            continue
        for part in (0.3, 0.8):
            with pytest.raises(BadImageError, match=name):
                decode(data[: int(len(data) * part)], 3, name)


def _without_a_table(data: bytes) -> bytes:
    """A JPEG whose scan gives the decoder something to warn of, and then names a table that is not there."""
    damaged = bytearray(data)
    scan = damaged.index(b"\xff\xda")
    components = damaged[scan + 4]
    damaged[scan + 6] = 0x33
    damaged[scan + 5 + 2 * components : scan + 8 + 2 * components] = b"\x00\x01\x00"
    return bytes(damaged)


def test_memory_that_was_not_written_is_no_image(files: dict[str, bytes], decoder: str):
    for name in ("jpeg.420.baseline.90", "jpeg.gray", "jpeg.cmyk"):
        damaged = _without_a_table(files[name])
        for channels in (1, 3):
            with pytest.raises(BadImageError, match="the decoder refuses it"):
                decode(damaged, channels)
            with pytest.raises(BadImageError, match="the decoder refuses it"):
                WindowDecoder(Stretch(8, 8), channels, exact=False)(damaged, np.random.default_rng(0))


def test_a_flat_image_may_have_any_shade(encode: Any, decoder: str):
    for shade in (0, 0x5A, 0xA5, 255):
        flat = np.full((9, 11, 3), shade, np.uint8)
        for mode in ("RGB", "L"):
            image = decode(encode("JPEG", mode, flat, quality=95), 3)
            assert np.abs(image.astype(int) - shade).max() <= 2


@settings(deadline=None)
@given(st.data())
def test_damage_is_refused_or_decoded_to_the_size_told(files: dict[str, bytes], data: st.DataObject):
    name = data.draw(st.sampled_from([name for name in sorted(files) if "16bit" not in name]))
    content = bytearray(files[name])
    for _ in range(data.draw(st.integers(1, 5))):
        content[data.draw(st.integers(0, len(content) - 1))] = data.draw(st.integers(0, 255))
    _refused_or_decoded(bytes(content))


@settings(deadline=None)
@given(st.binary(max_size=300))
def test_garbage_is_refused(data: bytes):
    _refused_or_decoded(data)


def _refused_or_decoded(data: bytes) -> None:
    try:
        header = module.read_header(data)
        # Sizes that are merely large are allowed; no test should fill them.
        if header.height * header.width > 1 << 20:
            return
        found = decode(data)
    except BadImageError:
        return
    assert found.shape == (header.height, header.width, 3)


class Fixed:
    """A geometry that gives one window."""

    def __init__(self, window: Window) -> None:
        self._window = window

    def window(self, height: int, width: int, rng: np.random.Generator) -> Window:
        return self._window


def _windows(reach: int = 0) -> Any:
    return st.builds(
        Window, st.integers(-reach, 100), st.integers(-reach, 132), st.integers(1, 101 + reach),
        st.integers(1, 133 + reach), st.integers(1, 60), st.integers(1, 60), st.booleans(),
    )  # fmt: skip


def _expected(image: np.ndarray, window: Window) -> np.ndarray:
    """The window, step by step on a large black canvas."""
    border = 400
    canvas = np.zeros((image.shape[0] + 2 * border, image.shape[1] + 2 * border, image.shape[2]), np.uint8)
    canvas[border:-border, border:-border] = image
    top, left = window.top + border, window.left + border
    part = np.ascontiguousarray(canvas[top : top + window.height, left : left + window.width])
    if part.shape[:2] != (window.out_height, window.out_width):
        part = cv2.resize(part, (window.out_width, window.out_height), interpolation=cv2.INTER_LINEAR)
        part = part.reshape(window.out_height, window.out_width, -1)
    return part[:, ::-1] if window.flip else part


def test_rows_down_to_each_are_those_of_the_whole_image(encode: Any):
    pytest.importorskip("simplejpeg")
    # Noise: wherever the decoder mixes rows, it shows.
    noise = np.random.default_rng(1).integers(0, 256, (101, 40, 3), np.uint8)
    for sampling in (0, 1, 2):
        for restart in (0, 2):
            data = encode("JPEG", image=noise, subsampling=sampling, quality=95, restart_marker_blocks=restart)
            whole = decode(data)
            for rows in range(1, 102):
                found = WindowDecoder(Fixed(Window(0, 0, rows, 40, rows, 40)))(data, np.random.default_rng(0))
                np.testing.assert_array_equal(found, whole[:rows])


@settings(deadline=None, max_examples=150)
@given(window=_windows(reach=40), data=st.data())
def test_a_window_is_the_same_as_of_the_whole_image(files: dict[str, bytes], window: Window, data: st.DataObject):
    name = data.draw(st.sampled_from([name for name in sorted(files) if name.startswith(("jpeg", "png.RGB"))]))
    channels = data.draw(st.sampled_from([1, 3, 4]))
    found = WindowDecoder(Fixed(window), channels)(files[name], np.random.default_rng(0))
    np.testing.assert_array_equal(found, _expected(decode(files[name], channels), window), err_msg=name)


def test_rows_below_the_window_are_not_decoded(files: dict[str, bytes], monkeypatch: pytest.MonkeyPatch):
    simplejpeg = pytest.importorskip("simplejpeg")
    heights = []

    class Spy:
        @staticmethod
        def decode_jpeg(data: bytes, *args: Any, **options: Any) -> np.ndarray:
            image = simplejpeg.decode_jpeg(data, *args, **options)
            heights.append(image.shape[0])
            return image

    monkeypatch.setattr(module, "simplejpeg", Spy)
    monkeypatch.setattr(module.native, "installed", lambda: None)
    top = Window(0, 0, 8, 8, 8, 8)
    WindowDecoder(Fixed(top))(files["jpeg.420.baseline.90"], np.random.default_rng(0))
    WindowDecoder(Fixed(top))(files["jpeg.420.progressive.90"], np.random.default_rng(0))
    lower = Window(0, 0, 16, 8, 8, 8)
    WindowDecoder(Fixed(lower))(files["jpeg.420.baseline.90"], np.random.default_rng(0))
    WindowDecoder(Fixed(lower))(files["jpeg.444.baseline.90"], np.random.default_rng(0))
    assert heights == [16, 101, 32, 24]


def test_cut_writes_where_it_is_told(photo: np.ndarray):
    batch = np.zeros((3, 20, 30, 3), np.uint8)
    window = Window(3, 5, 60, 70, 20, 30, flip=True)
    assert cut(photo, window, batch[1]) is not None
    np.testing.assert_array_equal(batch[1], _expected(photo, window))
    assert not batch[0].any()
    assert not batch[2].any()
    with pytest.raises(UsageError, match="does not fit into"):
        cut(photo, Window(0, 0, 5, 5, 5, 5), batch[0])


def test_quick_decoding_is_near_and_smooth(files: dict[str, bytes], photo: np.ndarray, decoder: str):
    window = Window(4, 8, 88, 120, 22, 30, flip=True)
    data = files["jpeg.420.baseline.90"]
    found = WindowDecoder(Fixed(window), exact=False)(data, np.random.default_rng(0))
    part = decode(data)[4:92, 8:128]
    smooth = cv2.resize(part, (30, 22), interpolation=cv2.INTER_AREA)[:, ::-1]
    assert np.abs(found.astype(int) - smooth).mean() < 6
    shifted = np.roll(smooth, 1, axis=1)
    assert np.abs(found.astype(int) - smooth).mean() < np.abs(found.astype(int) - shifted).mean() / 2


@settings(deadline=None, max_examples=60)
@given(window=_windows(reach=9), channels=st.sampled_from([1, 3, 4]))
def test_quick_decoding_takes_any_window(files: dict[str, bytes], window: Window, channels: int):
    decoder = WindowDecoder(Fixed(window), channels, exact=False)
    found = decoder(files["jpeg.420.baseline.40"], np.random.default_rng(0))
    assert found.shape == (window.out_height, window.out_width, channels)


def test_stretch_takes_all_of_the_image(photo: np.ndarray, encode: Any):
    found = WindowDecoder(Stretch(10, 20))(encode("PNG"), np.random.default_rng(0))
    np.testing.assert_array_equal(found, cv2.resize(photo, (20, 10), interpolation=cv2.INTER_LINEAR))


def test_windows_are_checked():
    with pytest.raises(UsageError, match="sides must be at least 1"):
        Window(0, 0, 0, 5, 3, 3)


def test_opencv_says_nothing_of_a_damaged_image_by_itself(tmp_path: Path) -> None:
    path = tmp_path / "cut.gif"
    Image.fromarray(np.random.default_rng(0).integers(0, 255, (32, 40, 3), np.uint8)).save(path)
    path.write_bytes(path.read_bytes()[:-40])
    code = (
        "import sys\n"
        "from moxserve.images.decode import decode\n"
        "from moxserve.images.header import BadImageError\n"
        "try:\n"
        "    decode(open(sys.argv[1], 'rb').read())\n"
        "except BadImageError:\n"
        "    print('bad')\n"
    )
    command = [sys.executable, "-c", code, str(path)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert (done.stdout, done.stderr) == ("bad\n", "")
