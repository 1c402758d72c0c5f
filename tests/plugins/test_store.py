"""Inputs in a store give what the same files give on a local disk; what is missing there is told by its URL."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from moxserve_plugins.image_folder.config import ImageFolder
from moxserve_plugins.mnist_idx.config import MnistIdx
from moxserve_plugins.numpy_arrays.config import NumpyArrays
from moxserve_plugins.table.config import Table

from moxserve import file
from moxserve.errors import DataError

Read = Callable[..., list[list[np.ndarray]]]


def write_images(folder: Path, digits_dir: Path) -> None:
    for label in "01":
        (folder / label).mkdir(parents=True)
        for source in sorted((digits_dir / "images" / "eval" / label).iterdir())[:5]:
            shutil.copy(source, folder / label)


def write_arrays(folder: Path, digits_dir: Path) -> None:
    folder.mkdir()
    np.save(folder / "x.npy", np.arange(12, dtype=np.float32).reshape(6, 2))
    np.savez(folder / "both.npz", x=np.arange(6), name=np.array(list("abcdef")))


def write_rows(folder: Path, digits_dir: Path) -> None:
    folder.mkdir()
    (folder / "rows.csv").write_text("a,b\n" + "".join(f"{n},{n % 2}\n" for n in range(6)))


def write_idx(folder: Path, digits_dir: Path) -> None:
    shutil.copytree(digits_dir / "idx", folder)


Case = tuple[Callable[[Path, Path], None], Callable[[str], Any]]
CASES: dict[str, Case] = {
    "images": (write_images, lambda url: ImageFolder(eval_dir=url, batch_size=4)),
    "images, each time": (write_images, lambda url: ImageFolder(eval_dir=url, batch_size=4, cache_mb=0)),
    "idx": (write_idx, lambda url: MnistIdx(dir=url, batch_size=200)),
    "npy": (write_arrays, lambda url: NumpyArrays(eval={"x": f"{url}/x.npy"}, names=["x"], batch_size=4)),
    "npz": (write_arrays, lambda url: NumpyArrays(eval=f"{url}/both.npz", names=["x", "name"], batch_size=4)),
    "csv": (
        write_rows,
        lambda url: Table(eval=f"{url}/rows.csv", columns={"a": "float32"}, label="b", batch_size=4),
    ),
}


@pytest.mark.parametrize("name", list(CASES))
def test_the_same_comes_from_a_store(name: str, store: Any, digits_dir: Path, tmp_path: Path, read_batches: Read):
    write, plugin = CASES[name]
    write(tmp_path / "in", digits_dir)
    file.copy_parallel(tmp_path / "in", f"{store.base}/in")
    here, there = plugin(str(tmp_path / "in")), plugin(f"{store.base}/in")
    assert list(there.check()) == []
    one, two = (read_batches(each.build(), "EVAL") for each in (here, there))
    assert len(one) == len(two) >= 2
    for a, b in zip(one, two, strict=True):
        for left, right in zip(a, b, strict=True):
            np.testing.assert_array_equal(left, right)
    assert here.build().row_names == there.build().row_names or name == "csv"


@pytest.mark.slow
def test_training_images_come_from_a_store(store: Any, digits_dir: Path, tmp_path: Path, read_batches: Read):
    write_images(tmp_path / "in", digits_dir)
    url = f"{store.base}/in"
    file.copy_parallel(tmp_path / "in", url)
    batches = read_batches(ImageFolder(train_dir=url, batch_size=5, cache_mb=0, seed=1).build(), "TRAIN", 4)
    assert [labels.shape for _, labels in batches] == [(5,)] * 4
    assert np.bincount(np.concatenate([labels for _, labels in batches[:2]])).tolist() == [5, 5]


def test_what_is_missing_is_told_by_its_url(store: Any, digits_dir: Path, tmp_path: Path):
    url = f"{store.base}/in"
    file.write(f"{url}/a", "x")
    with pytest.raises(DataError, match=f"no such file: '{url}/none.npz'"):
        NumpyArrays(eval=f"{url}/none.npz", names=["x"], batch_size=4).build()
    with pytest.raises(DataError, match=f"'{url}' lacks train-images"):
        MnistIdx(dir=url, batch_size=4).build()
    with pytest.raises(DataError, match=f"'{url}' holds no class folder"):
        ImageFolder(eval_dir=url, batch_size=4).build()


def test_an_image_that_is_none_is_named(store: Any, digits_dir: Path, tmp_path: Path):
    write_images(tmp_path / "in", digits_dir)
    url = f"{store.base}/in"
    file.copy_parallel(tmp_path / "in", url)
    file.write(f"{url}/1/z.png", b"no image")
    bundle = ImageFolder(eval_dir=url, batch_size=4).build()
    assert bundle.diagnose is not None
    assert str(bundle.diagnose()).startswith(f"{url}/1/z.png cannot be decoded")
