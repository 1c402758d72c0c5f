"""Real and synthetic images in every form."""

from __future__ import annotations

import io
from collections.abc import Callable
from typing import Any

import cv2
import numpy as np
import pytest
from PIL import Image

Encode = Callable[..., bytes]


@pytest.fixture(scope="session")
def photo() -> np.ndarray:
    """Part of a photograph: `[101, 133, 3] uint8`; no side is a multiple of a JPEG block."""
    from sklearn.datasets import load_sample_image

    return np.ascontiguousarray(load_sample_image("china.jpg")[150:251, 200:333])


@pytest.fixture(scope="session")
def encode(photo: np.ndarray) -> Encode:
    """Encode the photograph, or another image: `encode("JPEG", mode="L", quality=80)`."""

    def run(kind: str, mode: str = "RGB", image: np.ndarray | None = None, **options: Any) -> bytes:
        data = io.BytesIO()
        Image.fromarray(photo if image is None else image).convert(mode).save(data, kind, **options)
        return data.getvalue()

    return run


@pytest.fixture(scope="session")
def files(encode: Encode, photo: np.ndarray) -> dict[str, bytes]:
    """Files by name; the part before the first dot is the format."""
    rng = np.random.default_rng(5)
    made = {
        f"jpeg.{sampling}.{'progressive' if progressive else 'baseline'}.{quality}": encode(
            "JPEG", subsampling=number, progressive=progressive, quality=quality
        )
        for number, sampling in enumerate(("444", "422", "420"))
        for progressive in (False, True)
        for quality in (40, 90, 100)
    }
    orientation = Image.Exif()
    orientation[0x0112] = 6
    made["jpeg.exif"] = encode("JPEG", exif=orientation)
    made["jpeg.gray"] = encode("JPEG", "L")
    made["jpeg.rgb"] = encode("JPEG", keep_rgb=True)
    made["jpeg.restart"] = encode("JPEG", restart_marker_blocks=3)
    made["jpeg.trailing"] = made["jpeg.420.baseline.90"] + b"\0more" * 9
    made["jpeg.one"] = encode("JPEG", image=photo[:1, :1])
    made["jpeg.cmyk"] = encode("JPEG", "CMYK", quality=95)
    for mode in ("1", "L", "LA", "P", "RGB", "RGBA"):
        made[f"png.{mode}"] = encode("PNG", mode)
    for channels in (1, 3, 4):
        wide = rng.integers(0, 1 << 16, (9, 11, channels)).astype(np.uint16)
        made[f"png.16bit.{channels}"] = cv2.imencode(".png", wide)[1].tobytes()
    alpha = np.dstack([photo, rng.integers(0, 256, photo.shape[:2], np.uint8)])
    made["png.alpha"] = encode("PNG", "RGBA", alpha)
    made["png.transparent palette"] = encode("PNG", "P", transparency=3)
    made["gif.one"] = encode("GIF")
    frames = [Image.fromarray(photo[:40, left : left + 50]) for left in (0, 30, 60)]
    moving = io.BytesIO()
    frames[0].save(moving, "GIF", save_all=True, append_images=frames[1:])
    made["gif.moving"] = moving.getvalue()
    made["bmp.rgb"] = encode("BMP")
    made["bmp.gray"] = encode("BMP", "L")
    made["webp.lossless"] = encode("WEBP", lossless=True)
    made["webp.lossy"] = encode("WEBP", quality=80)
    made["webp.alpha"] = encode("WEBP", "RGBA", alpha, lossless=True)
    return made
