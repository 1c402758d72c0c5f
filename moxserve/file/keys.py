"""URLs of objects, and what stores tell of the objects."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

from moxserve.errors import UsageError

__all__ = ["ObjectInfo", "StoredObject", "is_s3", "parse_url", "split_url"]


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


@dataclass(frozen=True)
class ObjectInfo:
    """What a store tells of one object.

    Attributes:
        size_bytes: of its content.
        modified: when it was written, by the store's clock.
        etag: changes with its content.
        about: content type and metadata, as they are given when it is written.
    """

    size_bytes: int
    modified: datetime
    etag: str
    about: Mapping[str, Any] = field(default_factory=dict)


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


def split_url(url: str) -> tuple[str, str, str]:
    """Split `obs://bucket/any/key/` into scheme, bucket and key; the key stays exactly as it is.

    Raises:
        UsageError: it names no bucket.
    """
    scheme, _, rest = url.partition("://")
    bucket, _, key = rest.partition("/")
    if not bucket:
        raise UsageError(f"{url!r}: expected {scheme}://BUCKET/KEY")
    if not key.isascii():
        try:
            key.encode()
        except UnicodeEncodeError:
            raise UsageError(f"{url!r}: keys are UTF-8, which this is not") from None
    return scheme, bucket, key
