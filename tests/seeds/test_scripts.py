"""The documents' small scripts, changed only in their imports, run as users run them."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

SCRIPTS = Path(__file__).parent / "scripts"
LINE = re.compile(r"INFO:tensorflow:step: (\d+)\(global step: (\d+)\)\tsample/sec: ([\d.]+)\tloss: ([\d.]+)")


@pytest.fixture
def run_script() -> Callable[..., str]:
    def run(name: str, *arguments: str) -> str:
        environment = {**os.environ, "TF_CPP_MIN_LOG_LEVEL": "2"}
        done = subprocess.run(
            [sys.executable, str(SCRIPTS / name), *arguments],
            capture_output=True,
            text=True,
            timeout=240,
            env=environment,
        )
        assert done.returncode == 0, done.stderr[-3000:]
        return done.stderr

    return run


def losses(stderr: str) -> dict[int, float]:
    return {int(m.group(1)): float(m.group(4)) for m in LINE.finditer(stderr)}


@pytest.mark.slow
def test_mnist_softmax_of_section_1_1_1(run_script: Callable[..., str], idx_digits: Path, tmp_path: Path) -> None:
    seen = losses(run_script("mnist_softmax.py", f"--data_url={idx_digits}", f"--train_url={tmp_path}"))
    assert list(seen) == list(range(0, 1000, 10))
    assert seen[0] == pytest.approx(2.303, abs=1e-3)  # ten classes, zero weights
    assert seen[990] < 0.2
    assert (tmp_path / "model.ckpt-1000.index").exists()


@pytest.mark.slow
def test_mnist_export_of_section_1_2_1(run_script: Callable[..., str], idx_digits: Path, tmp_path: Path) -> None:
    log_dir = tmp_path / "log"
    stderr = run_script("mnist_export.py", "--data_url", str(idx_digits), "--train_url", str(log_dir), "--num_gpus=1")
    seen = losses(stderr)
    assert list(seen) == list(range(0, 1000, 10))
    assert seen[990] < seen[0] / 2
    assert "accuracy:" in stderr
    assert (log_dir / "1" / "saved_model.pb").is_file()
    assert (log_dir / "1" / "variables" / "variables.index").is_file()


@pytest.mark.slow
def test_feed_hook_of_section_4_5_1(run_script: Callable[..., str]) -> None:
    seen = losses(run_script("feed_hook.py"))
    assert list(seen) == list(range(0, 100, 10))
    assert seen[90] < seen[0]  # the same values are fed at every step
