"""What every augmentor keeps: shapes, dtypes, its input, the order of its draws, and where points go."""

from __future__ import annotations

import multiprocessing
import pickle
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import cv2
import numpy as np
import pytest

from moxserve.dataflow import imgaug
from moxserve.dataflow.seeds import fix_rng_seed
from moxserve.errors import UsageError

HEIGHT, WIDTH = 40, 60
EIGENVECTORS = [[-0.58, -0.72, 0.4], [-0.58, 0.69, 0.42], [-0.57, 0.01, -0.81]]


@dataclass(frozen=True)
class Case:
    """An augmentor and what it is expected to do.

    Attributes:
        make: makes one.
        shape: height and width of results; None where they differ.
        dtype: of results; None: the image's.
        channels: of results; None: the image's.
        color: only images with three channels.
        random: draws differ.
        moves: it moves pixels.
    """

    make: Callable[[], imgaug.ImageAugmentor]
    shape: tuple[int, int] | None = (HEIGHT, WIDTH)
    dtype: Any = None
    channels: int | None = None
    color: bool = False
    random: bool = True
    moves: bool = False


def moving(make: Callable[[], Any], shape: tuple[int, int] | None = (HEIGHT, WIDTH), random: bool = True) -> Case:
    return Case(make, shape, random=random, moves=True)


def flips() -> list[imgaug.ImageAugmentor]:
    return [imgaug.Flip(horiz=True), imgaug.Flip(vert=True)]


CASES = {
    "Resize": moving(lambda: imgaug.Resize((25, 70)), (25, 70), random=False),
    "ResizeShortestEdge": moving(lambda: imgaug.ResizeShortestEdge(30), (30, 45), random=False),
    "RandomResize": moving(lambda: imgaug.RandomResize((0.6, 1.4), (0.6, 1.4), aspect_ratio_thres=0.3), None),
    "Flip": moving(lambda: imgaug.Flip(horiz=True)),
    "Transpose": moving(imgaug.Transpose, None),
    "RandomCrop": moving(lambda: imgaug.RandomCrop((20, 33)), (20, 33)),
    "CenterCrop": moving(lambda: imgaug.CenterCrop((21, 32)), (21, 32), random=False),
    "RandomCropRandomShape": moving(lambda: imgaug.RandomCropRandomShape(20, 22, 50), None),
    "GoogleNetRandomCropAndResize": moving(
        lambda: imgaug.GoogleNetRandomCropAndResize((0.3, 1), target_shape=28), (28, 28)
    ),
    "RandomCutout": Case(lambda: imgaug.RandomCutout(5, (3, 9), 7)),
    "Shift": moving(lambda: imgaug.Shift(0.3, 0.2)),
    "Rotation": moving(lambda: imgaug.Rotation(40, (0.3, 0.7))),
    "RotationAndCropValid": moving(lambda: imgaug.RotationAndCropValid(30), None),
    "Affine": moving(lambda: imgaug.Affine((0.8, 1.2), (0.1, 0.1), 20, 15)),
    "GaussianDeform": moving(lambda: imgaug.GaussianDeform([(0.3, 0.3), (0.7, 0.6)], (HEIGHT, WIDTH), randrange=6)),
    "Hue": Case(imgaug.Hue, color=True),
    "Brightness": Case(lambda: imgaug.Brightness(60)),
    "BrightnessScale": Case(lambda: imgaug.BrightnessScale((0.5, 1.5))),
    "Contrast": Case(lambda: imgaug.Contrast((0.5, 1.5))),
    "MeanVarianceNormalize": Case(imgaug.MeanVarianceNormalize, dtype=np.float32, random=False),
    "GaussianBlur": Case(lambda: imgaug.GaussianBlur((1, 5), (0.5, 2))),
    "Gamma": Case(imgaug.Gamma),
    "Clip": Case(lambda: imgaug.Clip(50, 100), random=False),
    "Saturation": Case(imgaug.Saturation, color=True),
    "Lighting": Case(lambda: imgaug.Lighting(0.5, [55.5, 4.8, 1.1], EIGENVECTORS), color=True),
    "MinMaxNormalize": Case(imgaug.MinMaxNormalize, dtype=np.float32, random=False),
    "JpegNoise": Case(imgaug.JpegNoise),
    "GaussianNoise": Case(lambda: imgaug.GaussianNoise(9)),
    "SaltPepperNoise": Case(imgaug.SaltPepperNoise),
    "CenterPaste": moving(lambda: imgaug.CenterPaste((51, 70)), (51, 70), random=False),
    "RandomPaste": moving(lambda: imgaug.RandomPaste((50, 90)), (50, 90)),
    "ColorSpace": Case(lambda: imgaug.ColorSpace(cv2.COLOR_BGR2YCrCb), color=True, random=False),
    "Grayscale": Case(imgaug.Grayscale, channels=1, color=True, random=False),
    "ToUint8": Case(imgaug.ToUint8, dtype=np.uint8, random=False),
    "ToFloat32": Case(imgaug.ToFloat32, dtype=np.float32, random=False),
    "Identity": moving(imgaug.Identity, random=False),
    "RandomApplyAug": moving(lambda: imgaug.RandomApplyAug(imgaug.Rotation(30), 0.5)),
    "RandomChooseAug": moving(lambda: imgaug.RandomChooseAug([imgaug.Rotation(30), imgaug.Flip(vert=True)])),
    "RandomOrderAug": moving(lambda: imgaug.RandomOrderAug([imgaug.Shift(0.2, 0.2), *flips()])),
    "MapImage": moving(
        lambda: imgaug.MapImage(lambda x: x[3:], lambda points: points - [0, 3]), (37, 60), random=False
    ),
    "AugmentorList": moving(
        lambda: imgaug.AugmentorList([imgaug.Resize(45), *flips(), imgaug.RandomCrop(30)]), (30, 30)
    ),
}
# Wrappers of other libraries have tests of their own.
ELSEWHERE = {"IAAugmentor", "Albumentations"}
BASES = {"Augmentor", "ImageAugmentor", "PhotometricAugmentor", "GoogleNetResize"}

