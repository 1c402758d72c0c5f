"""Headers: what they tell of real files, and that nothing crashes or hangs on broken ones."""

from __future__ import annotations

import struct
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from moxserve.errors import DataError
from moxserve.images.header import MAX_PIXELS, BadImageError, check_complete, image_format, image_shape, read_header


def test_the_header_tells_what_the_file_holds(files: dict[str, bytes]):
    import io

    from PIL import Image

    for name, data in files.items():
        header = read_header(data, name)
        with Image.open(io.BytesIO(data)) as image:
            width, height = image.size
            mode = image.mode
        assert (header.format, header.height, header.width) == (name.partition(".")[0], height, width), name
        gray = mode in ("1", "L", "LA", "I;16") and header.format in ("jpeg", "png")
        assert header.channels == (1 if gray else 3), name
        check_complete(data, header, name)


def test_the_name_plays_no_part(tmp_path: Path, files: dict[str, bytes]):
    path = tmp_path / "picture.jpg"
    path.write_bytes(files["png.RGB"])
    assert image_shape(str(path)) == (101, 133, 3)


def test_a_long_segment_before_the_frame(tmp_path: Path, files: dict[str, bytes]):
    data = files["jpeg.420.baseline.90"]
    filler = b"\xff\xe2" + struct.pack(">H", 65535) + bytes(65533)
    path = tmp_path / "long.jpg"
    path.write_bytes(data[:2] + filler * 3 + data[2:])
    assert image_shape(str(path)) == (101, 133, 3)
    assert image_shape(str(path)) == image_shape(str(path))


def test_cmyk_and_its_inversion(files: dict[str, bytes]):
    header = read_header(files["jpeg.cmyk"])
    assert (header.components, header.channels, header.inverted) == (4, 3, True)
    plain = _without_adobe(files["jpeg.cmyk"])
    assert not read_header(plain).inverted


def _without_adobe(data: bytes) -> bytes:
    at = data.index(b"\xff\xee")
    return data[:at] + data[at + 2 + struct.unpack(">H", data[at + 2 : at + 4])[0] :]


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"", r"is empty \(0 bytes\)"),
        (bytes(300), "holds nothing but 300 zero bytes"),
        (b"<html>404</html>", r"is no image; expected JPEG, PNG, GIF, BMP or WebP, found bytes b'<html>40'"),
        (b"II*\0" + bytes(60), "is a TIFF file"),
        (b"\xff\xd8\xff\xd9", "JPEG file without pixels"),
        (b"\xff\xd8\xff\xe0\0\1", "a segment of 1 bytes at byte 2"),
        (b"\xff\xd8hello", "expected a marker at byte 2, found 0x68"),
        (b"BMW is a car, not an image", "begins as a BMP file"),
    ],
)
def test_what_is_no_image(tmp_path: Path, data: bytes, reason: str):
    path = tmp_path / "bad.jpg"
    path.write_bytes(data)
    with pytest.raises(BadImageError, match=reason) as caught:
        image_shape(str(path))
    assert caught.value.name == str(path)
    assert str(caught.value).startswith(f"{path}: ")
    assert isinstance(caught.value, DataError)


def test_a_size_that_nobody_should_allocate():
    data = b"\x89PNG\r\n\x1a\n" + struct.pack(">I4sIIBB", 13, b"IHDR", 1 << 20, 1 << 20, 8, 2) + bytes(9)
    with pytest.raises(BadImageError, match=f"1048576 x 1048576 pixels; expected 1 to {MAX_PIXELS}"):
        read_header(data)


def test_every_cut_is_noticed(files: dict[str, bytes]):
    # GIF has no lengths to check; its decoder notices.
    for name, data in files.items():
        if name.startswith("gif") or name == "jpeg.trailing":
            continue
        for part in (0.02, 0.3, 0.6, 0.95, 1.0):
            cut = data[: min(int(len(data) * part), len(data) - 2)]
            with pytest.raises(BadImageError):
                check_complete(cut, read_header(cut, name), name)


def test_a_png_whose_pixels_were_changed(files: dict[str, bytes]):
    data = bytearray(files["png.RGB"])
    data[len(data) // 2] ^= 1
    with pytest.raises(BadImageError, match="wrong checksum of the chunk b'IDAT'"):
        check_complete(bytes(data), read_header(bytes(data)))


_STARTS = (
    b"", b"\xff\xd8\xff", b"\xff\xd8\xff\xc0\0\x11\x08", b"\x89PNG\r\n\x1a\n", b"GIF89a", b"BM",
    b"RIFF\0\0\0\0WEBPVP8 ", b"RIFF\0\0\0\0WEBPVP8L", b"RIFF\0\0\0\0WEBPVP8X", b"II*\0",
)  # fmt: skip


@given(st.sampled_from(_STARTS), st.binary(max_size=200))
def test_garbage_is_told_apart_or_refused(start: bytes, rest: bytes):
    _look(start + rest)


@given(st.data())
def test_damaged_files_are_told_apart_or_refused(files: dict[str, bytes], data: st.DataObject):
    content = bytearray(files[data.draw(st.sampled_from(sorted(files)))])
    for _ in range(data.draw(st.integers(0, 4))):
        content[data.draw(st.integers(0, min(len(content), 900) - 1))] = data.draw(st.integers(0, 255))
    _look(bytes(content[: data.draw(st.integers(0, len(content)))]))


def _look(data: bytes) -> None:
    try:
        header = read_header(data, "x")
        check_complete(data, header, "x")
    except BadImageError:
        return
    assert header.format == image_format(data)
    assert 0 < header.height * header.width <= MAX_PIXELS
    assert header.channels in (1, 3)
