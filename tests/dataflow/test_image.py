"""Flows of image files, and flows that augment."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest

import moxserve.dataflow as df
from moxserve.dataflow import imgaug
from moxserve.errors import DataError, UsageError


def picture(height: int = 24, width: int = 32) -> np.ndarray:
    rng = np.random.default_rng(0)
    return cv2.resize(rng.integers(0, 256, (4, 5, 3), np.uint8), (width, height))


@pytest.fixture
def files(tmp_path: Path) -> list[Path]:
    paths = []
    for i in range(4):
        paths.append(tmp_path / f"{i}.png")
        cv2.imwrite(str(paths[-1]), picture() // (i + 1))
    return paths


def test_files_are_read_as_rgb(files: list[Path]) -> None:
    flow = df.ImageFromFile(files)
    images = [dp[0] for dp in flow]
    assert len(flow) == len(images) == 4
    for i, image in enumerate(images):
        np.testing.assert_array_equal(image, (picture() // (i + 1))[..., ::-1])
    assert images[0].dtype == np.uint8


def test_gray_resized_shuffled(files: list[Path]) -> None:
    (gray,) = next(iter(df.ImageFromFile(files, channel=1)))
    assert gray.shape == (24, 32, 1)
    (small,) = next(iter(df.ImageFromFile(files, resize=(12, 10))))
    np.testing.assert_array_equal(small, cv2.resize(picture()[..., ::-1], (10, 12)))
    (square,) = next(iter(df.ImageFromFile([str(f) for f in files], resize=16)))
    assert square.shape == (16, 16, 3)
    shuffled = df.ImageFromFile(files * 5, shuffle=True)
    orders = [[int(dp[0].sum()) for dp in shuffled] for _ in range(2)]
    assert orders[0] != orders[1]
    assert sorted(orders[0]) == sorted(orders[1])


@pytest.mark.parametrize("content", [b"", b"this is text, no image", b"\x89PNG\r\n\x1a\n" + b"\0" * 20])
def test_bad_file_is_named(content: bytes, files: list[Path]) -> None:
    files[2].write_bytes(content)
    with pytest.raises(DataError, match=r"2\.png"):
        list(df.ImageFromFile(files))


def test_missing_file_is_named(files: list[Path], tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"none\.png"):
        list(df.ImageFromFile([tmp_path / "none.png"]))
    with pytest.raises(DataError, match="is a directory; expected a file"):
        list(df.ImageFromFile([tmp_path]))


@pytest.mark.parametrize(
    "arguments", [{"files": []}, {"files": "a.png"}, {"channel": 2}, {"resize": (1, 2, 3)}, {"resize": 0}]
)
def test_wrong_arguments(arguments: dict[str, Any]) -> None:
    with pytest.raises(UsageError, match="ImageFromFile"):
        df.ImageFromFile(**{"files": ["a.png"], **arguments})


class InPlace(imgaug.ImageAugmentor):
    """Writes to the image that it is given."""

    def _augment(self, img: np.ndarray, _: Any) -> np.ndarray:
        img[:] = 0
        return img


def flow_of(*dps: Any) -> df.DataFlow:
    return df.DataFromList(list(dps), shuffle=False)


def test_component_is_augmented() -> None:
    flow = df.AugmentImageComponent(flow_of((picture(), 3)), [imgaug.Resize((6, 8)), imgaug.Flip(horiz=True, prob=1)])
    ((image, label),) = flow
    assert label == 3
    np.testing.assert_array_equal(image, cv2.resize(picture(), (8, 6))[:, ::-1])
    ((kept, image),) = df.AugmentImageComponent(flow_of([0, picture()]), imgaug.Resize(5), index=1)
    assert (kept, image.shape) == (0, (5, 5, 3))
    (dp,) = df.AugmentImageComponent(flow_of({"x": picture()}), imgaug.AugmentorList([imgaug.Resize(5)]), index="x")
    assert dp["x"].shape == (5, 5, 3)


def test_copy_protects_what_the_flow_yielded() -> None:
    image = picture()
    ((changed,),) = df.AugmentImageComponent(flow_of([image]), [InPlace()])
    assert not changed.any()
    assert image.any()
    list(df.AugmentImageComponent(flow_of([image]), [InPlace()], copy=False))
    assert not image.any()


def test_errors_are_raised_or_counted(caplog: pytest.LogCaptureFixture) -> None:
    wrong = [np.zeros((2, 2), np.int64)]
    with pytest.raises(UsageError, match="uint8 or floating image, got int64"):
        list(df.AugmentImageComponent(flow_of(wrong), [imgaug.Identity()]))
    with pytest.raises(UsageError, match="got list"):
        list(df.AugmentImageComponent(flow_of([[1]]), [imgaug.Identity()]))
    dps = [[picture()], *[wrong] * 250, [picture()]]
    flow = df.AugmentImageComponent(flow_of(*dps), [imgaug.Identity()], catch_exceptions=True)
    assert len(list(flow)) == 2
    told = [r.getMessage() for r in caplog.records if "dropped a datapoint" in r.getMessage()]
    assert [int(line.rpartition(" ")[2]) for line in told] == [*range(1, 11), 100, 200]
    assert caplog.records[0].exc_info


def test_coordinates_follow_the_image() -> None:
    points = np.array([[0, 0], [31, 23]], np.float32)
    flow = df.AugmentImageCoordinates(
        flow_of([picture(), points]), [imgaug.Resize((48, 64)), imgaug.Flip(horiz=True, prob=1)]
    )
    ((image, moved),) = flow
    assert image.shape == (48, 64, 3)
    np.testing.assert_allclose(moved, [[64, 0], [2, 46]])
    assert points[0, 0] == 0
    for bad in (np.zeros((2, 3), np.float32), np.zeros((2, 2), np.int64), [[0, 0]]):
        with pytest.raises(DataError, match=r"component 1: expected coordinates"):
            list(df.AugmentImageCoordinates(flow_of([picture(), bad]), [imgaug.Identity()]))


def test_components_are_augmented_alike() -> None:
    image = picture(64, 64)
    crops = df.AugmentImageComponents(
        df.RepeatedData(flow_of({"image": image, "mask": image[..., 0].copy(), "points": np.array([[0.0, 0.0]])}), 20),
        [imgaug.RandomCrop(16), imgaug.Flip(horiz=True, prob=0.5), imgaug.RandomCrop(8)],
        index=["image", "mask"],
        coords_index=["points"],
    )
    seen = set()
    for dp in crops:
        np.testing.assert_array_equal(dp["image"][..., 0], dp["mask"])
        assert dp["image"].shape == (8, 8, 3)
        seen.add(tuple(dp["points"][0].tolist()))
    assert len(seen) > 10
    with pytest.raises(UsageError, match="at least one image"):
        df.AugmentImageComponents(crops, [], index=[])


def test_augmentors_are_checked() -> None:
    with pytest.raises(UsageError, match="expected augmentors, got function"):
        df.AugmentImageComponent(flow_of([picture()]), [test_augmentors_are_checked])  # type: ignore[list-item]


def test_example_of_the_tutorial(files: list[Path]) -> None:
    flow: df.DataFlow = df.ImageFromFile(files, shuffle=True)
    flow = df.AugmentImageComponent(flow, [imgaug.Resize((225, 225))])
    flow = df.BatchData(flow, 2)
    flow.reset_state()
    shapes = [dp[0].shape for dp in flow.get_data()]
    assert shapes == [(2, 225, 225, 3)] * 2
