"""mnist_idx and numpy: what the files hold arrives, and files that are wrong are named."""

from __future__ import annotations

import gzip
import shutil
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from moxserve_plugins.mnist_idx.config import MnistIdx
from moxserve_plugins.numpy_arrays.config import NumpyArrays
from pydantic import ValidationError

from moxserve.errors import DataError


def _mnist(folder: Path, **values: Any) -> MnistIdx:
    return MnistIdx.model_validate({"dir": str(folder), "batch_size": 100, **values})


def test_mnist_gives_what_the_digits_hold(digits_dir: Path, read_batches: Callable[..., Any]):
    from moxserve.data.digits import load_digits

    digits = load_digits()
    bundle = _mnist(digits_dir / "idx").build()
    batches = read_batches(bundle, "EVAL")
    assert [len(labels) for _, labels in batches] == [100, 100, 100, 60]
    np.testing.assert_array_equal(np.concatenate([i for i, _ in batches])[..., 0], digits.eval.images)
    np.testing.assert_array_equal(np.concatenate([label for _, label in batches]), digits.eval.labels)
    assert bundle.labels == tuple("0123456789")
    assert bundle.num_samples == {"TRAIN": 1437, "EVAL": 360, "PREDICT": 360}


def test_mnist_training_shuffles_whole_epochs(digits_dir: Path, read_batches: Callable[..., Any]):
    plugin = _mnist(digits_dir / "idx", batch_size=479, seed=3)
    batches = read_batches(plugin.build(), "TRAIN", 6)
    from moxserve.data.digits import load_digits

    expected = sorted(load_digits().train.images.sum(axis=(1, 2)).tolist())
    for epoch in (batches[:3], batches[3:]):
        rows = np.concatenate([images for images, _ in epoch])
        assert sorted(rows.sum(axis=(1, 2, 3), dtype=np.uint64).tolist()) == expected


@pytest.fixture
def idx(digits_dir: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(digits_dir / "idx", tmp_path / "idx"))


def _gz(path: Path, data: bytes) -> None:
    path.write_bytes(gzip.compress(data))


def test_mnist_files_that_are_wrong(idx: Path):
    images, labels = idx / "train-images-idx3-ubyte.gz", idx / "t10k-labels-idx1-ubyte.gz"
    assert list(_mnist(idx).check()) == []
    good = gzip.decompress(labels.read_bytes())
    _gz(labels, struct.pack(">II", 0x801, 350) + good[8:])
    assert list(_mnist(idx).check()) == [("dir", f"{str(idx)!r}: t10k has 360 images and 350 labels")]
    _gz(labels, b"\0\0\x08\x03" + good[4:])
    assert list(_mnist(idx).check()) == [("dir", f"{str(labels)!r} has 3 dimensions (images); expected 1 (labels)")]
    labels.write_bytes(good)
    assert "cannot be read, or is cut off" in next(iter(_mnist(idx).check()))[1]
    _gz(labels, good[:-1])
    with pytest.raises(DataError, match=r"has 359 bytes of data; its header \[360\] announces 360"):
        _mnist(idx).build()
    images.unlink()
    assert list(_mnist(idx).check()) == [("dir", f"{str(idx)!r} lacks train-images-idx3-ubyte.gz")]


@pytest.fixture
def arrays(tmp_path: Path) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(1)
    made = {
        "x": rng.normal(size=(7, 3)),
        "n": np.arange(7, dtype=np.int32),
        "s": np.array(["ä", "bb", "", "d", "e", "f", "g"]),
        "b": np.array([b"1", b"22", b"3", b"4", b"5", b"6", b"7"]),
        "flag": np.array([True] * 7),
    }
    np.savez_compressed(tmp_path / "data.npz", **made)
    for name, array in made.items():
        np.save(tmp_path / f"{name}.npy", array)
    return made


@pytest.mark.parametrize("kind", ["npz", "npy"])
def test_arrays_keep_their_dtypes(
    tmp_path: Path, arrays: dict[str, np.ndarray], kind: str, read_batches: Callable[..., Any]
):
    names = ["n", "x", "s", "b", "flag"]
    source = str(tmp_path / "data.npz") if kind == "npz" else {n: str(tmp_path / f"{n}.npy") for n in names}
    plugin = NumpyArrays.model_validate({"eval": source, "names": names, "batch_size": 4})
    bundle = plugin.build()
    batches = read_batches(bundle, "EVAL")
    assert [len(b[0]) for b in batches] == [4, 3]
    n, x, s, b, flag = (np.concatenate(parts) for parts in zip(*batches, strict=True))
    assert (n.dtype, x.dtype, flag.dtype) == (np.int32, np.float64, np.bool_)
    np.testing.assert_array_equal(n, arrays["n"])
    np.testing.assert_array_equal(x, arrays["x"])
    assert s.tolist() == [text.encode() for text in arrays["s"]]
    assert b.tolist() == arrays["b"].tolist()
    assert bundle.names == tuple(names)


