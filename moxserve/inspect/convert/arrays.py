"""Variables written as an npz file or as a checkpoint: the whole, or nothing."""

from __future__ import annotations

import contextlib
import os
import zipfile
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np

from moxserve import file
from moxserve.errors import DataError, ExportError, MissingExtraError, UsageError, first_line

__all__ = ["write_checkpoint", "write_npz"]


def write_npz(path: str, values: Iterable[tuple[str, np.ndarray]]) -> int:
    """Write arrays, one after the other, so that only one is held at a time.

    Args:
        path: of the file, whose directory must exist.
        values: name and value; text as bytes. A bfloat16 array is stored as its two bytes (dtype V2), since NumPy has
            no such type.

    Returns:
        Size of the file in bytes.

    Raises:
        DataError: text that NumPy cannot store, or two values of one name.
    """
    seen = set()
    with file.atomic_open(path) as f, zipfile.ZipFile(f, "w", allowZip64=True) as archive:
        for name, value in values:
            if name in seen:
                raise DataError(f"two variables are called {name!r}; an npz file holds one of each name")
            seen.add(name)
            with archive.open(f"{name}.npy", "w", force_zip64=True) as member:
                np.lib.format.write_array(member, _storable(name, value), allow_pickle=False)
    return file.get_size(path)


def _storable(name: str, value: np.ndarray) -> np.ndarray:
    if value.dtype != object:
        return np.asanyarray(value)
    flat = value.reshape(-1).tolist()
    if any(item.endswith(b"\0") for item in flat):
        raise DataError(
            f"variable {name!r} holds text that ends in a zero byte, which NumPy cannot store",
            hint="leave it out with --filter, or convert to a checkpoint",
        )
    return np.array(flat, dtype=bytes).reshape(value.shape)


def write_checkpoint(prefix: str, values: Mapping[str, np.ndarray]) -> int:
    """Write a checkpoint that tf.train.Saver and tf.train.load_checkpoint read.

    Args:
        prefix: path without `.index`; its directory must exist. A checkpoint that is there is replaced.
        values: by name of the variable.

    Returns:
        Size of its files in bytes.

    Raises:
        UsageError: there is nothing to write.
        ExportError: TensorFlow cannot write it.
        MissingExtraError: TensorFlow is not installed.
    """
    if not values:
        raise UsageError("there are no variables to write")
    folder, name = os.path.split(os.path.abspath(prefix))
    with file.staging_directory(folder) as staging:
        _save(os.path.join(staging, name), values)
        # Without its index nobody takes the rest for a checkpoint: it goes first and comes last.
        with contextlib.suppress(FileNotFoundError):
            os.remove(f"{prefix}.index")
        written = sorted(os.listdir(staging), key=lambda entry: entry.endswith(".index"))
        for entry in written:
            file.fsync_path(os.path.join(staging, entry))
            os.replace(os.path.join(staging, entry), os.path.join(folder, entry))
    file.fsync_directory(folder)
    return sum(file.get_size(os.path.join(folder, entry)) for entry in written)


def _save(prefix: str, values: Mapping[str, np.ndarray]) -> None:
    try:
        import tensorflow as tf
    except ImportError:
        raise MissingExtraError("tensorflow", "tensorflow", "writing a checkpoint") from None
    names = list(values)
    arrays = [_tensor_value(values[name]) for name in names]
    try:
        with tf.Graph().as_default(), tf.compat.v1.Session() as session:
            # Fed, not made constants: a graph holds no more than 2 GB.
            feeds: dict[Any, np.ndarray] = {tf.compat.v1.placeholder(_dtype(tf, a), a.shape): a for a in arrays}
            save = tf.raw_ops.SaveV2(
                prefix=prefix, tensor_names=names, shape_and_slices=[""] * len(names), tensors=list(feeds)
            )
            session.run(save, feeds)
    except tf.errors.OpError as error:
        # Said of the final place: the one that TensorFlow names is gone when it is read.
        reason = first_line(error).rpartition("; ")[2]
        raise ExportError(f"cannot write a checkpoint of {len(names)} variables: {reason}") from error


def _tensor_value(value: np.ndarray) -> np.ndarray:
    """Return an array as a session takes it; npz files hold text as fixed-width bytes."""
    return value.astype(object) if value.dtype.kind == "S" else value


def _dtype(tf: Any, value: np.ndarray) -> Any:
    return tf.string if value.dtype.kind in "OSU" else tf.as_dtype(value.dtype)
