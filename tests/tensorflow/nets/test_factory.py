"""`get_model_fn` and `get_model_meta`: names, sizes, preprocessing, layouts, options, and what is refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import moxserve.tensorflow as mox
from moxserve.errors import UsageError
from moxserve.tensorflow.executor.env import tf, tf1
from moxserve.tensorflow.nets import factory
from moxserve.tensorflow.nets.catalog import NETWORKS
from moxserve.tensorflow.nets.factory import network_options

SENTENCE = (
    "`image_height` and `image_width` should be given to `mox.get_model_fn` when `run_mode` is "
    "`mox.ModeKeys.EXPORT (When `export_model` is specified in `mox.run`)."
)


def _pixels(shape: tuple[int, ...]) -> np.ndarray:
    return np.random.RandomState(0).randint(0, 256, shape).astype(np.uint8)


def _prepared(name: str, images: Any, mode: str = "PREDICT", side: int | None = None, **options: Any) -> np.ndarray:
    """What a network gets of images."""
    with tf.Graph().as_default(), tf1.Session() as session:
        fn = mox.get_model_fn(name, mode, 3, image_height=side, image_width=side, **options)
        value = fn.preparation(tf.constant(images), source=fn.data_format, target=fn.data_format)
        result: np.ndarray = session.run(value)
        assert list(result.shape[1:]) == value.shape.as_list()[1:]
        return result


def _evaluated(name: str, images: np.ndarray, side: int) -> np.ndarray:
    """What the network's evaluation makes of each image."""
    with tf.Graph().as_default(), tf1.Session() as session:
        fn = mox.get_data_augmentation_fn(name, mox.ModeKeys.EVAL, side, side)
        result: np.ndarray = session.run(tf.stack([fn(tf.constant(image)) for image in images]))
        return result


def test_names_are_the_documents_and_each_has_its_own_row():
    keys = {key: value for key, value in vars(mox.NetworkKeys).items() if not key.startswith("_")}
    assert len(keys) == 44
    assert all(key.lower() == value for key, value in keys.items())
    assert set(keys.values()) == set(NETWORKS)
    assert mox.NetworkKeys is __import__("moxserve.tensorflow.nets", fromlist=["x"]).NetworkKeys


def test_meta_of_the_documents_example():
    meta = mox.get_model_meta("resnet_v1_50")
    assert (meta.default_image_size, meta.default_labels_offset, meta.default_logits_pattern) == (224, 1, "logits")
    size, offset, pattern = mox.get_model_meta("inception_v3")
    assert (size, offset, pattern) == (299, 0, "Logits")


