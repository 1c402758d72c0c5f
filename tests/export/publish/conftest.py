"""An S3 server on loopback, and what it holds."""

from __future__ import annotations

import os
import threading
import uuid
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest


@dataclass
class Store:
    """A bucket on a real server that lives in this process.

    Attributes:
        endpoint: its URL.
        bucket: a fresh bucket.
        base: URL of a prefix in it.
        client: boto3's, which the tests look with.
        calls: method and path of each request, in order of arrival.
        md5: the Content-MD5 of each of them, empty without one.
        before: called with method, path and query before a request is answered; what it returns is the answer
            (status, headers, body), None lets the server answer.
    """

    endpoint: str
    bucket: str
    base: str
    client: Any
    calls: list[tuple[str, str]] = field(default_factory=list)
    md5: list[str] = field(default_factory=list)
    before: Callable[[str, str, str], Any] | None = None

    def listed(self) -> list[str]:
        """All keys of the bucket."""
        pages = self.client.get_paginator("list_objects_v2").paginate(Bucket=self.bucket)
        return [found["Key"] for page in pages for found in page.get("Contents", ())]

    def write(self, key: str, data: bytes = b"x") -> None:
        """Put an object."""
        self.client.put_object(Bucket=self.bucket, Key=key, Body=data)

    def read(self, key: str) -> bytes:
        """Get an object."""
        content: bytes = self.client.get_object(Bucket=self.bucket, Key=key)["Body"].read()
        return content


class _Watched:
    """The server's WSGI application with a look at each request."""

    def __init__(self, app: Any) -> None:
        self.app = app
        self.store: Store | None = None

    def __call__(self, environ: dict[str, Any], start_response: Any) -> Any:
        store = self.store
        if store is not None:
            method, path, query = environ["REQUEST_METHOD"], environ["PATH_INFO"], environ.get("QUERY_STRING", "")
            store.calls.append((method, path))
            store.md5.append(environ.get("HTTP_CONTENT_MD5", ""))
            answer = store.before(method, path, query) if store.before else None
            if answer is not None:
                status, headers, body = answer
                environ["wsgi.input"].read(int(environ.get("CONTENT_LENGTH") or 0))
                start_response(status, [*headers, ("Content-Length", str(len(body)))])
                return [body]
        return self.app(environ, start_response)


@pytest.fixture(scope="session")
def s3_server() -> Iterator[tuple[str, _Watched]]:
    """The server: its URL and its application."""
    pytest.importorskip("boto3", reason="needs the extra s3")
    server_module = pytest.importorskip("moto.server", reason="needs moto[server]")
    from werkzeug.serving import WSGIRequestHandler, make_server

    class Quiet(WSGIRequestHandler):
        def log(self, *args: Any, **kwargs: Any) -> None:
            """Say nothing."""

    app = _Watched(server_module.DomainDispatcherApplication(server_module.create_backend_app))
    server = make_server("127.0.0.1", 0, app, threaded=True, request_handler=Quiet)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}", app
    server.shutdown()
    thread.join()


@pytest.fixture
def store(s3_server: tuple[str, _Watched], monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Store]:
    """A fresh bucket, and the environment that leads to it; temporary files go to a folder of their own."""
    import boto3

    endpoint, app = s3_server
    for name in [name for name in os.environ if name.startswith("AWS_")]:
        monkeypatch.delenv(name)
    scratch = tmp_path / "tmpdir"
    scratch.mkdir()
    settings = {
        "AWS_ENDPOINT_URL": endpoint,
        "AWS_ACCESS_KEY_ID": "testing",
        "AWS_SECRET_ACCESS_KEY": "testing",
        "AWS_EC2_METADATA_DISABLED": "true",
        "AWS_CONFIG_FILE": str(tmp_path / "aws-config"),
        "AWS_SHARED_CREDENTIALS_FILE": str(tmp_path / "aws-credentials"),
        "TMPDIR": str(scratch),
    }
    for name, value in settings.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr("tempfile.tempdir", None)
    client = boto3.client("s3", region_name="us-east-1")
    bucket = f"models-{uuid.uuid4().hex[:8]}"
    client.create_bucket(Bucket=bucket)
    app.store = Store(endpoint, bucket, f"s3://{bucket}/team/digits", client)
    yield app.store
    app.store = None


@pytest.fixture
def scratch(tmp_path: Path) -> Path:
    """The folder for temporary files while `store` is used."""
    return tmp_path / "tmpdir"


@pytest.fixture
def fill() -> Callable[[str], dict[str, bytes]]:
    """Write what looks like a version into a staging directory; gives the content by relative name."""

    def write(staging: str, size: int = 1000) -> dict[str, bytes]:
        files = {
            "saved_model.pb": b"graph",
            "variables/variables.index": b"index",
            "variables/variables.data-00000-of-00001": os.urandom(size),
            "assets.extra/moxserve.json": b"{}",
            "variants/frozen/saved_model.pb": b"another graph",
        }
        for name, data in files.items():
            path = Path(staging, name)
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(data)
        return files

    return write
