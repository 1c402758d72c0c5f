"""`moxserve data digits`."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

Run = Callable[..., Any]


def test_writes_and_tells(run_moxserve: Run, tmp_path: Path):
    done = run_moxserve("data", "digits", "--out", "d", "--formats", "idx, images", cwd=tmp_path)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout == ("wrote 1437 training and 360 evaluation images to d\n  d/images\n  d/idx\n")
    assert sorted(p.name for p in (tmp_path / "d").iterdir()) == ["dataset.json", "idx", "images"]


def test_json_and_force(run_moxserve: Run, tmp_path: Path):
    args = ("data", "digits", "--out", "d", "--formats", "idx", "--json")
    facts = json.loads(run_moxserve(*args, cwd=tmp_path).stdout)
    assert facts["samples"] == {"train": 1437, "eval": 360}
    assert facts["path"] == str(tmp_path / "d")
    again = run_moxserve(*args, cwd=tmp_path)
    assert again.returncode == 1
    assert again.stderr == (
        f"error: {str(tmp_path / 'd')!r} exists and is not empty\nhint: give --force to replace a data set there\n"
    )
    assert run_moxserve(*args, "--force", cwd=tmp_path).returncode == 0


def test_wrong_format_is_a_usage_error(run_moxserve: Run, tmp_path: Path):
    done = run_moxserve("data", "digits", "--out", "d", "--formats", "idz", cwd=tmp_path)
    assert (done.returncode, done.stderr) == (2, "error: unknown format 'idz'; did you mean 'idx'?\n")
