"""`moxserve data to-tfrecord`: from folders and tables to records, and back through the readers."""

from __future__ import annotations

import io
import json
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from moxserve.data.to_tfrecord import RecordJob, parse_split, write_tfrecords
from moxserve.errors import DataError, UsageError
from moxserve.protocol.examples import parse_example
from moxserve.protocol.tfrecord import read_records


def picture(number: int, kind: str = "PNG") -> bytes:
    from PIL import Image

    buffer = io.BytesIO()
    Image.fromarray(np.full((5, 4, 3), number, np.uint8)).save(buffer, format=kind)
    return buffer.getvalue()


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """20 cats and 10 dogs; labels.txt puts the dogs first."""
    out = tmp_path / "pets"
    for label, count in (("cat", 20), ("dog", 10)):
        (out / label).mkdir(parents=True)
        for number in range(count):
            (out / label / f"{number}.png").write_bytes(picture(number))
    (out / "labels.txt").write_text("0: dog\n1: cat\n")
    return out


def examples(out: Path, pattern: str = "*.tfrecord") -> list[dict[str, Any]]:
    return [parse_example(record) for path in sorted(out.glob(pattern)) for record in read_records(path)]


def write(source: Path, out: Path, **options: Any) -> Any:
    return write_tfrecords(RecordJob(str(source), str(out), **options))


def test_a_folder_a_class(folder: Path, tmp_path: Path) -> None:
    manifest = write(folder, tmp_path / "out", shards=4)
    assert (manifest["samples"], manifest["labels"], manifest["skipped"]) == ({"train": 30}, ["dog", "cat"], 0)
    assert json.loads((tmp_path / "out" / "dataset.json").read_text())["shards"] == 4
    assert (tmp_path / "out" / "labels.txt").read_text() == "0: dog\n1: cat\n"
    sizes = [len(examples(tmp_path / "out", f"train-{shard:05}-of-00004.tfrecord")) for shard in range(4)]
    assert sizes == [8, 8, 7, 7]
    found = examples(tmp_path / "out")
    labels = [int(one["image/class/label"][0]) for one in found]
    assert labels != sorted(labels), "shuffled"
    assert Counter(labels) == {0: 10, 1: 20}
    for one in found:
        label, name = one["image/filename"][0].decode().split("/")
        assert (label.encode(), one["image/format"][0]) == (one["image/class/text"][0], b"png")
        assert one["image/encoded"][0] == (folder / label / name).read_bytes(), "not encoded anew"
        sizes = [int(one[f"image/{side}"][0]) for side in ("height", "width", "channels")]
        assert sizes == [5, 4, 3]


def test_the_same_again_writes_the_same_bytes(folder: Path, tmp_path: Path) -> None:
    content = []
    for name, seed in (("a", 0), ("b", 0), ("c", 1)):
        write(folder, tmp_path / name, shards=2, split={"train": 0.5, "eval": 0.5}, seed=seed)
        content.append([path.read_bytes() for path in sorted((tmp_path / name).glob("*.tfrecord"))])
    assert content[0] == content[1] != content[2]


def test_a_split_keeps_the_classes_proportion(folder: Path, tmp_path: Path) -> None:
    manifest = write(folder, tmp_path / "out", split=parse_split("train=0.8, eval=0.2"))
    assert manifest["samples"] == {"train": 24, "eval": 6}
    parts = [examples(tmp_path / "out", f"{split}-*") for split in ("train", "eval")]
    assert [Counter(int(e["image/class/label"][0]) for e in part) for part in parts] == [{0: 8, 1: 16}, {0: 2, 1: 4}]
    names = [e["image/filename"][0] for part in parts for e in part]
    assert len(set(names)) == 30


