"""Fixtures that every part of the suite uses.

The object store of the tests is moto's server in this process. MOXSERVE_TEST_S3_ENDPOINT, with AWS_ACCESS_KEY_ID and
AWS_SECRET_ACCESS_KEY, names another one: what is tested is the protocol, not moto.
"""

from __future__ import annotations

import contextlib
import http.client
import io
import itertools
import json
import os
import signal
import subprocess
import sys
import threading
import uuid
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest
from hypothesis import HealthCheck, settings

from moxserve import ports

ROOT = Path(__file__).resolve().parent.parent

# One quiet, cached TensorFlow import a process: also for subprocesses, which inherit this.
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
if not os.environ.get("PYTHONPYCACHEPREFIX"):
    os.environ["PYTHONPYCACHEPREFIX"] = str(ROOT / ".cache" / "pycache")
os.environ["PYTHONDONTWRITEBYTECODE"] = ""
# How long examples take says how busy the machine is, not whether the code is right; and every run tries the same ones.
settings.register_profile(
    "the same everywhere", deadline=None, suppress_health_check=[HealthCheck.too_slow], derandomize=True, database=None
)
settings.load_profile("the same everywhere")


@pytest.fixture(scope="session")
def repo_root() -> Path:
    """Top of the checkout."""
    return ROOT


@pytest.fixture(scope="session")
def shared_dir() -> Path:
    """The folder of reference material; tests that need it are skipped where it is absent."""
    path = Path(os.environ.get("MOXSERVE_SHARED", ROOT.parent / "shared"))
    if not path.is_dir():
        pytest.skip(f"reference material not found at {path} (set MOXSERVE_SHARED)")
    return path


Runner = Callable[..., "subprocess.CompletedProcess[str]"]


@pytest.fixture(scope="session")
def run_moxserve() -> Runner:
    """Run the real command line in a subprocess: `run_moxserve("data", "digits", …, cwd=…, env={…}, timeout=…)`."""

    def run(
        *args: str | os.PathLike[str],
        cwd: str | os.PathLike[str] | None = None,
        env: dict[str, str] | None = None,
        timeout: float = 280,
    ) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, "-m", "moxserve", *map(os.fspath, args)],
            cwd=cwd,
            env={**os.environ, "NO_COLOR": "1", **(env or {})},
            capture_output=True,
            text=True,
            timeout=timeout,
            check=False,
        )

    return run


# Reads a request a line; what it forks for one lives on below the loop, as if Python had just been started.
FORKS = """
import json, os, sys
import tensorflow.compat.v1

for line in sys.stdin:
    asked = json.loads(line)
    process = os.fork()
    if not process:
        break
    print(os.waitstatus_to_exitcode(os.waitpid(process, 0)[1]), flush=True)
else:
    sys.exit()
for number, path in enumerate([os.devnull, *asked["streams"]]):
    os.dup2(os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND), number)
os.chdir(asked["cwd"])
os.environ.clear()
os.environ.update(asked["environment"])
sys.argv = [asked["path"] or "-c", *asked["arguments"]]
if asked["path"]:
    sys.path[0], __file__ = os.path.dirname(asked["path"]), asked["path"]
exec(compile(asked["text"], sys.argv[0], "exec"))
"""


