"""What is told of data sets of every kind, and what is found to be broken in them."""

from __future__ import annotations

import gzip
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from moxserve.data.inspection.describe import Depth, describe
from moxserve.data.inspection.detect import detect
from moxserve.data.textures import jpeg_bytes
from moxserve.errors import DataError, UsageError
from moxserve.file.idx import encode_idx
from moxserve.inspect.report import Report
from moxserve.protocol.examples import make_example
from moxserve.protocol.tfrecord import write_records


def picture(height: int = 20, width: int = 30, channels: int = 3) -> bytes:
    shape = (height, width, channels) if channels > 1 else (height, width)
    return jpeg_bytes(np.random.default_rng(0).integers(0, 256, shape, np.uint8))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Two classes of sound images."""
    for part in ("train", "eval"):
        for label, count in (("cat", 3), ("dog", 2)):
            (tmp_path / part / label).mkdir(parents=True)
            for number in range(count):
                (tmp_path / part / label / f"{number}.jpg").write_bytes(picture(20 + number))
        (tmp_path / part / "labels.txt").write_text("0: dog\n1: cat\n")
    return tmp_path


def one(path: Any, **kwargs: Any) -> Report:
    (report,) = describe(str(path), Depth(**kwargs))
    return report


def table(report: Report, key: str) -> list[dict[str, Any]]:
    (found,) = [t for t in report.tables if t.key == key]
    return found.records()


def test_parts_of_a_folder_are_data_sets_of_their_own(folder: Path) -> None:
    reports = describe(str(folder))
    assert [(Path(r.path).name, r.kind) for r in reports] == [("eval", "image folder"), ("train", "image folder")]
    report = reports[0]
    assert report.facts["images"] == 5
    assert report.facts["formats"] == "jpeg"
    assert report.facts["height"] == "20 to 22, median 21"
    assert (report.facts["width"], report.facts["colours"]) == ("30", "RGB")
    assert table(report, "classes") == [
        {"index": 0, "label": "dog", "images": 2, "broken": None},
        {"index": 1, "label": "cat", "images": 3, "broken": None},
    ]
    assert (report.problems, report.notes) == ([], [])


def test_broken_images_are_named(folder: Path) -> None:
    part = folder / "train"
    whole = picture(200, 200)
    (part / "cat" / "0.jpg").write_bytes(whole[: len(whole) // 2])
    (part / "cat" / "1.jpg").write_bytes(b"")
    (part / "dog" / "0.jpg").write_text("no image")
    (part / "dog" / "notes.txt").write_text("x")
    (part / "dog" / "9.jpg").symlink_to("nowhere.jpg")
    report = one(part)
    broken = ["cat/0.jpg", "cat/1.jpg", "dog/0.jpg", "dog/9.jpg"]
    assert [problem.partition(":")[0] for problem in report.problems] == broken
    assert [row["broken"] for row in table(report, "classes")] == [2, 2]
    assert report.notes == ["1 file(s) or folder(s) are no images by name, and are left out: dog/notes.txt"]


def test_only_decoding_finds_damage_inside(folder: Path) -> None:
    from PIL import Image

    path = folder / "train" / "cat" / "0.jpg"
    Image.new("RGB", (64, 64)).save(path, format="PNG")
    data = bytearray(path.read_bytes())
    report = one(folder / "train")
    assert "1 file(s) are of another format than the name says" in report.notes[0]
    data[data.index(b"IDAT") + 8] ^= 0xFF
    path.write_bytes(data)
    assert any("cat/0.jpg" in problem for problem in one(folder / "train", decode=True).problems)


def test_labels_and_folders_are_held_against_each_other(folder: Path) -> None:
    (folder / "train" / "labels.txt").write_text("0: dog\n1: bird\n")
    assert one(folder / "train").problems == [
        "cat: a folder that labels.txt does not name",
        "labels.txt names 'bird', which has no folder",
    ]
    (folder / "train" / "labels.txt").write_text("0: dog\n2: cat\n")
    assert "labels.txt" in one(folder / "train").problems[0]


def test_several_labels_an_image(tmp_path: Path) -> None:
    (tmp_path / "images").mkdir()
    (tmp_path / "labels").mkdir()
    for number, labels in enumerate((["a"], ["a", "b"], None, ["c"])):
        (tmp_path / "images" / f"{number}.jpg").write_bytes(picture(channels=1))
        if labels is not None:
            (tmp_path / "labels" / f"{number}.jpg.txt").write_text("\n".join(labels))
    (tmp_path / "labels.txt").write_text("0: a 1: b")
    report = one(tmp_path)
    assert (report.kind, report.facts["labels_of_an_image"]) == ("multilabel", "1 to 2, median 1")
    assert report.problems == [
        "images/2.jpg: there is no labels/2.jpg.txt",
        "labels.txt lacks the label 'c' of labels/3.jpg.txt",
    ]
    assert [(row["label"], row["images"]) for row in table(report, "classes")] == [("a", 2), ("b", 1), ("c", 1)]


def records(path: Path, count: int = 5) -> None:
    features = [
        {
            "image/encoded": [picture()],
            "image/class/label": [number % 2],
            "image/class/text": [b"even" if number % 2 == 0 else b"odd"],
            "box": np.zeros(number, np.float32),
        }
        for number in range(count)
    ]
    write_records(path, (make_example(f).SerializeToString() for f in features))


def test_features_of_records(tmp_path: Path) -> None:
    records(tmp_path / "train-00000-of-00002.tfrecord")
    records(tmp_path / "train-00001-of-00002.tfrecord", 3)
    records(tmp_path / "eval.tfrecord", 2)
    reports = {Path(r.path).name: r for r in describe(str(tmp_path))}
    assert set(reports) == {"train-*", "eval.tfrecord"}
    train = reports["train-*"]
    assert (train.facts["records"], train.facts["files"], train.facts["images"]) == (8, 2, 8)
    rows = {row["feature"]: row for row in table(train, "features")}
    assert {name: (row["dtype"], row["length"]) for name, row in rows.items()} == {
        "box": ("float", "0 to 4"),
        "image/class/label": ("int64", "1"),
        "image/class/text": ("bytes", "1"),
        "image/encoded": ("bytes", "1"),
    }
    assert rows["image/encoded"]["example"].startswith("jpeg, ")
    assert table(train, "classes") == [
        {"index": 0, "label": "even", "records": 5},
        {"index": 1, "label": "odd", "records": 3},
    ]
    few = one(tmp_path / "eval.tfrecord", rows=1)
    assert few.notes == ["features are those of the first 1 of 2 records; --rows looks at more"]


def test_damaged_records_are_named(tmp_path: Path) -> None:
    path = tmp_path / "a.tfrecord"
    records(path)
    data = path.read_bytes()
    path.write_bytes(data[:-3])
    assert len(one(path).problems) == 1
    flipped = bytearray(data)
    flipped[len(data) // 2] ^= 1
    path.write_bytes(flipped)
    assert one(path).problems
    write_records(
        path, [b"\xff\xff no example", make_example({"image/encoded": [picture()[:100]]}).SerializeToString()]
    )
    report = one(path)
    assert "a.tfrecord, record 0: no tf.Example" in report.problems[0]
    assert "a.tfrecord, record 1, image/encoded" in report.problems[1]


def test_tables(tmp_path: Path) -> None:
    path = tmp_path / "t.csv"
    path.write_text("age;name;score\n1;a;0.5\n22;b;\n3;c\n4;a;1e3\n")
    report = one(path)
    assert (report.facts["rows"], report.facts["columns"], report.facts["delimiter"]) == (3, 3, ";")
    assert [(r["column"], r["dtype"], r["missing"], r["values"]) for r in table(report, "column_list")] == [
        ("age", "int64", None, "3"),
        ("name", "text", None, "2"),
        ("score", "float", 1, "2"),
    ]
    assert report.problems == ["line 4 has 2 fields instead of 3"]
    path.write_text("1,2\n3,4\n")
    numbered = one(path)
    assert (numbered.facts["rows"], numbered.notes) == (2, ["the first line holds no names: the columns are numbered"])
    path.write_bytes(b"a,b\n\xff,1\n")
    assert one(path).problems == ["line 2: is not UTF-8 text: byte 0xff"]
    path.write_text("a,b,a,,\n1,2,3,,\n")
    assert one(path).problems == ["line 1: the column 'a' is there twice"]
    packed = tmp_path / "t.tsv.gz"
    packed.write_bytes(gzip.compress(b"a\tb\n1\tx\n"))
    assert one(packed).facts["rows"] == 1
    packed.write_bytes(packed.read_bytes()[:-4])
    assert "end-of-stream" in one(packed).problems[0]
    path.write_text('a,b\n"never closed,1\n')
    assert one(path).problems == ["line 2: unexpected end of data"]
    path.write_text("")
    assert one(path).problems == ["the file is empty"]


def test_parquet(tmp_path: Path) -> None:
    pyarrow = pytest.importorskip("pyarrow")
    from pyarrow import parquet

    path = tmp_path / "t.parquet"
    parquet.write_table(pyarrow.table({"n": [1, None, 3], "s": ["x", "y", "z"]}), path)
    report = one(path)
    assert (report.facts["rows"], report.facts["columns"]) == (3, 2)
    assert [tuple(r.values()) for r in table(report, "column_list")] == [
        ("n", "int64", 1, None, "1", "3"),
        ("s", "string", None, None, "x", "z"),
    ]
    path.write_bytes(path.read_bytes()[:-10])
    assert one(path).problems


def test_arrays(tmp_path: Path) -> None:
    path = tmp_path / "a.npz"
    np.savez(path, x=np.zeros([3, 4], np.float32), y=np.arange(3), o=np.array([{}], object))
    report = one(path)
    assert [(r["array"], r["dtype"], r["shape"]) for r in table(report, "array_list")][:2] == [
        ("x", "float32", (3, 4)),
        ("y", "int64", (3,)),
    ]
    assert "o holds Python objects" in report.notes[0]
    data = bytearray(path.read_bytes())
    data[200] ^= 0xFF
    path.write_bytes(data)
    assert "x: " in one(path).problems[0]
    path.write_bytes(bytes(data[:300]))
    assert one(path).problems


def test_idx(tmp_path: Path) -> None:
    images, labels = tmp_path / "train-images-idx3-ubyte.gz", tmp_path / "train-labels-idx1-ubyte"
    images.write_bytes(encode_idx(np.zeros([3, 4, 5], np.uint8)))
    labels.write_bytes(encode_idx(np.array([1, 0, 1], np.uint8), compressed=False))
    first, second = describe(str(tmp_path))
    assert first.facts["shape"] == [3, 4, 5]
    assert table(second, "classes") == [{"index": 0, "labels": 1}, {"index": 1, "labels": 2}]
    images.write_bytes(gzip.compress(gzip.decompress(images.read_bytes())[:-1]))
    assert "announces 60" in one(images).problems[0]
    images.write_bytes(images.read_bytes()[:-9])
    assert one(images).problems


def test_lmdb(tmp_path: Path) -> None:
    pytest.importorskip("lmdb")
    from moxserve.dataflow import DataFromList, LMDBSerializer

    path = tmp_path / "a.lmdb"
    LMDBSerializer.save(DataFromList([[i, np.zeros(3)] for i in range(4)], shuffle=False), str(path))
    report = one(path)
    assert report.kind == "lmdb"
    assert report.facts["entries"] >= 4
    path.write_bytes(path.read_bytes()[:8192])
    assert one(path).problems


def test_nothing_that_is_a_data_set(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no such file or folder"):
        describe(str(tmp_path / "absent"))
    (tmp_path / "readme.md").write_text("# hello")
    with pytest.raises(DataError, match="is no data set") as caught:
        describe(str(tmp_path))
    assert "image folder, multilabel" in str(caught.value.hint)
    with pytest.raises(UsageError, match="only local data sets"):
        describe("s3://bucket/data")


def test_a_class_whose_first_images_are_broken_is_a_class(tmp_path: Path) -> None:
    for label in ("a", "b"):
        (tmp_path / label).mkdir()
    (tmp_path / "a" / "0.jpg").write_bytes(b"")
    (tmp_path / "b" / "0.jpg").write_bytes(picture())
    assert [found.kind for found in detect(str(tmp_path))] == ["image folder"]


@given(
    head=st.binary(max_size=64), name=st.sampled_from(["a.npz", "b.tfrecord", "c.csv", "d.jpg", "e.gz", "f.parquet"])
)
def test_any_bytes_are_described_or_refused(tmp_path_factory: pytest.TempPathFactory, head: bytes, name: str) -> None:
    folder = tmp_path_factory.mktemp("hostile")
    (folder / name).write_bytes(head)
    try:
        report = one(folder / name)
        assert report.kind
    except DataError:
        pass
    finally:
        shutil.rmtree(folder)
