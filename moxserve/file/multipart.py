"""Objects that are written in parts: sent by several threads, straight from the file; visible when all are there.

Whoever dies in between leaves parts that nobody sees, which the store's life cycle rules or an export remove.

Source: Amazon S3 API Reference (CreateMultipartUpload, UploadPart, UploadPartCopy, CompleteMultipartUpload).
"""

from __future__ import annotations

import io
import os
import tempfile
import uuid
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, BinaryIO, cast

from moxserve.file import stopping
from moxserve.file.client import BodyError, Store

__all__ = ["MIN_PART_BYTES", "WRITER", "Copied", "Piece", "Slice", "Upload", "spool"]

# Metadata that tells whose write an object is: the answer to a write that succeeded may be lost.
WRITER = "moxserve-write"
MIN_PART_BYTES = 5 << 20
_MOST_PARTS = 10_000
_THREADS = 4
_SPOOL_BYTES = 8 << 20


def spool() -> BinaryIO:
    """Give a temporary file that stays in memory while it is small; else it lies where TMPDIR says, without a name."""
    return cast(BinaryIO, tempfile.SpooledTemporaryFile(max_size=_SPOOL_BYTES))


class Slice(io.RawIOBase):
    """A part of a file as a file of its own; several may be read at once."""

    def __init__(self, fd: int, start: int, size: int) -> None:
        self._fd, self._start, self._size, self._at = fd, start, size, 0

    def readable(self) -> bool:
        """Yes."""
        return True

    def seekable(self) -> bool:
        """Yes."""
        return True

    def seek(self, offset: int, whence: int = 0) -> int:
        """Go to a position."""
        self._at = max(0, offset + (0, self._at, self._size)[whence])
        return self._at

    def tell(self) -> int:
        """Return the position."""
        return self._at

    def readinto(self, buffer: Any) -> int:
        """Read into a buffer.

        Raises:
            BodyError: the file is shorter than it was; the store would wait for the rest.
        """
        stopping.check()
        wanted = min(len(buffer), self._size - self._at)
        if wanted <= 0:
            return 0
        count = os.preadv(self._fd, [memoryview(buffer)[:wanted]], self._start + self._at)
        if not count:
            raise BodyError("the file became shorter while it was uploaded", hint="copy it again when it is complete")
        self._at += count
        return count


@dataclass(frozen=True)
class Piece:
    """Bytes of a local file, or of memory.

    Attributes:
        size: how many.
        fd: the file; -1: memory.
        start: where in the file.
        data: the memory.
    """

    size: int
    fd: int = -1
    start: int = 0
    data: bytes = b""

    @classmethod
    def of_file(cls, f: BinaryIO, start: int, size: int) -> Piece:
        """Take a range of a file, which must stay open."""
        f.flush()
        return cls(size, f.fileno(), start)

    def split(self, most: int) -> Iterator[Piece]:
        """Cut it into parts."""
        for first in range(0, self.size, most):
            size = min(most, self.size - first)
            yield Piece(size, self.fd, self.start + first, self.data[first : first + size])

    def body(self) -> Any:
        """Return what boto3 sends."""
        return self.data if self.fd < 0 else Slice(self.fd, self.start, self.size)


@dataclass(frozen=True)
class Copied:
    """Bytes of an object of the same store.

    Attributes:
        bucket: its bucket.
        key: its key.
        etag: that it must still have.
        start: where in the object.
        size: how many.
    """

    bucket: str
    key: str
    etag: str
    start: int
    size: int

    def split(self, most: int) -> Iterator[Copied]:
        """Cut it into parts, none of them smaller than half of `most` unless it is the only one."""
        count = -(-self.size // most)
        for number in range(count):
            first, end = self.size * number // count, self.size * (number + 1) // count
            yield Copied(self.bucket, self.key, self.etag, self.start + first, end - first)


class Upload:
    """One upload in parts: made, sent, completed.

    Args:
        store: where to.
        bucket: the bucket.
        key: of the object.
        url: the same, for messages.
        about: content type and metadata.
    """

    def __init__(self, store: Store, bucket: str, key: str, url: str, about: dict[str, Any]) -> None:
        self._store, self._bucket, self._key, self._url = store, bucket, key, url
        self.token = uuid.uuid4().hex
        about["Metadata"] = {**about.get("Metadata", {}), WRITER: self.token}
        about.pop("ContentMD5", None)
        self.id = store.ask(url, "create_multipart_upload", Bucket=bucket, Key=key, **about)["UploadId"]
        self._parts: list[dict[str, Any]] = []

    def send(self, pieces: Sequence[Piece | Copied], part_bytes: int, copy_bytes: int) -> None:
        """Send all parts, several at once.

        Args:
            pieces: what the object is made of.
            part_bytes: of a part that is sent; more where the object would have too many.
            copy_bytes: of a part that is copied.
        """
        total = sum(piece.size for piece in pieces)
        part_bytes = max(part_bytes, -(-total // (_MOST_PARTS - len(pieces))))
        parts = [
            part
            for piece in pieces
            if piece.size
            for part in piece.split(part_bytes if isinstance(piece, Piece) else max(copy_bytes, part_bytes))
        ]
        with stopping.working_together(_THREADS, "moxserve-parts") as pool:
            sent = [pool.submit(self._send, number, part) for number, part in enumerate(parts, start=1)]
            self._parts = [future.result() for future in sent]

    def _send(self, number: int, part: Piece | Copied) -> dict[str, Any]:
        where: dict[str, Any] = {
            "Bucket": self._bucket,
            "Key": self._key,
            "UploadId": self.id,
            "PartNumber": number,
        }
        if isinstance(part, Piece):
            etag = self._store.ask(self._url, "upload_part", Body=part.body(), **where)["ETag"]
        else:
            answer = self._store.ask(
                self._url,
                "upload_part_copy",
                CopySource={"Bucket": part.bucket, "Key": part.key},
                CopySourceIfMatch=part.etag,
                CopySourceRange=f"bytes={part.start}-{part.start + part.size - 1}",
                **where,
            )
            etag = answer["CopyPartResult"]["ETag"]
        return {"ETag": etag, "PartNumber": number}

    def complete(self, condition: Mapping[str, str]) -> str:
        """Make the object visible; returns its ETag."""
        answer = self._store.ask(
            self._url,
            "complete_multipart_upload",
            Bucket=self._bucket,
            Key=self._key,
            UploadId=self.id,
            MultipartUpload={"Parts": self._parts},
            **condition,
        )
        return str(answer.get("ETag", ""))
