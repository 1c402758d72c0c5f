"""Where the file API is tested: a local folder, and a store with authentication; and a network that fails on demand."""

from __future__ import annotations

import contextlib
import json
import os
import socket
import struct
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pytest

from moxserve import file
from moxserve.file import auth

_VARIABLES = ("AWS_", "S3_", "OBS_", "ACCESS_KEY_ID", "SECRET_ACCESS_KEY", "SECURITY_TOKEN")


@pytest.fixture(scope="session")
def account(account: Any) -> Any:
    """The store's address and keys that it knows; authentication is only on while `signed` is used."""
    if account.elsewhere:
        return account
    import boto3

    iam = boto3.client(
        "iam", endpoint_url=account.endpoint, region_name="us-east-1", aws_access_key_id="a", aws_secret_access_key="b"
    )
    name = f"user-{uuid.uuid4().hex[:8]}"
    iam.create_user(UserName=name)
    everything = {
        "Version": "2012-10-17",
        "Statement": [{"Effect": "Allow", "Action": "s3:*", "Resource": "*"}],
    }
    iam.put_user_policy(UserName=name, PolicyName="all", PolicyDocument=json.dumps(everything))
    key = iam.create_access_key(UserName=name)["AccessKey"]
    return replace(account, ak=key["AccessKeyId"], sk=key["SecretAccessKey"])


