"""What each augmentor computes, against NumPy and cv2."""

from __future__ import annotations

import logging
import sys
import types
from collections.abc import Iterator
from typing import Any

import cv2
import numpy as np
import pytest

from moxserve.dataflow import imgaug
from moxserve.dataflow.seeds import fix_rng_seed
from moxserve.errors import MissingExtraError, UsageError

IMAGE = np.random.default_rng(2).integers(0, 256, (32, 48, 3), np.uint8)
FLOATS = IMAGE.astype(np.float32)


@pytest.fixture(autouse=True)
def seed() -> Iterator[None]:
    fix_rng_seed(11)
    yield
    fix_rng_seed(None)


class Fixed(np.random.RandomState):
    """Draws `part` of each interval."""

    def __init__(self, part: float) -> None:
        super().__init__(0)
        self.part = part

    def uniform(self, low: Any = 0.0, high: Any = 1.0, size: Any = None) -> Any:  # type: ignore[override]
        value = low + self.part * (high - low)
        return value if size is None else np.full(size, value)


def fixed(augmentor: Any, part: float) -> Any:
    augmentor.rng = Fixed(part)
    return augmentor


def rounded(values: np.ndarray) -> np.ndarray:
    return np.clip(np.rint(values), 0, 255).astype(np.uint8)


@pytest.mark.parametrize("part", [0.0, 0.3, 1.0])
def test_brightness_contrast_and_gamma(part: float) -> None:
    delta, factor, gamma = -90 + 180 * part, 0.4 + 1.2 * part, -0.5 + part
    mean = FLOATS.mean((0, 1))
    gray_mean = cv2.cvtColor(IMAGE, cv2.COLOR_RGB2GRAY).mean()
    expected = {
        imgaug.Brightness(90): FLOATS + delta,
        imgaug.BrightnessScale((0.4, 1.6)): FLOATS * factor,
        imgaug.Contrast((0.4, 1.6)): (FLOATS - mean) * factor + mean,
        imgaug.Contrast((0.4, 1.6), rgb=True): (FLOATS - gray_mean) * factor + gray_mean,
        imgaug.Gamma(): 255 * (FLOATS / 255) ** (1 / (1 + gamma)),
    }
    for augmentor, values in expected.items():
        found = fixed(augmentor, part).augment(IMAGE)
        assert np.abs(found.astype(int) - rounded(values)).max() <= (1 if part else 0), augmentor
        assert (found != rounded(values)).mean() < 0.01, augmentor
        floats = fixed(augmentor, part).augment(FLOATS)
        # The grey image of floats is not rounded, so that its mean is a little different.
        np.testing.assert_allclose(floats, np.clip(values, 0, 255), atol=0.05, err_msg=repr(augmentor))


def test_floats_are_clipped_only_if_asked() -> None:
    for make in (lambda clip: imgaug.Brightness(90, clip), lambda clip: imgaug.BrightnessScale((2, 2), clip)):
        assert fixed(make(True), 1).augment(FLOATS).max() == 255
        assert fixed(make(False), 1).augment(FLOATS).max() > 300
    assert fixed(imgaug.Saturation(0.9, clip=False), 1).augment(FLOATS).min() < 0
    assert imgaug.GaussianNoise(50, clip=False).augment(FLOATS).min() < 0
    assert imgaug.GaussianNoise(50).augment(FLOATS).min() == 0


def test_contrast_of_a_gray_image() -> None:
    gray = IMAGE[..., 0]
    mean = gray.mean()
    found = fixed(imgaug.Contrast((0.5, 1.5)), 0).augment(gray)
    assert np.abs(found.astype(int) - rounded((gray - mean) * 0.5 + mean)).max() <= 1


