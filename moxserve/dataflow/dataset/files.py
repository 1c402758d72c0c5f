"""Where the files of a data set are."""

from __future__ import annotations

import os
from collections.abc import Iterable

from moxserve.errors import UsageError, did_you_mean
from moxserve.file import MoxFileNotExistsException

__all__ = ["check_part", "default_folder", "find"]


def default_folder(name: str) -> str:
    """Return where tensorpack keeps a data set."""
    top = os.environ.get("TENSORPACK_DATASET") or os.path.join(os.path.expanduser("~"), "tensorpack_data")
    return os.path.join(top, name)


def find(dataset: str, folder: str, names: Iterable[str]) -> str:
    """Return the first of several paths in a folder that is there.

    Args:
        dataset: name of the data set, for the message.
        folder: where to look.
        names: of one file, in all its forms.

    Raises:
        MoxFileNotExistsException: none is; says what is expected where.
    """
    names = list(names)
    for name in names:
        path = os.path.join(folder, name)
        if os.path.exists(path):
            return path
    why = "has none" if os.path.isdir(folder) else "is no folder"
    raise MoxFileNotExistsException(
        f"{dataset}: expected {' or '.join(names)} in {folder!r}, which {why}",
        hint=f"put the files of {dataset} there, or give their folder as dir=...; nothing is downloaded",
    )


def check_part(dataset: str, part: str, known: tuple[str, ...] = ("train", "test")) -> str:
    """Return the name of a part of a data set.

    Raises:
        UsageError: it has no such part.
    """
    if part not in known:
        raise UsageError(f"{dataset} has no part {part!r}; {did_you_mean(str(part), known)}")
    return part
