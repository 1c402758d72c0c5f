"""The benchmark of training runs through at tiny sizes; how fast anything is, is not looked at."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest


@pytest.mark.slow
def test_the_parts_of_a_single_process(repo_root: Path, tmp_path: Path) -> None:
    found = tmp_path / "found.json"
    command = [
        sys.executable, str(repo_root / "benchmarks" / "training.py"), "--parts=gpu,workers", "--rounds=1",
        "--steps=20", "--model=tiny", "--kinds=1 worker", f"--json={found}",
    ]  # fmt: skip
    done = subprocess.run(command, capture_output=True, text=True, timeout=280, check=False)
    assert done.returncode == 0, done.stderr
    rows = json.loads(found.read_text())
    assert [row["part"] for row in rows] == ["gpu", "workers"]
    assert rows[0].get("skipped") == "TensorFlow sees no GPU on this machine" or rows[0]["images_per_s"] > 0
    assert rows[1]["mox"]["step_s"] > 0
    assert rows[1]["plain"]["step_s"] > 0
    assert rows[1]["ratio"] == pytest.approx(rows[1]["plain"]["step_s"] / rows[1]["mox"]["step_s"])
    assert "1 worker" in done.stdout


def test_an_unknown_part_is_told(repo_root: Path) -> None:
    command = [sys.executable, str(repo_root / "benchmarks" / "training.py"), "--parts=steps"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=280, check=False)
    assert done.returncode == 2
    assert "no part steps; known: step, towers, workers, gpu" in done.stderr
