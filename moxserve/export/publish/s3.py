"""Versions in a bucket, which has no rename: what makes a version one is its marker, `saved_model.pb`.

    BASE/.moxserve-tmp-OWNER/…        1. all files are uploaded here; the name is no number, so no server looks
    BASE/.moxserve-reserved/7         2. the number is taken: written on condition that it is not there, content OWNER
    BASE/7/…                          3. copied by the store, seconds instead of minutes; saved_model.pb last
                                      4. 1 and 2 are removed

OWNER names the process (`moxserve.file.temp_name`). Who exports next removes what a dead owner left: its upload, and,
where the marker is missing, the half version that its reservation names. A version is removed in the same way: its
number is reserved, the marker goes first.
"""

from __future__ import annotations

import contextlib
import logging
import os
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor

from moxserve import file
from moxserve.errors import ExportError, MoxserveError, VersionExistsError
from moxserve.export.publish.base import ATTEMPTS, MARKERS, StagedVersion, VersionBase, exists_error
from moxserve.export.versions import AUTO, next_number
from moxserve.file import MoxFileNotExistsException
from moxserve.file.s3 import open_bucket

__all__ = ["S3Base"]

logger = logging.getLogger(__name__)

_RESERVED = ".moxserve-reserved/"
_THREADS = 8


