"""What ImageClassificationRawMetadata finds in a folder, and what it refuses."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import moxserve.tensorflow as mox
from moxserve.errors import DataError
from moxserve.tensorflow.datasets import ImageClassificationRawDataset, ImageClassificationRawMetadata


def _touch(base: Path, *names: str) -> None:
    for name in names:
        (base / name).parent.mkdir(parents=True, exist_ok=True)
        (base / name).write_bytes(b"")


def test_counts_and_names(folder: Path):
    metadata = mox.ImageClassificationRawMetadata(base_dir=str(folder))
    assert metadata.total_num_samples == 14
    assert metadata.num_classes == 2
    assert metadata.labels_list == ["china", "flower"]
    assert metadata.labels_to_names == {0: "china", 1: "flower"}
    assert metadata.names_to_labels == {"china": 0, "flower": 1}


def test_pitfall_3_1_1_without_labels_txt_folders_are_sorted_as_text_and_the_log_says_so(tmp_path: Path, console: Any):
    _touch(tmp_path, *(f"label_{i}/0.jpg" for i in (0, 1, 2, 10, 11)))
    metadata = ImageClassificationRawMetadata(str(tmp_path))
    assert metadata.labels_list == ["label_0", "label_1", "label_10", "label_11", "label_2"]
    assert metadata.total_num_samples == 5
    assert metadata.num_classes == 5
    said = [line for line in console.lines if "label_0, label_1, label_10, label_11, label_2" in line]
    assert len(said) == 1
    assert "has no labels.txt" in said[0]


def test_pitfall_3_1_1_labels_txt_decides_what_the_model_is_given(
    folder: Path, read: Callable[..., list[list[object]]]
):
    (folder / "labels.txt").write_text("1: china\n0: flower\n")
    metadata = ImageClassificationRawMetadata(str(folder))
    assert metadata.labels_list == ["flower", "china"]
    rows = read(ImageClassificationRawDataset(metadata, num_epochs=1), ["image_name", "label", "label_desc"])
    assert len(rows) == 14
    for name, label, text in rows:
        folder_name = name.decode().split("/")[0]  # type: ignore[attr-defined]
        assert text.decode() == folder_name  # type: ignore[attr-defined]
        assert metadata.labels_to_names[int(label)] == folder_name  # type: ignore[call-overload]


def test_labels_file_of_another_name(folder: Path):
    (folder / "classes.txt").write_text("0: flower\n1: china\n")
    assert ImageClassificationRawMetadata(str(folder), labels_filename="classes.txt").labels_list == ["flower", "china"]
    assert ImageClassificationRawMetadata(str(folder)).labels_list == ["china", "flower"]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("0: china\n", "class folder 'BASE/flower' is missing in BASE/labels.txt"),
        ("0: china\n1: flowers\n", "names the class 'flowers', which has no folder; did you mean 'flower'?"),
        ("0: china\n2: flower\n", "index 1 is missing"),
        ("china\nflower\n", "labels.txt:1: expected `index: label`"),
    ],
)
def test_labels_txt_that_breaks_the_rules(folder: Path, text: str, message: str):
    (folder / "labels.txt").write_text(text)
    with pytest.raises(DataError) as caught:
        _ = ImageClassificationRawMetadata(str(folder)).labels_list
    assert message.replace("BASE", str(folder)) in caught.value.message


def test_hidden_files_other_files_and_deeper_folders_are_left_out(folder: Path):
    _touch(folder, "china/.1.jpg", "china/notes.txt", "china/Thumbs.db", "china/deeper/1.jpg", ".git/1.jpg", "9.jpg")
    metadata = ImageClassificationRawMetadata(str(folder))
    assert metadata.labels_list == ["china", "flower"]
    assert metadata.total_num_samples == 14


def test_a_class_without_images_is_told_and_kept(folder: Path, console: Any):
    (folder / "empty").mkdir()
    metadata = ImageClassificationRawMetadata(str(folder))
    assert metadata.num_classes == 3
    assert metadata.total_num_samples == 14
    assert "no image in the class folders empty" in console.text


def test_what_is_no_data_set(tmp_path: Path):
    with pytest.raises(DataError, match="no such folder"):
        _ = ImageClassificationRawMetadata(str(tmp_path / "nowhere")).num_classes
    with pytest.raises(DataError, match="holds no class folder"):
        _ = ImageClassificationRawMetadata(str(tmp_path)).num_classes
    (tmp_path / "a").mkdir()
    with pytest.raises(DataError, match="holds no image in its 1 class folders"):
        _ = ImageClassificationRawMetadata(str(tmp_path)).total_num_samples


def test_redirected_images_are_read_from_complete_copies_only(
    folder: Path, tmp_path: Path, read: Callable[..., list[list[object]]], crops: dict[str, list[object]]
):
    copy = tmp_path / "copy"
    shutil.copytree(folder, copy)
    # The copies swap two images of one size in bytes, so that it can be seen which file was read.
    one, other = (folder / "china/0.jpg").read_bytes(), (folder / "china/1.jpg").read_bytes()
    longest = max(len(one), len(other))
    for base, first, second in ((folder, one, other), (copy, other, one)):
        (base / "china/0.jpg").write_bytes(first.ljust(longest, b"\0"))
        (base / "china/1.jpg").write_bytes(second.ljust(longest, b"\0"))
    (copy / "flower/0.jpg").write_bytes(b"half")  # a copy under way
    (copy / "flower/1.jpg").unlink()
    (copy / "flower/more.jpg").write_bytes(one)  # base_dir decides what there is
    metadata = ImageClassificationRawMetadata(str(folder), redirect_dir=str(copy))
    assert metadata.total_num_samples == 14
    dataset = ImageClassificationRawDataset(metadata, num_epochs=1, shuffle=False, on_bad_image="raise")
    images = {name: image.shape for name, image in read(dataset, ["image_name", "image"])}  # type: ignore[attr-defined]
    assert len(images) == 14
    assert images[b"china/0.jpg"] == crops["china"][1].shape  # type: ignore[attr-defined]
    assert images[b"flower/0.jpg"] == crops["flower"][0].shape  # type: ignore[attr-defined]
    with pytest.raises(DataError, match="redirect_dir: no such folder"):
        ImageClassificationRawDataset(ImageClassificationRawMetadata(str(folder), redirect_dir=str(tmp_path / "no")))
