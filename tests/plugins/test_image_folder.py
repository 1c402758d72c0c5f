"""image_folder: the folder's rules, the exact order of epochs, and what comes out of decoding."""

from __future__ import annotations

import io
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from moxserve_plugins.image_folder.config import ImageFolder
from moxserve_plugins.image_folder.header import image_shape
from moxserve_plugins.image_folder.index import index_folders, read_labels
from PIL import Image
from pydantic import ValidationError

from moxserve.errors import DataError
from moxserve.registry import discover


def _image(path: Path, shape: tuple[int, ...] = (4, 5), value: int = 0, **options: Any) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.full(shape, value, np.uint8)).save(path, **options)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Three classes with three images each; image i of class c has the value 10 c + i."""
    base = tmp_path / "train"
    for c, label in enumerate(("label_0", "label_10", "label_2")):
        for i in range(3):
            _image(base / label / f"{i}.png", value=10 * c + i)
    return base


def _plugin(base: Path, **values: Any) -> ImageFolder:
    return ImageFolder.model_validate({"plugin": "image_folder", "train_dir": str(base), "batch_size": 4, **values})


def test_without_labels_txt_names_are_sorted_as_text(folder: Path):
    index = index_folders(_plugin(folder))
    assert index.labels == ("label_0", "label_10", "label_2")
    assert index.shape == (4, 5, 1)
    assert [Path(f).name for f in index.folders["train"].files[:3]] == ["0.png", "1.png", "2.png"]


def test_labels_txt_decides(folder: Path):
    (folder / "labels.txt").write_text("1: label_2\n\n0: label_10 \n2:label_0\n")
    index = index_folders(_plugin(folder))
    assert index.labels == ("label_10", "label_2", "label_0")
    assert index.folders["train"].classes == [0, 0, 0, 1, 1, 1, 2, 2, 2]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("0: label_0\n1: label_10\n", "class folder 'BASE/label_2' is missing in BASE/labels.txt"),
        (
            "0: label_0\n1: label_10\n2: label_2\n3: x\n",
            "BASE/labels.txt names the class 'x', which has no folder; none are known",
        ),
        (
            "0: label_0\n1: label_10\n2: label2\n",
            "BASE/labels.txt names the class 'label2', which has no folder; did you mean 'label_2'?",
        ),
        ("0 label_0\n", "BASE/labels.txt:1: expected `index: label`, such as `0: cat`, got '0 label_0'"),
        ("0: a\n0: b\n", "BASE/labels.txt:2: index 0 is given twice, first for 'a'"),
        ("0: a\n1: a\n", "BASE/labels.txt:2: label 'a' is given twice, first on line 1"),
        ("0: a\n2: b\n", "BASE/labels.txt: index 1 is missing; 2 labels need the indices 0 to 1"),
        ("\n", "BASE/labels.txt is empty; expected `index: label`, one line a class"),
    ],
)
def test_labels_txt_that_breaks_the_rules(folder: Path, text: str, message: str):
    (folder / "labels.txt").write_text(text)
    assert list(_plugin(folder).check()) == [("train_dir", message.replace("BASE", str(folder)))]
    with pytest.raises(DataError):
        _plugin(folder).build()


def test_labels_may_hold_colons_and_spaces(tmp_path: Path):
    (tmp_path / "labels.txt").write_text("0: tench, Tinca tinca\n1:a: b\n", encoding="utf-8")
    assert read_labels(str(tmp_path / "labels.txt")) == ("tench, Tinca tinca", "a: b")


def test_hidden_and_foreign_files_are_left_out(folder: Path):
    _image(folder / ".cache" / "x.png")
    _image(folder / "label_0" / ".hidden.png")
    (folder / "label_0" / "notes.txt").write_text("x")
    (folder / "README.md").write_text("x")
    assert len(index_folders(_plugin(folder)).folders["train"].files) == 9


def test_empty_folders(folder: Path, tmp_path: Path):
    (folder / "label_3").mkdir()
    assert "label_3' holds no image (.png, .jpg, .jpeg)" in next(iter(_plugin(folder).check()))[1]
    # In evaluation a class may be missing.
    plugin = ImageFolder.model_validate({"eval_dir": str(folder), "batch_size": 1})
    assert list(plugin.check()) == []
    (tmp_path / "nothing").mkdir()
    assert "holds no class folder" in next(iter(_plugin(tmp_path / "nothing").check()))[1]


def test_training_and_evaluation_must_agree(folder: Path, tmp_path: Path):
    other = tmp_path / "eval"
    for label in ("label_0", "label_10", "label_3"):
        _image(other / label / "0.png")
    field, message = next(iter(_plugin(folder, eval_dir=str(other)).check()))
    assert field == "eval_dir"
    assert message == (
        f"training and evaluation have different classes: 'label_2' only in {folder}, 'label_3' only in {other}"
    )
    (other / "label_3").rename(other / "label_2")
    (other / "labels.txt").write_text("0: label_2\n1: label_0\n2: label_10\n")
    field, message = next(iter(_plugin(folder, eval_dir=str(other)).check()))
    assert message == f"class 0 is 'label_0' in {folder} and 'label_2' in {other}; give both the same labels.txt"


def test_parameters_are_checked():
    with pytest.raises(ValidationError, match="expected train_dir, eval_dir or both"):
        ImageFolder.model_validate({"batch_size": 1})
    with pytest.raises(ValidationError, match=r"expected image_size \[height, width\] of at least 1"):
        ImageFolder.model_validate({"batch_size": 1, "train_dir": "x", "image_size": [0, 3]})


@pytest.mark.parametrize(
    ("mode", "options", "expected"),
    [
        ("L", {"format": "PNG"}, (7, 9, 1)),
        ("RGB", {"format": "PNG"}, (7, 9, 3)),
        ("RGBA", {"format": "PNG"}, (7, 9, 3)),
        ("LA", {"format": "PNG"}, (7, 9, 1)),
        ("P", {"format": "PNG"}, (7, 9, 3)),
        ("L", {"format": "JPEG"}, (7, 9, 1)),
        ("RGB", {"format": "JPEG"}, (7, 9, 3)),
        ("RGB", {"format": "JPEG", "progressive": True}, (7, 9, 3)),
        ("RGB", {"format": "JPEG", "exif": b"Exif\0\0" + b"x" * 70}, (7, 9, 3)),
    ],
)
def test_header_of_real_files(tmp_path: Path, mode: str, options: dict[str, Any], expected: tuple[int, int, int]):
    data = io.BytesIO()
    Image.new(mode, (9, 7)).save(data, **options)
    path = tmp_path / "image"
    path.write_bytes(data.getvalue())
    assert image_shape(str(path)) == expected
    for cut in (0, 3, 10, 25):
        path.write_bytes(data.getvalue()[:cut])
        with pytest.raises(DataError, match=r"cut off within the header|is no image|is empty"):
            image_shape(str(path))


def _values(batches: list[list[np.ndarray]]) -> list[int]:
    return [int(image[0, 0, 0]) for images, _ in batches for image in images]


@pytest.mark.slow
@pytest.mark.parametrize("cache_mb", [512, 0], ids=["in memory", "decoded each time"])
def test_each_epoch_is_a_permutation_of_all_rows(folder: Path, cache_mb: int, read_batches: Callable[..., Any]):
    plugin = _plugin(folder, batch_size=3, seed=7, cache_mb=cache_mb)
    values = _values(read_batches(plugin.build(), "TRAIN", 9))
    everything = sorted(10 * c + i for c in range(3) for i in range(3))
    epochs = [values[i : i + 9] for i in (0, 9, 18)]
    assert [sorted(epoch) for epoch in epochs] == [everything] * 3
    assert epochs[0] != epochs[1]
    assert values == _values(read_batches(plugin.build(), "TRAIN", 9))
    assert values != _values(read_batches(_plugin(folder, batch_size=3, seed=8).build(), "TRAIN", 9))


def test_batches_of_training_have_one_size_and_run_on_across_epochs(folder: Path, read_batches: Callable[..., Any]):
    batches = read_batches(_plugin(folder, batch_size=4).build(), "TRAIN", 9)
    assert {images.shape for images, _ in batches} == {(4, 4, 5, 1)}
    values = np.array(_values(batches))
    assert {int(np.sum(values == v)) for v in values} == {4}


@pytest.mark.parametrize("cache_mb", [512, 0], ids=["in memory", "decoded each time"])
@pytest.mark.parametrize("mode", ["EVAL", "PREDICT"])
def test_evaluation_gives_each_row_once_in_order(
    folder: Path, mode: str, cache_mb: int, read_batches: Callable[..., Any]
):
    plugin = _plugin(folder, eval_dir=str(folder), eval_batch_size=4, cache_mb=cache_mb)
    bundle = plugin.build()
    batches = read_batches(bundle, mode)
    assert [len(images) for images, _ in batches] == [4, 4, 1]
    assert _values(batches) == [10 * c + i for c in range(3) for i in range(3)]
    assert np.concatenate([labels for _, labels in batches]).tolist() == [0, 0, 0, 1, 1, 1, 2, 2, 2]
    assert (batches[0][0].dtype, batches[0][1].dtype) == (np.uint8, np.int64)
    assert bundle.row_names[mode][:2] == ["label_0/0.png", "label_0/1.png"]
    assert (bundle.steps(mode), bundle.num_samples[mode]) == (3, 9)


def test_without_shuffle_training_keeps_the_order(folder: Path, read_batches: Callable[..., Any]):
    values = _values(read_batches(_plugin(folder, shuffle=False, batch_size=9).build(), "TRAIN", 2))
    assert values == [10 * c + i for c in range(3) for i in range(3)] * 2


def test_pixels_are_those_of_the_files(tmp_path: Path, read_batches: Callable[..., Any]):
    pixels = np.random.default_rng(0).integers(0, 256, (6, 8, 3), np.uint8)
    (tmp_path / "a").mkdir()
    Image.fromarray(pixels).save(tmp_path / "a" / "0.png")
    Image.fromarray(pixels).save(tmp_path / "a" / "1.jpeg", quality=95)
    plugin = ImageFolder.model_validate({"eval_dir": str(tmp_path), "batch_size": 2})
    [[images, _]] = read_batches(plugin.build(), "EVAL")
    np.testing.assert_array_equal(images[0], pixels)
    jpeg = np.asarray(Image.open(tmp_path / "a" / "1.jpeg")).astype(int)
    # Two JPEG decoders differ by rounding in the chroma of noise, which is the worst case.
    assert np.abs(images[1].astype(int) - jpeg).mean() < 3


@pytest.mark.parametrize("resize", ["bilinear", "nearest", "area"])
def test_resize_and_channels(tmp_path: Path, resize: str, read_batches: Callable[..., Any]):
    _image(tmp_path / "a" / "0.png", (4, 4), 100)
    _image(tmp_path / "a" / "1.png", (9, 5, 3), 200)
    values = {"eval_dir": str(tmp_path), "batch_size": 2, "image_size": [6, 3], "channels": 3, "resize": resize}
    [[images, _]] = read_batches(ImageFolder.model_validate(values).build(), "EVAL")
    assert (images.shape, images.dtype) == ((2, 6, 3, 3), np.uint8)
    assert (images[0] == 100).all()
    assert (images[1] == 200).all()


@pytest.mark.parametrize("kind", ["broken", "size"])
def test_the_file_to_blame_is_named(folder: Path, kind: str, read_batches: Callable[..., Any]):
    import tensorflow as tf

    bad = folder / "label_10" / "1.png"
    if kind == "broken":
        bad.write_bytes(b"no image")
    else:
        _image(bad, (3, 3))
    bundle = _plugin(folder).build()
    with pytest.raises(tf.errors.OpError):
        read_batches(bundle, "TRAIN", 3)
    expected = "cannot be decoded" if kind == "broken" else "is 3x3x1, the first image 4x5x1; set input.image_size"
    assert bundle.diagnose().startswith(f"{bad} {expected}")


def test_a_mode_without_data_says_which_key_is_missing(folder: Path):
    bundle = _plugin(folder).build()
    with pytest.raises(DataError, match=r"no images for EVAL: input\.eval_dir is not set"):
        bundle.input_fn("EVAL")


def test_describe_needs_no_tensorflow(folder: Path):
    assert _plugin(folder).describe() == f"images 4x5x1 of 3 classes: 9 in {folder}"
    assert discover([]).load("input", "image_folder") is ImageFolder
