"""What data sets become: rows, names, labels, and clear words for what cannot be read."""

from __future__ import annotations

import gzip
import json
import struct

import numpy as np
import pytest

from moxserve.errors import DataError, UsageError
from moxserve.predict import open_rows
from moxserve.predict.readers import Label
from moxserve.types import Signature, TensorSpec, dtype_by_name


def load_all(rows):
    return [(row.name, row.load(), row.label) for row in rows.items]


def test_class_folders(shades, signature) -> None:
    rows = open_rows(shades, signature(images=("uint8", [None, 8, 8, 1])))
    assert rows.count == 21
    assert list(rows.classes) == ["dark", "mid", "bright"]
    assert rows.classes_listed
    found = load_all(rows)
    assert [name for name, _, _ in found][:2] == ["bright/0.png", "bright/1.png"]
    assert found[0][2] == Label("bright", 2)
    assert found[0][1]["images"].dtype == np.uint8
    assert found[0][1]["images"].shape == (8, 8, 1)
    assert found[0][1]["images"].max() == 250


def test_class_numbers_from_sorted_folder_names(shades, signature) -> None:
    (shades / "labels.txt").unlink()
    rows = open_rows(shades, signature(images=("uint8", [None, 8, 8, 1])))
    assert list(rows.classes) == ["bright", "dark", "mid"]
    assert not rows.classes_listed
    assert {row.label.name: row.label.index for row in rows.items} == {"bright": 0, "dark": 1, "mid": 2}


def test_labels_that_lack_a_folder(shades, signature) -> None:
    (shades / "labels.txt").write_text("0: dark\n1: mid\n")
    with pytest.raises(DataError, match=r"labels\.txt: lacks the folder 'bright'; it has dark, mid"):
        open_rows(shades, signature(images=("uint8", [None, 8, 8, 1])))


def test_a_labels_file_of_names_alone(shades, signature) -> None:
    (shades / "labels.txt").write_bytes(b"\xef\xbb\xbfmid\r\n\r\nbright\r\ndark\r\n")
    rows = open_rows(shades, signature(images=("uint8", [None, 8, 8, 1])))
    assert (list(rows.classes), rows.classes_listed) == (["mid", "bright", "dark"], True)


@pytest.mark.parametrize(
    ("dtype", "shape", "result", "value"),
    [
        ("uint8", [None, 8, 8, 1], (8, 8, 1), 250),
        ("float32", [None, 8, 8, 3], (8, 8, 3), 250 / 255),
        ("float32", [None, 4, 6, 1], (4, 6, 1), 250 / 255),
        ("float16", [None, 8, 8], (8, 8), 250 / 255),
        ("float32", [None, 64], (64,), 250 / 255),
        ("float32", [None, 192], (192,), 250 / 255),
        ("int32", [None, None, None, 3], (8, 8, 3), 250),
        ("uint8", [2, 16, 16, 4], (16, 16, 4), 250),
    ],
)
def test_pictures_take_the_form_of_the_input(shades, signature, dtype, shape, result, value) -> None:
    rows = open_rows(shades / "bright", signature(images=(dtype, shape)))
    (_, inputs, label), *_ = load_all(rows)
    assert label is None
    assert inputs["images"].shape == result
    assert float(inputs["images"].reshape(-1)[0]) == pytest.approx(value, rel=1e-3)


def test_encoded_pictures_go_out_as_files(shades, signature) -> None:
    file = shades / "mid" / "0.png"
    (row,) = open_rows(file, signature(files=("string", [None]))).items
    assert row.load()["files"][()] == file.read_bytes()


@pytest.mark.parametrize(
    "spec", [("float32", [None, 5]), ("uint8", [None, 8, 8, 2]), ("bool", [None, 8, 8]), ("uint8", [None])]
)
def test_pictures_for_an_input_that_takes_none(shades, signature, spec) -> None:
    with pytest.raises(UsageError, match="pictures do not fit input x"):
        open_rows(shades, signature(x=spec))


def test_pictures_for_a_classify_signature(shades) -> None:
    spec = TensorSpec("inputs", dtype_by_name("string"), (None,))
    with pytest.raises(UsageError, match=r"'classify' takes serialized tf\.Example records, not pictures"):
        open_rows(shades, Signature("classify", "tensorflow/serving/classify", {"inputs": spec}, {}))


