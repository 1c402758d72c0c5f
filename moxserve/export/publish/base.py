"""What a folder of versions can do, wherever it lies: the seam between numbering and storing."""

from __future__ import annotations

import abc
from contextlib import AbstractContextManager
from dataclasses import dataclass

from moxserve.errors import VersionExistsError
from moxserve.export.versions import AUTO

__all__ = ["ATTEMPTS", "MARKERS", "StagedVersion", "VersionBase", "exists_error"]

# Servers and SavedModel loaders take a directory for a model when it has one of these.
MARKERS = ("saved_model.pb", "saved_model.pbtxt")
ATTEMPTS = 100


@dataclass
class StagedVersion:
    """A version under construction.

    Attributes:
        staging: local directory to write into; gone when the version is published.
        path: where it is published, a path or URL; set when that has happened, empty before.
        version: number or name; -1 until the free number is taken.
        size_bytes: of all files; set with `path`.
    """

    staging: str
    path: str = ""
    version: int | str = AUTO
    size_bytes: int = 0


class VersionBase(abc.ABC):
    """The folder that holds the versions of one model.

    Args:
        url: path or URL, as the user gave it.
    """

    def __init__(self, url: str) -> None:
        self.url = url

    @abc.abstractmethod
    def path(self, name: str) -> str:
        """Return the path or URL of a version of this name."""

    @abc.abstractmethod
    def folders(self) -> list[str]:
        """Return the names of the folders directly in it; none when it does not exist."""

    def in_use(self) -> list[str]:
        """Return the names of the folders, and of those that somebody is about to make."""
        return self.folders()

    @abc.abstractmethod
    def taken(self, name: str) -> bool:
        """Tell whether there is anything of this name."""

    @abc.abstractmethod
    def is_model(self, name: str) -> bool:
        """Tell whether a folder directly in it is a complete version, and a folder of its own."""

    @abc.abstractmethod
    def publication(self, version: int | str) -> AbstractContextManager[StagedVersion]:
        """Give a staging directory, and publish it when the block ends without an exception.

        Args:
            version: normalized, not taken when last looked; -1 for the next free number.
        """

    @abc.abstractmethod
    def remove(self, name: str) -> bool:
        """Remove a version, so that whatever moment this ends at readers see all of it or none.

        Returns:
            Whether this did it; false when somebody else has, or is about to.
        """


def exists_error(base: VersionBase, name: str) -> VersionExistsError:
    """Return the error of a version that cannot be published because it is there."""
    return VersionExistsError(
        f"Export directory already exists. Please specify a different export directory: {base.path(name)}",
        hint="give a version that does not exist, or -1 to take the next free number",
    )