@pytest.mark.parametrize(
    ("values", "field", "message"),
    [
        ({"train": "none.npz"}, "train", "no such file: 'none.npz'"),
        ({"train": "data.npz", "names": ["x", "labl"]}, "train", "data.npz holds no array 'labl'; known:"),
        (
            {"train": "x.npy", "names": ["x"]},
            "train",
            "x.npy is no .npz file; several .npy files are given as a mapping",
        ),
        ({"train": {"x": "x.npy"}, "names": ["x", "n"]}, "train", "no file for array 'n'; known: x"),
        ({"train": {"x": "t.txt"}, "names": ["x"]}, "train", "t.txt is no .npy array"),
        ({"train": {"x": "o.npy"}, "names": ["x"]}, "train", "array 'x' of o.npy holds pickled objects"),
        ({"train": {"x": "0.npy"}, "names": ["x"]}, "train", "array 'x' of 0.npy is a scalar"),
        ({"train": {"x": "short.npy", "n": "n.npy"}, "names": ["x", "n"]}, "train", "'x' has 2 rows and 'n' has 7"),
        ({"train": {"x": "none_at_all.npy"}, "names": ["x"]}, "train", "no such file: 'none_at_all.npy'"),
        ({"train": {"x": "empty.npy"}, "names": ["x"]}, "train", "empty.npy has no rows"),
        (
            {"train": {"x": "x.npy"}, "eval": {"x": "n.npy"}, "names": ["x"]},
            "eval",
            "'x' is float64[3] in training and int32[] here",
        ),
    ],
)
def test_arrays_that_are_wrong(
    tmp_path: Path,
    arrays: dict[str, np.ndarray],
    monkeypatch: pytest.MonkeyPatch,
    values: dict[str, Any],
    field: str,
    message: str,
):
    monkeypatch.chdir(tmp_path)
    Path("t.txt").write_text("x")
    np.save("o.npy", np.array([{}], dtype=object), allow_pickle=True)
    np.save("0.npy", np.float32(1))
    np.save("short.npy", np.zeros(2))
    np.save("empty.npy", np.zeros((0, 2)))
    plugin = NumpyArrays.model_validate({"batch_size": 1, **values})
    [(told_field, told)] = list(plugin.check())
    assert told_field == field
    assert message in told
    with pytest.raises(DataError):
        plugin.build()


def test_arrays_need_a_source():
    with pytest.raises(ValidationError, match="expected train, eval or both"):
        NumpyArrays.model_validate({"batch_size": 1})
    with pytest.raises(ValidationError):
        NumpyArrays.model_validate({"batch_size": 1, "train": 5})


def test_a_mode_without_arrays(tmp_path: Path, arrays: dict[str, np.ndarray]):
    plugin = NumpyArrays.model_validate({"eval": str(tmp_path / "data.npz"), "names": ["x"], "batch_size": 1})
    with pytest.raises(DataError, match=r"input\.train is not set"):
        plugin.build().input_fn("TRAIN")
    assert plugin.describe() == "eval: 7 rows of x float64[3]"


@pytest.mark.slow
def test_a_training_that_goes_on_reads_on(digits_dir: Path, tmp_path: Path):
    import moxserve.tensorflow as mox
    from moxserve.tensorflow.executor.env import tf, tf1

    def labels(log_dir: Path, *until: int) -> list[int]:
        seen: list[int] = []

        class Note(tf1.train.SessionRunHook):
            def __init__(self, tensor: Any) -> None:
                self.tensor = tensor

            def before_run(self, run_context: Any) -> Any:
                return tf1.train.SessionRunArgs(self.tensor)

            def after_run(self, run_context: Any, run_values: Any) -> None:
                seen.extend(run_values.results.tolist())

        def model_fn(inputs: list[Any], mode: str) -> mox.ModelSpec:
            loss = tf1.get_variable("w", []) * tf.reduce_mean(tf.cast(inputs[0], tf.float32))
            return mox.ModelSpec(loss=loss, log_info={"loss": loss}, hooks=[Note(inputs[1])])

        for steps in until:
            mox.run(
                input_fn=_mnist(digits_dir / "idx", seed=3).build().input_fn,
                model_fn=model_fn,
                optimizer_fn=mox.get_optimizer_fn("sgd", learning_rate=0.1),
                run_mode=mox.ModeKeys.TRAIN,
                batch_size=100,
                auto_batch=False,
                max_number_of_steps=steps,
                log_dir=str(log_dir),
                log_every_n_steps=0,
            )
        return seen

    whole = labels(tmp_path / "whole", 20)
    assert len(whole) == 2000
    assert labels(tmp_path / "parts", 4, 15, 20) == whole