def test_sixteen_bit_grey_keeps_its_upper_bits(tmp_path, signature) -> None:
    image = pytest.importorskip("PIL.Image")
    image.fromarray(np.full((8, 8), 0x8040, np.uint16)).save(tmp_path / "deep.png")
    (row,) = open_rows(tmp_path / "deep.png", signature(images=("uint8", [None, 8, 8, 1]))).items
    assert set(row.load()["images"].reshape(-1)) == {0x80}


def test_damaged_picture(shades, signature) -> None:
    (shades / "bright" / "0.png").write_bytes(b"\x89PNG not really")
    rows = open_rows(shades, signature(images=("uint8", [None, 8, 8, 1])))
    with pytest.raises(DataError, match=r"bright/0\.png: cannot be read as a picture"):
        next(rows.items).load()


def test_folder_without_pictures(tmp_path, signature) -> None:
    (tmp_path / "train" / "3").mkdir(parents=True)
    with pytest.raises(DataError, match="it holds the folders train, without pictures directly in them"):
        open_rows(tmp_path, signature(images=("uint8", [None, 8, 8, 1])))


def test_npy(tmp_path, signature) -> None:
    np.save(tmp_path / "x.npy", np.arange(6, dtype=np.int32).reshape(2, 3))
    found = load_all(open_rows(tmp_path / "x.npy", signature(x=("float64", [None, 3]))))
    assert [name for name, _, _ in found] == ["x.npy[0]", "x.npy[1]"]
    assert found[1][1]["x"].tolist() == [3.0, 4.0, 5.0]
    assert found[1][1]["x"].dtype == np.float64


def test_npy_of_another_shape_names_the_row(tmp_path, signature) -> None:
    np.save(tmp_path / "x.npy", np.zeros((2, 4), np.float32))
    rows = open_rows(tmp_path / "x.npy", signature(x=("float32", [None, 3])))
    with pytest.raises(DataError, match=r"x\.npy\[0\]: input 'x' has shape \[4\]; expected x: float32\[3\]"):
        next(rows.items).load()


def test_npz_with_labels(tmp_path, signature) -> None:
    np.savez(tmp_path / "d.npz", a=np.zeros((3, 2), np.float32), b=np.arange(3), labels=np.array([1, 0, 2]))
    rows = open_rows(tmp_path / "d.npz", signature(a=("float32", [None, 2]), b=("int64", [None])), limit=2)
    assert rows.count == 2
    found = load_all(rows)
    assert [label.index for _, _, label in found] == [1, 0]
    assert found[1][1]["b"] == 1


def test_npz_with_other_names_or_lengths(tmp_path, signature) -> None:
    np.savez(tmp_path / "d.npz", a=np.zeros(3, np.float32), c=np.zeros(3, np.float32))
    with pytest.raises(DataError, match="holds a, c; expected a, b"):
        open_rows(tmp_path / "d.npz", signature(a=("float32", [None]), b=("float32", [None])))
    np.savez(tmp_path / "e.npz", a=np.zeros(3, np.float32), b=np.zeros(2, np.float32))
    with pytest.raises(DataError, match=r"same number of rows; got \{'a': 3, 'b': 2\}"):
        open_rows(tmp_path / "e.npz", signature(a=("float32", [None]), b=("float32", [None])))


def test_pickled_arrays_are_not_loaded(tmp_path, signature) -> None:
    np.save(tmp_path / "x.npy", np.array([{}], object), allow_pickle=True)
    with pytest.raises(DataError, match=r"x\.npy: cannot be read as a NumPy file"):
        open_rows(tmp_path / "x.npy", signature(x=("float32", [None])))


def idx(array: np.ndarray) -> bytes:
    return (
        bytes((0, 0, 8, array.ndim)) + struct.pack(f">{array.ndim}I", *array.shape) + array.astype(np.uint8).tobytes()
    )


def test_idx_with_labels_beside(tmp_path, signature) -> None:
    images = np.arange(2 * 16, dtype=np.uint8).reshape(2, 4, 4)
    (tmp_path / "t10k-images-idx3-ubyte.gz").write_bytes(gzip.compress(idx(images)))
    (tmp_path / "t10k-labels-idx1-ubyte.gz").write_bytes(gzip.compress(idx(np.array([7, 3]))))
    rows = open_rows(tmp_path / "t10k-images-idx3-ubyte.gz", signature(images=("float32", [None, 16])))
    found = load_all(rows)
    assert [label for _, _, label in found] == [Label(index=7), Label(index=3)]
    assert found[1][1]["images"] == pytest.approx(images[1].reshape(-1) / 255)


