"""`local_copy`: a local path for what libraries only read or write by local paths."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager

from moxserve.errors import UsageError, did_you_mean
from moxserve.file.atomic import scratch_directory
from moxserve.file.copying import Place, copy_file
from moxserve.file.filesystem import Url
from moxserve.file.trees import copy_tree

__all__ = ["local_copy"]

_MODES = ("r", "w", "r+")


@contextmanager
def local_copy(url: Url, mode: str = "r") -> Iterator[str]:
    """Give a local path that stands for a file or directory of a store while the block runs.

        with mox.file.local_copy("s3://bucket/weights.h5") as path:
            model.load_weights(path)
        with mox.file.local_copy("s3://bucket/table.h5", "w") as path:
            frame.to_hdf(path, key="df")

    The copy lies in a directory of its own, under its own name, and is gone afterwards. A local path is given as it is.

    Args:
        url: path or URL.
        mode: `r`: what is there is downloaded, changes are lost. `w`: nothing is downloaded, and what the block has
            made is uploaded when it ends, a directory too. `r+`: both. After an error nothing is uploaded.

    Yields:
        The local path.

    Raises:
        MoxFileNotExistsException: there is nothing to download, or nothing was made to be uploaded.
        UsageError: another mode.
    """
    if mode not in _MODES:
        raise UsageError(f"local_copy(mode={mode!r}): {did_you_mean(str(mode), _MODES)}")
    place = Place.of(url)
    if not place.remote:
        yield place.path
        return
    with scratch_directory() as folder:
        # Libraries go by the ending of a name, so it stays.
        local = Place.of(os.path.join(folder, os.path.basename(place.path.rstrip("/")) or "bucket"))
        if mode != "w":
            _copy(place, local)
        yield local.path
        if mode != "r":
            _copy(local, place)


def _copy(source: Place, target: Place) -> None:
    if source.fs.is_directory(source.path) and not source.fs.is_file(source.path):
        copy_tree(source, target)
    else:
        copy_file(source, target)
