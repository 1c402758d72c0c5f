"""boto3's client for a store, asked again where it gives up too early, and its errors in our words.

What botocore does not do by itself: a 429 is tried again, the wait is the one that was asked for, and no budget for
attempts that all threads share runs dry. (A body that breaks midway is the business of `reader`.)

Clients are kept for equal settings; a process that was forked makes its own. boto3 is imported by the first of them.
"""

from __future__ import annotations

import contextlib
import hashlib
import logging
import os
import random
import re
from base64 import b64encode
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any
from urllib.parse import urlsplit

from moxserve.errors import DataError, MissingExtraError, MoxserveError, UsageError, first_line
from moxserve.file import stopping
from moxserve.file.auth import Connection, resolve
from moxserve.file.errors import (
    MoxFileConnectionException,
    MoxFileObjectNotExistsException,
    MoxFilePermissionException,
    MoxFileReadException,
    MoxFileRespException,
    Response,
)
from moxserve.file.forks import ForkLock

__all__ = ["BodyError", "ConflictError", "Store", "store_of"]

_ATTEMPTS = 5
_CONNECT_TIMEOUT_S = 10.0
_READ_TIMEOUT_S = 60.0
_LONGEST_WAIT_S = 20.0
_POOL = 64
_AT_ONCE_BYTES = 128 << 10
_AGAIN_STATUSES = {408, 429, 500, 502, 503, 504}
_AGAIN_CODES = {
    "BandwidthLimitExceeded", "InternalError", "OperationAborted", "RequestLimitExceeded", "RequestTimeout",
    "ServiceUnavailable", "SlowDown", "Throttling", "ThrottlingException", "TooManyRequests",
    "TooManyRequestsException",
}  # fmt: skip
_WITH_CONTENT = {
    "CompleteMultipartUpload", "CopyObject", "CreateMultipartUpload", "DeleteObjects", "ListMultipartUploads",
    "ListObjectsV2", "UploadPartCopy",
}  # fmt: skip
_GONE = {"404", "NoSuchKey", "NotFound"}
_CONFLICT = {"412", "PreconditionFailed", "409", "ConditionalRequestConflict"}
_MAY_NOT = "these credentials may not do that; listing, reading, writing and deleting objects is needed"
_HINTS = {
    "NoSuchBucket": "make the bucket first, or look for a typing mistake in its name and in AWS_ENDPOINT_URL",
    "AccessDenied": _MAY_NOT,
    "403": _MAY_NOT,
    "InvalidAccessKeyId": "the store does not know this access key (set_auth(ak=...), AWS_ACCESS_KEY_ID)",
    "SignatureDoesNotMatch": "the secret key does not belong to the access key (set_auth, AWS_SECRET_ACCESS_KEY)",
    "ExpiredToken": "log in again: the session token is too old",
    "PermanentRedirect": "the bucket is in another region: set AWS_REGION",
    "AuthorizationHeaderMalformed": "the bucket is in another region: set AWS_REGION",
    "NotImplemented": "the store lacks an operation of S3 that is needed here (conditional writes, copies)",
}
# What the ways to a store look like when they are the wrong ones.
_NO_HTTPS = "the store speaks http, not https: set_auth(is_secure=False), S3_USE_HTTPS=0, or an endpoint with http://"
_WAY_HINTS = {
    "WRONG_VERSION_NUMBER": _NO_HTTPS,
    "record layer failure": _NO_HTTPS,
    "CERTIFICATE_VERIFY_FAILED": "name the file of its authority: set_auth(ssl_verify=...) or AWS_CA_BUNDLE",
}
_WAY_HINT = "look at the network and AWS_ENDPOINT_URL"
_QUERY = re.compile(r"\?[^\s\"']*")


class _CutOffError(Exception):
    """An answer that should be read whole is shorter than it says."""


class ConflictError(MoxFileRespException):
    """A condition did not hold: the object is another than it was."""


class BodyError(DataError):
    """What should be sent is not there any more."""


