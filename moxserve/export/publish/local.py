"""Versions on a local or mounted file system: staged beside the others, flushed to disk, renamed into place."""

from __future__ import annotations

import contextlib
import os
import shutil
from collections.abc import Iterator

from moxserve import file
from moxserve.errors import ExportError, UsageError, VersionExistsError
from moxserve.export.publish.base import ATTEMPTS, MARKERS, StagedVersion, VersionBase, exists_error
from moxserve.export.versions import AUTO, next_number

__all__ = ["LocalBase"]


class LocalBase(VersionBase):
    """A directory."""

    def path(self, name: str) -> str:
        """Return the directory of a version."""
        return os.path.join(self.url, name)

    def folders(self) -> list[str]:
        """Return the names of the directories in it.

        Raises:
            UsageError: it is a file.
        """
        if file.exists(self.url) and not file.is_directory(self.url):
            raise UsageError(f"{self.url!r} is a file; expected a directory for the versions of a model")
        return file.list_directory(self.url, skip_file=True) if file.exists(self.url) else []

    def taken(self, name: str) -> bool:
        """Tell whether there is a file or directory of this name, or a link that leads nowhere."""
        return os.path.lexists(self.path(name))

    def is_model(self, name: str) -> bool:
        """Tell whether a directory holds a SavedModel, and is no link to somewhere else."""
        path = self.path(name)
        return not os.path.islink(path) and any(os.path.isfile(os.path.join(path, marker)) for marker in MARKERS)

    @contextlib.contextmanager
    def publication(self, version: int | str) -> Iterator[StagedVersion]:
        """Stage a version under a hidden name (no number, so no server takes it for one), and rename it.

        Raises:
            ExportError: nothing can be written there.
        """
        with contextlib.ExitStack() as stack:
            try:
                file.make_dirs(self.url)
                file.sweep(self.url)
                staging = stack.enter_context(file.staging_directory(self.url))
            except OSError as error:
                raise ExportError(f"nothing can be written to {self.url!r}: {error.strerror or error}") from error
            staged = StagedVersion(staging)
            yield staged
            size = file.get_size(staging)
            name = self._rename_into_place(staging, version)
            staged.version = version if version != AUTO else int(name)
            staged.path, staged.size_bytes = self.path(name), size

    def _rename_into_place(self, staging: str, version: int | str) -> str:
        if version != AUTO:
            name = str(version)
            try:
                file.publish_directory(staging, self.path(name))
            except VersionExistsError:
                raise exists_error(self, name) from None
            return name
        for _ in range(ATTEMPTS):
            name = str(next_number(self.in_use(), self.url))
            with contextlib.suppress(VersionExistsError):
                # Another exporter may take the number between the listing and the rename; then the next one is ours.
                file.publish_directory(staging, self.path(name))
                return name
        raise VersionExistsError(f"no free version number below {self.url!r} after {ATTEMPTS} attempts")

    def remove(self, name: str) -> bool:
        """Rename a version to a hidden name, then remove it; `sweep` finishes what is interrupted.

        Raises:
            OSError: it may not be renamed or removed.
        """
        hidden = os.path.join(self.url, file.temp_name())
        try:
            os.rename(self.path(name), hidden)
        except FileNotFoundError:
            return False
        file.fsync_directory(self.url)
        shutil.rmtree(hidden)
        return True
