"""Two models held against each other, and graphs for TensorBoard."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest

from moxserve.errors import UsageError
from moxserve.inspect.convert.arrays import write_checkpoint
from moxserve.inspect.convert.run import Conversion, convert
from moxserve.inspect.detect import detect
from moxserve.inspect.diff import compare
from moxserve.inspect.events import write_graph


def rows(report, key: str):
    return [row for table in report.tables if table.key == key for row in table.records()]


def test_a_model_equals_itself(saved_v1: Path, saved_v2: Path, frozen: Path, trained) -> None:
    for path in (saved_v1, saved_v2, frozen, trained.prefix, f"{trained.prefix}.meta"):
        report = compare(detect(path), detect(path))
        assert (report.facts["different"], report.tables) == (0, [])


def test_values_shapes_and_missing_variables(tmp_path: Path) -> None:
    write_checkpoint(
        str(tmp_path / "a"),
        {"w": np.array([1, np.nan, 3], np.float32), "n": np.arange(3), "s": np.zeros(2), "gone": np.ones(1)},
    )
    write_checkpoint(
        str(tmp_path / "b"),
        {"w": np.array([1, np.nan, 3.5], np.float32), "n": np.arange(3), "s": np.zeros(3), "new": np.ones(1)},
    )
    report = compare(detect(tmp_path / "a"), detect(tmp_path / "b"))
    found = [(r["name"], r["change"], r["max_difference"], r["unequal"]) for r in rows(report, "variables")]
    assert found == [
        ("gone", "removed", None, None),
        ("new", "added", None, None),
        ("s", "changed", None, None),
        ("w", "values", 0.5, 1),
    ]
    assert (report.facts["equal_variables"], report.facts["different"]) == (1, 4)
    assert compare(detect(tmp_path / "a"), detect(tmp_path / "b"), values=False).facts["different"] == 3


def test_a_checkpoint_against_the_saved_model_of_it(saved_v2: Path, tmp_path: Path) -> None:
    convert(detect(saved_v2), Conversion(str(tmp_path / "m.ckpt"), everything=True))
    assert compare(detect(saved_v2), detect(tmp_path / "m.ckpt")).facts["different"] == 0


def test_signatures_and_operations(saved_v1: Path, saved_v2: Path) -> None:
    report = compare(detect(saved_v1), detect(saved_v2))
    changes = {(row["side"], row["alias"]): (row["change"], row["a"], row["b"]) for row in rows(report, "signatures")}
    assert changes["input", "x"] == ("changed", "float32[?, 6]", "float32[?, 2]")
    assert changes["output", "logits"] == ("removed", "float32[?, 3]", None)
    assert changes["output", "y"] == ("added", None, "float32[?, 2]")
    assert {row["operation"] for row in rows(report, "operations")} >= {"Relu", "HashTableV2"}


def test_what_has_nothing_in_common(tfserving: Path, trained) -> None:
    with pytest.raises(UsageError, match="neither variables nor a TensorFlow graph to compare"):
        compare(detect(tfserving / "saved_model_half_plus_two_tflite/00000123/model.tflite"), detect(trained.prefix))


def graph_in(folder: Path):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    accumulator = EventAccumulator(str(folder))
    accumulator.Reload()
    return accumulator.Graph()


def test_tensorboard_reads_the_graph(saved_v1: Path, trained, tmp_path: Path) -> None:
    write_graph(detect(saved_v1), str(tmp_path / "a"))
    assert {"hidden", "logits"} <= {node.name for node in graph_in(tmp_path / "a").node}
    write_graph(detect(f"{trained.prefix}.meta"), str(tmp_path / "b"))
    assert "labels" in {node.name for node in graph_in(tmp_path / "b").node}


def test_large_constants_go_without_their_values(frozen: Path, tmp_path: Path) -> None:
    path, emptied = write_graph(detect(frozen), str(tmp_path))
    assert emptied == 1
    assert Path(path).stat().st_size < 2000
    (weights,) = [node for node in graph_in(tmp_path).node if node.name == "weights"]
    assert [dim.size for dim in weights.attr["value"].tensor.tensor_shape.dim] == [40, 40]


def test_a_checkpoint_without_a_graph(trained, tmp_path: Path) -> None:
    shutil.copy(f"{trained.prefix}.index", tmp_path / "m.index")
    with pytest.raises(UsageError, match="has no TensorFlow graph"):
        write_graph(detect(tmp_path / "m.index"), str(tmp_path))
