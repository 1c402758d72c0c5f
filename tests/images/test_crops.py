"""The random windows of training: always inside of what they are cut from, and spread as they should be."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from moxserve.errors import DataError
from moxserve.images.crops import CenterWindow, PaddedCrop, RandomResizedCrop, ResizedSideCrop, StretchAndFlip
from moxserve.images.geometry import Geometry, Window

ALL = [StretchAndFlip(20, 30), ResizedSideCrop(20, 30, 32, 64), RandomResizedCrop(20, 30), PaddedCrop(20, 20, 12)]
sides = st.integers(1, 700)


def draw(geometry: Geometry, height: int, width: int, times: int = 2000, seed: int = 0) -> list[Window]:
    rng = np.random.default_rng(seed)
    return [geometry.window(height, width, rng) for _ in range(times)]


@given(sides, sides, st.integers(0, 1 << 32))
def test_resized_windows_lie_in_the_image(height: int, width: int, seed: int) -> None:
    for geometry in (StretchAndFlip(20, 30), RandomResizedCrop(20, 30), ResizedSideCrop(20, 20, 20, 64)):
        window = geometry.window(height, width, np.random.default_rng(seed))
        assert 0 <= window.top < window.top + window.height <= height
        assert 0 <= window.left < window.left + window.width <= width
        assert (window.out_height, window.out_width) == (geometry.height, geometry.width)


@pytest.mark.parametrize("geometry", ALL, ids=lambda g: type(g).__name__)
def test_half_of_the_windows_are_flipped_and_a_seed_repeats_them(geometry: Any) -> None:
    assert isinstance(geometry, Geometry)
    windows = draw(geometry, 200, 300)
    assert abs(sum(w.flip for w in windows) / len(windows) - 0.5) < 0.04
    assert windows == draw(geometry, 200, 300)
    assert windows != draw(geometry, 200, 300, seed=1)


def test_random_resized_crop_keeps_its_bounds() -> None:
    windows = draw(RandomResizedCrop(224, 224, areas=(0.2, 0.5), aspect_ratios=(0.75, 1.33)), 300, 400)
    areas = np.array([w.height * w.width / 120_000 for w in windows])
    ratios = np.array([w.width / w.height for w in windows])
    assert 0.2 <= areas.min() < 0.21
    assert 0.49 < areas.max() <= 0.5
    assert 0.74 < ratios.min() < 0.77
    assert 1.3 < ratios.max() < 1.34


def test_random_resized_crop_takes_the_whole_image_when_nothing_fits() -> None:
    assert {(w.height, w.width) for w in draw(RandomResizedCrop(8, 8), 10, 1000, times=20)} == {(10, 1000)}
    assert {(w.height, w.width) for w in draw(RandomResizedCrop(8, 8), 1, 1, times=20)} == {(1, 1)}


def test_resized_side_crop_has_all_sizes_and_places() -> None:
    windows = draw(ResizedSideCrop(224, 224), 375, 500)
    heights = np.array([w.height for w in windows])
    # 224 of 256..512 pixels, in 375 of the source.
    assert heights.min() == round(224 * 375 / 512)
    assert heights.max() == round(224 * 375 / 256)
    tops = np.array([w.top / (375 - w.height) for w in windows])
    lefts = np.array([w.left / (500 - w.width) for w in windows])
    for places in (tops, lefts):
        assert places.min() == 0
        assert places.max() == 1
        assert np.abs(np.histogram(places, 4, (0, 1))[0] / len(windows) - 0.25).max() < 0.04
    assert np.abs([w.width - w.height for w in windows]).max() <= 1


def test_an_image_of_the_right_size_is_cut_without_resizing() -> None:
    for window in draw(ResizedSideCrop(224, 200, 256, 256), 256, 340, times=50):
        assert (window.height, window.width) == (224, 200)


def test_crops_that_do_not_fit_are_broken_data() -> None:
    with pytest.raises(DataError, match="224x300 does not fit into an image of 100x100"):
        ResizedSideCrop(224, 300, 256, 256).window(100, 100, np.random.default_rng(0))
    with pytest.raises(DataError, match="32x32 does not fit into an image of 23x40 pixels with 4 zeros"):
        PaddedCrop(32, 32).window(23, 40, np.random.default_rng(0))


def test_padded_crop_moves_by_the_padding() -> None:
    windows = draw(PaddedCrop(32, 32), 32, 32)
    for name in ("top", "left"):
        values, counts = np.unique([getattr(w, name) for w in windows], return_counts=True)
        assert values.tolist() == list(range(-4, 5))
        assert counts.min() > 2000 / 9 * 0.75
    assert {(w.height, w.width, w.out_height, w.out_width) for w in windows} == {(32, 32, 32, 32)}
    # The least image that a crop fits into.
    assert {(w.top, w.left) for w in draw(PaddedCrop(32, 32), 24, 24, times=5)} == {(-4, -4)}


@pytest.mark.parametrize(
    ("height", "width", "top", "left"), [(30, 33, 1, 2), (28, 28, 0, 0), (25, 24, -1, -2), (1, 29, -13, 0)]
)
def test_center_window(height: int, width: int, top: int, left: int) -> None:
    window = CenterWindow(28, 28).window(height, width, np.random.default_rng(0))
    assert window == Window(top, left, 28, 28, 28, 28)
