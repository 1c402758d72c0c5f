"""Checkpoints of the networks: held against them by name, and made of Keras applications' weights."""

from __future__ import annotations

import json
import tarfile
import zipfile
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
from tensorflow.core.protobuf.saver_pb2 import SaverDef

from moxserve.errors import CheckpointError, DataError, UsageError
from moxserve.tensorflow.executor.checkpoint import load_checkpoint
from moxserve.tensorflow.executor.env import tf, tf1
from moxserve.tensorflow.nets.catalog import NETWORKS
from moxserve.tensorflow.nets.checkpoints import Converted, convert, match
from moxserve.tensorflow.nets.checkpoints.fit import network_variables
from moxserve.tensorflow.nets.checkpoints.keras_files import open_weights
from moxserve.tensorflow.nets.checkpoints.keras_names import FAMILIES
from moxserve.tensorflow.nets.factory import get_model_fn, network_options
from moxserve.tensorflow.nets.summary import facts, summarize
from moxserve.tensorflow.preprocessing.keys import preprocessing_of

SMALL = "mobilenet_v1_025"


def write(path: Path, values: dict[str, Any], *, v1: bool = False) -> str:
    """Write a checkpoint with TensorFlow's own saver."""
    with tf.Graph().as_default(), tf1.Session() as session:
        for name, value in values.items():
            tf1.get_variable(name, initializer=np.asarray(value))
        session.run(tf1.global_variables_initializer())
        saver = tf1.train.Saver(write_version=SaverDef.V1 if v1 else SaverDef.V2)
        saver.save(session, str(path), write_meta_graph=False, write_state=False)
    return str(path)


def values_of(name: str, num_classes: int, **options: Any) -> dict[str, np.ndarray]:
    """Some value for each variable of a network."""
    random = np.random.default_rng(1)
    variables = network_variables(name, num_classes, **options)
    return {v.op.name: random.uniform(0.5, 1, v.shape.as_list()).astype(np.float32) for v in variables}


# -- a network held against a checkpoint


@pytest.fixture(scope="module")
def published(tmp_path_factory: pytest.TempPathFactory) -> str:
    """What TF-Slim would publish of the smallest MobileNet: 1,001 classes, moving averages, slots, a step."""
    values = values_of(SMALL, 1001)
    averages = {f"{name}/ExponentialMovingAverage": value + 1 for name, value in values.items() if "moving" not in name}
    slots = {f"{name}/RMSProp": value for name, value in values.items() if name.endswith("weights")}
    folder = tmp_path_factory.mktemp("published")
    return write(folder / "mobilenet.ckpt", {**values, **averages, **slots, "global_step": np.int64(7)}, v1=True)


@pytest.mark.slow
def test_a_published_checkpoint_fits_as_it_is(published: str) -> None:
    report = match(SMALL, published)
    assert (report.fits, report.form) == (True, "V1")
    assert report.summary == "137 of 137 variables, 475,801 of 475,801 parameters"
    assert {name.rpartition("/")[2] for name in report.unused} == {"ExponentialMovingAverage", "RMSProp", "global_step"}
    averaged = match(SMALL, published, moving_averages=True)
    assert len(averaged.averaged) == 83
    assert not any("Average" in name for name in averaged.unused)


@pytest.mark.slow
def test_other_classes_are_left_out_by_the_advice_that_is_given(published: str) -> None:
    report = match(SMALL, published, 6)
    assert [m.name for m in report.misfits] == [f"MobilenetV1/Logits/Conv2d_1c_1x1/{v}" for v in ("weights", "biases")]
    advice = str(report.advice)
    assert "MobilenetV1/Logits/Conv2d_1c_1x1: 1001 classes in the checkpoint, 6 here" in advice
    assert match(SMALL, published, 6, exclude=advice.split("'")[1]).fits
    assert "num_classes=1001" in str(match(SMALL, published, 1000).advice)


@pytest.mark.slow
def test_a_checkpoint_of_another_network_is_reported(published: str) -> None:
    report = match("lenet", published)
    assert (report.restored, len(report.missing), report.misfits) == ({}, 8, ())


def test_unknown_names_are_errors(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="did you mean 'lenet'"):
        match("lennet", tmp_path)
    with pytest.raises(CheckpointError, match="no checkpoint at"):
        match("lenet", tmp_path / "nothing")


# -- conversions of checkpoints


