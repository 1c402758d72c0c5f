"""int8 ONNX variants of a trained net: calibration, exclusions, the search, and what ONNX Runtime makes of them."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
import pytest

from moxserve.errors import ExportError, UsageError
from moxserve.export.targets import Calibration, Target
from moxserve.export.variants.onnx import convert
from moxserve.export.variants.onnx.calibration import Observed, calibrate, entropy_threshold, percentile_threshold
from moxserve.export.variants.onnx.model import readers_of, rename_tensors, replace_nodes

INT8 = Target("onnx", "int8")


def _run(directory: Path, **inputs: np.ndarray) -> dict[str, np.ndarray]:
    session = ort.InferenceSession(str(directory / "model.onnx"))
    return dict(zip([o.name for o in session.get_outputs()], session.run(None, inputs), strict=True))


def _kernels(directory: Path) -> Counter[str]:
    """The operations that ONNX Runtime makes of a model on the CPU."""
    options = ort.SessionOptions()
    options.optimized_model_filepath = str(directory / "optimized.onnx")
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_ENABLE_EXTENDED
    ort.InferenceSession(str(directory / "model.onnx"), options, providers=["CPUExecutionProvider"])
    return Counter(node.op_type for node in onnx.load(directory / "optimized.onnx").graph.node)


@pytest.mark.slow
@pytest.mark.parametrize("method", ["minmax", "entropy", "percentile"])
@pytest.mark.parametrize("per_channel", [True, False])
def test_int8_of_a_trained_net_keeps_its_accuracy(digits: Any, tmp_path: Path, method: Any, per_channel: bool) -> None:
    settings = Calibration(method=method, per_channel=per_channel, max_drop=None)
    built = convert(digits.work(tmp_path / "1", INT8, settings=settings))
    assert built.details["quantized"] == ["conv0/Conv2D", "conv1/Conv2D", "dense/MatMul"]
    assert built.details["float"] == []
    assert built.details["calibration"]["method"] == method
    assert built.details["calibration"]["rows"] == 200
    got = _run(tmp_path / "1", images=digits.images)
    want = digits.frozen.run({"images": digits.images})
    assert digits.accuracy(got["probabilities"]) >= digits.accuracy(want["probabilities"]) - 0.005
    error = np.linalg.norm(got["logits"] - want["logits"]) / np.linalg.norm(want["logits"])
    assert 0 < error < 0.05
    # Softmax, and the choice of a class, are computed in float32 from the logits that come out.
    exponents = np.exp(got["logits"] - got["logits"].max(1, keepdims=True))
    np.testing.assert_allclose(got["probabilities"], exponents / exponents.sum(1, keepdims=True), rtol=1e-3, atol=1e-6)
    np.testing.assert_array_equal(got["classes"], got["logits"].argmax(1))
    kernels = _kernels(tmp_path / "1")
    assert kernels["QLinearConv"] == 2
    assert kernels["QGemm"] == 1
    assert not {"Conv", "Gemm", "MatMul"} & kernels.keys()


def test_the_server_answers_with_it(digits: Any, tmp_path: Path) -> None:
    from moxserve.serving.backends import LoadOptions, load

    convert(digits.work(tmp_path / "1", INT8))
    backend = load(tmp_path / "1", LoadOptions(backend="onnx"))
    got = backend.run("serving_default", {"images": digits.images})
    backend.close()
    want = digits.frozen.run({"images": digits.images})
    assert (got["classes"] == want["classes"]).mean() >= 0.99


def test_weights_are_int8_and_activations_uint8(digits: Any, tmp_path: Path) -> None:
    convert(digits.work(tmp_path / "1", INT8))
    graph = onnx.load(tmp_path / "1" / "model.onnx").graph
    constants = {t.name: t for t in graph.initializer}
    types: dict[str, set[int]] = {}
    for node in graph.node:
        if node.op_type in ("QuantizeLinear", "DequantizeLinear"):
            types.setdefault(node.op_type, set()).add(constants[node.input[2]].data_type)
    assert types["QuantizeLinear"] == {onnx.TensorProto.UINT8}
    assert types["DequantizeLinear"] == {onnx.TensorProto.UINT8, onnx.TensorProto.INT8, onnx.TensorProto.INT32}
    scales = [n.input[1] for n in graph.node if n.op_type == "DequantizeLinear" and n.input[0] in constants]
    assert sorted(list(constants[name].dims) for name in scales) == [[10], [10], [16], [16], [32], [32]]


@pytest.mark.parametrize("pattern", ["conv1/*", "conv1/Conv2D", "BiasAdd_1"])
def test_excluded_operations_stay_in_float32_by_either_name(digits: Any, tmp_path: Path, pattern: str) -> None:
    built = convert(digits.work(tmp_path / "1", INT8, settings=Calibration(exclude=(pattern,))))
    assert built.details["float"] == [{"operation": "conv1/Conv2D", "reason": f"excluded by {pattern!r}"}]
    assert built.details["quantized"] == ["conv0/Conv2D", "dense/MatMul"]
    kernels = _kernels(tmp_path / "1")
    assert kernels["QLinearConv"] == 1
    assert kernels["FusedConv"] + kernels["Conv"] == 1


def test_patterns_without_a_match_and_those_that_match_all_are_refused(digits: Any, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"--exclude 'conv2/Conv2D' matches no operation .* did you mean 'conv"):
        convert(digits.work(tmp_path / "1", INT8, settings=Calibration(exclude=("conv2/Conv2D",))))
    with pytest.raises(ExportError, match="--exclude leaves nothing to quantize"):
        convert(digits.work(tmp_path / "2", INT8, settings=Calibration(exclude=("*",))))


def test_int8_needs_rows_and_an_opset_that_has_it(digits: Any, tmp_path: Path) -> None:
    with pytest.raises(ExportError, match="onnx_int8 needs real rows"):
        convert(digits.frozen.work(tmp_path / "1", INT8))
    with pytest.raises(ExportError, match="needs opset 13, not 12"):
        convert(digits.work(tmp_path / "2", INT8, opset=12))
    built = convert(digits.work(tmp_path / "3", INT8, opset=21))
    assert built.details["opset"] == 21
    assert built.details["search"]["loss"] <= 0.005


def test_without_rows_to_judge_by_those_of_the_calibration_are_taken(digits: Any, tmp_path: Path) -> None:
    built = convert(digits.frozen.work(tmp_path / "1", INT8, digits.calibration))
    assert built.details["search"]["loss"] <= 0.01


@pytest.fixture(scope="session")
def lopsided(tmp_path_factory: pytest.TempPathFactory, freeze_net: Any) -> Any:
    """Six convolutions; the fourth makes one huge channel, which the fifth takes back to nothing."""

    def build() -> Any:
        from moxserve.tensorflow.executor.env import tf, tf1

        images = tf1.placeholder(tf.float32, [None, 8, 8, 3], "images")
        random = np.random.default_rng(0)
        x, channels = images, 3
        for i in range(6):
            weights = random.normal(0, (2 / (9 * channels)) ** 0.5, (3, 3, channels, 8)).astype(np.float32)
            if i == 3:
                weights[..., 0] *= 3000.0
            if i == 4:
                weights[:, :, 0, :] /= 3000.0
            x = tf.nn.relu(tf.nn.conv2d(x, tf1.get_variable(f"w{i}", initializer=weights), 1, "SAME", name=f"c{i}"))
            channels = 8
        weights = random.normal(size=(512, 5)).astype(np.float32)
        logits = tf.matmul(tf.reshape(x, [-1, 512]), tf1.get_variable("w", initializer=weights), name="fc")
        return {"images": images}, {"logits": logits, "p": tf.nn.softmax(logits, name="p")}

    return freeze_net(tmp_path_factory.mktemp("lopsided") / "model", build)


def _rows(frozen: Any, folder: Path, seed: int, count: int = 64) -> Any:
    images = np.random.default_rng(seed).normal(size=(count, 8, 8, 3)).astype(np.float32)
    return frozen.rows(folder, {"images": images}, None, "p")


@pytest.mark.slow
@pytest.mark.parametrize("per_channel", [True, False])
def test_the_search_keeps_what_costs_most_in_float32(lopsided: Any, tmp_path: Path, per_channel: bool) -> None:
    rows = {"calibration": _rows(lopsided, tmp_path / "c", 1), "evaluation": _rows(lopsided, tmp_path / "e", 2)}
    blind = Calibration(per_channel=per_channel, max_drop=None)
    assert convert(lopsided.work(tmp_path / "all", INT8, settings=blind, **rows)).details.get("search") is None
    built = convert(
        lopsided.work(tmp_path / "1", INT8, settings=Calibration(per_channel=per_channel, max_drop=0.05), **rows)
    )
    search = built.details["search"]
    assert search["criterion"] == "agreement"
    assert search["steps"][0]["kept"] == 0
    assert search["steps"][0]["loss"] > 0.1
    assert search["loss"] <= 0.05
    kept = {entry["operation"]: entry["reason"] for entry in built.details["float"]}
    assert {"c3", "c4"} <= kept.keys()
    assert set(kept.values()) == {"costs accuracy"}
    assert len(kept) <= 4
    assert set(built.details["quantized"]) == {"c0", "c1", "c2", "c3", "c4", "c5", "fc"} - kept.keys()
    assert any(f"{len(kept)} operations stay in floating point" in note for note in built.notes)
    # What is told is what was written.
    images = rows["evaluation"].load_inputs()["images"]
    want = rows["evaluation"].load_outputs()["p"].argmax(1)
    assert (_run(tmp_path / "1", images=images)["p"].argmax(1) != want).mean() == pytest.approx(search["loss"])
    assert (_run(tmp_path / "all", images=images)["p"].argmax(1) != want).mean() > 0.1


def test_the_search_gives_up_with_an_error(lopsided: Any, tmp_path: Path) -> None:
    """Random answers to hold it against: no model of any precision gives them."""
    rows = _rows(lopsided, tmp_path / "e", 2)
    np.save(tmp_path / "e" / rows.outputs["p"], np.random.default_rng(0).random((64, 5), np.float32))
    with pytest.raises(ExportError, match=r"even with 6 of 7 operations in floating point; 1.56% is allowed"):
        convert(lopsided.work(tmp_path / "1", INT8, _rows(lopsided, tmp_path / "c", 1), evaluation=rows))


def test_a_residual_net_with_batch_norm_is_int8_all_through(freeze_net: Any, tmp_path: Path) -> None:
    def build() -> Any:
        from moxserve.tensorflow.executor.env import tf, tf1

        def unit(x: Any, name: str, channels: int, stride: int, depthwise: bool = False) -> Any:
            with tf1.variable_scope(name):
                width = x.shape[-1]
                shape = [3, 3, width, 1 if depthwise else channels]
                conv = tf.nn.depthwise_conv2d if depthwise else tf.nn.conv2d
                y = conv(x, tf1.get_variable("w", shape), [1, stride, stride, 1], "SAME")
                values = [
                    tf1.get_variable(key, [channels], initializer=tf1.random_uniform_initializer(*ends))
                    for key, ends in {"g": (0.7, 1.3), "b": (-0.3, 0.3), "m": (-0.3, 0.3), "v": (0.5, 1.5)}.items()
                ]
                return tf1.nn.fused_batch_norm(
                    y, values[0], values[1], mean=values[2], variance=values[3], is_training=False
                )[0]

        x = images = tf1.placeholder(tf.float32, [2, 16, 16, 3], "images")
        x = tf.nn.relu(unit(x, "u1", 16, 1))
        x = tf.nn.relu(unit(tf.nn.relu(unit(x, "u2", 16, 2)), "u3", 16, 1) + unit(x, "u4", 16, 2))
        x = tf.nn.relu6(unit(x, "u5", 16, 1, depthwise=True))
        x = tf.concat([x, tf.nn.relu(unit(x, "u6", 8, 1))], 3)
        logits = tf.matmul(tf.reduce_mean(x, [1, 2]), tf1.get_variable("fc", [24, 5]))
        return {"images": images}, {"logits": logits}

    frozen = freeze_net(tmp_path / "model", build)
    images = np.random.default_rng(0).random((2, 16, 16, 3), np.float32)
    # Five rows for a batch that is two: the converter has to fill up.
    folder = tmp_path / "rows"
    rows = frozen.rows(folder, {"images": images})
    five = np.random.default_rng(1).random((5, 16, 16, 3), np.float32)
    want = np.concatenate([frozen.run({"images": five[i]})["logits"] for i in ([0, 1], [2, 3], [4, 0])])[:5]
    np.save(folder / rows.inputs["images"], five)
    np.save(folder / rows.outputs["logits"], want)
    rows = type(rows)(rows.folder, 5, rows.inputs, rows.outputs)
    built = convert(frozen.work(tmp_path / "1", INT8, rows, evaluation=rows))
    assert built.details["search"]["criterion"] == "relative error"
    kernels = _kernels(tmp_path / "1")
    assert kernels["QLinearConv"] == 6
    assert kernels["QLinearAdd"] == kernels["QLinearConcat"] == kernels["MatMulIntegerToFloat"] == 1
    assert not {"Conv", "Add", "Concat", "MatMul", "Relu", "Clip"} & kernels.keys()
    got = _run(tmp_path / "1", images=five[:2])["logits"]
    assert np.linalg.norm(got - want[:2]) / np.linalg.norm(want[:2]) < 0.05


def test_embeddings_and_several_inputs_and_heads(freeze_net: Any, tmp_path: Path) -> None:
    def build() -> Any:
        from moxserve.tensorflow.executor.env import tf, tf1

        ids = tf1.placeholder(tf.int64, [None, 3], "ids")
        x = tf1.placeholder(tf.float32, [None, 4], "x")
        words = tf.reshape(tf.gather(tf1.get_variable("table", [20, 8]), ids), [-1, 24])
        both = tf.concat([words, x], 1)
        hidden = tf.nn.relu(tf.matmul(both, tf1.get_variable("w", [28, 16])) + 0.1)
        scores = tf.nn.softmax(tf.matmul(hidden, tf1.get_variable("a", [16, 4])))
        return {"ids": ids, "x": x}, {"scores": scores, "x": tf.matmul(hidden, tf1.get_variable("b", [16, 1]))}

    frozen = freeze_net(tmp_path / "model", build)
    random = np.random.default_rng(0)
    inputs = {"ids": random.integers(0, 20, (50, 3)), "x": random.normal(size=(50, 4)).astype(np.float32)}
    rows = frozen.rows(tmp_path / "rows", inputs, None, "scores")
    built = convert(frozen.work(tmp_path / "1", INT8, rows, evaluation=rows, settings=Calibration(max_drop=0.1)))
    assert built.names.outputs == {"scores": "scores", "x": "x_out"}
    assert "Gather" in built.details["quantized"]
    got, want = _run(tmp_path / "1", **inputs), frozen.run(inputs)
    for alias, name in built.names.outputs.items():
        assert np.linalg.norm(got[name] - want[alias]) / np.linalg.norm(want[alias]) < 0.05


def test_thresholds_of_known_distributions() -> None:
    values = np.random.default_rng(0).exponential(1.0, 200_000).astype(np.float32)
    values[::2] = 0.0  # as after a ReLU
    values[1] = 1000.0
    observed = Observed()
    observed.add_extremes(values)
    for part in np.array_split(values, 7):
        observed.add_histogram(part)
    assert observed.zeros == 100_000
    assert observed.histogram.sum() == 100_000
    assert observed.lowest == 0.0
    assert observed.cut(entropy_threshold(observed))[1] < 100
    bin_width = 1000.0 / 2048
    assert percentile_threshold(observed, 99.9) == pytest.approx(np.percentile(values, 99.9), abs=bin_width)
    assert percentile_threshold(observed, 100.0) == pytest.approx(1000.0)


def test_a_threshold_cuts_both_sides_and_zero_stays_inside() -> None:
    observed = Observed()
    observed.add_extremes(np.array([2.0, 5.0], np.float32))
    assert observed.cut(3.0) == (0.0, 3.0)
    observed.add_extremes(np.array([-1.0, np.inf, np.nan], np.float32))
    assert (observed.lowest, observed.highest) == (-1.0, 5.0)
    assert observed.cut(3.0) == (-1.0, 3.0)
    assert observed.cut(0.5) == (-0.5, 0.5)
    constant = Observed()
    constant.add_extremes(np.zeros(4, np.float32))
    constant.add_histogram(np.zeros(4, np.float32))
    assert entropy_threshold(constant) == 0.0


def test_calibration_holds_one_batch_at_a_time(digits: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """With room for the activations of a few rows only, batches are small, and the extremes are those of all rows."""
    from moxserve.export.variants.onnx import calibration
    from moxserve.export.variants.onnx.floating import convert_graph
    from moxserve.export.variants.onnx.static import prepare

    model = prepare(convert_graph(digits.frozen.graph_def, digits.frozen.signature, 17))
    whole = calibrate(model, digits.calibration, digits.frozen.signature, ["Conv"], Calibration())
    sizes: list[int] = []
    real = calibration.batches

    def batches(rows: Any, size: int) -> Any:
        sizes.append(size)
        return real(rows, size)

    monkeypatch.setattr(calibration, "batches", batches)
    monkeypatch.setattr(calibration, "_BATCH_BYTES", 60_000)
    settings = Calibration(method="percentile")
    few = calibrate(model, digits.calibration, digits.frozen.signature, ["Conv"], settings)
    assert sizes[0] == 1
    assert 1 < sizes[1] == sizes[2] < 10
    for name, seen in whole.items():
        assert few[name].lowest == pytest.approx(seen.lowest, rel=1e-5)
        assert few[name].highest == pytest.approx(seen.highest, rel=1e-5)


@pytest.mark.parametrize(("opset", "per_channel"), [(10, False), (12, False), (13, True), (18, True), (23, True)])
def test_opsets_that_int8_can_be_written_in(digits: Any, tmp_path: Path, opset: int, per_channel: bool) -> None:
    settings = Calibration(per_channel=per_channel)
    built = convert(digits.work(tmp_path / "1", INT8, opset=opset, settings=settings))
    assert built.details["opset"] == opset
    assert _kernels(tmp_path / "1")["QLinearConv"] == 2
    want = digits.frozen.run({"images": digits.images})["classes"]
    assert (_run(tmp_path / "1", images=digits.images)["classes"] == want).mean() >= 0.99


def test_what_only_a_branch_reads_is_there_after_nodes_were_replaced() -> None:
    def branch(name: str, *nodes: Any) -> Any:
        output = onnx.helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, [2])
        return onnx.helper.make_graph(nodes, name, [], [output])

    times = onnx.helper.make_node("Mul", ["twice", "factor"], ["product"])
    plus = onnx.helper.make_node("Add", ["x", "other"], ["sum"])
    choose = onnx.helper.make_node(
        "If", ["positive"], ["y"], then_branch=branch("product", times), else_branch=branch("sum", plus)
    )
    doubled = onnx.helper.make_node("Add", ["x", "x"], ["twice"])
    ends = [onnx.helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, [2]) for name in ("x", "y")]
    flag = onnx.helper.make_tensor_value_info("positive", onnx.TensorProto.BOOL, [])
    constants = [
        onnx.numpy_helper.from_array(np.array(value, np.float32), name)
        for name, value in {"factor": [3, 4], "other": [5, 6], "unused": [7, 8]}.items()
    ]
    graph = onnx.helper.make_graph([doubled, choose], "g", [ends[0], flag], [ends[1]], constants)
    model = onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 17)], ir_version=8)

    assert [node.op_type for node in readers_of(model)["twice"]] == ["Mul"]
    replace_nodes(model, list(model.graph.node))
    rename_tensors(model.graph, {"twice": "both"})
    assert [tensor.name for tensor in model.graph.initializer] == ["factor", "other"]
    session = ort.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    x = np.array([1, 2], np.float32)
    for positive, expected in ((True, [6, 16]), (False, [6, 8])):
        assert session.run(None, {"x": x, "positive": np.array(positive)})[0].tolist() == expected