@dataclass(frozen=True, eq=False)
class Store:
    """A client of boto3 and how it is to be used; safe with threads.

    Attributes:
        client: boto3's.
        connection: the settings that it was made of.
        attempts: how often a request is sent in all.
        secrets: what may not appear in a message.
        credentials: botocore's, which renew themselves; None: there are none.
        files: what the user's files say of this profile.
    """

    client: Any
    connection: Connection
    attempts: int
    secrets: tuple[str, ...] = field(default=(), repr=False)
    credentials: Any = field(default=None, repr=False)
    files: Mapping[str, Any] = field(default_factory=dict, repr=False)

    @property
    def timeouts_s(self) -> tuple[float, float]:
        """Seconds until a connection, and until a silent one, is given up."""
        told = self.connection.timeout_s
        return told or _CONNECT_TIMEOUT_S, told or _READ_TIMEOUT_S

    def wait(self, attempt: int) -> float:
        """Return the seconds to wait after so many attempts (1 is the first)."""
        if self.connection.wait_s is not None:
            return self.connection.wait_s
        return random.uniform(0, min(_LONGEST_WAIT_S, 0.5 * 2 ** (attempt - 1)))

    def pause(self, attempt: int) -> None:
        """Wait before the next attempt."""
        stopping.pause(self.wait(attempt))

    def again(self, attempts: int, response: Any, caught_exception: Any, **_: Any) -> float | None:
        """Answer botocore's question whether, and after how many seconds, a request is sent once more."""
        stopping.check()
        if attempts >= self.attempts:
            return None
        if caught_exception is not None:
            return self.wait(attempts) if _broken_connection(caught_exception) else None
        answer, parsed = response
        code = parsed.get("Error", {}).get("Code", "") if isinstance(parsed, dict) else ""
        if answer.status_code not in _AGAIN_STATUSES and code not in _AGAIN_CODES:
            return None
        wait = self.wait(attempts)
        asked = str(answer.headers.get("Retry-After", ""))
        return max(wait, min(float(asked), _LONGEST_WAIT_S)) if asked.isdecimal() else wait

    def ask(self, url: str, operation: str, **parameters: Any) -> Any:
        """Call an operation of boto3's client, again if the answer arrives broken.

        Args:
            url: what it is about, for messages.
            operation: its name in boto3.
            parameters: of the operation; a Body that is a file is sent from its beginning.

        Raises:
            MoxFileReadException: the answer never came whole.
            MoxFileRespException: as `telling` says, like its other errors.
        """
        from botocore.parsers import ResponseParserError

        call = getattr(self.client, operation)
        attempt = 1
        while True:
            stopping.check()
            body: Any = parameters.get("Body")
            if hasattr(body, "seek"):
                body.seek(0)  # it may have been sent before
            try:
                with self.telling(url):
                    return call(**parameters)
            except (ResponseParserError, _CutOffError) as error:
                if attempt >= self.attempts:
                    told = _clean(first_line(error), self.secrets)
                    response = Response(200, "OK", type(error).__name__, told)
                    raise MoxFileReadException(response, f"{url}: the store's answer makes no sense: {told}") from None
            self.pause(attempt)
            attempt += 1

    @contextlib.contextmanager
    def telling(self, url: str) -> Iterator[None]:
        """Turn boto3's errors into ours.

        Raises:
            UsageError: no credentials, or a setting that cannot be right.
            MoxFileRespException: the store refused or cannot be reached; its subclasses tell what it is about.
            DataError: the answer makes no sense.
        """
        from botocore import exceptions

        try:
            yield
        except RecursionError:
            # botocore asks where the bucket is when it is sent on, and follows that answer the same way.
            raise DataError(
                f"{url}: the store sends every request on to somewhere else",
                hint="look at AWS_ENDPOINT_URL and AWS_DEFAULT_REGION",
            ) from None
        except BodyError as error:
            raise DataError(f"{url}: {error.message}", hint=error.hint) from None
        except (exceptions.ClientError, exceptions.BotoCoreError) as error:
            # What the store said is kept out of the traceback too when it repeated a key.
            repeated = any(secret in str(error) for secret in self.secrets)
            raise _translated(url, error, self.secrets) from (None if repeated else error)


_stores: dict[tuple[int, Connection], Store] = {}
_lock = ForkLock()


def store_of(scheme: str, url: str) -> Store:
    """Give the store that URLs of a scheme lead to, by the settings of this moment. Sends nothing.

    Raises:
        MissingExtraError: boto3 is not installed.
        UsageError: a setting cannot be right.
    """
    key = (os.getpid(), resolve(scheme))
    found = _stores.get(key)
    if found is None:
        with _lock:
            found = _stores.get(key)
            if found is None:
                if len(_stores) >= 16:
                    _stores.pop(next(iter(_stores)))
                found = _stores[key] = _connect(key[1], url)
    return found


def _timestamp(value: Any) -> datetime:
    """Read a time as stores write it. botocore's own way takes any form, and two thirds of the time of a listing."""
    try:
        when = datetime.fromisoformat(value)
        return when if when.tzinfo is not None else when.replace(tzinfo=UTC)
    except (TypeError, ValueError):
        from botocore.utils import parse_timestamp

        found: datetime = parse_timestamp(value)
        return found


