"""TFLite variants: what they answer, what is in the file, what is refused."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from moxserve.errors import ExportError, UsageError
from moxserve.export.targets import Calibration, Target
from moxserve.export.variants.tflite import convert
from moxserve.export.variants.work import Rows

# Relative error that each precision may have; int8 of random weights, so that nothing was trained to bear it.
LIMITS = {"float32": 1e-6, "float16": 2e-3, "dynamic": 0.05, "int8": 0.05}
INT8 = Target("tflite", "int8")


@pytest.fixture
def details() -> Callable[[str], list[dict[str, Any]]]:
    """The tensors of a file, as LiteRT tells of them."""

    def read(directory: str) -> list[dict[str, Any]]:
        from ai_edge_litert.interpreter import Interpreter

        return Interpreter(os.path.join(directory, "model.tflite")).get_tensor_details()

    return read


@pytest.mark.slow
@pytest.mark.parametrize("precision", LIMITS)
@pytest.mark.parametrize("name", ["residual", "heads"])
def test_it_answers_as_tensorflow_does(
    name: str, precision: Any, nets: Any, served: Any, apart: Any, tmp_path: Path
) -> None:
    net = nets(name)
    work = net.work(tmp_path / "v", Target("tflite", precision), settings=Calibration(max_drop=None))
    built = convert(work)
    assert os.listdir(work.directory) == [built.file] == ["model.tflite"]
    for size in (1, 8, 32):
        assert apart(served(work.directory, net.rows.load_inputs(), size), net.rows) < LIMITS[precision]


@pytest.mark.slow
@pytest.mark.parametrize("precision", ["float32", "int8"])
@pytest.mark.parametrize("name", ["fixed", "twins", "pixels"])
def test_fixed_batches_shared_outputs_and_single_pixels(
    name: str, precision: Any, nets: Any, served: Any, apart: Any, tmp_path: Path
) -> None:
    net = nets(name)
    work = net.work(tmp_path / "v", Target("tflite", precision), settings=Calibration(max_drop=None))
    convert(work)
    assert apart(served(work.directory, net.rows.load_inputs()), net.rows) < LIMITS[precision]


@pytest.mark.slow
def test_the_file_tells_names_and_signature(nets: Any, tmp_path: Path) -> None:
    from ai_edge_litert.interpreter import Interpreter

    from moxserve.serving import backends

    net = nets("heads")
    work = net.work(tmp_path / "v", Target("tflite"))
    built = convert(work)
    interpreter = Interpreter(os.path.join(work.directory, built.file))
    signature = {"inputs": ["image", "place", "vector"], "outputs": ["best", "kind", "size"]}
    assert interpreter.get_signature_list() == {"serving_default": signature}
    inputs = {detail["name"] for detail in interpreter.get_input_details()}
    assert set(built.names.inputs.values()) == inputs
    assert set(built.names.outputs) == set(net.frozen.signature.outputs)
    here, there = backends.load(work.directory).signatures["serving_default"], net.frozen.signature
    for mine, theirs in ((here.inputs, there.inputs), (here.outputs, there.outputs)):
        assert {a: (s.dtype, s.shape) for a, s in mine.items()} == {a: (s.dtype, s.shape) for a, s in theirs.items()}


@pytest.mark.slow
def test_it_serves_beside_the_saved_model(nets: Any, tmp_path: Path) -> None:
    import shutil

    from moxserve.serving import backends
    from moxserve.serving.backends import LoadOptions

    net = nets("residual")
    version = tmp_path / "1"
    shutil.copytree(net.frozen.folder, version)
    convert(net.work(version / "variants" / "tflite", Target("tflite")))
    backend = backends.load(version, LoadOptions(backend="tflite"))
    assert backend.platform == "tflite"
    rows = net.rows.load_inputs()
    got = backend.run("serving_default", rows)["logits"]
    np.testing.assert_allclose(got, net.rows.load_outputs()["logits"], atol=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("per_channel", [True, False])
def test_int8_of_trained_digits(per_channel: bool, digits: Any, served: Any, details: Any, tmp_path: Path) -> None:
    work = digits.work(tmp_path / "v", INT8, settings=Calibration(per_channel=per_channel))
    built = convert(work)
    got = served(work.directory, {"images": digits.images})
    source = work.evaluation.load_outputs()["probabilities"]
    assert digits.accuracy(source) - digits.accuracy(got["probabilities"]) <= 0.005
    kernels = [
        t for t in details(work.directory) if t["dtype"] == np.int8 and len(t["shape"]) == 4 and "conv" in t["name"]
    ]
    scales = {len(t["quantization_parameters"]["scales"]) for t in kernels}
    assert (scales == {1}) is not per_channel
    assert built.details["calibration"] == {"method": "minmax", "rows": 200, "per_channel": per_channel}
    assert built.details["operations"]["CONV_2D"] == 2
    assert built.details["search"]["criterion"] == "accuracy"
    # The probabilities themselves stay in floating point: int8 has no number between 0 and 1/256.
    assert [entry["reason"] for entry in built.details["float"]] == ["an output of probabilities"]
    small = source[source < 1 / 512]
    assert np.count_nonzero(got["probabilities"]) > source.size - small.size


@pytest.mark.slow
def test_operations_are_left_out_by_name(digits: Any, details: Any, tmp_path: Path) -> None:
    work = digits.work(tmp_path / "v", INT8, settings=Calibration(exclude=("conv1/*",)))
    built = convert(work)
    left = [e for e in built.details["float"] if e["reason"] == "excluded by 'conv1/*'"]
    assert "conv1/Conv2D" in [entry["operation"] for entry in left]
    assert "conv1/Conv2D" not in built.details["quantized"]
    assert "conv0/Conv2D" in built.details["quantized"]
    kinds = {t["dtype"] for t in details(work.directory) if len(t["shape"]) == 4 and t["shape"][0] == 32}
    assert np.float32 in kinds
    with pytest.raises(UsageError, match=r"'convl/\*' matches no operation.*did you mean 'conv1"):
        convert(digits.work(tmp_path / "w", INT8, settings=Calibration(exclude=("convl/*",))))


@pytest.mark.slow
def test_what_gives_an_output_is_known_by_its_own_name(digits: Any, details: Any, tmp_path: Path) -> None:
    work = digits.work(tmp_path / "v", INT8, settings=Calibration(exclude=("dense/MatMul",)))
    built = convert(work)
    assert {"operation": "dense/MatMul", "reason": "excluded by 'dense/MatMul'"} in built.details["float"]
    assert built.details["quantized"] == ["conv0/Conv2D", "conv1/Conv2D"]
    assert [t["dtype"] for t in details(work.directory) if list(t["shape"]) == [10, 128]] == [np.float32]


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
    assert len(kept) < built.details["operations"]["FULLY_CONNECTED"]
    assert any("stay in floating point" in note for note in built.notes)
    assert built.details["search"]["steps"][0]["loss"] > 0.05


@pytest.mark.slow
def test_learned_ranges_need_no_rows(nets: Any, served: Any, apart: Any, details: Any, tmp_path: Path) -> None:
    net = nets("learned")
    none = Rows(net.rows.folder)
    work = net.work(tmp_path / "v", INT8, learned=True, calibration=none)
    built = convert(work)
    assert apart(served(work.directory, net.rows.load_inputs()), net.rows) < 0.05
    scales = {round(t["quantization"][0], 6) for t in details(work.directory) if t["dtype"] == np.int8}
    assert {round(6 / 255, 6), round(10 / 255, 6), round(1 / 255, 6)} <= scales
    assert built.details["calibration"] == {"method": "learned"}
    heavy = ["first/Conv2D", "inner/Conv2D", "depthwise/depthwise", "last/Conv2D", "dense/MatMul"]
    assert built.details["quantized"] == heavy
    assert not built.notes
    work = net.work(tmp_path / "w", INT8, learned=True, settings=Calibration(exclude=("inner/*",)))
    built = convert(work)
    # What comes before reads and gives int8 no more, as the excluded one takes its result as it is.
    reasons = {"inner/Conv2D": "excluded by 'inner/*'", "first/Conv2D": "not all that it reads and gives has a range"}
    assert {entry["operation"]: entry["reason"] for entry in built.details["float"]} == reasons
    assert built.details["quantized"] == heavy[2:]
    assert built.notes == ("1 operations stay in float32: first/Conv2D",)
    shapes = [tuple(t["shape"]) for t in details(work.directory) if t["dtype"] == np.float32]
    assert (16, 3, 3, 16) in shapes
    assert apart(served(work.directory, net.rows.load_inputs()), net.rows) < 0.05


@pytest.mark.slow
def test_dynamic_says_when_it_does_nothing(digits: Any, nets: Any, tmp_path: Path) -> None:
    note = "nothing is quantized: TFLite leaves weights of fewer than 1024 elements as they are"
    assert convert(digits.work(tmp_path / "v", Target("tflite", "dynamic"))).notes == ()
    assert convert(nets("heads").work(tmp_path / "w", Target("tflite", "dynamic"))).notes == (note,)


@pytest.mark.slow
def test_what_cannot_be_made(nets: Any, freeze_net: Any, tmp_path: Path) -> None:
    net = nets("learned")
    with pytest.raises(ExportError, match="tflite_fp16 is not made of a graph with learned int8 ranges"):
        convert(net.work(tmp_path / "a", Target("tflite", "float16"), learned=True))
    net = nets("residual")
    with pytest.raises(ExportError, match="tflite_int8 needs real rows"):
        convert(net.work(tmp_path / "b", INT8, calibration=Rows(net.rows.folder)))

    def odd() -> Any:
        from moxserve.tensorflow.executor.env import tf, tf1

        x = tf1.placeholder(tf.float32, [None, 3, 3], "x")
        return {"x": x}, {"y": tf.identity(tf.linalg.det(x) + tf.math.betainc(x, x, x)[:, 0, 0], "y_out")}

    frozen = freeze_net(tmp_path / "odd", odd)
    with pytest.raises(ExportError, match="TFLite has no Betainc, MatrixDeterminant") as caught:
        convert(frozen.work(tmp_path / "c", Target("tflite")))
    assert "ai-edge-litert" in str(caught.value.hint)
    assert os.listdir(tmp_path / "c") == []


@pytest.mark.slow
def test_models_without_weights_and_of_other_types(freeze_net: Any, served: Any, tmp_path: Path) -> None:
    def add() -> Any:
        from moxserve.tensorflow.executor.env import tf, tf1

        x = tf1.placeholder(tf.float32, [None, 2], "x")
        return {"x": x}, {"y": tf.identity(x + 2.0, "y_out"), "two": tf.identity(tf.constant(2.0), "two_out")}

    def wide() -> Any:
        from moxserve.tensorflow.executor.env import tf, tf1

        x = tf1.placeholder(tf.float64, [None, 2], "x")
        return {"x": x}, {"y": tf.identity(tf.matmul(x, tf.constant([[1.0], [2.0]], tf.float64)), "y_out")}

    frozen = freeze_net(tmp_path / "add", add)
    rows = frozen.rows(tmp_path / "rows", {"x": np.float32([[1, 2], [3, 4]])})
    with pytest.raises(ExportError, match="int8: the model has no operations with weights"):
        convert(frozen.work(tmp_path / "a", INT8, rows))
    convert(frozen.work(tmp_path / "b", Target("tflite"), rows))
    from moxserve.serving import backends

    got = backends.load(tmp_path / "b").run("serving_default", rows.load_inputs())
    assert (got["y"].tolist(), got["two"].tolist()) == ([[3, 4], [5, 6]], 2.0)
    with pytest.raises(ExportError, match="TFLite has no MatMul of f64"):
        convert(freeze_net(tmp_path / "wide", wide).work(tmp_path / "c", Target("tflite")))


@pytest.mark.slow
def test_a_signature_of_another_name(nets: Any, tmp_path: Path) -> None:
    from moxserve.export.frozen import FrozenGraph
    from moxserve.serving import backends

    net = nets("twins")
    signature = dataclasses.replace(net.frozen.signature, name="detect")
    FrozenGraph(net.frozen.graph_def, signature).write(str(tmp_path / "model"))
    work = net.work(tmp_path / "v", INT8, settings=Calibration(max_drop=None))
    convert(dataclasses.replace(work, model=str(tmp_path / "model"), signature=signature))
    backend = backends.load(work.directory)
    assert set(backend.signatures) == {"detect"}
    rows = net.rows.load_inputs()
    np.testing.assert_array_equal(backend.run("detect", rows)["same"], rows["x"])


@pytest.mark.slow
def test_a_calibration_that_tflite_lacks_is_told(nets: Any, tmp_path: Path) -> None:
    settings = Calibration(method="entropy", max_drop=None)
    built = convert(nets("twins").work(tmp_path / "v", INT8, settings=settings))
    assert built.notes == ("TFLite's ranges are the extremes: it has no calibration by entropy",)


@pytest.mark.slow
def test_parsing_of_examples_stays_in_the_model(freeze_net: Any, served: Any, tmp_path: Path) -> None:
    from moxserve.protocol.examples import make_example

    def parsing() -> Any:
        from moxserve.tensorflow.executor.env import tf, tf1

        examples = tf1.placeholder(tf.string, [None], "examples")
        x = tf.io.parse_example(examples, {"x": tf.io.FixedLenFeature([2], tf.float32)})["x"]
        return {"examples": examples}, {"y": tf.identity(tf.matmul(x, tf.constant([[1.0], [10.0]])), "y_out")}

    frozen = freeze_net(tmp_path / "parsing", parsing)
    convert(frozen.work(tmp_path / "v", Target("tflite")))
    rows = [make_example({"x": np.float32([i, 1])}).SerializeToString() for i in range(3)]
    got = served(str(tmp_path / "v"), {"examples": np.array(rows, object)})
    assert got["y"].tolist() == [[10.0], [11.0], [12.0]]


@pytest.mark.slow
def test_a_loop_over_a_list_is_refused_in_plain_words(freeze_net: Any, tmp_path: Path) -> None:
    def build() -> Any:
        from moxserve.tensorflow.executor.env import tf, tf1

        x = tf1.placeholder(tf.float32, [None, None, 2], "x")
        ops, shape = tf.raw_ops, tf.constant([-1, 2])
        steps = tf.transpose(x, [1, 0, 2])
        rows = ops.TensorListFromTensor(tensor=steps, element_shape=shape)
        stacked = ops.TensorListConcatV2(
            input_handle=rows, element_dtype=tf.float32, element_shape=shape, leading_dims=tf.zeros([0], tf.int64)
        )
        return {"x": x}, {"y": tf.identity(stacked[0], "y_out")}

    with pytest.raises(ExportError, match="TFLite has no loops over lists"):
        convert(freeze_net(tmp_path / "net", build).work(tmp_path / "v", Target("tflite")))
