"""Who we are, and where the store is: what counts in which order, and that no key is ever told."""

from __future__ import annotations

import logging
import os
import signal
import subprocess
import sys
import traceback
from pathlib import Path
from typing import Any

import pytest

from moxserve import file
from moxserve.errors import MissingExtraError, UsageError
from moxserve.file import auth, client
from moxserve.file.forks import ForkLock

SECRET = "wJalrXUtnFEMI/K7MDENG/bPxRfiCYEXAMPLEKEY"
ACCESS = "AKIAIOSFODNN7EXAMPLE"


def test_importing_the_file_api_loads_no_client() -> None:
    code = (
        "import sys, moxserve.file as f; f.exists('/'); print([m for m in ('boto3', 'botocore') if m in sys.modules])"
    )
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert run.stdout.strip() == "[]"


def test_without_boto3_the_extra_is_named(bare: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "boto3", None)
    with pytest.raises(MissingExtraError, match="s3://bucket needs boto3"):
        file.exists("s3://bucket/x")


# Where the store is


@pytest.mark.parametrize(
    ("told", "environment", "s3", "obs"),
    [
        ({}, {}, None, UsageError),
        ({"server": "store:9000", "is_secure": False}, {}, "http://store:9000", "http://store:9000"),
        ({"server": "store"}, {}, "https://store", "https://store"),
        ({"server": "store", "port": 443, "is_secure": True}, {}, "https://store:443", "https://store:443"),
        ({"server": "http://store:1", "port": 2}, {}, "http://store:2", "http://store:2"),
        ({"server": "http://store", "is_secure": True}, {}, "https://store", "https://store"),
        ({"server": "told"}, {"S3_ENDPOINT": "env", "OBS_ENDPOINT": "obs"}, "https://told", "https://told"),
        ({}, {"S3_ENDPOINT": "env", "S3_USE_HTTPS": "0"}, "http://env", "http://env"),
        ({}, {"S3_ENDPOINT": "http://env", "S3_USE_HTTPS": "1"}, "http://env", "http://env"),
        ({}, {"S3_ENDPOINT": "env", "OBS_ENDPOINT": "https://obs"}, "https://env", "https://obs"),
        ({}, {"AWS_ENDPOINT_URL": "http://aws"}, None, "http://aws"),
        ({}, {"OBS_REGION": "cn-north-4"}, None, "https://obs.cn-north-4.myhuaweicloud.com"),
    ],
)
def test_endpoints(
    told: dict[str, Any], environment: dict[str, str], s3: Any, obs: Any, bare: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    file.set_auth(**told)
    assert auth.resolve("s3").endpoint == s3
    if obs is UsageError:
        with pytest.raises(UsageError, match="obs:// needs to know where the store is"):
            auth.resolve("obs")
    else:
        assert auth.resolve("obs").endpoint == obs


@pytest.mark.slow
@pytest.mark.parametrize(
    ("told", "host", "region"),
    [
        (
            {"server": "obs.cn-north-4.myhuaweicloud.com"},
            "https://bucket.obs.cn-north-4.myhuaweicloud.com/k",
            "cn-north-4",
        ),
        ({"server": "minio:9000", "is_secure": False}, "http://minio:9000/bucket/k", "us-east-1"),
        ({"server": "minio.example", "path_style": False}, "https://bucket.minio.example/k", "us-east-1"),
        (
            {"server": "obs.cn-north-4.myhuaweicloud.com", "path_style": True},
            "https://obs.cn-north-4.myhuaweicloud.com/bucket/k",
            "cn-north-4",
        ),
        ({}, "https://bucket.s3.amazonaws.com/k", "us-east-1"),
    ],
)
def test_where_the_bucket_is_named(told: dict[str, Any], host: str, region: str, bare: None, monkeypatch: Any) -> None:
    monkeypatch.setenv("AWS_REGION", "us-east-1")
    file.set_auth(ak=ACCESS, sk=SECRET, **told)
    boto = client.store_of("s3", "s3://b").client
    signed = boto.generate_presigned_url("get_object", {"Bucket": "bucket", "Key": "k"})
    assert signed.startswith(host + "?")
    assert boto.meta.region_name == region


@pytest.mark.parametrize("scheme", ["s3", "obs"])
def test_the_region_of_the_environment(scheme: str, bare: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_REGION", "eu-central-1")
    monkeypatch.setenv("AWS_DEFAULT_REGION", "us-west-2")
    file.set_auth(ak=ACCESS, sk=SECRET, server="store")
    assert auth.resolve(scheme).region == "eu-central-1"
    monkeypatch.setenv("OBS_REGION", "cn-north-4")
    assert auth.resolve(scheme).region == {"s3": "eu-central-1", "obs": "cn-north-4"}[scheme]


@pytest.mark.slow
def test_what_else_set_auth_says_reaches_the_client(bare: None, tmp_path: Path) -> None:
    file.set_auth(ak=ACCESS, sk=SECRET, server="store", ssl_verify=False, long_conn_mode=False)
    file.set_auth(retry=3, retry_wait=0.5, client_timeout=7, list_max_keys=10)
    store = client.store_of("s3", "s3://b")
    config = store.client.meta.config
    assert (store.attempts, store.wait(1), store.wait(9)) == (3, 0.5, 0.5)
    assert (config.connect_timeout, config.read_timeout) == (7, 7)
    assert store.connection.verify is False
    assert store.connection.page_keys == 10
    # What is left out stays; another value makes another client, the same values the same one.
    assert client.store_of("s3", "s3://b") is store
    file.set_auth(retry=2)
    assert client.store_of("s3", "s3://b").attempts == 2
    assert auth.resolve("s3").timeout_s == 7


@pytest.mark.slow
def test_connections_are_kept_or_not(proxy: Any, s3: str) -> None:
    file.exists(f"{s3}/x")
    assert {headers.get("connection", "keep-alive") for headers in proxy.headers} == {"keep-alive"}
    proxy.headers.clear()
    file.set_auth(long_conn_mode=False)
    file.exists(f"{s3}/x")
    assert {headers.get("connection") for headers in proxy.headers} == {"close"}


@pytest.mark.parametrize(
    "told",
    [
        {"port": 0}, {"port": "80"}, {"retry": 0}, {"retry": True}, {"retry_wait": -1}, {"client_timeout": 0},
        {"list_max_keys": 1001}, {"ak": ""}, {"sk": 5}, {"server": " "}, {"server": "ftp://store"},
        {"port": 80.5}, {"retry": 2.5}, {"is_secure": "false"}, {"long_conn_mode": 2}, {"ssl_verify": "/missing"},
    ],
)  # fmt: skip
def test_values_that_cannot_be_change_nothing(told: dict[str, Any], bare: None) -> None:
    with pytest.raises(UsageError, match=next(iter(told))):
        file.set_auth(**told, path_style=True)
    assert auth._current == auth.Auth()


@pytest.mark.parametrize("where", ["told", "environment"])
def test_a_password_in_the_address_is_refused(where: str, bare: None, monkeypatch: pytest.MonkeyPatch) -> None:
    address = f"http://{ACCESS}:password@store:9000"
    monkeypatch.setenv("S3_ENDPOINT", address)
    with pytest.raises(UsageError, match="has a name or password in it") as raised:
        file.set_auth(server=address) if where == "told" else file.exists("s3://b/k")
    assert "password@" not in str(raised.value)


def test_numbers_stand_for_yes_and_no(bare: None, tmp_path: Path) -> None:
    """As scripts that are older than `bool` have them."""
    file.set_auth(server="store", port=80.0, is_secure=0, path_style=1, long_conn_mode=0, ssl_verify=0)
    found = auth.resolve("s3")
    assert (found.endpoint, found.path_style, found.long_connections, found.verify) == (
        "http://store:80",
        True,
        False,
        False,
    )
    file.set_auth(ssl_verify=str(tmp_path))
    assert auth.resolve("s3").verify == str(tmp_path)


# Who we are


def _keys(scheme: str = "s3") -> tuple[str, str, str | None]:
    boto = client.store_of(scheme, f"{scheme}://b").client
    found = boto._request_signer._credentials
    return found.access_key, found.secret_key, found.token


@pytest.mark.slow
def test_keys_in_the_order_of_the_document(bare: None, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / ".aws").mkdir()
    (tmp_path / ".aws/credentials").write_text(
        "[default]\naws_access_key_id=file\naws_secret_access_key=file-secret\n"
        "[other]\naws_access_key_id=profile\naws_secret_access_key=profile-secret\n"
    )
    assert _keys() == ("file", "file-secret", None)
    monkeypatch.setenv("AWS_PROFILE", "other")
    assert _keys() == ("profile", "profile-secret", None)
    monkeypatch.delenv("AWS_PROFILE")
    monkeypatch.setenv("ACCESS_KEY_ID", "moxing")
    monkeypatch.setenv("SECRET_ACCESS_KEY", "moxing-secret")
    assert _keys() == ("moxing", "moxing-secret", None)
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "aws")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "aws-secret")
    monkeypatch.setenv("AWS_SESSION_TOKEN", "aws-token")
    assert _keys() == ("aws", "aws-secret", "aws-token")
    file.set_auth(ak="told", sk="told-secret")
    assert _keys() == ("told", "told-secret", None)


