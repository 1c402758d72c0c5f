"""Features of rows, kept on disk by what they were computed from.

    FOLDER/<trunk>/about.json        what the trunk is, for people
    FOLDER/<trunk>/<content>.npz     some rows: `keys` [n, 32] uint8, `feature_0` [n, ...], `feature_1` ...

`<trunk>` names operations and weights, a key the content of the row's inputs: what is found is what would be computed.
A file is there whole or not at all, so a run that was broken off is gone on with, and several may write at once. A file
that cannot be read is left out, and its rows are computed again.
"""

from __future__ import annotations

import hashlib
import io
import json
import os
import zipfile
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from moxserve.file import atomic_write, sweep
from moxserve.tensorflow.executor.env import tf1

__all__ = ["FeatureStore", "key_of"]

_KEY_BYTES = 32
_ROWS_A_FILE = 512


def key_of(*arrays: np.ndarray) -> bytes:
    """Name the content of one row: type, shape and bytes of its arrays."""
    found = hashlib.blake2b(digest_size=_KEY_BYTES)
    for array in arrays:
        found.update(f"{array.dtype.str}{array.shape}".encode())
        found.update(array.tobytes())
    return found.digest()


class FeatureStore:
    """The features of one trunk.

    Args:
        folder: of all trunks; made if missing.
        trunk: its name.
        about: what it is, for `about.json`.
    """

    def __init__(self, folder: str, trunk: str, about: Mapping[str, Any]) -> None:
        self.folder = os.path.join(folder, trunk)
        os.makedirs(self.folder, exist_ok=True)
        sweep(self.folder)
        self._rows: dict[bytes, tuple[np.ndarray, ...]] = {}
        self._new: list[bytes] = []
        for name in sorted(os.listdir(self.folder)):
            if name.endswith(".npz"):
                self._read(os.path.join(self.folder, name))
        atomic_write(os.path.join(self.folder, "about.json"), json.dumps(about, indent=1) + "\n")

    def __contains__(self, key: bytes) -> bool:
        """Whether the features of a row are known."""
        return key in self._rows

    def __len__(self) -> int:
        """How many rows there are."""
        return len(self._rows)

    def add(self, keys: Sequence[bytes], features: Sequence[np.ndarray]) -> None:
        """Keep the features of some rows; on disk when there are enough, or on `flush`.

        Args:
            keys: of the rows.
            features: arrays `[rows, ...]`, one for each feature tensor.
        """
        for row, key in enumerate(keys):
            if key not in self._rows:
                self._new.append(key)
                self._rows[key] = tuple(np.array(feature[row]) for feature in features)
        if len(self._new) >= _ROWS_A_FILE:
            self.flush()

    def flush(self) -> None:
        """Write what is not on disk yet."""
        if not self._new:
            return
        keys = np.frombuffer(b"".join(self._new), np.uint8).reshape(-1, _KEY_BYTES)
        columns = zip(*(self._rows[key] for key in self._new), strict=True)
        arrays = {f"feature_{index}": np.stack(column) for index, column in enumerate(columns)}
        data = io.BytesIO()
        np.savez(data, keys=keys, **arrays)  # type: ignore[arg-type]
        atomic_write(os.path.join(self.folder, f"{key_of(keys, *arrays.values()).hex()[:16]}.npz"), data.getvalue())
        self._new = []

    def take(self, keys: Sequence[bytes]) -> list[np.ndarray]:
        """Return the features of rows, one array `[rows, ...]` for each feature tensor."""
        return [np.stack(column) for column in zip(*(self._rows[key] for key in keys), strict=True)]

    def _read(self, path: str) -> None:
        try:
            with np.load(path, allow_pickle=False) as file:
                keys = file["keys"]
                features = [file[f"feature_{index}"] for index in range(len(file.files) - 1)]
            if keys.shape[1:] != (_KEY_BYTES,) or not features or any(len(f) != len(keys) for f in features):
                raise ValueError("its arrays do not go together")
            if key_of(keys, *features).hex()[:16] != os.path.basename(path).removesuffix(".npz"):
                raise ValueError("its content is not what its name says")
        except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile) as error:
            tf1.logging.warning("%s is left out: %s", path, error)
            return
        for row, key in enumerate(keys):
            self._rows[key.tobytes()] = tuple(feature[row] for feature in features)
