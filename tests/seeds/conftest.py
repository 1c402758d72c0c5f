"""Real handwritten digits as MNIST-format IDX files, for the documents' scripts."""

from __future__ import annotations

from pathlib import Path

import pytest


@pytest.fixture(scope="session")
def idx_digits(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the four IDX files of scikit-learn's digits."""
    pytest.importorskip("sklearn")
    from moxserve.data.digits import write_digits

    folder = tmp_path_factory.mktemp("digits") / "out"
    write_digits(folder, formats=("idx",))
    return folder / "idx"