@pytest.fixture(scope="session")
def run_tensorflow_script(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Runner]:
    """Run a script that imports TensorFlow: `run_tensorflow_script(Path or text, *arguments, cwd=…, timeout=…)`.

    In a process of its own, with its own arguments, standard streams and exit status, but forked from one that has
    imported TensorFlow already, which takes longer than most scripts. For scripts that end by themselves, and set no
    variable that counts when TensorFlow is imported.
    """
    parent = subprocess.Popen(
        [sys.executable, "-c", FORKS], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, start_new_session=True
    )
    folder = tmp_path_factory.mktemp("scripts")
    numbers = itertools.count()

    def run(
        script: str | Path,
        *args: str | os.PathLike[str],
        cwd: str | os.PathLike[str] = ".",
        stderr: int = subprocess.PIPE,
        timeout: float = 280,
    ) -> subprocess.CompletedProcess[str]:
        number = next(numbers)
        streams = [folder / f"{number}.{name}" for name in ("stdout", "stderr")]
        asked = {
            "path": str(script) if isinstance(script, Path) else "",
            "text": script.read_text() if isinstance(script, Path) else script,
            "arguments": [*map(os.fspath, args)],
            "cwd": os.path.abspath(cwd),
            "environment": dict(os.environ),
            "streams": [str(streams[0]), str(streams[stderr == subprocess.PIPE])],
        }
        assert parent.stdin is not None
        assert parent.stdout is not None
        parent.stdin.write(json.dumps(asked) + "\n")
        parent.stdin.flush()
        limit = threading.Timer(timeout, os.killpg, [parent.pid, signal.SIGKILL])
        limit.start()
        answer = parent.stdout.readline()
        limit.cancel()
        printed = [path.read_text(errors="replace") if path.exists() else "" for path in streams]
        assert answer, f"it did not end within {timeout:g} s: {args}\n{''.join(printed)[-3000:]}"
        return subprocess.CompletedProcess([asked["path"] or "-c", *asked["arguments"]], int(answer), *printed)

    yield run
    with contextlib.suppress(ProcessLookupError):
        os.killpg(parent.pid, signal.SIGKILL)
    parent.communicate()


@dataclass(frozen=True)
class ToyServer:
    """A real server with one small model named `toy`, for tests of whatever talks to a server."""

    base: Path
    grpc: str
    rest: str
    server: Any


@pytest.fixture(scope="session")
def toy_base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Base directory of a model with one version and a signature for each thing that clients trip over."""
    import tensorflow as tf
    from tensorflow.python.eager import context

    spec = tf.TensorSpec

    class Toy(tf.Module):
        @tf.function(input_signature=[spec([None, 8, 8, 1], tf.uint8, name="images")])
        def shade(self, images: Any) -> Any:
            brightness = tf.reduce_mean(tf.cast(images, tf.float32), [1, 2, 3]) / 255.0
            nearness = -50.0 * tf.abs(brightness[:, None] - tf.constant([[0.0, 0.5, 1.0]]))
            return {"probabilities": tf.nn.softmax(nearness), "classes": tf.argmax(nearness, 1)}

        @tf.function(
            input_signature=[
                spec([None, 3], tf.float32, name="x"),
                spec([None], tf.int64, name="n"),
                spec([None], tf.string, name="s"),
                spec([None], tf.bool, name="b"),
            ]
        )
        def echo(self, x: Any, n: Any, s: Any, b: Any) -> Any:
            return {name: tf.identity(value) for name, value in {"x": x, "n": n, "s_bytes": s, "b": b}.items()}

        @tf.function(input_signature=[spec([None], tf.float32, name="x")])
        def positive(self, x: Any) -> Any:
            with tf.control_dependencies([tf.debugging.assert_non_negative(x, "negative numbers are refused")]):
                return {"root": tf.sqrt(x)}

        @tf.function(input_signature=[spec([None], tf.float32, name="x")])
        def total(self, x: Any) -> Any:
            return {"total": tf.reduce_sum(x)}

        @tf.function(input_signature=[spec([None, 2], tf.float16, name="x")])
        def half(self, x: Any) -> Any:
            return {"y": x / tf.constant(2.0, tf.float16)}

        @tf.function(input_signature=[spec([4, 2], tf.float32, name="x")])
        def fixed(self, x: Any) -> Any:
            return {"sum": tf.reduce_sum(x, 1)}

        @tf.function(input_signature=[spec([None], tf.float32, name="x")])
        def inverse(self, x: Any) -> Any:
            return {"inverse": 1.0 / x}

        @tf.function(input_signature=[spec([None], tf.string, name="files")])
        def sizes(self, files: Any) -> Any:
            return {"size": tf.strings.length(files), "names": tf.strings.substr(files, 1, 3)}

        @tf.function(input_signature=[spec([None, 8, 8, 3], tf.float32, name="images")])
        def mean(self, images: Any) -> Any:
            return {"mean": tf.reduce_mean(images, [1, 2])}

    toy = Toy()
    base = tmp_path_factory.mktemp("toy")
    names = ("echo", "positive", "total", "half", "fixed", "inverse", "sizes", "mean")
    signatures = {"serving_default": toy.shade, **{name: getattr(toy, name) for name in names}}
    # Another test of this process may have turned eager execution off.
    with context.eager_mode():
        tf.saved_model.save(toy, str(base / "1"), signatures=signatures)
    return base


@pytest.fixture(scope="session")
def toy_server(toy_base: Path) -> Iterator[ToyServer]:
    """The toy model behind real gRPC and REST ports."""
    from moxserve.serving.main import Server, ServerOptions

    options = ServerOptions(
        model_name="toy", model_base_path=str(toy_base), grpc_address="127.0.0.1:0", rest_address="127.0.0.1:0"
    )
    with Server(options) as server:
        yield ToyServer(toy_base, f"127.0.0.1:{server.grpc_port}", f"http://127.0.0.1:{server.rest_port}", server)


@pytest.fixture
def free_port() -> int:
    """A port where nobody listens."""
    return ports.free_port()


@pytest.fixture(scope="session")
def digits_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The digits data set in all formats, as `moxserve data digits` writes it. Read only."""
    from moxserve.data.digits import write_digits

    out = tmp_path_factory.mktemp("data") / "digits"
    write_digits(out)
    return out


