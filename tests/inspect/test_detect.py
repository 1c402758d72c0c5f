"""What a path is, found out from what lies there."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import numpy as np
import pytest

from moxserve.errors import DataError, UsageError
from moxserve.inspect.detect import detect, need
from moxserve.protocol.tfrecord import write_records


def test_a_base_directory_gives_its_newest_version(tmp_path: Path, saved_v2: Path) -> None:
    for version in ("9", "00000010", "2"):
        shutil.copytree(saved_v2, tmp_path / version)
    (tmp_path / "11").mkdir()  # nothing in it: no version
    found = detect(tmp_path)
    assert (found.kind, found.path) == ("version", str(tmp_path / "00000010"))
    assert found.notes == ["version 10, the newest of 3: 2, 9, 10"]
    assert detect(tmp_path / "2").path == str(tmp_path / "2")


def test_a_checkpoint_is_known_by_any_of_its_files(trained) -> None:
    folder = Path(trained.prefix).parent
    for name in (trained.prefix, f"{trained.prefix}.index", f"{trained.prefix}.data-00000-of-00001"):
        assert (detect(name).kind, detect(name).path) == ("checkpoint", trained.prefix)
    for name in (folder, folder / "checkpoint"):
        assert (detect(name).kind, detect(name).path) == ("checkpoint", str(folder))
    assert detect(f"{trained.prefix}.meta").kind == "metagraph"


def test_files_are_known_by_their_content(tmp_path: Path, frozen: Path, saved_v1: Path) -> None:
    shutil.copy(frozen, tmp_path / "no_suffix")
    assert detect(tmp_path / "no_suffix").kind == "graphdef"
    assert (detect(saved_v1 / "saved_model.pb").kind, detect(saved_v1 / "saved_model.pb").path) == (
        "version",
        str(saved_v1),
    )
    shutil.copy(saved_v1 / "saved_model.pb", tmp_path / "other.pb")
    assert detect(tmp_path / "other.pb").kind == "graphdef"
    np.savez(tmp_path / "w.npz", a=np.zeros(2))
    (tmp_path / "w.npz").rename(tmp_path / "weights")
    assert detect(tmp_path / "weights").kind == "npz"
    write_records(tmp_path / "log", [b"anything"])
    assert detect(tmp_path / "log").kind == "records"
    (tmp_path / "m").write_text('<?xml version="1.0"?>\n<net/>')
    assert detect(tmp_path / "m").kind == "openvino"
    (tmp_path / "t").write_bytes(b"\x1c\0\0\0TFL3" + bytes(20))
    assert detect(tmp_path / "t").kind == "tflite"


def test_a_checkpoint_of_tensorflow_0_is_one_file(tfserving: Path) -> None:
    path = tfserving / "bad_half_plus_two" / "00000123" / "export"
    assert detect(path).kind == "checkpoint"


def test_the_manifest_stands_for_its_version(tmp_path: Path, saved_v2: Path) -> None:
    shutil.copytree(saved_v2, tmp_path / "1")
    (tmp_path / "1" / "assets.extra").mkdir()
    (tmp_path / "1" / "assets.extra" / "moxserve.json").write_text("{}")
    assert detect(tmp_path / "1" / "assets.extra" / "moxserve.json").path == str(tmp_path / "1")


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("notes.txt", b"hello world", "no file that can be inspected; expected a version directory"),
        ("empty.pb", b"", "is empty; expected"),
        ("model.pb", b"\x08\x01\x12\xff", "cannot be read"),
        ("graph.pbtxt", b"hello", "not the protobuf text of a graph"),
    ],
)
def test_what_is_nothing_is_refused(tmp_path: Path, name: str, content: bytes, message: str) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises((UsageError, DataError), match=message) as caught:
        detect(tmp_path / name)
    assert name in caught.value.message


def test_directories_say_what_they_hold(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="it is empty; expected a version directory"):
        detect(tmp_path)
    (tmp_path / "a.txt").touch()
    with pytest.raises(UsageError, match=r"it holds a\.txt; expected"):
        detect(tmp_path)


def test_a_wrong_name_gives_the_nearest(tmp_path: Path) -> None:
    (tmp_path / "models").mkdir()
    with pytest.raises(UsageError, match=r"no such file, directory or checkpoint; did you mean '.*/models'"):
        detect(tmp_path / "model")
    with pytest.raises(UsageError, match=r"checkpoint$"):
        detect(os.path.join(tmp_path, "nowhere", "x"))


def test_need_says_what_would_do(frozen: Path) -> None:
    with pytest.raises(UsageError, match=r"frozen\.pb is a graph file, which has no records; expected a TFRecord file"):
        need(detect(frozen), ("records",), "records")