each = pytest.mark.parametrize("name", CASES)


@pytest.fixture(autouse=True)
def seed() -> Iterator[None]:
    fix_rng_seed(5)
    yield
    fix_rng_seed(None)


def photo(dtype: Any = np.uint8, channels: int | None = 3) -> np.ndarray:
    noise = np.random.default_rng(1).integers(0, 256, (HEIGHT, WIDTH, channels or 1)).astype(np.float32)
    image = cv2.GaussianBlur(noise, (7, 7), 2).reshape(HEIGHT, WIDTH, -1)
    image = (image - image.min()) / (image.max() - image.min()) * 255
    return (image if channels else image[..., 0]).astype(dtype)


def test_the_table_has_every_augmentor() -> None:
    names = {
        n
        for n in imgaug.__all__
        if isinstance(getattr(imgaug, n), type) and issubclass(getattr(imgaug, n), imgaug.Augmentor)
    }
    assert names - BASES - ELSEWHERE == set(CASES)
    assert imgaug.GoogleNetResize is imgaug.GoogleNetRandomCropAndResize


@each
@pytest.mark.parametrize("dtype", ["uint8", "float16", "float32", "float64"])
@pytest.mark.parametrize("channels", [3, 1, None])
def test_shapes_and_dtypes(name: str, dtype: str, channels: int | None) -> None:
    case = CASES[name]
    image = photo(dtype, channels)
    if case.color and channels != 3:
        with pytest.raises((UsageError, cv2.error)):
            case.make().augment(image)
        return
    before = image.copy()
    result = case.make().augment(image)
    np.testing.assert_array_equal(image, before)
    if case.shape:
        assert result.shape[:2] == case.shape
    expected = (case.channels,) if case.channels else image.shape[2:]
    assert result.shape[2:] == expected
    assert result.dtype == (case.dtype or image.dtype)


@each
def test_a_seed_repeats_the_draws(name: str) -> None:
    case = CASES[name]
    image = photo()

    def draws(seed: int) -> list[bytes]:
        fix_rng_seed(seed)
        augmentor = case.make()
        first = [augmentor.augment(image) for _ in range(12)]
        augmentor.reset_state()
        again = [augmentor.augment(image) for _ in range(12)]
        assert [x.tobytes() for x in first] == [x.tobytes() for x in again]
        return [x.tobytes() for x in first]

    first = draws(5)
    assert first == draws(5)
    assert (first != draws(6)) == case.random
    assert (len(set(first)) > 1) == case.random