@pytest.mark.parametrize("name", NETWORKS)
def test_meta_fits_the_networks_variables(name: str, shared_dir: Path):
    zoo = shared_dir / "reference" / "zoo"
    path = zoo / "variables" / f"{name}.json"
    reference = json.loads((path if path.exists() else zoo / "nonslim_variables" / f"{name}.json").read_text())
    meta = mox.get_model_meta(name)
    assert meta.default_labels_offset == reference["labels_offset"]
    assert meta.default_image_size == reference.get("default_image_size", reference["image_size"])
    assert NETWORKS[name].num_classes == reference["num_classes"]
    # With the pattern left out of a checkpoint, no variable that depends on the number of classes is left.
    classes = reference["num_classes"]
    last = [var for var, shape, *_ in reference["variables"] if shape[-1] == classes and var.endswith("biases")]
    assert last
    assert [var for var in last if meta.default_logits_pattern not in var and "Aux" not in var] == []


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"name": "resnet_v1_51"}, "no network 'resnet_v1_51'; did you mean 'resnet_v1_50'"),
        ({"name": "resnet50"}, "did you mean 'resnet_v1_50' or 'resnet_v1_50_8k' or 'resnet_v2_50'?"),
        ({"name": "VGG16"}, "did you mean 'vgg_16' or 'vgg_16_bn'?"),
        ({"name": "efficientnet"}, "no network 'efficientnet'; "),
        ({"name": ["lenet"]}, "the name of a network is a string, got list"),
        ({"run_mode": "train"}, "run_mode='train' is no mode; did you mean 'TRAIN'"),
        ({"num_classes": 0}, "lenet: num_classes must be an integer of at least 1, got 0"),
        ({"weight_decay": -1}, "lenet: weight_decay must be a number of at least 0, got -1"),
        ({"weight_decay": float("inf")}, "lenet: weight_decay must be a number of at least 0, got inf"),
        ({"data_format": "nchw"}, "data_format='nchw' is no layout of images; did you mean 'NCHW'"),
        ({"batch_norm_fused": 1}, "lenet: batch_norm_fused must be True or False, got 1"),
        ({"image_height": 28}, "lenet: expected image_height and image_width, got one of them"),
        ({"image_height": 28, "image_width": 2.5}, "lenet: image_width must be an integer of at least 1, got 2.5"),
        ({"preprocess_fn": 3}, "lenet: preprocess_fn must be a function or None, got 3"),
        ({"dropout_keep": 0.5}, "lenet: no option 'dropout_keep'; did you mean 'dropout_keep_prob'?"),
        ({"name": "resnet_v1_50", "units": 3}, "resnet_v1_50: no option 'units'"),
        ({"name": "vgg_16", "batch_norm_decay": 0.9}, "vgg_16: no option 'batch_norm_decay'"),
        ({"name": "resnet_v1_50", "batch_norm_decay": 1}, "batch_norm_decay must be a number from 0 to below 1, got 1"),
        (
            {"name": "resnet_v1_20", "global_pool": "False"},
            "resnet_v1_20: global_pool must be True or False, got 'False'",
        ),
        ({"dropout_keep_prob": "0.5"}, "lenet: dropout_keep_prob must be a number, got '0.5'"),
        ({"prediction_fn": "softmax"}, "lenet: prediction_fn must be a function or None, got 'softmax'"),
        (
            {"name": "nasnet_cifar", "num_cells": 3.5},
            "nasnet_cifar: num_cells must be an integer of at least 0, got 3.5",
        ),
        ({"name": "nasnet_cifar", "num_cell": 3}, "nasnet_cifar: no option 'num_cell'; did you mean 'num_cells'"),
    ],
)
def test_what_makes_no_sense_is_refused_before_anything_is_built(arguments: dict[str, Any], message: str):
    with pytest.raises(ValueError, match=r"(?s).") as caught:
        mox.get_model_fn(**{"name": "lenet", "run_mode": "TRAIN", "num_classes": 3, **arguments})
    assert isinstance(caught.value, UsageError)
    assert message in str(caught.value)


def test_an_export_needs_a_size_and_says_so_in_the_documents_words():
    for sizes in ({}, {"image_height": 224}):
        with pytest.raises(ValueError, match=r"image_height") as caught:
            mox.get_model_fn("resnet_v1_50", mox.ModeKeys.EXPORT, 10, **sizes)
        assert caught.value.message == SENTENCE
        assert caught.value.hint == "mox.get_model_meta('resnet_v1_50').default_image_size is 224"


@pytest.mark.parametrize("name", NETWORKS)
def test_every_network_tells_its_options(name: str):
    options = network_options(name)
    assert options
    fn = mox.get_model_fn(name, "EVAL", 3, **{key: value for key, value in options.items() if value is not None})
    assert not {"scope", "units", "convolutions"} & set(options)
    assert fn.row.name == name


@pytest.mark.parametrize(
    "name", ["resnet_v1_50", "inception_v3", "cifarnet", "pvanet", pytest.param("lenet", id="lenet")]
)
def test_raw_pixels_get_what_the_networks_evaluation_makes_of_them(name: str):
    images = _pixels((3, 47, 40, 1 if name == "lenet" else 3))
    side = {"cifarnet": 32, "lenet": 28}.get(name, 64)
    expected = _evaluated(name, images, side)
    for mode in ("PREDICT", "EXPORT"):
        np.testing.assert_allclose(_prepared(name, images, mode, side), expected, atol=2e-5)
    np.testing.assert_allclose(_prepared(name, images.astype(np.int64), "PREDICT", side), expected, atol=2e-5)


def test_raw_pixels_of_the_right_size_are_only_normalised():
    images = _pixels((2, 32, 32, 3))
    means = np.array([123.68, 116.78, 103.94])
    for mode in mox.ModeKeys.ALL:
        np.testing.assert_allclose(_prepared("resnet_v1_50", images, mode, 32), images - means, atol=1e-4)
        np.testing.assert_allclose(_prepared("inception_v1", images, mode, 32), images / 127.5 - 1, atol=1e-5)
    # TRAIN and EVAL leave the size alone, as documented.
    np.testing.assert_allclose(_prepared("resnet_v1_50", images, "TRAIN", 99), images - means, atol=1e-4)


def test_larger_outputs_than_256_are_cut_out_of_larger_images():
    images = _pixels((1, 300, 400, 3))
    expected = _evaluated_with("vgg_16", images, 288, resize_side_min=330)
    np.testing.assert_allclose(_prepared("vgg_16", images, "PREDICT", 288), expected, atol=2e-4)


