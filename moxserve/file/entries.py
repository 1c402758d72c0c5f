"""What a listing of a store tells, in the form in which the `os` module tells it of local files."""

from __future__ import annotations

import os
import stat as modes
from datetime import datetime
from typing import Any

from moxserve.file.filesystem import Stat

__all__ = ["ObjectEntry", "listed_result", "stat_result"]


class ObjectEntry:
    """An entry of a directory in a store, as os.DirEntry is of a local one.

    Attributes:
        name: its name in the directory.
        path: its URL.
    """

    def __init__(self, path: str, name: str, result: os.stat_result) -> None:
        self.path, self.name, self._result = path, name, result

    def is_dir(self, *, follow_symlinks: bool = True) -> bool:
        """Tell whether it is a directory."""
        del follow_symlinks
        return modes.S_ISDIR(self._result.st_mode)

    def is_file(self, *, follow_symlinks: bool = True) -> bool:
        """Tell whether it is an object."""
        return not self.is_dir(follow_symlinks=follow_symlinks)

    def is_symlink(self) -> bool:
        """Tell whether it is a link; stores have none."""
        return False

    def inode(self) -> int:
        """Return 0: stores have no numbers for objects."""
        return 0

    def stat(self, *, follow_symlinks: bool = True) -> Stat:
        """Return size, time and kind, as the listing told them."""
        return Stat(self._result, self.is_dir(follow_symlinks=follow_symlinks))

    def __fspath__(self) -> str:
        return self.path

    def __repr__(self) -> str:
        return f"<ObjectEntry {self.name!r}>"


def listed_result(found: Any) -> os.stat_result:
    """Return what a listing told of an object; None stands for a directory."""
    if found is None:
        return stat_result(True, 0, None)
    return stat_result(False, found["Size"], found["LastModified"])


def stat_result(is_directory: bool, size: int, modified: datetime | None) -> os.stat_result:
    """Make what os.stat would tell: the times are when it was written, what a store does not know is 0."""
    mode = modes.S_IFDIR | 0o755 if is_directory else modes.S_IFREG | 0o644
    seconds = int(modified.timestamp()) if modified else 0
    ns = seconds * 1_000_000_000 + (modified.microsecond * 1000 if modified else 0)
    whole, exact = (seconds,) * 3, (ns / 1e9,) * 3
    return os.stat_result((mode, 0, 0, 1, 0, 0, size, *whole, *exact, *(ns,) * 3))
