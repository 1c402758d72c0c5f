"""Evaluation's preprocessing: exact numbers, whatever is known of the image while the graph is built."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import moxserve.tensorflow as mox
from moxserve.tensorflow.executor.env import tf, tf1

NETWORKS = {
    "vgg_preprocessing": "vgg_16",
    "inception_preprocessing": "inception_v3",
    "cifarnet_preprocessing": "cifarnet",
    "lenet_preprocessing": "lenet",
    "pvanet_preprocessing": "pvanet",
}
TOLERANCE = {
    "vgg_preprocessing": 1e-3,
    "pvanet_preprocessing": 1e-3,
    "inception_preprocessing": 1e-5,
    "cifarnet_preprocessing": 1e-5,
    "lenet_preprocessing": 0.0,
}


def pattern(height: int, width: int, channels: int = 3) -> np.ndarray:
    y, x, k = np.mgrid[:height, :width, :channels]
    return ((x * (k + 1) + 2 * y + (x * y) // (50 + 10 * k)) % 256).astype(np.uint8)


def run(fn: Callable[[Any], Any], image: np.ndarray, shape: Any = "its own") -> np.ndarray:
    """Run in a graph, with a placeholder of a static shape."""
    with tf1.Graph().as_default():
        fed = tf1.placeholder(image.dtype, image.shape if shape == "its own" else shape)
        result = fn(fed)
        assert result.dtype == tf.float32
        with tf1.Session() as session:
            value: np.ndarray = session.run(result, {fed: image})
        assert result.shape.is_compatible_with(value.shape)
        assert result.shape[:2] == value.shape[:2]
        return value


# An implementation that shares nothing with TensorFlow.


def np_resize(image: np.ndarray, height: int, width: int) -> np.ndarray:
    def places(source: int, wanted: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        at = np.arange(wanted, dtype=np.float32) * np.float32(np.float32(source) / np.float32(wanted))
        low = np.floor(at).astype(int)
        return low, np.minimum(low + 1, source - 1), at - low

    image = image.astype(np.float32)
    y0, y1, dy = places(image.shape[0], height)
    x0, x1, dx = places(image.shape[1], width)
    dx, dy = dx[None, :, None], dy[:, None, None]
    above = image[y0][:, x0] * (1 - dx) + image[y0][:, x1] * dx
    below = image[y1][:, x0] * (1 - dx) + image[y1][:, x1] * dx
    result: np.ndarray = above * (1 - dy) + below * dy
    return result


def np_vgg(image: np.ndarray, height: int, width: int, side: int = 256) -> np.ndarray:
    h, w = image.shape[:2]
    scale = np.float32(side) / np.float32(min(h, w))
    resized = np_resize(image, int(np.rint(np.float32(h) * scale)), int(np.rint(np.float32(w) * scale)))
    top, left = (resized.shape[0] - height) // 2, (resized.shape[1] - width) // 2
    return resized[top : top + height, left : left + width] - np.float32([123.68, 116.78, 103.94])


def np_pvanet(image: np.ndarray, height: int, width: int) -> np.ndarray:
    return np_vgg(image, height, width) + np.float32([123.68 - 123, 116.78 - 117, 103.94 - 104])


def np_inception(image: np.ndarray, height: int, width: int) -> np.ndarray:
    image = image / np.float32(255) if image.dtype == np.uint8 else image
    h, w = image.shape[:2]
    top, left = int((h - h * 0.875) / 2), int((w - w * 0.875) / 2)
    return (np_resize(image[top : h - top, left : w - left], height, width) - 0.5) * 2


def np_center(image: np.ndarray, height: int, width: int) -> np.ndarray:
    h, w = image.shape[:2]
    top, left = max((h - height) // 2, 0), max((w - width) // 2, 0)
    image = image[top : top + height, left : left + width]
    above, before = (height - image.shape[0]) // 2, (width - image.shape[1]) // 2
    result = np.zeros((height, width, image.shape[2]), np.float32)
    result[above : above + image.shape[0], before : before + image.shape[1]] = image
    return result


def np_cifarnet(image: np.ndarray, height: int, width: int) -> np.ndarray:
    result = np_center(image, height, width)
    deviation = max(float(result.std()), 1 / np.sqrt(result.size))
    return (result - result.mean()) / deviation


def np_lenet(image: np.ndarray, height: int, width: int) -> np.ndarray:
    return (np_center(image, height, width) - 128) / 128


REFERENCES = {
    "vgg_preprocessing": np_vgg,
    "pvanet_preprocessing": np_pvanet,
    "inception_preprocessing": np_inception,
    "cifarnet_preprocessing": np_cifarnet,
    "lenet_preprocessing": np_lenet,
}
IMAGES = {"landscape": (60, 97), "portrait": (301, 180), "small": (20, 23), "even": (64, 64)}


@pytest.mark.slow
@pytest.mark.parametrize("case", range(16))
def test_golden_values(shared_dir: Path, case: int) -> None:
    golden = json.loads((shared_dir / "reference/zoo/preprocessing_golden.json").read_text())["cases"][case]
    family = golden["preprocessing"]
    fn = mox.get_data_augmentation_fn(NETWORKS[family], mox.ModeKeys.EVAL, *golden["output_size"])
    for shape in ("its own", [None, None, golden["image"][2]], None):
        value = run(fn, pattern(*golden["image"]), shape)
        assert list(value.shape) == golden["shape"]
        for y, x, expected in golden["pixels"]:
            np.testing.assert_allclose(value[y, x], expected, rtol=0, atol=TOLERANCE[family] or 1e-7)
        found = [value.mean(), value.std(), value.min(), value.max()]
        expected = [golden[name] for name in ("mean", "std", "min", "max")]
        np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("shape", IMAGES)
@pytest.mark.parametrize("family", NETWORKS)
@pytest.mark.parametrize("dtype", ["uint8", "float32"])
def test_the_numbers_are_those_of_an_implementation_in_numpy(family: str, shape: str, dtype: str) -> None:
    image = pattern(*IMAGES[shape])
    if dtype == "float32":
        # Inception takes floats as values from 0 to 1, the others as values from 0 to 255.
        image = image.astype(np.float32) / (255 if family == "inception_preprocessing" else 1)
    fn = mox.get_data_augmentation_fn(NETWORKS[family], mox.ModeKeys.PREDICT, 48, 40)
    np.testing.assert_allclose(run(fn, image), REFERENCES[family](image, 48, 40), rtol=0, atol=2e-4)


@pytest.mark.slow
@pytest.mark.parametrize("family", NETWORKS)
def test_the_same_in_a_map_of_tf_data_and_eagerly(family: str, eager: None) -> None:
    image = pattern(70, 50)
    fn = mox.get_data_augmentation_fn(NETWORKS[family], mox.ModeKeys.EXPORT, 24, 24)
    expected = fn(tf.constant(image)).numpy()
    np.testing.assert_allclose(expected, REFERENCES[family](image, 24, 24), rtol=0, atol=2e-4)
    images = tf.data.Dataset.from_generator(lambda: [image], output_signature=tf.TensorSpec(None, tf.uint8))
    mapped = images.map(fn)
    assert mapped.element_spec.shape[:2] == [24, 24]
    np.testing.assert_array_equal(next(iter(mapped)).numpy(), expected)


def test_options_of_evaluation() -> None:
    image = pattern(80, 120)
    get = mox.get_data_augmentation_fn
    found = run(get("resnet_v2_50", "EVAL", np.int64(64), 64, resize_side_min=70, resize_side_max=60), image)
    np.testing.assert_allclose(found, np_vgg(image, 64, 64, side=70), rtol=0, atol=1e-4)
    whole = (np_resize(image / np.float32(255), 32, 48) - 0.5) * 2
    for option in ({"central_crop": False}, {"crop_image": False}, {"central_fraction": 1.0}):
        found = run(get("mobilenet_v1", "EVAL", 32, 48, **option), image)
        np.testing.assert_allclose(found, whole, rtol=0, atol=1e-5)
    as_it_is = run(get("mobilenet_v1", "EVAL", 0, 0, central_crop=False), image)
    np.testing.assert_allclose(as_it_is, image / 127.5 - 1, rtol=0, atol=1e-5)


def test_a_crop_larger_than_the_image_stops_the_run() -> None:
    fn = mox.get_data_augmentation_fn("vgg_16", "EVAL", 224, 300)
    assert run(fn, pattern(256, 320)).shape == (224, 300, 3)
    with pytest.raises(tf.errors.InvalidArgumentError, match="224x300 is larger than the image"):
        run(fn, pattern(256, 256), shape=[None, None, 3])


def test_grey_images() -> None:
    image = pattern(40, 40, 1)
    assert run(mox.get_data_augmentation_fn("lenet", "EVAL"), image).shape == (28, 28, 1)
    assert run(mox.get_data_augmentation_fn("cifarnet", "EVAL"), image).shape == (32, 32, 1)
    with pytest.raises(tf.errors.InvalidArgumentError):
        run(mox.get_data_augmentation_fn("vgg_16", "EVAL"), image, shape=[None, None, None])