def test_splits_of_the_source(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "whole").mkdir()
    folder.rename(tmp_path / "whole" / "train")
    (tmp_path / "whole" / "eval" / "cat").mkdir(parents=True)
    (tmp_path / "whole" / "eval" / "dog").mkdir()
    (tmp_path / "whole" / "eval" / "cat" / "0.png").write_bytes(picture(1))
    (tmp_path / "whole" / "eval" / "labels.txt").write_text("0: dog\n1: cat\n")
    assert write(tmp_path / "whole", tmp_path / "out")["samples"] == {"train": 30, "eval": 1}
    with pytest.raises(UsageError, match="is split already"):
        write(tmp_path / "whole", tmp_path / "other", split={"train": 1.0})
    (tmp_path / "whole" / "eval" / "labels.txt").unlink()
    with pytest.raises(DataError, match="different classes"):
        write(tmp_path / "whole", tmp_path / "other")


def test_several_labels(tmp_path: Path) -> None:
    source = tmp_path / "scenes"
    for name in ("images", "labels"):
        (source / name).mkdir(parents=True)
    for number, text in enumerate(("b\na\n", "", "c\n")):
        (source / "images" / f"{number}.jpg").write_bytes(picture(number, "JPEG"))
        (source / "labels" / f"{number}.jpg.txt").write_text(text)
    write(source, tmp_path / "out")
    found = {e["image/filename"][0]: e for e in examples(tmp_path / "out")}
    assert found[b"images/0.jpg"]["image/class/label"].tolist() == [1, 0]
    assert found[b"images/0.jpg"]["image/class/text"].tolist() == [b"b", b"a"]
    assert len(found[b"images/1.jpg"]["image/class/label"]) == 0
    assert found[b"images/2.jpg"]["image/format"].tolist() == [b"jpeg"]
    (source / "labels.txt").write_text("0: a 1: b")
    with pytest.raises(DataError, match="label 'c' is not in"):
        write(source, tmp_path / "other")
    (source / "labels" / "1.jpg.txt").unlink()
    with pytest.raises(DataError, match=r"1\.jpg\.txt' is missing"):
        write(source, tmp_path / "other")


def test_tables(tmp_path: Path) -> None:
    (tmp_path / "t.csv").write_text("id,weight,name,odd\n1,0.5,ann,7\n2,,bob,1_0\n")
    write(tmp_path / "t.csv", tmp_path / "csv")
    first, second = sorted(examples(tmp_path / "csv"), key=lambda e: int(e["id"][0]))
    assert {name: value.tolist() for name, value in first.items()} == {
        "id": [1],
        "weight": [0.5],
        "name": [b"ann"],
        "odd": [b"7"],
    }
    assert "weight" not in second, "an empty field is a missing value"
    (tmp_path / "ids.tsv").write_text("id\tx\n99999999999999999999\t1\n\n7\t2\n")
    write(tmp_path / "ids.tsv", tmp_path / "tsv")
    assert sorted(e["id"].tolist() for e in examples(tmp_path / "tsv")) == [[b"7"], [b"99999999999999999999"]]
    np.savez(tmp_path / "t.npz", x=np.arange(6.0).reshape(3, 2), y=np.array([3, 4, 5]), z=np.array(["a", "b", "c"]))
    write(tmp_path / "t.npz", tmp_path / "npz")
    rows = sorted(({k: v.tolist() for k, v in e.items()} for e in examples(tmp_path / "npz")), key=lambda e: e["y"])
    assert rows[2] == {"x": [4.0, 5.0], "y": [5], "z": [b"c"]}


