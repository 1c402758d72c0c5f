"""Objects that are written: local copies that become the object when they are flushed or closed.

    w w+ r+ a+   WorkingCopy   a temporary file (in memory up to 8 MiB), uploaded when it changed
    a            Appending     what is new in a temporary file, put behind the object

An object is replaced as a whole: readers see the one before or the one after. Of a large object that has only grown the
store itself copies what it has (5 MiB and more), and the rest is sent.
"""

from __future__ import annotations

import io
from typing import TYPE_CHECKING, Any

from moxserve.file.client import ConflictError
from moxserve.file.errors import MoxFileNotExistsException, MoxFileReadException, MoxFileRespException
from moxserve.file.multipart import MIN_PART_BYTES, Copied, Piece, spool
from moxserve.file.reader import position
from moxserve.file.turns import turn

if TYPE_CHECKING:
    from moxserve.file.keys import ObjectInfo
    from moxserve.file.s3 import Bucket

__all__ = ["Appending", "WorkingCopy", "append_file"]

_COPY_CHUNK_BYTES = 1 << 20
_APPENDS = 20


class _Uploading(io.RawIOBase):
    """What the streams that write have in common: `sync` brings the object up to date."""

    name = ""
    mode = ""
    syncing = False

    def sync(self) -> None:
        """Upload what is new. A log that is written while it is uploaded (by a handler) does not begin again."""
        if self.syncing:
            return
        self.syncing = True
        try:
            self._upload()
        finally:
            self.syncing = False

    def flush(self) -> None:
        """Upload what is new."""
        if not self.closed:
            self.sync()

    def _upload(self) -> None:
        raise io.UnsupportedOperation("upload")

    def discard(self) -> None:
        """Forget what could not be uploaded."""
        raise io.UnsupportedOperation("discard")

    @property
    def size(self) -> int:
        """The size that the object has or will have."""
        raise io.UnsupportedOperation("size")


class WorkingCopy(_Uploading):
    """A local copy that becomes the object when it is flushed or closed.

    Args:
        bucket: where.
        key: of the object.
        mode: `w`, `r` or `a`, with or without `+`.

    Raises:
        MoxFileNotExistsException: mode r, and it is not there.
    """

    def __init__(self, bucket: Bucket, key: str, mode: str) -> None:
        self._bucket, self._key = bucket, key
        self._kind, self._plus = mode[0], "+" in mode
        self._file = spool()
        self._size = self._at = 0
        self._synced = 0  # how much of its beginning is as the object has it
        self._etag: str | None = None
        self._about: Any = None
        self._changed = self._kind == "w"
        if self._kind != "w":
            self._fetch()
        if self._kind == "a":
            self._at = self._size

    def _fetch(self) -> None:
        try:
            with self._bucket.open(self._key) as reader:
                chunk = bytearray(_COPY_CHUNK_BYTES)
                while count := reader.readinto(chunk):
                    self._file.write(memoryview(chunk)[:count])
                self._size = self._synced = reader.size
                self._etag = reader.etag
        except MoxFileNotExistsException:
            if self._kind == "r":
                raise
            self._changed = True
            return
        found = self._bucket.info(self._key)
        self._about = found.about if found and found.etag == self._etag else None

    def readable(self) -> bool:
        """With a plus."""
        return self._plus

    def writable(self) -> bool:
        """Yes."""
        return True

    def seekable(self) -> bool:
        """Yes."""
        return True

    def tell(self) -> int:
        """Return the position."""
        return self._at

    def seek(self, offset: int, whence: int = 0) -> int:
        """Go to a position, also behind the end."""
        self._at = position(offset, whence, self._at, self._size)
        return self._at

    @property
    def size(self) -> int:
        """The size with all that was written."""
        return self._size

    def discard(self) -> None:
        """Forget what could not be uploaded."""
        self._changed = False

    def readinto(self, buffer: Any) -> int:
        """Read into a buffer."""
        if not self._plus:
            raise io.UnsupportedOperation("not readable")
        self._file.seek(self._at)
        data = self._file.read(len(buffer))
        buffer[: len(data)] = data
        self._at += len(data)
        return len(data)

    def write(self, data: Any) -> int:
        """Write at the position; in mode a at the end."""
        view = memoryview(data).cast("B")
        if self._kind == "a":
            self._at = self._size
        self._touch(min(self._at, self._size))
        self._file.seek(self._at)
        self._file.write(view)
        self._at += len(view)
        self._size = max(self._size, self._at)
        return len(view)

    def truncate(self, size: int | None = None) -> int:
        """Cut or stretch it to a size, by default the position."""
        size = self._at if size is None else size
        self._touch(min(size, self._size))
        self._file.truncate(size)
        if size > self._size:
            self._file.seek(size - 1)
            self._file.write(b"\0")
        self._size = size
        return size

    def close(self) -> None:
        """Upload what has changed."""
        if self.closed:
            return
        try:
            self.sync()
        finally:
            self.discard()
            self._file.close()
            super().close()

    def _touch(self, first: int) -> None:
        self._changed = True
        self._synced = min(self._synced, first)

    def _upload(self) -> None:
        if not self._changed:
            return
        self._changed = False
        size = self._size
        try:
            self._etag = self._send(size)
        except BaseException:
            self._changed = True
            raise
        self._synced = min(size, self._synced) if self._changed else size

    def _send(self, size: int) -> str:
        etag, kept, about = self._etag, self._synced, self._about
        condition: dict[str, str] = {}
        if self._kind != "w":
            condition = {"IfMatch": etag} if etag else {"IfNoneMatch": "*"}
        if etag and kept >= MIN_PART_BYTES:
            pieces: list[Piece | Copied] = [Copied(self._bucket.name, self._key, etag, 0, kept)]
            if size > kept:
                pieces.append(Piece.of_file(self._file, kept, size - kept))
            try:
                return self._bucket.compose(pieces, self._key, condition, about)
            except MoxFileRespException as error:
                # Replaced by somebody else, which mode w does not care for; or the store cannot copy parts.
                if condition and error.resp.status != 501:
                    raise
        return self._bucket.upload_file(self._file, size, self._key, condition, about)


