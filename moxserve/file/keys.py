"""URLs of objects, and what stores tell of the objects."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

from moxserve.errors import UsageError

__all__ = ["ObjectInfo", "StoredObject", "split_url"]

# What botocore lets through; stores have narrower rules, each its own. `arn:` names an access point.
_BUCKET = re.compile(r"[a-zA-Z0-9._-]{1,255}|arn:.+")


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


def split_url(url: str) -> tuple[str, str, str]:
    """Split `obs://bucket/any/key/` into scheme, bucket and key; the key stays exactly as it is.

    Raises:
        UsageError: it names no bucket, or what cannot be one.
    """
    scheme, _, rest = url.partition("://")
    bucket, _, key = rest.partition("/")
    if not bucket:
        raise UsageError(f"{url!r}: expected {scheme}://BUCKET/KEY")
    if not _BUCKET.fullmatch(bucket):
        raise UsageError(
            f"{url!r}: Invalid bucket name {bucket!r}", hint="buckets have lower-case letters, digits, dots and hyphens"
        )
    if not key.isascii():
        try:
            key.encode()
        except UnicodeEncodeError:
            raise UsageError(f"{url!r}: keys are UTF-8, which this is not") from None
    return scheme, bucket, key