def test_bad_images(folder: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    (folder / "cat" / "3.png").write_bytes(picture(3)[:40])
    (folder / "dog" / "4.png").write_bytes(b"")
    manifest = write(folder, tmp_path / "out")
    assert (manifest["samples"], manifest["skipped"]) == ({"train": 28}, 2)
    assert "cat/3.png" in caplog.text
    assert "dog/4.png" in caplog.text
    with pytest.raises(DataError, match=r"(cat/3|dog/4)\.png"):
        write(folder, tmp_path / "other", on_bad_image="raise")
    assert not (tmp_path / "other").exists(), "all or nothing"


@pytest.mark.parametrize(
    ("text", "message"),
    [("train", "expected NAME=PART"), ("train=0.5", "add up to 0.5"), ("a=2", "NAME=PART"), ("a=0.5,a=0.5", "once")],
)
def test_splits_that_are_none(text: str, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        parse_split(text)


def test_sources_that_are_none(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "short.csv").write_text("a,b\n1\n")
    (tmp_path / "head.csv").write_text("a,b\n")
    (tmp_path / "bad.npz").write_bytes(b"PK nothing")
    np.savez(tmp_path / "uneven.npz", x=np.zeros(3), y=np.zeros(4))
    (tmp_path / "x.txt").write_text("x")
    for name, text in (
        ("twice", "a,a\n1,2\n"),
        ("open", 'a,b\n1,"x\n'),
        ("noname", "a,\n1,2\n"),
        ("far", "a\n1e300\n"),
    ):
        (tmp_path / f"{name}.csv").write_text(text)
    for name, message in (
        ("twice.csv", "twice.csv:1:2: the column 'a' is there twice"),
        ("open.csv", "open.csv:2: unexpected end of data"),
        ("noname.csv", "noname.csv:1:2: the column has no name"),
        ("far.csv", "far.csv:2:1: 1e\\+300 is beyond float32"),
        ("empty", "has no folders"),
        ("short.csv", "short.csv:2: has 1 cells; expected 2: a, b"),
        ("head.csv", "has no rows"),
        ("bad.npz", "cannot be read as .npz"),
        ("uneven.npz", "the same number of rows"),
        ("x.txt", "expected a folder of images"),
        ("absent", "no such file or folder"),
    ):
        with pytest.raises(DataError, match=message):
            write(tmp_path / name, tmp_path / "out")


@pytest.mark.slow
def test_the_command(run_moxserve: Any, folder: Path, tmp_path: Path) -> None:
    done = run_moxserve(
        "data", "to-tfrecord", folder, "--out", tmp_path / "out", "--shards", "2", "--split", "train=0.9,eval=0.1"
    )
    assert done.returncode == 0, done.stderr
    assert "wrote 27 records to" in done.stdout
    again = run_moxserve("data", "to-tfrecord", folder, "--out", tmp_path / "out")
    assert again.returncode == 1
    assert "--force" in again.stderr
    forced = run_moxserve("data", "to-tfrecord", folder, "--out", tmp_path / "out", "--force", "--json")
    assert json.loads(forced.stdout)["samples"] == {"train": 30}
    assert len(list((tmp_path / "out").glob("*.tfrecord"))) == 1, "the earlier files are gone"
    wrong = run_moxserve("data", "to-tfrecord", folder, "--out", tmp_path / "x", "--split", "train")
    assert wrong.returncode == 2


@pytest.mark.slow
def test_tensorflow_and_our_readers_read_it(folder: Path, tmp_path: Path) -> None:
    import moxserve.tensorflow as mox
    from moxserve.tensorflow.executor.env import tf, tf1

    write(folder, tmp_path / "out", shards=3, split={"train": 0.5, "test": 0.5})
    paths = [str(path) for path in sorted((tmp_path / "out").glob("train-*"))]
    with tf1.Graph().as_default(), tf1.Session() as session:
        following = tf1.data.make_one_shot_iterator(tf.data.TFRecordDataset(paths)).get_next()
        theirs = [session.run(following) for _ in range(15)]
    assert sorted(theirs) == sorted(record for path in paths for record in read_records(path))
    with tf1.Graph().as_default(), tf1.Session() as session:
        meta = mox.ImageClassificationTFRecordMetadata(tmp_path / "out", "train-*")
        dataset = mox.ImageClassificationTFRecordDataset(meta, num_epochs=1, batch_size=15, image_size=4)
        label, text, name = session.run(dataset.get(["label", "label_desc", "image_name"]))
    assert meta.labels_to_names == {0: "dog", 1: "cat"}
    assert [meta.labels_to_names[number] for number in label] == [t.decode() for t in text]
    assert [n.decode().split("/")[0] for n in name] == [t.decode() for t in text]
