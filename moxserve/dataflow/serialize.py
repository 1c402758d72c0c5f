"""Save the datapoints of a flow to a file, and load them: LMDB, npz, TFRecord, HDF5.

    LMDBSerializer.save(flow, "train.lmdb")
    flow = LMDBSerializer.load("train.lmdb", shuffle=True)

`save` writes under a temporary name and renames: a file is there, whole, or it is not. It refuses to replace a file.
What is not named otherwise is kept in the format of `values`, which runs no code when it is read; the pickles in LMDB
and TFRecord files of tensorpack are read with `allow_pickle=True` only.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np

from moxserve.dataflow.base import DataFlow
from moxserve.dataflow.batch import aggregate_batch, component
from moxserve.dataflow.format import HDF5Data, LMDBData, LMDBDataPoint, RowsData, existing, read_npz
from moxserve.dataflow.lmdb_file import KEYS, LmdbFile, write_lmdb
from moxserve.dataflow.values import dumps, loads
from moxserve.errors import DataError, MissingExtraError, UsageError
from moxserve.file import fsync_directory, fsync_path, temp_name
from moxserve.protocol.tfrecord import encode_record

__all__ = [
    "HDF5Serializer",
    "LMDBSerializer",
    "NumpySerializer",
    "OutputExistsError",
    "TFRecordSerializer",
    "dumps",
    "loads",
]

_NPZ_FORMAT = "moxserve datapoints 1"
_HDF5_ROWS = 256


class OutputExistsError(UsageError, FileExistsError):
    """What was to be written is there already."""


@contextmanager
def _new_file(path: str | os.PathLike[str]) -> Iterator[str]:
    """Give a temporary name for what will be at `path` when the block ends without an error."""
    final = os.path.abspath(os.fspath(path))
    folder = os.path.dirname(final)
    _refuse(final)
    os.makedirs(folder, exist_ok=True)
    temp = os.path.join(folder, temp_name())
    try:
        yield temp
        fsync_path(temp)
        _refuse(final)
        os.rename(temp, final)
    finally:
        if os.path.lexists(temp):
            os.remove(temp)
    fsync_directory(folder)


def _refuse(path: str) -> None:
    if os.path.lexists(path):
        raise OutputExistsError(f"{path!r} exists already", hint="remove it first, or choose another name")


def _checked(df: DataFlow) -> DataFlow:
    if not isinstance(df, DataFlow):
        raise UsageError(f"expected a DataFlow to save, got {type(df).__name__}")
    return df


class LMDBSerializer:
    """A datapoint a key, in an LMDB database: `00000000`, `00000001`, ..., and `__keys__` with all of them."""

    @staticmethod
    def save(df: DataFlow, path: str | os.PathLike[str], write_frequency: int = 5000) -> None:
        """Save.

        Args:
            df: a flow that ends.
            path: of the database; a folder gets it as `data.mdb`.
            write_frequency: datapoints in a transaction.

        Raises:
            OutputExistsError: it exists; a UsageError and a FileExistsError.
            DataError: a datapoint holds what cannot be saved.
            MissingExtraError: lmdb is not installed.
        """
        flow, name = _checked(df), os.fspath(path)

        def items() -> Iterator[tuple[bytes, bytes]]:
            keys: list[bytes] = []
            for dp in flow:
                keys.append(b"%08d" % len(keys))
                yield keys[-1], dumps(dp)
            yield KEYS, dumps(keys)

        with _new_file(os.path.join(name, "data.mdb") if os.path.isdir(name) else name) as temp:
            write_lmdb(temp, items(), max(1, write_frequency))

    @staticmethod
    def load(path: str | os.PathLike[str], shuffle: bool = True, allow_pickle: bool = False) -> DataFlow:
        """Load.

        Args:
            path: of the database.
            shuffle: in another order each pass.
            allow_pickle: read values that tensorpack pickled, too; only if you trust whoever wrote the file.

        Raises:
            MoxFileNotExistsException: it is not there.
            DataError: it is no LMDB database, is cut off, or holds something else.
            MissingExtraError: lmdb is not installed.
        """
        name = existing(path)
        if LmdbFile.open(name).get(KEYS) is None:
            raise DataError(
                f"{name} has no entry {KEYS.decode()}: no LMDBSerializer wrote it, or did not end",
                hint="read databases of other programs with LMDBData and LMDBDataDecoder",
            )
        return LMDBDataPoint(LMDBData(name, shuffle), allow_pickle=allow_pickle)


class _NpzRows(RowsData):
    """The datapoints that NumpySerializer saved."""

    def __init__(self, path: str | os.PathLike[str], shuffle: bool) -> None:
        super().__init__(shuffle)
        self._path = os.fspath(path)
        found = read_npz(path)
        if str(found.get("format")) != _NPZ_FORMAT or not {"offsets", "data"} <= set(found):
            raise DataError(
                f"{self._path} was not written by NumpySerializer; it has {', '.join(found)}",
                hint="read npz files of plain arrays with NpzData",
            )
        self._offsets, self._data = found["offsets"], found["data"]
        in_order = self._offsets.ndim == 1 and np.all(np.diff(self._offsets) >= 0)
        if not in_order or self._offsets[:1].tolist() != [0] or self._offsets[-1] != self._data.size:
            raise DataError(f"{self._path} is damaged: its offsets do not fit its data")

    def __len__(self) -> int:
        return len(self._offsets) - 1

    def _row(self, number: int) -> Any:
        try:
            return loads(self._data[self._offsets[number] : self._offsets[number + 1]])
        except DataError as error:
            raise DataError(f"{self._path}: datapoint {number}: {error.message}") from error


class NumpySerializer:
    """All datapoints in an npz file, for small data sets: it is written and read as a whole, in memory."""

    @staticmethod
    def save(df: DataFlow, path: str | os.PathLike[str]) -> None:
        """Save.

        Args:
            df: a flow that ends.
            path: of the file; taken as it is.

        Raises:
            OutputExistsError: it exists; a UsageError and a FileExistsError.
            DataError: a datapoint holds what cannot be saved.
        """
        with _new_file(path) as temp:
            records = [dumps(dp) for dp in _checked(df)]
            offsets = np.cumsum([0, *map(len, records)], dtype=np.int64)
            data = np.frombuffer(b"".join(records), np.uint8)
            with open(temp, "wb") as f:
                np.savez_compressed(f, format=np.array(_NPZ_FORMAT), offsets=offsets, data=data)

    @staticmethod
    def load(path: str | os.PathLike[str], shuffle: bool = True) -> DataFlow:
        """Load.

        Args:
            path: of the file.
            shuffle: in another order each pass.

        Raises:
            MoxFileNotExistsException: it is not there.
            DataError: it is damaged, or NumpySerializer did not write it.
        """
        return _NpzRows(path, shuffle)


class _TFRecordRows(RowsData):
    """The datapoints that TFRecordSerializer saved."""

    def __init__(self, path: str, shuffle: bool, size: int | None, allow_pickle: bool) -> None:
        from moxserve.protocol.tfrecord_index import scan_file

        super().__init__(shuffle)
        self._scanned = scan_file(path)
        self._index: Any = None
        self._allow_pickle = allow_pickle
        count = len(self._scanned.lengths)
        if size is not None and size > count:
            raise DataError(f"{path} has {count} records, not {size}")
        self._size = count if size is None else size

    def __len__(self) -> int:
        return self._size

    def __getstate__(self) -> dict[str, Any]:
        return {**super().__getstate__(), "_index": None}

    def reset_state(self) -> None:
        """Open the file."""
        from moxserve.protocol.tfrecord_index import RecordIndex

        super().reset_state()
        self._index = RecordIndex([self._scanned])

    def _row(self, number: int) -> Any:
        (payload,) = self._index.read([number])
        try:
            return loads(payload, self._allow_pickle)
        except DataError as error:
            raise DataError(f"{self._index.name(number)}: {error.message}", hint=error.hint) from error


class TFRecordSerializer:
    """A datapoint a record, in a TFRecord file. The records are no tf.Examples."""

    @staticmethod
    def save(df: DataFlow, path: str | os.PathLike[str]) -> None:
        """Save.

        Args:
            df: a flow that ends.
            path: of the file.

        Raises:
            OutputExistsError: it exists; a UsageError and a FileExistsError.
            DataError: a datapoint holds what cannot be saved.
        """
        with _new_file(path) as temp, open(temp, "wb") as f:
            for dp in _checked(df):
                f.write(encode_record(dumps(dp)))

    @staticmethod
    def load(
        path: str | os.PathLike[str], shuffle: bool = False, *, size: int | None = None, allow_pickle: bool = False
    ) -> DataFlow:
        """Load.

        Args:
            path: of the file.
            shuffle: in another order each pass.
            size: read only as many, from the beginning; None for all.
            allow_pickle: read values that tensorpack pickled, too; only if you trust whoever wrote the file.

        Raises:
            MoxFileNotExistsException: it is not there.
            DataError: it is no TFRecord file, is damaged or cut off, or has fewer records than `size`.
            UsageError: `shuffle` is neither True nor False.
        """
        if not isinstance(shuffle, (bool, np.bool_)):
            raise UsageError(f"shuffle expected True or False, got {shuffle!r}", hint="give the size by name: size=...")
        return _TFRecordRows(existing(path), bool(shuffle), size, allow_pickle)


class HDF5Serializer:
    """A component a data set, in an HDF5 file that other programs read as well.

    Components are arrays of one shape and dtype, numbers, str or bytes. Numbers come back as NumPy's: int as int64,
    float as float64; str and bytes come back as bytes.
    """

    @staticmethod
    def save(df: DataFlow, path: str | os.PathLike[str], data_paths: Sequence[str]) -> None:
        """Save.

        Args:
            df: a flow that ends.
            path: of the file.
            data_paths: names of the data sets, one for each component; for dicts, the keys.

        Raises:
            OutputExistsError: it exists; a UsageError and a FileExistsError.
            DataError: datapoints have other components, or components have different shapes.
            MissingExtraError: h5py is not installed.
        """
        try:
            import h5py
        except ImportError:
            raise MissingExtraError("h5py", "dataflow", "writing HDF5 files") from None
        names = list(data_paths)
        if not names or len(set(names)) < len(names):
            raise UsageError(f"HDF5Serializer needs a name for each component, each once; got {names}")
        with _new_file(path) as temp, h5py.File(temp, "w") as file:
            group: list[list[Any]] = []
            for dp in _checked(df):
                group.append(_components(dp, names))
                if len(group) == _HDF5_ROWS:
                    _append(file, names, group)
                    group = []
            _append(file, names, group)

    @staticmethod
    def load(path: str | os.PathLike[str], data_paths: Sequence[str], shuffle: bool = True) -> DataFlow:
        """Load.

        Args:
            path: of the file.
            data_paths: names of the data sets, one for each component.
            shuffle: in another order each pass.

        Raises:
            MoxFileNotExistsException: it is not there.
            DataError: it is no HDF5 file or cut off, a data set is missing, or they have different numbers of rows.
            MissingExtraError: h5py is not installed.
        """
        return HDF5Data(path, data_paths, shuffle)


def _components(dp: Any, names: Sequence[str]) -> list[Any]:
    if isinstance(dp, dict):
        return [component(dp, name) for name in names]
    if not isinstance(dp, (list, tuple)) or len(dp) != len(names):
        has = f"{len(dp)} components" if isinstance(dp, (list, tuple)) else f"the type {type(dp).__name__}"
        raise DataError(f"HDF5Serializer has {len(names)} data paths; a datapoint has {has}")
    return list(dp)


def _append(file: Any, names: Sequence[str], group: Sequence[list[Any]]) -> None:
    for i, name in enumerate(names):
        values = [components[i] for components in group]
        if not values:
            if name not in file:
                file.create_dataset(name, (0,), maxshape=(None,), dtype="f8")
            continue
        array = _column(name, values)
        if name not in file:
            dtype = _vlen() if array.dtype == object else array.dtype
            file.create_dataset(name, (0, *array.shape[1:]), maxshape=(None, *array.shape[1:]), dtype=dtype)
        dataset = file[name]
        if dataset.shape[1:] != array.shape[1:] or (array.dtype != object and dataset.dtype != array.dtype):
            raise DataError(
                f"HDF5Serializer: {name!r} began with {dataset.dtype} {dataset.shape[1:]}, and goes on with"
                f" {array.dtype} {array.shape[1:]}"
            )
        start = len(dataset)
        dataset.resize(start + len(array), axis=0)
        dataset[start:] = array


def _vlen() -> Any:
    import h5py

    return h5py.vlen_dtype(np.uint8)


def _column(name: str, values: list[Any]) -> np.ndarray:
    """Make one array of the values of a component, of a type that does not depend on how large they are."""
    kinds = {type(v) for v in values}
    if kinds <= {bool, int} and kinds != {bool}:
        return np.array(values, np.int64)
    if kinds <= {bool, int, float} and float in kinds:
        return np.array(values, np.float64)
    if kinds <= {bytes, str}:
        # As numbers: HDF5's own strings end at the first zero.
        array = np.empty(len(values), object)
        for i, v in enumerate(values):
            array[i] = np.frombuffer(v.encode() if isinstance(v, str) else v, np.uint8)
        return array
    array = aggregate_batch([{name: v} for v in values])[name]
    if array.dtype.kind not in "biufc":
        raise DataError(f"HDF5Serializer cannot write {name!r}: expected numbers, str or bytes, got {array.dtype}")
    return np.asarray(array)
