"""The scenes: labels tell what is in them, and no handwriting is in both parts."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from moxserve.data.digits import load_digits
from moxserve.data.multidigits import CANVAS_SIZE, SAMPLES, write_multidigits
from moxserve.tensorflow.datasets.raw.multilabel_metadata import MultilabelClassificationRawMetadata


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("data") / "multidigits"
    write_multidigits(out)
    return out


@pytest.mark.slow
def test_each_image_has_one_to_four_labels(folder: Path) -> None:
    from PIL import Image

    for part, count in SAMPLES.items():
        images = sorted((folder / part / "images").iterdir())
        assert len(images) == count
        found = []
        for path in images:
            lines = (folder / part / "labels" / f"{path.name}.txt").read_text().split("\n")
            assert lines == sorted(set(lines))
            found.append(len(lines))
        assert set(found) == {1, 2, 3, 4}
        image = np.asarray(Image.open(images[0]))
        assert (image.shape, image.dtype) == ((CANVAS_SIZE, CANVAS_SIZE), np.uint8)


def test_as_many_places_hold_something_as_there_are_labels(folder: Path) -> None:
    from PIL import Image

    half = CANVAS_SIZE // 2
    for path in sorted((folder / "eval" / "images").iterdir())[:100]:
        image = np.asarray(Image.open(path))
        cells = [image[top : top + half, left : left + half].max() for top in (0, half) for left in (0, half)]
        labels = (folder / "eval" / "labels" / f"{path.name}.txt").read_text().split("\n")
        assert sum(brightest > 100 for brightest in cells) == len(labels)


def test_the_data_set_of_moxing_reads_it(folder: Path) -> None:
    metadata = MultilabelClassificationRawMetadata(str(folder / "train"))
    assert (metadata.total_num_samples, metadata.num_classes) == (2000, 10)


@pytest.mark.slow
def test_the_same_bytes_each_time(folder: Path, tmp_path: Path) -> None:
    write_multidigits(tmp_path / "again")
    for path in (folder / "eval").rglob("*.*"):
        assert path.read_bytes() == (tmp_path / "again" / path.relative_to(folder)).read_bytes()


def test_the_parts_share_no_handwriting() -> None:
    digits = load_digits()
    train = {image.tobytes() for image in digits.train.images}
    assert not train & {image.tobytes() for image in digits.eval.images}
