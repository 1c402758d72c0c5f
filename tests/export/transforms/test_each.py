"""Every transform of the catalogue, on a graph where it has something to do: what it did, and the same answers."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pytest

from moxserve.export.transforms import SIMULATED_LIMIT, TRANSFORMS

RANDOM = np.random.default_rng(5)
IMAGES = RANDOM.standard_normal((4, 16, 16, 3)).astype(np.float32)
ROWS = RANDOM.standard_normal((6, 4)).astype(np.float32)


def w(*shape: int) -> np.ndarray:
    size = max(1, int(np.prod(shape[:-1])))
    return (np.random.default_rng(shape).standard_normal(shape) / np.sqrt(size)).astype(np.float32)


def small(x: Any) -> Any:
    """Convolution, bias, relu, check, pooling and a dense layer, with an Identity in between."""
    import tensorflow as tf

    y = tf.nn.conv2d(x, tf.identity(w(3, 3, 3, 8)), 1, "SAME")
    y = tf.nn.relu(tf.nn.bias_add(y, w(1, 8)[0], name="bias"), name="relu")
    y = tf.nn.max_pool2d(tf.debugging.check_numerics(y, "y"), 2, 2, "SAME")
    return tf.matmul(tf.reshape(y, [-1, 512]), w(512, 5))


def batch_norm(x: Any) -> Any:
    import tensorflow as tf

    ones = np.ones(8, np.float32)
    y = tf.nn.conv2d(x, w(3, 3, 3, 8), 1, "SAME")
    return tf.raw_ops.FusedBatchNormV3(
        x=y, scale=ones * 2, offset=ones, mean=ones * 0.1, variance=ones * 3, is_training=False
    ).y


def with_assertion(x: Any) -> Any:
    import tensorflow as tf

    with tf.control_dependencies([tf.debugging.assert_less(x, 100.0)]):
        return tf.identity(x) * 2.0


def duplicated(x: Any) -> Any:
    import tensorflow as tf

    return tf.exp(x) * tf.constant([2.0, 3.0, 4.0]) + tf.exp(x) * tf.constant([2.0, 3.0, 4.0])


def constant_part(x: Any) -> Any:
    import tensorflow as tf

    return x * tf.exp(tf.constant(0.5) + tf.constant([0.1, 0.2, 0.3]))


def called(x: Any) -> Any:
    import tensorflow as tf

    @tf.function(autograph=False)
    def body(a: Any, b: Any) -> Any:
        return tf.matmul(a, b), tf.nn.relu(a)

    first, second = body(x, tf.constant(w(4, 4)))
    return first + second


def looked_up(ids: Any) -> Any:
    import tensorflow as tf

    table = np.zeros((50, 3), np.float32)
    table[[3, 7, 49]] = w(3, 3)
    return tf.gather(tf.identity(table), ids) * 2.0


def arrays(x: Any) -> Any:
    import tensorflow as tf

    array = tf.raw_ops.TensorArrayV3(size=6, dtype=tf.float32)
    flow = tf.raw_ops.TensorArrayScatterV3(handle=array.handle, indices=np.arange(6), value=x, flow_in=array.flow)
    return tf.raw_ops.TensorArrayGatherV3(handle=array.handle, indices=[3, 1, 0], flow_in=flow, dtype=tf.float32)


def concatenated(x: Any) -> Any:
    import tensorflow as tf

    return tf.concat([x, x * 2.0], 1)


@dataclass
class Case:
    """A graph and what a transform makes of it.

    Attributes:
        build: the graph.
        transforms: the last one is looked at.
        change: by how many each type of operation grows.
        rows: to feed.
        limit: largest relative error.
    """

    build: Callable[[Any], Any]
    transforms: str
    change: dict[str, int] = field(default_factory=dict)
    rows: Any = None
    limit: float = 1e-5


def _only(*names: str) -> dict[str, int]:
    return dict.fromkeys(names, -1)


CASES = [
    Case(small, "remove_attribute(attribute_name=dilations) add_default_attributes"),
    Case(concatenated, "backport_concatv2", {"ConcatV2": -1, "Concat": 1}, ROWS),
    Case(arrays, "backport_tensor_array_v3", {"TensorArrayV3": -1, "TensorArrayV2": 1}, ROWS),
    Case(batch_norm, "fold_batch_norms", {"FusedBatchNormV3": -1, "BiasAdd": 1}),
    Case(batch_norm, "fold_old_batch_norms", {"FusedBatchNormV3": -1, "BiasAdd": 1}),
    Case(constant_part, "fold_constants", {"Exp": -1, "AddV2": -1}),
    Case(called, "inline_partitionedcall", {"PartitionedCall": -1, "MatMul": 1, "Relu": 1}, ROWS),
    Case(small, "insert_logging(op=Relu, show_name=true, first_n=1, summarize=1)", {"Print": 1}),
    Case(duplicated, "merge_duplicate_nodes", {"Exp": -1, "Mul": -1}),
    Case(small, "obfuscate_names"),
    Case(small, "quantize_nodes", {"Conv2D": -1, "QuantizedConv2D": 1, "QuantizedMatMul": 1}, limit=0.1),
    Case(small, "quantize_placeholders(input_min=-4, input_max=4)", {"QuantizeV2": 1, "Dequantize": 1}, limit=0.02),
    Case(small, "quantize_weights", {"Dequantize": 1}, limit=0.02),
    Case(small, "remove_attribute(attribute_name=dilations, op_name=Conv2D)"),
    Case(with_assertion, "remove_control_dependencies"),
    Case(small, 'set_device(device="/device:CPU:0") remove_device'),
    Case(small, "remove_nodes(op=Identity, op=CheckNumerics)", {"Identity": -1, "CheckNumerics": -1}),
    Case(small, "rename_attribute(old_attribute_name=_class, new_attribute_name=_kept)"),
    Case(small, "rename_node(old_node_name=relu, new_node_name=active)"),
    Case(small, "rename_op(old_op_name=MaxPool, new_op_name=AvgPool)", {"MaxPool": -1, "AvgPool": 1}, limit=2.0),
    Case(small, "round_weights(num_steps=128)", limit=0.05),
    Case(small, 'set_device(device="/device:CPU:0")'),
    Case(small, "obfuscate_names sort_by_execution_order"),
    Case(looked_up, "sparsify_gather", {"GatherV2": 1, "LowerBound": 1}, np.array([3, 0, 49, 8, 7, 3, 2])),
    Case(lambda x: {"y": x * 2.0, "unused": x * 3.0}["y"], "strip_unused_nodes", {"Mul": -1}, ROWS),
]


@pytest.mark.slow
@pytest.mark.parametrize("case", CASES, ids=lambda case: case.transforms.split("(")[0].split(" ")[-1])
def test_each(case: Case, net: Any, operations: Any) -> None:
    graph = net(case.build, IMAGES if case.rows is None else case.rows)
    if "_class" in case.transforms:
        graph.graph_def.node[-1].attr["_class"].list.s.append(b"loc:@x")
    result = graph.apply(case.transforms)
    step = result.steps[-1]
    assert step.outcome == "applied", step.reason
    assert step.by == TRANSFORMS[step.name].by
    counted, before = operations(result.graph_def), operations(graph.graph_def)
    changed = {op: counted[op] - before[op] for op in case.change}
    assert changed == case.change
    assert graph.error(result.graph_def) <= case.limit


def test_none_is_left_out() -> None:
    tested = {case.transforms.rsplit("(", 1)[0].split()[-1] for case in CASES} | {
        name for case in CASES for name in TRANSFORMS if name in case.transforms
    }
    assert set(TRANSFORMS) - tested == {
        "freeze_requantization_ranges",  # has a test of its own, below
        "flatten_atrous_conv", "fuse_convolutions", "fuse_pad_and_conv",  # in test_convolutions
        "fuse_resize_and_conv", "fuse_resize_pad_and_conv",
    }  # fmt: skip


@pytest.mark.slow
def test_ranges_of_a_log_are_frozen(net: Any, operations: Any, tmp_path: Any) -> None:
    """The documentation's way: quantize, log, run, freeze."""
    graph = net(small, IMAGES)
    quantized = graph.apply("quantize_nodes")
    ranges = [n.name for n in quantized.graph_def.node if n.op == "RequantizationRange"]
    logged = graph.apply(
        'quantize_nodes insert_logging(op=RequantizationRange, show_name=true, message="__requant_min_max:")'
    )
    assert operations(logged.graph_def)["Print"] == len(ranges) == 3
    # What the Print operations write, made by hand: standard error of this process is not the test's.
    log = tmp_path / "ranges.log"
    log.write_text("".join(f"I0108 x.cc:79] ;{n}__print__;__requant_min_max:[-9.5][8.25]\n" for n in ranges))
    result = graph.checked(f'quantize_nodes freeze_requantization_ranges(min_max_log_file="{log}")')
    assert result.steps[-1].outcome == "applied"
    assert operations(result.graph_def)["RequantizationRange"] == 0
    assert graph.error(result.graph_def) < 0.2


