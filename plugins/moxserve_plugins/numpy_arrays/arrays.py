"""Arrays in .npz and .npy files: names, dtypes and shapes from the headers, data when needed. No pickles."""

from __future__ import annotations

import zipfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from moxserve.errors import DataError, did_you_mean
from moxserve.file import File
from moxserve.file.filesystem import is_remote

__all__ = ["ArraySpec", "check_alike", "read_arrays", "read_specs"]


@dataclass(frozen=True)
class ArraySpec:
    """An array that was not read.

    Attributes:
        name: as in the configuration.
        dtype: as stored.
        shape: as stored; rows first.
    """

    name: str
    dtype: np.dtype[Any]
    shape: tuple[int, ...]


def read_specs(source: str | Mapping[str, str], names: Sequence[str]) -> list[ArraySpec]:
    """Read the headers of the named arrays.

    Raises:
        DataError: a file or name is missing, a file is none of NumPy's, objects are pickled, or rows differ in number.
    """
    specs = [ArraySpec(name, *_header(source, name)) for name in names]
    for spec in specs:
        if not spec.shape:
            raise DataError(
                f"array {spec.name!r} of {_where(source)} is a scalar; expected rows in the first dimension"
            )
        if spec.shape[0] != specs[0].shape[0]:
            first = specs[0]
            raise DataError(
                f"{_where(source)}: {first.name!r} has {first.shape[0]} rows and {spec.name!r} has {spec.shape[0]}"
            )
        if spec.dtype.hasobject:
            raise DataError(
                f"array {spec.name!r} of {_where(source)} holds pickled objects; save it as numbers or text"
            )
    if specs[0].shape[0] == 0:
        raise DataError(f"{_where(source)} has no rows")
    return specs


def read_arrays(source: str | Mapping[str, str], names: Sequence[str]) -> list[np.ndarray[Any, Any]]:
    """Read the named arrays; text becomes bytes objects, as TensorFlow's strings are.

    Raises:
        DataError: a file cannot be read.
    """
    try:
        if isinstance(source, str):
            with File(source, "rb") as f, np.load(f, allow_pickle=False) as archive:
                arrays = [archive[name] for name in names]
        else:
            arrays = [_load(source[name]) for name in names]
    except (OSError, ValueError, zipfile.BadZipFile) as error:
        raise DataError(f"{_where(source)} cannot be read: {error}") from None
    return [np.char.encode(a, "utf-8").astype(object) if a.dtype.kind == "U" else _bytes(a) for a in arrays]


def _load(path: str) -> np.ndarray[Any, Any]:
    """Load one array; what is local is mapped, not read."""
    if not is_remote(path):
        return np.load(path, mmap_mode="r", allow_pickle=False)
    with File(path, "rb") as f:
        return np.load(f, allow_pickle=False)


def _bytes(array: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    return array.astype(object) if array.dtype.kind == "S" else array


def check_alike(train: Sequence[ArraySpec], evaluation: Sequence[ArraySpec]) -> str:
    """Say how evaluation differs from training in dtype or shape of a row; empty when it does not."""
    for a, b in zip(train, evaluation, strict=True):
        kinds = a.dtype.kind, b.dtype.kind
        if (a.dtype != b.dtype and not set(kinds) <= set("SU")) or a.shape[1:] != b.shape[1:]:
            return f"{a.name!r} is {a.dtype}{list(a.shape[1:])} in training and {b.dtype}{list(b.shape[1:])} here"
    return ""


def _where(source: str | Mapping[str, str]) -> str:
    return source if isinstance(source, str) else ", ".join(source.values())


def _header(source: str | Mapping[str, str], name: str) -> tuple[np.dtype[Any], tuple[int, ...]]:
    if not isinstance(source, str):
        if name not in source:
            raise DataError(f"no file for array {name!r}; {did_you_mean(name, source)}")
        path = source[name]
        with _opened(path) as f:
            return _npy_header(f, path)
    try:
        with _opened(source) as f, zipfile.ZipFile(f) as archive:
            members = [n.removesuffix(".npy") for n in archive.namelist()]
            if name not in members:
                raise DataError(f"{source} holds no array {name!r}; {did_you_mean(name, members)}")
            with archive.open(f"{name}.npy") as member:
                return _npy_header(member, f"{source}[{name}]")
    except zipfile.BadZipFile:
        raise DataError(
            f"{source} is no .npz file; several .npy files are given as a mapping of names to files"
        ) from None


def _opened(path: str) -> Any:
    """Open a file to read.

    Raises:
        DataError: it is not there, or a directory.
    """
    try:
        return File(path, "rb")
    except (FileNotFoundError, IsADirectoryError):
        raise DataError(f"no such file: {path!r}") from None


def _npy_header(f: Any, where: str) -> tuple[np.dtype[Any], tuple[int, ...]]:
    readers = {(1, 0): np.lib.format.read_array_header_1_0, (2, 0): np.lib.format.read_array_header_2_0}
    try:
        version = np.lib.format.read_magic(f)
        # Version 3 differs from 2 in the encoding of field names only, which plain arrays do not have.
        shape, _, dtype = readers.get(version, np.lib.format.read_array_header_2_0)(f)
    except ValueError as error:
        raise DataError(f"{where} is no .npy array: {error}") from None
    return dtype, tuple(shape)
