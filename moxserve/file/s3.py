"""Objects in S3, and in stores that speak its protocol: the few operations that publishing needs. Not yet `mox.file`.

Keys are taken as they are. Region, credentials, endpoint (`AWS_ENDPOINT_URL`), proxies and retries are found by boto3
as in every other program that uses it; boto3 is imported by the first connection.

Source: Amazon S3 API Reference (PutObject with If-None-Match and If-Match, UploadPartCopy, DeleteObjects).
"""

from __future__ import annotations

import base64
import contextlib
import hashlib
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any
from urllib.parse import urlsplit

from moxserve.errors import DataError, MissingExtraError, UsageError, first_line
from moxserve.file.api import MoxFileNotExistsException

__all__ = ["Bucket", "StoredObject", "connect", "is_s3", "parse_url"]

_PART_BYTES = 64 << 20
_CHUNK_BYTES = 1 << 20
_DELETE_AT_ONCE = 1000
_ATTEMPTS = 5
_CONNECT_TIMEOUT_S = 10
_READ_TIMEOUT_S = 60
_GONE = {"404", "NoSuchKey", "NotFound"}
_CONFLICT = {"412", "PreconditionFailed", "409", "ConditionalRequestConflict"}
_HINTS = {
    "NoSuchBucket": "make the bucket first, or look for a typing mistake in its name and in AWS_ENDPOINT_URL",
    "AccessDenied": "these credentials may not do that; listing, reading, writing and deleting objects is needed",
    "403": "these credentials may not do that; listing, reading, writing and deleting objects is needed",
    "InvalidAccessKeyId": "the store does not know AWS_ACCESS_KEY_ID",
    "SignatureDoesNotMatch": "AWS_SECRET_ACCESS_KEY does not belong to AWS_ACCESS_KEY_ID",
    "ExpiredToken": "log in again: the session token is too old",
    "PermanentRedirect": "the bucket is in another region: set AWS_REGION",
    "AuthorizationHeaderMalformed": "the bucket is in another region: set AWS_REGION",
    "NotImplemented": "the store lacks an operation of S3 that is needed here (conditional writes, copies)",
}


@dataclass(frozen=True)
class StoredObject:
    """What a listing tells of an object.

    Attributes:
        key: its whole key.
        size_bytes: of its content.
        modified: when it was written, by the store's clock.
    """

    key: str
    size_bytes: int
    modified: datetime


def is_s3(url: str | os.PathLike[str]) -> bool:
    """Tell whether a path is a URL of S3."""
    return os.fspath(url).startswith("s3://")


def parse_url(url: str) -> tuple[str, str]:
    """Split `s3://bucket/some/prefix/` into bucket and prefix, the prefix without slashes at its ends.

    Raises:
        UsageError: it is none, or names no bucket.
    """
    bucket, _, prefix = url.removeprefix("s3://").partition("/")
    if not is_s3(url) or not bucket:
        raise UsageError(f"{url!r}: expected s3://BUCKET/PREFIX")
    return bucket, prefix.strip("/")


def connect(bucket: str, connections: int = 10) -> Bucket:
    """Give a bucket, with the credentials and the endpoint of the environment. Sends nothing yet.

    Args:
        bucket: its name.
        connections: how many threads may talk to the store at once without opening a connection each time.

    Raises:
        MissingExtraError: boto3 is not installed.
        UsageError: AWS_PROFILE, AWS_ENDPOINT_URL or the bucket's name cannot be right.
    """
    try:
        import boto3
        import botocore.session
        from botocore.config import Config
    except ImportError:
        raise MissingExtraError("boto3", "s3", f"s3://{bucket}") from None
    retries: dict[str, Any] = {"mode": "standard"}
    if "AWS_MAX_ATTEMPTS" not in os.environ:
        retries["total_max_attempts"] = _ATTEMPTS
    config = Config(
        retries=retries,
        connect_timeout=_CONNECT_TIMEOUT_S,
        read_timeout=_READ_TIMEOUT_S,
        max_pool_connections=connections,
    )
    with _telling(f"s3://{bucket}"):
        core = botocore.session.Session()
        session = boto3.session.Session(botocore_session=core)
        try:
            client = session.client("s3", config=config)
        except ValueError as error:
            raise UsageError(f"s3://{bucket}: {first_line(error)}", hint="look at AWS_ENDPOINT_URL") from error
        style = (core.get_scoped_config().get("s3") or {}).get("addressing_style")
        if not style and not (urlsplit(client.meta.endpoint_url).hostname or "").endswith(".amazonaws.com"):
            # Few other stores have a host name for each bucket.
            client = session.client("s3", config=config.merge(Config(s3={"addressing_style": "path"})))
    return Bucket(bucket, client)