# --- structure


def _condition(x: Any, chosen: Any) -> Any:
    """A condition as TensorFlow 1 wrote it: constants wait for the Identity that marks their branch."""
    import tensorflow as tf

    switch = tf.raw_ops.Switch(data=chosen, pred=chosen)
    no, yes = tf.identity(switch.output_false), tf.identity(switch.output_true)
    data = tf.raw_ops.Switch(data=x, pred=chosen)
    with tf.control_dependencies([yes]):
        one = tf.identity(data.output_true) * tf.constant(2.0)
    with tf.control_dependencies([no]):
        other = tf.identity(tf.constant(-1.0, shape=[1, 1]))
    return tf.raw_ops.Merge(inputs=[other, one]).output


@pytest.mark.parametrize("chosen", [False, True])
@pytest.mark.parametrize("transform", ["remove_nodes(op=Identity)", "remove_control_dependencies"])
def test_old_conditions(transform: str, chosen: bool, net: Any) -> None:
    """TensorFlow's own passes take the marks of the branches away, and with them what is computed."""
    graph = net(_condition, {"x": ROWS, "chosen": np.array(chosen)}, shape=None)
    result = graph.apply(transform)
    np.testing.assert_array_equal(graph.answers(result.graph_def)[0], graph.answers()[0])
    assert graph.answers()[0].shape == (ROWS.shape if chosen else (1, 1))


