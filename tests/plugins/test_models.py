"""The model plugins: slim's variables, one graph in every mode, what is exported, parameters that do not fit."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from moxserve_plugins.function.config import Function
from moxserve_plugins.lenet.config import LeNet
from moxserve_plugins.mnist_softmax.config import MnistSoftmax
from moxserve_plugins.resnet_v1_20.config import ResNetV120

from moxserve.pipeline.slots import InputBundle, ParameterError


def _bundle(labels: tuple[str, ...] | None = tuple("0123456789")) -> InputBundle:
    return InputBundle(lambda mode: None, ("image", "label"), 8, labels=labels)


def _graph(model_fn: Any, mode: str, image: np.ndarray | None = None, classes: int = 10) -> tuple[Any, dict[str, Any]]:
    """Build the model in a graph of its own and return its variables' shapes and the values of its outputs."""
    import tensorflow as tf

    v1 = tf.compat.v1
    image = np.zeros((8, 28, 28, 1), np.uint8) if image is None else image
    with tf.Graph().as_default(), v1.Session() as session:
        v1.set_random_seed(1)
        images = v1.placeholder(image.dtype, [None, *image.shape[1:]])
        labels = v1.placeholder(tf.int64, [None])
        spec = model_fn([images, labels], mode)
        session.run(v1.global_variables_initializer())
        fetches = {**spec.output_info, "loss": spec.loss, "accuracy": spec.log_info["accuracy"]}
        values = session.run(fetches, {images: image, labels: np.arange(len(image)) % classes})
        variables = {v.op.name: v.shape.as_list() for v in v1.global_variables()}
        model_variables = {v.op.name for v in v1.get_collection(v1.GraphKeys.MODEL_VARIABLES)}
        values["model_variables"] = model_variables
        values["spec"] = spec
    return variables, values


@pytest.mark.parametrize("mode", ["TRAIN", "EVAL", "PREDICT", "EXPORT"])
def test_lenet_has_slims_variables_in_every_mode(mode: str, shared_dir: Path):
    expected = json.loads((shared_dir / "reference" / "zoo" / "variables" / "lenet.json").read_text())
    variables, values = _graph(LeNet().build(_bundle()), mode)
    assert variables == {name: shape for name, shape, _ in expected["variables"]}
    assert sum(int(np.prod(shape)) for shape in variables.values()) == expected["total_params"] == 3274634
    assert values["model_variables"] == set(variables)


@pytest.mark.slow
@pytest.mark.parametrize("mode", ["TRAIN", "EXPORT"])
def test_resnet_has_the_papers_size_and_slims_names(mode: str):
    variables, values = _graph(ResNetV120().build(_bundle()), mode, np.zeros((2, 32, 32, 3), np.uint8))
    assert len(variables) == 107
    trained = {name: shape for name, shape in variables.items() if "moving_" not in name}
    assert sum(int(np.prod(shape)) for shape in trained.values()) == 272474
    unit = "resnet_v1_20/block2/unit_1/lite_bottleneck_v1"
    assert variables[f"{unit}/shortcut/weights"] == [1, 1, 16, 32]
    assert variables[f"{unit}/conv2/BatchNorm/moving_variance"] == [32]
    assert variables["resnet_v1_20/logits/weights"] == [1, 1, 64, 10]
    assert values["model_variables"] == set(variables)


@pytest.mark.slow
def test_resnet_keeps_the_statistics_of_its_batches_in_training_only():
    import tensorflow as tf

    v1 = tf.compat.v1
    images = np.random.default_rng(0).integers(0, 256, (8, 12, 12, 1), np.uint8)
    name = "resnet_v1_20/conv1/BatchNorm/moving_mean:0"
    for mode, count in (("TRAIN", 2 * 21), ("EVAL", 0)):
        with tf.Graph().as_default() as graph, v1.Session() as session:
            spec = ResNetV120(batch_norm_decay=0.75).build(_bundle())([tf.constant(images), tf.range(8)], mode)
            updates = v1.get_collection(v1.GraphKeys.UPDATE_OPS)
            assert len(updates) == count
            session.run(v1.global_variables_initializer())
            session.run([spec.loss, *updates])
            [convolution] = [op for op in graph.get_operations() if op.name == "resnet_v1_20/conv1/Conv2D"]
            [mean] = [v for v in v1.global_variables() if v.name == name]
            expected = session.run(tf.reduce_mean(convolution.outputs[0], [0, 1, 2])) / 4
            assert session.run(mean) == pytest.approx(expected if count else 0, rel=1e-4)