def _evaluated_with(name: str, images: np.ndarray, side: int, **options: Any) -> np.ndarray:
    with tf.Graph().as_default(), tf1.Session() as session:
        fn = mox.get_data_augmentation_fn(name, mox.ModeKeys.EVAL, side, side, **options)
        result: np.ndarray = session.run(tf.stack([fn(tf.constant(image)) for image in images]))
        return result


@pytest.mark.parametrize("dtype", ["float16", "float32", "float64", "bfloat16"])
def test_floats_are_taken_as_preprocessed(dtype: str):
    images = _pixels((2, 8, 8, 3)).astype(tf.as_dtype(dtype).as_numpy_dtype)
    for mode in mox.ModeKeys.ALL:
        prepared = _prepared("resnet_v1_50", images, mode, 8)
        assert prepared.dtype == images.dtype
        assert (prepared == images).all()
    resized = _prepared("resnet_v1_50", np.ones((1, 8, 8, 3), np.float32), "EXPORT", 12)
    assert (resized == np.ones((1, 12, 12, 3))).all()


def test_a_users_preprocessing_replaces_ours_and_none_leaves_it_away():
    images = _pixels((2, 8, 8, 3))
    assert (_prepared("resnet_v1_50", images, "TRAIN", preprocess_fn=None) == images).all()
    scaled = _prepared("resnet_v1_50", images, "TRAIN", preprocess_fn=lambda images: images / 255)
    np.testing.assert_allclose(scaled, images / 255, rtol=1e-6)
    seen = []

    def with_mode(images: Any, run_mode: str, *args: Any) -> Any:
        seen.append(run_mode)
        return tf.cast(images, tf.float32)

    def with_option(images: Any, factor: float = 2.0) -> Any:
        return tf.cast(images, tf.float32) * factor

    _prepared("resnet_v1_50", images, "EVAL", preprocess_fn=with_mode)
    assert seen == ["EVAL"]
    doubled = _prepared("resnet_v1_50", images, "EVAL", preprocess_fn=with_option)
    np.testing.assert_allclose(doubled, 2.0 * images)


def test_a_users_preprocessing_sees_the_size_asked_for_and_the_dtype_given():
    def check(images: Any) -> Any:
        assert (images.shape.as_list(), images.dtype) == ([1, 16, 16, 3], tf.uint8)
        return images

    prepared = _prepared("resnet_v1_50", np.full((1, 8, 8, 3), 7, np.uint8), "EXPORT", 16, preprocess_fn=check)
    assert (prepared == 7).all()


@pytest.mark.parametrize("transposes", [False, True])
def test_nchw_is_made_once_by_us_or_by_the_users_function(transposes: bool):
    images = _pixels((2, 8, 9, 3)).astype(np.float32)

    def transposed(images: Any) -> Any:
        return tf.transpose(images, [0, 3, 1, 2])

    function = transposed if transposes else None
    prepared = _prepared("resnet_v1_50", images, "TRAIN", data_format="NCHW", preprocess_fn=function)
    assert (prepared == images.transpose(0, 3, 1, 2)).all()


def test_exports_of_nchw_are_built_as_nhwc_with_the_same_variables():
    shapes = {}
    for mode in ("TRAIN", "EXPORT"):
        with tf.Graph().as_default():
            images = tf1.placeholder(tf.uint8, [None, 32, 32, 3])
            fn = mox.get_model_fn("resnet_v1_20", mode, 4, 0.0, "NCHW", image_height=32, image_width=32)
            logits, end_points = fn(images)
            assert logits.shape.as_list() == [None, 4]
            shapes[mode] = end_points["resnet_v1_20/conv1"].shape.as_list()
            shapes[f"variables of {mode}"] = [(v.op.name, v.shape.as_list()) for v in tf1.global_variables()]
    assert shapes["TRAIN"] == [None, 16, 32, 32]
    assert shapes["EXPORT"] == [None, 32, 32, 16]
    assert shapes["variables of TRAIN"] == shapes["variables of EXPORT"]


