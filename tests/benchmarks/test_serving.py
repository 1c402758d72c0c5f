"""The serving benchmark runs through, on the smallest model; what it measures is not looked at, only that it did."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest


@pytest.mark.slow
def test_the_quick_benchmark_measures_both_transports(tmp_path: Path, repo_root: Path) -> None:
    found = tmp_path / "found.json"
    command = [
        sys.executable, str(repo_root / "benchmarks" / "serving.py"), "--quick", "--rounds=1", "--seconds=0.2",
        "--concurrency=1,4", "--variants=onnx", "--extras=none", f"--folder={tmp_path}", f"--json={found}",
    ]  # fmt: skip
    done = subprocess.run(command, capture_output=True, text=True, timeout=280, check=False, env={**os.environ})
    assert done.returncode == 0, done.stderr
    assert "half_plus_two: CPU-ms per request" in done.stdout
    results = json.loads(found.read_text())
    ours = [row for row in results["rows"] if row["server"] == "moxserve"]
    assert {(row["wire"], row["concurrency"]) for row in ours} == {("gRPC", 1), ("gRPC", 4), ("REST", 1), ("REST", 4)}
    for row in ours:
        assert row["requests"] > 0
        assert row["cpu_ms"] > 0
        assert (row["failed"], row["wrong"]) == (0, 0), row["example"]


def test_wrong_answers_are_counted(tmp_path: Path, repo_root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(repo_root / "benchmarks"))
    import numpy as np
    from serving_load import Checker, Plan

    expected = tmp_path / "expected.npy"
    np.save(expected, np.array([[[2.5]], [[4.5]]], np.float32))
    plan = Plan("http", "", "", ["a", "b"], str(expected), "tfs_rest", pid=0)
    checker = Checker(plan)
    checker.check(0, b'{"predictions": [[2.5]]}')
    checker.check(1, b'{"predictions": [[4.5]]}')
    assert checker.wrong == 0
    checker.check(0, b'{"predictions": [[4.5]]}')  # right, but for another request
    checker.check(1, b'{"error": "no"}')
    checker.check(1, b'{"predictions": [[4.5, 4.5]]}')
    assert checker.wrong == 3
    assert "off by 0.8" in checker.example
