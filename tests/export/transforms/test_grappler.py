"""Grappler's passes on graphs that are kept."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from moxserve.errors import ExportError, UsageError
from moxserve.export.transforms import GRAPPLER_PASSES, run_grappler

ROWS = np.random.default_rng(1).standard_normal((5, 4)).astype(np.float32)


def _model(x: Any, unused: Any) -> Any:
    import tensorflow as tf

    @tf.function(autograph=False)
    def called(a: Any) -> Any:
        return tf.nn.relu(a) * 2.0

    once = tf.exp(x) + tf.exp(x)
    flat = tf.reshape(tf.reshape(once, [-1]), [-1, 4])
    return called(tf.debugging.check_numerics(flat, "m")) * tf.exp(tf.constant(0.5)) + tf.zeros_like(x)


def _run(graph: Any, *passes: str, **options: Any) -> Any:
    return run_grappler(graph.graph_def, graph.inputs, graph.outputs, passes, graph.check(), **options)


@pytest.mark.slow
def test_every_pass_that_is_allowed(net: Any, operations: Any) -> None:
    graph = net(_model, {"x": ROWS, "unused": ROWS})
    result = _run(graph, *GRAPPLER_PASSES)
    (step,) = result.steps
    assert [step.name, step.by, step.outcome] == ["grappler", "tensorflow", "applied"]
    assert step.nodes_after < step.nodes_before
    assert step.arguments == tuple(("pass", name) for name in GRAPPLER_PASSES)
    counted = operations(result.graph_def)
    assert [counted["Exp"], counted["PartitionedCall"], counted["CheckNumerics"]] == [1, 0, 0]
    assert not [op for op in counted if op.startswith("_")]
    assert {"x", "unused", "y"} <= {node.name for node in result.graph_def.node}
    assert graph.error(result.graph_def) < 1e-5


def test_no_passes(net: Any) -> None:
    graph = net(lambda x: x * 2.0, ROWS)
    assert _run(graph).steps == ()


@pytest.mark.parametrize(
    ("name", "why"),
    [
        ("remap", "private operations"),
        ("layout", "may fail on another"),
        ("auto_mixed_precision", "bfloat16"),
        ("constfolding", "did you mean 'constfold'"),
    ],
)
def test_refused(name: str, why: str, net: Any) -> None:
    graph = net(lambda x: x * 2.0, ROWS)
    with pytest.raises(UsageError, match=why):
        _run(graph, "pruning", name)


@pytest.mark.slow
def test_failures_are_told(net: Any) -> None:
    graph = net(lambda x: x * 2.0, ROWS)
    check = graph.check()
    next(node for node in graph.graph_def.node if node.op == "Mul").input[0] = "gone"
    with pytest.raises(ExportError, match="transform grappler failed"):
        run_grappler(graph.graph_def, graph.inputs, graph.outputs, ["pruning"], check)
