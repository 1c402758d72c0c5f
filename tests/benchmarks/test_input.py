"""The input benchmark runs through; what it measures is not looked at, only that it did."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest


@pytest.mark.slow
def test_our_pipelines_and_those_of_tf_data_are_measured(repo_root: Path) -> None:
    pytest.importorskip("simplejpeg")
    pytest.importorskip("skimage")
    command = [
        sys.executable, str(repo_root / "benchmarks" / "input.py"), "--rounds=1", "--epochs=1", "--batches=1",
        "--only=ours,tfdata", "--json",
    ]  # fmt: skip
    done = subprocess.run(command, capture_output=True, text=True, timeout=280, check=False)
    assert done.returncode == 0, done.stderr
    rows = {row["pipeline"]: row for row in json.loads(done.stdout)}
    assert len(rows) == 14
    assert all(row["images_per_cpu_s"] > 0 for row in rows.values())
    compared = [row for row in rows.values() if "ours_against_it" in row]
    assert len(compared) == 6
    for row in compared:
        ratio, lowest, highest = row["ours_against_it"]
        assert lowest <= ratio <= highest