@pytest.mark.slow
def test_averages_become_a_checkpoint_of_the_network_alone(published: str, tmp_path: Path) -> None:
    done = convert(SMALL, published, str(tmp_path / "deep" / "averaged.ckpt"), moving_averages=True)
    assert (done.variables, done.parameters, done.num_classes) == (137, 475801, 1001)
    reader = tf1.train.NewCheckpointReader(done.checkpoint)
    assert len(reader.get_variable_to_shape_map()) == 137
    name = "MobilenetV1/Conv2d_0/weights"
    raw = tf1.train.NewCheckpointReader(published).get_tensor(name)
    np.testing.assert_array_equal(reader.get_tensor(name), raw + 1)
    assert match(SMALL, done.checkpoint).unused == ()


@pytest.mark.slow
def test_a_checkpoint_of_other_classes_keeps_them(tmp_path: Path) -> None:
    source = write(tmp_path / "six.ckpt", {**values_of("lenet", 6), "global_step": np.int64(3)})
    done = convert("lenet", source, str(tmp_path / "out"))
    assert (done.num_classes, done.unused) == (6, ("global_step",))
    with pytest.raises(CheckpointError, match="does not fit the model"):
        convert("cifarnet", source, str(tmp_path / "no"))
    assert not list(tmp_path.glob("no*"))


def test_what_is_no_checkpoint_to_convert_is_told_for_what_it_is(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "w.h5").write_bytes(b"")
    with tarfile.open(tmp_path / "lenet.tar.gz", "w:gz") as archive:
        archive.add(tmp_path / "w.h5", "lenet.ckpt")
    with pytest.raises(CheckpointError, match=r"archive of one file.*\n.*unpack it"):
        convert("lenet", tmp_path / "lenet.tar.gz", str(tmp_path / "out"))
    with pytest.raises(CheckpointError, match=r"no checkpoint at .*empty"):
        convert("lenet", tmp_path / "empty", str(tmp_path / "out"))
    with pytest.raises(UsageError, match="only those hold moving averages"):
        convert(SMALL, tmp_path / "w.h5", str(tmp_path / "out"), moving_averages=True)


# -- conversions of Keras applications


def randomize(model: Any) -> None:
    """Give a model of Keras weights that keep its signals of one size, and statistics unlike the initial ones."""
    random = np.random.default_rng(0)
    for layer in model.layers:
        weights = layer.get_weights()
        if "BatchNormalization" in type(layer).__name__:
            ends = {0, len(weights) - 1} if len(weights) == 4 else {len(weights) - 1}
            draw = [random.uniform(0.5, 1.5, w.shape) if i in ends else random.normal(0, 0.2, w.shape)
                    for i, w in enumerate(weights)]  # fmt: skip
        else:
            draw = [random.normal(0, np.sqrt(1.5 / np.prod(w.shape[:-1] if w.shape[-1] > 1 else w.shape[:2])), w.shape)
                    if w.ndim > 1 else random.normal(0, 0.1, w.shape) for w in weights]  # fmt: skip
        if weights:
            layer.set_weights(draw)


def image(model: Any) -> np.ndarray:
    return np.random.RandomState(7).uniform(-1, 1, (1, *model.input_shape[1:])).astype(np.float32)


def ours(done: Converted, images: np.ndarray) -> np.ndarray:
    """What the network answers with the converted checkpoint."""
    with tf.Graph().as_default(), tf1.Session() as session:
        network_fn = get_model_fn(done.network, "EVAL", done.num_classes, preprocess_fn=None, **done.options)
        logits, _ = network_fn(tf.constant(images))
        assert load_checkpoint(session, done.checkpoint).fits
        answer: np.ndarray = session.run(logits)
        return answer


def check(network: str, model: Any, path: Path) -> Converted:
    """Convert a model's weights, and hold our logits against its own."""
    randomize(model)
    images = image(model)
    expected = np.asarray(model(images, training=False))
    model.save_weights(str(path))
    done = convert(network, path, str(path.with_name("converted.ckpt")))
    np.testing.assert_allclose(ours(done, images), expected, atol=1e-4 * expected.std(), rtol=0)
    return done


def application(package: str, name: str, **arguments: Any) -> Any:
    """A model of tf_keras or keras without weights."""
    keras = pytest.importorskip(package)
    return getattr(keras.applications, name)(weights=None, classifier_activation=None, **arguments)