class Bucket:
    """The objects of a bucket; may be used by several threads.

    All methods raise DataError when the store refuses or cannot be reached, and UsageError when there are no
    credentials; the message tells the object and the hint what to do.

    Args:
        name: of the bucket.
        client: of boto3.
    """

    def __init__(self, name: str, client: Any) -> None:
        self.name = name
        self._client = client

    def url(self, key: str) -> str:
        """Return the URL of a key."""
        return f"s3://{self.name}/{key}"

    def objects(self, prefix: str) -> list[StoredObject]:
        """Return all objects whose keys start with a prefix, in the order of their keys."""
        found = []
        with _telling(self.url(prefix)):
            for page in self._client.get_paginator("list_objects_v2").paginate(Bucket=self.name, Prefix=prefix):
                found += [StoredObject(o["Key"], o["Size"], o["LastModified"]) for o in page.get("Contents", ())]
        return found

    def folders(self, prefix: str) -> list[str]:
        """Return the names directly below a prefix (empty, or with a slash at its end) that have something below."""
        found = []
        with _telling(self.url(prefix)):
            pages = self._client.get_paginator("list_objects_v2").paginate(
                Bucket=self.name, Prefix=prefix, Delimiter="/"
            )
            for page in pages:
                found += [p["Prefix"][len(prefix) : -1] for p in page.get("CommonPrefixes", ())]
        return found

    def has_any(self, prefix: str) -> bool:
        """Tell whether a key starts with a prefix."""
        with _telling(self.url(prefix)):
            answer = self._client.list_objects_v2(Bucket=self.name, Prefix=prefix, MaxKeys=1)
        return bool(answer.get("Contents"))

    def exists(self, key: str) -> bool:
        """Tell whether there is an object of this key."""
        try:
            with _telling(self.url(key)):
                self._client.head_object(Bucket=self.name, Key=key)
        except MoxFileNotExistsException:
            return False
        return True

    def read(self, key: str) -> tuple[bytes, str]:
        """Return a small object's content, and its ETag.

        Raises:
            MoxFileNotExistsException: it is not there.
        """
        with _telling(self.url(key)):
            answer = self._client.get_object(Bucket=self.name, Key=key)
            return answer["Body"].read(), answer["ETag"]

    def put(self, key: str, data: bytes, *, replace: str = "") -> bool:
        """Write a small object, if nobody else has.

        Args:
            key: of the object.
            data: its content.
            replace: the ETag of the object that is to be replaced; empty when there must be none.

        Returns:
            Whether it was written; false when there is an object of this key, or another than the one to be replaced.
        """
        condition = {"IfMatch": replace} if replace else {"IfNoneMatch": "*"}
        try:
            with _telling(self.url(key)):
                self._client.put_object(Bucket=self.name, Key=key, Body=data, **condition)
        except (_ConflictError, MoxFileNotExistsException):
            return False
        return True

    def upload(self, path: str, key: str) -> None:
        """Copy a local file into the bucket, large ones in parts. The store checks what arrives by its MD5 or CRC."""
        size = os.path.getsize(path)
        with _telling(self.url(key)):
            if size <= _PART_BYTES:
                with open(path, "rb") as f:
                    self._client.put_object(Bucket=self.name, Key=key, Body=f, ContentMD5=_md5(path))
                return
            with self._transfers() as transfers:
                transfers.upload(path, self.name, key).result()
            stored = self._client.head_object(Bucket=self.name, Key=key)["ContentLength"]
        if stored != size:
            raise DataError(f"{self.url(key)} has {stored} bytes after it was uploaded; {path!r} has {size}")

    def copy(self, source: str, target: str) -> None:
        """Copy an object inside the bucket, without its content passing through here."""
        with _telling(self.url(target)), self._transfers() as transfers:
            transfers.copy({"Bucket": self.name, "Key": source}, self.name, target).result()

    def delete(self, keys: Sequence[str]) -> None:
        """Remove objects; one that is not there is no error."""
        for first in range(0, len(keys), _DELETE_AT_ONCE):
            batch = [{"Key": key} for key in keys[first : first + _DELETE_AT_ONCE]]
            with _telling(self.url(batch[0]["Key"])):
                answer = self._client.delete_objects(Bucket=self.name, Delete={"Objects": batch, "Quiet": True})
            for refused in answer.get("Errors", ()):
                raise DataError(
                    f"{self.url(refused['Key'])} could not be removed: {refused.get('Code')}: {refused.get('Message')}"
                )

    def unfinished_uploads(self, prefix: str) -> list[tuple[StoredObject, str]]:
        """Return the uploads in parts that have begun below a prefix and were not finished: object, and id."""
        found = []
        with _telling(self.url(prefix)):
            for page in self._client.get_paginator("list_multipart_uploads").paginate(Bucket=self.name, Prefix=prefix):
                found += [(StoredObject(u["Key"], 0, u["Initiated"]), u["UploadId"]) for u in page.get("Uploads", ())]
        return found

    def abort_upload(self, key: str, upload_id: str) -> None:
        """Remove the parts of an upload that was not finished."""
        with _telling(self.url(key)), contextlib.suppress(self._client.exceptions.NoSuchUpload):
            self._client.abort_multipart_upload(Bucket=self.name, Key=key, UploadId=upload_id)

    def _transfers(self) -> Any:
        from boto3.s3.transfer import TransferConfig, create_transfer_manager

        config = TransferConfig(multipart_threshold=_PART_BYTES, multipart_chunksize=_PART_BYTES)
        return create_transfer_manager(self._client, config)


