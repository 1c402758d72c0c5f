"""Readers that crop in source coordinates see what TensorFlow's operations would have shown them."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from scipy import stats

import moxserve.tensorflow as mox
from moxserve.images.geometry import Window
from moxserve.tensorflow.executor.env import tf, tf1

DRAWS = 3000


def windows(fn: Any, height: int, width: int, count: int = DRAWS) -> list[Window]:
    rng = np.random.default_rng(4)
    return [fn.geometry.window(height, width, rng) for _ in range(count)]


@pytest.mark.slow
@pytest.mark.parametrize(("height", "width"), [(375, 500), (500, 333), (60, 300), (9, 11)])
def test_inceptions_windows_are_spread_as_those_of_tensorflow(height: int, width: int) -> None:
    ours = windows(mox.get_data_augmentation_fn("inception_v3", "TRAIN"), height, width)
    with tf1.Graph().as_default(), tf1.Session() as session:
        begin, size, _ = tf.image.sample_distorted_bounding_box(
            [height, width, 3],
            tf.constant([[[0.0, 0.0, 1.0, 1.0]]]),
            seed=7,
            min_object_covered=0.1,
            aspect_ratio_range=(0.75, 1.33),
            area_range=(0.05, 1.0),
            max_attempts=100,
        )
        sample = session.make_callable([begin, size])
        theirs = np.array([np.concatenate([part[:2] for part in sample()]) for _ in range(DRAWS)])
    found = np.array([[w.top, w.left, w.height, w.width] for w in ours])
    quantities = {
        "top": lambda box: box[:, 0],
        "left": lambda box: box[:, 1],
        "height": lambda box: box[:, 2],
        "width": lambda box: box[:, 3],
        "area": lambda box: box[:, 2] * box[:, 3],
        "ratio": lambda box: box[:, 3] / box[:, 2],
    }
    for name, quantity in quantities.items():
        # 0.05 is far above what chance gives for equal distributions (0.035 in one of a hundred), with fixed seeds.
        assert stats.ks_2samp(quantity(found), quantity(theirs)).statistic < 0.05, name


def smooth_image(height: int, width: int) -> np.ndarray:
    y, x = np.mgrid[:height, :width]
    return np.stack([y * 255 / height, x * 255 / width, (x + y) * 127 / (height + width)], -1).astype(np.uint8)


def cut(image: np.ndarray, window: Window) -> np.ndarray:
    """Do what a decoder does with a window."""
    import cv2

    pad = 40
    padded = np.pad(image, ((pad, pad), (pad, pad), (0, 0)))
    top, left = window.top + pad, window.left + pad
    part = padded[top : top + window.height, left : left + window.width]
    part = cv2.resize(part, (window.out_width, window.out_height))
    return part[:, ::-1] if window.flip else part


@pytest.mark.slow
@pytest.mark.parametrize("name", ["vgg_16", "pvanet", "cifarnet", "inception_v3", "lenet"])
def test_window_and_finish_give_images_like_those_of_the_function(name: str) -> None:
    """On a picture of its own coordinates: the mean colour tells the place, the spread of colours the size."""
    image = smooth_image(120, 160) if name not in ("cifarnet", "lenet") else smooth_image(40, 36)
    options = {"resize_side_min": 64, "resize_side_max": 100} if name in ("vgg_16", "pvanet") else {}
    fn = mox.get_data_augmentation_fn(name, "TRAIN", 32, 32, **options)
    count = 1200
    cropped = np.stack([cut(image, window) for window in windows(fn, *image.shape[:2], count)])
    with tf1.Graph().as_default(), tf1.Session() as session:
        tf1.set_random_seed(6)
        result = session.run(fn.finish(tf.constant(cropped)))
        call = session.make_callable(fn(tf1.placeholder_with_default(image, [None, None, 3])))
        expected = np.stack([call() for _ in range(count)])
    assert result.shape == expected.shape
    if name == "lenet":
        np.testing.assert_array_equal(result, expected)
        return
    for channel in (0, 1):
        for summary in (np.mean, np.std):
            ours, theirs = summary(result[..., channel], (1, 2)), summary(expected[..., channel], (1, 2))
            assert stats.ks_2samp(ours, theirs).statistic < 0.08, (channel, summary)
    # Left and right are exchanged as often.
    slopes = [np.mean(np.sign(part[:, 16, -1, 1] - part[:, 16, 0, 1])) for part in (result, expected)]
    assert abs(slopes[0] - slopes[1]) < 0.1
