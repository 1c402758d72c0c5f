"""What looks like an artifact."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest


@pytest.fixture
def fill() -> Callable[[str], dict[str, bytes]]:
    """Write what looks like a version into a staging directory; gives the content by relative name."""

    def write(staging: str, size: int = 1000) -> dict[str, bytes]:
        files = {
            "saved_model.pb": b"graph",
            "variables/variables.index": b"index",
            "variables/variables.data-00000-of-00001": os.urandom(size),
            "assets.extra/moxserve.json": b"{}",
            "variants/frozen/saved_model.pb": b"another graph",
        }
        for name, data in files.items():
            path = Path(staging, name)
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(data)
        return files

    return write