def _md5(path: str) -> str:
    # A checksum against damage on the way, as the protocol wants it; systems in FIPS mode refuse MD5 for anything else.
    digest = hashlib.md5(usedforsecurity=False)
    with open(path, "rb") as f:
        while chunk := f.read(_CHUNK_BYTES):
            digest.update(chunk)
    return base64.b64encode(digest.digest()).decode()


class _ConflictError(DataError):
    """A condition did not hold."""


@contextlib.contextmanager
def _telling(url: str) -> Iterator[None]:
    """Turn boto3's errors into ours.

    Raises:
        UsageError: no credentials, or a setting that cannot be right.
        MoxFileNotExistsException: there is no such object.
        DataError: the store refused, or cannot be reached.
    """
    from botocore import exceptions

    try:
        yield
    except exceptions.ClientError as error:
        raise _refused(url, error) from error
    except (
        exceptions.NoCredentialsError,
        exceptions.PartialCredentialsError,
        exceptions.CredentialRetrievalError,
        exceptions.TokenRetrievalError,
        exceptions.UnauthorizedSSOTokenError,
    ) as error:
        raise UsageError(
            f"{url}: {first_line(error)}",
            hint="set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or AWS_PROFILE",
        ) from error
    except (exceptions.HTTPClientError, exceptions.ConnectionError) as error:
        raise DataError(
            f"{url}: the store cannot be reached: {first_line(error)}", hint="look at the network and AWS_ENDPOINT_URL"
        ) from error
    except exceptions.ParamValidationError as error:
        raise UsageError(f"{url}: {' '.join(str(error.kwargs.get('report', error)).split())}") from error
    except (exceptions.ProfileNotFound, exceptions.ConfigParseError) as error:
        raise UsageError(f"{url}: {first_line(error)}") from error
    except exceptions.BotoCoreError as error:
        raise DataError(f"{url}: {first_line(error)}") from error
    except RecursionError:
        # botocore asks where the bucket is when it is sent on, and follows that answer the same way.
        raise DataError(
            f"{url}: the store sends every request on to somewhere else",
            hint="look at AWS_ENDPOINT_URL and AWS_DEFAULT_REGION",
        ) from None


def _refused(url: str, error: Any) -> DataError:
    details = error.response.get("Error", {})
    code, message = str(details.get("Code", "")), str(details.get("Message", "")).strip()
    if code in _GONE:
        return MoxFileNotExistsException(f"no such object: {url}")
    kind = _ConflictError if code in _CONFLICT else DataError
    return kind(f"{url}: {error.operation_name} was refused: {code}: {message}", hint=_HINTS.get(code))