@each
def test_a_transform_does_the_same_each_time(name: str) -> None:
    image = photo()
    augmentor = CASES[name].make()
    result, params = augmentor.augment_return_params(image)
    np.testing.assert_array_equal(params.apply_image(image), result)
    np.testing.assert_array_equal(augmentor.augment_with_params(image, params), result)
    # Another image of the same size, such as a mask.
    mask = photo("float32", 3)
    np.testing.assert_array_equal(params.apply_image(mask), params.apply_image(mask))


@each
def test_coordinates_follow_the_image(name: str) -> None:
    """In an image whose values are its own coordinates, each pixel of the result tells where it came from."""
    case = CASES[name]
    y, x = np.mgrid[:HEIGHT, :WIDTH].astype(np.float32) + 0.5
    image = np.stack([x, y, np.zeros_like(x)], -1)
    points = np.random.default_rng(0).uniform([1, 1], [WIDTH - 1, HEIGHT - 1], (50, 2))
    augmentor = case.make()
    for _ in range(6):
        transform = augmentor.get_transform(image)
        result = transform.apply_image(image)
        moved = transform.apply_coords(points)
        assert moved.shape == points.shape
        assert moved.dtype.kind == "f"
        if not case.moves:
            np.testing.assert_array_equal(moved, points)
            continue
        from_x, from_y = result[..., 0], result[..., 1]
        inside = (from_x > 1.5) & (from_x < WIDTH - 1.5) & (from_y > 1.5) & (from_y < HEIGHT - 1.5)
        assert inside.mean() > 0.2
        rows, columns = np.nonzero(inside)
        found = transform.apply_coords(np.stack([from_x[inside], from_y[inside]], -1))
        # cv2 takes positions in steps of 1/32 pixel.
        np.testing.assert_allclose(found, np.stack([columns, rows], -1) + 0.5, atol=0.12)


@each
def test_it_can_be_pickled_and_shown(name: str) -> None:
    augmentor = CASES[name].make()
    assert repr(augmentor).startswith(f"imgaug.{name}(")
    if name != "MapImage":  # its functions here are lambdas
        again = pickle.loads(pickle.dumps(augmentor))
        image = photo()
        np.testing.assert_array_equal(again.augment(image), augmentor.augment(image))


def test_augmentors_draw_from_streams_of_their_own() -> None:
    first, second = imgaug.Brightness(100), imgaug.Brightness(100)
    image = photo()
    assert not np.array_equal(first.augment(image), second.augment(image))


def _draw(augmentor: imgaug.ImageAugmentor, queue: Any) -> None:
    queue.put(augmentor.rng.randint(1 << 30))