def test_idx_that_is_cut_off(tmp_path, signature) -> None:
    (tmp_path / "images-idx3-ubyte").write_bytes(idx(np.zeros((2, 4, 4)))[:-1])
    with pytest.raises(DataError, match=r"has 31 bytes of data; its header \[2, 4, 4\] announces 32"):
        open_rows(tmp_path / "images-idx3-ubyte", signature(images=("uint8", [None, 4, 4, 1])))
    (tmp_path / "labels-idx3-ubyte").write_bytes(b"hello")
    with pytest.raises(DataError, match="is no IDX file of unsigned bytes"):
        open_rows(tmp_path / "labels-idx3-ubyte", signature(images=("uint8", [None, 4, 4, 1])))


def test_json_lines(tmp_path, signature) -> None:
    lines = [[1, 2], {"x": [3, 4.5], "label": "a"}, {"x": [5, 6], "label": 3}]
    (tmp_path / "r.jsonl").write_text("\n\n".join(map(json.dumps, lines)))
    found = load_all(open_rows(tmp_path / "r.jsonl", signature(x=("float32", [None, 2]))))
    assert [name for name, _, _ in found] == ["r.jsonl:1", "r.jsonl:3", "r.jsonl:5"]
    assert [inputs["x"].tolist() for _, inputs, _ in found] == [[1, 2], [3, 4.5], [5, 6]]
    assert [label for _, _, label in found] == [None, Label(name="a"), Label(index=3)]


def test_json_lines_as_python_writes_them(tmp_path, signature) -> None:
    (tmp_path / "r.jsonl").write_text("[NaN, -Infinity]\n")
    ((_, inputs, _),) = load_all(open_rows(tmp_path / "r.jsonl", signature(x=("float32", [None, 2]))))
    np.testing.assert_array_equal(inputs["x"], [np.nan, -np.inf])


def test_json_lines_with_bytes(tmp_path, signature) -> None:
    (tmp_path / "r.jsonl").write_text('{"b64": "AP8="}\n"text"\n{"s": {"b64": "AP8="}}\n')
    found = load_all(open_rows(tmp_path / "r.jsonl", signature(s=("string", [None]))))
    assert [inputs["s"][()] for _, inputs, _ in found] == [b"\x00\xff", b"text", b"\x00\xff"]


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("{", r"r\.jsonl:1: no JSON"),
        ('{"y": 1}', r"r\.jsonl:1: has the inputs y; expected x"),
        ("[1, 2, 3]", r"r\.jsonl:1: input 'x' has shape \[3\]; expected x: float32\[2\]"),
        ('["a", "b"]', r"r\.jsonl:1: input 'x' is string; expected float32"),
        ('{"x": {"b64": "?"}}', r"r\.jsonl:1: wrong base64"),
    ],
)
def test_wrong_json_lines(tmp_path, signature, line, message) -> None:
    (tmp_path / "r.jsonl").write_text(line)
    (row,) = open_rows(tmp_path / "r.jsonl", signature(x=("float32", [None, 2]))).items
    with pytest.raises(DataError, match=message):
        row.load()


def test_nothing_there_or_unknown(tmp_path, signature) -> None:
    with pytest.raises(DataError, match="no such file or directory"):
        open_rows(tmp_path / "none", signature(x=("float32", [None])))
    (tmp_path / "a.xls").write_text("1\n")
    with pytest.raises(DataError, match=r"a\.xls: unknown kind of data set") as caught:
        open_rows(tmp_path / "a.xls", signature(x=("float32", [None])))
    assert ".jsonl" in (caught.value.hint or "")


def test_one_array_for_several_inputs(tmp_path, signature) -> None:
    np.save(tmp_path / "x.npy", np.zeros(3))
    with pytest.raises(UsageError, match="holds one input; signature 'serving_default' has 2"):
        open_rows(tmp_path / "x.npy", signature(a=("float32", [None]), b=("float32", [None])))