@pytest.mark.slow
def test_every_kind_of_file_holds_the_same(tmp_path: Path, eager: None) -> None:
    for package, saves in (
        ("tf_keras", {"a.h5": {"save_format": "h5"}, "b.h5": None, "c.keras": None}),
        ("keras", {"d.weights.h5": {}, "e.keras": None, "f.h5": None}),
    ):
        model = application(package, "MobileNet", alpha=0.25, classes=5, input_shape=(32, 32, 3))
        randomize(model)
        for name, options in saves.items():
            path = str(tmp_path / name)
            model.save(path) if options is None else model.save_weights(path, **options)
            with open_weights(path) as weights:
                assert len(weights.names) == 55
                for layer in model.layers:
                    if layer.weights:
                        for read, held in zip(weights.read(layer.name), layer.get_weights(), strict=True):
                            np.testing.assert_array_equal(read, held)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("network", "name", "arguments"),
    [
        (SMALL, "MobileNet", {"alpha": 0.25, "input_shape": (64, 64, 3)}),
        ("mobilenet_v2_035", "MobileNetV2", {"alpha": 0.35, "input_shape": (96, 96, 3)}),
        ("resnet_v1_50", "ResNet50", {"input_shape": (64, 96, 3)}),
        ("resnet_v2_50", "ResNet50V2", {"input_shape": (65, 64, 3)}),
        ("inception_v3", "InceptionV3", {"input_shape": (139, 139, 3)}),
    ],
)
def test_logits_are_those_of_keras(
    network: str, name: str, arguments: dict[str, Any], tmp_path: Path, eager: None
) -> None:
    done = check(network, application("tf_keras", name, classes=7, **arguments), tmp_path / "w.h5")
    assert (done.num_classes, done.left_out, done.unused) == (7, (), ())


@pytest.mark.slow
def test_without_the_top_the_logits_are_left_out(tmp_path: Path, eager: None) -> None:
    keras = pytest.importorskip("tf_keras")
    model = keras.applications.MobileNetV2(alpha=0.35, include_top=False, input_shape=(96, 96, 3), weights=None)
    model.save_weights(str(tmp_path / "w.h5"))
    done = convert("mobilenet_v2_035", tmp_path / "w.h5", str(tmp_path / "c"))
    assert done.num_classes is None
    assert done.left_out == tuple(f"MobilenetV2/Logits/Conv2d_1c_1x1/{v}" for v in ("weights", "biases"))
    assert not match("mobilenet_v2_035", done.checkpoint).fits
    assert match("mobilenet_v2_035", done.checkpoint, 6, exclude="MobilenetV2/Logits").fits


@pytest.mark.slow
def test_a_base_inside_another_model_is_found(tmp_path: Path, eager: None) -> None:
    keras = pytest.importorskip("tf_keras")
    base = keras.applications.MobileNet(alpha=0.25, include_top=False, input_shape=(64, 64, 3), weights=None)
    model = keras.Sequential([base, keras.layers.GlobalAveragePooling2D(), keras.layers.Dense(3, name="mine")])
    model.save(str(tmp_path / "m.keras"))
    with open_weights(str(tmp_path / "m.keras")) as weights:
        assert {"conv1", "conv_pw_13_bn", "mine"} < set(weights.names)
    model.save(str(tmp_path / "m.h5"))
    done = convert(SMALL, tmp_path / "m.h5", str(tmp_path / "c"))
    assert (done.variables, done.unused) == (135, ("mine",))


@pytest.mark.slow
def test_a_model_of_other_width_is_refused_with_the_shapes(tmp_path: Path, eager: None) -> None:
    model = application("tf_keras", "MobileNet", alpha=0.5, input_shape=(64, 64, 3))
    model.save_weights(str(tmp_path / "w.h5"))
    with pytest.raises(DataError, match=r"conv1: expected arrays of \[3, 3, 3, 8\], found \[3, 3, 3, 16\]"):
        convert(SMALL, tmp_path / "w.h5", str(tmp_path / "c"))
    with pytest.raises(DataError, match="no layers Conv1"):
        convert("mobilenet_v2", tmp_path / "w.h5", str(tmp_path / "c"))
    with pytest.raises(DataError, match="expected 94 layers called conv2d_N, found 0"):
        convert("inception_v3", tmp_path / "w.h5", str(tmp_path / "c"))
    assert not list(tmp_path.glob("c*"))


