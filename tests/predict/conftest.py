"""Small data sets."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from moxserve.types import Signature, TensorSpec, dtype_by_name

SHADES = {"dark": 5, "mid": 127, "bright": 250}


@pytest.fixture
def shades(tmp_path: Path) -> Path:
    """Class folders with 7 pictures each, 8x8 grey; labels.txt gives the classes the toy model's numbers."""
    image = pytest.importorskip("PIL.Image")
    base = tmp_path / "shades"
    for name, value in SHADES.items():
        (base / name).mkdir(parents=True)
        for number in range(7):
            image.fromarray(np.full((8, 8), value - number // 2, np.uint8)).save(base / name / f"{number}.png")
    (base / "labels.txt").write_text("0: dark\n1: mid\n2: bright\n")
    return base


@pytest.fixture
def signature() -> Callable[..., Signature]:
    """Make a signature: `signature(x=("float32", [None, 3]))`."""

    def make(**inputs: tuple[str, list[int | None]]) -> Signature:
        specs = {name: TensorSpec(name, dtype_by_name(dtype), tuple(shape)) for name, (dtype, shape) in inputs.items()}
        return Signature("serving_default", "tensorflow/serving/predict", specs, {})

    return make