@pytest.fixture(scope="session")
def empty_home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A home directory without settings."""
    return tmp_path_factory.mktemp("home")


@pytest.fixture
def bare(monkeypatch: pytest.MonkeyPatch, empty_home: Path) -> Iterator[None]:
    """Nothing says where a store is or who we are."""
    for name in [name for name in os.environ if name.startswith(_VARIABLES)]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("HOME", str(empty_home))
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    auth._reset()
    yield
    auth._reset()


@pytest.fixture
def signed(account: Any, bare: None, monkeypatch: pytest.MonkeyPatch) -> Any:
    """The environment leads to the store, and the store checks signatures."""
    monkeypatch.setenv("AWS_ENDPOINT_URL", account.endpoint)
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", account.ak)
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", account.sk)
    with contextlib.suppress(ImportError):
        from moto import settings

        monkeypatch.setattr(settings, "INITIAL_NO_AUTH_ACTION_COUNT", 0)
    return account


@pytest.fixture(scope="session")
def _buckets(_looker: Any) -> Callable[[], str]:
    def make() -> str:
        name = f"moxserve-{uuid.uuid4().hex[:12]}"
        _looker.create_bucket(Bucket=name)
        return name

    return make


@pytest.fixture(scope="session")
def shared_bucket(_buckets: Callable[[], str]) -> str:
    """A bucket for all tests, each in a directory of its own."""
    return _buckets()


@pytest.fixture
def own_bucket(signed: Any, _buckets: Callable[[], str]) -> str:
    """A bucket for one test."""
    return _buckets()


@pytest.fixture
def s3(signed: Any, shared_bucket: str) -> str:
    """URL of a fresh directory of the store."""
    return f"s3://{shared_bucket}/{uuid.uuid4().hex[:8]}"


@pytest.fixture(scope="session")
def _looker(account: Any) -> Any:
    return account.client()


@pytest.fixture
def raw(_looker: Any, s3: str) -> Raw:
    """The same directory, seen with boto3."""
    bucket, _, prefix = s3.removeprefix("s3://").partition("/")
    return Raw(_looker, bucket, f"{prefix}/")


@dataclass
class Raw:
    """A directory of a bucket without this package."""

    client: Any
    bucket: str
    prefix: str

    def put(self, key: str, data: bytes = b"x", **about: Any) -> None:
        """Put an object; the key is relative."""
        self.client.put_object(Bucket=self.bucket, Key=self.prefix + key, Body=data, **about)

    def get(self, key: str) -> bytes:
        """Get an object."""
        content: bytes = self.client.get_object(Bucket=self.bucket, Key=self.prefix + key)["Body"].read()
        return content

    def head(self, key: str) -> Any:
        """Get what is known of an object."""
        return self.client.head_object(Bucket=self.bucket, Key=self.prefix + key)

    def keys(self) -> list[str]:
        """List everything below."""
        pages = self.client.get_paginator("list_objects_v2").paginate(Bucket=self.bucket, Prefix=self.prefix)
        return [found["Key"][len(self.prefix) :] for page in pages for found in page.get("Contents", ())]

    def uploads(self) -> list[str]:
        """List the uploads in parts that are not finished."""
        found = self.client.list_multipart_uploads(Bucket=self.bucket, Prefix=self.prefix)
        return [upload["Key"] for upload in found.get("Uploads", ())]


@pytest.fixture(params=["local", "s3"])
def base(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """A fresh directory that is there, in each file system."""
    if request.param == "local":
        folder = tmp_path / "base"
        folder.mkdir()
        return str(folder)
    url: str = request.getfixturevalue("s3")
    file.make_dirs(url)
    return url


@pytest.fixture
def remote(base: str) -> bool:
    """Whether `base` is in a store."""
    return "://" in base


# A network that fails


@dataclass
class Proxy:
    """Stands between a client and the store.

    Attributes:
        endpoint: where the client connects to.
        fault: asked with method, path and headers of each request what shall go wrong; None: nothing.
        calls: method and path of each request.
        headers: the headers of each of them.

    Faults: ("reset",) before the request reaches the store · ("lose",) after it did, the answer is lost ·
    ("cut", n) / ("end", n): reset / orderly end after n bytes of the body · ("status", code, headers) · ("hang", s) ·
    ("slow", s): the body in ten pieces with so many seconds between them · ("all", content, etag): what a store answers
    that knows no ranges.
    """

    endpoint: str = ""
    fault: Callable[[str, str, dict[str, str]], Any] = lambda method, path, headers: None
    calls: list[tuple[str, str]] = field(default_factory=list)
    headers: list[dict[str, str]] = field(default_factory=list)
    lock: Any = field(default_factory=threading.Lock)

    def first(self, times: int, what: tuple[Any, ...], method: str = "", path: str = "") -> None:
        """Let the first requests of a method, whose path contains a text, fail."""
        lock, left = threading.Lock(), [times]

        def fault(a_method: str, a_path: str, headers: dict[str, str]) -> Any:
            if (method and a_method != method) or path not in a_path:
                return None
            with lock:
                left[0] -= 1
                return what if left[0] >= 0 else None

        self.fault = fault

    def count(self, method: str, path: str = "") -> int:
        """Return how many requests there were."""
        return sum(a_method == method and path in a_path for a_method, a_path in self.calls)


class _Relay:
    def __init__(self, upstream: str) -> None:
        host, _, port = upstream.removeprefix("http://").partition(":")
        self._upstream = (host, int(port or 80))
        self._listener = socket.create_server(("127.0.0.1", 0), backlog=128)
        self._address = self._listener.getsockname()
        self.state = Proxy()
        threading.Thread(target=self._accept, daemon=True).start()

    def renew(self) -> Proxy:
        """Begin for another test; what comes late of an earlier one does not count."""
        with socket.create_connection(self._address) as last:
            last.sendall(b"\r\n")
            last.recv(1)  # its end: all that connected before are accepted
        self.state = Proxy(f"http://127.0.0.1:{self._address[1]}")
        return self.state

    def close(self) -> None:
        with contextlib.suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()

    def _accept(self) -> None:
        while True:
            try:
                connection, _ = self._listener.accept()
            except OSError:
                return
            threading.Thread(target=self._serve, args=(connection, self.state), daemon=True).start()

    def _serve(self, connection: socket.socket, state: Proxy) -> None:
        with connection, contextlib.suppress(OSError), connection.makefile("rb") as stream:
            while self._one(connection, stream, state):
                pass

    def _one(self, connection: socket.socket, stream: Any, state: Proxy) -> bool:
        lines = []
        while (line := stream.readline()) not in (b"\r\n", b""):
            lines.append(line)
        if not lines:
            return False
        method, path, _ = lines[0].decode().split(" ", 2)
        headers = {k.strip().lower(): v.strip() for k, _, v in (x.decode("latin-1").partition(":") for x in lines[1:])}
        if headers.get("expect"):
            connection.sendall(b"HTTP/1.1 100 Continue\r\n\r\n")
        body = stream.read(int(headers.get("content-length", 0)))
        with state.lock:  # one of each for a request
            state.calls.append((method, path))
            state.headers.append(headers)
        fault = state.fault(method, path, headers) or ("none",)
        if fault[0] == "hang":
            time.sleep(fault[1])
            return False
        if fault[0] == "reset":
            return _reset(connection)
        if fault[0] == "all":
            about = f"ETag: {fault[2]}\r\nContent-Length: {len(fault[1])}\r\n"
            connection.sendall(f"HTTP/1.1 200 OK\r\n{about}\r\n".encode() + fault[1])
            return False
        if fault[0] == "status":
            return _answer(connection, *fault[1:])
        lines = [x for x in lines if not x.lower().startswith((b"expect:", b"connection:"))]
        head, answer = self._ask(b"".join(lines) + b"Connection: close\r\n\r\n" + body)
        return _relay(connection, fault, head, answer)

    def _ask(self, request: bytes) -> tuple[bytes, bytes]:
        with socket.create_connection(self._upstream) as upstream:
            parts = []
            with contextlib.suppress(OSError):  # a refusal may come before all is sent
                upstream.sendall(request)
            with contextlib.suppress(OSError):
                while part := upstream.recv(1 << 16):
                    parts.append(part)
        head, _, body = b"".join(parts).partition(b"\r\n\r\n")
        return head + b"\r\n\r\n", body


def _relay(connection: socket.socket, fault: Any, head: bytes, body: bytes) -> bool:
    if fault[0] == "lose":
        return _reset(connection)
    if fault[0] in ("cut", "end"):
        connection.sendall(head + body[: fault[1]])
        if fault[0] == "cut":
            time.sleep(0.02)  # a reset overtakes what is under way
            return _reset(connection)
        return False
    connection.sendall(head)
    pieces = 10 if fault[0] == "slow" else 1
    for number in range(pieces):
        connection.sendall(body[len(body) * number // pieces : len(body) * (number + 1) // pieces])
        if fault[0] == "slow":
            time.sleep(fault[1])
    return False


def _reset(connection: socket.socket) -> bool:
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    connection.close()
    return False


def _answer(connection: socket.socket, status: int, headers: str = "", code: str = "Fault") -> bool:
    body = f"<Error><Code>{code}</Code><Message>made up</Message></Error>".encode()
    connection.sendall(
        f"HTTP/1.1 {status} Made Up\r\n{headers}Content-Type: application/xml\r\n"
        f"Content-Length: {len(body)}\r\n\r\n".encode()
        + body
    )
    return False


@pytest.fixture(scope="session")
def _relay_to_store(account: Any) -> Iterator[_Relay]:
    relay = _Relay(account.endpoint)
    yield relay
    relay.close()


@pytest.fixture
def proxy(_relay_to_store: _Relay, signed: Any, monkeypatch: pytest.MonkeyPatch) -> Proxy:
    """The way to the store goes through a network that fails on demand; four attempts without long waits."""
    state = _relay_to_store.renew()
    monkeypatch.setenv("AWS_ENDPOINT_URL", state.endpoint)
    # What answers late on a busy machine is waited for; only a test that hangs gives up sooner.
    file.set_auth(retry=4, retry_wait=0.01, client_timeout=100)
    return state