@pytest.mark.parametrize("rgb", [True, False])
def test_hue_turns_the_circle(rgb: bool) -> None:
    code = cv2.COLOR_RGB2HSV if rgb else cv2.COLOR_BGR2HSV
    before = cv2.cvtColor(IMAGE, code).astype(int)
    turned = fixed(imgaug.Hue((0, 180), rgb=rgb), 1 / 3).augment(IMAGE)
    after = cv2.cvtColor(turned, code).astype(int)
    colorful = (before[..., 1] > 60) & (before[..., 2] > 60)
    difference = (after - before)[colorful][:, 0] % 180
    assert np.abs(difference - 60).max() <= 2
    # 120 degrees exchange the channels: red becomes green.
    red = np.zeros([1, 1, 3], np.uint8)
    red[0, 0, 0 if rgb else 2] = 200
    np.testing.assert_array_equal(fixed(imgaug.Hue((0, 180), rgb=rgb), 1 / 3).augment(red), [[[0, 200, 0]]])
    floats = fixed(imgaug.Hue((0, 180), rgb=rgb), 1 / 3).augment(red.astype(np.float32) / 255)
    np.testing.assert_allclose(floats, [[[0, 200 / 255, 0]]], atol=1e-5)


@pytest.mark.parametrize("rgb", [True, False])
def test_saturation_blends_with_gray(rgb: bool) -> None:
    weights = np.array([0.299, 0.587, 0.114])[:: 1 if rgb else -1]
    gray = (FLOATS @ weights)[..., None]
    for part, v in ((0.0, 0.6), (1.0, 1.4)):
        augmentor = fixed(imgaug.Saturation(0.4, rgb=rgb), part)
        np.testing.assert_allclose(augmentor.augment(FLOATS), np.clip(FLOATS * v + gray * (1 - v), 0, 255), atol=1e-2)
        assert np.abs(augmentor.augment(IMAGE).astype(int) - rounded(FLOATS * v + gray * (1 - v))).max() <= 1


def test_lighting_adds_a_mixture_of_eigenvectors() -> None:
    eigval, eigvec = np.array([30.0, 5, 1]), np.linalg.qr(np.arange(9.0).reshape(3, 3) ** 2 + 1)[0]
    augmentor = imgaug.Lighting(0.7, eigval, eigvec)
    augmentor.rng = np.random.RandomState(4)
    offset = eigvec @ (np.random.RandomState(4).randn(3) * 0.7 * eigval)
    np.testing.assert_allclose(augmentor.get_transform(FLOATS).apply_image(FLOATS).shape, FLOATS.shape)
    augmentor.rng = np.random.RandomState(4)
    np.testing.assert_allclose(augmentor.augment(FLOATS), FLOATS + offset, atol=1e-3)
    augmentor.rng = np.random.RandomState(4)
    assert np.abs(augmentor.augment(IMAGE).astype(int) - rounded(FLOATS + offset)).max() <= 1


def test_clip_and_conversions() -> None:
    np.testing.assert_array_equal(imgaug.Clip(40, 90).augment(IMAGE), np.clip(IMAGE, 40, 90))
    np.testing.assert_array_equal(imgaug.Clip(-5, 400).augment(IMAGE), IMAGE)
    np.testing.assert_array_equal(imgaug.Clip(0.25, 0.5).augment(FLOATS / 255), np.clip(FLOATS / 255, 0.25, 0.5))
    values = np.array([[-3.0, 0.4, 0.6, 254.7, 300]])
    np.testing.assert_array_equal(imgaug.ToUint8().augment(values), [[0, 0, 1, 255, 255]])
    np.testing.assert_array_equal(imgaug.ToFloat32().augment(IMAGE), FLOATS)
    gray = cv2.cvtColor(IMAGE, cv2.COLOR_BGR2GRAY)
    np.testing.assert_array_equal(imgaug.Grayscale().augment(IMAGE), gray[..., None])
    np.testing.assert_array_equal(imgaug.Grayscale(keepdims=False).augment(IMAGE), gray)
    np.testing.assert_array_equal(imgaug.Grayscale(keepshape=True).augment(IMAGE), np.stack([gray] * 3, -1))
    red_first = cv2.cvtColor(IMAGE, cv2.COLOR_RGB2GRAY)
    np.testing.assert_array_equal(imgaug.Grayscale(rgb=True).augment(IMAGE)[..., 0], red_first)
    hsv = imgaug.ColorSpace(cv2.COLOR_BGR2HSV).augment(IMAGE)
    np.testing.assert_array_equal(hsv, cv2.cvtColor(IMAGE, cv2.COLOR_BGR2HSV))


