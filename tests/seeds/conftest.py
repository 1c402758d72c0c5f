"""Real handwritten digits and photographs where the documents' scripts look for data, and a way to run the scripts."""

from __future__ import annotations

import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

HERE = Path(__file__).parent
LIMIT_S = 240.0


@pytest.fixture(scope="session")
def idx_digits(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the four IDX files of scikit-learn's digits."""
    pytest.importorskip("sklearn")
    from moxserve.data.digits import write_digits

    folder = tmp_path_factory.mktemp("digits") / "out"
    write_digits(folder, formats=("idx",))
    return folder / "idx"


@pytest.fixture(scope="session")
def flowers(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with `flowers/raw/split/train` and `eval`: photographs of two classes, 16 and 8 of them."""
    skimage = pytest.importorskip("skimage.data")
    from moxserve.data.textures import jpeg_bytes

    folder = tmp_path_factory.mktemp("photographs")
    for label in ("brick", "grass"):
        photograph = getattr(skimage, label)()
        for part in range(12):
            place = folder / "flowers/raw/split" / ("train" if part < 8 else "eval") / label
            place.mkdir(parents=True, exist_ok=True)
            (place / f"{part}.jpg").write_bytes(jpeg_bytes(photograph[40 * part : 40 * part + 48, :48]))
    return folder


@pytest.fixture(scope="session")
def start_script(run_tensorflow_script: Callable[..., Any]) -> Callable[..., tuple[int, str]]:
    """Run a script in a folder: `(name, folder, *arguments)` gives its status, and what it printed."""

    def start(name: str, folder: Path, *arguments: str) -> tuple[int, str]:
        path = HERE / "scripts" / name
        done = run_tensorflow_script(path, *arguments, cwd=folder, stderr=subprocess.STDOUT, timeout=LIMIT_S)
        return done.returncode, done.stdout

    return start


@pytest.fixture
def run_script(start_script: Callable[..., tuple[int, str]], tmp_path: Path) -> Callable[..., str]:
    """Run a script, in an empty folder by default; returns what it printed."""

    def run(name: str, *arguments: str, folder: Path = tmp_path, succeeds: bool = True) -> str:
        status, output = start_script(name, folder, *arguments)
        assert (status == 0) is succeeds, output[-3000:]
        return output

    return run
