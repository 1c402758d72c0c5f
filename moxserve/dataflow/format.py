"""Readers of files that hold many rows: LMDB, HDF5, npz, SVMlight. `serialize` writes what they read.

All know their length, read any row at once, and shuffle with an exact permutation a pass. Files are opened by
`reset_state`, in the process that reads.
"""

from __future__ import annotations

import os
from abc import abstractmethod
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np

from moxserve.dataflow.base import DataFlow, DataFlowReentrantGuard, ProxyDataFlow, RNGDataFlow
from moxserve.dataflow.common import MapData
from moxserve.dataflow.lmdb_file import KEYS, LmdbFile
from moxserve.dataflow.values import MAGIC, loads
from moxserve.errors import DataError, MissingExtraError, UsageError
from moxserve.file import MoxFileNotExistsException

__all__ = [
    "HDF5Data",
    "LMDBData",
    "LMDBDataDecoder",
    "LMDBDataPoint",
    "NpzData",
    "RowsData",
    "SVMLightData",
    "existing",
    "read_npz",
]


class RowsData(RNGDataFlow):
    """Base of flows over numbered rows.

    Args:
        shuffle: in another order each pass.
    """

    def __init__(self, shuffle: bool) -> None:
        self.shuffle = shuffle
        self._guard = DataFlowReentrantGuard()

    @abstractmethod
    def _row(self, number: int) -> Any:
        """Return a datapoint."""

    def __iter__(self) -> Iterator[Any]:
        """Yield all rows once.

        Raises:
            DataError: one is damaged.
        """
        with self._guard:
            count = len(self)
            for number in self.rng.permutation(count).tolist() if self.shuffle else range(count):
                yield self._row(number)


def existing(path: str | os.PathLike[str]) -> str:
    """Return a path.

    Raises:
        MoxFileNotExistsException: there is nothing.
    """
    name = os.fspath(path)
    if not os.path.exists(name):
        raise MoxFileNotExistsException(f"no such file: {name!r}")
    return name


class LMDBData(RowsData):
    """The keys and values of an LMDB database: `[key, value]`, both bytes.

    Args:
        lmdb_path: the file, or the folder that holds `data.mdb`.
        shuffle: in another order each pass. Without, in the order of `keys`.
        keys: which ones, as bytes; or how they are numbered, such as `{:08d}`, from 0 on. None for all: as the entry
            `__keys__` has them if our serializer wrote it, else as they are found.

    Raises:
        MoxFileNotExistsException: it is not there.
        DataError: it is no LMDB database, or cut off.
        MissingExtraError: lmdb is not installed.
    """

    def __init__(
        self,
        lmdb_path: str | os.PathLike[str],
        shuffle: bool = True,
        keys: Sequence[bytes] | str | None = None,
    ) -> None:
        super().__init__(shuffle)
        self.path = existing(lmdb_path)
        self.keys = self._find_keys(LmdbFile.open(self.path), keys)
        self._file: LmdbFile | None = None

    @staticmethod
    def _find_keys(file: LmdbFile, keys: Sequence[bytes] | str | None) -> list[bytes]:
        listed = file.get(KEYS)
        if isinstance(keys, str):
            return [keys.format(i).encode() for i in range(file.entries - (listed is not None))]
        if keys is not None:
            return [bytes(key) for key in keys]
        if listed is not None and bytes(listed[: len(MAGIC)]) == MAGIC:
            return list(loads(listed))
        return [key for key in file.all_keys() if key != KEYS]

    def __getstate__(self) -> dict[str, Any]:
        """A copy opens the file again."""
        return {**super().__getstate__(), "_file": None}

    def __len__(self) -> int:
        """How many keys there are."""
        return len(self.keys)

    def reset_state(self) -> None:
        """Open the file."""
        super().reset_state()
        self._file = LmdbFile.open(self.path)

    def _row(self, number: int) -> list[bytes]:
        key = self.keys[number]
        value = self._file.get(key) if self._file is not None else None
        if value is None:
            raise DataError(f"{self.path} has no key {key!r}, or the database is damaged")
        return [key, bytes(value)]


