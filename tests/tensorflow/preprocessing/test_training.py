"""Training's augmentation: what is random, in which bounds, and what stays."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

import moxserve.tensorflow as mox
from moxserve.tensorflow.executor.env import tf, tf1
from moxserve.tensorflow.preprocessing import colors

MEANS = np.float32([123.68, 116.78, 103.94])
IMAGE = np.random.default_rng(8).integers(0, 256, (40, 52, 3), np.uint8)
NETWORKS = ["resnet_v1_50", "inception_v3", "cifarnet", "pvanet"]


def fn_for(name: str, side: int = 32, **options: Any) -> Any:
    if name in ("resnet_v1_50", "pvanet"):
        options = {"resize_side_min": 34, "resize_side_max": 38, **options}
    return mox.get_data_augmentation_fn(name, mox.ModeKeys.TRAIN, side, side, **options)


def draw(fn: Any, image: np.ndarray = IMAGE, times: int = 8, seed: int = 1) -> list[np.ndarray]:
    with tf1.Graph().as_default():
        tf1.set_random_seed(seed)
        result = fn(tf1.placeholder_with_default(image, [None, None, image.shape[2]]))
        with tf1.Session() as session:
            return [session.run(result) for _ in range(times)]


def finished(fn: Any, images: np.ndarray, seed: int = 1) -> np.ndarray:
    with tf1.Graph().as_default():
        tf1.set_random_seed(seed)
        result = fn.finish(tf.constant(images))
        assert result.shape == images.shape
        with tf1.Session() as session:
            value: np.ndarray = session.run(result)
    assert value.dtype == np.float32
    return value


@pytest.mark.parametrize("name", NETWORKS)
def test_each_draw_differs_and_a_seed_repeats_them(name: str) -> None:
    fn = fn_for(name)
    first = draw(fn)
    assert len({image.tobytes() for image in first}) == len(first)
    np.testing.assert_array_equal(first, draw(fn))
    assert not np.array_equal(first, draw(fn, seed=2))


@pytest.mark.parametrize(
    ("name", "options"), [*((name, {}) for name in NETWORKS), ("inception_v3", {"fast_mode": False})]
)
def test_the_seed_of_an_image_decides_whatever_the_order(name: str, options: dict[str, Any]) -> None:
    fn = fn_for(name, **options)
    with tf1.Graph().as_default(), tf1.Session() as session:
        seed = tf1.placeholder(tf.int64, [2])
        call = session.make_callable(fn(tf.constant(IMAGE), seed=seed), [seed])
        seeds = [(3, row) for row in range(8)] + [(4, 0)]
        first = [call(s) for s in seeds]
        again = [call(s) for s in reversed(seeds)][::-1]
    np.testing.assert_array_equal(first, again)
    assert len({image.tobytes() for image in first}) == len(seeds)


def test_seeded_crops_and_flips_are_spread_as_others() -> None:
    fn = mox.get_data_augmentation_fn("vgg_16", "TRAIN", 30, 30, resize_side_min=32, resize_side_max=32)
    y, x = np.mgrid[:32, :32]
    image = np.stack([y, x, y], -1).astype(np.uint8)
    with tf1.Graph().as_default(), tf1.Session() as session:
        seed = tf1.placeholder(tf.int64, [2])
        call = session.make_callable(fn(tf.constant(image), seed=seed), [seed])
        outputs = [np.rint(call((0, row)) + MEANS)[0, [0, -1]] for row in range(400)]
    places = [(left[0], min(left[1], right[1]), left[1] > right[1]) for left, right in outputs]
    counts = np.unique(places, axis=0, return_counts=True)[1]
    assert len(counts) == 18
    assert counts.min() > 8


@pytest.mark.slow
@pytest.mark.parametrize("name", [*NETWORKS, "lenet"])
def test_it_works_in_a_map_of_tf_data_with_images_of_unknown_shape(name: str) -> None:
    with tf1.Graph().as_default():
        signature = tf.TensorSpec(None, tf.uint8)
        images = tf.data.Dataset.from_generator(lambda: [IMAGE, IMAGE[:37, 3:]], output_signature=signature)
        batch = tf1.data.make_one_shot_iterator(images.map(fn_for(name)).batch(2)).get_next()
        assert batch.shape[1:3] == [32, 32]
        with tf1.Session() as session:
            assert session.run(batch).shape == (2, 32, 32, 3)


def resized(side: int) -> np.ndarray:
    scale = np.float32(side) / np.float32(40)
    size = [int(np.rint(np.float32(s) * scale)) for s in IMAGE.shape[:2]]
    with tf1.Graph().as_default(), tf1.Session() as session:
        value: np.ndarray = session.run(tf1.image.resize_bilinear(tf.constant(IMAGE[None]), size))[0]
    return value


@pytest.mark.slow
def test_vgg_cuts_windows_out_of_the_resized_image() -> None:
    pictures = {side: resized(side) for side in range(34, 39)}
    sides, flips, corners = set(), set(), set()
    for output in draw(fn_for("resnet_v1_50"), times=60):
        found = [
            (side, flip, y, x)
            for side, picture in pictures.items()
            for flip in (False, True)
            for y in range(picture.shape[0] - 31)
            for x in range(picture.shape[1] - 31)
            if np.allclose(
                (output[:, ::-1] if flip else output)[::9, ::9] + MEANS,
                picture[y : y + 32 : 9, x : x + 32 : 9],
                atol=1e-3,
            )
        ]
        assert len(found) == 1
        side, flip, y, _ = found[0]
        sides.add(side)
        flips.add(flip)
        corners.add((y == 0, y == pictures[side].shape[0] - 32))
    assert sides == set(pictures)
    assert flips == {False, True}
    assert {(True, False), (False, True)} <= corners


def test_pvanet_has_other_means() -> None:
    ours = finished(fn_for("pvanet"), IMAGE[None])
    np.testing.assert_allclose(ours, IMAGE[None] - np.float32([123, 117, 104]), atol=1e-5)


def test_a_large_crop_of_a_wide_image_fails_when_it_does_not_fit() -> None:
    fn = mox.get_data_augmentation_fn("vgg_16", "TRAIN", 32, 60, resize_side_min=40, resize_side_max=40)
    assert draw(fn, np.zeros([40, 61, 3], np.uint8), times=1)[0].shape == (32, 60, 3)
    with pytest.raises(tf.errors.InvalidArgumentError, match="larger than the image"):
        draw(fn, np.zeros([40, 59, 3], np.uint8), times=1)


@pytest.mark.parametrize("fast", [True, False])
@pytest.mark.parametrize("dtype", ["uint8", "float32"])
def test_inception_stays_in_its_range(fast: bool, dtype: str) -> None:
    image = IMAGE if dtype == "uint8" else IMAGE.astype(np.float32) / 255
    outputs = np.array(draw(fn_for("inception_v3", fast_mode=fast), image, times=24))
    assert outputs.min() >= -1
    assert outputs.max() <= 1
    assert outputs.max() - outputs.min() > 1.5


def test_inception_without_colours_and_crop_is_the_resized_image(monkeypatch: pytest.MonkeyPatch) -> None:
    # Brightness 0, saturation 1.
    monkeypatch.setattr(colors, "random_values", lambda draws, images, lower, upper: tf.constant((lower + upper) / 2))
    with tf1.Graph().as_default(), tf1.Session() as session:
        expected = session.run(tf1.image.resize_bilinear(tf.constant(IMAGE[None] / np.float32(255)), [20, 20]))[0]
    flips = set()
    for output in draw(fn_for("inception_v3", side=20, crop_image=False)):
        straight = np.allclose(output, (expected - 0.5) * 2, atol=1e-5)
        assert straight or np.allclose(output, (expected[:, ::-1] - 0.5) * 2, atol=1e-5)
        flips.add(straight)
    assert flips == {False, True}


def test_inception_covers_a_tenth_of_an_object() -> None:
    # The object is the only bright part: a crop that misses it would be black but for brightness.
    image = np.zeros([60, 60, 3], np.uint8)
    image[40:, 40:] = 255
    bbox = np.float32([[[40 / 60, 40 / 60, 1, 1]]])
    outputs = draw(fn_for("inception_v3", bbox=bbox), image, times=40)
    assert all(output.max() > 0.5 for output in outputs)
    assert any(output.max() < 0.5 for output in draw(fn_for("inception_v3"), image, times=40))


def test_cifarnet_crops_out_of_a_padded_image_and_standardizes() -> None:
    image = IMAGE[:32, :32]
    padded = np.pad(image.astype(np.float64), ((4, 4), (4, 4), (0, 0)))
    seen = set()
    for output in draw(fn_for("cifarnet"), image, times=20):
        np.testing.assert_allclose([output.mean(), output.std()], [0, 1], atol=1e-3)
        best = max(
            (
                np.corrcoef(
                    (output[:, ::-1] if flip else output)[..., 0].ravel(), padded[y : y + 32, x : x + 32, 0].ravel()
                )[0, 1],
                y,
                x,
                flip,
            )
            for y in range(9)
            for x in range(9)
            for flip in (False, True)
        )
        # Brightness and contrast are affine in each channel, so that one window fits it perfectly.
        assert best[0] > 1 - 1e-6
        seen.add(best[1:])
    assert len(seen) > 15
    assert {flip for *_, flip in seen} == {False, True}


def test_lenet_is_the_same_in_training() -> None:
    evaluated = mox.get_data_augmentation_fn("lenet", "EVAL")
    np.testing.assert_array_equal(draw(fn_for("lenet", side=28))[0], draw(evaluated)[0])


@pytest.mark.parametrize(
    ("name", "options"), [("inception_v3", {}), ("inception_v3", {"fast_mode": False}), ("cifarnet", {})]
)
def test_finish_draws_for_each_image(name: str, options: dict[str, Any]) -> None:
    images = np.stack([IMAGE[:32, :32]] * 12)
    fn = fn_for(name, **options)
    outputs = finished(fn, images)
    assert len({image.tobytes() for image in outputs}) == 12
    np.testing.assert_array_equal(outputs, finished(fn, images))
    assert finished(fn, images[:0]).shape == (0, 32, 32, 3)


def test_finish_keeps_each_image_in_its_place() -> None:
    levels = np.arange(30, dtype=np.uint8) * 8
    images = np.broadcast_to(levels[:, None, None, None], [30, 8, 8, 3]).copy()
    outputs = finished(fn_for("inception_v3", fast_mode=False), images)
    # A flat grey image has no contrast, hue or saturation: only brightness can change it, by up to 32 of 255.
    assert np.abs((outputs + 1) * 127.5 - images).max() <= 32.01


def values(seed: int = 0) -> np.ndarray:
    """Colours, as brightness leaves them: some are below 0 or above 1."""
    return np.random.default_rng(seed).uniform(-0.15, 1.15, (6, 5, 7, 3)).astype(np.float32)


CHANGES: dict[str, tuple[Any, Any, np.ndarray]] = {
    "brightness": (colors.brightness, tf.image.adjust_brightness, np.linspace(-0.1, 0.1, 6)),
    "saturation": (colors.saturation, tf.image.adjust_saturation, np.linspace(0.5, 1.5, 6)),
    "hue": (colors.hue, tf.image.adjust_hue, np.linspace(-0.2, 0.2, 6)),
    "contrast": (colors.contrast, tf.image.adjust_contrast, np.linspace(0.5, 1.5, 6)),
}


@pytest.mark.parametrize("name", CHANGES)
def test_colours_change_as_tensorflow_changes_them_one_image_at_a_time(name: str) -> None:
    ours, theirs, amounts = CHANGES[name]
    amounts = amounts.astype(np.float32)
    images = values()
    images[0, 0, 0] = 0.4  # grey has no hue
    images[0, 0, 1] = 0
    images[0, 0, 2] = -0.1
    with tf1.Graph().as_default(), tf1.Session() as session:
        result = session.run(ours(tf.constant(images), tf.constant(amounts.reshape(6, 1, 1, 1))))
        expected = session.run(
            [theirs(tf.constant(image), amount) for image, amount in zip(images, amounts, strict=True)]
        )
    np.testing.assert_allclose(result, expected, rtol=0, atol=2e-5)


@pytest.mark.slow
def test_summaries_are_written_in_a_graph_and_nowhere_else(eager: None) -> None:
    def tags(build: Any) -> list[str]:
        with tf1.Graph().as_default() as graph:
            build()
            return [op.name for op in graph.get_operations() if op.type == "ImageSummary"]

    image = tf1.make_tensor_proto(IMAGE)

    def call(name: str, mode: str = "TRAIN", **options: Any) -> Any:
        return lambda: mox.get_data_augmentation_fn(name, mode, 32, 32, **options)(tf1.make_ndarray(image))

    assert len(tags(call("inception_v3"))) == 4
    assert len(tags(call("cifarnet"))) == 2
    assert len(tags(call("cifarnet", "EVAL"))) == 2
    assert tags(call("inception_v3", "EVAL")) == []
    assert tags(call("inception_v3", add_image_summaries=False)) == []
    assert tags(call("cifarnet", add_image_summaries=False)) == []

    def mapped() -> None:
        tf.data.Dataset.from_tensors(IMAGE).map(mox.get_data_augmentation_fn("inception_v3", "TRAIN"))

    assert tags(mapped) == []
    assert fn_for("inception_v3")(IMAGE).shape == (32, 32, 3)


def test_it_augments_in_a_training_run(tmp_path: Any) -> None:
    def input_fn(mode: str) -> Any:
        image = tf1.data.make_one_shot_iterator(tf.data.Dataset.from_tensors(IMAGE).repeat()).get_next()
        return mox.get_data_augmentation_fn("inception_v3", mode, 16, 16)(image)

    def model_fn(inputs: list[Any], mode: str) -> mox.ModelSpec:
        (images,) = inputs
        assert images.shape == [4, 16, 16, 3]
        weight = tf1.get_variable("weight", [])
        spread = tf.reduce_mean(tf.math.reduce_std(images, 0))
        return mox.ModelSpec(loss=tf.square(weight), log_info={"spread": spread})

    result = mox.run(
        input_fn=input_fn,
        model_fn=model_fn,
        optimizer_fn=mox.get_optimizer_fn("sgd", learning_rate=0.1),
        run_mode=mox.ModeKeys.TRAIN,
        batch_size=4,
        max_number_of_steps=2,
        log_dir=str(tmp_path),
        save_summary_steps=1,
    )
    assert result.metrics["spread"] > 0.01
