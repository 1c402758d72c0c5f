"""Graph files: told apart, read, and turned into text and back without loss."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from moxserve.errors import DataError, UsageError
from moxserve.inspect.protos import parse_graph, read_graph_file, to_text
from moxserve.protocol import messages
from moxserve.protocol.tensors import from_proto, to_proto


def constant_graph(*tensors):
    graph = messages.GraphDef()
    for i, tensor in enumerate(tensors):
        graph.node.add(name=f"c{i}", op="Const").attr["value"].tensor.CopyFrom(tensor)
    return graph


def test_the_three_forms_are_told_apart(saved_v1: Path, trained, frozen: Path) -> None:
    for path, form in [(saved_v1 / "saved_model.pb", "SavedModel"), (frozen, "GraphDef")]:
        assert read_graph_file(str(path)).form == form
    assert read_graph_file(f"{trained.prefix}.meta").form == "MetaGraphDef"


def test_text_is_told_apart_too(saved_v1: Path, trained, frozen: Path) -> None:
    for path in (str(saved_v1 / "saved_model.pb"), f"{trained.prefix}.meta", str(frozen)):
        found = read_graph_file(path)
        again = parse_graph(b"# a comment\n\n" + to_text(found.message).encode(), "x.pbtxt")
        assert (again.form, again.text) == (found.form, True)
        assert again.message == found.message


def test_every_test_model_survives_text(tfserving: Path) -> None:
    paths = sorted(tfserving.glob("*/*/saved_model.pb"))
    assert len(paths) >= 5
    for path in paths:
        found = read_graph_file(str(path))
        again = parse_graph(to_text(found.message).encode(), "x.pbtxt").message
        assert again.SerializeToString(deterministic=True) == found.message.SerializeToString(deterministic=True), path


@pytest.mark.parametrize("field", ["float_val", "double_val"])
def test_bits_of_nans_survive(field: str) -> None:
    kind, bits = ("f4", "u4") if field == "float_val" else ("f8", "u8")
    quiet = int(np.array(np.nan, kind).view(bits))
    patterns = [quiet, quiet | 1 << (31 if kind == "f4" else 63), quiet | 5]
    tensor = messages.TensorProto(dtype=1 if kind == "f4" else 2)
    tensor.tensor_shape.dim.add(size=5)
    getattr(tensor, field).extend([*np.array(patterns, bits).view(kind).tolist(), math.inf, -0.0])
    graph = constant_graph(tensor)
    again = parse_graph(to_text(graph).encode(), "x.pbtxt").message
    value = from_proto(again.node[0].attr["value"].tensor)
    assert value.view(bits)[:3].tolist() == patterns
    assert value[3] == math.inf
    assert math.copysign(1, value[4]) == -1


def test_raw_content_and_text_survive() -> None:
    every_byte = np.frombuffer(bytes(range(256)) * 40, dtype=np.uint8)
    words = np.array([b"", b"\x00\xff\n\"'\\", "ö".encode()], dtype=object)
    graph = constant_graph(to_proto(every_byte), to_proto(words))
    again = parse_graph(to_text(graph).encode(), "x.pbtxt").message
    assert np.array_equal(from_proto(again.node[0].attr["value"].tensor), every_byte)
    assert from_proto(again.node[1].attr["value"].tensor).tolist() == words.tolist()


def test_a_field_of_a_newer_schema_is_not_dropped_silently(frozen: Path) -> None:
    found = read_graph_file(str(frozen)).message
    # Field 900, length-delimited, three bytes.
    newer = messages.GraphDef.FromString(found.SerializeToString() + b"\xa2\x38\x03abc")
    with pytest.raises(DataError, match="without loss"):
        to_text(newer)


def test_tags_choose_the_graph() -> None:
    saved = messages.SavedModel(saved_model_schema_version=1)
    for tags in (["train"], ["serve", "gpu"]):
        saved.meta_graphs.add().meta_info_def.tags.extend(tags)
    found = parse_graph(saved.SerializeToString(deterministic=True), "saved_model.pb")
    assert list(found.meta_graph(["gpu", "serve"]).meta_info_def.tags) == ["serve", "gpu"]
    assert list(found.meta_graph().meta_info_def.tags) == ["train"]
    with pytest.raises(UsageError, match="no graph has the tags tpu; there are: train; serve,gpu"):
        found.meta_graph(["tpu"])


@pytest.mark.parametrize("cut", [1, 2, 10, 0.3, 0.9, 0.999])
def test_a_truncated_file_is_refused_or_holds_less(saved_v1: Path, cut: float) -> None:
    data = (saved_v1 / "saved_model.pb").read_bytes()
    with pytest.raises(DataError, match=r"saved_model\.pb cannot be read: .*expected a SavedModel"):
        parse_graph(data[: int(len(data) * cut) if cut < 1 else int(cut)], "saved_model.pb")


def test_damaged_text_names_line_and_column() -> None:
    with pytest.raises(DataError, match=r"g\.pbtxt is damaged: .*2:9"):
        parse_graph(b'node {\n  name: what\n  op: "Add"\n}\n', "g.pbtxt")
    with pytest.raises(DataError, match="it begins with 'hello'"):
        parse_graph(b"hello", "g.pbtxt")


@given(st.binary(min_size=1, max_size=200))
def test_any_bytes_are_read_or_refused(data: bytes) -> None:
    try:
        found = parse_graph(data, "x.pb")
    except DataError:
        return
    assert found.form in ("SavedModel", "MetaGraphDef", "GraphDef")


@given(st.text(max_size=120))
def test_any_text_is_read_or_refused(text: str) -> None:
    try:
        parse_graph(f"node {{ {text} }}".encode(), "x.pbtxt")
    except DataError:
        return