def test_nchw_is_refused_where_nothing_could_run_it(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(factory, "onednn_enabled", lambda: False)
    monkeypatch.setattr(tf.config, "list_physical_devices", lambda kind: [])
    with pytest.raises(UsageError, match="NCHW' needs a GPU, or a CPU with TensorFlow's oneDNN kernels"):
        mox.get_model_fn("lenet", "TRAIN", 10, data_format="NCHW")
    mox.get_model_fn("lenet", "EXPORT", 10, data_format="NCHW", image_height=28, image_width=28)
    monkeypatch.setattr(tf.config, "list_physical_devices", lambda kind: ["a GPU"])
    mox.get_model_fn("lenet", "TRAIN", 10, data_format="NCHW")
    mox.set_flag("clone_on_cpu", True)
    with pytest.raises(UsageError, match="neither is there"):
        mox.get_model_fn("lenet", "TRAIN", 10, data_format="NCHW")


def test_half_precision_in_nchw_is_slow_on_a_cpu(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture):
    monkeypatch.setattr(factory, "onednn_enabled", lambda: True)
    monkeypatch.setattr(tf.config, "list_physical_devices", lambda kind: [])
    for dtype in (tf.bfloat16, tf.float16):
        with tf.Graph().as_default():
            mox.get_model_fn("lenet", "EVAL", 10, data_format="NCHW")(tf1.placeholder(dtype, [None, 28, 28, 1]))
    (record,) = caplog.records
    assert record.getMessage().startswith("lenet: CPUs convolve float16 in NCHW hundreds of times slower")


@pytest.mark.parametrize(
    ("shape", "message"),
    [
        ([28, 28, 1], r"expected images \[batch, height, width, channels\], got a tensor of shape \(28, 28, 1\)"),
        (None, "got a tensor of shape <unknown>"),
        ([None, None, None, 1], r"the size of the images must be known while the graph is built"),
        ([None, 3, 28, 28], r"got \[batch, channels, height, width\]: \(None, 3, 28, 28\)"),
    ],
)
def test_images_that_are_none(shape: Any, message: str):
    with tf.Graph().as_default(), pytest.raises(UsageError, match=message):
        mox.get_model_fn("lenet", "TRAIN", 10)(tf1.placeholder(tf.float32, shape))


def test_unknown_sizes_are_those_of_image_height_and_image_width():
    for mode in mox.ModeKeys.ALL:
        with tf.Graph().as_default():
            fn = mox.get_model_fn("lenet", mode, 10, image_height=28, image_width=28)
            logits, end_points = fn(tf1.placeholder(tf.uint8, [None, None, None, None]))
            assert end_points["conv1"].shape.as_list() == [None, 28, 28, 32]
            assert logits.shape.as_list() == [None, 10]


def test_training_at_another_size_than_the_exports_is_warned_of(caplog: pytest.LogCaptureFixture):
    for mode, side in (("TRAIN", 32), ("EVAL", 28), ("EXPORT", 32)):
        with tf.Graph().as_default():
            fn = mox.get_model_fn("lenet", mode, 10, image_height=28, image_width=28)
            fn(tf1.placeholder(tf.uint8, [None, side, side, 1]))
    (record,) = caplog.records
    assert record.getMessage().startswith("lenet: TRAIN is built for images of 32x32, as they come; to image_height")


def test_text_and_gray_images_where_colours_are_needed():
    with pytest.raises(UsageError, match="expected images of numbers, got string"):
        _prepared("lenet", np.array([[[[b"x"]]]]))
    with pytest.raises(UsageError, match="its preprocessing knows colour images, got 1 channels"):
        _prepared("vgg_16", _pixels((1, 8, 8, 1)))


def test_numbers_of_numpy_are_numbers():
    with tf.Graph().as_default():
        images = tf1.placeholder(tf.float32, [None, 32, 32, 3])
        mox.get_model_fn("cifarnet", "TRAIN", np.int64(3), np.float32(0.5))(images)
        assert tf1.get_collection(tf1.GraphKeys.REGULARIZATION_LOSSES)


def test_without_classes_the_last_features_are_returned():
    with tf.Graph().as_default():
        features, _ = mox.get_model_fn("resnet_v1_20", "EVAL", None)(tf1.placeholder(tf.float32, [None, 32, 32, 3]))
        assert features.shape.as_list()[-1] == 64
        assert not [v.name for v in tf1.global_variables() if "logits" in v.name]


def test_options_and_decays_reach_the_network():
    with tf.Graph().as_default(), tf1.Session() as session:
        images = tf.random.stateless_uniform([8, 32, 32, 3], [1, 2])
        mox.get_model_fn("resnet_v1_20", "TRAIN", 4, shortcut="A", batch_norm_decay=0.75)(images)
        assert len(tf1.global_variables()) == 97
        session.run(tf1.global_variables_initializer())
        session.run(tf1.get_collection(tf1.GraphKeys.UPDATE_OPS))
        [variance] = [v for v in tf1.global_variables() if v.op.name.endswith("conv1/BatchNorm/moving_variance")][:1]
        assert session.run(variance).min() < 0.9  # 0.75 + 0.25 of the batch's; 0.997 would leave it above
