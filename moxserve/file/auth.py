"""Where object stores are and who we are there: `set_auth`, the environment, and the files that other tools use.

Of each setting the first that is given counts:

    set_auth > environment > files > what botocore finds besides (profiles, SSO, roles of machines and containers)

    setting      s3://                                        obs:// asks first
    ak, sk       AWS_ACCESS_KEY_ID …, ACCESS_KEY_ID,          OBS_ACCESS_KEY_ID, OBS_SECRET_ACCESS_KEY,
                 SECRET_ACCESS_KEY; ~/.aws/credentials        OBS_SECURITY_TOKEN; ~/.obsutilconfig last
    endpoint     S3_ENDPOINT, AWS_ENDPOINT_URL_S3,            OBS_ENDPOINT; ~/.obsutilconfig, then the
                 AWS_ENDPOINT_URL; ~/.aws/config; Amazon      OBS_REGION's of Huawei last; no default
    https        S3_USE_HTTPS, else as the endpoint says, else yes
    ssl_verify   S3_VERIFY_SSL, AWS_CA_BUNDLE
    region       AWS_REGION, AWS_DEFAULT_REGION, ~/.aws       OBS_REGION, or as the endpoint's host says

Keys are never part of a repr, a message or a log of this package.

Source: MoXing guide §1.1.2.3 (set_auth); AWS SDK reference (environment, shared files); obsutil and OBS SDK guides.
"""

from __future__ import annotations

import math
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import lru_cache
from numbers import Real
from typing import Any
from urllib.parse import urlsplit

from moxserve.errors import UsageError
from moxserve.file.forks import ForkLock

__all__ = ["Auth", "Connection", "resolve", "set_auth"]

_NO = {"0", "false", "no", "off", ""}
_HUAWEI_HOST = re.compile(r"(?:^|\.)obs\.([a-z0-9-]+)\.myhuaweicloud\.")

# What botocore looks at: when one of these changes, clients are made anew.
_ENVIRONMENT = (
    "AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN", "AWS_SECURITY_TOKEN", "AWS_PROFILE",
    "AWS_DEFAULT_PROFILE", "AWS_CONFIG_FILE", "AWS_SHARED_CREDENTIALS_FILE", "AWS_REGION", "AWS_DEFAULT_REGION",
    "AWS_ENDPOINT_URL", "AWS_ENDPOINT_URL_S3", "AWS_MAX_ATTEMPTS", "AWS_CA_BUNDLE", "AWS_ROLE_ARN",
    "AWS_WEB_IDENTITY_TOKEN_FILE", "HTTP_PROXY", "HTTPS_PROXY", "NO_PROXY", "http_proxy", "https_proxy", "no_proxy",
    "HOME",
)  # fmt: skip


@dataclass(frozen=True)
class Auth:
    """What `set_auth` was told; None where it was told nothing."""

    ak: str | None = field(default=None, repr=False)
    sk: str | None = field(default=None, repr=False)
    server: str | None = None
    port: int | None = None
    is_secure: bool | None = None
    ssl_verify: bool | str | None = None
    long_conn_mode: bool | None = None
    path_style: bool | None = None
    retry: int | None = None
    retry_wait: float | None = None
    client_timeout: float | None = None
    list_max_keys: int | None = None


@dataclass(frozen=True)
class Connection:
    """All that decides how a store is talked to; equal ones share a client.

    Attributes:
        ak: access key; None: botocore finds one.
        sk: secret key.
        token: session token.
        endpoint: URL of the store; None: botocore finds it.
        region: its region; None: botocore finds it.
        verify: whether the certificate is checked, or a file of authorities; None: as botocore does.
        path_style: bucket in the path (true) or in the host's name; None: by the endpoint.
        long_connections: whether connections are kept for the next request.
        attempts: how often a request is sent in all; None: by AWS_MAX_ATTEMPTS and the files.
        wait_s: seconds between attempts; None: random, and longer each time.
        timeout_s: seconds until a connection or an answer is given up; None: by default.
        page_keys: how many keys a page of a listing has; None: as the store does.
        environment: the variables that botocore looks at.
    """

    ak: str | None = field(default=None, repr=False)
    sk: str | None = field(default=None, repr=False)
    token: str | None = field(default=None, repr=False)
    endpoint: str | None = None
    region: str | None = None
    verify: bool | str | None = None
    path_style: bool | None = None
    long_connections: bool = True
    attempts: int | None = None
    wait_s: float | None = None
    timeout_s: float | None = None
    page_keys: int | None = None
    environment: tuple[str | None, ...] = field(default=(), repr=False)


