"""Custom operations of a version: loaded before its graph, when the operator allows native code from model directories.

The manifest names the libraries that came with a model. They run in the server's process, with the server's rights, so
whoever may write into a model directory could run anything: without `--load_op_libraries` none is loaded. Libraries
that the operator names by path (`--op_library`) are the operator's own business.
"""

from __future__ import annotations

import os

from moxserve.errors import DataError, DataLoss, FailedPrecondition, MoxserveError, ServingError
from moxserve.export.manifest import Manifest, check_file, read_manifest
from moxserve.export.op_libraries import load_op_library
from moxserve.serving.backends.base import LoadOptions

__all__ = ["explained", "load_op_libraries"]

_VARIANTS = "variants"


def load_op_libraries(path: str, options: LoadOptions) -> None:
    """Load what the operator named, and what the version brings, if that is allowed.

    Args:
        path: the version, or the folder of one of its variants.
        options: of the server.

    Raises:
        DataLoss: a library of the version is missing or was changed.
        FailedPrecondition: TensorFlow cannot load one.
    """
    wanted = list(options.op_libraries)
    if options.load_op_libraries:
        version, manifest = _manifest(path)
        wanted += [_checked(version, name, manifest) for name in manifest.op_libraries] if manifest is not None else []
    try:
        for library in wanted:
            load_op_library(library)
    except MoxserveError as error:
        raise FailedPrecondition(error.message) from error


def _checked(version: str, name: str, manifest: Manifest) -> str:
    """Return the path of a library, if it is the one that was published.

    Raises:
        DataLoss: it is not.
    """
    entry = manifest.files.get(name)
    problem = check_file(version, name, entry) if entry is not None else f"{name} is not among the manifest's files"
    if problem:
        raise DataLoss(f"{version}: the op library {problem}")
    return os.path.join(version, name)


def explained(error: ServingError, path: str, options: LoadOptions) -> ServingError:
    """Add to the error of a graph that cannot be loaded that the version brings libraries that were not loaded."""
    _, manifest = _manifest(path)
    if options.load_op_libraries or manifest is None or not manifest.op_libraries:
        return error
    return FailedPrecondition(
        f"{error.message}\nThe version brings custom operations in {', '.join(manifest.op_libraries)}, and this server "
        "does not load native code from model directories; --load_op_libraries lets it, and --op_library FILE loads a "
        "copy of yours"
    )


def _manifest(path: str) -> tuple[str, Manifest | None]:
    """Return the version that a folder belongs to, and its manifest."""
    parent, name = os.path.split(os.path.abspath(path))
    version = os.path.dirname(parent) if name and os.path.basename(parent) == _VARIANTS else os.path.abspath(path)
    try:
        return version, read_manifest(version)
    except DataError as error:
        raise DataLoss(error.message) from None