@pytest.mark.slow
def test_keys_of_obs(bare: None, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / ".obsutilconfig").write_text("endpoint=obs.example\nak=util\nsk=util-secret\ntoken=\n")
    assert _keys("obs") == ("util", "util-secret", None)
    assert auth.resolve("obs").endpoint == "https://obs.example"
    monkeypatch.setenv("ACCESS_KEY_ID", "moxing")
    monkeypatch.setenv("SECRET_ACCESS_KEY", "moxing-secret")
    assert _keys("obs") == ("moxing", "moxing-secret", None)
    monkeypatch.setenv("OBS_ACCESS_KEY_ID", "obs")
    monkeypatch.setenv("OBS_SECRET_ACCESS_KEY", "obs-secret")
    monkeypatch.setenv("OBS_SECURITY_TOKEN", "obs-token")
    assert _keys("obs") == ("obs", "obs-secret", "obs-token")
    assert _keys("s3") == ("moxing", "moxing-secret", None)


def test_half_a_pair_of_keys(bare: None) -> None:
    file.set_auth(ak=ACCESS)
    with pytest.raises(UsageError, match="ak alone") as raised:
        file.exists("s3://b/k")
    assert ACCESS not in str(raised.value)


@pytest.mark.slow
def test_set_auth_counts_from_the_next_operation_on(account: Any, signed: Any, s3: str) -> None:
    file.write(f"{s3}/f", "x")
    file.set_auth(ak=account.ak, sk=SECRET)
    with pytest.raises(file.MoxFileRespException) as raised:
        file.read(f"{s3}/f")
    assert isinstance(raised.value, PermissionError)
    assert (raised.value.resp.status, raised.value.resp.code) == (403, "SignatureDoesNotMatch")
    assert raised.value.resp.errorCode == "SignatureDoesNotMatch"
    file.set_auth(ak="AKIAUNKNOWNUNKNOWN00", sk=SECRET)
    with pytest.raises(PermissionError, match=r"InvalidAccessKeyId|SignatureDoesNotMatch"):
        file.write(f"{s3}/f", "y")
    for call in (file.exists, file.stat, file.get_size, file.remove):  # these ask by HEAD, whose answers have no words
        with pytest.raises(PermissionError, match=r"InvalidAccessKeyId|SignatureDoesNotMatch"):
            call(f"{s3}/f")
    file.set_auth(ak=account.ak, sk=account.sk)
    assert file.read(f"{s3}/f") == "x"


