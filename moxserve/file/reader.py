"""Objects that are read: one GET that goes on where it broke, and another one after a long jump."""

from __future__ import annotations

import errno
import io
from typing import Any

from moxserve.file import stopping
from moxserve.file.client import ConflictError, Store
from moxserve.file.errors import (
    MoxFileConnectionException,
    MoxFileNotExistsException,
    MoxFileReadException,
    MoxFileRespException,
    Response,
)

__all__ = ["ObjectReader", "position"]

_COPY_CHUNK_BYTES = 1 << 20
_READ_BYTES = 256 << 10  # a read waits for all of it, and nothing ends it meanwhile
# Nearer than this it is cheaper to read on than to ask again.
_NEAR_BYTES = 1 << 20
_FIRST_WINDOW_BYTES = 1 << 20
_LAST_WINDOW_BYTES = 64 << 20


def position(offset: int, whence: int, here: int, end: int) -> int:
    """Return where `seek` leads.

    Raises:
        ValueError: `whence` is none of 0, 1 and 2.
        OSError: it is before the beginning.
    """
    if whence not in (0, 1, 2):
        raise ValueError(f"invalid whence ({whence}, should be 0, 1 or 2)")
    to = offset + (0, here, end)[whence]
    if to < 0:
        raise OSError(errno.EINVAL, f"negative position {to}")
    return to


class ObjectReader(io.RawIOBase):
    """An object that is being read. Holds no more of it than the caller asks for at a time.

    All that is read belongs to one version of the object: the rest is asked for on condition that it is still the same.

    Args:
        store: where it is.
        bucket: its bucket.
        key: its key.
        url: the same, for messages.
        etag: the version that is meant, where it is known what is there; empty: the newest, which is asked for at once.
        size: of that version.

    Attributes:
        size: of the object in bytes.
        etag: of the version that is read.

    Raises:
        MoxFileNotExistsException: it is not there.
    """

    def __init__(self, store: Store, bucket: str, key: str, url: str, *, etag: str = "", size: int = 0) -> None:
        self._store, self._key, self._url = store, {"Bucket": bucket, "Key": key}, url
        self._at = 0
        self._body: Any = None
        self._body_at = 0
        self._body_end = 0
        self._window = 0  # 0: up to the end
        self.size, self.etag = size, etag
        if not etag:
            answer = self._get({})
            self.size, self.etag = int(answer.get("ContentLength", 0)), str(answer.get("ETag", ""))
            self._body, self._body_end = answer["Body"], self.size

    name = ""
    mode = ""

    def readable(self) -> bool:
        """Yes."""
        return True

    def seekable(self) -> bool:
        """Yes."""
        return True

    def tell(self) -> int:
        """Return the position."""
        return self._at

    def seek(self, offset: int, whence: int = 0) -> int:
        """Go to a position; nothing is asked for before something is read there."""
        self._at = position(offset, whence, self._at, self.size)
        return self._at

    def readinto(self, buffer: Any) -> int:
        """Read into a buffer; fewer bytes than it holds only at the end.

        Raises:
            MoxFileReadException: the rest never came, or the object was replaced meanwhile.
        """
        self._checkClosed()
        view = memoryview(buffer).cast("B")
        wanted = max(0, min(len(view), self.size - self._at))
        done, failed = 0, 0
        while done < wanted:
            chunk, error = self._read(wanted - done)
            if chunk:
                view[done : done + len(chunk)] = chunk
                done += len(chunk)
                failed = 0
            elif error is not None:
                failed += 1
                if failed >= self._store.attempts:
                    raise self._broken(error)
                self._store.pause(failed)
        return done

    def span(self, start: int, end: int) -> ObjectReader:
        """Give a reader of a range of the same version, which counts from the object's beginning and ends at `end`."""
        part = ObjectReader(self._store, self._key["Bucket"], self._key["Key"], self._url, etag=self.etag, size=end)
        part._at = part._body_at = start
        return part

    def readall(self) -> bytes:
        """Read from here to the end."""
        data = bytearray(max(0, self.size - self._at))
        self.readinto(data)
        return bytes(data)

    def close(self) -> None:
        """Stop; a body that was not read to its end takes its connection with it."""
        self._drop()
        super().close()

    def _checkClosed(self) -> None:  # noqa: N802 - io's name
        if self.closed:
            raise ValueError("I/O operation on closed file.")

    def _read(self, wanted: int) -> tuple[bytes, Exception | None]:
        """Return what can be had in one step: bytes, or why there are none."""
        from botocore import exceptions

        stopping.check()
        broken = (exceptions.HTTPClientError, exceptions.ConnectionError, exceptions.IncompleteReadError)
        try:
            self._move(wanted)
            chunk = self._body.read(min(wanted, self._body_end - self._body_at, _READ_BYTES))
        except MoxFileConnectionException as error:
            return b"", error
        except (*broken, OSError) as error:
            if isinstance(error, MoxFileRespException):
                raise self._broken(error) from error
            self._drop()
            return b"", error
        if not chunk:
            self._drop()
            return b"", EOFError(f"it ended {self._body_end - self._body_at} bytes early")
        self._body_at += len(chunk)
        self._at += len(chunk)
        if self._body_at == self._body_end:
            self._drop()
        return chunk, None

    def _move(self, wanted: int) -> None:
        """Make the body stand at the position."""
        gap = self._at - self._body_at
        if self._body is not None and 0 < gap <= _NEAR_BYTES and self._at < self._body_end:
            self._skip(gap)
        elif gap:
            self._drop()
            self._window = _FIRST_WINDOW_BYTES
        if self._body is None:
            self._ask(wanted)

    def _ask(self, wanted: int) -> None:
        end = self.size
        if self._window:
            # After jumps only a stretch is asked for, so that its connection can be used again; longer ones while
            # reading goes on.
            end = min(end, self._at + max(self._window, wanted))
            self._window = min(self._window * 2, _LAST_WINDOW_BYTES)
        answer = self._get({"Range": f"bytes={self._at}-{end - 1}", "IfMatch": self.etag})
        self._body, self._body_at, self._body_end = answer["Body"], self._at, end
        if answer["ResponseMetadata"]["HTTPStatusCode"] != 206:
            # The store does not know ranges: all of it comes, from the beginning.
            self._body_at, self._body_end = 0, self.size
            self._skip(self._at)

    def _skip(self, count: int) -> None:
        while count:
            chunk = self._body.read(min(count, _COPY_CHUNK_BYTES))
            if not chunk:
                raise OSError("it ended early")
            count -= len(chunk)
            self._body_at += len(chunk)

    def _get(self, how: dict[str, str]) -> Any:
        with self._store.telling(self._url):
            return self._store.client.get_object(**self._key, **how)

    def _drop(self) -> None:
        if self._body is not None:
            self._body.close()
            self._body = None

    def _broken(self, error: Exception) -> MoxFileReadException:
        if isinstance(error, (ConflictError, MoxFileNotExistsException)):
            return MoxFileReadException(error.resp, f"{self._url} was replaced while it was read")  # type: ignore[union-attr]
        if isinstance(error, MoxFileRespException):
            return MoxFileReadException(error.resp, f"{self._url}: only {self._at} of {self.size} bytes came: {error}")
        return MoxFileReadException(
            Response(200, "OK", type(error).__name__, str(error)),
            f"{self._url}: only {self._at} of {self.size} bytes came in {self._store.attempts} attempts: {error}",
            hint="look at the network; set_auth(retry=...) allows more attempts",
        )
