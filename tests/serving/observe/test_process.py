"""`moxserve serve` as a process: logs that are moved away, several processes in one log, what is on stderr."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx2
import pytest

from moxserve import ports

MAIN = "import sys; from moxserve.cli.main import main; sys.exit(main())"
# It looks by itself only in an hour: what follows the file is the signal.
PATIENT = "from moxserve.serving.observe import access_log; access_log._LOOK_S = 3600.0; "


class Process:
    def __init__(self, arguments: list[str], log: Path, code: str = "") -> None:
        self._log = log
        command = ["-c", code + MAIN] if code else ["-m", "moxserve"]
        with log.open("wb") as out:
            self.popen = subprocess.Popen([sys.executable, *command, *arguments], stderr=out, stdout=out)

    @property
    def text(self) -> str:
        return self._log.read_text(errors="replace")

    def wait_for(self, text: str, timeout_s: float = 240) -> None:
        self.wait(lambda: text in self.text, f"never said {text!r}", timeout_s)

    def wait(self, true: Callable[[], bool], what: str, timeout_s: float = 120) -> None:
        deadline = time.monotonic() + timeout_s
        while not true():
            assert self.popen.poll() is None, self.text
            assert time.monotonic() < deadline, f"{what}:\n{self.text}"
            time.sleep(0.02)


@pytest.fixture
def start(tmp_path: Path, shared_dir: Path) -> Iterator[Callable[..., Process]]:
    running: list[Process] = []
    base = shared_dir / "testdata" / "tfserving" / "saved_model_half_plus_two_cpu"

    def run(*arguments: str, before: tuple[str, ...] = (), code: str = "") -> Process:
        common = ["--host=127.0.0.1", "--model_name=half", f"--model_base_path={base}", *arguments]
        process = Process([*before, "serve", *common], tmp_path / f"log{len(running)}.txt", code)
        running.append(process)
        return process

    yield run
    for process in running:
        if process.popen.poll() is None:
            process.popen.kill()
        process.popen.wait(60)


def lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_bytes().splitlines()] if path.exists() else []


def ask(port: int, request_id: str) -> None:
    url = f"http://127.0.0.1:{port}/v1/models/half:predict"
    answer = httpx2.post(url, content='{"instances": [1.0]}', headers={"x-request-id": request_id})
    assert (answer.json(), answer.headers["x-request-id"]) == ({"predictions": [2.5]}, request_id)


@pytest.mark.slow
def test_logrotate_moves_the_access_log_and_sends_sighup(start, tmp_path, free_port) -> None:
    path = tmp_path / "access.log"
    server = start("--port=0", "--grpc_socket_path", str(tmp_path / "s"), f"--rest_api_port={free_port}",
                   f"--access_log={path}", code=PATIENT)  # fmt: skip
    server.wait_for("Exporting HTTP/REST API at")
    ask(free_port, "first")
    server.wait(lambda: len(lines(path)) == 1, "no line")
    path.rename(tmp_path / "access.log.1")
    server.popen.send_signal(signal.SIGHUP)
    asked = ["first"]

    def let_go() -> bool:
        asked.append(f"later-{len(asked)}")
        ask(free_port, asked[-1])
        return path.exists()

    server.wait(let_go, "the moved file was not let go")
    server.popen.send_signal(signal.SIGTERM)
    assert server.popen.wait(120) == 0
    before, after = lines(tmp_path / "access.log.1"), lines(path)
    assert [line["request_id"] for line in before + after] == asked
    assert before
    assert after
    # TensorFlow's notes on CPU features and missing GPUs are no news.
    assert "oneDNN custom operations" not in server.text
    assert "cuda" not in server.text.lower()


@pytest.mark.slow
def test_verbose_shows_what_tensorflow_says(start, tmp_path) -> None:
    environment = os.environ.pop("TF_CPP_MIN_LOG_LEVEL", None)
    try:
        server = start("--port=0", "--grpc_socket_path", str(tmp_path / "s"), before=("-v",))
    finally:
        if environment is not None:
            os.environ["TF_CPP_MIN_LOG_LEVEL"] = environment
    server.wait_for("Running gRPC ModelServer at")
    assert "cpu_feature_guard" in server.text


@pytest.mark.slow
def test_processes_share_an_access_log(start, tmp_path, free_port) -> None:
    path = tmp_path / "access.log"
    server = start(
        f"--port={ports.free_port()}", f"--rest_api_port={free_port}", f"--access_log={path}", "--num_processes=2"
    )
    server.wait_for("2 server processes answer")
    for number in range(40):
        ask(free_port, f"r{number}")  # a connection each: the system spreads them
    page = f"http://127.0.0.1:{free_port}/"
    server.wait(lambda: "<dt>Answered</dt><dd class=''>40</dd>" in httpx2.get(page).text, "not all are counted")
    path.rename(tmp_path / "access.log.1")
    server.popen.send_signal(signal.SIGHUP)
    time.sleep(1.2)
    for number in range(40, 60):
        ask(free_port, f"r{number}")
    server.popen.send_signal(signal.SIGTERM)
    assert server.popen.wait(120) == 0
    told = [line["request_id"] for name in ("access.log.1", "access.log") for line in lines(tmp_path / name)]
    assert sorted(name for name in told if name.startswith("r")) == sorted(f"r{number}" for number in range(60))
    assert len(lines(path)) >= 1


def test_a_wrong_access_log_is_told_before_anything_is_loaded(start, tmp_path, free_port) -> None:
    server = start(f"--port={free_port}", f"--access_log={tmp_path}")
    assert server.popen.wait(240) == 2
    assert f"error: --access_log={tmp_path}: Is a directory" in server.text
    assert "Loading servable" not in server.text