def _connect(settings: Connection, url: str) -> Store:
    try:
        import boto3
        import botocore.session
        from botocore.config import Config
    except ImportError:
        raise MissingExtraError("boto3", "s3", url) from None
    _hush()
    config = Config(
        retries={"mode": "standard", "total_max_attempts": 1},
        connect_timeout=settings.timeout_s or _CONNECT_TIMEOUT_S,
        read_timeout=settings.timeout_s or _READ_TIMEOUT_S,
        max_pool_connections=_POOL,
        # Many stores that speak this protocol refuse the checksums that newer clients add unasked.
        request_checksum_calculation="when_required",
        response_checksum_validation="when_required",
    )
    with Store(None, settings, 1).telling(url):
        core = botocore.session.Session()
        core.get_component("response_parser_factory").set_parser_defaults(timestamp_parser=_timestamp)
        session = boto3.session.Session(botocore_session=core)
        try:
            client = _client(session, settings, config)
        except ValueError as error:
            raise UsageError(
                f"{url}: {first_line(error)}", hint="look at AWS_ENDPOINT_URL, S3_ENDPOINT and set_auth(server=...)"
            ) from error
        style = (core.get_scoped_config().get("s3") or {}).get("addressing_style")
        host = urlsplit(client.meta.endpoint_url).hostname or ""
        by_path = settings.path_style
        if by_path is None and not style:
            # Few other stores have a host name for each bucket.
            by_path = not host.endswith((".amazonaws.com", ".amazonaws.com.cn"))
        if by_path is not None and (by_path or settings.path_style is not None):
            addressing = Config(s3={"addressing_style": "path" if by_path else "virtual"})
            client = _client(session, settings, config.merge(addressing))
    attempts = settings.attempts or _attempts_of(core)
    credentials = _credentials(settings, session)
    store = Store(
        client, settings, attempts, _secrets(settings, credentials), credentials, dict(core.get_scoped_config())
    )
    events = client.meta.events
    events.register_last("needs-retry.s3", store.again, unique_id="moxserve-again")
    events.register("before-call.s3.DeleteObjects", _with_md5)
    events.register_last("before-call.s3", _at_once)
    events.register("after-call.s3", _check_whole)
    if not settings.long_connections:
        events.register("before-send.s3", _close_after)
    return store


def _client(session: Any, settings: Connection, config: Any) -> Any:
    given = {
        "endpoint_url": settings.endpoint,
        "region_name": settings.region,
        "verify": settings.verify,
        "aws_access_key_id": settings.ak,
        "aws_secret_access_key": settings.sk,
        "aws_session_token": settings.token,
    }
    return session.client("s3", config=config, **{name: value for name, value in given.items() if value is not None})


def _attempts_of(core: Any) -> int:
    """Return the attempts of AWS_MAX_ATTEMPTS or the user's files, else ours."""
    if not os.environ.get("AWS_MAX_ATTEMPTS") and "max_attempts" not in core.get_scoped_config():
        return _ATTEMPTS
    return max(1, int(core.get_config_variable("max_attempts") or _ATTEMPTS))


def _credentials(settings: Connection, session: Any) -> Any:
    if settings.sk is None:
        return session.get_credentials()
    from botocore.credentials import Credentials

    return Credentials(settings.ak, settings.sk, settings.token)


def _secrets(settings: Connection, keys: Any) -> tuple[str, ...]:
    found = [settings.sk, settings.token, settings.ak]
    # Those that are fetched anew from time to time are never put together into a message.
    if settings.sk is None and type(keys).__name__ == "Credentials":
        found += [keys.secret_key, keys.token, keys.access_key]
    return tuple(secret for secret in found if secret and len(secret) >= 8)


def _hush() -> None:
    """Keep the tools' debugging out of logs: it tells tokens, and would never end where the log is an object itself."""
    for name in ("botocore", "boto3", "s3transfer", "urllib3"):
        logger = logging.getLogger(name)
        if logger.level == logging.NOTSET:
            logger.setLevel(logging.WARNING)


def _with_md5(params: dict[str, Any], **_: Any) -> None:
    """Send the MD5 of a request to delete, which older stores insist on, in place of newer checksums."""
    body = params["body"]
    data = body if isinstance(body, bytes) else str(body).encode()
    digest = hashlib.md5(data, usedforsecurity=False).digest()
    params["headers"]["Content-MD5"] = b64encode(digest).decode()
    params.get("context", {}).get("checksum", {}).pop("request_algorithm", None)