@pytest.mark.slow
@pytest.mark.parametrize("network", ["nasnet_mobile", "vgg_16"])
def test_every_layer_of_keras_is_one_of_ours(network: str, eager: None) -> None:
    """Of networks whose numbers are too dear to test here, or differ: Keras' NASNet pools zeros at its borders."""
    keras = pytest.importorskip("keras")
    family = next(f for f in FAMILIES if network in f.networks)
    model = getattr(keras.applications, family.networks[network])(weights=None)
    names = [layer.name for layer in model.layers if layer.weights]
    scopes = {name.rpartition("/")[0].removeprefix(f"{network}/"): None for name in (
        v.op.name for v in network_variables(network))}  # fmt: skip
    assert sorted(family.layers(scopes, names).values()) == sorted(names)
    assert len(scopes) == len(names)


def test_networks_that_keras_lacks_are_refused(tmp_path: Path) -> None:
    (tmp_path / "w.h5").write_bytes(b"")
    with pytest.raises(UsageError, match=r"no network that is the same as alexnet_v2"):
        convert("alexnet_v2", tmp_path / "w.h5", str(tmp_path / "c"))


def test_files_that_are_none_of_keras_are_refused(tmp_path: Path) -> None:
    (tmp_path / "cut.h5").write_bytes(b"\x89HDF\r\n\x1a\n" + b"0" * 40)
    with zipfile.ZipFile(tmp_path / "other.keras", "w") as archive:
        archive.writestr("readme", "x")
    with h5py.File(tmp_path / "empty.h5", "w") as file:
        file["x"] = np.zeros(3)
    with h5py.File(tmp_path / "nameless.weights.h5", "w") as file:
        file["layers/conv2d/vars/0"] = np.zeros([3, 3])
    for name, said in (
        ("cut.h5", "cannot be read as a file of Keras"),
        ("other.keras", "an archive without model.weights.h5"),
        ("empty.h5", "holds no weights of layers"),
        ("nameless.weights.h5", "does not name its layers"),
    ):
        with pytest.raises(DataError, match=said):
            convert(SMALL, tmp_path / name, str(tmp_path / "c"))
    with pytest.raises(UsageError, match="there is no file"):
        convert(SMALL, tmp_path / "nothing.h5", str(tmp_path / "c"))


def test_weights_of_an_archive_without_names_take_those_of_its_configuration(tmp_path: Path) -> None:
    """As tf_keras writes them; the numbers of kinds are those of the model's layers in their order."""
    layers = [("Conv2D", "a"), ("DepthwiseConv2D", "b"), ("Conv2D", "c"), ("BatchNormalization", "d")]
    config = {"config": {"layers": [{"class_name": kind, "config": {"name": name}} for kind, name in layers]}}
    with h5py.File(tmp_path / "model.weights.h5", "w") as file:
        for index, place in enumerate(("conv2d", "depthwise_conv2d", "conv2d_1", "batch_normalization")):
            file[f"layers/{place}/vars/0"] = np.full(2, index)
    with zipfile.ZipFile(tmp_path / "m.keras", "w") as archive:
        archive.write(tmp_path / "model.weights.h5", "model.weights.h5")
        archive.writestr("config.json", json.dumps(config))
    with open_weights(str(tmp_path / "m.keras")) as weights:
        assert {name: weights.read(name)[0][0] for name in weights.names} == {"a": 0, "b": 1, "c": 2, "d": 3}


# -- the table of the command line


def test_the_table_is_the_catalogs(repo_root: Path) -> None:
    table = json.loads((repo_root / "moxserve" / "tensorflow" / "nets" / "figures.json").read_text(encoding="utf-8"))
    assert list(table) == list(NETWORKS)
    for name, row in NETWORKS.items():
        told = {key: table[name][key] for key in ("num_classes", "labels_offset", "scope", "logits_pattern", "paper")}
        assert told == {key: getattr(row, key) for key in told}
        assert table[name]["options"].keys() == network_options(name).keys(), "write_figures() brings it up to date"
        assert table[name]["preprocessing"] == preprocessing_of(name)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["lenet", "mobilenet_v1_025", "resnet_v1_20", "vgg_16"])
def test_the_table_is_what_building_gives(name: str, repo_root: Path) -> None:
    table = json.loads((repo_root / "moxserve" / "tensorflow" / "nets" / "figures.json").read_text(encoding="utf-8"))
    assert table[name] == json.loads(json.dumps(facts(summarize(name))))
