"""The digits data set: complete, split as promised, the same in every format and each time."""

from __future__ import annotations

import gzip
import hashlib
import io
import json
import struct
from collections import Counter
from pathlib import Path

import numpy as np
import pytest

from moxserve.data.digits import load_digits, write_digits
from moxserve.errors import DataError, UsageError


def _tree_hash(folder: Path) -> str:
    digest = hashlib.sha256()
    for path in sorted(folder.rglob("*")):
        # Tests that read the records leave a hidden index of them.
        if path.is_file() and not path.name.startswith("."):
            digest.update(str(path.relative_to(folder)).encode() + b"\0" + path.read_bytes())
    return digest.hexdigest()


def test_split_is_stratified_disjoint_and_complete():
    digits = load_digits()
    assert (len(digits.train), len(digits.eval)) == (1437, 360)
    assert sorted([*digits.train.indices, *digits.eval.indices]) == list(range(1797))
    train, evaluation = Counter(digits.train.labels.tolist()), Counter(digits.eval.labels.tolist())
    for label in range(10):
        share = evaluation[label] / (train[label] + evaluation[label])
        assert share == pytest.approx(360 / 1797, abs=0.01)


def test_split_never_changes():
    # Published figures refer to this very split.
    digits = load_digits()
    assert hashlib.sha256(digits.eval.indices.astype("<i8").tobytes()).hexdigest()[:16] == "2fbaae31b8c6aad1"


def test_pixels_are_those_of_the_source():
    from sklearn.datasets import load_digits as bundled

    source = bundled()
    digits = load_digits()
    row = int(digits.eval.indices[5])
    assert digits.eval.labels[5] == source.target[row]
    small = digits.eval.images[5].reshape(4, 7, 4, 7).mean(axis=(1, 3))
    expected = source.images[row].reshape(4, 2, 4, 2).mean(axis=(1, 3)) * (255 / 16)
    assert np.abs(small - expected).mean() < 8


def test_images_match_idx_and_tfrecord(digits_dir: Path):
    from PIL import Image

    from moxserve.protocol.examples import parse_example
    from moxserve.protocol.tfrecord import read_records

    with gzip.open(digits_dir / "idx" / "t10k-images-idx3-ubyte.gz") as f:
        data = f.read()
    assert struct.unpack(">IIII", data[:16]) == (0x803, 360, 28, 28)
    idx = np.frombuffer(data[16:], np.uint8).reshape(360, 28, 28)
    with gzip.open(digits_dir / "idx" / "t10k-labels-idx1-ubyte.gz") as f:
        labels = np.frombuffer(f.read()[8:], np.uint8)
    files = {int(p.stem): p for p in (digits_dir / "images" / "eval").rglob("*.png")}
    assert len(files) == 360
    records = list(read_records(digits_dir / "tfrecord" / "eval-00000-of-00001.tfrecord"))
    for position, row in enumerate(sorted(files)):
        image = np.asarray(Image.open(files[row]))
        np.testing.assert_array_equal(image, idx[position])
        assert files[row].parent.name == str(labels[position])
        example = parse_example(records[position])
        assert example["image/class/label"].tolist() == [labels[position]]
        assert example["image/encoded"][0] == files[row].read_bytes()
        assert (example["image/height"][0], example["image/width"][0]) == (28, 28)
        assert Image.open(io.BytesIO(example["image/encoded"][0])).format == "PNG"


def test_labels_txt_has_the_documented_form(digits_dir: Path):
    for folder in (digits_dir / "images" / "train", digits_dir / "images" / "eval", digits_dir / "tfrecord"):
        lines = (folder / "labels.txt").read_text().splitlines()
        assert lines == [f"{i}: {i}" for i in range(10)]


@pytest.mark.slow
def test_same_bytes_each_time(tmp_path: Path, digits_dir: Path):
    write_digits(tmp_path / "again")
    assert _tree_hash(tmp_path / "again") == _tree_hash(digits_dir)


@pytest.mark.slow
def test_only_the_formats_asked_for(tmp_path: Path):
    manifest = write_digits(tmp_path / "d", ["idx"])
    assert sorted(p.name for p in (tmp_path / "d").iterdir()) == ["dataset.json", "idx"]
    assert json.loads((tmp_path / "d" / "dataset.json").read_text()) == manifest


@pytest.mark.slow
def test_existing_output_is_kept_unless_forced(tmp_path: Path):
    out = tmp_path / "d"
    write_digits(out, ["idx"])
    marker = out / "idx" / "mine"
    marker.write_text("x")
    with pytest.raises(DataError, match="exists and is not empty"):
        write_digits(out, ["idx"])
    assert marker.exists()
    write_digits(out, ["idx"], force=True)
    assert not marker.exists()
    assert [p.name for p in tmp_path.iterdir()] == ["d"]


def test_force_never_replaces_what_is_not_ours(tmp_path: Path):
    out = tmp_path / "home"
    out.mkdir()
    (out / "thesis.txt").write_text("x")
    with pytest.raises(DataError, match=r"holds no dataset\.json"):
        write_digits(out, ["idx"], force=True)
    assert (out / "thesis.txt").read_text() == "x"


def test_failure_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    def broken(*args: object) -> None:
        raise OSError("disk full")

    monkeypatch.setattr("moxserve.data.digits._WRITERS", {"images": broken, "idx": broken, "tfrecord": broken})
    with pytest.raises(OSError, match="disk full"):
        write_digits(tmp_path / "d")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("formats", "message"),
    [([], "no format given"), (["idz"], "unknown format 'idz'; did you mean 'idx'?")],
)
def test_wrong_formats(tmp_path: Path, formats: list[str], message: str):
    with pytest.raises(UsageError, match=message.replace("?", r"\?")):
        write_digits(tmp_path / "d", formats)
