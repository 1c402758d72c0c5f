"""The plugin of networks, starting from a checkpoint of other classes, and choosing classes of a folder."""

from __future__ import annotations

from pathlib import Path
from typing import Any, get_args

import numpy as np
import pytest
from moxserve_plugins.image_folder.config import ImageFolder
from moxserve_plugins.network.config import Network, NetworkName
from moxserve_plugins.retrain.config import Retrain
from moxserve_plugins.run.config import Train
from pydantic import ValidationError

from moxserve.errors import DataError
from moxserve.pipeline.slots import InputBundle, ParameterError, RunJob


def _bundle(labels: tuple[str, ...] | None = ("a", "b", "c")) -> InputBundle:
    return InputBundle(lambda mode: None, ("image", "label"), 4, labels=labels)


def _spec(plugin: Network, mode: str, side: int = 32) -> tuple[Any, list[str]]:
    import tensorflow as tf

    v1 = tf.compat.v1
    with tf.Graph().as_default():
        images = v1.placeholder(tf.uint8, [None, side, side, 3])
        spec = plugin.build(_bundle())([images, v1.placeholder(tf.int64, [None])], mode)
        return spec, [v.op.name for v in v1.global_variables()]


def test_names_are_those_of_the_zoo():
    from moxserve.tensorflow.nets.catalog import NETWORKS

    assert set(get_args(NetworkName)) == set(NETWORKS)


@pytest.mark.parametrize("mode", ["TRAIN", "EVAL", "PREDICT", "EXPORT"])
def test_a_network_takes_raw_pixels_in_every_mode(mode: str):
    spec, names = _spec(Network(name="cifarnet", weight_decay=0.001), mode)
    assert spec.export_spec.inputs_dict["images"].dtype.name == "uint8"
    assert spec.output_info["logits"].shape.as_list() == [None, 3]
    assert names[0] == "CifarNet/conv1/weights"
    assert spec.export_spec.labels == ["a", "b", "c"]


def test_weight_decay_adds_to_the_loss():
    import tensorflow as tf

    v1 = tf.compat.v1
    losses = {}
    for weight_decay in (0.0, 0.1):
        with tf.Graph().as_default(), v1.Session() as session:
            v1.set_random_seed(1)
            plugin = Network(name="lenet", weight_decay=weight_decay)
            images = tf.zeros([2, 28, 28, 1], tf.uint8)
            spec = plugin.build(_bundle())([images, tf.constant([0, 1])], "EVAL")
            session.run(v1.global_variables_initializer())
            penalty = weight_decay * sum(session.run([tf.nn.l2_loss(v) for v in v1.trainable_variables()]))
            losses[weight_decay] = session.run(spec.loss) - penalty
    assert losses[0.1] == pytest.approx(losses[0.0], rel=1e-4)


def test_labels_of_a_background_are_taken_off():
    import tensorflow as tf

    v1 = tf.compat.v1
    with tf.Graph().as_default(), v1.Session() as session:
        plugin = Network(name="lenet", labels_offset=1)
        spec = plugin.build(_bundle(("background", "a", "b")))([tf.zeros([2, 28, 28, 1], tf.uint8), [1, 2]], "EVAL")
        session.run(v1.global_variables_initializer())
        assert session.run(spec.output_info["labels"]).tolist() == [0, 1]
        assert spec.output_info["logits"].shape.as_list() == [2, 2]
        assert spec.export_spec.labels == ["a", "b"]
    with pytest.raises(ParameterError, match="leaves none of 3 labels"):
        Network(name="lenet", labels_offset=2).build(_bundle())


def test_parameters_that_do_not_go_with_the_network():
    with pytest.raises(ParameterError, match="model: lenet: no option 'dropout_keep'; did you mean"):
        Network(name="lenet", options={"dropout_keep": 0.5}).build(_bundle())
    with pytest.raises(ParameterError, match="lenet: no option 'batch_norm_decay'"):
        Network(name="lenet", batch_norm_decay=0.5).build(_bundle())
    with pytest.raises(ValidationError, match="mobilenet_v2"):
        Network(name="mobilenet")