def test_https_to_a_store_without_it(account: Any, signed: Any, s3: str) -> None:
    file.set_auth(server=account.endpoint.removeprefix("http://"), is_secure=True, retry=1)
    with pytest.raises(file.MoxFileConnectionException) as raised:
        file.list_directory(s3)
    assert "is_secure=False" in str(raised.value.hint)
    assert "?" not in raised.value.message


def test_no_credentials_at_all(bare: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9")
    with pytest.raises(UsageError, match="Unable to locate credentials") as raised:
        file.read("s3://b/k")
    assert "set_auth" in str(raised.value.hint)


def test_keys_are_told_to_nobody(proxy: Any, s3: str, caplog: pytest.LogCaptureFixture, capfd: Any) -> None:
    """Not in reprs, not in messages and their causes, not in logs; also if the store repeats them."""
    file.set_auth(ak=ACCESS, sk=SECRET)
    caplog.set_level(logging.DEBUG)
    told = [repr(auth._current), repr(auth.resolve("s3")), repr(client.store_of("s3", s3)), repr(file.File)]
    proxy.fault = lambda method, path, headers: ("status", 403, f"x-echo: {ACCESS}\r\n", f"No{ACCESS}/{SECRET}")
    for call in (file.read, file.exists, file.list_directory, lambda u: file.write(u, "x")):
        with pytest.raises(file.MoxFileRespException) as raised:
            call(f"{s3}/f")
        told += [str(raised.value), repr(raised.value), repr(raised.value.resp), str(raised.value.resp.header)]
        told += traceback.format_exception(raised.value)
    proxy.fault = lambda method, path, headers: ("reset",)
    with pytest.raises(file.MoxFileRespException) as raised:
        file.read(f"{s3}/f")
    told += [*traceback.format_exception(raised.value), caplog.text.replace("moto", ""), *capfd.readouterr()]
    with pytest.raises(UsageError) as refused:
        file.set_auth(sk=["a-secret-in-a-list"])  # type: ignore[arg-type]
    told.append(str(refused.value))
    for secret in (SECRET, ACCESS, "a-secret-in-a-list"):
        assert not [text for text in told if secret in text]
    assert not [record for record in caplog.records if record.name.startswith(("botocore", "urllib3", "boto3"))]


@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
def test_a_process_that_is_forked_while_a_lock_is_held_finds_it_open() -> None:
    lock, child = ForkLock(), -1
    try:
        with lock:
            child = os.fork()
            if not child:
                signal.alarm(100)  # a lock that stays closed ends here
                with lock:
                    pass
        if not child:
            with lock:
                os._exit(0)
    finally:
        if not child:
            os._exit(1)
    assert os.waitpid(child, 0)[1] == 0
