"""Many files to and from a bucket with a third of botocore's work for each, by obstore where it is installed.

It never has the last word. A key that it would change, a setting that it does not know, and each file that it fails to
copy are left to `copying`, which tries again, and tells errors as this package does.

Source: obstore's documentation (S3Store, put, get); `benchmarks/file.py` compares.
"""

from __future__ import annotations

import os
import re
import threading
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from functools import partial
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from moxserve.file.copying import Place, copy_file, replacing

if TYPE_CHECKING:
    from moxserve.file.client import Store
    from moxserve.file.s3 import Bucket

__all__ = ["copier", "is_quick"]

_WORTH_FILES = 16
_UP_BYTES = 1 << 20
_DOWN_BYTES = 64 << 20
_CHUNK_BYTES = 256 << 10
_PATIENCE = 3
# Stricter than the protocol: obstore takes empty segments, dots and slashes at the ends for mistakes, and mends them.
_PLAIN_KEY = re.compile(r"(?!\.{1,2}(?:/|\Z))[\w.=@+,-]+(?:/(?!\.{1,2}(?:/|\Z))[\w.=@+,-]+)*\Z", re.ASCII)
_HOST_LABEL = re.compile(r"[a-z0-9][a-z0-9-]{1,61}[a-z0-9]\Z")
# obstore reads these for itself, and boto3 does not know them.
_FOREIGN = (
    "AWS_CHECKSUM_ALGORITHM", "AWS_CONDITIONAL_PUT", "AWS_REQUEST_PAYER", "AWS_S3_EXPRESS",
    "AWS_SERVER_SIDE_ENCRYPTION", "AWS_SKIP_SIGNATURE", "AWS_SSE_CUSTOMER_KEY_BASE64", "AWS_SSE_KMS_KEY_ID",
    "AWS_UNSIGNED_PAYLOAD",
)  # fmt: skip

Copy = Callable[[Place, Place], None]


def copier(source: Place, target: Place, files: int, streams: int = 1) -> Copy:
    """Give what copies the files of one directory to another one: as `copy_file` does, with less work if possible.

    Args:
        source: the directory.
        target: the directory.
        files: how many there will be; for a few it is not worth the while.
        streams: as for `copy_file`.
    """
    plain = partial(copy_file, streams=streams)
    if files < _WORTH_FILES or source.remote == target.remote:
        return plain
    bucket = (source if source.remote else target).at()[0]
    opened = _open(bucket)
    return plain if opened is None else _Copier(opened, plain)


def is_quick(source: Place, target: Place, files: int) -> bool:
    """Whether obstore will copy most of them, for all that is known before."""
    return isinstance(copier(source, target, files), _Copier)


class _Copier:
    """Copies by obstore what it can, and by `copy_file` what it cannot.

    Args:
        opened: obstore's store of the bucket.
        plain: `copy_file`.
    """

    def __init__(self, opened: Any, plain: Copy) -> None:
        self._opened, self._plain = opened, plain
        self._lock = threading.Lock()
        self._failed = 0  # one after the other: a store that it cannot talk to is not tried for ever

    def __call__(self, source: Place, target: Place) -> None:
        key = (target if target.remote else source).at()[1]
        if self._failed < _PATIENCE and _PLAIN_KEY.match(key) and self._try(source, target, key):
            return
        self._plain(source, target)

    def _try(self, source: Place, target: Place, key: str) -> bool:
        from obstore.exceptions import BaseError

        try:
            done = self._up(source.path, key) if target.remote else self._down(key, target.path)
        except FileNotFoundError:
            return False  # `copy_file` tells which
        except (BaseError, ValueError):
            with self._lock:
                self._failed += 1
            return False
        self._failed = 0
        return done

    def _up(self, path: str, key: str) -> bool:
        import obstore

        if os.path.isdir(path):
            return False
        with open(path, "rb") as f:
            data = f.read(_UP_BYTES + 1)
        if len(data) > _UP_BYTES:
            return False
        obstore.put(self._opened, key, data, use_multipart=False)
        return True

    def _down(self, key: str, path: str) -> bool:
        import obstore

        if os.path.isdir(path):
            return False
        answer = obstore.get(self._opened, key)
        size = answer.meta["size"]
        if size > _DOWN_BYTES:
            return False
        with replacing(path) as out:
            for chunk in answer.stream(min_chunk_size=_CHUNK_BYTES):
                out.write(chunk)
            if out.tell() != size:
                raise ValueError(f"{out.tell()} of {size} bytes came")
        return True


def _open(bucket: Bucket) -> Any:
    """Give obstore's store of a bucket; None where it is not installed, or would not do what boto3 does."""
    store = bucket.store
    try:
        from obstore.store import S3Store
    except ImportError:
        return None
    if not _same_way(store):
        return None
    place = _place(store, bucket.name)
    if place is None or store.credentials is None:
        return None
    endpoint, by_host = place
    return S3Store(
        bucket.name,
        endpoint=endpoint,
        aws_endpoint_url_s3=endpoint,  # counts more than `endpoint` where the environment has it
        region=store.client.meta.region_name or "us-east-1",
        virtual_hosted_style_request=by_host,
        credential_provider=_Credentials(store.credentials),
        client_options=_client_options(store),
        retry_config={"max_retries": 0},
    )


def _client_options(store: Store) -> Any:
    connect_s, read_s = store.timeouts_s
    options: dict[str, Any] = {
        "allow_http": True,
        "connect_timeout": timedelta(seconds=connect_s),
        "read_timeout": timedelta(seconds=read_s),
        "timeout": timedelta(hours=1),
    }
    verify = store.connection.verify
    if verify is False:
        options["allow_invalid_certificates"] = True
        return options
    authorities = verify if isinstance(verify, str) else os.environ.get("AWS_CA_BUNDLE") or store.files.get("ca_bundle")
    if authorities:
        with open(authorities, "rb") as f:
            options["root_certificate"] = f.read()
    return options


def _same_way(store: Store) -> bool:
    """Whether obstore would sign and send requests as the settings ask for."""
    told = store.files.get("s3") or {}
    return (
        _first_pid() == os.getpid()  # its threads do not live on in a process that was forked
        and store.connection.long_connections
        and store.connection.attempts != 1
        and not set(told) - {"addressing_style"}
        and store.client.meta.config.signature_version == "s3v4"
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