def test_patterns_are_regular_expressions_without_commas():
    for wrong, message in (("a,b", "without commas"), ("(", "is no regular expression"), (" ", "without commas")):
        with pytest.raises(ValidationError, match=message):
            Train(log_dir="x", max_number_of_steps=1, trainable_include_patterns=[wrong])


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Four classes of four small real tiles each."""
    pytest.importorskip("skimage")
    from skimage import data

    from moxserve.data.textures import jpeg_bytes

    for label in ("brick", "grass", "gravel", "coins"):
        (tmp_path / "images" / label).mkdir(parents=True)
        picture = np.repeat(getattr(data, label)()[:, :, None], 3, axis=2)
        for tile in range(4):
            (tmp_path / "images" / label / f"{tile}.jpg").write_bytes(
                jpeg_bytes(picture[40 * tile : 40 * tile + 32, :32])
            )
    return tmp_path / "images"


def test_some_classes_of_a_folder_in_an_order_of_ones_own(folder: Path):
    bundle = ImageFolder(train_dir=str(folder), batch_size=2, classes=["gravel", "brick"]).build()
    assert (bundle.labels, dict(bundle.num_samples)) == (("gravel", "brick"), {"TRAIN": 8})
    for classes, message in ((["gravel", "bricks"], "did you mean 'brick'"), (["brick", "brick"], "twice")):
        with pytest.raises(DataError, match=message):
            ImageFolder(train_dir=str(folder), batch_size=2, classes=classes).build()


@pytest.mark.slow
def test_another_last_layer_on_a_network_that_learned_other_classes(folder: Path, tmp_path: Path):
    """What the transfer pipeline does: all but the last layer from a checkpoint, and only that one trained."""
    import moxserve.tensorflow as mox
    from moxserve.tensorflow.executor.env import tf1

    def train(name: str, classes: list[str], **options: Any) -> Any:
        data = ImageFolder(train_dir=str(folder), batch_size=4, classes=classes, seed=1).build()
        model_fn = Network(name="resnet_v1_20", batch_norm_decay=0.9).build(data)
        sgd = mox.get_optimizer_fn("sgd", learning_rate=0.1)
        config = Train(log_dir=str(tmp_path / name), max_number_of_steps=2, seed=1, **options)
        report = config.run(RunJob(data, model_fn, sgd, config.log_dir))
        reader = tf1.train.NewCheckpointReader(report.checkpoint)
        return {key: reader.get_tensor(key) for key in reader.get_variable_to_shape_map()}

    before = train("first", ["brick", "grass"])
    after = train(
        "second",
        ["gravel", "coins", "brick"],
        checkpoint_path=str(tmp_path / "first"),
        checkpoint_exclude_patterns=["global_step", "logits"],
        trainable_include_patterns=["logits"],
    )
    assert (before["global_step"], after["global_step"]) == (2, 2)
    assert after["resnet_v1_20/logits/weights"].shape == (1, 1, 64, 3)
    weights = [key for key in before if key.endswith(("weights", "gamma", "beta")) and "logits" not in key]
    assert len(weights) == 21 + 2 * 21
    assert all((before[key] == after[key]).all() for key in weights)
    assert mox.get_flag("trainable_include_patterns") == mox.get_flag("checkpoint_exclude_patterns") == ""


@pytest.mark.slow
def test_a_last_layer_is_retrained_and_a_warm_start_is_taken_from_a_pipelines_keys(folder: Path, tmp_path: Path):
    """The plugin `retrain`, and `warm_start` and `deterministic` of `train`."""
    import moxserve.tensorflow as mox
    from moxserve.tensorflow.executor.env import tf1

    sgd = mox.get_optimizer_fn("sgd", learning_rate=0.01)

    def job(classes: list[str], log_dir: str) -> RunJob:
        data = ImageFolder(train_dir=str(folder), eval_dir=str(folder), batch_size=4, classes=classes, seed=1).build()
        return RunJob(data, Network(name="lenet").build(data), sgd, log_dir)

    def values(prefix: str | None) -> dict[str, np.ndarray]:
        reader = tf1.train.NewCheckpointReader(prefix)
        return {key: reader.get_tensor(key) for key in reader.get_variable_to_shape_map()}

    first = Train(log_dir=str(tmp_path / "first"), max_number_of_steps=2, seed=1, deterministic=True)
    before = values(first.run(job(["brick", "grass"], first.log_dir)).checkpoint)
    again = Retrain(log_dir=str(tmp_path / "again"), checkpoint_path=first.log_dir, max_number_of_steps=3, seed=1)
    report = again.run(job(["gravel", "coins", "brick"], again.log_dir))
    after = values(report.checkpoint)
    assert (report.rows, set(report.metrics)) == (12, {"loss", "accuracy"})
    assert after["LeNet/fc4/weights"].shape == (1024, 3)
    np.testing.assert_array_equal(after["LeNet/fc3/weights"], before["LeNet/fc3/weights"])
    assert len(list((tmp_path / "again/bottlenecks").glob("*/*.npz"))) == 1
    assert "the last layer" in again.describe()
    warm = Train(
        log_dir=str(tmp_path / "warm"), max_number_of_steps=1,
        warm_start={"checkpoint": first.log_dir, "exclude": ["fc4"], "renamed": {"LeNet/conv1/": "LeNet/conv1/"}},
        trainable_include_patterns=["fc4"],
    )  # fmt: skip
    started = values(warm.run(job(["gravel", "coins", "brick"], warm.log_dir)).checkpoint)
    assert started["global_step"] == 1
    np.testing.assert_array_equal(started["LeNet/conv1/weights"], before["LeNet/conv1/weights"])
    assert mox.get_flag("deterministic") is False
    with pytest.raises(ValidationError, match="not both"):
        Train(log_dir="a", max_number_of_steps=1, warm_start={"checkpoint": "b"}, checkpoint_path="b")
