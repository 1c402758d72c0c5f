"""The frozen graph as a variant: the same in float32, near enough and really lower in bfloat16."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from moxserve.errors import ExportError
from moxserve.export.targets import Target
from moxserve.export.variants.frozen import convert
from moxserve.export.variants.work import FROZEN_GRAPH, Work

BFLOAT16 = Target("frozen", "bfloat16")


@pytest.fixture(scope="module")
def bfloat16_here() -> None:
    """TensorFlow rewrites graphs for bfloat16 only where the CPU computes in it."""
    flags = Path("/proc/cpuinfo")
    if not flags.exists() or "avx512_bf16" not in flags.read_text():
        pytest.skip("this CPU has no AVX-512 BF16")


def read(directory: str) -> Any:
    from tensorflow.core.framework import graph_pb2

    return graph_pb2.GraphDef.FromString(Path(directory, FROZEN_GRAPH).read_bytes())


def _attributes(op: str) -> set[str]:
    from tensorflow.python.framework import op_def_registry

    return {"_output_shapes", *(attribute.name for attribute in op_def_registry.get(op).attr)}


def test_float32_is_the_graph_itself(nets: Any, served: Any, apart: Any, tmp_path: Path) -> None:
    net = nets("heads")
    work = net.work(tmp_path / "v", Target("frozen"))
    built = convert(work)
    assert built.file == ""
    assert {"saved_model.pb", FROZEN_GRAPH} <= set(os.listdir(work.directory))
    assert read(work.directory) == net.frozen.graph_def
    assert built.details["operations"]["MatMul"] == 3
    assert built.names.inputs == {"image": "x_image:0", "vector": "x_vector:0", "place": "x_place:0"}
    assert apart(served(work.directory, net.rows.load_inputs()), net.rows) < 1e-6


@pytest.mark.usefixtures("bfloat16_here")
@pytest.mark.parametrize("name", ["residual", "fixed", "heads"])
def test_bfloat16_is_near(name: str, nets: Any, served: Any, apart: Any, tmp_path: Path) -> None:
    net = nets(name)
    work = net.work(tmp_path / "v", BFLOAT16)
    built = convert(work)
    got = served(work.directory, net.rows.load_inputs())
    assert 1e-5 < apart(got, net.rows) < 2e-2
    graph_def = read(work.directory)
    # TensorFlow complains of attributes that an operation does not have, whenever it loads the graph.
    assert not [node.name for node in graph_def.node if set(node.attr) - _attributes(node.op)]
    low = {node.op for node in graph_def.node if node.attr["T"].type == 14}
    assert {"MatMul", "Conv2D"} <= low
    assert set(built.details["bfloat16"]) == low
    # Constants were cast once and for all, and nothing that belongs to this machine's CPU was written.
    casts = [node for node in graph_def.node if node.op == "Cast"]
    constants = {node.name for node in graph_def.node if node.op == "Const"}
    assert not [node.name for node in casts if node.input[0] in constants]
    assert not [node.op for node in graph_def.node if node.op.startswith("_")]


@pytest.mark.usefixtures("bfloat16_here")
def test_bfloat16_halves_the_weights(digits: Any, served: Any, tmp_path: Path) -> None:
    work = digits.work(tmp_path / "v", BFLOAT16)
    convert(work)
    full = os.path.getsize(os.path.join(work.model, FROZEN_GRAPH))
    assert os.path.getsize(os.path.join(work.directory, FROZEN_GRAPH)) < 0.65 * full
    got = served(work.directory, {"images": digits.images})
    source = work.evaluation.load_outputs()
    assert abs(digits.accuracy(got["probabilities"]) - digits.accuracy(source["probabilities"])) <= 0.005
    assert got["classes"].dtype == np.int64


def test_what_bfloat16_changes_nothing_in(freeze_net: Any, tmp_path: Path) -> None:
    def add() -> Any:
        from moxserve.tensorflow.executor.env import tf, tf1

        x = tf1.placeholder(tf.float32, [None], "x")
        return {"x": x}, {"y": tf.identity(x + 2.0, "y_out")}

    frozen = freeze_net(tmp_path / "add", add)
    with pytest.raises(ExportError, match="bfloat16 changes nothing"):
        convert(frozen.work(tmp_path / "v", BFLOAT16))
    assert os.listdir(tmp_path / "v") == []


def test_float16_is_refused(nets: Any, tmp_path: Path) -> None:
    work = nets("residual").work(tmp_path / "v", Target("onnx", "float16"))
    with pytest.raises(ExportError, match="a frozen graph in float16 is not made"):
        convert(Work(**vars(work)))
