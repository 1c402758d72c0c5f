"""Cutting a folder of classes into parts."""

from __future__ import annotations

import subprocess
import sys
import textwrap
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

import moxserve.tensorflow as mox
from moxserve.errors import DataError, UsageError
from moxserve.tensorflow.datasets.raw.raw_dataset import split_image_classification_dataset
from moxserve.tensorflow.datasets.raw.split import _counts


def _files(base: Path) -> dict[str, bytes]:
    return {str(path.relative_to(base)): path.read_bytes() for path in sorted(base.rglob("*.jpg"))}


@pytest.fixture
def many(tmp_path: Path) -> Path:
    """Three classes with 20, 11 and 1 images, whose bytes differ."""
    base = tmp_path / "many"
    for label, count in (("a", 20), ("b", 11), ("c", 1)):
        (base / label).mkdir(parents=True)
        for i in range(count):
            (base / label / f"{i}.jpg").write_bytes(f"{label}{i}".encode())
    return base


def test_parts_are_disjoint_complete_and_have_their_share_of_each_class(many: Path, tmp_path: Path):
    out = tmp_path / "out"
    (many / "labels.txt").write_text("0: c\n1: a\n2: b\n")
    counts = split_image_classification_dataset({"train": 0.8, "eval": 0.2}, str(many), str(out))
    assert counts == {"train": 26, "eval": 6}
    train, evaluation = _files(out / "train"), _files(out / "eval")
    assert not set(train) & set(evaluation)
    assert {**train, **evaluation} == _files(many)
    assert [len(_files(out / "eval" / label)) for label in "abc"] == [4, 2, 0]
    for part in ("train", "eval"):
        metadata = mox.ImageClassificationRawMetadata(str(out / part))
        assert metadata.labels_list == ["c", "a", "b"]
        assert metadata.total_num_samples == counts[part]
    assert sorted(path.name for path in out.iterdir()) == ["eval", "train"]


def test_the_same_seed_gives_the_same_parts(many: Path, tmp_path: Path):
    from moxserve.tensorflow.datasets.reader.raw_reader import split_image_classification_dataset as same

    assert same is split_image_classification_dataset is mox.split_image_classification_dataset
    for name, seed in (("x", 0), ("y", 0), ("z", 1)):
        same(src_dir=str(many), dst_dir=str(tmp_path / name), seed=seed)
    assert _files(tmp_path / "x") == _files(tmp_path / "y") != _files(tmp_path / "z")
    assert len(_files(tmp_path / "x" / "eval")) == 3


@given(st.integers(0, 300), st.lists(st.floats(0.01, 1), min_size=1, max_size=5))
def test_how_many_each_part_gets(total: int, weights: list[float]):
    fractions = [weight / sum(weights) for weight in weights]
    counts = _counts(total, fractions)
    assert sum(counts) == total
    assert min(counts) >= (1 if total >= len(fractions) else 0)
    if total >= 100 * len(fractions):
        assert all(
            abs(count - total * part) < 1 + len(fractions) for count, part in zip(counts, fractions, strict=True)
        )


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ({"train": 0.9, "eval": 0.2}, "together 1, got 1.1"),
        ({"train": 0.9}, "together 1, got 0.9"),
        ({"train": 1.2, "eval": -0.2}, "more than 0 and together 1"),
        ({"train": 1.0, "eval": 0.0}, "more than 0 and together 1"),
        ({"train": float("nan"), "eval": 1.0}, "more than 0 and together 1"),
        ({"../train": 1.0}, "expected names of folders"),
        ({}, "expected names of folders"),
    ],
)
def test_what_is_no_split(many: Path, tmp_path: Path, spec: dict[str, float], message: str):
    with pytest.raises(UsageError, match=message):
        split_image_classification_dataset(spec, str(many), str(tmp_path / "out"))
    assert not (tmp_path / "out").exists()


def test_what_is_there_is_only_replaced_on_request(many: Path, tmp_path: Path):
    out = tmp_path / "out"
    (out / "old").mkdir(parents=True)
    with pytest.raises(DataError, match="is there already") as caught:
        split_image_classification_dataset(src_dir=str(many), dst_dir=str(out))
    assert caught.value.hint == "overwrite=True replaces it"
    split_image_classification_dataset(src_dir=str(many), dst_dir=str(out), overwrite=True)
    assert sorted(path.name for path in out.iterdir()) == ["eval", "train"]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["many", "out"]
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(DataError, match="is a file"):
        split_image_classification_dataset(src_dir=str(many), dst_dir=str(tmp_path / "file"), overwrite=True)


@pytest.mark.parametrize("target", ["many", "many/split", ".", "s3://bucket/split", ""])
def test_targets_that_would_harm_the_source(many: Path, tmp_path: Path, target: str, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    before = _files(tmp_path)
    with pytest.raises(UsageError):
        split_image_classification_dataset(src_dir=str(many), dst_dir=target, overwrite=True)
    assert _files(tmp_path) == before


def test_a_split_that_fails_leaves_what_was_there(many: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    out = tmp_path / "out"
    split_image_classification_dataset(src_dir=str(many), dst_dir=str(out))
    before = _files(out)
    (many / "a/gone.jpg").symlink_to(many / "nothing")
    with pytest.raises(DataError, match="an image cannot be copied"):
        split_image_classification_dataset(src_dir=str(many), dst_dir=str(out), overwrite=True)
    assert _files(out) == before
    assert sorted(path.name for path in tmp_path.iterdir()) == ["many", "out"]


_KILLED = """
    import os, shutil, sys
    import moxserve.tensorflow as mox
    copy = shutil.copy2
    def dies(source, target):
        if source.endswith("b/5.jpg"):
            os.kill(os.getpid(), 9)
        return copy(source, target)
    shutil.copy2 = dies
    mox.split_image_classification_dataset(src_dir=sys.argv[1], dst_dir=sys.argv[2])
"""


@pytest.mark.slow
def test_a_killed_split_publishes_nothing_and_the_next_one_works(many: Path, tmp_path: Path):
    script = tmp_path / "script.py"
    script.write_text(textwrap.dedent(_KILLED))
    out = tmp_path / "out"
    arguments: list[Any] = [sys.executable, str(script), str(many), str(out)]
    assert subprocess.run(arguments, timeout=240, check=False, capture_output=True).returncode == -9
    assert not out.exists()
    split_image_classification_dataset(src_dir=str(many), dst_dir=str(out))
    assert len(_files(out)) == 32
    assert sorted(path.name for path in tmp_path.iterdir()) == ["many", "out", "script.py"]
