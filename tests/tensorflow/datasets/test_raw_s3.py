"""Raw data sets in a bucket: `s3://` and `obs://`, against a real server."""

from __future__ import annotations

import gc
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import moxserve.tensorflow as mox
from moxserve.errors import DataError
from moxserve.tensorflow.executor.env import tf, tf1

Read = Callable[..., list[list[Any]]]


@pytest.fixture
def bucket(store: Any, folder: Path) -> str:
    """The photographs under a prefix of a bucket; its URL."""
    for path in folder.glob("*/*.jpg"):
        store.write(f"team/photos/{path.relative_to(folder)}", path.read_bytes())
    store.write("team/photos/china/", b"")  # as consoles make folders
    store.write("team/photos-other/a/0.jpg")
    return f"s3://{store.bucket}/team/photos"


def _gets(store: Any) -> list[str]:
    return sorted(path for method, path in store.calls if method == "GET" and path.endswith(".jpg"))


@pytest.mark.slow
@pytest.mark.parametrize("scheme", ["s3", "obs"])
def test_a_bucket_gives_what_the_folder_gives(bucket: str, folder: Path, store: Any, read: Read, scheme: str):
    store.write("team/photos/labels.txt", b"0: flower\n1: china\n")
    (folder / "labels.txt").write_text("0: flower\n1: china\n")
    items = ["image_name", "label", "label_desc", "image"]
    rows = []
    for base in (str(folder), bucket.replace("s3://", f"{scheme}://") + "/"):
        metadata = mox.ImageClassificationRawMetadata(base)
        assert metadata.labels_list == ["flower", "china"]
        assert metadata.total_num_samples == 14
        rows.append(read(mox.ImageClassificationRawDataset(metadata, image_size=9, num_epochs=1, seed=4), items))
    for local, remote in zip(*rows, strict=True):
        assert all(np.array_equal(a, b) for a, b in zip(local, remote, strict=True))


@pytest.mark.slow
def test_files_are_fetched_many_at_once_and_no_further_ahead_than_capacity(bucket: str, store: Any):
    lock = threading.Condition()
    under_way, most = 0, 0

    def slowly(method: str, path: str, query: str) -> None:
        nonlocal under_way, most
        if not path.endswith(".jpg"):
            return
        with lock:
            under_way += 1
            most = max(most, under_way)
            lock.notify_all()
            lock.wait_for(lambda: most >= 3, 20)
        time.sleep(0.05)
        with lock:
            under_way -= 1

    metadata = mox.ImageClassificationRawMetadata(bucket)
    (image,) = mox.ImageClassificationRawDataset(metadata, num_readers=2, capacity=6).get(["image"])
    store.before = slowly
    with tf1.Session() as session:
        for _ in range(4):
            session.run(image)
    del session
    store.before = None
    assert 3 <= most <= 6


@pytest.mark.slow
def test_each_file_is_fetched_once_with_a_cache(bucket: str, store: Any, tmp_path: Path, read: Read):
    metadata = mox.ImageClassificationRawMetadata(bucket)
    names = metadata.samples.paths
    for kwargs in ({}, {"cache_decoded": True}):
        store.calls.clear()
        for _ in range(2):
            tf1.reset_default_graph()
            gc.collect()
            dataset = mox.ImageClassificationRawDataset(
                metadata,
                batch_size=7,
                image_size=8,
                num_epochs=1,
                cache_dir=str(tmp_path / "cache"),
                remove_cache_on_finish=False,
                **kwargs,
            )
            assert len(read(dataset, ["image"])) == 2
            del dataset
        assert len(_gets(store)) == len(names) == 14


@pytest.mark.slow
def test_windows_out_of_a_bucket_through_both_caches(bucket: str, folder: Path, tmp_path: Path, read: Read):
    vgg = mox.get_data_augmentation_fn("vgg_16", mox.ModeKeys.TRAIN, output_height=16, output_width=16)

    def batches(base: str, **kwargs: Any) -> list[list[Any]]:
        tf1.reset_default_graph()
        dataset = mox.ImageClassificationRawDataset(
            mox.ImageClassificationRawMetadata(base), 7, num_epochs=2, seed=1, augmentation_fn=vgg, **kwargs
        )
        return read(dataset, ["image"])

    expected = batches(str(folder))
    for kwargs in ({}, {"cache_dir": str(tmp_path)}, {"cache_dir": str(tmp_path), "cache_decoded": True}):
        for (a,), (b,) in zip(expected, batches(bucket, **kwargs), strict=True):
            np.testing.assert_array_equal(a, b)


def test_a_local_copy_is_read_instead(bucket: str, folder: Path, store: Any, read: Read):
    for path in (folder / "flower").iterdir():
        path.unlink()
    metadata = mox.ImageClassificationRawMetadata(bucket, redirect_dir=str(folder))
    rows = read(mox.ImageClassificationRawDataset(metadata, num_epochs=1, on_bad_image="raise"), ["image"])
    assert len(rows) == 14
    assert len(_gets(store)) == 7
    assert all("/flower/" in path for path in _gets(store))


@pytest.mark.slow
def test_an_object_that_vanished_is_a_bad_image_and_a_store_that_refuses_an_error(
    bucket: str, store: Any, read: Read, console: Any
):
    metadata = mox.ImageClassificationRawMetadata(bucket)
    assert metadata.total_num_samples == 14
    store.client.delete_object(Bucket=store.bucket, Key="team/photos/china/3.jpg")
    rows = read(mox.ImageClassificationRawDataset(metadata, num_epochs=1), ["image_name"])
    assert len(rows) == 13
    assert "china/3.jpg" in console.text
    tf1.reset_default_graph()
    store.before = lambda method, path, query: ("403 Forbidden", [], b"") if path.endswith(".jpg") else None
    with pytest.raises(tf.errors.UnknownError, match=r"s3://.*jpg"):
        read(mox.ImageClassificationRawDataset(metadata, num_epochs=1), ["image_name"])


def test_what_is_no_data_set(store: Any, bucket: str):
    with pytest.raises(DataError, match=r"base_dir 's3://.*/team/nothing': no such folder"):
        _ = mox.ImageClassificationRawMetadata(f"s3://{store.bucket}/team/nothing").num_classes


def test_labels_of_many_files_and_a_split_out_of_a_bucket(store: Any, bucket: str, folder: Path, tmp_path: Path):
    for name in ("0.jpg", "1.jpg"):
        store.write(f"team/scenes/images/{name}", (folder / "china" / name).read_bytes())
        store.write(f"team/scenes/labels/{name}.txt", b"sky\nroof")
    metadata = mox.MultilabelClassificationRawMetadata(f"s3://{store.bucket}/team/scenes")
    assert metadata.labels_list == ["roof", "sky"]
    assert metadata.total_num_samples == 2
    counts = mox.split_image_classification_dataset({"a": 0.5, "b": 0.5}, bucket, str(tmp_path / "out"))
    assert counts == {"a": 8, "b": 6}
    found = {path.relative_to(tmp_path / "out").parts[1:]: path.read_bytes() for path in tmp_path.glob("out/*/*/*.jpg")}
    assert found == {path.relative_to(folder).parts: path.read_bytes() for path in folder.glob("*/*.jpg")}
