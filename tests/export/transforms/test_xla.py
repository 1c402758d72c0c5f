"""Graphs that XLA compiles."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from moxserve.errors import VerificationError
from moxserve.export.transforms import compile_with_xla

ROWS = np.random.default_rng(1).standard_normal((5, 4)).astype(np.float32)


def _compile(graph: Any, **options: Any) -> Any:
    return compile_with_xla(graph.graph_def, graph.inputs, graph.outputs, graph.check(), **options)


def _model(x: Any, unused: Any) -> Any:
    import tensorflow as tf

    weights = np.random.default_rng(2).standard_normal((4, 3)).astype(np.float32)
    hidden = tf.matmul(tf.exp(x), weights)
    return {"y": tf.nn.softmax(hidden), "classes": tf.argmax(hidden, 1)}


@pytest.mark.slow
def test_the_whole_graph_is_compiled(net: Any, tmp_path: Path) -> None:
    import tensorflow as tf

    graph = net(_model, {"x": ROWS, "unused": ROWS})
    result = _compile(graph)
    (step,) = result.steps
    assert [step.name, step.by, step.outcome] == ["xla", "tensorflow", "applied"]
    calls = [node for node in result.graph_def.node if node.op.endswith("PartitionedCall")]
    assert [call.attr["_XlaMustCompile"].b for call in calls] == [True]
    assert {"x", "unused", "y", "classes"} <= {node.name for node in result.graph_def.node}
    assert graph.error(result.graph_def) < 1e-5
    # Any number of rows, also from a SavedModel.
    tf1 = tf.compat.v1
    with tf.Graph().as_default() as loaded, tf1.Session() as session:
        tf1.import_graph_def(result.graph_def, name="")
        tensors = {name: loaded.get_tensor_by_name(f"{name}:0") for name in ("x", "unused", "y")}
        assert tensors["y"].shape.as_list() == [None, 3]
        inputs = {"x": tensors["x"], "unused": tensors["unused"]}
        tf1.saved_model.simple_save(session, str(tmp_path / "1"), inputs, {"y": tensors["y"]})
    served = tf.saved_model.load(str(tmp_path / "1")).signatures["serving_default"]
    with tf.Graph().as_default(), tf1.Session() as session:
        tf1.saved_model.load(session, ["serve"], str(tmp_path / "1"))
        got = session.run("y:0", {"x:0": ROWS[:2], "unused:0": ROWS[:2]})
    np.testing.assert_allclose(got, graph.answers()[0][:2], rtol=1e-5)
    assert served is not None


def test_once_is_enough(net: Any) -> None:
    graph = net(lambda x: x * 2.0, ROWS)
    graph.graph_def = _compile(graph).graph_def
    assert _compile(graph).steps[0].outcome == "nothing to do"


def test_what_cannot_be_compiled_is_left(net: Any) -> None:
    import tensorflow as tf

    graph = net(lambda words: tf.strings.length(tf.strings.join([words, words])), {"words": np.array([b"a"], object)})
    result = _compile(graph)
    (step,) = result.steps
    assert step.outcome == "rolled back"
    assert "nsupported" in step.reason
    assert result.graph_def == graph.graph_def
    with pytest.raises(VerificationError, match="transform xla: the result does not run"):
        _compile(graph, strict=True)
