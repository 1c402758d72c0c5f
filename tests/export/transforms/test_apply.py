"""Running transforms: what is reported, what is undone, what fails, and that a crash takes nothing down."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from moxserve.errors import ExportError, UsageError, VerificationError
from moxserve.export.transforms import DEFAULT_TRANSFORMS, TRANSFORMS, native, parse_transforms

ROWS = np.random.default_rng(1).standard_normal((5, 4)).astype(np.float32)


def _layer(x: Any) -> Any:
    import tensorflow as tf

    weights = np.random.default_rng(2).standard_normal((4, 300)).astype(np.float32)
    return tf.nn.relu(tf.matmul(tf.identity(x), tf.identity(weights)), name="active")


@pytest.fixture(scope="module")
def layer(net: Any) -> Any:
    """Identity, matrix product, relu."""
    return net(_layer, ROWS)


def test_steps_tell_what_was_done(layer: Any) -> None:
    result = layer.checked("remove_nodes(op=Identity) merge_duplicate_nodes quantize_weights(minimum_size=100)")
    removed, merged, quantized = result.steps
    assert [s.outcome for s in result.steps] == ["applied", "nothing to do", "applied"]
    assert [s.by for s in result.steps] == ["moxserve", "tensorflow", "tensorflow"]
    assert [removed.nodes_before, removed.nodes_after] == [7, 5] == [7, merged.nodes_after]
    assert removed.arguments == (("op", "Identity"),)
    assert removed.error == 0.0
    assert merged.error is None
    assert quantized.bytes_after < 0.5 * quantized.bytes_before
    assert 0 < quantized.error < 0.02
    assert json.loads(json.dumps(removed.to_json())) == {
        "name": "remove_nodes",
        "arguments": [["op", "Identity"]],
        "by": "moxserve",
        "outcome": "applied",
        "nodes_before": 7,
        "nodes_after": 5,
        "bytes_before": removed.bytes_before,
        "bytes_after": removed.bytes_after,
        "error": 0.0,
        "seconds": round(removed.seconds, 3),
        "reason": "",
    }
    assert result.notes == ()


@pytest.mark.slow
def test_wrong_results_are_undone(layer: Any) -> None:
    result = layer.checked("rename_op(old_op_name=Relu, new_op_name=Relu6) remove_nodes(op=Relu) remove_device")
    assert [s.outcome for s in result.steps] == ["applied", "nothing to do", "nothing to do"]
    result = layer.checked("remove_nodes(op=Identity) rename_op(old_op_name=Relu, new_op_name=Elu)")
    removed, renamed = result.steps
    assert [removed.outcome, renamed.outcome] == ["applied", "rolled back"]
    assert renamed.error > 0.01
    assert renamed.nodes_after == renamed.nodes_before
    assert "Elu" not in {node.op for node in result.graph_def.node}
    assert layer.error(result.graph_def) == 0
    (note,) = result.notes
    assert note.startswith("transform rename_op was undone: the result is wrong: relative L2 error 0.")


def test_results_that_do_not_run_are_undone(layer: Any) -> None:
    result = layer.checked("rename_op(old_op_name=Relu, new_op_name=LogicalNot) remove_nodes(op=Identity)")
    broken, removed = result.steps
    assert [broken.outcome, removed.outcome] == ["rolled back", "applied"]
    assert "does not run" in broken.reason


def test_strict(layer: Any) -> None:
    with pytest.raises(VerificationError, match="transform rename_op: the result is wrong"):
        layer.checked("rename_op(old_op_name=Relu, new_op_name=Elu)", strict=True)


@pytest.mark.slow
def test_limits(layer: Any) -> None:
    """Exact transforms after a quantizing one are judged by what they add."""
    result = layer.checked("quantize_weights(minimum_size=100) remove_nodes(op=Identity)", limit=1e-6)
    assert [s.outcome for s in result.steps] == ["applied", "applied"]
    assert result.steps[1].error == result.steps[0].error > 1e-3
    assert layer.checked("round_weights(num_steps=2)").steps[0].outcome == "rolled back"
    assert layer.checked("round_weights(num_steps=2)", limit=2.0).steps[0].outcome == "applied"


def test_without_a_check_every_result_is_believed(layer: Any) -> None:
    (step,) = layer.apply("rename_op(old_op_name=Relu, new_op_name=Elu)").steps
    assert [step.outcome, step.error] == ["applied", None]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("transform", "why"),
    [
        ("freeze_requantization_ranges(min_max_log_file=/nowhere)", "/nowhere; No such file"),
        ("rename_op(old_op_name=Relu, new_op_name=Rellu)", "'Rellu', which TensorFlow does not know"),
        ("rename_node(old_node_name=y, new_node_name=z)", "'y' is an output: signatures know it"),
        ("rename_node(old_node_name=x, new_node_name=z)", "'x' is an input: signatures know it"),
        ("rename_node(old_node_name=active, new_node_name=y)", "already"),
        ("remove_attribute(attribute_name=dtype) fold_constants", "input 'x' has another element type"),
        ("remove_attribute(attribute_name=T, op_name=Relu) fold_constants", "missing attr 'T'"),
        ('insert_logging(message="a \\" b")', "no quotes"),
    ],
)
def test_failures_name_the_transform(transform: str, why: str, layer: Any) -> None:
    why = why.replace("already", "alread")  # as TensorFlow spells it
    *_, last = parse_transforms(transform)
    failing = "remove_attribute" if "another element" in why else last.name
    with pytest.raises(ExportError) as caught:
        layer.apply(transform)
    assert f"transform {failing} failed: " in caught.value.message
    assert why in caught.value.message
    assert "ignore_errors=true" in (caught.value.hint or "")


@pytest.mark.slow
def test_failures_that_are_ignored(layer: Any) -> None:
    result = layer.checked(
        "rename_op(old_op_name=Relu, new_op_name=Rellu, ignore_error=true) remove_nodes(op=Identity)"
    )
    ignored, removed = result.steps
    assert [ignored.outcome, removed.outcome] == ["failed, ignored", "applied"]
    assert "does not know" in ignored.reason
    assert result.notes == (f"transform rename_op failed and was left out: {ignored.reason}",)


def test_unknown_transforms_and_names(layer: Any) -> None:
    with pytest.raises(UsageError, match="did you mean 'fold_constants'"):
        layer.apply("fold_constant")
    layer_of = layer.graph_def
    from moxserve.export.transforms import apply_transforms

    with pytest.raises(ExportError, match="no node 'xs' for an input"):
        apply_transforms(layer_of, ["xs"], ["y"], "fold_constants")
    with pytest.raises(ExportError, match="no node 'why' for an output"):
        apply_transforms(layer_of, ["x"], ["why"], "fold_constants")
    with pytest.raises(ExportError, match="without outputs"):
        apply_transforms(layer_of, ["x"], [], "fold_constants")


@pytest.mark.slow
def test_names_of_inputs_and_outputs_stay(layer: Any) -> None:
    everything = " ".join(
        str(t) for name in sorted(TRANSFORMS) if not any(a.required for a in TRANSFORMS[name].arguments)
        for t in parse_transforms(name) if name != "insert_logging"
    )  # fmt: skip
    result = layer.checked(everything)
    names = {node.name for node in result.graph_def.node}
    assert {"x", "y"} <= names
    assert "active" not in names  # obfuscated
    assert layer.error(result.graph_def) < 0.2


def test_default_transforms(layer: Any) -> None:
    result = layer.checked(DEFAULT_TRANSFORMS)
    assert [s.name for s in result.steps if s.outcome == "rolled back"] == []
    assert sorted(n.op for n in result.graph_def.node) == ["Const", "Identity", "MatMul", "Placeholder", "Relu"]
    assert layer.error(result.graph_def) == 0


def test_an_input_that_is_an_output(net: Any) -> None:
    graph = net(lambda x: {"y": x + 1.0}, ROWS)
    graph.outputs = ["y", "x"]
    result = graph.checked(DEFAULT_TRANSFORMS)
    assert graph.error(result.graph_def) == 0
    graph.outputs = ["x"]
    assert graph.checked("fold_constants").steps[0].outcome == "nothing to do"


@pytest.mark.slow
def test_text_and_whole_numbers(net: Any) -> None:
    import tensorflow as tf

    def build(words: Any) -> Any:
        joined = tf.strings.join([words, tf.identity(tf.strings.join([tf.constant("a"), tf.constant("b")]))])
        return {"joined": joined, "length": tf.strings.length(joined)}

    graph = net(build, {"words": np.array([b"x", b"yz"], object)})
    result = graph.checked(DEFAULT_TRANSFORMS)
    assert [s.outcome for s in result.steps if s.name == "fold_constants"] == ["applied"]
    assert [a.tolist() for a in graph.answers(result.graph_def)] == [[b"xab", b"yzab"], [3, 4]]
    wrong = graph.checked("rename_op(old_op_name=StringLength, new_op_name=StringToHashBucketFast)")
    assert wrong.steps[0].outcome == "rolled back"


def test_a_crash_is_an_error(layer: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    crashing = tmp_path / "crash.py"
    crashing.write_text("import os, sys\nprint('F0000 check failed', file=sys.stderr, flush=True)\nos.abort()\n")
    monkeypatch.setattr(native.worker, "__file__", str(crashing))
    with pytest.raises(
        ExportError, match="merge_duplicate_nodes failed: TensorFlow's process was ended by SIGABRT: F0"
    ):
        layer.apply("merge_duplicate_nodes")
    ours, crashed, last = layer.checked(
        "remove_nodes(op=Identity) merge_duplicate_nodes(ignore_errors=true) fold_batch_norms"
    ).steps
    assert [ours.outcome, crashed.outcome, last.outcome] == ["applied", "failed, ignored", "nothing to do"]


@pytest.mark.slow
def test_the_process_starts_again_after_a_crash(layer: Any) -> None:
    with native.NativeTools() as tools:
        with pytest.raises(ExportError, match="'no_such' not recognized"):
            tools.transform(layer.graph_def, ["x"], ["y"], "no_such")
        assert len(tools.transform(layer.graph_def, ["x"], ["y"], "merge_duplicate_nodes").node) == 7
        if tools._process is not None:
            tools._process.kill()
            tools._process.wait()
        assert len(tools.transform(layer.graph_def, ["x"], ["y"], "merge_duplicate_nodes").node) == 7


def test_a_transform_that_never_ends_is_ended(layer: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    endless = tmp_path / "endless.py"
    endless.write_text("import time\ntime.sleep(600)\n")
    monkeypatch.setattr(native.worker, "__file__", str(endless))
    with native.NativeTools(timeout_s=0.2) as tools, pytest.raises(ExportError, match="ended by SIGKILL"):
        tools.transform(layer.graph_def, ["x"], ["y"], "merge_duplicate_nodes")


def test_a_tensorflow_without_the_tool(layer: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(native, "_BINDING", os.path.join("python", "util", "_pywrap_gone"))
    assert layer.apply("remove_nodes(op=Identity)").steps[0].outcome == "applied"
    with pytest.raises(ExportError, match="this TensorFlow has no Graph Transform Tool"):
        layer.apply("merge_duplicate_nodes")


def test_custom_operations_need_their_library(layer: Any) -> None:
    with pytest.raises(ExportError, match=r"merge_duplicate_nodes failed: .*no_such_library.so"):
        layer.apply("merge_duplicate_nodes", libraries=["/no_such_library.so"])


def test_lists_of_loops_are_no_constants(net: Any) -> None:
    def through_a_list(x: Any) -> Any:
        import tensorflow as tf

        ops, shape, size = tf.raw_ops, tf.constant([3]), tf.add(tf.constant(1), 0)
        empty = ops.TensorListReserve(element_shape=shape, num_elements=size, element_dtype=tf.float32)
        filled = ops.TensorListSetItem(input_handle=empty, index=0, item=tf.reduce_sum(x, 0))
        return ops.TensorListStack(input_handle=filled, element_shape=shape, element_dtype=tf.float32)

    made = net(through_a_list, np.ones((2, 3), np.float32))
    result = made.checked("fold_constants strip_unused_nodes")
    nodes = {node.op: node for node in result.graph_def.node}
    assert "TensorListReserve" in nodes  # TensorFlow would make a constant of it, which no converter reads
    assert "AddV2" not in nodes
    assert made.error(result.graph_def) == 0


def test_weights_of_nothing_but_zeros_can_be_quantized(net: Any) -> None:
    def dense(x: Any) -> Any:
        import tensorflow as tf

        weights = np.random.default_rng(3).normal(size=(8, 32)).astype(np.float32)
        return tf.nn.bias_add(tf.matmul(x, tf.constant(weights)), tf.constant(np.zeros(32, np.float32)))

    made = net(dense, np.random.default_rng(4).normal(size=(5, 8)).astype(np.float32))
    result = made.checked("quantize_weights(minimum_size=16)")
    assert result.steps[0].outcome == "applied"
    assert sum(node.op == "Dequantize" for node in result.graph_def.node) == 2
    assert 0 < made.error(result.graph_def) < 0.02
