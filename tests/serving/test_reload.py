"""Real servers while versions come and go."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx2
import numpy as np
import pytest

from moxserve.errors import NotFound
from moxserve.export.publish import open_publication
from moxserve.serving import manager as manager_module
from moxserve.serving.dataplane import Prediction
from moxserve.serving.main import Server
from moxserve.serving.manager import ManagerOptions
from moxserve.types import ModelRef

X = np.float32([1, 2])


def ask(server: Server, version: int | None = None) -> Prediction:
    return server.call(server.dataplane.predict(ModelRef("default", version), "", lambda _: {"x": X}))


def states(server: Server) -> dict[int, str]:
    reply = httpx2.get(f"http://127.0.0.1:{server.rest_port}/v1/models/default").json()
    return {int(row["version"]): row["state"] for row in reply["model_version_status"]}


@contextmanager
def traffic(server: Server) -> Iterator[list[Any]]:
    """Ask over REST from four threads; every answer is kept: (slope seen) or the error."""
    answers: list[Any] = []
    done = threading.Event()

    def run() -> None:
        with httpx2.Client(base_url=f"http://127.0.0.1:{server.rest_port}") as http:
            while not done.is_set():
                reply = http.post("/v1/models/default:predict", content='{"instances": [1, 2]}')
                answers.append(reply.json()["predictions"] if reply.status_code == 200 else reply.text)

    threads = [threading.Thread(target=run) for _ in range(4)]
    for thread in threads:
        thread.start()
    try:
        yield answers
    finally:
        done.set()
        for thread in threads:
            thread.join(120)


@pytest.mark.slow
def test_new_version_and_rollback_under_traffic(tmp_path: Path, save_linear, serve, wait_for) -> None:
    save_linear(tmp_path / "1", slope=10)
    server = serve(tmp_path)
    with traffic(server) as answers:
        for version in range(2, 6):
            with open_publication(str(tmp_path), version) as staged:
                shutil.rmtree(staged.staging)
                save_linear(Path(staged.staging), slope=10 * version)
            wait_for(lambda v=version: states(server).get(v) == "AVAILABLE", f"version {version}")
            wait_for(lambda v=version: states(server).get(v - 1) == "END", f"version {version - 1} to go")
            assert ask(server).outputs["y"].tolist() == [10 * version, 20 * version]
        shutil.rmtree(tmp_path / "5")
        wait_for(lambda: states(server)[4] == "AVAILABLE" and states(server)[5] == "END", "the rollback")
        assert ask(server).version == 4
        wait_for(lambda: len(answers) > 20, "some traffic")
    allowed = [[10.0 * v, 20.0 * v] for v in range(1, 6)]
    assert [a for a in answers if a not in allowed] == []


def test_a_request_in_flight_is_answered_by_its_old_version(
    tmp_path: Path, save_linear, serve, gates, wait_for
) -> None:
    save_linear(tmp_path / "1", slope=3)
    server, gate = serve(tmp_path), gates()
    answers: list[Prediction] = []

    def slow() -> None:
        x = np.float32([gate.value])
        answers.append(server.call(server.dataplane.predict(ModelRef("default"), "", lambda _: {"x": x})))

    thread = threading.Thread(target=slow)
    thread.start()
    wait_for(lambda: gate.began, "the request runs")
    with open_publication(str(tmp_path), 2) as staged:
        shutil.copytree(tmp_path / "1", staged.staging, dirs_exist_ok=True)
    wait_for(lambda: states(server) == {2: "AVAILABLE", 1: "UNLOADING"}, "the new version, while the old one works")
    gate.open()
    thread.join(60)
    assert (answers[0].version, answers[0].outputs["y"].tolist()) == (1, [3 * gate.value])
    wait_for(lambda: states(server) == {2: "AVAILABLE", 1: "END"}, "the old version to go")


def test_a_broken_new_version_never_takes_traffic(tmp_path: Path, save_linear, serve, wait_for) -> None:
    save_linear(tmp_path / "1", slope=3)
    server = serve(tmp_path)
    with traffic(server) as answers:
        with open_publication(str(tmp_path), 2) as staged:
            shutil.copytree(tmp_path / "1", staged.staging, dirs_exist_ok=True)
            data = Path(staged.staging) / "variables" / "variables.data-00000-of-00001"
            data.write_bytes(data.read_bytes()[:1])
        wait_for(lambda: states(server) == {2: "END", 1: "AVAILABLE"}, "version 2 to fail")
        row = httpx2.get(f"http://127.0.0.1:{server.rest_port}/v1/models/default/versions/2").json()
        status = row["model_version_status"][0]["status"]
        assert status["error_code"] in ("DATA_LOSS", "OUT_OF_RANGE", "INVALID_ARGUMENT")
        assert status["error_message"]
        with pytest.raises(NotFound):
            ask(server, 2)
    assert [a for a in answers if a != [3.0, 6.0]] == []


COPY_SLOWLY = """
import os, sys
source, target = sys.argv[1:]
for folder, _, names in sorted(os.walk(source)):
    here = os.path.join(target, os.path.relpath(folder, source))
    os.makedirs(here, exist_ok=True)
    for name in sorted(names):
        with open(os.path.join(folder, name), "rb") as f, open(os.path.join(here, name), "wb", buffering=0) as out:
            data = f.read()
            for i in range(0, len(data), max(1, len(data) // 5)):
                sys.stdin.readline()
                out.write(data[i : i + max(1, len(data) // 5)])
                print("more", flush=True)
sys.stdin.readline()
print("all", flush=True)
"""


@pytest.mark.slow
def test_a_version_that_another_program_copies_is_never_seen_half(
    tmp_path: Path, save_linear, serve, wait_for, monkeypatch
) -> None:
    base, other = tmp_path / "base", tmp_path / "other"
    save_linear(base / "1", slope=1)
    save_linear(other / "2", slope=2)
    server = serve(base, manager=ManagerOptions(poll_interval_s=0.02))
    find, finished = manager_module.find_versions, threading.Event()
    command = [sys.executable, "-c", COPY_SLOWLY, other / "2", base / "2"]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, bufsize=1) as copying:
        assert copying.stdin is not None
        assert copying.stdout is not None

        def find_when_there_is_more(base_path: str) -> Any:
            """Every look finds that the copy has grown since the last one."""
            if not finished.is_set():
                copying.stdin.write("\n")
                if copying.stdout.readline() == "all\n":
                    finished.set()
            return find(base_path)

        monkeypatch.setattr(manager_module, "find_versions", find_when_there_is_more)
        seen = set()
        while True:
            shot = tuple(states(server).items())
            assert ask(server).version == 1 or finished.is_set()
            if finished.is_set():
                break
            seen.add(shot)
            time.sleep(0.01)  # leaves the copy and the looks at it the CPU
    assert seen == {((1, "AVAILABLE"),)}
    wait_for(lambda: states(server) == {1: "END", 2: "AVAILABLE"}, "the finished copy")
    assert ask(server).outputs["y"].tolist() == [2, 4]


PUBLISH = """
import os, shutil, sys, time
from moxserve.export.publish import open_publication
base, source = sys.argv[1:]
with open_publication(base) as staged:
    print("staging", flush=True)
    for folder, _, names in os.walk(source):
        here = os.path.join(staged.staging, os.path.relpath(folder, source))
        os.makedirs(here, exist_ok=True)
        for name in names:
            shutil.copy(os.path.join(folder, name), here)
            time.sleep(0.02)
"""


@pytest.mark.slow
def test_kill_9_during_a_publish_leaves_nothing_that_the_server_lists(
    tmp_path: Path, save_linear, serve, wait_for
) -> None:
    base = tmp_path / "base"
    save_linear(base / "1", slope=1)
    source = save_linear(tmp_path / "source" / "1", slope=2)
    server = serve(base)
    seen: set[int] = set()
    for i in range(8):
        writer = subprocess.Popen([sys.executable, "-c", PUBLISH, base, source], stdout=subprocess.PIPE)
        assert writer.stdout is not None
        assert writer.stdout.readline() == b"staging\n"
        time.sleep(0.01 * i)
        writer.send_signal(signal.SIGKILL)
        writer.wait()
        writer.stdout.close()
        time.sleep(0.15)
        complete = {int(name) for name in os.listdir(base) if name.isdigit()}
        seen |= set(states(server))
        assert seen <= complete
        assert ask(server).outputs["y"].tolist() in ([1, 2], [2, 4])
    subprocess.run([sys.executable, "-c", PUBLISH, base, source], check=True, stdout=subprocess.DEVNULL)
    newest = max(int(name) for name in os.listdir(base) if name.isdigit())
    wait_for(lambda: states(server).get(newest) == "AVAILABLE", "a publish that is left alone")
    assert [name for name in os.listdir(base) if not name.isdigit()] == []


def test_a_server_waits_for_its_first_version(
    tmp_path: Path, save_linear, options: Callable[..., Any], wait_for
) -> None:
    base = tmp_path / "later"
    server = Server(options(base))
    starting = threading.Thread(target=server.start)
    starting.start()
    time.sleep(0.3)
    assert (server.grpc_port, server.rest_port) == (0, 0)
    save_linear(tmp_path / "1")
    base.mkdir()
    os.rename(tmp_path / "1", base / "1")
    starting.join(120)
    assert ask(server).version == 1
    assert server.stop(120)