@pytest.mark.parametrize(
    "plugin", [LeNet(), MnistSoftmax(), ResNetV120(weight_decay=0)], ids=["lenet", "mnist_softmax", "resnet_v1_20"]
)
def test_outputs_and_export_spec(plugin: Any):
    images = np.random.default_rng(0).integers(0, 256, (8, 28, 28, 1), np.uint8)
    _, values = _graph(plugin.build(_bundle()), "EVAL", images)
    spec = values["spec"]
    np.testing.assert_allclose(values["probabilities"].sum(axis=1), 1, rtol=1e-5)
    assert (values["classes"] == values["logits"].argmax(axis=1)).all()
    assert values["classes"].dtype == np.int64
    logits = values["logits"]
    expected = np.log(np.exp(logits).sum(axis=1)) - logits[np.arange(8), np.arange(8)]
    assert values["loss"] == pytest.approx(expected.mean(), rel=1e-5)
    assert values["accuracy"] == pytest.approx((values["classes"] == np.arange(8)).mean())
    export = spec.export_spec
    assert (list(export.inputs_dict), export.scores, export.labels) == (["images"], "probabilities", list("0123456789"))
    assert set(export.outputs_dict) == {"logits", "probabilities", "classes"}
    assert export.inputs_dict["images"].dtype.name == "uint8"


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
def test_integers_are_scaled_by_their_range_and_floats_are_taken_as_they_are(dtype: Any):
    scaled = np.random.default_rng(0).random((8, 28, 28, 1)).astype(np.float32)
    integers = np.round(scaled * np.iinfo(dtype).max).astype(dtype)
    model_fn = LeNet().build(_bundle())
    _, from_floats = _graph(model_fn, "EVAL", (integers / np.iinfo(dtype).max).astype(np.float32))
    _, from_integers = _graph(model_fn, "EVAL", integers)
    np.testing.assert_allclose(from_integers["logits"], from_floats["logits"], atol=1e-5)


def test_lenet_drops_units_in_training_only_and_decays_weights():
    images = np.random.default_rng(0).integers(0, 256, (8, 28, 28, 1), np.uint8)
    bundle = _bundle()
    _, evaluated = _graph(LeNet().build(bundle), "EVAL", images)
    _, trained = _graph(LeNet().build(bundle), "TRAIN", images)
    _, kept = _graph(LeNet(dropout_keep_prob=1.0).build(bundle), "TRAIN", images)
    assert np.abs(trained["logits"] - evaluated["logits"]).max() > 1e-3
    np.testing.assert_allclose(kept["logits"], evaluated["logits"], atol=1e-6)
    _, decayed = _graph(LeNet(weight_decay=0.1).build(bundle), "EVAL", images)
    assert decayed["loss"] > evaluated["loss"] + 1


def test_number_of_classes():
    assert _graph(MnistSoftmax().build(_bundle(("a", "b", "c"))), "PREDICT", classes=3)[0]["b"] == [3]
    assert _graph(MnistSoftmax(num_classes=4).build(_bundle(None)), "PREDICT", classes=4)[0]["b"] == [4]
    with pytest.raises(ParameterError) as caught:
        MnistSoftmax(num_classes=5).build(_bundle())
    assert (caught.value.key, caught.value.reason) == (
        "model.num_classes",
        "expected 10, the classes of the input (0, 1, 2, 3, 4, …), got 5",
    )
    with pytest.raises(ParameterError, match="is needed: the input has no labels to count"):
        MnistSoftmax().build(_bundle(None))


def _function(tmp_path: Path, signature: str, **params: Any) -> Function:
    path = tmp_path / "own.py"
    path.write_text(f"def net({signature}):\n    return locals()\nVALUE = 3\n")
    return Function(target=f"{path}:net", params=params)


def test_function_gets_its_parameters(tmp_path: Path):
    model_fn = _function(tmp_path, "inputs, mode, depth=1, **kwargs", depth=5, extra=2).build(_bundle())
    assert model_fn([1], "TRAIN") == {
        "inputs": [1], "mode": "TRAIN", "depth": 5, "kwargs": {"extra": 2},
    }  # fmt: skip


def test_function_parameters_that_do_not_fit(tmp_path: Path, caplog: pytest.LogCaptureFixture):
    with pytest.raises(ParameterError) as caught:
        _function(tmp_path, "inputs, mode, depth=1", dept=5).build(_bundle())
    assert caught.value.key == "model.params.dept"
    assert caught.value.reason.endswith("own.py:net takes no parameter 'dept'; did you mean 'depth'?")
    with pytest.raises(ParameterError, match="takes no parameter 'mode'"):
        _function(tmp_path, "inputs, mode, **kwargs", mode="x").build(_bundle())


def test_a_likely_slip_that_kwargs_would_swallow_is_warned_of(tmp_path: Path, caplog: pytest.LogCaptureFixture):
    _function(tmp_path, "inputs, mode, depth=1, **kwargs", dept=5).build(_bundle())
    assert "model.params.dept goes to **kwargs" in caplog.text
    assert "did you mean 'depth'?" in caplog.text


def test_function_targets_are_checked_without_running_them(tmp_path: Path):
    path = tmp_path / "own.py"
    path.write_text("raise SystemExit('ran')\ndef net(inputs, mode): pass\n")
    assert list(Function(target=f"{path}:net").check()) == []
    [(field, message)] = Function(target=f"{path}:nett").check()
    assert (field, message) == ("target", f"{path} defines no 'nett'; did you mean 'net'?")
    other = tmp_path / "value.py"
    other.write_text("VALUE = 3\n")
    with pytest.raises(ParameterError, match="expected a function, got int"):
        Function(target=f"{other}:VALUE").build(_bundle())