class LMDBDataDecoder(MapData):
    """Decodes the datapoints of an LMDB database.

    Args:
        lmdb_data: the database, as LMDBData.
        decoder: gets key and value, and returns the datapoint, or None to drop it.
    """

    def __init__(self, lmdb_data: DataFlow, decoder: Callable[[bytes, bytes], Any]) -> None:
        ProxyDataFlow.__init__(self, lmdb_data)
        self._decoder = decoder

    def func(self, dp: list[bytes]) -> Any:
        """Decode key and value."""
        return self._decoder(dp[0], dp[1])


class LMDBDataPoint(LMDBDataDecoder):
    """The datapoints that LMDBSerializer saved: the older name of `LMDBSerializer.load`.

    Args:
        lmdb_data: the database, as LMDBData, or its path.
        shuffle: where a path is given: in another order each pass.
        allow_pickle: read values that tensorpack pickled, too; only if you trust whoever wrote the file.
    """

    def __init__(
        self, lmdb_data: DataFlow | str | os.PathLike[str], shuffle: bool = True, allow_pickle: bool = False
    ) -> None:
        flow = lmdb_data if isinstance(lmdb_data, DataFlow) else LMDBData(lmdb_data, shuffle)
        ProxyDataFlow.__init__(self, flow)
        self._allow_pickle = allow_pickle
        self._path = getattr(flow, "path", type(flow).__name__)

    def func(self, dp: list[bytes]) -> Any:
        """Decode the value."""
        key, value = dp
        try:
            return loads(value, self._allow_pickle)
        except DataError as error:
            raise DataError(f"{self._path}: key {key!r}: {error.message}", hint=error.hint) from error