_lock = ForkLock()
_current = Auth()


def set_auth(  # MoXing's signature
    ak: str | None = None,
    sk: str | None = None,
    server: str | None = None,
    port: int | None = None,
    is_secure: bool | None = None,
    ssl_verify: bool | str | None = None,
    long_conn_mode: bool | None = None,
    path_style: bool | None = None,
    retry: int | None = None,
    retry_wait: float | None = None,
    client_timeout: float | None = None,
    list_max_keys: int | None = None,
) -> None:
    """Say how object stores are reached, for this process and all its threads, from the next operation on.

    What is left out (None) stays as it is. Files that are open go on as they began.

    Args:
        ak: access key.
        sk: secret access key.
        server: the store: host, `host:port` or URL.
        port: its port.
        is_secure: https or http. Left out: as `server` says, else https.
        ssl_verify: whether its certificate is checked; also the path of a file of certificate authorities.
        long_conn_mode: whether connections are kept open between requests. Default True.
        path_style: bucket names in the path (True: stores in a house) or in the host name (False: public clouds). Left
            out: host names for amazonaws.com and myhuaweicloud.com, paths for all others.
        retry: how often a request is sent in all, the first time included. Default 5. (MoXing's document calls it a
            time; its users pass counts.)
        retry_wait: seconds between two attempts. Left out: random, and longer each time.
        client_timeout: seconds until a connection, or a silent one, is given up. Default 10 and 60.
        list_max_keys: keys a page of a listing, 1 to 1000.

    Raises:
        UsageError: a value that cannot be; nothing is changed then.
    """
    given: dict[str, Any] = {name: value for name, value in locals().items() if value is not None}
    kept = _checked(given)
    global _current
    with _lock:
        _current = replace(_current, **kept)


_NUMBERS = {
    "port": (1, 65535), "retry": (1, 1000), "retry_wait": (0, 3600), "client_timeout": (1e-3, 86400),
    "list_max_keys": (1, 1000),
}  # fmt: skip
_COUNTS = {"port", "retry", "list_max_keys"}
_SWITCHES = {"is_secure", "ssl_verify", "long_conn_mode", "path_style"}


def _checked(given: Mapping[str, Any]) -> dict[str, Any]:
    """Return settings as they are kept.

    Raises:
        UsageError: one that cannot be. What should be text is not told: it may be a key.
    """
    kept: dict[str, Any] = {}
    for name, value in given.items():
        if name in _NUMBERS:
            kept[name] = _number(name, value)
        elif name in _SWITCHES:
            kept[name] = _switch(name, value)
        elif not isinstance(value, str) or not value.strip():
            raise UsageError(f"set_auth: {name} must be text that is not empty, not {type(value).__name__}")
        else:
            kept[name] = value
    if "server" in kept:
        _url(kept["server"], None, None)
    return kept


def _number(name: str, value: Any) -> float:
    low, high = _NUMBERS[name]
    whole = name in _COUNTS
    number = float(value) if isinstance(value, Real) and not isinstance(value, bool) else math.nan
    if not low <= number <= high or (whole and number % 1):
        told = "a whole number" if whole else "a number"
        raise UsageError(f"set_auth({name}={value!r}): expected {told} from {low:g} to {high:g}")
    return int(number) if whole else number


def _switch(name: str, value: Any) -> bool | str:
    if name == "ssl_verify" and isinstance(value, str) and os.path.exists(value):
        return value
    if isinstance(value, str) or value not in (0, 1):
        other = ", or the path of a file of certificate authorities" if name == "ssl_verify" else ""
        raise UsageError(f"set_auth({name}={value!r}): expected True or False{other}")
    return bool(value)


def _reset() -> None:
    """Forget what `set_auth` was told."""
    global _current
    with _lock:
        _current = Auth()


def resolve(scheme: str) -> Connection:
    """Return the settings for `s3` or `obs` as they are now.

    Raises:
        UsageError: a key without its partner, or obs:// without an endpoint.
    """
    told = _current
    obs = scheme == "obs"
    ak, sk, token = _keys(told, obs)
    endpoint = _endpoint(told, obs)
    verify: bool | str | None = told.ssl_verify
    if verify is None and (flag := os.environ.get("S3_VERIFY_SSL")) is not None:
        verify = False if flag.strip().lower() in _NO else None
    host = urlsplit(endpoint).hostname or "" if endpoint else ""
    named = _HUAWEI_HOST.search(host)
    path_style = told.path_style
    if path_style is None and named:
        path_style = False
    return Connection(
        ak=ak,
        sk=sk,
        token=token,
        endpoint=endpoint,
        region=named[1] if named else _region(obs),
        verify=verify,
        path_style=path_style,
        long_connections=told.long_conn_mode is not False,
        attempts=told.retry,
        wait_s=told.retry_wait,
        timeout_s=told.client_timeout,
        page_keys=told.list_max_keys,
        environment=tuple(map(os.environ.get, _ENVIRONMENT)),
    )