def test_remove_nodes_keeps_what_is_needed(net: Any, operations: Any) -> None:
    import tensorflow as tf

    def build(x: Any) -> Any:
        first, second, third = tf.split(tf.identity(x), [1, 1, 2], 1)
        with tf.control_dependencies([tf.raw_ops.Assert(condition=tf.reduce_all(x < 100.0), data=[x])]):
            guarded = tf.identity(first)
        return {"y": tf.identity(tf.identity(second)) + guarded, "z": third}

    graph = net(build, ROWS)
    result = graph.checked("remove_nodes(op=Identity)")
    # The two outputs, and the one that waits for the assertion.
    assert operations(result.graph_def)["Identity"] == 3
    assert operations(result.graph_def)["Assert"] == operations(graph.graph_def)["Assert"] == 1
    assert graph.error(result.graph_def) == 0


def test_remove_nodes_with_more_inputs(net: Any, operations: Any) -> None:
    graph = net(lambda x: (x + 1.0) * 2.0, ROWS)
    assert graph.apply("remove_nodes(op=AddV2)").steps[0].outcome == "nothing to do"
    result = graph.apply("remove_nodes(op=AddV2, max_inputs=2)")
    assert operations(result.graph_def)["AddV2"] == 0
    np.testing.assert_allclose(graph.answers(result.graph_def)[0], ROWS * 2)


def test_strip_makes_placeholders_of_inner_inputs(net: Any) -> None:
    graph = net(small, IMAGES)
    graph.inputs = ["relu"]
    kept = graph.apply("strip_unused_nodes").graph_def
    (relu,) = [n for n in kept.node if n.name == "relu"]
    assert [relu.op, relu.attr["dtype"].type] == ["Placeholder", 1]
    assert [d.size for d in relu.attr["shape"].shape.dim] == [-1, 16, 16, 8]
    assert "x" not in {n.name for n in kept.node}
    told = graph.apply('strip_unused_nodes(shape="4,16,16,8", type=float)').graph_def
    named = graph.apply('strip_unused_nodes(name=relu, shape_for_name="4,16,16,8")').graph_def
    for made in (told, named):
        (relu,) = [n for n in made.node if n.name == "relu"]
        assert [d.size for d in relu.attr["shape"].shape.dim] == [4, 16, 16, 8]


def test_strip_keeps_inputs_that_nobody_reads(net: Any) -> None:
    graph = net(lambda x, unused: x * 2.0, {"x": ROWS, "unused": ROWS})
    result = graph.checked("strip_unused_nodes fold_constants obfuscate_names sort_by_execution_order")
    assert {"x", "unused", "y"} <= {node.name for node in result.graph_def.node}


def test_strip_drops_functions_that_nobody_calls(net: Any) -> None:
    graph = net(called, ROWS)
    result = graph.checked("strip_unused_nodes inline_partitionedcall strip_unused_nodes")
    assert [len(graph.graph_def.library.function), len(result.graph_def.library.function)] == [1, 0]


# --- quantization


def quantization_aware(x: Any) -> Any:
    import tensorflow as tf

    fake = tf.quantization
    kernel = fake.fake_quant_with_min_max_vars_per_channel(
        w(3, 3, 3, 4), tf.identity([-1.0] * 4), tf.identity([1.0] * 4), narrow_range=True
    )
    dense = fake.fake_quant_with_min_max_vars(w(4, 2), tf.constant(-2.0), tf.constant(2.0))
    y = tf.nn.relu(tf.nn.conv2d(x, kernel, 1, "SAME"))
    y = fake.fake_quant_with_min_max_vars(y, tf.constant(0.0) * 2.0, tf.constant(6.0))
    return tf.matmul(tf.reduce_mean(y, [1, 2]), dense)


