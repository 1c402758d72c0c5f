"""What TensorFlow this is."""

from __future__ import annotations

import re

from moxserve.tensorflow.executor.env import tf

__all__ = ["version_info"]


def version_info() -> tuple[int, int, int]:
    """Return TensorFlow's version as numbers to compare, `(2, 21, 0)`; what follows them (`-rc1`) is left out.

    if tf_util.version_info() > (1, 13, 0): ...
    """
    numbers = [int(number) for number in re.findall(r"\d+", tf.__version__)[:3]]
    major, minor, patch = [*numbers, 0, 0, 0][:3]
    return major, minor, patch
