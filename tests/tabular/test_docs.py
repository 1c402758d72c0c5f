"""What docs/tabular.md shows works as it is shown."""

from __future__ import annotations

import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from moxserve.tabular.columns import KINDS
from moxserve.tabular.declared import read_columns


@pytest.fixture(scope="module")
def page(repo_root: Path) -> str:
    return (repo_root / "docs" / "tabular.md").read_text()


def blocks(page: str, language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", page, re.DOTALL)


@pytest.mark.slow
def test_the_script_runs(page: str, tmp_path: Path):
    [code] = blocks(page, "python")
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (0, "(3, 4)\n(3, 1)\n"), done.stderr


def test_every_kind_is_told_and_the_columns_are_valid(page: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    table = page.partition("| kind | keys |")[2].partition("\n\n")[0]
    told = {row.split("|")[1].strip().strip("`"): row for row in table.splitlines()[2:]}
    assert list(told) == list(KINDS)
    for kind, model in KINDS.items():
        keys = set(model.model_fields) - {"kind"}
        if kind != "shared_embedding":
            assert not {key for key in keys if f"`{key}" not in told[kind]}, kind
    [columns] = [block for block in blocks(page, "yaml") if block.startswith("columns:")]
    assert len(read_columns(yaml.safe_load(columns)["columns"])) == 5


def test_the_mistake_is_told_as_shown(page: str, tmp_path: Path, run_moxserve: Callable[..., Any]):
    (tmp_path / "t.csv").write_text("age,y\n1,a\n")
    (tmp_path / "train.yaml").write_text(
        "version: 1\n"
        "input:\n"
        "  plugin: table\n"
        "  train: t.csv\n"
        "  columns: {age: float32}\n"
        "  label: y\n"
        "  labels: [a, b]\n"
        "  batch_size: 1\n"
        "model:\n"
        "  plugin: wide_and_deep\n"
        "  columns:\n"
        "    age: {kind: numeric}\n"
        "    ages: {kind: bucketized, of: agee, boundaries: [20, 30]}\n"
        "  wide: [ages]\n"
        "optimizer: {plugin: ftrl, learning_rate: 0.1}\n"
        "run: {plugin: train, log_dir: r, max_number_of_steps: 1}\n"
    )
    done = run_moxserve("pipeline", "validate", "train.yaml", cwd=tmp_path)
    assert done.returncode == 2
    [shown] = [block for block in blocks(page, "console") if "validate train.yaml" in block]
    assert done.stderr == shown.partition("\n")[2]
