"""`moxserve models` as an operator runs it."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import grpc
import pytest

from moxserve.serving.main import Server, ServerOptions
from moxserve.serving.reload import ReloadOptions


def config(path: Path, *entries: str) -> Path:
    path.write_text(f"model_config_list {{ {' '.join(f'config {{ {entry} }}' for entry in entries)} }}")
    return path


def entry(name: str, base: Path, more: str = "") -> str:
    return f'name: "{name}" base_path: "{base}" model_platform: "tensorflow" {more}'


@pytest.fixture(scope="module")
def bases(shared_dir: Path) -> SimpleNamespace:
    folder = shared_dir / "testdata" / "tfserving"
    return SimpleNamespace(
        two=folder / "saved_model_half_plus_two_2_versions",
        three=folder / "saved_model_half_plus_three",
        broken=folder / "bad_half_plus_two",
    )


@pytest.fixture
def server(request, bases, tmp_path) -> Iterator[SimpleNamespace]:
    """A server that waits so many seconds for a version of a new model."""
    wait_s = getattr(request, "param", 60.0)
    path = config(
        tmp_path / "first.config",
        entry("half", bases.two, 'model_version_policy { all {} } version_labels { key: "old" value: 123 }'),
        entry("three", bases.three),
    )
    options = ServerOptions(
        config=ReloadOptions(path.as_posix(), allow_unavailable=True, wait_s=wait_s), rest_address="127.0.0.1:0"
    )
    with Server(options) as running:
        yield SimpleNamespace(
            grpc=f"127.0.0.1:{running.grpc_port}", rest=f"http://127.0.0.1:{running.rest_port}", first=path
        )


@pytest.mark.slow
def test_status_over_rest(run_moxserve, server) -> None:
    done = run_moxserve("models", "status", "--rest", server.rest)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.splitlines() == [
        "MODEL  VERSION  STATE      LABELS",
        "half   124      AVAILABLE",
        "half   123      AVAILABLE  old",
        "three  123      AVAILABLE",
    ]
    done = run_moxserve("models", "status", "--rest", server.rest, "half:123", "--json", "--ready")
    told = json.loads(done.stdout)
    version = {"version": 123, "state": "AVAILABLE", "error_code": "OK", "error_message": ""}
    assert told == {"models": [{"name": "half", "labels": {"old": 123}, "versions": [version]}]}


@pytest.mark.slow
def test_status_over_grpc(run_moxserve, server) -> None:
    done = run_moxserve("models", "status", "--grpc", server.grpc, "three", "half")
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.splitlines() == [
        "MODEL  VERSION  STATE",
        "three  123      AVAILABLE",
        "half   124      AVAILABLE",
        "half   123      AVAILABLE",
    ]
    done = run_moxserve("models", "status", "--grpc", server.grpc, "nope", "three")
    assert done.returncode == 3
    assert "three  123      AVAILABLE" in done.stdout
    assert "error: 1 of 2 models are not known: " in done.stderr
    assert "NOT_FOUND: Could not find any versions of model nope" in done.stderr
    done = run_moxserve("models", "status", "--grpc", server.grpc, "nope")
    assert (done.returncode, done.stdout) == (1, "")
    assert "NOT_FOUND" in done.stderr


@pytest.mark.slow
def test_reload_and_what_it_changed(run_moxserve, server, bases, tmp_path) -> None:
    wanted = config(
        tmp_path / "next.config",
        entry("half", bases.two, 'model_version_policy { all {} } version_labels { key: "new" value: 124 }'),
        entry("again", bases.three),
    )
    done = run_moxserve("models", "reload", wanted, "--grpc", server.grpc)
    assert (done.returncode, done.stderr) == (0, "")
    lines = [line.split() for line in done.stdout.splitlines()]
    assert lines[0] == ["the", "configuration", "is", "in", "effect"]
    assert ["half", "stays", "124,", "123", "124,", "123", "new", "->", "124"] in lines
    assert ["again", "new", "123"] in lines

    done = run_moxserve("models", "status", "--rest", server.rest, "--ready")
    assert done.returncode == 0
    assert [line.split() for line in done.stdout.splitlines()[1:]] == [
        ["half", "124", "AVAILABLE", "new"],
        ["half", "123", "AVAILABLE"],
        ["again", "123", "AVAILABLE"],
    ]
    # What was unloaded is known still, but answers no more.
    done = run_moxserve("models", "status", "--grpc", server.grpc, "three", "--ready")
    assert done.returncode == 1
    assert "error: no version answers of: three" in done.stderr

    done = run_moxserve("models", "reload", server.first, "--grpc", server.grpc, "--json")
    changes = {change["model"]: change for change in json.loads(done.stdout)["changes"]}
    assert changes["half"] == {
        "model": "half", "change": "stays", "before": [124, 123], "now": [124, 123], "labels": {"old": 123},
    }  # fmt: skip
    assert (changes["three"]["change"], changes["three"]["now"]) == ("new", [123])


@pytest.mark.slow
@pytest.mark.parametrize("server", [0.5], indirect=True)
def test_a_reload_that_is_refused_changes_nothing(run_moxserve, server, bases, tmp_path) -> None:
    path = tmp_path / "refused.config"

    def refused(*entries: str) -> tuple[int, str]:
        done = run_moxserve("models", "reload", config(path, *entries), "--grpc", server.grpc)
        assert done.stdout == ""
        return done.returncode, done.stderr

    status, text = refused(entry("half", bases.two), entry("half", bases.two))
    assert (status, f"{path}: grpc://{server.grpc} answered INVALID_ARGUMENT: Illegal to list" in text) == (2, True)
    status, text = refused(entry("half", bases.two, 'version_labels { key: "old" value: 7 }'))
    assert (status, "FAILED_PRECONDITION: Request to assign label to version 7" in text) == (1, True)
    status, text = refused(entry("half", bases.two), entry("more", tmp_path / "nothing"))
    assert (status, "NOT_FOUND" in text, "Could not find base path" in text) == (1, True, True)
    path.write_text("model_config_list { config { nme: 'x' } }")
    done = run_moxserve("models", "reload", path, "--grpc", server.grpc)
    assert done.returncode == 2
    assert f"{path}:1:30: " in done.stderr
    assert "Traceback" not in done.stderr
    done = run_moxserve("models", "status", "--rest", server.rest)
    assert "three  123      AVAILABLE" in done.stdout


@pytest.mark.slow
@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["status"], "Give one of --grpc HOST:PORT, --rest URL; got none."),
        (["status", "--grpc=h:1", "--rest=http://h:2"], "got --grpc and --rest."),
        (["reload", "some.config"], "Missing option '--grpc'"),
        (["reload", "--grpc=h:1"], "Missing argument 'CONFIG_FILE'"),
        (["reload", "/nowhere/some.config", "--grpc=h:1"], "cannot read the model configuration /nowhere/some.config"),
        (["reolad"], "Did you mean"),
    ],
)
def test_wrong_use(run_moxserve, arguments, message) -> None:
    done = run_moxserve("models", *arguments)
    assert done.returncode == 2
    assert message in done.stderr


@pytest.mark.slow
def test_nobody_listens(run_moxserve, free_port, bases, tmp_path) -> None:
    done = run_moxserve("models", "status", "--rest", f"http://127.0.0.1:{free_port}")
    assert (done.returncode, "nobody answers at" in done.stderr) == (4, True)
    path = config(tmp_path / "c", entry("half", bases.two))
    done = run_moxserve("models", "reload", path, "--grpc", f"127.0.0.1:{free_port}")
    assert (done.returncode, "nobody answers at" in done.stderr) == (4, True)


@pytest.fixture
def silent() -> Iterator[SimpleNamespace]:
    """Servers that list nothing, as TensorFlow Serving: REST says so, gRPC knows no such method."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            body = b'{"error": "Missing model name in request."}'
            self.send_response(400)
            self.send_header("content-length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *args: Any) -> None:
            pass

    rest = HTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=rest.serve_forever, daemon=True).start()
    rpc = grpc.server(ThreadPoolExecutor(1))
    port = rpc.add_insecure_port("127.0.0.1:0")
    rpc.start()
    yield SimpleNamespace(rest=f"http://127.0.0.1:{rest.server_port}", grpc=f"127.0.0.1:{port}")
    rest.shutdown()
    rest.server_close()
    rpc.stop(0)


def test_a_server_that_lists_nothing(run_moxserve, silent) -> None:
    for flag, address in (("--rest", silent.rest), ("--grpc", silent.grpc)):
        done = run_moxserve("models", "status", flag, address)
        assert done.returncode == 1
        assert "does not list its models\nhint: name the models" in done.stderr


def test_no_tensorflow_is_imported() -> None:
    import subprocess
    import sys

    code = (
        "import sys, moxserve.cli.models, moxserve.client.grpc, moxserve.client.rest; "
        "assert not [m for m in sys.modules if m.split('.')[0] == 'tensorflow' or m.startswith('moxserve.serving')]"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
