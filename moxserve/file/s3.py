"""Objects in S3, and in stores that speak its protocol: what can be done with a bucket and exact keys.

`objects` makes a file system of it, with directories and File; publishing uses it as it is. Where stores are and who we
are there is `auth`; sending, trying again and errors are `client`; what goes in parts is `multipart`.

Source: Amazon S3 API Reference (PutObject with If-None-Match and If-Match, UploadPartCopy, DeleteObjects).
"""

from __future__ import annotations

import base64
import contextlib
import hashlib
import os
import re
import uuid
from collections.abc import Iterator, Mapping, Sequence
from datetime import datetime, timezone
from typing import Any, BinaryIO

from moxserve.errors import DataError
from moxserve.file import multipart, ranges
from moxserve.file.client import ConflictError, Store, store_of
from moxserve.file.errors import MoxFileNotExistsException, MoxFileRespException, Response
from moxserve.file.keys import ObjectInfo, StoredObject, split_url
from moxserve.file.multipart import WRITER, Copied, Piece, Slice
from moxserve.file.reader import ObjectReader

__all__ = ["Bucket", "ObjectInfo", "StoredObject", "bucket_of", "open_bucket"]

_PART_BYTES = 16 << 20
_COPY_BYTES = 256 << 20
_CHUNK_BYTES = 1 << 20
_DELETE_AT_ONCE = 1000
# Characters that keys may have, and a request to remove several may not.
_NOT_IN_XML = re.compile("[\x00-\x08\x0b\x0c\x0e-\x1f\ufffe\uffff]")


def open_bucket(url: str) -> tuple[Bucket, str]:
    """Give the bucket of a URL, and the key, which stays exactly as it is. Sends nothing yet.

    Raises:
        MissingExtraError: boto3 is not installed.
        UsageError: it names no bucket; or a setting or the bucket's name cannot be right.
    """
    scheme, bucket, key = split_url(url)
    return bucket_of(scheme, bucket), key


def bucket_of(scheme: str, bucket: str) -> Bucket:
    """Give a bucket, with the settings of this moment. Sends nothing yet.

    Args:
        scheme: `s3` or `obs`.
        bucket: its name.

    Raises:
        MissingExtraError: boto3 is not installed.
        UsageError: a setting or the bucket's name cannot be right.
    """
    return Bucket(bucket, store_of(scheme, f"{scheme}://{bucket}"), scheme)