def _keys(told: Auth, obs: bool) -> tuple[str | None, str | None, str | None]:
    """Return the access key, the secret key and the token; all None when botocore shall look for them."""
    if told.ak or told.sk:
        if not (told.ak and told.sk):
            raise UsageError(f"set_auth was given {'ak' if told.ak else 'sk'} alone: both ak and sk are needed")
        return told.ak, told.sk, None
    get = os.environ.get
    if obs and get("OBS_ACCESS_KEY_ID") and get("OBS_SECRET_ACCESS_KEY"):
        return get("OBS_ACCESS_KEY_ID"), get("OBS_SECRET_ACCESS_KEY"), get("OBS_SECURITY_TOKEN") or None
    if get("AWS_ACCESS_KEY_ID"):
        return None, None, None
    if get("ACCESS_KEY_ID") and get("SECRET_ACCESS_KEY"):
        return get("ACCESS_KEY_ID"), get("SECRET_ACCESS_KEY"), get("SECURITY_TOKEN") or None
    if obs:
        file = _obsutil()
        if file.get("ak") and file.get("sk"):
            return file["ak"], file["sk"], file.get("token") or None
    return None, None, None


def _region(obs: bool) -> str | None:
    # boto3 knows the second of Amazon's two names only.
    names = (["OBS_REGION"] if obs else []) + ["AWS_REGION"]
    return next((value for name in names if (value := os.environ.get(name))), None)


def _endpoint(told: Auth, obs: bool) -> str | None:
    get = os.environ.get
    names = (["OBS_ENDPOINT"] if obs else []) + ["S3_ENDPOINT"]
    server = told.server or next((value for name in names if (value := get(name))), None)
    if server is None and obs:
        server = get("AWS_ENDPOINT_URL_S3") or get("AWS_ENDPOINT_URL") or _obsutil().get("endpoint")
        if not server and (region := get("OBS_REGION")):
            server = f"obs.{region}.myhuaweicloud.com"
        if not server:
            raise UsageError(
                "obs:// needs to know where the store is",
                hint="call mox.file.set_auth(server=...), or set OBS_ENDPOINT or OBS_REGION",
            )
    if server is None:
        return None
    secure = told.is_secure
    if secure is None and (flag := get("S3_USE_HTTPS")) is not None and "://" not in server:
        secure = flag.strip().lower() not in _NO
    return _url(server, told.port, secure)


def _url(server: str, port: int | None, secure: bool | None) -> str:
    """Join host, port and scheme; what is said apart counts more than what the server's URL says.

    Raises:
        UsageError: another scheme, or somebody's name and password in it, which messages would tell.
    """
    scheme, sep, rest = server.strip().rpartition("://")
    rest = rest.rstrip("/")
    if "@" in rest:
        raise UsageError(
            "the store's address has a name or password in it (HOST@)", hint="keys go to set_auth(ak=..., sk=...)"
        )
    if sep and scheme not in ("http", "https"):
        raise UsageError(f"server {server!r}: expected a host, or a URL of http:// or https://")
    if secure is not None or not sep:
        scheme = "http" if secure is False else "https"
    if port is not None:
        rest = re.sub(r":\d+$", "", rest) + f":{port}"
    return f"{scheme}://{rest}"


def _obsutil() -> Mapping[str, str]:
    """Return what obsutil's file says: lines `name=value`."""
    path = os.path.expanduser("~/.obsutilconfig")
    try:
        return _lines(path, os.stat(path).st_mtime_ns)
    except OSError:
        return {}


@lru_cache(maxsize=4)
def _lines(path: str, modified_ns: int) -> Mapping[str, str]:
    del modified_ns  # a part of the key only
    with open(path, encoding="utf-8", errors="replace") as f:
        pairs = (line.partition("=") for line in f if "=" in line and not line.lstrip().startswith("#"))
        return {name.strip(): value.strip() for name, _, value in pairs}
