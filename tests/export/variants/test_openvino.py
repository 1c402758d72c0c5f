"""OpenVINO variants: what they answer to one row and to several, what is in the file, what is refused."""

from __future__ import annotations

import dataclasses
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from moxserve.errors import ExportError, UsageError, VerificationError
from moxserve.export.targets import Calibration, Target
from moxserve.export.variants.openvino import convert
from moxserve.export.variants.work import Rows

pytest.importorskip("openvino")

# Relative error that each precision may have; int8 of random weights, so that nothing was trained to bear it.
LIMITS = {"float32": 1e-5, "bfloat16": 2e-2, "float16": 2e-3, "int8": 0.05}
INT8 = Target("openvino", "int8")


def read(directory: str) -> Any:
    import openvino as ov

    return ov.Core().read_model(os.path.join(directory, "model.xml"))


def kinds_read_by(model: Any, *types: str) -> list[list[str]]:
    """What the inputs of the operations of some types come from."""
    return [
        [value.get_node().get_type_name() for value in node.input_values()]
        for node in model.get_ordered_ops()
        if node.get_type_name() in types
    ]


@pytest.mark.slow
@pytest.mark.parametrize("precision", LIMITS)
@pytest.mark.parametrize("name", ["residual", "heads"])
def test_it_answers_as_tensorflow_does(
    name: str, precision: Any, nets: Any, served: Any, apart: Any, tmp_path: Path
) -> None:
    net = nets(name)
    work = net.work(tmp_path / "v", Target("openvino", precision), settings=Calibration(max_drop=None))
    built = convert(work)
    assert sorted(os.listdir(work.directory)) == ["model.bin", "model.xml"]
    assert built.file == "model.xml"
    assert built.names.inputs == {alias: alias for alias in net.frozen.signature.inputs}
    assert built.names.outputs == {alias: alias for alias in net.frozen.signature.outputs}
    for size in (1, 8, 32):
        assert apart(served(work.directory, net.rows.load_inputs(), size), net.rows) < LIMITS[precision]


@pytest.mark.slow
@pytest.mark.parametrize("precision", ["float32", "int8"])
@pytest.mark.parametrize("name", ["fixed", "twins"])
def test_fixed_batches_and_shared_outputs(
    name: str, precision: Any, nets: Any, served: Any, apart: Any, tmp_path: Path
) -> None:
    net = nets(name)
    work = net.work(tmp_path / "v", Target("openvino", precision), settings=Calibration(max_drop=None))
    convert(work)
    assert apart(served(work.directory, net.rows.load_inputs()), net.rows) < LIMITS[precision]
    inputs, outputs = ({min(port.get_names(), key=len) for port in side} for side in _ports(work.directory))
    assert (inputs, outputs) == (set(net.frozen.signature.inputs), set(net.frozen.signature.outputs))


def _ports(directory: str) -> tuple[list[Any], list[Any]]:
    model = read(directory)
    return model.inputs, model.outputs


@pytest.mark.slow
@pytest.mark.parametrize(("precision", "hint"), [("float32", "f32"), ("bfloat16", "bf16"), ("float16", "f32")])
def test_the_file_tells_its_precision(precision: Any, hint: str, nets: Any, tmp_path: Path) -> None:
    net = nets("residual")
    work = net.work(tmp_path / "v", Target("openvino", precision))
    built = convert(work)
    told = read(work.directory).get_rt_info(["runtime_options", "INFERENCE_PRECISION_HINT"])
    assert (told.value, built.details["inference_precision"]) == (hint, hint)


@pytest.mark.slow
def test_each_precision_is_really_computed_in(nets: Any, served: Any, apart: Any, tmp_path: Path) -> None:
    import openvino as ov

    if "BF16" not in ov.Core().get_property("CPU", "OPTIMIZATION_CAPABILITIES"):
        pytest.skip("OpenVINO computes in no bfloat16 on this CPU")
    net = nets("residual")
    errors, sizes = {}, {}
    for precision in ("float32", "bfloat16", "float16"):
        work = net.work(tmp_path / precision, Target("openvino", precision))
        convert(work)
        errors[precision] = apart(served(work.directory, net.rows.load_inputs()), net.rows)
        sizes[precision] = os.path.getsize(os.path.join(work.directory, "model.bin"))
    assert errors["float32"] < 1e-5 < errors["float16"] < errors["bfloat16"]
    assert sizes["float16"] < 0.6 * sizes["float32"]


@pytest.mark.slow
@pytest.mark.parametrize("per_channel", [True, False])
def test_int8_of_trained_digits(per_channel: bool, digits: Any, served: Any, tmp_path: Path) -> None:
    work = digits.work(tmp_path / "v", INT8, settings=Calibration(per_channel=per_channel))
    built = convert(work)
    source = digits.accuracy(work.evaluation.load_outputs()["probabilities"])
    answers = {size: served(work.directory, {"images": digits.images}, size)["probabilities"] for size in (1, 100)}
    for got in answers.values():
        assert source - digits.accuracy(got) <= 0.005
    np.testing.assert_allclose(answers[1], answers[100], atol=1e-3)
    model = read(work.directory)
    # Nothing stands between the last operation and the probabilities.
    assert kinds_read_by(model, "Softmax") == [["Add"]]
    scales = [
        node.input_value(1).get_node().data.size
        for node in model.get_ordered_ops()
        if node.get_type_name() == "Multiply" and node.input_value(0).get_node().get_type_name() == "Convert"
    ]
    assert len(scales) == 3
    assert (max(scales) > 1) is per_channel
    assert built.details["calibration"] == {"method": "minmax", "rows": 200, "per_channel": per_channel}


