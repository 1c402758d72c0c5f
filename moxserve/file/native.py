"""obstore in place of boto3, where it does the same with a third of the work: what is opened, and for which keys.

It never has the last word. What it cannot do is left to boto3, and so is what it fails to do, once.

Source: obstore's documentation (S3Store); `benchmarks/file.py` compares.
"""

from __future__ import annotations

import os
import re
from datetime import UTC, datetime, timedelta
from functools import lru_cache
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

if TYPE_CHECKING:
    from moxserve.file.client import Store
    from moxserve.file.s3 import Bucket

__all__ = ["is_plain", "open_native"]

# Stricter than the protocol: obstore takes empty segments, dots and slashes at the ends for mistakes, and mends them.
_PLAIN_KEY = re.compile(r"(?!\.{1,2}(?:/|\Z))[\w.=@+,-]+(?:/(?!\.{1,2}(?:/|\Z))[\w.=@+,-]+)*\Z", re.ASCII)
_HOST_LABEL = re.compile(r"[a-z0-9][a-z0-9-]{1,61}[a-z0-9]\Z")
# obstore reads these for itself, and boto3 does not know them.
_FOREIGN = (
    "ALL_PROXY", "AWS_CHECKSUM_ALGORITHM", "AWS_CONDITIONAL_PUT", "AWS_REQUEST_PAYER", "AWS_S3_EXPRESS",
    "AWS_SERVER_SIDE_ENCRYPTION", "AWS_SKIP_SIGNATURE", "AWS_SSE_CUSTOMER_KEY_BASE64", "AWS_SSE_KMS_KEY_ID",
    "AWS_UNSIGNED_PAYLOAD", "all_proxy",
)  # fmt: skip


def is_plain(key: str) -> bool:
    """Whether obstore takes a key as it is."""
    return _PLAIN_KEY.match(key) is not None


def open_native(bucket: Bucket) -> Any:
    """Give obstore's store of a bucket.

    Args:
        bucket: the bucket, with the settings to reach it.

    Returns:
        The store; None where obstore is not installed, or would not do what boto3 does.
    """
    return _opened(bucket.store, bucket.name) if _same_way(bucket.store) else None


@lru_cache(maxsize=32)
def _opened(store: Store, bucket: str) -> Any:
    """Open it once for all copies, which share its connections."""
    try:
        from obstore.exceptions import BaseError
        from obstore.store import S3Store
    except ImportError:
        return None
    place = _place(store, bucket)
    if place is None or store.credentials is None:
        return None
    endpoint, by_host = place
    try:
        return S3Store(
            bucket,
            endpoint=endpoint,
            aws_endpoint_url_s3=endpoint,  # counts more than `endpoint` where the environment has it
            region=store.client.meta.region_name or "us-east-1",
            virtual_hosted_style_request=by_host,
            credential_provider=_Credentials(store.credentials),
            client_options=_client_options(store),
            retry_config={"max_retries": 0},
        )
    except (BaseError, ValueError):  # a variable that boto3 does not look at
        return None


def _client_options(store: Store) -> Any:
    connect_s, read_s = store.timeouts_s
    options: dict[str, Any] = {
        "allow_http": True,
        "connect_timeout": timedelta(seconds=connect_s),
        "read_timeout": timedelta(seconds=read_s),
        "timeout": timedelta(hours=1),
    }
    if store.connection.verify is False:
        options["allow_invalid_certificates"] = True
    return options


def _own_authorities(store: Store) -> bool:
    """Whether certificates count by a file alone; obstore would take those of the system's authorities as well."""
    verify = store.connection.verify
    if verify is None:
        verify = os.environ.get("AWS_CA_BUNDLE") or store.files.get("ca_bundle")
    return isinstance(verify, str) and store.client.meta.endpoint_url.startswith("https:")


def _same_way(store: Store) -> bool:
    """Whether obstore would sign and send requests as the settings ask for."""
    told = store.files.get("s3") or {}
    return (
        _first_pid() == os.getpid()  # its threads do not live on in a process that was forked
        and store.connection.long_connections
        and store.connection.attempts != 1
        and not set(told) - {"addressing_style"}
        and store.client.meta.config.signature_version == "s3v4"
        and not _own_authorities(store)
        and not any(map(os.environ.get, _FOREIGN))
    )


_pid = 0


def _first_pid() -> int:
    """Return the process in which obstore was used first."""
    global _pid
    _pid = _pid or os.getpid()
    return _pid


def _place(store: Store, bucket: str) -> tuple[str, bool] | None:
    """Return the endpoint as obstore wants it, and whether the bucket is in the host's name; None if it is unclear."""
    url = store.client.meta.endpoint_url
    style = (store.client.meta.config.s3 or {}).get("addressing_style") or "auto"
    parts = urlsplit(url)
    if style == "path":
        return url, False
    # Names that botocore puts into the path after all are left to it.
    if parts.path.strip("/") or not _HOST_LABEL.match(bucket) or (parts.hostname or "")[-1:].isdecimal():
        return None
    return f"{parts.scheme}://{bucket}.{parts.netloc}", True


class _Credentials:
    """botocore's credentials for obstore, which asks for them again before they lapse.

    Args:
        found: botocore's; it renews them ten minutes and more before they lapse.
    """

    _GOOD_FOR = timedelta(minutes=9)

    def __init__(self, found: Any) -> None:
        self._found = found

    def __call__(self) -> Any:
        """Return keys, and until when they are good."""
        keys = self._found.get_frozen_credentials()
        return {
            "access_key_id": keys.access_key,
            "secret_access_key": keys.secret_key,
            "token": keys.token,
            "expires_at": datetime.now(UTC) + self._GOOD_FOR,
        }
