"""The textures: real tiles, disjoint parts, the same bytes each time."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from moxserve.data.textures import LABELS, SAMPLES, TILE_SIZE, write_textures
from moxserve.errors import DataError


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("data") / "textures"
    write_textures(out)
    return out


def tiles(folder: Path, label: str) -> list[np.ndarray]:
    from PIL import Image

    return [np.asarray(Image.open(path)) for path in sorted((folder / label).glob("*.jpg"))]


def test_every_class_has_its_tiles_in_both_parts(folder: Path) -> None:
    for part, count in SAMPLES.items():
        assert sorted(p.name for p in (folder / part).iterdir()) == sorted([*LABELS, "labels.txt"])
        expected = "".join(f"{i}: {label}\n" for i, label in enumerate(LABELS))
        assert (folder / part / "labels.txt").read_text() == expected
        for label in LABELS:
            found = tiles(folder / part, label)
            assert len(found) == count
            assert {tile.shape for tile in found} == {(TILE_SIZE, TILE_SIZE, 3)}
            assert all(tile.mean() > 5 for tile in found)


@pytest.mark.slow
def test_no_pixel_of_training_is_in_the_evaluation(folder: Path) -> None:
    from skimage import data

    # Each tile is found again in its own part of the picture's columns, and only there.
    picture = data.brick().astype(np.float64)
    border = int(picture.shape[1] * 0.7)
    for part, columns in (("train", range(border - TILE_SIZE + 1)), ("eval", range(border, 512 - TILE_SIZE + 1))):
        tile = tiles(folder / part, "brick")[0][:, :, 0].astype(np.float64)
        errors = {
            (top, left): np.abs(picture[top : top + TILE_SIZE : 5, left : left + TILE_SIZE : 5] - tile[::5, ::5]).mean()
            for top in range(512 - TILE_SIZE + 1)
            for left in range(512 - TILE_SIZE + 1)
        }
        best = min(errors, key=lambda place: errors[place])
        assert errors[best] < 3  # what JPEG costs
        assert best[1] in columns


@pytest.mark.slow
def test_the_same_bytes_each_time_and_the_whole_or_nothing(folder: Path, tmp_path: Path) -> None:
    write_textures(tmp_path / "again")
    files = sorted(p.relative_to(folder) for p in folder.rglob("*") if p.is_file())
    assert files == sorted(p.relative_to(tmp_path / "again") for p in (tmp_path / "again").rglob("*") if p.is_file())
    assert all((folder / f).read_bytes() == (tmp_path / "again" / f).read_bytes() for f in files)
    with pytest.raises(DataError, match="exists and is not empty"):
        write_textures(tmp_path / "again")
    facts = json.loads((folder / "dataset.json").read_text())
    assert facts["samples"] == {"train": 1200, "eval": 300}
    assert "CC0" in facts["licence"]
