"""What tests of data flows share."""

from __future__ import annotations

import gc
from collections.abc import Iterator

import pytest


@pytest.fixture(scope="module")
def small_heap() -> Iterator[None]:
    """Looking for garbage passes by what was there before, such as all of TensorFlow: half a second a test."""
    gc.collect()
    gc.freeze()
    yield
    gc.unfreeze()