class HDF5Data(RowsData):
    """Rows of data sets in an HDF5 file, side by side: a list with one row of each; rows of uint8 of differing lengths,
    as HDF5Serializer writes bytes, are given as bytes.

    Data sets of up to `in_memory_bytes` in all are read at once; of larger files each row is read when it comes.

    Args:
        filename: the file.
        data_paths: names of the data sets in it, one for each component.
        shuffle: in another order each pass.
        in_memory_bytes: 1 GiB.

    Raises:
        MoxFileNotExistsException: it is not there.
        DataError: it is no HDF5 file or cut off, a data set is missing, or they have different numbers of rows.
        MissingExtraError: h5py is not installed.
    """

    def __init__(
        self,
        filename: str | os.PathLike[str],
        data_paths: Sequence[str],
        shuffle: bool = True,
        in_memory_bytes: int = 1 << 30,
    ) -> None:
        super().__init__(shuffle)
        self.path, self.data_paths, self._in_memory_bytes = existing(filename), list(data_paths), in_memory_bytes
        self._components: list[Any] = []
        if not self.data_paths:
            raise UsageError("HDF5Data needs the name of at least one data set")
        with self._opened() as file:
            rows = {path: len(self._dataset(file, path)) for path in self.data_paths}
        if len(set(rows.values())) > 1:
            raise DataError(f"{self.path}: the data sets have different numbers of rows: {rows}")
        self._rows = rows[self.data_paths[0]]

    def _opened(self) -> Any:
        try:
            import h5py
        except ImportError:
            raise MissingExtraError("h5py", "dataflow", "reading HDF5 files") from None
        try:
            return h5py.File(self.path, "r")
        except OSError as error:
            raise DataError(f"{self.path} is no HDF5 file, or is cut off: {error}") from None

    @contextmanager
    def _damage_told(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            raise DataError(f"{self.path} is damaged: {error}") from error

    def _dataset(self, file: Any, path: str) -> Any:
        import h5py

        found = file.get(path)
        if not isinstance(found, h5py.Dataset) or not found.shape:
            has: list[str] = []
            file.visititems(lambda name, item: has.append(name) if isinstance(item, h5py.Dataset) else None)
            raise DataError(f"{self.path} has no data set {path!r} with rows; it has {', '.join(has) or 'none'}")
        return found

    def __getstate__(self) -> dict[str, Any]:
        """A copy opens the file again."""
        return {**super().__getstate__(), "_components": []}

    def __len__(self) -> int:
        """How many rows there are."""
        return self._rows

    def reset_state(self) -> None:
        """Open the file; read it if it is small."""
        import h5py

        super().reset_state()
        file = self._opened()
        datasets = [self._dataset(file, path) for path in self.data_paths]
        self._opaque = [h5py.check_vlen_dtype(d.dtype) == np.uint8 for d in datasets]
        # What bytes of differing lengths take is known of the whole file only.
        size = os.path.getsize(self.path) if any(self._opaque) else sum(d.nbytes for d in datasets)
        if size > self._in_memory_bytes:
            self._components = datasets
            return
        with file, self._damage_told():
            self._components = [d[...] for d in datasets]

    def _row(self, number: int) -> list[Any]:
        # Bytes are rows of numbers of differing lengths.
        with self._damage_told():
            rows = [component[number] for component in self._components]
        return [r.tobytes() if opaque else r for r, opaque in zip(rows, self._opaque, strict=True)]


def read_npz(path: str | os.PathLike[str]) -> dict[str, np.ndarray]:
    """Read all arrays of an npz file; none of them pickled.

    Raises:
        MoxFileNotExistsException: it is not there.
        DataError: it is no npz file, is damaged or cut off, or holds Python objects.
    """
    name = existing(path)
    try:
        found = np.load(name, allow_pickle=False)
        if isinstance(found, np.ndarray):
            raise DataError(f"{name} is an npy file with one array; expected an npz file")
        with found:
            return {key: found[key] for key in found.files}
    except DataError:
        raise
    except Exception as error:
        # zipfile, zlib and NumPy's parser of headers have a dozen kinds of errors for damaged files.
        raise DataError(f"{name} is no npz file of plain arrays, or is damaged: {error}") from error


class NpzData(RowsData):
    """Rows of the arrays in an npz file, side by side, as `numpy.savez(path, images=..., labels=...)` writes it.

    Args:
        path: the file; it is read into memory.
        names: of the arrays, one for each component; None for all, as the file has them.
        shuffle: in another order each pass.
        as_dict: datapoints are dicts with these names, instead of lists.

    Raises:
        MoxFileNotExistsException: it is not there.
        DataError: it is no npz file of plain arrays, an array is missing, or they have different numbers of rows.
    """

    def __init__(
        self,
        path: str | os.PathLike[str],
        names: Sequence[str] | None = None,
        shuffle: bool = True,
        as_dict: bool = False,
    ) -> None:
        super().__init__(shuffle)
        self._as_dict = as_dict
        found = read_npz(path)
        missing = [name for name in names or [] if name not in found]
        if missing:
            raise DataError(f"{os.fspath(path)} has no array {missing[0]!r}; it has {', '.join(found)}")
        self._arrays = {name: found[name] for name in (found if names is None else names)}
        rows = {name: len(array) if array.ndim else None for name, array in self._arrays.items()}
        if len(set(rows.values())) != 1 or None in rows.values():
            raise DataError(f"{os.fspath(path)}: expected arrays with the same number of rows, got {rows}")
        self._rows = next(iter(rows.values())) or 0

    def __len__(self) -> int:
        """How many rows there are."""
        return self._rows

    def _row(self, number: int) -> Any:
        row = {name: array[number] for name, array in self._arrays.items()}
        return row if self._as_dict else list(row.values())


class SVMLightData(RowsData):
    """Rows of an SVMlight (LibSVM) file: `[features float64 [columns], label]`.

    Args:
        filename: the file; it is read into memory, as a sparse matrix.
        shuffle: in another order each pass.

    Raises:
        MoxFileNotExistsException: it is not there.
        DataError: it is no SVMlight file.
        MissingExtraError: scikit-learn is not installed.
    """

    def __init__(self, filename: str | os.PathLike[str], shuffle: bool = True) -> None:
        super().__init__(shuffle)
        name = existing(filename)
        try:
            from sklearn.datasets import load_svmlight_file
        except ImportError:
            raise MissingExtraError("scikit-learn", "data", "reading SVMlight files") from None
        try:
            self._features, self._labels = load_svmlight_file(name)
        except (ValueError, OSError) as error:
            raise DataError(f"{name} is no SVMlight file: {error}") from None

    def __len__(self) -> int:
        """How many rows there are."""
        return len(self._labels)

    def _row(self, number: int) -> list[Any]:
        return [self._features[number].toarray()[0], self._labels[number]]