def test_forked_processes_draw_other_numbers() -> None:
    fix_rng_seed(None)
    augmentor = imgaug.Brightness(100)
    context = multiprocessing.get_context("fork")
    queue = context.SimpleQueue()
    workers = [context.Process(target=_draw, args=(augmentor, queue)) for _ in range(3)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join(120)
    drawn = {queue.get() for _ in workers} | {augmentor.rng.randint(1 << 30)}
    assert len(drawn) == 4


def test_a_generator_can_be_given() -> None:
    augmentor = imgaug.RandomCrop(10)
    augmentor.rng = np.random.RandomState(3)
    expected = np.random.RandomState(3)
    transform = augmentor.get_transform(imgaug.ImagePlaceholder((HEIGHT, WIDTH)))
    assert (transform.y0, transform.x0) == (expected.randint(31), expected.randint(51))


def test_lists_draw_as_they_go() -> None:
    augmentors = imgaug.AugmentorList(
        [imgaug.RandomResize((30, 50), (30, 50), aspect_ratio_thres=1), imgaug.RandomCrop(30)]
    )
    image = photo()
    transform = augmentors.get_transform(image)
    with pytest.raises(UsageError, match="apply_image must be called before apply_coords"):
        transform.apply_coords(np.zeros([1, 2]))
    result = transform.apply_image(image)
    assert result.shape == (30, 30, 3)
    np.testing.assert_array_equal(transform.apply_image(image), result)
    assert imgaug.AugmentorList([]).augment(image) is image


def test_augmentors_in_tensorpacks_older_form() -> None:
    class AddOne(imgaug.ImageAugmentor):
        def __init__(self, by: int = 1) -> None:
            super().__init__()
            self._init(locals())

        def _get_augment_params(self, img: np.ndarray) -> int:
            return self.by + self.rng.randint(2)

        def _augment(self, img: np.ndarray, params: int) -> np.ndarray:
            return img + np.uint8(params)

        def _augment_coords(self, coords: np.ndarray, params: int) -> np.ndarray:
            return coords + params

    augmentor = AddOne(by=3)
    image = np.zeros([4, 4], np.uint8)
    result, params = augmentor.augment_return_params(image)
    assert int(result[0, 0]) in (3, 4)
    np.testing.assert_array_equal(augmentor.augment_with_params(image, params), result)
    assert augmentor.augment_coords(np.zeros([1, 2]), params)[0, 0] == result[0, 0]
    assert repr(augmentor) == "imgaug.AddOne(by=3)"

    class Nothing(imgaug.ImageAugmentor):
        pass

    with pytest.raises(TypeError, match="Nothing defines neither get_transform nor _augment"):
        Nothing().augment(image)


NO_IMAGES: list[tuple[Any, str]] = [
    ([[1, 2]], "got list"),
    (np.zeros([4, 4], np.int32), "uint8 or floating image, got int32"),
    (np.zeros([4, 4], bool), "got bool"),
    (np.zeros([4, 4], "S1"), "got |S1"),
    (np.zeros([2, 4, 4, 3], np.uint8), r"got shape \(2, 4, 4, 3\)"),
    (np.zeros([0, 4, 3], np.uint8), r"got shape \(0, 4, 3\)"),
    (np.zeros([4], np.uint8), r"got shape \(4,\)"),
]


@pytest.mark.parametrize(("image", "message"), NO_IMAGES)
def test_what_is_no_image_is_refused(image: Any, message: str) -> None:
    for augmentor in (imgaug.Identity(), imgaug.AugmentorList([imgaug.Flip(horiz=True)])):
        with pytest.raises(UsageError, match=message):
            augmentor.augment(image)


def test_coordinates_must_be_points() -> None:
    transform = imgaug.Flip(horiz=True, prob=1).get_transform(photo())
    for wrong in (np.zeros(2), np.zeros([3, 3]), [1, 2]):
        with pytest.raises(UsageError, match=r"\[n, 2\]"):
            transform.apply_coords(wrong)
    assert transform.apply_coords(np.zeros([0, 2])).shape == (0, 2)
    np.testing.assert_array_equal(transform.apply_coords(np.array([[0, 5]])), [[60.0, 5.0]])


WRONG: list[tuple[Callable[[], Any], str]] = [
    (lambda: imgaug.Resize(0), "shape must be a positive integer"),
    (lambda: imgaug.Resize((3, 4, 5)), "shape must be"),
    (lambda: imgaug.Resize(2.5), "shape must be"),
    (lambda: imgaug.Resize("a"), "shape must be"),
    (lambda: imgaug.ResizeShortestEdge(-1), "size must be"),
    (lambda: imgaug.RandomResize((1, 2), (0.5, 2.0)), "both be factors or both be pixels"),
    (lambda: imgaug.RandomResize((2, 1), (1, 2)), "xrange must be two numbers"),
    (lambda: imgaug.RandomResize((1.0, 2), (1.0, 3), aspect_ratio_thres=0), "needs equal xrange and yrange"),
    (lambda: imgaug.RandomResize((1.0, 2), (1.0, 3), aspect_ratio_thres=-1), "must not be negative"),
    (lambda: imgaug.Flip(), "one of horiz and vert"),
    (lambda: imgaug.Flip(horiz=True, vert=True), "one of horiz and vert"),
    (lambda: imgaug.Flip(horiz=True, prob=1.5), "prob must be a probability"),
    (lambda: imgaug.Transpose(-1), "prob must be a probability"),
    (lambda: imgaug.RandomCropRandomShape(5, 5, wmax=4), "wmax"),
    (lambda: imgaug.GoogleNetResize(crop_area_fraction=(0.5, 2)), "crop_area_fraction must be two numbers"),
    (lambda: imgaug.RandomCutout((5, 5), 3), "h_range must be integers"),
    (lambda: imgaug.RandomCutout(3, 0.5), "w_range must be two numbers"),
    (lambda: imgaug.Shift(1.0), "from 0 to below 1"),
    (lambda: imgaug.Rotation(-3), "max_deg must not be negative"),
    (lambda: imgaug.Rotation(90, step_deg=30), "step_deg must divide 180"),
    (lambda: imgaug.RotationAndCropValid(180, step_deg=7), "step_deg must divide 180"),
    (lambda: imgaug.Affine(scale=(0, 1)), "scale must be two numbers"),
    (lambda: imgaug.Affine(translate_frac=(0.1, 2)), "translate_frac must be a probability"),
    (lambda: imgaug.Affine(translate_frac=(0.1,)), "translate_frac must be two parts"),
    (lambda: imgaug.Affine(shear=200), "shear from 0 to 180"),
    (lambda: imgaug.GaussianDeform([1, 2], (4, 4)), "anchors must be points"),
    (lambda: imgaug.GaussianDeform([(0, 0)], (4, 4), sigma=0), "sigma must be positive"),
    (lambda: imgaug.Hue((0, 500)), "range must be two numbers"),
    (lambda: imgaug.Brightness(0), "delta must be positive"),
    (lambda: imgaug.BrightnessScale((2, 1)), "range must be two numbers"),
    (lambda: imgaug.Contrast(1), "factor_range must be two numbers"),
    (lambda: imgaug.Saturation(1), "alpha must be from 0 to below 1"),
    (lambda: imgaug.Lighting(1, [1, 2], EIGENVECTORS), "eigval of shape"),
    (lambda: imgaug.Gamma((-1, 0)), "range must be above -1"),
    (lambda: imgaug.Clip(3, 1), "must be two numbers"),
    (lambda: imgaug.GaussianBlur((2, 2)), "size_range must be integers"),
    (lambda: imgaug.JpegNoise((40, 101)), "quality_range must be two numbers"),
    (lambda: imgaug.GaussianNoise(-1), "sigma must not be negative"),
    (lambda: imgaug.SaltPepperNoise(0.6, 0.6), "more than 1"),
    (lambda: imgaug.Grayscale(keepdims=False, keepshape=True), "needs keepdims=True"),
    (lambda: imgaug.RandomApplyAug(3, 0.5), "expected augmentors, got int"),
    (lambda: imgaug.RandomApplyAug(imgaug.Identity(), 5), "prob must be a probability"),
    (lambda: imgaug.RandomChooseAug([]), "expected a list"),
    (lambda: imgaug.RandomChooseAug([(imgaug.Identity(), 0.3)]), "must add up to 1"),
    (lambda: imgaug.RandomOrderAug([3]), "expected augmentors, got int"),
    (lambda: imgaug.AugmentorList(imgaug.Identity()), "expected a list of augmentors"),
    (lambda: imgaug.MapImage(3), "expected functions"),
    (lambda: imgaug.TransformList([3]), "expected transforms, got int"),
]


@pytest.mark.parametrize(("make", "message"), WRONG)
def test_wrong_arguments(make: Callable[[], Any], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        make()


SMALL: list[tuple[Any, str]] = [
    (imgaug.RandomCrop(41), "41x41 pixels cannot be cut out of an image of 40x60"),
    (imgaug.CenterCrop((40, 61)), "CenterCrop: 40x61 pixels cannot be cut out"),
    (imgaug.RandomCropRandomShape(10, 10, hmax=50), "50x10 pixels cannot be cut out"),
    (imgaug.RandomCropRandomShape(61, 10), "10x61 pixels cannot be cut out"),
    (imgaug.RandomCutout(50, 5), "RandomCutout: 50x5 pixels"),
    (imgaug.CenterPaste(39), "does not fit onto 39x39"),
    (imgaug.RandomPaste((60, 40)), "RandomPaste: an image of 40x60 pixels does not fit onto 60x40"),
    (imgaug.GaussianDeform([(0, 0)], (30, 30)), "made for an image of 30x30 pixels, got one of 40x60"),
]


@pytest.mark.parametrize(("augmentor", "message"), SMALL)
def test_images_of_the_wrong_size_are_refused(augmentor: Any, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        augmentor.augment(photo())


def test_a_transform_is_for_images_of_one_size() -> None:
    for augmentor in (imgaug.Resize(10), imgaug.Flip(vert=True, prob=1), imgaug.CenterPaste(100)):
        transform = augmentor.get_transform(photo())
        with pytest.raises(UsageError, match="40x60 pixels, got one of 30x60"):
            transform.apply_image(photo()[:30])
    with pytest.raises(UsageError, match="does not fit into an image of 30x60"):
        imgaug.CenterCrop(35).get_transform(photo()).apply_image(photo()[:30])