@pytest.mark.slow
@pytest.mark.parametrize("method", ["percentile", "entropy"])
def test_other_calibrations(method: Any, digits: Any, served: Any, tmp_path: Path) -> None:
    work = digits.work(tmp_path / "v", INT8, settings=Calibration(method=method, percentile=99.9))
    built = convert(work)
    source = digits.accuracy(work.evaluation.load_outputs()["probabilities"])
    got = served(work.directory, {"images": digits.images})["probabilities"]
    assert source - digits.accuracy(got) <= 0.01
    assert any("no calibration by entropy" in note for note in built.notes) is (method == "entropy")


@pytest.mark.slow
def test_operations_are_left_out_by_their_names_in_tensorflow(nets: Any, tmp_path: Path) -> None:
    net = nets("residual")
    settings = Calibration(exclude=("block/*",), max_drop=None)
    built = convert(net.work(tmp_path / "v", INT8, settings=settings))
    left = {entry["operation"] for entry in built.details["float"]}
    assert {"block/a/Conv2D", "block/depthwise/depthwise", "block/last/Conv2D"} <= left
    assert all(entry["reason"] == "excluded by 'block/*'" for entry in built.details["float"])
    assert built.details["quantized"] == ["first/Conv2D", "dense/MatMul"]
    everything = convert(net.work(tmp_path / "all", INT8, settings=Calibration(max_drop=None)))
    fake = "FakeQuantize"
    assert built.details["operations"][fake] < everything.details["operations"][fake]
    with pytest.raises(UsageError, match=r"'blok/\*' matches no operation"):
        convert(net.work(tmp_path / "w", INT8, settings=Calibration(exclude=("blok/*",))))


@pytest.mark.slow
def test_convolutions_of_few_pixels_answer_a_single_row_rightly(
    nets: Any, served: Any, apart: Any, tmp_path: Path
) -> None:
    net = nets("pixels")
    work = net.work(tmp_path / "v", INT8, settings=Calibration(max_drop=None))
    built = convert(work)
    for size in (1, 2, 32):
        assert apart(served(work.directory, net.rows.load_inputs(), size), net.rows) < LIMITS["int8"]
    left = {entry["operation"] for entry in built.details["float"]}
    small = {f"block{i}/{kind}" for i in (2, 3) for kind in ("full/Conv2D", "depthwise/depthwise", "point/Conv2D")}
    assert left == small | {"block1/depthwise/depthwise"}
    assert any("few pixels" in note for note in built.notes)


