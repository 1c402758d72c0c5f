"""The benchmark of networks runs through; what it measures is not looked at, only that both sides do the same work."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest


@pytest.mark.slow
def test_both_sides_build_the_same_network(repo_root: Path, tmp_path: Path) -> None:
    found = tmp_path / "found.json"
    command = [
        sys.executable, str(repo_root / "benchmarks" / "nets.py"), "--networks=mobilenet_v2", "--batch=1",
        "--size=32", "--rounds=1", "--calls=1", f"--json={found}",
    ]  # fmt: skip
    done = subprocess.run(command, capture_output=True, text=True, timeout=280, check=False)
    assert done.returncode == 0, done.stderr
    rows = json.loads(found.read_text())
    assert [(row["phase"], row["side"]) for row in rows] == [
        (phase, side) for phase in ("forward", "training") for side in ("moxserve", "tf_keras")
    ]
    assert len({row["gflops"] for row in rows}) == 1
    for row in rows:
        assert row["images_per_s"] > 0
        assert row["images_per_cpu_s"] > 0
    assert {row["ratio_wall"] for row in rows if row["side"] == "tf_keras"} == {1.0}
    assert "mobilenet_v2  training  moxserve" in done.stdout


def test_an_unknown_network_is_told(repo_root: Path) -> None:
    command = [sys.executable, str(repo_root / "benchmarks" / "nets.py"), "--networks=resnet"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=280, check=False)
    assert done.returncode == 2
    assert "no network resnet; known: resnet_v1_50, mobilenet_v2, inception_v3" in done.stderr