@pytest.fixture
def eager() -> Iterator[None]:
    """TensorFlow runs eagerly, whatever ran in this process before: the executor turns graph mode on for good."""
    from tensorflow.python.eager import context

    with context.eager_mode():
        yield


@dataclass(frozen=True)
class Account:
    """An object store, and one who may do everything there.

    Attributes:
        endpoint: the store's URL.
        ak: access key.
        sk: secret key.
        elsewhere: it is not moto's in this process.
    """

    endpoint: str
    ak: str
    sk: str
    elsewhere: bool = False

    def client(self, **kwargs: Any) -> Any:
        """Give boto3's client, which the tests look with."""
        import boto3
        from botocore.config import Config

        known = {
            "endpoint_url": self.endpoint,
            "aws_access_key_id": self.ak,
            "aws_secret_access_key": self.sk,
            "region_name": os.environ.get("AWS_REGION", "us-east-1"),
            "config": Config(s3={"addressing_style": "path"}, request_checksum_calculation="when_required"),
        }
        return boto3.client("s3", **{**known, **kwargs})


@dataclass
class Store:
    """A bucket of a store that is reached through this process.

    Attributes:
        endpoint: the URL of the way to it.
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
    lock: Any = field(default_factory=threading.Lock)

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


class _Elsewhere:
    """A WSGI application that passes on to another store, as it stands: the signature counts there."""

    def __init__(self, endpoint: str) -> None:
        parts = urlsplit(endpoint)
        kind = http.client.HTTPSConnection if parts.scheme == "https" else http.client.HTTPConnection
        self._connect = lambda: kind(parts.netloc, timeout=60)

    def __call__(self, environ: dict[str, Any], start_response: Any) -> Any:
        method, size = environ["REQUEST_METHOD"], int(environ.get("CONTENT_LENGTH") or 0)
        headers = {name[5:].replace("_", "-"): value for name, value in environ.items() if name.startswith("HTTP_")}
        for name in ("EXPECT", "CONNECTION"):
            headers.pop(name, None)
        headers["Content-Length"] = str(size)
        if environ.get("CONTENT_TYPE"):
            headers["Content-Type"] = environ["CONTENT_TYPE"]
        connection = self._connect()
        try:
            connection.request(method, environ["RAW_URI"], environ["wsgi.input"].read(size), headers)
            answer = connection.getresponse()
            body = answer.read()
        finally:
            connection.close()
        kept = [(k, v) for k, v in answer.getheaders() if k.lower() not in ("connection", "transfer-encoding", "date")]
        start_response(f"{answer.status} {answer.reason}", kept)
        return [body]


class _Watched:
    """The server's WSGI application with a look at each request.

    Writing is as real stores do it, and moto does not: a condition is looked at and the object written in one, and an
    object of which a part came, whose sender was killed, is none.
    """

    def __init__(self, app: Any) -> None:
        self.app = app
        self.store: Store | None = None
        self._writing = threading.Lock()

    def __call__(self, environ: dict[str, Any], start_response: Any) -> Any:
        store = self.store
        if store is not None:
            method, path, query = environ["REQUEST_METHOD"], environ["PATH_INFO"], environ.get("QUERY_STRING", "")
            with store.lock:  # one of each for a request
                store.calls.append((method, path))
                store.md5.append(environ.get("HTTP_CONTENT_MD5", ""))
            answer = store.before(method, path, query) if store.before else None
            if answer is not None:
                status, headers, body = answer
                environ["wsgi.input"].read(int(environ.get("CONTENT_LENGTH") or 0))
                start_response(status, [*headers, ("Content-Length", str(len(body)))])
                return [body]
        if environ["REQUEST_METHOD"] != "PUT" or not environ.get("CONTENT_LENGTH"):
            return self.app(environ, start_response)
        content, size = environ["wsgi.input"].read(int(environ["CONTENT_LENGTH"])), int(environ["CONTENT_LENGTH"])
        if len(content) < size:
            start_response("400 Bad Request", [("Content-Length", "0")])
            return [b""]
        environ["wsgi.input"] = io.BytesIO(content)
        with self._writing:
            return self.app(environ, start_response)


@pytest.fixture(scope="session")
def s3_server() -> Iterator[tuple[str, _Watched]]:
    """The way to the store, which can be watched: its URL and its application."""
    pytest.importorskip("boto3", reason="needs the extra s3")
    server_module = pytest.importorskip("moto.server", reason="needs moto[server]")  # and with it werkzeug
    from werkzeug.serving import WSGIRequestHandler, make_server

    class Quiet(WSGIRequestHandler):
        def log(self, *args: Any, **kwargs: Any) -> None:
            """Say nothing."""

    endpoint = os.environ.get("MOXSERVE_TEST_S3_ENDPOINT")
    moto = None if endpoint else server_module.DomainDispatcherApplication(server_module.create_backend_app)
    app = _Watched(_Elsewhere(endpoint) if endpoint else moto)
    server = make_server("127.0.0.1", 0, app, threaded=True, request_handler=Quiet)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}", app
    server.shutdown()
    thread.join()


@pytest.fixture(scope="session")
def account(request: pytest.FixtureRequest) -> Account:
    """The store and its keys; moto takes any, as long as nobody turns authentication on."""
    pytest.importorskip("boto3", reason="needs the extra s3")
    endpoint = os.environ.get("MOXSERVE_TEST_S3_ENDPOINT")
    if endpoint:
        return Account(endpoint, os.environ["AWS_ACCESS_KEY_ID"], os.environ["AWS_SECRET_ACCESS_KEY"], elsewhere=True)
    endpoint, _ = request.getfixturevalue("s3_server")
    return Account(endpoint, "testing", "testing")


@pytest.fixture
def store(
    account: Account, s3_server: tuple[str, _Watched], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> Iterator[Store]:
    """A fresh bucket, and the environment that leads to it; temporary files go to a folder of their own."""
    endpoint, app = s3_server
    for name in [name for name in os.environ if name.startswith("AWS_")]:
        monkeypatch.delenv(name)
    scratch = tmp_path / "tmpdir"
    scratch.mkdir()
    settings = {
        "AWS_ENDPOINT_URL": endpoint,
        "AWS_ACCESS_KEY_ID": account.ak,
        "AWS_SECRET_ACCESS_KEY": account.sk,
        "AWS_EC2_METADATA_DISABLED": "true",
        "AWS_CONFIG_FILE": str(tmp_path / "aws-config"),
        "AWS_SHARED_CREDENTIALS_FILE": str(tmp_path / "aws-credentials"),
        "TMPDIR": str(scratch),
    }
    for name, value in settings.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr("tempfile.tempdir", None)
    client = account.client(endpoint_url=endpoint)
    bucket = f"models-{uuid.uuid4().hex[:8]}"
    client.create_bucket(Bucket=bucket)
    app.store = Store(endpoint, bucket, f"s3://{bucket}/team/digits", client)
    yield app.store
    app.store = None


@pytest.fixture
def scratch(tmp_path: Path) -> Path:
    """The folder for temporary files while `store` is used."""
    return tmp_path / "tmpdir"