@pytest.mark.parametrize("all_channel", [True, False])
def test_normalizing(all_channel: bool) -> None:
    axes = None if all_channel else (0, 1)
    found = imgaug.MeanVarianceNormalize(all_channel).augment(IMAGE)
    np.testing.assert_allclose(found, (FLOATS - FLOATS.mean(axes)) / FLOATS.std(axes), atol=1e-4)
    flat = np.full([4, 4, 3], 7, np.uint8)
    np.testing.assert_array_equal(imgaug.MeanVarianceNormalize(all_channel).augment(flat), np.zeros([4, 4, 3]))
    found = imgaug.MinMaxNormalize(-1, 3, all_channel).augment(IMAGE // 2 + 10)
    np.testing.assert_allclose(
        [found.min(axes), found.max(axes)], np.stack([-1 + 0 * found.min(axes), 3 + 0 * found.min(axes)]), atol=1e-5
    )
    assert found.dtype == np.float32
    np.testing.assert_array_equal(imgaug.MinMaxNormalize(2, 3, all_channel).augment(flat), np.full([4, 4, 3], 2.0))


def test_noise() -> None:
    large = np.full([200, 200, 3], 128, np.uint8)
    noise = imgaug.GaussianNoise(6).augment(large).astype(float) - 128
    assert abs(noise.mean()) < 0.1
    assert abs(noise.std() - 6) < 0.1
    peppered = imgaug.SaltPepperNoise(0.1, 0.2).augment(large)
    parts = [(peppered == value).mean() for value in (255, 0, 128)]
    np.testing.assert_allclose(parts, [0.1, 0.2, 0.7], atol=0.01)
    transform = imgaug.GaussianNoise(6).get_transform(large)
    assert transform.apply_image(large[:10]).shape == (10, 200, 3)


def test_jpeg_noise_is_a_round_trip() -> None:
    for quality in (10, 95):
        _, data = cv2.imencode(".jpg", IMAGE, [cv2.IMWRITE_JPEG_QUALITY, quality])
        expected = cv2.imdecode(data, cv2.IMREAD_COLOR)
        np.testing.assert_array_equal(imgaug.JpegNoise((quality, quality)).augment(IMAGE), expected)
        np.testing.assert_array_equal(imgaug.JpegNoise((quality, quality)).augment(FLOATS), expected.astype(np.float32))
    draws = {imgaug.JpegNoise((40, 42))._get_augment_params(IMAGE) for _ in range(60)}
    assert draws == {40, 41, 42}
    with pytest.raises(UsageError, match="1 or 3 channels"):
        imgaug.JpegNoise().augment(np.zeros([8, 8, 4], np.uint8))


def test_blur() -> None:
    found = imgaug.GaussianBlur((2, 3), (1.5, 1.5)).augment(IMAGE)
    np.testing.assert_array_equal(found, cv2.GaussianBlur(IMAGE, (5, 5), 1.5, borderType=cv2.BORDER_REPLICATE))
    np.testing.assert_array_equal(imgaug.GaussianBlur((0, 1)).augment(IMAGE), IMAGE)
    sizes = [imgaug.GaussianBlur(max_size=3)._get_augment_params(IMAGE)[0] for _ in range(50)]
    assert {size[0] for size in sizes} == {1, 3, 5}
    assert all(x == y for x, y in sizes)
    assert any(
        x != y for (x, y), _ in (imgaug.GaussianBlur(3, symmetric=False)._get_augment_params(IMAGE) for _ in range(50))
    )


def test_sizes() -> None:
    np.testing.assert_array_equal(imgaug.Resize((20, 30)).augment(IMAGE), cv2.resize(IMAGE, (30, 20)))
    nearest = imgaug.Resize(64, interp=cv2.INTER_NEAREST).augment(IMAGE)
    np.testing.assert_array_equal(nearest, cv2.resize(IMAGE, (64, 64), interpolation=cv2.INTER_NEAREST))
    for height, width, expected in ((32, 48, (20, 30)), (48, 32, (30, 20)), (7, 7, (20, 20)), (3, 1000, (20, 6667))):
        transform = imgaug.ResizeShortestEdge(20).get_transform(imgaug.ImagePlaceholder((height, width)))
        assert (transform.new_h, transform.new_w) == expected
    shape = imgaug.ImagePlaceholder((100, 200))
    for _ in range(100):
        scaled = imgaug.RandomResize((0.5, 1.5), (0.5, 1.5), aspect_ratio_thres=0.1).get_transform(shape)
        assert 50 <= scaled.new_h <= 150
        assert 100 <= scaled.new_w <= 300
        assert abs(scaled.new_w / scaled.new_h / 2 - 1) < 0.1 + 1e-4
        kept = imgaug.RandomResize((90, 210), (90, 210), aspect_ratio_thres=0).get_transform(shape)
        assert 90 <= kept.new_w <= 210
        assert abs(kept.new_w - 2 * kept.new_h) <= 1.01
    least = imgaug.RandomResize((0.01, 0.02), (0.01, 0.02), (30, 20), 1).get_transform(shape)
    assert (least.new_w, least.new_h) == (30, 20)


def test_random_resize_gives_up_on_impossible_ratios(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        result = imgaug.RandomResize((10, 11), (100, 101), aspect_ratio_thres=0.01).augment(IMAGE)
    assert result.shape == IMAGE.shape
    assert "left an image of 32x48 as it is" in caplog.text


def test_flips_and_transposes() -> None:
    np.testing.assert_array_equal(imgaug.Flip(horiz=True, prob=1).augment(IMAGE), IMAGE[:, ::-1])
    np.testing.assert_array_equal(imgaug.Flip(vert=True, prob=1).augment(IMAGE), IMAGE[::-1])
    np.testing.assert_array_equal(imgaug.Transpose(1).augment(IMAGE), IMAGE.swapaxes(0, 1))
    assert imgaug.Flip(vert=True, prob=0).augment(IMAGE) is IMAGE
    flip = imgaug.Flip(horiz=True, prob=0.25)
    assert abs(np.mean([not np.array_equal(flip.augment(IMAGE), IMAGE) for _ in range(400)]) - 0.25) < 0.06


def test_crops() -> None:
    np.testing.assert_array_equal(imgaug.CenterCrop((11, 20)).augment(IMAGE), IMAGE[10:21, 14:34])
    crop = imgaug.RandomCrop((30, 46))
    places = {(t.y0, t.x0) for t in (crop.get_transform(IMAGE) for _ in range(200))}
    assert places == {(y, x) for y in range(3) for x in range(3)}
    shapes = imgaug.RandomCropRandomShape(46, 31, 48, 32)
    seen = {(t.h, t.w, t.y0, t.x0) for t in (shapes.get_transform(IMAGE) for _ in range(400))}
    assert seen == {(h, w, y, x) for h in (31, 32) for w in (46, 47, 48) for y in range(33 - h) for x in range(49 - w)}


def test_googlenet_crop_keeps_its_bounds_and_falls_back_to_the_middle() -> None:
    augmentor = imgaug.GoogleNetResize((0.2, 0.4), (0.75, 1.333), 224)
    shape = imgaug.ImagePlaceholder((300, 400, 3))
    crops = [augmentor.get_transform(shape).tfms[0] for _ in range(300)]
    areas = [crop.h * crop.w / 120_000 for crop in crops]
    ratios = [crop.w / crop.h for crop in crops]
    assert 0.195 < min(areas) < 0.22
    assert 0.38 < max(areas) < 0.405
    assert 0.74 < min(ratios) < 0.8
    assert 1.25 < max(ratios) < 1.35
    # Nothing of 90 % of this image is nearly square.
    middle = imgaug.GoogleNetResize((0.9, 1), (1, 1), target_shape=20).augment(IMAGE)
    np.testing.assert_array_equal(middle, cv2.resize(IMAGE, (30, 20))[:, 5:25])


def test_cutout() -> None:
    cut = imgaug.RandomCutout(4, (5, 6), fill=300).augment(np.zeros([20, 20, 3], np.uint8))
    rows, columns = np.nonzero(cut[..., 0])
    assert (np.ptp(rows) + 1, np.ptp(columns) + 1, (cut == 255).sum()) == (4, 5, 60)
    float_cut = imgaug.RandomCutout(20, 20, fill=-1.5).augment(np.zeros([20, 20], np.float32))
    assert (float_cut == -1.5).all()


def test_shift_moves_whole_pixels() -> None:
    found = fixed(imgaug.Shift(0.25, 0.125, border=cv2.BORDER_CONSTANT, border_value=9), 1).augment(IMAGE)
    expected = np.full_like(IMAGE, 9)
    expected[4:, 12:] = IMAGE[:-4, :-12]
    np.testing.assert_array_equal(found, expected)
    replicated = fixed(imgaug.Shift(0.25, 0), 0).augment(IMAGE)
    np.testing.assert_array_equal(replicated[:, -12:], np.repeat(IMAGE[:, -1:], 12, 1))


def test_rotations() -> None:
    square = IMAGE[:, :32]
    quarter = fixed(imgaug.Rotation(90, (0.5, 0.5)), 1).augment(square)
    np.testing.assert_array_equal(quarter, np.rot90(square))
    steps = imgaug.Rotation(180, (0.5, 0.5), step_deg=90)
    turned = {steps.augment(square).tobytes() for _ in range(60)}
    assert turned == {np.rot90(square, k).tobytes() for k in range(4)}
    none = fixed(imgaug.RotationAndCropValid(0), 0).augment(IMAGE)
    np.testing.assert_array_equal(none, IMAGE)


def test_a_turned_image_is_cropped_without_border() -> None:
    shape = imgaug.ImagePlaceholder((60, 90))
    corners = np.array([[0, 0], [90, 0], [90, 60], [0, 60.0]], np.float32)
    areas = []
    for angle in range(0, 91, 5):
        transform = fixed(imgaug.RotationAndCropValid(angle), 1).get_transform(shape)
        height, width = transform.tfms[-1].h, transform.tfms[-1].w
        turned = transform.apply_coords(corners)
        for corner in ((0, 0), (width, 0), (width, height), (0, height)):
            # Sides are whole pixels: up to one is outside.
            assert cv2.pointPolygonTest(turned, corner, measureDist=True) > -1, angle
        areas.append(height * width)
    assert areas[0] == 5400
    assert abs(imgaug.RotationAndCropValid.largest_rotated_rect(90, 60, 90)[1] - 90) <= 1
    assert min(areas) > 1200
    # A square turned by 45 degrees holds one of half its area.
    assert imgaug.RotationAndCropValid.largest_rotated_rect(100, 100, 45) == (71, 71)


def test_affine() -> None:
    np.testing.assert_array_equal(imgaug.Affine().augment(IMAGE), IMAGE)
    turned = fixed(imgaug.Affine(rotate_max_deg=90), 0).augment(IMAGE[:, :32])
    np.testing.assert_array_equal(turned, np.rot90(IMAGE[:, :32]))
    moved = fixed(imgaug.Affine(translate_frac=(0.25, 0.125)), 1).augment(IMAGE)
    np.testing.assert_array_equal(moved[4:, 12:], IMAGE[:-4, :-12])
    scaled = fixed(imgaug.Affine(scale=(2, 2)), 0).get_transform(IMAGE)
    np.testing.assert_allclose(scaled.apply_coords(np.array([[24, 16], [34, 20.0]])), [[24, 16], [44, 24]])
    sheared = fixed(imgaug.Affine(shear=30), 1).get_transform(IMAGE)
    # Horizontal lines stay, vertical ones turn by 30 degrees.
    down = np.array([-np.sin(np.pi / 6), np.cos(np.pi / 6)]) * 10
    np.testing.assert_allclose(
        sheared.apply_coords(np.array([[34, 16.0], [24, 26]])), [[34, 16], np.add([24, 16], down)]
    )


def test_deforming_moves_the_anchor_by_its_offset() -> None:
    y, x = np.mgrid[:40, :60].astype(np.float32)
    image = np.stack([y, x], -1)
    transform = fixed(imgaug.GaussianDeform([(0.5, 0.5)], (40, 60), sigma=0.05, randrange=4), 1).get_transform(image)
    found = transform.apply_image(image)
    np.testing.assert_allclose(found[20, 30], [24, 34], atol=0.1)
    np.testing.assert_allclose(found[0, 0], [0, 0], atol=0.1)
    folded = fixed(imgaug.GaussianDeform([(0.5, 0.5)], (40, 60), sigma=0.01, randrange=40), 1).get_transform(image)
    with pytest.raises(UsageError, match="fold the image over itself"):
        folded.apply_coords(np.array([[30.0, 20.0]]))
    assert imgaug.GaussianDeform([(0.5, 0.5)], (40, 60)).randrange == 5


def test_pastes() -> None:
    pasted = imgaug.CenterPaste((40, 50), imgaug.ConstantBackgroundFiller(17)).augment(IMAGE)
    expected = np.full([40, 50, 3], 17, np.uint8)
    expected[4:36, 1:49] = IMAGE
    np.testing.assert_array_equal(pasted, expected)
    paste = imgaug.RandomPaste((33, 50))
    places = {(t.y0, t.x0) for t in (paste.get_transform(IMAGE) for _ in range(100))}
    assert places == {(y, x) for y in range(2) for x in range(3)}

    class Stripes(imgaug.BackgroundFiller):
        def _fill(self, background_shape: tuple[int, int], img: np.ndarray) -> np.ndarray:
            return np.tile(img[:1, :1], (*background_shape, 1))

    striped = imgaug.CenterPaste(64, Stripes()).augment(IMAGE)
    np.testing.assert_array_equal(striped[0, 0], IMAGE[0, 0])
    with pytest.raises(TypeError, match="defines no _fill"):
        imgaug.BackgroundFiller().fill((3, 3), IMAGE)


def test_choices() -> None:
    one, two = imgaug.Clip(0, 0), imgaug.Clip(255, 255)
    chosen = imgaug.RandomChooseAug([(one, 0.2), (two, 0.8)])
    assert abs(np.mean([chosen.augment(IMAGE).max() == 255 for _ in range(400)]) - 0.8) < 0.06
    applied = imgaug.RandomApplyAug(one, 0.3)
    assert abs(np.mean([applied.augment(IMAGE).max() == 0 for _ in range(400)]) - 0.3) < 0.07
    ordered = imgaug.RandomOrderAug([one, two])
    assert {int(ordered.augment(IMAGE).max()) for _ in range(30)} == {0, 255}
    # Each augmentor meets the image that the one before it made.
    shrinking = imgaug.RandomOrderAug([imgaug.RandomCrop(20), imgaug.ResizeShortestEdge(24)])
    assert {shrinking.augment(IMAGE).shape for _ in range(20)} == {(20, 20, 3), (24, 24, 3)}


def test_mapping() -> None:
    transform = imgaug.MapImage(np.rot90).get_transform(IMAGE)
    np.testing.assert_array_equal(transform.apply_image(IMAGE), np.rot90(IMAGE))
    with pytest.raises(UsageError, match="MapImage without coord_func cannot tell where coordinates go"):
        transform.apply_coords(np.zeros([1, 2]))


# Other libraries' augmentors: stand-ins with the interface that those document.


class FakeAugmenter:
    """As of imgaug: `to_deterministic` freezes what is drawn."""

    def __init__(self) -> None:
        self.shift: int | None = None

    def to_deterministic(self) -> FakeAugmenter:
        return FakeAugmenter()

    def seed_(self, seed: int, deterministic_too: bool = False) -> None:
        assert deterministic_too
        self.shift = seed % 5

    def augment_image(self, image: np.ndarray) -> np.ndarray:
        return np.roll(image, self.shift or 0, 1)

    def augment_keypoints(self, groups: list[Any]) -> list[Any]:
        moved = [types.SimpleNamespace(x=point.x + self.shift, y=point.y) for point in groups[0].keypoints]
        return [types.SimpleNamespace(keypoints=moved)]


def test_augmenters_of_imgaug(monkeypatch: pytest.MonkeyPatch) -> None:
    augmentor = imgaug.IAAugmentor(FakeAugmenter())
    transform = augmentor.get_transform(IMAGE)
    result = transform.apply_image(IMAGE)
    np.testing.assert_array_equal(transform.apply_image(IMAGE), result)
    assert len({augmentor.augment(IMAGE).tobytes() for _ in range(30)}) > 2
    points = np.array([[10.0, 5.0], [12.0, 6.0]])
    monkeypatch.setitem(sys.modules, "imgaug", None)
    with pytest.raises(UsageError, match="needs the library imgaug"):
        transform.apply_coords(points)
    library: Any = types.ModuleType("imgaug")
    library.Keypoint = types.SimpleNamespace
    library.KeypointsOnImage = lambda points, shape: types.SimpleNamespace(keypoints=points, shape=shape)
    monkeypatch.setitem(sys.modules, "imgaug", library)
    moved = transform.apply_coords(points)
    x, y = int(moved[0, 0]), int(moved[0, 1])
    np.testing.assert_array_equal(result[y, x], IMAGE[5, 10])
    with pytest.raises(UsageError, match="expected an augmenter of imgaug, got int"):
        imgaug.IAAugmentor(3)


class FakeReplay:
    """As of albumentations: what was drawn comes back in the result, and can be done again."""

    def __init__(self, transforms: list[Any]) -> None:
        self.draw = np.random.default_rng()

    def set_random_seed(self, seed: int) -> None:
        self.draw = np.random.default_rng(seed)

    def __call__(self, image: np.ndarray) -> dict[str, Any]:
        return self.replay(int(self.draw.integers(40)), image)

    @staticmethod
    def replay(saved: int, image: np.ndarray) -> dict[str, Any]:
        return {"image": np.roll(image, saved, 1), "replay": saved}


def test_transforms_of_albumentations(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "albumentations", None)
    with pytest.raises(UsageError, match="needs the library albumentations") as failed:
        imgaug.Albumentations(object())
    assert "pip install albumentations" in str(failed.value)
    library: Any = types.ModuleType("albumentations")
    library.ReplayCompose = FakeReplay
    monkeypatch.setitem(sys.modules, "albumentations", library)
    augmentor = imgaug.Albumentations(object())
    transform = augmentor.get_transform(IMAGE)
    result = transform.apply_image(IMAGE)
    np.testing.assert_array_equal(transform.apply_image(IMAGE), result)
    first = [augmentor.augment(IMAGE) for _ in range(5)]
    augmentor.reset_state()
    augmentor.get_transform(IMAGE)
    np.testing.assert_array_equal([augmentor.augment(IMAGE) for _ in range(5)], first)
    with pytest.raises(UsageError, match="Albumentations cannot tell where coordinates go"):
        transform.apply_coords(np.zeros([1, 2]))


def test_without_opencv_the_missing_package_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "cv2", None)
    with pytest.raises(
        MissingExtraError, match=r'needs opencv-python-headless\nhint: pip install "moxserve\[dataflow\]"'
    ):
        imgaug.Brightness(3).augment(IMAGE)
    assert imgaug.CenterCrop(4).augment(IMAGE).shape == (4, 4, 3)


@pytest.mark.parametrize("shape", [(4, 4), (4, 4, 1), (4, 4, 2)])
def test_grayscale_says_which_image_it_cannot_convert(shape: tuple[int, ...]) -> None:
    with pytest.raises(UsageError, match=rf"Grayscale cannot convert an image of shape \({shape[0]}, "):
        imgaug.Grayscale().augment(np.zeros(shape, np.uint8))
