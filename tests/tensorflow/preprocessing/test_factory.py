"""Which augmentation a name gives, and what is refused."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

import moxserve.tensorflow as mox
from moxserve.errors import UsageError
from moxserve.images.geometry import Geometry, Window
from moxserve.tensorflow.executor.env import tf, tf1
from moxserve.tensorflow.preprocessing.keys import FAMILIES, PREPROCESSINGS, default_image_size

SIZES = {
    "inception_v1": 224,
    "inception_v3": 299,
    "inception_v4": 299,
    "inception_resnet_v2": 299,
    "nasnet_large": 331,
    "pnasnet_large": 331,
    "nasnet_mobile": 224,
    "nasnet_cifar": 32,
    "resnet_v1_20": 32,
    "resnet_v1_110": 32,
    "cifarnet": 32,
    "lenet": 28,
    "overfeat": 231,
    "resnet_v1_50": 224,
    "pvanet": 224,
    "mobilenet_v1_025": 224,
}


def test_every_name_of_the_documents_has_its_preprocessing() -> None:
    keys = mox.PreprocessingKeys
    assert keys.RESNET_V1_50 == keys.VGG == keys.OVERFEAT == keys.RESNEXT_C_101 == "vgg_preprocessing"
    assert keys.INCEPTION == keys.MOBILENET_V1_050 == keys.PNASNET_LARGE == "inception_preprocessing"
    assert keys.NASNET_CIFAR == keys.RESNET_V1_20 == "cifarnet_preprocessing"
    assert (keys.LENET, keys.PVANET) == ("lenet_preprocessing", "pvanet_preprocessing")
    assert len(PREPROCESSINGS) == 46
    assert set(PREPROCESSINGS.values()) == set(FAMILIES)
    assert {name: default_image_size(name) for name in SIZES} == SIZES


@pytest.mark.slow
@pytest.mark.parametrize("mode", ["TRAIN", "EVAL"])
def test_every_name_gives_a_function_of_the_networks_size(mode: str) -> None:
    for name in PREPROCESSINGS:
        side = default_image_size(name)
        if PREPROCESSINGS[name] == "vgg_preprocessing":
            assert side <= 256, "a vgg crop must fit into the default smallest side"
        with tf1.Graph().as_default():
            result = mox.get_data_augmentation_fn(name, mode)(tf1.placeholder(tf.uint8, [None, None, 3]))
        assert result.shape == [side, side, 3], name
        assert result.dtype == tf.float32


def test_one_side_may_be_left_out() -> None:
    fn = mox.get_data_augmentation_fn("inception_v3", "EVAL", output_width=100)
    assert fn(np.zeros([300, 300, 3], np.uint8)).shape == [299, 100, 3]


def test_only_training_has_a_geometry() -> None:
    for name in ("vgg_16", "inception_v3", "cifarnet", "lenet", "pvanet"):
        assert isinstance(mox.get_data_augmentation_fn(name, "TRAIN").geometry, Geometry)
        for mode in ("EVAL", "PREDICT", "EXPORT"):
            assert mox.get_data_augmentation_fn(name, mode).geometry is None
    # A reader could not follow these.
    assert mox.get_data_augmentation_fn("inception_v3", "TRAIN", fast_mode=False).geometry is None
    assert mox.get_data_augmentation_fn("vgg_16", "TRAIN", 224, 300).geometry is None
    assert mox.get_data_augmentation_fn("inception_v3", "TRAIN", bbox=[[[0, 0, 1, 1]]]).geometry is None
    whole = mox.get_data_augmentation_fn("inception_v3", "TRAIN", 10, 20, crop_image=False).geometry
    assert whole is not None
    windows = {whole.window(40, 50, np.random.default_rng(seed)) for seed in range(20)}
    assert windows == {Window(0, 0, 40, 50, 10, 20, flip) for flip in (False, True)}


WRONG: list[tuple[str, dict[str, Any], str]] = [
    ("unknown network", {"name": "resnet_v1_5"}, "did you mean 'resnet_v1_50'"),
    ("upper case", {"name": "RESNET_V1_50"}, "did you mean 'resnet_v1_50'"),
    ("no string", {"name": None}, "a string, got NoneType"),
    ("unknown mode", {"run_mode": "train"}, "did you mean 'TRAIN'"),
    ("unknown option", {"resize_side_mim": 3}, "did you mean .*'resize_side_min'"),
    ("option of another family", {"fast_mode": True}, "vgg_preprocessing has no option 'fast_mode'"),
    ("no side", {"output_height": 0}, "output_height must be an integer of at least 1, got 0"),
    ("a float", {"output_width": 224.0}, "output_width must be an integer"),
    ("a string", {"resize_side_min": "256"}, "resize_side_min must be an integer"),
    (
        "reversed range",
        {"run_mode": "TRAIN", "resize_side_max": 255},
        "resize_side_max must be an integer of at least 256",
    ),
    ("crop too large", {"output_height": 299, "output_width": 299}, "resize_side_min=299"),
    ("fraction", {"name": "inception_v1", "central_fraction": 1.5}, "central_fraction must be above 0"),
    ("flag", {"name": "inception_v1", "fast_mode": 1}, "fast_mode must be True or False"),
    ("no resize in training", {"name": "inception_v1", "run_mode": "TRAIN", "output_height": 0}, "at least 1"),
    ("padding", {"name": "cifarnet", "padding": -1}, "padding must be an integer of at least 0"),
    ("option of a family without any", {"name": "lenet", "padding": 4}, "lenet_preprocessing has no option"),
]


@pytest.mark.parametrize(("kwargs", "message"), [w[1:] for w in WRONG], ids=[w[0] for w in WRONG])
def test_wrong_arguments(kwargs: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        mox.get_data_augmentation_fn(**{"name": "resnet_v1_50", "run_mode": "EVAL", **kwargs})


@pytest.mark.parametrize(
    ("image", "message"),
    [
        (np.zeros([2, 30, 30, 3], np.uint8), r"expected one image .* got a tensor of shape \(2, 30, 30, 3\)"),
        (np.zeros([30, 30, 1], np.uint8), "expected 3 channels"),
        (b"\xff\xd8", "decode it first"),
        (np.zeros([30, 30, 3], bool), "image of numbers, got bool"),
    ],
)
def test_what_is_no_image_is_refused(image: Any, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        mox.get_data_augmentation_fn("vgg_16", "EVAL")(image)


def test_its_name_says_what_it_is() -> None:
    fn = mox.get_data_augmentation_fn("pvanet", "TRAIN", 192, 192)
    assert repr(fn) == "pvanet_preprocessing(192x192, training)"
