"""`python -m moxserve.images.native.check LIBRARY`: compare a native decoder with the decoders in Python.

It runs in a process of its own, so that a library that does not work takes nobody with it.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator

import numpy as np

from moxserve.images.decode import decode, opencv
from moxserve.images.geometry import Window
from moxserve.images.header import read_header
from moxserve.images.native.library import NativeDecoder

__all__ = ["compare", "samples"]

_HEIGHT, _WIDTH = 83, 117


def samples() -> Iterator[tuple[str, bytes]]:
    """Give JPEGs of all forms that the native decoder takes, by name."""
    cv2 = opencv()
    rng = np.random.default_rng(1)
    # Colours that change quickly: mixing them with the wrong neighbour is seen.
    image = cv2.resize(rng.integers(0, 256, (21, 30, 3), np.uint8), (_WIDTH, _HEIGHT), interpolation=cv2.INTER_CUBIC)
    for name in ("444", "422", "420"):
        for restart in (0, 3):
            options = [
                cv2.IMWRITE_JPEG_QUALITY, 92, cv2.IMWRITE_JPEG_RST_INTERVAL, restart,
                cv2.IMWRITE_JPEG_SAMPLING_FACTOR, getattr(cv2, f"IMWRITE_JPEG_SAMPLING_FACTOR_{name}"),
            ]  # fmt: skip
            yield f"{name}, restart interval {restart}", cv2.imencode(".jpg", image, options)[1].tobytes()
    yield "gray", cv2.imencode(".jpg", image[..., 0])[1].tobytes()


def compare(decoder: NativeDecoder, windows: int = 200) -> str | None:
    """Compare on random windows of all samples; return what differs, or None."""
    rng = np.random.default_rng(2)
    for name, data in samples():
        header = read_header(data)
        for channels in (1, 3):
            whole = decode(data, channels)
            for _ in range(windows):
                height, width = int(rng.integers(1, _HEIGHT + 1)), int(rng.integers(1, _WIDTH + 1))
                top, left = int(rng.integers(0, _HEIGHT - height + 1)), int(rng.integers(0, _WIDTH - width + 1))
                found = decoder.part(data, header, channels, Window(top, left, height, width, height, width))
                where = f"{name}, {channels} channels, {height} x {width} pixels at ({top}, {left})"
                if found is None:
                    return f"{where}: refused"
                if not np.array_equal(found[0], whole[top : top + height, left : left + width]):
                    return f"{where}: other pixels than the decoders in Python give"
        if decoder.part(data[: len(data) // 2], header, 3, Window(0, 0, _HEIGHT, _WIDTH, 1, 1)) is not None:
            return f"{name}: a file that is cut off was not noticed"
    return None


if __name__ == "__main__":
    sys.exit(compare(NativeDecoder(sys.argv[1])))
