"""What is counted in graphs, held against TensorFlow."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import pytest

from moxserve.errors import UsageError
from moxserve.inspect.detect import detect
from moxserve.inspect.graphs import (
    asset_files,
    known_operations,
    look_at,
    loose_ends,
    signature_rows,
    tables_in,
    variables_in,
)
from moxserve.inspect.operations import operations
from moxserve.inspect.protos import read_graph_file


def graph_of(path: Path):
    return read_graph_file(str(path)).graph_def()


def test_the_list_of_operations_is_tensorflows() -> None:
    from tensorflow.core.framework import op_def_pb2
    from tensorflow.python.client import pywrap_tf_session

    known = op_def_pb2.OpList.FromString(pywrap_tf_session.TF_GetBuffer(pywrap_tf_session.TF_GetAllOpList()))
    # A test may have loaded a library of its own; the list must hold what TensorFlow starts with.
    assert known_operations() <= {op.name for op in known.op}
    assert len(known_operations()) > 1800


def test_counts_agree_with_tensorflow(saved_v1: Path) -> None:
    from tensorflow.core.protobuf import saved_model_pb2

    saved = saved_model_pb2.SavedModel.FromString((saved_v1 / "saved_model.pb").read_bytes())
    nodes = saved.meta_graphs[0].graph_def.node
    facts = look_at(graph_of(saved_v1 / "saved_model.pb"))
    assert facts.nodes == len(nodes)
    assert facts.ops == Counter(node.op for node in nodes)
    assert facts.devices == Counter(node.device for node in nodes if node.device)
    assert facts.devices["/device:CPU:0"] >= 2
    assert facts.unknown == []


def test_operations_in_functions_count_apart(saved_v2: Path) -> None:
    facts = look_at(graph_of(saved_v2 / "saved_model.pb"))
    assert facts.functions > 0
    assert facts.function_nodes == sum(facts.function_ops.values())
    assert facts.function_ops["Mul"] >= 1
    assert facts.ops["Mul"] == 0


def test_foreign_operations_are_told_and_functions_are_not(frozen: Path) -> None:
    graph = graph_of(frozen)
    graph.node.add(name="a", op="Acme>Fuse")
    graph.node.add(name="b", op="my_function")
    graph.library.function.add().signature.name = "my_function"
    assert look_at(graph).unknown == ["Acme>Fuse"]


def test_signatures_tables_and_assets(saved_v1: Path) -> None:
    meta = read_graph_file(str(saved_v1 / "saved_model.pb")).meta_graph()
    rows = {(r.side, r.alias): (r.dtype, r.shape, r.tensor) for r in signature_rows(meta.signature_def)}
    assert rows["input", "x"] == ("float32", (None, 6), "x:0")
    assert rows["output", "logits"] == ("float32", (None, 3), "logits:0")
    assert rows["output", "classes"][0] == "string"
    assert asset_files(meta) == ["labels.txt"]
    ((_, operation, keys, values, asset),) = tables_in(meta.graph_def)
    assert (operation, keys, values, asset) == ("HashTableV2", "int64", "string", "labels.txt")


def test_the_init_op_and_sparse_inputs(tfserving: Path) -> None:
    from moxserve.protocol import messages

    path = tfserving / "saved_model_half_plus_two_tf2_cpu" / "00000123" / "saved_model.pb"
    meta = read_graph_file(str(path)).meta_graph()
    assert "__saved_model_init_op" in meta.signature_def
    assert "__saved_model_init_op" not in {row.signature for row in signature_rows(meta.signature_def)}
    definition = messages.SignatureDef()
    info = definition.inputs["tags"]
    info.dtype = 9
    info.coo_sparse.values_tensor_name = "v:0"
    info.coo_sparse.indices_tensor_name = "i:0"
    info.coo_sparse.dense_shape_tensor_name = "s:0"
    (row,) = signature_rows({"f": definition})
    assert (row.dtype, row.tensor) == ("int64", "sparse(v:0, i:0, s:0)")


def test_variables_as_declared(saved_v1: Path, saved_v2: Path) -> None:
    found = {
        row.name: (row.dtype, row.shape, row.size_bytes) for row in variables_in(graph_of(saved_v1 / "saved_model.pb"))
    }
    assert found["net/dense"] == ("float32", (4, 3), 48)
    assert found["net/wide/part_1"] == ("float32", (3, 4), 48)
    assert found["spare"] == ("float32", (5,), 20)
    names = [row.name for row in variables_in(graph_of(saved_v2 / "saved_model.pb"))]
    assert {"factor", "shift", "idle"} <= set(names)


def test_ends_of_a_graph_without_signatures(frozen: Path) -> None:
    inputs, outputs = loose_ends(graph_of(frozen))
    assert [(row.alias, row.dtype, row.shape) for row in inputs] == [("x", "float32", (None, 40))]
    assert [row.tensor for row in outputs] == ["y:0"]


def test_nodes_are_listed_by_pattern(saved_v1: Path, frozen: Path) -> None:
    report = operations(detect(saved_v1), ["net/*dense*", "Relu"], nodes=True)
    (table,) = report.tables
    listed = {row[0]: row[1] for row in table.rows}
    assert listed["hidden"] == "Relu"
    assert all(name.startswith("net/") and "dense" in name for name in listed if name != "hidden")
    counted = operations(detect(frozen), ["*MatMul*"], nodes=False)
    assert counted.tables[0].rows == [("MatMul", 1)]
    assert counted.facts["nodes"] == 4


def test_what_has_no_graph_is_refused(trained) -> None:
    with pytest.raises(UsageError, match="is a checkpoint, which has no TensorFlow graph; expected a version"):
        operations(detect(trained.prefix), nodes=True)
