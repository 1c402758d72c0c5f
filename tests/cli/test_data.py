"""`moxserve data digits`."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from moxserve.cli.data_bench import bench

Run = Callable[..., Any]


@pytest.mark.slow
def test_writes_tells_and_replaces_with_force_only(run_moxserve: Run, tmp_path: Path):
    done = run_moxserve("data", "digits", "--out", "d", "--formats", "idx, images", cwd=tmp_path)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout == ("wrote 1437 training and 360 evaluation images to d\n  d/images\n  d/idx\n")
    assert sorted(p.name for p in (tmp_path / "d").iterdir()) == ["dataset.json", "idx", "images"]
    args = ("data", "digits", "--out", "d", "--formats", "idx", "--json")
    again = run_moxserve(*args, cwd=tmp_path)
    assert again.returncode == 1
    assert again.stderr == (
        f"error: {str(tmp_path / 'd')!r} exists and is not empty\nhint: give --force to replace a data set there\n"
    )
    facts = json.loads(run_moxserve(*args, "--force", cwd=tmp_path).stdout)
    assert facts["samples"] == {"train": 1437, "eval": 360}
    assert facts["path"] == str(tmp_path / "d")


def test_wrong_format_is_a_usage_error(run_moxserve: Run, tmp_path: Path):
    done = run_moxserve("data", "digits", "--out", "d", "--formats", "idz", cwd=tmp_path)
    assert (done.returncode, done.stderr) == (2, "error: unknown format 'idz'; did you mean 'idx'?\n")


@pytest.mark.slow
def test_the_other_sample_data_sets(run_moxserve: Run, tmp_path: Path):
    done = run_moxserve("data", "textures", "--out", "t", cwd=tmp_path)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout == "wrote 1200 training and 300 evaluation images to t\n  t/train\n  t/eval\n"
    assert run_moxserve("data", "textures", "--out", "t", cwd=tmp_path).returncode == 1


@pytest.mark.slow
def test_inspect_tells_and_names_what_is_broken(run_moxserve: Run, digits_dir: Path, tmp_path: Path):
    folder = digits_dir / "images" / "eval"
    done = run_moxserve("data", "inspect", folder)
    assert done.returncode == 0
    assert "kind     image folder" in done.stdout
    assert "images   360" in done.stdout
    copied = tmp_path / "eval"
    shutil.copytree(folder, copied)
    broken = sorted((copied / "3").iterdir())[:25]
    for path in broken:
        path.write_bytes(b"")
    lenient = run_moxserve("data", "inspect", copied)
    assert lenient.returncode == 0
    assert lenient.stderr.count("is empty (0 bytes)") == 20
    assert "... and 5 more; --all names them" in lenient.stderr
    strict = run_moxserve("data", "inspect", copied, "--strict", "--all")
    assert strict.returncode == 1
    assert strict.stderr.count("is empty (0 bytes)") == 25
    assert strict.stderr.endswith("25 thing(s) are broken\n")
    facts = json.loads(run_moxserve("data", "inspect", copied, "--json").stdout)
    assert (facts["images"], len(facts["problems"])) == (335, 25)


def test_inspect_of_nothing(run_moxserve: Run, tmp_path: Path):
    done = run_moxserve("data", "inspect", tmp_path / "absent")
    assert done.returncode == 1
    assert "no such file or folder" in done.stderr


@pytest.mark.slow
def test_bench_tells_where_the_time_goes(run_moxserve: Run, digits_dir: Path):
    args = ("data", "bench", digits_dir / "images", "--steps", "3", "--image-size", "28", "--batch-size", "4")
    done = run_moxserve(*args)
    assert (done.returncode, done.stderr) == (0, "")
    assert "batches                uint8[4, 28, 28, 3]" in done.stdout
    assert [line.split()[0] for line in done.stdout.splitlines()[-5:]] == [
        "STAGE",
        "read",
        "decode",
        "resize,",
        "whole",
    ]
    again = CliRunner().invoke(bench, [*map(str, args[2:]), "--augment", "lenet", "--json"], catch_exceptions=False)
    facts = json.loads(again.stdout)
    assert (facts["images"], facts["windows"]) == (12, True)
