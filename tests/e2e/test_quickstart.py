"""The main job, by the command that a newcomer types first."""

from __future__ import annotations

import json
import re

import pytest

from moxserve.export.manifest import check_files
from moxserve.export.publish import list_versions


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_quickstart_trains_exports_serves_predicts_and_load_tests(run_moxserve, tmp_path) -> None:
    done = run_moxserve("quickstart", "--out", tmp_path / "q", "--duration", "2s", "--users", "2", timeout=880)

    assert done.returncode == 0, done.stderr[-3000:]
    summary = done.stdout
    graph, served = (float(x) for x in re.findall(r"([01]\.\d{4}) \(", summary))
    assert graph >= 0.97
    assert served == pytest.approx(graph, abs=1e-4)
    error = float(re.search(r"max abs error (\S+),", summary)[1])
    assert error <= 1e-5
    assert ", 0 failures" in summary

    models = tmp_path / "q" / "models" / "digits"
    (version,) = list_versions(str(models))
    check_files(str(models / str(version)))
    lines = (tmp_path / "q" / "predictions.jsonl").read_text().splitlines()
    assert len(lines) == 360
    right = [row["predictions"]["classes"] == int(row["label"]) for row in map(json.loads, lines)]
    assert sum(right) / len(right) == pytest.approx(served, abs=1e-4)
    assert "<html" in (tmp_path / "q" / "loadtest.html").read_text().lower()


def test_out_must_not_be_a_file(run_moxserve, tmp_path) -> None:
    (tmp_path / "taken").write_text("x")
    done = run_moxserve("quickstart", "--out", tmp_path / "taken")
    assert done.returncode == 2
    assert "'--out': Directory" in done.stderr
    assert "is a file" in done.stderr
