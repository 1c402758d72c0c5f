"""Custom operations: shared objects that TensorFlow loads, in the exporting process, its children and the server.

A library runs native code in the process that loads it, with all that the process may do. So nothing here loads one
that nobody named: an export is told its libraries, and a server is told to load those of a version, or its own.
TensorFlow is imported only when there is something to load.
"""

from __future__ import annotations

import hashlib
import os
import threading
from collections.abc import Iterable, Sequence
from typing import Any

from moxserve import file
from moxserve.errors import MissingExtraError, UsageError, first_line

__all__ = [
    "OP_LIBRARIES_DIR",
    "OP_LIBRARIES_VARIABLE",
    "copy_op_libraries",
    "load_inherited",
    "load_op_library",
    "loaded_op_libraries",
]

OP_LIBRARIES_DIR = os.path.join("assets.extra", "op_libraries")
OP_LIBRARIES_VARIABLE = "MOXSERVE_OP_LIBRARIES"
_CHUNK_BYTES = 1 << 20

_lock = threading.Lock()
# By content: TensorFlow refuses to register an operation a second time, and a version holds a copy of its library.
_loaded: dict[str, tuple[str, Any]] = {}


def load_op_library(path: str | os.PathLike[str]) -> Any:
    """Load a library of custom operations into this process; a second time, also from a copy, nothing happens.

    Args:
        path: the shared object, built for this TensorFlow.

    Returns:
        The module with a Python function for each operation, as `tf.load_op_library` gives it.

    Raises:
        UsageError: there is no such file, or TensorFlow cannot load it.
        MissingExtraError: TensorFlow is not installed.
    """
    name = os.path.abspath(os.fspath(path))
    if not os.path.isfile(name):
        raise UsageError(f"there is no op library {os.fspath(path)!r}; expected a shared object, .so")
    tf = _import_tensorflow()
    digest = _sha256(name)
    with _lock:
        if digest in _loaded:
            return _loaded[digest][1]
        try:
            module = tf.load_op_library(name)
        except (tf.errors.OpError, RuntimeError, OSError) as error:
            raise UsageError(
                f"TensorFlow {tf.__version__} cannot load the op library {name}: {first_line(error)}",
                hint="it must be built for this TensorFlow: tf.sysconfig.get_compile_flags() and get_link_flags()",
            ) from error
        _loaded[digest] = (name, module)
        return module


def _import_tensorflow() -> Any:
    try:
        import tensorflow as tf
    except ImportError as error:
        if error.name != "tensorflow":
            raise
        raise MissingExtraError("tensorflow", "tensorflow", "a library of custom operations") from None
    return tf


def _sha256(path: str) -> str:
    digest = hashlib.sha256()
    with open(path, "rb") as f:
        while chunk := f.read(_CHUNK_BYTES):
            digest.update(chunk)
    return digest.hexdigest()


def loaded_op_libraries() -> tuple[str, ...]:
    """Return the libraries that `load_op_library` has loaded, as absolute paths, in order."""
    with _lock:
        return tuple(path for path, _ in _loaded.values())


def load_inherited() -> None:
    """Load what the process that started this one had loaded; see `children.child_environment`.

    Raises:
        UsageError: one of them cannot be loaded any more.
    """
    for path in filter(None, os.environ.get(OP_LIBRARIES_VARIABLE, "").split(os.pathsep)):
        load_op_library(path)


def copy_op_libraries(paths: Sequence[str], directory: str, present: Iterable[str] = ()) -> tuple[str, ...]:
    """Put libraries into a version, so that whoever has the version has its operations.

    Args:
        paths: shared objects; two of one name get different ones.
        directory: the version.
        present: those that it holds already, relative to it.

    Returns:
        All that it holds then, relative to it, with forward slashes.
    """
    held = list(dict.fromkeys(present))
    digests = {_sha256(os.path.join(directory, name)) for name in held}
    for path in paths:
        digest = _sha256(path)
        if digest in digests:
            continue
        digests.add(digest)
        name = _free(os.path.join(OP_LIBRARIES_DIR, os.path.basename(path)).replace(os.sep, "/"), held)
        file.make_dirs(os.path.join(directory, OP_LIBRARIES_DIR))
        file.copy(path, os.path.join(directory, name))
        held.append(name)
    return tuple(held)


def _free(name: str, taken: Sequence[str]) -> str:
    stem, suffix = os.path.splitext(name)
    found, number = name, 0
    while found in taken:
        number += 1
        found = f"{stem}_{number}{suffix}"
    return found