class S3Base(VersionBase):
    """A prefix of a bucket.

    Raises:
        UsageError: the URL names no bucket.
        MissingExtraError: boto3 is not installed.
    """

    def __init__(self, url: str) -> None:
        super().__init__(url)
        self._bucket, key = open_bucket(url)
        prefix = key.strip("/")
        self._prefix = f"{prefix}/" if prefix else ""

    def path(self, name: str) -> str:
        """Return the URL of a version."""
        return self._bucket.url(self._prefix + name)

    def folders(self) -> list[str]:
        """Return the names of the folders directly below the prefix."""
        return self._bucket.folders(self._prefix)

    def in_use(self) -> list[str]:
        """Return the names of the folders, and those that are reserved."""
        start = self._prefix + _RESERVED
        return [*self.folders(), *(found.key[len(start) :] for found in self._bucket.objects(start))]

    def taken(self, name: str) -> bool:
        """Tell whether there is an object of this name, one below it, or a reservation."""
        key = self._prefix + name
        bucket = self._bucket
        return bucket.has_any(f"{key}/") or bucket.exists(key) or bucket.exists(f"{self._prefix}{_RESERVED}{name}")

    def is_model(self, name: str) -> bool:
        """Tell whether a version has its marker."""
        return any(self._bucket.exists(f"{self._prefix}{name}/{marker}") for marker in MARKERS)

    @contextlib.contextmanager
    def publication(self, version: int | str) -> Iterator[StagedVersion]:
        """Stage a version in the folder for temporary files (TMPDIR), and upload it.

        Raises:
            DataError: the store refuses, or cannot be reached. Nothing was published.
        """
        self._sweep()
        with file.scratch_directory() as staging:
            staged = StagedVersion(staging)
            yield staged
            size = file.get_size(staging)
            staged.version = self._publish(staging, version)
            staged.path, staged.size_bytes = self.path(str(staged.version)), size

    def _publish(self, staging: str, version: int | str) -> int | str:
        names = file.list_directory(staging, recursive=True, skip_dir=True)
        sizes = {name: file.get_size(os.path.join(staging, name)) for name in names}
        owner = file.temp_name()
        upload = f"{self._prefix}{owner}/"
        try:
            _in_parallel(lambda name: self._bucket.upload(os.path.join(staging, name), upload + name), names)
            with self._reservation(version, owner) as taken:
                self._make_visible(upload, f"{self._prefix}{taken}/", sizes)
        finally:
            self._try(lambda: self._delete_below(upload))
        return version if version != AUTO else int(taken)

    @contextlib.contextmanager
    def _reservation(self, version: int | str, owner: str) -> Iterator[str]:
        """Take a free number or the name that was asked for; on an error, what is there of it goes away."""
        for _ in range(ATTEMPTS):
            name = str(next_number(self.in_use(), self.url) if version == AUTO else version)
            key, start = f"{self._prefix}{_RESERVED}{name}", f"{self._prefix}{name}/"
            if self._take(key, owner):
                # Another exporter may have published it, and given its reservation back, since we looked.
                if not self._bucket.has_any(start):
                    break
                self._bucket.delete([key])
            if version != AUTO:
                raise exists_error(self, name)
        else:
            raise VersionExistsError(f"no free version number below {self.url!r} after {ATTEMPTS} attempts")
        try:
            yield name
        except BaseException:
            # The reservation last, and not at all if the rest fails: by it the next export finds the rest.
            self._try(lambda: self._delete_reserved(name))
            raise
        self._try(lambda: self._bucket.delete([key]))

    def _take(self, key: str, owner: str) -> bool:
        """Write a reservation; false where there is another one.

        There are stores that look for the object before they write, and so let two write at once. The other's write
        has arrived a moment later, and the last one counts.
        """
        begin = time.monotonic()
        if not self._bucket.put(key, owner.encode()):
            return False
        time.sleep(2 * (time.monotonic() - begin))
        try:
            return self._bucket.read(key)[0] == owner.encode()
        except MoxFileNotExistsException:
            return False

    def _make_visible(self, source: str, target: str, sizes: dict[str, int]) -> None:
        """Copy a whole upload to where readers look, what they look for last."""
        first = [name for name in sizes if name not in MARKERS]
        _in_parallel(lambda name: self._bucket.copy(source + name, target + name), first)
        stored = {found.key[len(target) :]: found.size_bytes for found in self._bucket.objects(target)}
        wrong = [name for name in first if stored.get(name) != sizes[name]]
        if wrong:
            raise ExportError(f"{self._bucket.url(target + wrong[0])} is not what was uploaded; nothing is published")
        for marker in MARKERS:
            if marker in sizes:
                self._bucket.copy(source + marker, target + marker)

    def remove(self, name: str) -> bool:
        """Remove a version, its marker first."""
        if not self._bucket.put(f"{self._prefix}{_RESERVED}{name}", file.temp_name().encode()):
            return False
        self._delete_reserved(name)
        return True

    # What is left behind

    def _delete_reserved(self, name: str) -> None:
        start = f"{self._prefix}{name}/"
        self._bucket.delete([start + marker for marker in MARKERS])
        self._delete_below(start)
        self._bucket.delete([f"{self._prefix}{_RESERVED}{name}"])

    def _delete_below(self, start: str) -> None:
        self._bucket.delete([found.key for found in self._bucket.objects(start)])

    def _try(self, remove: Callable[[], None]) -> None:
        """Remove what is of no use any more; the next export does it where this fails."""
        try:
            remove()
        except MoxserveError as error:
            logger.warning("%s: something was left behind, which the next export removes: %s", self.url, error.message)

    def _sweep(self) -> None:
        self._try(self._sweep_reservations)
        self._try(self._sweep_uploads)
        self._try(self._sweep_parts)

    def _sweep_reservations(self) -> None:
        start = self._prefix + _RESERVED
        for found in self._bucket.objects(start):
            try:
                owner, etag = self._bucket.read(found.key)
            except MoxFileNotExistsException:  # given back meanwhile
                continue
            if not file.abandoned(owner.decode(errors="replace"), found.modified.timestamp()):
                continue
            # It is taken over first: of two that sweep at once, the slower must not remove what came after.
            if not self._bucket.put(found.key, file.temp_name().encode(), replace=etag):
                continue
            name = found.key[len(start) :]
            if not self.is_model(name):
                self._delete_below(f"{self._prefix}{name}/")
            self._bucket.delete([found.key])

    def _sweep_uploads(self) -> None:
        for name in self._bucket.folders(self._prefix):
            if not name.startswith(file.TEMP_PREFIX):
                continue
            objects = self._bucket.objects(f"{self._prefix}{name}/")
            if objects and file.abandoned(name, max(found.modified for found in objects).timestamp()):
                self._bucket.delete([found.key for found in objects])

    def _sweep_parts(self) -> None:
        start = self._prefix + file.TEMP_PREFIX
        for found, upload_id in self._bucket.unfinished_uploads(start):
            owner = found.key[len(self._prefix) :].partition("/")[0]
            if file.abandoned(owner, found.modified.timestamp()):
                self._bucket.abort_upload(found.key, upload_id)


def _in_parallel(work: Callable[[str], None], names: Sequence[str]) -> None:
    """Do something for each name; the first error ends it, and what has not begun is left."""
    pool = ThreadPoolExecutor(_THREADS, thread_name_prefix="moxserve-s3")
    try:
        futures = [pool.submit(work, name) for name in names]
        for future in futures:
            future.result()
    finally:
        pool.shutdown(wait=True, cancel_futures=True)