class Appending(_Uploading):
    """Mode a: what is written goes behind whatever the object is at that moment.

    Args:
        bucket: where.
        key: of the object; it is made if it is not there.
    """

    def __init__(self, bucket: Bucket, key: str) -> None:
        self._bucket, self._key = bucket, key
        self._file = spool()
        self._new = 0
        found = bucket.info(key)
        self._start = found.size_bytes if found else 0
        self._made = found is not None

    def writable(self) -> bool:
        """Yes."""
        return True

    def seekable(self) -> bool:
        """Yes, although all is written at the end."""
        return True

    def tell(self) -> int:
        """Return the position, which is always the end."""
        return self._start + self._new

    def seek(self, offset: int, whence: int = 0) -> int:
        """Stay at the end, where the next write goes."""
        position(offset, whence, self.tell(), self.tell())
        return self.tell()

    @property
    def size(self) -> int:
        """The size with all that was written."""
        return self.tell()

    def discard(self) -> None:
        """Forget what could not be uploaded."""
        self._new, self._made = 0, True

    def write(self, data: Any) -> int:
        """Write at the end."""
        view = memoryview(data).cast("B")
        self._file.seek(self._new)
        self._file.write(view)
        self._new += len(view)
        return len(view)

    def close(self) -> None:
        """Upload what is new."""
        if self.closed:
            return
        try:
            self.sync()
        finally:
            self.discard()
            self._file.close()
            super().close()

    def _upload(self) -> None:
        if not self._new and self._made:
            return
        count = self._new
        self._start = append_file(self._bucket, self._key, self._file, count)
        self._made = True
        if self._new == count:
            self._file.seek(0)
            self._file.truncate()
            self._new = 0
            return
        # A log grew while it was uploaded.
        self._file.seek(count)
        rest = self._file.read()
        self._file.seek(0)
        self._file.write(rest)
        self._file.truncate()
        self._new = len(rest)


def append_file(bucket: Bucket, key: str, f: Any, size: int) -> int:
    """Put the first bytes of a file behind an object, which is made if it is not there.

    What others append at the same time is kept: the write is refused by the store if the object has changed since it
    was looked at, and then done again.

    Args:
        bucket: where.
        key: of the object.
        f: the file.
        size: how many bytes.

    Returns:
        The size of the object.

    Raises:
        MoxFileRespException: the store refuses, or the object changes all the time.
    """
    attempt = 0
    while True:
        attempt += 1
        try:
            with turn(f"{bucket.name}/{key}"):  # there are stores that cannot refuse
                return _append_once(bucket, key, f, size)
        except (ConflictError, MoxFileReadException):
            if attempt >= _APPENDS:
                raise
            bucket.store.pause(attempt)


def _append_once(bucket: Bucket, key: str, f: Any, size: int) -> int:
    found = bucket.info(key)
    if found is None:
        bucket.upload_file(f, size, key, {"IfNoneMatch": "*"})
        return size
    _extend(bucket, key, found, f, size)
    return found.size_bytes + size


def _extend(bucket: Bucket, key: str, found: ObjectInfo, f: Any, size: int) -> None:
    condition = {"IfMatch": found.etag}
    if found.size_bytes >= MIN_PART_BYTES:
        old = Copied(bucket.name, key, found.etag, 0, found.size_bytes)
        pieces: list[Piece | Copied] = [old, Piece.of_file(f, 0, size)]
        try:
            bucket.compose(pieces, key, condition, found.about)
            return
        except MoxFileRespException as error:
            if error.resp.status != 501:
                raise
    with spool() as whole:
        length = bucket.download(key, whole)
        f.seek(0)
        left = size
        while left and (chunk := f.read(min(left, _COPY_CHUNK_BYTES))):
            whole.write(chunk)
            left -= len(chunk)
        bucket.upload_file(whole, length + size, key, condition, found.about)