def test_a_model_that_answers_one_row_otherwise_is_not_handed_back(
    nets: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from moxserve.export.variants import trial
    from moxserve.probe import ProbeResult

    net = nets("residual")
    rows = np.ones((8, 10), np.float32)
    answers = iter([
        ProbeResult("openvino", singles={"logits": -rows}, outputs={"logits": rows}),
        ProbeResult("openvino", error="the process was ended by SIGSEGV"),
    ])  # fmt: skip
    monkeypatch.setattr(trial, "probe", lambda *_: next(answers))
    with pytest.raises(VerificationError, match="otherwise to a single row than to 8 rows: 'logits' is off by 2 of"):
        convert(net.work(tmp_path / "v", Target("openvino")))
    with pytest.raises(VerificationError, match="does not run: the process was ended by SIGSEGV"):
        convert(net.work(tmp_path / "w", Target("openvino")))


@pytest.mark.slow
def test_operations_that_cost_too_much_stay_in_floating_point(nets: Any, served: Any, tmp_path: Path) -> None:
    net = nets("outlier")

    def agreement(work: Any) -> float:
        got = served(work.directory, net.rows.load_inputs())["logits"]
        return float((got.argmax(1) == net.rows.load_outputs()["logits"].argmax(1)).mean())

    everything = net.work(tmp_path / "all", INT8, settings=Calibration(max_drop=None))
    convert(everything)
    assert agreement(everything) < 0.9
    searched = net.work(tmp_path / "some", INT8, settings=Calibration(max_drop=0.05))
    built = convert(searched)
    assert agreement(searched) >= 1 - 2 / 32  # 5 % of 32 rows, in whole rows
    kept = [entry["operation"] for entry in built.details["float"] if entry["reason"] == "costs accuracy"]
    assert {"large", "small"} & set(kept)
    assert {entry["operation"] for entry in built.details["search"]["kept"]} == set(kept)
    assert len(kept) < built.details["operations"]["MatMul"]
    assert built.details["search"]["steps"][0]["loss"] > 0.05


@pytest.mark.slow
def test_learned_ranges_need_no_rows(nets: Any, served: Any, apart: Any, tmp_path: Path) -> None:
    net = nets("learned")
    work = net.work(tmp_path / "v", INT8, learned=True, calibration=Rows(net.rows.folder))
    built = convert(work)
    for size in (1, 32):
        assert apart(served(work.directory, net.rows.load_inputs(), size), net.rows) < 0.05
    model = read(work.directory)
    tops = {
        round(float(node.input_value(2).get_node().data.max()), 4)
        for node in model.get_ordered_ops()
        if node.get_type_name() == "FakeQuantize"
    }
    assert {1.0, 4.0, 6.0, 10.0} <= tops
    assert {str(node.get_element_type()) for node in model.get_ops() if node.get_type_name() == "Constant"} >= {
        "<Type: 'int8_t'>"
    }
    assert built.details["calibration"] == {"method": "learned"}
    heavy = ["first/Conv2D", "inner/Conv2D", "depthwise/depthwise", "last/Conv2D", "dense/MatMul"]
    assert built.details["quantized"] == heavy
    settings = Calibration(exclude=("inner/*",))
    built = convert(net.work(tmp_path / "w", INT8, learned=True, settings=settings))
    assert built.details["float"] == [{"operation": "inner/Conv2D", "reason": "excluded by 'inner/*'"}]
    assert built.details["quantized"] == [name for name in heavy if name != "inner/Conv2D"]


def test_what_cannot_be_made(nets: Any, freeze_net: Any, tmp_path: Path) -> None:
    net = nets("learned")
    with pytest.raises(ExportError, match="openvino_bf16 is not made of a graph with learned int8 ranges"):
        convert(net.work(tmp_path / "a", Target("openvino", "bfloat16"), learned=True))
    net = nets("residual")
    with pytest.raises(ExportError, match="openvino_int8 needs real rows"):
        convert(net.work(tmp_path / "b", INT8, calibration=Rows(net.rows.folder)))

    def odd() -> Any:
        from moxserve.tensorflow.executor.env import tf, tf1

        x = tf1.placeholder(tf.float32, [None, 3, 3], "x")
        return {"x": x}, {"y": tf.identity(tf.linalg.det(x) + tf.math.betainc(x, x, x)[:, 0, 0], "y_out")}

    frozen = freeze_net(tmp_path / "odd", odd)
    with pytest.raises(ExportError, match="OpenVINO has no Betainc, MatrixDeterminant"):
        convert(frozen.work(tmp_path / "c", Target("openvino")))
    assert os.listdir(tmp_path / "c") == []


@pytest.mark.slow
def test_models_without_weights_and_of_other_types(freeze_net: Any, tmp_path: Path) -> None:
    def add(kind: str) -> Any:
        from moxserve.tensorflow.executor.env import tf, tf1

        x = tf1.placeholder(kind, [None, 2], "x")
        return {"x": x}, {"y": tf.identity(x if kind == "string" else x + 2.0, "y_out")}

    frozen = freeze_net(tmp_path / "add", lambda: add("float32"))
    rows = frozen.rows(tmp_path / "rows", {"x": np.float32([[1, 2], [3, 4]])})
    with pytest.raises(ExportError, match="int8: the model has no operations with weights"):
        convert(frozen.work(tmp_path / "a", INT8, rows))
    texts = freeze_net(tmp_path / "texts", lambda: add("string"))
    with pytest.raises(ExportError, match="OpenVINO has no string, of which 'x' is"):
        convert(texts.work(tmp_path / "b", Target("openvino")))


@pytest.mark.slow
def test_a_signature_of_another_name(nets: Any, served: Any, tmp_path: Path) -> None:
    from moxserve.export.frozen import FrozenGraph

    net = nets("twins")
    signature = dataclasses.replace(net.frozen.signature, name="detect")
    FrozenGraph(net.frozen.graph_def, signature).write(str(tmp_path / "model"))
    work = net.work(tmp_path / "v", Target("openvino"))
    convert(dataclasses.replace(work, model=str(tmp_path / "model"), signature=signature))
    rows = net.rows.load_inputs()
    np.testing.assert_array_equal(served(work.directory, rows, 1)["same"], rows["x"])


@pytest.mark.slow
def test_nobody_is_told_of_it(nets: Any, tmp_path: Path) -> None:
    """Neither OpenVINO's nor NNCF's reports of their use are sent, in a process that does nothing else."""
    import pickle
    import subprocess
    import sys

    work = nets("twins").work(tmp_path / "v", INT8, settings=Calibration(max_drop=None))
    program = (
        "import pickle, sys\n"
        "from openvino_telemetry.main import Telemetry\n"
        "Telemetry.__init__ = lambda *_, **__: sys.exit('it reports')\n"
        "from moxserve.export.variants.openvino import convert\n"
        "convert(pickle.load(sys.stdin.buffer))\n"
    )
    done = subprocess.run([sys.executable, "-c", program], input=pickle.dumps(work), capture_output=True, timeout=280)
    assert done.returncode == 0, done.stderr.decode()
