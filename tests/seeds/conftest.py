"""Real handwritten digits and photographs where the documents' scripts look for data, and a way to run the scripts."""

from __future__ import annotations

import json
import os
import select
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

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


class Scripts:
    """Runs scripts of this folder in processes that have TensorFlow imported already."""

    def __init__(self) -> None:
        environment = {**os.environ, "TF_CPP_MIN_LOG_LEVEL": "2", "TF_USE_LEGACY_KERAS": "1"}
        self._server = subprocess.Popen(
            [sys.executable, str(HERE / "forks.py")],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env=environment,
            start_new_session=True,
        )
        self._answer()

    def _answer(self) -> dict[str, object]:
        assert self._server.stdout is not None
        if not select.select([self._server.stdout], [], [], LIMIT_S)[0]:
            raise TimeoutError(f"no answer in {LIMIT_S} s")
        answer: dict[str, object] = json.loads(self._server.stdout.readline())
        return answer

    def run(self, name: str, folder: Path, *arguments: str) -> tuple[int, str]:
        """Run a script of `scripts/`; returns its status and what it printed."""
        assert self._server.stdin is not None
        output = folder / f"{name}.out"
        request = {
            "script": str(HERE / "scripts" / name),
            "arguments": arguments,
            "folder": str(folder),
            "output": str(output),
        }
        print(json.dumps(request), file=self._server.stdin, flush=True)
        status = self._answer()["status"]
        assert isinstance(status, int)
        return status, output.read_text(errors="replace")

    def close(self) -> None:
        """End the process, and a script that it may be running."""
        os.killpg(self._server.pid, signal.SIGKILL)
        self._server.wait()


@pytest.fixture(scope="module")
def start_script() -> Iterator[Callable[..., tuple[int, str]]]:
    """Run a script in a folder: `(name, folder, *arguments)` gives its status, and what it printed."""
    opened = Scripts()
    try:
        yield opened.run
    finally:
        opened.close()


@pytest.fixture
def run_script(start_script: Callable[..., tuple[int, str]], tmp_path: Path) -> Callable[..., str]:
    """Run a script, in an empty folder by default; returns what it printed."""

    def run(name: str, *arguments: str, folder: Path = tmp_path, succeeds: bool = True) -> str:
        status, output = start_script(name, folder, *arguments)
        assert (status == 0) is succeeds, output[-3000:]
        return output

    return run