@pytest.mark.slow
def test_learned_ranges_stay(net: Any, operations: Any) -> None:
    from moxserve.export.transforms import DEFAULT_TRANSFORMS

    graph = net(quantization_aware, IMAGES)
    for transforms in ("fold_constants", DEFAULT_TRANSFORMS, "fold_constants(exclude_op=Mul)"):
        counted = operations(graph.checked(transforms).graph_def)
        assert counted["FakeQuantWithMinMaxVars"] == 2
        assert counted["FakeQuantWithMinMaxVarsPerChannel"] == 1
    assert operations(graph.checked("fold_constants(exclude_op=Mul)").graph_def)["Mul"] == 1
    asked = graph.checked("fold_constants(fold_quantized=true)")
    assert operations(asked.graph_def)["FakeQuantWithMinMaxVars"] == 1  # that of the activation
    assert graph.error(asked.graph_def) < 1e-5


def test_a_last_bit_behind_simulated_quantization(net: Any) -> None:
    """Folding moves last bits, and these numbers lie between two steps of 0.01."""
    import tensorflow as tf

    def build(x: Any) -> Any:
        y = tf.nn.conv2d(x, np.full((1, 1, 1, 4), 1 / 3, np.float32), 1, "SAME")
        y = y * tf.constant([0.03, 0.0303, 0.0306, 0.0309])
        return tf.quantization.fake_quant_with_min_max_vars(y, 0.0, 2.55)

    graph = net(build, np.arange(0.5, 250, dtype=np.float32).reshape(1, 25, 10, 1))
    (step,) = graph.checked("fold_batch_norms").steps
    assert step.outcome == "applied"
    assert 1e-4 < step.error < SIMULATED_LIMIT
    assert graph.checked("fold_batch_norms", limit=1e-4).steps[0].outcome == "rolled back"


def test_small_weights_stay_small(net: Any) -> None:
    graph = net(small, IMAGES)
    result = graph.checked("quantize_weights fold_constants")
    quantized, folded = result.steps
    assert quantized.bytes_after < 0.4 * quantized.bytes_before
    assert folded.bytes_after < 1.05 * quantized.bytes_after


@pytest.mark.slow
def test_known_range_of_inputs(net: Any, operations: Any) -> None:
    """Inputs stay float: the range is used inside the graph, and spares looking for it."""
    graph = net(small, IMAGES)
    result = graph.checked("quantize_nodes(input_min=-4, input_max=4) strip_unused_nodes")
    assert result.steps[0].outcome == "applied"
    plain = graph.checked("quantize_nodes strip_unused_nodes")
    assert operations(result.graph_def)["Min"] < operations(plain.graph_def)["Min"]
    assert graph.error(result.graph_def) < 0.1
    (x,) = [n for n in result.graph_def.node if n.name == "x"]
    assert x.attr["dtype"].type == 1


def test_known_range_of_activations(net: Any, operations: Any) -> None:
    graph = net(small, IMAGES)
    result = graph.checked("quantize_nodes(fallback_min=-8, fallback_max=8)")
    assert operations(result.graph_def)["RequantizationRange"] == 0
    assert graph.error(result.graph_def) < 0.2


# --- tables


@pytest.mark.parametrize("dtype", [np.int32, np.int64])
def test_sparse_tables(dtype: Any, net: Any) -> None:
    import tensorflow as tf

    table = np.zeros((1000, 1), np.float32)
    table[[0, 17, 999]] = [[1.0], [np.inf], [3.0]]
    ids = np.array([[0, 1, 17], [998, 999, 16]], dtype)
    graph = net(lambda i: tf.raw_ops.Gather(params=tf.identity(table), indices=i), {"x": ids})
    result = graph.checked("sparsify_gather")
    assert result.steps[0].outcome == "applied"
    assert result.graph_def.ByteSize() < graph.graph_def.ByteSize()
    np.testing.assert_array_equal(graph.answers(result.graph_def)[0], table[ids])


@pytest.mark.parametrize(("rows", "transforms"), [(600, "sparsify_gather"), (3, "sparsify_gather(max_density=0)")])
def test_tables_in_use_stay(rows: int, transforms: str, net: Any) -> None:
    import tensorflow as tf

    table = np.zeros((1000, 2), np.float32)
    table[:rows] = 1
    graph = net(lambda i: tf.gather(table, i), {"x": np.array([1, 2])})
    assert graph.checked(transforms).steps[0].outcome == "nothing to do"


def test_an_empty_table(net: Any) -> None:
    import tensorflow as tf

    graph = net(lambda i: tf.gather(np.zeros((100, 2), np.float32), i), {"x": np.array([1, 2])})
    result = graph.apply("sparsify_gather")
    assert result.steps[0].outcome == "applied"
    assert not graph.answers(result.graph_def)[0].any()