def _at_once(params: dict[str, Any], **_: Any) -> None:
    """Send small bodies with the request, not after the store has agreed: one round trip less."""
    body = params.get("body")
    if isinstance(body, (bytes, bytearray)) and len(body) <= _AT_ONCE_BYTES:
        params["headers"].pop("Expect", None)


def _check_whole(http_response: Any, model: Any, **_: Any) -> None:
    """Refuse an answer that ended early: botocore takes an empty one for an empty list."""
    if model.has_streaming_output or http_response.status_code >= 300 or model.http["method"] == "HEAD":
        return
    announced, content = http_response.headers.get("Content-Length", ""), http_response.content
    if str(announced).isdecimal() and int(announced) != len(content):
        raise _CutOffError(f"{model.name}: {len(content)} of {announced} bytes came")
    if not content and model.name in _WITH_CONTENT:
        raise _CutOffError(f"{model.name}: the answer is empty")


def _close_after(request: Any, **_: Any) -> None:
    request.headers["Connection"] = "close"


def _broken_connection(error: Any) -> bool:
    from botocore import exceptions

    never = (exceptions.ProxyConnectionError, exceptions.SSLError)
    if isinstance(error, never) or _of_the_body(error) is not None:
        return False
    return isinstance(error, (exceptions.HTTPClientError, exceptions.ConnectionError))


def _of_the_body(error: Any) -> BodyError | None:
    """Return the error of what should be sent, which botocore takes for one of the connection."""
    inner = getattr(error, "kwargs", {}).get("error")
    return inner if isinstance(inner, BodyError) else None


def _translated(url: str, error: Exception, secrets: tuple[str, ...]) -> MoxserveError:
    """Return our error for one of boto3's."""
    from botocore import exceptions

    if isinstance(error, exceptions.ClientError):
        return _refused(url, error, secrets)
    if (inner := _of_the_body(error)) is not None:
        return DataError(f"{url}: {inner.message}", hint=inner.hint)
    text = _clean(first_line(error), secrets)
    if isinstance(
        error,
        (
            exceptions.NoCredentialsError,
            exceptions.PartialCredentialsError,
            exceptions.CredentialRetrievalError,
            exceptions.TokenRetrievalError,
            exceptions.UnauthorizedSSOTokenError,
        ),
    ):
        hint = "set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or AWS_PROFILE, or call mox.file.set_auth"
        return UsageError(f"{url}: {text}", hint=hint)
    if isinstance(error, (exceptions.HTTPClientError, exceptions.ConnectionError)):
        text = _QUERY.sub("", text)  # it says nothing that the URL does not
        return MoxFileConnectionException(
            Response(0, reason=type(error).__name__, message=text),
            f"{url}: the store cannot be reached: {text}",
            hint=next((hint for sign, hint in _WAY_HINTS.items() if sign in text), _WAY_HINT),
        )
    if isinstance(error, exceptions.ParamValidationError):
        return UsageError(f"{url}: {' '.join(str(error.kwargs.get('report', error)).split())}")
    if isinstance(error, (exceptions.ProfileNotFound, exceptions.ConfigParseError)):
        return UsageError(f"{url}: {text}")
    return DataError(f"{url}: {text}")


def _refused(url: str, error: Any, secrets: tuple[str, ...]) -> MoxFileRespException:
    details, meta = error.response.get("Error", {}), error.response.get("ResponseMetadata", {})
    code = _clean(str(details.get("Code", "")), secrets)
    message = _clean(str(details.get("Message", "")).strip(), secrets)
    headers = {k: _clean(v, secrets) for k, v in (meta.get("HTTPHeaders") or {}).items()}
    status = int(meta.get("HTTPStatusCode") or 0)
    response = Response(status, code, code, message, str(meta.get("RequestId", "")), headers)
    told = f"{url}: {error.operation_name} was refused: {code}: {message}"
    if code in _GONE:
        return MoxFileObjectNotExistsException(response, f"no such object: {url}")
    kind: type[MoxFileRespException] = MoxFileRespException
    if code == "NoSuchBucket":
        kind = MoxFileObjectNotExistsException
    elif code in _CONFLICT:
        kind = ConflictError
    elif status in (401, 403):
        kind = MoxFilePermissionException
    return kind(response, told, hint=_HINTS.get(code))


def _clean(text: str, secrets: tuple[str, ...]) -> str:
    for secret in secrets:
        text = text.replace(secret, "***")
    return text