class Bucket:
    """The objects of a bucket; may be used by several threads.

    All methods raise MoxFileRespException (a DataError) when the store refuses or cannot be reached, and UsageError
    when there are no credentials; the message tells the object and the hint what to do.

    Args:
        name: of the bucket.
        store: where it is.
        scheme: that its URLs begin with.
    """

    def __init__(self, name: str, store: Store, scheme: str = "s3") -> None:
        self.name = name
        self.store = store
        self.scheme = scheme
        self._client = store.client

    def url(self, key: str) -> str:
        """Return the URL of a key."""
        return f"{self.scheme}://{self.name}/{key}"

    def _ask(self, key: str, operation: str, **parameters: Any) -> Any:
        return self.store.ask(self.url(key), operation, Bucket=self.name, Key=key, **parameters)

    # What is there

    def pages(self, prefix: str, *, delimiter: str = "", limit: int | None = None) -> Iterator[Any]:
        """Yield the pages of a listing as boto3 gives them: `Contents` and `CommonPrefixes`.

        Args:
            prefix: what the keys start with.
            delimiter: `/` to see what is directly below only.
            limit: ask for no more than so many keys, and one page.
        """
        asked: dict[str, Any] = {"Bucket": self.name, "Prefix": prefix}
        if delimiter:
            asked["Delimiter"] = delimiter
        size = limit or self.store.connection.page_keys
        if size:
            asked["MaxKeys"] = size
        while True:
            page = self.store.ask(self.url(prefix), "list_objects_v2", **asked)
            yield page
            if limit or not page.get("IsTruncated"):
                return
            asked["ContinuationToken"] = page["NextContinuationToken"]

    def objects(self, prefix: str) -> list[StoredObject]:
        """Return all objects whose keys start with a prefix, in the order of their keys."""
        pages = self.pages(prefix)
        return [
            StoredObject(o["Key"], o["Size"], o["LastModified"]) for page in pages for o in page.get("Contents", ())
        ]

    def folders(self, prefix: str) -> list[str]:
        """Return the names directly below a prefix (empty, or with a slash at its end) that have something below."""
        pages = self.pages(prefix, delimiter="/")
        return [found["Prefix"][len(prefix) : -1] for page in pages for found in page.get("CommonPrefixes", ())]

    def has_any(self, prefix: str) -> bool:
        """Tell whether a key starts with a prefix."""
        return any(page.get("Contents") for page in self.pages(prefix, limit=1))

    def exists(self, key: str) -> bool:
        """Tell whether there is an object of this key."""
        return self.info(key) is not None

    def info(self, key: str) -> ObjectInfo | None:
        """Return what the store tells of an object; None if there is none."""
        try:
            head = self._ask(key, "head_object")
        except MoxFileNotExistsException:
            return None
        except MoxFileRespException as error:
            if error.resp.status in (400, 403):
                # An answer to HEAD has no words: this one says whether a key is wrong, or the bucket's name.
                self.has_any(key)
            raise
        return _info(head)

    # Reading

    def open(self, key: str) -> ObjectReader:
        """Begin to read an object, with one request.

        Raises:
            MoxFileNotExistsException: it is not there.
        """
        return ObjectReader(self.store, self.name, key, self.url(key))

    def read(self, key: str) -> tuple[bytes, str]:
        """Return an object's content, and its ETag.

        Raises:
            MoxFileNotExistsException: it is not there.
            MoxFileReadException: it did not arrive whole.
        """
        with self.open(key) as reader:
            return reader.readall(), reader.etag

    def download(self, key: str, out: BinaryIO, streams: int = 1) -> int:
        """Write an object's content to a file; returns its size.

        Args:
            key: of the object.
            out: where to.
            streams: how many ranges of a large object may come at once; more than one only to a regular file that is
                empty.
        """
        with self.open(key) as reader:
            if streams > 1 and reader.size >= ranges.WORTH_BYTES:
                ranges.fetch(reader, out.fileno(), streams, ranges.quick_spans(self, key, reader.etag))
                return reader.size
            buffer = memoryview(bytearray(min(_CHUNK_BYTES, max(1, reader.size))))
            while count := reader.readinto(buffer):
                out.write(buffer[:count])
            return reader.size

    # Writing

    def put(self, key: str, data: bytes, *, replace: str = "") -> bool:
        """Write a small object, if nobody else has.

        Args:
            key: of the object.
            data: its content.
            replace: the ETag of the object that is to be replaced; empty when there must be none.

        Returns:
            Whether it was written; false when there is an object of this key, or another than the one to be replaced.
        """
        try:
            self.put_if(key, data, {"IfMatch": replace} if replace else {"IfNoneMatch": "*"})
        except (ConflictError, MoxFileNotExistsException):
            return False
        return True

    def put_if(self, key: str, data: Any, condition: Mapping[str, str], about: Mapping[str, Any] | None = None) -> str:
        """Write an object in one request, on a condition.

        Args:
            key: of the object.
            data: bytes, or a file to read from.
            condition: `IfMatch` or `IfNoneMatch`; empty for none.
            about: content type and metadata.

        Returns:
            The new ETag.

        Raises:
            ConflictError: the condition does not hold.
            MoxFileNotExistsException: the object that should be replaced is gone.
        """
        asked = dict(about or {})
        token = uuid.uuid4().hex
        if condition:
            asked["Metadata"] = {**asked.get("Metadata", {}), WRITER: token}
        try:
            answer = self._ask(key, "put_object", Body=data, **asked, **condition)
        except MoxFileRespException as error:
            if not condition:
                raise
            if _unsupported(error):
                self._check(key, condition)
                return self.put_if(key, data, {}, about)
            # The answer to an attempt that did succeed may have been lost.
            return self._written_by(key, token, error)
        return str(answer.get("ETag", ""))

    def _written_by(self, key: str, token: str, error: MoxFileRespException) -> str:
        """Return the ETag of the object if it is the one that was written with a token; else raise the error."""
        if error.resp.status not in (404, 409, 412):
            raise error
        found = self.info(key)
        if found is None or found.about.get("Metadata", {}).get(WRITER) != token:
            raise error
        return found.etag

    def _check(self, key: str, condition: Mapping[str, str]) -> None:
        """Look whether a condition holds, for a store that cannot: late, but better than not at all."""
        found = self.info(key)
        holds = found is None if "IfNoneMatch" in condition else found and found.etag == condition.get("IfMatch")
        if not holds:
            told = "the object has changed since it was read"
            raise ConflictError(
                Response(412, "Precondition Failed", "PreconditionFailed", told), f"{self.url(key)}: {told}"
            )

    def upload(self, path: str, key: str) -> None:
        """Copy a local file into the bucket, large ones in parts. The store checks what arrives by its MD5 or SHA."""
        with open(path, "rb") as f:
            self.upload_file(f, os.path.getsize(path), key)

    def upload_file(
        self, f: BinaryIO, size: int, key: str, condition: Mapping[str, str] | None = None, about: Any = None
    ) -> str:
        """Write the first bytes of a file as an object, all or nothing.

        Args:
            f: the file; where it stands is of no interest.
            size: how many bytes.
            key: of the object.
            condition: as for `put_if`.
            about: as for `put_if`.

        Returns:
            The new ETag.

        Raises:
            DataError: the store holds another number of bytes than it was sent.
        """
        if size > _PART_BYTES:
            etag = self.compose([Piece.of_file(f, 0, size)], key, condition, about)
            stored = self.info(key)
            if stored is not None and stored.etag == etag and stored.size_bytes != size:
                raise DataError(f"{self.url(key)} has {stored.size_bytes} bytes after {size} were uploaded")
            return etag
        f.seek(0)
        asked = {**(about or {}), "ContentMD5": _md5(f, size)}
        body: Any = Slice(f.fileno(), 0, size) if size > _CHUNK_BYTES else _exactly(f, size)
        return self.put_if(key, body, condition or {}, asked)

    def compose(
        self, pieces: Sequence[Piece | Copied], key: str, condition: Mapping[str, str] | None = None, about: Any = None
    ) -> str:
        """Write an object out of pieces of files and of other objects, in parts; nothing is seen until all are there.

        Args:
            pieces: in order; what of other objects is taken does not pass through here. All but the last hold 5 MiB.
            key: of the object.
            condition: as for `put_if`.
            about: as for `put_if`.

        Returns:
            The new ETag.

        Raises:
            ConflictError: the condition does not hold, or an object that is copied from has changed.
        """
        upload = multipart.Upload(self.store, self.name, key, self.url(key), dict(about or {}))
        try:
            upload.send(pieces, _PART_BYTES, _COPY_BYTES)
            try:
                return upload.complete(condition or {})
            except MoxFileRespException as error:
                if condition and _unsupported(error):
                    self._check(key, condition)
                    return upload.complete({})
                return self._written_by(key, upload.token, error)
        except BaseException:
            with contextlib.suppress(MoxFileRespException):
                self.abort_upload(key, upload.id)
            raise

    def copy(self, source: str, target: str) -> None:
        """Copy an object inside the bucket, without its content passing through here."""
        self.copy_from(self, source, target)

    def copy_from(self, other: Bucket, source: str, target: str) -> None:
        """Copy an object of a bucket of the same store, without its content passing through here.

        Raises:
            MoxFileNotExistsException: it is not there.
        """
        found = other.info(source)
        if found is None:
            raise missing_object(other, source)
        try:
            if found.size_bytes > _COPY_BYTES:
                self.compose([Copied(other.name, source, found.etag, 0, found.size_bytes)], target, about=found.about)
                return
            place = {"Bucket": other.name, "Key": source}
            self._ask(target, "copy_object", CopySource=place)
        except MoxFileRespException as error:
            if not _unsupported(error):
                raise
            with multipart.spool() as temp:
                self.upload_file(temp, other.download(source, temp), target, about=found.about)

    # Removing

    def delete(self, keys: Sequence[str]) -> None:
        """Remove objects; one that is not there is no error."""
        alone = {key for key in keys if len(keys) == 1 or _NOT_IN_XML.search(key)}
        for key in alone:
            self._ask(key, "delete_object")
        together = [key for key in keys if key not in alone]
        for first in range(0, len(together), _DELETE_AT_ONCE):
            batch = [{"Key": key} for key in together[first : first + _DELETE_AT_ONCE]]
            delete = {"Objects": batch, "Quiet": True}
            answer = self.store.ask(self.url(together[first]), "delete_objects", Bucket=self.name, Delete=delete)
            for refused in answer.get("Errors", ()):
                raise DataError(
                    f"{self.url(refused['Key'])} could not be removed: {refused.get('Code')}: {refused.get('Message')}"
                )

    def unfinished_uploads(self, prefix: str) -> list[tuple[StoredObject, str]]:
        """Return the uploads in parts that have begun below a prefix and were not finished: object, and id."""
        found = []
        with self.store.telling(self.url(prefix)):
            for page in self._client.get_paginator("list_multipart_uploads").paginate(Bucket=self.name, Prefix=prefix):
                found += [(StoredObject(u["Key"], 0, u["Initiated"]), u["UploadId"]) for u in page.get("Uploads", ())]
        return found

    def abort_upload(self, key: str, upload_id: str) -> None:
        """Remove the parts of an upload that was not finished."""
        with self.store.telling(self.url(key)), contextlib.suppress(self._client.exceptions.NoSuchUpload):
            self._client.abort_multipart_upload(Bucket=self.name, Key=key, UploadId=upload_id)


def missing_object(bucket: Bucket, key: str) -> MoxFileNotExistsException:
    """Make the error of a key where no object is."""
    return MoxFileNotExistsException(f"no such object: {bucket.url(key)}")


def _info(answer: Mapping[str, Any]) -> ObjectInfo:
    about = {name: answer[name] for name in ("ContentType", "ContentEncoding", "Metadata") if answer.get(name)}
    modified = answer.get("LastModified") or datetime.fromtimestamp(0, timezone.utc)
    return ObjectInfo(int(answer.get("ContentLength", 0)), modified, str(answer.get("ETag", "")), about)


def _unsupported(error: MoxFileRespException) -> bool:
    return error.resp.status == 501 or error.resp.code == "NotImplemented"


def _exactly(f: BinaryIO, size: int) -> bytes:
    f.seek(0)
    return f.read(size)


def _md5(f: BinaryIO, size: int) -> str:
    # A checksum against damage on the way, as the protocol wants it; systems in FIPS mode refuse MD5 for anything else.
    digest = hashlib.md5(usedforsecurity=False)
    left = size
    while left and (chunk := f.read(min(left, _CHUNK_BYTES))):
        digest.update(chunk)
        left -= len(chunk)
    return base64.b64encode(digest.digest()).decode()
