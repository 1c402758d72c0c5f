"""Images with any number of labels: metadata, and what the data set gives."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import moxserve.tensorflow as mox
from moxserve.errors import DataError, UsageError

Read = Callable[..., list[list[Any]]]

TEXTS = {"0.jpg": "sky\nroof\n", "1.jpg": "flower", "2.jpg": "", "3.jpg": "roof\r\n old wall \r\n\r\n", "4.jpg": "sky"}


@pytest.fixture
def scenes(folder: Path, tmp_path: Path) -> Path:
    """`scenes/images/0.jpg` ... `4.jpg` and `scenes/labels/0.jpg.txt` ..."""
    base = tmp_path / "scenes"
    (base / "images").mkdir(parents=True)
    (base / "labels").mkdir()
    for name, text in TEXTS.items():
        (base / "images" / name).write_bytes((folder / "china" / name).read_bytes())
        (base / "labels" / f"{name}.txt").write_bytes(text.encode())
    return base


def _rows(read: Read, metadata: Any, **kwargs: Any) -> list[list[Any]]:
    dataset = mox.MultilabelClassificationRawDataset(metadata, num_epochs=1, shuffle=False, **kwargs)
    return read(dataset, ["image_name", "label", "label_desc"])


def test_without_labels_txt_the_classes_are_all_labels_sorted(scenes: Path, read: Read):
    metadata = mox.MultilabelClassificationRawMetadata(base_dir=str(scenes))
    assert metadata.total_num_samples == 5
    assert metadata.num_classes == 4
    assert metadata.labels_to_names == {0: "flower", 1: "old wall", 2: "roof", 3: "sky"}
    assert metadata.names_to_labels == {"flower": 0, "old wall": 1, "roof": 2, "sky": 3}
    rows = _rows(read, metadata)
    assert [name.decode() for name, _, _ in rows] == list(TEXTS)
    assert rows[0][1].dtype == np.float32
    expected = [[0, 0, 1, 1], [1, 0, 0, 0], [0, 0, 0, 0], [0, 1, 1, 0], [0, 0, 0, 1]]
    np.testing.assert_array_equal([label for _, label, _ in rows], expected)
    assert [text.decode() for _, _, text in rows] == [text.strip() for text in TEXTS.values()]


@pytest.mark.parametrize(
    "text", ["0: sky\n1: roof\n2: unused\n3: flower\n4: old wall\n", "0: sky 1: roof 2: unused 3: flower 4: old wall"]
)
def test_labels_txt_gives_the_order(scenes: Path, read: Read, text: str):
    (scenes / "labels.txt").write_text(text)
    metadata = mox.MultilabelClassificationRawMetadata(str(scenes))
    assert metadata.labels_list == ["sky", "roof", "unused", "flower", "old wall"]
    labels = [label for _, label, _ in _rows(read, metadata)]
    np.testing.assert_array_equal(labels[0], [1, 1, 0, 0, 0])
    np.testing.assert_array_equal(labels[3], [0, 1, 0, 0, 1])


def test_batches_train_like_any_other(scenes: Path, read: Read):
    metadata = mox.MultilabelClassificationRawMetadata(str(scenes))
    dataset = mox.MultilabelClassificationRawDataset(metadata, batch_size=2, image_size=8)
    image, label, text = dataset.get(["image", "label", "label_desc"])
    assert image.shape.as_list() == [2, 8, 8, 3]
    assert label.shape.as_list() == [2, 4]
    assert text.shape.as_list() == [2]
    vgg = mox.get_data_augmentation_fn("vgg_16", mox.ModeKeys.TRAIN, output_height=16, output_width=16)
    windows = mox.MultilabelClassificationRawDataset(metadata, 5, num_epochs=1, shuffle=False, augmentation_fn=vgg)
    ((images, labels, texts),) = read(windows, ["image", "label", "label_desc"])
    assert images.shape == (5, 16, 16, 3)
    np.testing.assert_array_equal(labels[0], [0, 0, 1, 1])
    assert texts[1] == b"flower"


def test_another_separator(scenes: Path, read: Read):
    for name in TEXTS:
        (scenes / "labels" / f"{name}.txt").write_text("a, b c,a,")
    metadata = mox.MultilabelClassificationRawMetadata(str(scenes))
    rows = _rows(read, metadata, label_sep=",")
    assert metadata.labels_list == ["a", "b c"]
    np.testing.assert_array_equal(rows[0][1], [1, 1])
    spaced = mox.MultilabelClassificationRawMetadata(str(scenes), label_sep=" ")
    assert spaced.labels_list == ["a,", "b", "c,a,"]
    for wrong in ("", None, 3):
        with pytest.raises(UsageError, match=f"label_sep={wrong!r}: expected what is between two labels"):
            mox.MultilabelClassificationRawDataset(metadata, label_sep=wrong)
    with pytest.raises(UsageError, match="label_sep=3: expected what is between two labels"):
        mox.MultilabelClassificationRawMetadata(str(scenes), label_sep=3)  # type: ignore[arg-type]


def test_data_sets_that_share_metadata_separate_alike(scenes: Path, read: Read):
    for name in TEXTS:
        (scenes / "labels" / f"{name}.txt").write_text("a,b c")
    metadata = mox.MultilabelClassificationRawMetadata(str(scenes), label_sep=",")
    assert [label.tolist() for _, label, _ in _rows(read, metadata)] == [[1, 1]] * 5
    first = mox.MultilabelClassificationRawMetadata(str(scenes))
    assert [label.tolist() for _, label, _ in _rows(read, first)] == [[1]] * 5
    for shared, separator in ((metadata, " "), (first, ",")):
        with pytest.raises(UsageError, match=f"label_sep='{separator}', and the metadata separate by"):
            mox.MultilabelClassificationRawDataset(shared, label_sep=separator)


def test_a_label_that_is_not_in_labels_txt_tells_of_the_separator(scenes: Path):
    (scenes / "labels.txt").write_text("0: sky\n1: roof\n2: flower\n3: old wall\n")
    (scenes / "labels/1.jpg.txt").write_text("sky roof")
    with pytest.raises(DataError) as caught:
        mox.MultilabelClassificationRawDataset(mox.MultilabelClassificationRawMetadata(str(scenes)))
    assert "labels/1.jpg.txt: label 'sky roof' is not in" in caught.value.message
    assert caught.value.hint == "labels are separated by '\\n': is label_sep right?"


def test_images_without_a_label_file(scenes: Path, read: Read, console: Any):
    (scenes / "labels/1.jpg.txt").unlink()
    metadata = mox.MultilabelClassificationRawMetadata(str(scenes))
    assert metadata.total_num_samples == 5
    with pytest.raises(DataError, match=r"1 of 5 images of .* have no label file, the first is '1\.jpg'") as caught:
        mox.MultilabelClassificationRawDataset(metadata)
    assert "skip_label_not_found=True" in (caught.value.hint or "")
    rows = _rows(read, metadata, skip_label_not_found=True)
    assert [name.decode() for name, _, _ in rows] == ["0.jpg", "2.jpg", "3.jpg", "4.jpg"]
    assert "1 of 5 images have no label file" in console.text


@pytest.mark.slow
def test_folders_and_extension_of_other_names(scenes: Path, read: Read):
    (scenes / "images").rename(scenes / "pictures")
    (scenes / "labels").rename(scenes / "tags")
    for path in (scenes / "tags").iterdir():
        path.rename(path.with_suffix(".lst"))
    with pytest.raises(DataError, match=r"images_sub_dir='images': no such folder: .*/scenes/images'"):
        _ = mox.MultilabelClassificationRawMetadata(str(scenes)).total_num_samples
    for extension in ("lst", ".lst"):
        metadata = mox.MultilabelClassificationRawMetadata(str(scenes), "pictures", "tags", extension)
        assert len(_rows(read, metadata)) == 5


def test_redirected_images(scenes: Path, tmp_path: Path, read: Read):
    copies = tmp_path / "copies"
    (copies / "images").mkdir(parents=True)
    (scenes / "images/0.jpg").rename(copies / "images/0.jpg")
    size = (copies / "images/0.jpg").stat().st_size
    (scenes / "images/0.jpg").write_bytes(b"\0" * size)  # is read only if the copy is not
    metadata = mox.MultilabelClassificationRawMetadata(str(scenes), redirect_dir=str(copies))
    dataset = mox.MultilabelClassificationRawDataset(metadata, num_epochs=1, on_bad_image="raise")
    assert len(read(dataset, ["image"])) == 5


def test_broken_files_are_named(scenes: Path):
    (scenes / "labels/0.jpg.txt").write_bytes(b"caf\xe9")
    with pytest.raises(DataError, match=r"labels/0\.jpg\.txt is not UTF-8 text"):
        _ = mox.MultilabelClassificationRawMetadata(str(scenes)).num_classes
    for path in (scenes / "labels").iterdir():
        path.write_text("")
    with pytest.raises(DataError, match="no label in the 5 label files"):
        _ = mox.MultilabelClassificationRawMetadata(str(scenes)).num_classes
