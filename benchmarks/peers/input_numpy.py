"""What the peers do to an image with OpenCV: decode, random resized crop to 224, random flip. NumPy and OpenCV only."""

from __future__ import annotations

import math
import random

import cv2
import numpy as np

__all__ = ["SIZE", "augment", "load"]

SIZE = 224
cv2.setNumThreads(0)  # workers are processes


def load(path: str) -> np.ndarray:
    """Decode a file: `[height, width, 3] uint8`."""
    with open(path, "rb") as f:
        data = np.frombuffer(f.read(), np.uint8)
    image = cv2.imdecode(data, cv2.IMREAD_COLOR)
    return cv2.cvtColor(image, cv2.COLOR_BGR2RGB, dst=image)


def augment(image: np.ndarray) -> np.ndarray:
    """Crop 8 to 100 % of the area, resize, flip half of the time: `[224, 224, 3] uint8`."""
    height, width = image.shape[:2]
    top, left, rows, columns = _box(height, width)
    image = cv2.resize(image[top : top + rows, left : left + columns], (SIZE, SIZE), interpolation=cv2.INTER_LINEAR)
    return cv2.flip(image, 1) if random.random() < 0.5 else image


def _box(height: int, width: int) -> tuple[int, int, int, int]:
    for _ in range(10):
        area = height * width * random.uniform(0.08, 1)
        ratio = math.exp(random.uniform(math.log(3 / 4), math.log(4 / 3)))
        columns, rows = round(math.sqrt(area * ratio)), round(math.sqrt(area / ratio))
        if 0 < columns <= width and 0 < rows <= height:
            return random.randint(0, height - rows), random.randint(0, width - columns), rows, columns
    return 0, 0, height, width
